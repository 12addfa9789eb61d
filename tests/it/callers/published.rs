//! Keys that an issuer publishes: rotated, withdrawn, out of reach. SECURITY D11 to D13.

use std::time::Duration;

use tokio::time::Instant;

use super::remembered::ANSWERED_WITHIN_BUSY;
use super::*;
use crate::support::forge::{Answer as Says, noise};
use crate::support::{both, until};

both!(
    a_new_key_of_an_issuer_is_accepted_at_once_after_one_fetch_and_a_withdrawn_one_no_more,
    a_flood_of_unknown_kids_costs_one_fetch_and_good_tokens_go_on,
    an_issuer_that_went_away_is_believed_by_its_last_keys_until_they_are_too_old,
    an_issuer_that_is_away_at_the_start_stops_its_people_and_nothing_else,
    an_issuer_that_hangs_keeps_no_validation_waiting,
);

const COOLDOWN: &str = "30s";

/// A, which publishes its keys.
fn publishing(provider: &IdentityProvider) -> String {
    format!(
        "issuer = \"{A}\"\naudience = \"{AUDIENCE}\"\nalgorithms = [\"ES256\"]\n{ADMINS}\n\
         jwks_url = \"{}\"\ncooldown = \"{COOLDOWN}\"\n\
         allow_private_addresses = true\ndangerous_allow_http = true\n",
        provider.url("/jwks")
    )
}

fn publish(provider: &IdentityProvider, kids: &[&str]) {
    let keys: Vec<Value> = kids
        .iter()
        .map(|kid| Signers::shared().jwk("ES256", kid))
        .collect();
    provider.publish(&keys);
}

/// A node whose first fetch has ended.
async fn world(home: &Home) -> (IdentityProvider, Server) {
    let provider = IdentityProvider::start().await;
    publish(&provider, &["k1"]);
    let server = serve(home, &[publishing(&provider)]).await;
    assert_eq!(ask(&server, "k1").await, (200, String::new()));
    assert_eq!(provider.asked("/jwks"), 1);
    (provider, server)
}

/// A token under this `kid`.
fn token_under(server: &Server, kid: &str) -> String {
    let header = json!({"alg": "ES256", "kid": kid}).to_string();
    let claims = good_claims(&server.clock).to_string();
    Signers::shared().token("ES256", &header, &claims)
}

/// What the bearer of a token under this `kid` is told.
async fn ask(server: &Server, kid: &str) -> (u16, String) {
    let answer = server.client().with_bearer(&token_under(server, kid));
    let answer = answer.get("/v1/services").send().await;
    if answer.status == 503 {
        assert!(answer.headers.contains_key("retry-after"), "{answer}");
    }
    (answer.status, answer.code().to_owned())
}

fn refused() -> (u16, String) {
    (401, "invalid_credential".to_owned())
}

fn good() -> (u16, String) {
    (200, String::new())
}

fn away() -> (u16, String) {
    (503, "store_unavailable".to_owned())
}

async fn a_new_key_of_an_issuer_is_accepted_at_once_after_one_fetch_and_a_withdrawn_one_no_more(
    home: Home,
) {
    let (provider, server) = world(&home).await;
    publish(&provider, &["k1", "k2"]);
    // Within the cool-down nobody is asked, whatever a token says.
    assert_eq!(ask(&server, "k2").await, refused());
    assert_eq!(provider.asked("/jwks"), 1);
    server.clock.advance(COOLDOWN.parse().unwrap());
    assert_eq!(ask(&server, "k2").await, good());
    assert_eq!(ask(&server, "k1").await, good());
    assert_eq!(provider.asked("/jwks"), 2);

    server.clock.advance(COOLDOWN.parse().unwrap());
    publish(&provider, &["k3"]);
    assert_eq!(ask(&server, "k3").await, good());
    assert_eq!(ask(&server, "k1").await, refused());
    assert_eq!(ask(&server, "k2").await, refused());
    assert_eq!(provider.asked("/jwks"), 3);
}

async fn a_flood_of_unknown_kids_costs_one_fetch_and_good_tokens_go_on(home: Home) {
    let (provider, server) = world(&home).await;
    let (nowhere, empty) = ("/elsewhere".to_owned(), json!({"keys": []}).to_string());
    // The last one is asked until the test ends.
    let answers = [
        Says::Status(500),
        Says::Body(empty),
        Says::Redirect(nowhere),
        Says::Endless,
        Says::Hang,
    ];
    for (round, answer) in (0_u32..).zip(answers) {
        let what = format!("{answer:?}");
        provider.answer("/jwks", answer);
        server.clock.advance(COOLDOWN.parse().unwrap());
        for turn in 0..2 {
            let flood = (0..40).map(|n| {
                let (server, kid) = (&server, noise(round * 100 + turn * 50 + n));
                async move { ask(server, &kid).await }
            });
            let flood = futures_util::future::join_all(flood);
            let (flood, known) = tokio::join!(flood, ask(&server, "k1"));
            assert!(
                flood.iter().all(|told| *told == refused()),
                "{what}: {flood:?}"
            );
            assert_eq!(known, good(), "{what}");
        }
        assert_eq!(
            provider.asked("/jwks"),
            2 + usize::try_from(round).unwrap(),
            "{what}"
        );
    }
    assert_eq!(provider.asked("/elsewhere"), 0, "no redirect is followed");
}

async fn an_issuer_that_went_away_is_believed_by_its_last_keys_until_they_are_too_old(home: Home) {
    let (provider, server) = world(&home).await;
    provider.answer("/jwks", Says::Status(503));
    for _ in 0..5 {
        server.clock.advance("4h".parse().unwrap());
        assert_eq!(ask(&server, "k1").await, good());
        assert_eq!(ask(&server, "k2").await, refused());
    }
    server.clock.advance("5h".parse().unwrap());
    assert_eq!(ask(&server, "k1").await, away());
    publish(&provider, &["k1"]);
    server.clock.advance(COOLDOWN.parse().unwrap());
    assert_eq!(ask(&server, "k1").await, good());
}

async fn an_issuer_that_is_away_at_the_start_stops_its_people_and_nothing_else(home: Home) {
    let provider = IdentityProvider::start().await;
    provider.answer("/jwks", Says::Status(503));
    let server = serve(&home, &[publishing(&provider)]).await;
    until(
        Duration::from_secs(5),
        "the keys were asked for",
        async || provider.asked("/jwks") == 1,
    )
    .await;
    assert_eq!(ask(&server, "k1").await, away());
    assert_eq!(provider.asked("/jwks"), 1, "not again within the cool-down");

    let ready = server.client().get("/health/ready").send().await;
    assert_eq!(ready.status, 200, "{ready}");
    let owner = server.owner();
    owner
        .create("/v1/services", json!({"slug": "billing"}))
        .await;
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    let grants = json!([{"service": "billing", "scopes": ["bill:read"]}]);
    let new = json!({"name": "worker", "consumer": "acme", "grants": grants});
    let key = text(&owner.create("/v1/keys", new).await, "/api_key");
    let body = json!({"api_key": key, "service": "billing"});
    let told = owner.post("/v1/verify").json(body).send().await.expect(200);
    assert_eq!(told["code"], "valid");

    publish(&provider, &["k1"]);
    server.clock.advance(COOLDOWN.parse().unwrap());
    assert_eq!(ask(&server, "k1").await, good());
}

async fn an_issuer_that_hangs_keeps_no_validation_waiting(home: Home) {
    let (provider, server) = world(&home).await;
    let owner = server.owner();
    let service = json!({"slug": "billing", "exchange": {"from": [A]}});
    owner.create("/v1/services", service).await;
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    let grants = json!([{"service": "billing", "scopes": []}]);
    let new = json!({"name": "worker", "consumer": "acme", "grants": grants});
    let key = text(&owner.create("/v1/keys", new).await, "/api_key");
    let verify = |token: &str| {
        let body = json!({"api_key": key, "service": "billing"});
        let caller = server.client().with_bearer(token);
        caller.post("/v1/verify").json(body)
    };
    let introspect = |token: &str| {
        let form = [("token", token), ("audience", "billing")];
        owner.post("/oauth/introspect").form(&form)
    };
    let known = token_under(&server, "k1");
    let told = verify(&known).send().await.expect(200);
    assert_eq!(told["code"], "valid");
    let told = introspect(&known).send().await.expect(200);
    assert_eq!(told["active"], true);

    provider.answer("/jwks", Says::Hang);
    server.clock.advance(COOLDOWN.parse().unwrap());
    let new = token_under(&server, "k2");
    let timed = async |request: crate::support::Request| {
        let began = Instant::now();
        let answer = request.try_send().await.expect("an answer");
        (answer, began.elapsed())
    };
    let ((verified, first), (introspected, second)) =
        tokio::join!(timed(verify(&new)), timed(introspect(&new)));
    assert_eq!(
        (verified.status, verified.code().to_owned()),
        away(),
        "{verified}"
    );
    assert_eq!(introspected.status, 503, "{introspected}");
    assert_eq!(introspected.body["error"], "temporarily_unavailable");
    let took = first.max(second);
    assert!(took <= ANSWERED_WITHIN_BUSY, "{first:?}, {second:?}");
    let known = token_under(&server, "k1");
    let told = verify(&known).send().await.expect(200);
    assert_eq!(told["code"], "valid");

    publish(&provider, &["k1", "k2"]);
    server.clock.advance(COOLDOWN.parse().unwrap());
    let soon = Duration::from_secs(10);
    until(soon, "the new key is known", async || {
        verify(&token_under(&server, "k2")).send().await.status == 200
    })
    .await;
}
