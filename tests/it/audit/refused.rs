//! Refused attempts leave their lines: the first at once, a flood as one with its count.

use std::time::Duration;

use keystead::audit::chain::Target;
use keystead::audit::{Refusal, Refusals};
use keystead::time::Span;
use tokio::time::Instant;

use super::*;
use crate::support::tables::lines_of;
use crate::support::{Backend, Fault, Home, Proxy, both, run, until};

both!(
    the_first_attempt_is_a_line_at_once_and_a_flood_is_one_more,
    what_is_still_counted_is_written_at_the_end,
    what_cannot_be_written_is_tried_again,
    a_chain_that_takes_no_line_holds_up_no_other,
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

async fn a_chain_that_takes_no_line_holds_up_no_other(home: Home) {
    let trail = Trail::new(&home).await;
    let other = trail.other.id.as_str();
    trail
        .sql(&format!(
            "UPDATE audit_head SET seq = 1 WHERE tenant_id = '{other}'"
        ))
        .await;
    let refusals = Refusals::start(trail.audit.clone());
    let actions = ["key.revoke", "key.update", "key.rotate", "key.disable"];
    for action in actions {
        let ours = refusal(&trail, action);
        refusals.note(Refusal {
            by: at(&trail.other),
            ..ours.clone()
        });
        refusals.note(ours);
    }
    // Without the end of any window.
    let lines = trail.refused(actions.len()).await;
    assert_eq!(lines, actions.map(|action| (action.to_owned(), 1)));
    refusals.stop().await;
}

/// A trail, its refused attempts as a node writes them that reaches the database through a proxy, and one
/// line of them.
async fn through_a_proxy(home: &Home) -> (Trail, Proxy, Refusals) {
    let trail = Trail::new(home).await;
    let proxy = Proxy::before(home.database_address()).await;
    let url = home.database_url_at(proxy.address);
    let url = format!("{url}?application_name={NODE}");
    let db = Db::open(&db::Target::parse(&url).unwrap()).unwrap();
    let audit = Audit::new(db, trail.clock.clone(), Entropy::System, &trail.master);
    let refusals = Refusals::start(audit);
    refusals.note(refusal(&trail, "key.create"));
    trail.refused(1).await;
    (trail, proxy, refusals)
}

/// What its connections are called.
const NODE: &str = "refusing";

/// The windows end, and everything is written that the node thinks is not.
async fn is_written_once(trail: &Trail, refusals: &Refusals) {
    trail.clock.advance(Span::seconds(61));
    refusals.note(refusal(trail, "key.update"));
    trail.refused(3).await;
    refusals.stop().await;
    let once = ["key.create", "key.revoke", "key.update"].map(|action| (action.to_owned(), 1));
    assert_eq!(trail.refused(3).await, once);
}

#[test]
fn a_line_that_takes_longer_than_a_caller_waits_is_written_once() {
    run(Backend::Postgres, async |home: Home| {
        let (trail, mut proxy, refusals) = through_a_proxy(&home).await;
        // Each round trip, of which there are more than five.
        let (round_trip, began) = (Duration::from_millis(400), Instant::now());
        proxy.set(Fault::Delay(round_trip / 2)).await;
        refusals.note(refusal(&trail, "key.revoke"));
        trail.refused(2).await;
        assert!(began.elapsed() > Duration::from_secs(2));
        proxy.set(Fault::None).await;
        is_written_once(&trail, &refusals).await;
    });
}

#[test]
fn a_line_whose_commit_nobody_answers_is_written_once() {
    run(Backend::Postgres, async |home: Home| {
        let (trail, mut proxy, refusals) = through_a_proxy(&home).await;
        proxy.hold_answer("COMMIT");
        refusals.note(refusal(&trail, "key.revoke"));
        proxy.holds().await;
        proxy.set(Fault::Reset).await;
        until(
            Duration::from_secs(10),
            "its connections are gone",
            async || {
                let query = format!(
                    "SELECT CAST(COUNT(*) AS TEXT) AS line FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = '{NODE}'"
                );
                lines_of(home.eyes(), query).await == ["0"]
            },
        )
        .await;
        proxy.release();
        proxy.set(Fault::None).await;
        trail.refused(2).await;
        is_written_once(&trail, &refusals).await;
    });
}
