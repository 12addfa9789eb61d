//! The one place that reads the clocks. Everything else is handed a [`Clock`].

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::time::{Span, Timestamp};

/// The time, as an enum because there are exactly two: the system's, and one a test moves.
#[derive(Clone, Debug)]
pub enum Clock {
    System,
    /// The system's clock plus an offset in milliseconds that a test moves.
    Shifted(Arc<AtomicI64>),
}

/// What the clocks said at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    /// See [`Clock::now`].
    pub wall: Timestamp,
    /// See [`Clock::monotonic`].
    pub monotonic: Instant,
    /// See [`Clock::uptime_us`].
    pub uptime_us: u64,
}

impl Clock {
    pub fn shifted() -> Self {
        Self::Shifted(Arc::new(AtomicI64::new(0)))
    }

    /// Wall-clock time: what expiry is judged by.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn now(&self) -> Timestamp {
        // A clock before 1970 is taken for 1970, like every timestamp.
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = i64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(i64::MAX);
        match self {
            Self::System => Timestamp::from_millis(millis),
            Self::Shifted(offset) => {
                Timestamp::from_millis(millis.saturating_add(offset.load(Ordering::SeqCst)))
            }
        }
    }

    /// Monotonic time: what timeouts and cool-downs are measured by. A moved test clock moves it.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn monotonic(&self) -> Instant {
        self.monotonic_at(Instant::now())
    }

    /// Microseconds of real time since the process first asked, which no test moves: what leases and
    /// proofs of other parties are measured by.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn uptime_us() -> u64 {
        uptime_us_at(Instant::now())
    }

    /// All of them, read at once.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the clock"
    )]
    pub fn read(&self) -> Reading {
        let now = Instant::now();
        Reading {
            wall: self.now(),
            monotonic: self.monotonic_at(now),
            uptime_us: uptime_us_at(now),
        }
    }

    fn monotonic_at(&self, now: Instant) -> Instant {
        match self {
            Self::System => now,
            Self::Shifted(offset) => {
                let millis = offset.load(Ordering::SeqCst).max(0).unsigned_abs();
                now + Duration::from_millis(millis)
            }
        }
    }

    /// Moves a [`Clock::Shifted`] forward; the system's clock does not move.
    pub fn advance(&self, span: Span) {
        match self {
            Self::System => {}
            Self::Shifted(offset) => {
                offset.fetch_add(span.millis(), Ordering::SeqCst);
            }
        }
    }
}

fn uptime_us_at(now: Instant) -> u64 {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let up = now.saturating_duration_since(*STARTED.get_or_init(|| now));
    // From 1 on, so that 0 can mean "never".
    u64::try_from(up.as_micros())
        .unwrap_or(u64::MAX)
        .saturating_add(1)
}
