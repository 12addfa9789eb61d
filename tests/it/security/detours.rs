//! Ways around a rule that stands elsewhere.

use keystead::time::Span;

use super::*;

both!(
    a_consumer_of_management_keys_is_changed_only_by_who_holds_what_they_hold,
    new_grants_are_judged_by_the_policy_of_their_services,
    a_superseded_secret_cannot_rotate_its_key,
    a_gateway_that_names_no_scope_lets_nobody_in,
    a_key_bound_to_addresses_is_judged_by_the_client_and_never_by_the_gateway,
    nothing_is_told_of_a_key_that_is_for_another_service,
    a_holder_can_end_its_key_whatever_is_left_of_its_limits,
    a_name_that_can_be_no_service_is_no_service,
    a_database_put_back_to_an_old_copy_revives_nothing,
);

async fn a_consumer_of_management_keys_is_changed_only_by_who_holds_what_they_hold(home: Home) {
    let world = World::new(&home).await;
    let scopes = json!(["services:read", "consumers:*", "keys:*"]);
    let issuer = key_with(json!({"service": "keystead", "scopes": scopes}));
    let (_, issuer) = World::issue(&world.owner, &issuer).await;
    let issuer = world.owner.with_key(&issuer);
    let path = "/v1/consumers/keystead-owner";
    let limits = json!({"rate_limits": [{"name": "x", "limit": 1, "period": "31d"}]});
    for (method, path, body) in [
        ("POST", format!("{path}/disable"), json!({})),
        ("POST", format!("{path}/enable"), json!({})),
        ("PATCH", path.to_owned(), limits),
        ("DELETE", format!("{path}?revoke_keys=true"), json!(null)),
    ] {
        let mut request = issuer.request(method.parse().unwrap(), &path);
        if !body.is_null() {
            request = request.json(body);
        }
        let refused = request.send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (403, "escalation"),
            "{method}"
        );
    }
    // Not that of keys that were revoked, nor of other consumers.
    world
        .owner
        .create("/v1/consumers", json!({"slug": "guarded"}))
        .await;
    let guard = json!({
        "name": "guard", "consumer": "guarded",
        "grants": [{"service": "keystead", "scopes": ["audit:read"]}],
    });
    let (guard, _) = World::issue(&world.owner, &guard).await;
    let disable = async || issuer.post("/v1/consumers/guarded/disable").send().await;
    let refused = disable().await;
    assert_eq!((refused.status, refused.code()), (403, "escalation"));
    let revoke = world.owner.post(&format!("/v1/keys/{guard}/revoke"));
    revoke
        .json(json!({"reason": "over"}))
        .send()
        .await
        .expect(200);
    assert_eq!(disable().await.status, 200);
    // Its own affairs go on, and the owner may.
    issuer
        .create("/v1/consumers", json!({"slug": "other"}))
        .await;
    let disabled = issuer.post("/v1/consumers/other/disable").send().await;
    assert_eq!(disabled.status, 200, "{disabled}");
    let named = world.owner.request("PATCH".parse().unwrap(), path);
    named
        .json(json!({"name": "Owners"}))
        .send()
        .await
        .expect(200);
}

async fn new_grants_are_judged_by_the_policy_of_their_services(home: Home) {
    let world = World::new(&home).await;
    let strict = json!({"slug": "strict", "key_policy": {"max_ttl": "1h"}});
    world.owner.create("/v1/services", strict).await;
    let mut new = new_key();
    new["expires_at"] = json!(null);
    let (id, _) = World::issue(&world.owner, &new).await;
    let grants = json!([{"service": "strict", "scopes": ["a"]}]);
    let patch = async |body: Value| {
        let path = format!("/v1/keys/{id}");
        let request = world.owner.request("PATCH".parse().unwrap(), &path);
        request.json(body).send().await
    };
    let refused = patch(json!({"grants": grants})).await;
    assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
    assert_eq!(refused.body["errors"][0]["pointer"], "/expires_at");
    let refused = patch(json!({"grants": grants, "ttl": "2h"})).await;
    assert_eq!(refused.status, 400, "{refused}");
    patch(json!({"grants": grants, "ttl": "30m"}))
        .await
        .expect(200);
}

async fn a_superseded_secret_cannot_rotate_its_key(home: Home) {
    let world = World::new(&home).await;
    let policy = json!({"key_policy": {"self_rotate": true}});
    let path = "/v1/services/invoicing";
    let patch = world.owner.request("PATCH".parse().unwrap(), path);
    patch.json(policy).send().await.expect(200);
    let (id, leaked) = world.key().await;
    let path = format!("/v1/keys/{id}/rotate");
    let rotated = world.owner.post(&path).send().await.expect(200);
    let fresh = text(&rotated, "/api_key");
    let rotate = async |key: &str| {
        let holder = world.owner.with_key(key);
        let request = holder
            .post("/v1/self/rotate")
            .json(json!({"overlap": "0s"}));
        request.send().await
    };
    let refused = rotate(&leaked).await;
    assert_eq!((refused.status, refused.code()), (403, "escalation"));
    assert_eq!(world.judge(Carrier::VerifyBody, &fresh).await, "valid");
    rotate(&fresh).await.expect(200);
    // To end the key is what whoever finds it may do.
    let ended = world.owner.with_key(&leaked).post("/v1/self/revoke");
    ended.send().await.expect(200);
}

async fn a_gateway_that_names_no_scope_lets_nobody_in(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    let ask = async |query: &str| {
        let client = world.server.client();
        let request = client
            .get(&format!("/gateway/authorize{query}"))
            .header("x-keystead-caller", &world.gateway)
            .header("x-api-key", &key);
        request.send().await
    };
    assert_eq!(ask("").await.status, 200);
    assert_eq!(ask("?any_scopes=invoice:*").await.status, 200);
    for query in [
        "?any_scopes=",
        "?required_scopes=",
        "?required_scopes=,%20",
        "?foo=1",
    ] {
        let refused = ask(query).await;
        assert!(refused.status >= 400, "{query}: {refused}");
        for name in [
            "key-id",
            "consumer",
            "tenant",
            "service",
            "scopes",
            "environment",
            "subject",
        ] {
            assert_eq!(
                refused.headers[&format!("x-keystead-{name}")],
                "",
                "{query} {name}"
            );
        }
    }
    assert_eq!(ask("?any_scopes=").await.code(), "caller_not_allowed");
}

async fn a_key_bound_to_addresses_is_judged_by_the_client_and_never_by_the_gateway(home: Home) {
    // Nobody is trusted to tell of clients here.
    let server = home.serve().await;
    let owner = server.owner();
    World::catalogue(&owner).await;
    let manage = json!({"service": "keystead", "scopes": ["verify:invoicing"]});
    let mut gateway = key_with(manage);
    gateway["allowed_ips"] = json!(["127.0.0.1"]);
    let (_, gateway) = World::issue(&owner, &gateway).await;
    let mut bound = new_key();
    bound["allowed_ips"] = json!(["127.0.0.0/8"]);
    let (_, bound) = World::issue(&owner, &bound).await;
    let (_, free) = World::issue(&owner, &new_key()).await;
    for (key, status) in [(&bound, 403), (&free, 200)] {
        let client = server.client();
        let request = client
            .get("/gateway/authorize")
            .header("x-keystead-caller", &gateway)
            .header("x-forwarded-for", "127.0.0.1")
            .header("x-api-key", key);
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{answer}");
    }
}

async fn nothing_is_told_of_a_key_that_is_for_another_service(home: Home) {
    let world = World::new(&home).await;
    world
        .owner
        .create("/v1/services", json!({"slug": "other"}))
        .await;
    let (id, key) = world.key().await;
    let ask = async || {
        let body = json!({"api_key": key, "service": "other"});
        world
            .owner
            .post("/v1/verify")
            .json(body)
            .send()
            .await
            .expect(200)
    };
    for (verb, code) in [
        ("", "wrong_service"),
        ("disable", "disabled"),
        ("revoke", "revoked"),
    ] {
        if !verb.is_empty() {
            let path = format!("/v1/keys/{id}/{verb}");
            world.owner.post(&path).send().await.expect(200);
        }
        let told = ask().await;
        let members: Vec<&String> = told.as_object().unwrap().keys().collect();
        assert_eq!(told["code"], code);
        assert_eq!(
            members,
            ["valid", "code", "status", "key_id", "request_id"],
            "{code}"
        );
    }
}

async fn a_holder_can_end_its_key_whatever_is_left_of_its_limits(home: Home) {
    let world = World::new(&home).await;
    let mut new = new_key();
    new["quota"] = json!({"limit": 1, "period": "month"});
    let (_, key) = World::issue(&world.owner, &new).await;
    for code in ["valid", "quota_exceeded"] {
        assert_eq!(world.judge(Carrier::VerifyBody, &key).await, code);
    }
    let holder = world.owner.with_key(&key);
    holder.post("/v1/self/revoke").send().await.expect(200);
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "revoked");
}

async fn a_name_that_can_be_no_service_is_no_service(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    for name in ["x".repeat(60_000), "-".to_owned(), "a b".to_owned()] {
        let (statements, told) = world
            .server
            .statements(async {
                let body = json!({"api_key": key, "service": name});
                let verify = world.owner.post("/v1/verify").json(body).send();
                verify.await.expect(200)
            })
            .await;
        assert_eq!(told["code"], "wrong_service");
        assert!(
            statements
                .iter()
                .all(|text| !text.contains(&name[..1].repeat(60)))
        );
    }
}

async fn a_database_put_back_to_an_old_copy_revives_nothing(home: Home) {
    let world = World::new(&home).await;
    let (id, key) = world.key().await;
    for round in 0..10 {
        let path = format!("/v1/keys/{id}");
        let patch = world.owner.request("PATCH".parse().unwrap(), &path);
        patch
            .json(json!({"name": format!("name {round}")}))
            .send()
            .await
            .expect(200);
    }
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");
    let changes = &world.server.app.changes;
    let epoch = changes.epoch();
    // As a copy from before most of it would be.
    for statement in [
        "UPDATE change_head SET seq = seq - 8",
        "DELETE FROM change WHERE seq > (SELECT seq FROM change_head)",
    ] {
        crate::support::tables::execute(&home, statement).await;
    }
    crate::support::until(
        std::time::Duration::from_secs(5),
        "it is noticed",
        async || changes.epoch() != epoch,
    )
    .await;
    let path = format!("/v1/keys/{id}/revoke");
    world.owner.post(&path).send().await.expect(200);
    for _ in 0..3 {
        assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "revoked");
    }
    world.server.clock.advance(Span::seconds(1));
}
