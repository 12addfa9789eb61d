//! How long an exchanged token lives: never longer than what it was made from, and than whoever passed it on.

use keystead::time::Span;

use super::exchange::{ACCESS_TOKEN, API_KEY, Hop, JWT, id};
use super::*;
use crate::support::both;
use crate::support::forge::forged::A;

both!(
    no_repetition_extends_a_life,
    an_exchanged_token_ends_with_all_that_it_was_made_from,
    an_exchanged_token_ends_with_whoever_passed_it_on,
);

/// G9, E12, F8.
async fn no_repetition_extends_a_life(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let long = json!({"tokens": {"ttl": "15m"}});
    world.change("/v1/services/invoicing", long).await;
    let first = hop.at_the_shop().await;
    let end = part(&first, 1)["exp"].as_i64().unwrap();
    let mut token = first;
    for _ in 0..6 {
        let told = hop.swap((&token, ACCESS_TOKEN), &[]).await.expect(200);
        token = text(&told, "/access_token");
        let claims = part(&token, 1);
        assert_eq!(claims["exp"].as_i64(), Some(end));
        let left = end - claims["iat"].as_i64().unwrap();
        assert_eq!(told["expires_in"].as_i64(), Some(left));
        // Who acts already is not put before himself.
        assert_eq!(claims["act"], json!({"sub": id(&hop.backend)}));
        world.server.clock.advance(Span::seconds(30));
    }
    world.server.clock.advance(Span::seconds(121));
    let answer = hop.swap((&token, ACCESS_TOKEN), &[]).await;
    assert_eq!(answer.expect(400)["error"], "invalid_request");
    // A person's token within the leeway is over too.
    let person = hop.vouched(json!({"scope": "invoice:read"}));
    let end = part(&person, 1)["exp"].as_i64().unwrap();
    let told = hop.swap((&person, JWT), &[]).await.expect(200);
    let claims = part(&text(&told, "/access_token"), 1);
    assert_eq!(claims["exp"].as_i64(), Some(end));
    world.server.clock.advance(Span::seconds(301));
    let answer = hop.swap((&person, JWT), &[]).await;
    assert_eq!(answer.expect(400)["error"], "invalid_request");

    // No longer than either key, nor than the actor's token.
    let home = home.empty().await;
    let hop = Hop::with(&home, json!({"ttl": "200s"}), json!({"ttl": "100s"})).await;
    let key_end = |issued: &Value| {
        let end = text(issued, "/key/expires_at").parse::<keystead::time::Timestamp>();
        end.unwrap().unix_seconds()
    };
    for (subject, end) in [
        ((hop.customer_key(), API_KEY), key_end(&hop.backend)),
        ((hop.at_the_shop().await, JWT), key_end(&hop.backend)),
        (
            (hop.vouched(json!({"scope": "invoice:read"})), JWT),
            key_end(&hop.backend),
        ),
    ] {
        let told = hop.swap((&subject.0, subject.1), &[]).await.expect(200);
        let claims = part(&text(&told, "/access_token"), 1);
        assert_eq!(claims["exp"].as_i64(), Some(end), "{subject:?}");
    }
}

/// G11, E17, 56: by itself, and with either key.
async fn an_exchanged_token_ends_with_all_that_it_was_made_from(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let asker = hop.asker().await;
    let is_active = async |token: &str| {
        let told = world.introspect(&asker, token, &[]).await;
        if told.text == r#"{"active":false}"# {
            return false;
        }
        assert_eq!(told.body["active"], true, "{told}");
        true
    };
    let exchanged = async || {
        let subject = hop.at_the_shop().await;
        let told = hop.swap((&subject, ACCESS_TOKEN), &[]).await.expect(200);
        text(&told, "/access_token")
    };
    let end = async |key: &str, token: &str| {
        let client = world.server.client().with_key(key);
        let form = [("token", token)];
        client.post("/oauth/revoke").form(&form).send().await
    };
    // It belongs to the client that it was exchanged for.
    let token = exchanged().await;
    let refused = end(&hop.customer_key(), &token).await;
    assert_eq!(refused.expect(400)["error"], "unauthorized_client");
    assert!(is_active(&token).await);
    end(&hop.backend_key(), &token).await.expect(200);
    assert!(!is_active(&token).await);
    // What either key lost it lost.
    let token = exchanged().await;
    for issued in [&hop.backend, &hop.customer] {
        let path = format!("/v1/keys/{}", text(issued, "/key/id"));
        let before = issued["key"]["grants"].clone();
        let less = json!({"grants": [
            {"service": "shop", "scopes": ["*"]}, {"service": "invoicing", "scopes": ["report:read"]},
        ]});
        world.change(&path, less).await;
        let told = world.introspect(&asker, &token, &[]).await.expect(200);
        assert_eq!(told["scope"], "", "{told}");
        let none = json!({"grants": [{"service": "shop", "scopes": ["*"]}]});
        world.change(&path, none).await;
        assert!(!is_active(&token).await);
        let grants: Vec<Value> = before
            .as_array()
            .unwrap()
            .iter()
            .map(|grant| json!({"service": grant["service"], "scopes": grant["scopes"]}))
            .collect();
        world.change(&path, json!({ "grants": grants })).await;
        assert!(is_active(&token).await);
    }
    for path in [
        format!("/v1/keys/{}", text(&hop.customer, "/key/id")),
        format!("/v1/keys/{}", text(&hop.backend, "/key/id")),
        "/v1/consumers/acme".to_owned(),
        "/v1/consumers/backend".to_owned(),
        "/v1/services/invoicing".to_owned(),
    ] {
        let token = exchanged().await;
        assert!(is_active(&token).await, "{path}");
        let act = async |verb: &str| {
            let path = format!("{path}/{verb}");
            world.owner.post(&path).send().await.expect(200);
        };
        act("disable").await;
        if path != "/v1/consumers/acme" {
            // There the asker's own key is of it.
            assert!(!is_active(&token).await, "{path}");
        }
        act("enable").await;
        assert!(is_active(&token).await, "{path}");
    }
    // With the secret of either.
    for of_customer in [true, false] {
        let home = home.empty().await;
        let hop = Hop::new(&home).await;
        let (asker, subject) = (hop.asker().await, hop.at_the_shop().await);
        let told = hop.swap((&subject, ACCESS_TOKEN), &[]).await.expect(200);
        let token = text(&told, "/access_token");
        let issued = if of_customer {
            &hop.customer
        } else {
            &hop.backend
        };
        let path = format!("/v1/keys/{}/rotate", text(issued, "/key/id"));
        for (overlap, active) in [("1h", true), ("0s", false)] {
            let request = hop
                .world
                .owner
                .post(&path)
                .json(json!({"overlap": overlap}));
            request.send().await.expect(200);
            if !active {
                let secret = text(issued, "/key/secrets/0/id");
                let path = format!(
                    "/v1/keys/{}/secrets/{secret}/revoke",
                    text(issued, "/key/id")
                );
                hop.world.owner.post(&path).send().await.expect(200);
            }
            let told = hop.world.introspect(&asker, &token, &[]).await.expect(200);
            assert_eq!(told["active"], active, "{path} {overlap}");
        }
    }
}

/// Also where their keys grant nothing on the service any more.
async fn an_exchanged_token_ends_with_whoever_passed_it_on(home: Home) {
    let grant = |service: &str, scopes: Value| json!({"service": service, "scopes": scopes});
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let policy = json!({"from": ["invoicing"], "actors": ["carrier"]});
    let shipping = json!({
        "slug": "shipping", "exchange": policy, "tokens": {"accepts": ["key", "jwt"]},
    });
    world.owner.create("/v1/services", shipping).await;
    world
        .owner
        .create("/v1/consumers", json!({"slug": "carrier"}))
        .await;
    let all = json!([
        grant("shop", json!(["*"])),
        grant("invoicing", json!(["invoice:read"])),
        grant("shipping", json!(["invoice:read"]))
    ]);
    for issued in [&hop.customer, &hop.backend] {
        let path = format!("/v1/keys/{}", text(issued, "/key/id"));
        world.change(&path, json!({ "grants": all })).await;
    }
    let carrier = json!({
        "consumer": "carrier", "grants": [grant("shipping", json!(["invoice:read"]))],
    });
    let carrier = world.issue(&[], carrier).await;
    let asker = world.asker(&["introspect:shipping"]).await;
    let gateway = world.asker(&["verify:shipping"]).await;
    let passed_on = async |from: &str| {
        let pairs = [
            ("subject_token", from),
            ("subject_token_type", ACCESS_TOKEN),
            ("audience", "shipping"),
        ];
        hop.send(&text(&carrier, "/api_key"), &pairs).await
    };
    let is_active = async |token: &str| {
        let told = world.introspect(&asker, token, &[]).await.expect(200);
        let path = "/gateway/authorize?service=shipping&required_scopes=invoice:read";
        let request = world.server.client().get(path);
        let request = request.header("authorization", &format!("Bearer {token}"));
        let at_gateway = request.header("x-keystead-caller", &gateway).send().await;
        assert_eq!(told["active"], at_gateway.status == 200, "{at_gateway}");
        told["active"] == true
    };
    let from = hop.at_the_shop().await;
    let told = hop.swap((&from, ACCESS_TOKEN), &[]).await.expect(200);
    let between = text(&told, "/access_token");
    let token = text(&passed_on(&between).await.expect(200), "/access_token");
    let claims = world.verified(&token, "shipping").await;
    let backend = &hop.backend["key"];
    assert_eq!(
        claims["keystead"]["other_secret_ids"],
        backend["secrets"][0]["id"]
    );
    assert_eq!(
        claims["keystead"]["client_secret_id"],
        carrier["key"]["secrets"][0]["id"]
    );
    let told = world.introspect(&asker, &token, &[]).await.expect(200);
    assert_eq!(told["keystead"], claims["keystead"]);
    assert!(is_active(&token).await);
    // Whoever exchanges it again passes on all of them, each once.
    let again = text(&passed_on(&token).await.expect(200), "/access_token");
    assert_eq!(part(&again, 1)["keystead"], claims["keystead"]);
    // And so does the token that stands in for it.
    let request = world.asks(&asker, &token, &[]);
    let phantom = request.header("accept", "application/jwt").send().await;
    assert_eq!(part(&phantom.text, 1)["keystead"], claims["keystead"]);

    let (key, consumer) = (text(&hop.backend, "/key/id"), "backend");
    for path in [
        format!("/v1/keys/{key}"),
        format!("/v1/consumers/{consumer}"),
    ] {
        for (verb, active) in [("disable", false), ("enable", true)] {
            let path = format!("{path}/{verb}");
            world.owner.post(&path).send().await.expect(200);
            for token in [&token, &again, &phantom.text] {
                assert_eq!(is_active(token).await, active, "{path}");
            }
        }
    }
    // What its key grants is no matter here.
    let less = json!({"grants": [grant("shop", json!(["*"]))]});
    world.change(&format!("/v1/keys/{key}"), less).await;
    assert!(is_active(&token).await);
    let rotate = world.owner.post(&format!("/v1/keys/{key}/rotate"));
    rotate
        .json(json!({"overlap": "0s"}))
        .send()
        .await
        .expect(200);
    for token in [&token, &again, &phantom.text] {
        assert!(!is_active(token).await);
    }
    let refused = passed_on(&token).await.expect(400);
    assert_eq!(refused["error"], "invalid_request", "{refused}");

    // So does who acts by a key or a token of his own.
    let eve = json!({"consumer": "eve", "grants": [grant("invoicing", json!(["invoice:read"]))]});
    let eve = world.issue(&[], eve).await;
    let policy = json!({"exchange": {"actors": ["carrier", "eve"], "from": ["shop", A]}});
    world.change("/v1/services/invoicing", policy).await;
    let on_invoicing = json!({
        "consumer": "carrier", "grants": [grant("invoicing", json!(["invoice:read"]))],
    });
    let client = text(&world.issue(&[], on_invoicing).await, "/api_key");
    let may_act = json!({"sub": id(&eve)});
    let subject = hop.vouched(json!({"may_act": may_act, "scope": "invoice:read"}));
    let of_eve = world.token(&text(&eve, "/api_key"), &[]).await;
    let asker = hop.asker().await;
    let mut made = Vec::new();
    for (actor, kind) in [(text(&eve, "/api_key"), API_KEY), (of_eve, ACCESS_TOKEN)] {
        let pairs = [
            ("subject_token", &*subject),
            ("subject_token_type", JWT),
            ("actor_token", &*actor),
            ("actor_token_type", kind),
            ("audience", "invoicing"),
        ];
        let told = hop.send(&client, &pairs).await.expect(200);
        let token = text(&told, "/access_token");
        let secret = &eve["key"]["secrets"][0]["id"];
        assert_eq!(part(&token, 1)["keystead"]["other_secret_ids"], *secret);
        made.push(token);
    }
    let path = format!("/v1/keys/{}/revoke", text(&eve, "/key/id"));
    for active in [true, false] {
        for token in &made {
            let told = world.introspect(&asker, token, &[]).await.expect(200);
            assert_eq!(told["active"], active, "{told}");
        }
        if active {
            world.owner.post(&path).send().await.expect(200);
        }
    }
}
