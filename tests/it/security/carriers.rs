//! The ways on which a key comes: one spelling, one key a request, the same rules on each, and no way
//! through the address bar.

use super::*;

both!(
    a_key_has_one_spelling_on_every_way,
    of_two_keys_in_one_request_neither_counts,
    a_restriction_holds_on_every_way,
    a_key_in_the_query_is_refused_and_in_no_log,
);

/// A3. Space around a header's value is HTTP's, not the key's; a body has none to spare:
/// `keys::life::a_typo_is_malformed_and_a_stranger_unknown` has those.
async fn a_key_has_one_spelling_on_every_way(home: Home) {
    let world = World::new(&home).await;
    let (id, key) = world.key().await;
    let owner_key = world.server.owner_key().unwrap().to_owned();
    let full_width: String = key
        .chars()
        .map(|c| char::from_u32(u32::from(c) + 0xfee0).unwrap())
        .collect();
    for (name, spell) in [
        (
            "full width",
            &(|_: &str| full_width.clone()) as &dyn Fn(&str) -> String,
        ),
        ("upper case", &|key| key.to_uppercase()),
        ("lower case", &|key| key.to_lowercase()),
        ("upper-case prefix", &|key| key.replacen("ks", "KS", 1)),
        ("upper-case environment", &|key| {
            key.replacen("live", "LIVE", 1)
        }),
        ("percent", &|key| key.replacen('_', "%5F", 1)),
        ("quoted", &|key| format!("\"{key}\"")),
        ("in brackets", &|key| format!("<{key}>")),
        ("padded", &|key| format!("{key}=")),
        ("scheme", &|key| format!("Bearer {key}")),
        ("space inside", &|key| key.replacen('_', " _", 1)),
        ("zero-width space", &|key| format!("{key}\u{200b}")),
        ("zero-width joiner", &|key| {
            key.replacen('_', "_\u{200d}", 1)
        }),
        ("soft hyphen", &|key| format!("\u{ad}{key}")),
        ("byte order mark", &|key| format!("\u{feff}{key}")),
        ("homoglyph", &|key| key.replacen('k', "\u{43a}", 1)),
        ("dashes", &|key| key.replace('_', "-")),
        ("doubled", &|key| format!("{key}{key}")),
        ("short", &|key| key[..key.len() - 1].to_owned()),
        ("comment", &|key| format!("{key};x")),
    ] {
        for carrier in Carrier::JUDGED {
            let told = world.judge(carrier, &spell(&key)).await;
            assert_eq!(told, nobody(carrier, "malformed"), "{name} {carrier:?}");
        }
        for carrier in Carrier::CALLERS {
            let told = world.judge(carrier, &spell(&owner_key)).await;
            assert_eq!(told, "invalid_credential", "{name} {carrier:?}");
        }
    }
    assert_eq!(last_used(&world, &id).await, Value::Null);
    for carrier in Carrier::JUDGED {
        assert_eq!(world.judge(carrier, &key).await, "valid");
    }
    assert_ne!(last_used(&world, &id).await, Value::Null);
}

async fn last_used(world: &World, id: &str) -> Value {
    world.server.app.validation.flush_last_used().await.unwrap();
    let key = world.owner.get(&format!("/v1/keys/{id}")).send().await;
    key.expect(200)["last_used"].clone()
}

/// A4, of keys that are judged; of callers' credentials it is in `callers::acting`.
async fn of_two_keys_in_one_request_neither_counts(home: Home) {
    let world = World::new(&home).await;
    let ((one, a), (other, b)) = (world.key().await, world.key().await);
    let (key, auth) = ("x-api-key", "authorization");
    let bearer = |key: &str| format!("Bearer {key}");
    for (what, lines) in [
        ("two headers", vec![(key, a.clone()), (auth, bearer(&b))]),
        ("the same twice", vec![(key, a.clone()), (auth, bearer(&a))]),
        ("two lines", vec![(key, a.clone()), (key, b.clone())]),
        ("two bearers", vec![(auth, bearer(&a)), (auth, bearer(&b))]),
        ("a list", vec![(key, format!("{a}, {b}"))]),
        ("a list without space", vec![(key, format!("{a},{b}"))]),
        (
            "one and nonsense",
            vec![(key, a.clone()), (key, "x".to_owned())],
        ),
        (
            "nonsense and one",
            vec![(key, "x".to_owned()), (key, a.clone())],
        ),
        (
            "an empty one",
            vec![(key, String::new()), (auth, bearer(&a))],
        ),
    ] {
        let request = world
            .server
            .client()
            .get("/gateway/authorize")
            .header("x-keystead-caller", &world.gateway);
        let request = lines.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let refused = request.send().await;
        assert_eq!(refused.status, 401, "{what}: {refused}");
        let code = if what.starts_with("a list") {
            "invalid_credential"
        } else {
            "ambiguous_credential"
        };
        assert_eq!(refused.code(), code, "{what}");
        assert!(refused.headers.contains_key("www-authenticate"), "{what}");
    }
    for id in [&one, &other] {
        assert_eq!(last_used(&world, id).await, Value::Null);
    }
    // What is not ours beside it is the client's business.
    let request = world.present(Carrier::GatewayHeader, a.as_bytes());
    let admitted = request.header("authorization", "Basic eDp5").send().await;
    assert_eq!(admitted.status, 200, "{admitted}");
    // A body has one place for it.
    let twice = format!(r#"{{"api_key": "{a}", "service": "invoicing", "api_key": "{b}"}}"#);
    let refused = world.owner.post("/v1/verify").json_text(twice).send().await;
    assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
}

/// A5. Limits are not enforced yet, and routes are not judged yet.
async fn a_restriction_holds_on_every_way(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    owner
        .create("/v1/services", json!({"slug": "payments"}))
        .await;
    owner.create("/v1/consumers", json!({"slug": "gone"})).await;
    let keys = async |change: Value| {
        let mut new = new_key();
        for (name, value) in change.as_object().unwrap() {
            new[name] = value.clone();
        }
        World::issue(owner, &new).await
    };
    let act = async |path: String| {
        owner.post(&path).send().await.expect(200);
    };
    let (disabled, disabled_key) = keys(json!({})).await;
    act(format!("/v1/keys/{disabled}/disable")).await;
    let (revoked, revoked_key) = keys(json!({})).await;
    act(format!("/v1/keys/{revoked}/revoke")).await;
    let (_, orphan_key) = keys(json!({"consumer": "gone"})).await;
    act("/v1/consumers/gone/disable".to_owned()).await;
    let (rotated, superseded_key) = keys(json!({})).await;
    let body = json!({"overlap": "0s"});
    let path = format!("/v1/keys/{rotated}/rotate");
    owner.post(&path).json(body).send().await.expect(200);
    let (_, short_key) = keys(json!({"ttl": "1h"})).await;
    world.server.clock.advance("2h".parse().unwrap());
    let soon = world.server.clock.now().plus("1h".parse().unwrap());
    let of = |service: &str, scope: &str| json!([{"service": service, "scopes": [scope]}]);

    for (key, code) in [
        (disabled_key, "disabled"),
        (revoked_key, "revoked"),
        (orphan_key, "disabled"),
        (superseded_key, "expired"),
        (short_key, "expired"),
        (keys(json!({"not_before": soon})).await.1, "not_yet_valid"),
        (
            keys(json!({"environment": "test"})).await.1,
            "wrong_environment",
        ),
        (
            keys(json!({"grants": of("payments", "invoice:read")}))
                .await
                .1,
            "wrong_service",
        ),
        (
            keys(json!({"allowed_ips": ["203.0.113.0/24"]})).await.1,
            "ip_not_allowed",
        ),
        (
            keys(json!({"grants": of("invoicing", "invoice:send")}))
                .await
                .1,
            "insufficient_scope",
        ),
        (
            keys(json!({"allowed_ips": ["127.0.0.0/8"]})).await.1,
            "valid",
        ),
        (keys(json!({})).await.1, "valid"),
    ] {
        for carrier in Carrier::JUDGED {
            assert_eq!(world.judge(carrier, &key).await, code, "{carrier:?}");
        }
    }

    // The same for callers' own keys.
    let manage = |scope: &str| of("keystead", scope);
    let (disabled, disabled_key) = keys(json!({"grants": manage("keys:read")})).await;
    act(format!("/v1/keys/{disabled}/disable")).await;
    let (revoked, revoked_key) = keys(json!({"grants": manage("keys:read")})).await;
    act(format!("/v1/keys/{revoked}/revoke")).await;
    let ip = json!({"grants": manage("keys:read"), "allowed_ips": ["203.0.113.0/24"]});
    let later = json!({"grants": manage("keys:read"), "not_before": soon});
    for (key, code) in [
        (disabled_key, "disabled"),
        (revoked_key, "revoked"),
        // That it is used from the wrong place is told to nobody.
        (keys(ip).await.1, "invalid_credential"),
        (keys(later).await.1, "not_yet_valid"),
        (
            keys(json!({"grants": manage("verify")})).await.1,
            "forbidden",
        ),
        (
            keys(json!({"grants": manage("keys:read")})).await.1,
            "valid",
        ),
    ] {
        for carrier in Carrier::CALLERS {
            assert_eq!(world.judge(carrier, &key).await, code, "{carrier:?}");
        }
    }
}

/// A6.
async fn a_key_in_the_query_is_refused_and_in_no_log(home: Home) {
    let mut process = home.spawn(&[("LOG__LEVEL", "trace")]).await;
    let owner = process.owner();
    World::catalogue(&owner).await;
    let gateway = json!({"service": "keystead", "scopes": ["verify:invoicing"]});
    let (_, gateway) = World::issue(&owner, &key_with(gateway)).await;
    let (_, key) = World::issue(&owner, &new_key()).await;
    let escaped = key.replace('_', "%5F");
    for query in [
        format!("api_key={key}"),
        format!("API_KEY={key}"),
        format!("x-api-key={key}"),
        format!("key={key}"),
        format!("token={key}"),
        format!("access_token={key}"),
        format!("apikey={key}"),
        format!("%61pi_key={key}"),
        format!("name={key}"),
        format!("name={escaped}"),
        format!("limit=1&{key}"),
        format!("{key}=1"),
    ] {
        for client in [&owner, &owner.anonymous()] {
            let told = client.get(&format!("/v1/keys?{query}")).send().await;
            assert_eq!((told.status, told.code()), (400, "credential_in_query"));
            assert!(!told.text.contains(&key[20..]), "{told}");
        }
        let told = owner.post(&format!("/v1/verify?{query}")).json(json!({}));
        let told = told.send().await;
        assert_eq!((told.status, told.code()), (400, "credential_in_query"));
        // Nobody is let in by it there either.
        let told = owner
            .anonymous()
            .get(&format!("/gateway/authorize?{query}"))
            .header("x-keystead-caller", &gateway)
            .send()
            .await;
        assert!(told.status >= 400, "{told}");
        assert!(!told.text.contains(&key[20..]), "{told}");
    }
    process.signal("TERM");
    process.ended(std::time::Duration::from_secs(20)).await;
    let log = process.log();
    assert!(
        log.contains("/gateway/authorize"),
        "the log is the server's"
    );
    let secret = key.rsplit('_').next().unwrap();
    assert!(!log.contains(secret), "the key is in the log");
}
