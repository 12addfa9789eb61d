//! What is old is cut by itself, and no clock that jumps cuts what is not.

use std::fs;
use std::sync::atomic::Ordering;

use keystead::audit::cut::EndedEarly;
use keystead::audit::signing::StatementKind;
use keystead::time::Span;
use keystead::usage::{Record, Rules};

use super::signed::found;
use super::*;
use crate::support::tables::{execute_on, lines_of};
use crate::support::{Backend, Home, both};
use crate::usage::{DAY_MS, batch, number, record, speak_for, store};

both!(
    retention_follows_no_clock_that_jumps,
    a_chain_that_is_not_cut_keeps_no_other_from_it,
    what_a_file_does_not_take_of_a_cut_is_told_again,
    events_go_while_a_chain_takes_no_line_and_counts_stay,
    what_was_cut_before_a_failure_is_told,
);

async fn retention_follows_no_clock_that_jumps(home: Home) {
    let trail = Trail::new(&home).await;
    let Clock::Shifted(moved_ms) = &trail.clock else {
        panic!("a clock of a test");
    };
    let day_ms = Span::days(1).millis();
    let years = 5 * 365 * day_ms;
    // A line each ten days of three months, up to now.
    moved_ms.store(-90 * day_ms, Ordering::SeqCst);
    trail.audit.begin_key(at(&trail.ours)).await.unwrap();
    for days_ago in (0..=8).rev().map(|ten| ten * 10) {
        moved_ms.store(-days_ago * day_ms, Ordering::SeqCst);
        trail.change(&trail.ours, 1).await.unwrap();
    }
    trail.sign().await;
    let told = || trail.metrics.security_events.value("clock_jumped");
    let due = async || trail.audit.cut_due(Span::days(45)).await.unwrap();
    let is_right = async || {
        moved_ms.store(0, Ordering::SeqCst);
        trail.lines().await.len()
    };
    let knows = home.backend == Backend::Postgres;

    moved_ms.store(years, Ordering::SeqCst);
    // Also after a start by that clock, which is a line, and when it goes on like that for days.
    for _ in 0..3 {
        let lines = trail.lines().await.len();
        if knows {
            // What is old by the clock of the database goes, and no more.
            assert_eq!(due().await, usize::from(lines == 10));
        } else {
            assert_eq!(due().await, 0);
        }
        trail.change(&trail.other, 1).await.unwrap();
        trail.clock.advance(Span::days(1));
    }
    assert_eq!(told() > 0, !knows);
    let kept = is_right().await;
    // The last forty days, and what says that the others were cut.
    assert_eq!(kept, if knows { 5 + 1 } else { 10 });
    if !knows {
        assert_eq!(due().await, 1);
        assert_eq!(is_right().await, 5 + 1);
    }
    let first = trail.records().await.remove(0);
    assert_eq!(first["seq"], 6);
    assert!(trail.report().await.valid);
    assert_eq!(due().await, 0);
}

async fn a_chain_that_is_not_cut_keeps_no_other_from_it(home: Home) {
    let trail = Trail::new(&home).await;
    let Clock::Shifted(moved_ms) = &trail.clock else {
        panic!("a clock of a test");
    };
    moved_ms.store(-90 * DAY_MS, Ordering::SeqCst);
    trail.audit.begin_key(at(&trail.ours)).await.unwrap();
    for days_ago in [60, 20, 0] {
        moved_ms.store(-days_ago * DAY_MS, Ordering::SeqCst);
        for tenant in [&trail.ours, &trail.other] {
            trail.change(tenant, 2).await.unwrap();
        }
    }
    // The one that comes first.
    let (broken, whole) = if trail.ours.id < trail.other.id {
        (&trail.ours, &trail.other)
    } else {
        (&trail.other, &trail.ours)
    };
    trail
        .sql(&format!(
            "UPDATE audit_event SET actor = 'nobody' WHERE seq = 2 AND tenant_id = '{}'",
            broken.id
        ))
        .await;
    // What a reseal has accepted is evidence as well.
    trail.reseal().await;
    trail.audit.checkpoint_all(&Chains::All).await.unwrap();
    let before = trail.report_of(broken).await;
    assert!(before.valid && before.accepted == 1, "{before}");
    let due = trail.audit.cut_due(Span::days(45)).await;
    assert!(matches!(due, Err(db::Error::Corrupt(_))), "{due:?}");
    let kept = trail.report_of(broken).await;
    assert_eq!(kept.checked, before.checked, "{kept}");
    let cut = trail.report_of(whole).await;
    // Those of the last forty-five days, and the line that says so.
    assert!(cut.valid && cut.checked == 4 + 1, "{cut}");
    // What was signed of the others is told with the error.
    let (before, by) = (trail.clock.now().minus(Span::days(10)), at(&trail.ours));
    let EndedEarly { statements, error } = trail
        .audit
        .cut(&Chains::All, before, &by)
        .await
        .unwrap_err();
    assert!(matches!(error, db::Error::Corrupt(_)), "{error}");
    assert_eq!(statements.len(), 1, "{statements:?}");
}

async fn what_a_file_does_not_take_of_a_cut_is_told_again(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    let aside = file.with_extension("aside");
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    let (later, by) = (trail.clock.now().plus(Span::days(1)), at(&trail.ours));
    let cut = trail.audit.cut(&Chains::All, later, &by).await.unwrap_err();
    assert!(matches!(cut.error, db::Error::Unavailable(_)), "{cut:?}");
    assert_eq!(trail.records().await[0]["seq"], 5, "it is committed");
    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    for _ in 0..2 {
        let signed = trail.audit.checkpoint_due(Span::hours(1)).await.unwrap();
        assert_eq!(signed, 0);
        let told = found(&file)
            .into_iter()
            .map(|found| found.statement.unwrap());
        let told: Vec<_> = told.map(|said| (said.kind, said.seq)).collect();
        let expected = [(StatementKind::Checkpoint, 4), (StatementKind::Cut, 4)];
        assert_eq!(told, expected);
    }
}

async fn count(home: &Home, action: &str) -> String {
    let query =
        format!("SELECT CAST(COUNT(*) AS TEXT) AS line FROM audit_event WHERE action = '{action}'");
    lines_of(home.eyes(), query).await.remove(0)
}

/// Uses of each of these tenants 402 days ago and now, of which the old ones are due to go.
async fn old_uses(home: &Home, clock: &Clock, tenants: &[&str]) {
    let now = clock.now().millis();
    for (number, days_ago) in [(1, 402), (2, 0)] {
        let records = tenants.iter().map(|tenant| Record {
            tenant_id: (*tenant).to_owned(),
            ..record(now - days_ago * DAY_MS, "key_1")
        });
        let batch = batch("a", number, records.collect());
        store(home.usage_eyes(), &batch, &Rules::default()).await;
    }
    speak_for(home, clock.now()).await;
}

async fn events_go_while_a_chain_takes_no_line_and_counts_stay(home: Home) {
    let server = home.serve().await;
    let new = json!({"slug": "other"});
    let other = server.owner().create("/v1/tenants", new).await;
    let other = other["id"].as_str().unwrap();
    let default = server.app.tenants.default().await.unwrap().id;
    old_uses(&home, &server.clock, &[default.as_str(), other]).await;
    let step = async |step: &str| {
        let sql = format!("UPDATE audit_head SET seq = seq {step} WHERE tenant_id = '{other}'");
        execute_on(home.eyes(), &sql).await;
    };
    let events = async || number(&home, "SELECT COUNT(*) FROM usage_event").await;
    let counts = async || number(&home, "SELECT COUNT(*) FROM usage_hour").await;
    assert_eq!((events().await, counts().await), (4, 4));

    step("+ 1").await;
    for _ in 0..2 {
        server.app.cut_uses().await.unwrap();
        assert_eq!((events().await, counts().await), (2, 4));
        assert_eq!(count(&home, "usage.cut").await, "1");
        assert_eq!(
            count(&home, "usage.counts_cut").await,
            "1",
            "it is said once"
        );
    }
    step("- 1").await;
    server.app.cut_uses().await.unwrap();
    assert_eq!((events().await, counts().await), (2, 2));
    assert_eq!(count(&home, "usage.counts_cut").await, "2");
}

async fn what_was_cut_before_a_failure_is_told(home: Home) {
    let server = home.serve().await;
    let default = server.app.tenants.default().await.unwrap().id;
    old_uses(&home, &server.clock, &[default.as_str()]).await;
    let later = server.clock.now().millis() - 401 * DAY_MS;
    let eyes = home.usage_eyes();
    let used = Record {
        tenant_id: default.to_string(),
        ..record(later, "key_1")
    };
    store(eyes, &batch("a", 3, vec![used]), &Rules::default()).await;
    // The second of two hours can't go.
    let (keep, let_go) = match home.backend {
        Backend::Sqlite => (
            format!(
                "CREATE TRIGGER stays BEFORE DELETE ON usage_event WHEN OLD.at = {later} \
                 BEGIN SELECT RAISE(ABORT, 'it stays'); END"
            ),
            "DROP TRIGGER stays",
        ),
        Backend::Postgres => (
            format!(
                "CREATE VIEW stays AS SELECT * FROM usage_event_h{}",
                later.div_euclid(3_600_000)
            ),
            "DROP VIEW stays",
        ),
    };
    execute_on(eyes, &keep).await;
    server.app.cut_uses().await.unwrap_err();
    execute_on(eyes, let_go).await;
    let events = async || number(&home, "SELECT COUNT(*) FROM usage_event").await;
    let told = async || {
        (
            server.app.metrics.usage.hours_cut.get(),
            count(&home, "usage.cut").await,
        )
    };
    assert_eq!((events().await, told().await), (2, (1, "1".to_owned())));
    server.app.cut_uses().await.unwrap();
    assert_eq!((events().await, told().await), (1, (2, "2".to_owned())));
}
