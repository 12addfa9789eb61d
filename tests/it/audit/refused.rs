//! Refused attempts leave their lines: the first at once, a flood as one with its count.

use std::time::Duration;

use keystead::audit::chain::Target;
use keystead::audit::{Refusal, Refusals};
use keystead::time::Span;

use super::*;
use crate::support::{Home, both};

both!(
    the_first_attempt_is_a_line_at_once_and_a_flood_is_one_more,
    what_is_still_counted_is_written_at_the_end,
    what_cannot_be_written_is_tried_again,
);

fn refusal(trail: &Trail, action: &'static str) -> Refusal {
    Refusal {
        by: at(&trail.ours),
        action,
        target: Target {
            kind: "key".to_owned(),
            id: "key_1".to_owned(),
        },
        code: "forbidden",
    }
}

impl Trail {
    /// (action, count) of all lines, once there are `count` of them.
    async fn refused(&self, count: usize) -> Vec<(String, i64)> {
        for _ in 0..400 {
            let records = self.records().await;
            if records.len() >= count {
                return records
                    .iter()
                    .map(|record| {
                        assert_eq!(record["outcome"], "refused");
                        assert_eq!(record["code"], "forbidden");
                        assert_eq!(record["actor"]["subject"], "alice");
                        assert_eq!(record["ip"], "192.0.2.1");
                        let action = record["action"].as_str().unwrap().to_owned();
                        (action, record["count"].as_i64().unwrap())
                    })
                    .collect();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{count} lines never came: {:?}", self.records().await);
    }
}

async fn the_first_attempt_is_a_line_at_once_and_a_flood_is_one_more(home: Home) {
    let trail = Trail::new(&home).await;
    let refusals = Refusals::start(trail.audit.clone());
    for _ in 0..500 {
        refusals.note(refusal(&trail, "key.revoke"));
    }
    refusals.note(refusal(&trail, "key.update"));
    let mut lines = trail.refused(2).await;
    lines.sort();
    let first = |action: &str| (action.to_owned(), 1);
    assert_eq!(lines, [first("key.revoke"), first("key.update")]);
    trail.clock.advance(Span::seconds(61));
    let lines = trail.refused(3).await;
    assert_eq!(lines[2], ("key.revoke".to_owned(), 499));
    assert!(trail.report().await.valid);
    refusals.stop().await;
    assert_eq!(trail.lines().await.len(), 3);
    assert_eq!(trail.metrics.audit_refused.get(), 501);
}

async fn what_is_still_counted_is_written_at_the_end(home: Home) {
    let trail = Trail::new(&home).await;
    let refusals = Refusals::start(trail.audit.clone());
    for _ in 0..10 {
        refusals.note(refusal(&trail, "key.revoke"));
    }
    refusals.stop().await;
    let lines = trail.refused(2).await;
    assert_eq!(lines.iter().map(|(_, count)| count).sum::<i64>(), 10);
    refusals.stop().await;
}

async fn what_cannot_be_written_is_tried_again(home: Home) {
    let trail = Trail::new(&home).await;
    trail.sql("ALTER TABLE audit_event RENAME TO away").await;
    let refusals = Refusals::start(trail.audit.clone());
    for _ in 0..10 {
        refusals.note(refusal(&trail, "key.revoke"));
    }
    for _ in 0..400 {
        if trail.metrics.security_events.value("audit_not_written") > 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(trail.metrics.security_events.value("audit_not_written"), 1);
    trail.sql("ALTER TABLE away RENAME TO audit_event").await;
    trail.clock.advance(Span::seconds(61));
    assert_eq!(trail.refused(1).await, [("key.revoke".to_owned(), 10)]);
    refusals.stop().await;
}
