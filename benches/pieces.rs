//! What the pieces of a validation cost, each by itself, in a node over SQLite and memory.
//!
//! `cargo bench` prints the time of each; `cargo bench -- decide` that of those whose name contains it.
//! `scripts/bench` measures the whole, over HTTP.

use std::ffi::OsStr;
use std::fs;
use std::hint::black_box;
use std::net::Ipv4Addr;

use actix_web::rt::System;
use anyhow::{Context as _, anyhow};
use criterion::{Criterion, Throughput};
use keystead::app::{App, Listeners};
use keystead::cache::changes::Entity;
use keystead::cache::seal::Seal;
use keystead::cache::{Changes, Entries, Entry};
use keystead::clock::Clock;
use keystead::config::{Config, Sources};
use keystead::db::feed::Kind;
use keystead::entropy::Entropy;
use keystead::id::{ConsumerId, TenantId};
use keystead::keys::secret::Presented;
use keystead::ratelimit::{Charge, CounterId, HashTag, Limiter, Spending};
use keystead::scope::RequiredScope;
use keystead::usage::Operation;
use keystead::validation::answer;
use keystead::validation::decide::{Request, decide};
use keystead::validation::recorded::Asking;
use serde_json::{Value, json};

/// Bytes of a sealed value: what a key with one grant takes in Redis, roughly.
const SEALED_BYTES: usize = 600;

const ENTRIES: [usize; 2] = [1_000, 1_000_000];

/// A node with a caller and a key, as the issue of both over HTTP left it.
struct Node {
    app: App,
    caller: String,
    key: String,
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = Config::load(&Sources {
        variables: [
            ("KEYSTEAD__DATA_DIR", folder.path().as_os_str()),
            ("KEYSTEAD__SERVER__LISTEN", OsStr::new("127.0.0.1:0")),
        ]
        .map(|(name, value)| (name.into(), value.to_owned()))
        .into(),
        ..Sources::default()
    })?;
    let _lock = config.lock_data_dir()?;
    let master = config.master_keys_or_new(&Entropy::System)?;
    let seal = Seal::new(&master);
    let listeners = Listeners::bind(&config).map_err(|line| anyhow!(line))?;
    let app =
        App::build(config, master, Clock::System, Entropy::System).map_err(|line| anyhow!(line))?;
    let mut criterion = Criterion::default().configure_from_args();
    System::new().block_on(async {
        let running = app.clone().listen(listeners)?;
        app.become_ready().await.map_err(|line| anyhow!(line))?;
        let owner = fs::read_to_string(folder.path().join("owner.key"))?;
        let base = format!("http://{}", running.address);
        let (caller, key) = issued(&base, owner.trim()).await?;
        let node = Node { app, caller, key };
        validation(&mut criterion, &node)?;
        limits(&mut criterion, &node)?;
        running.stop().await;
        anyhow::Ok(())
    })?;
    caches(&mut criterion, &seal);
    criterion.final_summary();
    Ok(())
}

/// A key that may verify for a service, and one of that service with one limit; both are remembered.
async fn issued(base: &str, owner: &str) -> anyhow::Result<(String, String)> {
    let http = reqwest::Client::builder().no_proxy().build()?;
    let post = async |key: &str, path: &str, body: Value| -> anyhow::Result<Value> {
        let asked = http.post(format!("{base}{path}")).header("x-api-key", key);
        let answer = asked.json(&body).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    };
    let scopes = json!([{"name": "invoice:read"}, {"name": "invoice:send"}]);
    let service = json!({"slug": "invoicing", "scopes": scopes});
    post(owner, "/v1/services", service).await?;
    let consumer = json!({"slug": "acme", "name": "ACME"});
    post(owner, "/v1/consumers", consumer).await?;
    let issue = async |service: &str, scopes: &[&str], limits: Value| -> anyhow::Result<String> {
        let key = json!({
            "name": "a worker of acme", "consumer": "acme", "rate_limits": limits,
            "grants": [{"service": service, "scopes": scopes}],
        });
        let made = post(owner, "/v1/keys", key).await?;
        let text = made.get("api_key").and_then(Value::as_str);
        let text = text.context("no api_key")?;
        Ok(text.to_owned())
    };
    let caller = issue("keystead", &["verify:invoicing"], json!([])).await?;
    let limit =
        json!([{"name": "calls", "limit": 1_000_000, "period": "1s", "burst": 1_000_000_000}]);
    let key = issue("invoicing", &["invoice:read", "invoice:send"], limit).await?;
    let asked = json!({"api_key": key, "service": "invoicing"});
    post(&caller, "/v1/verify", asked).await?;
    Ok((caller, key))
}

/// A remembered key, from the text that was presented to the answer, and the steps between.
fn validation(criterion: &mut Criterion, node: &Node) -> anyhow::Result<()> {
    let Node { app, caller, key } = node;
    let validation = &app.validation;
    let peer = Ipv4Addr::LOCALHOST.into();
    let caller = validation
        .caller_now(caller, peer, &app.clock.read())
        .context("the caller is not remembered")?;
    let request = Request {
        required_scopes: vec![
            RequiredScope::parse("invoice:read").map_err(|fault| anyhow!("{fault:?}"))?,
        ]
        .into(),
        cost: 1,
        ..Request::default()
    };
    let validate = || {
        let asking = Asking {
            operation: Operation::Verify,
            caller: "",
            request_id: "01jd8k3v9we5m8t7q2x4z6y0ab",
            method: None,
            path: None,
            user_agent: None,
            context: None,
            began_us: Clock::uptime_us(),
            token: None,
        };
        let at = app.clock.read();
        let service = "invoicing";
        let mut answer = validation.judge_now(&caller, black_box(key), service, &request, &at)?;
        validation
            .charge_now(&mut answer, request.cost, &at)?
            .ok()?;
        validation.note_for(&caller, service, &request, &answer, asking, at.wall);
        Some(answer)
    };
    let answer = validate().context("the key is not remembered")?;
    let subject = answer.subject.as_ref().context("there is no subject")?;
    anyhow::ensure!(answer.decision.outcome.is_valid(), "the key is not valid");
    let now = app.clock.now();

    let mut group = criterion.benchmark_group("validation");
    group.bench_function("whole, without HTTP", |bench| bench.iter(validate));
    group.bench_function("parse a key", |bench| {
        bench.iter(|| Presented::parse(black_box(key), &[]));
    });
    group.bench_function("find the caller", |bench| {
        bench.iter(|| validation.caller_now(&node.caller, peer, &app.clock.read()));
    });
    group.bench_function("decide", |bench| {
        bench.iter(|| decide(black_box(subject), &request, now));
    });
    group.bench_function("write the answer", |bench| {
        bench.iter(|| answer::write(black_box(&answer), "01jd8k3v9we5m8t7q2x4z6y0ab"));
    });
    group.finish();
    Ok(())
}

/// A decision's limits are charged together: what one costs, and each further one.
fn limits(criterion: &mut Criterion, node: &Node) -> anyhow::Result<()> {
    let app = &node.app;
    let limiter = Limiter::new(app.db.clone(), None, app.clock.clone());
    let limit =
        json!({"name": "calls", "limit": 1_000_000, "period": "1s", "burst": 1_000_000_000});
    let limit = serde_json::from_value(limit)?;
    let tag = HashTag::new(
        &TenantId::new(&app.clock, &app.entropy),
        &ConsumerId::new(&app.clock, &app.entropy),
    );
    let mut group = criterion.benchmark_group("limits");
    for count in [1_usize, 2, 4, 8] {
        let charges: Vec<_> = (0..count)
            .map(|at| Charge {
                counter: CounterId::new("key", "limit", &at.to_string()),
                limit: &limit,
            })
            .collect();
        let spending = Spending {
            tag: &tag,
            limits: &charges,
            quotas: &[],
            cost: 1,
            only_looks: false,
        };
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(count.to_string(), |bench| {
            bench.iter(|| limiter.spend_local(black_box(&spending), limiter.now()));
        });
    }
    group.finish();
    Ok(())
}

/// Finding an entry among few and many, and sealing for Redis.
fn caches(criterion: &mut Criterion, seal: &Seal) {
    let mut group = criterion.benchmark_group("cache");
    for count in ENTRIES {
        let changes = Changes::new();
        let entries = Entries::new(count * 5 / 4);
        for number in 0..count {
            let entity = Entity::new(Kind::Key, &number.to_string());
            let entry = Entry::new(number, (0, 0), entity, u64::MAX);
            entries.keep(number, entry.into());
        }
        let mut at = 0;
        group.bench_function(format!("find one of {count}"), |bench| {
            bench.iter(|| {
                // A step that leads through all of them, and not from neighbour to neighbour.
                at = (at + 999_983) % count;
                entries.find(&at, &changes, 1)
            });
        });
    }
    let value = vec![7; SEALED_BYTES];
    let sealed = seal.close("a name", &value);
    group.throughput(Throughput::Bytes(SEALED_BYTES as u64));
    group.bench_function("seal", |bench| {
        bench.iter(|| seal.close("a name", black_box(&value)));
    });
    group.bench_function("open", |bench| {
        bench.iter(|| seal.open("a name", black_box(&sealed)).is_some());
    });
    group.finish();
}
