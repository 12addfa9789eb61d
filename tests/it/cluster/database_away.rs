//! The database does not answer: what is remembered goes on, the rest is refused at once and for no
//! longer than it lasts.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{Cluster, Key, figure, is_long, sized, three_nodes};
use crate::support::load::{Line, percentile};
use crate::support::{Fault, until};

three_nodes!(a_database_that_hangs_fails_no_key_that_is_remembered_and_spoils_none);

/// Whoever asks for another is told so within this, and within more on a machine that is busy.
const REFUSED_WITHIN: Duration = Duration::from_millis(150 + 50);
const REFUSED_WITHIN_BUSY: Duration = Duration::from_millis(150 + 850);

/// How soon a key is loaded after the database is back.
const BACK_WITHIN: Duration = Duration::from_secs(2);

async fn a_database_that_hangs_fails_no_key_that_is_remembered_and_spoils_none(
    mut cluster: Cluster,
) {
    let good = cluster.issue(100).await;
    cluster.warm(&good).await;
    for fault in sized(&[Fault::Hang][..], &[Fault::Hang, Fault::Refuse]) {
        let cold = cluster.issue(sized(5, 30)).await;
        let load = cluster.load(sized(100, 1_000), &good).start().await;
        for node in &mut cluster.nodes {
            node.database.set(*fault).await;
        }
        let began = Instant::now();
        let lasts = sized(Duration::from_secs(3), Duration::from_secs(60));
        let mut took = Vec::new();
        while began.elapsed() < lasts {
            for key in &cold {
                took.push(refused(&cluster, key).await);
            }
            sleep(Duration::from_millis(20)).await;
        }
        for node in &mut cluster.nodes {
            node.database.set(Fault::None).await;
        }
        let (p99, max) = (percentile(took.clone(), 99), percentile(took, 100));
        figure(format_args!(
            "{fault:?}: others refused in p99 {p99:.1?}, max {max:.1?}"
        ));
        assert!(!is_long() || p99 <= REFUSED_WITHIN, "{p99:?}");
        assert!(max <= REFUSED_WITHIN_BUSY, "{max:?}");
        let released = Instant::now();
        // Longer on a machine that is busy.
        let bound = sized(5 * BACK_WITHIN, BACK_WITHIN);
        for (node, key) in cluster
            .nodes
            .iter()
            .flat_map(|node| cold.iter().map(move |key| (node, key)))
        {
            let mut line = Line::to(node.address);
            until(bound, "a key that was refused is valid", async || {
                let told = line.ask(&key.question).await;
                assert!(told.is_valid() || told.status == 503, "{told:?}");
                told.is_valid()
            })
            .await;
        }
        figure(format_args!(
            "{fault:?}: all valid {:.1?} after it",
            released.elapsed()
        ));
        let load = load.stop().await;
        figure(format_args!("{fault:?}: remembered keys: {load}"));
        load.expect_all_valid("while the database was away");
        for node in &cluster.nodes {
            let metrics = node.client.get("/metrics").send().await.text;
            let line = "keystead_decisions_total{outcome=\"unavailable\"} ";
            let undecided = metrics.lines().find_map(|row| row.strip_prefix(line));
            let undecided: usize = undecided.expect(line).parse().unwrap();
            assert!(undecided >= cold.len(), "{undecided}");
        }
    }
}

/// How long it takes until every node has refused it.
async fn refused(cluster: &Cluster, key: &Key) -> Duration {
    let began = Instant::now();
    for told in cluster.ask_all(&key.question).await {
        assert_eq!(told.status, 503, "{told:?}");
    }
    began.elapsed()
}
