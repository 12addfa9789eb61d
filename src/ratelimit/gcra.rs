//! One rate limit: the generic cell rate algorithm, in whole microseconds.
//!
//! A counter is one number, the *theoretical arrival time* (TAT): when the bucket is full again. A
//! request of cost `n` moves it by `n` intervals, from now on if it has passed, and conforms if it is
//! then at most `burst` intervals away. A counter that is further away than that is another limit's, which
//! this one was before: it is an empty bucket of this one. In this process `governor` tests and updates; in
//! Redis the script `spend.lua` does; what callers are told is computed here for both.

use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{Quota, RateLimiter};

use super::LimitState;
use crate::limits::RateLimit;

/// Decisions are not made in the order in which they read their time: a counter that is further away by no
/// more than this may be the limit's own.
const OUT_OF_ORDER_US: u64 = 1_000_000;

/// A limit as the algorithm sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gcra {
    pub(super) interval_us: u64,
    pub(super) burst: u64,
}

/// A TAT, which the limiter replaces only if the request conforms.
struct Tat<'a>(&'a Cell<u64>);

impl StateStore for Tat<'_> {
    type Key = NotKeyed;

    fn measure_and_replace<T, F, E>(&self, _key: &NotKeyed, measure: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let before = NonZeroU64::new(self.0.get()).map(|tat| tat.get().into());
        let (answer, after) = measure(before)?;
        self.0.set(after.into());
        Ok(answer)
    }
}

/// A clock that was read by whoever asks. The limiter takes its first reading for the beginning of
/// time, and a TAT must be absolute: so that one is zero.
struct Reading {
    now: Nanos,
    has_begun: Cell<bool>,
}

impl Clock for Reading {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        if self.has_begun.replace(true) {
            self.now
        } else {
            Nanos::new(0)
        }
    }
}

impl Gcra {
    pub(super) fn of(limit: &RateLimit) -> Self {
        Self {
            interval_us: limit.interval_us(),
            burst: limit.burst,
        }
    }

    /// Charges `cost`, between 1 and the burst, to the counter `tat_us`; 0 is one never used.
    ///
    /// # Errors
    /// After how many microseconds the same cost conforms; the counter is as it was.
    pub(super) fn charge(self, tat_us: &mut u64, cost: u64, now_us: u64) -> Result<(), u64> {
        let narrow = |n: u64| NonZeroU32::new(u32::try_from(n).unwrap_or(u32::MAX));
        let (Some(burst), Some(cost)) = (narrow(self.burst), narrow(cost)) else {
            return Ok(());
        };
        let interval = Duration::from_micros(self.interval_us);
        let Some(quota) = Quota::with_period(interval) else {
            return Ok(());
        };
        let now = Nanos::new(now_us.saturating_mul(1000));
        let cell = Cell::new(tat_us.saturating_mul(1000));
        let reading = Reading {
            now,
            has_begun: Cell::new(false),
        };
        let limiter: RateLimiter<_, _, _, NoOpMiddleware<Nanos>> =
            RateLimiter::new(quota.allow_burst(burst), Tat(&cell), reading);
        match limiter.check_n(cost) {
            Ok(Ok(())) => {
                *tat_us = cell.get() / 1000;
                Ok(())
            }
            Ok(Err(not_until)) => {
                let wait = not_until.wait_time_from(now).as_micros();
                Err(u64::try_from(wait).unwrap_or(u64::MAX))
            }
            // More than the burst: `Spending::check` has refused it before.
            Err(_insufficient) => Err(self.capacity_us()),
        }
    }

    /// What is left of the limit.
    pub(super) fn state(self, tat_us: u64, now_us: u64, limited: bool) -> LimitState {
        let used_us = tat_us.saturating_sub(now_us);
        let left_us = self.capacity_us().saturating_sub(used_us);
        LimitState {
            remaining: left_us.checked_div(self.interval_us).unwrap_or(0),
            reset_after_ms: used_us.div_ceil(1000),
            limited,
            is_degraded: false,
        }
    }

    /// The counter as this limit has it, whatever it was before.
    pub(super) fn own(self, tat_us: u64, now_us: u64) -> u64 {
        let empty_us = now_us.saturating_add(self.capacity_us());
        if tat_us > empty_us.saturating_add(OUT_OF_ORDER_US) {
            empty_us
        } else {
            tat_us
        }
    }

    fn capacity_us(self) -> u64 {
        self.interval_us.saturating_mul(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_burst_conforms_and_the_rest_waits_exactly() {
        let gcra = Gcra {
            interval_us: 600_000,
            burst: 100,
        };
        let (mut tat, now) = (0, 5_000_000);
        assert_eq!(gcra.state(tat, now, false).remaining, 100);
        gcra.charge(&mut tat, 100, now).unwrap();
        assert_eq!(gcra.state(tat, now, false).remaining, 0);
        assert_eq!(gcra.state(tat, now, false).reset_after_ms, 60_000);
        assert_eq!(gcra.charge(&mut tat, 1, now), Err(600_000));
        assert_eq!(gcra.charge(&mut tat, 3, now), Err(1_800_000));
        assert_eq!(gcra.charge(&mut tat, 1, now + 599_999), Err(1));
        gcra.charge(&mut tat, 1, now + 600_000).unwrap();
    }

    proptest! {
        /// The definition, spelt out, is what governor does, over the whole range of limits.
        #[test]
        fn governor_is_the_algorithm(
            interval_us in 1..2_678_400_000_000_u64,
            burst in 1..1_000_000_000_u64,
            cost in 1..1_000_000_000_u64,
            now_us in 1..9_000_000_000_000_000_u64,
            ahead_us in 0..40_000_000_000_000_u64,
            is_behind in any::<bool>(),
        ) {
            const REFILL_MAX: u64 = 366 * 86_400_000_000;
            let burst = burst.min(REFILL_MAX / interval_us).max(1);
            let cost = cost.min(burst);
            let gcra = Gcra { interval_us, burst };
            let before = if is_behind {
                now_us.saturating_sub(ahead_us)
            } else {
                now_us + ahead_us
            };
            let after = before.max(now_us) + cost * interval_us;
            let wait = after.saturating_sub(burst * interval_us).saturating_sub(now_us);
            let mut tat = before;
            let done = gcra.charge(&mut tat, cost, now_us);
            if wait == 0 {
                prop_assert_eq!(done, Ok(()));
                prop_assert_eq!(tat, after);
            } else {
                prop_assert_eq!(done, Err(wait));
                prop_assert_eq!(tat, before);
            }
            prop_assert!(gcra.state(tat, now_us, false).remaining <= burst);
        }
    }
}
