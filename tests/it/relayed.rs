//! What nodes tell each other through Redis: one without the database follows, cold keys are served
//! from what others read, nothing that stands in Redis is believed that was not sealed there, and a
//! change says when everybody knows of it.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::cache;
use keystead::cache::follow::Reach;
use keystead::cache::relay::{Ack, Relay};
use keystead::cache::seal::Seal;
use keystead::clock::Clock;
use keystead::db::{self, Conn, nodes};
use keystead::master::{MasterKey, MasterKeys};
use keystead::redis_link::RedisLink;
use keystead::time::Span;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::support::redis::{OwnRedis, patient_link};
use crate::support::{
    Backend, Client, Fault, Home, Proxy, Server, metric, run, signal, tables, text, until,
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
        for slug in ["acme", "managers"] {
            owner.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let scopes = json!([{"name": "invoice:read"}]);
        let service = json!({"slug": "invoicing", "scopes": scopes});
        owner.create("/v1/services", service).await;
        let b_database = Proxy::before(home.database_address()).await;
        let (b_redis, b_redis_url) = redis.behind_proxy().await;
        let b_database_url = home.database_url_at(b_database.address);
        let mut settings = vec![
            ("REDIS__URL", b_redis_url.as_str()),
            ("DATABASE__URL", b_database_url.as_str()),
        ];
        settings.extend(settings_of_b);
        let b = home.serve_with(&settings).await;
        let grants = json!([{"service": "keystead", "scopes": ["*"]}]);
        let new = json!({"name": "b", "consumer": "managers", "grants": grants});
        let key = owner.create("/v1/keys", new).await;
        let manager = text(&key, "/api_key");
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
        let new = json!({
            "name": "worker", "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
        });
        let issued = self.owner.create("/v1/keys", new).await;
        (text(&issued, "/key/id"), text(&issued, "/api_key"))
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

#[test]
fn a_revocation_that_says_it_propagated_holds_everywhere() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        for _ in 0..20 {
            let (id, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            let path = format!("/v1/keys/{id}/revoke?wait=4s");
            let told = nodes.owner.post(&path).send().await.expect(200);
            assert_eq!(told["propagated"], true, "{told}");
            assert_ne!(code(&nodes.owner_b, &key).await, "valid");
        }
        // Without being asked nobody waits, and nothing is said.
        let (id, _) = nodes.issue().await;
        let path = format!("/v1/keys/{id}/disable");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told.get("propagated"), None);
        // A node that cannot be told may still let it pass.
        let (id, key) = nodes.issue().await;
        assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
        nodes.b_redis.set(Fault::Hang).await;
        nodes.b_database.set(Fault::Hang).await;
        let path = format!("/v1/keys/{id}/revoke?wait=1s");
        let began = Instant::now();
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told["propagated"], false, "{told}");
        assert!(began.elapsed() < Duration::from_secs(4));
        // One that lost the database alone is waited for, and tells.
        nodes.b_redis.set(Fault::None).await;
        until(SPREADS, "Redis is back", async || {
            code(&nodes.owner_b, &key).await != "valid"
        })
        .await;
        let (id, _) = nodes.issue().await;
        let path = format!("/v1/keys/{id}/revoke?wait=5s");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told["propagated"], true, "{told}");
        let path = "/v1/keys/x/revoke?wait=6s";
        let refused = nodes.owner.post(path).send().await;
        assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
    });
}

#[test]
fn nodes_without_redis_tell_through_the_database() {
    run(Backend::Postgres, async |home| {
        let (a, b) = (home.serve().await, home.serve().await);
        let owner = a.owner();
        let gone = home.serve().await;
        drop(gone);
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        let told: Vec<Value> = join_all(["disable?wait=5s", "disable?wait=0s"].map(async |verb| {
            let path = format!("/v1/consumers/acme/{verb}");
            owner.post(&path).send().await.expect(200)
        }))
        .await;
        assert_eq!(told[0]["propagated"], true, "{told:?}");
        assert_eq!(told[1]["propagated"], false, "{told:?}");
        assert!(b.app.changes.position() > 0);
    });
}

/// Lets a row of the table of nodes be that much older.
async fn age(home: &Home, node: &str, span: Span) {
    let statement = format!(
        "UPDATE node SET seen_at = seen_at - {} WHERE {node}",
        span.millis()
    );
    tables::execute_on(home.eyes(), &statement).await;
}

/// A node that only the database knows, and that knows of nothing. It may decide for so long when Redis
/// alone reaches it.
fn another(home: &Home, stale_max: Span) -> cache::Nodes {
    cache::Nodes::new(
        home.db(),
        Clock::System,
        cache::Changes::new(),
        Reach::default(),
        None,
        stale_max,
        "another".to_owned(),
    )
}

#[test]
fn nodes_that_lose_redis_tell_through_the_database() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let revoke = async |id: &str, wait: &str| {
            let path = format!("/v1/keys/{id}/revoke?wait={wait}");
            let told = nodes.owner.post(&path).send().await.expect(200);
            told["propagated"] == true
        };
        // One that was killed five minutes ago is not waited for. It had more patience than the others.
        let patient = another(&home, Span::minutes(30));
        patient.join().await.unwrap();
        age(&home, "id = 'another'", Span::minutes(5)).await;
        assert!(revoke(&nodes.issue().await.0, "5s").await);
        signal(nodes.redis.process_id().await, "KILL");
        until(SPREADS, "both miss it", async || {
            let modes = async |client: Client| {
                let ready = client.get("/health/ready").send().await.expect(200);
                ready["modes"]["redis"] == "away"
            };
            modes(nodes.a.client()).await && modes(nodes.b.client()).await
        })
        .await;
        // Nobody can say that it does not go on, by what others tell it there.
        assert!(!revoke(&nodes.issue().await.0, "3s").await);
        age(&home, "id = 'another'", Span::minutes(15)).await;
        assert!(!revoke(&nodes.issue().await.0, "3s").await);
        age(&home, "id = 'another'", Span::minutes(12)).await;
        let mut told = Vec::new();
        for _ in 0..4 {
            let (id, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            let is_told = revoke(&id, "5s").await;
            let is_in_force = code(&nodes.owner_b, &key).await != "valid";
            assert!(is_in_force || !is_told, "{told:?}");
            told.push(is_told);
        }
        // On a machine that is busy one may be late.
        assert!(told.iter().filter(|told| **told).count() >= 3, "{told:?}");
    });
}

#[test]
fn a_node_that_loses_redis_alone_is_told_through_the_database() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        nodes.b_redis.set(Fault::Refuse).await;
        // The others have to notice that somebody reads what they know in the database.
        until(Duration::from_secs(30), "it is told in time", async || {
            let (id, key) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=5s");
            let told = nodes.owner_b.post(&path).send().await.expect(200);
            let is_in_force = code(&nodes.owner, &key).await != "valid";
            assert!(is_in_force || told["propagated"] == false, "{told}");
            told["propagated"] == true
        })
        .await;
        // And from then on.
        let mut told = 0;
        for _ in 0..3 {
            let (id, _) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=5s");
            let answer = nodes.owner_b.post(&path).send().await.expect(200);
            told += usize::from(answer["propagated"] == true);
        }
        assert!(told >= 2, "{told}");
    });
}

#[test]
fn a_node_that_only_redis_reaches_is_waited_for_by_who_does_not_reach_it() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        let (mut c_redis, url) = nodes.redis.behind_proxy().await;
        let c = home.serve_with(&[("REDIS__URL", &url)]).await;
        let owner = nodes.owner.at(&c);
        nodes.cut_database(Fault::Hang).await;
        // Hours ago, and nobody has looked after its row since: who reaches both does so now.
        age(&home, "TRUE", Span::minutes(90)).await;
        let living = "SELECT count(*) || '' AS line FROM node WHERE seen_at > \
                      (extract(epoch FROM now()) - 60) * 1000";
        until(
            Duration::from_secs(30),
            "its row is kept for it",
            async || tables::lines_of(home.eyes(), living.to_owned()).await == ["3"],
        )
        .await;
        age(&home, "TRUE", Span::minutes(10)).await;
        c_redis.set(Fault::Refuse).await;
        for _ in 0..2 {
            let (id, key) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=2s");
            let told = owner.post(&path).send().await.expect(200);
            assert_eq!(told["propagated"], false, "{told}");
            assert_ne!(code(&nodes.owner, &key).await, "valid");
        }
    });
}

#[test]
fn a_node_is_waited_for_whatever_the_clocks_of_others_say() {
    run(Backend::Postgres, async |home| {
        let a = home.serve().await;
        let owner = a.owner();
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        // It lives, and knows of nothing yet.
        let other = another(&home, Span::seconds(0));
        other.join().await.unwrap();
        a.clock.advance(Span::hours(2));
        a.app.nodes.sweep().await.unwrap();
        let path = "/v1/consumers/acme/disable?wait=500ms";
        let told = owner.post(path).send().await.expect(200);
        assert_eq!(told["propagated"], false, "{told}");
        other.leave().await;
        owner
            .create("/v1/consumers", json!({"slug": "umbrella"}))
            .await;
        let path = "/v1/consumers/umbrella/disable?wait=5s";
        let told = owner.post(path).send().await.expect(200);
        assert_eq!(told["propagated"], true, "{told}");
    });
}

#[test]
fn after_the_database_was_put_back_all_know_only_once_each_could_have_told_anew() {
    run(Backend::Postgres, async |home| {
        let a = home.serve().await;
        let owner = a.owner();
        for slug in ["a", "b", "c", "d", "e"] {
            owner.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let ends = async |slug: &str| {
            let path = format!("/v1/consumers/{slug}/disable?wait=3s");
            let told = owner.post(&path).send().await.expect(200);
            told["propagated"] == true
        };
        assert!(ends("a").await);
        // It lives, and has not written its row again since the copy was put back, which has none.
        another(&home, Span::seconds(0)).join().await.unwrap();
        assert!(!ends("b").await);
        let epoch = a.app.changes.epoch();
        for statement in [
            "DELETE FROM node",
            "DELETE FROM change WHERE seq > (SELECT seq - 1 FROM change_head)",
            "UPDATE change_head SET seq = seq - 1",
        ] {
            tables::execute(&home, statement).await;
        }
        // Also where that was not found yet, and although the change has the number of the one that was lost.
        assert!(!ends("c").await);
        assert!(a.app.changes.epoch() > epoch);
        assert!(!ends("d").await);
        age(&home, "id = 'lost'", Span::minutes(1)).await;
        assert!(ends("e").await);
    });
}

#[test]
fn a_row_that_is_fresh_is_not_written_by_another() {
    run(Backend::Postgres, async |home| {
        let (span, now) = (Span::seconds(15), Clock::System.now());
        let keep = async |position: i64| -> db::Result<()> {
            let keep = async move |conn: &mut Conn| {
                nodes::keep(conn, "a", position, Span::minutes(15), now).await
            };
            home.eyes().write(keep).await
        };
        let keep_for = |id: &'static str, position: i64| {
            let db = home.db();
            async move {
                db.write(async move |conn: &mut Conn| {
                    nodes::keep_for(conn, id, position, span, now).await
                })
                .await
            }
        };
        let row = async |id: &str| {
            let row = format!(
                "SELECT position || ' ' || stale_max_ms AS line FROM node WHERE id = '{id}'"
            );
            tables::lines_of(home.eyes(), row).await
        };
        keep(5).await.unwrap();
        keep_for("a", 3).await.unwrap();
        assert_eq!(row("a").await, ["5 900000"]);
        age(&home, "id = 'a'", Span::seconds(20)).await;
        keep_for("a", 6).await.unwrap();
        assert_eq!(row("a").await, ["6 900000"]);
        // The node writes its row itself while another is at it.
        age(&home, "id = 'a'", Span::seconds(20)).await;
        let session = home.session().await;
        session
            .run(
                "BEGIN; UPDATE node SET position = 9, \
                 seen_at = extract(epoch FROM clock_timestamp()) * 1000 WHERE id = 'a'",
            )
            .await;
        let keeping = tokio::spawn(keep_for("a", 7));
        session.until_somebody_waits().await;
        session.run("COMMIT").await;
        keeping.await.unwrap().unwrap();
        assert_eq!(row("a").await, ["9 900000"]);
        // Of one that nothing is known of, the longest is.
        keep_for("b", 1).await.unwrap();
        assert_eq!(row("b").await, ["1 3600000"]);
    });
}

#[test]
fn a_node_that_leaves_takes_back_what_it_said_before_its_row_goes() {
    run(Backend::Postgres, async |home| {
        let redis = OwnRedis::start();
        let link = patient_link(&redis.url(), Duration::from_secs(2));
        let master = MasterKeys {
            first: MasterKey::new([7; 32]),
            others: Vec::new(),
        };
        let history = cache::History::default();
        history.begin("a database");
        let relay = Relay::new(link, Seal::new(&master), history, "leaving".to_owned());
        let leaving = cache::Nodes::new(
            home.db(),
            Clock::System,
            cache::Changes::new(),
            Reach::default(),
            Some(relay.clone()),
            Span::minutes(15),
            "leaving".to_owned(),
        );
        leaving.join().await.unwrap();
        let ack = Ack {
            history: 1,
            position: 1,
            at_us: 1,
        };
        relay.acknowledge(ack).await.unwrap();
        assert_eq!(relay.acks().await.unwrap().1.len(), 1);
        let session = home.session().await;
        session.run("BEGIN; SELECT 1 FROM node FOR UPDATE").await;
        let left = tokio::spawn(async move { leaving.leave().await });
        session.until_somebody_waits().await;
        // Whoever looks now finds nobody to keep the row for.
        assert!(relay.acks().await.unwrap().1.is_empty());
        session.run("COMMIT").await;
        left.await.unwrap();
        let rows = "SELECT id AS line FROM node".to_owned();
        assert_eq!(
            tables::lines_of(home.eyes(), rows).await,
            Vec::<String>::new()
        );
    });
}
