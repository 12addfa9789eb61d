//! Keys that look right and that nobody issued, in masses.

use std::time::Duration;

use keystead::entropy::Entropy;
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::text::{Environment, Prefix};
use tokio::time::sleep;

use super::{Cluster, figure, is_long, sized, three_nodes};
use crate::support::load::{Plan, Question, Shot};

three_nodes!(a_flood_of_unknown_keys_costs_the_good_ones_little);

/// A node grows by no more than this while it is flooded.
const GROWTH_MAX_KIB: u64 = 64 * 1024;

const P99_MIN: Duration = Duration::from_millis(5);

async fn a_flood_of_unknown_keys_costs_the_good_ones_little(cluster: Cluster) {
    let lasts = Duration::from_secs(sized(2, 20));
    let rate = sized(300_u32, 2_000);
    let good = cluster.issue(100).await;
    cluster.warm(&good).await;
    let strangers = (0..u64::from(rate) * lasts.as_secs()).map(|_| {
        let key = ApiKey::generate(
            &Prefix::parse("ks").unwrap(),
            &Environment::parse("live").unwrap(),
            &LookupId::new(&Entropy::System),
            &Entropy::System,
        );
        Question::verify(&cluster.owner, key.expose_secret())
    });
    let strangers: Vec<_> = strangers.collect();
    let memory = async || -> Vec<u64> {
        cluster
            .nodes
            .iter()
            .map(|node| node.process.memory_kib())
            .collect()
    };

    let load = cluster.load(sized(100, 500), &good).start().await;
    sleep(lasts).await;
    let baseline = load.stop().await;
    let before = memory().await;
    let load = cluster.load(sized(100, 500), &good).start().await;
    let flood = Plan {
        count: strangers.len() as u64,
        ..Plan::at(rate, cluster.addresses(), strangers)
    };
    let flood = flood.run().await;
    let flooded = load.stop().await;
    let after = memory().await;

    figure(format_args!("before the flood: {baseline}"));
    figure(format_args!("beside the flood: {flooded}"));
    figure(format_args!(
        "the flood: {flood}; KiB {before:?}, then {after:?}"
    ));
    flooded.expect_all_valid("beside a flood");
    // Whatever cannot be looked up is not unknown.
    for Shot { told, .. } in &flood.0 {
        let is_unknown = (told.status, told.code.as_str()) == (200, "unknown");
        assert!(is_unknown || told.status == 503, "{told:?}");
    }
    assert!(flood.count("unknown") > 0);
    // Nor does it stand before who follows the changes.
    for node in &cluster.nodes {
        let log = node.process.log();
        assert!(!log.contains("the database is away"), "{log}");
    }
    for (before, after) in before.iter().zip(after) {
        assert!(
            after <= before + GROWTH_MAX_KIB,
            "{before} KiB grew to {after}"
        );
    }
    let bound = P99_MIN.max(2 * baseline.p99());
    assert!(!is_long() || flooded.p99() <= bound, "{flooded}");
}
