//! Forged and hostile tokens at the door: SECURITY D1 to D10 and D16 to D19.

use reqwest::header::HeaderValue;

use super::*;
use crate::support::forge::forged::{Case, cases, issuers};
use crate::support::{both, tables};

both!(
    a_forged_token_is_refused_with_one_answer_and_leaves_and_fetches_nothing,
    a_token_ends_by_the_clock_and_with_its_tenant,
);

/// A line feed ends a header whatever follows, and HTTP has no NUL: these never reach us as they are.
const NEVER_A_HEADER: [&str; 3] = ["line feed at the end", "line feed inside", "NUL at the end"];

async fn a_forged_token_is_refused_with_one_answer_and_leaves_and_fetches_nothing(home: Home) {
    let provider = IdentityProvider::start().await;
    let server = serve(&home, &issuers(&provider)).await;
    let good = bearer(&server, json!({}));
    good.get("/v1/services").send().await.expect(200);
    let key = server
        .client()
        .with_key(&manager_key(&server.owner(), &["*"]).await);
    assert_eq!(provider.asked("/jwks"), 1);

    let before = tables::changes(&home).await;
    let mut told = std::collections::BTreeSet::new();
    let mut sent = 0;
    for case in cases(&server.clock, &provider.url("/trap")) {
        let Case {
            name,
            token,
            refusal,
        } = case;
        let value = format!("Bearer {token}");
        if HeaderValue::from_bytes(value.as_bytes()).is_err() {
            assert!(NEVER_A_HEADER.contains(&name), "{name}");
            continue;
        }
        let nobody = server.client();
        let new = json!({"slug": format!("forged-{sent}")});
        let mut requests = vec![
            nobody
                .get("/v1/services")
                .header_bytes("authorization", value.as_bytes()),
            nobody
                .post("/v1/services")
                .json(new.clone())
                .header_bytes("authorization", value.as_bytes()),
        ];
        // The space around a value is not part of it.
        if token.trim() == token {
            let for_it = key.post("/v1/services").json(new);
            requests.push(for_it.header_bytes("x-keystead-on-behalf-of", token.as_bytes()));
        }
        for request in requests {
            let answer = request.send().await;
            sent += 1;
            if token.contains(',') {
                assert_eq!((answer.status, answer.code()), (400, "two_credentials"));
                continue;
            }
            assert_eq!(answer.status, 401, "{name} ({refusal:?}): {answer}");
            told.insert(answer.redacted());
        }
        let answer = good.get("/v1/services").send().await;
        assert_eq!(answer.status, 200, "after {name}: {answer}");
    }
    assert!(sent > 500, "{sent}");
    let told: Vec<_> = told.into_iter().collect();
    insta::allow_duplicates! {
        insta::assert_snapshot!(told.join("\n\nand\n\n"), @r#"
        401
        cache-control: no-store
        content-length: 218
        content-security-policy: default-src 'none'; frame-ancestors 'none'
        content-type: application/problem+json
        referrer-policy: no-referrer
        www-authenticate: Bearer realm="keystead", error="invalid_token"
        x-content-type-options: nosniff

        {"type":"urn:keystead:error:invalid_credential","title":"The credential is not valid","status":401,"detail":"the presented credential is not valid","code":"invalid_credential","request_id":"<request id>"}
        "#);
    }
    assert_eq!(tables::changes(&home).await, before);
    assert_eq!(provider.asked("/jwks"), 1, "no token made us fetch again");
    assert_eq!(provider.asked("/trap"), 0, "no token sent us anywhere");
}

async fn a_token_ends_by_the_clock_and_with_its_tenant(home: Home) {
    let by_claim = "tenant_claim = \"org\"\n\
                    roles = [{claim = \"roles\", value = \"admin\", role = \"admin\"}]";
    let server = serve(&home, &[issuer(A, ADMINS), issuer(C, by_claim)]).await;
    let alice = bearer(&server, json!({}));
    alice.get("/v1/services").send().await.expect(200);
    server.clock.advance("325s".parse().unwrap());
    alice.get("/v1/services").send().await.expect(200);
    server.clock.advance("6s".parse().unwrap());
    let late = alice.get("/v1/services").send().await;
    assert_eq!((late.status, late.code()), (401, "invalid_credential"));

    let owner = server.owner();
    owner.create("/v1/tenants", json!({"slug": "acme"})).await;
    let bob = bearer(&server, json!({"iss": C, "org": "acme"}));
    let act = async |verb: &str| {
        let path = format!("/v1/tenants/acme{verb}");
        owner.post(&path).send().await.expect(200);
    };
    bob.get("/v1/services").send().await.expect(200);
    act("/disable").await;
    let locked_out = bob.get("/v1/services").send().await;
    assert_eq!(locked_out.redacted(), late.redacted(), "and not told why");
    act("/enable").await;
    bob.get("/v1/services").send().await.expect(200);
    let deleted = owner.request("DELETE".parse().unwrap(), "/v1/tenants/acme");
    assert_eq!(deleted.send().await.status, 204);
    let locked_out = bob.get("/v1/services").send().await;
    assert_eq!(locked_out.redacted(), late.redacted());
    let no_tenant = bearer(&server, json!({"iss": C}));
    let refused = no_tenant.get("/v1/services").send().await;
    assert_eq!(refused.redacted(), late.redacted());
}
