//! What is published: the metadata and the keys.

use super::*;
use crate::support::both;

both!(
    the_metadata_says_what_is_offered_and_nothing_else,
    the_issuer_is_what_is_configured_whatever_a_request_says,
    the_metadata_of_an_issuer_with_a_path_stands_behind_the_well_known_one,
    every_key_is_published_without_its_private_half,
);

const WELL_KNOWN: &str = "/.well-known/oauth-authorization-server";

/// 60, 61, 62, 64, 65; RFC 8414 §2.
async fn the_metadata_says_what_is_offered_and_nothing_else(home: Home) {
    let world = World::new(&home).await;
    let answer = world.server.client().get(WELL_KNOWN).send().await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "public, max-age=300");
    let metadata = answer.expect(200);
    let issuer = world.issuer();
    assert_eq!(
        metadata,
        json!({
            "issuer": issuer,
            "token_endpoint": format!("{issuer}/oauth/token"),
            "jwks_uri": format!("{issuer}/.well-known/jwks.json"),
            // 60 and 64 pull apart: required, and never empty. There is no authorization endpoint.
            "response_types_supported": ["none"],
            "grant_types_supported": [
                "client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"
            ],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
            "introspection_endpoint": format!("{issuer}/oauth/introspect"),
            "introspection_endpoint_auth_methods_supported":
                ["client_secret_basic", "client_secret_post"],
            "introspection_signing_alg_values_supported": ["ES256"],
            "revocation_endpoint": format!("{issuer}/oauth/revoke"),
            "revocation_endpoint_auth_methods_supported":
                ["client_secret_basic", "client_secret_post"],
        })
    );
    for (name, value) in metadata.as_object().unwrap() {
        assert_ne!(value, &json!([]), "{name}");
    }
    // 62: every method that is listed works, and no other that has a name.
    let key = world.key().await;
    let endpoint = text(&metadata, "/token_endpoint");
    let path = endpoint.strip_prefix(&issuer).unwrap();
    let grant = ("grant_type", "client_credentials");
    let post = || world.server.client().post(path);
    let by_basic = post()
        .header("authorization", &basic("acme", &key))
        .form(&[grant]);
    by_basic.send().await.expect(200);
    let by_post = post().form(&[grant, ("client_id", "acme"), ("client_secret", &key)]);
    by_post.send().await.expect(200);
    for pairs in [
        &[grant, ("client_id", "acme")][..],
        &[grant, ("client_id", "acme"), ("client_assertion", &key)],
    ] {
        post().form(pairs).send().await.expect(401);
    }
}

/// 65, E13, D20.
async fn the_issuer_is_what_is_configured_whatever_a_request_says(home: Home) {
    let configured = [("SERVER__PUBLIC_URL", "https://keys.example.com")];
    let world = World::with(&home, &configured).await;
    let key = world.key().await;
    let forged = [
        ("host", "evil.example"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-proto", "http"),
        ("forwarded", "host=evil.example;proto=http"),
    ];
    for (name, value) in forged {
        let get = world.server.client().get(WELL_KNOWN).header(name, value);
        let metadata = get.send().await.expect(200);
        assert_eq!(metadata["issuer"], "https://keys.example.com");
        assert!(!metadata.to_string().contains("evil"), "{name}: {metadata}");
        let request = world.server.client().with_key(&key).post("/oauth/token");
        let answer = request
            .header(name, value)
            .form(&[("grant_type", "client_credentials")]);
        let token = text(&answer.send().await.expect(200), "/access_token");
        assert_eq!(part(&token, 1)["iss"], "https://keys.example.com", "{name}");
    }
}

/// 63.
async fn the_metadata_of_an_issuer_with_a_path_stands_behind_the_well_known_one(home: Home) {
    let configured = [("SERVER__PUBLIC_URL", "https://example.com/keys/")];
    let world = World::with(&home, &configured).await;
    let get = async |path: &str| world.server.client().get(path).send().await;
    for path in [WELL_KNOWN.to_owned(), format!("{WELL_KNOWN}/keys")] {
        let metadata = get(&path).await.expect(200);
        assert_eq!(metadata["issuer"], "https://example.com/keys");
        assert_eq!(
            metadata["token_endpoint"],
            "https://example.com/keys/oauth/token"
        );
    }
    for path in ["/keys/", "/other", "/keys/oauth", "/"] {
        let answer = get(&format!("{WELL_KNOWN}{path}")).await;
        assert_eq!(
            (answer.status, answer.code()),
            (404, "not_found"),
            "{path}: {answer}"
        );
    }
}

/// 66.
async fn every_key_is_published_without_its_private_half(home: Home) {
    let world = World::new(&home).await;
    world.server.app.keyring.reload().await.unwrap();
    let answer = world
        .server
        .client()
        .get("/.well-known/jwks.json")
        .send()
        .await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["cache-control"], "public, max-age=300");
    let set = answer.expect(200);
    let keys = set["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    let mut kids = HashSet::new();
    for key in keys {
        for (member, value) in [
            ("kty", "EC"),
            ("crv", "P-256"),
            ("use", "sig"),
            ("alg", "ES256"),
        ] {
            assert_eq!(key[member], value, "{key}");
        }
        assert!(kids.insert(text(key, "/kid")), "{set}");
        for private in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
            assert!(key.get(private).is_none(), "{key}");
        }
    }
}
