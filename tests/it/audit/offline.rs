//! An export is verified without database or master key, and what was done to it is named.

use std::cell::Cell;

use keystead::audit::EventFilter;
use keystead::audit::export::{ExportFormat, ExportLine};
use keystead::audit::fault::Fault;
use keystead::audit::offline::{self, OfflineReport};
use keystead::audit::outside::Found;
use keystead::audit::signing::key::KeySpan;
use keystead::time::Span;

use super::*;
use crate::support::{Home, both};

both!(
    each_way_of_tampering_with_an_export_is_named,
    an_export_behind_its_last_checkpoint_says_what_is_not_proved,
    an_export_of_an_old_backup_is_found,
    a_file_without_a_record_is_named_once,
    a_cut_chain_begins_with_what_was_signed,
    a_cut_never_passes_a_checkpoint_or_a_fault,
    a_chain_that_is_cut_while_it_is_verified_is_whole,
);

/// An export of 12 lines and the line of the export, with checkpoints at 4, 8 and 13.
struct Exported {
    lines: Vec<String>,
    found: Vec<Found>,
    keys: Vec<KeySpan>,
    path: std::path::PathBuf,
}

impl Exported {
    async fn new(home: &Home) -> Self {
        let (trail, file) = Trail::signing(home, 4).await;
        for _ in 0..2 {
            trail.sign().await;
            trail.change(&trail.ours, 4).await.unwrap();
        }
        Self::of(&trail, &file, home).await
    }

    async fn of(trail: &Trail, file: &std::path::Path, home: &Home) -> Self {
        let text = trail
            .export(EventFilter::default(), ExportFormat::Ndjson)
            .await;
        trail.sign().await;
        Self {
            lines: text.lines().map(ToOwned::to_owned).collect(),
            found: super::signed::found(file),
            keys: trail.keys().await,
            path: home.dir().join("export.ndjson"),
        }
    }

    fn verify(&self, lines: &[String]) -> OfflineReport {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&self.path, text).unwrap();
        offline::verify(&self.path, &self.found, &self.keys).unwrap()
    }

    #[track_caller]
    fn expect(&self, what: &str, lines: &[String], expected: &[(i64, Fault)]) {
        let report = self.verify(lines);
        let named: Vec<(i64, Fault)> = report
            .faults
            .iter()
            .map(|bad| (bad.seq, bad.fault))
            .collect();
        assert_eq!(named, expected, "{what}: {report}");
        assert_eq!(report.bad, expected.len() as u64, "{what}");
    }
}

/// The line with its parts changed, and its hash made anew if `links`.
fn changed(line: &str, links: bool, change: impl FnOnce(&mut ExportLine<'static>)) -> String {
    let mut line: ExportLine<'static> = serde_json::from_str::<ExportLine<'_>>(line)
        .map(|line| ExportLine {
            seq: line.seq,
            record: line.record.into_owned().into(),
            prev_hash: line.prev_hash.into_owned().into(),
            hash: line.hash.into_owned().into(),
        })
        .unwrap();
    change(&mut line);
    if links {
        let prev_hash = hex::decode(&*line.prev_hash).unwrap();
        line.hash = hex::encode(chain::link(&prev_hash, &line.record)).into();
    }
    serde_json::to_string(&line).unwrap()
}

fn rewritten(line: &mut ExportLine<'static>) {
    line.record = line.record.replace("spring", "winter").into();
}

/// Makes every hash from the index `from` on anew.
fn rehashed(lines: &[String], from: usize) -> Vec<String> {
    let mut lines = lines.to_vec();
    let mut before = String::new();
    for (index, line) in lines.iter_mut().enumerate().skip(from) {
        *line = changed(line, true, |line| {
            if index == from {
                rewritten(line);
            } else {
                line.prev_hash = before.clone().into();
            }
        });
        let remade: ExportLine<'_> = serde_json::from_str(line).unwrap();
        before = remade.hash.into_owned();
    }
    lines
}

async fn each_way_of_tampering_with_an_export_is_named(home: Home) {
    let export = Exported::new(&home).await;
    let whole = &export.lines;
    assert_eq!(whole.len(), 13);
    let report = export.verify(whole);
    assert_eq!(
        (report.bad, report.checked, report.checkpoints),
        (0, 13, 3),
        "{report}"
    );
    assert_eq!(report.unproved, 0);
    let with = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = whole.clone();
        change(&mut lines);
        lines
    };
    use Fault::{Altered, CheckpointDiffers, Inserted, Removed, RolledBack, Swapped};

    let edited = with(&|lines| lines[5] = changed(&lines[5], false, rewritten));
    export.expect("edited", &edited, &[(6, Altered)]);
    let edited = with(&|lines| lines[5] = changed(&lines[5], true, rewritten));
    export.expect("edited, its hash made anew", &edited, &[(6, Altered)]);
    let edited = with(&|lines| "garbage".clone_into(&mut lines[5]));
    export.expect("no record", &edited, &[(6, Altered)]);
    let edited = with(&|lines| lines[5] = changed(&lines[5], false, |line| line.seq = 60));
    export.expect("another number beside it", &edited, &[(6, Altered)]);

    let removed = with(&|lines| drop(lines.remove(5)));
    export.expect("one removed", &removed, &[(6, Removed)]);
    let removed = with(&|lines| drop(lines.drain(..2)));
    export.expect("the beginning removed", &removed, &[(1, Removed)]);
    let removed = with(&|lines| lines.truncate(9));
    export.expect("truncated", &removed, &[(10, RolledBack)]);
    let removed = with(&|lines| lines[12].truncate(40));
    export.expect("cut in the middle of a line", &removed, &[(13, Altered)]);
    export.expect("nothing left", &[], &[(1, RolledBack)]);

    let swapped = with(&|lines| lines.swap(4, 8));
    export.expect("swapped", &swapped, &[(5, Swapped), (9, Swapped)]);
    let swapped = with(&|lines| lines.swap(5, 6));
    export.expect("neighbours swapped", &swapped, &[(6, Swapped)]);
    let moved = with(&|lines| {
        let line = lines.remove(3);
        lines.insert(9, line);
    });
    export.expect("moved down", &moved, &[(4, Swapped)]);
    let moved = with(&|lines| {
        let line = lines.remove(9);
        lines.insert(3, line);
    });
    export.expect("moved up", &moved, &[(4, Swapped)]);

    let forged = changed(&whole[5], true, |line| {
        line.record = line.record.replace("key_", "key_forged_").into();
    });
    let inserted = with(&|lines| lines.insert(5, forged.clone()));
    export.expect("one put before", &inserted, &[(6, Inserted)]);
    let inserted = with(&|lines| lines.insert(6, forged.clone()));
    export.expect("one put behind", &inserted, &[(6, Inserted)]);
    let copied = with(&|lines| lines.insert(9, lines[2].clone()));
    export.expect("one copied", &copied, &[(3, Inserted)]);

    let strange = with(&|lines| lines.insert(5, "garbage".to_owned()));
    export.expect("no record put before", &strange, &[(6, Inserted)]);
    let strange = with(&|lines| drop(lines.splice(5..5, ["x", "{}"].map(ToOwned::to_owned))));
    export.expect("two of them", &strange, &[(6, Inserted), (6, Inserted)]);
    let spaced = with(&|lines| {
        lines.insert(5, String::new());
        lines.push(" \r".to_owned());
    });
    export.expect("blank lines", &spaced, &[]);

    for (from, seq) in [(2, 1), (5, 5), (10, 9)] {
        let remade = rehashed(whole, from);
        export.expect(
            "made anew from a line on",
            &remade,
            &[(seq, CheckpointDiffers)],
        );
    }
    // One bit of a record's, after which the file is no text.
    let mut bytes = whole.join("\n").into_bytes();
    let before: usize = whole[..5].iter().map(|line| line.len() + 1).sum();
    let name = before + whole[5].find("spring").unwrap();
    bytes[name] ^= 0x80;
    std::fs::write(&export.path, bytes).unwrap();
    let report = offline::verify(&export.path, &export.found, &export.keys).unwrap();
    let bad = &report.faults[0];
    assert_eq!(
        (report.bad, bad.seq, bad.fault),
        (1, 6, Altered),
        "{report}"
    );
    assert!(bad.id.is_some(), "{report}");

    // Checkpoints count for nothing without the keys that the auditor has.
    let without = Exported {
        keys: Vec::new(),
        ..export
    };
    let report = without.verify(&without.lines);
    assert_eq!(report.bad, 3, "{report}");
    assert!(
        report
            .faults
            .iter()
            .all(|bad| bad.fault == Fault::CheckpointForged)
    );
}

async fn an_export_behind_its_last_checkpoint_says_what_is_not_proved(home: Home) {
    let export = Exported::new(&home).await;
    let early = Exported {
        found: export.found[..2].to_vec(),
        ..export
    };
    let report = early.verify(&early.lines);
    assert_eq!((report.bad, report.unproved), (0, 5), "{report}");
    assert!(report.is_proved(), "the first of them: {report}");
}

async fn an_export_of_an_old_backup_is_found(home: Home) {
    let export = Exported::new(&home).await;
    // What the database held when it had five lines: whole in itself.
    export.expect("rolled back", &export.lines[..5], &[(6, Fault::RolledBack)]);
    let told = export.verify(&export.lines[..5]).to_string();
    assert!(told.contains("take a new one"), "{told}");
}

async fn a_file_without_a_record_is_named_once(home: Home) {
    let (trail, _) = Trail::signing(&home, 4).await;
    let csv = trail
        .export(EventFilter::default(), ExportFormat::Csv)
        .await;
    let csv: Vec<String> = csv.lines().map(ToOwned::to_owned).collect();
    assert_eq!(csv.len(), 6);
    // With nothing to hold it against.
    let file = Exported {
        lines: Vec::new(),
        found: Vec::new(),
        keys: trail.keys().await,
        path: home.dir().join("export.ndjson"),
    };
    for (lines, fault, told) in [
        (Vec::new(), Fault::Removed, "the export holds no record"),
        (csv.clone(), Fault::Altered, "it looks like CSV"),
        (csv[1..].to_vec(), Fault::Altered, "is no NDJSON export"),
    ] {
        file.expect(told, &lines, &[(1, fault)]);
        let report = file.verify(&lines).to_string();
        assert!(report.contains(told), "{report}");
    }
}

async fn a_cut_chain_begins_with_what_was_signed(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    trail.change(&trail.ours, 3).await.unwrap();
    let middle = trail.clock.now().plus(Span::hours(1));
    trail.clock.advance(Span::hours(2));
    trail.change(&trail.ours, 3).await.unwrap();
    trail.sign().await;
    let by = at(&trail.ours);
    let said = trail.audit.cut(&Chains::All, middle, &by).await.unwrap();
    assert_eq!(said.len(), 1);
    assert_eq!(
        (said[0].from_seq, said[0].seq, said[0].count),
        (Some(1), 7, Some(7))
    );
    let lines = trail.records().await;
    assert_eq!(lines[0]["seq"], 8);
    let line = lines.last().unwrap();
    assert_eq!(
        (&line["action"], &line["after"]["to_seq"]),
        (&json!("audit.cut"), &json!(7))
    );
    assert_eq!(line["reason"], "spring cleaning");
    let report = trail.against(&file).await;
    assert!(report.valid && report.checked == 4, "{report}");
    let again = trail.audit.cut(&Chains::All, middle, &by).await.unwrap();
    assert!(again.is_empty(), "{again:?}");

    let export = Exported::of(&trail, &file, &home).await;
    export.expect("from the cut on", &export.lines, &[]);
    export.expect("one more gone", &export.lines[1..], &[(8, Fault::Removed)]);

    // Without the statement, and with lines that were cut off put back.
    trail.sql("DELETE FROM audit_event WHERE seq = 8").await;
    let report = trail.report().await;
    assert_eq!(report.first_bad.unwrap().seq, 8);
    trail.sql("DELETE FROM audit_checkpoint").await;
    let report = trail.report().await;
    let bad = report.first_bad.unwrap();
    assert_eq!((bad.seq, bad.fault), (1, Fault::Removed));
}

async fn a_cut_never_passes_a_checkpoint_or_a_fault(home: Home) {
    let (trail, _) = Trail::signing(&home, 4).await;
    let by = at(&trail.ours);
    let later = trail.clock.now().plus(Span::days(1));
    let said = trail.audit.cut(&Chains::All, later, &by).await.unwrap();
    assert!(said.is_empty(), "nothing is signed yet: {said:?}");
    trail.sign().await;
    trail.change(&trail.ours, 3).await.unwrap();
    trail
        .sql("UPDATE audit_event SET record = replace(record, 'alice', 'alicf') WHERE seq = 2")
        .await;
    let refused = trail.audit.cut(&Chains::All, later, &by).await.unwrap_err();
    assert!(
        matches!(refused.error, db::Error::Corrupt(_)),
        "{refused:?}"
    );
    assert_eq!(trail.metrics.security_events.value("audit_broken"), 1);
    assert_eq!(trail.lines().await.len(), 7);
    trail
        .sql("UPDATE audit_event SET record = replace(record, 'alicf', 'alice') WHERE seq = 2")
        .await;
    // A clock that is wrong, a retention that is nothing: what is not signed stays.
    for before in [later, keystead::time::Timestamp::MAX] {
        trail.audit.cut(&Chains::All, before, &by).await.unwrap();
        assert_eq!(trail.records().await[0]["seq"], 5);
    }
    assert_eq!(trail.audit.cut_due(Span::days(0)).await.unwrap(), 0);
    assert!(trail.report().await.valid);
}

async fn a_chain_that_is_cut_while_it_is_verified_is_whole(home: Home) {
    let (trail, _) = Trail::signing(&home, 1).await;
    // Several pages of a verification, of which the cut leaves some lines.
    for _ in 0..12 {
        trail.change(&trail.ours, 500).await.unwrap();
    }
    let middle = trail.clock.now().plus(Span::hours(1));
    trail.clock.advance(Span::hours(2));
    trail.change(&trail.ours, 10).await.unwrap();
    trail.sign().await;
    let is_cut = Cell::new(false);
    let cut = async {
        let by = at(&trail.ours);
        let said = trail.audit.cut(&Chains::All, middle, &by).await.unwrap();
        is_cut.set(true);
        said
    };
    let verify = async || {
        while !is_cut.get() {
            let report = trail.report().await;
            assert!(report.valid, "{report}");
        }
    };
    let all = tokio::join!(cut, verify(), verify(), verify(), verify());
    assert_eq!(all.0[0].seq, 6_001);
    assert!(trail.report().await.valid);
}
