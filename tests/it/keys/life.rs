//! A key from issue to its end, as validation tells it.

use keystead::time::Span;
use serde_json::json;

use super::*;
use crate::support::{Home, both};

both!(
    a_key_is_judged_by_header_and_by_body,
    a_rotation_keeps_the_old_secret_for_its_overlap,
    revoked_disabled_and_expired_are_told_at_once,
    parents_that_are_disabled_or_deleted_end_their_keys,
    a_typo_is_malformed_and_a_stranger_unknown,
);

async fn a_key_is_judged_by_header_and_by_body(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, key) = issue(&owner, new_key()).await;
    let caller = manager_key(&owner, &["verify:invoicing"]).await;

    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    assert_eq!(verify(&owner, &key, "invoice:*").await, "valid");
    assert_eq!(
        verify(&owner, &key, "invoice:send").await,
        "insufficient_scope"
    );

    let asked = |scope: &str| format!("/gateway/authorize?required_scopes={scope}");
    let client = server.client();
    let judge = |scope: &str| {
        client
            .get(&asked(scope))
            .header("x-keystead-caller", &caller)
            .header("x-api-key", &key)
    };
    let admitted = judge("invoice:read").send().await;
    assert_eq!(admitted.status, 200, "{admitted}");
    let identity: Vec<_> = [
        "key-id",
        "consumer",
        "tenant",
        "service",
        "scopes",
        "environment",
    ]
    .map(|name| {
        admitted.headers[&format!("x-keystead-{name}")]
            .to_str()
            .unwrap()
            .to_owned()
    })
    .into();
    assert_eq!(
        identity,
        [&id, "acme", "default", "invoicing", "invoice:read", "live"]
    );

    let refused = judge("invoice:send").send().await;
    assert_eq!(
        (refused.status, refused.code()),
        (403, "insufficient_scope")
    );
    for name in [
        "key-id",
        "consumer",
        "tenant",
        "service",
        "scopes",
        "environment",
        "subject",
    ] {
        assert_eq!(refused.headers[&format!("x-keystead-{name}")], "", "{name}");
    }

    // Nothing presented, two presented, and a gateway that nobody knows.
    let ask = || {
        client
            .get(&asked("invoice:read"))
            .header("x-keystead-caller", &caller)
    };
    assert_eq!(ask().send().await.status, 401);
    let basic = ask().header("authorization", "Basic YTpi").send().await;
    assert_eq!((basic.status, basic.code()), (401, "unauthenticated"));
    let bearer = format!("Bearer {key}");
    assert_eq!(
        ask().header("authorization", &bearer).send().await.status,
        200
    );
    let two = judge("invoice:read")
        .header("authorization", &bearer)
        .send()
        .await;
    assert_eq!((two.status, two.code()), (401, "ambiguous_credential"));
    let nobody = client
        .get(&asked("invoice:read"))
        .header("x-api-key", &key)
        .send()
        .await;
    assert_eq!((nobody.status, nobody.code()), (503, "caller_not_allowed"));
}

async fn a_rotation_keeps_the_old_secret_for_its_overlap(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, first) = issue(&owner, new_key()).await;
    let rotate = |overlap: &str| {
        owner
            .post(&format!("/v1/keys/{id}/rotate"))
            .json(json!({"overlap": overlap}))
            .send()
    };
    let second = text(&rotate("1h").await.expect(200), "/api_key");
    assert_eq!(verify(&owner, &first, "invoice:read").await, "valid");
    assert_eq!(verify(&owner, &second, "invoice:read").await, "valid");
    forward(&server, Span::minutes(61));
    let body = json!({"api_key": first, "service": "invoicing"});
    let ended = owner.post("/v1/verify").json(body).send().await.expect(200);
    assert_eq!(ended["code"], "expired");
    assert_eq!(ended["secret"]["superseded"], true);
    assert_eq!(verify(&owner, &second, "invoice:read").await, "valid");

    let third = text(&rotate("0s").await.expect(200), "/api_key");
    assert_eq!(verify(&owner, &second, "invoice:read").await, "expired");
    assert_eq!(verify(&owner, &third, "invoice:read").await, "valid");
}

async fn revoked_disabled_and_expired_are_told_at_once(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, key) = issue(&owner, new_key()).await;
    action(&owner, &id, "disable").await;
    assert_eq!(verify(&owner, &key, "invoice:read").await, "disabled");
    action(&owner, &id, "enable").await;
    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    action(&owner, &id, "revoke").await;
    assert_eq!(verify(&owner, &key, "invoice:read").await, "revoked");
    let again = owner.post(&format!("/v1/keys/{id}/enable")).send().await;
    assert_eq!((again.status, again.code()), (409, "key_revoked"));

    let mut short = new_key();
    short["ttl"] = json!("1h");
    let (id, key) = issue(&owner, short).await;
    forward(&server, Span::minutes(59));
    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    forward(&server, Span::minutes(2));
    assert_eq!(verify(&owner, &key, "invoice:read").await, "expired");
    let rotated = owner.post(&format!("/v1/keys/{id}/rotate")).send().await;
    assert_eq!((rotated.status, rotated.code()), (409, "key_expired"));

    let mut later = new_key();
    later["not_before"] = json!(server.clock.now().plus(Span::hours(1)));
    let (_, key) = issue(&owner, later).await;
    assert_eq!(verify(&owner, &key, "invoice:read").await, "not_yet_valid");
    forward(&server, Span::hours(2));
    assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");

    let mut bound = new_key();
    bound["allowed_ips"] = json!(["203.0.113.0/24"]);
    let (_, key) = issue(&owner, bound).await;
    for (ip, code) in [
        (json!(null), "ip_not_allowed"),
        (json!("203.0.114.1"), "ip_not_allowed"),
        (json!("203.0.113.9"), "valid"),
        (json!("::ffff:203.0.113.9"), "valid"),
    ] {
        let body = json!({"api_key": key, "service": "invoicing", "ip": ip});
        let told = owner.post("/v1/verify").json(body).send().await.expect(200);
        assert_eq!(told["code"], code, "{ip}");
    }
    let body = json!({"api_key": key, "service": "invoicing", "environment": "test"});
    let told = owner.post("/v1/verify").json(body).send().await.expect(200);
    assert_eq!(told["code"], "wrong_environment");
    assert!(
        told.get("name").is_none(),
        "no more than the key's id: {told}"
    );
}

async fn parents_that_are_disabled_or_deleted_end_their_keys(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (_, key) = issue(&owner, new_key()).await;
    for (parent, code) in [
        ("/v1/consumers/acme", "disabled"),
        ("/v1/services/invoicing", "wrong_service"),
    ] {
        owner
            .post(&format!("{parent}/disable"))
            .send()
            .await
            .expect(200);
        assert_eq!(verify(&owner, &key, "invoice:read").await, code);
        owner
            .post(&format!("{parent}/enable"))
            .send()
            .await
            .expect(200);
        assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
    }
    let kept = owner
        .request("DELETE".parse().unwrap(), "/v1/services/invoicing")
        .send()
        .await;
    assert_eq!((kept.status, kept.code()), (409, "has_live_keys"));
    let path = "/v1/services/invoicing?revoke_keys=true";
    assert_eq!(
        owner
            .request("DELETE".parse().unwrap(), path)
            .send()
            .await
            .status,
        204
    );
    assert_eq!(verify(&owner, &key, "invoice:read").await, "wrong_service");
}

async fn a_typo_is_malformed_and_a_stranger_unknown(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, key) = issue(&owner, new_key()).await;
    for at in [0, 3, 9, 20, 40, key.len() - 1] {
        assert_eq!(
            verify(&owner, &altered(&key, at), "invoice:read").await,
            "malformed",
            "{at}"
        );
    }
    for spelling in [
        format!("{key} "),
        format!("\t{key}"),
        format!("{key}\r\n"),
        format!("{key}\u{0}"),
        format!("{key}\u{200b}"),
        key.replacen('_', "%5F", 1),
        key.replacen("ks", "KS", 1),
        format!("Bearer {key}"),
        "x".repeat(129),
        "' OR '1'='1".to_owned(),
        "x' UNION SELECT 1--".to_owned(),
        "%".to_owned(),
    ] {
        assert_eq!(
            verify(&owner, &spelling, "invoice:read").await,
            "malformed",
            "{spelling:?}"
        );
    }
    let missing = json!({"api_key": "", "service": "invoicing"});
    let told = owner
        .post("/v1/verify")
        .json(missing)
        .send()
        .await
        .expect(200);
    assert_eq!(
        (&told["code"], &told["status"]),
        (&json!("missing"), &json!(401))
    );

    // Another tenant's key is not there.
    owner.create("/v1/tenants", json!({"slug": "other"})).await;
    let other = owner.within("other");
    catalogue(&other).await;
    let (_, foreign) = issue(&other, new_key()).await;
    assert_eq!(verify(&owner, &foreign, "invoice:read").await, "unknown");
    assert_eq!(verify(&other, &foreign, "invoice:read").await, "valid");
    assert_eq!(
        other.get(&format!("/v1/keys/{id}")).send().await.status,
        404
    );
}
