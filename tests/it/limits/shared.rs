//! Counters that nodes share in Redis, and what becomes of them when it forgets, lies or is away.

use std::future::pending;

use keystead::patience::{self, OutOfPatience};
use tokio::time::Instant;

use super::*;

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

/// So short that what is waited for in real time is.
fn twenty_a_second(burst: u64) -> [RateLimit; 1] {
    [limit("tick", 20, "1s", burst, "closed")]
}

#[tokio::test]
async fn who_waits_as_long_as_redis_says_is_admitted() {
    let trials = if setting("KEYSTEAD_TEST_LONG").is_some() {
        200
    } else {
        20
    };
    let dir = tempfile::tempdir().unwrap();
    let limiter = Limiter::new(no_db(&dir), Some(link(&url())), Clock::System);
    let (key, limits) = (Key::new(), twenty_a_second(2));
    for trial in 0..trials {
        let cost = 1 + trial % 2;
        let spend = || key.spend_at(&limiter, &limits, None, cost, limiter.now());
        let mut spent = spend().await;
        while spent.verdict == Verdict::Admitted {
            spent = spend().await;
        }
        let wait_ms = spent.retry_after_ms;
        assert!((1..=50 * cost).contains(&wait_ms), "{trial}: {spent:?}");
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        let spent = spend().await;
        assert_eq!(
            spent.verdict,
            Verdict::Admitted,
            "{trial}: after {wait_ms} ms"
        );
    }
    assert!(!limiter.is_degraded());
}

#[tokio::test]
async fn who_stays_below_a_shared_limit_is_never_refused() {
    let windows = if setting("KEYSTEAD_TEST_LONG").is_some() {
        10
    } else {
        2
    };
    let dir = tempfile::tempdir().unwrap();
    let db = no_db(&dir);
    let node = || Limiter::new(db.clone(), Some(link(&url())), Clock::System);
    let nodes = [node(), node(), node()];
    let (key, limits) = (Key::new(), twenty_a_second(20));
    let began = tokio::time::Instant::now();
    // 90 % of it, evenly, at one node after the other.
    for number in 0..18 * windows {
        tokio::time::sleep_until(began + Duration::from_secs(1) * number / 18).await;
        let node = &nodes[number as usize % nodes.len()];
        let spent = key.spend(node, &limits, None).await;
        assert_eq!(spent.verdict, Verdict::Admitted, "{number}: {spent:?}");
    }
    assert!(nodes.iter().all(|node| !node.is_degraded()));
}

/// What is done for a request that has waited for so much already that it can wait no longer for anything.
async fn out_of_patience<F: Future>(done: F) -> F::Output {
    patience::limited(Duration::ZERO, async {
        let waited = patience::wait(Duration::ZERO, pending::<()>()).await;
        assert_eq!(waited, Err(OutOfPatience));
        // Nor for counters, which have something of their own.
        patience::take(Duration::from_secs(1));
        done.await
    })
    .await
}

#[tokio::test]
async fn for_who_cannot_wait_for_redis_its_counters_go_on_here() {
    let dir = tempfile::tempdir().unwrap();
    let redis = OwnRedis::start();
    let (mut proxy, url) = redis.behind_proxy().await;
    let limiter = Limiter::new(no_db(&dir), Some(link(&url)), Clock::System);
    let [local, open, closed] =
        ["local", "open", "closed"].map(|mode| [limit(mode, 10, "1h", 10, mode)]);
    let key = Key::new();
    for limits in [&local, &open, &closed] {
        for _ in 0..4 {
            let spent = key.spend(&limiter, limits, None).await;
            assert_eq!(spent.verdict, Verdict::Admitted);
        }
    }
    proxy.set(Fault::Hang).await;
    let alone = async |limits: &[RateLimit; 1], cost| {
        let charge = Charge {
            counter: key.counter("limit", &limits[0].name.to_string()),
            limit: &limits[0],
        };
        let spending = Spending {
            tag: &key.tag,
            limits: &[charge],
            quotas: &[],
            cost,
            only_looks: false,
        };
        let began = Instant::now();
        let spent = out_of_patience(limiter.spend(&spending, limiter.now())).await;
        let took = began.elapsed();
        assert!(took < LINK_MAX / 2, "{took:?}");
        spent
    };
    let admitted = async |limits| {
        let mut admitted = 0;
        for _ in 0..20 {
            let spent = alone(limits, 1).await.unwrap();
            admitted += usize::from(spent.verdict == Verdict::Admitted);
        }
        admitted
    };
    assert_eq!(
        (
            admitted(&local).await,
            admitted(&open).await,
            admitted(&closed).await
        ),
        (6, 20, 0)
    );
    assert!(alone(&local, 11).await.is_err(), "it can never be spent");
    assert!(limiter.is_degraded());
    // Whoever can wait finds the shared ones. What was still on its way to them is lost.
    proxy.set(Fault::Refuse).await;
    proxy.set(Fault::None).await;
    until(Duration::from_secs(5), "Redis is back", async || {
        let now = limiter.now();
        let spent = key.spend_at(&limiter, &closed, None, 0, now).await;
        spent.limits[0].remaining == 6 && !limiter.is_degraded()
    })
    .await;
    let spent = key.spend(&limiter, &closed, None).await;
    assert_eq!(spent.limits[0].remaining, 5);
    assert!(!limiter.is_degraded());
}

#[test]
fn a_stored_count_that_nobody_can_wait_for_is_no_redis_that_is_away() {
    run(Backend::Postgres, async |home: Home| {
        let mut proxy = Proxy::before(home.database_address()).await;
        let url_of_slow = home.database_url_at(proxy.address);
        let db = Db::open(&Target::parse(&url_of_slow).unwrap()).unwrap();
        let limiter = Limiter::new(connected(db).await, Some(link(&url())), Clock::System);
        proxy.set(Fault::Hang).await;
        let closed = [limit("closed", 10, "1h", 10, "closed")];
        let quota = Some(quota(10, "month"));
        // Redis may be slow too, on a machine that has other things to do.
        let soon = Duration::from_secs(5);
        until(soon, "it goes on without", async || {
            let key = Key::new();
            // What is left is less than a stored count may take.
            let waits = Duration::from_millis(50);
            let spent = patience::limited(waits, async {
                let before = patience::wait(waits / 2, pending::<()>()).await;
                assert_eq!(before, Err(OutOfPatience));
                key.spend(&limiter, &closed, quota).await
            })
            .await;
            spent.verdict == Verdict::Admitted
                && (spent.limits[0].remaining, spent.limits[0].is_degraded) == (9, false)
                && spent.quotas[0].remaining == 9
        })
        .await;
    });
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
async fn a_raised_limit_does_not_stay_refused_for_as_long_as_the_old_one_says() {
    let dir = tempfile::tempdir().unwrap();
    let redis = OwnRedis::start();
    let (mut proxy, url) = redis.behind_proxy().await;
    let limiter = Limiter::new(no_db(&dir), Some(less_patient_link(&url)), Clock::System);
    let key = Key::new();
    let low = [limit("calls", 10, "31d", 10, "local")];
    let raised = [limit("calls", 20, "1s", 20, "local")];
    let use_up = async |limits: &[RateLimit]| {
        while key.spend(&limiter, limits, None).await.verdict == Verdict::Admitted {}
    };
    let is_soon_there = async |what: &str| {
        let spent = key.spend(&limiter, &raised, None).await;
        assert!(spent.retry_after_ms <= 50, "{what}: {spent:?}");
        until(Duration::from_secs(5), what, async || {
            let spent = key.spend(&limiter, &raised, None).await;
            spent.verdict == Verdict::Admitted
        })
        .await;
    };
    use_up(&low).await;
    is_soon_there("in Redis").await;
    // And what this node goes on from without Redis is that limit's too.
    use_up(&raised).await;
    proxy.set(Fault::Refuse).await;
    is_soon_there("without Redis").await;
    assert!(limiter.is_degraded());
}

#[test]
fn several_limits_and_quotas_are_charged_together_in_redis_as_in_memory() {
    on_sqlite(async |home: Home| {
        let nodes = [
            node(&home, Clock::System).await,
            sharing_node(&home, link(&url())).await,
        ];
        let limits = [
            limit("wide", 1000, "31d", 1000, "closed"),
            limit("narrow", 7, "31d", 7, "closed"),
        ];
        let quotas = [quota(5, "day"), quota(8, "month")];
        for limiter in nodes {
            let (key, now) = (Key::new(), limiter.now());
            for (cost, verdict, left_of_limits, left_of_quotas) in [
                (2, Verdict::Admitted, [998, 5], [3, 6]),
                (0, Verdict::Admitted, [998, 5], [3, 6]),
                (2, Verdict::Admitted, [996, 3], [1, 4]),
                (2, Verdict::QuotaExceeded, [996, 3], [1, 4]),
                (1, Verdict::Admitted, [995, 2], [0, 3]),
                // A limit and a quota refuse.
                (3, Verdict::RateLimited, [995, 2], [0, 3]),
            ] {
                let spent = key.spend_all(&limiter, &limits, &quotas, cost, now).await;
                assert_eq!(spent.verdict, verdict, "{spent:?}");
                let of_limits = spent.limits.iter().map(|limit| limit.remaining);
                assert_eq!(of_limits.collect::<Vec<_>>(), left_of_limits, "{spent:?}");
                let of_quotas = spent.quotas.iter().map(|quota| quota.remaining);
                assert_eq!(of_quotas.collect::<Vec<_>>(), left_of_quotas, "{spent:?}");
                let is_refused = verdict != Verdict::Admitted;
                assert_eq!(spent.quotas[0].exceeded, is_refused, "{spent:?}");
                assert!(!spent.quotas[1].exceeded, "{spent:?}");
                let is_limited = verdict == Verdict::RateLimited;
                assert_eq!(spent.limits[1].limited, is_limited, "{spent:?}");
            }
            assert!(!limiter.is_degraded());
        }
    });
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
        let texts = [
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
        ];
        let doubles = [f64::NAN, f64::INFINITY, -f64::INFINITY, -1.0, 0.5, 1e308];
        let pairs = doubles
            .iter()
            .flat_map(|n| [[*n, 0.0], [0.0, *n], [*n, *n]]);
        let pairs = pairs.map(|pair| pair.map(f64::to_le_bytes).concat());
        for text in texts
            .iter()
            .map(|text| text.as_bytes().to_vec())
            .chain(pairs)
        {
            let write = async || {
                let keys: Vec<String> = eyes.query(redis::cmd("KEYS").arg("*")).await.unwrap();
                assert_eq!(keys.len(), 1);
                let mut set = redis::cmd("SET");
                eyes.query::<()>(set.arg(&keys[0]).arg(&text))
                    .await
                    .unwrap();
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
    let counter: Vec<u8> = eyes.query(get.arg(&keys[0])).await.unwrap();
    let (times, []) = counter.as_chunks::<8>() else {
        panic!("whole numbers of 8 bytes: {counter:?}");
    };
    let later = times.iter().map(|us| f64::from_le_bytes(*us) + 86_400e6);
    let later: Vec<u8> = later.flat_map(f64::to_le_bytes).collect();
    assert_eq!(later.len(), 16, "{counter:?}");
    let mut set = redis::cmd("SET");
    let set = set.arg(&keys[0]).arg(later);
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

#[test]
fn of_what_nodes_count_apart_while_redis_is_away_the_largest_total_goes_on() {
    on_sqlite(async |home: Home| {
        let redis = OwnRedis::start();
        let (mut proxy, url) = redis.behind_proxy().await;
        let shared = less_patient_link(&url);
        let probing = tokio::spawn(shared.clone().keep_probing());
        let apart = sharing_node(&home, shared).await;
        let other = sharing_node(&home, link(&redis.url())).await;
        let (key, quota) = (Key::new(), Some(quota(100, "month")));
        let used =
            async |node: &Limiter| 100 - key.spend(node, &[], quota).await.quotas[0].remaining;
        for count in 1..=10 {
            assert_eq!(used(&apart).await, count);
        }
        proxy.set(Fault::Refuse).await;
        for count in 11..=15 {
            assert_eq!(used(&apart).await, count);
        }
        assert!(apart.is_degraded());
        assert_eq!(used(&other).await, 11, "it still reaches Redis");
        proxy.set(Fault::None).await;
        until(Duration::from_secs(2), "Redis is back", async || {
            let now = apart.now();
            key.spend_at(&apart, &[], quota, 0, now).await;
            !apart.is_degraded()
        })
        .await;
        // A total that is told twice counts once; what it does not say is lost.
        assert_eq!(used(&apart).await, 16);
        assert_eq!(used(&other).await, 17);
        probing.abort();
    });
}
