//! One limit, three nodes.

use std::time::Duration;

use serde_json::json;

use super::{Cluster, figure, sized, three_nodes};
use crate::support::load::Plan;

three_nodes!(three_nodes_admit_together_what_one_would);

async fn three_nodes_admit_together_what_one_would(cluster: Cluster) {
    let limit = json!([{"name": "burst", "limit": 100, "period": "1h", "burst": 100, "fail_mode": "closed"}]);
    let parents = ("invoicing", "acme");
    let limited = json!({"rate_limits": limit});
    let wanted = sized(2, 30);
    let keys = cluster.issue_with(5 * wanted, parents, limited).await;
    cluster.warm(&keys).await;
    // A trial in which a call to Redis took too long shows that no more are admitted, and is made again.
    let mut exact = 0;
    for key in &keys {
        for node in &cluster.nodes {
            node.until_it_says("redis", "reachable", Duration::from_secs(10))
                .await;
        }
        let plan = Plan {
            clients: sized(24, 96),
            count: 3_000,
            ..Plan::at(0, cluster.addresses(), vec![key.question.clone()])
        };
        let asked = plan.run().await;
        figure(&asked);
        exact += usize::from(asked.admits_exactly(100));
        if exact == wanted {
            return;
        }
    }
    panic!(
        "of {} trials only {exact} admitted 100 of 3,000",
        keys.len()
    );
}
