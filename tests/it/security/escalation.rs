//! J3: nobody hands out, changes or takes over what it does not hold.

use super::*;

both!(
    a_management_key_holds_no_more_than_who_made_it,
    a_rotation_and_a_change_of_other_things_keep_the_scopes,
);

const SCOPES: [&str; 18] = [
    "*",
    "tenants:write",
    "services:read",
    "services:write",
    "services:*",
    "consumers:read",
    "consumers:write",
    "keys:read",
    "keys:revoke",
    "keys:write",
    "keys:write:invoicing",
    "keys:write:payments",
    "keys:*",
    "verify",
    "verify:invoicing",
    "introspect",
    "usage:read",
    "audit:read",
];

async fn a_management_key_holds_no_more_than_who_made_it(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    owner
        .create("/v1/services", json!({"slug": "payments"}))
        .await;
    for (holds, may) in [
        (
            &["keys:write", "consumers:read", "verify:invoicing"][..],
            &[
                "consumers:read",
                "keys:read",
                "keys:revoke",
                "keys:write",
                "keys:write:invoicing",
                "keys:write:payments",
                "verify:invoicing",
            ][..],
        ),
        // Who may issue for one service hands out no management at all, nor sees any.
        (&["keys:write:invoicing"], &[]),
    ] {
        let grant = json!({"service": "keystead", "scopes": holds});
        let (own, key) = World::issue(owner, &key_with(grant)).await;
        let issuer = owner.with_key(&key);
        let (_, weak) = {
            let grant = json!({"service": "keystead", "scopes": [holds[0]]});
            World::issue(owner, &key_with(grant)).await
        };
        let weak = lookup_id(&weak).to_owned();
        let weak = owner
            .get(&format!("/v1/keys?lookup_id={weak}"))
            .send()
            .await;
        let weak = text(&weak.expect(200), "/items/0/id");
        for scope in SCOPES {
            let grant = json!({"service": "keystead", "scopes": [scope]});
            let grants = json!({"grants": [grant]});
            let patch = "PATCH".parse::<reqwest::Method>().unwrap();
            let one = issuer.post("/v1/keys").json(key_with(grant.clone()));
            let batch = json!({"items": [key_with(grant)]});
            let all = issuer.post("/v1/keys/batch").json(batch);
            let of_own = issuer.request(patch.clone(), &format!("/v1/keys/{own}"));
            let of_weak = issuer.request(patch, &format!("/v1/keys/{weak}"));
            for (how, request, good) in [
                ("create", one, 201),
                ("batch", all, 201),
                ("update of its own", of_own.json(grants.clone()), 200),
                ("update of another", of_weak.json(grants), 200),
            ] {
                let told = request.send().await;
                let what = format!("{holds:?} {how} {scope}: {told}");
                if may.contains(&scope) {
                    assert_eq!(told.status, good, "{what}");
                } else if may.is_empty() && good == 200 {
                    assert_eq!((told.status, told.code()), (404, "not_found"), "{what}");
                } else {
                    assert_eq!((told.status, told.code()), (403, "escalation"), "{what}");
                }
                // The next scope is asked for with what it held.
                if told.status == 200 {
                    let grant = json!({"service": "keystead", "scopes": holds});
                    for (id, scopes) in [(&own, json!(holds)), (&weak, json!([holds[0]]))] {
                        let mut grant = grant.clone();
                        grant["scopes"] = scopes;
                        let path = format!("/v1/keys/{id}");
                        let back = owner.request("PATCH".parse().unwrap(), &path);
                        let back = back.json(json!({"grants": [grant]}));
                        back.send().await.expect(200);
                    }
                }
            }
        }
    }
}

async fn a_rotation_and_a_change_of_other_things_keep_the_scopes(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    let mut new = new_key();
    new["allowed_ips"] = json!(["203.0.113.0/24"]);
    new["ttl"] = json!("1d");
    new["rate_limits"] = json!([{"name": "calls", "limit": 5, "period": "1m"}]);
    let (id, _) = World::issue(owner, &new).await;
    let path = format!("/v1/keys/{id}");
    let kept = async || {
        let mut key = owner.get(&path).send().await.expect(200);
        let key = key.as_object_mut().unwrap();
        [
            "grants",
            "allowed_ips",
            "rate_limits",
            "expires_at",
            "consumer",
            "environment",
        ]
        .map(|name| key.remove(name).unwrap())
    };
    let before = kept().await;
    let rotate = format!("{path}/rotate");
    owner.post(&rotate).json(json!({})).send().await.expect(200);
    assert_eq!(kept().await, before);
    let patch = owner.request("PATCH".parse().unwrap(), &path);
    let patch = patch.json(json!({"name": "renamed", "tags": ["a"]}));
    patch.send().await.expect(200);
    assert_eq!(kept().await, before);
    for member in [
        "grants",
        "consumer",
        "environment",
        "allowed_ips",
        "prefix",
        "scopes",
    ] {
        let told = owner.post(&rotate).json(json!({member: []})).send().await;
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{member}"
        );
    }
    for (member, value) in [
        ("consumer", "acme"),
        ("environment", "test"),
        ("prefix", "zz"),
    ] {
        let patch = owner.request("PATCH".parse().unwrap(), &path);
        let told = patch.json(json!({member: value})).send().await;
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{member}"
        );
    }
}
