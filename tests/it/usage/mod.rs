//! The usage ledger on both databases: batches stored once, what is counted and what is kept.

mod batch;
mod drained;
mod file;
mod injected;
mod read;
mod recorded;
mod retention;
mod seals;
mod turns;

use std::collections::BTreeMap;

use keystead::db::{Conn, Db};
use keystead::time::Timestamp;
use keystead::usage::retention::{Cut, Keep};
use keystead::usage::store::batch::{self as stored, Written};
use keystead::usage::{Batch, Identified, Operation, Record, Rules, Usage};

use crate::support::Home;
use crate::support::tables::{execute_on, lines_of};

/// 2026-11-25T08:00:00Z, the beginning of an hour.
pub const HOUR: i64 = 1_795_593_600_000;

pub const DAY_MS: i64 = 86_400_000;

/// A valid use of a key of `ten_1` at this Unix millisecond.
pub fn record(at: i64, key: &str) -> Record {
    Record {
        at: Timestamp::from_millis(at),
        tenant_id: "ten_1".to_owned(),
        key: Some(Identified {
            key_id: key.to_owned(),
            secret_id: format!("sec_of_{key}"),
            superseded: false,
            consumer_id: "con_1".to_owned(),
        }),
        service: "billing".to_owned(),
        environment: "live".to_owned(),
        operation: Operation::Verify,
        outcome: "valid".to_owned(),
        required_scopes: vec!["invoice:read".to_owned()],
        any_scopes: Vec::new(),
        cost: 2,
        used_scopes: vec!["invoice:*".to_owned()],
        ip: Some("192.0.2.1".to_owned()),
        method: Some("GET".to_owned()),
        path: Some("/invoices/1".to_owned()),
        user_agent: Some("curl/8".to_owned()),
        context: BTreeMap::from([("region".to_owned(), "eu".to_owned())]),
        token_id: None,
        subject: None,
        actor: None,
        caller: "key_caller".to_owned(),
        request_id: format!("request-{at}"),
        latency_us: 50,
    }
}

pub fn batch(node: &str, number: i64, records: Vec<Record>) -> Batch {
    Batch {
        node: node.to_owned(),
        number,
        records,
        shed: 0,
        counts_only: Vec::new(),
    }
}

pub async fn try_store(db: &Db, batch: &Batch, rules: &Rules) -> keystead::db::Result<Written> {
    let (batch, rules) = (batch.clone(), rules.clone());
    db.write(async move |conn: &mut Conn| {
        stored::write(conn, &batch, &rules, Timestamp::from_millis(HOUR)).await
    })
    .await
}

pub async fn store(db: &Db, batch: &Batch, rules: &Rules) -> Written {
    try_store(db, batch, rules).await.expect("it is stored")
}

/// As if something had been counted three weeks before `now`: so time has gone on since.
pub async fn speak_for(home: &Home, now: Timestamp) {
    let day = now.millis() - 21 * DAY_MS;
    let sql = format!(
        "INSERT INTO usage_day (tenant_id, start, service, outcome, operation, uses, cost) \
         VALUES ('ten_of_time', {}, 'billing', 'valid', 'verify', 1, 1)",
        day - day.rem_euclid(DAY_MS)
    );
    execute_on(home.usage_eyes(), &sql).await;
}

/// Events and then counts, as a node cuts them.
pub async fn cut_old(usage: &Usage, keep: Keep) -> Cut {
    let cut = usage.cut_events(keep).await.expect("the events are cut");
    usage.cut_counts(keep).await.expect("the counts are cut");
    cut
}

/// The lines that `query` answers in its column `line`.
pub async fn lines(home: &Home, query: &str) -> Vec<String> {
    lines_of(home.usage_eyes(), query.to_owned()).await
}

/// The only number that `query` answers in its column `line`.
pub async fn number(home: &Home, query: &str) -> i64 {
    let query = format!("SELECT CAST(({query}) AS TEXT) AS line");
    lines(home, &query).await[0].parse().expect("a number")
}
