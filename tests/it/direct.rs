//! What the edge answers from memory is what the ordinary way answers, to the byte.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::redis::OwnRedis;
use crate::support::{Answer, Backend, Client, Home, Server, both, run, text};

both!(
    an_answer_from_the_edge_is_that_of_the_ordinary_way,
    what_the_edge_cannot_answer_alone_takes_the_ordinary_way,
    a_caller_that_was_met_before_is_judged_anew,
    a_key_that_was_answered_before_is_judged_and_told_anew,
    a_key_that_was_answered_is_unknown_to_callers_of_another_tenant,
);

/// It means nothing, but that the edge cannot know.
const ODD: &str = "x-odd";

struct World {
    _server: Server,
    owner: Client,
    caller: Client,
    /// By what is special about them.
    keys: Vec<(&'static str, String)>,
}

impl World {
    async fn new(home: &Home) -> Self {
        Self::with(home, &[]).await
    }

    async fn with(home: &Home, settings: &[(&str, &str)]) -> Self {
        let server = home.serve_with(settings).await;
        let owner = server.owner();
        let scopes = json!([{"name": "invoice:read"}, {"name": "invoice:send"}]);
        for slug in ["invoicing", "orders", "closed"] {
            let service = json!({"slug": slug, "scopes": scopes});
            owner.create("/v1/services", service).await;
        }
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        let gateway = json!({
            "name": "gateway", "consumer": "acme", "ttl": "20d",
            "grants": [{"service": "keystead", "scopes": ["verify"]}],
        });
        let gateway = owner.create("/v1/keys", gateway).await;
        let mut this = Self {
            caller: server.client().with_key(&text(&gateway, "/api_key")),
            _server: server,
            owner,
            keys: Vec::new(),
        };
        let limit = |n: u32| json!({"rate_limits": [{"name": "few", "limit": n, "period": "1h"}]});
        this.issue(
            "plain",
            json!({"metadata": {"plan": "é\"gold"}, "tags": ["a"]}),
        )
        .await;
        this.issue("of one place", json!({"allowed_ips": ["203.0.113.0/24"]}))
            .await;
        this.issue("limited", limit(1000)).await;
        this.issue("used up", limit(1)).await;
        this.issue(
            "counted",
            json!({"quota": {"limit": 1000, "period": "month"}}),
        )
        .await;
        for (name, action) in [("revoked", "revoke"), ("disabled", "disable")] {
            let id = this.issue(name, json!({})).await;
            act(&this.owner, &format!("/v1/keys/{id}/{action}")).await;
        }
        act(&this.owner, "/v1/services/closed/disable").await;
        this
    }

    /// A key with what is special about it; answers its id.
    async fn issue(&mut self, name: &'static str, more: Value) -> String {
        let mut new = json!({
            "name": name, "consumer": "acme",
            "grants": [
                {"service": "invoicing", "scopes": ["invoice:read"]},
                {"service": "closed", "scopes": ["invoice:read"]},
            ],
        });
        for (member, value) in more.as_object().unwrap() {
            new[member] = value.clone();
        }
        let made = self.owner.create("/v1/keys", new).await;
        self.keys.push((name, text(&made, "/api_key")));
        text(&made, "/key/id")
    }

    async fn answered_directly(&self) -> u64 {
        let metrics = self.caller.anonymous().get("/metrics").send().await;
        let line = metrics
            .text
            .lines()
            .find_map(|line| line.strip_prefix("keystead_answered_directly_total "))
            .unwrap()
            .to_owned();
        line.parse().unwrap()
    }
}

async fn act(client: &Client, path: &str) {
    client.post(path).json(json!({})).send().await.expect(200);
}

/// The same request by both ways, and how many of the two the edge answered.
async fn ask(world: &World, body: &str) -> (Answer, Answer, u64) {
    let request = || {
        world
            .caller
            .post("/v1/verify")
            .header("x-request-id", "the-same")
            .json_text(body.to_owned())
    };
    let before = world.answered_directly().await;
    let edge = request().send().await;
    let ordinary = request().header(ODD, "1").send().await;
    (edge, ordinary, world.answered_directly().await - before)
}

/// Counters go down with each request and clocks go on.
fn still(answer: &Answer) -> String {
    let mut body = answer.body.clone();
    for limit in body["rate_limits"].as_array_mut().into_iter().flatten() {
        limit["remaining"] = json!("some");
        limit["reset_after_ms"] = json!("some");
    }
    for counted in ["/quota/remaining", "/retry_after_ms"] {
        if let Some(value) = body.pointer_mut(counted) {
            *value = json!("some");
        }
    }
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| *name != "date")
        .map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()))
        .filter(|line| !line.starts_with("content-length"))
        .collect();
    headers.sort();
    format!("{} {body} {headers:?}", answer.status)
}

#[test]
fn so_it_is_where_counters_are_shared() {
    run(Backend::Postgres, async |home: Home| {
        let redis = OwnRedis::start();
        let world = World::with(&home, &[("REDIS__URL", &redis.url())]).await;
        expect_the_same(&world).await;
        expect_the_ordinary_way(&world).await;
    });
}

async fn an_answer_from_the_edge_is_that_of_the_ordinary_way(home: Home) {
    expect_the_same(&World::new(&home).await).await;
}

async fn expect_the_same(world: &World) {
    let mut strangers = vec![
        ("malformed", "ks_live_no".to_owned()),
        ("none", String::new()),
    ];
    let (_, plain) = &world.keys[0];
    let other = if plain.ends_with('0') { "1" } else { "0" };
    strangers.push(("mistyped", format!("{}{other}", &plain[..plain.len() - 1])));
    let mut codes = std::collections::BTreeSet::new();
    for (name, key) in world.keys.iter().chain(&strangers) {
        for asked in [
            json!({"service": "invoicing"}),
            json!({"service": "invoicing", "required_scopes": ["invoice:read"]}),
            json!({"service": "invoicing", "required_scopes": ["invoice:send"]}),
            json!({"service": "invoicing", "any_scopes": ["invoice:*"], "ip": "203.0.113.7"}),
            json!({"service": "invoicing", "ip": "198.51.100.1", "cost": 0}),
            json!({"service": "invoicing", "environment": "test"}),
            json!({"service": "orders"}),
            json!({"service": "closed"}),
            json!({"service": "nowhere"}),
        ] {
            let mut body = asked.clone();
            body["api_key"] = json!(key);
            let body = body.to_string();
            // The first use of anything is for the ordinary way.
            let (first, second, _) = ask(world, &body).await;
            let (edge, ordinary, direct) = ask(world, &body).await;
            assert_eq!(direct, 1, "{name} {asked}: {}", edge.body);
            assert_eq!(still(&edge), still(&ordinary), "{name} {asked}");
            if *name != "used up" {
                assert_eq!(still(&first), still(&second), "{name} {asked}");
            }
            codes.insert(edge.code().to_owned());
        }
    }
    assert_eq!(
        codes.into_iter().collect::<Vec<_>>(),
        [
            "disabled",
            "insufficient_scope",
            "ip_not_allowed",
            "malformed",
            "missing",
            "rate_limited",
            "revoked",
            "valid",
            "wrong_environment",
            "wrong_service"
        ]
    );
}

async fn what_the_edge_cannot_answer_alone_takes_the_ordinary_way(home: Home) {
    expect_the_ordinary_way(&World::new(&home).await).await;
}

async fn expect_the_ordinary_way(world: &World) {
    let (_, key) = &world.keys[0];
    let good = json!({"api_key": key, "service": "invoicing"}).to_string();
    ask(world, &good).await;
    assert_eq!(ask(world, &good).await.2, 1);
    for body in [
        "{",
        r#"{"api_key": "a", "api_key": "b"}"#,
        r#"{"api_key": "a", "service": "invoicing", "odd": 1}"#,
        r#"{"api_key": "a", "service": "invoicing", "cost": -1}"#,
        r#"{"api_key": "a", "service": "invoicing", "any_scopes": []}"#,
        r#"{"api_key": "a"}"#,
    ] {
        let (edge, ordinary, direct) = ask(world, body).await;
        assert_eq!(direct, 0, "{body}");
        assert_eq!(edge.status, 400, "{body}: {}", edge.body);
        assert_eq!(edge.body, ordinary.body, "{body}");
    }
    // Nothing is charged for a cost that can never be.
    let (_, limited) = &world.keys[2];
    let dear = json!({"api_key": limited, "service": "invoicing", "cost": 5000}).to_string();
    ask(world, &dear).await;
    let (edge, ordinary, direct) = ask(world, &dear).await;
    assert_eq!((direct, edge.status), (0, 400), "{}", edge.body);
    assert_eq!(edge.body, ordinary.body);
    // Neither is a caller that is no good, or has limits of its own.
    let before = world.answered_directly().await;
    let verify = |client: Client| {
        let good = good.clone();
        async move { client.post("/v1/verify").json_text(good).send().await }
    };
    let stranger = world.caller.with_key("ks_live_no");
    assert_eq!(verify(stranger).await.code(), "invalid_credential");
    let no_caller = world.caller.with_key(key);
    assert_eq!(verify(no_caller).await.code(), "invalid_credential");
    let limited = json!({
        "name": "limited gateway", "consumer": "acme",
        "rate_limits": [{"name": "calls", "limit": 3, "period": "1h"}],
        "grants": [{"service": "keystead", "scopes": ["verify:invoicing"]}],
    });
    let limited = world.owner.create("/v1/keys", limited).await;
    let limited = world.caller.with_key(&text(&limited, "/api_key"));
    for _ in 0..3 {
        assert_eq!(verify(limited.clone()).await.status, 200);
    }
    assert_eq!(verify(limited).await.code(), "rate_limited");
    assert_eq!(world.answered_directly().await, before);
}

/// Its worker remembers a caller whole, with its tenant, its consumer and its rights.
async fn a_caller_that_was_met_before_is_judged_anew(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = &world.keys[0];
    let good = json!({"api_key": key, "service": "invoicing"}).to_string();
    let narrowed = json!({"grants": [{"service": "keystead", "scopes": ["verify:orders"]}]});
    let elsewhere = json!({"allowed_ips": ["203.0.113.0/24"]});
    let limited = json!({"rate_limits": [{"name": "calls", "limit": 1, "period": "1h"}]});
    for (n, (method, what, body, code)) in [
        (Method::POST, "keys/:key/revoke", json!({}), "revoked"),
        (Method::POST, "keys/:key/disable", json!({}), "disabled"),
        (
            Method::POST,
            "consumers/:consumer/disable",
            json!({}),
            "disabled",
        ),
        (Method::PATCH, "keys/:key", narrowed, "forbidden"),
        (Method::PATCH, "keys/:key", elsewhere, "invalid_credential"),
        (Method::PATCH, "keys/:key", limited, "rate_limited"),
        (
            Method::POST,
            "keys/:key/rotate",
            json!({"overlap": "0s"}),
            "expired",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let consumer = json!({"slug": format!("of-{n}")});
        let consumer = world.owner.create("/v1/consumers", consumer).await;
        let caller = json!({
            "name": "caller", "consumer": format!("of-{n}"), "ttl": "20d",
            "grants": [{"service": "keystead", "scopes": ["verify"]}],
        });
        let caller = world.owner.create("/v1/keys", caller).await;
        let client = world.caller.with_key(&text(&caller, "/api_key"));
        let verify = async || {
            client
                .post("/v1/verify")
                .json_text(good.clone())
                .send()
                .await
        };
        let before = world.answered_directly().await;
        for _ in 0..20 {
            assert_eq!(verify().await.code(), "valid", "{what}");
        }
        // Each worker meets it once.
        assert!(world.answered_directly().await >= before + 10, "{what}");
        let path = what
            .replace(":key", &text(&caller, "/key/id"))
            .replace(":consumer", &text(&consumer, "/id"));
        let change = world.owner.request(method, &format!("/v1/{path}"));
        let changed = change.json(body).send().await;
        assert!(changed.status < 300, "{what}: {}", changed.body);
        let told: Vec<String> = [verify().await, verify().await]
            .iter()
            .map(|answer| answer.code().to_owned())
            .collect();
        let first = if code == "rate_limited" {
            "valid"
        } else {
            code
        };
        assert_eq!(told, [first, code], "{what}");
    }
}

/// Whatever is remembered of it and its parents.
async fn a_key_that_was_answered_before_is_judged_and_told_anew(home: Home) {
    let world = World::new(&home).await;
    let body = |name: &str, value: Value| json!({name: value});
    let scopes = json!([{"service": "orders", "scopes": ["invoice:send"]}]);
    let refused = |code: &'static str| move |answer: &Answer| answer.code() == code;
    let tells = |at: &'static str, value: Value| {
        move |answer: &Answer| answer.code() == "valid" && answer.body.pointer(at) == Some(&value)
    };
    type Told = Box<dyn Fn(&Answer) -> bool>;
    let cases: [(Method, &str, Value, Told); 10] = [
        (
            Method::POST,
            "keys/:key/revoke",
            json!({}),
            Box::new(refused("revoked")),
        ),
        (
            Method::POST,
            "keys/:key/disable",
            json!({}),
            Box::new(refused("disabled")),
        ),
        (
            Method::POST,
            "consumers/:consumer/disable",
            json!({}),
            Box::new(refused("disabled")),
        ),
        (
            Method::POST,
            "services/:service/disable",
            json!({}),
            Box::new(refused("wrong_service")),
        ),
        (
            Method::POST,
            "keys/:key/rotate",
            json!({"overlap": "0s"}),
            Box::new(refused("expired")),
        ),
        (
            Method::PATCH,
            "keys/:key",
            body("grants", scopes),
            Box::new(refused("wrong_service")),
        ),
        (
            Method::PATCH,
            "keys/:key",
            body("name", json!("another")),
            Box::new(tells("/name", json!("another"))),
        ),
        (
            Method::PATCH,
            "consumers/:consumer",
            body("name", json!("ACME")),
            Box::new(tells("/consumer/name", json!("ACME"))),
        ),
        (
            Method::PATCH,
            "consumers/:consumer",
            body("metadata", json!({"plan": "gold"})),
            Box::new(tells("/consumer/metadata/plan", json!("gold"))),
        ),
        (
            Method::PATCH,
            "services/:service",
            json!({"rate_limits": [{"name": "all", "limit": 700, "period": "1h"}]}),
            Box::new(tells("/rate_limits/0/limit", json!(700))),
        ),
    ];
    for (n, (method, path, change, is_told)) in cases.into_iter().enumerate() {
        let what = format!("{method} {path} {change}");
        let of = format!("of-{n}");
        let consumer = world
            .owner
            .create("/v1/consumers", body("slug", json!(of)))
            .await;
        let service = json!({"slug": of, "scopes": [{"name": "invoice:read"}]});
        let service = world.owner.create("/v1/services", service).await;
        let key = json!({
            "name": "key", "consumer": of, "grants": [{"service": of, "scopes": ["invoice:read"]}],
        });
        let key = world.owner.create("/v1/keys", key).await;
        let question = json!({"api_key": key["api_key"], "service": of}).to_string();
        let verify = async || {
            let asked = world.caller.post("/v1/verify").json_text(question.clone());
            asked.send().await
        };
        let before = world.answered_directly().await;
        for _ in 0..20 {
            assert_eq!(verify().await.code(), "valid", "{what}");
        }
        assert!(world.answered_directly().await >= before + 10, "{what}");
        let path = path
            .replace(":key", &text(&key, "/key/id"))
            .replace(":service", &text(&service, "/id"))
            .replace(":consumer", &text(&consumer, "/id"));
        let changed = world
            .owner
            .request(method, &format!("/v1/{path}"))
            .json(change);
        let changed = changed.send().await;
        assert!(changed.status < 300, "{what}: {changed}");
        for _ in 0..20 {
            let answer = verify().await;
            assert!(is_told(&answer), "{what}: {answer}");
        }
    }
}

async fn a_key_that_was_answered_is_unknown_to_callers_of_another_tenant(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = &world.keys[0];
    let good = json!({"api_key": key, "service": "invoicing"}).to_string();
    let tenant = json!({"slug": "other"});
    world.owner.create("/v1/tenants", tenant).await;
    let inside = |path: &str, body: Value| {
        let post = world.owner.post(path).header("x-keystead-tenant", "other");
        post.json(body).send()
    };
    inside("/v1/services", json!({"slug": "invoicing"}))
        .await
        .expect(201);
    inside("/v1/consumers", json!({"slug": "theirs"}))
        .await
        .expect(201);
    let caller = json!({
        "name": "caller", "consumer": "theirs", "ttl": "20d",
        "grants": [{"service": "keystead", "scopes": ["verify"]}],
    });
    let caller = inside("/v1/keys", caller).await.expect(201);
    let theirs = world.caller.with_key(&text(&caller, "/api_key"));
    for _ in 0..20 {
        for (client, code) in [(&world.caller, "valid"), (&theirs, "unknown")] {
            let asked = client.post("/v1/verify").json_text(good.clone());
            assert_eq!(asked.send().await.code(), code);
        }
    }
}
