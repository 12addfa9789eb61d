//! Admin JWTs of a real identity provider, `oidc-provider`, which is killed and comes back.

use super::roles::{allowed, rules};
use super::*;
use crate::support::both;
use crate::support::programs::{PROVIDER_SECRET, Provider, provider_key};

both!(people_of_a_real_provider_are_let_in_by_role_while_it_is_killed_and_comes_back);

const SCOPES: &str = "manage";

/// A client of the provider for each role; its directory says who has which.
fn settings(keys: &[Value]) -> Value {
    let client = |id: &str| {
        json!({
            "client_id": id,
            "client_secret": PROVIDER_SECRET,
            "token_endpoint_auth_method": "client_secret_post",
        })
    };
    json!({
        "jwks": keys,
        "clients": [client("deployer"), client("auditors"), client("stranger")],
        "resources": {AUDIENCE: SCOPES, "https://other.example": SCOPES},
        "claims": {"deployer": {"roles": ["issuer"]}, "auditors": {"roles": ["auditor", "x"]}},
    })
}

/// D6, D12, D13, D18, with tokens that were not made for the test.
async fn people_of_a_real_provider_are_let_in_by_role_while_it_is_killed_and_comes_back(
    home: Home,
) {
    let (old, new) = (provider_key("k1"), provider_key("k2"));
    let mut provider = Provider::start(settings(std::slice::from_ref(&old))).await;
    let issuer = format!(
        "issuer = \"{}\"\naudience = \"{AUDIENCE}\"\nalgorithms = [\"ES256\"]\ndiscovery = true\n\
         cooldown = \"30s\"\nallow_private_addresses = true\ndangerous_allow_http = true\n{}",
        provider.issuer(),
        rules(&["issuer", "auditor"])
    );
    let server = serve(&home, std::slice::from_ref(&issuer)).await;
    let get = async |provider: &Provider, client: &str, audience: &str| {
        provider.token(client, &[("resource", audience)]).await
    };
    let caller = |server: &Server, token: &str| server.client().with_bearer(token);
    let code = async |server: &Server, token: &str| {
        let answer = caller(server, token).get("/v1/services").send().await;
        (answer.status, answer.code().to_owned())
    };
    let deployer = get(&provider, "deployer", AUDIENCE).await;
    let issuers_may = allowed(&caller(&server, &deployer)).await;
    assert_eq!(
        issuers_may.join(" "),
        "services:read consumers:read consumers:write keys:read keys:write keys:revoke"
    );
    let auditor = get(&provider, "auditors", AUDIENCE).await;
    assert_eq!(
        allowed(&caller(&server, &auditor)).await.join(" "),
        "services:read consumers:read keys:read audit:read"
    );
    // Who has no role, or a token for somebody else, may nothing.
    let stranger = get(&provider, "stranger", AUDIENCE).await;
    assert_eq!(code(&server, &stranger).await.0, 403);
    let elsewhere = get(&provider, "deployer", "https://other.example").await;
    let refused = (401, "invalid_credential".to_owned());
    assert_eq!(code(&server, &elsewhere).await, refused);

    // Killed: what it signed is still believed, by the keys that are known.
    provider.kill();
    server.clock.advance("31s".parse().unwrap());
    assert_eq!(allowed(&caller(&server, &deployer)).await, issuers_may);
    // A node that starts meanwhile serves, but cannot tell who this is.
    let second = serve(&home, std::slice::from_ref(&issuer)).await;
    assert_eq!(code(&second, &deployer).await.0, 503);

    // It comes back with a new key, and the old one published for a while.
    provider.settings = settings(&[new.clone(), old]);
    provider.run().await;
    let rotated = get(&provider, "deployer", AUDIENCE).await;
    for node in [&server, &second] {
        node.clock.advance("31s".parse().unwrap());
        assert_eq!(allowed(&caller(node, &rotated)).await, issuers_may);
        assert_eq!(allowed(&caller(node, &deployer)).await, issuers_may);
    }

    // And again, without the old one: a token of the next key makes the node look.
    provider.kill();
    provider.settings = settings(&[provider_key("k3"), new]);
    provider.run().await;
    let latest = get(&provider, "auditors", AUDIENCE).await;
    server.clock.advance("31s".parse().unwrap());
    assert_eq!(code(&server, &latest).await.0, 200);
    assert_eq!(code(&server, &rotated).await.0, 200);
    assert_eq!(code(&server, &deployer).await, refused);
}
