//! What a restriction means: an empty list is not everything, a scope is not its beginning.

use super::*;

both!(
    an_empty_list_is_never_everything,
    a_scope_is_met_by_what_covers_it_and_by_nothing_that_looks_like_it,
);

/// A15.
async fn an_empty_list_is_never_everything(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    let with = |name: &str, value: Value| {
        let mut new = new_key();
        new[name] = value;
        new
    };
    for (new, pointer) in [
        (with("allowed_ips", json!([])), "/allowed_ips"),
        (with("grants", json!([])), "/grants"),
    ] {
        let refused = owner.post("/v1/keys").json(new).send().await;
        assert_eq!(refused.status, 400, "{refused}");
        assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{refused}");
    }
    let (id, key) = world.key().await;
    for patch in [json!({"allowed_ips": []}), json!({"grants": []})] {
        let path = format!("/v1/keys/{id}");
        let refused = owner.request("PATCH".parse().unwrap(), &path).json(patch);
        let refused = refused.send().await;
        assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
    }
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");

    let policy = json!({"slug": "none", "key_policy": {"environments": []}});
    let refused = owner.post("/v1/services").json(policy).send().await;
    assert_eq!((refused.status, refused.code()), (400, "invalid_request"));

    // A grant of no scope is one of no scope.
    let bare = key_with(json!({"service": "invoicing", "scopes": []}));
    let (_, bare) = World::issue(owner, &bare).await;
    let ask = async |rest: Value| {
        let mut body = json!({"api_key": bare, "service": "invoicing"});
        for (name, value) in rest.as_object().unwrap() {
            body[name] = value.clone();
        }
        let answer = owner.post("/v1/verify").json(body).send().await;
        super::code(&answer)
    };
    assert_eq!(ask(json!({})).await, "valid");
    assert_eq!(ask(json!({"required_scopes": []})).await, "valid");
    assert_eq!(ask(json!({"any_scopes": []})).await, "invalid_request");
    for scope in ["invoice:read", "invoice:*", "*", "domain:invoice"] {
        assert_eq!(
            ask(json!({"required_scopes": [scope]})).await,
            "insufficient_scope"
        );
        assert_eq!(
            ask(json!({"any_scopes": [scope]})).await,
            "insufficient_scope"
        );
    }
    // A management key of no scope may do nothing.
    let idle = key_with(json!({"service": "keystead", "scopes": []}));
    let made = owner.post("/v1/keys").json(idle).send().await;
    if made.status == 201 {
        let idle = owner.with_key(&text(&made.body, "/api_key"));
        let refused = idle.get("/v1/keys").send().await;
        assert_eq!((refused.status, refused.code()), (403, "forbidden"));
    } else {
        assert_eq!((made.status, made.code()), (400, "invalid_request"));
    }
}

/// A16.
async fn a_scope_is_met_by_what_covers_it_and_by_nothing_that_looks_like_it(home: Home) {
    let world = World::new(&home).await;
    for (granted, met, unmet) in [
        (
            "read",
            &["read"][..],
            &[
                "read_all", "READ", "rea", "read:all", "read:*", "reader", "*",
            ][..],
        ),
        (
            "invoice:*",
            &[
                "invoice:read",
                "invoice:read:own",
                "invoice:a:b",
                "invoice:*",
            ],
            &[
                "invoice",
                "invoicex:read",
                "invoic:read",
                "Invoice:read",
                "x:invoice:read",
                "*",
            ],
        ),
        (
            "invoice:read",
            &["invoice:read", "invoice:*"],
            &[
                "invoice",
                "invoice:read:own",
                "invoice:rea",
                "invoice:readx",
                "invoice:read:*",
            ],
        ),
        ("a.b", &["a.b"], &["axb", "a", "a.b.c", "a:b"]),
        ("*", &["read", "invoice:read", "invoice:*", "*"], &[]),
    ] {
        let grant = json!({"service": "invoicing", "scopes": [granted]});
        let (_, key) = World::issue(&world.owner, &key_with(grant)).await;
        for (scopes, code) in [(met, "valid"), (unmet, "insufficient_scope")] {
            for scope in scopes {
                let body = json!({
                    "api_key": key, "service": "invoicing", "required_scopes": [scope]
                });
                let told = world.owner.post("/v1/verify").json(body).send().await;
                let told = told.expect(200);
                assert_eq!(told["code"], code, "{granted} for {scope}");
                let path = format!("/gateway/authorize?required_scopes={scope}");
                let told = world
                    .server
                    .client()
                    .get(&path)
                    .header("x-keystead-caller", &world.gateway)
                    .header("x-api-key", &key)
                    .send()
                    .await;
                assert_eq!(
                    super::code(&told),
                    code,
                    "{granted} for {scope} at the gateway"
                );
            }
        }
        // What is no scope is not asked for, let alone met.
        for scope in ["read ", " read", "re ad", "", "a*", "*:read", "read,x"] {
            let body = json!({"api_key": key, "service": "invoicing", "required_scopes": [scope]});
            let told = world.owner.post("/v1/verify").json(body).send().await;
            assert_eq!(told.status, 400, "{scope:?}: {told}");
        }
    }
}
