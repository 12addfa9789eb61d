//! What is the same for many entries, kept once.
//!
//! Asked when an entry is made, never when it is used. It keeps nothing alive: what no entry holds any
//! more is dropped, and its place is swept away as new values come.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hash};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Two loads seldom want the same one.
const SHARDS: usize = 16;

/// Of so many values a shard knows which is which. When it is full of values that are in use, it forgets
/// those of which there is one user: they were not shared, and make room for some that may be.
const SHARD_MAX: usize = 8_192;

/// A shard is swept at most once in so many new values.
const SWEEP_MIN: usize = 64;

/// Values by their hash; of two with the same hash one is not shared.
#[derive(Debug)]
pub struct Shared<T: ?Sized> {
    hasher: RandomState,
    shards: [Mutex<Shard<T>>; SHARDS],
}

#[derive(Debug)]
struct Shard<T: ?Sized> {
    values: HashMap<u64, Weak<T>>,
    /// So many new values may come before the next sweep.
    room: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        let shard = |_| {
            Mutex::new(Shard {
                values: HashMap::new(),
                room: SWEEP_MIN,
            })
        };
        Self {
            hasher: RandomState::new(),
            shards: std::array::from_fn(shard),
        }
    }
}

impl<T: Hash + Eq + ?Sized> Shared<T> {
    /// The value that is there already, or else this one.
    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder is less than their number"
    )]
    pub fn one(&self, value: impl Into<Arc<T>>) -> Arc<T> {
        let value = value.into();
        let hash = self.hasher.hash_one(&*value);
        let [.., last] = hash.to_le_bytes();
        let shard = &self.shards[usize::from(last) % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = shard.values.get(&hash).and_then(Weak::upgrade) {
            return if *there == *value { there } else { value };
        }
        // As much work as values came since the last one: a sweep costs each of them a step.
        if shard.room == 0 {
            let is_full = shard.values.len() >= SHARD_MAX;
            let uses_min = if is_full { 2 } else { 1 };
            shard
                .values
                .retain(|_, value| value.strong_count() >= uses_min);
            shard.room = shard.values.len().max(SWEEP_MIN);
        }
        shard.room -= 1;
        if shard.values.len() < SHARD_MAX {
            shard.values.insert(hash, Arc::downgrade(&value));
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_kept_once_and_what_nobody_holds_not_at_all() {
        let shared = Shared::<str>::default();
        let (one, same, other) = (shared.one("a"), shared.one("a"), shared.one("b"));
        assert!(Arc::ptr_eq(&one, &same) && !Arc::ptr_eq(&one, &other));
        for number in 0..1_000_000 {
            shared.one(number.to_string());
        }
        let known = |shard: &Mutex<Shard<str>>| shard.lock().unwrap().values.len();
        let all: usize = shared.shards.iter().map(known).sum();
        assert!(all <= SHARDS * (2 * SWEEP_MIN + 2), "{all}");
        assert!(Arc::ptr_eq(&one, &shared.one("a")));
    }

    #[test]
    fn no_more_are_known_than_were_allowed() {
        let shared = Shared::<str>::default();
        let held: Vec<_> = (0..SHARDS * SHARD_MAX * 2)
            .map(|number| shared.one(number.to_string()))
            .collect();
        let known = |shard: &Mutex<Shard<str>>| shard.lock().unwrap().values.len();
        let mut each = shared.shards.iter().map(known);
        assert!(each.all(|known| known <= SHARD_MAX));
        assert_eq!(held.len(), SHARDS * SHARD_MAX * 2);
        // None of these was shared: they do not keep others from it for ever.
        let sweeps = 2 * SHARDS * SHARD_MAX..4 * SHARDS * SHARD_MAX;
        let later: Vec<_> = sweeps
            .map(|number| shared.one(number.to_string()))
            .collect();
        let again = later.iter().rev().take(1_000);
        let same = again.filter(|one| Arc::ptr_eq(one, &shared.one(&***one)));
        assert!(same.count() > 0);
    }
}
