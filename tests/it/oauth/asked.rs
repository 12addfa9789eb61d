//! Introspection: what a resource server is told of a key or a token, and what it is not.

use keystead::time::Span;

use super::*;
use crate::support::forge::{Signers, encode};
use crate::support::{Backend, Proxy, both, run};

both!(
    an_api_key_is_told_with_what_it_grants_on_the_service_that_asks,
    an_access_token_is_told_with_no_more_than_its_key_holds_now,
    whatever_is_not_active_for_the_caller_is_one_answer_byte_for_byte,
    a_token_ends_at_its_second_and_a_key_at_its_instant,
    only_who_may_introspect_is_told_anything,
    whatever_a_hint_says_the_token_is_found,
    who_may_introspect_for_several_services_names_one_where_the_key_leaves_it_open,
    what_is_bound_to_addresses_is_active_only_for_a_known_one,
    an_introspection_is_recorded_and_charges_nothing,
    what_is_known_is_told_without_asking_the_database,
);

const INACTIVE: &str = r#"{"active":false}"#;

/// 21, 22, 25, 30, 10; F10.
async fn an_api_key_is_told_with_what_it_grants_on_the_service_that_asks(home: Home) {
    let world = World::new(&home).await;
    let more = json!({"metadata": {"owner": "alice@example.com"}, "ttl": "2h"});
    let issued = world.issue(&["invoice:read", "report:read"], more).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let answer = world
        .introspect(&asker, &text(&issued, "/api_key"), &[])
        .await;
    for (name, value) in [
        ("cache-control", "no-store"),
        ("pragma", "no-cache"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(answer.headers[name], value, "{answer}");
    }
    let told = answer.expect(200);
    let end = text(&issued, "/key/expires_at").parse::<keystead::time::Timestamp>();
    let consumer = text(&issued, "/key/consumer/id");
    // All there is: neither names nor metadata, unless the service asks for them.
    assert_eq!(
        told,
        json!({
            "active": true,
            "scope": "invoice:read report:read",
            "client_id": consumer,
            "token_type": "api_key",
            "exp": end.unwrap().unix_seconds(),
            "sub": consumer,
            "aud": "invoicing",
            "iss": world.issuer(),
            "keystead": {
                "tenant": "default", "environment": "live", "service": "invoicing",
                "key_id": issued["key"]["id"], "secret_id": issued["key"]["secrets"][0]["id"],
            },
        })
    );
    let claims = json!({"tokens": {"claims": {"owner": "key.metadata.owner"}}});
    world.change("/v1/services/invoicing", claims).await;
    let told = world
        .introspect(&asker, &text(&issued, "/api_key"), &[])
        .await;
    assert_eq!(told.expect(200)["owner"], "alice@example.com");
}

/// 29; F5. What the key lost since is lost to its token.
async fn an_access_token_is_told_with_no_more_than_its_key_holds_now(home: Home) {
    let world = World::new(&home).await;
    let issued = world
        .issue(&["invoice:read", "report:read"], json!({}))
        .await;
    let key = text(&issued, "/api_key");
    let path = format!("/v1/keys/{}", text(&issued, "/key/id"));
    let asker = world.asker(&["introspect:invoicing"]).await;
    let narrow = world.token(&key, &[("scope", "invoice:read")]).await;
    let all = world.token(&key, &[]).await;
    let claims = part(&all, 1);
    let told = world.introspect(&asker, &all, &[]).await.expect(200);
    assert_eq!(
        told,
        json!({
            "active": true,
            "scope": "invoice:read report:read",
            "client_id": claims["client_id"],
            "token_type": "Bearer",
            "exp": claims["exp"],
            "iat": claims["iat"],
            "sub": claims["sub"],
            "aud": "invoicing",
            "iss": world.issuer(),
            "jti": claims["jti"],
            "keystead": claims["keystead"],
        })
    );
    let scope = async |token: &str| {
        let told = world.introspect(&asker, token, &[]).await.expect(200);
        assert_eq!(told["active"], true, "{told}");
        words(&told["scope"])
    };
    let is = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    assert_eq!(scope(&narrow).await, is(&["invoice:read"]));
    let grants = |scopes: &[&str]| json!({"grants": [{"service": "invoicing", "scopes": scopes}]});
    for (granted, of_all, of_narrow) in [
        (&["report:read"][..], &["report:read"][..], &[][..]),
        // More than when it was made gives it nothing.
        (&["*"], &["invoice:read", "report:read"], &["invoice:read"]),
        // What implies it is enough.
        (&["invoice:write"], &["invoice:read"], &["invoice:read"]),
    ] {
        world.change(&path, grants(granted)).await;
        assert_eq!(scope(&all).await, is(of_all), "{granted:?}");
        assert_eq!(scope(&narrow).await, is(of_narrow), "{granted:?}");
    }
    // What the key holds a part of is told as that part.
    world.change(&path, grants(&["invoice:*"])).await;
    let wide = world.token(&key, &[]).await;
    world.change(&path, grants(&["invoice:read"])).await;
    assert_eq!(scope(&wide).await, is(&["invoice:read"]));
}

/// 26, 28, 34; F2, F3, F4, F6.
async fn whatever_is_not_active_for_the_caller_is_one_answer_byte_for_byte(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    owner
        .create("/v1/services", json!({"slug": "shipping"}))
        .await;
    owner.create("/v1/tenants", json!({"slug": "other"})).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let act = async |issued: &Value, verb: &str| {
        let path = format!("/v1/keys/{}/{verb}", text(issued, "/key/id"));
        owner.post(&path).send().await.expect(200);
    };
    let mut inactive: Vec<(String, String)> = Vec::new();
    // Of each state of a key: the key, and a token that was made before.
    for verb in ["revoke", "disable"] {
        let issued = world.issue(&["invoice:read"], json!({})).await;
        let key = text(&issued, "/api_key");
        inactive.push((format!("{verb}d: token"), world.token(&key, &[]).await));
        act(&issued, verb).await;
        inactive.push((format!("{verb}d"), key));
    }
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let key = text(&issued, "/api_key");
    inactive.push((
        "replaced secret: token".into(),
        world.token(&key, &[]).await,
    ));
    let path = format!("/v1/keys/{}/rotate", text(&issued, "/key/id"));
    let at_once = json!({"overlap": "0s"});
    owner.post(&path).json(at_once).send().await.expect(200);
    inactive.push(("replaced secret".into(), key));
    let test = json!({"environment": "test"});
    let test = text(&world.issue(&["invoice:read"], test).await, "/api_key");
    inactive.push((
        "other environment: token".into(),
        world.token(&test, &[]).await,
    ));
    inactive.push(("other environment".into(), test));
    let later = json!({"not_before": "2190-01-01T00:00:00Z", "expires_at": null});
    let later = world.issue(&["invoice:read"], later).await;
    inactive.push(("not yet valid".into(), text(&later, "/api_key")));
    let grants = json!({"grants": [{"service": "shipping", "scopes": []}]});
    let foreign = text(&world.issue(&[], grants).await, "/api_key");
    inactive.push((
        "foreign audience: token".into(),
        world.token(&foreign, &[]).await,
    ));
    inactive.push(("foreign audience".into(), foreign));
    // Another tenant's service of the same name.
    let within = owner.within("other");
    within
        .create("/v1/services", json!({"slug": "invoicing"}))
        .await;
    within
        .create("/v1/consumers", json!({"slug": "acme"}))
        .await;
    let new = json!({"name": "w", "consumer": "acme",
        "grants": [{"service": "invoicing", "scopes": []}]});
    let theirs = text(&within.create("/v1/keys", new).await, "/api_key");
    inactive.push((
        "another tenant's: token".into(),
        world.token(&theirs, &[]).await,
    ));
    inactive.push(("another tenant's".into(), theirs));
    // A management key is no business of a service.
    inactive.push(("a management key".into(), asker.clone()));
    // F4: the claims of a live token, more scopes, another signature.
    let key = world.key().await;
    let live = world.token(&key, &[]).await;
    let mut claims = part(&live, 1);
    claims["scope"] = json!("invoice:write");
    let header = part(&live, 0).to_string();
    let forged = Signers::shared().token("ES256", &header, &claims.to_string());
    inactive.push(("re-signed".into(), forged));
    let parts: Vec<&str> = live.split('.').collect();
    let spoofed = format!("{}.{}.{}", parts[0], encode(claims.to_string()), parts[2]);
    inactive.push(("other claims".into(), spoofed));
    inactive.push(("cut".into(), live[..live.len() - 2].to_owned()));
    let none = encode(r#"{"alg":"none","typ":"at+jwt"}"#);
    inactive.push(("unsigned".into(), format!("{none}.{}.", parts[1])));
    // F6: our own answer is no token.
    let mut request = world.asks(&asker, &live, &[]);
    request = request.header("accept", "application/token-introspection+jwt");
    inactive.push(("an introspection JWT".into(), request.send().await.text));
    for nonsense in [
        "x",
        "..",
        "a.b.c",
        "' OR '1'='1",
        "é",
        &"k".repeat(5000),
        "ks_live_000000000000_0000000000000000000000000000000000000000000000000",
    ] {
        inactive.push((format!("nonsense {nonsense:.20}"), nonsense.to_owned()));
    }

    let mut told = HashSet::new();
    for (name, token) in &inactive {
        let answer = world.introspect(&asker, token, &[]).await;
        assert_eq!((answer.status, &*answer.text), (200, INACTIVE), "{name}");
        told.insert(answer.redacted());
    }
    assert_eq!(told.len(), 1, "{told:#?}");
    let answer = world.introspect(&asker, &live, &[]).await.expect(200);
    assert_eq!(answer["active"], true, "{answer}");
    // With their consumer all of them end.
    owner
        .create("/v1/consumers", json!({"slug": "guest"}))
        .await;
    let guest = json!({"consumer": "guest"});
    let key = text(&world.issue(&["invoice:read"], guest).await, "/api_key");
    let token = world.token(&key, &[]).await;
    for active in [true, false] {
        for presented in [&key, &token] {
            let answer = world.introspect(&asker, presented, &[]).await.expect(200);
            assert_eq!(answer["active"], active, "{answer}");
        }
        if active {
            let disable = owner.post("/v1/consumers/guest/disable");
            disable.send().await.expect(200);
        }
    }
}

/// F5: at the very second, before anything tidies up.
async fn a_token_ends_at_its_second_and_a_key_at_its_instant(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let (first, second) = (world.token(&key, &[]).await, world.token(&key, &[]).await);
    // They may be of two seconds.
    let end = part(&second, 1)["exp"].as_i64().unwrap();
    // One of them is known when it ends, the other is not.
    let told = world.introspect(&asker, &first, &[]).await.expect(200);
    assert_eq!(told["active"], true);
    let left = end * 1000 - world.server.clock.now().millis();
    let seconds = u32::try_from(left / 1000).unwrap();
    world.server.clock.advance(Span::seconds(seconds.into()));
    if world.server.clock.now().unix_seconds() < end {
        world.server.clock.advance(Span::seconds(1));
    }
    for token in [&first, &second] {
        assert_eq!(world.introspect(&asker, token, &[]).await.text, INACTIVE);
    }
    let told = world.introspect(&asker, &key, &[]).await.expect(200);
    assert_eq!(told["active"], true, "its key lives on");
}

/// 23, 36, 15, 18; F1.
async fn only_who_may_introspect_is_told_anything(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let lookup_id = |key: &str| key.split('_').nth(2).unwrap().to_owned();
    let asker = world.asker(&["introspect:invoicing"]).await;
    let client = || world.server.client().post("/oauth/introspect");
    let token = &[("token", &*key)];
    for request in [
        client().header("authorization", &basic(&lookup_id(&asker), &asker)),
        client().header("authorization", &basic("acme", &asker)),
        client().header("authorization", &format!("Bearer {asker}")),
        client().header("authorization", &format!("bearer {asker}")),
        client().header("x-api-key", &asker),
    ] {
        let told = request.form(token).send().await.expect(200);
        assert_eq!(told["active"], true, "{told}");
    }
    let post = [
        ("token", &*key),
        ("client_id", "acme"),
        ("client_secret", &asker),
    ];
    client().form(&post).send().await.expect(200);

    let verifier = world.asker(&["verify"]).await;
    let both = client()
        .header("x-api-key", &asker)
        .header("authorization", &format!("Bearer {asker}"));
    for (name, request, status, error) in [
        ("nothing", client(), 400, "invalid_request"),
        ("two", both, 400, "invalid_request"),
        (
            "an ordinary key",
            client().header("x-api-key", &key),
            401,
            "invalid_client",
        ),
        (
            "an unknown one",
            client().header("authorization", &basic("acme", "letmein")),
            401,
            "invalid_client",
        ),
        (
            "another's name",
            client().header("authorization", &basic("somebody", &asker)),
            401,
            "invalid_client",
        ),
        (
            "a token of ours",
            client().header(
                "authorization",
                &format!("Bearer {}", world.token(&key, &[]).await),
            ),
            401,
            "invalid_client",
        ),
        (
            "without the scope",
            client().header("x-api-key", &verifier),
            403,
            "insufficient_scope",
        ),
    ] {
        let answer = request.form(token).send().await;
        let told = (answer.status, &answer.body["error"]);
        assert_eq!(told, (status, &json!(error)), "{name}: {answer}");
        assert!(answer.body.get("active").is_none(), "{name}: {answer}");
        assert_eq!(
            answer.headers.contains_key("www-authenticate"),
            status == 401,
            "{name}"
        );
    }
    // A public client (F1): an id alone is nobody.
    let public = [("token", &*key), ("client_id", "acme")];
    client().form(&public).send().await.expect(401);
    let none = client().header("x-api-key", &asker).form(&[]);
    assert_eq!(none.send().await.expect(400)["error"], "invalid_request");
    let twice = [("token", &*key), ("token", &*key)];
    let twice = client().header("x-api-key", &asker).form(&twice);
    assert_eq!(twice.send().await.expect(400)["error"], "invalid_request");
    let get = world.server.client().with_key(&asker);
    assert_eq!(get.get("/oauth/introspect").send().await.status, 405);
}

/// 24.
async fn whatever_a_hint_says_the_token_is_found(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect"]).await;
    let key = world.key().await;
    let token = world.token(&key, &[]).await;
    for hint in ["access_token", "refresh_token", "api_key", "pat", "", "é"] {
        for token in [&key, &token] {
            let hinted = [("token_type_hint", hint)];
            let told = world.introspect(&asker, token, &hinted).await;
            assert_eq!(told.expect(200)["active"], true, "{hint}");
        }
    }
}

/// 27, 35: each is told what it holds on the service that is asked for, and on no other.
async fn who_may_introspect_for_several_services_names_one_where_the_key_leaves_it_open(
    home: Home,
) {
    let world = World::new(&home).await;
    let key = world.key_of_two().await;
    let all = world.asker(&["introspect"]).await;
    let one = world.asker(&["introspect:shipping"]).await;
    let two = world
        .asker(&["introspect:shipping", "introspect:invoicing"])
        .await;
    for asker in [&all, &two] {
        let open = world.introspect(asker, &key, &[]).await.expect(400);
        assert_eq!(open["error"], "invalid_request", "{open}");
        for (audience, scope) in [("invoicing", "invoice:read"), ("shipping", "parcel:send")] {
            let named = [("audience", audience)];
            let told = world.introspect(asker, &key, &named).await.expect(200);
            assert_eq!(
                (&told["aud"], &told["scope"]),
                (&json!(audience), &json!(scope))
            );
        }
        // A token says itself what it is for.
        let token = world.token(&key, &[("audience", "shipping")]).await;
        let told = world.introspect(asker, &token, &[]).await.expect(200);
        assert_eq!(told["scope"], "parcel:send", "{told}");
        let meant = world.introspect(asker, &token, &[("audience", "invoicing")]);
        assert_eq!(meant.await.text, INACTIVE);
        let only = world.key().await;
        let told = world.introspect(asker, &only, &[]).await.expect(200);
        assert_eq!(told["aud"], "invoicing", "{told}");
    }
    let told = world.introspect(&one, &key, &[]).await.expect(200);
    assert_eq!(told["scope"], "parcel:send", "{told}");
    for audience in ["invoicing", "keystead", "nowhere", "' OR 1=1"] {
        let refused = world
            .introspect(&one, &key, &[("audience", audience)])
            .await;
        assert_eq!(refused.expect(400)["error"], "invalid_target", "{audience}");
    }
    // One that has ended is told like one that never was.
    let holder = world.server.client().with_key(&key);
    holder.post("/v1/self/revoke").send().await.expect(200);
    for asker in [&all, &two, &one] {
        assert_eq!(world.introspect(asker, &key, &[]).await.text, INACTIVE);
    }
}

async fn what_is_bound_to_addresses_is_active_only_for_a_known_one(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let nets = json!({"allowed_ips": ["203.0.113.0/24", "127.0.0.1"]});
    let key = text(&world.issue(&["invoice:read"], nets).await, "/api_key");
    let token = world.token(&key, &[]).await;
    for token in [&key, &token] {
        for (ip, active) in [
            (None, false),
            (Some("203.0.113.9"), true),
            (Some("::ffff:203.0.113.9"), true),
            (Some("203.0.114.9"), false),
        ] {
            let pairs: Vec<(&str, &str)> = ip.iter().map(|ip| ("ip", *ip)).collect();
            let told = world.introspect(&asker, token, &pairs).await.expect(200);
            assert_eq!(told["active"], active, "{ip:?}");
        }
        let bad = world
            .introspect(&asker, token, &[("ip", "localhost")])
            .await;
        assert_eq!(bad.expect(400)["error"], "invalid_request");
    }
}

async fn an_introspection_is_recorded_and_charges_nothing(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let limits = json!({"rate_limits": [{"name": "few", "limit": 2, "period": "1h"}]});
    let issued = world.issue(&["invoice:read"], limits).await;
    let key = text(&issued, "/api_key");
    let token = world.token(&key, &[]).await;
    for _ in 0..5 {
        for token in [&key, &token] {
            let told = world.introspect(&asker, token, &[]).await.expect(200);
            assert_eq!(told["active"], true, "{told}");
        }
    }
    let body = json!({"api_key": key, "service": "invoicing"});
    let verified = world.owner.post("/v1/verify").json(body).send().await;
    assert_eq!(verified.expect(200)["rate_limits"][0]["remaining"], 0);
    assert_eq!(
        world.introspect(&asker, "nonsense", &[]).await.text,
        INACTIVE
    );
    let claims = part(&token, 1);
    let of_token = format!("valid {} {}", text(&claims, "/jti"), text(&claims, "/sub"));
    let events = stored(&home, "introspect", 10).await;
    let count = |line: &str| events.iter().filter(|event| *event == line).count();
    assert_eq!((count(&of_token), count("valid - -")), (5, 5), "{events:?}");
    // One query finds all that was done with the token, and its making.
    let found = format!("/v1/usage/events?token_id={}", text(&claims, "/jti"));
    let found = world.owner.get(&found).send().await.expect(200);
    assert_eq!(found["items"].as_array().unwrap().len(), 6, "{found}");
}

async fn what_is_known_is_told_without_asking_the_database(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let token = world.token(&key, &[]).await;
    for token in [&key, &token] {
        world.introspect(&asker, token, &[]).await.expect(200);
    }
    let ask = async || {
        for _ in 0..20 {
            for token in [&key, &token] {
                let told = world.introspect(&asker, token, &[]).await.expect(200);
                assert_eq!(told["active"], true);
            }
        }
    };
    let (statements, ()) = world.server.statements(ask()).await;
    let asked: Vec<_> = statements
        .iter()
        .filter(|text| text.contains("api_key") || text.contains("revoked_token"))
        .collect();
    assert!(asked.is_empty(), "{asked:#?}");
}

#[test]
fn what_a_token_is_judged_by_is_asked_for_at_the_same_time() {
    run(Backend::Postgres, async |home: Home| {
        let issuer = ("SERVER__PUBLIC_URL", "https://keys.example.com");
        let world = World::with(&home, &[issuer]).await;
        let held = world
            .issue(&["invoice:read"], json!({"name": "held-back"}))
            .await;
        let token = world.token(&text(&held, "/api_key"), &[]).await;
        let asker = world.asker(&["introspect"]).await;
        let proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let node = home.serve_with(&[issuer, ("DATABASE__URL", &url)]).await;
        let ask = async |token: &str| {
            let client = node.client().with_key(&asker);
            let asked = client.post("/oauth/introspect").form(&[("token", token)]);
            asked.try_send().await.expect("an answer")
        };
        // Who asks is known, and so are the keys that tokens are signed with.
        let soon = Duration::from_secs(10);
        until(soon, "the node knows who asks", async || {
            ask(&world.token(&world.key().await, &[]).await).await.text != INACTIVE
                && ask("letmein").await.status == 200
        })
        .await;
        proxy.hold_answer("held-back");
        let asked = async { tokio::join!(ask(&token), proxy.holds()).0 };
        let (statements, told) = node.statements(asked).await;
        assert_eq!(told.status, 503, "its key is held back: {told}");
        let of_tokens = statements
            .iter()
            .filter(|sent| sent.contains("revoked_token"));
        assert!(of_tokens.count() > 0, "{statements:?}");
        proxy.release();
        until(soon, "it is told", async || {
            let told = ask(&token).await;
            told.status == 200 && told.body["active"] == true
        })
        .await;
    });
}
