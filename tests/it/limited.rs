//! Limits and quotas as those who verify and those who hold keys meet them.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::time::Span;
use serde_json::{Value, json};

use crate::support::{Answer, Client, Fault, Home, both, metric, redis, text, until};

const SOON: Duration = Duration::from_secs(10);

both!(
    a_burst_is_admitted_and_the_next_is_told_when_to_come_again,
    limits_of_key_grant_and_consumer_add_up_and_a_default_steps_in,
    what_is_refused_or_only_explained_is_not_charged,
    neither_a_change_nor_a_rotation_gives_a_limit_back,
    a_quota_ends_and_is_full_again_the_next_day,
    what_limits_and_quotas_say_is_explained_and_not_charged,
    a_limit_that_is_decided_without_redis_says_so,
    a_caller_has_limits_too,
    what_is_refused_within_a_batch_is_counted_as_what_is_refused_alone,
    nodes_that_share_redis_share_a_limit_exactly,
);

async fn catalogue(owner: &Client, service: Value, consumer: Value) {
    let mut new = json!({"slug": "invoicing"});
    merge(&mut new, service);
    owner.create("/v1/services", new).await;
    let mut new = json!({"slug": "acme"});
    merge(&mut new, consumer);
    owner.create("/v1/consumers", new).await;
}

fn merge(into: &mut Value, more: Value) {
    let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) else {
        panic!("objects");
    };
    into.extend(more);
}

/// A key's id and plaintext.
async fn issue(owner: &Client, more: Value) -> (String, String) {
    let mut new = json!({
        "name": "worker", "consumer": "acme",
        "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
    });
    merge(&mut new, more);
    let issued = owner.create("/v1/keys", new).await;
    (text(&issued, "/key/id"), text(&issued, "/api_key"))
}

fn limit(name: &str, burst: u64) -> Value {
    json!([{"name": name, "limit": burst, "period": "1h"}])
}

async fn ask(owner: &Client, key: &str, more: Value) -> Answer {
    let mut body = json!({"api_key": key, "service": "invoicing"});
    merge(&mut body, more);
    owner.post("/v1/verify").json(body).send().await
}

async fn code(owner: &Client, key: &str) -> String {
    let answer = ask(owner, key, json!({})).await.expect(200);
    answer["code"].as_str().unwrap().to_owned()
}

async fn a_burst_is_admitted_and_the_next_is_told_when_to_come_again(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let (_, key) = issue(&owner, json!({"rate_limits": limit("burst", 3)})).await;
    for remaining in [2, 1, 0] {
        let told = ask(&owner, &key, json!({})).await.expect(200);
        assert_eq!(told["code"], "valid");
        assert_eq!(told["rate_limits"][0]["name"], "key:burst");
        assert_eq!(told["rate_limits"][0]["remaining"], remaining);
    }
    let told = ask(&owner, &key, json!({})).await.expect(200);
    assert_eq!(
        (&told["code"], &told["status"]),
        (&json!("rate_limited"), &json!(429))
    );
    assert_eq!(told["valid"], false);
    let wait = told["retry_after_ms"].as_u64().unwrap();
    assert!((1_190_000..=1_200_000).contains(&wait), "{wait}");

    // The same at the gateway, where HTTP has words for it.
    let grants = json!([{"service": "keystead", "scopes": ["verify:invoicing"]}]);
    let (_, gateway) = issue(&owner, json!({"grants": grants})).await;
    let judge = async || {
        let client = server.client();
        let asked = client
            .get("/gateway/authorize")
            .header("x-keystead-caller", &gateway)
            .header("x-api-key", &key);
        asked.send().await
    };
    let refused = judge().await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    let seconds: u64 = refused.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1_190..=1_200).contains(&seconds), "{seconds}");
    assert_eq!(
        refused.headers["ratelimit-policy"],
        "\"key:burst\";q=3;w=3600"
    );
    assert!(
        refused.headers["ratelimit"]
            .to_str()
            .unwrap()
            .starts_with("\"key:burst\";r=0;t=")
    );

    server.clock.advance(Span::seconds(1200));
    assert_eq!(judge().await.status, 200);
    assert_eq!(code(&owner, &key).await, "rate_limited");
}

async fn limits_of_key_grant_and_consumer_add_up_and_a_default_steps_in(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let service = json!({"rate_limits": limit("all", 2)});
    catalogue(&owner, service, json!({"rate_limits": limit("shared", 7)})).await;
    let grants = json!([{
        "service": "invoicing", "scopes": [], "rate_limits": limit("here", 4),
    }]);
    let both = json!({"grants": grants, "rate_limits": limit("own", 5)});
    let (_, named) = issue(&owner, both).await;
    let told = ask(&owner, &named, json!({})).await.expect(200);
    let names: Vec<_> = told["rate_limits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|limit| (limit["name"].clone(), limit["remaining"].clone()))
        .collect();
    assert_eq!(
        names,
        [("key:own", 4), ("grant:here", 3), ("consumer:shared", 6)]
            .map(|(name, remaining)| (json!(name), json!(remaining)))
    );
    // One that names none has the service's, for itself alone.
    let (_, plain) = issue(&owner, json!({})).await;
    let (_, other) = issue(&owner, json!({})).await;
    let told = ask(&owner, &plain, json!({})).await.expect(200);
    assert_eq!(told["rate_limits"][0]["name"], "consumer:shared");
    assert_eq!(told["rate_limits"][1]["name"], "service:all");
    assert_eq!(told["rate_limits"][1]["remaining"], 1);
    assert_eq!(code(&owner, &plain).await, "valid");
    assert_eq!(code(&owner, &plain).await, "rate_limited");
    // Four of seven are spent; what was refused took nothing of it.
    let told = ask(&owner, &other, json!({})).await.expect(200);
    assert_eq!(told["rate_limits"][0]["remaining"], 3);
    assert_eq!(told["rate_limits"][1]["remaining"], 1);
}

async fn what_is_refused_or_only_explained_is_not_charged(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let (_, key) = issue(&owner, json!({"rate_limits": limit("burst", 5)})).await;
    for more in [
        json!({"required_scopes": ["invoice:send"]}),
        json!({"environment": "test"}),
        json!({"cost": 0}),
    ] {
        ask(&owner, &key, more).await.expect(200);
    }
    let body = json!({"api_key": key, "service": "invoicing"});
    owner
        .post("/v1/explain")
        .json(body)
        .send()
        .await
        .expect(200);
    let too_much = ask(&owner, &key, json!({"cost": 6})).await;
    assert_eq!(
        (too_much.status, too_much.code()),
        (400, "cost_exceeds_limit")
    );
    let told = ask(&owner, &key, json!({"cost": 5})).await.expect(200);
    assert_eq!(told["code"], "valid", "{told}");
    assert_eq!(told["rate_limits"][0]["remaining"], 0);
    // Nor does it help to wait for a quota that is smaller than the cost.
    let quota = json!({"limit": 5, "period": "day"});
    let (_, key) = issue(&owner, json!({"quota": quota})).await;
    let too_much = ask(&owner, &key, json!({"cost": 6})).await;
    assert_eq!(
        (too_much.status, too_much.code()),
        (400, "cost_exceeds_limit")
    );
    let detail = text(&too_much.body, "/detail");
    assert_eq!(detail, "the cost is more than the quota of the key");
    let told = ask(&owner, &key, json!({"cost": 5})).await.expect(200);
    assert_eq!(told["quota"]["remaining"], 0, "{told}");
    let told = ask(&owner, &key, json!({"cost": 5})).await.expect(200);
    assert_eq!(told["code"], "quota_exceeded", "{told}");
}

async fn what_limits_and_quotas_say_is_explained_and_not_charged(home: Home) {
    let url = redis::url();
    for settings in [&[][..], &[("REDIS__URL", url.as_str())]] {
        let home = home.empty().await;
        let server = home.serve_with(settings).await;
        let owner = server.owner();
        let quota = json!({"limit": 3, "period": "day"});
        catalogue(&owner, json!({}), json!({"quota": quota})).await;
        let (id, key) = issue(&owner, json!({"rate_limits": limit("burst", 2)})).await;
        let explain = async |more: Value| {
            let mut body = json!({"key_id": id, "service": "invoicing"});
            merge(&mut body, more);
            let told = owner.post("/v1/explain").json(body).send().await;
            told.expect(200)
        };
        let last = |told: &Value| {
            let checks = told["checks"].as_array().unwrap();
            let of = |name: &str| {
                let found = checks.iter().find(|check| check["name"] == name);
                let check = found.expect(name);
                (check["passed"].clone(), text(check, "/detail"))
            };
            (of("rate_limited"), of("quota_exceeded"))
        };
        for _ in 0..5 {
            let told = explain(json!({})).await;
            assert_eq!(told["code"], "valid", "{told}");
            let (limit, quota) = last(&told);
            assert_eq!(limit.0, true, "{told}");
            assert_eq!(limit.1, "key:burst has 2 left and is whole in 0 ms");
            assert_eq!(quota.0, true, "{told}");
            assert!(
                quota
                    .1
                    .starts_with("the quota of the consumer has 3 of 3 left until "),
                "{told}"
            );
        }
        ask(&owner, &key, json!({})).await.expect(200);
        assert_eq!(explain(json!({})).await["code"], "valid");
        // As what it is asked for.
        let told = explain(json!({"cost": 2})).await;
        assert_eq!(told["code"], "rate_limited", "{told}");
        assert_eq!(last(&told).0.0, false, "{told}");
        ask(&owner, &key, json!({})).await.expect(200);
        let told = explain(json!({})).await;
        assert_eq!(told["code"], "rate_limited", "{told}");
        let (limit, quota) = last(&told);
        assert!(
            limit.1.starts_with("key:burst has 0 left and is whole in "),
            "{told}"
        );
        assert_eq!((limit.0, quota.0), (json!(false), json!(true)), "{told}");
        let (id, other) = issue(&owner, json!({})).await;
        ask(&owner, &other, json!({})).await.expect(200);
        let body = json!({"key_id": id, "service": "invoicing"});
        let told = owner
            .post("/v1/explain")
            .json(body)
            .send()
            .await
            .expect(200);
        assert_eq!(told["code"], "quota_exceeded", "{told}");
        // One that is refused for something else has nothing to do with them.
        let told = explain(json!({"required_scopes": ["invoice:send"]})).await;
        assert_eq!(told["code"], "insufficient_scope", "{told}");
        assert!(!told.to_string().contains("key:burst"), "{told}");
    }
}

async fn a_limit_that_is_decided_without_redis_says_so(home: Home) {
    let (mut proxy, url) = redis::behind_proxy(&redis::url()).await;
    let server = home.serve_with(&[("REDIS__URL", &url)]).await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let (mut closed, mut open) = (limit("closed", 50), limit("open", 50));
    (closed[0]["fail_mode"], open[0]["fail_mode"]) = (json!("closed"), json!("open"));
    let keys = [
        issue(&owner, json!({"rate_limits": closed})).await.1,
        issue(&owner, json!({"rate_limits": open})).await.1,
    ];
    let told = async |key: &str| {
        let told = ask(&owner, key, json!({})).await.expect(200);
        (text(&told, "/code"), told["rate_limits"][0].clone())
    };
    for key in &keys {
        until(SOON, "the shared counter decides", async || {
            let (code, limit) = told(key).await;
            code == "valid" && limit.get("degraded").is_none()
        })
        .await;
    }
    proxy.set(Fault::Refuse).await;
    for (key, expected) in keys.iter().zip(["rate_limited", "valid"]) {
        let (code, limit) = told(key).await;
        assert_eq!((&*code, &limit["degraded"]), (expected, &json!(true)));
        assert!(limit["remaining"].as_u64().unwrap() > 0, "{limit}");
    }
    proxy.set(Fault::None).await;
    until(SOON, "the shared counter decides again", async || {
        let (code, limit) = told(&keys[0]).await;
        code == "valid" && limit.get("degraded").is_none()
    })
    .await;
}

async fn neither_a_change_nor_a_rotation_gives_a_limit_back(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let (id, key) = issue(&owner, json!({"rate_limits": limit("burst", 2)})).await;
    for _ in 0..2 {
        assert_eq!(code(&owner, &key).await, "valid");
    }
    let path = format!("/v1/keys/{id}");
    let patch = owner.request("PATCH".parse().unwrap(), &path);
    patch
        .json(json!({"name": "renamed"}))
        .send()
        .await
        .expect(200);
    assert_eq!(code(&owner, &key).await, "rate_limited");
    let rotated = owner
        .post(&format!("{path}/rotate"))
        .send()
        .await
        .expect(200);
    let fresh = rotated["api_key"].as_str().unwrap();
    assert_eq!(code(&owner, fresh).await, "rate_limited");
}

async fn a_quota_ends_and_is_full_again_the_next_day(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let quota = json!({"limit": 2, "period": "day"});
    let (_, key) = issue(&owner, json!({"quota": quota})).await;
    for remaining in [1, 0] {
        let told = ask(&owner, &key, json!({})).await.expect(200);
        assert_eq!(told["quota"]["remaining"], remaining, "{told}");
    }
    let told = ask(&owner, &key, json!({})).await.expect(200);
    assert_eq!(
        (&told["code"], &told["status"]),
        (&json!("quota_exceeded"), &json!(429))
    );
    // The owner key ends within a day.
    let grants = json!([{"service": "keystead", "scopes": ["verify"]}]);
    let (_, caller) = issue(&owner, json!({"grants": grants})).await;
    server.clock.advance(Span::hours(24));
    assert_eq!(code(&owner.with_key(&caller), &key).await, "valid");
}

async fn a_caller_has_limits_too(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let grants = json!([{"service": "keystead", "scopes": ["keys:read"]}]);
    let (_, key) = issue(
        &owner,
        json!({"grants": grants, "rate_limits": limit("calls", 2)}),
    )
    .await;
    let caller = owner.with_key(&key);
    for left in [1, 0] {
        let answer = caller.get("/v1/keys").send().await;
        let state = answer.headers["ratelimit"].to_str().unwrap().to_owned();
        assert!(
            state.starts_with(&format!("\"key:calls\";r={left};t=")),
            "{state}"
        );
        answer.expect(200);
    }
    let refused = caller.get("/v1/keys").send().await;
    assert_eq!((refused.status, refused.code()), (429, "rate_limited"));
    assert!(refused.headers.contains_key("retry-after"));
    // Whoever is behind a gateway has no limits of its key: that stands in the way of all of them.
    let request = server.client().get("/gateway/authorize?service=invoicing");
    let request = request.header("x-keystead-caller", &key);
    let refused = request.header("x-api-key", "of a client").send().await;
    assert_eq!(
        (refused.status, refused.code()),
        (503, "caller_not_allowed")
    );
    let used_up = "the limits of the key in X-Keystead-Caller are used up";
    assert_eq!(refused.body["detail"], used_up);
    // Somebody may raise them before they are free again.
    assert_eq!(refused.headers["retry-after"], "30");
}

async fn what_is_refused_within_a_batch_is_counted_as_what_is_refused_alone(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let seen = async || {
        let name = "keystead_problems_total{code=\"invalid_request\"}";
        metric(&server.client(), name).await
    };
    let alone = owner.post("/v1/verify").json(json!({"api_key": 1}));
    assert_eq!(alone.send().await.code(), "invalid_request");
    let before = seen().await;
    let items = json!([{"api_key": 1}, {"api_key": "none of ours", "service": "keystead"}, {}]);
    let batch = owner.post("/v1/verify/batch").json(json!({"items": items}));
    let told = batch.send().await.expect(200);
    assert_eq!(told["items"][0]["problem"]["code"], "invalid_request");
    assert_eq!(told["items"][1]["code"], "malformed");
    assert_eq!(seen().await, before + 2);
}

async fn nodes_that_share_redis_share_a_limit_exactly(home: Home) {
    let url = redis::url();
    let settings = [("REDIS__URL", url.as_str())];
    let first = home.serve_with(&settings).await;
    let owner = first.owner();
    catalogue(&owner, json!({}), json!({})).await;
    let mut limits = limit("burst", 20);
    // A call to Redis that takes too long on a slow machine is refused, not judged by its node alone.
    limits[0]["fail_mode"] = json!("closed");
    let (_, key) = issue(&owner, json!({"rate_limits": limits})).await;
    let grants = json!([{"service": "keystead", "scopes": ["verify"]}]);
    let (_, caller) = issue(&owner, json!({"grants": grants})).await;
    let second = home.serve_with(&settings).await;
    let nodes = [
        first.client().with_key(&caller),
        second.client().with_key(&caller),
    ];
    for node in &nodes {
        ask(node, &key, json!({"cost": 0})).await.expect(200);
    }
    let asked = (0..60).map(|at| ask(&nodes[at % 2], &key, json!({})));
    let admitted = join_all(asked)
        .await
        .into_iter()
        .filter(|answer| answer.body["code"] == "valid")
        .count();
    assert!((15..=20).contains(&admitted), "{admitted}");
}
