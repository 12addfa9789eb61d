//! Fills a usage ledger for `scripts/bench --usage`: events over some days, written through the door that
//! nodes use, and counts over many more, copied from the days that have events.
//!
//! `fill_usage <events> <days of events> <days of counts>`, with the settings of the server in the
//! environment; prints what it made as JSON. The server must have been started once, and be stopped.

#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "millions at most, and places in lists of a known length"
)]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use diesel::sql_types::{BigInt, Text};
use diesel_async::{RunQueryDsl as _, SimpleAsyncConnection as _};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use keystead::app::App;
use keystead::clock::Clock;
use keystead::config::{Config, Sources};
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::id::{self, ConsumerId, KeyId, SecretId};
use keystead::tenants;
use keystead::time::{Span, Timestamp};
use keystead::usage::retention::Keep;
use keystead::usage::store::batch;
use keystead::usage::{Batch, Identified, Operation, Record, Rules, Usage};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tokio::time::Instant;

const DAY_MS: i64 = 86_400_000;

/// So many events are stored in one transaction, as of a node that has 10,000 in a second.
const TOGETHER: usize = 2_000;

const KEYS: usize = 500;

/// The last of the keys were used on the first day alone.
const KEYS_IDLE: usize = 5;

const CONSUMERS: usize = 40;

const SERVICES: [&str; 8] = [
    "billing",
    "catalog",
    "identity",
    "invoicing",
    "ledger",
    "messaging",
    "search",
    "shipping",
];

/// With how many of a thousand uses end so.
const OUTCOMES: [(&str, u32); 5] = [
    ("valid", 980),
    ("insufficient_scope", 8),
    ("rate_limited", 6),
    ("expired", 4),
    ("ip_not_allowed", 2),
];

const AGENTS: [&str; 4] = [
    "python-requests/2.32.4",
    "okhttp/5.1.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0 Safari/537.36",
    "billing-worker/4.18 (+https://example.com/bots)",
];

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|text| text.parse::<i64>());
    let (Some(Ok(events)), Some(Ok(days)), Some(Ok(count_days))) =
        (numbers.next(), numbers.next(), numbers.next())
    else {
        return Err(anyhow!(
            "usage: fill_usage <events> <days of events> <days of counts>"
        ));
    };
    let sources = Sources {
        variables: std::env::vars_os().collect(),
        ..Sources::default()
    };
    let config = Config::load(&sources)?;
    let _lock = config
        .lock_data_dir()
        .map_err(|error| anyhow!("the server must be stopped: {error}"))?;
    let master = config.master_keys()?;
    let app =
        App::build(config, master, Clock::System, Entropy::System).map_err(|line| anyhow!(line))?;
    tokio::runtime::Runtime::new()?.block_on(async {
        db::migrate_all(&app.db, &app.usage_db).await?;
        let world = World::new(&app, days).await?;
        let began = Clock::uptime_us();
        fill_events(&app, &world, events).await?;
        let seconds = since(began);
        let sizes_of_events = sizes(&app).await?;
        fill_counts(&app, days, count_days).await?;
        let made = json!({
            "events": events,
            "events_per_second": rate(events, seconds),
            "busy_key": world.keys[0].key_id,
            "rare_key": world.keys[KEYS - KEYS_IDLE - 1].key_id,
            "idle_key": world.keys[KEYS - 1].key_id,
            "bytes_with_events": sizes_of_events,
            "bytes": sizes(&app).await?,
        });
        cut_old_counts(&app, days).await?;
        writeln!(std::io::stdout(), "{made}")?;
        Ok(())
    })
}

/// Who uses what.
struct World {
    tenant: String,
    callers: Vec<String>,
    /// The first are used most.
    keys: Vec<Identified>,
    first: i64,
    last: i64,
}

impl World {
    async fn new(app: &App, days: i64) -> anyhow::Result<Self> {
        let find = async move |conn: &mut Conn| tenants::store::find(conn, tenants::DEFAULT).await;
        let found: db::Result<_> = app.db.read(find).await;
        let tenant = found?.context("start the server once: there is no tenant")?;
        let consumers: Vec<String> = (0..CONSUMERS)
            .map(|_| ConsumerId::new(&app.clock, &app.entropy).to_string())
            .collect();
        let key = || KeyId::new(&app.clock, &app.entropy).to_string();
        let keys = (0..KEYS).map(|n| Identified {
            key_id: key(),
            secret_id: SecretId::new(&app.clock, &app.entropy).to_string(),
            superseded: n % 50 == 7,
            consumer_id: consumers[n % CONSUMERS].clone(),
        });
        let last = app.clock.now().millis();
        Ok(Self {
            tenant: tenant.id.to_string(),
            callers: (0..6).map(|_| key()).collect(),
            keys: keys.collect(),
            first: last - days * DAY_MS,
            last,
        })
    }

    /// The `n`th of `count` batches.
    fn batch(&self, n: usize, count: usize, events: usize) -> Batch {
        let mut random = StdRng::seed_from_u64(n as u64);
        let span = (self.last - self.first) / count as i64;
        let begin = self.first + span * n as i64;
        let records = (0..events).map(|i| {
            let at = begin + span * i as i64 / events as i64;
            self.record(&mut random, at)
        });
        Batch {
            node: "fill".to_owned(),
            number: n as i64,
            records: records.collect(),
            shed: 0,
            counts_only: Vec::new(),
        }
    }

    fn record(&self, random: &mut StdRng, at: i64) -> Record {
        let is_first_day = at < self.first + DAY_MS;
        let keys = if is_first_day { KEYS } else { KEYS - KEYS_IDLE };
        // Few keys make most of the uses.
        let place: f64 = random.random();
        let n = ((place.powi(3) * keys as f64) as usize).min(keys - 1);
        let key = self.keys[n].clone();
        let service = SERVICES[n % SERVICES.len()];
        let mut chance = random.random_range(0..1000);
        let outcome = OUTCOMES
            .iter()
            .find(|(_, share)| {
                let is_it = chance < *share;
                chance = chance.saturating_sub(*share);
                is_it
            })
            .map_or("valid", |(outcome, _)| outcome);
        let scope = format!("{service}:read");
        Record {
            at: Timestamp::from_millis(at),
            tenant_id: self.tenant.clone(),
            key: Some(key),
            service: service.to_owned(),
            environment: "live".to_owned(),
            operation: if n % 9 == 4 {
                Operation::Authorize
            } else {
                Operation::Verify
            },
            outcome: outcome.to_owned(),
            required_scopes: vec![scope.clone()],
            any_scopes: Vec::new(),
            cost: 1,
            used_scopes: vec![scope],
            ip: Some(format!("198.51.{}.{}", n % 100, random.random_range(1..=3))),
            method: Some("GET".to_owned()),
            path: Some(format!(
                "/v2/{service}/items/{}",
                random.random_range(0..1_000_000)
            )),
            user_agent: Some(AGENTS[n % AGENTS.len()].to_owned()),
            context: BTreeMap::from([("region".to_owned(), "eu-central-1".to_owned())]),
            token_id: None,
            subject: None,
            actor: None,
            caller: self.callers[n % self.callers.len()].clone(),
            request_id: id::sortable(Timestamp::from_millis(at), &random.random()).to_string(),
            latency_us: random.random_range(20..400),
        }
    }
}

async fn fill_events(app: &App, world: &World, events: i64) -> anyhow::Result<()> {
    let events = usize::try_from(events)?;
    let count = events.div_ceil(TOGETHER).max(1);
    // The next is made while the last is stored; PostgreSQL stores several at a time.
    let at_once = if app.usage_db.is_sqlite() { 2 } else { 4 };
    let began = Clock::uptime_us();
    let mut done = 0;
    let mut stored = stream::iter(0..count)
        .map(|n| {
            let size = TOGETHER.min(events - n * TOGETHER);
            let batch = world.batch(n, count, size);
            async move { store(app, batch, world.last).await.map(|()| size) }
        })
        .buffered(at_once);
    while let Some(size) = stored.try_next().await? {
        done += size;
        if done % 100_000 < TOGETHER || done == events {
            tell(&format!(
                "{done} of {events} events, {} a second",
                rate(done as i64, since(began))
            ))?;
        }
    }
    Ok(())
}

/// A batch is stored once however often it is sent, so it is sent again while the writer is busy.
async fn store(app: &App, batch: Batch, now: i64) -> db::Result<()> {
    let now = Timestamp::from_millis(now);
    loop {
        let batch = batch.clone();
        let write =
            async move |conn: &mut Conn| batch::write(conn, &batch, &Rules::default(), now).await;
        match app.usage_db.write_to_end(write).await {
            Err(db::Error::Busy) => {}
            done => return done.map(drop),
        }
    }
}

/// Counts of a day without events are those of a day that has them.
async fn fill_counts(app: &App, days: i64, count_days: i64) -> anyhow::Result<()> {
    // The first and the last day are not whole.
    let whole = (days - 1).max(1);
    for day in days + 1..count_days {
        let back = (day - 1) / whole * whole * DAY_MS;
        let from = app.clock.now().millis() - day * DAY_MS + back;
        let from = from - from.rem_euclid(DAY_MS);
        app.usage_db
            .write_to_end(async move |conn: &mut Conn| copy_day(conn, from, back).await)
            .await?;
        if day % 20 == 0 || day + 1 == count_days {
            tell(&format!("{day} of {count_days} days of counts"))?;
        }
    }
    let analyze = async move |conn: &mut Conn| -> db::Result<()> {
        Ok(each!(conn, c => c.batch_execute("ANALYZE usage_hour").await)?)
    };
    if !app.usage_db.is_sqlite() {
        // As autovacuum does after so many rows.
        app.usage_db.write(analyze).await?;
    }
    Ok(())
}

/// As a server would have long ago.
async fn cut_old_counts(app: &App, days: i64) -> db::Result<()> {
    let keep = Keep {
        events: Span::days(days as u64 + 1),
        bytes_max: u64::MAX,
        counts_since: Timestamp::from_millis(0),
        gently_until: Instant::now(),
        told_after: Duration::MAX,
    };
    let usage = Usage::new(app.usage_db.clone(), app.clock.clone());
    usage.cut_counts(keep).await
}

/// The columns of each table of counts, with that of its time first.
const COUNTS: [(&str, &str, &str); 4] = [
    (
        "usage_hour",
        "start",
        "tenant_id, key_id, secret_id, superseded, service, outcome, operation, caller, consumer_id, uses, cost",
    ),
    (
        "usage_day",
        "start",
        "tenant_id, service, outcome, operation, uses, cost",
    ),
    (
        "usage_ip",
        "day",
        "tenant_id, key_id, ip, uses, first_at, last_at",
    ),
    (
        "usage_scope",
        "day",
        "tenant_id, key_id, service, scope, uses, last_at",
    ),
];

/// Copies the counts of the day that begins at `from` to `back` milliseconds earlier.
async fn copy_day(conn: &mut Conn, from: i64, back: i64) -> db::Result<()> {
    for (table, time, columns) in COUNTS {
        let query = format!(
            "INSERT INTO {table} ({time}, {columns}) SELECT {time} - {back}, {columns} FROM {table} \
             WHERE {time} >= {from} AND {time} < {from} + {DAY_MS}"
        );
        each!(&mut *conn, c => diesel::sql_query(query).execute(c).await)?;
    }
    Ok(())
}

#[derive(diesel::QueryableByName)]
struct Size {
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    bytes: i64,
    #[diesel(sql_type = BigInt)]
    row_count: i64,
}

/// The bytes of each table with its indexes, and its rows.
async fn sizes(app: &App) -> anyhow::Result<BTreeMap<String, (i64, i64)>> {
    let tables = [
        "usage_event",
        "usage_batch",
        "usage_minute",
        "usage_hour",
        "usage_day",
        "usage_ip",
        "usage_scope",
    ];
    let mut sizes = BTreeMap::new();
    for table in tables {
        let read = async move |conn: &mut Conn| -> db::Result<Size> {
            let query = match conn {
                Conn::Sqlite(_) => format!(
                    "SELECT '{table}' AS name, CAST(SUM(pgsize) AS BIGINT) AS bytes, \
                     (SELECT COUNT(*) FROM {table}) AS row_count FROM dbstat WHERE aggregate = TRUE \
                     AND name IN (SELECT name FROM sqlite_schema WHERE tbl_name = '{table}')"
                ),
                Conn::Postgres(c) => {
                    c.batch_execute("SET statement_timeout = 0").await?;
                    format!(
                        "SELECT '{table}' AS name, CAST(pg_total_relation_size('{table}') + \
                         COALESCE(SUM(pg_total_relation_size(inhrelid)), 0) AS BIGINT) AS bytes, \
                         (SELECT COUNT(*) FROM {table}) AS row_count \
                         FROM pg_inherits WHERE inhparent = '{table}'::regclass"
                    )
                }
            };
            Ok(each!(conn, c => diesel::sql_query(query).get_result(c).await)?)
        };
        // It counts every row, for which nobody else would wait.
        let size = Db::load(&app.usage_db, Duration::from_mins(10), read).await?;
        sizes.insert(size.name, (size.bytes, size.row_count));
    }
    Ok(sizes)
}

fn since(began_us: u64) -> u64 {
    (Clock::uptime_us().saturating_sub(began_us) / 1_000_000).max(1)
}

fn rate(events: i64, seconds: u64) -> i64 {
    events / i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn tell(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stderr(), "{line}")?;
    Ok(())
}
