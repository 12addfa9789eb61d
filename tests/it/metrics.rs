//! docs/metrics.md says what every metric of a server is, and names no other.

use std::collections::BTreeSet;

use crate::support::{Backend, run};

const MANUAL: &str = include_str!("../../docs/metrics.md");

#[test]
fn the_manual_names_every_metric_of_a_server_and_no_other() {
    run(Backend::Sqlite, async |home| {
        let node = home.spawn(&[]).await;
        let told = node.client().get("/metrics").send().await.text;
        let mut served = BTreeSet::new();
        for line in told.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').expect(line);
            let suffix = if kind == "counter" { "_total" } else { "" };
            served.insert(format!("{name}{suffix}"));
        }
        let named: BTreeSet<String> = MANUAL
            .lines()
            .filter_map(|line| line.strip_prefix("| `keystead_")?.split(['`', '{']).next())
            .map(|name| format!("keystead_{name}"))
            .collect();
        assert!(served.len() > 20, "{told}");
        assert_eq!(served, named);
    });
}
