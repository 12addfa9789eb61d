//! docs/auditors.md says what to ask and what the answer holds: each of its commands is run as it stands,
//! and each answer held against what stands below it.

use std::process::{Command, Output};

use keystead::clock::Clock;
use serde_json::{Value, json};

use crate::support::{BINARY, Client, Home, both, setting, text, until};

both!(every_command_for_auditors_answers_what_is_said);

const GUIDE: &str = include_str!("../../docs/auditors.md");

/// A command, and what its answer holds if that is said.
pub struct Block {
    pub script: String,
    pub answer: Option<Value>,
}

/// The first one makes what the others use.
pub fn blocks(guide: &str) -> (String, Vec<Block>) {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        let Some(kind) = line.strip_prefix("```") else {
            continue;
        };
        let body: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        let body = body.join("\n");
        match kind {
            "sh" => blocks.push(Block {
                script: body,
                answer: None,
            }),
            "json" => {
                let answer = serde_json::from_str(&body).expect(&body);
                blocks.last_mut().expect("a command before it").answer = Some(answer);
            }
            // A picture.
            "text" => {}
            other => panic!("nobody runs {other}"),
        }
    }
    let first = blocks.remove(0).script;
    (first, blocks)
}

/// Whether `said` is in `answer`: members of an object, items of a list, `"…"` for any value.
pub fn holds(answer: &Value, said: &Value) -> bool {
    match (answer, said) {
        (any, Value::String(said)) if said == "…" => !any.is_null(),
        (Value::Object(answer), Value::Object(said)) => said
            .iter()
            .all(|(name, said)| answer.get(name).is_some_and(|there| holds(there, said))),
        (Value::Array(answer), Value::Array(said)) => said
            .iter()
            .all(|said| answer.iter().any(|there| holds(there, said))),
        (answer, said) => answer == said,
    }
}

/// What the commands find: a key that was used, rotated and asked for too much, one that was revoked, a
/// refused attempt, a changed service, a review.
async fn company(owner: &Client) -> [String; 5] {
    let service = json!({
        "slug": "invoicing", "scopes": [{"name": "invoice:read"}, {"name": "invoice:send"}],
    });
    owner.create("/v1/services", service).await;
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    let issue = async |name: &str, service: &str, scopes: Value| {
        let body = json!({
            "name": name, "consumer": "acme", "reason": "ticket 4711",
            "grants": [{"service": service, "scopes": scopes}],
        });
        let made = owner.create("/v1/keys", body).await;
        (text(&made, "/key/id"), text(&made, "/api_key"))
    };
    let reads = [
        "audit:read",
        "usage:read",
        "keys:read",
        "services:read",
        "consumers:read",
    ];
    let (_, auditor) = issue("auditor", "keystead", json!(reads)).await;
    let reviews = json!(["keys:read", "keys:write"]);
    let (_, reviewer) = issue("reviewer", "keystead", reviews).await;
    let (_, gateway) = issue("gateway", "keystead", json!(["verify:invoicing"])).await;
    let (key, old) = issue("worker", "invoicing", json!(["invoice:read"])).await;
    let (revoked, plaintext) = issue("intern", "invoicing", json!(["invoice:read"])).await;
    let (unused, _) = issue("nobody's", "invoicing", json!(["invoice:send"])).await;
    let gateway = owner.with_key(&gateway);
    let verify = async |key: &str, scope: &str| {
        let body = json!({
            "api_key": key, "service": "invoicing", "required_scopes": [scope],
            "ip": "203.0.113.7", "method": "GET", "path": "/invoices/7",
        });
        gateway
            .post("/v1/verify")
            .json(body)
            .send()
            .await
            .expect(200);
    };
    for _ in 0..3 {
        verify(&old, "invoice:read").await;
    }
    verify(&old, "invoice:send").await;
    let change = async |path: String, body: Value| {
        owner.post(&path).json(body).send().await.expect(200);
    };
    change(format!("/v1/keys/{key}/rotate"), json!({"overlap": "0s"})).await;
    verify(&old, "invoice:read").await;
    let as_of = Clock::System.now().to_string();
    change(
        format!("/v1/keys/{revoked}/revoke"),
        json!({"reason": "left the team"}),
    )
    .await;
    verify(&plaintext, "invoice:read").await;
    let patch = owner.request(reqwest::Method::PATCH, "/v1/services/invoicing");
    let patch = patch.json(json!({"description": "bills", "reason": "change 88"}));
    patch.send().await.expect(200);
    let attempt = gateway.post("/v1/consumers").json(json!({"slug": "mine"}));
    attempt.send().await.expect(403);

    let review = owner
        .create("/v1/reviews/access", json!({"name": "first quarter"}))
        .await;
    let review = format!("/v1/reviews/access/{}", text(&review, "/id"));
    until(BOUND, "the review is open", async || {
        owner.get(&review).send().await.expect(200)["status"] == "open"
    })
    .await;
    let decision = json!({"decision": "revoke", "note": "nobody knows it"});
    change(format!("{review}/items/{unused}/decide"), decision).await;
    change(format!("{review}/close"), json!({"leave_undecided": true})).await;
    owner.post("/v1/audit/checkpoints").send().await;
    [auditor, reviewer, key, revoked, as_of]
}

const BOUND: std::time::Duration = std::time::Duration::from_secs(20);

async fn every_command_for_auditors_answers_what_is_said(home: Home) {
    let node = home.spawn(&[]).await;
    let owner = node.owner();
    let [auditor, reviewer, key, revoked, as_of] = company(&owner).await;
    let uses = "/v1/usage/summary?group_by=operation";
    until(BOUND, "all uses are stored", async || {
        owner.get(uses).send().await.expect(200)["groups"][0]["uses"] == 6
    })
    .await;
    let refused = "/v1/audit/events?outcome=refused";
    until(BOUND, "the refused attempt is recorded", async || {
        owner.get(refused).send().await.expect(200)["items"] != json!([])
    })
    .await;
    let folder = home.dir().join("auditor");
    std::fs::create_dir(&folder).unwrap();
    for (who, key) in [("auditor", auditor), ("reviewer", reviewer)] {
        let file = folder.join(format!("{who}.header"));
        std::fs::write(file, format!("x-api-key: {key}\n")).unwrap();
    }
    let programs = std::path::Path::new(BINARY).parent().unwrap();
    let path = setting("PATH").expect("a path");
    let mut paths = vec![programs.to_owned()];
    paths.extend(std::env::split_paths(&path));
    let run = |script: &str| -> Output {
        Command::new("sh")
            .args(["-eu", "-c", script])
            .current_dir(&folder)
            .env_clear()
            .env("PATH", std::env::join_paths(&paths).unwrap())
            .env("KEYSTEAD", format!("http://{}", node.address))
            .env("ID", &key)
            .env("REVOKED", &revoked)
            .env("AS_OF", &as_of)
            .env("FROM", year(-1))
            .env("TO", year(1))
            .output()
            .expect("sh")
    };
    let (first, blocks) = blocks(GUIDE);
    assert!(blocks.len() > 15, "{}", blocks.len());
    // A problem is told, and is no answer.
    let refused = run(&format!("{first}\nget /v1/tenants"));
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && refused.stdout.is_empty() && told.contains("\"forbidden\""),
        "{refused:?}"
    );
    for block in blocks {
        let output = run(&format!("{first}\n{}", block.script));
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{}\n{answer}{}",
            block.script,
            String::from_utf8_lossy(&output.stderr)
        );
        if let Some(said) = block.answer {
            let answer: Value = serde_json::from_str(&answer).expect(&block.script);
            assert!(
                holds(&answer, &said),
                "{}\n{answer:#}\n{said}",
                block.script
            );
        }
    }
}

/// The beginning of a year. A summary has at most 1,500 days.
fn year(later: i32) -> String {
    let now = Clock::System.now().to_string();
    let year: i32 = now[..4].parse().unwrap();
    format!("{}-01-01T00:00:00Z", year + later)
}
