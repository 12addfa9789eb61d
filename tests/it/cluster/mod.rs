//! Three real processes over PostgreSQL and Redis, each behind proxies of its own, and what becomes
//! of the promises while parts of it are taken away.
//!
//! In the ordinary suite each subject is short, beside other tests on whatever machine. With
//! `KEYSTEAD_TEST_LONG` it is whole, alone, and held to the figures.

mod database_away;
mod faults;
mod flood;
mod held;
mod herd;
mod limits;
mod redis_away;
mod rolling;
mod spread;

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::support::load::{Line, Plan, Question, Report, Told};
use crate::support::redis::OwnRedis;
use crate::support::{Client, Home, Process, Proxy, figure, free_address, setting, text, until};

/// Makes `name::three_nodes` of each async function that takes a [`Cluster`].
macro_rules! three_nodes {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn three_nodes() {
                crate::support::run(crate::support::Backend::Postgres, async |home| {
                    super::$name(crate::cluster::Cluster::start(home).await).await;
                });
            }
        }
    )+};
}
use three_nodes;

fn is_long() -> bool {
    setting("KEYSTEAD_TEST_LONG").is_some()
}

/// A machine with other things to do may be too slow to load a key while anybody waits: what is not
/// remembered may be refused as busy then, where nothing is measured.
fn expect_all_valid_or_busy(asked: &Report, when: &str) {
    if is_long() {
        asked.expect_all_valid(when);
    } else {
        let busy = asked.count("busy");
        assert_eq!(
            asked.count("valid") + busy,
            asked.0.len(),
            "{when}: {asked}"
        );
        assert!(busy < asked.0.len(), "{when}: {asked}");
    }
}

/// How much of it: in the ordinary suite, and when it is whole.
fn sized<T>(short: T, whole: T) -> T {
    if is_long() { whole } else { short }
}

struct Node {
    process: Process,
    address: SocketAddr,
    database: Proxy,
    redis: Proxy,
    settings: Vec<(&'static str, String)>,
    /// As the owner of everything.
    client: Client,
}

impl Node {
    fn start_again(&mut self, home: &Home) {
        let settings = self.settings.iter();
        let settings: Vec<_> = settings
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        self.process = home.start(&settings);
    }

    /// How a part works, as `/health/ready` says: `("redis", "reachable")`.
    async fn until_it_says(&self, part: &str, mode: &str, bound: Duration) {
        until(bound, &format!("{part} is {mode}"), async || {
            let ready = self.client.get("/health/ready").try_send().await;
            ready.is_some_and(|ready| ready.body["modes"][part] == mode)
        })
        .await;
    }
}

struct Cluster {
    home: Home,
    redis: OwnRedis,
    nodes: Vec<Node>,
    /// The owner key.
    owner: String,
    /// What is measured is measured alone.
    _alone: Option<MutexGuard<'static, ()>>,
}

/// An issued key.
struct Key {
    id: String,
    secret: String,
    name: String,
    service: String,
    consumer: String,
    question: Question,
    /// The same at no cost.
    look: Question,
}

/// Makes a change, and makes it again if the node was too busy to say that it was made.
async fn change(client: &Client, method: &str, path: &str, body: Value) -> Value {
    for attempt in 0..10 {
        let mut request = client.request(method.parse().expect("a method"), path);
        if !body.is_null() {
            request = request.json(body.clone());
        }
        let answer = request.send().await;
        let was_made = attempt > 0 && answer.status == 404;
        if (200..300).contains(&answer.status) || was_made {
            return answer.body;
        }
        assert_eq!(answer.code(), "busy", "{method} {path}: {answer}");
    }
    panic!("{method} {path}: too busy for too long");
}

impl Cluster {
    async fn start(home: Home) -> Self {
        static ALONE: Mutex<()> = Mutex::const_new(());
        let alone = if is_long() {
            Some(ALONE.lock().await)
        } else {
            None
        };
        let redis = OwnRedis::start();
        let mut nodes: Vec<Node> = Vec::new();
        let mut owner = String::new();
        for number in 0..3 {
            let database = Proxy::before(home.database_address()).await;
            let (to_redis, redis_url) = redis.behind_proxy().await;
            let address = free_address();
            let settings = vec![
                ("SERVER__DRAIN_DELAY", "1s".to_owned()),
                ("SERVER__LISTEN", address.to_string()),
                ("DATABASE__URL", home.database_url_at(database.address)),
                ("REDIS__URL", redis_url),
            ];
            let given = settings.iter().map(|(name, value)| (*name, value.as_str()));
            let given: Vec<_> = given.collect();
            let mut process = home.start(&given);
            if number == 0 {
                process.ready(Duration::from_secs(30)).await;
                let key = std::fs::read_to_string(process.data_dir.join("owner.key"));
                owner = key.expect("the first start leaves it").trim().to_owned();
            }
            nodes.push(Node {
                client: process.client().with_key(&owner),
                process,
                address,
                database,
                redis: to_redis,
                settings,
            });
        }
        for node in &mut nodes {
            node.process.ready(Duration::from_secs(30)).await;
            node.until_it_says("redis", "reachable", Duration::from_secs(5))
                .await;
        }
        let cluster = Self {
            home,
            redis,
            nodes,
            owner,
            _alone: alone,
        };
        cluster.make_parents("invoicing", "acme").await;
        cluster
    }

    fn client(&self) -> &Client {
        &self.nodes[0].client
    }

    async fn make_parents(&self, service: &str, consumer: &str) {
        let scopes = json!([{"name": "invoice:read"}, {"name": "invoice:send"}]);
        let service = json!({"slug": service, "scopes": scopes});
        self.client().create("/v1/services", service).await;
        let consumer = json!({"slug": consumer});
        self.client().create("/v1/consumers", consumer).await;
    }

    /// So many keys that nobody has used yet, with these fields besides.
    async fn issue_with(&self, count: usize, parents: (&str, &str), more: Value) -> Vec<Key> {
        let (service, consumer) = parents;
        let new = |number: usize| {
            let mut new = json!({
                "name": format!("key-{number:05}-{consumer}"), "consumer": consumer,
                "grants": [{"service": service, "scopes": ["invoice:read"]}],
            });
            let more = more.as_object().expect("fields").clone();
            new.as_object_mut().expect("fields").extend(more);
            new
        };
        let mut keys = Vec::new();
        while keys.len() < count {
            let items = (keys.len()..count).take(500).map(new);
            let batch = json!({"items": items.collect::<Vec<_>>()});
            let issued = change(self.client(), "POST", "/v1/keys/batch", batch).await;
            for issued in issued["items"].as_array().expect("items") {
                let api_key = text(issued, "/api_key");
                keys.push(Key {
                    id: text(issued, "/key/id"),
                    secret: text(issued, "/key/secrets/0/id"),
                    name: text(issued, "/key/name"),
                    service: service.to_owned(),
                    consumer: consumer.to_owned(),
                    question: Question::verify_for(&self.owner, &api_key, service, 1),
                    look: Question::verify_for(&self.owner, &api_key, service, 0),
                });
            }
        }
        keys
    }

    async fn issue(&self, count: usize) -> Vec<Key> {
        self.issue_with(count, ("invoicing", "acme"), json!({}))
            .await
    }

    fn addresses(&self) -> Vec<SocketAddr> {
        self.nodes.iter().map(|node| node.address).collect()
    }

    /// Asks for each key on each node until it has it in memory.
    async fn warm(&self, keys: &[Key]) {
        join_all(self.nodes.iter().map(async |node| {
            let mut line = Line::to(node.address);
            for key in keys {
                until(Duration::from_secs(10), "the key is valid", async || {
                    line.ask(&key.look).await.is_valid()
                })
                .await;
            }
        }))
        .await;
    }

    /// Validations of these keys at this rate, spread over the nodes.
    fn load(&self, rate: u32, keys: &[Key]) -> Plan {
        let questions = keys.iter().map(|key| key.question.clone());
        Plan::at(rate, self.addresses(), questions.collect())
    }

    /// What each node answers, now.
    async fn ask_all(&self, question: &Question) -> Vec<Told> {
        let asked = self
            .nodes
            .iter()
            .map(async |node| Line::to(node.address).ask(question).await);
        join_all(asked).await
    }

    /// None of the keys that were ended passes anywhere, whatever happened since.
    async fn expect_none_lives(&self, ended: &[Key]) {
        for key in ended {
            for (node, told) in self.ask_all(&key.question).await.into_iter().enumerate() {
                assert!(!told.is_valid(), "node {node}, {}", key.name);
            }
        }
    }

    /// Revokes the key at a node.
    async fn revoke(&self, node: usize, key: &Key) {
        let path = format!("/v1/keys/{}/revoke", key.id);
        change(&self.nodes[node].client, "POST", &path, Value::Null).await;
    }

    /// Asks these nodes for the key again and again while `change` ends it. Answers for each node how
    /// long after the change was answered it still let the key pass: when the last request that passed
    /// was sent. Nobody may be told anything but `valid`, then `code`; or 503, in a fault.
    async fn outlived(
        &self,
        nodes: &[usize],
        key: &Key,
        code: &str,
        change: impl Future<Output = ()>,
    ) -> Vec<Duration> {
        const REFUSALS: usize = 5;
        const BOUND: Duration = Duration::from_secs(15);
        let (answered, is_answered) = tokio::sync::watch::channel(None::<Instant>);
        let asking = nodes.iter().map(async |node| {
            let mut line = Line::to(self.nodes[*node].address);
            let (mut last, mut refusals) = (None, 0);
            let began = Instant::now();
            while refusals < REFUSALS {
                assert!(
                    began.elapsed() < BOUND,
                    "{} lives on at node {node}",
                    key.name
                );
                let sent = Instant::now();
                let told = line.ask(&key.question).await;
                if told.is_valid() {
                    (last, refusals) = (Some(sent), 0);
                } else {
                    assert!(
                        told.code == code || told.status == 503,
                        "node {node}: {told:?}"
                    );
                    let is_after = is_answered.borrow().is_some_and(|then| sent > then);
                    refusals += usize::from(is_after && told.code == code);
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            last
        });
        let changed = async {
            change.await;
            answered.send_replace(Some(Instant::now()));
        };
        let (lasts, ()) = tokio::join!(join_all(asking), changed);
        let answered = answered.borrow().expect("it was answered");
        let lived = lasts.into_iter().map(|last: Option<Instant>| {
            last.map_or(Duration::ZERO, |last| {
                last.saturating_duration_since(answered)
            })
        });
        lived.collect()
    }
}
