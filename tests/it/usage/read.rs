//! What is asked of the ledger over HTTP: lists, summaries, exports, and who may ask.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use keystead::db::{self, Conn, Db};
use keystead::page::Position;
use keystead::time::{Span, Timestamp};
use keystead::usage::query::EventFilter;
use keystead::usage::store::batch as stored;
use keystead::usage::store::events::{self, Most, Walked, Wanted};
use keystead::usage::{Batch, CountLine, Operation, Record, Rules};
use serde_json::{Value, json};

use super::{HOUR, batch, record, store};
use crate::support::{Client, Home, Server, both, text};

both!(
    each_filter_finds_its_events,
    pages_go_back_in_time_and_hold_every_event_once,
    in_stored_order_nothing_is_missed_while_slow_writers_write,
    newest_first_a_walk_holds_all_that_stood_before_it_while_slow_writers_write,
    a_key_that_was_idle_for_weeks_is_found,
    a_key_that_was_used_in_many_hours_is_found_in_each,
    a_walk_that_pauses_goes_on_where_it_was,
    a_page_of_an_export_is_bounded_by_bytes,
    a_list_without_a_beginning_goes_as_far_back_as_events_are_kept,
    a_summary_counts_by_what_is_asked_and_fills_gaps,
    who_may_read_of_one_service_reads_of_no_other,
    another_tenants_usage_is_not_there,
    an_export_is_a_line_an_event_and_holds_no_formula,
    why_an_export_was_asked_for_stands_in_the_trail,
    a_wrong_parameter_is_named,
);

/// A node and a ledger of its tenant.
struct Ledger {
    server: Server,
    owner: Client,
    tenant: String,
    home: Home,
}

impl Ledger {
    async fn new(home: &Home) -> Self {
        Self::with(home, &[]).await
    }

    async fn with(home: &Home, settings: &[(&str, &str)]) -> Self {
        let server = home.serve_with(settings).await;
        let owner = server.owner();
        let made = owner
            .create("/v1/consumers", json!({"slug": "a-team"}))
            .await;
        assert_eq!(made["slug"], "a-team");
        let tenant = super::lines_of(
            home.eyes(),
            "SELECT id AS line FROM tenant WHERE slug = 'default'".to_owned(),
        )
        .await;
        Self {
            server,
            owner,
            tenant: tenant[0].clone(),
            home: home.clone(),
        }
    }

    /// Milliseconds before now, which `at` counts back from.
    fn ago(&self, ms: i64) -> i64 {
        self.server.clock.now().millis() - ms
    }

    fn record(&self, ago_ms: i64, key: &str) -> Record {
        Record {
            tenant_id: self.tenant.clone(),
            ..record(self.ago(ago_ms), key)
        }
    }

    async fn store(&self, batch: &Batch) {
        store(&self.home.usage_db(), batch, &Rules::default()).await;
    }

    async fn items(&self, query: &str) -> Vec<Value> {
        let answer = self
            .owner
            .get(&format!("/v1/usage/events?{query}"))
            .send()
            .await
            .expect(200);
        answer["items"].as_array().expect("items").clone()
    }

    async fn found(&self, query: &str) -> Vec<String> {
        let items = self.items(query).await;
        items.iter().map(|item| text(item, "/request_id")).collect()
    }
}

const KEY: &str = "key_01jd8k3v9we5m8t7q2x4z6y0ab";
const SECRET: &str = "sec_01jd8k3v9we5m8t7q2x4z6y0ab";
const CONSUMER: &str = "con_01jd8k3v9we5m8t7q2x4z6y0ab";

async fn each_filter_finds_its_events(home: Home) {
    let ledger = Ledger::new(&home).await;
    let plain = || ledger.record(1_000, "key_other");
    let mut records = vec![Record {
        request_id: "plain".to_owned(),
        ..plain()
    }];
    let mut mine = ledger.record(3 * 3_600_000, KEY);
    let key = mine.key.as_mut().unwrap();
    key.secret_id = SECRET.to_owned();
    key.consumer_id = CONSUMER.to_owned();
    key.superseded = true;
    mine.service = "shipping".to_owned();
    mine.environment = "test".to_owned();
    mine.operation = Operation::Token;
    mine.outcome = "insufficient_scope".to_owned();
    mine.ip = Some("2001:db8::1".to_owned());
    mine.caller = "https://idp.example|me".to_owned();
    mine.request_id = "mine".to_owned();
    mine.token_id = Some("jti-1".to_owned());
    mine.subject = Some("ann".to_owned());
    mine.context.insert("region".to_owned(), "us".to_owned());
    for name in ["a b.c", "$", "$.x", "[0]", "\\", "é"] {
        mine.context.insert(name.to_owned(), "x".to_owned());
    }
    let at = mine.at;
    records.push(mine);
    ledger.store(&batch("a", 1, records)).await;
    for query in [
        &format!("key={KEY}"),
        &format!("secret={SECRET}"),
        &format!("consumer={CONSUMER}"),
        "superseded=true",
        "service=shipping",
        "environment=test",
        "operation=token",
        "outcome=insufficient_scope",
        "ip=2001:db8::1",
        "caller=https://idp.example%7Cme",
        "request_id=mine",
        "token_id=jti-1",
        "subject=ann",
        "context.region=us",
        "context.a%20b.c=x",
        "context.%24=x",
        "context.%24.x=x",
        "context.%5B0%5D=x",
        "context.%5C=x",
        "context.%C3%A9=x",
        &format!("from={at}&to={}", at.plus(Span::seconds(1))),
        &format!("key={KEY}&outcome=insufficient_scope&context.region=us&order=stored"),
    ] {
        assert_eq!(ledger.found(query).await, ["mine"], "{query}");
    }
    for query in ["context.region=xx", "context.nothing=us", "subject=bob"] {
        assert!(ledger.found(query).await.is_empty(), "{query}");
    }
    assert_eq!(ledger.found("").await, ["plain", "mine"]);
    assert_eq!(ledger.found("superseded=false").await, ["plain"]);
    let event = &ledger.items("request_id=mine").await[0];
    assert_eq!(event["path"], "/invoices/1");
    assert_eq!(event["required_scopes"], json!(["invoice:read"]));
    let context = event["context"].as_object().unwrap();
    assert_eq!((context.len(), &context["region"]), (7, &json!("us")));
}

async fn pages_go_back_in_time_and_hold_every_event_once(home: Home) {
    let ledger = Ledger::new(&home).await;
    // A few in each of many hours, and some at the same millisecond.
    let records: Vec<Record> = (0..60_i64)
        .map(|i| Record {
            request_id: format!("r{i}"),
            ..ledger.record((i / 4) * (i / 4) * 3_000_000, KEY)
        })
        .collect();
    ledger.store(&batch("a", 1, records)).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = ledger
            .owner
            .get(&format!("/v1/usage/events?key={KEY}&limit=7{cursor}"))
            .send()
            .await
            .expect(200);
        let items = page["items"].as_array().unwrap().clone();
        seen.extend(
            items
                .iter()
                .map(|item| (text(item, "/at"), text(item, "/id"))),
        );
        // What comes later is on no page of the past.
        ledger
            .store(&batch("b", seen.len() as i64, vec![ledger.record(0, KEY)]))
            .await;
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort();
    sorted.dedup();
    sorted.reverse();
    assert_eq!(seen.len(), 60);
    assert_eq!(seen, sorted);
}

/// Stores a batch in a transaction that stays open: others begin meanwhile and commit before.
async fn slow_store(db: &Db, batch: &Batch, pause_ms: u64) -> db::Result<()> {
    let batch = batch.clone();
    db.write(async move |conn: &mut Conn| {
        let now = Timestamp::from_millis(HOUR);
        stored::write(conn, &batch, &Rules::default(), now).await?;
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        Ok(())
    })
    .await
}

async fn in_stored_order_nothing_is_missed_while_slow_writers_write(home: Home) {
    let ledger = Ledger::new(&home).await;
    let rounds = 12;
    let writers = (0..8_i64).map(|writer| {
        let (ledger, db) = (&ledger, home.usage_db());
        async move {
            for round in 0..rounds {
                let records = (0..5).map(|i| Record {
                    request_id: format!("{writer}-{round}-{i}"),
                    ..ledger.record((writer * 7_919 + round * 104_729 + i) % 9_000_000, KEY)
                });
                let batch = batch(&format!("n{writer}"), round, records.collect());
                let pause = (writer * 31 + round * 17) % 60;
                // Who sends a batch sends it until it is stored.
                while slow_store(&db, &batch, pause as u64).await.is_err() {}
            }
        }
    });
    let read = async {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        let mut idle = 0;
        while idle < 25 {
            let page = ledger
                .owner
                .get(&format!("/v1/usage/events?order=stored&limit=11{cursor}"))
                .send()
                .await
                .expect(200);
            let items = page["items"].as_array().unwrap().clone();
            idle = if items.is_empty() { idle + 1 } else { 0 };
            if items.is_empty() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            seen.extend(items.iter().map(|item| text(item, "/request_id")));
            cursor = format!("&cursor={}", text(&page, "/next_cursor"));
        }
        seen
    };
    let (mut seen, _) = futures_util::future::join(read, join_all(writers)).await;
    let count = seen.len();
    seen.sort();
    seen.dedup();
    assert_eq!((seen.len(), count), (8 * 12 * 5, 8 * 12 * 5));
}

/// A walk through all pages holds each event that was committed before its first page, and none
/// twice, wherever in time the writers write.
async fn newest_first_a_walk_holds_all_that_stood_before_it_while_slow_writers_write(home: Home) {
    let ledger = Ledger::new(&home).await;
    let committed = Mutex::new(BTreeSet::new());
    let is_done = AtomicBool::new(false);
    let rounds = 10;
    let writers = (0..8_i64).map(|writer| {
        let (ledger, db, committed) = (&ledger, home.usage_db(), &committed);
        async move {
            for round in 0..rounds {
                let records: Vec<Record> = (0..4)
                    .map(|i| Record {
                        request_id: format!("{writer}-{round}-{i}"),
                        ..ledger.record((writer * 7_919 + round * 104_729 + i) % 9_000_000, KEY)
                    })
                    .collect();
                let ids: Vec<String> = records.iter().map(|one| one.request_id.clone()).collect();
                let batch = batch(&format!("n{writer}"), round, records);
                let pause = (writer * 31 + round * 17) % 60;
                while slow_store(&db, &batch, pause as u64).await.is_err() {}
                committed.lock().unwrap().extend(ids);
            }
        }
    });
    let writing = async {
        join_all(writers).await;
        is_done.store(true, Ordering::Relaxed);
    };
    let walking = async {
        let mut walks = 0;
        loop {
            // One more walk after the last of them.
            let is_last = is_done.load(Ordering::Relaxed);
            let before = committed.lock().unwrap().clone();
            let (mut seen, mut cursor) = (Vec::new(), String::new());
            loop {
                let path = format!("/v1/usage/events?limit=13{cursor}");
                let page = ledger.owner.get(&path).send().await.expect(200);
                let items = page["items"].as_array().unwrap();
                seen.extend(items.iter().map(|item| text(item, "/request_id")));
                match page["next_cursor"].as_str() {
                    Some(next) => cursor = format!("&cursor={next}"),
                    None => break,
                }
            }
            let distinct: BTreeSet<String> = seen.iter().cloned().collect();
            assert_eq!(distinct.len(), seen.len(), "some stand there twice");
            let missed: Vec<&String> = before.difference(&distinct).collect();
            assert!(missed.is_empty(), "{missed:?}");
            walks += 1;
            if is_last {
                return (walks, distinct.len());
            }
        }
    };
    let (walked, ()) = futures_util::future::join(walking, writing).await;
    assert_eq!(walked.1, 8 * 10 * 4);
    assert!(walked.0 > 2, "nobody wrote while somebody walked");
}

/// Its counts say where to look, also where a service kept no event.
async fn a_key_that_was_idle_for_weeks_is_found(home: Home) {
    let ledger = Ledger::new(&home).await;
    const DAY_MS: i64 = 86_400_000;
    let ago = [25 * DAY_MS, 25 * DAY_MS + 5_000, 21 * DAY_MS, 29 * DAY_MS];
    let records = ago.iter().map(|ago| ledger.record(*ago, KEY)).collect();
    ledger.store(&batch("a", 1, records)).await;
    let others = (0..50).map(|hour| ledger.record(hour * 3_600_000, "key_other"));
    ledger.store(&batch("a", 2, others.collect())).await;
    let mut silent = batch("a", 3, Vec::new());
    silent.counts_only = (1..20)
        .map(|day| CountLine {
            record: ledger.record(day * DAY_MS, KEY),
            uses: 1,
        })
        .collect();
    ledger.store(&silent).await;
    let found = ledger.items(&format!("key={KEY}")).await;
    assert_eq!(found.len(), 4);
    let first = ledger.items(&format!("key={KEY}&limit=1")).await;
    assert_eq!(first[0]["id"], found[0]["id"]);
    let day = ledger.server.clock.now().minus(Span::days(22));
    assert_eq!(ledger.items(&format!("key={KEY}&to={day}")).await.len(), 3);
    assert_eq!(
        ledger.items(&format!("key={KEY}&from={day}")).await.len(),
        1
    );
    let sums = "/v1/usage/summary?bucket=day&group_by=outcome";
    let sums = format!("{sums}&key={KEY}");
    let sums = ledger.owner.get(&sums).send().await.expect(200);
    assert_eq!(sums["groups"][0]["uses"], 23);
}

/// Once or twice in each of more hours than are looked into together, some beside each other and some not.
async fn a_key_that_was_used_in_many_hours_is_found_in_each(home: Home) {
    let ledger = Ledger::new(&home).await;
    let hour = 3_600_000;
    let hours = (0..70).filter(|hour| hour % 7 != 3).chain([150]);
    let ago = hours.flat_map(|hours| [hours * hour, hours * hour + 1_800_000]);
    let records: Vec<_> = ago.map(|ago| ledger.record(ago, KEY)).collect();
    let count = records.len();
    ledger.store(&batch("a", 1, records)).await;
    let others = (0..70).map(|hours| ledger.record(hours * hour, "key_other"));
    ledger.store(&batch("a", 2, others.collect())).await;

    let ids =
        |items: &[Value]| -> Vec<String> { items.iter().map(|item| text(item, "/id")).collect() };
    let whole = ledger.items(&format!("key={KEY}&limit=200")).await;
    assert_eq!(whole.len(), count);
    let times: Vec<_> = whole.iter().map(|item| text(item, "/at")).collect();
    assert!(
        times.is_sorted_by(|newer, older| newer > older),
        "{times:?}"
    );
    let (mut found, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/usage/events?key={KEY}&limit=23{cursor}");
        let page = ledger.owner.get(&path).send().await.expect(200);
        found.extend(ids(page["items"].as_array().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(found, ids(&whole));
}

async fn a_walk_that_pauses_goes_on_where_it_was(home: Home) {
    let ledger = Ledger::new(&home).await;
    let hour = 3_600_000;
    let records = [0, 1, 1, 5, 30, 31, 300, 301].map(|hours| ledger.record(hours * hour, KEY));
    ledger.store(&batch("a", 1, records.into())).await;
    let now = ledger.server.clock.now();
    for key in [None, Some(KEY.to_owned())] {
        let wanted = Wanted {
            tenant_id: ledger.tenant.clone(),
            services: None,
            filter: EventFilter {
                key,
                ..EventFilter::default()
            },
            oldest: now.minus(Span::days(30)),
            now,
        };
        let walk = async |after: Option<Position>, pause_after: Duration| {
            let wanted = wanted.clone();
            let walk = async move |conn: &mut Conn| {
                let most = Most {
                    events: 100,
                    bytes: None,
                };
                events::walk(conn, &wanted, after.as_ref(), most, pause_after).await
            };
            let walked: db::Result<Walked> = home.usage_eyes().read(walk).await;
            walked.unwrap()
        };
        let ids = |walked: &Walked| -> Vec<String> {
            let events = walked.events.iter();
            events.map(|event| event.id.clone()).collect()
        };
        let whole = walk(None, Duration::MAX).await;
        assert!(whole.events.len() == 8 && whole.paused.is_none());
        let (mut found, mut after, mut pauses) = (Vec::new(), None, 0);
        loop {
            let walked = walk(after, Duration::ZERO).await;
            found.extend(ids(&walked));
            let Some(paused) = walked.paused else { break };
            (after, pauses) = (Some(paused), pauses + 1);
        }
        assert_eq!(found, ids(&whole));
        assert!(pauses > 3, "{pauses}");
    }
}

/// However large the events are, a page holds few bytes, and all pages together each event once.
async fn a_page_of_an_export_is_bounded_by_bytes(home: Home) {
    const MAX: usize = 200_000;
    let ledger = Ledger::new(&home).await;
    let sized = |number: i64, bytes: usize| Record {
        user_agent: Some("a".repeat(bytes)),
        request_id: format!("r{number}"),
        // Some in the same millisecond, some in another window.
        ..ledger.record((number / 3) * 600_000, KEY)
    };
    let mut records: Vec<Record> = (0..30).map(|n| sized(n, 30_000)).collect();
    records.extend((30..34).map(|n| sized(n, MAX + 1)));
    records.extend((34..60).map(|n| sized(n, 10)));
    ledger.store(&batch("a", 1, records)).await;
    let now = ledger.server.clock.now();
    let wanted = Wanted {
        tenant_id: ledger.tenant.clone(),
        services: None,
        filter: EventFilter::default(),
        oldest: now.minus(Span::days(1)),
        now,
    };
    let (mut seen, mut pages, mut after) = (Vec::new(), Vec::new(), None);
    loop {
        let (wanted, behind) = (wanted.clone(), after.take());
        let most = Most {
            events: 100,
            bytes: Some(MAX as i64),
        };
        let walk = async move |conn: &mut Conn| {
            events::walk(conn, &wanted, behind.as_ref(), most, Duration::MAX).await
        };
        let walked: db::Result<Walked> = home.usage_eyes().read(walk).await;
        let walked = walked.unwrap();
        let bytes: usize = walked.events.iter().map(|event| event.detail.len()).sum();
        assert!(bytes <= MAX || walked.events.len() == 1, "{bytes}");
        pages.push(walked.events.len());
        seen.extend(walked.events.iter().map(|event| event.request_id.clone()));
        match walked.paused {
            Some(position) => after = Some(position),
            None => break,
        }
    }
    assert_eq!(
        pages.iter().filter(|events| **events == 1).count(),
        4,
        "{pages:?}"
    );
    let distinct: BTreeSet<&String> = seen.iter().collect();
    assert_eq!((seen.len(), distinct.len()), (60, 60), "{pages:?}");
    let export = ledger.owner.get("/v1/usage/export").send().await;
    assert_eq!(export.text.lines().count(), 60);
}

async fn a_list_without_a_beginning_goes_as_far_back_as_events_are_kept(home: Home) {
    let ledger = Ledger::with(&home, &[("USAGE__EVENTS_RETENTION", "90d")]).await;
    let day = 24 * 3_600_000;
    let records = [1, 60, 89, 91].map(|days| Record {
        request_id: format!("{days}"),
        ..ledger.record(days * day, KEY)
    });
    ledger.store(&batch("a", 1, records.into())).await;
    assert_eq!(ledger.found("limit=9").await, ["1", "60", "89"]);
    let export = ledger.owner.get("/v1/usage/export").send().await;
    assert_eq!(export.text.lines().count(), 3, "{export}");
}

async fn a_summary_counts_by_what_is_asked_and_fills_gaps(home: Home) {
    let ledger = Ledger::new(&home).await;
    let mut records = vec![ledger.record(0, KEY), ledger.record(1, KEY)];
    records.push(Record {
        outcome: "rate_limited".to_owned(),
        ip: Some("192.0.2.9".to_owned()),
        used_scopes: Vec::new(),
        ..ledger.record(2 * 86_400_000, "key_other")
    });
    ledger.store(&batch("a", 1, records)).await;
    let ask = async |query: &str| {
        let path = format!("/v1/usage/summary?{query}");
        ledger.owner.get(&path).send().await.expect(200).clone()
    };
    let days = ask("group_by=outcome&bucket=day").await;
    let groups = days["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{days}");
    assert_eq!(groups[0]["group"], json!({"outcome": "valid"}));
    assert_eq!(
        (&groups[0]["uses"], &groups[0]["cost"]),
        (&json!(2), &json!(4))
    );
    let points = groups[1]["points"].as_array().unwrap();
    assert!((30..=32).contains(&points.len()), "{}", points.len());
    let uses: i64 = points
        .iter()
        .map(|point| point["uses"].as_i64().unwrap())
        .sum();
    assert_eq!(uses, 1);

    let total = ask("").await;
    assert_eq!(total["groups"][0]["uses"], 3);
    assert_eq!(total["groups"][0]["group"], json!({}));
    let by_key = ask(&format!("group_by=key&group_by=outcome&key={KEY}")).await;
    assert_eq!(
        by_key["groups"][0]["group"],
        json!({"key": KEY, "outcome": "valid"})
    );
    for (query, count, has_cost) in [
        ("group_by=ip", 2, false),
        ("group_by=scope&bucket=day", 1, false),
        ("group_by=caller&bucket=hour", 1, true),
        ("group_by=secret&group_by=consumer&bucket=minute", 1, true),
        ("group_by=service", 1, true),
        ("outcome=revoked&group_by=service", 0, true),
    ] {
        let found = ask(query).await;
        let groups = found["groups"].as_array().unwrap();
        assert_eq!(groups.len(), count, "{query}: {found}");
        // What is not counted is not nothing.
        let points = groups
            .iter()
            .flat_map(|one| one["points"].as_array().unwrap());
        for one in groups.iter().chain(points) {
            assert!(one["uses"].is_i64(), "{query}: {one}");
            let cost = one.get("cost").expect("a member");
            assert_eq!(
                (cost.is_i64(), cost.is_null()),
                (has_cost, !has_cost),
                "{query}: {one}"
            );
        }
    }
}

async fn who_may_read_of_one_service_reads_of_no_other(home: Home) {
    let ledger = Ledger::new(&home).await;
    let shipping = Record {
        service: "shipping".to_owned(),
        ..ledger.record(0, KEY)
    };
    ledger
        .store(&batch("a", 1, vec![ledger.record(0, KEY), shipping]))
        .await;
    let issued = ledger
        .owner
        .create(
            "/v1/keys",
            json!({
                "name": "reader", "consumer": "a-team",
                "grants": [{"service": "keystead", "scopes": ["usage:read:billing"]}],
            }),
        )
        .await;
    let reader = ledger.server.client().with_key(&text(&issued, "/api_key"));
    let page = reader.get("/v1/usage/events").send().await.expect(200);
    let items = page["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 1);
    assert_eq!(items[0]["service"], "billing");
    let sums = reader
        .get("/v1/usage/summary?group_by=service")
        .send()
        .await;
    let sums = sums.expect(200);
    assert_eq!(sums["groups"].as_array().unwrap().len(), 1);
    assert_eq!(sums["groups"][0]["uses"], 1);
    for refused in [
        "/v1/usage/events?service=shipping",
        "/v1/usage/summary?service=shipping",
        "/v1/usage/export?service=shipping",
    ] {
        reader.get(refused).send().await.expect(403);
    }
    let ips = reader.get("/v1/usage/summary?group_by=ip").send().await;
    ips.expect(400);
}

async fn another_tenants_usage_is_not_there(home: Home) {
    let ledger = Ledger::new(&home).await;
    ledger
        .store(&batch("a", 1, vec![record(ledger.ago(0), KEY)]))
        .await;
    for query in ["", &format!("key={KEY}"), "order=stored"] {
        assert!(ledger.found(query).await.is_empty(), "{query}");
    }
    let sum = ledger
        .owner
        .get("/v1/usage/summary")
        .send()
        .await
        .expect(200);
    assert_eq!(sum["groups"][0]["uses"], 0);
}

async fn an_export_is_a_line_an_event_and_holds_no_formula(home: Home) {
    let ledger = Ledger::new(&home).await;
    let records = (0..4_500_i64).map(|i| Record {
        user_agent: Some("=HYPERLINK(\"http://evil\")\n{\"level\":\"info\"}\u{2028}".to_owned()),
        path: Some("@SUM(A1)".to_owned()),
        ..ledger.record(i * 1_000 + 1, KEY)
    });
    ledger.store(&batch("a", 1, records.collect())).await;
    let get = async |format: &str| {
        let path = format!("/v1/usage/export?format={format}&key={KEY}");
        let answer = ledger.owner.get(&path).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.text
    };
    let lines = get("ndjson").await;
    let ids: std::collections::BTreeSet<String> = lines
        .lines()
        .map(|line| text(&serde_json::from_str(line).expect("JSON"), "/id"))
        .collect();
    assert_eq!((lines.lines().count(), ids.len()), (4_500, 4_500));

    let table = get("csv").await;
    assert_eq!(table.lines().count(), 4_501);
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let mut rows = 0;
    for row in reader.records() {
        rows += 1;
        for cell in &row.expect("CSV") {
            assert!(
                !cell.starts_with(['=', '+', '-', '@', '\t', '\r']),
                "{cell}"
            );
        }
    }
    assert_eq!(rows, 4_500);
}

async fn why_an_export_was_asked_for_stands_in_the_trail(home: Home) {
    let ledger = Ledger::new(&home).await;
    let export = ledger.owner.get("/v1/usage/export?service=billing");
    let export = export.header("audit-reason", "yearly audit").send().await;
    assert_eq!(export.status, 200, "{export}");
    let path = "/v1/audit/events?action=usage.export";
    let trail = ledger.owner.get(path).send().await.expect(200);
    assert_eq!(trail["items"][0]["reason"], "yearly audit", "{trail}");
    assert_eq!(trail["items"][0]["after"]["filter"]["service"], "billing");
    let export = ledger.owner.get("/v1/usage/export");
    let refused = export.header("audit-reason", &"x".repeat(10_000));
    refused.send().await.expect(400);
    let trail = ledger.owner.get(path).send().await.expect(200);
    assert_eq!(trail["items"].as_array().unwrap().len(), 1, "{trail}");
}

async fn a_wrong_parameter_is_named(home: Home) {
    let ledger = Ledger::new(&home).await;
    for (query, pointer) in [
        ("events?from=yesterday", "from"),
        ("events?operation=fly", "operation"),
        ("events?superseded=1", "superseded"),
        ("events?ip=1.2.3", "ip"),
        ("events?order=up", "order"),
        (
            "events?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            "from",
        ),
        ("export?format=xml", "format"),
        ("summary?bucket=week", "bucket"),
        ("summary?group_by=colour", "group_by/0"),
        ("summary?bucket=minute&from=2020-01-01T00:00:00Z", "from"),
        ("summary?group_by=ip&bucket=hour", "bucket"),
        ("events?colour=red", "colour"),
        ("events?outcome=vaild", "outcome"),
        ("export?outcome=", "outcome"),
        ("summary?outcome=vaild", "outcome"),
        ("events?service=Billing", "service"),
        ("summary?service=", "service"),
        ("export?environment=Live", "environment"),
        ("events?key=worker", "key"),
        ("summary?key=worker", "key"),
        ("export?key=worker", "key"),
        ("summary?secret=x", "secret"),
        ("events?consumer=a-team", "consumer"),
        ("events?context.=17", "context."),
    ] {
        let path = format!("/v1/usage/{query}");
        let problem = ledger.owner.get(&path).send().await.expect(400);
        assert_eq!(
            problem["errors"][0]["pointer"], pointer,
            "{query}: {problem}"
        );
    }
    let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
    for query in [
        format!("events?key={key}"),
        "events?key=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln".to_owned(),
        "events?api_key=worker".to_owned(),
    ] {
        let path = format!("/v1/usage/{query}");
        let told = ledger.owner.get(&path).send().await;
        assert_eq!(told.expect(400)["code"], "credential_in_query", "{query}");
    }
}
