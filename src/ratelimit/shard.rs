//! The counters of some consumers, behind one lock.

use std::array;
use std::collections::HashMap;
use std::hash::Hash;

use super::Now;
use super::counter::{CounterId, Hashed};
use super::period::Period;
use crate::time::{Span, Timestamp};

/// Parts are swept one by one, so that nobody waits long for the lock.
const PARTS: usize = 16;

/// A count that differs from what is stored is kept for so long after its period, also if it could not be
/// written, or must not because what is stored is more.
const MOVED_KEPT: Span = Span::days(1);

/// A full table is looked through for room at most this often.
const PRESS_EVERY_US: u64 = 1_000_000;

pub(super) struct Shard {
    /// Theoretical arrival times in microseconds.
    tats: Parts<CounterId, u64>,
    counts: Parts<(CounterId, Timestamp), Count>,
    /// Counts that are to be written.
    moved: Vec<(CounterId, Timestamp)>,
    pressed_us: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Count {
    pub(super) used: u64,
    pub(super) period: Period,
    /// Until when it goes on without the stored count; `None` once that is in it.
    pub(super) unseeded_until_us: Option<u64>,
    /// Until when the stored count is not asked for again.
    pub(super) put_off_until_us: u64,
    /// It is in no table yet.
    pub(super) is_new: bool,
    /// It differs from what is stored, as far as this process knows.
    pub(super) is_moved: bool,
}

struct Parts<K, V>([HashMap<K, V, Hashed>; PARTS]);

impl Count {
    pub(super) fn new(period: Period) -> Self {
        Self {
            used: 0,
            period,
            unseeded_until_us: None,
            put_off_until_us: 0,
            is_new: true,
            is_moved: false,
        }
    }

    pub(super) fn seeded(period: Period, used: u64) -> Self {
        Self {
            used,
            ..Self::new(period)
        }
    }
}

impl Default for Shard {
    fn default() -> Self {
        Self {
            tats: Parts(array::from_fn(|_| HashMap::default())),
            counts: Parts(array::from_fn(|_| HashMap::default())),
            moved: Vec::new(),
            pressed_us: None,
        }
    }
}

impl Shard {
    pub(super) fn tat(&self, counter: CounterId) -> Option<u64> {
        self.tats.part(counter).get(&counter).copied()
    }

    pub(super) fn set_tat(&mut self, counter: CounterId, tat_us: u64) {
        self.tats.part_mut(counter).insert(counter, tat_us);
    }

    pub(super) fn count(&self, counter: CounterId, period_start: Timestamp) -> Option<Count> {
        let part = self.counts.part(counter);
        part.get(&(counter, period_start)).copied()
    }

    pub(super) fn set_count(&mut self, counter: CounterId, count: Count, moves: bool) {
        let key = (counter, count.period.start);
        if moves && !count.is_moved {
            self.moved.push(key);
        }
        let kept = Count {
            is_new: false,
            is_moved: count.is_moved || moves,
            ..count
        };
        self.counts.part_mut(counter).insert(key, kept);
    }

    /// Counts to be written; they stay marked until [`Shard::written`] says otherwise.
    pub(super) fn take_moved(&mut self) -> Vec<(CounterId, Timestamp, u64)> {
        let mut taken = Vec::new();
        for (counter, period_start) in std::mem::take(&mut self.moved) {
            match self.count(counter, period_start) {
                // What is stored is more than this knows.
                Some(count) if count.unseeded_until_us.is_some() => {
                    self.moved.push((counter, period_start));
                }
                Some(count) => taken.push((counter, period_start, count.used)),
                None => {}
            }
        }
        taken
    }

    pub(super) fn written(&mut self, counter: CounterId, period_start: Timestamp, used: u64) {
        let key = (counter, period_start);
        if let Some(count) = self.counts.part_mut(counter).get_mut(&key) {
            count.is_moved = count.used > used;
            if count.is_moved {
                self.moved.push(key);
            }
        }
    }

    pub(super) fn not_written(&mut self, counter: CounterId, period_start: Timestamp) {
        self.moved.push((counter, period_start));
    }

    /// Drops what says nothing any more from one part; answers how much that was.
    pub(super) fn sweep(&mut self, part: usize, now: Now) -> usize {
        self.tats
            .retain(part, |_, tat_us| *tat_us > now.monotonic_us)
            + self.counts.retain(part, |_, count| {
                let end = count.period.end;
                end > now.wall || (count.is_moved && end.plus(MOVED_KEPT) > now.wall)
            })
    }

    /// Drops all that can be done without.
    pub(super) fn make_room(&mut self, now: Now) -> usize {
        let is_early = |at: u64| now.monotonic_us.saturating_sub(at) < PRESS_EVERY_US;
        if self.pressed_us.is_some_and(is_early) {
            return 0;
        }
        self.pressed_us = Some(now.monotonic_us);
        (0..PARTS)
            .map(|part| {
                self.tats
                    .retain(part, |_, tat_us| *tat_us > now.monotonic_us)
                    + self.counts.retain(part, |_, count| {
                        count.is_moved || count.unseeded_until_us.is_some()
                    })
            })
            .sum()
    }
}

#[expect(
    clippy::indexing_slicing,
    reason = "the remainder is less than their number"
)]
impl<K: Eq + Hash, V> Parts<K, V> {
    fn part(&self, counter: CounterId) -> &HashMap<K, V, Hashed> {
        &self.0[counter.spread() % PARTS]
    }

    fn part_mut(&mut self, counter: CounterId) -> &mut HashMap<K, V, Hashed> {
        &mut self.0[counter.spread() % PARTS]
    }

    fn retain(&mut self, part: usize, keeps: impl FnMut(&K, &mut V) -> bool) -> usize {
        let map = &mut self.0[part % PARTS];
        let before = map.len();
        map.retain(keeps);
        // Capacity of a burst long gone is memory too.
        if map.capacity() / 4 > map.len() {
            map.shrink_to(map.len() * 2);
        }
        before - map.len()
    }
}
