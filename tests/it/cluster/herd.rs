//! Everybody at once, and a Redis that forgets everything.

use std::time::Duration;

use tokio::time::sleep;

use super::{Cluster, expect_all_valid_or_busy, figure, is_long, sized, three_nodes};
use crate::support::load::Plan;
use crate::support::{metric, until};

three_nodes!(
    five_hundred_who_want_the_same_cold_key_cause_one_look_up_a_node,
    thousands_of_cold_keys_after_a_start_from_nothing_are_all_answered,
    a_redis_that_forgets_everything_revives_no_key,
);

/// All of those who come at once are answered by then.
const ANSWERED_MAX: Duration = Duration::from_secs(5);

/// Nobody waits longer for a key that is remembered meanwhile.
const HOT_P99: Duration = Duration::from_millis(50);

const READY_MAX: Duration = Duration::from_secs(30);

const VERIFIED_MAX: Duration = Duration::from_secs(120);

async fn five_hundred_who_want_the_same_cold_key_cause_one_look_up_a_node(cluster: Cluster) {
    let warm = cluster.issue(1).await;
    // The caller's key is known, and so is what the keys have in common.
    cluster.warm(&warm).await;
    let lookups = cluster.home.lookups().await;
    for key in cluster.issue(sized(2, 30)).await {
        for (at, node) in cluster.addresses().into_iter().enumerate() {
            let before = lookups.count().await;
            let plan = Plan::at_once(500, vec![node], vec![key.question.clone()]);
            let asked = plan.run().await;
            let made = lookups.count().await - before;
            figure(format_args!("{made} look-up: {asked}"));
            // The others find in Redis what the first one read.
            assert!(made == 1 || (at > 0 && made == 0), "node {at}: {made}");
            expect_all_valid_or_busy(&asked, "at once");
        }
    }
}

async fn thousands_of_cold_keys_after_a_start_from_nothing_are_all_answered(mut cluster: Cluster) {
    let hot = cluster.issue(50).await;
    let cold = cluster.issue(sized(300, 5_000)).await;
    // Or the nodes would make thousands of verifiers while they are measured.
    until(VERIFIED_MAX, "the keys have verifiers", async || {
        // The figure is told each second.
        sleep(Duration::from_millis(1_200)).await;
        metric(cluster.client(), "keystead_verifiers_pending").await == 0
    })
    .await;
    for node in &mut cluster.nodes {
        node.process.signal("KILL");
        node.process.ended(READY_MAX).await;
    }
    cluster.redis.command(&["FLUSHALL"]).await;
    for node in &mut cluster.nodes {
        // Without the proxies: they run where so many clients do, and would stand in line behind them.
        for (name, value) in &mut node.settings {
            match *name {
                "DATABASE__URL" => value.clone_from(&cluster.home.database_url),
                "REDIS__URL" => *value = cluster.redis.url(),
                _ => {}
            }
        }
        node.start_again(&cluster.home);
    }
    for node in &mut cluster.nodes {
        node.process.ready(READY_MAX).await;
    }
    cluster.warm(&hot).await;
    let load = cluster.load(sized(50, 500), &hot).start().await;
    let questions = cold.iter().map(|key| key.question.clone()).collect();
    let plan = Plan::at_once(cold.len(), cluster.addresses(), questions);
    let asked = plan.run().await;
    let hot = load.stop().await;
    figure(format_args!("all cold: {asked}"));
    figure(format_args!("hot beside them: {hot}"));
    expect_all_valid_or_busy(&asked, "at once");
    assert!(asked.max() <= ANSWERED_MAX, "{asked}");
    hot.expect_all_valid("beside cold keys");
    assert!(!is_long() || hot.p99() <= HOT_P99, "{hot}");
}

async fn a_redis_that_forgets_everything_revives_no_key(cluster: Cluster) {
    let good = cluster.issue(50).await;
    let ended = cluster.issue(sized(10, 200)).await;
    cluster.warm(&good).await;
    cluster.warm(&ended).await;
    let load = cluster.load(sized(100, 500), &good).start().await;
    let flushing = async {
        loop {
            cluster.redis.command(&["FLUSHALL"]).await;
            sleep(Duration::from_millis(20)).await;
        }
    };
    let revoking = async {
        for key in &ended {
            let lived = cluster
                .outlived(&[0, 1, 2], key, "revoked", cluster.revoke(0, key))
                .await;
            assert_eq!(lived[0], Duration::ZERO);
            assert!(
                lived.iter().all(|lived| *lived <= Duration::from_secs(1)),
                "{lived:?}"
            );
        }
        for _ in 0..5 {
            cluster.expect_none_lives(&ended).await;
        }
    };
    tokio::select! {
        () = revoking => {}
        () = flushing => {}
    }
    load.stop()
        .await
        .expect_all_valid("while Redis was flushed");
}
