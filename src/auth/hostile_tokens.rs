//! Hostile tokens, one by one: each is refused for the reason we mean, asks nobody for keys, and
//! leaves the good token beside it as good as before. The tokens themselves are `forge::forged`.

use serde_json::json;

use super::forge::forged::{
    AUDIENCE, B, Case, H, HEADER, SECRET, cases, good_claims, issuers, with, with_claims,
    with_header,
};
use super::forge::{IdentityProvider, Signers};
use super::issuers::{Issuers, TokenError};
use super::jwt::Refusal;
use crate::clock::Clock;
use crate::config::issuers::{IssuerConfig, resolve};
use crate::rights::Permission;

async fn world() -> (Issuers, IdentityProvider, Clock) {
    let provider = IdentityProvider::start().await;
    let configs = issuers(&provider).map(|toml| toml::from_str::<IssuerConfig>(&toml).unwrap());
    let clock = Clock::shifted();
    let issuers = Issuers::new(resolve(&configs).unwrap(), clock.clone()).unwrap();
    (issuers, provider, clock)
}

#[tokio::test]
async fn every_forged_token_is_refused_and_asks_nobody() {
    let (issuers, provider, clock) = world().await;
    let good = Signers::shared().token("ES256", HEADER, &good_claims(&clock).to_string());
    assert!(issuers.verify(&good).await.is_ok());
    assert_eq!(provider.asked("/jwks"), 1);

    for Case {
        name,
        token,
        refusal,
    } in cases(&clock, &provider.url("/trap"))
    {
        let answer = issuers.verify(&token).await.map(|vouched| vouched.subject);
        assert_eq!(answer, Err(TokenError::Refused(refusal)), "{name}: {token}");
        assert!(issuers.verify(&good).await.is_ok(), "after {name}");
    }
    assert_eq!(provider.asked("/jwks"), 1, "no token made us fetch again");
    assert_eq!(provider.asked("/trap"), 0, "no token sent us anywhere");
}

#[tokio::test]
async fn every_changed_character_breaks_a_token() {
    let (issuers, _provider, clock) = world().await;
    for (algorithm, kid) in [("ES256", "p256"), ("RS256", "rsa"), ("EdDSA", "ed")] {
        let header = json!({"alg": algorithm, "kid": kid}).to_string();
        let good = Signers::shared().token(algorithm, &header, &good_claims(&clock).to_string());
        assert!(issuers.verify(&good).await.is_ok());
        for at in 0..good.len() {
            let mut changed = good.clone().into_bytes();
            changed[at] = match changed[at] {
                b'A' => b'B',
                _ => b'A',
            };
            let changed = String::from_utf8(changed).unwrap();
            let answer = issuers.verify(&changed).await;
            assert!(
                matches!(answer, Err(TokenError::Refused(_))),
                "{algorithm}, character {at}"
            );
        }
    }
}

#[tokio::test]
async fn what_a_good_token_may_look_like() {
    let (issuers, _provider, clock) = world().await;
    let ours = Signers::shared();
    let body = good_claims(&clock).to_string();
    let now = clock.now().unix_seconds();
    let mut good = Vec::new();
    for (algorithm, kid) in [
        ("RS256", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
    ] {
        let header = json!({"alg": algorithm, "kid": kid}).to_string();
        good.push((algorithm, ours.token(algorithm, &header, &body)));
        let header = json!({"alg": algorithm}).to_string();
        good.push((
            "no kid and no choice",
            ours.token(algorithm, &header, &body),
        ));
    }
    let of_b = with(good_claims(&clock), json!({ "iss": B }));
    good.push(("B", Signers::other().token("ES256", HEADER, &of_b)));
    let of_h = with(good_claims(&clock), json!({ "iss": H }));
    let hs256 = r#"{"alg":"HS256","typ":"JWT"}"#;
    good.push((
        "H",
        ours.token_with("HS256", hs256, &of_h, SECRET.as_bytes()),
    ));
    for typ in ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt"] {
        good.push(("typ", with_header(&clock, json!({ "typ": typ }))));
    }
    good.push(("typ absent", with_header(&clock, json!({"typ": null}))));
    for changes in [
        json!({"exp": now - 10}),
        json!({"nbf": now + 20}),
        json!({"iat": now + 20}),
        json!({"iat": null}),
        json!({"exp": now + 86_000}),
        json!({"aud": [AUDIENCE]}),
        json!({"aud": ["https://other.example", AUDIENCE]}),
        json!({"typ": "Bearer"}),
        json!({"sub": "a".repeat(255)}),
        json!({"sub": "Zoë 🚀"}),
        json!({"scope": "openid", "azp": "cli", "nested": {"a": [1, 2.5, null, true]}}),
    ] {
        good.push(("claims", with_claims(&clock, changes)));
    }
    for (name, token) in good {
        let vouched = issuers.verify(&token).await;
        assert!(vouched.is_ok(), "{name}: {vouched:?} {token}");
        assert!(vouched.unwrap().rights.allows(Permission::KeysWrite, None));
    }
}

#[tokio::test]
async fn a_token_ends_by_the_clock() {
    let (issuers, _provider, clock) = world().await;
    let good = Signers::shared().token("ES256", HEADER, &good_claims(&clock).to_string());
    assert!(issuers.verify(&good).await.is_ok());
    clock.advance(crate::time::Span::seconds(325));
    assert!(issuers.verify(&good).await.is_ok(), "within the leeway");
    clock.advance(crate::time::Span::seconds(6));
    assert_eq!(
        issuers.verify(&good).await.map(|vouched| vouched.subject),
        Err(TokenError::Refused(Refusal::Expired))
    );
}

#[tokio::test]
async fn a_person_is_known_by_issuer_and_subject_and_unknown_roles_give_nothing() {
    let (issuers, _provider, clock) = world().await;
    let ours = Signers::shared();
    let of_b = with(good_claims(&clock), json!({ "iss": B }));
    let at_a = issuers
        .verify(&with_claims(&clock, json!({})))
        .await
        .unwrap();
    let at_b = issuers
        .verify(&Signers::other().token("ES256", HEADER, &of_b))
        .await
        .unwrap();
    assert_eq!(
        (at_a.subject.as_str(), at_b.subject.as_str()),
        ("alice", "alice")
    );
    assert_ne!(at_a.issuer, at_b.issuer);
    for roles in [
        json!(null),
        json!("ADMIN"),
        json!(["unknown"]),
        json!("admin viewer"),
    ] {
        let token = ours.token(
            "ES256",
            HEADER,
            &with(good_claims(&clock), json!({ "roles": roles })),
        );
        let vouched = issuers.verify(&token).await.unwrap();
        assert!(
            Permission::ALL
                .iter()
                .all(|p| !vouched.rights.allows_any(*p)),
            "{roles}"
        );
    }
}
