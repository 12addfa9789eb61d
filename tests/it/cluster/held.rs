//! The oldest race of caches, held open on purpose: what was read before a change arrives after it.

use std::time::Duration;

use tokio::time::Instant;

use super::{Cluster, sized, three_nodes};
use crate::support::load::Line;

three_nodes!(what_was_read_before_a_revocation_and_arrives_after_it_is_not_used);

const BOUND: Duration = Duration::from_secs(5);

async fn what_was_read_before_a_revocation_and_arrives_after_it_is_not_used(cluster: Cluster) {
    let warm = cluster.issue(1).await;
    cluster.warm(&warm).await;
    let keys = cluster.issue(sized(20, 200)).await;
    for (trial, key) in keys.iter().enumerate() {
        let node = &cluster.nodes[1];
        // The change is made on the very node, or on another.
        let writer = 1 + trial % 2;
        let mut line = Line::to(node.address);
        node.database.hold_answer(&key.name);
        let asked = async {
            let told = line.ask(&key.question).await;
            assert_eq!(
                (told.status, told.code.as_str()),
                (503, "busy"),
                "its load is held"
            );
        };
        tokio::join!(asked, node.database.holds());
        cluster.revoke(writer, key).await;
        if writer == 1 {
            let told = line.ask(&key.question).await;
            assert!(!told.is_valid(), "trial {trial}: {told:?}");
        }
        node.database.release();
        let (began, mut refused) = (Instant::now(), 0);
        while refused < 5 {
            assert!(began.elapsed() < BOUND, "trial {trial}: it lives on");
            let told = line.ask(&key.question).await;
            // On another node it takes a moment until the change is known at all.
            let may_pass = writer != 1 && refused == 0;
            assert!(!told.is_valid() || may_pass, "trial {trial}: {told:?}");
            refused += usize::from(told.code == "revoked");
        }
    }
    cluster.expect_none_lives(&keys).await;
}
