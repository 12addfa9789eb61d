//! Promises about limits in this process's memory, on a clock that stands still until it is moved.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::config::Config;
use crate::id::{ConsumerId, TenantId};

const SECOND: u64 = 1_000_000;

/// A limiter whose database is never asked.
fn limiter() -> Limiter {
    limiter_with_room(COUNTERS_MAX)
}

fn limiter_with_room(counters_max: usize) -> Limiter {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keystead.db");
    let db = Db::open(&db::Target::Sqlite { path }).unwrap();
    Limiter::with_room(db, None, Clock::System, counters_max)
}

fn limit(limit: u64, period: &str, burst: u64) -> RateLimit {
    let json = serde_json::json!({"name": "a", "limit": limit, "period": period, "burst": burst});
    serde_json::from_value(json).unwrap()
}

fn counter(name: &str) -> CounterId {
    CounterId::new("key_1", "limit", name)
}

fn tag() -> HashTag {
    HashTag::from_text("tenant:consumer".to_owned())
}

fn at(monotonic_us: u64) -> Now {
    Now {
        monotonic_us,
        wall: Timestamp::from_millis(1_800_000_000_000),
    }
}

/// Spends on limits, each with a counter named by its place.
fn spend(limiter: &Limiter, limits: &[&RateLimit], cost: u64, now: u64) -> Spent {
    try_spend(limiter, limits, cost, now).unwrap()
}

fn try_spend(
    limiter: &Limiter,
    limits: &[&RateLimit],
    cost: u64,
    now: u64,
) -> Result<Spent, CostExceedsLimit> {
    let names: Vec<String> = (0..limits.len()).map(|place| place.to_string()).collect();
    let each = names.iter().map(String::as_str).zip(limits.iter().copied());
    try_spend_on(limiter, &each.collect::<Vec<_>>(), cost, now)
}

/// Spends on limits, each with a counter of this name.
fn try_spend_on(
    limiter: &Limiter,
    limits: &[(&str, &RateLimit)],
    cost: u64,
    now: u64,
) -> Result<Spent, CostExceedsLimit> {
    let charges: Vec<_> = limits
        .iter()
        .map(|(name, limit)| Charge {
            counter: counter(name),
            limit,
        })
        .collect();
    let spending = Spending {
        tag: &tag(),
        limits: &charges,
        quotas: &[],
        cost,
        only_looks: false,
    };
    limiter.spend_local(&spending, at(now)).unwrap()
}

#[test]
fn steady_traffic_below_the_limit_is_never_refused_and_above_it_the_excess_is() {
    const WINDOW: u64 = 60 * SECOND;
    let limit = limit(100, "1m", 10);
    let refused = |per_window: u64| {
        let limiter = limiter();
        let requests = per_window * 10;
        let refused = (0..requests)
            .filter(|n| {
                let spent = spend(&limiter, &[&limit], 1, SECOND + n * WINDOW / per_window);
                spent.verdict != Verdict::Admitted
            })
            .count();
        (refused, requests)
    };
    assert_eq!(refused(90).0, 0);
    assert_eq!(refused(100).0, 0);
    let (refused, requests) = refused(110);
    // 9 % of them, give or take 2.
    let permille = 1000 * u64::try_from(refused).unwrap() / requests;
    assert!((70..=110).contains(&permille), "{permille}");
}

#[test]
fn a_cost_as_large_as_the_burst_passes_and_a_larger_one_is_an_error() {
    let limiter = limiter();
    let (wide, narrow) = (limit(100, "1m", 100), limit(100, "1m", 10));
    let spent = spend(&limiter, &[&wide, &narrow], 10, SECOND);
    assert_eq!(spent.verdict, Verdict::Admitted);
    assert_eq!(spent.limits[1].remaining, 0);
    assert_eq!(
        try_spend(&limiter, &[&wide, &narrow], 11, SECOND),
        Err(CostExceedsLimit::Burst(1))
    );
    let full = spend(&limiter, &[&wide, &narrow], 10, SECOND);
    assert_eq!(full.verdict, Verdict::RateLimited);
    assert_eq!(full.retry_after_ms, 6_000);
    let again = SECOND + full.retry_after_ms * 1000;
    let spent = spend(&limiter, &[&wide, &narrow], 10, again);
    assert_eq!(spent.verdict, Verdict::Admitted);
}

#[test]
fn the_longest_wait_of_those_that_refuse_is_told() {
    let limiter = limiter();
    let (slow, fast) = (limit(1, "1h", 1), limit(1, "1s", 1));
    spend(&limiter, &[&slow, &fast], 1, SECOND);
    let spent = spend(&limiter, &[&slow, &fast], 1, SECOND);
    assert_eq!(spent.verdict, Verdict::RateLimited);
    assert_eq!(spent.retry_after_ms, 3_600_000);
    assert!(spent.limits.iter().all(|state| state.limited));
    let spent = spend(&limiter, &[&slow, &fast], 1, 2 * SECOND);
    assert!(spent.limits[0].limited && !spent.limits[1].limited);
}

#[test]
fn a_cost_of_nothing_is_judged_and_not_charged() {
    let limiter = limiter();
    let limit = limit(2, "1h", 2);
    for _ in 0..100 {
        let spent = spend(&limiter, &[&limit], 0, SECOND);
        assert_eq!(
            (spent.verdict, spent.limits[0].remaining),
            (Verdict::Admitted, 2)
        );
    }
    assert_eq!(limiter.0.local.counters(), 0, "nothing is kept of it");
    spend(&limiter, &[&limit], 2, SECOND);
    let spent = spend(&limiter, &[&limit], 0, SECOND);
    assert_eq!(spent.verdict, Verdict::RateLimited);
    assert_eq!(spent.retry_after_ms, 1_800_000);
}

#[test]
fn nothing_is_charged_when_one_limit_refuses_however_many_ask_at_once() {
    let limiter = limiter();
    let (wide, narrow) = (limit(1_000_000, "1h", 1_000_000), limit(7, "1h", 7));
    let admitted = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    let spent = spend(&limiter, &[&wide, &narrow], 1, SECOND);
                    let remaining = spent.limits[0].remaining;
                    assert!((999_993..=999_999).contains(&remaining), "{remaining}");
                    if spent.verdict == Verdict::Admitted {
                        admitted.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(admitted.load(Ordering::Relaxed), 7);
    let after = spend(&limiter, &[&wide], 0, SECOND);
    assert_eq!(after.limits[0].remaining, 999_993);
}

#[test]
fn a_changed_definition_keeps_its_counter() {
    let limiter = limiter();
    let (before, wider, narrower) = (
        limit(100, "1h", 100),
        limit(200, "1h", 200),
        limit(50, "1h", 50),
    );
    spend(&limiter, &[&before], 60, SECOND);
    // 60 requests of 36 s each are 120 of 18 s, and 30 of 72 s.
    let spent = spend(&limiter, &[&wider], 0, SECOND);
    assert_eq!(spent.limits[0].remaining, 80);
    let spent = spend(&limiter, &[&narrower], 0, SECOND);
    assert_eq!(spent.limits[0].remaining, 20);
    // A burst smaller than what is already used is used up, and no more than that.
    let tiny = limit(100, "1h", 1);
    let spent = spend(&limiter, &[&tiny], 1, SECOND);
    assert_eq!(
        (spent.verdict, spent.limits[0].remaining),
        (Verdict::RateLimited, 0)
    );
    assert_eq!(spent.retry_after_ms, 36_000);
}

#[test]
fn a_raised_limit_is_at_most_used_up_and_fills_as_it_says() {
    let limiter = limiter();
    let (before, raised) = (limit(10, "31d", 10), limit(1_000, "1s", 1_000));
    spend(&limiter, &[&before], 10, SECOND);
    // Who only looks, or is refused, begins it too.
    let spent = spend(&limiter, &[&raised], 0, SECOND);
    assert_eq!(
        (spent.limits[0].remaining, spent.limits[0].reset_after_ms),
        (0, 1_000)
    );
    let spent = spend(&limiter, &[&raised], 1, SECOND);
    assert_eq!(spent.retry_after_ms, 1);
    let spent = spend(&limiter, &[&raised], 500, 3 * SECOND / 2);
    assert_eq!(
        (spent.verdict, spent.limits[0].remaining),
        (Verdict::Admitted, 0)
    );
    let spent = spend(&limiter, &[&raised], 1, 3 * SECOND / 2);
    assert_eq!(spent.verdict, Verdict::RateLimited);
}

#[test]
fn who_comes_with_an_earlier_time_gives_nothing_back() {
    let limiter = limiter();
    let limit = limit(1_000, "1s", 1);
    let mut admitted = 0;
    for now in (2 * SECOND..3 * SECOND).step_by(100) {
        // Each after one that read its time before it, and had to wait.
        for now in [now, now - SECOND / 5] {
            let spent = spend(&limiter, &[&limit], 1, now);
            admitted += u64::from(spent.verdict == Verdict::Admitted);
        }
    }
    assert_eq!(admitted, 1_000);
}

#[test]
fn a_count_that_nobody_asks_for_again_is_gone_a_day_after_its_period() {
    let limiter = limiter();
    let local = &limiter.0.local;
    let quota = serde_json::json!({"limit": 10, "period": "day"});
    let quotas = [QuotaCharge {
        counter: counter("quota"),
        quota: serde_json::from_value(quota).unwrap(),
    }];
    let spending = Spending {
        tag: &tag(),
        limits: &[],
        quotas: &quotas,
        cost: 1,
        only_looks: false,
    };
    let began = at(SECOND);
    // The stored count could not be read.
    let spent = local.spend(&spending, began, Mode::Alone, Seeds::DoneWithout);
    assert_eq!(spent.unwrap().verdict, Verdict::Admitted);
    let end = Period::containing(quotas[0].quota.period, began.wall).end;
    let counters_at = |wall| {
        let now = Now { wall, ..began };
        (0..16).for_each(|_| local.sweep(now));
        assert!(local.take_moved().is_empty(), "what is stored may be more");
        local.counters()
    };
    assert_eq!(counters_at(end.plus(Span::hours(23))), 1);
    assert_eq!(counters_at(end.plus(Span::hours(24))), 0);
}

#[test]
fn a_clock_that_goes_back_or_far_ahead_breaks_nothing() {
    let limiter = limiter();
    let widest = limit(1, "31d", 11);
    let finest = limit(1_000_000, "1s", 1_000_000_000);
    for now in [1, SECOND, 1, u64::MAX / 2_000, 5, u64::MAX / 4_000, 1] {
        let spent = spend(&limiter, &[&widest, &finest], 1, now);
        assert!(spent.limits[0].remaining <= 10);
        assert!(spent.limits[1].remaining < 1_000_000_000);
    }
}

#[test]
fn counters_that_say_nothing_are_dropped_and_no_answer_changes() {
    let limiter = limiter();
    let limit = limit(10, "1s", 10);
    let charge = |n: u32, now: u64| {
        let charges = [Charge {
            counter: counter(&n.to_string()),
            limit: &limit,
        }];
        let spending = Spending {
            tag: &tag(),
            limits: &charges,
            quotas: &[],
            cost: 10,
            only_looks: false,
        };
        limiter.spend_local(&spending, at(now)).unwrap().unwrap()
    };
    for n in 0..10_000 {
        charge(n, SECOND);
    }
    assert_eq!(limiter.0.local.counters(), 10_000);
    let sweep = |now| (0..16).for_each(|_| limiter.0.local.sweep(at(now)));
    sweep(2 * SECOND - 1);
    assert_eq!(limiter.0.local.counters(), 10_000);
    assert_eq!(charge(7, 2 * SECOND - 1).verdict, Verdict::RateLimited);
    sweep(2 * SECOND);
    assert_eq!(limiter.0.local.counters(), 0);
    assert_eq!(charge(7, 2 * SECOND).verdict, Verdict::Admitted);
}

#[test]
fn a_full_memory_refuses_newcomers_and_never_forgets_who_is_there() {
    let limiter = limiter_with_room(100);
    let limit = limit(2, "1h", 2);
    let charge = |n: u32, now: u64| {
        let charges = [Charge {
            counter: counter(&n.to_string()),
            limit: &limit,
        }];
        let spending = Spending {
            tag: &HashTag::from_text(format!("tenant:{}", n % 7)),
            limits: &charges,
            quotas: &[],
            cost: 1,
            only_looks: false,
        };
        limiter.spend_local(&spending, at(now)).unwrap().unwrap()
    };
    for n in 0..100 {
        assert_eq!(charge(n, SECOND).verdict, Verdict::Admitted);
    }
    let spent = charge(100, SECOND);
    assert_eq!(
        (spent.verdict, spent.retry_after_ms),
        (Verdict::RateLimited, 1000)
    );
    for n in 0..100 {
        assert_eq!(charge(n, SECOND).limits[0].remaining, 0, "{n}");
        assert_eq!(charge(n, SECOND).verdict, Verdict::RateLimited, "{n}");
    }
    // Full again, they make room.
    assert_eq!(
        charge(100, SECOND + 3_600 * SECOND).verdict,
        Verdict::Admitted
    );
}

#[test]
fn a_counter_that_made_room_for_its_own_plan_is_counted_again() {
    let limiter = limiter_with_room(4);
    let (quick, slow) = (limit(10, "1s", 10), limit(10, "1h", 10));
    let charge = |limits: &[(&str, &RateLimit)], now: u64| {
        try_spend_on(&limiter, limits, 1, now).unwrap().verdict
    };
    for (name, limit) in [("a", &quick), ("b", &quick), ("c", &slow), ("d", &slow)] {
        assert_eq!(charge(&[(name, limit)], SECOND), Verdict::Admitted);
    }
    // "a" says nothing any more and goes, to be there again.
    let both = [("a", &quick), ("e", &slow)];
    assert_eq!(charge(&both, 3 * SECOND), Verdict::Admitted);
    assert_eq!(limiter.0.local.counters(), 4);
    (0..16).for_each(|_| limiter.0.local.sweep(at(7_200 * SECOND)));
    assert_eq!(limiter.0.local.counters(), 0);
}

#[test]
fn what_no_limit_names_is_free() {
    let spent = spend(&limiter(), &[], 1_000_000, 1);
    assert_eq!(spent, Spent::admitted());
}

#[test]
fn all_counters_of_a_consumer_and_its_keys_lie_in_one_slot_of_redis() {
    let entropy = crate::entropy::Entropy::System;
    let now = Timestamp::from_millis(1_800_000_000_000);
    let tenant = TenantId::new(&Clock::System, &entropy);
    let consumer = ConsumerId::new(&Clock::System, &entropy);
    let tag = HashTag::new(&tenant, &consumer);
    let period = Period::containing(crate::limits::QuotaPeriod::Day, now);
    let keys = [
        shared::limit_key(tag.as_str(), counter("a")),
        shared::limit_key(tag.as_str(), CounterId::new("con_1", "limit", "b")),
        shared::quota_key(tag.as_str(), counter("q"), period),
    ];
    let slots: Vec<u16> = keys.iter().map(|key| slot(key)).collect();
    assert!(slots.iter().all(|slot| *slot == slots[0]), "{keys:?}");
    // The reference value of the specification.
    assert_eq!(slot("123456789"), 0x31C3);
    assert_eq!(slot("{123456789}.rest"), 0x31C3);
}

/// The hash slot of a key, as Redis Cluster computes it (CRC-16/XMODEM of the hash tag).
fn slot(key: &str) -> u16 {
    let tagged = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    let mut crc = 0_u16;
    for byte in tagged.unwrap_or(key).bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                (crc << 1) ^ 0x1021
            };
        }
    }
    crc % 16_384
}

#[test]
fn the_defaults_share_nothing() {
    assert!(Config::default().redis.url.is_none());
}

proptest! {
    #[test]
    fn who_waits_exactly_as_long_as_told_is_admitted(
        limit_n in 1..1_000_u64,
        period in prop::sample::select(vec!["1s", "7s", "1m", "1h", "31d"]),
        burst in 1..50_u64,
        steps in prop::collection::vec((1..50_u64, 0..2_000_000_u64), 200),
    ) {
        let Ok(limit) = serde_json::from_value::<RateLimit>(serde_json::json!(
            {"name": "a", "limit": limit_n, "period": period, "burst": burst}
        )) else {
            return Ok(());
        };
        let limiter = limiter();
        let mut now = SECOND;
        for (cost, step) in steps {
            now += step;
            let cost = cost.min(burst);
            let spent = spend(&limiter, &[&limit], cost, now);
            if spent.verdict == Verdict::RateLimited {
                prop_assert!(spent.retry_after_ms > 0);
                now += spent.retry_after_ms * 1000;
                let again = spend(&limiter, &[&limit], cost, now);
                prop_assert_eq!(again.verdict, Verdict::Admitted);
            }
        }
    }
}
