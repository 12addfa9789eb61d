//! Our access tokens as what a gateway's client presents: taken where the service says so, judged like
//! the key they were made from, and never if forged.

use keystead::config::SigningAlgorithm;
use keystead::id::TokenId;
use keystead::master::MasterKey;
use keystead::oauth::keyring::SigningKey;
use reqwest::header::HeaderValue;

use super::*;
use crate::support::forge::IdentityProvider;
use crate::support::forge::forged::{A, Case, cases};
use crate::support::{MASTER_KEY, both, tables, until};
use crate::usage::lines;

both!(
    a_token_is_taken_where_the_service_accepts_tokens_and_nowhere_else,
    a_token_is_judged_like_its_key_and_never_does_more,
    one_credential_of_ours_counts_and_what_others_signed_is_the_clients_business,
    a_token_at_the_gateway_is_charged_to_its_key_and_recorded,
    no_forged_token_is_let_in,
);

impl World {
    /// With `service` set to accept what `accepts` says, and a gateway's key.
    pub async fn accepting_tokens(&self, accepts: Value) -> String {
        let change = json!({"tokens": {"accepts": accepts}});
        self.change("/v1/services/invoicing", change).await;
        self.asker(&["verify"]).await
    }

    pub async fn authorize(&self, gateway: &str, query: &str, headers: &[(&str, &str)]) -> Answer {
        let path = format!("/gateway/authorize?service=invoicing{query}");
        let request = self.server.client().get(&path);
        let request = request.header("x-keystead-caller", gateway);
        let all = headers.iter().fold(request, |request, (name, value)| {
            request.header(name, value)
        });
        all.send().await
    }
}

async fn a_token_is_taken_where_the_service_accepts_tokens_and_nowhere_else(home: Home) {
    let world = World::new(&home).await;
    let issued = world
        .issue(&["invoice:read", "report:read"], json!({}))
        .await;
    let key = text(&issued, "/api_key");
    let token = world.token(&key, &[("scope", "invoice:read")]).await;
    let bearer = format!("Bearer {token}");
    for (accepts, by_key, by_token) in [
        (Value::Null, 200, 401),
        (json!(["key"]), 200, 401),
        (json!(["key", "jwt"]), 200, 200),
        (json!(["jwt"]), 401, 200),
    ] {
        let gateway = world.accepting_tokens(accepts.clone()).await;
        let keyed = world.authorize(&gateway, "", &[("x-api-key", &key)]).await;
        let tokened = world
            .authorize(&gateway, "", &[("authorization", &bearer)])
            .await;
        assert_eq!(
            (keyed.status, tokened.status),
            (by_key, by_token),
            "{accepts}"
        );
        for answer in [&keyed, &tokened] {
            // What is not taken counts as not presented.
            if answer.status == 401 {
                assert_eq!(answer.code(), "unauthenticated", "{accepts}: {answer}");
            }
        }
        if by_token == 200 {
            let said = |name: &str| tokened.headers[name].to_str().unwrap().to_owned();
            assert_eq!(said("x-keystead-key-id"), text(&issued, "/key/id"));
            assert_eq!(said("x-keystead-subject"), text(&part(&token, 1), "/sub"));
            assert_eq!(said("x-keystead-consumer"), "acme");
            // What the token was narrowed to, not what the key holds.
            assert_eq!(said("x-keystead-scopes"), "invoice:read");
        }
    }
    for bad in [
        json!([]),
        json!(["opaque"]),
        json!(["jwt", "jwt"]),
        json!("jwt"),
    ] {
        let body = json!({"tokens": {"accepts": bad}});
        let request = world
            .owner
            .request("PATCH".parse().unwrap(), "/v1/services/invoicing");
        let answer = request.json(body).send().await;
        assert_eq!(
            (answer.status, answer.code()),
            (400, "invalid_request"),
            "{bad}"
        );
        let pointer = answer.body["errors"][0]["pointer"].as_str().unwrap();
        assert!(pointer.starts_with("/tokens/accepts"), "{answer}");
    }
}

async fn a_token_is_judged_like_its_key_and_never_does_more(home: Home) {
    let world = World::new(&home).await;
    let gateway = world.accepting_tokens(json!(["key", "jwt"])).await;
    let issued = world
        .issue(&["invoice:read", "report:read"], json!({}))
        .await;
    let (id, key) = (text(&issued, "/key/id"), text(&issued, "/api_key"));
    let judge = async |token: &str, query: &str| {
        let bearer = format!("Bearer {token}");
        let answer = world
            .authorize(&gateway, query, &[("authorization", &bearer)])
            .await;
        (answer.status, answer.code().to_owned())
    };
    let is = |status: u16, code: &str| (status, code.to_owned());
    let token = world.token(&key, &[("scope", "invoice:read")]).await;
    assert_eq!(
        judge(&token, "&required_scopes=invoice:read").await,
        is(200, "")
    );
    assert_eq!(judge(&token, "&any_scopes=invoice:*").await, is(200, ""));
    // The key has it, the token has not.
    let lacking = is(403, "insufficient_scope");
    assert_eq!(judge(&token, "&required_scopes=report:read").await, lacking);
    assert_eq!(judge(&token, "&any_scopes=report:*").await, lacking);
    // For another service it is nothing.
    let slug = json!({"slug": "shipping", "tokens": {"accepts": ["jwt"]}});
    world.owner.create("/v1/services", slug).await;
    let path = "/gateway/authorize?service=shipping";
    let request = world.server.client().get(path);
    let request = request.header("x-keystead-caller", &gateway);
    let request = request.header("authorization", &format!("Bearer {token}"));
    let answer = request.send().await;
    assert_eq!(
        (answer.status, answer.code()),
        (403, "wrong_service"),
        "{answer}"
    );
    assert_eq!(
        judge(&token, "&environment=test").await,
        is(403, "wrong_environment")
    );
    // What the key lost the token lost.
    let grants = json!({"grants": [{"service": "invoicing", "scopes": ["report:read"]}]});
    world.change(&format!("/v1/keys/{id}"), grants).await;
    assert_eq!(
        judge(&token, "&required_scopes=invoice:read").await,
        lacking
    );
    assert_eq!(judge(&token, "").await, is(200, ""));
    // It ends by itself, by the clock, and with its key.
    let (revoked, late) = (world.token(&key, &[]).await, world.token(&key, &[]).await);
    assert_eq!(judge(&revoked, "").await, is(200, ""));
    let client = world.server.client().with_key(&key);
    let request = client.post("/oauth/revoke").form(&[("token", &*revoked)]);
    request.send().await.expect(200);
    assert_eq!(judge(&revoked, "").await, is(401, "revoked"));
    world.server.clock.advance("5m".parse().unwrap());
    assert_eq!(judge(&late, "").await, is(401, "expired"));
    world.server.clock.advance("40s".parse().unwrap());
    assert_eq!(judge(&late, "").await.0, 401);
    let fresh = world.token(&key, &[]).await;
    assert_eq!(judge(&fresh, "").await, is(200, ""));
    let path = format!("/v1/keys/{id}/disable");
    world.owner.post(&path).send().await.expect(200);
    assert_eq!(judge(&fresh, "").await, is(401, "disabled"));
    // An address that is not known is none that is allowed.
    let nets = json!({"allowed_ips": ["127.0.0.1"]});
    let bound = text(&world.issue(&["invoice:read"], nets).await, "/api_key");
    let bound = world.token(&bound, &[]).await;
    assert_eq!(judge(&bound, "").await, is(403, "ip_not_allowed"));
}

/// A4, 15.
async fn one_credential_of_ours_counts_and_what_others_signed_is_the_clients_business(home: Home) {
    let world = World::new(&home).await;
    let gateway = world.accepting_tokens(json!(["key", "jwt"])).await;
    let key = world.key().await;
    let ours = format!("Bearer {}", world.token(&key, &[]).await);
    let claims = json!({"iss": "https://idp.example", "sub": "alice", "exp": 4_000_000_000_i64});
    let header = r#"{"alg":"ES256","typ":"JWT","x5c":["a certificate of theirs"]}"#;
    let theirs = crate::support::forge::Signers::shared();
    let theirs = theirs.token("ES256", header, &claims.to_string());
    let theirs = format!("Bearer {theirs}");
    for (headers, status, code) in [
        (
            &[("x-api-key", &*key), ("authorization", &*theirs)][..],
            200,
            "",
        ),
        (&[("authorization", &*theirs)], 401, "unauthenticated"),
        (&[("authorization", &*ours)], 200, ""),
        (
            &[("x-api-key", &*key), ("authorization", &*ours)],
            401,
            "ambiguous_credential",
        ),
        (
            &[("authorization", &*ours), ("authorization", &*ours)],
            401,
            "ambiguous_credential",
        ),
        (
            &[("authorization", &*ours), ("authorization", &*theirs)],
            200,
            "",
        ),
    ] {
        let answer = world.authorize(&gateway, "", headers).await;
        assert_eq!((answer.status, answer.code()), (status, code), "{answer}");
    }
}

async fn a_token_at_the_gateway_is_charged_to_its_key_and_recorded(home: Home) {
    let world = World::new(&home).await;
    let gateway = world.accepting_tokens(json!(["jwt"])).await;
    let limits = json!({"rate_limits": [{"name": "few", "limit": 3, "period": "1h"}]});
    let key = world.issue(&["invoice:read"], limits).await;
    // The token itself cost one.
    let token = world.token(&text(&key, "/api_key"), &[]).await;
    let bearer = format!("Bearer {token}");
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = world
            .authorize(&gateway, "", &[("authorization", &bearer)])
            .await;
        assert!(answer.headers.contains_key("ratelimit"), "{answer}");
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 429]);
    let claims = part(&token, 1);
    let of = |outcome: &str| {
        format!(
            "{outcome} {} {}",
            text(&claims, "/jti"),
            text(&claims, "/sub")
        )
    };
    let mut events = Vec::new();
    until(
        std::time::Duration::from_secs(20),
        "all uses are stored",
        async || {
            let query = "SELECT outcome || ' ' || coalesce(token_id, '-') || ' ' || \
                         coalesce(subject, '-') AS line FROM usage_event \
                         WHERE operation = 'authorize' ORDER BY outcome";
            events = lines(&home, query).await;
            events.len() == 3
        },
    )
    .await;
    assert_eq!(events, [of("rate_limited"), of("valid"), of("valid")]);
}

/// D1 to D10 and D16 to D19 of the admin API, against the gateway: first what strangers sign, of an issuer
/// that is called like ours; then what our own key signed, of another kind or about something else.
async fn no_forged_token_is_let_in(home: Home) {
    let provider = IdentityProvider::start().await;
    let world = World::with(&home, &[("SERVER__PUBLIC_URL", A)]).await;
    let gateway = world.accepting_tokens(json!(["key", "jwt"])).await;
    let key = world.key().await;
    let good = world.token(&key, &[]).await;
    let bearer = format!("Bearer {good}");
    let lets_in = async |name: &str| {
        let answer = world
            .authorize(&gateway, "", &[("authorization", &bearer)])
            .await;
        assert_eq!(answer.status, 200, "after {name}: {answer}");
    };
    lets_in("nothing").await;
    let before = tables::changes(&home).await;
    let (forged, again) = forged(&world, &home, &provider, &good).await;
    // As it stands it is good, so it is the changes that are refused.
    let again = format!("Bearer {again}");
    let answer = world
        .authorize(&gateway, "", &[("authorization", &again)])
        .await;
    assert_eq!(answer.status, 200, "{answer}");

    for (name, token) in &forged {
        let value = format!("Bearer {token}");
        if HeaderValue::from_bytes(value.as_bytes()).is_err() {
            continue;
        }
        let request = world
            .server
            .client()
            .get("/gateway/authorize?service=invoicing")
            .header("x-keystead-caller", &gateway)
            .header_bytes("authorization", value.as_bytes());
        let answer = request.send().await;
        let refused =
            answer.status == 401 || (answer.code() == "wrong_service" && name.starts_with("aud"));
        assert!(refused, "{name}: {answer}");
        assert!(
            answer
                .headers
                .get("x-keystead-key-id")
                .is_none_or(|id| id.is_empty()),
            "{name}"
        );
        lets_in(name).await;
    }
    let changes: Vec<_> = tables::changes_since(&home, &before).await;
    assert_eq!(changes, ["key.create"], "the second key alone");
    assert_eq!(provider.asked("/trap"), 0, "no token sent us anywhere");
}

/// Tokens that say to be of this node, which is called A, and are no access tokens of its own: each with
/// what is wrong with it. And `good`, signed once more as it is.
pub async fn forged(
    world: &World,
    home: &Home,
    provider: &IdentityProvider,
    good: &str,
) -> (Vec<(String, String)>, String) {
    let mut forged: Vec<(String, String)> = cases(&world.server.clock, &provider.url("/trap"))
        .into_iter()
        .map(|Case { name, token, .. }| (name.to_owned(), token))
        .collect();
    assert!(forged.len() >= 150);

    // Whoever has the key of the ring can still not make another kind of token pass.
    let rows = "SELECT kid || ' ' || HEXED AS line FROM signing_key";
    let hexed = match home.backend {
        crate::support::Backend::Sqlite => "hex(private_key)",
        crate::support::Backend::Postgres => "encode(private_key, 'hex')",
    };
    let rows = tables::lines_of(home.eyes(), rows.replace("HEXED", hexed)).await;
    let (kid, sealed) = rows[0].split_once(' ').unwrap();
    let master: [u8; 32] = hex::decode(MASTER_KEY).unwrap().try_into().unwrap();
    let ours = SigningKey::open(
        kid,
        SigningAlgorithm::Es256,
        &MasterKey::new(master),
        &hex::decode(sealed).unwrap(),
    )
    .unwrap();
    let claims = part(good, 1);
    let again = ours.sign("at+jwt", &claims).unwrap();
    for typ in [
        "JWT",
        "token-introspection+jwt",
        "logout+jwt",
        "dpop+jwt",
        "at+jwt\",\"crit\":[\"b64\"],\"b64\":false,\"x\":\"",
        "at+jwt\",\"crit\":[],\"x\":\"",
        "at+jwt\",\"jwk\":{},\"x\":\"",
        "at+jwt\",\"jku\":\"https://x.example\",\"x\":\"",
        "at+jwt\",\"alg\":\"none\",\"x\":\"",
        "at+jwt\",\"kid\":\"other\",\"x\":\"",
        "at+jwt\",\"typ\":\"at+jwt",
    ] {
        let token = ours.sign(typ, &claims).unwrap();
        forged.push((format!("typ {typ}"), token));
    }
    let now = world.server.clock.now().unix_seconds();
    let other = TokenId::made_of(world.server.clock.now(), &[1; 10]);
    for (name, value) in [
        ("iss", json!("https://b.example")),
        ("iss", json!("https://a.example/")),
        ("iss", json!([A])),
        ("iss", Value::Null),
        ("aud", json!("shipping")),
        ("aud", json!(["invoicing"])),
        ("aud", json!(["invoicing", "shipping"])),
        ("aud", json!(1)),
        ("aud", json!({})),
        ("aud", Value::Null),
        ("sub", json!(1)),
        ("sub", json!("")),
        ("sub", json!(A)),
        ("sub", Value::Null),
        ("client_id", json!("alice")),
        ("client_id", Value::Null),
        ("scope", json!(["invoice:read"])),
        ("scope", json!("a\"b")),
        ("exp", json!("never")),
        ("exp", json!(now)),
        ("exp", json!(now - 31)),
        ("exp", json!(now + 3600)),
        ("exp", json!(-1)),
        ("exp", json!(1.5)),
        ("exp", Value::Null),
        ("iat", json!(now + 600)),
        ("iat", json!("now")),
        ("iat", Value::Null),
        ("nbf", json!(now + 600)),
        ("nbf", json!("99999999999")),
        ("jti", json!("tok_x")),
        ("jti", json!(1)),
        ("jti", Value::Null),
        ("nonce", json!("x")),
        ("events", json!({})),
        ("token_introspection", json!({"active": true})),
        ("cnf", json!({"jkt": "x"})),
        ("typ", json!("ID")),
        ("keystead", Value::Null),
        ("keystead", json!({})),
        (
            "keystead",
            json!({"service": "invoicing", "key_id": other.as_str(), "secret_id": "sec_x"}),
        ),
        ("act", json!("con_x")),
        ("act", json!({"iss": "https://b.example"})),
        ("may_act", json!([])),
        (
            "sub_id",
            json!({"format": "email", "email": "a@example.com"}),
        ),
    ] {
        let mut changed = claims.clone();
        match &value {
            Value::Null => drop(changed.as_object_mut().unwrap().shift_remove(name)),
            value => changed[name] = value.clone(),
        }
        forged.push((
            format!("{name}: {value}"),
            ours.sign("at+jwt", &changed).unwrap(),
        ));
    }
    // A secret of another key, which the signer named.
    let mut crossed = claims.clone();
    let second = world.issue(&["invoice:read"], json!({})).await;
    crossed["keystead"]["key_id"] = second["key"]["id"].clone();
    forged.push(("crossed".into(), ours.sign("at+jwt", &crossed).unwrap()));
    (forged, again)
}
