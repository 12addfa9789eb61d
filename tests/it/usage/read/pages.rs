//! Lists of events, page by page: each event once, however many hours lie between and whoever writes meanwhile.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use keystead::db::{self, Conn, Db};
use keystead::page::{Page, PageRequest, Position};
use keystead::usage::query::EventFilter;
use keystead::usage::store::batch as stored;
use keystead::usage::store::events::{self, StoredEvent, Wanted};
use keystead::usage::store::walk::{self, Most, Walked};

use super::*;
use crate::support::tables::execute_on;

both!(
    pages_go_back_in_time_and_hold_every_event_once,
    in_stored_order_nothing_is_missed_while_slow_writers_write,
    in_stored_order_an_empty_page_is_the_end_if_it_leads_nowhere,
    newest_first_a_walk_holds_all_that_stood_before_it_while_slow_writers_write,
    an_export_holds_all_that_stood_before_it_while_slow_writers_write,
    a_key_that_was_idle_for_weeks_is_found,
    a_key_that_was_used_in_many_hours_is_found_in_each,
    a_walk_that_pauses_goes_on_where_it_was,
    a_page_of_an_export_is_bounded_by_bytes,
    a_list_without_a_beginning_goes_as_far_back_as_events_are_kept,
);

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

/// Batches of others, more than are looked up at once, stand before what is asked for.
async fn in_stored_order_an_empty_page_is_the_end_if_it_leads_nowhere(home: Home) {
    const OTHERS: i64 = 1_100;
    let ledger = Ledger::new(&home).await;
    let others = format!(
        "WITH RECURSIVE other(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM other WHERE n < {OTHERS}) \
         INSERT INTO usage_batch (node, number, seq, first_at, last_at, events, shed, stored_at) \
         SELECT 'other', n, n, 0, 0, 1, 0, 0 FROM other"
    );
    execute_on(home.usage_eyes(), &others).await;
    let head = format!("UPDATE usage_head SET seq = {OTHERS}");
    execute_on(home.usage_eyes(), &head).await;
    let mine = Record {
        request_id: "mine".to_owned(),
        ..ledger.record(0, KEY)
    };
    ledger.store(&batch("a", 1, vec![mine])).await;
    let now = ledger.server.clock.now();
    let wanted = Wanted {
        tenant_id: ledger.tenant.clone(),
        services: None,
        filter: EventFilter::default(),
        oldest: now.minus(Span::days(30)),
        now,
    };
    let stored = async |after: Option<Position>, pause_after: Duration| {
        let wanted = wanted.clone();
        let request = PageRequest { limit: 9, after };
        let stored =
            async move |conn: &mut Conn| events::stored(conn, &wanted, &request, pause_after).await;
        let page: db::Result<Page<StoredEvent>> = home.usage_eyes().read(stored).await;
        page.unwrap()
    };
    // With all the time there is.
    let page = stored(None, Duration::MAX).await;
    assert_eq!(page.items.len(), 1);
    let end = stored(page.next.clone(), Duration::MAX).await;
    assert!(end.items.is_empty() && end.next == page.next);
    // With none: one batch more a page.
    let near = Position {
        at: Timestamp::from_millis(OTHERS - 3),
        id: String::new(),
    };
    let (mut next, mut sizes) = (Some(near), Vec::new());
    loop {
        let page = stored(next.clone(), Duration::ZERO).await;
        sizes.push(page.items.len());
        if page.next == next {
            break;
        }
        next = page.next;
    }
    assert_eq!(sizes, [0, 0, 0, 1, 0]);
    assert_eq!(next, end.next);
    // As it is asked for, however long it takes.
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let behind = cursor.as_ref();
        let behind = behind.map_or(String::new(), |cursor| format!("&cursor={cursor}"));
        let path = format!("/v1/usage/events?order=stored{behind}");
        let page = ledger.owner.get(&path).send().await.expect(200);
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().map(|item| text(item, "/request_id")));
        let next = Some(text(&page, "/next_cursor"));
        if next == cursor {
            break;
        }
        cursor = next;
    }
    assert_eq!(seen, ["mine"]);
}

/// A walk through all pages holds each event that was committed before its first page, and none
/// twice, wherever in time the writers write.
async fn newest_first_a_walk_holds_all_that_stood_before_it_while_slow_writers_write(home: Home) {
    let ledger = Ledger::new(&home).await;
    walks_hold_all_before_them(&ledger, async || {
        let items = ledger.owner.all("/v1/usage/events", 13).await;
        items.iter().map(|item| text(item, "/request_id")).collect()
    })
    .await;
}

/// The same of an export, which asks how large events are before it reads them.
async fn an_export_holds_all_that_stood_before_it_while_slow_writers_write(home: Home) {
    let ledger = Ledger::new(&home).await;
    walks_hold_all_before_them(&ledger, async || {
        let export = ledger.owner.get("/v1/usage/export").send().await;
        let lines = export.text.lines().map(serde_json::from_str);
        let lines: Vec<Value> = lines.collect::<Result<_, _>>().expect("JSON");
        lines.iter().map(|line| text(line, "/request_id")).collect()
    })
    .await;
}

/// `walk` answers the ids of requests that it has found.
async fn walks_hold_all_before_them(ledger: &Ledger, walk: impl AsyncFn() -> Vec<String>) {
    let committed = Mutex::new(BTreeSet::new());
    let is_done = AtomicBool::new(false);
    let rounds = 10;
    let writers = (0..8_i64).map(|writer| {
        let (db, committed) = (ledger.home.usage_db(), &committed);
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
            let seen = walk().await;
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

/// Twice in each of more hours than are told apart at once, some beside each other and some not.
async fn a_key_that_was_used_in_many_hours_is_found_in_each(home: Home) {
    let ledger = Ledger::new(&home).await;
    let hour = 3_600_000;
    let hours = (0..70).filter(|hour| hour % 7 != 3).chain(80..300);
    let hours = hours.chain([400]);
    let ago = hours.flat_map(|hours| [hours * hour, hours * hour + 1_800_000]);
    let records: Vec<_> = ago.map(|ago| ledger.record(ago, KEY)).collect();
    let count = records.len();
    // Few at once: each makes the partitions of its hours.
    for (number, records) in (1..).zip(records.chunks(80)) {
        ledger.store(&batch("a", number, records.to_vec())).await;
    }
    let others = (0..70).map(|hours| ledger.record(hours * hour, "key_other"));
    ledger.store(&batch("b", 1, others.collect())).await;

    let ids =
        |items: &[Value]| -> Vec<String> { items.iter().map(|item| text(item, "/id")).collect() };
    let path = format!("/v1/usage/events?key={KEY}");
    let whole = ledger.owner.all(&path, 200).await;
    assert_eq!(whole.len(), count);
    let times: Vec<_> = whole.iter().map(|item| text(item, "/at")).collect();
    assert!(
        times.is_sorted_by(|newer, older| newer > older),
        "{times:?}"
    );
    assert_eq!(ids(&ledger.owner.all(&path, 23).await), ids(&whole));
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
                walk::walk(conn, &wanted, after.as_ref(), most, pause_after).await
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
            walk::walk(conn, &wanted, behind.as_ref(), most, Duration::MAX).await
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
