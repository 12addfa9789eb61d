//! Everybody at once, and a Redis that forgets everything.

use std::time::Duration;

use tokio::time::sleep;

use super::{Cluster, expect_all_valid_or_busy, figure, sized, three_nodes};
use crate::support::load::Plan;

three_nodes!(
    five_hundred_who_want_the_same_cold_key_cause_one_look_up_a_node,
    a_redis_that_forgets_everything_revives_no_key,
);

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
