//! Checkpoints: signed with a key that the database does not hold, once for each end of a chain, and
//! left where the database's writers do not reach.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use futures_util::future::join_all;
use keystead::audit::fault::Fault;
use keystead::audit::outside::{self, Found};
use keystead::audit::signing::key::KeySpan;
use keystead::audit::signing::{Signer, Statement};
use keystead::audit::{Outlet, StatementFilter};
use keystead::page::PageRequest;
use keystead::time::Span;

use super::*;
use crate::support::{Home, both};

both!(
    the_next_master_key_begins_a_span_and_the_former_ends,
    the_key_of_a_lost_master_key_is_adopted_by_its_name_alone,
    a_key_that_somebody_else_wrote_is_none_of_ours,
    an_end_is_signed_once_by_several_nodes,
    a_checkpoint_leaves_the_database,
    a_checkpoint_that_cannot_leave_is_not_stored,
    what_a_full_disk_left_of_a_checkpoint_hides_none,
    checkpoints_are_due_where_a_chain_grew,
    a_forged_checkpoint_does_not_say_that_none_is_due,
    no_end_is_signed_that_we_did_not_seal,
    no_end_is_signed_whose_record_is_gone,
    a_changed_checkpoint_is_named,
    a_chain_made_anew_is_named_between_its_checkpoints,
    a_database_rolled_back_is_found_against_the_file,
    a_roll_back_is_found_after_the_chain_went_on_and_can_be_accepted,
    a_tenant_that_was_removed_with_its_chain_is_found_against_the_file,
);

impl Trail {
    /// A trail that signs, and tells a file.
    pub async fn signing(home: &Home, lines: usize) -> (Self, PathBuf) {
        Self::signing_under(home, lines, master(7, &[])).await
    }

    pub async fn signing_under(home: &Home, lines: usize, master: MasterKeys) -> (Self, PathBuf) {
        let mut trail = Self::under(home, master).await;
        let file = home.dir().join("checkpoints.ndjson");
        let _none_of_a_former_trail = std::fs::remove_file(&file);
        trail.audit = trail.audit.telling(Outlet {
            files: vec![file.clone()],
        });
        trail.audit.begin_key(at(&trail.ours)).await.unwrap();
        // The span of the key is a line, too.
        for _ in 1..lines {
            trail.change(&trail.ours, 1).await.unwrap();
        }
        (trail, file)
    }

    pub async fn sign(&self) -> Statement {
        let made = self.audit.checkpoint(&self.ours).await.unwrap();
        made.statement
    }

    pub async fn keys(&self) -> Vec<KeySpan> {
        self.audit.audit_keys().await.unwrap()
    }

    /// The report of our chain against what a file says.
    pub async fn against(&self, file: &std::path::Path) -> Report {
        let (found, chains) = (found(file), Chains::Of(self.ours.id.clone()));
        verify::verify_against(&self.db, &self.master, &chains, &found)
            .await
            .unwrap()
            .remove(0)
    }

    /// Puts the key of `forger` beside the only one there is, as who writes to the database can.
    async fn insert_key(&self, home: &Home, forger: &Signer) {
        let public_key = hex::encode(forger.public().as_bytes());
        let public_key = match home.backend {
            crate::support::Backend::Sqlite => format!("x'{public_key}'"),
            crate::support::Backend::Postgres => format!("'\\x{public_key}'::bytea"),
        };
        self.sql(&format!(
            "INSERT INTO audit_key SELECT '{}', {public_key}, \"from\", until, mac FROM audit_key",
            forger.public().kid()
        ))
        .await;
    }

    /// Takes a backup of everything about the trail, or puts it in place again.
    async fn backup(&self, restore: bool) {
        for table in ["audit_event", "audit_head", "audit_key", "audit_checkpoint"] {
            if restore {
                self.sql(&format!("DELETE FROM {table}")).await;
                self.sql(&format!("INSERT INTO {table} SELECT * FROM old_{table}"))
                    .await;
            } else {
                self.sql(&format!(
                    "CREATE TABLE old_{table} AS SELECT * FROM {table}"
                ))
                .await;
            }
        }
    }
}

pub fn found(file: &std::path::Path) -> Vec<Found> {
    outside::read("file", &std::fs::read_to_string(file).unwrap())
}

fn faults(report: &Report) -> Vec<(i64, Fault)> {
    let named = report.faults.iter();
    named.map(|bad| (bad.seq, bad.fault)).collect()
}

async fn the_next_master_key_begins_a_span_and_the_former_ends(home: Home) {
    let (old, _) = Trail::signing(&home, 1).await;
    let first = old.sign().await;
    old.clock.advance(Span::hours(1));
    let new = old.with_master(master(8, &[7]));
    for _ in 0..2 {
        new.audit.begin_key(at(&new.ours)).await.unwrap();
    }
    let keys = new.keys().await;
    assert_eq!(keys.len(), 2, "{keys:?}");
    assert!(keys[0].until == Some(keys[1].from) && keys[1].until.is_none());
    let line = new.records().await.pop().unwrap();
    assert_eq!(line["action"], "audit_key.begin");
    assert_eq!(line["target"]["id"], keys[1].public.kid());
    assert_eq!(line["before"]["ended"], json!([keys[0].public.kid()]));
    // A node that was not restarted signs nothing any more; the other does.
    old.change(&old.ours, 1).await.unwrap_err();
    old.audit.checkpoint(&old.ours).await.unwrap_err();
    let second = new.sign().await;
    assert_eq!(
        (first.kid, second.kid),
        (keys[0].public.kid(), keys[1].public.kid())
    );
    // Without the old master key its public half still counts.
    let later = new.with_master(master(8, &[]));
    let report = later.report().await;
    assert!(report.valid && report.checkpoints == 2, "{report}");
    assert_eq!(later.keys().await, keys);
}

async fn the_key_of_a_lost_master_key_is_adopted_by_its_name_alone(home: Home) {
    let (lost, file) = Trail::signing(&home, 4).await;
    lost.sign().await;
    let known = lost.keys().await.remove(0).public.kid();
    // Somebody has put his beside it, and signed the very end of the chain with it.
    let forger = Signer::new(&MasterKey::new([66; 32]));
    lost.insert_key(&home, &forger).await;
    let new = lost.with_master(master(8, &[]));
    let by = at(&new.ours);
    new.audit.reseal(&Chains::All, &by).await.unwrap();
    new.audit.begin_key(by.clone()).await.unwrap();
    let unknown = new.audit.unknown_keys().await.unwrap();
    let named: Vec<String> = unknown.iter().map(|key| key.public.kid()).collect();
    let forged = forger.public().kid();
    assert!(named.len() == 2 && named.contains(&known) && named.contains(&forged));
    assert_eq!(new.keys().await.len(), 1, "a reseal adopts none");
    let report = new.against(&file).await;
    assert!(report.checkpoints == 0 && !report.valid, "{report}");

    let adopt = async |kid: &str| {
        let adopted = new.audit.adopt_keys(by.clone(), &[kid.to_owned()]).await;
        adopted.unwrap()
    };
    assert!(adopt("kid").await.is_empty());
    assert_eq!(adopt(&known).await, std::slice::from_ref(&known));
    assert!(adopt(&known).await.is_empty(), "it is known by now");
    let line = new.records().await.pop().unwrap();
    assert_eq!(line["action"], "audit_key.adopt");
    assert_eq!(line["target"]["id"], known);
    assert_eq!(new.keys().await.len(), 2);
    let unknown = new.audit.unknown_keys().await.unwrap();
    assert_eq!((unknown.len(), unknown[0].public.kid()), (1, forged));
    let report = new.against(&file).await;
    assert!(report.valid && report.checkpoints == 1, "{report}");
}

async fn a_key_that_somebody_else_wrote_is_none_of_ours(home: Home) {
    let (trail, _) = Trail::signing(&home, 4).await;
    let ours = trail.keys().await;
    let forger = Signer::new(&MasterKey::new([66; 32]));
    let head = Head {
        seq: 4,
        hash: vec![6; 32],
    };
    let said = Statement::checkpoint(&forger, "default", &head, trail.clock.now()).unwrap();
    let (id, text) = (trail.ours.id.as_str(), said.canonical().unwrap());
    trail.insert_key(&home, &forger).await;
    trail
        .sql(&format!(
            "INSERT INTO audit_checkpoint VALUES ('{id}', 4, 'checkpoint', 0, '{text}')"
        ))
        .await;
    assert_eq!(trail.keys().await, ours);
    let report = trail.report().await;
    assert_eq!(faults(&report), [(4, Fault::CheckpointForged)], "{report}");
    // Ours needs no row to be known.
    trail.sql("DELETE FROM audit_checkpoint").await;
    trail.sign().await;
    trail.sql("DELETE FROM audit_key").await;
    let report = trail.report().await;
    assert!(report.valid && report.checkpoints == 1, "{report}");
}

async fn an_end_is_signed_once_by_several_nodes(home: Home) {
    let (trail, file) = Trail::signing(&home, 5).await;
    let nodes = (0..6).map(async |_| trail.audit.checkpoint(&trail.ours).await);
    let made: Vec<_> = join_all(nodes).await.into_iter().flatten().collect();
    assert_eq!(made.iter().filter(|made| made.is_new).count(), 1);
    assert!(made.iter().all(|made| made.statement.seq == 5));
    assert_eq!(found(&file).len(), 1);
    let page = PageRequest {
        limit: 10,
        after: None,
    };
    let list = trail
        .audit
        .checkpoints(trail.ours.id.clone(), StatementFilter::default(), page)
        .await
        .unwrap();
    assert_eq!(list.items, [trail.sign().await]);
}

async fn a_checkpoint_leaves_the_database(home: Home) {
    let (trail, file) = Trail::signing(&home, 3).await;
    let first = trail.sign().await;
    trail.change(&trail.ours, 1).await.unwrap();
    let second = trail.sign().await;
    let said: Vec<Statement> = found(&file)
        .into_iter()
        .map(|found| found.statement.unwrap())
        .collect();
    assert_eq!(said, [first, second]);
    let keys = trail.keys().await;
    assert!(said.iter().all(|said| said.verify(&keys).is_ok()));
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

async fn a_checkpoint_that_cannot_leave_is_not_stored(home: Home) {
    let (mut trail, file) = Trail::signing(&home, 3).await;
    let good = trail.audit.clone();
    trail.audit = trail.audit.telling(Outlet {
        files: vec![home.dir().join("no/such/folder/x")],
    });
    trail.audit.checkpoint(&trail.ours).await.unwrap_err();
    assert!(good.checkpoint(&trail.ours).await.unwrap().is_new);
    assert_eq!(found(&file).len(), 1);
}

async fn what_a_full_disk_left_of_a_checkpoint_hides_none(home: Home) {
    let (trail, file) = Trail::signing(&home, 3).await;
    let first = trail.sign().await;
    let half = &first.canonical().unwrap()[..60];
    std::fs::write(&file, format!("{}\n{half}", first.canonical().unwrap())).unwrap();
    trail.change(&trail.ours, 1).await.unwrap();
    let second = trail.sign().await;
    trail.change(&trail.ours, 1).await.unwrap();
    let third = trail.sign().await;
    let said: Vec<Statement> = found(&file)
        .into_iter()
        .map(|found| found.statement.unwrap())
        .collect();
    assert_eq!(said, [first, second, third]);
    let report = trail.against(&file).await;
    assert!(report.valid, "{report}");
}

async fn checkpoints_are_due_where_a_chain_grew(home: Home) {
    let (trail, _) = Trail::signing(&home, 3).await;
    let due = async || trail.audit.checkpoint_due(Span::hours(1)).await.unwrap();
    assert_eq!(due().await, 1, "the other chain is empty");
    trail.change(&trail.ours, 1).await.unwrap();
    assert_eq!(due().await, 0, "the last one is not an hour old");
    trail.clock.advance(Span::hours(1));
    trail.change(&trail.other, 1).await.unwrap();
    assert_eq!(due().await, 2);
    trail.clock.advance(Span::hours(5));
    assert_eq!(due().await, 0, "nothing grew");
}

async fn a_forged_checkpoint_does_not_say_that_none_is_due(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    trail.change(&trail.ours, 3).await.unwrap();
    trail.clock.advance(Span::hours(2));
    let lines = trail.lines().await;
    let told = || trail.metrics.security_events.value("audit_broken");
    let forger = Signer::new(&MasterKey::new([66; 32]));
    // From a time that does not come, and of the very end.
    for (seq, at) in [
        (5, trail.clock.now().plus(Span::days(10_000))),
        (7, trail.clock.now()),
    ] {
        let hash = lines[seq - 1].3.clone();
        let head = Head {
            seq: i64::try_from(seq).unwrap(),
            hash,
        };
        let said = Statement::checkpoint(&forger, "default", &head, at).unwrap();
        let (id, text) = (trail.ours.id.as_str(), said.canonical().unwrap());
        let forge = format!(
            "INSERT INTO audit_checkpoint VALUES ('{id}', {seq}, 'checkpoint', 0, '{text}')"
        );
        trail.sql(&forge).await;
        let before = told();
        trail
            .audit
            .checkpoint_due(Span::hours(1))
            .await
            .unwrap_err();
        trail.audit.checkpoint(&trail.ours).await.unwrap_err();
        assert_eq!(told(), before + 2);
        trail
            .sql(&format!("DELETE FROM audit_checkpoint WHERE seq = {seq}"))
            .await;
    }
    assert_eq!(trail.audit.checkpoint_due(Span::hours(1)).await.unwrap(), 1);
    assert_eq!(found(&file).len(), 2);
}

async fn no_end_is_signed_that_we_did_not_seal(home: Home) {
    let (trail, file) = Trail::signing(&home, 6).await;
    let head = trail.rehash_from(3).await;
    trail.forge_head(head).await;
    let told = || trail.metrics.security_events.value("audit_broken");
    let before = told();
    let refused = trail.audit.checkpoint(&trail.ours).await;
    assert!(
        matches!(refused, Err(db::Error::AuditBroken(_))),
        "{refused:?}"
    );
    assert_eq!(told(), before + 1);
    assert!(!file.exists());
}

async fn no_end_is_signed_whose_record_is_gone(home: Home) {
    let (trail, file) = Trail::signing(&home, 6).await;
    trail.sql("DELETE FROM audit_event WHERE seq = 6").await;
    for refused in [
        trail.audit.checkpoint(&trail.ours).await.err(),
        trail.audit.checkpoint_due(Span::hours(1)).await.err(),
    ] {
        assert!(
            matches!(refused, Some(db::Error::AuditBroken(_))),
            "{refused:?}"
        );
    }
    assert_eq!(trail.metrics.security_events.value("audit_broken"), 2);
    assert!(!file.exists());
}

async fn a_changed_checkpoint_is_named(home: Home) {
    let (trail, _) = Trail::signing(&home, 6).await;
    trail.sign().await;
    trail
        .sql("UPDATE audit_checkpoint SET statement = replace(statement, '\"seq\":6', '\"seq\":5')")
        .await;
    let report = trail.report().await;
    assert_eq!(faults(&report), [(5, Fault::CheckpointForged)], "{report}");
}

async fn a_chain_made_anew_is_named_between_its_checkpoints(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    for _ in 0..10 {
        trail.change(&trail.ours, 1).await.unwrap();
    }
    trail.sign().await;
    trail.change(&trail.ours, 2).await.unwrap();
    let (seq, record, prev_hash, _) = trail.lines().await.swap_remove(6);
    let record = record.replace("spring", "winter");
    trail.put(seq, &record, &prev_hash, &[]).await;
    let head = trail.rehash_from(7).await;
    trail.forge_head(head).await;
    let expected = [(5, Fault::CheckpointDiffers), (16, Fault::HeadForged)];
    let report = trail.report().await;
    assert_eq!(faults(&report), expected, "{report}");
    let bad = report.first_bad.unwrap();
    assert!(bad.detail.contains("up to number 14"), "{}", bad.detail);
    // Who removes the checkpoints as well is found against the file.
    trail.sql("DELETE FROM audit_checkpoint").await;
    let report = trail.report().await;
    assert_eq!(faults(&report), [(16, Fault::HeadForged)]);
    assert_eq!(faults(&trail.against(&file).await), expected);
}

async fn a_database_rolled_back_is_found_against_the_file(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    trail.backup(false).await;
    trail.change(&trail.ours, 3).await.unwrap();
    trail.sign().await;
    assert!(trail.against(&file).await.valid);
    trail.backup(true).await;
    let report = trail.report().await;
    assert!(report.valid, "from within nothing is wrong: {report}");
    let report = trail.against(&file).await;
    assert_eq!(faults(&report), [(5, Fault::RolledBack)], "{report}");
}

async fn a_roll_back_is_found_after_the_chain_went_on_and_can_be_accepted(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    trail.backup(false).await;
    trail.change(&trail.ours, 3).await.unwrap();
    trail.sign().await;
    trail.backup(true).await;
    trail.change(&trail.ours, 2).await.unwrap();
    trail.change(&trail.ours, 5).await.unwrap();
    let report = trail.against(&file).await;
    assert_eq!(faults(&report), [(5, Fault::CheckpointDiffers)], "{report}");

    // An operator who has restored a backup says so, before or after the chain has got that far.
    for lines in [12, 2] {
        trail.backup(true).await;
        trail.change(&trail.ours, lines).await.unwrap();
        let by = at(&trail.ours);
        let found = found(&file);
        let resealed = trail.audit.reseal_against(&Chains::All, &by, &found);
        resealed.await.unwrap();
        let report = trail.against(&file).await;
        assert!(
            report.valid && report.accepted == u64::from(lines == 12),
            "{lines}: {report}"
        );
        trail.change(&trail.ours, 12).await.unwrap();
        let report = trail.against(&file).await;
        assert!(report.valid, "{lines}: {report}");
    }
}

async fn a_tenant_that_was_removed_with_its_chain_is_found_against_the_file(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.sign().await;
    trail.change(&trail.other, 3).await.unwrap();
    trail.audit.checkpoint(&trail.other).await.unwrap();
    let verify = async || {
        let (found, chains) = (found(&file), Chains::All);
        verify::verify_against(&trail.db, &trail.master, &chains, &found)
            .await
            .unwrap()
    };
    assert!(verify().await.iter().all(|report| report.valid));
    for table in ["audit_event", "audit_head", "audit_checkpoint"] {
        trail
            .sql(&format!(
                "DELETE FROM {table} WHERE tenant_id = '{}'",
                trail.other.id
            ))
            .await;
    }
    trail.sql("DELETE FROM tenant WHERE slug = 'other'").await;
    let reports = verify().await;
    assert_eq!(reports.len(), 2);
    assert!(reports[0].valid, "{}", reports[0]);
    assert_eq!(reports[1].tenant.as_deref(), Some("other"));
    assert_eq!(faults(&reports[1]), [(1, Fault::RolledBack)]);
}
