//! When keys and secrets were last used: noted in memory, to the second, written in batches, true to
//! the minute.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use std::sync::atomic::{AtomicI64, Ordering};

use super::snapshot::KeySnapshot;
use crate::id::{KeyId, SecretId};
use crate::time::Timestamp;

/// Two workers seldom want the same one.
const SHARDS: usize = 32;

/// Beyond so many secrets between two writes further ones wait for their next use.
const NOTED_MAX: usize = 100_000;

/// Of the uses of a secret within so much of each other only the first is noted.
const NOTED_EVERY_MS: i64 = 1_000;

/// When a use of an entry's secret was last noted.
#[derive(Debug)]
pub struct LastNoted(AtomicI64);

impl Default for LastNoted {
    fn default() -> Self {
        Self(AtomicI64::new(i64::MIN))
    }
}

impl Clone for LastNoted {
    fn clone(&self) -> Self {
        Self(AtomicI64::new(self.0.load(Ordering::Relaxed)))
    }
}

impl LastNoted {
    /// Whether a use is to be noted. Two workers at once may both be told so, which does no harm.
    fn is_long_ago(&self, at: Timestamp) -> bool {
        let (at, last) = (at.millis(), self.0.load(Ordering::Relaxed));
        // A clock that was put back is not waited for.
        let is_long_ago = at.abs_diff(last) >= NOTED_EVERY_MS.unsigned_abs();
        if is_long_ago {
            self.0.store(at, Ordering::Relaxed);
        }
        is_long_ago
    }
}

/// The last use of each secret since the last write.
#[derive(Debug, Default)]
pub struct LastUsed([Mutex<Noted>; SHARDS]);

type Noted = HashMap<SecretId, (KeyId, Timestamp)>;

impl LastUsed {
    pub fn note(&self, key: &KeySnapshot, at: Timestamp) {
        if key.last_noted.is_long_ago(at) {
            self.put(&key.key_id, &key.secret.id, at);
        }
    }

    fn put(&self, key: &KeyId, secret: &SecretId, at: Timestamp) {
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
            self.put(&key, &secret, at);
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
