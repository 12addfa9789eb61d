//! Counters in this process's memory.
//!
//! All counters of a consumer and its keys lie in one shard, so a decision takes one lock, for less
//! than a microsecond, and is made on all of its counters or on none. Nothing is ever given back.
//!
//! A counter whose bucket is full again says no more than one that does not exist, and is dropped
//! when room is needed; so is a count of a period that is over, or that was written and can be loaded
//! again. A counter that still says something is never dropped: when [`COUNTERS_MAX`] of them are
//! there, what would need another is refused for a second.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use smallvec::SmallVec;

use super::counter::{CounterId, HashTag};
use super::gcra::Gcra;
use super::period::Period;
use super::shard::{Count, Shard};
use super::{Charge, LimitState, Now, QuotaCharge, QuotaState, Spending, Spent};
use crate::limits::FailMode;
use crate::time::Timestamp;

/// Counters that are kept at the same time, some 64 bytes each.
pub(super) const COUNTERS_MAX: usize = 1_000_000;

/// When to come again after a refusal that is not about the key's own use.
const CLOSED_US: u64 = 1_000_000;

/// How long a count goes on without the stored one, before that is asked for again.
const UNSEEDED_US: u64 = 1_000_000;

const SHARDS: usize = 64;

/// How the counters of this process are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// There are no others.
    Alone,
    /// In the place of shared ones, as each limit's `fail_mode` says.
    InPlaceOfShared,
}

/// Whether a count has to begin from the stored one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seeds {
    Needed,
    /// The stored one could not be loaded: the count goes on without.
    DoneWithout,
}

/// A stored count is to be loaded first.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unseeded;

/// A count to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    shard: usize,
    pub(super) counter: CounterId,
    pub(super) period_start: Timestamp,
    pub(super) used: u64,
}

pub(super) struct Local {
    shards: Vec<Mutex<Shard>>,
    counters: AtomicUsize,
    counters_max: usize,
    /// The part of every shard that is swept next.
    sweeps: AtomicUsize,
}

/// One limit before and after a charge that is not made yet.
struct Planned {
    gcra: Gcra,
    counter: CounterId,
    before_us: u64,
    after_us: u64,
    wait_us: u64,
}

impl Local {
    pub(super) fn new(counters_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            counters: AtomicUsize::new(0),
            counters_max,
            sweeps: AtomicUsize::new(0),
        }
    }

    /// Decides, and charges all counters or none.
    ///
    /// # Errors
    /// [`Unseeded`] if a stored count is to be loaded first; nothing is charged then.
    pub(super) fn spend(
        &self,
        spending: &Spending<'_>,
        now: Now,
        mode: Mode,
        seeds: Seeds,
    ) -> Result<Spent, Unseeded> {
        let mut shard = self.shard(shard_of(spending.tag));
        let mut counts: SmallVec<[Count; 2]> = SmallVec::new();
        for charge in spending.quotas {
            counts.push(count(&shard, charge, now, seeds)?);
        }
        let limits = spending.limits.iter();
        let plan: SmallVec<[Planned; 4]> = limits
            .map(|charge| planned(&mut shard, charge, spending.judged_cost(), now, mode))
            .collect();
        let is_exceeded = |count: &Count, charge: &QuotaCharge| {
            count.used.saturating_add(spending.judged_cost()) > charge.quota.limit
        };
        let passes = plan.iter().all(|limit| limit.wait_us == 0)
            && counts
                .iter()
                .zip(spending.quotas)
                .all(|(count, charge)| !is_exceeded(count, charge));

        let mut is_full = false;
        let mut charged = 0;
        if passes && spending.charges() {
            let new = |shard: &Shard| {
                let quotas = counts.iter().zip(spending.quotas);
                let is_new = |count: &Count, charge: &QuotaCharge| {
                    shard.count(charge.counter, count.period.start).is_none()
                };
                plan.iter().filter(|limit| limit.is_new(shard)).count()
                    + quotas
                        .filter(|(count, charge)| is_new(count, charge))
                        .count()
            };
            is_full = !self.has_room(&mut shard, new, now);
            charged = if is_full { 0 } else { spending.cost };
        }
        let mut spent = Spent::admitted();
        for limit in &plan {
            let mut tat_us = limit.before_us;
            if charged > 0 {
                tat_us = limit.after_us;
                limit.commit(&mut shard);
            }
            let state = limit
                .gcra
                .state(tat_us, now.monotonic_us, limit.wait_us > 0);
            let state = LimitState {
                is_degraded: mode == Mode::InPlaceOfShared,
                ..state
            };
            spent.add_limit(state, limit.wait_us);
        }
        for (count, charge) in counts.iter().zip(spending.quotas) {
            let exceeded = is_exceeded(count, charge);
            let used = count.used.saturating_add(charged);
            // One that goes on without the stored count is remembered, so that it is not asked for
            // again at once.
            if charged > 0 || (count.unseeded_until_us.is_some() && !count.is_new) {
                shard.set_count(charge.counter, Count { used, ..*count }, charged > 0);
            } else if count.unseeded_until_us.is_some() && self.has_room(&mut shard, |_| 1, now) {
                shard.set_count(charge.counter, *count, false);
            }
            let state = QuotaState::of(charge.quota, used, exceeded, count.period.end);
            spent.add_quota(state, now.wall);
        }
        if is_full {
            spent.close(CLOSED_US);
        }
        Ok(spent)
    }

    /// Begins a count from the stored one, unless somebody was faster.
    pub(super) fn seed(
        &self,
        tag: &HashTag,
        counter: CounterId,
        period: Period,
        stored: u64,
        now: Now,
    ) {
        let mut shard = self.shard(shard_of(tag));
        match shard.count(counter, period.start) {
            Some(count) if count.unseeded_until_us.is_none() => {}
            Some(count) => {
                let seeded = Count {
                    used: count.used.saturating_add(stored),
                    unseeded_until_us: None,
                    ..count
                };
                shard.set_count(counter, seeded, count.used > 0);
            }
            None => {
                if self.has_room(&mut shard, |_| 1, now) {
                    shard.set_count(counter, Count::seeded(period, stored), false);
                }
            }
        }
    }

    /// The stored count could not be read: a count that is known goes on, and asks again in a second.
    pub(super) fn put_off(&self, tag: &HashTag, counter: CounterId, period: Period, now: Now) {
        let mut shard = self.shard(shard_of(tag));
        if let Some(count) = shard.count(counter, period.start) {
            let put_off_until_us = now.monotonic_us.saturating_add(UNSEEDED_US);
            let count = Count {
                put_off_until_us,
                ..count
            };
            shard.set_count(counter, count, false);
        }
    }

    /// Whether the stored count is not to be asked for yet.
    pub(super) fn is_put_off(
        &self,
        tag: &HashTag,
        counter: CounterId,
        period: Period,
        now: Now,
    ) -> bool {
        let count = self.shard(shard_of(tag)).count(counter, period.start);
        count.is_some_and(|count| {
            let until_us = count.unseeded_until_us.unwrap_or(0);
            now.monotonic_us < until_us.max(count.put_off_until_us)
        })
    }

    /// Takes over what the shared counters say, so that this process can go on from there.
    pub(super) fn follow_count(
        &self,
        tag: &HashTag,
        counter: CounterId,
        period: Period,
        used: u64,
        now: Now,
    ) {
        let mut shard = self.shard(shard_of(tag));
        let known = shard.count(counter, period.start);
        if known.is_none() && !self.has_room(&mut shard, |_| 1, now) {
            return;
        }
        let before = known.map_or(0, |count| count.used);
        let count = Count {
            used: used.max(before),
            unseeded_until_us: None,
            ..known.unwrap_or_else(|| Count::seeded(period, used))
        };
        shard.set_count(counter, count, used > before);
    }

    /// The same for a limit, whose bucket is full again in `ahead_us`.
    pub(super) fn follow_limit(&self, tag: &HashTag, charge: &Charge<'_>, ahead_us: u64, now: Now) {
        let mut shard = self.shard(shard_of(tag));
        let tat_us = now.monotonic_us.saturating_add(ahead_us);
        let known = tat(&mut shard, charge, now);
        if ahead_us > 0
            && tat_us > known.unwrap_or(0)
            && (known.is_some() || self.has_room(&mut shard, |_| 1, now))
        {
            shard.set_tat(charge.counter, tat_us);
        }
    }

    /// The count as far as this process knows.
    pub(super) fn known_count(
        &self,
        tag: &HashTag,
        counter: CounterId,
        period: Period,
    ) -> Option<u64> {
        let count = self.shard(shard_of(tag)).count(counter, period.start);
        count.map(|count| count.used)
    }

    /// The counts that moved since they were written. Each is followed by [`Local::written`] or
    /// [`Local::not_written`].
    pub(super) fn take_moved(&self) -> Vec<Moved> {
        let mut all = Vec::new();
        for at in 0..SHARDS {
            let mut shard = self.shard(at);
            for (counter, period_start, used) in shard.take_moved() {
                all.push(Moved {
                    shard: at,
                    counter,
                    period_start,
                    used,
                });
            }
        }
        all
    }

    pub(super) fn written(&self, counts: &[Moved]) {
        for moved in counts {
            self.shard(moved.shard)
                .written(moved.counter, moved.period_start, moved.used);
        }
    }

    pub(super) fn not_written(&self, counts: &[Moved]) {
        for moved in counts {
            self.shard(moved.shard)
                .not_written(moved.counter, moved.period_start);
        }
    }

    /// Drops what says nothing any more, a sixteenth of all counters a call.
    pub(super) fn sweep(&self, now: Now) {
        let part = self.sweeps.fetch_add(1, Ordering::Relaxed);
        for at in 0..SHARDS {
            let dropped = self.shard(at).sweep(part, now);
            self.counters.fetch_sub(dropped, Ordering::Relaxed);
        }
    }

    pub(super) fn counters(&self) -> usize {
        self.counters.load(Ordering::Relaxed)
    }

    /// Makes sure that as many more counters fit as are new, and counts them. What is dropped for them may be
    /// some of those that were there.
    fn has_room(&self, shard: &mut Shard, new: impl Fn(&Shard) -> usize, now: Now) -> bool {
        let reserve = |new: usize| {
            let with_new = self.counters.fetch_add(new, Ordering::Relaxed) + new;
            let fits = with_new <= self.counters_max;
            if !fits {
                self.counters.fetch_sub(new, Ordering::Relaxed);
            }
            fits
        };
        let needed = new(shard);
        if needed == 0 || reserve(needed) {
            return true;
        }
        let dropped = shard.make_room(now);
        self.counters.fetch_sub(dropped, Ordering::Relaxed);
        dropped > 0 && reserve(new(shard))
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "the remainder is less than their number"
    )]
    fn shard(&self, at: usize) -> MutexGuard<'_, Shard> {
        self.shards[at % SHARDS]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Planned {
    /// A limit that is not counted here has no counter here.
    fn is_counted(&self) -> bool {
        self.after_us > self.before_us
    }

    fn is_new(&self, shard: &Shard) -> bool {
        self.is_counted() && shard.tat(self.counter).is_none()
    }

    fn commit(&self, shard: &mut Shard) {
        if self.is_counted() {
            shard.set_tat(self.counter, self.after_us);
        }
    }
}

fn shard_of(tag: &HashTag) -> usize {
    tag.spread() % SHARDS
}

fn planned(shard: &mut Shard, charge: &Charge<'_>, cost: u64, now: Now, mode: Mode) -> Planned {
    let fail_mode = match mode {
        Mode::Alone => FailMode::Local,
        Mode::InPlaceOfShared => charge.limit.fail_mode,
    };
    let gcra = Gcra::of(charge.limit);
    let before_us = tat(shard, charge, now).unwrap_or(0);
    let mut after_us = before_us;
    let wait_us = match fail_mode {
        FailMode::Local => gcra
            .charge(&mut after_us, cost, now.monotonic_us)
            .err()
            .unwrap_or(0),
        FailMode::Open => 0,
        FailMode::Closed => CLOSED_US,
    };
    Planned {
        gcra,
        counter: charge.counter,
        before_us,
        after_us,
        wait_us,
    }
}

/// The counter of a limit. What another limit has left is made this one's for good: it fills from now on.
fn tat(shard: &mut Shard, charge: &Charge<'_>, now: Now) -> Option<u64> {
    let tat_us = shard.tat(charge.counter)?;
    let own_us = Gcra::of(charge.limit).own(tat_us, now.monotonic_us);
    if own_us < tat_us {
        shard.set_tat(charge.counter, own_us);
    }
    Some(own_us)
}

fn count(shard: &Shard, charge: &QuotaCharge, now: Now, seeds: Seeds) -> Result<Count, Unseeded> {
    let period = Period::containing(charge.quota.period, now.wall);
    // The first day of a month and the month begin together, and one may have become the other.
    let known = shard.count(charge.counter, period.start);
    let known = known.map(|count| Count { period, ..count });
    let until_us = known.map(|count| count.unseeded_until_us);
    match (known, until_us, seeds) {
        (Some(count), Some(None), _) => Ok(count),
        (Some(count), Some(Some(until_us)), Seeds::Needed) if now.monotonic_us < until_us => {
            Ok(count)
        }
        (_, _, Seeds::Needed) => Err(Unseeded),
        (known, _, Seeds::DoneWithout) => Ok(Count {
            unseeded_until_us: Some(now.monotonic_us.saturating_add(UNSEEDED_US)),
            ..known.unwrap_or_else(|| Count::new(period))
        }),
    }
}
