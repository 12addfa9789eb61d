//! What the token endpoint refuses, and what it says then.

use super::*;
use crate::support::both;

both!(
    a_refusal_has_the_body_and_the_status_of_rfc_6749,
    whoever_presents_no_known_key_learns_nothing,
    a_key_that_is_no_good_is_no_client,
    what_a_stranger_writes_is_never_an_error_of_ours_or_repeated,
    wrong_secrets_are_limited_and_other_clients_are_not,
);

const FORM: &str = "application/x-www-form-urlencoded";

/// 1, 3, 5, 6, 7, 11; E5, E6, E8, E9, E19.
async fn a_refusal_has_the_body_and_the_status_of_rfc_6749(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let client = world.server.client();
    let grant = "grant_type=client_credentials";
    let secret = format!("client_id=acme&client_secret={key}");
    let auth = basic("acme", &key);
    let (header, api_key) = (("authorization", &*auth), ("x-api-key", &*key));
    let wrong = basic("acme", "wrong");
    for (headers, body, status, error) in [
        // 7: none is no client.
        (&[][..], grant.to_owned(), 401, "invalid_client"),
        (
            &[],
            format!("{grant}&client_id=acme"),
            401,
            "invalid_client",
        ),
        (
            &[("authorization", &*wrong)],
            grant.to_owned(),
            401,
            "invalid_client",
        ),
        (
            &[("authorization", "Basic %zz")],
            grant.to_owned(),
            401,
            "invalid_client",
        ),
        (
            &[("authorization", "Bearer x")],
            grant.to_owned(),
            401,
            "invalid_client",
        ),
        (
            &[],
            format!("{grant}&client_assertion=x&client_id=acme"),
            401,
            "invalid_client",
        ),
        (
            &[],
            format!("{grant}&client_secret={key}"),
            400,
            "invalid_request",
        ),
        // 1, E5: two ways.
        (
            &[header],
            format!("{grant}&{secret}"),
            400,
            "invalid_request",
        ),
        (&[header, api_key], grant.to_owned(), 400, "invalid_request"),
        (
            &[api_key],
            format!("{grant}&{secret}"),
            400,
            "invalid_request",
        ),
        (&[header, header], grant.to_owned(), 400, "invalid_request"),
        (
            &[header],
            format!("{grant}&client_assertion=x"),
            400,
            "invalid_request",
        ),
        // 6, E8: parameters.
        (&[header], String::new(), 400, "invalid_request"),
        (&[header], "grant_type=".to_owned(), 400, "invalid_request"),
        (
            &[header],
            format!("{grant}&{grant}"),
            400,
            "invalid_request",
        ),
        (
            &[header],
            format!("{grant}&scope=a&scope=a"),
            400,
            "invalid_request",
        ),
        (
            &[header],
            format!("{grant}&x=1&x=2"),
            400,
            "invalid_request",
        ),
        (
            &[header],
            format!("{grant}&scope=%zz"),
            400,
            "invalid_scope",
        ),
        (
            &[header],
            format!("{grant}&scope=%00"),
            400,
            "invalid_request",
        ),
        (
            &[header],
            format!("{grant}&scope=%ff"),
            400,
            "invalid_request",
        ),
        (
            &[header],
            format!("{grant}&scope=\u{e9}"),
            400,
            "invalid_scope",
        ),
        (
            &[header],
            format!("{grant}&scope={}", "a".repeat(65 * 1024)),
            400,
            "invalid_request",
        ),
        (&[header], format!("{grant}&scope=;"), 400, "invalid_scope"),
        // E9: grants that are not for machines.
        (
            &[header],
            "grant_type=password&username=x".to_owned(),
            400,
            "unsupported_grant_type",
        ),
        (
            &[header],
            "grant_type=authorization_code".to_owned(),
            400,
            "unsupported_grant_type",
        ),
        (
            &[header],
            "grant_type=implicit".to_owned(),
            400,
            "unsupported_grant_type",
        ),
        (
            &[header],
            "grant_type=refresh_token".to_owned(),
            400,
            "unsupported_grant_type",
        ),
        (
            &[header],
            "grant_type=Client_Credentials".to_owned(),
            400,
            "unsupported_grant_type",
        ),
    ] {
        let request = headers
            .iter()
            .fold(client.post("/oauth/token"), |request, (name, value)| {
                request.header(name, value)
            });
        let answer = request.form_text(body.clone()).send().await;
        let body = &body[..body.len().min(200)];
        let told = (answer.status, answer.body["error"].as_str());
        assert_eq!(told, (status, Some(error)), "{headers:?} {body}: {answer}");
        let members = answer.body.as_object().unwrap();
        assert!(members.contains_key("error_description"), "{answer}");
        assert_eq!(members.len(), 2, "{answer}");
        assert_eq!(
            answer.headers["content-type"], "application/json",
            "{answer}"
        );
        assert_eq!(answer.headers["cache-control"], "no-store", "{answer}");
        assert_eq!(answer.headers["pragma"], "no-cache", "{answer}");
        // 11: the scheme that may be used.
        let challenge = answer.headers.get("www-authenticate");
        assert_eq!(challenge.is_some(), status == 401, "{answer}");
        if let Some(challenge) = challenge {
            assert!(
                challenge.to_str().unwrap().starts_with("Basic realm="),
                "{answer}"
            );
        }
    }
    // 6: unknown ones are ignored, and one without a value is none.
    for body in [
        format!("{grant}&username=x&acr_values="),
        format!("{grant}&scope=&audience=&resource=&client_id="),
    ] {
        let request = client.post("/oauth/token").header("authorization", &auth);
        request.form_text(body).send().await.expect(200);
    }
    // E19: no other media type.
    for content_type in [
        "application/json",
        "text/plain",
        "multipart/form-data; boundary=x",
        "",
    ] {
        let request = client.post("/oauth/token").header("authorization", &auth);
        let request = request.header("content-type", content_type);
        let answer = request.body_text(grant).send().await;
        let told = (answer.status, answer.body["error"].as_str());
        assert_eq!(
            told,
            (400, Some("invalid_request")),
            "{content_type}: {answer}"
        );
    }
    let request = client.post("/oauth/token").header("authorization", &auth);
    let typed = format!("{FORM}; charset=UTF-8");
    request
        .header("content-type", &typed)
        .body_text(grant)
        .send()
        .await
        .expect(200);

    // 3, E6: nothing of it in the address.
    for query in ["?client_secret=x", &format!("?client_id=acme&x={key}")] {
        let request = client.post(&format!("/oauth/token{query}"));
        let answer = request.form_text(grant).send().await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "credential_in_query"),
            "{query}"
        );
    }
    let request = client.post(&format!("/oauth/token?{grant}"));
    let answer = request
        .header("authorization", &auth)
        .form_text("")
        .send()
        .await;
    assert_eq!(answer.body["error"], "invalid_request", "{answer}");
    // 5.
    for method in ["GET", "PUT", "DELETE", "PATCH"] {
        let answer = client
            .request(method.parse().unwrap(), "/oauth/token")
            .send()
            .await;
        assert_eq!(
            (answer.status, answer.code()),
            (405, "method_not_allowed"),
            "{method}"
        );
        assert_eq!(answer.headers["allow"], "POST", "{method}");
    }
}

/// 7, 13; E10, E11: unknown, malformed, another's: one body, whatever client is named.
async fn whoever_presents_no_known_key_learns_nothing(home: Home) {
    let world = World::new(&home).await;
    world
        .owner
        .create("/v1/consumers", json!({"slug": "other"}))
        .await;
    let key = world.key().await;
    let stranger = crate::security::stranger("000000000000");
    let typo = typo(&key);
    let mut told = HashSet::new();
    for (id, secret) in [
        ("acme", &*stranger),
        ("acme", &typo),
        ("acme", "letmein"),
        ("acme", "' OR '1'='1"),
        ("acme", &*"x".repeat(4001)),
        ("nobody", &stranger),
        ("nobody", "letmein"),
        // A good key, and another client's name.
        ("other", &key),
        ("nobody", &key),
        ("", &key),
        ("ACME", &key),
    ] {
        let pairs = [
            ("grant_type", "client_credentials"),
            ("client_id", id),
            ("client_secret", secret),
        ];
        let client = world.server.client();
        let posted = client.post("/oauth/token").form(&pairs).send().await;
        let request = client
            .post("/oauth/token")
            .header("authorization", &basic(id, secret));
        let by_header = request.form(&pairs[..1]).send().await;
        // An id without a value is left out, which is a fault of the request.
        if !id.is_empty() {
            assert_eq!(posted.status, 401, "{id} {secret}: {posted}");
            told.insert(posted.redacted());
        }
        assert_eq!(by_header.status, 401, "{id} {secret}: {by_header}");
        told.insert(by_header.redacted());
    }
    assert_eq!(told.len(), 1, "{told:#?}");
}

/// E12: at once, on the node that answered.
async fn a_key_that_is_no_good_is_no_client(home: Home) {
    let world = World::new(&home).await;
    let act = async |path: String| world.owner.post(&path).send().await.expect(200);
    let refused = async |key: &str, error: &str, what: &str| {
        let answer = world.ask(key, &[]).await;
        let status = if error == "invalid_client" { 401 } else { 400 };
        let told = (answer.status, answer.body["error"].as_str());
        assert_eq!(told, (status, Some(error)), "{what}: {answer}");
        answer.body["error_description"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let new = async |more: Value| {
        let issued = world.issue(&["invoice:read"], more).await;
        (text(&issued, "/key/id"), text(&issued, "/api_key"))
    };
    for (action, word) in [("revoke", "revoked"), ("disable", "disabled")] {
        let (id, key) = new(json!({})).await;
        world.token(&key, &[]).await;
        act(format!("/v1/keys/{id}/{action}")).await;
        assert!(refused(&key, "invalid_client", action).await.contains(word));
    }
    let (_, short) = new(json!({"ttl": "5s"})).await;
    let (_, early) = new(json!({"not_before": "2199-01-01T00:00:00Z", "expires_at": null})).await;
    let (_, elsewhere) = new(json!({"allowed_ips": ["203.0.113.0/24"]})).await;
    let (_, here) = new(json!({"allowed_ips": ["127.0.0.1"]})).await;
    world.token(&here, &[]).await;
    world.server.clock.advance("6s".parse().unwrap());
    assert!(
        refused(&short, "invalid_client", "expired")
            .await
            .contains("expired")
    );
    refused(&early, "invalid_client", "not yet").await;
    refused(&elsewhere, "unauthorized_client", "address").await;
    // What is wrong with the key is told before what is wrong with the request.
    let answer = world.ask(&short, &[("audience", "nowhere")]).await;
    assert_eq!(answer.body["error"], "invalid_client", "{answer}");

    let (_, key) = new(json!({})).await;
    for (path, error) in [
        ("/v1/services/invoicing", "invalid_target"),
        ("/v1/consumers/acme", "invalid_client"),
    ] {
        act(format!("{path}/disable")).await;
        refused(&key, error, path).await;
        act(format!("{path}/enable")).await;
        world.token(&key, &[]).await;
    }
    let tenant = world
        .owner
        .create("/v1/tenants", json!({"slug": "other"}))
        .await;
    let within = world.owner.within("other");
    within
        .create("/v1/services", json!({"slug": "invoicing"}))
        .await;
    within
        .create("/v1/consumers", json!({"slug": "acme"}))
        .await;
    let issued = within
        .create(
            "/v1/keys",
            json!({"name": "k", "consumer": "acme",
                "grants": [{"service": "invoicing", "scopes": ["x"]}]}),
        )
        .await;
    let foreign = text(&issued, "/api_key");
    // A token says which tenant's service it is for.
    let claims = world
        .verified(&world.token(&foreign, &[]).await, "invoicing")
        .await;
    assert_eq!(claims["keystead"]["tenant"], "other");
    act(format!("/v1/tenants/{}/disable", text(&tenant, "/id"))).await;
    refused(&foreign, "invalid_client", "tenant").await;
}

/// 12; A1, A7, A8: whatever stands in a parameter.
async fn what_a_stranger_writes_is_never_an_error_of_ours_or_repeated(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let long = "x".repeat(4001);
    for odd in [
        "' OR '1'='1",
        "x' UNION SELECT 1--",
        "';SELECT pg_sleep(5)--",
        "%",
        "_",
        "<script>marker</script>",
        "marker\"quote\\backslash",
        "marker\u{202e}",
        "\u{1f4a9}marker",
        "../../marker",
        "{{marker}}",
        "${marker}",
        &long,
    ] {
        for name in [
            "grant_type",
            "scope",
            "audience",
            "resource",
            "client_id",
            "client_secret",
            "client_assertion",
            "subject_token",
            "unknown",
            odd,
        ] {
            let mut pairs = vec![("grant_type", "client_credentials"), (name, odd)];
            if name == "grant_type" {
                pairs.remove(0);
            }
            for answer in [
                world
                    .server
                    .client()
                    .with_key(&key)
                    .post("/oauth/token")
                    .form(&pairs)
                    .send()
                    .await,
                world
                    .server
                    .client()
                    .post("/oauth/token")
                    .form(&pairs)
                    .send()
                    .await,
            ] {
                assert!(
                    [200, 400, 401].contains(&answer.status),
                    "{name} {odd}: {answer}"
                );
                let description = answer.body["error_description"]
                    .as_str()
                    .unwrap_or_default();
                let allowed = |b: u8| matches!(b, 0x20..=0x21 | 0x23..=0x5b | 0x5d..=0x7e);
                assert!(description.bytes().all(allowed), "{name} {odd}: {answer}");
                assert!(!answer.text.contains("marker") && !answer.text.contains(&long));
            }
        }
    }
    // What no HTTP client would send.
    for request in [
        "POST /oauth/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\
         x-api-key: \x01\r\n\r\nabcde",
        "POST /oauth/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nAuthorization: Basic \r\n\r\n&&&",
    ] {
        let answer = world.server.client().raw(request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{request:?}: {answer}");
    }
}

/// 4.
async fn wrong_secrets_are_limited_and_other_clients_are_not(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    world.token(&key, &[]).await;
    let mut limited = 0;
    for _ in 0..1000 {
        let wrong = crate::security::stranger("000000000000");
        let answer = world.ask(&wrong, &[]).await;
        match answer.status {
            401 => {}
            503 => {
                assert_eq!(answer.body["error"], "temporarily_unavailable", "{answer}");
                assert!(answer.headers.contains_key("retry-after"), "{answer}");
                limited += 1;
            }
            _ => panic!("{answer}"),
        }
        if limited > 20 {
            break;
        }
    }
    assert!(limited > 20, "{limited}");
    world.token(&key, &[]).await;
}
