//! The keys as they stood at an instant are rebuilt from the audit trail, whatever happened since.

use std::collections::BTreeMap;

use keystead::audit::Chains;
use keystead::text::Slug;
use keystead::time::{Span, Timestamp};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::text;
use crate::support::{Answer, Client, Home, Server, both, setting};

both!(
    the_keys_of_any_instant_are_rebuilt_from_the_trail,
    keys_that_no_line_proves_any_more_are_told_and_marked,
    the_keys_of_now_are_told_with_their_last_use,
    an_export_tells_what_its_caller_may_see_and_no_more,
    an_instant_that_cannot_be_told_is_refused,
);

/// What happens to a key, of the keys that there are the one with this number.
#[derive(Clone, Debug)]
enum Step {
    Issue { service: usize, hours: u64 },
    Update { key: usize, what: usize },
    Rotate { key: usize },
    End { key: usize, verb: usize },
    EndSecret { key: usize },
    MoveSecret { key: usize },
    EndMany { service: usize },
    DeleteConsumer,
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = 0..40_usize;
    let step = prop_oneof![
        6 => (0..2_usize, 1..30_u64).prop_map(|(service, hours)| Step::Issue { service, hours }),
        4 => (key.clone(), 0..6_usize).prop_map(|(key, what)| Step::Update { key, what }),
        3 => key.clone().prop_map(|key| Step::Rotate { key }),
        4 => (key.clone(), 0..3_usize).prop_map(|(key, verb)| Step::End { key, verb }),
        1 => key.clone().prop_map(|key| Step::EndSecret { key }),
        1 => key.prop_map(|key| Step::MoveSecret { key }),
        1 => (0..2_usize).prop_map(|service| Step::EndMany { service }),
        1 => Just(Step::DeleteConsumer),
        4 => Just(Step::Look),
    ];
    prop::collection::vec(step, 40..60)
}

struct World {
    server: Server,
    owner: Client,
    /// With the secret that was newest at the creation.
    keys: Vec<(String, String)>,
    consumers: usize,
    seen: Vec<(Timestamp, BTreeMap<String, Value>)>,
}

const SERVICES: [&str; 2] = ["billing", "ledger"];

impl World {
    async fn new(home: &Home) -> Self {
        let server = home.serve().await;
        let owner = server.owner();
        for slug in SERVICES {
            let policy = json!({"slug": slug, "key_policy": {"allow_no_expiry": true}});
            owner.create("/v1/services", policy).await;
        }
        let mut world = Self {
            server,
            owner,
            keys: Vec::new(),
            consumers: 0,
            seen: Vec::new(),
        };
        world.new_consumer().await;
        world
    }

    async fn new_consumer(&mut self) {
        self.consumers += 1;
        let body = json!({"slug": self.consumer()});
        self.owner.create("/v1/consumers", body).await;
    }

    fn consumer(&self) -> String {
        format!("consumer-{}", self.consumers)
    }

    async fn issue(&mut self, service: usize, hours: u64) {
        let mut body = json!({
            "name": format!("key {}", self.keys.len()), "consumer": self.consumer(),
            "grants": [{"service": SERVICES[service], "scopes": ["a:read"]}],
            "ttl": format!("{hours}h"), "tags": ["t"], "metadata": {"n": 1},
        });
        if hours.is_multiple_of(5) {
            body.as_object_mut().unwrap().remove("ttl");
            body["expires_at"] = Value::Null;
        }
        if hours.is_multiple_of(3) {
            let begins = self.server.clock.now().plus(Span::minutes(30));
            body["not_before"] = json!(begins);
        }
        let issued = self.owner.create("/v1/keys", body).await;
        self.keys
            .push((text(&issued, "/key/id"), text(&issued, "/key/secrets/0/id")));
    }

    fn key(&self, number: usize) -> Option<&(String, String)> {
        self.keys.get(number % self.keys.len().max(1))
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> Answer {
        let request = self.owner.request(method.parse().unwrap(), path);
        let answer = request.json(body).send().await;
        // What the state of a key does not allow is no step.
        let is_sane = answer.status < 300 || answer.status == 409 || answer.status == 400;
        assert!(is_sane, "{method} {path}: {answer}");
        answer
    }

    async fn take(&mut self, step: &Step) {
        match step {
            Step::Issue { service, hours } => self.issue(*service, *hours).await,
            Step::Update { key, what } => {
                let Some((id, _)) = self.key(*key).cloned() else {
                    return;
                };
                let change = match what {
                    0 => json!({"name": format!("renamed at {}", self.server.clock.now())}),
                    1 => json!({"grants": [{"service": "ledger", "scopes": ["b", "c"]}]}),
                    2 => json!({"tags": ["x", "y"], "metadata": {"n": null, "m": [1, 2.5]}}),
                    3 => json!({"expires_at": null}),
                    4 => json!({"ttl": "2h", "allowed_ips": ["192.0.2.0/24"]}),
                    _ => json!({"quota": {"limit": 5, "period": "day"}}),
                };
                self.ask("PATCH", &format!("/v1/keys/{id}"), change).await;
            }
            Step::Rotate { key } => {
                if let Some((id, _)) = self.key(*key) {
                    let path = format!("/v1/keys/{id}/rotate");
                    self.ask("POST", &path, json!({"overlap": "1h"})).await;
                }
            }
            Step::End { key, verb } => {
                if let Some((id, _)) = self.key(*key) {
                    let verb = ["revoke", "disable", "enable"][*verb];
                    let path = format!("/v1/keys/{id}/{verb}");
                    self.ask("POST", &path, json!({"reason": "because"})).await;
                }
            }
            Step::EndSecret { key } => {
                if let Some((id, secret)) = self.key(*key) {
                    let path = format!("/v1/keys/{id}/secrets/{secret}/revoke");
                    self.ask("POST", &path, json!({})).await;
                }
            }
            Step::MoveSecret { key } => {
                if let Some((id, secret)) = self.key(*key) {
                    let path = format!("/v1/keys/{id}/secrets/{secret}");
                    let until = self.server.clock.now().plus(Span::minutes(20));
                    self.ask("PATCH", &path, json!({"valid_until": until}))
                        .await;
                }
            }
            Step::EndMany { service } => {
                let mut body = json!({"service": SERVICES[*service], "dry_run": true});
                body["action"] = json!("disable");
                let matched = self.ask("POST", "/v1/keys/revoke", body.clone()).await;
                body["dry_run"] = json!(false);
                body["expected"] = matched.body["matched"].clone();
                self.ask("POST", "/v1/keys/revoke", body).await;
            }
            Step::DeleteConsumer => {
                let path = format!("/v1/consumers/{}?revoke_keys=true", self.consumer());
                self.ask("DELETE", &path, json!({})).await;
                self.new_consumer().await;
            }
            Step::Look => {
                let keys = listed(&self.owner).await;
                self.seen.push((self.server.clock.now(), keys));
            }
        }
        self.server.clock.advance(Span::minutes(7));
    }

    async fn exported(&self, as_of: Timestamp) -> (BTreeMap<String, Value>, Answer) {
        let told = self
            .owner
            .get(&format!("/v1/keys/export?as_of={as_of}"))
            .send()
            .await;
        assert_eq!(told.status, 200, "{told}");
        (lines(&told), told)
    }
}

/// What the trail does not tell.
fn without_uses(mut key: Value) -> Value {
    key["last_used"] = Value::Null;
    for secret in key["secrets"].as_array_mut().unwrap() {
        secret["last_used_at"] = Value::Null;
    }
    key
}

async fn listed(client: &Client) -> BTreeMap<String, Value> {
    let keys = client.all("/v1/keys", 200).await.into_iter();
    keys.map(|key| (text(&key, "/id"), without_uses(key)))
        .collect()
}

/// The lines of a file by the ids of their keys, each once.
fn lines(told: &Answer) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    for line in told.text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let id = text(&line, "/key/id");
        assert!(keys.insert(id, line).is_none(), "twice: {told}");
    }
    keys
}

fn keys_of(lines: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let keys = lines.iter();
    keys.map(|(id, line)| (id.clone(), line["key"].clone()))
        .collect()
}

async fn the_keys_of_any_instant_are_rebuilt_from_the_trail(home: Home) {
    let mut world = World::new(&home).await;
    let rounds = if setting("KEYSTEAD_TEST_LONG").is_some() {
        12
    } else {
        2
    };
    let mut runner = TestRunner::new(Config::default());
    for _ in 0..rounds {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        for hours in [7, 12, 25] {
            world.issue(0, hours).await;
        }
        for step in steps.iter().chain([&Step::Look]) {
            world.take(step).await;
        }
        let mut changes = 0;
        for (as_of, keys) in &world.seen {
            let (lines, told) = world.exported(*as_of).await;
            let rebuilt = keys_of(&lines);
            assert_eq!(&rebuilt, keys, "at {as_of} after {steps:#?}");
            assert!(lines.values().all(|line| line["audit_seq"].is_i64()));
            assert!(!told.headers.contains_key("x-keystead-audit-cut"));
            assert_eq!(told.headers["x-keystead-as-of"], as_of.to_string());
            changes += keys.len();
        }
        assert!(changes >= 4, "{changes}");
    }
}

async fn keys_that_no_line_proves_any_more_are_told_and_marked(home: Home) {
    let mut world = World::new(&home).await;
    for hours in [10, 11, 20, 25] {
        world.issue(0, hours).await;
        world.server.clock.advance(Span::minutes(1));
    }
    let ids: Vec<String> = world.keys.iter().map(|(id, _)| id.clone()).collect();
    // One has no line afterwards, one a line before the instant, two behind it.
    let cut_at = world.server.clock.now();
    world.server.clock.advance(Span::minutes(1));
    let rename = async |id: &str, name: &str| {
        let path = format!("/v1/keys/{id}");
        world.ask("PATCH", &path, json!({"name": name})).await;
        world.server.clock.advance(Span::minutes(1));
    };
    rename(&ids[1], "renamed").await;
    let as_of = world.server.clock.now();
    let expected = listed(&world.owner).await;
    world.server.clock.advance(Span::minutes(1));
    rename(&ids[1], "again").await;
    rename(&ids[2], "later").await;
    let delete = "/v1/consumers/consumer-1?revoke_keys=true";
    world.ask("DELETE", delete, json!({})).await;
    let (whole, _) = world.exported(as_of).await;
    assert_eq!(keys_of(&whole), expected);

    let chains = Chains::All;
    let audit = &world.server.app.audit;
    audit.checkpoint_all(&chains).await.unwrap();
    let system = keystead::audit::Attribution {
        tenant: world
            .server
            .app
            .tenants
            .by_slug(Slug::parse("default").unwrap())
            .await
            .unwrap()
            .unwrap(),
        actor: keystead::audit::Actor::System,
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    };
    audit.cut(&chains, cut_at, &system).await.unwrap();
    let (left, told) = world.exported(as_of).await;
    let header = told.headers["x-keystead-audit-cut"].to_str().unwrap();
    assert!(header.contains("; 20"), "{header}");
    let mut rebuilt = keys_of(&left);
    // When a key was changed last before its consumer was deleted is in no line and no row.
    let mut expected = expected;
    for id in [&ids[0], &ids[3]] {
        rebuilt.get_mut(id).unwrap()["updated_at"] = Value::Null;
        expected.get_mut(id).unwrap()["updated_at"] = Value::Null;
    }
    assert_eq!(rebuilt, expected);
    for (id, line) in &left {
        let is_proved = *id == ids[1];
        assert_eq!(line["audit_seq"].is_i64(), is_proved, "{line}");
    }
    // Now two are ended by lines that say no more than that.
    let now = world.server.clock.now();
    let expected = listed(&world.owner).await;
    let (left, _) = world.exported(now).await;
    assert_eq!(keys_of(&left), expected);
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(left[id]["key"]["status"], "revoked");
        let is_proved = [1, 2].contains(&number);
        assert_eq!(left[id]["audit_seq"].is_i64(), is_proved, "{}", left[id]);
    }
    let before = cut_at.minus(Span::minutes(2));
    let refused = world
        .owner
        .get(&format!("/v1/keys/export?as_of={before}"))
        .send()
        .await;
    assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
    assert!(refused.text.contains("the audit trail begins there"));
}

async fn the_keys_of_now_are_told_with_their_last_use(home: Home) {
    let mut world = World::new(&home).await;
    for hours in [10, 11] {
        world.issue(0, hours).await;
    }
    let issued = json!({
        "name": "used", "consumer": "consumer-1", "grants": [{"service": "billing", "scopes": []}],
    });
    let issued = world.owner.create("/v1/keys", issued).await;
    let ask = json!({"api_key": text(&issued, "/api_key"), "service": "billing"});
    world.owner.post("/v1/verify").json(ask).send().await;
    world.server.app.validation.flush_last_used().await.unwrap();
    let told = world.owner.get("/v1/keys/export").send().await;
    let now = keys_of(&lines(&told));
    let mut listed = BTreeMap::new();
    for key in world.owner.all("/v1/keys", 200).await {
        listed.insert(text(&key, "/id"), key);
    }
    let used = &now[&text(&issued, "/key/id")];
    assert!(used["last_used"].is_string() && used["secrets"][0]["last_used_at"].is_string());
    assert_eq!(used, &listed[&text(&issued, "/key/id")]);
    assert_eq!(now.len(), listed.len());
    let csv = world.owner.get("/v1/keys/export?format=csv").send().await;
    assert_eq!(csv.headers["content-type"], "text/csv; charset=utf-8");
    let mut rows = csv::Reader::from_reader(csv.text.as_bytes());
    assert_eq!(rows.records().count(), now.len());
}

async fn an_export_tells_what_its_caller_may_see_and_no_more(home: Home) {
    let mut world = World::new(&home).await;
    world.issue(0, 10).await;
    world.issue(1, 10).await;
    let body = json!({
        "name": "reader", "consumer": "consumer-1",
        "grants": [{"service": "keystead", "scopes": ["keys:read:ledger"]}],
    });
    let reader = world.owner.create("/v1/keys", body).await;
    let reader = world.owner.with_key(&text(&reader, "/api_key"));
    let told = reader.get("/v1/keys/export").send().await;
    assert_eq!(told.status, 200);
    let seen: Vec<String> = lines(&told).into_keys().collect();
    assert_eq!(seen, [world.keys[1].0.clone()]);
    let events = "/v1/audit/events?action=key.export";
    let events = world.owner.get(events).send().await.expect(200);
    assert_eq!(events["items"].as_array().unwrap().len(), 1);
}

async fn an_instant_that_cannot_be_told_is_refused(home: Home) {
    let world = World::new(&home).await;
    let future = world.server.clock.now().plus(Span::minutes(1));
    for as_of in [
        future.to_string().as_str(),
        "now",
        "",
        "2027-02-30T00:00:00Z",
    ] {
        let path = format!("/v1/keys/export?as_of={as_of}");
        let told = world.owner.get(&path).send().await;
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{told}"
        );
        assert_eq!(told.body["errors"][0]["pointer"], "as_of", "{told}");
    }
    // Before the first line there was nothing.
    let told = world
        .owner
        .get("/v1/keys/export?as_of=2001-01-01T00:00:00Z")
        .send()
        .await;
    assert_eq!((told.status, told.text.as_str()), (200, ""));
}
