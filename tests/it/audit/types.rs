//! In SQLite a value may be of any type, whatever its column says: what reads the same and is none of ours is named.

use keystead::audit::EventFilter;
use keystead::audit::export::ExportFormat;
use keystead::audit::fault::Fault;
use keystead::db;

use super::*;
use crate::support::{Backend, Home, run};

fn expect(report: &Report, seq: i64, fault: Fault, told: &str) {
    let bad = report.first_bad.as_ref().expect("it is found");
    assert_eq!((bad.seq, bad.fault), (seq, fault), "{bad:?}");
    assert!(bad.detail.contains(told), "{}", bad.detail);
}

#[test]
fn a_value_of_another_type_is_named() {
    run(Backend::Sqlite, |home: Home| async move {
        let trail = Trail::of(&home, 14).await;
        for (column, ours, other) in [
            ("id", "TEXT", "BLOB"),
            ("at", "BIGINT", "BLOB"),
            ("actor", "TEXT", "BLOB"),
            ("via", "TEXT", "BLOB"),
            ("action", "TEXT", "BLOB"),
            ("target_kind", "TEXT", "BLOB"),
            ("target_id", "TEXT", "BLOB"),
            ("outcome", "TEXT", "BLOB"),
            ("request_id", "TEXT", "BLOB"),
            ("ip", "TEXT", "BLOB"),
            ("record", "TEXT", "BLOB"),
            ("prev_hash", "BLOB", "TEXT"),
            ("hash", "BLOB", "TEXT"),
        ] {
            assert!(trail.report().await.valid, "before {column}");
            let cast = |to: &str| {
                format!("UPDATE audit_event SET {column} = CAST({column} AS {to}) WHERE seq = 5")
            };
            trail.sql(&cast(other)).await;
            let report = trail.report().await;
            expect(
                &report,
                5,
                Fault::Altered,
                &format!("the column {column} is of another"),
            );
            assert_eq!(report.bad, 1, "{report}");
            trail.sql(&cast(ours)).await;
        }
        assert!(trail.report().await.valid);
        // What a reseal accepted is not what somebody does to the same record afterwards.
        let cast = |column: &str| {
            format!("UPDATE audit_event SET {column} = CAST({column} AS BLOB) WHERE seq = 5")
        };
        trail.sql(&cast("action")).await;
        trail.reseal().await;
        let report = trail.report().await;
        assert!(report.valid && report.accepted == 1, "{report}");
        trail.sql(&cast("outcome")).await;
        expect(&trail.report().await, 5, Fault::Altered, "column action");
    });
}

#[test]
fn a_number_that_is_no_whole_one_is_named() {
    run(Backend::Sqlite, |home: Home| async move {
        let trail = Trail::of(&home, 14).await;
        trail.change(&trail.ours, 1_000).await.unwrap();
        let moved = async |from: &str, to: &str| {
            trail
                .sql(&format!(
                    "UPDATE audit_event SET seq = {to} WHERE seq = {from}"
                ))
                .await;
        };
        // Also at the end of a page.
        for seq in [5, 1_000, 1_001] {
            moved(&seq.to_string(), &format!("{seq}.5")).await;
            expect(&trail.report().await, seq, Fault::Altered, "column seq");
            moved(&format!("{seq}.5"), &seq.to_string()).await;
        }
        assert!(trail.report().await.valid);
        moved("7", "CAST('7' AS BLOB)").await;
        let report = trail.report().await;
        expect(&report, 7, Fault::Removed, "number 7 is missing");
        let beyond = &report.faults[1];
        assert_eq!((beyond.seq, beyond.fault), (7, Fault::Inserted));
        assert!(beyond.detail.contains("delete its row"), "{beyond}");
        let resealed = trail.reseal().await;
        let found: u64 = resealed.iter().map(|report| report.bad).sum();
        assert_eq!(found, 2, "what a verification finds");
        trail
            .sql("DELETE FROM audit_event WHERE typeof(seq) = 'blob'")
            .await;
        trail.change(&trail.ours, 1).await.unwrap();
    });
}

/// Nor does who looks go round and round.
#[test]
fn many_records_between_two_numbers_are_passed() {
    run(Backend::Sqlite, |home: Home| async move {
        let trail = Trail::of(&home, 14).await;
        trail
            .sql(
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 2500) \
                 INSERT INTO audit_event SELECT tenant_id, 5 + n / 3000.0, 'aud_' || n, at, actor, via, \
                 action, target_kind, target_id, outcome, request_id, ip, record, prev_hash, hash, \
                 services FROM n JOIN audit_event ON seq = 5",
            )
            .await;
        let report = trail.report().await;
        assert!(!report.valid && report.bad >= 1_000, "{report}");
        let (filter, format) = (EventFilter::default(), ExportFormat::Ndjson);
        let export = trail.export(filter, format).await;
        assert!(export.lines().count() > 500);
    });
}

#[test]
fn a_head_of_another_type_is_a_forged_one() {
    run(Backend::Sqlite, |home: Home| async move {
        let trail = Trail::of(&home, 4).await;
        for (column, other) in [("seq", "BLOB"), ("hash", "TEXT"), ("mac", "TEXT")] {
            trail
                .sql(&format!(
                    "UPDATE audit_head SET {column} = CAST({column} AS {other})"
                ))
                .await;
            let report = trail.report().await;
            let end = report.head.as_ref().unwrap().seq;
            expect(&report, end, Fault::HeadForged, "MAC");
            let refused = trail.change(&trail.ours, 1).await;
            assert!(
                matches!(refused, Err(db::Error::AuditBroken(_))),
                "{refused:?}"
            );
            trail.reseal().await;
            assert!(trail.report().await.valid, "{column}");
            trail.change(&trail.ours, 1).await.unwrap();
        }
    });
}

#[test]
fn a_record_whose_tenant_is_in_bytes_ends_no_look_at_all_chains() {
    run(Backend::Sqlite, |home: Home| async move {
        let trail = Trail::of(&home, 4).await;
        trail
            .sql("UPDATE audit_event SET tenant_id = CAST(tenant_id AS BLOB) WHERE seq = 2")
            .await;
        let reports = verify::verify(&trail.db, &trail.master, &Chains::All);
        let reports = reports.await.unwrap();
        assert_eq!(reports.len(), 2);
        let ours = reports.iter().find(|report| !report.valid).unwrap();
        expect(ours, 2, Fault::Removed, "number 2 is missing");
    });
}
