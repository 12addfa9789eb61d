//! Limits and quotas where they are kept: in the database, in Redis, and without either.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use keystead::clock::Clock;
use keystead::db::{Db, Target};
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

use crate::support::redis::{OwnRedis, patient_link, url};
use crate::support::{Backend, Fault, Home, both, run, setting, tables, until};

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

    async fn spend_at(
        &self,
        limiter: &Limiter,
        limits: &[RateLimit],
        quota: Option<Quota>,
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
        let quotas: Vec<_> = quota
            .iter()
            .map(|quota| QuotaCharge {
                counter: self.counter("quota", ""),
                quota: *quota,
            })
            .collect();
        let spending = Spending {
            tag: &self.tag,
            limits: &charges,
            quotas: &quotas,
            cost,
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

/// These tests are about what is decided: a busy machine is no Redis that is away.
fn link(url: &str) -> RedisLink {
    patient_link(url, Duration::from_secs(5))
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

/// A node that counts alone and has a connection to its database already, as after any start: a
/// stored count is waited for only briefly.
async fn node(home: &Home, clock: Clock) -> Limiter {
    let limiter = Limiter::new(home.db(), None, clock);
    limiter.sweep_stored().await.unwrap();
    limiter
}

/// The same of one that shares its counters.
async fn sharing_node(home: &Home, redis: RedisLink) -> Limiter {
    let limiter = Limiter::new(home.db(), Some(redis), Clock::System);
    limiter.sweep_stored().await.unwrap();
    limiter
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
    let spent = key.spend(&second, &[], quota).await;
    assert_eq!(spent.quotas[0].remaining, 5);
    let other = node(&home, Clock::System).await;
    for _ in 0..6 {
        key.spend(&other, &[], quota).await;
    }
    let exceeded = key.spend(&other, &[], quota).await;
    assert_eq!(exceeded.verdict, Verdict::QuotaExceeded);
    other.write_back().await.unwrap();
    // One that knows less cannot take it back.
    second.write_back().await.unwrap();
    let third = node(&home, Clock::System).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn three_nodes_admit_exactly_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let db = no_db(&dir);
    let rounds = if setting("KEYSTEAD_TEST_LONG").is_some() {
        30
    } else {
        5
    };
    // Nodes whose clocks differ by seconds: Redis's decides.
    let nodes: Vec<Limiter> = [0, 5, 10]
        .map(|ahead| {
            let clock = Clock::shifted();
            clock.advance(Span::seconds(ahead));
            Limiter::new(db.clone(), Some(link(&url())), clock)
        })
        .into();
    let limits = Arc::new([limit("hourly", 100, "1h", 100, "closed")]);
    for round in 0..rounds {
        let key = Key::new();
        let admitted = Arc::new(AtomicU64::new(0));
        let tasks = (0..30).map(|task| {
            let (key, limits) = (key.clone(), Arc::clone(&limits));
            let (admitted, node) = (Arc::clone(&admitted), nodes[task % 3].clone());
            tokio::spawn(async move {
                for _ in 0..100 {
                    let spent = key.spend(&node, &limits[..], None).await;
                    if spent.verdict == Verdict::Admitted {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        });
        for done in join_all(tasks).await {
            done.unwrap();
        }
        assert_eq!(admitted.load(Ordering::Relaxed), 100, "round {round}");
    }
    assert!(nodes.iter().all(|node| !node.is_degraded()));
}

#[tokio::test]
async fn redis_charges_all_or_none_and_keeps_the_counter_of_a_changed_limit() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = Limiter::new(no_db(&dir), Some(link(&url())), Clock::System);
    let key = Key::new();
    let (wide, narrow) = (
        limit("wide", 1000, "1h", 1000, "local"),
        limit("narrow", 3, "1h", 3, "local"),
    );
    let both = [wide.clone(), narrow];
    for n in 0..10 {
        let spent = key.spend(&limiter, &both, None).await;
        let expected = if n < 3 {
            Verdict::Admitted
        } else {
            Verdict::RateLimited
        };
        assert_eq!(spent.verdict, expected, "{n}");
    }
    let now = limiter.now();
    let spent = key.spend_at(&limiter, &[wide], None, 0, now).await;
    assert_eq!(spent.limits[0].remaining, 997);
    let changed = limit("wide", 2000, "1h", 2000, "local");
    let spent = key.spend_at(&limiter, &[changed], None, 0, now).await;
    assert_eq!(spent.limits[0].remaining, 1994);
}

#[tokio::test]
async fn counters_of_idle_keys_are_gone_from_redis() {
    let redis = OwnRedis::start();
    let eyes = link(&redis.url());
    let dir = tempfile::tempdir().unwrap();
    let limiter = Limiter::new(no_db(&dir), Some(link(&redis.url())), Clock::System);
    let limits = [
        limit("a", 10, "1s", 10, "local"),
        limit("b", 5, "2s", 5, "local"),
    ];
    for _ in 0..1000 {
        Key::new().spend(&limiter, &limits, None).await;
    }
    let size = redis::cmd("DBSIZE");
    assert!(eyes.query::<u64>(&size).await.unwrap() > 0);
    let keys: Vec<String> = eyes.query(redis::cmd("KEYS").arg("*")).await.unwrap();
    assert!(
        keys.iter().all(|key| key.starts_with("keystead:{")),
        "{keys:?}"
    );
    until(Duration::from_secs(12), "no counter is left", async || {
        eyes.query::<u64>(&size).await.unwrap() == 0
    })
    .await;
}

#[test]
fn a_quota_in_redis_begins_from_what_is_stored_and_outlives_a_flush() {
    on_sqlite(async |home: Home| {
        let redis = OwnRedis::start();
        let eyes = link(&redis.url());
        let node = || sharing_node(&home, link(&redis.url()));
        let (key, quota) = (Key::new(), Some(quota(10, "month")));
        let (a, b) = (node().await, node().await);
        for left in [9, 8] {
            assert_eq!(key.spend(&a, &[], quota).await.quotas[0].remaining, left);
        }
        assert_eq!(key.spend(&b, &[], quota).await.quotas[0].remaining, 7);
        a.write_back().await.unwrap();
        b.write_back().await.unwrap();
        let keys: Vec<String> = eyes.query(redis::cmd("KEYS").arg("*")).await.unwrap();
        assert_eq!(keys.len(), 1);
        let left_s: i64 = eyes.query(redis::cmd("TTL").arg(&keys[0])).await.unwrap();
        assert!((86_400..=32 * 86_400).contains(&left_s), "{left_s}");

        eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
        // One that never saw the key reads what is stored.
        let c = node().await;
        assert_eq!(key.spend(&c, &[], quota).await.quotas[0].remaining, 6);
        eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
        // One that has seen more than is stored goes on from that.
        assert_eq!(key.spend(&c, &[], quota).await.quotas[0].remaining, 5);
        // The script is gone with the flush of scripts, and comes back.
        let mut flush = redis::cmd("SCRIPT");
        eyes.query::<()>(flush.arg("FLUSH")).await.unwrap();
        assert_eq!(key.spend(&a, &[], quota).await.quotas[0].remaining, 4);
        assert!(!a.is_degraded());
    });
}

#[test]
fn no_quota_in_redis_begins_from_less_than_is_stored() {
    on_sqlite(async |home: Home| {
        let redis = OwnRedis::start();
        let eyes = link(&redis.url());
        let node = || sharing_node(&home, link(&redis.url()));
        let (key, quota) = (Key::new(), Some(quota(10, "month")));
        let (a, b, c) = (node().await, node().await, node().await);
        for _ in 0..7 {
            key.spend(&a, &[], quota).await;
        }
        a.write_back().await.unwrap();
        // Redis forgets while the database cannot be read.
        take_counts_away(&home).await;
        eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
        assert_eq!(key.spend(&b, &[], quota).await.quotas[0].remaining, 9);
        assert!(b.is_degraded(), "it goes on alone");
        // Redis is not away: a limit that is closed without it is open.
        let closed = [limit("closed", 10, "1h", 10, "closed")];
        let now = b.now();
        let spent = key.spend_at(&b, &closed, quota, 0, now).await;
        assert_eq!(spent.verdict, Verdict::Admitted);
        // One that has seen it goes on from there.
        assert_eq!(key.spend(&a, &[], quota).await.quotas[0].remaining, 2);
        give_counts_back(&home).await;
        until(
            Duration::from_secs(5),
            "what is stored counts again",
            async || {
                let mut now = b.now();
                now.monotonic_us += 2_000_000;
                let spent = key.spend_at(&b, &[], quota, 0, now).await;
                spent.quotas[0].remaining == 2 && !b.is_degraded()
            },
        )
        .await;
        assert_eq!(key.spend(&c, &[], quota).await.quotas[0].remaining, 1);
        assert_eq!(key.spend(&c, &[], quota).await.quotas[0].remaining, 0);
        let spent = key.spend(&c, &[], quota).await;
        assert_eq!(spent.verdict, Verdict::QuotaExceeded);
    });
}

#[test]
fn what_is_no_number_in_redis_lifts_neither_a_limit_nor_a_quota() {
    on_sqlite(async |home: Home| {
        let redis = OwnRedis::start();
        let eyes = link(&redis.url());
        let limiter = sharing_node(&home, link(&redis.url())).await;
        let limits = [limit("calls", 3, "1h", 3, "closed")];
        for text in [
            "nan",
            "-nan",
            "inf",
            "-inf",
            "-1",
            "1e308",
            "0x7fffffffffffffff",
            "99999999999999999999999999 1",
            "99999999999999999999999999",
            "nan nan",
            "",
            " ",
            "\u{0}",
        ] {
            let write = async || {
                let keys: Vec<String> = eyes.query(redis::cmd("KEYS").arg("*")).await.unwrap();
                assert_eq!(keys.len(), 1);
                let mut set = redis::cmd("SET");
                eyes.query::<()>(set.arg(&keys[0]).arg(text)).await.unwrap();
            };
            eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
            let (key, quota) = (Key::new(), Some(quota(3, "month")));
            let mut admitted = 0;
            for _ in 0..10 {
                let spent = key.spend(&limiter, &[], quota).await;
                admitted += usize::from(spent.verdict == Verdict::Admitted);
                write().await;
            }
            assert_eq!(admitted, 3, "a quota and {text:?}");

            eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
            key.spend(&limiter, &limits, None).await;
            write().await;
            admitted = 0;
            for _ in 0..10 {
                let spent = key.spend(&limiter, &limits, None).await;
                admitted += usize::from(spent.verdict == Verdict::Admitted);
            }
            assert_eq!(admitted, 3, "a limit and {text:?}");
        }
        assert!(!limiter.is_degraded());
    });
}

/// The one counter there is in Redis, as if all of it had been a day later.
async fn write_a_day_later(eyes: &RedisLink) {
    let keys: Vec<String> = eyes.query(redis::cmd("KEYS").arg("*")).await.unwrap();
    let mut get = redis::cmd("GET");
    let text: String = eyes.query(get.arg(&keys[0])).await.unwrap();
    let later: Vec<String> = text
        .split(' ')
        .map(|us| (us.parse::<u64>().unwrap() + 86_400_000_000).to_string())
        .collect();
    assert_eq!(later.len(), 2, "{text}");
    let mut set = redis::cmd("SET");
    let set = set.arg(&keys[0]).arg(later.join(" "));
    eyes.query::<()>(set).await.unwrap();
}

#[tokio::test]
async fn a_limit_lasts_as_long_as_ever_when_the_clock_of_redis_is_set_back() {
    let dir = tempfile::tempdir().unwrap();
    let redis = OwnRedis::start();
    let eyes = link(&redis.url());
    let limiter = Limiter::new(no_db(&dir), Some(link(&redis.url())), Clock::System);
    let (key, limits) = (Key::new(), [limit("calls", 10, "1h", 10, "closed")]);
    for _ in 0..4 {
        key.spend(&limiter, &limits, None).await;
    }
    write_a_day_later(&eyes).await;
    for left in (0..6).rev() {
        let spent = key.spend(&limiter, &limits, None).await;
        assert_eq!(
            (spent.verdict, spent.limits[0].remaining),
            (Verdict::Admitted, left)
        );
    }
    let spent = key.spend(&limiter, &limits, None).await;
    assert_eq!(spent.verdict, Verdict::RateLimited);
    assert!(spent.retry_after_ms <= 360_000, "{spent:?}");
    // And it drains while nothing is admitted.
    let (key, limits) = (Key::new(), [limit("calls", 1, "2s", 1, "closed")]);
    eyes.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
    key.spend(&limiter, &limits, None).await;
    write_a_day_later(&eyes).await;
    until(Duration::from_secs(5), "it is admitted again", async || {
        let spent = key.spend(&limiter, &limits, None).await;
        spent.verdict == Verdict::Admitted
    })
    .await;
}

#[tokio::test]
async fn while_redis_is_away_each_limit_does_what_its_fail_mode_says() {
    for fault in [
        Fault::Refuse,
        Fault::Hang,
        Fault::Delay(Duration::from_millis(300)),
    ] {
        let redis = OwnRedis::start();
        let (mut proxy, url) = redis.behind_proxy().await;
        let dir = tempfile::tempdir().unwrap();
        let shared = less_patient_link(&url);
        let probing = tokio::spawn(shared.clone().keep_probing());
        let limiter = Limiter::new(no_db(&dir), Some(shared.clone()), Clock::System);
        let other = Limiter::new(no_db(&dir), Some(link(&redis.url())), Clock::System);
        let [local, open, closed] =
            ["local", "open", "closed"].map(|mode| [limit(mode, 10, "1h", 10, mode)]);
        let key = Key::new();
        for limits in [&local, &open, &closed] {
            for _ in 0..4 {
                let spent = key.spend(&limiter, limits, None).await;
                assert_eq!(spent.verdict, Verdict::Admitted);
            }
        }
        proxy.set(fault).await;
        let mut admitted = 0;
        for _ in 0..20 {
            let spent = key.spend(&limiter, &local, None).await;
            admitted += u64::from(spent.verdict == Verdict::Admitted);
        }
        assert_eq!(
            admitted, 6,
            "{fault:?}: it goes on from where the shared counter was"
        );
        assert!(limiter.is_degraded(), "{fault:?}");
        for _ in 0..20 {
            let spent = key.spend(&limiter, &open, None).await;
            assert_eq!(spent.verdict, Verdict::Admitted, "{fault:?}");
            let spent = key.spend(&limiter, &closed, None).await;
            assert_eq!(
                (spent.verdict, spent.retry_after_ms),
                (Verdict::RateLimited, 1000),
                "{fault:?}"
            );
        }
        // All or none, here too.
        let mixed = [limit("new", 10, "1h", 10, "local"), closed[0].clone()];
        key.spend(&limiter, &mixed, None).await;
        let now = limiter.now();
        let spent = key.spend_at(&limiter, &mixed[..1], None, 0, now).await;
        assert_eq!(spent.limits[0].remaining, 10, "{fault:?}");

        proxy.set(Fault::None).await;
        until(
            Duration::from_secs(2),
            "the shared counters decide",
            async || {
                let now = limiter.now();
                let spent = key.spend_at(&limiter, &closed, None, 0, now).await;
                spent.limits[0].remaining == 6 && !limiter.is_degraded()
            },
        )
        .await;
        let spent = key.spend(&other, &closed, None).await;
        assert_eq!(spent.limits[0].remaining, 5, "{fault:?}");
        assert_eq!(
            key.spend(&limiter, &closed, None).await.limits[0].remaining,
            4
        );
        probing.abort();
    }
}

#[test]
fn a_quota_goes_on_from_its_last_known_count_while_redis_is_away() {
    on_sqlite(async |home: Home| {
        let redis = OwnRedis::start();
        let (mut proxy, url) = redis.behind_proxy().await;
        let shared = less_patient_link(&url);
        let probing = tokio::spawn(shared.clone().keep_probing());
        let limiter = sharing_node(&home, shared).await;
        let (key, quota) = (Key::new(), Some(quota(10, "month")));
        for _ in 0..4 {
            key.spend(&limiter, &[], quota).await;
        }
        proxy.set(Fault::Refuse).await;
        for left in [5, 4, 3] {
            let spent = key.spend(&limiter, &[], quota).await;
            assert_eq!(
                (spent.verdict, spent.quotas[0].remaining),
                (Verdict::Admitted, left)
            );
        }
        assert!(limiter.is_degraded());
        limiter.write_back().await.unwrap();
        proxy.set(Fault::None).await;
        until(
            Duration::from_secs(2),
            "the shared counters decide",
            async || {
                let now = limiter.now();
                key.spend_at(&limiter, &[], quota, 0, now).await;
                !limiter.is_degraded()
            },
        )
        .await;
        // What was counted alone is counted now for all.
        let other = sharing_node(&home, link(&redis.url())).await;
        let spent = key.spend(&other, &[], quota).await;
        assert_eq!(spent.quotas[0].remaining, 2);
        probing.abort();
    });
}

/// The script as it is, except that the test says what time it is.
fn script_at_a_told_time() -> Script {
    let code = include_str!("../../src/ratelimit/spend.lua");
    let told = code.replacen("redis.call('TIME')", "{0, ARGV[#ARGV]}", 1);
    assert_ne!(told, code);
    Script::new(told.leak())
}

#[derive(Clone, Debug)]
struct Step {
    wait_us: u64,
    cost: u64,
    /// Which of the limits it names.
    picks: Vec<bool>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait_us = prop_oneof![Just(0), 0..5_000_u64, 0..3_000_000_u64, 0..90_000_000_u64];
    let step = (wait_us, 0..12_u64, prop::collection::vec(any::<bool>(), 4)).prop_map(
        |(wait_us, cost, picks)| Step {
            wait_us,
            cost,
            picks,
        },
    );
    prop::collection::vec(step, 1..40)
}

/// Takes the steps in memory and in Redis, at the same told times, and compares every answer.
async fn agree(limits: &[RateLimit], steps: &[Step]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    let memory = Limiter::new(no_db(&dir), None, Clock::System);
    let (shared, script) = (link(&url()), script_at_a_told_time());
    let key = Key::new();
    let mut now_us = 1_800_000_000_000_000_u64;
    for step in steps {
        now_us += step.wait_us;
        let picked: Vec<RateLimit> = limits
            .iter()
            .zip(&step.picks)
            .filter(|(_, picked)| **picked)
            .map(|(limit, _)| limit.clone())
            .collect();
        let now = Now {
            monotonic_us: now_us,
            wall: Timestamp::from_millis(1_800_000_000_000),
        };
        let spent = key.spend_at(&memory, &picked, None, step.cost, now).await;

        let mut args = vec![
            picked.len() as u64,
            step.cost.max(1),
            u64::from(step.cost > 0),
        ];
        let mut keys = Vec::new();
        for limit in &picked {
            let counter = key.counter("limit", &limit.name.to_string());
            keys.push(format!("agree:{{{}}}:{counter}", key.owner));
            args.extend([limit.interval_us(), limit.burst]);
        }
        args.push(now_us);
        let answer: Vec<u64> = shared.script(&script, &keys, &args).await.unwrap();
        prop_assert_eq!(answer[..2].to_vec(), vec![0, now_us]);
        let mut longest_us = 0;
        for (n, (limit, state)) in picked.iter().zip(&spent.limits).enumerate() {
            let (tat_us, wait_us) = (answer[2 + 2 * n], answer[3 + 2 * n]);
            let used_us = tat_us - now_us;
            let left_us = (limit.interval_us() * limit.burst).saturating_sub(used_us);
            prop_assert_eq!(state.limited, wait_us > 0);
            prop_assert_eq!(state.remaining, left_us / limit.interval_us());
            prop_assert_eq!(state.reset_after_ms, used_us.div_ceil(1000));
            longest_us = longest_us.max(wait_us);
        }
        prop_assert_eq!(spent.retry_after_ms, longest_us.div_ceil(1000));
        prop_assert_eq!(spent.verdict == Verdict::Admitted, longest_us == 0);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 100,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_limiter_in_memory_and_the_one_in_redis_agree(
        definitions in prop::collection::vec(
            (1..100_u64, prop::sample::select(vec!["1s", "7s", "1m", "1h"]), 12..60_u64), 4..=4,
        ),
        steps in steps(),
    ) {
        let limits: Vec<RateLimit> = (0..)
            .zip(&definitions)
            .map(|(n, (count, period, burst))| {
                limit(&format!("limit-{n}"), *count, period, *burst, "local")
            })
            .collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(agree(&limits, &steps))?;
    }
}

#[tokio::test]
async fn they_agree_over_the_whole_range_of_limits() {
    for (count, period, burst) in [
        (1, "31d", 11),
        (1_000_000_000, "31d", 1_000_000_000),
        (1_000_000, "1s", 1_000_000_000),
        (999_999_937, "31d", 999_999_937),
        (1, "1s", 1),
    ] {
        let limits = [limit("a", count, period, burst, "closed")];
        let interval_us = limits[0].interval_us();
        let steps = [
            (0, burst),
            (0, 1),
            (interval_us - 1, 1),
            (1, 1),
            (limits[0].refill_us(), burst),
            (0, burst),
        ]
        .map(|(wait_us, cost)| Step {
            wait_us,
            cost,
            picks: vec![true],
        });
        agree(&limits, &steps).await.unwrap();
    }
}

#[tokio::test]
async fn a_full_burst_of_any_size_passes_once_in_redis() {
    let dir = tempfile::tempdir().unwrap();
    let limiter = Limiter::new(no_db(&dir), Some(link(&url())), Clock::System);
    for (count, period, burst) in [(1, "31d", 11), (1_000_000_000, "31d", 1_000_000_000)] {
        let limits = [limit("a", count, period, burst, "closed")];
        let key = Key::new();
        for verdict in [Verdict::Admitted, Verdict::RateLimited] {
            let now = limiter.now();
            let spent = key.spend_at(&limiter, &limits, None, burst, now).await;
            assert_eq!(spent.verdict, verdict, "{limits:?}");
        }
    }
    assert!(!limiter.is_degraded());
}
