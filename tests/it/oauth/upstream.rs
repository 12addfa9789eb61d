//! Keys swapped for the tokens of another authorization server: a real one, `oidc-provider`, which is
//! killed and comes back; and one that behaves as badly as it can.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::clock::Clock;

use super::*;
use crate::support::forge::{Answer as Says, IdentityProvider};
use crate::support::programs::{PROVIDER_SECRET, Provider, provider_key};
use crate::support::redis::{OwnRedis, link};
use crate::support::{both, until};
use crate::usage::lines;

both!(
    a_key_is_swapped_for_the_token_of_a_real_provider_while_it_is_killed_and_comes_back,
    a_token_is_fetched_anew_before_it_ends_and_nobody_waits_for_that,
    however_many_ask_the_provider_is_asked_once,
    no_key_drains_the_provider_by_the_parts_of_its_scopes,
    tenants_and_services_share_no_token,
    nodes_share_tokens_that_redis_cannot_read,
    a_provider_that_fails_costs_two_seconds_at_most_and_then_nothing,
    what_cannot_be_an_upstream_is_refused,
);

const RESOURCE: &str = "https://ledger.example/";

/// With all that has to be escaped.
const CLIENT_ID: &str = "key stead:1+%";

/// How long anybody waits for a token, and how long a machine with much to do takes to say so.
const WAIT_MAX: Duration = Duration::from_millis(2000 + 1000);

async fn provider() -> Provider {
    Provider::start(json!({
        "jwks": [provider_key("k1")],
        "clients": [{"client_id": CLIENT_ID, "client_secret": PROVIDER_SECRET}],
        "resources": {RESOURCE: "ledger.read ledger.write"},
    }))
    .await
}

/// The setting, as one variable.
fn upstreams(issuer: &str, tenants: &[&str]) -> String {
    let all = json!([{
        "name": "company",
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "client_secret": PROVIDER_SECRET,
        "tenants": tenants,
        "allow_private_addresses": true,
        "dangerous_allow_http": true,
    }]);
    let all: toml::Value = toml::Value::try_from(all).expect("it has a TOML form");
    all.to_string()
}

fn upstream() -> Value {
    json!({
        "provider": "company",
        "scopes": {"invoice:read": "ledger.read", "invoice:write": "ledger.write"},
        "resource": RESOURCE,
    })
}

/// A world whose service `invoicing` has its keys swapped, and a key that may write invoices.
async fn world(home: &Home, issuer: &str, more: &[(&str, &str)]) -> (World, String) {
    let setting = upstreams(issuer, &["default"]);
    let settings = [&[("UPSTREAMS", setting.as_str())], more].concat();
    let world = World::with(home, &settings).await;
    patch(&world.owner, json!({"upstream": upstream()})).await;
    let key = world
        .issue(&["invoice:write", "report:read"], json!({}))
        .await;
    let key = text(&key, "/api_key");
    (world, key)
}

async fn patch(owner: &Client, body: Value) {
    let request = owner.request("PATCH".parse().unwrap(), "/v1/services/invoicing");
    request.json(body).send().await.expect(200);
}

/// Asks again on a machine that has too much to do to answer in time.
async fn patiently(world: &World, key: &str) -> String {
    for _ in 0..50 {
        let answer = world.ask(key, &[]).await;
        if answer.status != 503 {
            return text(&answer.expect(200), "/access_token");
        }
    }
    panic!("there is no token");
}

/// What a caller is told while there is no token.
#[track_caller]
fn unavailable(answer: &Answer) {
    let told = (answer.status, &answer.body["error"]);
    assert_eq!(told, (503, &json!("temporarily_unavailable")), "{answer}");
    assert!(answer.headers.contains_key("retry-after"), "{answer}");
    for secret in [PROVIDER_SECRET, CLIENT_ID, "hush"] {
        assert!(!answer.text.contains(secret), "{answer}");
    }
}

async fn a_key_is_swapped_for_the_token_of_a_real_provider_while_it_is_killed_and_comes_back(
    home: Home,
) {
    let mut provider = provider().await;
    let (world, key) = world(&home, &provider.issuer(), &[]).await;
    let answer = world.ask(&key, &[]).await;
    assert_eq!(answer.headers["cache-control"], "no-store", "{answer}");
    let body = answer.expect(200);
    // Writing implies reading, and what the map does not name is nothing there.
    assert_eq!(
        words(&body["scope"]),
        words(&json!("ledger.read ledger.write"))
    );
    assert_eq!(body["token_type"], "Bearer");
    let life = body["expires_in"].as_i64().unwrap();
    assert!((590..=600).contains(&life), "{body}");
    let token = text(&body, "/access_token");
    let set = Client::new(provider.issuer())
        .get("/jwks")
        .send()
        .await
        .expect(200);
    let claims = verify(&token, &set, &provider.issuer(), RESOURCE);
    assert_eq!(claims["client_id"], CLIENT_ID);
    assert_eq!(words(&claims["scope"]), words(&body["scope"]));

    // Narrowed, and another token; asked for again, the same one.
    let narrow = world
        .ask(&key, &[("scope", "invoice:read")])
        .await
        .expect(200);
    assert_eq!(narrow["scope"], "ledger.read");
    assert_eq!(world.token(&key, &[]).await, token);
    assert_eq!(provider.issued().len(), 2);
    // The provider would take nothing for everything.
    for (scope, error) in [("report:read", "invalid_scope"), ("admin", "invalid_scope")] {
        let refused = world.ask(&key, &[("scope", scope)]).await;
        assert_eq!(
            (refused.status, &refused.body["error"]),
            (400, &json!(error))
        );
    }
    assert_eq!(provider.issued().len(), 2);

    // Killed: what is held is given, and for what is not the caller is told, at once.
    provider.kill();
    assert_eq!(world.token(&key, &[]).await, token);
    patch(&world.owner, json!({"upstream": {"audience": "ledger"}})).await;
    for _ in 0..3 {
        let began = Clock::System.monotonic();
        unavailable(&world.ask(&key, &[]).await);
        assert!(began.elapsed() < WAIT_MAX);
    }
    provider.run().await;
    world.server.clock.advance("31s".parse().unwrap());
    let back = world.ask(&key, &[]).await.expect(200);
    assert_eq!(
        words(&back["scope"]),
        words(&json!("ledger.read ledger.write"))
    );

    // Each is a use like any other. The token is shared by uses, so it names none of them.
    let query = "SELECT outcome || ' ' || coalesce(token_id, '-') AS line FROM usage_event \
                 WHERE operation = 'token' AND outcome = 'valid'";
    let bound = Duration::from_secs(20);
    until(bound, "all uses are stored", async || {
        lines(&home, query).await.len() == 9
    })
    .await;
    assert!(
        lines(&home, query)
            .await
            .iter()
            .all(|line| line == "valid -")
    );

    // The key is still what decides.
    let ends = world.issue(&["invoice:write"], json!({"ttl": "2m"})).await;
    let (ends, id) = (text(&ends, "/api_key"), text(&ends, "/key/id"));
    let told = world.ask(&ends, &[]).await.expect(200);
    assert!(told["expires_in"].as_i64().unwrap() <= 120, "{told}");
    let revoke = world.owner.post(&format!("/v1/keys/{id}/revoke"));
    revoke.json(json!({})).send().await.expect(200);
    assert_eq!(world.ask(&ends, &[]).await.status, 401);
    // Without the setting tokens are ours again.
    patch(&world.owner, json!({"upstream": null})).await;
    world
        .verified(&world.token(&key, &[]).await, "invoicing")
        .await;
}

async fn a_token_is_fetched_anew_before_it_ends_and_nobody_waits_for_that(home: Home) {
    let mut provider = provider().await;
    let (world, key) = world(&home, &provider.issuer(), &[]).await;
    let first = world.token(&key, &[]).await;
    // Given for 570 of its 600 s, and due within the last 40 % of that.
    world.server.clock.advance("330s".parse().unwrap());
    assert_eq!(world.token(&key, &[]).await, first);
    assert_eq!(provider.issued().len(), 1);
    world.server.clock.advance("190s".parse().unwrap());
    let frozen = provider.freeze();
    assert_eq!(world.token(&key, &[]).await, first, "nobody waits");
    drop(frozen);
    let bound = Duration::from_secs(10);
    until(bound, "it was fetched anew", async || {
        world.token(&key, &[]).await != first
    })
    .await;
    assert_eq!(provider.issued().len(), 2);
    let second = world.token(&key, &[]).await;

    // While the provider is away the old one is given, but not in its last half minute.
    provider.kill();
    world.server.clock.advance("540s".parse().unwrap());
    for _ in 0..3 {
        assert_eq!(world.token(&key, &[]).await, second);
    }
    world.server.clock.advance("35s".parse().unwrap());
    unavailable(&world.ask(&key, &[]).await);
    provider.run().await;
    world.server.clock.advance("31s".parse().unwrap());
    let third = world.token(&key, &[]).await;
    assert!(third != second && third != first);
}

/// E14.
async fn however_many_ask_the_provider_is_asked_once(home: Home) {
    let provider = provider().await;
    let (world, key) = world(&home, &provider.issuer(), &[]).await;
    let other = world.issue(&["invoice:write"], json!({})).await;
    let other = text(&other, "/api_key");
    let asked = (0..500).map(|n| {
        let key = if n % 2 == 0 { &key } else { &other };
        patiently(&world, key)
    });
    let tokens: HashSet<String> = join_all(asked).await.into_iter().collect();
    assert_eq!(tokens.len(), 1);
    assert_eq!(provider.issued().len(), 1);
}

async fn no_key_drains_the_provider_by_the_parts_of_its_scopes(home: Home) {
    const NAMES: [&str; 6] = ["p0", "p1", "p2", "p3", "p4", "p5"];
    let provider = Provider::start(json!({
        "jwks": [provider_key("k1")],
        "clients": [{"client_id": CLIENT_ID, "client_secret": PROVIDER_SECRET}],
        "resources": {RESOURCE: NAMES.join(" ")},
    }))
    .await;
    let setting = upstreams(&provider.issuer(), &["default"]);
    let world = World::with(&home, &[("UPSTREAMS", &setting)]).await;
    let scopes: Vec<Value> = NAMES.iter().map(|name| json!({"name": name})).collect();
    let upstream = json!({"provider": "company", "resource": RESOURCE});
    patch(
        &world.owner,
        json!({"scopes": scopes, "upstream": upstream}),
    )
    .await;
    let key = text(&world.issue(&NAMES, json!({})).await, "/api_key");
    let other = text(&world.issue(&NAMES, json!({})).await, "/api_key");
    let part = |bits: usize| {
        let held = (0..NAMES.len()).filter(|n| bits >> n & 1 == 1);
        held.map(|n| NAMES[n]).collect::<Vec<_>>().join(" ")
    };
    let began = Clock::System.monotonic();
    let (mut got, mut refused) = (Vec::new(), Vec::new());
    for bits in 1..64 {
        let scope = part(bits);
        let answer = world.ask(&key, &[("scope", &scope)]).await;
        if answer.status == 200 {
            let body = answer.expect(200);
            assert_eq!(words(&body["scope"]), words(&json!(scope)));
            got.push((scope, text(&body, "/access_token")));
            continue;
        }
        assert_eq!(answer.headers["retry-after"], "6", "{answer}");
        assert_eq!(answer.expect(429)["error"], "rate_limited");
        refused.push(scope);
    }
    let later = usize::try_from(began.elapsed().as_secs() / 6).unwrap() + 1;
    assert!((20..=20 + later).contains(&got.len()), "{}", got.len());
    assert_eq!(provider.issued().len(), got.len());
    // What it got it gets again, and others are not held up: by what they ask for a part is there for all.
    for (scope, token) in &got {
        assert_eq!(world.token(&key, &[("scope", scope)]).await, *token);
    }
    let scope = refused.last().expect("some are refused");
    let token = world.token(&other, &[("scope", scope)]).await;
    assert_eq!(world.token(&key, &[("scope", scope)]).await, token);
    let scope = &refused[0];
    until(Duration::from_secs(20), "it may ask again", async || {
        world.ask(&key, &[("scope", scope)]).await.status == 200
    })
    .await;
}

/// E14.
async fn tenants_and_services_share_no_token(home: Home) {
    let provider = provider().await;
    let setting = upstreams(&provider.issuer(), &["default", "other"]);
    let world = World::with(&home, &[("UPSTREAMS", &setting)]).await;
    let mut tokens = HashSet::new();
    for tenant in ["other", "stranger"] {
        world
            .owner
            .create("/v1/tenants", json!({"slug": tenant}))
            .await;
    }
    for (tenant, service) in [("default", "a"), ("default", "b"), ("other", "a")] {
        let owner = world.owner.within(tenant);
        let new = json!({"slug": service, "upstream": upstream()});
        owner.create("/v1/services", new).await;
        let consumer = format!("of-{service}");
        owner
            .create("/v1/consumers", json!({"slug": consumer}))
            .await;
        let grants = json!([{"service": service, "scopes": ["invoice:read"]}]);
        let key = json!({"name": "worker", "consumer": consumer, "grants": grants});
        let key = text(&owner.create("/v1/keys", key).await, "/api_key");
        tokens.insert(world.token(&key, &[]).await);
        tokens.insert(world.token(&key, &[]).await);
    }
    assert_eq!((tokens.len(), provider.issued().len()), (3, 3));
    let stranger = world.owner.within("stranger").post("/v1/services");
    let stranger = stranger.json(json!({"slug": "a", "upstream": upstream()}));
    let refused = stranger.send().await;
    assert_eq!(
        (refused.status, refused.code()),
        (400, "invalid_request"),
        "{refused}"
    );
}

async fn nodes_share_tokens_that_redis_cannot_read(home: Home) {
    let mut provider = provider().await;
    let redis = OwnRedis::start();
    let url = redis.url();
    let (world, key) = world(&home, &provider.issuer(), &[("REDIS__URL", &url)]).await;
    let setting = upstreams(&provider.issuer(), &["default"]);
    let settings = [("UPSTREAMS", setting.as_str()), ("REDIS__URL", &url)];
    let second = World {
        server: home.serve_with(&settings).await,
        owner: world.owner.clone(),
    };
    let both = (0..100).map(|n| if n % 2 == 0 { &world } else { &second });
    let tokens = join_all(both.map(|node| patiently(node, &key))).await;
    let tokens: HashSet<String> = tokens.into_iter().collect();
    assert_eq!((tokens.len(), provider.issued().len()), (1, 1));
    let token = tokens.into_iter().next().unwrap();

    // One that starts later needs no provider.
    provider.kill();
    let third = World {
        server: home.serve_with(&settings).await,
        owner: world.owner.clone(),
    };
    assert_eq!(third.token(&key, &[]).await, token);

    let link = link(&url);
    let keys: Vec<String> = link
        .query(redis::cmd("KEYS").arg("*upstream*"))
        .await
        .unwrap();
    let mut kept = None;
    for name in keys {
        let value: Vec<u8> = link.query(redis::cmd("GET").arg(&name)).await.unwrap();
        for part in token.split('.') {
            let found = value
                .windows(part.len())
                .any(|window| window == part.as_bytes());
            assert!(!found, "the token is in Redis");
        }
        if value.len() > token.len() {
            kept = Some((name, value));
        }
    }
    // What somebody else wrote there is not believed.
    let (name, mut value) = kept.expect("the token is there, encrypted");
    let last = value.last_mut().unwrap();
    *last ^= 1;
    let _set: String = link
        .query(redis::cmd("SET").arg(&name).arg(value))
        .await
        .unwrap();
    let fourth = World {
        server: home.serve_with(&settings).await,
        owner: world.owner.clone(),
    };
    let began = Clock::System.monotonic();
    unavailable(&fourth.ask(&key, &[]).await);
    assert!(began.elapsed() < WAIT_MAX);
}

/// E15.
async fn a_provider_that_fails_costs_two_seconds_at_most_and_then_nothing(home: Home) {
    const METADATA: &str = "/.well-known/oauth-authorization-server";
    let provider = IdentityProvider::start().await;
    let issuer = provider.url("");
    let (world, key) = world(&home, &issuer, &[]).await;
    let metadata = json!({"issuer": issuer, "token_endpoint": provider.url("/token")});
    let good = json!({"access_token": "hush", "token_type": "Bearer", "expires_in": 600});
    let with = |member: &str, value: Value| {
        let mut answer = good.clone();
        answer[member] = value;
        Says::Body(answer.to_string())
    };
    let evil = json!({"issuer": "https://evil.example", "token_endpoint": provider.url("/token")});
    let away = json!({"issuer": issuer, "token_endpoint": "file:///etc/passwd"});
    for (at, answer) in [
        (METADATA, Says::Hang),
        (METADATA, Says::Body(evil.to_string())),
        (METADATA, Says::Body(away.to_string())),
        (METADATA, Says::Redirect("/elsewhere".to_owned())),
        ("/token", Says::Hang),
        ("/token", Says::Endless),
        ("/token", Says::Status(500)),
        ("/token", Says::Status(302)),
        ("/token", Says::Redirect("/elsewhere".to_owned())),
        ("/token", Says::Body("<html>hush</html>".to_owned())),
        ("/token", with("token_type", json!("mac"))),
        ("/token", with("expires_in", Value::Null)),
        ("/token", with("access_token", json!("hu\r\nsh"))),
    ] {
        let what = format!("{at} {answer:?}");
        // Long enough for whatever was before.
        world.server.clock.advance("31s".parse().unwrap());
        provider.answer(METADATA, Says::Body(metadata.to_string()));
        provider.answer(at, answer);
        let before = (provider.asked(METADATA), provider.asked("/token"));
        let began = Clock::System.monotonic();
        let asked = (0..20).map(|_| world.ask(&key, &[]));
        for answer in join_all(asked).await {
            unavailable(&answer);
        }
        assert!(began.elapsed() < WAIT_MAX, "{what}: {:?}", began.elapsed());
        // What is under way may still go on for a moment; from then on nobody comes.
        let began = Clock::System.monotonic();
        unavailable(&world.ask(&key, &[]).await);
        assert!(began.elapsed() < WAIT_MAX, "{what}");
        let after = (provider.asked(METADATA), provider.asked("/token"));
        assert!(
            after.0 <= before.0 + 1 && after.1 <= before.1 + 1,
            "{what}: {before:?} {after:?}"
        );
    }
    assert_eq!(provider.asked("/elsewhere"), 0, "no redirect is followed");
}

async fn what_cannot_be_an_upstream_is_refused(home: Home) {
    let (world, _) = world(&home, "http://127.0.0.1:1", &[]).await;
    let service = async |upstream: Value| {
        let request = world
            .owner
            .request("PATCH".parse().unwrap(), "/v1/services/invoicing");
        let answer = request.json(json!({ "upstream": upstream })).send().await;
        (answer.status, text(&answer.body, "/errors/0/pointer"))
    };
    for (bad, pointer) in [
        (json!({"provider": "nowhere"}), "/upstream/provider"),
        (json!({"audience": ""}), "/upstream/audience"),
        (json!({"resource": "ledger"}), "/upstream/resource"),
        (json!({"scopes": {"a": "b  c"}}), "/upstream/scopes"),
        (
            json!({"issuer": "https://evil.example"}),
            "/upstream/issuer",
        ),
        (
            json!({"client_secret_file": "/etc/passwd"}),
            "/upstream/client_secret_file",
        ),
    ] {
        assert_eq!(
            service(bad.clone()).await,
            (400, pointer.to_owned()),
            "{bad}"
        );
    }
    let shown = world
        .owner
        .get("/v1/services/invoicing")
        .send()
        .await
        .expect(200);
    let mut expected = upstream();
    expected["audience"] = Value::Null;
    assert_eq!(shown["upstream"], expected);
    let first = json!({"slug": "first", "upstream": {"resource": RESOURCE}});
    let refused = world.owner.post("/v1/services").json(first).send().await;
    assert_eq!(refused.status, 400, "{refused}");
}
