//! What was answered is in the ledger, once, whatever ends the node that answered it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diesel::sql_types::Text;
use futures_util::future::{join, join_all};
use keystead::clock::Clock;
use keystead::db::{self, Conn};
use keystead::each;
use keystead::id::{KeyId, SecretId};
use keystead::time::{Span, Timestamp};
use serde_json::json;
use tokio::sync::oneshot;

use super::{lines, number};
use crate::support::load::{Plan, Question};
use crate::support::redis::OwnRedis;
use crate::support::tables::lines_of;
use crate::support::{
    Answer, Backend, Client, Fault, Home, Process, Proxy, both, figure, run, setting, text, until,
};

both!(
    every_decision_is_counted_and_those_of_known_keys_are_events,
    a_key_that_a_client_sent_is_never_in_the_journal,
    a_kill_loses_at_most_one_flush_and_doubles_nothing,
    a_stop_loses_nothing_and_doubles_nothing,
    a_kill_does_not_lose_when_a_key_was_last_used,
    keys_are_found_by_when_they_were_last_used,
);

pub const BOUND: Duration = Duration::from_secs(20);

/// More than the interval at which uses are kept, on a machine that does other things too.
const FLUSHED: Duration = Duration::from_millis(600);

/// A caller and a key to ask about.
pub struct Asker {
    pub caller: Client,
    /// The caller's.
    caller_key: String,
    pub key: String,
}

impl Asker {
    pub async fn new(owner: &Client) -> Self {
        let service = json!({"slug": "invoicing", "scopes": [{"name": "invoice:read"}]});
        owner.create("/v1/services", service).await;
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        let grant = |service: &str, scope: &str| {
            json!({
                "name": scope, "consumer": "acme",
                "grants": [{"service": service, "scopes": [scope]}],
            })
        };
        let caller = owner
            .create("/v1/keys", grant("keystead", "verify:invoicing"))
            .await;
        let key = owner
            .create("/v1/keys", grant("invoicing", "invoice:read"))
            .await;
        let caller_key = text(&caller, "/api_key");
        Self {
            caller: owner.with_key(&caller_key),
            caller_key,
            key: text(&key, "/api_key"),
        }
    }

    /// The code of the answer, if there is one.
    pub async fn ask(&self, key: &str, request_id: &str) -> Option<String> {
        let answer = self.try_ask(key, request_id).await?;
        (answer.status == 200).then(|| answer.code().to_owned())
    }

    async fn try_ask(&self, key: &str, request_id: &str) -> Option<Answer> {
        let body = json!({
            "api_key": key, "ip": "203.0.113.7", "method": "GET", "path": "/invoices/7?page=2",
            "required_scopes": ["invoice:read"], "context": {"region": "eu"},
        });
        let request = self
            .caller
            .post("/v1/verify")
            .header("x-request-id", request_id);
        request.json(body).try_send().await
    }
}

pub async fn events(home: &Home) -> Vec<String> {
    lines(home, "SELECT request_id AS line FROM usage_event").await
}

async fn counted(home: &Home) -> i64 {
    number(home, "SELECT COALESCE(SUM(uses), 0) FROM usage_hour").await
}

async fn every_decision_is_counted_and_those_of_known_keys_are_events(home: Home) {
    let server = home.serve().await;
    let asker = Asker::new(&server.owner()).await;
    for n in 0..20 {
        let code = asker.ask(&asker.key, &format!("good-{n}")).await;
        assert_eq!(code.as_deref(), Some("valid"));
    }
    for n in 0..5 {
        assert_eq!(
            asker.ask("ks_live_no", &format!("bad-{n}")).await.unwrap(),
            "malformed"
        );
    }
    until(BOUND, "all is stored", async || counted(&home).await == 25).await;
    let mut told = events(&home).await;
    told.sort();
    let mut expected: Vec<String> = (0..20).map(|n| format!("good-{n}")).collect();
    expected.sort();
    assert_eq!(told, expected);
    let strangers = "SELECT COALESCE(SUM(uses), 0) FROM usage_stranger";
    assert_eq!(number(&home, strangers).await, 5);
    let told = lines(
        &home,
        "SELECT service || ' ' || environment || ' ' || operation || ' ' || outcome || ' ' || ip \
         AS line FROM usage_event WHERE request_id = 'good-3'",
    )
    .await;
    assert_eq!(told, ["invoicing live verify valid 203.0.113.7"]);
    let detail = lines(
        &home,
        "SELECT CAST(detail AS TEXT) AS line FROM usage_event WHERE request_id = 'good-3'",
    )
    .await;
    let detail: serde_json::Value = serde_json::from_str(&detail[0]).unwrap();
    assert_eq!(detail["path"], "/invoices/7");
    assert_eq!(detail["context"], json!({"region": "eu"}));
    let secrets = lines(
        &home,
        "SELECT CAST(detail AS TEXT) AS line FROM usage_event",
    )
    .await;
    assert!(secrets.iter().all(|line| !line.contains("ks_live_")));
}

/// Wherever a client put it, and never a query.
async fn a_key_that_a_client_sent_is_never_in_the_journal(home: Home) {
    let server = home.serve().await;
    let asker = Asker::new(&server.owner()).await;
    let key = &asker.key;
    let secret = key.rsplit('_').next().expect("a key");
    let body = json!({
        "api_key": key, "ip": "203.0.113.7", "method": "GET",
        "path": format!("/cb/https%3A%2F%2Fhook%2F{key}/x_{key}?code=of-a-query"),
        "context": {"token": format!("token_{key}")},
    });
    let ask = asker.caller.post("/v1/verify");
    let ask = ask.header("x-request-id", "in-the-journal").json(body);
    assert_eq!(ask.send().await.code(), "valid");
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|at| at == text.as_bytes());
    until(BOUND, "it is journaled", async || {
        has(&journals(home.dir()), "in-the-journal")
    })
    .await;
    let bytes = journals(home.dir());
    assert!(!has(&bytes, secret) && !has(&bytes, "of-a-query"));
    until(BOUND, "it is stored", async || counted(&home).await == 1).await;
    let detail = "SELECT CAST(detail AS TEXT) AS line FROM usage_event";
    let detail: serde_json::Value = serde_json::from_str(&lines(&home, detail).await[0]).unwrap();
    assert_eq!(detail["path"], "/cb/https%3A%2F%2Fhook%2F[key]/x_[key]");
    assert_eq!(detail["context"], json!({"token": "token_[key]"}));
}

/// The bytes of all journals in a folder, with their logs.
fn journals(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() {
            bytes.extend(journals(&path));
        } else if name.starts_with("usage-journal.db") {
            bytes.extend(std::fs::read(&path).unwrap());
        }
    }
    bytes
}

/// Asks until there is no answer; answers when each answer came.
pub async fn ask_until_gone(
    asker: &Asker,
    prefix: &str,
    at_most: usize,
) -> BTreeMap<String, Instant> {
    ask_counted(asker, prefix, at_most, &AtomicUsize::new(0)).await
}

/// The same, and `count` has how many answers came, of all who ask.
async fn ask_counted(
    asker: &Asker,
    prefix: &str,
    at_most: usize,
    count: &AtomicUsize,
) -> BTreeMap<String, Instant> {
    let mut answered = BTreeMap::new();
    for n in 0..at_most {
        let id = format!("{prefix}-{n}");
        // A node that is just there on a busy machine may not be able to decide in time.
        let is_undecided = |answer: &Answer| answer.status == 503;
        let answer = loop {
            match asker.try_ask(&asker.key, &id).await {
                Some(answer) if is_undecided(&answer) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                answer => break answer,
            }
        };
        if answer.is_none_or(|answer| answer.status != 200) {
            break;
        }
        answered.insert(id, Clock::System.monotonic());
        count.fetch_add(1, Ordering::Relaxed);
    }
    answered
}

/// How many ask at once.
const LANES: usize = 6;

/// So many answers come before it ends, at least.
const SOME: usize = 20;

/// How a node ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Kill,
    Stop,
}

async fn a_kill_loses_at_most_one_flush_and_doubles_nothing(home: Home) {
    ends_under_load(&home, End::Kill).await;
}

async fn a_stop_loses_nothing_and_doubles_nothing(home: Home) {
    ends_under_load(&home, End::Stop).await;
}

/// Ends a node under load again and again, each time one on the same database and journal.
async fn ends_under_load(home: &Home, end: End) {
    let is_long = setting("KEYSTEAD_TEST_LONG").is_some();
    let ends: u64 = if is_long { 50 } else { 10 };
    let mut node = home.spawn(&[]).await;
    let address = node.address.clone();
    let again = [("SERVER__LISTEN", address.as_str())];
    let asker = Asker::new(&node.owner()).await;
    // What must be there, each with how long before the end it was answered.
    let (mut kept, mut sent) = (BTreeMap::new(), BTreeSet::new());
    for round in 0..ends {
        let lanes: Vec<String> = (0..LANES)
            .map(|lane| format!("round-{round}-lane-{lane}"))
            .collect();
        let count = AtomicUsize::new(0);
        let asking = lanes
            .iter()
            .map(|lane| ask_counted(&asker, lane, 100_000, &count));
        let ending = async {
            // However busy the machine is, some were answered and are old enough to be kept.
            let some = async || count.load(Ordering::Relaxed) >= SOME;
            until(BOUND, "some are answered", some).await;
            let further = FLUSHED + Duration::from_millis(50 + round * 173 % 400);
            tokio::time::sleep(further).await;
            let at = Clock::System.monotonic();
            node.signal(if end == End::Kill { "KILL" } else { "TERM" });
            at
        };
        let (answered, ended) = tokio::join!(join_all(asking), ending);
        let status = node.ended(BOUND).await;
        assert_eq!(status.success(), end == End::Stop, "{status}");
        for (lane, answered) in lanes.iter().zip(answered) {
            // One request may have been decided and its answer lost.
            sent.insert(format!("{lane}-{}", answered.len()));
            for (id, at) in answered {
                let age = ended.saturating_duration_since(at);
                if end == End::Stop || age > FLUSHED {
                    kept.insert(id.clone(), age);
                }
                sent.insert(id);
            }
        }
        if end == End::Stop {
            // Before another one begins.
            assert_eq!(missing(home, &kept).await, None);
        }
        node = home.spawn(&again).await;
    }
    let least = SOME * usize::try_from(ends).unwrap();
    assert!(kept.len() >= least, "{}", kept.len());
    // What a killed node left in its journal is stored by the next.
    let is_there = async || missing(home, &kept).await.is_none();
    until(BOUND, "what was kept is stored", is_there).await;
    stop(node).await;
    let there = events(home).await;
    let distinct: BTreeSet<String> = there.iter().cloned().collect();
    assert_eq!(there.len(), distinct.len(), "some are there twice");
    assert!(distinct.is_subset(&sent), "some were never sent");
    assert_eq!(counted(home).await, i64::try_from(there.len()).unwrap());
}

/// How many of them are not in the ledger, and the one of them that was answered longest before the end.
async fn missing(
    home: &Home,
    kept: &BTreeMap<String, Duration>,
) -> Option<(usize, String, Duration)> {
    let there: BTreeSet<String> = events(home).await.into_iter().collect();
    let missing: Vec<_> = kept.iter().filter(|(id, _)| !there.contains(*id)).collect();
    let (id, age) = missing.iter().max_by_key(|(_, age)| *age)?;
    Some((missing.len(), (*id).clone(), **age))
}

pub async fn stop(mut node: Process) {
    node.signal("TERM");
    assert!(node.ended(BOUND).await.success());
}

/// What a killed node had not written yet stands in its journal or in the ledger.
async fn a_kill_does_not_lose_when_a_key_was_last_used(home: Home) {
    let mut node = home.spawn(&[]).await;
    let address = node.address.clone();
    let again = [("SERVER__LISTEN", address.as_str())];
    let owner = node.owner();
    let asker = Asker::new(&owner).await;
    // The first is used so that the next writing is ten seconds away, the others just before a kill.
    let mut keys = vec![asker.key.clone()];
    for name in ["stored", "journaled"] {
        let body = json!({
            "name": name, "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
        });
        keys.push(text(&owner.create("/v1/keys", body).await, "/api_key"));
    }
    let unused = async || {
        let path = "/v1/keys?service=invoicing&never_used=true";
        let page = owner.get(path).send().await.expect(200);
        page["items"].as_array().unwrap().len()
    };
    assert!(asker.ask(&keys[0], "first").await.is_some());
    let bound = BOUND;
    until(bound, "the first is written", async || unused().await == 2).await;
    let stored = async || counted(&home).await == 2;
    assert!(asker.ask(&keys[1], "stored").await.is_some());
    until(bound, "it is in the ledger", stored).await;
    assert!(asker.ask(&keys[2], "journaled").await.is_some());
    tokio::time::sleep(Duration::from_millis(250)).await;
    node.signal("KILL");
    node.ended(BOUND).await;
    let written = "SELECT CAST(COUNT(*) AS TEXT) AS line FROM secret WHERE last_used_at IS NULL";
    let lost = lines_of(home.eyes(), written.to_owned()).await;
    assert!(lost[0].parse::<i64>().unwrap() >= 2, "{lost:?}");
    let node = home.spawn(&again).await;
    until(bound, "all are known again", async || unused().await == 0).await;
    let page = owner.get("/v1/keys?service=invoicing").send().await;
    for key in page.expect(200)["items"].as_array().unwrap() {
        let used: Timestamp = text(key, "/last_used").parse().unwrap();
        let made: Timestamp = text(key, "/created_at").parse().unwrap();
        assert!(used.plus(Span::minutes(1)) > made, "{key}");
    }
    stop(node).await;
}

#[test]
fn when_a_key_was_last_used_is_known_though_no_node_starts_after_a_kill() {
    run(Backend::Postgres, async |home: Home| {
        let mut node = home.spawn(&[]).await;
        let owner = node.owner();
        let asker = Asker::new(&owner).await;
        let other = home.serve().await;
        let unused = async || {
            let path = "/v1/keys?service=invoicing&never_used=true";
            let page = owner.at(&other).get(path).send().await.expect(200);
            page["items"].as_array().unwrap().len()
        };
        let body = json!({
            "name": "other", "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
        });
        let key = text(&owner.create("/v1/keys", body).await, "/api_key");
        // The next writing is ten seconds away then.
        assert!(asker.ask(&asker.key, "first").await.is_some());
        until(BOUND, "the first is written", async || unused().await == 1).await;
        assert!(asker.ask(&key, "stored").await.is_some());
        let stored = async || counted(&home).await == 2;
        until(BOUND, "it is in the ledger", stored).await;
        node.signal("KILL");
        node.ended(BOUND).await;
        assert_eq!(unused().await, 1);
        other.clock.advance(Span::minutes(5));
        until(BOUND, "it is known", async || unused().await == 0).await;
    });
}

async fn keys_are_found_by_when_they_were_last_used(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let asker = Asker::new(&owner).await;
    let mut issued = BTreeMap::new();
    for name in ["early", "late", "never"] {
        let body = json!({
            "name": name, "consumer": "acme", "ttl": "1000d",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
        });
        let key = owner.create("/v1/keys", body).await;
        issued.insert(name, text(&key, "/api_key"));
    }
    let use_it = async |name: &str| {
        let asked = asker.ask(&issued[name], name).await;
        assert_eq!(asked.as_deref(), Some("valid"), "{name}");
        server.app.validation.flush_last_used().await.unwrap();
    };
    use_it("early").await;
    server.clock.advance(Span::hours(2));
    let between = server.clock.now();
    server.clock.advance(Span::hours(2));
    use_it("late").await;
    // A refusal is no use.
    let refused = json!({"api_key": issued["never"], "required_scopes": ["invoice:send"]});
    let refused = asker.caller.post("/v1/verify").json(refused).send().await;
    assert_eq!(refused.code(), "insufficient_scope");
    server.app.validation.flush_last_used().await.unwrap();
    let found = async |filter: &str| {
        let path = format!("/v1/keys?service=invoicing&{filter}");
        let page = owner.get(&path).send().await.expect(200);
        let names = page["items"].as_array().unwrap().iter();
        let mut names: Vec<String> = names.map(|key| text(key, "/name")).collect();
        names.retain(|name| name != "invoice:read");
        names.sort();
        names
    };
    assert_eq!(found("never_used=true").await, ["never"]);
    assert_eq!(found("never_used=false").await, ["early", "late"]);
    let since = |at: Timestamp| format!("unused_since={at}");
    assert_eq!(found(&since(between)).await, ["early", "never"]);
    let now = server.clock.now().plus(Span::seconds(1));
    assert_eq!(found(&since(now)).await, ["early", "late", "never"]);
    let first = between.minus(Span::hours(3));
    assert_eq!(found(&since(first)).await, ["never"]);
    let both = format!("{}&never_used=false", since(between));
    assert_eq!(found(&both).await, ["early"]);
    // The ledger says the same.
    until(BOUND, "the uses are stored", async || {
        counted(&home).await == 3
    })
    .await;
    let told = "SELECT CAST(COUNT(DISTINCT key_id) AS TEXT) AS line FROM usage_hour WHERE outcome = 'valid'";
    assert_eq!(lines(&home, told).await, ["2"]);
}

#[test]
fn who_changes_something_waits_for_a_part_of_the_last_uses_alone() {
    run(Backend::Sqlite, async |home: Home| {
        let server = home.serve().await;
        let now = server.clock.now();
        let used = (0..50_000).map(|number| {
            let at = now.plus(Span::seconds(number % 10));
            let key = KeyId::parse(&format!("key_{number:026}")).unwrap();
            let secret = SecretId::parse(&format!("sec_{number:026}")).unwrap();
            (key, secret, at)
        });
        server.app.validation.note_used(used.collect());
        let order = RefCell::new(Vec::new());
        let flush = async {
            server.app.validation.flush_last_used().await.unwrap();
            order.borrow_mut().push("flush");
        };
        let change = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let consumer = json!({"slug": "acme"});
            server.owner().create("/v1/consumers", consumer).await;
            order.borrow_mut().push("change");
        };
        join(flush, change).await;
        assert_eq!(*order.borrow(), ["change", "flush"]);
    });
}

#[test]
fn last_uses_and_changes_do_not_wait_for_each_other_in_a_circle() {
    use diesel_async::RunQueryDsl as _;

    run(Backend::Postgres, async |home: Home| {
        let server = home.serve().await;
        let owner = server.owner();
        let asker = Asker::new(&owner).await;
        let body = json!({
            "name": "other", "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
        });
        let other = owner.create("/v1/keys", body).await;
        server.app.validation.flush_last_used().await.unwrap();
        for key in [&text(&other, "/api_key"), &asker.key] {
            assert_eq!(asker.ask(key, "used").await.as_deref(), Some("valid"));
        }
        // Somebody changes a secret of the one key, and then the other key.
        let (has_begun, begun) = oneshot::channel();
        let (go_on, told) = oneshot::channel();
        let change = home.eyes().write_to_end({
            let other = text(&other, "/key/id");
            async move |conn: &mut Conn| -> db::Result<()> {
                let secret = "UPDATE secret SET valid_until = valid_until WHERE key_id <> $1";
                let key = "UPDATE api_key SET name = name WHERE id = $1";
                let statement = |sql: &str| diesel::sql_query(sql).bind::<Text, _>(other.clone());
                let (secret, key) = (statement(secret), statement(key));
                each!(&mut *conn, c => secret.execute(c).await)?;
                has_begun.send(()).unwrap();
                told.await.unwrap();
                each!(conn, c => key.execute(c).await)?;
                Ok(())
            }
        });
        let flush = async {
            begun.await.unwrap();
            let flush = server.app.validation.flush_last_used();
            let later = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                go_on.send(()).unwrap();
            };
            join(flush, later).await.0
        };
        let (changed, flushed) = join(change, flush).await;
        changed.expect("nobody stands in the way of a change");
        flushed.expect("nor does a change of what is written");
        let unwritten = "SELECT CAST(COUNT(*) AS TEXT) AS line FROM secret \
                         JOIN api_key ON api_key.id = key_id \
                         WHERE secret.last_used_at IS NULL OR api_key.last_used_at IS NULL";
        until(BOUND, "what was left out is written", async || {
            server.app.validation.flush_last_used().await.unwrap();
            lines_of(home.eyes(), unwritten.to_owned()).await == ["0"]
        })
        .await;
    });
}

/// So many validations a second, when it is the whole: for two minutes.
const RATE: u32 = 500;

#[test]
fn uses_wait_in_the_journal_while_the_database_is_away() {
    run(Backend::Postgres, |home: Home| async move {
        let is_long = setting("KEYSTEAD_TEST_LONG").is_some();
        let (rate, lasts) = if is_long {
            (RATE, Duration::from_mins(2))
        } else {
            (100, Duration::from_secs(4))
        };
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        // Without it a node decides for half a minute and no longer when its database is away.
        let redis = OwnRedis::start();
        let redis_url = redis.url();
        let settings = [
            ("DATABASE__URL", url.as_str()),
            ("REDIS__URL", redis_url.as_str()),
        ];
        let node = home.spawn(&settings).await;
        let asker = Asker::new(&node.owner()).await;
        assert!(asker.ask(&asker.key, "before").await.is_some());
        proxy.set(Fault::Refuse).await;
        let question = Question::verify(&asker.caller_key, &asker.key);
        let mut plan = Plan::at(rate, vec![node.address.parse().unwrap()], vec![question]);
        plan.count = u64::from(rate) * lasts.as_secs();
        let asked = plan.run().await;
        asked.expect_all_valid("while the database is away");
        proxy.set(Fault::None).await;
        let back = Clock::System.monotonic();
        let all = i64::try_from(asked.0.len()).unwrap() + 1;
        until(3 * BOUND, "all of them are stored", async || {
            counted(&home).await == all
        })
        .await;
        figure(format_args!(
            "{rate} validations/s for {lasts:?} without the database: {asked}; all stored \
             {:.1?} after it was back",
            back.elapsed()
        ));
        let there = events(&home).await;
        let distinct: BTreeSet<&str> = there.iter().map(String::as_str).collect();
        assert_eq!(there.len(), distinct.len(), "some are there twice");
        let shots = asked.0.iter();
        let mut sent: BTreeSet<&str> = shots.map(|shot| &*shot.told.request_id).collect();
        sent.insert("before");
        assert_eq!(distinct, sent);
        stop(node).await;
    });
}
