//! Budgets for failures: how often something may go wrong before it is not even tried.
//!
//! A budget is a limit (GCRA) that is too small a thing for a counter of its own in Redis or for a
//! name: this process's alone, bounded in memory, and without any allocation after it was made.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Keys that share one lock and can take each other's place.
const WAYS: usize = 8;

/// A budget for all together: `capacity` at once, `refill_per_second` of them again each second.
#[derive(Debug)]
pub struct Allowance {
    rate: Rate,
    tat_us: AtomicU64,
}

/// A budget for each key, such as a client's address.
///
/// It keeps at most `keys_max` keys, rounded up to a power of two. When there is no room for another
/// one, the key that has been whole again for longest goes; if none is, newcomers share one cell:
/// together they get what one of them would.
#[derive(Debug)]
pub struct Budget {
    rate: Rate,
    sets: Vec<Mutex<[Slot; WAYS]>>,
    overflow: Mutex<u64>,
}

/// A [`Budget`] for each name, such as the id of a client.
#[derive(Debug)]
pub struct NamedBudget {
    budget: Budget,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Rate {
    interval_us: u64,
    capacity_us: u64,
}

/// Empty while `tat_us` is 0.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    key: u64,
    tat_us: u64,
}

impl Rate {
    fn new(capacity: u32, refill_per_second: u32) -> Self {
        let interval_us = 1_000_000_u64.div_ceil(u64::from(refill_per_second.max(1)));
        Self::every(capacity, interval_us)
    }

    fn every(capacity: u32, interval_us: u64) -> Self {
        Self {
            interval_us,
            capacity_us: interval_us.saturating_mul(u64::from(capacity)),
        }
    }

    /// The same, with so many less at once.
    fn without(self, kept: u32) -> Self {
        let kept_us = self.interval_us.saturating_mul(u64::from(kept));
        Self {
            capacity_us: self.capacity_us.saturating_sub(kept_us),
            ..self
        }
    }

    /// The cell after one more, if there is one more.
    fn taken(self, tat_us: u64, now_us: u64) -> Option<u64> {
        let after = tat_us.max(now_us).saturating_add(self.interval_us);
        (after.saturating_sub(now_us) <= self.capacity_us).then_some(after)
    }

    fn given_back(self, tat_us: u64) -> u64 {
        tat_us.saturating_sub(self.interval_us)
    }
}

impl Allowance {
    pub fn new(capacity: u32, refill_per_second: u32) -> Self {
        Self {
            rate: Rate::new(capacity, refill_per_second),
            tat_us: AtomicU64::new(0),
        }
    }

    /// Takes one, if one is left. `now_us` is monotonic.
    pub fn take(&self, now_us: u64) -> bool {
        self.take_leaving(0, now_us)
    }

    /// Takes one, if more than so many are left.
    pub fn take_leaving(&self, kept: u32, now_us: u64) -> bool {
        let rate = self.rate.without(kept);
        let update = |tat_us| rate.taken(tat_us, now_us);
        self.tat_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update)
            .is_ok()
    }

    /// Whether one is left.
    pub fn has(&self, now_us: u64) -> bool {
        self.has_leaving(0, now_us)
    }

    /// Whether more than so many are left.
    pub fn has_leaving(&self, kept: u32, now_us: u64) -> bool {
        let tat_us = self.tat_us.load(Ordering::Relaxed);
        self.rate.without(kept).taken(tat_us, now_us).is_some()
    }

    /// Gives back one that was taken.
    pub fn give_back(&self) {
        let update = |tat_us| Some(self.rate.given_back(tat_us));
        // Every value has a successor here.
        let _always = self
            .tat_us
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
    }
}

impl Budget {
    pub fn new(capacity: u32, refill_per_second: u32, keys_max: usize) -> Self {
        Self::with(Rate::new(capacity, refill_per_second), keys_max)
    }

    fn with(rate: Rate, keys_max: usize) -> Self {
        let sets = keys_max.div_ceil(WAYS).next_power_of_two();
        Self {
            rate,
            sets: (0..sets).map(|_| Mutex::default()).collect(),
            overflow: Mutex::default(),
        }
    }

    /// Takes one of the key's, if one is left. `now_us` is monotonic; the key may be anything.
    pub fn take(&self, key: u64, now_us: u64) -> bool {
        let mut set = self.set(key);
        let slot = place(&mut set, key, now_us);
        let mut overflow;
        let tat_us = if let Some(slot) = slot {
            if slot.key != key || slot.tat_us == 0 {
                *slot = Slot { key, tat_us: 0 };
            }
            &mut slot.tat_us
        } else {
            overflow = lock(&self.overflow);
            &mut *overflow
        };
        match self.rate.taken(*tat_us, now_us) {
            Some(after) => {
                *tat_us = after;
                true
            }
            None => false,
        }
    }

    /// Whether one of the key's is left.
    pub fn has(&self, key: u64, now_us: u64) -> bool {
        let mut set = self.set(key);
        let tat_us = match place(&mut set, key, now_us) {
            Some(slot) if slot.key == key => slot.tat_us,
            Some(_replaced) => 0,
            None => *lock(&self.overflow),
        };
        self.rate.taken(tat_us, now_us).is_some()
    }

    /// Gives back one that was taken.
    pub fn give_back(&self, key: u64) {
        let mut set = self.set(key);
        let own = set.iter_mut().find(|slot| slot.is_of(key));
        if let Some(slot) = own {
            slot.tat_us = self.rate.given_back(slot.tat_us);
        } else {
            let mut overflow = lock(&self.overflow);
            *overflow = self.rate.given_back(*overflow);
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder is less than their number"
    )]
    fn set(&self, key: u64) -> MutexGuard<'_, [Slot; WAYS]> {
        // Keys that follow each other, such as addresses, are spread (Fibonacci hashing).
        let spread = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        lock(&self.sets[spread as usize % self.sets.len()])
    }
}

impl NamedBudget {
    /// `capacity` at once, and one more each `interval`, for each of at most `names_max` names.
    pub fn new(capacity: u32, interval: Duration, names_max: usize) -> Self {
        let interval_us = u64::try_from(interval.as_micros()).unwrap_or(u64::MAX);
        Self {
            budget: Budget::with(Rate::every(capacity, interval_us), names_max),
            hasher: RandomState::new(),
        }
    }

    /// See [`Budget::take`].
    pub fn take(&self, name: &str, now_us: u64) -> bool {
        self.budget.take(self.hasher.hash_one(name), now_us)
    }

    /// See [`Budget::has`].
    pub fn has(&self, name: &str, now_us: u64) -> bool {
        self.budget.has(self.hasher.hash_one(name), now_us)
    }

    /// See [`Budget::give_back`].
    pub fn give_back(&self, name: &str) {
        self.budget.give_back(self.hasher.hash_one(name));
    }
}

impl Slot {
    fn is_of(&self, key: u64) -> bool {
        self.key == key && self.tat_us > 0
    }
}

/// The slot of the key, or else the one it may have: the one that has been whole for longest.
fn place(set: &mut [Slot; WAYS], key: u64, now_us: u64) -> Option<&mut Slot> {
    let at = set.iter().position(|slot| slot.is_of(key)).or_else(|| {
        let whole = set
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.tat_us <= now_us);
        whole.min_by_key(|(_, slot)| slot.tat_us).map(|(at, _)| at)
    });
    set.get_mut(at?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_key_has_its_capacity_at_once_and_its_refill_after() {
        let budget = Budget::new(5, 2, 100);
        let now = 7 * SECOND;
        assert!(budget.has(1, now));
        for _ in 0..5 {
            assert!(budget.has(1, now) && budget.take(1, now));
        }
        assert!(!budget.has(1, now) && !budget.take(1, now));
        assert!(budget.take(2, now), "another key has its own");
        assert!(!budget.take(1, now + SECOND / 2 - 1));
        assert!(budget.take(1, now + SECOND / 2));
        budget.give_back(1);
        assert!(budget.take(1, now + SECOND / 2));
        assert!(!budget.take(1, now + SECOND / 2));
    }

    #[test]
    fn a_name_has_its_own_and_waits_for_the_next() {
        let budget = NamedBudget::new(2, Duration::from_secs(6), 100);
        let now = 7 * SECOND;
        for name in ["one", "other"] {
            assert!(budget.take(name, now) && budget.take(name, now), "{name}");
            assert!(!budget.take(name, now + 6 * SECOND - 1), "{name}");
            assert!(budget.take(name, now + 6 * SECOND), "{name}");
            assert!(!budget.has(name, now + 6 * SECOND), "{name}");
            budget.give_back(name);
            assert!(budget.has(name, now + 6 * SECOND), "{name}");
        }
    }

    #[test]
    fn it_is_bounded_and_a_flood_of_keys_frees_nobody() {
        let budget = Budget::new(3, 1, 64);
        let now = SECOND;
        for _ in 0..3 {
            assert!(budget.take(u64::MAX, now));
        }
        let mut passed = 0;
        for key in 0..100_000 {
            passed += u32::from(budget.take(key, now));
        }
        // Each key with a place of its own took one, and all others together what one may.
        assert!((3..=64 + 3).contains(&passed), "{passed}");
        assert!(!budget.take(u64::MAX, now), "a spent key keeps its place");
        assert!(!budget.has(1_000_000, now), "a newcomer shares");
        // When the flood is over its keys make room.
        let later = now + 10 * SECOND;
        for key in 200_000..200_008 {
            assert!(budget.take(key, later));
        }
    }

    #[test]
    fn an_allowance_is_exact_under_concurrency() {
        let allowance = Allowance::new(1000, 1000);
        let taken: u32 = std::thread::scope(|scope| {
            let one = || (0..1000).map(|_| u32::from(allowance.take(SECOND))).sum();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .map(|thread| -> u32 { thread.join().unwrap() })
                .sum()
        });
        assert_eq!(taken, 1000);
        assert!(!allowance.has(SECOND));
        allowance.give_back();
        assert!(allowance.has(SECOND) && allowance.take(SECOND));
        assert!(!allowance.take(SECOND + 999));
        assert!(allowance.take(SECOND + 1000));
    }
}
