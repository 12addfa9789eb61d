//! What nodes tell each other through Redis: one without the database follows, cold keys are served
//! from what others read, and nothing that stands in Redis is believed that was not sealed there.

mod named;
mod propagated;
mod unheard;
mod whole;

use std::time::Duration;

use keystead::cache::History;
use keystead::cache::relay::Relay;
use keystead::cache::seal::Seal;
use keystead::clock::Clock;
use keystead::master::{MasterKey, MasterKeys};
use keystead::redis_link::RedisLink;
use keystead::time::Span;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::support::redis::{OwnRedis, patient_link};
use crate::support::{
    Backend, Client, Fault, Home, MASTER_KEY, Proxy, Server, metric, run, signal, tables, text,
    until,
};

/// What the contract gives a change to reach a node that Redis alone connects.
const SPREADS: Duration = Duration::from_secs(5);

/// `a` reaches database and Redis; both links of `b` can be cut.
struct Nodes {
    redis: OwnRedis,
    a: Server,
    b: Server,
    owner: Client,
    owner_b: Client,
    /// What `owner_b` presents.
    manager: String,
    b_database: Proxy,
    b_redis: Proxy,
}

impl Nodes {
    async fn new(home: &Home, settings_of_b: &[(&str, &str)]) -> Self {
        let redis = OwnRedis::start();
        let url = redis.url();
        let a = home.serve_with(&[("REDIS__URL", &url)]).await;
        let owner = a.owner();
        owner.create_world().await;
        let b_database = Proxy::before(home.database_address()).await;
        let (b_redis, b_redis_url) = redis.behind_proxy().await;
        let b_database_url = home.database_url_at(b_database.address);
        let mut settings = vec![
            ("REDIS__URL", b_redis_url.as_str()),
            ("DATABASE__URL", b_database_url.as_str()),
        ];
        settings.extend(settings_of_b);
        let b = home.serve_with(&settings).await;
        let (_, manager) = owner.issue("managers", "keystead").await;
        let owner_b = b.client().with_key(&manager);
        Self {
            redis,
            a,
            b,
            owner,
            owner_b,
            manager,
            b_database,
            b_redis,
        }
    }

    /// A key's id and plaintext.
    async fn issue(&self) -> (String, String) {
        self.owner.issue("acme", "invoicing").await
    }

    async fn revoke(&self, id: &str) {
        let path = format!("/v1/keys/{id}/revoke");
        self.owner.post(&path).send().await.expect(200);
    }

    /// Cuts `b` off the database, and waits until it has noticed.
    async fn cut_database(&mut self, fault: Fault) {
        self.b_database.set(fault).await;
        until(SPREADS, "the node misses its database", async || {
            self.b.app.reach.is_database_away()
        })
        .await;
    }

    fn link(&self) -> RedisLink {
        patient_link(&self.redis.url(), Duration::from_secs(2))
    }
}

/// The way of this node of the test to those that share the database and [`MASTER_KEY`].
fn relay(link: RedisLink, database: &str, node: &str) -> Relay {
    let master = MasterKeys {
        first: MasterKey::parse(MASTER_KEY).unwrap(),
        others: Vec::new(),
    };
    let history = History::default();
    history.begin(database);
    Relay::new(link, Seal::new(&master), history, node.to_owned())
}

/// The counter of what was asked and could not be decided.
const UNDECIDED: &str = "keystead_decisions_total{outcome=\"unavailable\"}";

/// The outcome, or `unavailable`.
async fn code(client: &Client, key: &str) -> String {
    let body = json!({
        "api_key": key, "service": "invoicing", "required_scopes": ["invoice:read"],
    });
    let answer = client.post("/v1/verify").json(body).try_send().await;
    match answer {
        Some(answer) if answer.status == 200 => text(&answer.expect(200), "/code"),
        _ => "unavailable".to_owned(),
    }
}

/// The outcome, asked again while the machine is too slow for it.
async fn settled(client: &Client, key: &str) -> String {
    let mut last = String::new();
    until(SPREADS, "it is decided", async || {
        last = code(client, key).await;
        last != "unavailable"
    })
    .await;
    last
}

async fn becomes(client: &Client, key: &str, expected: &str) {
    until(SPREADS, expected, async || {
        code(client, key).await == expected
    })
    .await;
}

/// All that stands in Redis by this pattern, with its values.
async fn dump(link: &RedisLink, pattern: &str) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for key in names(link, pattern).await {
        let mut dump = redis::cmd("DUMP");
        dump.arg(&key);
        let value: Option<Vec<u8>> = link.query(&dump).await.unwrap();
        found.extend(value.map(|value| (key, value)));
    }
    found
}

async fn set(link: &RedisLink, key: &str, value: &[u8]) {
    let mut set = redis::cmd("SET");
    set.arg(key).arg(value);
    link.query::<()>(&set).await.unwrap();
}

async fn get(link: &RedisLink, key: &str) -> Vec<u8> {
    let mut get = redis::cmd("GET");
    get.arg(key);
    link.query(&get).await.unwrap()
}

/// What there is in Redis by this pattern.
async fn names(link: &RedisLink, pattern: &str) -> Vec<String> {
    let mut keys = redis::cmd("KEYS");
    keys.arg(pattern);
    link.query(&keys).await.unwrap()
}

/// Lets a row of the table of nodes be that much older.
async fn age(home: &Home, node: &str, span: Span) {
    let statement = format!(
        "UPDATE node SET seen_at = seen_at - {} WHERE {node}",
        span.millis()
    );
    tables::execute_on(home.eyes(), &statement).await;
}

#[test]
fn a_node_without_the_database_learns_of_changes_through_redis() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        for fault in [Fault::Refuse, Fault::Hang] {
            let (id, key) = nodes.issue().await;
            let (_, other) = nodes.issue().await;
            for key in [&key, &other] {
                assert_eq!(settled(&nodes.owner_b, key).await, "valid");
            }
            nodes.cut_database(fault).await;
            assert_eq!(code(&nodes.owner_b, &key).await, "valid", "{fault:?}");
            nodes.revoke(&id).await;
            until(SPREADS, "it is refused", async || {
                code(&nodes.owner_b, &key).await != "valid"
            })
            .await;
            // Somebody who reaches both reads it again: now it is known why.
            assert_eq!(settled(&nodes.owner, &key).await, "revoked");
            becomes(&nodes.owner_b, &key, "revoked").await;
            assert_eq!(code(&nodes.owner_b, &other).await, "valid", "{fault:?}");

            let disable = nodes.owner.post("/v1/consumers/acme/disable");
            disable.send().await.expect(200);
            until(SPREADS, "its consumer is disabled", async || {
                code(&nodes.owner_b, &other).await != "valid"
            })
            .await;
            let enable = nodes.owner.post("/v1/consumers/acme/enable");
            enable.send().await.expect(200);

            nodes.b_database.set(Fault::None).await;
            until(SPREADS, "the database is back", async || {
                !nodes.b.app.reach.is_database_away()
            })
            .await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "revoked");
            assert_eq!(settled(&nodes.owner_b, &other).await, "valid");
            let (_, new) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &new).await, "valid");
        }
    });
}

#[test]
fn a_cold_key_is_served_from_redis_while_the_database_is_away() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        let ((_, key), (gone_id, gone)) = (nodes.issue().await, nodes.issue().await);
        let stranger = nodes.issue().await.1;
        // The caller is warm on b; the keys, their consumer and their service are not.
        nodes.owner_b.get("/v1/tenants").send().await.expect(200);
        for key in [&key, &gone] {
            assert_eq!(settled(&nodes.owner, key).await, "valid");
        }
        nodes.revoke(&gone_id).await;
        let link = nodes.link();
        until(SPREADS, "they stand in Redis", async || {
            names(&link, "keystead:*:key:*").await.len() >= 2
                && names(&link, "keystead:*:service:*").await.len() >= 2
        })
        .await;
        nodes.cut_database(Fault::Hang).await;
        assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
        // What it was before it was revoked is not what it is, and nobody can ask what it is.
        assert_eq!(code(&nodes.owner_b, &gone).await, "unavailable");
        // A key that nobody has used stands nowhere: not to know is not unknown.
        let began = Instant::now();
        let body = json!({"api_key": stranger, "service": "invoicing"});
        let answer = nodes.owner_b.post("/v1/verify").json(body);
        let answer = answer.try_send().await.unwrap();
        assert_eq!((answer.status, answer.code()), (503, "store_unavailable"));
        assert!(
            began.elapsed() < Duration::from_secs(1),
            "{:?}",
            began.elapsed()
        );
        // Of a batch each that cannot be decided is counted.
        let before = metric(&nodes.b.client(), UNDECIDED).await;
        let items = [&stranger, &key, &stranger, &stranger]
            .map(|key| json!({"api_key": key, "service": "invoicing"}));
        let batch = nodes.owner_b.post("/v1/verify/batch");
        let told = batch.json(json!({"items": items})).send().await.expect(200);
        let undecided = |item: &&Value| item["problem"]["status"] == 503;
        let undecided = told["items"].as_array().unwrap().iter().filter(undecided);
        assert_eq!(told["items"][1]["code"], "valid", "{told}");
        assert_eq!(undecided.count(), 3, "{told}");
        assert_eq!(metric(&nodes.b.client(), UNDECIDED).await, before + 3);
        nodes.b_database.set(Fault::None).await;
        becomes(&nodes.owner_b, &gone, "revoked").await;
        becomes(&nodes.owner_b, &stranger, "valid").await;
    });
}

#[test]
fn a_node_that_nobody_can_tell_of_changes_stops_deciding_after_stale_max() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[("CACHE__STALE_MAX", "5s")]).await;
        let (id, key) = nodes.issue().await;
        assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
        // While a node reaches both, it stays; here longer than it would without.
        nodes.cut_database(Fault::Refuse).await;
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(8) {
            assert_eq!(code(&nodes.owner_b, &key).await, "valid");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        // Nor does anybody else's Redis do.
        nodes.b_redis.set(Fault::Refuse).await;
        let cut = Instant::now();
        nodes.revoke(&id).await;
        until(Duration::from_secs(7), "it stops deciding", async || {
            code(&nodes.owner_b, &key).await == "unavailable"
        })
        .await;
        let client = nodes.b.client();
        let ready = client.get("/health/ready").send().await;
        let told = (&ready.body["status"], &ready.body["modes"]["decisions"]);
        assert_eq!(ready.status, 503, "{ready}");
        assert_eq!(told, (&json!("not_ready"), &json!("cut_off")), "{ready}");
        assert_eq!(metric(&client, "keystead_ready").await, 0);
        // Whoever asks is not even known.
        let before = metric(&client, UNDECIDED).await;
        let question = json!({"api_key": key, "service": "invoicing"});
        let verify = nodes.owner_b.post("/v1/verify").json(question.clone());
        let batch = nodes.owner_b.post("/v1/verify/batch");
        let batch = batch.json(json!({"items": [question]}));
        let gateway = client
            .post("/gateway/authorize?service=invoicing")
            .header("x-keystead-caller", &nodes.manager)
            .header("x-api-key", &key);
        for asked in [verify, batch, gateway] {
            let answer = asked.send().await;
            assert_eq!((answer.status, answer.code()), (503, "store_unavailable"));
        }
        assert_eq!(metric(&client, UNDECIDED).await, before + 3);
        // A gateway that is not let in is not ours to be woken for.
        let other = client.get("/gateway/authorize").send().await;
        assert_eq!(other.code(), "caller_not_allowed");
        assert_eq!(metric(&client, UNDECIDED).await, before + 3);
        while cut.elapsed() < Duration::from_secs(9) {
            assert_eq!(code(&nodes.owner_b, &key).await, "unavailable");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        nodes.b_redis.set(Fault::None).await;
        until(SPREADS, "it is refused", async || {
            let now = code(&nodes.owner_b, &key).await;
            assert_ne!(now, "valid");
            nodes
                .b
                .app
                .changes
                .may_use(keystead::clock::Clock::uptime_us())
        })
        .await;
        nodes.b_database.set(Fault::None).await;
        becomes(&nodes.owner_b, &key, "revoked").await;
    });
}

#[test]
fn what_stands_in_redis_is_believed_only_as_it_was_sealed_and_while_it_is_true() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let mut keys = Vec::new();
        for _ in 0..4 {
            keys.push(nodes.issue().await);
        }
        let link = nodes.link();
        let mut shelved = Vec::new();
        for (_, key) in &keys {
            let before = names(&link, "keystead:*:key:*").await;
            assert_eq!(settled(&nodes.owner, key).await, "valid");
            let mut new = Vec::new();
            until(SPREADS, "it stands in Redis", async || {
                new = names(&link, "keystead:*:key:*").await;
                new.retain(|name| !before.contains(name));
                !new.is_empty()
            })
            .await;
            shelved.push(new.remove(0));
        }
        let old = get(&link, &shelved[0]).await;
        // One is revoked and its old value put back; two change places; one is altered.
        nodes.revoke(&keys[0].0).await;
        set(&link, &shelved[0], &old).await;
        let (one, two) = (get(&link, &shelved[1]).await, get(&link, &shelved[2]).await);
        nodes.revoke(&keys[1].0).await;
        set(&link, &shelved[1], &two).await;
        set(&link, &shelved[2], &one).await;
        let mut altered = get(&link, &shelved[3]).await;
        let last = altered.len() - 3;
        altered[last] ^= 1;
        set(&link, &shelved[3], &altered).await;
        for (at, expected) in ["revoked", "revoked", "valid", "valid"].iter().enumerate() {
            let found = settled(&nodes.owner_b, &keys[at].1).await;
            assert_eq!(found, *expected, "key {at}");
        }
        // Whoever flushes it revives nothing either.
        link.query::<()>(&redis::cmd("FLUSHALL")).await.unwrap();
        let c = home.serve_with(&[("REDIS__URL", &nodes.redis.url())]).await;
        let owner_c = nodes.owner.at(&c);
        for (at, expected) in ["revoked", "revoked", "valid", "valid"].iter().enumerate() {
            assert_eq!(settled(&owner_c, &keys[at].1).await, *expected, "key {at}");
        }
    });
}

#[test]
fn no_plaintext_and_no_plain_hash_of_one_stands_in_redis() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let mut secrets = Vec::new();
        for _ in 0..5 {
            let (_, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            assert_eq!(settled(&nodes.owner, &key).await, "valid");
            secrets.push(key);
        }
        let link = nodes.link();
        until(SPREADS, "they stand in Redis", async || {
            names(&link, "keystead:*:key:*").await.len() >= 5
        })
        .await;
        let all: Vec<u8> = dump(&link, "*")
            .await
            .into_iter()
            .flat_map(|(key, value)| [key.into_bytes(), value].concat())
            .collect();
        assert!(all.len() > 2_000);
        for key in secrets {
            let secret = key.rsplit('_').next().unwrap().to_owned();
            let hash = Sha256::digest(key.as_bytes());
            let needles = [
                key.clone().into_bytes(),
                secret.into_bytes(),
                hash.to_vec(),
                hex::encode(hash).into_bytes(),
                hex::encode(&key).into_bytes(),
            ];
            for needle in needles {
                assert!(!all.windows(needle.len()).any(|part| part == needle));
            }
        }
    });
}

#[test]
fn rows_of_a_history_that_the_database_lost_are_not_taken_from_redis() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let (id, key) = nodes.issue().await;
        let path = format!("/v1/keys/{id}/disable");
        nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(settled(&nodes.owner, &key).await, "disabled");
        let link = nodes.link();
        let shelved = names(&link, "keystead:*:key:*").await;
        assert!(!shelved.is_empty());
        // The database is put back to where the key was not disabled yet.
        let before = nodes.a.app.changes.epoch();
        tables::execute(
            &home,
            "DELETE FROM change WHERE seq = (SELECT seq FROM change_head)",
        )
        .await;
        tables::execute(&home, "UPDATE change_head SET seq = seq - 1").await;
        tables::execute(&home, "UPDATE api_key SET disabled_at = NULL").await;
        until(SPREADS, "it is noticed", async || {
            nodes.a.app.changes.epoch() > before && nodes.b.app.changes.epoch() > 0
        })
        .await;
        becomes(&nodes.owner, &key, "valid").await;
        becomes(&nodes.owner_b, &key, "valid").await;
        // A number that the lost history used already, in another change.
        nodes.issue().await;
        let c = home.serve_with(&[("REDIS__URL", &nodes.redis.url())]).await;
        assert_eq!(settled(&nodes.owner.at(&c), &key).await, "valid");
    });
}

#[test]
fn changes_of_a_history_that_the_database_lost_are_not_taken_for_those_of_this_one() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        let mut keys = Vec::new();
        for _ in 0..5 {
            keys.push(nodes.issue().await);
        }
        let (first_id, _) = keys.remove(0);
        let (second_id, _) = keys.remove(0);
        for _ in 0..10 {
            nodes.issue().await;
        }
        let link = nodes.link();
        until(SPREADS, "both know of them, and Redis does", async || {
            let told = names(&link, "keystead:*:changes:*").await;
            let head = nodes.a.app.changes.position();
            let mut last = redis::cmd("ZCOUNT");
            !told.is_empty()
                && nodes.b.app.changes.position() == head
                && link
                    .query::<i64>(last.arg(&told[0]).arg(head).arg(head))
                    .await
                    == Ok(1)
        })
        .await;
        // The database is put back to an old copy of itself, and goes on from there.
        let epochs = (nodes.a.app.changes.epoch(), nodes.b.app.changes.epoch());
        tables::execute(
            &home,
            "DELETE FROM change WHERE seq > (SELECT seq - 10 FROM change_head)",
        )
        .await;
        tables::execute(&home, "UPDATE change_head SET seq = seq - 10").await;
        until(SPREADS, "it is noticed", async || {
            nodes.a.app.changes.epoch() > epochs.0 && nodes.b.app.changes.epoch() > epochs.1
        })
        .await;
        let path = format!("/v1/keys/{first_id}/revoke?wait=2s");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(
            told["propagated"], false,
            "some may have lost their rows: {told}"
        );
        age(&home, "id = 'lost'", Span::minutes(1)).await;
        let path = format!("/v1/keys/{second_id}/revoke?wait=5s");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told["propagated"], true, "they agree again: {told}");
        for (_, key) in &keys {
            assert_eq!(settled(&nodes.owner_b, key).await, "valid");
        }
        nodes.cut_database(Fault::Refuse).await;
        for (id, key) in &keys {
            assert_eq!(code(&nodes.owner_b, key).await, "valid");
            // Nor does it hear a message.
            let mut kill = redis::cmd("CLIENT");
            kill.arg("KILL").arg("TYPE").arg("pubsub");
            link.query::<i64>(&kill).await.unwrap();
            nodes.revoke(id).await;
            until(SPREADS, "it is refused", async || {
                code(&nodes.owner_b, key).await != "valid"
            })
            .await;
        }
    });
}

#[test]
fn a_change_holds_on_a_node_that_its_maker_alone_could_tell() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let mut a_database = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(a_database.address);
        let settings = [("REDIS__URL", nodes.redis.url()), ("DATABASE__URL", url)];
        let settings = settings.each_ref().map(|(name, url)| (*name, url.as_str()));
        let maker = home.serve_with(&settings).await;
        let owner = nodes.owner.at(&maker);
        let Nodes {
            a,
            b,
            owner_b,
            mut b_database,
            ..
        } = nodes;
        owner.get("/v1/tenants").send().await.expect(200);
        let mut keys = Vec::new();
        for _ in 0..4 {
            let new = json!({
                "name": "worker", "consumer": "acme",
                "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
            });
            let issued = owner.create("/v1/keys", new).await;
            keys.push((text(&issued, "/key/id"), text(&issued, "/api_key")));
        }
        // Nobody else reaches both.
        drop(a);
        for (id, key) in keys {
            assert_eq!(settled(&owner_b, &key).await, "valid");
            b_database.set(Fault::Refuse).await;
            until(SPREADS, "the node misses its database", async || {
                b.app.reach.is_database_away()
            })
            .await;
            assert_eq!(code(&owner_b, &key).await, "valid");
            // The database is gone with the answer.
            let path = format!("/v1/keys/{id}/revoke");
            owner.post(&path).send().await.expect(200);
            a_database.set(Fault::Refuse).await;
            until(SPREADS, "it is refused", async || {
                code(&owner_b, &key).await != "valid"
            })
            .await;
            a_database.set(Fault::None).await;
            b_database.set(Fault::None).await;
            until(SPREADS, "the database is back", async || {
                !b.app.reach.is_database_away() && !maker.app.reach.is_database_away()
            })
            .await;
            becomes(&owner_b, &key, "revoked").await;
        }
    });
}

#[test]
fn a_subscription_that_is_dead_and_does_not_say_so_is_made_anew() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        // A message does not arrive, and nothing else on that connection.
        nodes.b_redis.hold_answer(":wake:");
        nodes.issue().await;
        nodes.b_redis.holds().await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        let mut lived = Vec::new();
        for _ in 0..9 {
            let (id, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            nodes.revoke(&id).await;
            let ended = Instant::now();
            until(SPREADS, "it is refused", async || {
                code(&nodes.owner_b, &key).await != "valid"
            })
            .await;
            lived.push(ended.elapsed());
        }
        lived.sort_unstable();
        // Who only asks every second has half a second on the average.
        assert!(lived[4] < Duration::from_millis(250), "{lived:?}");
        nodes.b_redis.release();
    });
}
