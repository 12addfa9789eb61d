//! The keys of an issuer that answers well, badly, or not at all.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::forge::{Answer, IdentityProvider, Signers, noise};
use super::issuers::{Issuers, TokenError};
use super::jwt::Refusal;
use crate::clock::Clock;
use crate::config::issuers::{IssuerConfig, resolve};
use crate::patience;
use crate::time::Span;

const AUDIENCE: &str = "https://keys.example";
const COOLDOWN: Span = Span::seconds(30);

fn issuers(lines: &str, issuer: &str) -> (Issuers, Clock) {
    let config: IssuerConfig = toml::from_str(&format!(
        "issuer = \"{issuer}\"\naudience = \"{AUDIENCE}\"\ntenant = \"default\"\n\
         algorithms = [\"ES256\", \"RS256\"]\nallow_private_addresses = true\n\
         dangerous_allow_http = true\n{lines}"
    ))
    .unwrap();
    let clock = Clock::shifted();
    let issuers = Issuers::new(resolve(&[config]).unwrap(), clock.clone()).unwrap();
    (issuers, clock)
}

/// An issuer with one published key, `k1`, and nothing fetched yet.
async fn world() -> (IdentityProvider, Issuers, Clock) {
    let provider = IdentityProvider::start().await;
    provider.publish(&[jwk("k1")]);
    let line = format!("jwks_url = \"{}\"", provider.url("/jwks"));
    let (issuers, clock) = issuers(&line, "https://a.example");
    (provider, issuers, clock)
}

fn jwk(kid: &str) -> Value {
    Signers::shared().jwk("ES256", kid)
}

fn token_of(issuer: &str, kid: &str, clock: &Clock) -> String {
    let now = clock.now().unix_seconds();
    let claims =
        json!({"iss": issuer, "sub": "alice", "aud": AUDIENCE, "iat": now, "exp": now + 300});
    let header = json!({"alg": "ES256", "kid": kid}).to_string();
    Signers::shared().token("ES256", &header, &claims.to_string())
}

async fn judge(issuers: &Issuers, kid: &str, clock: &Clock) -> Result<String, TokenError> {
    let token = token_of("https://a.example", kid, clock);
    issuers.verify(&token).await.map(|vouched| vouched.subject)
}

const UNKNOWN_KEY: Result<String, TokenError> = Err(TokenError::Refused(Refusal::Key));

#[tokio::test]
async fn random_kids_cause_one_fetch_a_cool_down_however_it_ends_and_good_tokens_never_wait() {
    let set = json!({"keys": [jwk("k1")]}).to_string();
    for answer in [
        Answer::Body(set),
        Answer::Body(json!({"keys": []}).to_string()),
        Answer::Body("<html>".to_owned()),
        Answer::Status(500),
        Answer::Redirect("/elsewhere".to_owned()),
        Answer::Endless,
        Answer::Hang,
    ] {
        let (provider, issuers, clock) = world().await;
        assert!(judge(&issuers, "k1", &clock).await.is_ok());
        assert_eq!(provider.asked("/jwks"), 1);
        provider.answer(
            "/elsewhere",
            Answer::Body(json!({"keys": [jwk("x")]}).to_string()),
        );
        provider.answer("/jwks", answer.clone());
        clock.advance(COOLDOWN);
        for round in 0..3_u32 {
            let storm = (0..300_u32).map(|n| {
                let kid = noise(round * 1000 + n);
                let (issuers, clock) = (&issuers, &clock);
                async move { judge(issuers, &kid, clock).await }
            });
            let good = async {
                let mut worst = Duration::ZERO;
                for _ in 0..50 {
                    let begun = clock.monotonic();
                    assert!(judge(&issuers, "k1", &clock).await.is_ok(), "{answer:?}");
                    worst = worst.max(clock.monotonic() - begun);
                    tokio::task::yield_now().await;
                }
                worst
            };
            let (worst, refused) = tokio::join!(good, join_all(storm));
            assert!(refused.iter().all(|one| *one == UNKNOWN_KEY), "{answer:?}");
            assert!(
                worst < Duration::from_millis(500),
                "{worst:?} with {answer:?}"
            );
        }
        assert_eq!(provider.asked("/jwks"), 2, "{answer:?}");
        assert_eq!(provider.asked("/elsewhere"), 0, "no redirect is followed");
        assert!(judge(&issuers, "k1", &clock).await.is_ok(), "{answer:?}");
    }
}

#[tokio::test]
async fn who_cannot_wait_for_a_fetch_is_told_to_come_again() {
    let (provider, issuers, clock) = world().await;
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
    provider.answer("/jwks", Answer::Hang);
    clock.advance(COOLDOWN);
    for _ in 0..3 {
        let begun = clock.monotonic();
        let hurried = judge(&issuers, "k2", &clock);
        let told = patience::limited(Duration::from_millis(50), hurried).await;
        assert_eq!(told, Err(TokenError::Unavailable));
        let took = clock.monotonic() - begun;
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let known = patience::limited(Duration::ZERO, judge(&issuers, "k1", &clock));
    assert!(known.await.is_ok());
    // It had the time that anybody waits.
    assert_eq!(judge(&issuers, "k2", &clock).await, UNKNOWN_KEY);
    assert_eq!(provider.asked("/jwks"), 2);
}

#[tokio::test]
async fn a_new_key_is_accepted_at_once_and_a_withdrawn_one_no_more() {
    let (provider, issuers, clock) = world().await;
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
    clock.advance(COOLDOWN);
    provider.publish(&[jwk("k1"), jwk("k2")]);
    assert!(judge(&issuers, "k2", &clock).await.is_ok());
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
    assert_eq!(provider.asked("/jwks"), 2);
    clock.advance(COOLDOWN);
    provider.publish(&[jwk("k3")]);
    assert!(judge(&issuers, "k3", &clock).await.is_ok());
    assert_eq!(judge(&issuers, "k1", &clock).await, UNKNOWN_KEY);
    assert_eq!(provider.asked("/jwks"), 3);
}

#[tokio::test]
async fn many_first_tokens_share_one_fetch() {
    let (provider, issuers, clock) = world().await;
    let first = join_all((0..50).map(|_| judge(&issuers, "k1", &clock))).await;
    assert!(first.iter().all(Result::is_ok), "{first:?}");
    assert_eq!(provider.asked("/jwks"), 1);
}

#[tokio::test]
async fn the_last_good_keys_serve_while_the_issuer_is_away_until_they_are_too_old() {
    let (provider, issuers, clock) = world().await;
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
    provider.answer("/jwks", Answer::Status(503));
    for _ in 0..5 {
        clock.advance(Span::hours(4));
        assert!(judge(&issuers, "k1", &clock).await.is_ok());
        assert_eq!(judge(&issuers, "k2", &clock).await, UNKNOWN_KEY);
    }
    clock.advance(Span::hours(5));
    assert_eq!(
        judge(&issuers, "k1", &clock).await,
        Err(TokenError::Unavailable)
    );
    provider.publish(&[jwk("k1")]);
    clock.advance(COOLDOWN);
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_away_at_the_start_is_told_from_a_bad_token() {
    let (provider, issuers, clock) = world().await;
    provider.answer("/jwks", Answer::Status(503));
    assert_eq!(
        judge(&issuers, "k1", &clock).await,
        Err(TokenError::Unavailable)
    );
    assert_eq!(
        judge(&issuers, "k1", &clock).await,
        Err(TokenError::Unavailable)
    );
    assert_eq!(provider.asked("/jwks"), 1);
    assert_eq!(issuers.states()[0].failures, 1);
    provider.publish(&[jwk("k1")]);
    clock.advance(COOLDOWN);
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
}

#[tokio::test]
async fn a_fetch_outlives_the_request_that_caused_it() {
    let (provider, issuers, clock) = world().await;
    let token = token_of("https://a.example", "k1", &clock);
    // Given up after its first step.
    assert!(issuers.verify(&token).now_or_never().is_none());
    for _ in 0..500 {
        if issuers.states()[0].keys == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(issuers.verify(&token).await.is_ok());
    assert_eq!(provider.asked("/jwks"), 1);
}

#[tokio::test]
async fn keys_are_fetched_in_the_background_too() {
    let (provider, issuers, clock) = world().await;
    let issuers = std::sync::Arc::new(issuers);
    let fresh = tokio::spawn(std::sync::Arc::clone(&issuers).keep_fresh());
    for _ in 0..500 {
        if issuers.states()[0].keys == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    fresh.abort();
    provider.answer("/jwks", Answer::Status(500));
    assert!(judge(&issuers, "k1", &clock).await.is_ok());
    assert_eq!(provider.asked("/jwks"), 1);
}

#[tokio::test]
async fn discovery_finds_the_keys_of_the_very_issuer_alone() {
    const DOCUMENT: &str = "/.well-known/openid-configuration";
    let provider = IdentityProvider::start().await;
    provider.publish(&[jwk("k1")]);
    let issuer = provider.url("");
    let good = json!({"issuer": issuer, "jwks_uri": provider.url("/jwks")});
    for (document, expected) in [
        (good.to_string(), true),
        (
            json!({"issuer": "https://evil.example", "jwks_uri": provider.url("/jwks")})
                .to_string(),
            false,
        ),
        (
            json!({"issuer": format!("{issuer}/"), "jwks_uri": provider.url("/jwks")}).to_string(),
            false,
        ),
        (
            json!({"jwks_uri": provider.url("/jwks")}).to_string(),
            false,
        ),
        (json!({"issuer": issuer}).to_string(), false),
        (
            json!({"issuer": issuer, "jwks_uri": "file:///etc/passwd"}).to_string(),
            false,
        ),
        (json!({"issuer": issuer, "jwks_uri": 1}).to_string(), false),
        (
            format!(
                "{{\"issuer\":\"{issuer}\",\"jwks_uri\":\"{0}\",\"jwks_uri\":\"{0}\"}}",
                provider.url("/jwks")
            ),
            false,
        ),
        ("[]".to_owned(), false),
    ] {
        provider.answer(DOCUMENT, Answer::Body(document.clone()));
        let (issuers, clock) = issuers("discovery = true", &issuer);
        let answer = issuers.verify(&token_of(&issuer, "k1", &clock)).await;
        assert_eq!(answer.is_ok(), expected, "{document}: {answer:?}");
        if !expected {
            assert_eq!(answer.unwrap_err(), TokenError::Unavailable, "{document}");
        }
    }
}

#[tokio::test]
async fn discovery_follows_its_own_document_no_further_than_allowed() {
    let provider = IdentityProvider::start().await;
    let issuer = provider.url("");
    provider.publish(&[jwk("k1")]);
    provider.answer(
        "/.well-known/openid-configuration",
        Answer::Redirect("/elsewhere".to_owned()),
    );
    let (issuers, clock) = issuers("discovery = true", &issuer);
    let answer = issuers.verify(&token_of(&issuer, "k1", &clock)).await;
    assert_eq!(answer.unwrap_err(), TokenError::Unavailable);
    assert_eq!(
        (provider.asked("/elsewhere"), provider.asked("/jwks")),
        (0, 0)
    );
}
