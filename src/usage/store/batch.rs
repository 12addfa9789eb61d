//! Storing a batch: its events and its counts, all of it or nothing, and once.
//!
//! 1. The batch's own row comes first: if it stands there, the batch was stored before and nothing is
//!    written. Two who send the same one wait for each other here.
//! 2. Events are added, then each table of counts, always in this order and each sorted.
//! 3. The number of the batch comes last, because its row lock is held to the commit: so numbers are
//!    in the order of the commits and without gaps, and who reads by number misses nothing.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::partition;
use super::rows::{Table, bounded};
use super::strangers;
use crate::db::schema::{usage_batch, usage_head};
use crate::db::{self, Conn};
use crate::each;
use crate::id::EventId;
use crate::time::Timestamp;
use crate::usage::counts::{Counts, Seen, Uses};
use crate::usage::record::{Batch, Operation, Record};
use crate::usage::rules::Rules;

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It stands in the ledger now.
    Stored { seq: i64, events: usize },
    /// It stood there before.
    Again,
}

/// What an event shows and nobody asks for by an index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub required_scopes: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub any_scopes: Vec<String>,
    pub cost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub context: BTreeMap<String, String>,
    pub latency_us: u64,
}

/// Stores `batch`. Only inside [`Db::write`](crate::db::Db::write) of the usage ledger.
///
/// # Errors
/// The database's; the caller sends the same batch again until it is answered.
pub async fn write(
    conn: &mut Conn,
    batch: &Batch,
    rules: &Rules,
    now: Timestamp,
) -> db::Result<Written> {
    let events = event_rows(batch, rules)?;
    if !claim(conn, batch, &events, now).await? {
        return Ok(Written::Again);
    }
    let hours: BTreeSet<i64> = events
        .iter()
        .map(|row| partition::hour_of(row.at))
        .collect();
    for hour in hours {
        partition::ensure(conn, hour).await?;
    }
    EVENT.put(conn, &events).await?;
    put_counts(conn, &Counts::of(batch)).await?;
    let seq: i64 = each!(&mut *conn, c => diesel::update(usage_head::table.find(1))
        .set(usage_head::seq.eq(usage_head::seq + 1))
        .returning(usage_head::seq)
        .get_result(c)
        .await)?;
    each!(conn, c => diesel::update(usage_batch::table.find((&batch.node, batch.number)))
        .set(usage_batch::seq.eq(seq))
        .execute(c)
        .await)?;
    Ok(Written::Stored {
        seq,
        events: events.len(),
    })
}

/// Whether the batch is new.
async fn claim(
    conn: &mut Conn,
    batch: &Batch,
    events: &[EventRow<'_>],
    now: Timestamp,
) -> db::Result<bool> {
    let times = || events.iter().map(|row| row.at);
    let first = times().min().unwrap_or_else(|| now.millis());
    let last = times().max().unwrap_or_else(|| now.millis());
    let row = (
        usage_batch::node.eq(&batch.node),
        usage_batch::number.eq(batch.number),
        usage_batch::first_at.eq(first),
        usage_batch::last_at.eq(last),
        usage_batch::events.eq(bounded(events.len() as u64)),
        usage_batch::shed.eq(bounded(batch.shed)),
        usage_batch::stored_at.eq(now),
    );
    let added = each!(conn, c => diesel::insert_into(usage_batch::table)
        .values(row)
        .on_conflict_do_nothing()
        .execute(c)
        .await)?;
    Ok(added == 1)
}

#[derive(Serialize)]
struct EventRow<'a> {
    tenant_id: &'a str,
    at: i64,
    id: EventId,
    node: &'a str,
    batch: i64,
    key_id: &'a str,
    secret_id: &'a str,
    superseded: i32,
    consumer_id: &'a str,
    service: &'a str,
    environment: &'a str,
    operation: Operation,
    outcome: &'a str,
    ip: Option<&'a str>,
    caller: &'a str,
    request_id: &'a str,
    token_id: Option<&'a str>,
    subject: Option<&'a str>,
    actor: Option<&'a str>,
    detail: String,
}

const EVENT: Table = Table {
    name: "usage_event",
    columns: &[
        ("tenant_id", "text"),
        ("at", "bigint"),
        ("id", "text"),
        ("node", "text"),
        ("batch", "bigint"),
        ("key_id", "text"),
        ("secret_id", "text"),
        ("superseded", "integer"),
        ("consumer_id", "text"),
        ("service", "text"),
        ("environment", "text"),
        ("operation", "text"),
        ("outcome", "text"),
        ("ip", "text"),
        ("caller", "text"),
        ("request_id", "text"),
        ("token_id", "text"),
        ("subject", "text"),
        ("actor", "text"),
        ("detail", "text"),
    ],
    conflict: "",
};

fn event_rows<'a>(batch: &'a Batch, rules: &Rules) -> db::Result<Vec<EventRow<'a>>> {
    let mut rows = Vec::with_capacity(batch.records.len());
    for (index, record) in batch.records.iter().enumerate() {
        let Some(key) = record.key.as_ref().filter(|_| rules.keep(record)) else {
            continue;
        };
        rows.push(EventRow {
            tenant_id: &record.tenant_id,
            at: record.at.millis(),
            id: event_id(batch, index, record.at),
            node: &batch.node,
            batch: batch.number,
            key_id: &key.key_id,
            secret_id: &key.secret_id,
            superseded: i32::from(key.superseded),
            consumer_id: &key.consumer_id,
            service: &record.service,
            environment: &record.environment,
            operation: record.operation,
            outcome: &record.outcome,
            ip: record.ip.as_deref(),
            caller: &record.caller,
            request_id: &record.request_id,
            token_id: record.token_id.as_deref(),
            subject: record.subject.as_deref(),
            actor: record.actor.as_deref(),
            detail: detail(record)?,
        });
    }
    Ok(rows)
}

/// The same for the same record of the same batch, whoever stores it.
fn event_id(batch: &Batch, index: usize, at: Timestamp) -> EventId {
    let mut digest = Sha256::new();
    digest.update(batch.node.as_bytes());
    digest.update(batch.number.to_be_bytes());
    digest.update((index as u64).to_be_bytes());
    let digest: [u8; 32] = digest.finalize().into();
    let mut random = [0; 10];
    for (place, byte) in random.iter_mut().zip(digest) {
        *place = byte;
    }
    EventId::made_of(at, &random)
}

fn detail(record: &Record) -> db::Result<String> {
    let detail = Detail {
        required_scopes: record.required_scopes.clone(),
        any_scopes: record.any_scopes.clone(),
        cost: record.cost,
        method: record.method.clone(),
        path: record.path.clone(),
        user_agent: record.user_agent.clone(),
        context: record.context.clone(),
        latency_us: record.latency_us,
    };
    serde_json::to_string(&detail)
        .map_err(|error| db::Error::Corrupt(format!("the detail of a use: {error}")))
}

/// A row of counts: its key and what is added.
#[derive(Serialize)]
struct CountRow<'a, K, A> {
    #[serde(flatten)]
    key: &'a K,
    #[serde(flatten)]
    added: A,
}

#[derive(Serialize)]
struct AddedUses {
    uses: i64,
    cost: i64,
}

#[derive(Serialize)]
struct AddedSeen {
    uses: i64,
    first_at: i64,
    last_at: i64,
}

#[derive(Serialize)]
struct AddedStrangers {
    uses: i64,
}

async fn put_counts(conn: &mut Conn, counts: &Counts) -> db::Result<()> {
    let uses = |added: &Uses| AddedUses {
        uses: bounded(added.uses),
        cost: bounded(added.cost),
    };
    let seen = |added: &Seen| AddedSeen {
        uses: bounded(added.uses),
        first_at: added.first_at,
        last_at: added.last_at,
    };
    MINUTE.put(conn, &count_rows(&counts.minutes, uses)).await?;
    HOUR.put(conn, &count_rows(&counts.hours, uses)).await?;
    IP.put(conn, &count_rows(&counts.ips, seen)).await?;
    SCOPE.put(conn, &count_rows(&counts.scopes, seen)).await?;
    let strangers = strangers::fold(conn, &counts.strangers).await?;
    let added = |uses: &u64| AddedStrangers {
        uses: bounded(*uses),
    };
    STRANGER.put(conn, &count_rows(&strangers, added)).await?;
    // Last, because every node steps the same few rows.
    DAY.put(conn, &count_rows(&counts.days, uses)).await
}

fn count_rows<K, V, A>(
    counts: &BTreeMap<K, V>,
    added: impl Fn(&V) -> A,
) -> Vec<CountRow<'_, K, A>> {
    let rows = counts.iter().map(|(key, value)| CountRow {
        key,
        added: added(value),
    });
    rows.collect()
}

const USE_COLUMNS: &[(&str, &str)] = &[
    ("tenant_id", "text"),
    ("start", "bigint"),
    ("key_id", "text"),
    ("secret_id", "text"),
    ("superseded", "integer"),
    ("service", "text"),
    ("outcome", "text"),
    ("operation", "text"),
    ("caller", "text"),
    ("consumer_id", "text"),
    ("uses", "bigint"),
    ("cost", "bigint"),
];

const MINUTE: Table = Table {
    name: "usage_minute",
    columns: USE_COLUMNS,
    conflict: "ON CONFLICT (tenant_id, start, key_id, secret_id, superseded, service, outcome, \
               operation, caller) DO UPDATE SET uses = usage_minute.uses + excluded.uses, \
               cost = usage_minute.cost + excluded.cost",
};

const HOUR: Table = Table {
    name: "usage_hour",
    columns: USE_COLUMNS,
    conflict: "ON CONFLICT (tenant_id, start, key_id, secret_id, superseded, service, outcome, \
               operation, caller) DO UPDATE SET uses = usage_hour.uses + excluded.uses, \
               cost = usage_hour.cost + excluded.cost",
};

const DAY: Table = Table {
    name: "usage_day",
    columns: &[
        ("tenant_id", "text"),
        ("start", "bigint"),
        ("service", "text"),
        ("outcome", "text"),
        ("operation", "text"),
        ("uses", "bigint"),
        ("cost", "bigint"),
    ],
    conflict: "ON CONFLICT (tenant_id, start, service, outcome, operation) DO UPDATE SET \
               uses = usage_day.uses + excluded.uses, cost = usage_day.cost + excluded.cost",
};

const IP: Table = Table {
    name: "usage_ip",
    columns: &[
        ("tenant_id", "text"),
        ("day", "bigint"),
        ("key_id", "text"),
        ("ip", "text"),
        ("uses", "bigint"),
        ("first_at", "bigint"),
        ("last_at", "bigint"),
    ],
    conflict: "ON CONFLICT (tenant_id, day, key_id, ip) DO UPDATE SET \
               uses = usage_ip.uses + excluded.uses, \
               first_at = CASE WHEN excluded.first_at < usage_ip.first_at \
                          THEN excluded.first_at ELSE usage_ip.first_at END, \
               last_at = CASE WHEN excluded.last_at > usage_ip.last_at \
                         THEN excluded.last_at ELSE usage_ip.last_at END",
};

const SCOPE: Table = Table {
    name: "usage_scope",
    columns: &[
        ("tenant_id", "text"),
        ("day", "bigint"),
        ("key_id", "text"),
        ("service", "text"),
        ("scope", "text"),
        ("uses", "bigint"),
        ("last_at", "bigint"),
    ],
    conflict: "ON CONFLICT (tenant_id, day, key_id, service, scope) DO UPDATE SET \
               uses = usage_scope.uses + excluded.uses, \
               last_at = CASE WHEN excluded.last_at > usage_scope.last_at \
                         THEN excluded.last_at ELSE usage_scope.last_at END",
};

const STRANGER: Table = Table {
    name: "usage_stranger",
    columns: &[
        ("tenant_id", "text"),
        ("hour", "bigint"),
        ("caller", "text"),
        ("service", "text"),
        ("outcome", "text"),
        ("operation", "text"),
        ("ip", "text"),
        ("uses", "bigint"),
    ],
    conflict: "ON CONFLICT (tenant_id, hour, caller, service, outcome, operation, ip) DO UPDATE \
               SET uses = usage_stranger.uses + excluded.uses",
};
