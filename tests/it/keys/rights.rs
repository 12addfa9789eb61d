//! Who may do what with a key.

use serde_json::json;

use super::*;
use crate::support::{Home, both};

both!(
    an_issuer_of_one_service_cannot_reach_beyond_it,
    an_operator_can_revoke_but_not_rotate,
    a_management_key_is_wielded_only_by_who_holds_all_it_holds,
    a_holder_sees_and_ends_its_own_key_alone,
);

async fn an_issuer_of_one_service_cannot_reach_beyond_it(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    owner
        .create("/v1/services", json!({"slug": "payments"}))
        .await;
    let issuer = manager(&owner, &["keys:write:invoicing"]).await;

    let (own, _) = issue(&issuer, new_key()).await;
    let mut both = new_key();
    both["grants"] = json!([
        {"service": "invoicing", "scopes": []}, {"service": "payments", "scopes": []}
    ]);
    let mut management = new_key();
    management["grants"] = json!([{"service": "keystead", "scopes": ["keys:write:invoicing"]}]);
    for wider in [&both, &management] {
        let refused = issuer.post("/v1/keys").json(wider.clone()).send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (403, "escalation"),
            "{refused}"
        );
    }
    let patch = json!({"grants": both["grants"]});
    let path = format!("/v1/keys/{own}");
    let refused = issuer
        .request("PATCH".parse().unwrap(), &path)
        .json(patch)
        .send()
        .await;
    assert_eq!((refused.status, refused.code()), (403, "escalation"));

    // A key that also grants another service: seen, and ended, but not wielded.
    let (wide, _) = issue(&owner, both).await;
    for verb in ["rotate", "enable"] {
        let refused = issuer.post(&format!("/v1/keys/{wide}/{verb}")).send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (403, "escalation"),
            "{verb}"
        );
    }
    let path = format!("/v1/keys/{wide}");
    let patch = json!({"name": "mine"});
    let refused = issuer
        .request("PATCH".parse().unwrap(), &path)
        .json(patch)
        .send()
        .await;
    assert_eq!((refused.status, refused.code()), (403, "escalation"));
    action(&issuer, &wide, "revoke").await;

    // A key of another service, or a management key, is not there.
    let mut foreign = new_key();
    foreign["grants"] = json!([{"service": "payments", "scopes": []}]);
    let (foreign, _) = issue(&owner, foreign).await;
    let (managing, _) = issue(&owner, management).await;
    for id in [foreign, managing] {
        for verb in ["rotate", "revoke", "disable", "enable"] {
            let missing = issuer.post(&format!("/v1/keys/{id}/{verb}")).send().await;
            assert_eq!(
                (missing.status, missing.code()),
                (404, "not_found"),
                "{verb}"
            );
        }
    }
}

async fn an_operator_can_revoke_but_not_rotate(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, key) = issue(&owner, new_key()).await;
    let operator = manager(&owner, &["keys:read", "keys:revoke", "usage:read"]).await;
    for (verb, status) in [
        ("rotate", 403),
        ("enable", 403),
        ("disable", 200),
        ("revoke", 200),
    ] {
        let answer = operator.post(&format!("/v1/keys/{id}/{verb}")).send().await;
        assert_eq!(answer.status, status, "{verb}: {answer}");
    }
    assert_eq!(verify(&owner, &key, "invoice:read").await, "revoked");
    let refused = operator.post("/v1/keys").json(new_key()).send().await;
    assert_eq!((refused.status, refused.code()), (403, "forbidden"));
    assert_eq!(refused.body["required_scope"], "keys:write");
}

async fn a_management_key_is_wielded_only_by_who_holds_all_it_holds(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let grants = json!([{"service": "keystead", "scopes": ["keys:write", "audit:read"]}]);
    let strong = json!({"name": "strong", "consumer": "acme", "grants": grants});
    let (id, key) = issue(&owner, strong).await;
    let writer = manager(&owner, &["keys:write"]).await;
    for verb in ["rotate", "revoke", "disable", "enable"] {
        let refused = writer.post(&format!("/v1/keys/{id}/{verb}")).send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (403, "escalation"),
            "{verb}"
        );
    }
    let equal = manager(&owner, &["keys:write", "audit:read"]).await;
    action(&equal, &id, "disable").await;
    let refused = owner.with_key(&key).get("/v1/keys").send().await;
    assert_eq!((refused.status, refused.code()), (401, "disabled"));
}

async fn a_holder_sees_and_ends_its_own_key_alone(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let (id, key) = issue(&owner, new_key()).await;
    let holder = owner.with_key(&key);
    let own = holder.get("/v1/self").send().await.expect(200);
    assert_eq!(own["id"], json!(id));
    assert_eq!(
        holder.get("/v1/keys").send().await.code(),
        "invalid_credential"
    );
    let refused = holder.post("/v1/self/rotate").send().await;
    assert_eq!(
        (refused.status, refused.code()),
        (403, "forbidden"),
        "unless its policy says so"
    );
    assert!(
        text(&refused.body, "/detail").contains("key_policy.self_rotate"),
        "{refused}"
    );
    assert_eq!(
        refused.body.get("required_scope"),
        None,
        "no scope would help"
    );
    let policy = json!({"key_policy": {"self_rotate": true}});
    let path = "/v1/services/invoicing";
    owner
        .request("PATCH".parse().unwrap(), path)
        .json(policy)
        .send()
        .await
        .expect(200);
    let rotated = holder
        .post("/v1/self/rotate")
        .json(json!({"overlap": "0s"}))
        .send()
        .await;
    let holder = owner.with_key(&text(&rotated.expect(200), "/api_key"));
    assert_eq!(
        owner.with_key(&key).get("/v1/self").send().await.code(),
        "expired"
    );
    let ended = holder.post("/v1/self/revoke").send().await.expect(200);
    assert_eq!(ended["status"], "revoked");
    assert_eq!(ended["revoked_by"]["key_id"], json!(id));
}
