//! Measures how many uses a second go from the journal of a node into the ledger, for
//! `scripts/bench --ingest`: the uses are recorded and kept as a node does it, and what is timed is
//! [`Ledger::store`] until the journal is empty. Whether all of them are there once is looked at last.
//!
//! `ingest <database url> <folder> <blocks>`: the journal is made in the folder, and with
//! `sqlite:<path>` the ledger is `usage.db` beside that path. Each block has 3,000 uses of 1,000 keys, a
//! fifth of a second apart. Prints what was measured as JSON.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow, ensure};
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl as _;
use keystead::clock::Clock;
use keystead::db::{self, Conn, Db, Target};
use keystead::each;
use keystead::id::{self, ConsumerId, KeyId, SecretId, TenantId};
use keystead::time::Timestamp;
use keystead::usage::codec::{Use, UsedKey, UsedToken};
use keystead::usage::store::retention;
use keystead::usage::{Ledger, Operation, Recorder, Rules};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::json;
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, filter};

const USES: i64 = 3_000;

const BLOCK_MS: i64 = 200;

const KEYS: usize = 1_000;

/// Slug, and a scope of it.
const SERVICES: [(&str, &str); 5] = [
    ("billing", "invoice:read"),
    ("catalog", "item:read"),
    ("identity", "person:read"),
    ("messaging", "message:send"),
    ("search", "index:query"),
];

const AGENTS: [&str; 3] = [
    "python-requests/2.32.4",
    "okhttp/5.1.0",
    "billing-worker/4.18 (+https://example.com/bots)",
];

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(url), Some(folder), Some(blocks)) =
        (arguments.next(), arguments.next(), arguments.next())
    else {
        return Err(anyhow!("usage: ingest <database url> <folder> <blocks>"));
    };
    let blocks: i64 = blocks.parse()?;
    let spent = Spent::default();
    tracing_subscriber::registry()
        .with(spent.clone().with_filter(filter::LevelFilter::TRACE))
        .init();
    let target = Target::parse(&url).map_err(|fault| anyhow!("the URL {fault}"))?;
    let main = Db::open(&target)?;
    let usage = Db::open_usage(&target)?;
    db::migrate_all(&main, &usage).await?;
    let before = held(&usage).await?;

    let recorder = Arc::new(Recorder::new(true));
    let journal = Path::new(&folder).join("usage-journal.db");
    let node = format!("ingest-{}", Clock::System.now().millis());
    let ledger = Ledger::new(
        Arc::clone(&recorder),
        journal,
        usage.clone(),
        Clock::System,
        node,
    );
    ledger.begin().await?;
    let began = Clock::System.monotonic();
    fill(&ledger, &recorder, blocks).await?;
    let kept = began.elapsed();
    let journal_bytes = ledger.waiting_bytes();
    spent.clear();

    let (began, cpu) = (Clock::System.monotonic(), cpu_seconds()?);
    let batches = ledger.store(Rules::default()).await?;
    let (took, cpu) = (began.elapsed(), cpu_seconds()? - cpu);
    ensure!(!ledger.is_waiting(), "something is left in the journal");

    let after = held(&usage).await?;
    let uses = blocks * USES;
    ensure!(
        after.uses - before.uses == uses,
        "{after:?}, not {uses} more"
    );
    ensure!(
        after.events - before.events == uses,
        "{after:?}, not {uses} more"
    );
    let per_event = 1e6 / f64::from(u32::try_from(uses)?);
    let told = json!({
        "events": uses,
        "batches": batches,
        "events_per_second": (1e6 / (took.as_secs_f64() * per_event)).round(),
        "seconds": took.as_secs_f64(),
        "own_cpu_us_per_event": cpu * per_event,
        "seconds_into_the_journal": kept.as_secs_f64(),
        "journal_bytes": journal_bytes,
        "us_per_event_by_table": spent.told(per_event),
        "events_in_all": after.events,
        "bytes_per_event": bytes(&target, &usage).await? / after.events,
    });
    writeln!(std::io::stdout(), "{told:#}")?;
    Ok(())
}

/// Records the uses and keeps them, each block by itself.
async fn fill(ledger: &Ledger, recorder: &Recorder, blocks: i64) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(7);
    let began = Clock::System.now().millis() - blocks * BLOCK_MS;
    let at = Timestamp::from_millis(began);
    let tenant = TenantId::made_of(at, &random.random()).to_string();
    let callers = SERVICES.map(|(service, scope)| Caller {
        id: KeyId::made_of(at, &random.random()).to_string(),
        service,
        scopes: [scope.to_owned()],
    });
    let keys: Vec<Made<'_>> = (0..KEYS)
        .filter_map(|_| Some(Made::new(began, callers.choose(&mut random)?, &mut random)))
        .collect();
    for block in 0..blocks {
        for number in 0..USES {
            let key = keys.choose(&mut random).context("no key")?;
            let at = began + block * BLOCK_MS + number * BLOCK_MS / USES;
            record(recorder, &mut random, &tenant, key, at);
        }
        ledger.flush().await?;
    }
    Ok(())
}

/// Who asks about the keys of a service.
struct Caller {
    id: String,
    service: &'static str,
    scopes: [String; 1],
}

/// A key as its uses name it.
struct Made<'a> {
    key: String,
    secret: String,
    consumer: String,
    caller: &'a Caller,
    network: [u8; 3],
}

impl<'a> Made<'a> {
    fn new(at: i64, caller: &'a Caller, random: &mut StdRng) -> Self {
        let at = Timestamp::from_millis(at - random.random_range(0..1_000_000_000));
        Self {
            key: KeyId::made_of(at, &random.random()).to_string(),
            secret: SecretId::made_of(at, &random.random()).to_string(),
            consumer: ConsumerId::made_of(at, &random.random()).to_string(),
            caller,
            network: random.random(),
        }
    }
}

fn record(recorder: &Recorder, random: &mut StdRng, tenant: &str, key: &Made<'_>, at: i64) {
    let is_valid = random.random_ratio(98, 100);
    let service = key.caller.service;
    let path = format!("/v1/{service}/{}", random.random_range(0..100_000));
    let request_id = id::sortable(Timestamp::from_millis(at), &random.random());
    // A key is used from three addresses.
    let [net, subnet, range] = key.network;
    let ip = [net, subnet, range, random.random_range(1..4)].into();
    recorder.record(&Use {
        at,
        tenant_id: tenant,
        key: Some(UsedKey {
            key_id: &key.key,
            secret_id: &key.secret,
            superseded: false,
            consumer_id: &key.consumer,
        }),
        service,
        environment: "live",
        operation: Operation::Verify,
        outcome: if is_valid {
            "valid"
        } else {
            "insufficient_scope"
        },
        required_scopes: &key.caller.scopes,
        any_scopes: &[],
        met: None,
        cost: 1,
        ip: Some(ip),
        method: Some("GET"),
        path: Some(&path),
        user_agent: AGENTS.choose(random).copied(),
        context: None,
        caller: &key.caller.id,
        request_id: &request_id,
        latency_us: random.random_range(8..60),
        token: UsedToken::default(),
    });
}

/// What is in the ledger.
#[derive(Debug, diesel::QueryableByName)]
struct Held {
    #[diesel(sql_type = BigInt)]
    events: i64,
    #[diesel(sql_type = BigInt)]
    uses: i64,
}

async fn held(usage: &Db) -> anyhow::Result<Held> {
    let query = "SELECT (SELECT COALESCE(SUM(events), 0) FROM usage_batch) AS events, \
                 (SELECT COALESCE(SUM(uses), 0) FROM usage_minute) AS uses";
    // The sums of big numbers are numeric in PostgreSQL.
    let query = format!(
        "SELECT CAST(events AS BIGINT) AS events, CAST(uses AS BIGINT) AS uses FROM ({query}) AS held"
    );
    let held = usage
        .read(async move |conn: &mut Conn| -> db::Result<Held> {
            Ok(each!(conn, c => diesel::sql_query(query).get_result(c).await)?)
        })
        .await?;
    let counted = "SELECT COUNT(*) AS events, CAST(0 AS BIGINT) AS uses FROM usage_event";
    let events: Held = usage
        .read(async move |conn: &mut Conn| -> db::Result<Held> {
            Ok(each!(conn, c => diesel::sql_query(counted).get_result(c).await)?)
        })
        .await?;
    ensure!(events.events == held.events, "{events:?} and {held:?}");
    Ok(held)
}

/// With indexes and counts.
async fn bytes(target: &Target, usage: &Db) -> anyhow::Result<i64> {
    if let Target::Sqlite { path } = target {
        let path: PathBuf = path.with_file_name("usage.db");
        return Ok(i64::try_from(std::fs::metadata(path)?.len())?);
    }
    Ok(usage
        .read(async move |conn: &mut Conn| retention::bytes(conn).await)
        .await?)
}

/// Of this process so far.
fn cpu_seconds() -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let behind_the_name = stat.rsplit(')').next().context("no name")?;
    // User and system time are the twelfth and the thirteenth behind it, in hundredths.
    let times = behind_the_name.split_whitespace().skip(11).take(2);
    let ticks: u32 = times.map(str::parse::<u32>).sum::<Result<_, _>>()?;
    Ok(f64::from(ticks) / 100.0)
}

/// How long the spans that name a table lasted.
#[derive(Clone, Default)]
struct Spent(Arc<Mutex<BTreeMap<String, Duration>>>);

impl Spent {
    fn clear(&self) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn told(&self, per_event: f64) -> serde_json::Value {
        let spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = spent.iter().map(|(table, time)| {
            let hundredths = (time.as_secs_f64() * per_event * 100.0).round();
            (table.clone(), json!(hundredths / 100.0))
        });
        serde_json::Value::Object(told.collect())
    }
}

struct Table(String, Instant);

struct Named<'a>(&'a mut Option<String>);

impl tracing::field::Visit for Named<'_> {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if field.name() == "table" {
            *self.0 = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, _: &tracing::field::Field, _: &dyn std::fmt::Debug) {}
}

impl<S: tracing::Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spent {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut table = None;
        attributes.record(&mut Named(&mut table));
        if let (Some(table), Some(span)) = (table, context.span(id)) {
            let began = Clock::System.monotonic();
            span.extensions_mut().insert(Table(table, began));
        }
    }

    fn on_close(&self, id: Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        if let Some(Table(table, began)) = span.extensions().get::<Table>() {
            let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            *spent.entry(table.clone()).or_default() += began.elapsed();
        }
    }
}
