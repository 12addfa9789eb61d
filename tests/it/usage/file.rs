//! The file of events for a SIEM holds what the ledger took, whatever ends the node.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::recorded::{Asker, BOUND, ask_until_gone, events, stop};
use super::{lines, number};
use crate::support::{Home, both, text, until};

both!(
    the_file_holds_what_the_ledger_took_whatever_ends_the_node,
    a_disk_that_takes_nothing_stops_the_file_alone,
);

/// The lines of all files of events, oldest first.
fn file_lines(path: &Path) -> Vec<Value> {
    let mut texts = Vec::new();
    for number in 0.. {
        let name = match number {
            0 => path.to_owned(),
            n => path.with_extension(format!("ndjson.{n}")),
        };
        match std::fs::read_to_string(name) {
            Ok(text) => texts.push(text),
            Err(_none_further) => break,
        }
    }
    let lines = texts.iter().rev().flat_map(|text| text.lines());
    lines
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect()
}

async fn the_file_holds_what_the_ledger_took_whatever_ends_the_node(home: Home) {
    let path = home.dir().join("siem.ndjson");
    let file = path.display().to_string();
    let mut settings = vec![
        ("USAGE__SINK", "database,file"),
        ("USAGE__FILE", file.as_str()),
        ("USAGE__FILE_BYTES_MAX", "65536"),
        ("USAGE__FILES_KEPT", "1000"),
    ];
    let mut node = home.spawn(&settings).await;
    let address = node.address.clone();
    settings.push(("SERVER__LISTEN", &address));
    let asker = Asker::new(&node.owner()).await;
    for n in 0..3 {
        asker.ask("ks_live_no", &format!("bad-{n}")).await;
    }
    for kill in 0..4 {
        let prefix = format!("kill-{kill}");
        let asking = ask_until_gone(&asker, &prefix, 100_000);
        let killing = async {
            tokio::time::sleep(Duration::from_millis(700 + kill * 211 % 500)).await;
            node.signal("KILL");
        };
        let (answered, ()) = tokio::join!(asking, killing);
        assert!(answered.len() > 20, "{}", answered.len());
        node.ended(BOUND).await;
        node = home.spawn(&settings).await;
    }
    for n in 0..20 {
        let code = asker.ask(&asker.key, &format!("last-{n}")).await;
        assert_eq!(code.as_deref(), Some("valid"));
    }
    stop(node).await;

    let ledger = lines(
        &home,
        "SELECT id || ' ' || request_id || ' ' || tenant_id AS line FROM usage_event",
    )
    .await;
    let ledger: BTreeSet<String> = ledger.into_iter().collect();
    let written = file_lines(&path);
    let shown: BTreeSet<String> = written
        .iter()
        .map(|line| {
            let part = |name: &str| text(line, name);
            format!(
                "{} {} {}",
                part("/id"),
                part("/request_id"),
                part("/tenant_id")
            )
        })
        .collect();
    assert_eq!(shown, ledger);
    assert!(ledger.iter().any(|line| line.contains("last-19")));
    // What a kill doubles are whole batches, which are few.
    assert!(written.len() < ledger.len() * 2, "{}", written.len());
    assert!(written.iter().all(|line| line["path"] == "/invoices/7"));
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(
        path.with_extension("ndjson.1").exists(),
        "it was never full"
    );
}

async fn a_disk_that_takes_nothing_stops_the_file_alone(home: Home) {
    let settings = [
        ("USAGE__SINK", "database,file"),
        ("USAGE__FILE", "/dev/full"),
    ];
    let node = home.spawn(&settings).await;
    let asker = Asker::new(&node.owner()).await;
    for n in 0..30 {
        asker.ask(&asker.key, &format!("full-{n}")).await;
    }
    until(BOUND, "all are in the ledger", async || {
        events(&home).await.len() == 30
    })
    .await;
    until(BOUND, "the metric says so", async || {
        let metrics = node.client().get("/metrics").send().await;
        metrics
            .text
            .contains("\nkeystead_usage_file_events_lost 30\n")
    })
    .await;
    let told = node.log();
    let told: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("the file of events did not take them"))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_event").await, 30);
    stop(node).await;
}
