//! Clients and resource servers of others, unmodified: openid-client, oauth4webapi and Authlib get
//! tokens, exchange, introspect and revoke them; jose and PyJWT verify them. See tests/clients.

use super::exchange::{ACCESS_TOKEN, GRANT, Hop};
use super::*;
use crate::support::both;
use crate::support::programs::ask;

both!(
    stock_clients_discover_and_get_tokens_by_every_method,
    stock_clients_understand_a_refusal,
    stock_clients_exchange_introspect_and_revoke,
    stock_resource_servers_verify_by_the_key_set_alone,
);

/// Without the colon that ends an id in a header of [RFC 7617], and in Latin-1: Authlib sends both
/// halves as they are.
const PLAIN_ID: &str = "acme prod/1 +%-_=é%41";

const JAVASCRIPT: [&str; 2] = ["openid_client.mjs", "oauth4webapi.mjs"];

const AUTHLIB: &str = "authlib_client.py";

type Parameters = &'static [(&'static str, &'static str)];

/// What each of these parameters is worth to a key that may write invoices: the scope, the audience.
const ASKED: [(Parameters, &str, &str); 6] = [
    (&[], "invoice:write", "invoicing"),
    (&[("scope", "invoice:read")], "invoice:read", "invoicing"),
    (
        &[("scope", "invoice:read invoice:write")],
        "invoice:read invoice:write",
        "invoicing",
    ),
    (&[("audience", "invoicing")], "invoice:write", "invoicing"),
    (
        &[("resource", "https://pay.example/?a=b+c%20d")],
        "invoice:write",
        "https://pay.example/?a=b+c%20d",
    ),
    (
        &[("resource", "urn:pay"), ("scope", "invoice:read")],
        "invoice:read",
        "urn:pay",
    ),
];

/// A world whose service has resources, a second consumer, and a key of each consumer.
async fn world(home: &Home, settings: &[(&str, &str)]) -> (World, String, String) {
    let world = World::with(home, settings).await;
    let resources = json!({"tokens": {"resources": ["https://pay.example/?a=b+c%20d", "urn:pay"]}});
    let patch = world
        .owner
        .request("PATCH".parse().unwrap(), "/v1/services/invoicing");
    patch.json(resources).send().await.expect(200);
    let other = json!({"slug": "other", "external_id": PLAIN_ID});
    world.owner.create("/v1/consumers", other).await;
    let key = async |consumer: &str| {
        let consumer = json!({"consumer": consumer});
        text(&world.issue(&["invoice:write"], consumer).await, "/api_key")
    };
    let (key, other) = (key("acme").await, key("other").await);
    (world, key, other)
}

fn request(method: &str, id: &str, secret: &str, parameters: &[(&str, &str)]) -> Value {
    json!({"method": method, "id": id, "secret": secret, "parameters": parameters})
}

/// 2, 8, 63, 64, 65, 71, E4.
async fn stock_clients_discover_and_get_tokens_by_every_method(home: Home) {
    let (world, key, other) = world(&home, &[]).await;
    for program in [JAVASCRIPT[0], JAVASCRIPT[1], AUTHLIB] {
        let (id, secret) = if program == AUTHLIB {
            (PLAIN_ID, &other)
        } else {
            (EXTERNAL_ID, &key)
        };
        let mut requests = Vec::new();
        let mut expected = Vec::new();
        for method in ["basic", "post", "header"] {
            for (parameters, scope, audience) in ASKED {
                requests.push(request(method, id, secret, parameters));
                expected.push((scope, audience));
            }
        }
        let input = json!({"issuer": world.issuer(), "requests": requests});
        let answers = ask(program, &input).await;
        let answers = answers.as_array().expect("an array");
        assert_eq!(answers.len(), expected.len(), "{program}");
        for ((answer, request), (scope, audience)) in answers.iter().zip(&requests).zip(expected) {
            let token = answer["access_token"].as_str();
            let token = token.unwrap_or_else(|| panic!("{program} {request}: {answer}"));
            assert_eq!(answer["scope"], scope, "{program} {request}");
            assert_eq!(answer["expires_in"], 300, "{program} {request}");
            let claims = world.verified(token, audience).await;
            assert_eq!(claims["scope"], scope, "{program} {request}");
        }
    }
}

/// 9, 10, E7.
async fn stock_clients_understand_a_refusal(home: Home) {
    let (world, key, _) = world(&home, &[]).await;
    let wrong = typo(&key);
    let mut requests = Vec::new();
    for method in ["basic", "post", "header"] {
        requests.push(request(method, "acme", &key, &[("scope", "report:read")]));
        requests.push(request(method, "acme", &key, &[("audience", "nowhere")]));
        requests.push(request(method, "acme", &wrong, &[]));
    }
    // In the header alone there is no client id that could be another's.
    for method in ["basic", "post"] {
        requests.push(request(method, "other", &key, &[]));
    }
    for program in [JAVASCRIPT[0], JAVASCRIPT[1], AUTHLIB] {
        let input = json!({"issuer": world.issuer(), "requests": requests});
        let answers = ask(program, &input).await;
        let told: Vec<&str> = answers
            .as_array()
            .expect("an array")
            .iter()
            .map(|answer| answer["error"].as_str().unwrap_or("none"))
            .collect();
        // The libraries in JavaScript tell a challenge by its scheme.
        let challenged = if program == AUTHLIB {
            "invalid_client"
        } else {
            "basic"
        };
        let mut expected = ["invalid_scope", "invalid_target", challenged].repeat(3);
        expected.extend([challenged; 2]);
        assert_eq!(told, expected, "{program}: {answers}");
    }
}

/// 24, 31 to 34, 46, 55. Authlib has no reader for signed answers.
async fn stock_clients_exchange_introspect_and_revoke(home: Home) {
    let hop = Hop::new(&home).await;
    let (backend, asker) = (hop.backend_key(), hop.asker().await);
    for program in [JAVASCRIPT[0], JAVASCRIPT[1], AUTHLIB] {
        let subject = hop.at_the_shop().await;
        let swap = json!([
            ["subject_token", subject],
            ["subject_token_type", ACCESS_TOKEN],
            ["audience", "invoicing"],
            ["scope", "invoice:read"],
        ]);
        for method in ["basic", "post"] {
            let does = |what: &str, id: &str, secret: &str| json!({"what": what, "method": method, "id": id, "secret": secret});
            let all = async |requests: Vec<Value>| {
                let input = json!({"issuer": hop.world.issuer(), "requests": requests});
                ask(program, &input).await
            };
            let mut exchange = does("exchange", "backend", &backend);
            exchange["grant"] = json!(GRANT);
            exchange["parameters"] = swap.clone();
            let mut wider = exchange.clone();
            wider["parameters"][3][1] = json!("invoice:write");
            let told = all(vec![exchange, wider]).await;
            let token = told[0]["access_token"].as_str();
            let token = token.unwrap_or_else(|| panic!("{program} {method}: {told}"));
            assert_eq!(told[0]["issued_token_type"], ACCESS_TOKEN, "{program}");
            assert_eq!(told[0]["scope"], "invoice:read", "{program}");
            assert_eq!(told[1]["error"], "invalid_scope", "{program}");
            let claims = hop.world.verified(token, "invoicing").await;

            let mut requests = vec![
                does("introspect", "acme", &asker),
                does("introspect_jwt", "acme", &asker),
                does("revoke", "backend", &backend),
                does("introspect", "acme", &asker),
                does("introspect_jwt", "acme", &asker),
            ];
            if program == AUTHLIB {
                requests.retain(|request| request["what"] != "introspect_jwt");
            }
            for request in &mut requests {
                request["token"] = json!(token);
            }
            let told = all(requests.clone()).await;
            let mut is_active = true;
            for (told, request) in told.as_array().expect("an array").iter().zip(&requests) {
                if request["what"] == "revoke" {
                    assert!(told.get("error").is_none(), "{program}: {told}");
                    is_active = false;
                    continue;
                }
                assert_eq!(told["active"], is_active, "{program} {request}: {told}");
                let act = is_active.then_some(&claims["act"]);
                assert_eq!(told.get("act"), act, "{program}: {told}");
            }
            assert_eq!(told.as_array().map(Vec::len), Some(requests.len()));
        }
    }
}

/// 64, 67: with the URL of the keys and the names of issuer and audience, and nothing else.
async fn stock_resource_servers_verify_by_the_key_set_alone(home: Home) {
    for algorithm in ["ES256", "EdDSA", "RS256"] {
        let home = home.empty().await;
        let settings = [("OAUTH__SIGNING_ALGORITHM", algorithm)];
        let (world, key, _) = world(&home, &settings).await;
        let token = world.token(&key, &[]).await;
        assert_eq!(part(&token, 0)["alg"], algorithm);
        let by_resource = world.token(&key, &[("resource", "urn:pay")]).await;
        // The last character of a signature may hold bits that mean nothing, so not that one.
        let (head, tail) = token.split_at(token.len() - 20);
        let swapped = if tail.starts_with('A') { "B" } else { "A" };
        let forged = format!("{head}{swapped}{}", &tail[1..]);
        let one = |token: &str, audience: &str| json!({"token": token, "audience": audience});
        let input = json!({
            "issuer": world.issuer(),
            "jwks_uri": format!("{}/.well-known/jwks.json", world.issuer()),
            "tokens": [
                one(&token, "invoicing"),
                one(&by_resource, "urn:pay"),
                one(&token, "urn:pay"),
                one(&forged, "invoicing"),
            ],
        });
        for program in ["jose_verify.mjs", "pyjwt_verify.py"] {
            let told = ask(program, &input).await;
            assert_eq!(told[0]["claims"], part(&token, 1), "{program}: {told}");
            assert_eq!(told[1]["claims"]["aud"], "urn:pay", "{program}: {told}");
            for refused in [&told[2], &told[3]] {
                assert!(refused["refused"].is_string(), "{program}: {told}");
            }
        }
    }
}
