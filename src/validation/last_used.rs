//! When keys and secrets were last used: noted in memory, to the second, written in batches, true to
//! the minute.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use std::sync::atomic::{AtomicU32, Ordering};

use super::snapshot::KeySnapshot;
use crate::id::{KeyId, SecretId};
use crate::keys::store::Used;
use crate::time::Timestamp;

/// Two workers seldom want the same one.
const SHARDS: usize = 32;

/// Beyond so many secrets between two writes further ones wait for their next use.
const NOTED_MAX: usize = 100_000;

/// In which second, by the Unix clock, a use of an entry's secret was last noted; 0 for never. Of the uses
/// within a second only the first is noted.
#[derive(Debug, Default)]
pub struct LastNoted(AtomicU32);

impl Clone for LastNoted {
    fn clone(&self) -> Self {
        Self(AtomicU32::new(self.0.load(Ordering::Relaxed)))
    }
}

impl LastNoted {
    /// Whether a use is to be noted. Two workers at once may both be told so, which does no harm.
    fn is_new(&self, at: Timestamp) -> bool {
        // A clock that was put back is not waited for. The number is whole until 2106, and goes on from 0.
        let second = u32::try_from(at.unix_seconds() & i64::from(u32::MAX)).unwrap_or_default();
        let is_new = self.0.load(Ordering::Relaxed) != second;
        if is_new {
            self.0.store(second, Ordering::Relaxed);
        }
        is_new
    }
}

/// The last use of each secret since the last write.
#[derive(Debug, Default)]
pub struct LastUsed([Mutex<Noted>; SHARDS]);

type Noted = HashMap<SecretId, (KeyId, Timestamp)>;

impl LastUsed {
    pub fn note(&self, key: &KeySnapshot, at: Timestamp) {
        if key.last_noted.is_new(at) {
            self.put(&key.key_id, &key.secret_id, at);
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

    pub fn take(&self) -> TakenUses<'_> {
        let mut left = Vec::new();
        for shard in &self.0 {
            // Room for as many as before, so that nobody who answers makes it.
            let room = Noted::with_capacity(lock(shard).len());
            let noted = std::mem::replace(&mut *lock(shard), room);
            left.extend(
                noted
                    .into_iter()
                    .map(|(secret, (key, at))| (key, secret, at)),
            );
        }
        left.sort_unstable_by_key(|(_, _, at)| Reverse(*at));
        TakenUses { of: self, left }
    }

    /// What could not be written: what was noted meanwhile is newer and stays.
    pub fn put_back(&self, used: Vec<Used>) {
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

/// Uses that were taken to be written. What was not handed out goes back when this is dropped.
pub struct TakenUses<'a> {
    of: &'a LastUsed,
    /// The oldest last.
    left: Vec<Used>,
}

impl TakenUses<'_> {
    /// The oldest that are left, at most so many; none at the end.
    pub fn next(&mut self, most: usize) -> Vec<Used> {
        self.left.split_off(self.left.len().saturating_sub(most))
    }
}

impl Drop for TakenUses<'_> {
    fn drop(&mut self) {
        self.of.put_back(std::mem::take(&mut self.left));
    }
}

fn lock(shard: &Mutex<Noted>) -> MutexGuard<'_, Noted> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_handed_out_goes_back() {
        let used = LastUsed::default();
        let at = |n: i64| Timestamp::from_millis(1_900_000_000_000 + n * 250);
        let some = (0..100).map(|n| {
            let key = KeyId::parse(&format!("key_{n:026}")).unwrap();
            (
                key,
                SecretId::parse(&format!("sec_{n:026}")).unwrap(),
                at(n),
            )
        });
        used.put_back(some.collect());
        let mut taken = used.take();
        let times = |uses: Vec<Used>| -> Vec<Timestamp> {
            let mut times: Vec<_> = uses.into_iter().map(|(_, _, at)| at).collect();
            times.sort_unstable();
            times
        };
        let first = (0..40).map(at).collect::<Vec<_>>();
        assert_eq!(times(taken.next(40)), first);
        drop(taken);
        let mut again = used.take();
        let rest = (40..100).map(at).collect::<Vec<_>>();
        assert_eq!(times(again.next(1000)), rest);
        assert!(again.next(1000).is_empty());
    }

    #[test]
    fn of_the_uses_within_a_second_the_first_is_noted() {
        let noted = LastNoted::default();
        let is_new = |millis| noted.is_new(Timestamp::from_millis(millis));
        assert!(is_new(1_900_000_000_000));
        assert!(!is_new(1_900_000_000_999));
        assert!(is_new(1_900_000_001_000));
        // A clock that was put back.
        assert!(is_new(1_800_000_000_000));
        assert!(is_new(Timestamp::MAX.millis()));
        assert!(!is_new(Timestamp::MAX.millis()));
    }
}
