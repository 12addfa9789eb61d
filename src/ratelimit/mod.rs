//! Rate limits and quotas: decides on all of one request and charges all of them or none.
//!
//! Counters are shared by all nodes through Redis if there is one, else they are this process's. While
//! Redis is away each limit's `fail_mode` says what this node does alone. See docs/adr/limits.md for
//! what is exact when.

pub mod budget;
mod counter;
mod gcra;
mod local;
mod period;
mod shard;
mod shared;
mod store;
mod stored;

use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use smallvec::SmallVec;

pub use self::counter::{CounterId, HashTag};
use self::local::{COUNTERS_MAX, Local, Mode, Moved, Seeds, Unseeded};
use self::period::Period;
use self::shared::{Answer, Decided, Known, Knowns, Shared};
use self::stored::{Counts, Stored};
use crate::clock::{Clock, Reading};
use crate::db::{self, Conn, Db};
use crate::limits::{FailMode, Quota, RateLimit};
use crate::metrics::Metrics;
use crate::patience::{self, OutOfPatience};
use crate::redis_link::{RedisAway, RedisLink};
use crate::time::{Span, Timestamp};

/// Counts written in one transaction.
const WRITE_MAX: usize = 500;

/// Counts are kept for this long after their period began.
const COUNTS_KEPT: Span = Span::days(62);

/// The time of one decision, read once.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Since some moment before the process began; never 0.
    pub monotonic_us: u64,
    pub wall: Timestamp,
}

/// A limit that a decision is charged to.
#[derive(Clone, Copy, Debug)]
pub struct Charge<'a> {
    pub counter: CounterId,
    pub limit: &'a RateLimit,
}

/// A quota that a decision is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct QuotaCharge {
    pub counter: CounterId,
    pub quota: Quota,
}

/// What one decision is charged to. No counter stands in it twice.
#[derive(Clone, Copy, Debug)]
pub struct Spending<'a> {
    /// Of the consumer, whose own and whose keys' counters these are.
    pub tag: &'a HashTag,
    pub limits: &'a [Charge<'a>],
    pub quotas: &'a [QuotaCharge],
    /// 0 is judged like 1, and nothing is charged.
    pub cost: u64,
    /// The cost is judged and not charged.
    pub only_looks: bool,
}

/// A cost that can never be spent, however long anybody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CostExceedsLimit {
    /// It is more than the burst of the limit of this index.
    #[error("the cost is more than the burst of a limit")]
    Burst(usize),
    /// It is more than the whole quota of this index.
    #[error("the cost is more than a quota")]
    Quota(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    RateLimited,
    QuotaExceeded,
}

/// Where a limit stands after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitState {
    pub remaining: u64,
    /// Until the whole burst is there again.
    pub reset_after_ms: u64,
    /// It refuses.
    pub limited: bool,
    /// Redis is away: its `fail_mode` decided in the place of the shared counter.
    pub is_degraded: bool,
}

/// Where a quota stands after the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaState {
    pub remaining: u64,
    pub resets_at: Timestamp,
    /// It refuses.
    pub exceeded: bool,
}

/// A decision; the states are in the order of the charges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spent {
    pub verdict: Verdict,
    /// The longest of those that refuse; 0 when admitted.
    pub retry_after_ms: u64,
    pub limits: SmallVec<[LimitState; 4]>,
    pub quotas: SmallVec<[QuotaState; 2]>,
}

/// Decides and charges, cheap to clone.
#[derive(Clone)]
pub struct Limiter(Arc<Inner>);

struct Inner {
    local: Local,
    shared: Option<Shared>,
    stored: Stored,
    db: Db,
    clock: Clock,
    began: Instant,
    /// 1 while this node decides alone although there are shared counters.
    degraded: Gauge,
    counters: Gauge,
}

impl Limiter {
    /// With `link` the counters are shared by all nodes that have the same Redis.
    pub fn new(db: Db, link: Option<RedisLink>, clock: Clock) -> Self {
        Self::with_room(db, link, clock, COUNTERS_MAX)
    }

    /// Keeps at most `counters_max` counters in memory that still say something.
    pub fn with_room(db: Db, link: Option<RedisLink>, clock: Clock, counters_max: usize) -> Self {
        Self(Arc::new(Inner {
            local: Local::new(counters_max),
            shared: link.map(Shared::new),
            stored: Stored::new(db.clone()),
            db,
            began: clock.monotonic(),
            clock,
            degraded: Gauge::default(),
            counters: Gauge::default(),
        }))
    }

    /// Adds `ratelimit_degraded` and `ratelimit_counters`.
    pub fn register(&self, metrics: &Metrics) {
        metrics.register(
            "ratelimit_degraded",
            "1 while limits are kept by this node alone because Redis is away",
            self.0.degraded.clone(),
        );
        metrics.register(
            "ratelimit_counters",
            "Counters of limits and quotas in this node's memory",
            self.0.counters.clone(),
        );
    }

    pub fn now(&self) -> Now {
        self.at(&self.0.clock.read())
    }

    /// The time of a decision, of clocks that were read already.
    pub fn at(&self, reading: &Reading) -> Now {
        let elapsed = reading.monotonic.saturating_duration_since(self.0.began);
        let elapsed_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        Now {
            // 0 would be a counter that was never used.
            monotonic_us: elapsed_us.saturating_add(1),
            wall: reading.wall,
        }
    }

    /// Decides at once if that can be done in memory; `None` if [`Self::spend_waiting`] is to.
    pub fn spend_local(
        &self,
        spending: &Spending<'_>,
        now: Now,
    ) -> Option<Result<Spent, CostExceedsLimit>> {
        if let Err(error) = spending.check() {
            return Some(Err(error));
        }
        let mode = match &self.0.shared {
            _ if spending.is_free() => return Some(Ok(Spent::admitted())),
            None => Mode::Alone,
            Some(shared) if shared.link.is_away() => Mode::InPlaceOfShared,
            Some(_) => return None,
        };
        let spent = self.0.local.spend(spending, now, mode, Seeds::Needed);
        spent.ok().map(Ok)
    }

    /// Decides, and charges all counters or none: at once, or after a [wait](Self::spend_waiting).
    ///
    /// # Errors
    /// [`CostExceedsLimit`]: this cost can never be spent.
    pub async fn spend(
        &self,
        spending: &Spending<'_>,
        now: Now,
    ) -> Result<Spent, CostExceedsLimit> {
        match self.spend_local(spending, now) {
            Some(spent) => spent,
            None => Ok(self.spend_waiting(spending, now).await),
        }
    }

    /// Decides what [`Self::spend_local`] answered `None` to, and nothing else, within what the request can
    /// wait for [the shared counters](patience::spend) and [the stored counts](patience::wait). Nothing
    /// fails: what is away, or takes longer, is done without. What that is depends on which of them was
    /// waited for.
    pub async fn spend_waiting(&self, spending: &Spending<'_>, now: Now) -> Spent {
        let mut mode = Mode::Alone;
        let mut seeds = Seeds::Needed;
        if let Some(shared) = &self.0.shared {
            let spent = self.spend_shared(shared, spending, now, &mut seeds).await;
            self.note_degraded(spent.is_err());
            match spent {
                Ok(spent) => return spent,
                Err(Alone::RedisAway) => mode = Mode::InPlaceOfShared,
                // Redis is there: this is not what a limit is closed for.
                Err(Alone::NothingStored) => {}
            }
        }
        let local = &self.0.local;
        if let Ok(spent) = local.spend(spending, now, mode, seeds) {
            return spent;
        }
        self.seed(spending, now).await;
        let spent = local.spend(spending, now, mode, Seeds::DoneWithout);
        spent.unwrap_or_else(|Unseeded| Spent::admitted())
    }

    /// Writes the counts that moved since the last time; call it every second and at the stop, not
    /// twice at the same time. Answers how many it wrote.
    ///
    /// # Errors
    /// The database's; what was not written is written the next time.
    pub async fn write_back(&self) -> db::Result<usize> {
        let mut taken = TakenCounts {
            local: &self.0.local,
            moved: self.0.local.take_moved(),
            written: 0,
        };
        loop {
            let rest = taken.moved.get(taken.written..).unwrap_or_default();
            let batch = rest.get(..WRITE_MAX).unwrap_or(rest);
            if batch.is_empty() {
                return Ok(taken.written);
            }
            self.write(batch).await?;
            self.0.local.written(batch);
            taken.written += batch.len();
        }
    }

    /// Drops counters that say nothing any more and brings the metrics up to date; call it every
    /// second.
    pub fn tend(&self) {
        self.0.local.sweep(self.now());
        let counters = i64::try_from(self.0.local.counters()).unwrap_or(i64::MAX);
        self.0.counters.set(counters);
        if let Some(shared) = &self.0.shared {
            self.note_degraded(shared.link.is_away());
        }
    }

    /// Deletes stored counts of periods long past; call it now and then. Answers how many.
    pub async fn sweep_stored(&self) -> db::Result<usize> {
        let before = self.0.clock.now().minus(COUNTS_KEPT);
        self.0
            .db
            .write(async move |conn: &mut Conn| store::sweep(conn, before).await)
            .await
    }

    /// Whether this node decides alone although there are shared counters.
    pub fn is_degraded(&self) -> bool {
        self.0.degraded.get() != 0
    }

    /// Sets `seeds` once the stored counts have been asked for: that is done once a decision.
    async fn spend_shared(
        &self,
        shared: &Shared,
        spending: &Spending<'_>,
        now: Now,
        seeds: &mut Seeds,
    ) -> Result<Spent, Alone> {
        // What this node has seen or counted alone is never counted again from less.
        let mut knowns: Knowns = spending
            .quotas
            .iter()
            .map(|charge| Known {
                used: self.known(spending.tag, charge, now),
                is_seeded: false,
            })
            .collect();
        let mut answer = ask(shared, spending, &knowns, now).await?;
        if matches!(answer, Answer::Unseeded) {
            // Begun from less than is stored, the shared count would stay too low: until that can be read
            // this node goes on alone.
            if self.is_put_off(spending, now) {
                return Err(Alone::NothingStored);
            }
            let stored = self.seed(spending, now).await;
            *seeds = Seeds::DoneWithout;
            let stored = stored.ok_or(Alone::NothingStored)?;
            for ((known, charge), stored) in knowns.iter_mut().zip(spending.quotas).zip(stored) {
                let used = self.known(spending.tag, charge, now);
                *known = Known {
                    used: used.max(stored),
                    is_seeded: true,
                };
            }
            answer = ask(shared, spending, &knowns, now).await?;
        }
        let Answer::Decided(decided) = answer else {
            return Err(Alone::RedisAway);
        };
        self.follow(spending, &decided, now);
        Ok(decided.spent)
    }

    /// Whether a stored count could not be read just now.
    fn is_put_off(&self, spending: &Spending<'_>, now: Now) -> bool {
        spending.quotas.iter().any(|charge| {
            let period = Period::containing(charge.quota.period, now.wall);
            let local = &self.0.local;
            local.is_put_off(spending.tag, charge.counter, period, now)
        })
    }

    fn known(&self, tag: &HashTag, charge: &QuotaCharge, now: Now) -> u64 {
        let period = Period::containing(charge.quota.period, now.wall);
        let known = self.0.local.known_count(tag, charge.counter, period);
        known.unwrap_or(0)
    }

    /// Keeps what the shared counters said, to go on from there if they go away.
    fn follow(&self, spending: &Spending<'_>, decided: &Decided, now: Now) {
        let local = &self.0.local;
        for (charge, ahead_us) in spending.limits.iter().zip(&decided.ahead_us) {
            if charge.limit.fail_mode != FailMode::Open {
                local.follow_limit(spending.tag, charge, *ahead_us, now);
            }
        }
        for (charge, used) in spending.quotas.iter().zip(&decided.used) {
            let period = Period::containing(charge.quota.period, now.wall);
            local.follow_count(spending.tag, charge.counter, period, *used, now);
        }
    }

    /// Begins the counts in memory from the stored ones, which it answers: `None` if the database does not
    /// answer in time.
    async fn seed(&self, spending: &Spending<'_>, now: Now) -> Option<Counts> {
        let wanted: SmallVec<[(CounterId, Period); 2]> = spending
            .quotas
            .iter()
            .map(|charge| {
                let period = Period::containing(charge.quota.period, now.wall);
                (charge.counter, period)
            })
            .collect();
        let asked = wanted
            .iter()
            .map(|(counter, period)| (*counter, period.start));
        match self.0.stored.counts(asked.collect()).await {
            Ok(counts) => {
                for ((counter, period), stored) in wanted.into_iter().zip(&counts) {
                    let local = &self.0.local;
                    local.seed(spending.tag, counter, period, *stored, now);
                }
                Some(counts)
            }
            Err(error) => {
                tracing::warn!(%error, "a quota goes on without its stored count");
                for (counter, period) in wanted {
                    self.0.local.put_off(spending.tag, counter, period, now);
                }
                None
            }
        }
    }

    async fn write(&self, batch: &[Moved]) -> db::Result<()> {
        let mut rows: Vec<_> = batch
            .iter()
            .map(|moved| (moved.counter, moved.period_start, moved.used))
            .collect();
        // In one order on every node: two that count for the same keys would wait for each other.
        rows.sort_unstable();
        self.0
            .db
            .write(async move |conn: &mut Conn| store::write(conn, &rows).await)
            .await
    }

    fn note_degraded(&self, is_degraded: bool) {
        if self.is_degraded() != is_degraded {
            self.0.degraded.set(i64::from(is_degraded));
        }
    }
}

/// What the shared counters answer while the request can wait for them.
async fn ask(
    shared: &Shared,
    spending: &Spending<'_>,
    knowns: &[Known],
    now: Now,
) -> Result<Answer, RedisAway> {
    // Pinned here, and not moved about: it is large.
    let asked = pin!(shared.spend(spending, knowns, now));
    match patience::spend(asked).await {
        Ok(answer) => answer,
        Err(OutOfPatience) => Err(RedisAway),
    }
}

/// Why the shared counters do not decide.
enum Alone {
    /// Or slower than anybody waits.
    RedisAway,
    /// A stored count that the shared one has to begin from cannot be read.
    NothingStored,
}

impl From<RedisAway> for Alone {
    fn from(RedisAway: RedisAway) -> Self {
        Self::RedisAway
    }
}

/// Counts that were taken to be written. Those that were not are taken again the next time, also if who
/// writes is stopped half-way.
struct TakenCounts<'a> {
    local: &'a Local,
    moved: Vec<Moved>,
    written: usize,
}

impl Drop for TakenCounts<'_> {
    fn drop(&mut self) {
        let rest = self.moved.get(self.written..).unwrap_or_default();
        self.local.not_written(rest);
    }
}

impl Spending<'_> {
    fn check(&self) -> Result<(), CostExceedsLimit> {
        let exceeds = |charge: &Charge<'_>| self.cost > charge.limit.burst;
        if let Some(index) = self.limits.iter().position(exceeds) {
            return Err(CostExceedsLimit::Burst(index));
        }
        let exceeds = |charge: &QuotaCharge| self.cost > charge.quota.limit;
        match self.quotas.iter().position(exceeds) {
            Some(index) => Err(CostExceedsLimit::Quota(index)),
            None => Ok(()),
        }
    }

    fn charges(&self) -> bool {
        self.cost > 0 && !self.only_looks
    }

    /// Nothing limits it.
    fn is_free(&self) -> bool {
        self.limits.is_empty() && self.quotas.is_empty()
    }

    /// What the counters have to have room for.
    fn judged_cost(&self) -> u64 {
        self.cost.max(1)
    }
}

impl QuotaState {
    fn of(quota: Quota, used: u64, exceeded: bool, resets_at: Timestamp) -> Self {
        Self {
            remaining: quota.limit.saturating_sub(used),
            resets_at,
            exceeded,
        }
    }
}

impl Spent {
    /// Nothing limits it: there is nothing to tell.
    pub fn is_free(&self) -> bool {
        self.limits.is_empty() && self.quotas.is_empty()
    }

    fn admitted() -> Self {
        Self {
            verdict: Verdict::Admitted,
            retry_after_ms: 0,
            limits: SmallVec::new(),
            quotas: SmallVec::new(),
        }
    }

    fn add_limit(&mut self, state: LimitState, wait_us: u64) {
        if state.limited {
            self.close(wait_us);
        }
        self.limits.push(state);
    }

    fn add_quota(&mut self, state: QuotaState, now: Timestamp) {
        if state.exceeded {
            if self.verdict == Verdict::Admitted {
                self.verdict = Verdict::QuotaExceeded;
            }
            let wait_ms = state.resets_at.since(now).millis().unsigned_abs();
            self.retry_after_ms = self.retry_after_ms.max(wait_ms);
        }
        self.quotas.push(state);
    }

    fn close(&mut self, wait_us: u64) {
        self.verdict = Verdict::RateLimited;
        self.retry_after_ms = self.retry_after_ms.max(wait_us.div_ceil(1000));
    }
}

#[cfg(test)]
mod tests;
