//! When keys and secrets were last used: noted in memory, written in batches, true to the minute.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::id::{KeyId, SecretId};
use crate::time::Timestamp;

/// Two workers seldom want the same one.
const SHARDS: usize = 32;

/// Beyond so many secrets between two writes further ones wait for their next use.
const NOTED_MAX: usize = 100_000;

/// The last use of each secret since the last write.
#[derive(Debug, Default)]
pub struct LastUsed([Mutex<Noted>; SHARDS]);

type Noted = HashMap<SecretId, (KeyId, Timestamp)>;

impl LastUsed {
    pub fn note(&self, key: &KeyId, secret: &SecretId, at: Timestamp) {
        let mut noted = self.shard(secret);
        if let Some((_, last)) = noted.get_mut(secret) {
            *last = at.max(*last);
        } else if noted.len() < NOTED_MAX / SHARDS {
            noted.insert(secret.clone(), (key.clone(), at));
        }
    }

    pub fn take(&self) -> Vec<(KeyId, SecretId, Timestamp)> {
        let mut used = Vec::new();
        for shard in &self.0 {
            let mut noted = lock(shard);
            used.extend(noted.drain().map(|(secret, (key, at))| (key, secret, at)));
        }
        used
    }

    /// After a failed write: what was noted meanwhile is newer and stays.
    pub fn put_back(&self, used: Vec<(KeyId, SecretId, Timestamp)>) {
        for (key, secret, at) in used {
            self.note(&key, &secret, at);
        }
    }

    /// By the last character of the id, which is five random bits.
    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder is less than their number"
    )]
    fn shard(&self, secret: &SecretId) -> MutexGuard<'_, Noted> {
        let last = secret.as_str().bytes().next_back().unwrap_or_default();
        lock(&self.0[usize::from(last) % SHARDS])
    }
}

fn lock(shard: &Mutex<Noted>) -> MutexGuard<'_, Noted> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}
