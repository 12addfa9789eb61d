//! What may be an attack is a line and a counter, and a flood of it is no flood of lines.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::support::tables::execute;
use crate::support::until;

both!(what_may_be_an_attack_is_told_in_few_lines_and_counted);

const BOUND: Duration = Duration::from_secs(20);

/// How often each of them happens here.
const FLOOD: usize = 60;

async fn what_may_be_an_attack_is_told_in_few_lines_and_counted(home: Home) {
    let mut node = home
        .spawn(&[("LOG__LEVEL", "off"), ("LOG__FORMAT", "json")])
        .await;
    let owner = node.owner();
    World::catalogue(&owner).await;
    let gateway = json!({"service": "keystead", "scopes": ["verify:invoicing"]});
    let gateway = World::issue(&owner, &key_with(gateway)).await.1;
    let caller = owner.with_key(&gateway);
    let grant = || key_with(json!({"service": "invoicing", "scopes": ["invoice:read"]}));
    let (revoked_id, revoked) = World::issue(&owner, &grant()).await;
    let (rotated_id, rotated) = World::issue(&owner, &grant()).await;
    let revoke = owner.post(&format!("/v1/keys/{revoked_id}/revoke"));
    revoke.json(json!({})).send().await.expect(200);
    let rotate = owner.post(&format!("/v1/keys/{rotated_id}/rotate"));
    let new = rotate
        .json(json!({"overlap": "0s"}))
        .send()
        .await
        .expect(200);
    let new = text(&new, "/api_key");
    let stranger = stranger("4hT0aZq81xPd");
    let ask = async |body: Value| {
        caller
            .post("/v1/verify")
            .json(body)
            .send()
            .await
            .expect(200);
    };
    for _ in 0..FLOOD {
        owner.anonymous().get("/v1/keys").send().await.expect(401);
        owner
            .with_key(&stranger)
            .get("/v1/keys")
            .send()
            .await
            .expect(401);
        owner
            .with_bearer("a.b.c")
            .get("/v1/keys")
            .send()
            .await
            .expect(401);
        owner
            .with_key(&revoked)
            .get("/v1/keys")
            .send()
            .await
            .expect(401);
        let attempt = caller.post("/v1/consumers").json(json!({"slug": "mine"}));
        attempt.send().await.expect(403);
        owner
            .within("nowhere")
            .get("/v1/keys")
            .send()
            .await
            .expect(404);
        let path = format!("/v1/keys?api_key={stranger}");
        owner.get(&path).send().await.expect(400);
        ask(json!({"api_key": revoked, "service": "invoicing"})).await;
        ask(json!({"api_key": rotated, "service": "invoicing"})).await;
        ask(json!({
            "api_key": new, "service": "invoicing", "required_scopes": ["invoice:send"],
            "ip": "203.0.113.7",
        }))
        .await;
    }
    execute(&home, "UPDATE audit_head SET seq = seq + 1").await;
    for n in 0..3 {
        let body = json!({"slug": format!("late-{n}")});
        let answer = owner.post("/v1/consumers").json(body).send().await;
        assert!(answer.status >= 500, "{answer}");
    }

    let expected: BTreeMap<&str, f64> = BTreeMap::from([
        ("unauthenticated", 60.0),
        ("unknown_key", 60.0),
        ("invalid_jwt", 60.0),
        ("caller_refused", 60.0),
        ("refused_attempt", 60.0),
        ("cross_tenant", 60.0),
        ("credential_in_query", 60.0),
        ("revoked_key_used", 60.0),
        ("superseded_secret_used", 60.0),
        ("scope_denied", 60.0),
        // All refused ones of the caller; of the address there are fewer.
        ("failure_burst", 180.0),
        ("audit_broken", 3.0),
    ]);
    let counted = async |event: &str| {
        let metrics = node.client().get("/metrics").send().await.text;
        let name = format!("keystead_security_events_total{{kind=\"{event}\"}} ");
        let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("there is a counter").parse::<f64>().unwrap()
    };
    for (event, count) in &expected {
        until(BOUND, event, async || counted(event).await >= *count).await;
        let exact = (counted(event).await - count).abs() < 0.5;
        // The node itself meets a broken chain too.
        assert!(exact || *event == "audit_broken", "{event}");
    }
    node.signal("TERM");
    node.ended(BOUND).await;

    let log = node.log();
    for secret in [&gateway, &revoked, &rotated, &new, &stranger] {
        assert!(!log.contains(&secret[20..]), "the log holds a key");
    }
    let mut told: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in log.lines() {
        let line: Value = serde_json::from_str(line).expect("a line is JSON");
        if line["target"] == "security" && line["event"].is_string() {
            let counts = told.entry(text(&line, "/event")).or_default();
            counts.push(line["count"].as_u64().expect("a count"));
        }
    }
    for (event, count) in &expected {
        let counts = told.get(*event).expect(event);
        assert!(counts.len() <= 8, "{event}: {counts:?}");
        assert!(
            counts[0] == 1 || *event == "failure_burst",
            "{event}: {counts:?}"
        );
        #[expect(clippy::cast_precision_loss, reason = "they are few")]
        let sum = counts.iter().sum::<u64>() as f64;
        let exact = (sum - count).abs() < 0.5;
        assert!(
            exact || (*event == "audit_broken" && sum > *count),
            "{event}: {counts:?}"
        );
    }
}
