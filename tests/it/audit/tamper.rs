//! Whoever writes to the database alone is found, and the first record he touched is named.

use keystead::audit::EventFilter;
use keystead::audit::chain;
use keystead::audit::export::ExportFormat;
use keystead::audit::fault::Fault;
use keystead::db;

use super::Trail;
use crate::support::{Home, both};

/// The lines of a trail before it is tampered with.
const LINES: usize = 14;

/// Tampers with a whole trail by each of `statements`, and expects the first bad record.
async fn found(home: &Home, statements: &[&str], seq: i64, fault: Fault) -> Trail {
    let trail = Trail::of(home, LINES).await;
    tampered(&trail, statements, seq, fault).await;
    trail
}

async fn tampered(trail: &Trail, statements: &[&str], seq: i64, fault: Fault) {
    assert!(trail.report().await.valid, "before");
    for statement in statements {
        trail.sql(statement).await;
    }
    expect(trail, seq, fault).await;
}

async fn expect(trail: &Trail, seq: i64, fault: Fault) {
    let report = trail.report().await;
    let bad = report.first_bad.expect("it is found");
    assert_eq!((bad.seq, bad.fault), (seq, fault), "{bad:?}");
    assert!(!report.valid);
}

both!(
    a_whole_chain_is_valid,
    a_changed_byte_of_a_record_is_named,
    a_changed_column_beside_a_record_is_named,
    a_changed_hash_is_named,
    a_record_with_its_hash_made_anew_is_named,
    a_removed_record_is_named,
    a_removed_record_whose_gap_was_closed_is_named,
    a_removed_last_record_is_named,
    nothing_is_added_to_a_chain_that_does_not_end_as_its_head_says,
    a_cut_tail_is_named,
    an_emptied_chain_is_named,
    a_cut_tail_with_a_rewritten_head_is_a_forged_head,
    swapped_records_are_named,
    an_inserted_record_is_named,
    a_record_added_at_the_end_is_named,
    a_record_before_every_number_is_named,
    a_record_moved_to_another_tenant_is_named_in_both,
    a_chain_made_anew_from_a_record_on_is_found,
    a_removed_head_is_named,
    a_fault_stays_named_when_the_chain_goes_on,
);

async fn a_whole_chain_is_valid(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    let report = trail.report().await;
    assert!(report.valid && report.first_bad.is_none(), "{report}");
    assert_eq!(report.checked, 14);
    let head = report.head.unwrap();
    assert_eq!((head.seq, head.sealed_by_us), (14, true));
    assert!(trail.report_of(&trail.other).await.valid);
}

async fn a_changed_byte_of_a_record_is_named(home: Home) {
    let change = "UPDATE audit_event SET record = replace(record, 'alice', 'alicf') WHERE seq = 5";
    found(&home, &[change], 5, Fault::Altered).await;
}

async fn a_changed_column_beside_a_record_is_named(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    for (column, value) in [
        ("id", "'aud_x'"),
        ("at", "at + 1"),
        ("actor", "'https://idp.example#bob'"),
        ("via", "NULL"),
        ("action", "'key.create'"),
        ("target_kind", "'consumer'"),
        ("target_id", "'key_9'"),
        ("outcome", "'refused'"),
        ("request_id", "'request-2'"),
        ("ip", "NULL"),
    ] {
        trail
            .sql(&format!(
                "CREATE TABLE kept AS SELECT {column} AS kept FROM audit_event WHERE seq = 5"
            ))
            .await;
        let change = format!("UPDATE audit_event SET {column} = {value} WHERE seq = 5");
        tampered(&trail, &[&change], 5, Fault::Altered).await;
        let detail = trail.report().await.first_bad.unwrap().detail;
        assert!(detail.contains(&format!("column {column} ")), "{detail}");
        let restore =
            format!("UPDATE audit_event SET {column} = (SELECT kept FROM kept) WHERE seq = 5");
        trail.sql(&restore).await;
        trail.sql("DROP TABLE kept").await;
    }
    assert!(trail.report().await.valid);
}

async fn a_changed_hash_is_named(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    let (seq, record, prev_hash, hash) = trail.lines().await.swap_remove(4);
    trail.put(seq, &record, &prev_hash, &[1; 32]).await;
    expect(&trail, 5, Fault::Altered).await;
    trail.put(seq, &record, &[1; 32], &hash).await;
    expect(&trail, 5, Fault::Altered).await;
    trail.put(seq, &record, &prev_hash, &hash).await;
    assert!(trail.report().await.valid);
}

async fn a_record_with_its_hash_made_anew_is_named(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    let (seq, record, prev_hash, _) = trail.lines().await.swap_remove(4);
    let record = record.replace("spring", "winter");
    let hash = chain::link(&prev_hash, &record);
    trail.put(seq, &record, &prev_hash, &hash).await;
    expect(&trail, 5, Fault::Altered).await;
}

async fn a_removed_record_is_named(home: Home) {
    let remove = "DELETE FROM audit_event WHERE seq IN (5, 6, 9)";
    let trail = found(&home, &[remove], 5, Fault::Removed).await;
    let report = trail.report().await;
    assert_eq!((report.bad, report.checked), (2, 11));
}

async fn a_removed_record_whose_gap_was_closed_is_named(home: Home) {
    let mut statements = vec!["DELETE FROM audit_event WHERE seq = 5".to_owned()];
    for seq in 6..=14 {
        statements.push(format!(
            "UPDATE audit_event SET seq = {seq} - 1 WHERE seq = {seq}"
        ));
    }
    let statements: Vec<&str> = statements.iter().map(String::as_str).collect();
    found(&home, &statements, 5, Fault::Removed).await;
}

async fn a_removed_last_record_is_named(home: Home) {
    found(
        &home,
        &["DELETE FROM audit_event WHERE seq = 14"],
        14,
        Fault::TailCut,
    )
    .await;
}

/// Else the cut would look like a gap that is older than our next change.
async fn nothing_is_added_to_a_chain_that_does_not_end_as_its_head_says(home: Home) {
    for (n, statement) in [
        "DELETE FROM audit_event WHERE seq = 6",
        "DELETE FROM audit_event WHERE seq > 2",
        "DELETE FROM audit_event",
        "UPDATE audit_event SET seq = 9 WHERE seq = 6",
        "UPDATE audit_event SET hash = prev_hash WHERE seq = 6",
    ]
    .into_iter()
    .enumerate()
    {
        let home = home.empty().await;
        home.db().migrate().await.unwrap();
        let trail = Trail::of(&home, 6).await;
        trail.sql(statement).await;
        let (left, report) = (trail.lines().await, trail.report().await);
        let refused = trail.change(&trail.ours, 1).await;
        assert!(
            matches!(refused, Err(db::Error::AuditBroken(_))),
            "{statement}: {refused:?}"
        );
        assert_eq!(trail.lines().await, left, "{statement}");
        assert_eq!(trail.metrics.security_events.value("audit_broken"), 1);
        assert_eq!(trail.report().await.first_bad, report.first_bad);
        trail.change(&trail.other, 1).await.expect("it is whole");
        trail.reseal().await;
        let taken = trail.change(&trail.ours, 1).await;
        taken.unwrap_or_else(|error| panic!("{n}: {error}"));
    }
}

async fn a_cut_tail_is_named(home: Home) {
    found(
        &home,
        &["DELETE FROM audit_event WHERE seq > 4"],
        5,
        Fault::TailCut,
    )
    .await;
}

async fn an_emptied_chain_is_named(home: Home) {
    found(&home, &["DELETE FROM audit_event"], 1, Fault::TailCut).await;
}

async fn a_cut_tail_with_a_rewritten_head_is_a_forged_head(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    trail.sql("DELETE FROM audit_event WHERE seq > 4").await;
    let (seq, _, _, hash) = trail.lines().await.pop().unwrap();
    trail.forge_head(chain::Head { seq, hash }).await;
    expect(&trail, 4, Fault::HeadForged).await;
    // Nor does our next change seal it.
    let refused = trail.change(&trail.ours, 1).await;
    assert!(
        matches!(refused, Err(db::Error::AuditBroken(_))),
        "{refused:?}"
    );
    expect(&trail, 4, Fault::HeadForged).await;
    assert_eq!(trail.metrics.security_events.value("audit_broken"), 1);
    trail
        .change(&trail.other, 1)
        .await
        .expect("another tenant's chain is whole");
}

async fn swapped_records_are_named(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    for (one, two) in [(4, 9), (5, 6), (13, 14)] {
        let swap = [
            format!("UPDATE audit_event SET seq = -1 WHERE seq = {one}"),
            format!("UPDATE audit_event SET seq = {one} WHERE seq = {two}"),
            format!("UPDATE audit_event SET seq = {two} WHERE seq = -1"),
        ];
        let swap: Vec<&str> = swap.iter().map(String::as_str).collect();
        tampered(&trail, &swap, one, Fault::Swapped).await;
        for statement in swap {
            trail.sql(statement).await;
        }
    }
    // Only the records, below the hashes and columns of each other.
    let lines = trail.lines().await;
    let (_, fourth, prev_hash, hash) = &lines[3];
    trail.put(4, &lines[8].1, prev_hash, hash).await;
    let (_, _, prev_hash, hash) = &lines[8];
    trail.put(9, fourth, prev_hash, hash).await;
    expect(&trail, 4, Fault::Swapped).await;
}

async fn an_inserted_record_is_named(home: Home) {
    // One that links by itself, and one that does not.
    for links in [true, false] {
        let home = home.empty().await;
        home.db().migrate().await.unwrap();
        let trail = Trail::of(&home, LINES).await;
        for seq in (6..=14).rev() {
            trail
                .sql(&format!(
                    "UPDATE audit_event SET seq = {seq} + 1 WHERE seq = {seq}"
                ))
                .await;
        }
        trail
            .sql(
                "INSERT INTO audit_event SELECT tenant_id, 6, 'aud_forged', at, actor, via, action, \
                 target_kind, target_id, outcome, request_id, ip, record, prev_hash, hash, \
                 services \
                 FROM audit_event WHERE seq = 5",
            )
            .await;
        if links {
            let (_, record, _, hash) = trail.lines().await.swap_remove(4);
            let mut event: serde_json::Value = serde_json::from_str(&record).unwrap();
            event["seq"] = 6.into();
            event["id"] = "aud_forged".into();
            let record = event.to_string();
            trail
                .put(6, &record, &hash, &chain::link(&hash, &record))
                .await;
        }
        expect(&trail, 6, Fault::Inserted).await;
        let bad = trail.report().await.first_bad.unwrap();
        assert_eq!(bad.id.as_deref(), Some("aud_forged"));
    }
}

async fn a_record_added_at_the_end_is_named(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    trail
        .sql(
            "INSERT INTO audit_event SELECT tenant_id, 15, 'aud_forged', at, actor, via, action, \
             target_kind, target_id, outcome, request_id, ip, record, prev_hash, hash, \
             services \
             FROM audit_event WHERE seq = 14",
        )
        .await;
    expect(&trail, 15, Fault::Inserted).await;
}

async fn a_record_before_every_number_is_named(home: Home) {
    let first = i64::MIN;
    let forge = format!(
        "INSERT INTO audit_event SELECT tenant_id, {first}, 'aud_forged', at, actor, via, action, \
         target_kind, target_id, outcome, request_id, ip, record, prev_hash, hash, services \
         FROM audit_event WHERE seq = 5"
    );
    let trail = found(&home, &[&forge], first, Fault::Inserted).await;
    let report = trail.report().await;
    assert_eq!((report.bad, report.checked), (1, 15), "{report}");
    // An export has what is there, and a reseal accepts it like any other.
    let export = trail
        .export(EventFilter::default(), ExportFormat::Ndjson)
        .await;
    assert_eq!(export.lines().count(), 16, "with the line of the export");
    assert!(export.starts_with(&format!("{{\"seq\":{first},")));
    trail.reseal().await;
    let report = trail.report().await;
    assert!(report.valid && report.accepted == 1, "{report}");
}

async fn a_record_moved_to_another_tenant_is_named_in_both(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    let other = trail.other.id.as_str().to_owned();
    let steal = format!("UPDATE audit_event SET tenant_id = '{other}' WHERE seq = 5");
    tampered(&trail, &[&steal], 5, Fault::Removed).await;
    let bad = trail.report_of(&trail.other).await.first_bad.unwrap();
    assert_eq!((bad.seq, bad.fault), (5, Fault::Inserted));
}

async fn a_chain_made_anew_from_a_record_on_is_found(home: Home) {
    let trail = Trail::of(&home, LINES).await;
    let (seq, record, prev_hash, hash) = trail.lines().await.swap_remove(4);
    let record = record.replace("spring", "winter");
    trail.put(seq, &record, &prev_hash, &hash).await;
    let head = trail.rehash_from(5).await;
    expect(&trail, 14, Fault::Rehashed).await;
    trail.forge_head(head).await;
    expect(&trail, 14, Fault::HeadForged).await;
}

async fn a_removed_head_is_named(home: Home) {
    let trail = found(&home, &["DELETE FROM audit_head"], 14, Fault::HeadMissing).await;
    let refused = trail.change(&trail.ours, 1).await;
    assert!(
        matches!(refused, Err(db::Error::AuditBroken(_))),
        "{refused:?}"
    );
}

async fn a_fault_stays_named_when_the_chain_goes_on(home: Home) {
    let change = "UPDATE audit_event SET record = replace(record, 'alice', 'alicf') WHERE seq = 5";
    let trail = found(&home, &[change], 5, Fault::Altered).await;
    trail.change(&trail.ours, 2).await.unwrap();
    expect(&trail, 5, Fault::Altered).await;
    // From there on everything holds; before it is another matter.
    let rest = trail.audit.verify(&trail.ours.id, 6).await.unwrap();
    assert!(rest.valid && rest.checked == 11, "{rest}");
    let all = trail.audit.verify(&trail.ours.id, 1).await.unwrap();
    assert_eq!(all.first_bad.unwrap().seq, 5);
}
