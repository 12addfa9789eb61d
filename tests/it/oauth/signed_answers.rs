//! Introspection whose answer is signed, and the token that takes the place of an answer.

use super::*;
use crate::support::both;

both!(
    a_signed_answer_is_what_rfc_9701_says_and_of_no_use_as_a_token,
    the_phantom_token_is_for_the_service_that_asked_and_ends_with_its_key,
    a_phantom_token_is_given_out_again_while_nothing_has_changed,
    no_service_is_given_the_phantom_token_of_another,
    the_answer_holds_a_token_where_the_service_asks_for_it,
);

const SIGNED: &str = "application/token-introspection+jwt";
const PHANTOM: &str = "application/jwt";

impl World {
    async fn accepting(&self, accept: &str, asker: &str, token: &str) -> Answer {
        let request = self.asks(asker, token, &[]);
        request.header("accept", accept).send().await
    }

    /// The published keys.
    async fn keys(&self) -> Value {
        let path = "/.well-known/jwks.json";
        self.server.client().get(path).send().await.expect(200)
    }
}

/// 31, 32, 33, 34, 35, 37, 38, 39; F6, F7.
async fn a_signed_answer_is_what_rfc_9701_says_and_of_no_use_as_a_token(home: Home) {
    let world = World::new(&home).await;
    let accepts = json!({"tokens": {"accepts": ["key", "jwt"]}});
    world.change("/v1/services/invoicing", accepts).await;
    let asker = world.asker(&["introspect:invoicing", "verify"]).await;
    let lookup_id = asker.split('_').nth(2).unwrap();
    let key = world.key().await;
    let auth = basic(lookup_id, &asker);
    let ask = async |token: &str| {
        let request = world.server.client().post("/oauth/introspect");
        let request = request.header("authorization", &auth);
        let request = request.header("accept", SIGNED).form(&[("token", token)]);
        let answer = request.send().await;
        assert_eq!(answer.status, 200, "{answer}");
        assert_eq!(answer.headers["content-type"], SIGNED);
        assert_eq!(answer.headers["cache-control"], "no-store");
        answer.text
    };
    let signed = ask(&key).await;
    assert_eq!(part(&signed, 0)["typ"], "token-introspection+jwt");
    let claims = verified_as("token-introspection+jwt", &signed, &world.keys().await);
    let members: HashSet<&str> = claims
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    // 37: neither sub nor exp.
    let expected = ["iss", "aud", "iat", "token_introspection"];
    assert_eq!(members, HashSet::from(expected), "{claims}");
    assert_eq!(claims["iss"], world.issuer());
    // The caller by the name it called itself.
    assert_eq!(claims["aud"], lookup_id);
    let plain = world.introspect(&asker, &key, &[]).await.expect(200);
    assert_eq!(claims["token_introspection"], plain);
    // 34.
    let inactive = ask("nonsense").await;
    let claims = verified_as("token-introspection+jwt", &inactive, &world.keys().await);
    assert_eq!(claims["token_introspection"], json!({"active": false}));
    // 38.
    let path = "/.well-known/oauth-authorization-server";
    let metadata = world.server.client().get(path).send().await.expect(200);
    assert_eq!(
        metadata["introspection_signing_alg_values_supported"],
        json!([part(&signed, 0)["alg"]])
    );
    // 39, F6: nowhere is it a credential.
    let bearer = format!("Bearer {signed}");
    for path in ["/v1/keys", "/v1/self"] {
        let request = world.server.client().get(path);
        let answer = request.header("authorization", &bearer).send().await;
        assert_eq!(answer.status, 401, "{path}: {answer}");
    }
    let request = world
        .server
        .client()
        .get("/gateway/authorize?service=invoicing");
    let request = request.header("x-keystead-caller", &asker);
    let answer = request.header("authorization", &bearer).send().await;
    assert_eq!(answer.status, 401, "{answer}");
}

/// F8.
async fn the_phantom_token_is_for_the_service_that_asked_and_ends_with_its_key(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let issued = world.issue(&["invoice:read"], json!({"ttl": "2m"})).await;
    let key = text(&issued, "/api_key");
    let answer = world.accepting(PHANTOM, &asker, &key).await;
    assert_eq!(answer.headers["content-type"], PHANTOM);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let claims = world.verified(&answer.text, "invoicing").await;
    let end = text(&issued, "/key/expires_at").parse::<keystead::time::Timestamp>();
    assert_eq!(claims["exp"], end.unwrap().unix_seconds());
    assert_eq!(claims["scope"], "invoice:read");
    assert_eq!(claims["sub"], issued["key"]["consumer"]["id"]);
    assert_eq!(claims["keystead"]["key_id"], issued["key"]["id"]);
    // It is a token like any other.
    let told = world
        .introspect(&asker, &answer.text, &[])
        .await
        .expect(200);
    assert_eq!(
        (&told["active"], &told["jti"]),
        (&json!(true), &claims["jti"])
    );

    // That of a token has its id, and never outlives it.
    let token = world.token(&key, &[]).await;
    let phantom = world.accepting(PHANTOM, &asker, &token).await.text;
    let (of, phantom) = (part(&token, 1), part(&phantom, 1));
    assert_eq!(phantom["jti"], of["jti"]);
    assert!(phantom["exp"].as_i64() <= of["exp"].as_i64(), "{phantom}");

    let path = format!("/v1/keys/{}/revoke", text(&issued, "/key/id"));
    world.owner.post(&path).send().await.expect(200);
    for token in [&key, &token, &answer.text] {
        let told = world.accepting(PHANTOM, &asker, token).await;
        assert_eq!(told.headers["content-type"], "application/json");
        assert_eq!(told.text, r#"{"active":false}"#);
    }
}

async fn a_phantom_token_is_given_out_again_while_nothing_has_changed(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let key = text(&issued, "/api_key");
    let phantom = async || world.accepting(PHANTOM, &asker, &key).await.text;
    let first = phantom().await;
    for _ in 0..5 {
        assert_eq!(phantom().await, first);
    }
    let key_path = format!("/v1/keys/{}", text(&issued, "/key/id"));
    let grants = json!({"grants": [{"service": "invoicing", "scopes": ["report:read"]}]});
    let mut last = first;
    for (path, change) in [
        (&*key_path, grants),
        ("/v1/consumers/acme", json!({"name": "Acme"})),
        (
            "/v1/services/invoicing",
            json!({"tokens": {"claims": {"of": "consumer.name"}}}),
        ),
    ] {
        world.change(path, change).await;
        let next = phantom().await;
        assert_ne!(next, last, "{path}");
        last = next;
    }
    let claims = part(&last, 1);
    assert_eq!(
        (&claims["scope"], &claims["of"]),
        (&json!("report:read"), &json!("Acme"))
    );
    // Whoever gets one has half of its life before him.
    world.server.clock.advance("2m".parse().unwrap());
    assert_eq!(phantom().await, last);
    world.server.clock.advance("40s".parse().unwrap());
    assert_ne!(phantom().await, last);
}

/// F9.
async fn no_service_is_given_the_phantom_token_of_another(home: Home) {
    let world = World::new(&home).await;
    let key = world.key_of_two().await;
    let askers = [
        ("invoicing", world.asker(&["introspect:invoicing"]).await),
        ("shipping", world.asker(&["introspect:shipping"]).await),
    ];
    let (world, key) = (&world, &*key);
    let asked = (0..400).map(|index| {
        let (service, asker) = &askers[index % 2];
        async move {
            let token = world.accepting(PHANTOM, asker, key).await.text;
            let claims = part(&token, 1);
            assert_eq!(
                (&claims["aud"], &claims["keystead"]["service"]),
                (&json!(service), &json!(service))
            );
        }
    });
    use futures_util::StreamExt as _;
    futures_util::stream::iter(asked)
        .buffer_unordered(16)
        .collect::<Vec<_>>()
        .await;
}

async fn the_answer_holds_a_token_where_the_service_asks_for_it(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let plain = world.introspect(&asker, &key, &[]).await.expect(200);
    assert_eq!(plain.get("jwt"), None);
    let member = json!({"tokens": {"introspection_jwt_member": true}});
    world.change("/v1/services/invoicing", member).await;
    let told = world.introspect(&asker, &key, &[]).await.expect(200);
    let claims = world.verified(&text(&told, "/jwt"), "invoicing").await;
    assert_eq!(claims["scope"], told["scope"]);
    // It is an answer in itself, and holds none.
    let signed = world.accepting(SIGNED, &asker, &key).await.text;
    assert_eq!(part(&signed, 1)["token_introspection"].get("jwt"), None);
    let inactive = world.introspect(&asker, "nonsense", &[]).await;
    assert_eq!(inactive.text, r#"{"active":false}"#);
}
