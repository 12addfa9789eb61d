//! A chain that does not verify can be taken back into use, and the trail says what was found.

use keystead::audit::fault::Fault;

use super::*;
use crate::support::{Home, both};

both!(
    a_lost_master_key_is_answered_by_a_reseal,
    a_whole_chain_is_not_resealed,
    an_accepted_fault_is_named_again_if_the_past_changes_again,
    a_cut_tail_keeps_its_numbers,
    a_removed_head_is_made_anew,
    a_line_beyond_the_head_is_accepted_with_the_rest,
    heads_are_renewed_where_nothing_changes,
);

fn operator(trail: &Trail) -> Attribution {
    Attribution {
        actor: Actor::Cli {
            user: "root".to_owned(),
            host: "node-1".to_owned(),
        },
        via: None,
        reason: Some("looked at it".to_owned()),
        ..at(&trail.ours)
    }
}

impl Trail {
    pub(super) async fn reseal(&self) -> Vec<Report> {
        self.audit
            .reseal(&Chains::All, &operator(self))
            .await
            .unwrap()
    }

    async fn resealed(&self) -> Value {
        let line = self.records().await.pop().unwrap();
        assert_eq!(line["action"], "audit.reseal");
        assert_eq!(line["actor"]["user"], "root");
        assert_eq!(line["reason"], "looked at it");
        line["after"].clone()
    }
}

async fn a_lost_master_key_is_answered_by_a_reseal(home: Home) {
    let lost = Trail::of(&home, 3).await;
    let new = lost.with_master(master(8, &[]));
    assert!(new.change(&new.ours, 1).await.is_err());
    let reports = new.reseal().await;
    assert_eq!(reports.len(), 2, "both tenants");
    let bad = new.resealed().await["named"][0].clone();
    assert_eq!(
        (&bad["fault"], &bad["seq"]),
        (&json!("head_forged"), &json!(3))
    );
    new.change(&new.ours, 1).await.unwrap();
    let report = new.report().await;
    assert!(report.valid && report.checked == 5, "{report}");
    assert!(new.report_of(&new.other).await.valid);
}

async fn a_whole_chain_is_not_resealed(home: Home) {
    let trail = Trail::of(&home, 3).await;
    let reports = trail.reseal().await;
    assert!(reports.iter().all(|report| report.valid));
    assert_eq!(trail.lines().await.len(), 3);
}

async fn an_accepted_fault_is_named_again_if_the_past_changes_again(home: Home) {
    let trail = Trail::of(&home, 6).await;
    trail
        .sql("UPDATE audit_event SET actor = 'nobody' WHERE seq = 3")
        .await;
    trail.reseal().await;
    assert_eq!(trail.resealed().await["named"][0]["seq"], 3);
    let report = trail.report().await;
    assert!(report.valid && report.accepted == 1, "{report}");
    trail.change(&trail.ours, 2).await.unwrap();
    assert!(trail.report().await.valid);
    for (statement, seq) in [
        ("UPDATE audit_event SET actor = 'somebody' WHERE seq = 3", 3),
        ("UPDATE audit_event SET actor = 'nobody' WHERE seq = 2", 2),
    ] {
        trail.sql(statement).await;
        let report = trail.report().await;
        assert_eq!(report.first_bad.unwrap().seq, seq);
        assert_eq!(report.accepted, 0);
    }
}

async fn a_cut_tail_keeps_its_numbers(home: Home) {
    let trail = Trail::of(&home, 6).await;
    trail.sql("DELETE FROM audit_event WHERE seq > 4").await;
    trail.reseal().await;
    assert_eq!(trail.resealed().await["named"][0]["fault"], "tail_cut");
    assert_eq!(trail.records().await.pop().unwrap()["seq"], 7);
    trail.change(&trail.ours, 1).await.unwrap();
    let report = trail.report().await;
    assert!(report.valid && report.accepted == 1, "{report}");
}

async fn a_removed_head_is_made_anew(home: Home) {
    let trail = Trail::of(&home, 6).await;
    trail.sql("DELETE FROM audit_head").await;
    trail.reseal().await;
    assert_eq!(trail.resealed().await["named"][0]["fault"], "head_missing");
    trail.change(&trail.ours, 1).await.unwrap();
    trail.change(&trail.other, 1).await.unwrap();
    let report = trail.report().await;
    assert!(report.valid && report.checked == 8, "{report}");
}

async fn a_line_beyond_the_head_is_accepted_with_the_rest(home: Home) {
    let trail = Trail::of(&home, 6).await;
    trail
        .sql(
            "INSERT INTO audit_event SELECT tenant_id, 9, 'aud_forged', at, actor, via, action, \
             target_kind, target_id, outcome, request_id, ip, record, prev_hash, hash, \
             services \
             FROM audit_event WHERE seq = 6",
        )
        .await;
    assert_eq!(
        trail.report().await.first_bad.unwrap().fault,
        Fault::Inserted
    );
    trail.reseal().await;
    assert_eq!(trail.records().await.pop().unwrap()["seq"], 10);
    trail.change(&trail.ours, 1).await.unwrap();
    let report = trail.report().await;
    assert!(report.valid && report.accepted > 0, "{report}");
}

async fn heads_are_renewed_where_nothing_changes(home: Home) {
    let old = Trail::of(&home, 2).await;
    let both = old.with_master(master(8, &[7]));
    assert_eq!(both.audit.renew_heads().await.unwrap(), 2);
    assert_eq!(both.audit.renew_heads().await.unwrap(), 0);
    let new = old.with_master(master(8, &[]));
    new.change(&new.ours, 1).await.unwrap();
    assert!(new.report().await.valid);
    assert_eq!(new.lines().await.len(), 3, "renewing is no change");
    // What nobody opens stays as it is.
    let other = old.with_master(master(9, &[]));
    assert_eq!(other.audit.renew_heads().await.unwrap(), 0);
    assert!(new.report().await.valid);
}
