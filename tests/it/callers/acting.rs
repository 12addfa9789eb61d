//! A service that acts for a person: its key in `x-api-key`, the person's token beside it.

use super::*;
use crate::support::both;

both!(
    a_service_does_for_a_person_what_both_may_and_the_trail_names_both,
    nobody_acts_for_a_person_of_another_tenant,
    two_credentials_that_do_not_say_who_acts_are_refused,
);

fn for_person(request: crate::support::Request, token: &str) -> crate::support::Request {
    request.header("x-keystead-on-behalf-of", token)
}

async fn a_service_does_for_a_person_what_both_may_and_the_trail_names_both(home: Home) {
    let lines = "tenant = \"default\"\n\
                 roles = [{claim = \"roles\", value = \"admin\", role = \"admin\"}, \
                 {claim = \"roles\", value = \"viewer\", role = \"viewer\"}]";
    let server = serve(&home, &[issuer(A, lines)]).await;
    let owner = server.owner();
    let strong = server
        .client()
        .with_key(&manager_key(&owner, &["consumers:write", "audit:read"]).await);
    let weak = server
        .client()
        .with_key(&manager_key(&owner, &["consumers:read"]).await);
    let admin = token(&server.clock, json!({}));
    let viewer = token(&server.clock, json!({"roles": "viewer"}));

    for (who, key, token, status) in [
        ("both may", &strong, &admin, 201),
        ("the person may not", &strong, &viewer, 403),
        ("the service may not", &weak, &admin, 403),
        ("neither may", &weak, &viewer, 403),
    ] {
        let new = json!({"slug": who.replace(' ', "-")});
        let answer = for_person(key.post("/v1/consumers").json(new), token)
            .send()
            .await;
        assert_eq!(answer.status, status, "{who}: {answer}");
        if status == 403 {
            assert_eq!(answer.code(), "forbidden");
            assert_eq!(answer.body["required_scope"], "consumers:write");
        }
        let read = for_person(key.get("/v1/consumers"), token).send().await;
        assert_eq!(read.status, 200, "{who}: {read}");
        // What only one of the two may is for neither.
        let read = for_person(key.get("/v1/services"), token).send().await;
        assert_eq!(read.status, 403, "{who}: {read}");
    }

    let lines = owner
        .get("/v1/audit/events?action=consumer.create&outcome=done")
        .send()
        .await
        .expect(200);
    let line = &lines["items"][0];
    assert_eq!(line["target"]["kind"], "consumer");
    assert_eq!(
        line["actor"],
        json!({"kind": "jwt", "issuer": A, "subject": "alice"})
    );
    let own = strong.get("/v1/audit/events?action=consumer.create&outcome=done");
    let own = for_person(own, &admin).send().await.expect(200);
    assert_eq!(&own["items"][0], line);
    assert_eq!(line["via"]["kind"], "key");
    let via = text(line, "/via/key_id");
    let path = format!("/v1/keys/{via}");
    let key = owner.get(&path).send().await.expect(200);
    assert_eq!(
        key["grants"][0]["scopes"],
        json!(["audit:read", "consumers:write"])
    );
}

async fn nobody_acts_for_a_person_of_another_tenant(home: Home) {
    let by_claim = "tenant_claim = \"org\"\n\
                    roles = [{claim = \"roles\", value = \"admin\", role = \"admin\"}]";
    let server = serve(&home, &[issuer(A, by_claim)]).await;
    let owner = server.owner();
    owner.create("/v1/tenants", json!({"slug": "acme"})).await;
    let host = server.client().with_key(&manager_key(&owner, &["*"]).await);
    let within = owner.within("acme");
    let guest = server
        .client()
        .with_key(&manager_key(&within, &["*"]).await);
    let at_home = token(&server.clock, json!({"org": "default"}));
    let at_acme = token(&server.clock, json!({"org": "acme"}));
    let mut told = std::collections::BTreeSet::new();
    for (key, own, foreign) in [(&host, &at_home, &at_acme), (&guest, &at_acme, &at_home)] {
        for_person(key.get("/v1/services"), own)
            .send()
            .await
            .expect(200);
        let refused = for_person(key.get("/v1/services"), foreign).send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (401, "invalid_credential")
        );
        told.insert(refused.redacted());
        let nonsense = for_person(key.get("/v1/services"), "a.b.c").send().await;
        told.insert(nonsense.redacted());
    }
    assert_eq!(told.len(), 1, "{told:#?}");
    // The tenant that a host steps into is not the one that counts.
    let refused = for_person(host.within("acme").get("/v1/services"), &at_acme);
    assert_eq!(refused.send().await.status, 401);
    // A person who is no host does not become one by a host's key.
    let refused = for_person(host.within("acme").get("/v1/services"), &at_home);
    assert_eq!(refused.send().await.status, 404);
}

async fn two_credentials_that_do_not_say_who_acts_are_refused(home: Home) {
    let server = serve(&home, &[issuer(A, ADMINS)]).await;
    let key = manager_key(&server.owner(), &["*"]).await;
    let token = token(&server.clock, json!({}));
    let bearing = |what: &str| format!("Bearer {what}");
    let one = |name: &'static str, value: &str| (name, value.to_owned());
    let (auth, api, person) = ("authorization", "x-api-key", "x-keystead-on-behalf-of");
    for lines in [
        vec![one(auth, &bearing(&token)), one(api, &key)],
        vec![one(auth, &bearing(&key)), one(api, &key)],
        vec![one(auth, &bearing(&token)), one(person, &token)],
        vec![one(auth, &bearing(&key)), one(person, &token)],
        vec![one(auth, "Basic eDp5"), one(api, &key)],
        vec![one(api, &key), one(api, &key)],
        vec![one(auth, &bearing(&token)), one(auth, &bearing(&token))],
        vec![one(api, &format!("{key}, {key}"))],
        vec![one(auth, &format!("Bearer {token}, Bearer {token}"))],
        vec![one(api, &key), one(person, &token), one(person, &token)],
    ] {
        let request = server.client().get("/v1/services");
        let request = lines.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        let refused = request.send().await;
        let names: Vec<_> = lines.iter().map(|(name, _)| name).collect();
        assert_eq!(
            (refused.status, refused.code()),
            (400, "two_credentials"),
            "{names:?}"
        );
    }
    // A token is no management key, and a person alone is nobody.
    let refused = server
        .client()
        .with_key(&token)
        .get("/v1/services")
        .send()
        .await;
    assert_eq!(
        (refused.status, refused.code()),
        (401, "invalid_credential")
    );
    let alone = for_person(server.client().get("/v1/services"), &token);
    let alone = alone.send().await;
    assert_eq!((alone.status, alone.code()), (401, "unauthenticated"));
}
