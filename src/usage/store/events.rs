//! Lists of events. Newest first they are walked back in windows of time that double, so that
//! `PostgreSQL` looks into few partitions; as they were stored, from batch to batch by its number.
//!
//! A walk that takes long, because few events meet what is asked, pauses between two windows and says where
//! to go on.
//!
//! Where a key has no event for long, its counts say where to go on: planning a look into hundreds of
//! partitions takes longer than all the rest.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::time::Duration;

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel_async::RunQueryDsl;

use crate::clock::Clock;
use crate::db::schema::{usage_batch, usage_event, usage_hour};
use crate::db::{self, Conn};
use crate::each;
use crate::page::{Page, PageRequest, Position, fitting};
use crate::time::Timestamp;
use crate::usage::counts::HOUR_MS;
use crate::usage::query::EventFilter;
use crate::usage::retention::COUNTS_KEPT;

/// How many batches one page in stored order looks through.
const BATCHES_MAX: i64 = 500;

/// So many hours are looked into at once, where they are told apart: each is compared with each partition, so
/// what planning takes grows with their square.
const HOURS_TOGETHER: usize = 16;

/// So many hours of a key are told apart at once.
const HOURS_KNOWN: usize = 256;

/// A window takes at most some times as long as those before it together, so what has not paused until then
/// ends before who asks stops waiting.
pub const PAUSE_AFTER: Duration = Duration::from_millis(400);

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
    fn position(&self) -> Position {
        Position {
            at: self.at,
            id: self.id.clone(),
        }
    }
}

/// Which events of the wanted ones, and in which order.
enum Part<'a> {
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

/// The hours in which a key was used, as its counts say.
#[derive(Debug)]
struct Used {
    /// The beginnings of those that were not looked into so far, newest first.
    hours: VecDeque<i64>,
    /// They are all that there are from here on.
    down_to: i64,
}

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub events: i64,
    /// Bytes, of which one event alone may take more; `None` where so many events are few.
    pub bytes: Option<i64>,
}

/// Events newest first, and where a walk that paused goes on.
#[derive(Clone, Debug)]
pub struct Walked {
    pub events: Vec<StoredEvent>,
    pub paused: Option<Position>,
}

/// A page, newest first. One that paused has fewer events than there is room for, and a next one.
pub async fn newest(
    conn: &mut Conn,
    wanted: &Wanted,
    page: &PageRequest,
) -> db::Result<Page<StoredEvent>> {
    let after = page.after.as_ref();
    let most = Most {
        events: page.fetch(),
        bytes: None,
    };
    let walked = walk(conn, wanted, after, most, PAUSE_AFTER).await?;
    let page = page.page(walked.events, StoredEvent::position);
    Ok(Page {
        next: page.next.or(walked.paused),
        ..page
    })
}

/// Up to `most` of the events behind `after`, newest first; fewer when there are no more, or when it pauses:
/// that is when they are as many bytes, and after the first window that ends later than `pause_after`.
pub async fn walk(
    conn: &mut Conn,
    wanted: &Wanted,
    after: Option<&Position>,
    most: Most,
    pause_after: Duration,
) -> db::Result<Walked> {
    let began_us = Clock::uptime_us();
    let mut paused = None;
    let mut rows: Vec<StoredEvent> = Vec::new();
    let mut bytes_left = most.bytes;
    let oldest = wanted.filter.from.map_or(0, Timestamp::millis);
    let oldest = oldest.max(wanted.oldest.millis());
    // A clock that is ahead may have stamped what is not yet.
    let mut high = wanted.filter.to.map_or(i64::MAX, Timestamp::millis);
    let mut end = high.min(wanted.now.millis());
    if let Some(after) = after {
        high = high.min(after.at.millis().saturating_add(1));
        end = end.min(high);
    }
    let mut span = HOUR_MS;
    let mut is_first = true;
    let mut used = None;
    while high > oldest {
        let wide = end.saturating_sub(span).max(oldest);
        let mut left = most.events.saturating_sub(count(&rows));
        if let Some(key) = wanted.filter.key.as_ref().filter(|_| !is_first)
            && used.as_ref().is_none_or(Used::is_over)
        {
            used = used_between(conn, wanted, key, (oldest, high)).await?;
        }
        let (low, hours) = match &mut used {
            Some(used) => used.next(span),
            None => (wide, None),
        };
        let part = Part::Window {
            low,
            high,
            after,
            hours,
        };
        let mut is_full = false;
        if let Some(bytes) = &mut bytes_left {
            // Before they are read: a few that are large are as much as many that are not.
            let sizes = sizes(conn, wanted, &part, left).await?;
            let fit = fitting(&sizes, *bytes).max(usize::from(rows.is_empty()));
            is_full = fit < sizes.len();
            *bytes = sizes
                .iter()
                .take(fit)
                .fold(*bytes, |left, size| left - size);
            left = left.min(i64::try_from(fit).unwrap_or(i64::MAX));
        }
        let found = load(conn, wanted, &part, left).await?;
        let is_empty = found.is_empty();
        rows.extend(found);
        if is_full {
            let last = rows.last().map(StoredEvent::position);
            paused = Some(last.unwrap_or_else(|| before_all_at(high)));
            break;
        }
        if count(&rows) >= most.events {
            break;
        }
        high = low;
        if let Some(key) = wanted.filter.key.as_ref().filter(|_| is_empty)
            && used.is_none()
        {
            high = low.min(last_use(conn, wanted, key, low).await?);
        }
        end = high;
        if !is_first {
            span = span.saturating_mul(2);
        }
        is_first = false;
        let took = Duration::from_micros(Clock::uptime_us().saturating_sub(began_us));
        if high > oldest && took >= pause_after {
            paused = Some(before_all_at(high));
            break;
        }
    }
    Ok(Walked {
        events: rows,
        paused,
    })
}

fn count(rows: &[StoredEvent]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// Before all events of this instant: none of them was looked at.
fn before_all_at(millis: i64) -> Position {
    Position {
        at: Timestamp::from_millis(millis),
        id: String::new(),
    }
}

/// Behind `before` there is no event of `key` at this time or later, as its counts say. What is older than
/// they are kept they know nothing of.
async fn last_use(conn: &mut Conn, wanted: &Wanted, key: &str, before: i64) -> db::Result<i64> {
    use diesel::dsl::max;
    let hour: Option<i64> = each!(conn, c => usage_hour::table
        .filter(usage_hour::tenant_id.concat("").eq(&wanted.tenant_id))
        .filter(usage_hour::key_id.eq(key))
        .filter(usage_hour::start.lt(before))
        .select(max(usage_hour::start))
        .first(c)
        .await)?;
    Ok(match hour {
        Some(start) => start.saturating_add(HOUR_MS),
        None => wanted.now.minus(COUNTS_KEPT).millis(),
    })
}

/// The newest hours from `low` to `high` in which `key` was used: `PostgreSQL` plans for their partitions alone.
/// `None` where nobody counted, and for `SQLite`.
async fn used_between(
    conn: &mut Conn,
    wanted: &Wanted,
    key: &str,
    (low, high): (i64, i64),
) -> db::Result<Option<Used>> {
    // Of the hour that this lies in the counts may be gone.
    let counted = wanted.now.minus(COUNTS_KEPT).millis();
    let counted = counted.saturating_add(HOUR_MS - counted.rem_euclid(HOUR_MS));
    if matches!(conn, Conn::Sqlite(_)) || high <= counted {
        return Ok(None);
    }
    let low = low.max(counted);
    let limit = i64::try_from(HOURS_KNOWN).unwrap_or(i64::MAX);
    let hours: Vec<i64> = each!(conn, c => usage_hour::table
        .filter(usage_hour::tenant_id.concat("").eq(&wanted.tenant_id))
        .filter(usage_hour::key_id.eq(key))
        .filter(usage_hour::start.gt(low.saturating_sub(HOUR_MS)))
        .filter(usage_hour::start.lt(high))
        .select(usage_hour::start)
        .distinct()
        .order(usage_hour::start.desc())
        .limit(limit)
        .load(c)
        .await)?;
    let oldest = hours.last().filter(|_| hours.len() >= HOURS_KNOWN);
    Ok(Some(Used {
        down_to: oldest.map_or(low, |oldest| low.max(*oldest)),
        hours: hours.into(),
    }))
}

impl Used {
    fn is_over(&self) -> bool {
        self.hours.is_empty()
    }

    /// The next of them that last as long together, and down to where these are all.
    fn next(&mut self, span: i64) -> (i64, Option<Vec<i64>>) {
        let count = usize::try_from(span / HOUR_MS).unwrap_or(HOURS_TOGETHER);
        let count = count.clamp(1, HOURS_TOGETHER).min(self.hours.len());
        let next: Vec<i64> = self.hours.drain(..count).collect();
        let down_to = next.last().filter(|_| !self.is_over());
        (down_to.map_or(self.down_to, |first| *first), Some(next))
    }
}

/// A page in the order of storing. There is always a next one: an empty page says that nothing has
/// been stored since.
pub async fn stored(
    conn: &mut Conn,
    wanted: &Wanted,
    page: &PageRequest,
) -> db::Result<Page<StoredEvent>> {
    let (mut seq, mut after) = match &page.after {
        Some(position) => (position.at.millis(), position.id.clone()),
        None => (0, String::new()),
    };
    let limit = i64::from(page.limit);
    let mut items: Vec<StoredEvent> = Vec::new();
    for (number, batch) in batches(conn, wanted, seq).await? {
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
        if is_full {
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
            .limit(BATCHES_MAX)
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

async fn load(
    conn: &mut Conn,
    wanted: &Wanted,
    part: &Part<'_>,
    limit: i64,
) -> db::Result<Vec<StoredEvent>> {
    let form = Form::of(conn, wanted);
    Ok(each!(conn, c => found!(wanted, part, form).limit(limit).load(c).await)?)
}

/// How many bytes each of these events takes in memory, about.
async fn sizes(
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
