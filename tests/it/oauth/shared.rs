//! Tokens beyond one service: shared within a security domain, embedded in one another, and those of other
//! issuers that a service takes.

use super::exchange::{ACCESS_TOKEN, Hop, JWT};
use super::*;
use crate::support::both;
use crate::support::forge::forged::{A, B, Case, cases};

both!(
    a_token_is_shared_inside_one_security_domain_and_nowhere_else,
    to_put_a_service_into_a_domain_takes_the_right_over_all,
    embedded_tokens_are_for_willing_services_and_end_with_what_they_stand_in,
    a_jwt_of_an_issuer_that_the_service_takes_is_told_and_no_other,
);

const INACTIVE: &str = r#"{"active":false}"#;

async fn a_token_is_shared_inside_one_security_domain_and_nowhere_else(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let token = hop.at_the_shop().await;
    let claims = part(&token, 1);
    let asker = world.asker(&["introspect:invoicing"]).await;
    let of_both = world
        .asker(&["introspect:invoicing", "introspect:shop"])
        .await;
    let gateway = world.asker(&["verify"]).await;
    let accepts = json!({"tokens": {"accepts": ["key", "jwt"]}});
    world.change("/v1/services/invoicing", accepts).await;
    let bearer = format!("Bearer {token}");
    let at_gateway = async || {
        let path = "/gateway/authorize?service=invoicing&required_scopes=invoice:read";
        let request = world.server.client().get(path);
        let request = request.header("x-keystead-caller", &gateway);
        request.header("authorization", &bearer).send().await
    };
    let domain = async |service: &str, domain: Value| {
        let path = format!("/v1/services/{service}");
        world
            .change(&path, json!({"exchange": {"domain": domain}}))
            .await;
    };
    for (of_shop, of_invoicing, is_shared) in [
        (Value::Null, Value::Null, false),
        (Value::Null, json!("a"), false),
        (json!("a"), Value::Null, false),
        (json!("b"), json!("a"), false),
        (json!("a"), json!("a"), true),
        (json!("a"), json!("b"), false),
    ] {
        domain("shop", of_shop).await;
        domain("invoicing", of_invoicing).await;
        let answer = world.introspect(&asker, &token, &[]).await;
        let named = [("audience", "invoicing")];
        let by_name = world.introspect(&of_both, &token, &named).await;
        let authorized = at_gateway().await;
        if !is_shared {
            assert_eq!((&*answer.text, &*by_name.text), (INACTIVE, INACTIVE));
            assert_eq!(
                (authorized.status, authorized.code()),
                (403, "wrong_service")
            );
            continue;
        }
        assert_eq!(authorized.status, 200, "{authorized}");
        for told in [answer.expect(200), by_name.expect(200)] {
            assert_eq!(told["active"], true, "{told}");
            // What it says of itself, and of its scopes those that its key holds here.
            assert_eq!(
                (&told["aud"], &told["jti"]),
                (&json!("shop"), &claims["jti"])
            );
            let scope = words(&told["scope"]);
            assert_eq!(scope, words(&json!("invoice:read report:read")));
        }
        // At home it stays what it was.
        let told = world.introspect(&of_both, &token, &[]).await.expect(200);
        assert_eq!(words(&told["scope"]), words(&claims["scope"]));
        // The phantom is for who asks.
        let request = world.asks(&asker, &token, &[]);
        let phantom = request.header("accept", "application/jwt").send().await;
        let phantom = world.verified(&phantom.text, "invoicing").await;
        assert_eq!(
            words(&phantom["scope"]),
            words(&json!("invoice:read report:read"))
        );
        // Whom the domain trusts need not be listed.
        let none = json!({"exchange": {"from": []}});
        world.change("/v1/services/invoicing", none).await;
        hop.swap((&token, JWT), &[]).await.expect(200);
        // Where the key grants nothing there is nothing to share.
        let shop_alone = text(
            &world
                .issue(
                    &[],
                    json!({"grants": [{"service": "shop", "scopes": ["*"]}]}),
                )
                .await,
            "/api_key",
        );
        let other = world.token(&shop_alone, &[]).await;
        assert_eq!(world.introspect(&asker, &other, &[]).await.text, INACTIVE);
        // Of a service that is disabled nothing is shared.
        let act = async |verb: &str| {
            let path = format!("/v1/services/shop/{verb}");
            world.owner.post(&path).send().await.expect(200);
        };
        act("disable").await;
        assert_eq!(world.introspect(&asker, &token, &[]).await.text, INACTIVE);
        act("enable").await;
    }
    let answer = hop.swap((&token, JWT), &[]).await;
    assert_eq!(answer.expect(400)["error"], "invalid_target");
}

async fn to_put_a_service_into_a_domain_takes_the_right_over_all(home: Home) {
    let world = World::new(&home).await;
    let limited = world.asker(&["services:write:invoicing"]).await;
    let all = world.asker(&["services:write"]).await;
    let change = async |key: &str, exchange: Value| {
        let client = world.server.client().with_key(key);
        let request = client.request("PATCH".parse().unwrap(), "/v1/services/invoicing");
        request.json(json!({ "exchange": exchange })).send().await
    };
    let policy = json!({"from": ["shop", A], "actors": ["backend"]});
    change(&limited, policy.clone()).await.expect(200);
    let answer = change(&limited, json!({"domain": "a"})).await;
    assert_eq!((answer.status, answer.code()), (403, "forbidden"));
    let told = change(&all, json!({"domain": "a"})).await.expect(200);
    assert_eq!(
        told["exchange"],
        json!({"domain": "a", "from": ["shop", A], "actors": ["backend"]})
    );
    let answer = change(&limited, json!({"domain": "b"})).await;
    assert_eq!((answer.status, answer.code()), (403, "forbidden"));
    // What it has stays, and to leave opens nothing.
    change(&limited, json!({"actors": []})).await.expect(200);
    let client = world.server.client().with_key(&limited);
    let put = client.request("PUT".parse().unwrap(), "/v1/services/invoicing");
    let whole = json!({"exchange": {"domain": "b"}});
    assert_eq!(put.json(whole).send().await.status, 403);
    let told = change(&limited, json!({"domain": null})).await.expect(200);
    assert_eq!(told["exchange"]["domain"], Value::Null);
    for (bad, pointer) in [
        (json!({"from": ["a", "a"]}), "/exchange/from"),
        (json!({"actors": ["A"]}), "/exchange/actors"),
        (json!({"domain": ""}), "/exchange/domain"),
        (json!({"form": []}), "/exchange/form"),
    ] {
        let answer = change(&all, bad.clone()).await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "invalid_request"),
            "{bad}"
        );
        let told = answer.body["errors"][0]["pointer"].as_str().unwrap();
        assert!(told.starts_with(pointer), "{bad}: {answer}");
    }
}

async fn embedded_tokens_are_for_willing_services_and_end_with_what_they_stand_in(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let owner = &world.owner;
    owner.create("/v1/services", json!({"slug": "shy"})).await;
    let embed = json!({"tokens": {"ttl": "2m", "embed": {
        "invoicing": ["invoice:*"], "shy": ["a"], "nowhere": ["a"],
    }}});
    world.change("/v1/services/shop", embed).await;
    let key = hop.customer_key();
    let token = hop.at_the_shop().await;
    let claims = world.verified(&token, "shop").await;
    let embedded = claims["embedded"].as_object().unwrap();
    assert_eq!(embedded.keys().collect::<Vec<_>>(), ["invoicing"]);
    let inner = embedded["invoicing"].as_str().unwrap();
    let within = world.verified(inner, "invoicing").await;
    // What the service lists of what the key holds there, for no longer than what it stands in.
    assert_eq!(within["scope"], "invoice:read");
    for name in ["sub", "client_id", "exp", "jti"] {
        assert_eq!(within[name], claims[name], "{name}");
    }
    assert_eq!(within.get("embedded"), None);
    // Nothing of it beyond what was asked for.
    let narrow = [("audience", "shop"), ("scope", "cart")];
    let narrow = world.token(&key, &narrow).await;
    assert_eq!(part(&narrow, 1).get("embedded"), None);
    // In the phantom of the key too, and of the token.
    let of_shop = world.asker(&["introspect:shop"]).await;
    for presented in [&key, &token] {
        let request = world.asks(&of_shop, presented, &[]);
        let phantom = request.header("accept", "application/jwt").send().await;
        let phantom = world.verified(&phantom.text, "shop").await;
        let inner = phantom["embedded"]["invoicing"].as_str().unwrap();
        let within = world.verified(inner, "invoicing").await;
        assert_eq!(within["scope"], "invoice:read");
        assert_eq!(within["jti"], phantom["jti"]);
    }
    // The answer itself tells nobody a token.
    let told = world.introspect(&of_shop, &token, &[]).await.expect(200);
    assert_eq!(told.get("embedded"), None);
    // It is a token like any other for its service, and ends with the one around it.
    let asker = hop.asker().await;
    let told = world.introspect(&asker, inner, &[]).await.expect(200);
    assert_eq!(told["active"], true, "{told}");
    let client = world.server.client().with_key(&key);
    let request = client.post("/oauth/revoke").form(&[("token", &*token)]);
    request.send().await.expect(200);
    assert_eq!(world.introspect(&asker, inner, &[]).await.text, INACTIVE);
    // Where the other service takes none of this one, there is none: not in a phantom that was made
    // before either.
    world
        .change("/v1/services/invoicing", json!({"exchange": {"from": [A]}}))
        .await;
    assert_eq!(part(&hop.at_the_shop().await, 1).get("embedded"), None);
    let request = world.asks(&of_shop, &key, &[]);
    let phantom = request.header("accept", "application/jwt").send().await;
    assert_eq!(part(&phantom.text, 1).get("embedded"), None);
}

/// 26, 28, 29; F2, F3, F4.
async fn a_jwt_of_an_issuer_that_the_service_takes_is_told_and_no_other(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let asker = hop.asker().await;
    let person = hop.vouched(json!({
        "scope": "openid invoice:read", "client_id": "web", "jti": "x1",
        "act": {"sub": "helpdesk", "exp": 1},
    }));
    let claims = part(&person, 1);
    let answer = world.introspect(&asker, &person, &[]).await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    let told = answer.expect(200);
    // Neither roles nor anything else that is not asked for.
    assert_eq!(
        told,
        json!({
            "active": true, "scope": "openid invoice:read", "client_id": "web",
            "token_type": "Bearer", "exp": claims["exp"], "iat": claims["iat"], "sub": "alice",
            "aud": claims["aud"], "iss": A, "jti": "x1", "act": {"sub": "helpdesk", "iss": A},
        })
    );
    let request = world.asks(&asker, &person, &[]);
    let signed = request.header("accept", "application/token-introspection+jwt");
    let signed = signed.send().await;
    assert_eq!(
        signed.headers["content-type"],
        "application/token-introspection+jwt"
    );
    assert_eq!(part(&signed.text, 1)["token_introspection"], told);
    // No key stands behind it that a token could be made from.
    let request = world.asks(&asker, &person, &[]);
    let phantom = request.header("accept", "application/jwt").send().await;
    assert_eq!(phantom.headers["content-type"], "application/json");
    assert_eq!(phantom.expect(200), told);

    let of_shop = world.asker(&["introspect:shop"]).await;
    let of_all = world.asker(&["introspect"]).await;
    world
        .owner
        .create("/v1/tenants", json!({"slug": "other"}))
        .await;
    let within = world.owner.within("other");
    let from = json!({"slug": "invoicing", "exchange": {"from": [A]}});
    within.create("/v1/services", from).await;
    within
        .create("/v1/consumers", json!({"slug": "acme"}))
        .await;
    let new = json!({"name": "w", "consumer": "acme",
        "grants": [{"service": "keystead", "scopes": ["introspect"]}]});
    let theirs = text(&within.create("/v1/keys", new).await, "/api_key");
    let named = [("audience", "invoicing")];
    world.introspect(&of_all, &person, &named).await.expect(200);
    let mut told = HashSet::new();
    for (name, asker, token, pairs) in [
        ("a service that takes none", &of_shop, &person, &[][..]),
        ("no service named", &of_all, &person, &[]),
        ("another tenant", &theirs, &person, &named),
        (
            "another issuer",
            &asker,
            &{
                let now = world.server.clock.now().unix_seconds();
                let claims =
                    json!({"iss": B, "sub": "alice", "aud": claims["aud"], "exp": now + 60});
                crate::support::forge::Signers::other().token(
                    "ES256",
                    r#"{"alg":"ES256","typ":"at+jwt"}"#,
                    &claims.to_string(),
                )
            },
            &[],
        ),
    ] {
        let answer = world.introspect(asker, token, pairs).await;
        assert_eq!((answer.status, &*answer.text), (200, INACTIVE), "{name}");
        told.insert(answer.redacted());
    }
    for Case { name, token, .. } in cases(&world.server.clock, &hop.provider.url("/trap")) {
        let answer = world.introspect(&asker, &token, &[]).await;
        if token.is_empty() || token.contains(char::is_control) {
            assert_eq!(answer.expect(400)["error"], "invalid_request", "{name}");
            continue;
        }
        assert_eq!((answer.status, &*answer.text), (200, INACTIVE), "{name}");
        told.insert(answer.redacted());
    }
    assert_eq!(told.len(), 1, "{told:#?}");
    assert_eq!(hop.provider.asked("/trap"), 0, "no token sent us anywhere");
    // At its very second, without the leeway that a caller of the administration has.
    let left = claims["exp"].as_i64().unwrap() - world.server.clock.now().unix_seconds();
    let left = format!("{left}s").parse().unwrap();
    world.server.clock.advance(left);
    let answer = world.introspect(&asker, &person, &[]).await;
    assert_eq!(answer.text, INACTIVE);
    let answer = hop.swap((&person, ACCESS_TOKEN), &[]).await;
    assert_eq!(answer.status, 400);
}
