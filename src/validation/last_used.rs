//! When keys and secrets were last used: noted in memory, written in batches, true to the minute.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::id::{KeyId, SecretId};
use crate::time::Timestamp;

/// Beyond so many secrets between two writes further ones wait for their next use.
const NOTED_MAX: usize = 100_000;

/// The last use of each secret since the last write.
#[derive(Debug, Default)]
pub struct LastUsed(Mutex<HashMap<SecretId, (KeyId, Timestamp)>>);

impl LastUsed {
    pub fn note(&self, key: &KeyId, secret: &SecretId, at: Timestamp) {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, last)) = noted.get_mut(secret) {
            *last = at.max(*last);
        } else if noted.len() < NOTED_MAX {
            noted.insert(secret.clone(), (key.clone(), at));
        }
    }

    pub fn take(&self) -> Vec<(KeyId, SecretId, Timestamp)> {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        noted
            .drain()
            .map(|(secret, (key, at))| (key, secret, at))
            .collect()
    }

    /// After a failed write: what was noted meanwhile is newer and stays.
    pub fn put_back(&self, used: Vec<(KeyId, SecretId, Timestamp)>) {
        for (key, secret, at) in used {
            self.note(&key, &secret, at);
        }
    }
}
