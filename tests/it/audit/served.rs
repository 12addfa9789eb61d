//! The whole of it over HTTP and the command line: signed, exported, verified by somebody who has
//! neither the database nor the master key, and cut.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::tables::execute;
use crate::support::{BINARY, Home, both, text};

both!(
    an_auditor_proves_an_export_with_public_keys_alone,
    what_lies_behind_the_end_is_not_verified,
    checkpoints_are_made_on_demand_and_listed,
    free_text_is_no_formula_in_an_export,
    a_change_that_a_broken_trail_cannot_take_is_told_so,
    commands_sign_verify_and_cut,
);

/// `keystead audit` with nothing in its environment.
fn offline(home: &Home, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.arg("audit").args(arguments).current_dir(home.dir());
    command.env_clear().output().unwrap()
}

fn shown(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

async fn an_auditor_proves_an_export_with_public_keys_alone(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    for slug in ["one", "two", "three"] {
        owner.create("/v1/consumers", json!({"slug": slug})).await;
    }
    let exported = owner.get("/v1/audit/export").send().await;
    assert_eq!(exported.status, 200, "{exported}");
    let signed = owner.post("/v1/audit/checkpoints").send().await.expect(201);
    let keys = owner.get("/v1/audit/keys").send().await.expect(200);
    let file = |name: &str, text: &str| std::fs::write(home.dir().join(name), text).unwrap();
    file("audit.ndjson", &exported.text);
    file("checkpoints.ndjson", &format!("{signed}\n"));
    file("keys.json", &keys.to_string());
    let verify = |export: &str| {
        let files = ["--checkpoints", "checkpoints.ndjson", "--keys", "keys.json"];
        offline(
            &home,
            &[&["verify", "--export", export], &files[..]].concat(),
        )
    };
    let output = verify("audit.ndjson");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(shown(&output).starts_with("default: whole, "), "{output:?}");
    assert!(shown(&output).contains("1 checkpoints fit\n"), "{output:?}");

    let lines: Vec<&str> = exported.text.lines().collect();
    for (what, lines, fault) in [
        (
            "removed",
            [&lines[..2], &lines[3..]].concat(),
            "number 3 (-): removed",
        ),
        (
            "truncated",
            lines[..lines.len() - 1].to_vec(),
            "rolled_back",
        ),
        (
            "swapped",
            [&lines[..1], &[lines[2], lines[1]], &lines[3..]].concat(),
            "swapped",
        ),
    ] {
        file("bad.ndjson", &(lines.join("\n") + "\n"));
        let output = verify("bad.ndjson");
        assert_eq!(output.status.code(), Some(1), "{what}: {output:?}");
        assert!(shown(&output).contains(fault), "{what}: {output:?}");
    }
    // One bit, after which the file is no text.
    let mut bytes = exported.text.clone().into_bytes();
    bytes[lines[0].len() + 60] ^= 0x80;
    std::fs::write(home.dir().join("bad.ndjson"), bytes).unwrap();
    let output = verify("bad.ndjson");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(shown(&output).contains("first bad record: number 2 ("));
    file("none.ndjson", "");
    // Who has the file alone can make it anew from the first record on.
    let files = ["--checkpoints", "none.ndjson", "--keys", "keys.json"];
    let alone = ["verify", "--export", "audit.ndjson"];
    let output = offline(&home, &[&alone, &files[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        shown(&output).starts_with("default: NOT PROVED, "),
        "{output:?}"
    );

    // The wrong file, or one that was emptied, says nothing about the trail, and does not pass for one that fits.
    for wrong in ["audit.ndjson", "none.ndjson"] {
        let good = ["--checkpoints", "checkpoints.ndjson", "--keys", "keys.json"];
        let files = [&["--checkpoints", wrong], &good[..]].concat();
        let output = offline(&home, &[&alone, &files[..]].concat());
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(shown(&output).contains(": whole, "), "{output:?}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            told.contains(&format!("{wrong}: holds no checkpoint")),
            "{told}"
        );
        // Nor does it hide what is wrong.
        let bad = ["verify", "--export", "bad.ndjson"];
        let output = offline(&home, &[&bad, &files[..]].concat());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(shown(&output).contains("first bad record: number 2 ("));
    }

    file("empty.ndjson", "");
    let nothing = ["verify", "--export", "empty.ndjson"];
    let output = offline(&home, &[&nothing, &files[..]].concat());
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(shown(&output).contains("holds no record"), "{output:?}");
}

async fn what_lies_behind_the_end_is_not_verified(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    owner.create("/v1/consumers", json!({"slug": "one"})).await;
    let verify = async |from: i64| {
        let asked = owner.post("/v1/audit/verify");
        asked.json(json!({"from_seq": from})).send().await
    };
    let report = verify(1).await.expect(200);
    let end = report["head"]["seq"].as_i64().unwrap();
    let last = verify(end).await.expect(200);
    assert_eq!(
        (&last["valid"], &last["checked"]),
        (&json!(true), &json!(1))
    );
    for from in [end + 1, 99_999, i64::MAX] {
        let refused = verify(from).await.expect(400);
        let error = &refused["errors"][0];
        assert_eq!(error["pointer"], "/from_seq", "{refused}");
        let detail = text(error, "/detail");
        assert!(
            detail.contains(&format!("at most {end},")),
            "{detail}, but the end is {end}"
        );
    }
}

async fn checkpoints_are_made_on_demand_and_listed(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let first = owner.post("/v1/audit/checkpoints").send().await.expect(201);
    let again = owner.post("/v1/audit/checkpoints").send().await.expect(200);
    assert_eq!(first, again, "nothing was added");
    owner.create("/v1/consumers", json!({"slug": "one"})).await;
    let second = owner.post("/v1/audit/checkpoints").send().await.expect(201);
    let list = owner.get("/v1/audit/checkpoints").send().await.expect(200);
    assert_eq!(list["items"], json!([second, first]));
    let cuts = owner.get("/v1/audit/checkpoints?kind=cut").send().await;
    assert_eq!(cuts.expect(200)["items"], json!([]));
    let keys = owner.get("/v1/audit/keys").send().await.expect(200);
    assert_eq!(keys["keys"][0]["kid"], second["kid"]);
    assert_eq!(
        (&keys["keys"][0]["until"], &keys["keys"][1]),
        (&json!(null), &json!(null))
    );
    let file = server.app.config.statement_files().remove(0);
    let said = std::fs::read_to_string(file).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    let report = owner.post("/v1/audit/verify").send().await.expect(200);
    assert_eq!(
        (&report["valid"], &report["checkpoints"]),
        (&json!(true), &json!(2))
    );
}

/// The newest record goes, while its head stays.
const CUT: &str = "DELETE FROM audit_event WHERE seq = (SELECT MAX(seq) FROM audit_event)";

async fn a_change_that_a_broken_trail_cannot_take_is_told_so(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let refused = async |path: &str, body: Value| {
        let ask = || owner.post(path).json(body.clone()).send();
        let mut told = ask().await;
        for _ in 0..20 {
            if told.code() != "busy" {
                break;
            }
            // On a slow machine.
            told = ask().await;
        }
        assert_eq!((told.status, told.code()), (503, "audit_broken"), "{told}");
        assert_eq!(told.headers["retry-after"], "30");
        let detail = text(&told.body, "/detail");
        assert!(detail.contains("keystead audit verify"), "{detail}");
        owner.get("/v1/consumers").send().await.expect(200);
        let report = owner.post("/v1/audit/verify").send().await.expect(200);
        assert_eq!(report["valid"], false, "{report}");
    };
    execute(&home, "UPDATE audit_head SET seq = seq - 1").await;
    refused("/v1/consumers", json!({"slug": "one"})).await;
    refused("/v1/audit/checkpoints", json!({})).await;
    execute(&home, "UPDATE audit_head SET seq = seq + 1").await;
    owner.create("/v1/consumers", json!({"slug": "two"})).await;
    execute(&home, CUT).await;
    refused("/v1/consumers", json!({"slug": "three"})).await;
}

async fn free_text_is_no_formula_in_an_export(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let texts = [
        "=HYPERLINK(\"http://x\")",
        "+1",
        "-1",
        "@SUM(A1)",
        "a,\"b\"",
        "\u{2028}=1",
    ];
    for (count, text) in texts.iter().enumerate() {
        let body = json!({"slug": format!("c{count}"), "name": text, "reason": text});
        let made = owner.post("/v1/consumers").header("user-agent", "=1+1");
        made.json(body).send().await.expect(201);
    }
    let export = owner.get("/v1/audit/export?format=csv&action=consumer.create");
    let export = export.header("audit-reason", "=1+1").send().await;
    assert_eq!(export.status, 200, "{export}");
    assert_eq!(
        export.text.lines().count(),
        2 + texts.len(),
        "{}",
        export.text
    );
    let mut reader = csv::Reader::from_reader(export.text.as_bytes());
    let mut reasons = Vec::new();
    for row in reader.records() {
        let row = row.unwrap();
        assert!(
            row.iter()
                .all(|cell| !cell.starts_with(['=', '+', '-', '@', '\t', '\r']))
        );
        // The consumer of the owner key was made without a reason.
        reasons.extend((!row[14].is_empty()).then(|| row[14].to_owned()));
    }
    assert_eq!(reasons[0], "'=HYPERLINK(\"http://x\")");
    assert_eq!(reasons[5], "'\\u2028=1");
    for refused in ["format=xml", "formt=csv", "limit=5"] {
        let told = owner
            .get(&format!("/v1/audit/export?{refused}"))
            .send()
            .await;
        assert_eq!(told.status, 400, "{refused}: {told}");
    }
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
    for (name, refused) in [
        ("action", "action=revoke".to_owned()),
        ("action", "action=key.crate".to_owned()),
        ("target_kind", "target_kind=".to_owned()),
        ("target_kind", "target_kind=kee".to_owned()),
        ("outcome", "outcome=dune".to_owned()),
        ("ip", "ip=203.0.113.0/24".to_owned()),
        ("from", format!("from={late}&to={early}")),
        ("from", format!("from={early}&to={early}")),
    ] {
        for list in ["events", "export"] {
            let path = format!("/v1/audit/{list}?{refused}");
            let told = owner.get(&path).send().await.expect(400);
            assert_eq!(told["errors"][0]["pointer"], name, "{path}: {told}");
        }
    }
}

async fn commands_sign_verify_and_cut(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    owner.create("/v1/consumers", json!({"slug": "one"})).await;
    let run = |arguments: &[&str]| home.keystead(arguments).output().unwrap();
    let output = run(&["audit", "checkpoint", "--tenant", "default"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let said: serde_json::Value = serde_json::from_str(&shown(&output)).unwrap();
    assert_eq!(text(&said, "/kind"), "checkpoint");
    let file = home.dir().join("beside/checkpoints.ndjson");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), shown(&output));
    let output = run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(shown(&output).contains(", 1 checkpoints fit"), "{output:?}");

    // One bit of it is damaged: it is named, and keeps nobody from looking and accepting.
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = [&whole[..], &whole[..]].concat();
    damaged[20] ^= 0x80;
    std::fs::write(&file, damaged).unwrap();
    let output = run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let named = "checkpoint_forged: the checkpoint in line 1 of ";
    assert!(shown(&output).contains(named), "{output:?}");
    assert!(shown(&output).contains(", 1 checkpoints fit"), "{output:?}");
    let output = run(&["audit", "reseal", "--reason", "a disk"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    std::fs::write(&file, whole).unwrap();

    let later = "2199-01-01T00:00:00Z";
    let output = run(&["audit", "cut", "--before", later, "--reason", "too old"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let cut: serde_json::Value = serde_json::from_str(&shown(&output)).unwrap();
    assert_eq!((&cut["kind"], &cut["seq"]), (&json!("cut"), &said["seq"]));
    let output = run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let events = owner.get("/v1/audit/events").send().await.expect(200);
    assert_eq!(text(&events, "/items/0/action"), "audit.cut");
    assert_eq!(text(&events, "/items/0/reason"), "too old");
    assert_eq!(events["items"][1], json!(null), "all before it is gone");

    // Somebody without the master key signs what is not so.
    let forged = shown(&run(&["audit", "checkpoint", "--tenant", "default"]));
    let forged = forged.replace(
        &format!("\"seq\":{}", cut["seq"].as_i64().unwrap() + 1),
        "\"seq\":99",
    );
    std::fs::write(&file, forged).unwrap();
    let output = run(&["audit", "verify"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(shown(&output).contains("checkpoint_forged"), "{output:?}");
}
