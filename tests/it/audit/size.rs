//! A long chain is verified in bounded time: live and over an export by the command, and a page at a time
//! for who waits for an answer.

use std::fs::File;
use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use keystead::audit::EventFilter;
use keystead::audit::export::ExportFormat;
use keystead::audit::signing::key::AuditKeyBody;
use keystead::audit::verify::Covered;
use tokio::sync::Mutex;

use super::*;
use crate::support::{Home, MASTER_KEY, both, figure, setting};

both!(a_long_chain_is_verified_within_a_minute_and_in_turns);

/// What is measured is alone.
static ALONE: Mutex<()> = Mutex::const_new(());

const WITHIN: Duration = Duration::from_mins(1);

async fn a_long_chain_is_verified_within_a_minute_and_in_turns(home: Home) {
    let _alone = ALONE.lock().await;
    let thousands = if setting("KEYSTEAD_TEST_LONG").is_some() {
        1_000
    } else {
        5
    };
    // That of the command.
    let master = MasterKeys {
        first: MasterKey::new(hex::decode(MASTER_KEY).unwrap().try_into().unwrap()),
        others: Vec::new(),
    };
    let (trail, checkpoints) = Trail::signing_under(&home, 1, master).await;
    for _ in 0..thousands * 4 {
        trail.change(&trail.ours, 250).await.unwrap();
    }
    // With the span of the key, and the export.
    let lines = thousands * 1_000 + 2;
    let export = home.dir().join("export.ndjson");
    export_to(&trail, &export).await;
    trail.sign().await;

    let verify = |arguments: &[&std::path::Path]| {
        let mut command = home.keystead(&["audit", "verify"]);
        command.args(arguments);
        timed(&trail, command)
    };
    let (text, live) = verify(&[]);
    let told = format!("default: whole, {lines} records checked, head {lines} ");
    assert!(text.contains(&told), "{text}");
    let keys = home.dir().join("keys.json");
    let listed: Vec<_> = trail.keys().await.iter().map(AuditKeyBody::from).collect();
    std::fs::write(&keys, json!({"keys": listed}).to_string()).unwrap();
    let [with_export, with_keys, with_checkpoints] =
        ["--export", "--keys", "--checkpoints"].map(std::path::Path::new);
    let (text, offline) = verify(&[
        with_export,
        &export,
        with_keys,
        &keys,
        with_checkpoints,
        &checkpoints,
    ]);
    assert!(text.contains(&format!("{lines} records")), "{text}");
    figure(format_args!(
        "{lines} records of {:?}: verified live in {live:.1?}, over an export in {offline:.1?}",
        home.backend
    ));
    assert!(live < WITHIN && offline < WITHIN, "{live:?}, {offline:?}");

    // For a caller who waits, in turns.
    let (mut next, mut checked, mut turns) = (Some(1), 0, 0);
    while let Some(from) = next {
        let report = trail.audit.verify(&trail.ours.id, from).await.unwrap();
        assert!(report.valid, "{report}");
        checked += report.checked;
        next = report.next_seq;
        turns += 1;
        assert_eq!(report.covers.contains(&Covered::Head), next.is_none());
    }
    assert_eq!(checked, lines);
    figure(format_args!("in {turns} turns for a caller who waits"));
}

async fn export_to(trail: &Trail, path: &std::path::Path) {
    let (filter, format) = (EventFilter::default(), ExportFormat::Ndjson);
    let export = trail.audit.export(at(&trail.ours), filter, format);
    let (mut export, mut file) = (export.await.unwrap(), File::create(path).unwrap());
    while let Some(page) = export.next().await.unwrap() {
        file.write_all(page.as_bytes()).unwrap();
    }
}

/// What it prints, and how long it takes.
fn timed(trail: &Trail, mut command: Command) -> (String, Duration) {
    let started = trail.clock.monotonic();
    let output = command.output().unwrap();
    let took = trail.clock.monotonic() - started;
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{error}");
    (text, took)
}
