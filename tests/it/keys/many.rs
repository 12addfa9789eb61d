//! Many at once: races, repetitions, batches, floods.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use keystead::entropy::Entropy;
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::text::{Environment, Prefix, Slug};
use keystead::validation::Failure;
use keystead::validation::decide::{Outcome, Request};
use serde_json::json;
use tokio::time::Instant;

use super::*;
use crate::support::{Backend, Fault, Home, Proxy, both, figure, run, setting};

both!(
    one_of_fifty_updates_with_the_same_if_match_wins,
    parallel_rotations_never_leave_more_than_three_live_secrets,
    twenty_creates_with_one_idempotency_key_make_one_key,
    a_batch_is_all_or_nothing,
    external_ids_of_a_batch_are_each_for_one_key,
    a_batch_asked_for_again_is_told_in_its_order,
    keys_ended_together_are_each_a_version_further,
    ending_by_filter_needs_the_count_it_was_told,
    a_dry_run_tells_what_would_change,
    wrong_keys_never_run_argon2,
    thousands_of_keys_that_nobody_remembers_all_have_their_turn,
    a_key_that_is_unknown_is_looked_up_once_however_often_it_is_tried,
);

async fn one_of_fifty_updates_with_the_same_if_match_wins(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, _) = issue(&owner, new_key()).await;
    let updates = (0..50).map(|n| {
        owner
            .request("PATCH".parse().unwrap(), &format!("/v1/keys/{id}"))
            .header("if-match", "\"1\"")
            .json(json!({"name": format!("name {n}")}))
            .send()
    });
    let statuses: Vec<u16> = join_all(updates).await.iter().map(|a| a.status).collect();
    assert_eq!(
        statuses.iter().filter(|status| **status == 200).count(),
        1,
        "{statuses:?}"
    );
    // Whoever waited too long for its turn is told so, and changed nothing.
    assert!(
        statuses
            .iter()
            .all(|status| [200, 412, 503].contains(status)),
        "{statuses:?}"
    );
    let key = owner
        .get(&format!("/v1/keys/{id}"))
        .send()
        .await
        .expect(200);
    assert_eq!(key["version"], 2);
}

async fn parallel_rotations_never_leave_more_than_three_live_secrets(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, _) = issue(&owner, new_key()).await;
    let path = format!("/v1/keys/{id}/rotate");
    let rotations = (0..50).map(|_| owner.post(&path).json(json!({"overlap": "1h"})).send());
    let answers = join_all(rotations).await;
    let rotated = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(
        rotated,
        2,
        "{:?}",
        answers.iter().map(|a| a.status).collect::<Vec<_>>()
    );
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert!(
            ["too_many_secrets", "busy"].contains(&answer.code()),
            "{answer}"
        );
    }
    let key = owner
        .get(&format!("/v1/keys/{id}"))
        .send()
        .await
        .expect(200);
    assert_eq!(key["secrets"].as_array().unwrap().len(), 3);
}

async fn twenty_creates_with_one_idempotency_key_make_one_key(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let post = |body: Value| {
        owner
            .post("/v1/keys")
            .header("idempotency-key", "once")
            .json(body)
    };
    let answers = join_all((0..20).map(|_| post(new_key()).send())).await;
    let mut plaintexts = 0;
    let mut ids = std::collections::BTreeSet::new();
    for answer in answers {
        let replayed = answer.headers.contains_key("idempotency-replayed");
        let body = answer.expect(201);
        ids.insert(text(&body, "/key/id"));
        assert_eq!(body["api_key"].is_null(), replayed);
        plaintexts += usize::from(!replayed);
    }
    assert_eq!((ids.len(), plaintexts), (1, 1));
    let mut other = new_key();
    other["name"] = json!("another");
    let refused = post(other).send().await;
    assert_eq!(
        (refused.status, refused.code()),
        (422, "idempotency_mismatch")
    );
    let target = format!(
        "/v1/audit/events?action=key.create&target={}",
        ids.first().unwrap()
    );
    let lines = owner.get(&target).send().await.expect(200);
    assert_eq!(
        lines["items"].as_array().unwrap().len(),
        1,
        "a replay leaves no line"
    );
}

async fn a_batch_is_all_or_nothing(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut bad = new_key();
    bad["consumer"] = json!("nobody");
    let batch = json!({"items": [new_key(), bad, new_key()]});
    let refused = owner.post("/v1/keys/batch").json(batch).send().await;
    assert_eq!(refused.status, 400, "{refused}");
    assert_eq!(refused.body["errors"][0]["pointer"], "/items/1/consumer");
    let listed = owner.get("/v1/keys?consumer=acme").send().await.expect(200);
    assert_eq!(listed["items"], json!([]));

    let items: Vec<_> = (0..200).map(|_| new_key()).collect();
    let made = owner
        .post("/v1/keys/batch")
        .json(json!({"items": items}))
        .send()
        .await
        .expect(201);
    let made = made["items"].as_array().unwrap();
    assert_eq!(made.len(), 200);
    for one in [&made[0], &made[199]] {
        assert_eq!(
            verify(&owner, &text(one, "/api_key"), "invoice:read").await,
            "valid"
        );
    }
    let mut seen = std::collections::BTreeSet::new();
    for key in owner.all("/v1/keys?consumer=acme", 90).await {
        assert!(seen.insert(text(&key, "/id")), "a key on two pages");
    }
    assert_eq!(seen.len(), 200);
}

async fn external_ids_of_a_batch_are_each_for_one_key(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let named = |external_id: &str| {
        let mut new = new_key();
        new["external_id"] = json!(external_id);
        new
    };
    let post = async |items: Value| {
        let body = json!({"items": items});
        owner.post("/v1/keys/batch").json(body).send().await
    };
    let twice = post(json!([named("a"), new_key(), named("b"), named("a")])).await;
    assert_eq!(twice.status, 400, "{twice}");
    let errors = &twice.body["errors"];
    assert_eq!(errors[0]["pointer"], "/items/3/external_id", "{errors}");
    assert_eq!(errors.as_array().unwrap().len(), 1);
    let made = post(json!([named("a"), named("b")])).await.expect(201);
    let taken = post(json!([named("c"), named("b")])).await;
    assert_eq!((taken.status, taken.code()), (409, "external_id_taken"));
    assert_eq!(taken.body["existing_id"], made["items"][1]["key"]["id"]);
    let places = |taken: &crate::support::Answer| {
        let errors = taken.body["errors"].as_array().unwrap().iter();
        errors.map(|one| text(one, "/pointer")).collect::<Vec<_>>()
    };
    assert_eq!(places(&taken), ["/items/1/external_id"]);
    // All of them, and who has the first.
    let taken = post(json!([new_key(), named("b"), named("d"), named("a")])).await;
    assert_eq!((taken.status, taken.code()), (409, "external_id_taken"));
    assert_eq!(taken.body["existing_id"], made["items"][1]["key"]["id"]);
    let expected = ["/items/1/external_id", "/items/3/external_id"];
    assert_eq!(places(&taken), expected);
    let taken = owner.post("/v1/keys").json(named("a")).send().await;
    assert_eq!((taken.status, taken.code()), (409, "external_id_taken"));
    assert_eq!(places(&taken), ["/external_id"]);
    let listed = owner.get("/v1/keys?consumer=acme").send().await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 2);
}

async fn a_batch_asked_for_again_is_told_in_its_order(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut items = vec![new_key(); 300];
    for (n, item) in items.iter_mut().enumerate() {
        item["name"] = json!(format!("number {n}"));
        item["tags"] = json!(["b", "a", "b"]);
    }
    let post = || {
        let body = json!({"items": items});
        let post = owner
            .post("/v1/keys/batch")
            .header("idempotency-key", "once");
        post.json(body).send()
    };
    let (first, again) = (post().await.expect(201), post().await.expect(201));
    let told = |answer: &Value| {
        let items = answer["items"].as_array().unwrap().iter();
        items.map(|one| one["key"].clone()).collect::<Vec<_>>()
    };
    let keys = told(&first);
    assert_eq!(keys, told(&again));
    for (n, key) in keys.iter().enumerate() {
        assert_eq!(key["name"], format!("number {n}"));
        assert_eq!(key["tags"], json!(["a", "b"]));
        assert_eq!(key["secrets"].as_array().unwrap().len(), 1);
    }
    assert!(again["items"][0]["api_key"].is_null());
}

async fn keys_ended_together_are_each_a_version_further(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(issue(&owner, new_key()).await.0);
    }
    let path = |n: usize| format!("/v1/keys/{}", ids[n]);
    let patch = json!({"name": "patched"});
    let patched = owner.request("PATCH".parse().unwrap(), &path(1));
    patched.json(patch).send().await.expect(200);
    let post = |path: String, body: Value| owner.post(&path).json(body).send();
    post(format!("{}/disable", path(2)), json!({}))
        .await
        .expect(200);
    post(format!("{}/revoke", path(3)), json!({}))
        .await
        .expect(200);
    let read = async |n: usize| owner.get(&path(n)).send().await.expect(200);
    let revoked = read(3).await;
    for (action, changed) in [("disable", 2), ("revoke", 3)] {
        let reason = format!("to {action} them");
        let end = json!({"consumer": "acme", "expected": 4, "action": action, "reason": reason});
        let done = post("/v1/keys/revoke".to_owned(), end).await.expect(200);
        assert_eq!(done["changed"], changed, "{done}");
        for n in 0..3 {
            let key = read(n).await;
            let target = format!("/v1/audit/events?target={}&action=key.{action}", ids[n]);
            let lines = owner.get(&target).send().await.expect(200);
            let line = &lines["items"][0];
            let after = &line["after"];
            if n < 2 || action == "revoke" {
                // The line says what is stored now.
                assert_eq!(after, &key, "{line}");
                assert_eq!(key["reason"], reason);
            }
            let further = if action == "revoke" { 2 } else { 1 };
            let before = [1, 2, 1][n];
            assert_eq!(key["version"], before + further, "{key}");
        }
        assert_eq!(read(3).await, revoked);
    }
}

/// Statements one after the other for each key would take a minute.
#[test]
fn keys_are_issued_and_ended_together_over_a_slow_network() {
    run(Backend::Postgres, async |home| {
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let server = home.serve_with(&[("DATABASE__URL", &url)]).await;
        let owner = server.owner();
        catalogue(&owner).await;
        let mut items = vec![new_key(); 500];
        for (n, item) in items.iter_mut().enumerate() {
            item["external_id"] = json!(format!("number-{n}"));
        }
        proxy.set(Fault::Delay(Duration::from_millis(15))).await;
        let batch = json!({"items": items});
        let made = owner.post("/v1/keys/batch").json(batch).send().await;
        assert_eq!(made.expect(201)["items"].as_array().unwrap().len(), 500);
        let end = json!({"consumer": "acme", "expected": 500});
        let ended = owner.post("/v1/keys/revoke").json(end).send().await;
        assert_eq!(ended.expect(200)["changed"], 500);
    });
}

async fn ending_by_filter_needs_the_count_it_was_told(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (_, key) = issue(&owner, new_key()).await;
    issue(&owner, new_key()).await;
    manager(&owner, &["verify"]).await;
    let end = |body: Value| owner.post("/v1/keys/revoke").json(body).send();
    for nothing in [json!({}), json!({"ids": []}), json!({"dry_run": true})] {
        assert_eq!(end(nothing.clone()).await.status, 400, "{nothing}");
    }
    let told = end(json!({"consumer": "acme", "dry_run": true}))
        .await
        .expect(200);
    assert_eq!(
        told["matched"], 2,
        "a management key is left out unless it is asked for"
    );
    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    let refused = end(json!({"consumer": "acme", "expected": 1})).await;
    assert_eq!((refused.status, refused.code()), (409, "count_changed"));
    let done = end(json!({"consumer": "acme", "expected": 2}))
        .await
        .expect(200);
    assert_eq!((&done["matched"], &done["changed"]), (&json!(2), &json!(2)));
    assert_eq!(verify(&owner, &key, "invoice:read").await, "revoked");
    let found = owner
        .post("/v1/keys/find")
        .json(json!({"api_keys": [key, "zzz"]}))
        .send()
        .await;
    let found = found.expect(200);
    assert_eq!(found["items"][0]["status"], "revoked");
    assert!(found["items"][1].is_null());
}

async fn a_dry_run_tells_what_would_change(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(issue(&owner, new_key()).await.0);
    }
    for (n, verb) in [(0, "revoke"), (1, "disable"), (2, "disable"), (2, "revoke")] {
        let end = owner.post(&format!("/v1/keys/{}/{verb}", ids[n]));
        end.json(json!({})).send().await.expect(200);
    }
    for (action, left) in [
        ("disable", &ids[3..]),
        ("revoke", &[&ids[1..2], &ids[3..]].concat()),
    ] {
        let end = async |rest: Value| {
            let mut body = json!({"consumer": "acme", "action": action});
            body.as_object_mut()
                .unwrap()
                .extend(rest.as_object().unwrap().clone());
            owner
                .post("/v1/keys/revoke")
                .json(body)
                .send()
                .await
                .expect(200)
        };
        let told = end(json!({"dry_run": true})).await;
        let items = told["items"].as_array().unwrap().iter();
        let shown: BTreeSet<String> = items.map(|key| text(key, "/id")).collect();
        assert_eq!(shown, left.iter().cloned().collect(), "{action}");
        let done = end(json!({"expected": told["matched"]})).await;
        assert_eq!(told["matched"], 5, "{told}");
        assert_eq!(told["changed"], left.len(), "{told}");
        assert_eq!(done["changed"], told["changed"], "{done}");
        let again = end(json!({"dry_run": true})).await;
        assert_eq!(
            (&again["changed"], &again["items"]),
            (&json!(0), &json!([]))
        );
    }
}

async fn wrong_keys_never_run_argon2(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut real = Vec::new();
    // So many that none of them is guessed at more often than a lookup id may be.
    for _ in 0..60 {
        let issued = owner.create("/v1/keys", new_key()).await;
        real.push(LookupId::parse(&text(&issued, "/key/lookup_id")).unwrap());
    }
    let runs = server.app.hasher.runs();
    let tenant = Slug::parse("default").unwrap();
    let tenant = server.app.tenants.by_slug(tenant).await.unwrap().unwrap();
    let (prefix, live) = (
        Prefix::parse("ks").unwrap(),
        Environment::parse("live").unwrap(),
    );
    let request = Request::default();
    for round in 0..100_usize {
        let keys: Vec<ApiKey> = (0..100_usize)
            .map(|n| {
                let lookup = if n % 2 == 0 {
                    real[(round * 50 + n / 2) % real.len()].clone()
                } else {
                    LookupId::new(&Entropy::System)
                };
                ApiKey::generate(&prefix, &live, &lookup, &Entropy::System)
            })
            .collect();
        let asking = crate::support::asking();
        let validation = &server.app.validation;
        let judge = async |key: &ApiKey| {
            loop {
                let (key, tenant) = (key.expose_secret(), &tenant.id);
                let judged = validation.validate(key, tenant, "invoicing", &request, &asking);
                match judged.await {
                    // A hundred at once on a slow machine: the look-up goes on, ask again.
                    Err(Failure::Late | Failure::Busy) => {}
                    answer => return answer.unwrap().decision.outcome,
                }
            }
        };
        for outcome in join_all(keys.iter().map(judge)).await {
            assert_eq!(outcome, Outcome::Unknown);
        }
    }
    assert_eq!(server.app.hasher.runs(), runs, "10,000 wrong keys");
}

async fn thousands_of_keys_that_nobody_remembers_all_have_their_turn(home: Home) {
    const IN_LINE: Duration = Duration::from_millis(3_900);
    const ANSWERED: Duration = Duration::from_secs(5);
    let is_long = setting("KEYSTEAD_TEST_LONG").is_some();
    // More than are looked up at once, and more than may be unknown in a second.
    let count = if is_long { 5_000 } else { 1_100 };
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut keys = Vec::new();
    while keys.len() < count {
        let items: Vec<_> = (keys.len()..count).take(400).map(|_| new_key()).collect();
        let issue = owner
            .post("/v1/keys/batch")
            .json(json!({"items": items}))
            .header("idempotency-key", &format!("from-{}", keys.len()));
        let issued = issue.send().await.expect(201);
        let issued = issued["items"].as_array().unwrap();
        keys.extend(issued.iter().map(|issued| text(issued, "/api_key")));
    }
    let tenant = Slug::parse("default").unwrap();
    let tenant = server.app.tenants.by_slug(tenant).await.unwrap().unwrap();
    let (request, asking) = (Request::default(), crate::support::asking());
    let validation = &server.app.validation;
    let began = Instant::now();
    let judge = async |key: &String| {
        let judged = validation.validate(key, &tenant.id, "invoicing", &request, &asking);
        let outcome = judged.await.map(|answer| answer.decision.outcome);
        (outcome, began.elapsed())
    };
    let judged = join_all(keys.iter().map(judge)).await;
    let took = began.elapsed();
    let mut late = 0;
    for (outcome, after) in judged {
        match outcome {
            Ok(outcome) => assert_eq!(outcome, Outcome::Valid),
            // On a machine that stalls a look-up takes longer than anybody waits, or all of them together do.
            Err(Failure::Late) => late += 1,
            Err(Failure::Busy) if after >= IN_LINE => late += 1,
            Err(failure) => panic!("turned away after {after:.1?}: {failure}"),
        }
    }
    figure(format_args!(
        "{count} cold keys in {took:.1?}, {late} too late"
    ));
    assert!(late < count / 2, "{late} were too late");
    assert!(!is_long || late == 0, "{late} were too late");
    assert!(!is_long || took <= ANSWERED, "{took:?}");
}

async fn a_key_that_is_unknown_is_looked_up_once_however_often_it_is_tried(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (_, key) = issue(&owner, new_key()).await;
    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    let (prefix, live) = (
        Prefix::parse("ks").unwrap(),
        Environment::parse("live").unwrap(),
    );
    let lookup = LookupId::new(&Entropy::System);
    let unknown = ApiKey::generate(&prefix, &live, &lookup, &Entropy::System);
    let ask = async || {
        let body = json!({
            "api_key": unknown.expose_secret(), "service": "invoicing", "ip": "203.0.113.9",
        });
        owner.post("/v1/verify").json(body).send().await.expect(200)
    };
    let began = Instant::now();
    let (lookups, tried) = server
        .lookups(async {
            let mut tried = 0;
            // More often than its lookup id and its address may fail in that time.
            while tried < 700 {
                let told = join_all((0..50).map(|_| ask())).await;
                assert!(
                    told.iter().all(|told| told["code"] == "unknown"),
                    "{told:?}"
                );
                tried += told.len();
            }
            tried
        })
        .await;
    // It is remembered for five seconds.
    let remembered = usize::try_from(began.elapsed().as_secs() / 5).unwrap();
    assert!(lookups <= 1 + remembered, "{lookups} for {tried}");
}
