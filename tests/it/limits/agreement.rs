//! What memory and Redis decide is the same, at every told time and over the whole range of limits.

use super::*;

/// The script as it is, except that the test says what time it is.
fn script_at_a_told_time() -> Script {
    let code = include_str!("../../../src/ratelimit/spend.lua");
    let told = code.replacen("redis.call('TIME')", "{0, ARGV[#ARGV]}", 1);
    assert_ne!(told, code);
    Script::new(told.leak())
}

/// How many definitions a limit has one after the other, of one counter.
const DEFINITIONS: usize = 3;

#[derive(Clone, Debug)]
struct Step {
    wait_us: u64,
    cost: u64,
    /// Which of the limits it names, each as it is then: one of its definitions.
    picks: Vec<Option<usize>>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wait_us = prop_oneof![Just(0), 0..5_000_u64, 0..3_000_000_u64, 0..90_000_000_u64];
    let picks = prop::collection::vec(prop::option::of(0..DEFINITIONS), 4);
    let step = (wait_us, 0..12_u64, picks).prop_map(|(wait_us, cost, picks)| Step {
        wait_us,
        cost,
        picks,
    });
    prop::collection::vec(step, 1..40)
}

/// Takes the steps in memory and in Redis, at the same told times, and compares every answer.
async fn agree(limits: &[Vec<RateLimit>], steps: &[Step]) -> Result<(), TestCaseError> {
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
            .filter_map(|(definitions, picked)| Some(definitions[(*picked)?].clone()))
            .collect();
        let now = Now {
            monotonic_us: now_us,
            wall: Timestamp::from_millis(1_800_000_000_000),
        };
        let spent = key.spend_at(&memory, &picked, None, step.cost, now).await;

        let mut numbers = vec![
            picked.len() as u64,
            step.cost.max(1),
            u64::from(step.cost > 0),
        ];
        let mut keys = Vec::new();
        for limit in &picked {
            let counter = key.counter("limit", &limit.name.to_string());
            keys.push(format!("agree:{{{}}}:{counter}", key.owner));
            numbers.extend([limit.interval_us(), limit.burst]);
        }
        let doubles = numbers.iter().flat_map(|n| (*n as f64).to_le_bytes());
        let args = [doubles.collect(), now_us.to_string().into_bytes()];
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
            prop::collection::vec(
                (1..100_u64, prop::sample::select(vec!["1s", "7s", "1m", "1h", "1d"]), 12..60_u64),
                DEFINITIONS,
            ),
            4,
        ),
        steps in steps(),
    ) {
        let limits: Vec<Vec<RateLimit>> = (0..)
            .zip(&definitions)
            .map(|(n, definitions)| {
                let name = format!("limit-{n}");
                let definitions = definitions.iter();
                definitions
                    .map(|(count, period, burst)| limit(&name, *count, period, *burst, "local"))
                    .collect()
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
        let limits = [vec![limit("a", count, period, burst, "closed")]];
        let interval_us = limits[0][0].interval_us();
        let steps = [
            (0, burst),
            (0, 1),
            (interval_us - 1, 1),
            (1, 1),
            (limits[0][0].refill_us(), burst),
            (0, burst),
        ]
        .map(|(wait_us, cost)| Step {
            wait_us,
            cost,
            picks: vec![Some(0)],
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

/// Two nodes that count for the same keys would wait for each other.
#[test]
fn counts_are_written_in_one_order() {
    run(Backend::Postgres, async |home| {
        let limiter = node(&home, Clock::System).await;
        let keys: Vec<Key> = (0..20).map(|_| Key::new()).collect();
        let spend = async || {
            for key in &keys {
                key.spend(&limiter, &[], Some(quota(100, "day"))).await;
            }
        };
        spend().await;
        // On a machine that is busy some go on without their stored counts, and are not written yet.
        assert!(limiter.write_back().await.unwrap() > 10);
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM quota_count ORDER BY counter LIMIT 1 FOR UPDATE")
            .await;
        spend().await;
        let writer = limiter.clone();
        let writing = tokio::spawn(async move { writer.write_back().await });
        session.until_waited_for().await;
        // It waits for the first, and has no other.
        session
            .run("SELECT 1 FROM quota_count FOR UPDATE NOWAIT; COMMIT")
            .await;
        assert!(writing.await.unwrap().unwrap() > 10);
    });
}
