//! Client credentials: a key becomes a token.

use super::*;
use crate::support::both;

both!(
    a_key_becomes_a_token_by_each_way_of_client_authentication,
    a_token_is_what_rfc_9068_says_and_a_stock_library_verifies_it,
    every_algorithm_makes_tokens_that_verify,
    a_token_never_outlives_its_key_or_its_secret,
    scopes_are_narrowed_and_never_widened,
    the_audience_is_the_service_that_was_named_or_the_only_one,
    claims_come_from_metadata_as_the_service_asks,
    a_token_that_nobody_would_take_is_not_made,
    a_token_is_charged_and_recorded_like_a_verification,
);

/// 2, E4. The id is any name of the consumer or the key; a real client escapes what it likes.
async fn a_key_becomes_a_token_by_each_way_of_client_authentication(home: Home) {
    let world = World::new(&home).await;
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let key = text(&issued, "/api_key");
    let consumer = text(&issued, "/key/consumer/id");
    let (id, lookup) = (text(&issued, "/key/id"), text(&issued, "/key/lookup_id"));
    let client = world.server.client();
    let grant = ("grant_type", "client_credentials");
    for name in [&*consumer, "acme", EXTERNAL_ID, &id, &lookup] {
        let post = [grant, ("client_id", name), ("client_secret", &key)];
        let post = client.post("/oauth/token").form(&post).send().await;
        assert_eq!(post.status, 200, "client_secret_post {name}: {post}");
        for header in [
            basic(name, &key),
            // As curl sends it: what is no escape stands for itself.
            format!("basic {}", STANDARD.encode(format!("{name}:{key}"))),
        ] {
            // The first colon ends an id that is sent as it is.
            if name == EXTERNAL_ID && header.starts_with("basic") {
                continue;
            }
            let request = client.post("/oauth/token").header("authorization", &header);
            let answer = request.form(&[grant]).send().await;
            assert_eq!(answer.status, 200, "{header} {name}: {answer}");
            // Some send the id in the body too.
            let request = client.post("/oauth/token").header("authorization", &header);
            let answer = request.form(&[grant, ("client_id", name)]).send().await;
            assert_eq!(answer.status, 200, "{header} {name}: {answer}");
        }
        let by_header = world.ask(&key, &[("client_id", name)]).await;
        assert_eq!(by_header.status, 200, "x-api-key {name}: {by_header}");
    }
    let by_header = world.ask(&key, &[]).await;
    assert_eq!(by_header.status, 200, "x-api-key: {by_header}");
}

/// 9, 10, 67, 68, 69, 70.
async fn a_token_is_what_rfc_9068_says_and_a_stock_library_verifies_it(home: Home) {
    let world = World::new(&home).await;
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let answer = world.ask(&text(&issued, "/api_key"), &[]).await;
    for (name, value) in [("cache-control", "no-store"), ("pragma", "no-cache")] {
        assert_eq!(answer.headers[name], value, "{answer}");
    }
    let body = answer.expect(200);
    let members: HashSet<&str> = body
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    // No refresh token (9).
    let expected = ["access_token", "token_type", "expires_in", "scope"];
    assert_eq!(members, HashSet::from(expected), "{body}");
    assert_eq!(body["token_type"], "Bearer");
    assert_eq!(body["expires_in"], 300);
    let token = text(&body, "/access_token");
    let header = part(&token, 0);
    assert_eq!(
        (&header["typ"], &header["alg"]),
        (&json!("at+jwt"), &json!("ES256"))
    );
    assert_eq!(header.as_object().unwrap().len(), 3, "{header}");
    let claims = world.verified(&token, "invoicing").await;
    let consumer = text(&issued, "/key/consumer/id");
    assert_eq!(claims["iss"], world.issuer());
    // In a name space of its own: no client can be called like a person (69, E10).
    assert_eq!(
        (&claims["sub"], &claims["client_id"]),
        (&json!(consumer), &json!(consumer))
    );
    assert_eq!(claims["aud"], "invoicing");
    assert_eq!(claims["scope"], "invoice:read");
    let (iat, exp) = (
        claims["iat"].as_i64().unwrap(),
        claims["exp"].as_i64().unwrap(),
    );
    assert_eq!(exp - iat, 300);
    assert!(text(&claims, "/jti").starts_with("tok_"));
    assert_eq!(
        claims["keystead"],
        json!({
            "tenant": "default", "environment": "live", "service": "invoicing",
            "key_id": issued["key"]["id"], "secret_id": issued["key"]["secrets"][0]["id"],
        })
    );
    // Each token is another one.
    let other = world.token(&text(&issued, "/api_key"), &[]).await;
    assert_ne!(part(&other, 1)["jti"], claims["jti"]);
}

/// 67.
async fn every_algorithm_makes_tokens_that_verify(home: Home) {
    for algorithm in ["EdDSA", "RS256"] {
        let home = home.empty().await;
        let world = World::with(&home, &[("OAUTH__SIGNING_ALGORITHM", algorithm)]).await;
        let token = world.token(&world.key().await, &[]).await;
        assert_eq!(part(&token, 0)["alg"], algorithm);
        world.verified(&token, "invoicing").await;
    }
}

/// E12.
async fn a_token_never_outlives_its_key_or_its_secret(home: Home) {
    let world = World::new(&home).await;
    let issued = world.issue(&["invoice:read"], json!({"ttl": "2m"})).await;
    let (id, key) = (text(&issued, "/key/id"), text(&issued, "/api_key"));
    let life = async |key: &str| {
        let token = world.token(key, &[]).await;
        let claims = part(&token, 1);
        (
            claims["exp"].as_i64().unwrap(),
            claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(),
        )
    };
    let end = text(&issued, "/key/expires_at")
        .parse::<keystead::time::Timestamp>()
        .unwrap();
    assert_eq!(life(&key).await.0, end.unix_seconds());
    // A replaced secret ends earlier than its key.
    let rotated = world
        .owner
        .post(&format!("/v1/keys/{id}/rotate"))
        .json(json!({"overlap": "30s"}))
        .send()
        .await
        .expect(200);
    assert!(life(&key).await.1 <= 30);
    let new = text(&rotated, "/api_key");
    assert_eq!(life(&new).await.0, end.unix_seconds());
    world.server.clock.advance("31s".parse().unwrap());
    let refused = world.ask(&key, &[]).await;
    assert_eq!(
        (refused.status, &refused.body["error"]),
        (401, &json!("invalid_client"))
    );
    world.server.clock.advance("2m".parse().unwrap());
    assert_eq!(world.ask(&new, &[]).await.status, 401);

    // The service says how long, if the key does not say less.
    let path = "/v1/services/invoicing";
    let shorter = json!({"tokens": {"ttl": "1m"}});
    world
        .owner
        .request("PATCH".parse().unwrap(), path)
        .json(shorter)
        .send()
        .await
        .expect(200);
    let never = world
        .issue(&["invoice:read"], json!({"expires_at": null}))
        .await;
    assert_eq!(life(&text(&never, "/api_key")).await.1, 60);
}

/// 8, 70, E7.
async fn scopes_are_narrowed_and_never_widened(home: Home) {
    let world = World::new(&home).await;
    let key = async |scopes: &[&str]| text(&world.issue(scopes, json!({})).await, "/api_key");
    let some = key(&["invoice:write", "report:read"]).await;
    let wide = key(&["invoice:*"]).await;
    let none = key(&[]).await;
    for (key, asked, granted) in [
        (&some, "", "invoice:write report:read"),
        (&some, "report:read", "report:read"),
        (
            &some,
            "report:read invoice:write",
            "report:read invoice:write",
        ),
        (&some, "report:read report:read", "report:read"),
        // The catalogue says that who writes may read.
        (&some, "invoice:read", "invoice:read"),
        (&wide, "invoice:read", "invoice:read"),
        (&wide, "invoice:*", "invoice:*"),
        (&none, "", ""),
    ] {
        let answer = world.ask(key, &[("scope", asked)]).await;
        let body = answer.expect(200);
        // What the answer says is what the token says (E7).
        let claims = world
            .verified(&text(&body, "/access_token"), "invoicing")
            .await;
        assert_eq!(
            words(&body["scope"]),
            words(&json!(granted)),
            "{asked}: {body}"
        );
        assert_eq!(
            words(&claims["scope"]),
            words(&json!(granted)),
            "{asked}: {claims}"
        );
    }
    for (key, asked) in [
        (&some, "admin"),
        (&some, "report:read admin"),
        (&some, "invoice:*"),
        (&some, "*"),
        (&some, "Report:read"),
        (&some, "report:read:own"),
        (&some, "domain:report"),
        (&wide, "report:read"),
        (&wide, "*"),
        (&none, "invoice:read"),
    ] {
        let answer = world.ask(key, &[("scope", asked)]).await;
        let told = (answer.status, &answer.body["error"]);
        assert_eq!(told, (400, &json!("invalid_scope")), "{asked}: {answer}");
        assert!(answer.body["access_token"].is_null());
    }
}

/// 71; RFC 8707 §2.
async fn the_audience_is_the_service_that_was_named_or_the_only_one(home: Home) {
    let world = World::new(&home).await;
    let service = async |slug: &str, resources: Value| {
        let new = json!({"slug": slug, "tokens": {"resources": resources}});
        text(&world.owner.create("/v1/services", new).await, "/id")
    };
    let payments = service("payments", json!(["https://pay.example/", "urn:pay"])).await;
    service("ledger", json!(["urn:shared"])).await;
    service("audit-log", json!(["urn:shared", "https://log.example/"])).await;
    let grant = |service: &str| json!({"service": service, "scopes": ["x"]});
    let both = world
        .issue(
            &[],
            json!({"grants": [grant("payments"), grant("ledger"), grant("audit-log")]}),
        )
        .await;
    let (one, several) = (world.key().await, text(&both, "/api_key"));
    for (key, pairs, audience) in [
        (&one, &[][..], "invoicing"),
        (&one, &[("audience", "invoicing")], "invoicing"),
        (&several, &[("audience", "payments")], "payments"),
        (&several, &[("audience", &payments)], "payments"),
        (
            &several,
            &[("audience", "payments"), ("audience", "payments")],
            "payments",
        ),
        (
            &several,
            &[("resource", "https://pay.example/")],
            "https://pay.example/",
        ),
        (
            &several,
            &[("resource", "urn:pay"), ("audience", "payments")],
            "urn:pay",
        ),
        // Two services have it, so the name decides.
        (
            &several,
            &[("resource", "urn:shared"), ("audience", "ledger")],
            "urn:shared",
        ),
    ] {
        let token = world.token(key, pairs).await;
        world.verified(&token, audience).await;
    }
    let management = world
        .issue(
            &[],
            json!({"grants": [{"service": "keystead", "scopes": ["verify:invoicing"]}]}),
        )
        .await;
    let management = text(&management, "/api_key");
    for (key, pairs) in [
        (&several, &[][..]),
        (&several, &[("audience", "invoicing")]),
        (
            &several,
            &[("audience", "payments"), ("audience", "ledger")],
        ),
        (&several, &[("resource", "urn:shared")]),
        (&several, &[("resource", "urn:unknown")]),
        (&several, &[("resource", "https://pay.example")]),
        (
            &several,
            &[("resource", "https://log.example/"), ("audience", "ledger")],
        ),
        (
            &several,
            &[("resource", "urn:pay"), ("audience", "nowhere")],
        ),
        (
            &several,
            &[
                ("resource", "urn:pay"),
                ("resource", "https://pay.example/"),
            ],
        ),
        (&one, &[("audience", "payments")]),
        (&one, &[("audience", "nowhere")]),
        (&one, &[("audience", "../invoicing")]),
        (&one, &[("audience", "INVOICING")]),
        (&one, &[("resource", "invoicing")]),
        (&one, &[("resource", "https://pay.example/#f")]),
        // Keystead itself takes keys.
        (&management, &[]),
        (&management, &[("audience", "keystead")]),
        (&one, &[("audience", "keystead")]),
    ] {
        let answer = world.ask(key, pairs).await;
        let told = (answer.status, &answer.body["error"]);
        assert_eq!(told, (400, &json!("invalid_target")), "{pairs:?}: {answer}");
    }
}

/// F10: nothing but what the service asks for.
async fn claims_come_from_metadata_as_the_service_asks(home: Home) {
    let world = World::new(&home).await;
    let patch = async |path: &str, body: Value| {
        let request = world.owner.request("PATCH".parse().unwrap(), path);
        request.json(body).send().await.expect(200)
    };
    patch(
        "/v1/consumers/acme",
        json!({"metadata": {"plan": "gold", "email": "a@example.com", "limits": {"seats": 5}}}),
    )
    .await;
    let more =
        json!({"metadata": {"team": "core", "a.b": 1}, "tags": ["prod"], "name": "worker 7"});
    let key = text(&world.issue(&["invoice:read"], more).await, "/api_key");
    let claims = world
        .verified(&world.token(&key, &[]).await, "invoicing")
        .await;
    for absent in ["plan", "email", "team", "name"] {
        assert!(claims.get(absent).is_none(), "{claims}");
    }
    patch(
        "/v1/services/invoicing",
        json!({"tokens": {"claims": {
            "plan": "consumer.metadata.plan",
            "seats": "consumer.metadata.limits.seats",
            "https://example.com/team": "key.metadata.team",
            "dotted": "key.metadata.a.b",
            "who": "consumer.external_id",
            "worker": "key.name",
            "tags": "key.tags",
            "absent": "key.metadata.nothing",
        }}}),
    )
    .await;
    let claims = world
        .verified(&world.token(&key, &[]).await, "invoicing")
        .await;
    for (name, value) in [
        ("plan", json!("gold")),
        ("seats", json!(5)),
        ("https://example.com/team", json!("core")),
        ("dotted", json!(1)),
        ("who", json!(EXTERNAL_ID)),
        ("worker", json!("worker 7")),
        ("tags", json!(["prod"])),
    ] {
        assert_eq!(claims[name], value, "{claims}");
    }
    for absent in ["absent", "email"] {
        assert!(claims.get(absent).is_none(), "{claims}");
    }
    let bad = json!({"tokens": {"claims": {"sub": "key.name"}}});
    let path = "/v1/services/invoicing";
    let told = world
        .owner
        .request("PATCH".parse().unwrap(), path)
        .json(bad)
        .send()
        .await;
    assert_eq!(
        (told.status, told.code()),
        (400, "invalid_request"),
        "{told}"
    );
}

/// 200 scopes of 130 characters: no header takes a token of them.
async fn a_token_that_nobody_would_take_is_not_made(home: Home) {
    let world = World::new(&home).await;
    world
        .owner
        .create("/v1/services", json!({"slug": "wide"}))
        .await;
    let scopes: Vec<String> = (0..200).map(|i| format!("{i:0>120}")).collect();
    let grants = json!({"grants": [{"service": "wide", "scopes": scopes}]});
    let key = text(&world.issue(&[], grants).await, "/api_key");
    let refused = world.ask(&key, &[]).await;
    let told = (refused.status, &refused.body["error"]);
    assert_eq!(told, (400, &json!("invalid_scope")), "{refused}");
    world
        .token(&key, &[("scope", &scopes[..20].join(" "))])
        .await;
}

/// The same limits and the same ledger; one query finds the key of a token and the token of a key.
async fn a_token_is_charged_and_recorded_like_a_verification(home: Home) {
    let world = World::new(&home).await;
    let limits = json!({"rate_limits": [{"name": "few", "limit": 3, "period": "1h"}]});
    let issued = world.issue(&["invoice:read"], limits).await;
    let key = text(&issued, "/api_key");
    let first = world.ask(&key, &[]).await;
    assert!(first.headers.contains_key("ratelimit"), "{first}");
    let jti = part(&text(&first.expect(200), "/access_token"), 1);
    let refused = world.ask(&key, &[("scope", "report:read")]).await;
    assert_eq!(refused.body["error"], "invalid_scope");
    let body = json!({"api_key": key, "service": "invoicing"});
    let verified = world
        .owner
        .post("/v1/verify")
        .json(body)
        .send()
        .await
        .expect(200);
    assert_eq!(verified["rate_limits"][0]["remaining"], 1, "{verified}");
    world.ask(&key, &[]).await.expect(200);
    let limited = world.ask(&key, &[]).await;
    let told = (limited.status, &limited.body["error"]);
    assert_eq!(told, (429, &json!("rate_limited")), "{limited}");
    assert!(limited.headers.contains_key("retry-after"), "{limited}");

    let events = stored(&home, "token", 4).await;
    let consumer = text(&issued, "/key/consumer/id");
    assert!(
        events.contains(&format!("valid {} {consumer}", text(&jti, "/jti"))),
        "{events:?}"
    );
    // Where no token was made none is named.
    for outcome in ["insufficient_scope", "rate_limited"] {
        assert!(events.contains(&format!("{outcome} - -")), "{events:?}");
    }
    let found = format!("/v1/usage/events?token_id={}", text(&jti, "/jti"));
    let found = world.owner.get(&found).send().await.expect(200);
    assert_eq!(found["items"][0]["key_id"], issued["key"]["id"], "{found}");
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
}
