//! Events of the ledger: which of them are wanted, and how they are read. Newest first they are [walked](super::walk);
//! as they were stored they are read from batch to batch, by its number.

use std::borrow::Cow;
use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::RunQueryDsl;

use crate::clock::Clock;
use crate::db::schema::{usage_batch, usage_event};
use crate::db::{self, Conn};
use crate::each;
use crate::page::{Page, PageRequest, Position};
use crate::time::Timestamp;
use crate::usage::counts::HOUR_MS;
use crate::usage::query::EventFilter;

/// How many batches are looked up at once by who reads in stored order.
const BATCHES_MAX: usize = 500;

/// What an event takes beside its detail, about.
const BYTES_BESIDE_DETAIL: i64 = 1024;

/// How many events of a batch are read at once.
const EVENTS_OF_BATCH: i64 = 2_000;

/// Whose events, and which of them.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub tenant_id: String,
    /// The slugs of the services that the caller may read of; `None` for all.
    pub services: Option<Vec<String>>,
    pub filter: EventFilter,
    /// Nothing is older.
    pub oldest: Timestamp,
    pub now: Timestamp,
}

/// An event as it is stored.
#[derive(Clone, Debug, Queryable)]
pub struct StoredEvent {
    pub tenant_id: String,
    pub at: Timestamp,
    pub id: String,
    pub node: String,
    pub batch: i64,
    pub key_id: String,
    pub secret_id: String,
    pub superseded: i32,
    pub consumer_id: String,
    pub service: String,
    pub environment: String,
    pub operation: String,
    pub outcome: String,
    pub ip: Option<String>,
    pub caller: String,
    pub request_id: String,
    pub token_id: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<String>,
    /// JSON of [`Detail`](super::batch::Detail).
    pub detail: String,
}

impl StoredEvent {
    pub(super) fn position(&self) -> Position {
        Position {
            at: self.at,
            id: self.id.clone(),
        }
    }
}

/// Which events of the wanted ones, and in which order.
pub(super) enum Part<'a> {
    /// Newest first: from `low` up to `high`, behind `after`.
    Window {
        low: i64,
        high: i64,
        after: Option<&'a Position>,
        /// The beginnings of the hours beside which there is nothing; `None` if that is not known.
        hours: Option<Vec<i64>>,
    },
    /// Oldest first: those of one batch, behind the id `after`.
    Batch {
        node: &'a str,
        number: i64,
        low: i64,
        high: i64,
        after: &'a str,
    },
}

/// A page in the order of storing. There is always a next one, which is where this one began if nothing
/// more is stored. One that looks through the batches of others for longer than `pause_after` ends with what it
/// has, maybe nothing: then its next one is further on.
pub async fn stored(
    conn: &mut Conn,
    wanted: &Wanted,
    page: &PageRequest,
    pause_after: Duration,
) -> db::Result<Page<StoredEvent>> {
    let began_us = Clock::uptime_us();
    let (first, mut after) = match &page.after {
        Some(position) => (position.at.millis(), position.id.clone()),
        None => (0, String::new()),
    };
    let mut seq = first;
    let limit = i64::from(page.limit);
    let mut items: Vec<StoredEvent> = Vec::new();
    'looking: loop {
        let batches = batches(conn, wanted, seq).await?;
        let is_last = batches.len() < BATCHES_MAX;
        for (number, batch) in batches {
            if number != seq {
                after.clear();
            }
            seq = number;
            let left = limit - i64::try_from(items.len()).unwrap_or(i64::MAX);
            let part = Part::Batch {
                node: &batch.0,
                number: batch.1,
                low: batch.2,
                high: batch.3,
                after: &after,
            };
            let rows = load(conn, wanted, &part, left).await?;
            let is_full = i64::try_from(rows.len()).unwrap_or(i64::MAX) >= left;
            if let Some(last) = rows.last() {
                after.clone_from(&last.id);
            }
            items.extend(rows);
            let took = Duration::from_micros(Clock::uptime_us().saturating_sub(began_us));
            if is_full || (seq > first && took >= pause_after) {
                break 'looking;
            }
        }
        if is_last {
            break;
        }
    }
    let next = Position {
        at: Timestamp::from_millis(seq),
        id: after,
    };
    Ok(Page {
        items,
        next: Some(next),
    })
}

/// Node, number, first and last time.
type BatchSpan = (String, i64, i64, i64);

/// The batches from the number `seq` on, which may have been read in part.
async fn batches(conn: &mut Conn, wanted: &Wanted, seq: i64) -> db::Result<Vec<(i64, BatchSpan)>> {
    let rows: Vec<(Option<i64>, BatchSpan)> = each!(conn, c => {
        let mut query = usage_batch::table
            .filter(usage_batch::seq.ge(seq))
            .filter(usage_batch::events.gt(0))
            .into_boxed();
        if let Some(from) = wanted.filter.from {
            query = query.filter(usage_batch::last_at.ge(from.millis()));
        }
        if let Some(to) = wanted.filter.to {
            query = query.filter(usage_batch::first_at.lt(to.millis()));
        }
        query
            .order(usage_batch::seq)
            .limit(i64::try_from(BATCHES_MAX).unwrap_or(i64::MAX))
            .select((
                usage_batch::seq,
                (
                    usage_batch::node,
                    usage_batch::number,
                    usage_batch::first_at,
                    usage_batch::last_at,
                ),
            ))
            .load(c)
            .await
    })?;
    Ok(rows
        .into_iter()
        .filter_map(|(seq, batch)| seq.map(|seq| (seq, batch)))
        .collect())
}

/// Where somebody is who reads all events that one batch left of a tenant.
#[derive(Clone, Debug)]
pub struct BatchPage {
    pub tenant_id: String,
    pub node: String,
    pub number: i64,
    /// Time and id of the event before.
    pub after: Option<(i64, String)>,
}

/// The next events of a batch, and where to go on.
pub async fn of_batch(
    conn: &mut Conn,
    page: BatchPage,
) -> db::Result<(Vec<StoredEvent>, Option<BatchPage>)> {
    let span: Option<(i64, i64)> = each!(&mut *conn, c => usage_batch::table
        .find((&page.node, page.number))
        .filter(usage_batch::events.gt(0))
        .select((usage_batch::first_at, usage_batch::last_at))
        .first(c)
        .await
        .optional())?;
    let Some((low, high)) = span else {
        return Ok((Vec::new(), None));
    };
    let wanted = Wanted {
        tenant_id: page.tenant_id.clone(),
        services: None,
        filter: EventFilter::default(),
        oldest: Timestamp::from_millis(low),
        now: Timestamp::from_millis(high),
    };
    let (low, after) = match &page.after {
        Some((at, id)) => (*at, id.as_str()),
        None => (low, ""),
    };
    let part = Part::Batch {
        node: &page.node,
        number: page.number,
        low,
        high,
        after,
    };
    let events = load(conn, &wanted, &part, EVENTS_OF_BATCH).await?;
    let is_full = i64::try_from(events.len()).unwrap_or(i64::MAX) >= EVENTS_OF_BATCH;
    let last = events.last().filter(|_| is_full);
    let next = last.map(|event| BatchPage {
        after: Some((event.at.millis(), event.id.clone())),
        ..page.clone()
    });
    Ok((events, next))
}

/// The condition that an event lies in one of these hours. As a text of ours it is planned each time, for
/// the partitions that it is about: `PostgreSQL` plans what is cached for all of them too, which takes
/// half a second.
fn within(hours: Option<&[i64]>) -> String {
    match hours {
        None => "1 = 1".to_owned(),
        Some([]) => "1 = 0".to_owned(),
        Some(hours) => {
            let ranges: Vec<String> = hours
                .iter()
                .map(|start| {
                    let end = start.saturating_add(HOUR_MS);
                    format!("at >= {start} AND at < {end}")
                })
                .collect();
            format!("({})", ranges.join(" OR "))
        }
    }
}

/// A member of an object by its name. To `SQLite` a name that begins with `$` is a path, and one in brackets
/// the place in a list: there it is a path always, with the name as a string of JSON.
fn member(is_sqlite: bool, name: &str) -> Cow<'_, str> {
    if is_sqlite {
        Cow::Owned(format!("$.{}", serde_json::Value::from(name)))
    } else {
        Cow::Borrowed(name)
    }
}

/// How a query is written for a database, and for what is asked.
#[derive(Clone, Copy)]
struct Form {
    is_sqlite: bool,
    /// Asked for by a key or a request: both are found by an index of their own, which no planner shall
    /// pass by for the tenant's.
    is_narrow: bool,
}

impl Form {
    fn of(conn: &Conn, wanted: &Wanted) -> Self {
        Self {
            is_sqlite: matches!(conn, Conn::Sqlite(_)),
            is_narrow: wanted.filter.key.is_some() || wanted.filter.request_id.is_some(),
        }
    }

    fn context(self) -> &'static str {
        if self.is_sqlite {
            "(detail -> 'context' ->> "
        } else {
            "(detail::json -> 'context' ->> "
        }
    }
}

/// The events that are wanted in this part, in its order.
macro_rules! found {
    ($wanted:expr, $part:expr, $form:expr) => {{
        let (wanted, form): (&Wanted, Form) = ($wanted, $form);
        let filter = &wanted.filter;
        let mut query = usage_event::table.into_boxed();
        if form.is_narrow && matches!($part, Part::Window { .. }) {
            query = query.filter(usage_event::tenant_id.concat("").eq(&wanted.tenant_id));
        } else {
            query = query.filter(usage_event::tenant_id.eq(&wanted.tenant_id));
        }
        match $part {
            Part::Window {
                low,
                high,
                after,
                hours,
            } => {
                query = query
                    .filter(usage_event::at.ge(*low))
                    .filter(usage_event::at.lt(*high))
                    .filter(sql::<Bool>(&within(hours.as_deref())))
                    .order((usage_event::at.desc(), usage_event::id.desc()));
                if let Some(after) = after {
                    let at = after.at.millis();
                    query = query.filter(
                        usage_event::at
                            .lt(at)
                            .or(usage_event::at.eq(at).and(usage_event::id.lt(&after.id))),
                    );
                }
            }
            Part::Batch {
                node,
                number,
                low,
                high,
                after,
            } => {
                query = query
                    .filter(usage_event::at.between(*low, *high))
                    .filter(usage_event::node.eq(*node))
                    .filter(usage_event::batch.eq(*number))
                    .filter(usage_event::id.gt(*after))
                    .order((usage_event::at.asc(), usage_event::id.asc()));
            }
        }
        if let Some(from) = filter.from {
            query = query.filter(usage_event::at.ge(from.millis()));
        }
        if let Some(to) = filter.to {
            query = query.filter(usage_event::at.lt(to.millis()));
        }
        if let Some(services) = &wanted.services {
            query = query.filter(usage_event::service.eq_any(services));
        }
        if let Some(key) = &filter.key {
            query = query.filter(usage_event::key_id.eq(key));
        }
        if let Some(secret) = &filter.secret {
            query = query.filter(usage_event::secret_id.eq(secret));
        }
        if let Some(superseded) = filter.superseded {
            query = query.filter(usage_event::superseded.eq(i32::from(superseded)));
        }
        if let Some(consumer) = &filter.consumer {
            query = query.filter(usage_event::consumer_id.eq(consumer));
        }
        if let Some(service) = &filter.service {
            query = query.filter(usage_event::service.eq(service));
        }
        if let Some(environment) = &filter.environment {
            query = query.filter(usage_event::environment.eq(environment));
        }
        if let Some(operation) = filter.operation {
            query = query.filter(usage_event::operation.eq(operation.as_str()));
        }
        if let Some(outcome) = &filter.outcome {
            query = query.filter(usage_event::outcome.eq(outcome));
        }
        if let Some(ip) = filter.ip {
            query = query.filter(usage_event::ip.eq(ip.to_canonical().to_string()));
        }
        if let Some(caller) = &filter.caller {
            query = query.filter(usage_event::caller.eq(caller));
        }
        if let Some(request_id) = &filter.request_id {
            query = query.filter(usage_event::request_id.eq(request_id));
        }
        if let Some(token_id) = &filter.token_id {
            query = query.filter(usage_event::token_id.eq(token_id));
        }
        if let Some(subject) = &filter.subject {
            query = query.filter(usage_event::subject.eq(subject));
        }
        for (name, value) in &filter.context {
            query = query.filter(
                sql::<Bool>(form.context())
                    .bind::<Text, _>(member(form.is_sqlite, name))
                    .sql(") = ")
                    .bind::<Text, _>(value),
            );
        }
        query
    }};
}

pub(super) async fn load(
    conn: &mut Conn,
    wanted: &Wanted,
    part: &Part<'_>,
    limit: i64,
) -> db::Result<Vec<StoredEvent>> {
    let form = Form::of(conn, wanted);
    Ok(each!(conn, c => found!(wanted, part, form).limit(limit).load(c).await)?)
}

/// How many bytes each of these events takes in memory, about.
pub(super) async fn sizes(
    conn: &mut Conn,
    wanted: &Wanted,
    part: &Part<'_>,
    limit: i64,
) -> db::Result<Vec<i64>> {
    let form = Form::of(conn, wanted);
    let sizes: Vec<i64> = each!(conn, c => found!(wanted, part, form)
        .select(sql::<BigInt>("CAST(OCTET_LENGTH(detail) AS BIGINT)"))
        .limit(limit)
        .load(c)
        .await)?;
    let sizes = sizes.into_iter();
    Ok(sizes
        .map(|detail| detail.saturating_add(BYTES_BESIDE_DETAIL))
        .collect())
}
