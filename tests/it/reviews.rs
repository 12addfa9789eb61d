//! Reviews of access on both databases: what they hold, what is decided in them, and by whom.

mod begun;

use std::collections::BTreeMap;
use std::time::Duration;

use keystead::time::Span;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Client, Home, Server, both, setting, tables, text, until};

both!(
    a_review_holds_its_keys_as_they_stood_with_their_findings,
    what_is_decided_stands_in_the_review_and_in_the_trail,
    whoever_made_a_key_is_marked_who_decides_about_it,
    a_review_is_there_for_who_may_read_all_it_is_about,
    a_review_is_one_picture_however_much_changes_meanwhile,
    the_same_request_makes_one_review,
    more_keys_than_a_review_takes_are_refused,
    the_keys_of_a_review_are_paged_and_filtered,
    a_file_of_a_review_has_no_formula,
);

const BOUND: Duration = Duration::from_secs(20);

async fn world(owner: &Client) {
    let service = json!({
        "slug": "billing", "key_policy": {"allow_no_expiry": true},
        "scopes": [{"name": "invoice:read"}, {"name": "invoice:send"}],
    });
    owner.create("/v1/services", service).await;
    owner
        .create("/v1/services", json!({"slug": "ledger"}))
        .await;
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    owner.create("/v1/consumers", json!({"slug": "gone"})).await;
}

fn key(name: &str, consumer: &str, service: &str, scopes: &[&str]) -> Value {
    json!({
        "name": name, "consumer": consumer, "ttl": "1000d",
        "grants": [{"service": service, "scopes": scopes}],
        "reason": format!("for {name}"),
    })
}

async fn issue(owner: &Client, body: Value) -> (String, String) {
    let issued = owner.create("/v1/keys", body).await;
    (text(&issued, "/key/id"), text(&issued, "/api_key"))
}

async fn begin(owner: &Client, body: Value) -> Value {
    owner.create("/v1/reviews/access", body).await
}

async fn caller(owner: &Client, scopes: &[&str]) -> Client {
    let body = json!({
        "name": scopes.join(" "), "consumer": "acme",
        "grants": [{"service": "keystead", "scopes": scopes}],
    });
    let (_, api_key) = issue(owner, body).await;
    owner.with_key(&api_key)
}

async fn lasting(owner: &Client) -> Client {
    let body = json!({
        "name": "lasting", "consumer": "acme", "ttl": "80d",
        "grants": [{"service": "keystead", "scopes": ["*"]}],
    });
    let (_, api_key) = issue(owner, body).await;
    owner.with_key(&api_key)
}

/// The keys of a review by their names.
async fn items(client: &Client, review: &Value) -> BTreeMap<String, Value> {
    let path = format!("/v1/reviews/access/{}/items?limit=200", text(review, "/id"));
    let page = client.get(&path).send().await.expect(200);
    let items = page["items"].as_array().expect("a page");
    items
        .iter()
        .map(|item| (text(item, "/key/name"), item.clone()))
        .collect()
}

async fn decide(client: &Client, review: &Value, key: &str, body: Value) -> crate::support::Answer {
    let review = text(review, "/id");
    let path = format!("/v1/reviews/access/{review}/items/{key}/decide");
    client.post(&path).json(body).send().await
}

async fn close(client: &Client, review: &Value, body: Value) -> crate::support::Answer {
    let path = format!("/v1/reviews/access/{}/close", text(review, "/id"));
    client.post(&path).json(body).send().await
}

async fn read(client: &Client, review: &Value) -> Value {
    let path = format!("/v1/reviews/access/{}", text(review, "/id"));
    client.get(&path).send().await.expect(200)
}

async fn ask(owner: &Client, api_key: &str, scope: &str) {
    let body = json!({"api_key": api_key, "service": "billing", "required_scopes": [scope]});
    let answer = owner.post("/v1/verify").json(body).send().await.expect(200);
    assert_eq!(answer["code"], "valid", "{answer}");
}

/// Waits until all uses are where a review finds them.
async fn settle(home: &Home, server: &Server, scopes: usize) {
    server.app.validation.flush_last_used().await.unwrap();
    let query = "SELECT scope AS line FROM usage_scope";
    until(BOUND, "the uses are stored", async || {
        let stored = tables::lines_of(home.usage_eyes(), query.to_owned()).await;
        stored.len() >= scopes
    })
    .await;
}

fn findings(item: &Value) -> Vec<&str> {
    let findings = item["findings"].as_array().expect("a list");
    findings.iter().filter_map(Value::as_str).collect()
}

async fn a_review_holds_its_keys_as_they_stood_with_their_findings(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    // The first owner key lives for a day.
    let owner = lasting(&owner).await;
    let both_scopes = ["invoice:read", "invoice:send"];
    let (idle, idle_key) = issue(&owner, key("idle", "acme", "billing", &both_scopes)).await;
    ask(&owner, &idle_key, "invoice:read").await;
    settle(&home, &server, 1).await;
    server.clock.advance(Span::days(20));
    let mut endless = key("endless", "acme", "billing", &["invoice:read"]);
    endless.as_object_mut().unwrap().remove("ttl");
    endless["expires_at"] = Value::Null;
    issue(&owner, endless).await;
    issue(&owner, key("orphan", "gone", "billing", &[])).await;
    issue(&owner, key("elsewhere", "acme", "ledger", &[])).await;
    let (ended, _) = issue(&owner, key("ended", "acme", "billing", &[])).await;
    let revoke = format!("/v1/keys/{ended}/revoke");
    owner.post(&revoke).send().await.expect(200);
    let mut short = key("short", "acme", "billing", &[]);
    short["ttl"] = json!("1m");
    issue(&owner, short).await;
    let (_, busy) = issue(&owner, key("busy", "acme", "billing", &both_scopes)).await;
    ask(&owner, &busy, "invoice:read").await;
    let (rotated, old) = issue(&owner, key("rotated", "acme", "billing", &["invoice:send"])).await;
    let rotate = format!("/v1/keys/{rotated}/rotate");
    let overlap = json!({"overlap": "7d", "reason": "due"});
    owner.post(&rotate).json(overlap).send().await.expect(200);
    server.clock.advance(Span::minutes(2));
    ask(&owner, &old, "invoice:send").await;
    settle(&home, &server, 3).await;
    let disable = "/v1/consumers/gone/disable";
    owner.post(disable).send().await.expect(200);

    let about = json!({
        "name": "fourth quarter", "filter": {"services": ["billing"]}, "reason": "quarterly",
        "thresholds": {"idle_for": "10d", "not_rotated_for": "10d", "scopes_unused_for": "10d"},
    });
    let review = begin(&owner, about).await;
    assert_eq!(review["status"], "open");
    assert_eq!(review["keys"], 5, "{review}");
    assert_eq!(review["reason"], "quarterly");
    let found = json!({
        "no_expiry": 1, "not_rotated": 1, "idle": 1, "never_used": 2, "unused_scopes": 3,
        "consumer_disabled": 1, "superseded_in_use": 1,
    });
    assert_eq!(review["findings"], found);
    assert_eq!(review["decisions"]["undecided"], 5);
    let held = items(&owner, &review).await;
    let of = |name: &str| findings(&held[name]);
    assert_eq!(of("idle"), ["not_rotated", "idle", "unused_scopes"]);
    assert_eq!(of("endless"), ["no_expiry", "never_used", "unused_scopes"]);
    assert_eq!(of("orphan"), ["never_used", "consumer_disabled"]);
    assert_eq!(of("busy"), ["unused_scopes"]);
    assert_eq!(of("rotated"), ["superseded_in_use"]);
    let busy = &held["busy"]["key"];
    assert_eq!(busy["grants"][0]["unused_scopes"], json!(["invoice:send"]));
    assert_eq!(busy["reason"], "for busy");
    assert_eq!(busy["created_by"], held["rotated"]["key"]["rotated_by"]);
    assert_eq!(
        held["rotated"]["key"]["secrets"].as_array().unwrap().len(),
        2
    );
    // Its whole trail, before anything changes.
    let exported = owner
        .get(&format!(
            "/v1/reviews/access/{}/export",
            text(&review, "/id")
        ))
        .send()
        .await;
    let mut digest = Sha256::new();
    let mut ids = Vec::new();
    for line in exported.text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        ids.push(text(&line, "/key/id"));
        let held = json!({"findings": line["findings"], "key": line["key"]});
        digest.update(serde_json_canonicalizer::to_string(&held).unwrap());
        digest.update("\n");
    }
    assert!(ids.is_sorted() && ids.len() == 5, "{ids:?}");
    assert_eq!(review["digest"], hex::encode(digest.finalize()));

    // What happens later is not in it.
    let path = format!("/v1/keys/{idle}");
    let change = json!({"name": "renamed", "grants": [{"service": "billing", "scopes": []}]});
    let patch = owner.request("PATCH".parse().unwrap(), &path).json(change);
    patch.send().await.expect(200);
    owner
        .post(&format!("{path}/revoke"))
        .send()
        .await
        .expect(200);
    issue(&owner, key("late", "acme", "billing", &[])).await;
    assert_eq!(items(&owner, &review).await, held);
    assert_eq!(read(&owner, &review).await, review);
}

async fn what_is_decided_stands_in_the_review_and_in_the_trail(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let (kept, _) = issue(&owner, key("kept", "acme", "billing", &[])).await;
    let (changed, _) = issue(&owner, key("changed", "acme", "billing", &[])).await;
    let (revoked, api_key) = issue(&owner, key("revoked", "acme", "billing", &[])).await;
    let review = begin(
        &owner,
        json!({"name": "r", "filter": {"services": ["billing"]}}),
    )
    .await;
    let reviewer = caller(&owner, &["keys:write:billing"]).await;
    let told = decide(
        &reviewer,
        &review,
        &kept,
        json!({"decision": "keep", "note": "asked", "reason": "quarterly"}),
    )
    .await
    .expect(200);
    assert_eq!(
        (&told["decision"], &told["note"], &told["own"]),
        (&json!("keep"), &json!("asked"), &json!(false))
    );
    // Again the same is no decision.
    let again = json!({"decision": "keep", "note": "asked"});
    let before = tables::changes(&home).await;
    assert_eq!(
        decide(&reviewer, &review, &kept, again).await.expect(200),
        told
    );
    assert!(tables::changes_since(&home, &before).await.is_empty());
    let wrong = json!({"decision": "keep", "revoke_now": true});
    assert_eq!(decide(&reviewer, &review, &kept, wrong).await.status, 400);
    let undecided = json!({"decision": "undecided"});
    assert_eq!(
        decide(&reviewer, &review, &kept, undecided).await.status,
        400
    );
    let refused = close(&reviewer, &review, json!({})).await;
    assert_eq!((refused.status, refused.code()), (409, "review_undecided"));
    assert_eq!(refused.body["count"], 2);
    for decision in ["revoke", "change"] {
        let body = json!({"decision": decision});
        decide(&reviewer, &review, &changed, body).await.expect(200);
    }
    let before = tables::changes(&home).await;
    let body = json!({"decision": "revoke", "revoke_now": true, "reason": "nobody needs it"});
    let told = decide(&reviewer, &review, &revoked, body).await.expect(200);
    assert_eq!(told["carried_out"], true);
    let done = tables::changes_since(&home, &before).await;
    assert_eq!(done, ["key.revoke", "access_review.decide"]);
    // What was carried out cannot be taken back, but be told of in other words.
    for decision in ["keep", "change"] {
        let other = json!({"decision": decision});
        let refused = decide(&reviewer, &review, &revoked, other).await;
        assert_eq!((refused.status, refused.code()), (409, "key_revoked"));
    }
    let body = json!({"decision": "revoke", "note": "nobody has used it"});
    let told = decide(&reviewer, &review, &revoked, body).await.expect(200);
    assert_eq!(
        (&told["carried_out"], &told["note"]),
        (&json!(true), &json!("nobody has used it"))
    );
    let asked = json!({"api_key": api_key, "service": "billing"});
    let answer = owner.post("/v1/verify").json(asked).send().await;
    assert_eq!(answer.code(), "revoked");
    let now = read(&owner, &review).await;
    let decisions = json!({"undecided": 0, "keep": 1, "change": 1, "revoke": 1});
    assert_eq!(now["decisions"], decisions);
    assert_eq!(now["digest"], review["digest"]);
    let closed = close(&reviewer, &review, json!({"reason": "done"}))
        .await
        .expect(200);
    assert_eq!(closed["status"], "closed");
    assert_eq!(closed["close_reason"], "done");
    let again = close(&reviewer, &review, json!({})).await.expect(200);
    assert_eq!(again, closed);
    let late = decide(&reviewer, &review, &kept, json!({"decision": "revoke"})).await;
    assert_eq!((late.status, late.code()), (409, "review_closed"));

    let lines = owner
        .get(&format!("/v1/audit/events?target={changed}&limit=200"))
        .send()
        .await
        .expect(200);
    let lines: Vec<&Value> = lines["items"].as_array().unwrap().iter().collect();
    let actions: Vec<&str> = lines.iter().filter_map(|l| l["action"].as_str()).collect();
    assert_eq!(
        actions,
        ["access_review.decide", "access_review.decide", "key.create"]
    );
    assert_eq!(lines[0]["before"]["decision"], "revoke");
    assert_eq!(lines[0]["after"]["decision"], "change");
    assert_eq!(lines[0]["services"], json!(["billing"]));
    let id = text(&review, "/id");
    let lines = owner
        .get(&format!("/v1/audit/events?target={id}&limit=200"))
        .send()
        .await
        .expect(200);
    assert_eq!(lines["items"][0]["action"], "access_review.close");
    assert_eq!(lines["items"][0]["after"]["decisions"], decisions);
    assert_eq!(lines["items"][1]["after"]["digest"], review["digest"]);
    let report = owner.post("/v1/audit/verify").json(json!({})).send().await;
    assert_eq!(report.expect(200)["valid"], true);
}

async fn whoever_made_a_key_is_marked_who_decides_about_it(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let alice = caller(&owner, &["keys:write"]).await;
    let bob = caller(&owner, &["keys:write"]).await;
    let (made, _) = issue(&alice, key("made", "acme", "billing", &[])).await;
    let (rotated, _) = issue(&owner, key("rotated", "acme", "billing", &[])).await;
    let rotate = format!("/v1/keys/{rotated}/rotate");
    alice.post(&rotate).json(json!({})).send().await.expect(200);
    let review = begin(
        &owner,
        json!({"name": "r", "filter": {"services": ["billing"]}}),
    )
    .await;
    for key in [&made, &rotated] {
        for (reviewer, own) in [(&alice, true), (&bob, false)] {
            let told = decide(reviewer, &review, key, json!({"decision": "keep"})).await;
            assert_eq!(told.expect(200)["own"], own);
        }
    }
    // Who rotates meanwhile is no stranger to it either.
    bob.post(&rotate).json(json!({})).send().await.expect(200);
    let note = json!({"decision": "keep", "note": "again"});
    let told = decide(&bob, &review, &rotated, note).await;
    assert_eq!(told.expect(200)["own"], true);
    let path = format!("/v1/reviews/access/{}/items?own=true", text(&review, "/id"));
    let page = owner.get(&path).send().await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

async fn a_review_is_there_for_who_may_read_all_it_is_about(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let (id, _) = issue(&owner, key("k", "acme", "billing", &[])).await;
    let filter = |services: &[&str]| json!({"name": "r", "filter": {"services": services}});
    let billing = begin(&owner, filter(&["billing"])).await;
    let two = begin(&owner, filter(&["ledger", "billing"])).await;
    let all = begin(&owner, json!({"name": "all"})).await;
    let auditor = caller(
        &owner,
        &[
            "services:read",
            "consumers:read",
            "keys:read",
            "usage:read",
            "audit:read",
        ],
    )
    .await;
    let limited = caller(&owner, &["keys:write:billing"]).await;
    let elsewhere = caller(&owner, &["keys:write:ledger"]).await;
    let operator = caller(&owner, &["keys:read", "keys:revoke"]).await;
    let seen = async |client: &Client| {
        let page = client.get("/v1/reviews/access").send().await.expect(200);
        page["items"].as_array().unwrap().len()
    };
    assert_eq!(seen(&auditor).await, 3);
    assert_eq!(seen(&limited).await, 1);
    assert_eq!(seen(&elsewhere).await, 0);
    for (client, visible) in [
        (&auditor, vec![&billing, &two, &all]),
        (&limited, vec![&billing]),
        (&elsewhere, vec![]),
    ] {
        for review in [&billing, &two, &all] {
            let id = text(review, "/id");
            for path in ["", "/items", "/export"] {
                let path = format!("/v1/reviews/access/{id}{path}");
                let told = client.get(&path).send().await;
                let expected = if visible.contains(&review) { 200 } else { 404 };
                assert_eq!(told.status, expected, "{path}: {told}");
            }
        }
    }
    // An auditor reads and does not decide; nor does who may only end keys.
    for client in [&auditor, &operator] {
        let told = decide(client, &billing, &id, json!({"decision": "keep"})).await;
        assert_eq!((told.status, told.code()), (403, "forbidden"));
        assert_eq!(close(client, &billing, json!({})).await.status, 403);
        let told = client
            .post("/v1/reviews/access")
            .json(filter(&["billing"]))
            .send()
            .await;
        assert_eq!(told.status, 403);
    }
    let told = decide(&elsewhere, &billing, &id, json!({"decision": "keep"})).await;
    assert_eq!(told.status, 404);
    for wanted in [
        filter(&["ledger"]),
        filter(&["billing", "ledger"]),
        json!({"name": "all"}),
    ] {
        let told = limited.post("/v1/reviews/access").json(wanted).send().await;
        assert_eq!((told.status, told.code()), (403, "forbidden"), "{told}");
    }
    begin(&limited, filter(&["billing"])).await;
    // Who may decide may still not end what is not theirs to end.
    let decided = caller(&owner, &["keys:write"]).await;
    let all = begin(&owner, json!({"name": "all"})).await;
    let held = items(&owner, &all).await;
    let management = text(&held["keys:read keys:revoke"], "/key/id");
    let above = text(&held["owner key"], "/key/id");
    let end = json!({"decision": "revoke", "revoke_now": true});
    let told = decide(&decided, &all, &above, end.clone()).await;
    assert_eq!((told.status, told.code()), (403, "escalation"), "{told}");
    let told = decide(&decided, &all, &management, end).await;
    assert_eq!(told.status, 200, "{told}");
    let told = decide(&owner, &billing, &management, json!({"decision": "keep"})).await;
    assert_eq!(told.status, 404, "it is in another review");
}

async fn a_review_is_one_picture_however_much_changes_meanwhile(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let batch = vec![key("k", "acme", "billing", &[]); 600];
        let issued = owner
            .create("/v1/keys/batch", json!({"items": batch}))
            .await;
        let issued = issued["items"].as_array().unwrap();
        ids.extend(issued.iter().map(|one| text(one, "/key/id")));
    }
    ids.sort();
    // The first and the last of the keys change together, or not at all.
    let (first, last) = (ids[0].clone(), ids[ids.len() - 1].clone());
    let toggling = async {
        for _ in 0..60 {
            let both = json!({"ids": [first, last], "action": "disable", "expected": 2});
            owner
                .post("/v1/keys/revoke")
                .json(both)
                .send()
                .await
                .expect(200);
            for id in [&last, &first] {
                let enable = format!("/v1/keys/{id}/enable");
                owner.post(&enable).send().await.expect(200);
            }
        }
    };
    let reviewing = async {
        let mut seen = Vec::new();
        for _ in 0..8 {
            let review = begin(
                &owner,
                json!({"name": "r", "filter": {"services": ["billing"]}}),
            );
            let review = review.await;
            assert_eq!(review["keys"], 1200);
            let mut states = BTreeMap::new();
            let path = format!("/v1/reviews/access/{}/export", text(&review, "/id"));
            let lines = owner.get(&path).send().await;
            for line in lines.text.lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                states.insert(text(&line, "/key/id"), text(&line, "/key/status"));
            }
            seen.push((states[&first].clone(), states[&last].clone()));
        }
        seen
    };
    let ((), seen) = tokio::join!(toggling, reviewing);
    // Enabled one by one, the last first: so the first alone may be seen disabled, the last never.
    for (first, last) in &seen {
        let torn = first == "active" && last == "disabled";
        assert!(!torn, "{seen:?}");
    }
}

async fn the_same_request_makes_one_review(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let create = async |name: &str| {
        owner
            .post("/v1/reviews/access")
            .header("idempotency-key", "once")
            .json(json!({"name": name}))
            .send()
            .await
    };
    let first = create("r").await;
    let again = create("r").await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(first.expect(201), again.expect(201));
    assert_eq!(create("other").await.code(), "idempotency_mismatch");
    let page = owner.get("/v1/reviews/access").send().await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

/// Rows that look like keys, past the server.
async fn fill(home: &Home, from: usize, to: usize) {
    let series = match home.backend {
        crate::support::Backend::Postgres => {
            format!("generate_series({from}, {}) AS s (n)", to - 1)
        }
        crate::support::Backend::Sqlite => format!(
            "(WITH RECURSIVE c (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM c WHERE n < {}) \
             SELECT n FROM c) AS s",
            to - 1
        ),
    };
    let number = "SUBSTR('0000000000' || CAST(s.n AS TEXT), LENGTH(CAST(s.n AS TEXT)) + 1)";
    let sql = format!(
        "INSERT INTO api_key (id, tenant_id, consumer_id, lookup_id, prefix, environment, name, \
         rate_limits, metadata, tags, version, created_at, created_by, created_by_name, updated_at) \
         SELECT 'key_01jd8k3v9we5m8t7' || {number}, c.tenant_id, c.id, '00' || {number}, 'ks', 'live', 'k', \
         '[]', '{{}}', '[]', 1, 1, '{{\"kind\":\"system\"}}', 'system', 1 \
         FROM consumer c, {series} WHERE c.slug = 'acme'"
    );
    tables::execute_on(home.eyes(), &sql).await;
}

async fn more_keys_than_a_review_takes_are_refused(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let long = setting("KEYSTEAD_TEST_LONG").is_some();
    let some = if long { 99_000 } else { 3_000 };
    let mut filled = 0;
    while filled < some {
        // A statement of two seconds at most.
        fill(&home, filled, filled + 1_000).await;
        filled += 1_000;
    }
    let about = json!({"name": "r", "filter": {"consumers": ["acme"]}});
    let mut review = begin(&owner, about.clone()).await;
    until(Duration::from_secs(300), "it has its keys", async || {
        review = read(&owner, &review).await;
        review["status"] == "open"
    })
    .await;
    assert_eq!(review["keys"], some);
    while filled < 100_001 {
        let to = (filled + 10_000).min(100_001);
        fill(&home, filled, to).await;
        filled = to;
    }
    let told = owner.post("/v1/reviews/access").json(about).send().await;
    assert_eq!((told.status, told.code()), (400, "invalid_request"));
    let detail = text(&told.body, "/errors/0/detail");
    assert_eq!(detail, "100001 keys match; narrow it to at most 100000");
    let page = owner.get("/v1/reviews/access").send().await.expect(200);
    assert_eq!(page["items"].as_array().unwrap().len(), 1);
}

async fn the_keys_of_a_review_are_paged_and_filtered(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let mut ids = Vec::new();
    for name in 0..7 {
        let (id, _) = issue(&owner, key(&format!("k{name}"), "acme", "billing", &[])).await;
        ids.push(id);
    }
    let about = json!({"name": "r", "filter": {"services": ["billing"]}});
    let review = begin(&owner, about.clone()).await;
    let other = begin(&owner, about).await;
    let base = format!("/v1/reviews/access/{}/items", text(&review, "/id"));
    let mut seen = Vec::new();
    let mut path = format!("{base}?limit=3");
    loop {
        let page = owner.get(&path).send().await.expect(200);
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| text(item, "/key/id")));
        let Some(cursor) = page["next_cursor"].as_str() else {
            break;
        };
        path = format!("{base}?limit=3&cursor={cursor}");
        // It leads on in this list alone.
        let other = format!("/v1/reviews/access/{}/items", text(&other, "/id"));
        for elsewhere in [other, base.clone() + "?decision=keep"] {
            let joined = if elsewhere.contains('?') { '&' } else { '?' };
            let path = format!("{elsewhere}{joined}cursor={cursor}");
            let told = owner.get(&path).send().await;
            assert_eq!(told.status, 400, "{path}: {told}");
        }
    }
    ids.reverse();
    assert_eq!(seen, ids);
    let reviewer = caller(&owner, &["keys:write"]).await;
    decide(&reviewer, &review, &ids[0], json!({"decision": "keep"}))
        .await
        .expect(200);
    decide(&owner, &review, &ids[1], json!({"decision": "change"}))
        .await
        .expect(200);
    let count = async |query: &str| {
        let page = owner.get(&format!("{base}?{query}")).send().await;
        page.expect(200)["items"].as_array().unwrap().len()
    };
    assert_eq!(count("decision=undecided").await, 5);
    assert_eq!(count("decision=keep").await, 1);
    assert_eq!(count("finding=never_used").await, 7);
    assert_eq!(count("finding=idle").await, 0);
    let by = text(
        &decide(&reviewer, &review, &ids[2], json!({"decision": "keep"}))
            .await
            .expect(200),
        "/decided_by/key_id",
    );
    assert_eq!(count(&format!("reviewer={by}")).await, 2);
    assert_eq!(count("finding=never_used&decision=change").await, 1);
    for wrong in ["finding=x", "decision=maybe", "own=1", "sort=id"] {
        let told = owner.get(&format!("{base}?{wrong}")).send().await;
        assert_eq!(told.status, 400, "{wrong}");
    }
}

async fn a_file_of_a_review_has_no_formula(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    world(&owner).await;
    let (id, _) = issue(&owner, key("=HYPERLINK(\"x\")", "acme", "billing", &[])).await;
    let review = begin(
        &owner,
        json!({"name": "r", "filter": {"services": ["billing"]}}),
    )
    .await;
    let note = json!({"decision": "keep", "note": "@SUM(A1)\u{2028}b"});
    decide(&owner, &review, &id, note).await.expect(200);
    let path = format!(
        "/v1/reviews/access/{}/export?format=csv",
        text(&review, "/id")
    );
    let file = owner.get(&path).send().await;
    assert_eq!(file.status, 200);
    assert_eq!(file.headers["content-type"], "text/csv; charset=utf-8");
    let mut rows = csv::Reader::from_reader(file.text.as_bytes());
    let names = rows.headers().unwrap().clone();
    let row = rows.records().next().unwrap().unwrap();
    let cell = |name: &str| {
        let index = names.iter().position(|one| one == name).unwrap();
        row[index].to_owned()
    };
    assert_eq!(cell("name"), "'=HYPERLINK(\"x\")");
    assert_eq!(cell("note"), "'@SUM(A1) b");
    assert_eq!(
        (cell("decision"), cell("own")),
        ("keep".into(), "true".into())
    );
    assert_eq!(cell("findings"), "never_used");
    assert_eq!(file.text.lines().count(), 2);
}
