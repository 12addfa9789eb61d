//! Whether Redis is asked at all: one breaker for all threads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Failures in a row, whichever thread met them, that open the breaker.
const FAILURES_MAX: u32 = 3;

#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: AtomicBool,
    failures: AtomicU32,
    /// How often it has opened.
    openings: AtomicU64,
}

impl Breaker {
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// Whether the last calls failed, though not enough of them to open it.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.failures.load(Ordering::Relaxed) > 0
    }

    /// Names the time between two openings. A connection of an earlier one may lead to a dead peer
    /// that never says so, and is not used again.
    pub(super) fn era(&self) -> u64 {
        self.openings.load(Ordering::Acquire)
    }

    pub(super) fn succeeded(&self) {
        // A success that was long under way does not close it: only the probe does.
        if self.is_in_doubt() && !self.is_open() {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// Whether this failure opened it.
    pub(super) fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let opens = failures >= FAILURES_MAX && !self.open.swap(true, Ordering::AcqRel);
        if opens {
            self.openings.fetch_add(1, Ordering::AcqRel);
        }
        opens
    }

    /// Whether it was open.
    pub(super) fn close(&self) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.open.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_open_it_and_only_closing_closes_it() {
        let breaker = Breaker::default();
        for _ in 0..5 {
            assert!(!breaker.failed() && !breaker.failed());
            breaker.succeeded();
        }
        assert!(!breaker.is_open());
        let era = breaker.era();
        assert_eq!(
            [(); 4].map(|()| breaker.failed()),
            [false, false, true, false]
        );
        assert!(breaker.is_open());
        assert_eq!(breaker.era(), era + 1);
        breaker.succeeded();
        assert!(breaker.is_open());
        assert!(breaker.close() && !breaker.close());
        assert!(!breaker.is_open() && !breaker.is_in_doubt());
    }
}
