//! Storing batches: their events and their counts, all of it or nothing, and each batch once.
//!
//! 1. The batches' own rows come first: those that stand there, or are remembered when their rows are gone
//!    (`stored.rs`), were stored before and nothing is written of them. Two who send the same one wait for each other here.
//! 2. Events are added, then each table of counts, always in this order and each sorted.
//! 3. What is added to hours that were sealed before is noted, so that a further seal takes it in.
//! 4. The numbers of the batches come last, because their row lock is held to the commit: so numbers are
//!    in the order of the commits and without gaps, and who reads by number misses nothing.
//!
//! Several batches of a node go in one transaction, so that a row that all of them count is written
//! once. Whichever of them fails, none is stored: then they are sent one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use diesel::prelude::*;
use diesel::sql_types::{Array, BigInt, Text};
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::partition;
use super::rows::{Kind, Rows, Table, bounded};
use super::stored::{self, Name};
use super::{addresses, seal, strangers};
use crate::db::schema::{usage_batch, usage_head};
use crate::db::{self, Conn};
use crate::each;
use crate::id::EventId;
use crate::time::Timestamp;
use crate::usage::counts::{Counts, Seen, UseKey, Uses};
use crate::usage::pauses::with_pauses;
use crate::usage::record::{Batch, Identified, Record};
use crate::usage::rules::Rules;

/// So many rows are put together in some ten microseconds.
const ROWS_A_PAUSE: u32 = 16;

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

/// [`Detail`] of a record, as it is written.
#[derive(Serialize)]
struct DetailOf<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    required_scopes: &'a [String],
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    any_scopes: &'a [String],
    cost: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    context: &'a BTreeMap<String, String>,
    latency_us: u64,
}

/// Stores `batch` alone. Only inside [`Db::write`](crate::db::Db::write) of the usage ledger.
///
/// # Errors
/// The database's; the caller sends the same batch again until it is answered.
pub async fn write(
    conn: &mut Conn,
    batch: &Batch,
    rules: &Rules,
    now: Timestamp,
) -> db::Result<Written> {
    let group = Group::of(vec![batch.clone()], &Arc::new(rules.clone()))?;
    let mut written = group.write(conn, now).await?;
    Ok(written.pop().unwrap_or(Written::Again))
}

/// Batches that are stored by one transaction, made ready before it begins.
#[derive(Debug)]
pub struct Group {
    batches: Vec<Batch>,
    rules: Arc<Rules>,
    spans: Vec<Span>,
    events: Rows,
    counts: Counts,
    /// Those that events lie in.
    hours: BTreeSet<i64>,
}

/// The events of a batch: how many, and from when to when.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    events: usize,
    times: Option<(i64, i64)>,
}

impl Group {
    /// # Errors
    /// A use that cannot be written as JSON: none is known.
    pub fn of(mut batches: Vec<Batch>, rules: &Arc<Rules>) -> db::Result<Self> {
        // Before they are counted: what becomes the same is one row.
        for record in batches.iter_mut().flat_map(Batch::all_records) {
            record.replace_nuls();
        }
        let (mut events, mut spans) = (Rows::default(), Vec::new());
        let mut hours = BTreeSet::new();
        for batch in &batches {
            let mut span = Span::default();
            for (index, record) in with_pauses(ROWS_A_PAUSE, &batch.records).enumerate() {
                let Some(key) = record.key.as_ref().filter(|_| rules.keep(record)) else {
                    continue;
                };
                put_event(&mut events, batch, index, record, key)?;
                let at = record.at.millis();
                span.add(at);
                hours.insert(partition::hour_of(at));
            }
            spans.push(span);
        }
        Ok(Self {
            counts: Counts::of(&batches),
            batches,
            rules: Arc::clone(rules),
            spans,
            events,
            hours,
        })
    }

    /// Stores them; answers what became of each. Only inside
    /// [`Db::write`](crate::db::Db::write) of the usage ledger.
    ///
    /// # Errors
    /// The database's; nothing may be committed then, and the caller sends the same batches again, in
    /// whatever groups, until it is answered.
    pub async fn write(mut self, conn: &mut Conn, now: Timestamp) -> db::Result<Vec<Written>> {
        let mut claimed = claim(conn, &self.batches, &self.spans, now).await?;
        stored::unclaim(conn, &mut claimed).await?;
        let sent: Vec<Name> = self.batches.iter().map(name).collect();
        if claimed.len() < sent.len() {
            // Some were stored before. It is rare that they are sent again.
            let mut new = self.batches;
            new.retain(|batch| claimed.contains(&name(batch)));
            self = Self::of(new, &self.rules)?;
        }
        let mut numbers = BTreeMap::new();
        if !self.batches.is_empty() {
            let sealed_to = seal::held_sealed_to(conn).await?;
            for hour in self.hours {
                partition::ensure(conn, hour).await?;
            }
            EVENT.put(conn, self.events).await?;
            put_counts(conn, &mut self.counts).await?;
            numbers = number(conn, &self.batches).await?;
            let last = numbers.values().max().copied().unwrap_or_default();
            LATE.put(conn, late_rows(&self.counts.hours, sealed_to, last))
                .await?;
        }
        let mut spans = self.spans.into_iter();
        let written = sent.into_iter().map(|name| match numbers.get(&name) {
            Some(seq) => Written::Stored {
                seq: *seq,
                events: spans.next().unwrap_or_default().events,
            },
            None => Written::Again,
        });
        Ok(written.collect())
    }
}

impl Span {
    fn add(&mut self, at: i64) {
        self.events += 1;
        let (first, last) = self.times.unwrap_or((at, at));
        self.times = Some((first.min(at), last.max(at)));
    }
}

fn name(batch: &Batch) -> Name {
    (batch.node.clone(), batch.number)
}

/// Adds the rows of the batches that are new; answers which those are.
async fn claim(
    conn: &mut Conn,
    batches: &[Batch],
    spans: &[Span],
    now: Timestamp,
) -> db::Result<BTreeSet<Name>> {
    let mut rows: Vec<_> = batches.iter().zip(spans).collect();
    // So that two who send the same ones do not wait for each other in a circle.
    rows.sort_by_key(|(batch, _)| (&batch.node, batch.number));
    let rows = rows.into_iter().map(|(batch, span)| {
        let (first, last) = span.times.unwrap_or((now.millis(), now.millis()));
        (
            usage_batch::node.eq(&batch.node),
            usage_batch::number.eq(batch.number),
            usage_batch::first_at.eq(first),
            usage_batch::last_at.eq(last),
            usage_batch::events.eq(bounded(span.events as u64)),
            usage_batch::shed.eq(bounded(batch.shed)),
            usage_batch::stored_at.eq(now),
        )
    });
    match conn {
        Conn::Sqlite(c) => {
            let mut new = BTreeSet::new();
            for row in rows {
                let name: Option<Name> = diesel::insert_into(usage_batch::table)
                    .values(row)
                    .on_conflict_do_nothing()
                    .returning((usage_batch::node, usage_batch::number))
                    .get_result(&mut **c)
                    .await
                    .optional()?;
                new.extend(name);
            }
            Ok(new)
        }
        Conn::Postgres(c) => {
            let new: Vec<Name> = diesel::insert_into(usage_batch::table)
                .values(rows.collect::<Vec<_>>())
                .on_conflict_do_nothing()
                .returning((usage_batch::node, usage_batch::number))
                .get_results(&mut **c)
                .await?;
            Ok(new.into_iter().collect())
        }
    }
}

/// Gives the batches the next numbers, in their order; answers each one's.
async fn number(conn: &mut Conn, batches: &[Batch]) -> db::Result<BTreeMap<Name, i64>> {
    let count = i64::try_from(batches.len()).unwrap_or(i64::MAX);
    let last: i64 = each!(&mut *conn, c => diesel::update(usage_head::table.find(1))
        .set(usage_head::seq.eq(usage_head::seq + count))
        .returning(usage_head::seq)
        .get_result(c)
        .await)?;
    let seqs: Vec<i64> = (last - count + 1..=last).collect();
    match conn {
        Conn::Sqlite(c) => {
            for (batch, seq) in batches.iter().zip(&seqs) {
                diesel::update(usage_batch::table.find((&batch.node, batch.number)))
                    .set(usage_batch::seq.eq(seq))
                    .execute(&mut **c)
                    .await?;
            }
        }
        Conn::Postgres(c) => {
            let nodes: Vec<&str> = batches.iter().map(|batch| &*batch.node).collect();
            let numbers: Vec<i64> = batches.iter().map(|batch| batch.number).collect();
            let update = "UPDATE usage_batch SET seq = given.seq \
                          FROM UNNEST($1::text[], $2::bigint[], $3::bigint[]) AS given (node, number, seq) \
                          WHERE usage_batch.node = given.node AND usage_batch.number = given.number";
            diesel::sql_query(update)
                .bind::<Array<Text>, _>(nodes)
                .bind::<Array<BigInt>, _>(numbers)
                .bind::<Array<BigInt>, _>(&seqs)
                .execute(&mut **c)
                .await?;
        }
    }
    Ok(batches.iter().map(name).zip(seqs).collect())
}

static EVENT: Table = Table {
    name: "usage_event",
    columns: &[
        ("tenant_id", Kind::Text),
        ("at", Kind::Big),
        ("id", Kind::Text),
        ("node", Kind::Text),
        ("batch", Kind::Big),
        ("key_id", Kind::Text),
        ("secret_id", Kind::Text),
        ("superseded", Kind::Integer),
        ("consumer_id", Kind::Text),
        ("service", Kind::Text),
        ("environment", Kind::Text),
        ("operation", Kind::Text),
        ("outcome", Kind::Text),
        ("ip", Kind::Text),
        ("caller", Kind::Text),
        ("request_id", Kind::Text),
        ("token_id", Kind::Text),
        ("subject", Kind::Text),
        ("actor", Kind::Text),
        ("detail", Kind::Text),
    ],
    conflict: "",
};

fn put_event(
    rows: &mut Rows,
    batch: &Batch,
    index: usize,
    record: &Record,
    key: &Identified,
) -> db::Result<()> {
    rows.text(&record.tenant_id)
        .number(record.at.millis())
        .text(event_id(batch, index, record.at).as_str())
        .text(&batch.node)
        .number(batch.number)
        .text(&key.key_id)
        .text(&key.secret_id)
        .number(i64::from(key.superseded))
        .text(&key.consumer_id)
        .text(&record.service)
        .text(&record.environment)
        .text(record.operation.as_str())
        .text(&record.outcome)
        .text_or_null(record.ip.as_deref())
        .text(&record.caller)
        .text(&record.request_id)
        .text_or_null(record.token_id.as_deref())
        .text_or_null(record.subject.as_deref())
        .text_or_null(record.actor.as_deref())
        .text(&detail(record)?);
    Ok(())
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
    let detail = DetailOf {
        required_scopes: &record.required_scopes,
        any_scopes: &record.any_scopes,
        cost: record.cost,
        method: record.method.as_deref(),
        path: record.path.as_deref(),
        user_agent: record.user_agent.as_deref(),
        context: &record.context,
        latency_us: record.latency_us,
    };
    serde_json::to_string(&detail)
        .map_err(|error| db::Error::Corrupt(format!("the detail of a use: {error}")))
}

async fn put_counts(conn: &mut Conn, counts: &mut Counts) -> db::Result<()> {
    MINUTE.put(conn, use_rows(&counts.minutes)).await?;
    HOUR.put(conn, use_rows(&counts.hours)).await?;
    let mut rows = Rows::default();
    let ips = std::mem::take(&mut counts.ips);
    for (row, seen) in &addresses::fold(conn, ips).await? {
        rows.text(&row.tenant_id)
            .number(row.day)
            .text(&row.key_id)
            .text(&row.ip);
        put_seen(&mut rows, seen, true);
    }
    IP.put(conn, rows).await?;
    let mut rows = Rows::default();
    for (row, seen) in &counts.scopes {
        rows.text(&row.tenant_id)
            .number(row.day)
            .text(&row.key_id)
            .text(&row.service)
            .text(&row.scope);
        put_seen(&mut rows, seen, false);
    }
    SCOPE.put(conn, rows).await?;
    let mut rows = Rows::default();
    for (row, uses) in &strangers::fold(conn, &counts.strangers).await? {
        rows.text(&row.tenant_id)
            .number(row.hour)
            .text(&row.caller)
            .text(&row.service)
            .text(&row.outcome)
            .text(row.operation.as_str())
            .text(&row.ip)
            .number(bounded(*uses));
    }
    STRANGER.put(conn, rows).await?;
    // Last, because every node steps the same few rows.
    let mut rows = Rows::default();
    for (row, uses) in &counts.days {
        rows.text(&row.tenant_id)
            .number(row.start)
            .text(&row.service)
            .text(&row.outcome)
            .text(row.operation.as_str())
            .number(bounded(uses.uses))
            .number(bounded(uses.cost));
    }
    DAY.put(conn, rows).await
}

fn use_rows(counts: &BTreeMap<UseKey, Uses>) -> Rows {
    let mut rows = Rows::default();
    for (row, uses) in with_pauses(ROWS_A_PAUSE, counts) {
        put_use(&mut rows, row, uses);
    }
    rows
}

fn put_use(rows: &mut Rows, row: &UseKey, uses: &Uses) {
    rows.text(&row.tenant_id)
        .number(row.start)
        .text(&row.key_id)
        .text(&row.secret_id)
        .number(i64::from(row.superseded))
        .text(&row.service)
        .text(&row.outcome)
        .text(row.operation.as_str())
        .text(&row.caller)
        .text(&row.consumer_id)
        .number(bounded(uses.uses))
        .number(bounded(uses.cost));
}

/// What is added to hours that are sealed, under the last number of the group. As a rule nothing.
fn late_rows(hours: &BTreeMap<UseKey, Uses>, sealed_to: i64, seq: i64) -> Rows {
    let mut rows = Rows::default();
    for (row, uses) in hours.iter().filter(|(row, _)| row.start < sealed_to) {
        rows.number(seq);
        put_use(&mut rows, row, uses);
    }
    rows
}

fn put_seen(rows: &mut Rows, seen: &Seen, with_first: bool) {
    rows.number(bounded(seen.uses));
    if with_first {
        rows.number(seen.first_at);
    }
    rows.number(seen.last_at);
}

/// The number of a batch, and what [`put_use`] writes.
const LATE_COLUMNS: &[(&str, Kind)] = &[
    ("seq", Kind::Big),
    ("tenant_id", Kind::Text),
    ("start", Kind::Big),
    ("key_id", Kind::Text),
    ("secret_id", Kind::Text),
    ("superseded", Kind::Integer),
    ("service", Kind::Text),
    ("outcome", Kind::Text),
    ("operation", Kind::Text),
    ("caller", Kind::Text),
    ("consumer_id", Kind::Text),
    ("uses", Kind::Big),
    ("cost", Kind::Big),
];

const USE_COLUMNS: &[(&str, Kind)] = LATE_COLUMNS.split_at(1).1;

static MINUTE: Table = Table {
    name: "usage_minute",
    columns: USE_COLUMNS,
    conflict: "ON CONFLICT (tenant_id, start, key_id, secret_id, superseded, service, outcome, \
               operation, caller) DO UPDATE SET uses = usage_minute.uses + excluded.uses, \
               cost = usage_minute.cost + excluded.cost",
};

static HOUR: Table = Table {
    name: "usage_hour",
    columns: USE_COLUMNS,
    conflict: "ON CONFLICT (tenant_id, start, key_id, secret_id, superseded, service, outcome, \
               operation, caller) DO UPDATE SET uses = usage_hour.uses + excluded.uses, \
               cost = usage_hour.cost + excluded.cost",
};

static LATE: Table = Table {
    name: "usage_late",
    columns: LATE_COLUMNS,
    conflict: "",
};

static DAY: Table = Table {
    name: "usage_day",
    columns: &[
        ("tenant_id", Kind::Text),
        ("start", Kind::Big),
        ("service", Kind::Text),
        ("outcome", Kind::Text),
        ("operation", Kind::Text),
        ("uses", Kind::Big),
        ("cost", Kind::Big),
    ],
    conflict: "ON CONFLICT (tenant_id, start, service, outcome, operation) DO UPDATE SET \
               uses = usage_day.uses + excluded.uses, cost = usage_day.cost + excluded.cost",
};

static IP: Table = Table {
    name: "usage_ip",
    columns: &[
        ("tenant_id", Kind::Text),
        ("day", Kind::Big),
        ("key_id", Kind::Text),
        ("ip", Kind::Text),
        ("uses", Kind::Big),
        ("first_at", Kind::Big),
        ("last_at", Kind::Big),
    ],
    conflict: "ON CONFLICT (tenant_id, day, key_id, ip) DO UPDATE SET \
               uses = usage_ip.uses + excluded.uses, \
               first_at = CASE WHEN excluded.first_at < usage_ip.first_at \
                          THEN excluded.first_at ELSE usage_ip.first_at END, \
               last_at = CASE WHEN excluded.last_at > usage_ip.last_at \
                         THEN excluded.last_at ELSE usage_ip.last_at END",
};

static SCOPE: Table = Table {
    name: "usage_scope",
    columns: &[
        ("tenant_id", Kind::Text),
        ("day", Kind::Big),
        ("key_id", Kind::Text),
        ("service", Kind::Text),
        ("scope", Kind::Text),
        ("uses", Kind::Big),
        ("last_at", Kind::Big),
    ],
    conflict: "ON CONFLICT (tenant_id, day, key_id, service, scope) DO UPDATE SET \
               uses = usage_scope.uses + excluded.uses, \
               last_at = CASE WHEN excluded.last_at > usage_scope.last_at \
                         THEN excluded.last_at ELSE usage_scope.last_at END",
};

static STRANGER: Table = Table {
    name: "usage_stranger",
    columns: &[
        ("tenant_id", Kind::Text),
        ("hour", Kind::Big),
        ("caller", Kind::Text),
        ("service", Kind::Text),
        ("outcome", Kind::Text),
        ("operation", Kind::Text),
        ("ip", Kind::Text),
        ("uses", Kind::Big),
    ],
    conflict: "ON CONFLICT (tenant_id, hour, caller, service, outcome, operation, ip) DO UPDATE \
               SET uses = usage_stranger.uses + excluded.uses",
};
