//! Limits and quotas where they are kept: in the database, in Redis, and without either.

mod agreement;
mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use keystead::clock::Clock;
use keystead::db::{self, Conn, Db, Target, feed};
use keystead::entropy::Entropy;
use keystead::id::{ConsumerId, TenantId};
use keystead::limits::{Quota, RateLimit};
use keystead::ratelimit::{
    Charge, CounterId, HashTag, Limiter, Now, QuotaCharge, Spending, Spent, Verdict,
};
use keystead::redis_link::{RedisLink, Script};
use keystead::time::{Span, Timestamp};
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::support::redis::{OwnRedis, patient_link, url};
use crate::support::{Backend, Fault, Home, Proxy, both, run, setting, tables, until};

/// One key of one consumer, with counters that no other test has.
#[derive(Clone)]
struct Key {
    tag: HashTag,
    owner: String,
}

impl Key {
    fn new() -> Self {
        let (clock, entropy) = (Clock::System, Entropy::System);
        let consumer = ConsumerId::new(&clock, &entropy);
        Self {
            tag: HashTag::new(&TenantId::new(&clock, &entropy), &consumer),
            owner: consumer.to_string(),
        }
    }

    fn counter(&self, kind: &str, name: &str) -> CounterId {
        CounterId::new(&self.owner, kind, name)
    }

    async fn spend(&self, limiter: &Limiter, limits: &[RateLimit], quota: Option<Quota>) -> Spent {
        self.spend_at(limiter, limits, quota, 1, limiter.now())
            .await
    }

    /// Looks until so much is left: a stored count that a busy machine does not read in time is read a second
    /// later.
    async fn until_left(&self, limiter: &Limiter, quota: Option<Quota>, left: u64) {
        until(LINK_MAX, "the stored count is read", async || {
            let looked = self.spend_at(limiter, &[], quota, 0, limiter.now()).await;
            looked.quotas[0].remaining == left
        })
        .await;
    }

    async fn spend_at(
        &self,
        limiter: &Limiter,
        limits: &[RateLimit],
        quota: Option<Quota>,
        cost: u64,
        now: Now,
    ) -> Spent {
        self.spend_all(limiter, limits, quota.as_slice(), cost, now)
            .await
    }

    async fn spend_all(
        &self,
        limiter: &Limiter,
        limits: &[RateLimit],
        quotas: &[Quota],
        cost: u64,
        now: Now,
    ) -> Spent {
        let charges: Vec<_> = limits
            .iter()
            .map(|limit| Charge {
                counter: self.counter("limit", &limit.name.to_string()),
                limit,
            })
            .collect();
        let quotas: Vec<_> = quotas
            .iter()
            .zip(0..)
            .map(|(quota, n): (_, u8)| QuotaCharge {
                counter: self.counter("quota", &n.to_string()),
                quota: *quota,
            })
            .collect();
        let spending = Spending {
            tag: &self.tag,
            limits: &charges,
            quotas: &quotas,
            cost,
            only_looks: false,
        };
        limiter.spend(&spending, now).await.unwrap()
    }
}

fn limit(name: &str, limit: u64, period: &str, burst: u64, fail_mode: &str) -> RateLimit {
    serde_json::from_value(json!({
        "name": name, "limit": limit, "period": period, "burst": burst, "fail_mode": fail_mode,
    }))
    .unwrap()
}

fn quota(limit: u64, period: &str) -> Quota {
    serde_json::from_value(json!({"limit": limit, "period": period})).unwrap()
}

fn now(wall: &str) -> Now {
    Now {
        monotonic_us: 1_000_000,
        wall: wall.parse().unwrap(),
    }
}

/// How long a call of [`link`], and a stored count that is read again, may take.
const LINK_MAX: Duration = Duration::from_secs(5);

/// These tests are about what is decided: a busy machine is no Redis that is away.
fn link(url: &str) -> RedisLink {
    patient_link(url, LINK_MAX)
}

/// For tests that take Redis away and have to wait for it to be noticed.
fn less_patient_link(url: &str) -> RedisLink {
    patient_link(url, Duration::from_millis(250))
}

/// A database that is not asked, for tests of limits alone.
fn no_db(dir: &tempfile::TempDir) -> Db {
    let path = dir.path().join("keystead.db");
    Db::open(&Target::Sqlite { path }).unwrap()
}

/// A node that counts alone and has the connections to its database already, as after any start: a
/// stored count is waited for only briefly.
async fn node(home: &Home, clock: Clock) -> Limiter {
    Limiter::new(connected(home.db()).await, None, clock)
}

/// The same of one that shares its counters.
async fn sharing_node(home: &Home, redis: RedisLink) -> Limiter {
    Limiter::new(connected(home.db()).await, Some(redis), Clock::System)
}

async fn connected(db: Db) -> Db {
    let ask = async |conn: &mut Conn| feed::head(conn).await.map(drop);
    db.prepare_loads(Duration::from_secs(5), ask).await;
    db.write(ask).await.unwrap();
    db
}

fn on_sqlite<R: Future<Output = ()>>(test: impl FnOnce(Home) -> R) {
    run(Backend::Sqlite, test);
}

both!(
    a_quota_is_full_again_at_the_end_of_its_day_or_month,
    counts_survive_a_restart_and_never_go_back,
    counts_of_periods_long_past_are_swept,
    a_quota_that_becomes_monthly_on_the_first_of_a_month_ends_with_the_month,
    counts_are_written_also_if_a_write_before_was_stopped_half_way,
    a_stored_count_is_read_also_while_others_have_all_connections,
);

async fn a_quota_is_full_again_at_the_end_of_its_day_or_month(home: Home) {
    let limiter = node(&home, Clock::System).await;
    for (period, last, first, next_end) in [
        (
            "day",
            "2028-02-28T23:59:59.999Z",
            "2028-02-29T00:00:00Z",
            "2028-03-01T00:00:00.000Z",
        ),
        (
            "month",
            "2028-02-29T23:59:59.999Z",
            "2028-03-01T00:00:00Z",
            "2028-04-01T00:00:00.000Z",
        ),
    ] {
        let key = Key::new();
        let quota = Some(quota(3, period));
        for left in [2, 1, 0] {
            let spent = key.spend_at(&limiter, &[], quota, 1, now(last)).await;
            assert_eq!(
                (spent.verdict, spent.quotas[0].remaining),
                (Verdict::Admitted, left)
            );
        }
        let spent = key.spend_at(&limiter, &[], quota, 1, now(last)).await;
        assert_eq!(
            (spent.verdict, spent.retry_after_ms),
            (Verdict::QuotaExceeded, 1)
        );
        let spent = key.spend_at(&limiter, &[], quota, 1, now(first)).await;
        assert_eq!(
            (spent.verdict, spent.quotas[0].remaining),
            (Verdict::Admitted, 2)
        );
        assert_eq!(spent.quotas[0].resets_at.to_string(), next_end);
        // A clock that is set back finds the old count, not a new one.
        let spent = key.spend_at(&limiter, &[], quota, 1, now(last)).await;
        assert_eq!(spent.verdict, Verdict::QuotaExceeded);
    }
}

async fn a_quota_that_becomes_monthly_on_the_first_of_a_month_ends_with_the_month(home: Home) {
    let (key, at) = (Key::new(), now("2028-03-01T10:00:00Z"));
    let limiter = node(&home, Clock::System).await;
    for (period, end, left) in [
        ("day", "2028-03-02T00:00:00.000Z", 4),
        ("month", "2028-04-01T00:00:00.000Z", 3),
        ("day", "2028-03-02T00:00:00.000Z", 2),
    ] {
        let quota = Some(quota(5, period));
        let spent = key.spend_at(&limiter, &[], quota, 1, at).await;
        assert_eq!(spent.quotas[0].remaining, left, "{period}");
        assert_eq!(spent.quotas[0].resets_at.to_string(), end, "{period}");
    }
}

async fn counts_are_written_also_if_a_write_before_was_stopped_half_way(home: Home) {
    let quota = Some(quota(10, "month"));
    let limiter = node(&home, Clock::System).await;
    // More than are written at once.
    for _ in 0..600 {
        Key::new().spend(&limiter, &[], quota).await;
    }
    assert!(limiter.write_back().now_or_never().is_none());
    assert_eq!(limiter.write_back().await.unwrap(), 600);
    assert_eq!(limiter.write_back().await.unwrap(), 0);
}

/// Has each connection that reads and writes until it is dropped, or nobody would wait for it any more.
async fn all_connections(db: &Db) -> Arc<Semaphore> {
    let held = Arc::new(Semaphore::new(0));
    let hold = || {
        let (db, held) = (db.clone(), Arc::clone(&held));
        async move {
            db.read(async move |_conn: &mut Conn| -> db::Result<()> {
                let _closed = held.acquire().await;
                Ok(())
            })
            .await
        }
    };
    // More than there are.
    for _ in 0..20 {
        tokio::spawn(hold());
    }
    until(Duration::from_secs(2), "there is none left", async || {
        let another = db.read(async |conn: &mut Conn| feed::head(conn).await);
        let another = tokio::time::timeout(Duration::from_millis(100), another);
        another.await.is_err()
    })
    .await;
    held
}

async fn a_stored_count_is_read_also_while_others_have_all_connections(home: Home) {
    let (key, used_up) = (Key::new(), Some(quota(3, "month")));
    let first = node(&home, Clock::System).await;
    for _ in 0..3 {
        key.spend(&first, &[], used_up).await;
    }
    first.write_back().await.unwrap();

    let db = connected(home.db()).await;
    let held = all_connections(&db).await;
    // One that is slow goes on without, and another node asks anew.
    until(Duration::from_secs(2), "it is read", async || {
        let limiter = Limiter::new(db.clone(), None, Clock::System);
        key.spend(&limiter, &[], used_up).await.verdict == Verdict::QuotaExceeded
    })
    .await;
    held.close();
}

#[test]
fn counts_that_cannot_be_read_leave_connections_for_keys() {
    run(Backend::Postgres, async |home| {
        let db = connected(home.db()).await;
        let limiter = Limiter::new(db.clone(), None, Clock::System);
        let load = async || {
            let head = async |conn: &mut Conn| feed::head(conn).await;
            db.load(Duration::from_millis(500), head).await
        };
        let session = home.session().await;
        session.run("BEGIN; LOCK TABLE quota_count").await;
        let flood: Vec<_> = (0..200)
            .map(|_| {
                let (key, limiter) = (Key::new(), limiter.clone());
                tokio::spawn(async move { key.spend(&limiter, &[], Some(quota(3, "month"))).await })
            })
            .collect();
        session.until_waited_for().await;
        for _ in 0..5 {
            load().await.unwrap();
        }
        for spent in join_all(flood).await {
            assert_eq!(spent.unwrap().verdict, Verdict::Admitted);
        }
        session.run("COMMIT").await;
    });
}

async fn counts_survive_a_restart_and_never_go_back(home: Home) {
    let (key, quota) = (Key::new(), Some(quota(10, "month")));
    let first = node(&home, Clock::System).await;
    for _ in 0..4 {
        key.spend(&first, &[], quota).await;
    }
    assert_eq!(first.write_back().await.unwrap(), 1);
    assert_eq!(first.write_back().await.unwrap(), 0, "nothing moved since");
    key.spend(&first, &[], quota).await;
    drop(first);

    // Killed: what was not written is lost, what was written is not.
    let second = node(&home, Clock::System).await;
    key.until_left(&second, quota, 6).await;
    let spent = key.spend(&second, &[], quota).await;
    assert_eq!(spent.quotas[0].remaining, 5);
    let other = node(&home, Clock::System).await;
    key.until_left(&other, quota, 6).await;
    for _ in 0..6 {
        key.spend(&other, &[], quota).await;
    }
    let exceeded = key.spend(&other, &[], quota).await;
    assert_eq!(exceeded.verdict, Verdict::QuotaExceeded);
    other.write_back().await.unwrap();
    // One that knows less cannot take it back.
    second.write_back().await.unwrap();
    let third = node(&home, Clock::System).await;
    key.until_left(&third, quota, 0).await;
    let spent = key.spend(&third, &[], quota).await;
    assert_eq!(
        (spent.verdict, spent.quotas[0].remaining),
        (Verdict::QuotaExceeded, 0)
    );
}

async fn counts_of_periods_long_past_are_swept(home: Home) {
    let clock = Clock::shifted();
    let (key, quota) = (Key::new(), Some(quota(10, "day")));
    let limiter = node(&home, clock.clone()).await;
    key.spend(&limiter, &[], quota).await;
    limiter.write_back().await.unwrap();
    clock.advance(Span::days(61));
    assert_eq!(limiter.sweep_stored().await.unwrap(), 0);
    clock.advance(Span::days(3));
    assert_eq!(limiter.sweep_stored().await.unwrap(), 1);
}

/// The table is away as a database is: nothing can be read of it.
async fn take_counts_away(home: &Home) {
    tables::execute(home, "ALTER TABLE quota_count RENAME TO elsewhere").await;
}

async fn give_counts_back(home: &Home) {
    tables::execute(home, "ALTER TABLE elsewhere RENAME TO quota_count").await;
}

#[test]
fn a_quota_goes_on_without_its_stored_count_and_takes_it_in_later() {
    on_sqlite(async |home: Home| {
        let (key, quota) = (Key::new(), Some(quota(10, "month")));
        let before = Limiter::new(home.db(), None, Clock::System);
        for _ in 0..4 {
            key.spend(&before, &[], quota).await;
        }
        before.write_back().await.unwrap();

        take_counts_away(&home).await;
        let after = Limiter::new(home.db(), None, Clock::System);
        for left in [9, 8, 7] {
            let spent = key.spend(&after, &[], quota).await;
            assert_eq!(
                (spent.verdict, spent.quotas[0].remaining),
                (Verdict::Admitted, left)
            );
        }
        assert_eq!(
            after.write_back().await.unwrap(),
            0,
            "what is not known is not written"
        );
        give_counts_back(&home).await;
        until(
            Duration::from_secs(5),
            "the stored count is taken in",
            async || {
                let mut now = after.now();
                now.monotonic_us += 2_000_000;
                let spent = key.spend_at(&after, &[], quota, 0, now).await;
                spent.quotas[0].remaining == 3
            },
        )
        .await;
        assert_eq!(after.write_back().await.unwrap(), 1);
    });
}
