//! The node is killed in the midst of changes.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::support::{Home, both};

both!(a_kill_loses_no_acknowledged_change_and_leaves_none_without_its_line);

/// The node is killed at a random moment while keys are made, again and again.
async fn a_kill_loses_no_acknowledged_change_and_leaves_none_without_its_line(home: Home) {
    let first = home.spawn(&[]).await;
    let key = std::fs::read_to_string(first.data_dir.join("owner.key")).expect("the owner key");
    let key = key.trim();
    catalogue(&first.owner()).await;
    drop(first);

    let mut acknowledged = Vec::new();
    for round in 0..5_u64 {
        let mut node = home.spawn(&[]).await;
        let owner = node.client().with_key(key);
        let making = tokio::spawn(async move {
            let mut made = Vec::new();
            for _ in 0..40 {
                match owner.post("/v1/keys").json(new_key()).try_send().await {
                    Some(answer) if answer.status == 201 => {
                        made.push(text(&answer.body, "/key/id"))
                    }
                    Some(_) | None => break,
                }
            }
            made
        });
        // Different in each round: some kills meet the first change, some the last.
        tokio::time::sleep(Duration::from_millis(20 + round * 130)).await;
        node.signal("KILL");
        node.ended(Duration::from_secs(10)).await;
        acknowledged.extend(making.await.expect("it does not panic"));
    }

    let node = home.spawn(&[]).await;
    let owner = node.client().with_key(key);
    for id in &acknowledged {
        owner
            .get(&format!("/v1/keys/{id}"))
            .send()
            .await
            .expect(200);
    }
    let keys = all(&owner, "/v1/keys?consumer=acme").await;
    let lines = all(&owner, "/v1/audit/events?action=key.create").await;
    let with_line: std::collections::BTreeSet<String> =
        lines.iter().map(|line| text(line, "/target/id")).collect();
    for key in &keys {
        assert!(
            with_line.contains(&text(key, "/id")),
            "a key without its line: {key}"
        );
    }
    // The owner's own key is another consumer's.
    assert_eq!(with_line.len(), keys.len() + 1, "a line without its key");
    let report = owner
        .post("/v1/audit/verify")
        .json(json!({}))
        .send()
        .await
        .expect(200);
    assert_eq!(report["valid"], true, "{report}");
}

async fn all(owner: &Client, path: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut next = format!("{path}&limit=200");
    loop {
        let page = owner.get(&next).send().await.expect(200);
        items.extend(page["items"].as_array().expect("a page").iter().cloned());
        match page["next_cursor"].as_str() {
            Some(cursor) => next = format!("{path}&limit=200&cursor={cursor}"),
            None => return items,
        }
    }
}
