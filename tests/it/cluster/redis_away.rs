//! Redis is killed, stands still, or is slow: validations go on, and limits do as they are told.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use super::{Cluster, Key, figure, is_long, sized, three_nodes};
use crate::support::load::{Line, Plan};
use crate::support::redis::OwnRedis;
use crate::support::{Fault, Frozen, signal};

three_nodes!(a_redis_that_is_slow_or_stands_still_or_is_killed_fails_no_validation,);

/// How soon limits are exact again.
const EXACT_AGAIN: Duration = Duration::from_secs(2);

/// The promise is 200 ms; the rest is what a machine may take that builds and tests other things.
const SHORT_MAX: Duration = Duration::from_millis(200 + 800);

const FIRST_SECOND_P99: Duration = Duration::from_millis(150);
const LATER_P99: Duration = Duration::from_millis(25);

const LIMIT: usize = 10;

impl Cluster {
    /// Keys with a limit, which does this without Redis.
    async fn limited(&self, count: usize, limit: usize, fail_mode: &str) -> Vec<Key> {
        let limits = json!([{
            "name": "calls", "limit": limit, "period": "1h", "fail_mode": fail_mode,
        }]);
        let limited = json!({"rate_limits": limits});
        self.issue_with(count, ("invoicing", "acme"), limited).await
    }

    async fn set_redis(&mut self, fault: Fault) {
        for node in &mut self.nodes {
            node.redis.set(fault).await;
        }
    }
}

async fn a_redis_that_is_slow_or_stands_still_or_is_killed_fails_no_validation(
    mut cluster: Cluster,
) {
    let id = cluster.redis.process_id().await;
    let slow = Fault::Delay(Duration::from_millis(150));
    outage(
        &mut cluster,
        "slow",
        async |cluster| cluster.set_redis(slow).await,
        async |cluster, ()| cluster.set_redis(Fault::None).await,
    )
    .await;
    outage(
        &mut cluster,
        "stopped",
        async |_| Frozen::process(id),
        async |_, frozen| drop(frozen),
    )
    .await;
    let other = OwnRedis::start();
    outage(
        &mut cluster,
        "killed",
        async |_| signal(id, "KILL"),
        async |cluster, ()| {
            for node in &cluster.nodes {
                node.redis.lead_to(other.address());
            }
        },
    )
    .await;
}

/// What `begin` does until `end` undoes it, under load.
async fn outage<T>(
    cluster: &mut Cluster,
    what: &str,
    begin: impl AsyncFnOnce(&mut Cluster) -> T,
    end: impl AsyncFnOnce(&mut Cluster, T),
) {
    // Every validation of the load wants something of Redis.
    let good = cluster.limited(sized(100, 1_000), 1_000_000, "local").await;
    let local = cluster.limited(1, LIMIT, "local").await;
    let open = cluster.limited(1, LIMIT, "open").await;
    let closed = cluster.limited(1, LIMIT, "closed").await;
    let after = cluster.limited(1, 2 * LIMIT, "closed").await;
    for keys in [&good, &local, &open, &closed, &after] {
        cluster.warm(keys).await;
    }
    let load = cluster.load(sized(200, 1_000), &good).start().await;
    sleep(Duration::from_secs(1)).await;

    let begun = begin(cluster).await;
    let began = load.began.elapsed();
    let second = Duration::from_secs(1);
    sleep(second).await;
    for node in &cluster.nodes {
        let admitted = async |keys: &[Key]| {
            let mut line = Line::to(node.address);
            let mut admitted = 0;
            for _ in 0..LIMIT + 2 {
                admitted += usize::from(line.ask(&keys[0].question).await.is_valid());
            }
            admitted
        };
        assert_eq!(admitted(&local).await, LIMIT, "alone, as one node would");
        assert_eq!(admitted(&open).await, LIMIT + 2);
        assert_eq!(admitted(&closed).await, 0);
    }
    sleep(sized(second, 8 * second)).await;
    end(cluster, begun).await;
    let ended = load.began.elapsed();
    sleep(EXACT_AGAIN).await;
    let plan = Plan {
        clients: 6,
        count: 60,
        ..Plan::at(0, cluster.addresses(), vec![after[0].question.clone()])
    };
    let exact = plan.run().await;
    let load = load.stop().await;

    let parts = [
        ("before", load.between(Duration::ZERO, began)),
        ("first second", load.between(began, began + second)),
        ("then", load.between(began + second, ended)),
        ("after", load.between(ended, Duration::MAX)),
    ];
    for (when, part) in &parts {
        figure(format_args!("Redis {what}, {when}: {part}"));
    }
    figure(format_args!("{EXACT_AGAIN:?} after its return: {exact}"));
    let baseline = parts[0].1.p99();
    for (when, part) in &parts {
        part.expect_all_valid(when);
        // What is promised while it is away; twice what it was before, on a machine where that is more.
        let promised = match *when {
            "first second" => FIRST_SECOND_P99,
            "then" => LATER_P99,
            _ => Duration::MAX,
        };
        let bound = promised.max(2 * baseline);
        let is_kept = part.p99() <= bound;
        assert!(!is_long() || is_kept, "{what}, {when}: {part}");
        assert!(
            is_long() || part.max() <= SHORT_MAX,
            "{what}, {when}: {part}"
        );
    }
    let is_exact = exact.admits_exactly(2 * LIMIT);
    assert!(is_exact || !is_long(), "{exact}");
}
