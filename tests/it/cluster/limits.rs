//! One limit, three nodes.

use serde_json::json;

use super::{Cluster, figure, sized, three_nodes};
use crate::support::load::Plan;

three_nodes!(three_nodes_admit_together_what_one_would);

async fn three_nodes_admit_together_what_one_would(cluster: Cluster) {
    let limit = json!([{"name": "burst", "limit": 100, "period": "1h", "burst": 100, "fail_mode": "closed"}]);
    let parents = ("invoicing", "acme");
    let limited = json!({"rate_limits": limit});
    let keys = cluster.issue_with(sized(2, 30), parents, limited).await;
    cluster.warm(&keys).await;
    for key in &keys {
        let plan = Plan {
            clients: sized(24, 96),
            count: 3_000,
            ..Plan::at(0, cluster.addresses(), vec![key.question.clone()])
        };
        let asked = plan.run().await;
        figure(&asked);
        asked.expect_admitted(100);
    }
}
