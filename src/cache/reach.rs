//! Who can tell this node of changes, and when that was last proved.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::clock::Clock;

/// Redis is reached if it answered within so long.
const REDIS_SEEN_US: u64 = 3_000_000;

/// Whether the database answers, and since when the knowledge of changes is complete.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Reached>);

#[derive(Debug, Default)]
struct Reached {
    database_away: AtomicBool,
    proved_us: AtomicU64,
    redis_us: AtomicU64,
    /// For who asks the database.
    woken: Notify,
    /// Whether it was woken by a message, which all have heard.
    is_told: AtomicBool,
}

impl Reach {
    pub fn is_database_away(&self) -> bool {
        self.0.database_away.load(Ordering::Relaxed)
    }

    pub(super) fn set_database_away(&self, away: bool) -> bool {
        self.0.database_away.swap(away, Ordering::Relaxed)
    }

    /// When the last look began that found the knowledge of changes complete, see
    /// [`Clock::uptime_us`]; 0 for never.
    pub fn proved_us(&self) -> u64 {
        self.0.proved_us.load(Ordering::Acquire)
    }

    /// Has the database asked at once, by who follows it.
    pub fn look_soon(&self) {
        self.0.woken.notify_one();
    }

    /// The same because of a message: what it finds others look for too.
    pub(super) fn look_as_told(&self) {
        self.0.is_told.store(true, Ordering::Relaxed);
        self.look_soon();
    }

    /// Waits until it is to be asked, no longer than `pause`. Whether because of a message.
    pub(super) async fn woken_as_told(&self, pause: Duration) -> bool {
        let was_woken = tokio::time::timeout(pause, self.0.woken.notified()).await;
        was_woken.is_ok() && self.0.is_told.swap(false, Ordering::Relaxed)
    }

    pub(super) fn prove(&self, began_us: u64) {
        // Who sees it sees the changes that were learned.
        self.0.proved_us.fetch_max(began_us, Ordering::Release);
    }

    /// Whether Redis could have told us of what another node relays.
    pub(super) fn sees_redis(&self) -> bool {
        let seen = self.0.redis_us.load(Ordering::Relaxed);
        seen > 0 && Clock::uptime_us().saturating_sub(seen) < REDIS_SEEN_US
    }

    /// Whether the database answered, and has not failed to since. False before it answered at all.
    pub fn reaches_database(&self) -> bool {
        self.proved_us() > 0 && !self.is_database_away()
    }

    /// Who tells this node of changes.
    pub fn teller(&self) -> &'static str {
        if self.reaches_database() {
            "database"
        } else if self.sees_redis() {
            "redis"
        } else {
            "nobody"
        }
    }

    /// How long ago the knowledge of changes was proved complete.
    pub fn proof_age(&self) -> Duration {
        Duration::from_micros(Clock::uptime_us().saturating_sub(self.proved_us()))
    }

    pub(super) fn see_redis(&self, began_us: u64) {
        self.0.redis_us.fetch_max(began_us, Ordering::Relaxed);
    }
}
