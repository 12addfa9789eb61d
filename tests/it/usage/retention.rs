//! What is old goes, and what is not stays, whatever the clock says.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

use futures_util::future::join_all;
use keystead::clock::Clock;
use keystead::db::{self, Conn};
use keystead::time::{Span, Timestamp};
use keystead::usage::retention::Keep;
use keystead::usage::store::batch::{Group, Written};
use keystead::usage::store::retention::ROWS_MAX;
use keystead::usage::{Record, Rules, Usage};
use tokio::time::Instant;

use super::{DAY_MS, batch, cut_old, lines, number, record, speak_for, store};
use crate::support::tables::execute_on;
use crate::support::{Backend, Home, both, run};

both!(
    old_hours_go_and_counts_stay,
    gently_as_much_goes_of_each_tenant,
    a_cut_that_takes_long_is_told_hour_by_hour,
    batches_of_a_time_that_has_not_come_keep_no_others,
    old_counts_go_to_the_last_however_many_they_are,
    the_oldest_minute_that_is_kept_is_whole,
    beyond_its_bytes_the_oldest_hours_go,
    a_clock_that_jumps_deletes_nothing,
    a_node_whose_clock_is_ahead_takes_nothing_with_it,
    a_batch_that_is_sent_again_after_years_counts_once,
);

const HOUR_MS: i64 = 3_600_000;

/// Three uses in each of `hours` hours that end with the one at hand.
async fn fill(home: &Home, now: Timestamp, hours: i64) {
    for hour in 0..hours {
        let at = now.millis() - hour * HOUR_MS;
        // Of several tenants, each of whose oldest hours go.
        let records = (0..3).map(|n| Record {
            tenant_id: format!("ten_{}", (hour + n) % 2),
            ..record(at - n, "key_1")
        });
        let records = records.collect();
        store(
            home.usage_eyes(),
            &batch("a", hours - hour, records),
            &Rules::default(),
        )
        .await;
    }
}

async fn events(home: &Home) -> i64 {
    number(home, "SELECT COUNT(*) FROM usage_event").await
}

fn keep(events: Span, bytes_max: u64) -> Keep {
    Keep {
        events,
        bytes_max,
        counts_since: Timestamp::MAX,
        gently_until: Instant::now(),
        told_after: Duration::MAX,
    }
}

async fn old_hours_go_and_counts_stay(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db, clock.clone());
    usage.prepare_hours().await.unwrap();
    fill(&home, clock.now(), 6).await;
    let cut = cut_old(&usage, keep(Span::hours(3), u64::MAX)).await;
    assert!(cut.hours >= 2 && cut.hours_for_room == 0, "{cut:?}");
    let left = events(&home).await;
    assert!((9..=15).contains(&left), "{left}");
    let oldest = "SELECT CAST(MIN(at) AS TEXT) AS line FROM usage_event";
    let oldest: i64 = lines(&home, oldest).await[0].parse().unwrap();
    assert!(oldest >= clock.now().millis() - 4 * HOUR_MS);
    let counted = "SELECT SUM(uses) FROM usage_hour";
    assert_eq!(number(&home, counted).await, 18);
    assert_eq!(
        cut_old(&usage, keep(Span::hours(3), u64::MAX)).await.hours,
        0
    );
}

/// Hours with more events than go at once, of tenants that have some in each of them or in one.
async fn gently_as_much_goes_of_each_tenant(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db.clone(), clock.clone());
    usage.prepare_hours().await.unwrap();
    let now = clock.now().millis();
    let hour = now - now.rem_euclid(HOUR_MS);
    for (number, hours, count) in [(1, 402 * 24, 150), (2, 6, 150), (3, 5, 1_000), (4, 0, 90)] {
        let records = (0..count).map(|n| Record {
            tenant_id: format!("ten_{}", n % (3 + number)),
            ..record(hour - hours * HOUR_MS + n % 7, &format!("key_{n}"))
        });
        let batch = batch("a", number, records.collect());
        store(&db, &batch, &Rules::default()).await;
    }
    speak_for(&home, clock.now()).await;
    let gently = Keep {
        gently_until: Instant::now() + Duration::from_mins(10),
        ..keep(Span::hours(3), u64::MAX)
    };
    let mut seen = Vec::new();
    let mut cutting = std::pin::pin!(cut_old(&usage, gently));
    let cut = loop {
        tokio::select! {
            cut = &mut cutting => break cut,
            left = events(&home) => seen.push(left),
        }
    };
    assert!(cut.hours == 3 && !cut.is_part, "{cut:?}");
    assert_eq!(events(&home).await, 90);
    let counted = "SELECT SUM(uses) FROM usage_hour WHERE key_id <> ''";
    assert_eq!(number(&home, counted).await, 1_240);
    // Whoever looks meanwhile finds it going.
    seen.dedup();
    assert!(
        home.backend == Backend::Postgres || seen.len() > 10,
        "{seen:?}"
    );
}

async fn a_cut_that_takes_long_is_told_hour_by_hour(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db, clock.clone());
    fill(&home, clock.now(), 6).await;
    let long = Keep {
        told_after: Duration::ZERO,
        ..keep(Span::hours(3), u64::MAX)
    };
    let mut left = vec![events(&home).await];
    loop {
        let cut = usage.cut_events(long).await.unwrap();
        left.push(events(&home).await);
        if !cut.is_part {
            assert_eq!(cut.hours, 1, "the last hour: {left:?}");
            break;
        }
        assert!(cut.hours == 1 && cut.until.is_some(), "{cut:?}");
    }
    assert!(
        left.len() > 2 && left.is_sorted_by(|a, b| a > b),
        "{left:?}"
    );
    assert_eq!(usage.cut_events(long).await.unwrap().hours, 0);
}

/// A node whose clock was ahead for a moment stored batches first that are old last.
async fn batches_of_a_time_that_has_not_come_keep_no_others(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db.clone(), clock.clone());
    let now = clock.now().millis();
    for number in 0..50 {
        let days = if number < 25 { 1 } else { 60 };
        let old = record(now - days * DAY_MS, "key_1");
        store(&db, &batch("a", number, vec![old]), &Rules::default()).await;
    }
    speak_for(&home, clock.now()).await;
    let gently = Keep {
        gently_until: Instant::now() + Duration::from_mins(4),
        ..keep(Span::days(30), u64::MAX)
    };
    cut_old(&usage, gently).await;
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_batch").await, 25);
}

async fn the_oldest_minute_that_is_kept_is_whole(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db.clone(), clock.clone());
    let now = clock.now();
    let minute = |at: i64| at - at.rem_euclid(60_000);
    let oldest = minute(now.millis() - 7 * DAY_MS) - 60_000;
    let records = [oldest - 1, oldest, now.millis()].map(|at| record(at, "key_1"));
    store(&db, &batch("a", 1, records.into()), &Rules::default()).await;
    speak_for(&home, now).await;
    cut_old(&usage, keep(Span::days(30), u64::MAX)).await;
    let left = "SELECT CAST(start AS TEXT) AS line FROM usage_minute ORDER BY start";
    let kept = [oldest, minute(now.millis())].map(|start| start.to_string());
    assert_eq!(lines(&home, left).await, kept);
}

/// More than one part of them.
async fn old_counts_go_to_the_last_however_many_they_are(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db.clone(), clock.clone());
    let (now, count) = (clock.now().millis(), 6_000);
    assert!(i64::from(count) > ROWS_MAX);
    for (number, days) in [(1, 402), (2, 0)] {
        let records = (0..count).map(|n| Record {
            tenant_id: format!("ten_{}", n % 2),
            ..record(now - days * 24 * HOUR_MS, &format!("key_{n}"))
        });
        let mut records: Vec<Record> = records.collect();
        records.push(Record {
            key: None,
            ..records[0].clone()
        });
        let batch = batch("a", number, records);
        store(&db, &batch, &Rules::default()).await;
    }
    let tables = [
        "usage_minute",
        "usage_hour",
        "usage_day",
        "usage_ip",
        "usage_scope",
        "usage_stranger",
        "usage_batch",
    ];
    let mut before = Vec::new();
    for table in tables {
        let rows = number(&home, &format!("SELECT COUNT(*) FROM {table}")).await;
        before.push(rows);
    }
    speak_for(&home, clock.now()).await;
    // What the trail does not say of stays.
    let unsaid = Keep {
        counts_since: Timestamp::from_millis(0),
        ..keep(Span::days(30), u64::MAX)
    };
    cut_old(&usage, unsaid).await;
    let hours = "SELECT COUNT(*) FROM usage_hour";
    assert_eq!(number(&home, hours).await, before[1]);
    cut_old(&usage, keep(Span::days(30), u64::MAX)).await;
    let speaks = "DELETE FROM usage_day WHERE tenant_id = 'ten_of_time'";
    execute_on(home.usage_eyes(), speaks).await;
    for (table, before) in tables.into_iter().zip(before) {
        let left = number(&home, &format!("SELECT COUNT(*) FROM {table}")).await;
        // One of the two days.
        assert_eq!(left * 2, before, "{table}");
        assert!(left > 0, "{table}");
    }
}

async fn beyond_its_bytes_the_oldest_hours_go(home: Home) {
    let (clock, db) = (Clock::System, home.usage_eyes().clone());
    let usage = Usage::new(db, clock.clone());
    fill(&home, clock.now(), 5).await;
    let cut = cut_old(&usage, keep(Span::days(30), 1)).await;
    // The hour of the newest use stays, however little room there is.
    assert!(cut.hours_for_room >= 4, "{cut:?}");
    let left = events(&home).await;
    assert!((1..=3).contains(&left), "{left}");
}

async fn a_clock_that_jumps_deletes_nothing(home: Home) {
    let db = home.usage_eyes().clone();
    fill(&home, Clock::System.now(), 3).await;
    for days in [-1, 500] {
        let clock = Clock::shifted();
        if let Clock::Shifted(offset) = &clock {
            offset.store(days * 24 * HOUR_MS, std::sync::atomic::Ordering::SeqCst);
        }
        let usage = Usage::new(db.clone(), clock);
        let cut = cut_old(&usage, keep(Span::days(2), u64::MAX)).await;
        assert_eq!(cut.hours, 0, "{days}");
        assert_eq!(events(&home).await, 9, "{days}");
        assert_eq!(
            number(&home, "SELECT SUM(uses) FROM usage_minute").await,
            9,
            "{days}"
        );
    }
}

/// Also when it has recorded by that clock, and goes on to.
async fn a_node_whose_clock_is_ahead_takes_nothing_with_it(home: Home) {
    let db = home.usage_eyes().clone();
    let now = Clock::System.now().millis();
    let ahead = 5 * 365 * DAY_MS;
    let clock = Clock::Shifted(Arc::new(AtomicI64::new(ahead)));
    let days = [60, 20, 1];
    let records = days.map(|days| record(now - days * DAY_MS, "key_1"));
    store(&db, &batch("a", 1, records.into()), &Rules::default()).await;
    for number in 1..4 {
        let used = record(now + ahead + number * HOUR_MS, "key_1");
        store(&db, &batch("b", number, vec![used]), &Rules::default()).await;
    }
    let wrong = Usage::new(db.clone(), clock);
    let cut = cut_old(&wrong, keep(Span::days(30), u64::MAX)).await;
    // PostgreSQL knows the time; with SQLite all that is known is that this cannot be it.
    let knows = home.backend == Backend::Postgres;
    assert_eq!((cut.hours, cut.is_held), (u64::from(knows), !knows));
    assert_eq!(events(&home).await, 6 - i64::from(knows));
    let counted =
        async |table: &str| number(&home, &format!("SELECT SUM(uses) FROM usage_{table}")).await;
    for table in ["hour", "day", "ip"] {
        assert_eq!(counted(table).await, 6, "{table}");
    }
    // What there is no room for goes all the same.
    let cut = cut_old(&wrong, keep(Span::days(30), 1)).await;
    assert!(cut.hours_for_room > 0, "{cut:?}");

    // By a clock that is right what is old goes as ever.
    let records = vec![record(now - 59 * DAY_MS, "key_1"), record(now, "key_1")];
    store(&db, &batch("a", 2, records), &Rules::default()).await;
    let right = Usage::new(db, Clock::System);
    let cut = cut_old(&right, keep(Span::days(30), u64::MAX)).await;
    assert_eq!((cut.hours, cut.is_held), (1, false));
}

/// A batch of old uses adds to counts that are due to go, and may want more of them.
#[test]
fn old_counts_that_somebody_writes_are_left_to_the_next_time() {
    run(Backend::Postgres, async |home| {
        let (clock, db) = (Clock::System, home.usage_eyes().clone());
        let old = clock.now().millis() - 402 * DAY_MS;
        let records = (0..3).map(|n| record(old, &format!("key_{n}"))).collect();
        store(&db, &batch("a", 1, records), &Rules::default()).await;
        store(
            &db,
            &batch("a", 2, vec![record(clock.now().millis(), "key_0")]),
            &Rules::default(),
        )
        .await;
        speak_for(&home, clock.now()).await;
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM usage_hour WHERE key_id = 'key_1' FOR UPDATE")
            .await;
        let usage = Usage::new(db.clone(), clock.clone());
        cut_old(&usage, keep(Span::days(30), u64::MAX)).await;
        let left = format!(
            "SELECT key_id AS line FROM usage_hour WHERE start < {}",
            old + DAY_MS
        );
        assert_eq!(lines(&home, &left).await, ["key_1"]);
        session.run("COMMIT").await;
        cut_old(&usage, keep(Span::days(30), u64::MAX)).await;
        assert_eq!(lines(&home, &left).await, Vec::<String>::new());
    });
}

/// A node may be away with its journal for however long: what is known of its batches stays.
async fn a_batch_that_is_sent_again_after_years_counts_once(home: Home) {
    let db = home.usage_eyes().clone();
    let now = Clock::System.now().millis();
    let of = |number: i64| {
        let at = now - 60 * DAY_MS + number * HOUR_MS;
        batch("a", number, vec![record(at, "key_1"), record(at, "key_2")])
    };
    let rules = Rules::default();
    // The second was not stored yet, and others of other nodes are.
    for number in [1, 3, 4, 6] {
        store(&db, &of(number), &rules).await;
    }
    store(&db, &batch("b", 9, vec![record(now, "key_1")]), &rules).await;
    speak_for(&home, Clock::System.now()).await;
    let cut = async || {
        let usage = Usage::new(db.clone(), Clock::System);
        cut_old(&usage, keep(Span::days(30), u64::MAX)).await;
    };
    let uses = async || number(&home, "SELECT SUM(uses) FROM usage_hour").await;
    let batches = async || number(&home, "SELECT COUNT(*) FROM usage_batch").await;
    let runs = "SELECT node || ' ' || from_number || ' ' || to_number AS line FROM usage_stored \
                ORDER BY node, from_number";
    cut().await;
    assert_eq!((batches().await, uses().await), (1, 9));
    assert_eq!(lines(&home, runs).await, ["a 1 1", "a 3 4", "a 6 6"]);
    for number in [1, 3, 4, 6] {
        assert_eq!(store(&db, &of(number), &rules).await, Written::Again);
    }
    assert_eq!((batches().await, uses().await), (1, 9));
    // Also in one transaction with one that is new, and by a node that sends it at the same time.
    let group = vec![of(1), of(2), of(3)];
    let sent = (0..4).map(|_| {
        let (db, group) = (
            home.usage_db(),
            Group::of(group.clone(), &Arc::default()).unwrap(),
        );
        async move {
            let now = Timestamp::from_millis(now);
            let write = async move |conn: &mut Conn| group.write(conn, now).await;
            let written: db::Result<Vec<Written>> = db.write(write).await;
            written.unwrap()
        }
    });
    let written: Vec<Written> = join_all(sent).await.concat();
    let stored = written.iter().filter(|one| **one != Written::Again);
    assert_eq!(stored.count(), 1, "{written:?}");
    assert_eq!((batches().await, uses().await), (2, 11));
    let other = batch("c", 1, vec![record(now, "key_1")]);
    assert_ne!(store(&db, &other, &rules).await, Written::Again);
    cut().await;
    assert_eq!(lines(&home, runs).await, ["a 1 4", "a 6 6"]);
    assert_eq!(store(&db, &of(2), &rules).await, Written::Again);
    assert_eq!(uses().await, 12);
}
