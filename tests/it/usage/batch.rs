//! Batches are stored whole, and once.

use std::sync::Arc;

use futures_util::future::join_all;
use keystead::db::{self, Conn};
use keystead::time::Timestamp;
use keystead::usage::store::batch::{self as stored, Group, Written};
use keystead::usage::{Batch, CountLine, Events, Record, Rules};

use super::{HOUR, batch, lines, number, record, store, try_store};
use crate::support::{Home, both};

both!(
    a_batch_sent_again_counts_once,
    the_same_batch_sent_by_many_at_once_counts_once,
    a_batch_that_fails_leaves_nothing,
    of_a_group_what_was_stored_before_is_not_stored_again,
    a_group_that_fails_leaves_nothing_of_any_batch,
    texts_that_become_the_same_are_one_row,
    batches_of_many_nodes_take_numbers_without_gaps,
    every_use_is_counted_whatever_events_a_service_keeps,
    strangers_fill_a_bounded_number_of_rows,
    addresses_of_one_key_fill_a_bounded_number_of_rows,
    a_text_that_a_database_cannot_hold_keeps_no_batch_out,
    an_address_and_a_scope_keep_their_first_and_last_use,
);

const USES: &str = "SELECT COALESCE(SUM(uses), 0) FROM usage_hour";
const EVENTS: &str = "SELECT COUNT(*) FROM usage_event";

async fn a_batch_sent_again_counts_once(home: Home) {
    let (db, rules) = (home.usage_db(), Rules::default());
    let first = batch(
        "a",
        1,
        (0..50).map(|at| record(HOUR + at, "key_1")).collect(),
    );
    let written = store(&db, &first, &rules).await;
    assert_eq!(written, Written::Stored { seq: 1, events: 50 });
    let ids = lines(&home, "SELECT id AS line FROM usage_event ORDER BY id").await;
    assert_eq!(store(&db, &first, &rules).await, Written::Again);
    assert_eq!(number(&home, EVENTS).await, 50);
    assert_eq!(number(&home, USES).await, 50);
    assert_eq!(
        number(&home, "SELECT SUM(cost) FROM usage_day").await,
        2 * 50
    );
    assert!(ids.iter().all(|id| id.starts_with("evt_")), "{ids:?}");

    // The number is of the node: another's is another batch.
    let other = batch("b", 1, vec![record(HOUR, "key_1")]);
    let written = store(&db, &other, &rules).await;
    assert_eq!(written, Written::Stored { seq: 2, events: 1 });
    assert_eq!(number(&home, USES).await, 51);
}

async fn the_same_batch_sent_by_many_at_once_counts_once(home: Home) {
    let batch = batch(
        "a",
        7,
        (0..200).map(|at| record(HOUR + at, "key_1")).collect(),
    );
    let dbs: Vec<_> = (0..8).map(|_| home.usage_db()).collect();
    let rules = Rules::default();
    let written = join_all(dbs.iter().map(|db| store(db, &batch, &rules))).await;
    let again = written.iter().filter(|one| **one == Written::Again).count();
    assert_eq!(again, 7, "{written:?}");
    assert_eq!(number(&home, EVENTS).await, 200);
    assert_eq!(number(&home, USES).await, 200);
}

async fn a_batch_that_fails_leaves_nothing(home: Home) {
    let db = home.usage_db();
    let first = batch("a", 1, vec![record(HOUR, "key_1")]);
    let torn = first.clone();
    let failed: db::Result<()> = db
        .write(async move |conn: &mut Conn| {
            stored::write(conn, &torn, &Rules::default(), Timestamp::from_millis(HOUR)).await?;
            Err(db::Error::Busy)
        })
        .await;
    assert!(failed.is_err());
    for table in ["event", "batch", "minute", "hour", "day", "ip", "scope"] {
        let count = format!("SELECT COUNT(*) FROM usage_{table}");
        assert_eq!(number(&home, &count).await, 0, "{table}");
    }
    let written = store(&db, &first, &Rules::default()).await;
    assert_eq!(written, Written::Stored { seq: 1, events: 1 });
}

async fn write_group(
    home: &Home,
    batches: Vec<Batch>,
    ends: db::Result<()>,
) -> db::Result<Vec<Written>> {
    let group = Group::of(batches, &Arc::new(Rules::default()))?;
    let write = async move |conn: &mut Conn| {
        let written = group.write(conn, Timestamp::from_millis(HOUR)).await?;
        ends.map(|()| written)
    };
    home.usage_db().write(write).await
}

fn three_batches() -> Vec<Batch> {
    let of = |number| {
        let records = (0..10).map(|at| record(HOUR + at * 7 * 60_000 * number, "key_1"));
        batch("a", number, records.collect())
    };
    (1..=3).map(of).collect()
}

async fn of_a_group_what_was_stored_before_is_not_stored_again(home: Home) {
    let batches = three_batches();
    store(&home.usage_db(), &batches[1], &Rules::default()).await;
    let written = write_group(&home, batches.clone(), Ok(())).await.unwrap();
    let stored = |seq| Written::Stored { seq, events: 10 };
    assert_eq!(written, [stored(2), Written::Again, stored(3)]);
    let again = write_group(&home, batches, Ok(())).await.unwrap();
    assert_eq!(again, [Written::Again; 3]);
    assert_eq!(number(&home, EVENTS).await, 30);
    assert_eq!(number(&home, USES).await, 30);
    let ids = "SELECT COUNT(DISTINCT id) FROM usage_event";
    assert_eq!(number(&home, ids).await, 30);
    let head = "SELECT seq FROM usage_head";
    assert_eq!(number(&home, head).await, 3);
}

async fn a_group_that_fails_leaves_nothing_of_any_batch(home: Home) {
    let failed = write_group(&home, three_batches(), Err(db::Error::Busy)).await;
    assert!(failed.is_err());
    for table in ["event", "batch", "minute", "hour", "day", "ip", "scope"] {
        let count = format!("SELECT COUNT(*) FROM usage_{table}");
        assert_eq!(number(&home, &count).await, 0, "{table}");
    }
    // Whatever is sent together the next time.
    let mut batches = three_batches();
    let last = batches.pop().unwrap();
    write_group(&home, batches, Ok(())).await.unwrap();
    store(&home.usage_db(), &last, &Rules::default()).await;
    assert_eq!(number(&home, USES).await, 30);
    let seqs = "SELECT CAST(seq AS TEXT) AS line FROM usage_batch ORDER BY seq";
    assert_eq!(lines(&home, seqs).await, ["1", "2", "3"]);
}

async fn texts_that_become_the_same_are_one_row(home: Home) {
    let (mut one, mut other) = (record(HOUR, "key_1"), record(HOUR, "key_1"));
    one.caller = "a\0b".to_owned();
    other.caller = "a\u{fffd}b".to_owned();
    let both = batch("a", 1, vec![one, other]);
    store(&home.usage_db(), &both, &Rules::default()).await;
    let callers = "SELECT caller || ' ' || uses AS line FROM usage_minute";
    assert_eq!(lines(&home, callers).await, ["a\u{fffd}b 2"]);
}

async fn batches_of_many_nodes_take_numbers_without_gaps(home: Home) {
    let sent = (0..8_i64).map(|node| {
        let db = home.usage_db();
        async move {
            for number in 0..10 {
                // All nodes count the same keys, in another order each.
                let records = (0..20).map(|i| {
                    let at = HOUR + (i * (node + 3)) % 20 * 60_000 * 7;
                    record(at, &format!("key_{}", (i + node) % 20))
                });
                let batch = batch(&format!("node-{node}"), number, records.collect());
                // Eight write at once: who has no turn in time sends it again, as a node does.
                let mut stored = try_store(&db, &batch, &Rules::default()).await;
                for _ in 0..20 {
                    if !matches!(stored, Err(db::Error::Busy)) {
                        break;
                    }
                    stored = try_store(&db, &batch, &Rules::default()).await;
                }
                stored.expect("it is stored");
            }
        }
    });
    join_all(sent).await;
    assert_eq!(number(&home, USES).await, 8 * 10 * 20);
    let seqs = "SELECT CAST(seq AS TEXT) AS line FROM usage_batch ORDER BY seq";
    let numbers: Vec<String> = (1..=80).map(|seq| seq.to_string()).collect();
    assert_eq!(lines(&home, seqs).await, numbers);
}

async fn every_use_is_counted_whatever_events_a_service_keeps(home: Home) {
    let mut rules = Rules::default();
    rules.set("ten_1", "some", Events::Refused);
    rules.set("ten_1", "silent", Events::None);
    let mut records = Vec::new();
    for service in ["billing", "some", "silent"] {
        for outcome in ["valid", "insufficient_scope"] {
            records.push(Record {
                service: service.to_owned(),
                outcome: outcome.to_owned(),
                ..record(HOUR, "key_1")
            });
        }
    }
    let mut batch = batch("a", 1, records);
    batch.shed = 5;
    batch.counts_only.push(CountLine {
        record: record(HOUR + 1, "key_1"),
        uses: 5,
    });
    store(&home.usage_db(), &batch, &rules).await;
    let kept =
        "SELECT service || ' ' || outcome AS line FROM usage_event ORDER BY service, outcome";
    assert_eq!(
        lines(&home, kept).await,
        [
            "billing insufficient_scope",
            "billing valid",
            "some insufficient_scope"
        ]
    );
    for table in ["minute", "hour", "day"] {
        let sum = format!("SELECT SUM(uses) FROM usage_{table}");
        assert_eq!(number(&home, &sum).await, 11, "{table}");
    }
    assert_eq!(number(&home, "SELECT shed FROM usage_batch").await, 5);
}

async fn strangers_fill_a_bounded_number_of_rows(home: Home) {
    let db = home.usage_db();
    for number in 0..3 {
        let records = (0..900).map(|i| Record {
            key: None,
            outcome: "unknown".to_owned(),
            ip: Some(format!("2001:db8::{number}:{i:x}")),
            ..record(HOUR + i, "")
        });
        let batch = batch("a", number, records.collect());
        store(&db, &batch, &Rules::default()).await;
    }
    let rows = "SELECT COUNT(*) FROM usage_stranger";
    assert_eq!(number(&home, rows).await, 1_001);
    let uses = "SELECT SUM(uses) FROM usage_stranger";
    assert_eq!(number(&home, uses).await, 2_700);
    assert_eq!(number(&home, USES).await, 2_700);
    assert_eq!(number(&home, EVENTS).await, 0);
    let rows = "SELECT COUNT(*) FROM usage_hour";
    assert_eq!(number(&home, rows).await, 1);
}

async fn addresses_of_one_key_fill_a_bounded_number_of_rows(home: Home) {
    let db = home.usage_db();
    let from = |at: i64, key: &str, ip: String| Record {
        ip: Some(ip),
        ..record(HOUR + at, key)
    };
    for number in 0..3 {
        let mut records: Vec<Record> = (0..300)
            .map(|i| from(i, "key_1", format!("2001:db8::{number}:{i:x}")))
            .collect();
        records.push(from(0, "key_2", "192.0.2.1".to_owned()));
        // Of each day, and of each tenant, as many.
        records.push(Record {
            tenant_id: "ten_2".to_owned(),
            ..from(0, "key_1", format!("2001:db8::{number}"))
        });
        records.push(from(24 * 3_600_000, "key_1", format!("2001:db8::{number}")));
        let batch = batch("a", number, records);
        store(&db, &batch, &Rules::default()).await;
    }
    let of = |what: &str, more: &str| {
        format!(
            "SELECT {what} FROM usage_ip WHERE tenant_id = 'ten_1' AND day = {} AND \
             key_id = 'key_1'{more}",
            HOUR - HOUR % (24 * 3_600_000)
        )
    };
    assert_eq!(number(&home, &of("COUNT(*)", "")).await, 501);
    assert_eq!(number(&home, &of("SUM(uses)", "")).await, 900);
    let other = " AND ip = 'other'";
    assert_eq!(number(&home, &of("uses", other)).await, 400);
    assert_eq!(number(&home, &of("last_at", other)).await, HOUR + 299);
    let others = "SELECT COUNT(*) FROM usage_ip WHERE ip <> 'other'";
    assert_eq!(number(&home, others).await, 500 + 1 + 3 + 3);
    // Who was told apart stays so, and the same batch adds nothing.
    let known = batch("a", 3, vec![from(7, "key_1", "2001:db8::0:5".to_owned())]);
    for _ in 0..2 {
        store(&db, &known, &Rules::default()).await;
    }
    let known = " AND ip = '2001:db8::0:5'";
    assert_eq!(number(&home, &of("uses", known)).await, 2);
    assert_eq!(number(&home, &of("SUM(uses)", "")).await, 901);
    assert_eq!(
        number(&home, "SELECT SUM(uses) FROM usage_ip").await,
        number(&home, USES).await
    );
}

async fn a_text_that_a_database_cannot_hold_keeps_no_batch_out(home: Home) {
    let mut odd = record(HOUR, "key_1");
    odd.user_agent = Some("a\0b\u{2028}\"\\'\n\u{1b}[2J".to_owned());
    odd.context.insert("k\0".to_owned(), "v\0".to_owned());
    odd.caller = "https://issuer#a\0b".to_owned();
    odd.cost = u64::MAX;
    let odd = batch("a", 1, vec![odd.clone(), odd]);
    let written = try_store(&home.usage_db(), &odd, &Rules::default()).await;
    assert_eq!(written.unwrap(), Written::Stored { seq: 1, events: 2 });
    assert_eq!(number(&home, USES).await, 2);
}

async fn an_address_and_a_scope_keep_their_first_and_last_use(home: Home) {
    let db = home.usage_db();
    for (number, at) in [(1, 500), (2, 100), (3, 900)] {
        let batch = batch("a", number, vec![record(HOUR + at, "key_1")]);
        store(&db, &batch, &Rules::default()).await;
    }
    let seen = "SELECT ip || ' ' || uses || ' ' || (first_at - 1795593600000) || ' ' \
                || (last_at - 1795593600000) AS line FROM usage_ip";
    assert_eq!(lines(&home, seen).await, ["192.0.2.1 3 100 900"]);
    let used = "SELECT scope || ' ' || uses || ' ' || (last_at - 1795593600000) AS line \
                FROM usage_scope";
    assert_eq!(lines(&home, used).await, ["invoice:* 3 900"]);
}
