//! Revocation: a token ends before its time, and what it was made from takes it along.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::clock::Clock;

use super::*;
use crate::support::redis::OwnRedis;
use crate::support::{Backend, Fault, Proxy, both, run, setting, tables, until};

both!(
    a_token_that_was_revoked_is_over_at_once_however_young_it_is,
    a_token_ends_for_its_own_client_alone,
    what_is_no_token_is_as_good_as_ended,
    a_revoked_token_stays_so_after_a_restart_and_is_forgotten_after_its_end,
    a_token_dies_with_its_key_and_with_its_secret,
    a_client_ends_tokens_no_faster_than_the_trail_can_bear,
);

const INACTIVE: &str = r#"{"active":false}"#;

impl World {
    async fn end(&self, key: &str, token: &str) -> Answer {
        let client = self.server.client().with_key(key);
        let request = client.post("/oauth/revoke").form(&[("token", token)]);
        request.send().await
    }
}

/// 52, 56; E17. Each time all four within some milliseconds.
async fn a_token_that_was_revoked_is_over_at_once_however_young_it_is(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let rounds = if setting("KEYSTEAD_TEST_LONG").is_some() {
        500
    } else {
        100
    };
    for round in 0..rounds {
        let token = world.token(&key, &[]).await;
        // Whether its state was looked at before or not.
        if round % 2 == 0 {
            let told = world.introspect(&asker, &token, &[]).await.expect(200);
            assert_eq!(told["active"], true, "{round}");
        }
        let answer = world.end(&key, &token).await;
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.expect(200), json!({}));
        let told = world.introspect(&asker, &token, &[]).await;
        assert_eq!(told.text, INACTIVE, "{round}");
    }
    let told = world.introspect(&asker, &key, &[]).await.expect(200);
    assert_eq!(told["active"], true, "the key lives on");
}

/// 53, 54; E16.
async fn a_token_ends_for_its_own_client_alone(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    world
        .owner
        .create("/v1/consumers", json!({"slug": "eve"}))
        .await;
    let eve = json!({"consumer": "eve"});
    let eve = text(&world.issue(&["invoice:read"], eve).await, "/api_key");
    let (key, other) = (world.key().await, world.key().await);
    let token = world.token(&key, &[]).await;
    let before = tables::changes(&home).await;
    let refused = world.end(&eve, &token).await;
    assert_eq!(
        refused.expect(400)["error"],
        "unauthorized_client",
        "of another client"
    );
    let post = || world.server.client().post("/oauth/revoke");
    for (request, status) in [
        (post().form(&[("token", &*token)]), 401),
        (
            post()
                .header("authorization", &basic("eve", &key))
                .form(&[("token", &*token)]),
            401,
        ),
        (
            post()
                .header("authorization", &format!("Bearer {key}"))
                .form(&[("token", &*token)]),
            401,
        ),
        (post().header("x-api-key", &key).form(&[]), 400),
        (
            world
                .server
                .client()
                .with_key(&key)
                .post("/oauth/revoke?token=x")
                .form(&[("token", &*token)]),
            400,
        ),
        (
            world
                .server
                .client()
                .with_key(&key)
                .post("/oauth/revoke?wait=6s")
                .form(&[("token", &*token)]),
            400,
        ),
    ] {
        let answer = request.send().await;
        assert_eq!(answer.status, status, "{answer}");
    }
    assert_eq!(tables::changes(&home).await, before);
    let told = world.introspect(&asker, &token, &[]).await.expect(200);
    assert_eq!(told["active"], true, "{told}");
    // By any key of its client, and by each way of client authentication.
    let header = basic("acme", &other);
    let request = post().header("authorization", &header);
    let request = request.form(&[("token", &*token), ("token_type_hint", "refresh_token")]);
    request.send().await.expect(200);
    assert_eq!(world.introspect(&asker, &token, &[]).await.text, INACTIVE);
    let done = tables::changes_since(&home, &before).await;
    assert_eq!(done, ["token.revoke"]);
    // Again changes nothing.
    world.end(&key, &token).await.expect(200);
    assert_eq!(tables::changes_since(&home, &before).await, done);
}

/// 55, 57.
async fn what_is_no_token_is_as_good_as_ended(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let token = world.token(&key, &[]).await;
    let before = tables::changes(&home).await;
    for nonsense in [
        "x",
        "a.b.c",
        "é",
        &token[..token.len() - 2],
        &"k".repeat(9000),
    ] {
        let answer = world.end(&key, nonsense).await;
        assert_eq!(answer.status, 200, "{nonsense:.20}: {answer}");
    }
    // A library that tidies up must not end a key of years.
    let answer = world.end(&key, &key).await;
    assert_eq!(answer.expect(400)["error"], "unsupported_token_type");
    world.ask(&key, &[]).await.expect(200);
    world.server.clock.advance("10m".parse().unwrap());
    world.end(&key, &token).await.expect(200);
    assert!(tables::changes_since(&home, &before).await.is_empty());
}

/// E18.
async fn a_revoked_token_stays_so_after_a_restart_and_is_forgotten_after_its_end(home: Home) {
    // Else the issuer would be another one: the address that the node listens on.
    let settings = [("SERVER__PUBLIC_URL", "https://keys.example.com")];
    let world = World::with(&home, &settings).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let token = world.token(&key, &[]).await;
    world.end(&key, &token).await.expect(200);
    let World { server, owner } = world;
    drop(server);
    let server = home.serve_with(&settings).await;
    let owner = owner.at(&server);
    let world = World { server, owner };
    let rows = || {
        tables::lines_of(
            home.eyes(),
            "SELECT id AS line FROM revoked_token".to_owned(),
        )
    };
    assert_eq!(rows().await, [text(&part(&token, 1), "/jti")]);
    assert_eq!(world.introspect(&asker, &token, &[]).await.text, INACTIVE);
    let swept = async || world.server.app.oauth.revocations().sweep().await.unwrap();
    assert_eq!(swept().await, 0);
    world.server.clock.advance("5m".parse().unwrap());
    assert_eq!(swept().await, 0, "a phantom of it may live longer");
    world.server.clock.advance("12m".parse().unwrap());
    swept().await;
    assert!(rows().await.is_empty());
}

/// E12: through the parent key, and through the secret.
async fn a_token_dies_with_its_key_and_with_its_secret(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let active = async |token: &str| {
        let told = world.introspect(&asker, token, &[]).await.expect(200);
        told["active"] == true
    };
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let (id, old) = (text(&issued, "/key/id"), text(&issued, "/api_key"));
    let rotate = world.owner.post(&format!("/v1/keys/{id}/rotate"));
    let rotated = rotate
        .json(json!({"overlap": "1h"}))
        .send()
        .await
        .expect(200);
    let new = text(&rotated, "/api_key");
    let (of_old, of_new) = (world.token(&old, &[]).await, world.token(&new, &[]).await);
    assert!(active(&of_old).await && active(&of_new).await);
    let secret = text(&issued, "/key/secrets/0/id");
    let path = format!("/v1/keys/{id}/secrets/{secret}/revoke");
    world.owner.post(&path).send().await.expect(200);
    assert!(!active(&of_old).await && active(&of_new).await);
    let path = format!("/v1/keys/{id}/disable");
    world.owner.post(&path).send().await.expect(200);
    assert!(!active(&of_new).await);
    let path = format!("/v1/keys/{id}/enable");
    world.owner.post(&path).send().await.expect(200);
    assert!(active(&of_new).await, "it was only disabled");
    let path = format!("/v1/keys/{id}/revoke");
    world.owner.post(&path).send().await.expect(200);
    assert!(!active(&of_new).await);
}

/// 58: it is told as not done, and what is told as done is done. Others are not held up.
async fn a_client_ends_tokens_no_faster_than_the_trail_can_bear(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    world
        .owner
        .create("/v1/consumers", json!({"slug": "other"}))
        .await;
    let of_other = json!({"consumer": "other"});
    let other = text(&world.issue(&["invoice:read"], of_other).await, "/api_key");
    // The budget is the client's, whichever of its keys it uses.
    let keys = [world.key().await, world.key().await];
    let before = tables::changes(&home).await;
    let (mut ended, mut refused) = (0, None);
    let began = Clock::System.monotonic();
    while refused.is_none() {
        let made = join_all((0..20).map(|n| world.token(&keys[n % 2], &[]))).await;
        let answers = join_all(made.iter().map(|token| world.end(&keys[0], token))).await;
        for (token, answer) in made.into_iter().zip(answers) {
            match answer.status {
                200 => ended += 1,
                _ => refused = Some((token, answer)),
            }
        }
        assert!(ended < 2_000, "there is no end to it");
    }
    let more = began.elapsed().as_secs() + 1;
    assert!((600..=600 + more).contains(&ended), "{ended}");
    let (token, answer) = refused.unwrap();
    assert!(answer.headers.contains_key("retry-after"), "{answer}");
    assert_eq!(answer.expect(503)["error"], "temporarily_unavailable");
    let told = world.introspect(&asker, &token, &[]).await.expect(200);
    assert_eq!(told["active"], true, "it still counts");
    let mut lines = tables::changes_since(&home, &before).await;
    lines.retain(|line| line == "token.revoke");
    assert_eq!(lines.len() as u64, ended);
    // What is to be stored is what is counted: nonsense is as good as ended as ever.
    world.end(&keys[0], "nonsense").await.expect(200);
    let of_other = world.token(&other, &[]).await;
    world.end(&other, &of_other).await.expect(200);
    until(
        Duration::from_secs(10),
        "it may end one again",
        async || world.end(&keys[1], &token).await.status == 200,
    )
    .await;
    assert_eq!(world.introspect(&asker, &token, &[]).await.text, INACTIVE);
}

/// 56; E17: on the other node within the bound, and at once where it is said to be known everywhere.
#[test]
fn a_revoked_token_is_over_on_the_other_node_too() {
    run(Backend::Postgres, async |home| {
        let redis = OwnRedis::start();
        let url = redis.url();
        let settings = [
            ("REDIS__URL", url.as_str()),
            ("SERVER__PUBLIC_URL", "https://keys.example.com"),
        ];
        let world = World::with(&home, &settings).await;
        let other = home.serve_with(&settings).await;
        let asker = world.asker(&["introspect:invoicing"]).await;
        let key = world.key().await;
        let there = async |token: &str| {
            let request = other.client().with_key(&asker).post("/oauth/introspect");
            request.form(&[("token", token)]).send().await.text
        };
        let rounds = if setting("KEYSTEAD_TEST_LONG").is_some() {
            500
        } else {
            60
        };
        for round in 0..rounds {
            let token = world.token(&key, &[]).await;
            assert_ne!(there(&token).await, INACTIVE, "{round}");
            let wait = if round % 2 == 0 { "?wait=4s" } else { "" };
            let client = world.server.client().with_key(&key);
            let request = client.post(&format!("/oauth/revoke{wait}"));
            let told = request.form(&[("token", &*token)]).send().await.expect(200);
            assert_eq!(world.introspect(&asker, &token, &[]).await.text, INACTIVE);
            if wait.is_empty() {
                assert_eq!(told, json!({}));
                until(Duration::from_secs(1), "it is known there", async || {
                    there(&token).await == INACTIVE
                })
                .await;
            } else {
                assert_eq!(told, json!({"propagated": true}));
                assert_eq!(there(&token).await, INACTIVE, "{round}");
            }
        }
    });
}

/// 58: a revocation that cannot be stored is none, and says so.
#[test]
fn a_revocation_that_cannot_be_stored_is_told_as_such() {
    run(Backend::Postgres, async |home| {
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let world = World::with(&home, &[("DATABASE__URL", &url)]).await;
        let asker = world.asker(&["introspect:invoicing"]).await;
        let key = world.key().await;
        let token = world.token(&key, &[]).await;
        world.introspect(&asker, &token, &[]).await.expect(200);
        // Both are known, so it is the revocation itself that fails.
        world.end(&key, "nonsense").await.expect(200);
        proxy.set(Fault::Refuse).await;
        let answer = world.end(&key, &token).await;
        assert!(answer.headers.contains_key("retry-after"), "{answer}");
        assert_eq!(answer.expect(503)["error"], "temporarily_unavailable");
        let told = world.introspect(&asker, &token, &[]).await.expect(200);
        assert_eq!(told["active"], true, "{told}");
        proxy.set(Fault::None).await;
        until(Duration::from_secs(5), "the database is back", async || {
            world.end(&key, &token).await.status == 200
        })
        .await;
        // A busy machine may not know at once, and then says so: never that the token is active.
        until(Duration::from_secs(5), "the token is known", async || {
            let told = world.introspect(&asker, &token, &[]).await;
            assert!(told.status == 503 || told.text == INACTIVE, "{told}");
            told.status != 503
        })
        .await;
    });
}
