//! What claims are worth: roles, roles for services, tenants, and who a person is. SECURITY D18, D21.

use super::*;
use crate::support::both;

both!(
    each_role_may_do_what_the_table_says,
    a_claim_that_is_not_the_very_value_of_a_rule_is_worth_nothing,
    a_role_for_services_ends_at_those_services,
    a_person_acts_in_the_tenant_that_the_claim_names,
    the_same_subject_of_two_issuers_is_two_people,
);

/// The scope that an operation needs, and a request for it that changes nothing: who may call is
/// told what is wrong with the empty body.
const PROBES: [(&str, &str, &str); 10] = [
    ("tenants:write", "POST", "/v1/tenants"),
    ("services:read", "GET", "/v1/services"),
    ("services:write", "POST", "/v1/services"),
    ("consumers:read", "GET", "/v1/consumers"),
    ("consumers:write", "POST", "/v1/consumers"),
    ("keys:read", "GET", "/v1/keys"),
    ("keys:write", "POST", "/v1/keys"),
    ("keys:revoke", "POST", "/v1/keys/revoke"),
    ("verify", "POST", "/v1/verify"),
    ("audit:read", "GET", "/v1/audit/events"),
];

/// The scopes, of those that are probed, that a caller is let in for.
pub(super) async fn allowed(caller: &Client) -> Vec<&'static str> {
    let mut allowed = Vec::new();
    for (scope, method, path) in PROBES {
        let mut request = caller.request(method.parse().unwrap(), path);
        if method == "POST" {
            request = request.json(json!({}));
        }
        let answer = request.send().await;
        match answer.status {
            200 | 400 => allowed.push(scope),
            403 => assert_eq!(
                (answer.code(), &answer.body["required_scope"]),
                ("forbidden", &json!(scope))
            ),
            _ => panic!("{scope}: {answer}"),
        }
    }
    allowed
}

/// A rule for each of these roles, by a claim of the same value.
pub(super) fn rules(roles: &[&str]) -> String {
    let rules: Vec<String> = roles
        .iter()
        .map(|role| format!("{{claim = \"roles\", value = \"{role}\", role = \"{role}\"}}"))
        .collect();
    format!("tenant = \"default\"\nroles = [{}]", rules.join(", "))
}

async fn each_role_may_do_what_the_table_says(home: Home) {
    const TABLE: [(&str, &str); 7] = [
        (
            "owner",
            "tenants:write services:read services:write consumers:read consumers:write keys:read \
             keys:write keys:revoke verify audit:read",
        ),
        (
            "admin",
            "services:read services:write consumers:read consumers:write keys:read keys:write \
             keys:revoke verify audit:read",
        ),
        (
            "issuer",
            "services:read consumers:read consumers:write keys:read keys:write keys:revoke",
        ),
        ("operator", "keys:read keys:revoke"),
        (
            "auditor",
            "services:read consumers:read keys:read audit:read",
        ),
        ("viewer", "services:read consumers:read keys:read"),
        ("verifier", "verify"),
    ];
    let rules = rules(&TABLE.map(|(role, _)| role));
    let server = serve(&home, &[issuer(A, &rules)]).await;
    for (role, scopes) in TABLE {
        let caller = bearer(&server, json!({"roles": [role]}));
        assert_eq!(allowed(&caller).await.join(" "), scopes, "{role}");
    }
    // Rules add up, and what none of them names does no harm.
    let both = bearer(&server, json!({"roles": ["verifier", "x", "operator"]}));
    assert_eq!(allowed(&both).await, ["keys:read", "keys:revoke", "verify"]);
}

async fn a_claim_that_is_not_the_very_value_of_a_rule_is_worth_nothing(home: Home) {
    let server = serve(&home, &[issuer(A, &rules(&["admin", "viewer"]))]).await;
    for roles in [
        json!(null),
        json!("admin viewer"),
        json!("admin,viewer"),
        json!(" admin"),
        json!("admin "),
        json!("ADMIN"),
        json!("Admin"),
        json!("administrator"),
        json!("adm"),
        json!("unknown"),
        json!(""),
        json!([]),
        json!(["admin viewer"]),
        json!([["admin"]]),
        json!([{"name": "admin"}]),
        json!({"admin": true}),
        json!({"roles": ["admin"]}),
        json!(true),
        json!(1),
    ] {
        let caller = bearer(
            &server,
            json!({"roles": roles, "role": "admin", "Roles": "admin"}),
        );
        assert_eq!(allowed(&caller).await, [""; 0], "{roles}");
    }
    let viewer = ["services:read", "consumers:read", "keys:read"];
    for roles in [json!("viewer"), json!(["viewer", "ADMIN"])] {
        let caller = bearer(&server, json!({"roles": roles}));
        assert_eq!(allowed(&caller).await, viewer, "{roles}");
    }
}

async fn a_role_for_services_ends_at_those_services(home: Home) {
    let lines = "tenant = \"default\"\n\
                 roles = [{claim = \"team\", value = \"billing\", role = \"admin\", \
                 services = [\"billing\"]}]";
    let server = serve(&home, &[issuer(A, lines)]).await;
    let owner = server.owner();
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    for slug in ["billing", "payroll"] {
        owner.create("/v1/services", json!({"slug": slug})).await;
    }
    let new = |services: &[&str]| {
        let grants: Vec<Value> = services
            .iter()
            .map(|service| json!({"service": service, "scopes": ["read"]}))
            .collect();
        json!({"name": "worker", "consumer": "acme", "grants": grants})
    };
    let team = bearer(&server, json!({"roles": null, "team": "billing"}));
    let own = text(
        &team.create("/v1/keys", new(&["billing"])).await,
        "/api_key",
    );
    for wider in [new(&["payroll"]), new(&["billing", "payroll"])] {
        let refused = team.post("/v1/keys").json(wider).send().await;
        assert_eq!((refused.status, refused.code()), (403, "escalation"));
    }
    let hidden = owner.create("/v1/keys", new(&["payroll"])).await;
    let path = format!("/v1/keys/{}", text(&hidden, "/key/id"));
    assert_eq!(team.get(&path).send().await.status, 404);
    let listed = team.get("/v1/keys").send().await.expect(200);
    assert_eq!(listed["items"].as_array().unwrap().len(), 1, "{listed}");

    for (service, expected) in [("billing", 200), ("payroll", 403)] {
        let body = json!({"api_key": own, "service": service});
        let told = team.post("/v1/verify").json(body).send().await;
        assert_eq!(told.status, expected, "{service}: {told}");
        let patch = team.request("PATCH".parse().unwrap(), &format!("/v1/services/{service}"));
        let told = patch.json(json!({"name": "renamed"})).send().await;
        assert_eq!(told.status, expected, "{told}");
    }
    let told = team
        .post("/v1/services")
        .json(json!({"slug": "more"}))
        .send()
        .await;
    assert_eq!(told.status, 403, "{told}");

    // What is not theirs is not found either, nor read of in the trail, which is everybody's.
    let lookup_ids = [text(&hidden, "/key/lookup_id")];
    let found = team
        .post("/v1/keys/find")
        .json(json!({"lookup_ids": lookup_ids}));
    assert_eq!(found.send().await.expect(200)["items"], json!([null]));
    let trail = team.get("/v1/audit/events");
    let proof = team.post("/v1/audit/verify").json(json!({}));
    for request in [trail, proof] {
        let told = request.send().await;
        assert_eq!((told.status, told.code()), (403, "forbidden"), "{told}");
        assert_eq!(told.body["required_scope"], "audit:read");
    }
}

async fn a_person_acts_in_the_tenant_that_the_claim_names(home: Home) {
    let lines = "tenant_claim = \"org\"\n\
                 roles = [{claim = \"roles\", value = \"admin\", role = \"owner\"}]";
    let server = home
        .serve_with(&[("ISSUERS", &variable(&[issuer(A, lines)]))])
        .await;
    let host = bearer(&server, json!({"org": "default"}));
    for slug in ["acme", "other"] {
        host.create("/v1/tenants", json!({"slug": slug})).await;
    }
    let acme = bearer(&server, json!({"org": "acme"}));
    let other = bearer(&server, json!({"org": "other"}));
    let made = acme
        .create("/v1/consumers", json!({"slug": "robots"}))
        .await;
    let path = format!("/v1/consumers/{}", text(&made, "/id"));
    acme.get(&path).send().await.expect(200);
    for stranger in [&other, &host] {
        assert_eq!(stranger.get(&path).send().await.status, 404);
    }
    host.within("acme").get(&path).send().await.expect(200);
    // An owner of a tenant is no host of others.
    let refused = acme.within("other").get("/v1/consumers").send().await;
    assert_eq!((refused.status, refused.code()), (404, "not_found"));

    for org in [
        json!(null),
        json!("ghost"),
        json!("ACME"),
        json!("acme "),
        json!(["acme"]),
        json!({"acme": true}),
        json!(""),
        json!(1),
    ] {
        let nobody = bearer(&server, json!({"org": org}));
        let refused = nobody.get("/v1/consumers").send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (401, "invalid_credential"),
            "{org}"
        );
    }
}

async fn the_same_subject_of_two_issuers_is_two_people(home: Home) {
    let server = serve(&home, &[issuer(A, ADMINS), issuer(C, ADMINS)]).await;
    server
        .owner()
        .create("/v1/services", json!({"slug": "billing"}))
        .await;
    server
        .owner()
        .create("/v1/consumers", json!({"slug": "acme"}))
        .await;
    let grants = json!([{"service": "billing", "scopes": []}]);
    let new = json!({"name": "worker", "consumer": "acme", "grants": grants});
    let mut ids = Vec::new();
    for iss in [A, C] {
        let alice = bearer(&server, json!({"iss": iss}));
        // What one said once the other did not say.
        let issued = alice
            .post("/v1/keys")
            .header("idempotency-key", "once")
            .json(new.clone())
            .send()
            .await
            .expect(201);
        assert!(issued["api_key"].is_string(), "{issued}");
        let alice_at = json!({"kind": "jwt", "issuer": iss, "subject": "alice"});
        assert_eq!(issued["key"]["created_by"], alice_at);
        let id = text(&issued, "/key/id");
        let path = format!("/v1/audit/events?target={id}");
        let lines = alice.get(&path).send().await.expect(200);
        assert_eq!(lines["items"][0]["actor"], alice_at, "{lines}");
        ids.push(id);
    }
    assert_ne!(ids[0], ids[1]);
}
