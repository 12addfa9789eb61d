//! How `keystead serve` begins and ends: what is away is waited for, and a stop keeps what it promised. What is
//! wrong is told (`refused.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener as Listener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use diesel_async::RunQueryDsl as _;
use futures_util::future::join_all;
use keystead::db::{self, Conn};
use keystead::each;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

use crate::cli::{keystead, stdout};
use crate::support::{
    BINARY, Backend, Fault, Home, Process, Proxy, both, free_address, run, until,
};

mod refused;

const BOUND: Duration = Duration::from_secs(20);

/// Held by whoever holds a start to its time, and by those that want the whole machine.
static MANY_AT_ONCE: Mutex<()> = Mutex::const_new(());

/// Everything below a folder, and how large it is.
fn listing(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((name, fs::metadata(path).unwrap().len()));
            }
        }
    }
    found.sort();
    found
}

fn names(dir: &Path) -> Vec<String> {
    listing(dir).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn a_redis_that_comes_back_with_another_certificate_is_told_of_in_the_log() {
    run(Backend::Sqlite, async |home| {
        let address = free_address();
        let node = home
            .spawn(&[("REDIS__URL", &format!("rediss://{address}"))])
            .await;
        let client = node.client();
        until(BOUND, "Redis is away", async || {
            let ready = client.get("/health/ready").send().await.expect(200);
            ready["modes"]["redis"] == "away"
        })
        .await;
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let serving = tokio::spawn(refused::untrusted(listener));
        let told =
            "the certificate of Redis is not trusted: invalid peer certificate: UnknownIssuer";
        until(BOUND, "it says why", async || node.log().contains(told)).await;
        // Five times a second it finds the same.
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(node.log().matches(told).count(), 1, "{}", node.log());
        serving.abort();
        stop(node).await;
    });
}

both!(
    five_nodes_that_start_together_on_nothing_make_one_owner_key,
    a_kill_in_mid_migration_is_completed_by_the_next_start,
    what_was_asked_before_the_stop_is_answered,
    a_log_that_nobody_takes_stops_nothing,
    a_thousand_clients_that_come_at_once_are_connected,
);

/// As after the end of another node: a connection that the system turns away is tried again only a second later.
async fn a_thousand_clients_that_come_at_once_are_connected(home: Home) {
    let _alone = MANY_AT_ONCE.lock().await;
    let node = home.spawn(&[]).await;
    let address = node.address.parse::<std::net::SocketAddr>().unwrap();
    node.signal("STOP");
    let connected = join_all((0..1_000).map(|_| {
        let connect = TcpStream::connect(address);
        tokio::time::timeout(Duration::from_millis(900), connect)
    }));
    let connected = connected.await;
    node.signal("CONT");
    let count = connected
        .iter()
        .filter(|one| matches!(one, Ok(Ok(_))))
        .count();
    assert_eq!(count, 1_000);
}

#[test]
fn a_node_that_starts_before_its_database_is_ready_soon_after_it() {
    run(Backend::Postgres, async |home| {
        let _alone = MANY_AT_ONCE.lock().await;
        // What the first start does besides is not what is waited for here.
        stop(home.spawn(&[]).await).await;
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        for (fault, tries) in [(Fault::Refuse, 5), (Fault::Hang, 2)] {
            proxy.set(fault).await;
            let mut node = home.start(&[("DATABASE__URL", &url)]);
            let client = node.client();
            let status = async |path: &str| client.get(path).try_send().await.map(|a| a.status);
            until(BOUND, "it lives", async || {
                status("/health/live").await == Some(200)
            })
            .await;
            // Long enough for its patience to have grown.
            until(BOUND, "it tried again and again", async || {
                assert_ne!(status("/health/ready").await, Some(200));
                node.log().matches("waiting for the database").count() >= tries
            })
            .await;
            assert_eq!(status("/health/live").await, Some(200));
            let ready = client.get("/health/ready").send().await;
            assert_eq!(
                (ready.status, &ready.body["status"]),
                (503, &json!("starting"))
            );
            let modes = json!({
                "database": "away", "redis": "none", "changes": "nobody", "decisions": "cut_off",
            });
            assert_eq!(
                ready.body["modes"], modes,
                "it has never reached its database"
            );
            let early = client
                .post("/v1/verify")
                .json(json!({"api_key": "x"}))
                .send()
                .await;
            assert_eq!((early.status, early.code()), (503, "starting"));
            assert!(early.headers.contains_key("retry-after"));

            proxy.set(Fault::None).await;
            let began = Instant::now();
            node.ready(BOUND).await;
            let took = began.elapsed();
            assert!(took < Duration::from_secs(2), "{fault:?}: after {took:?}");
        }
    });
}

async fn five_nodes_that_start_together_on_nothing_make_one_owner_key(home: Home) {
    let _alone = MANY_AT_ONCE.lock().await;
    let home = home.empty().await;
    let mut nodes: Vec<Process> = (0..5).map(|_| home.start(&[])).collect();
    join_all(
        nodes
            .iter_mut()
            .map(|node| node.ready(Duration::from_secs(30))),
    )
    .await;
    let owner_keys: Vec<_> = nodes
        .iter()
        .filter_map(|node| fs::read_to_string(node.data_dir.join("owner.key")).ok())
        .collect();
    assert_eq!(owner_keys.len(), 1, "owner keys");
    for node in &nodes {
        let owner = node.client().with_key(owner_keys[0].trim());
        let keys = owner.get("/v1/keys").send().await.expect(200);
        assert_eq!(keys["items"].as_array().unwrap().len(), 1, "{keys}");
        let report = owner
            .post("/v1/audit/verify")
            .json(json!({}))
            .send()
            .await
            .expect(200);
        assert_eq!(report["valid"], true, "{report}");
    }
    let created = "SELECT count(*) AS count FROM audit_event WHERE action = 'key.create'";
    assert_eq!(count(&home, created).await, 1);
    let started = "SELECT count(*) AS count FROM audit_event WHERE action = 'node.start'";
    assert_eq!(count(&home, started).await, 5);
    let migrated = "SELECT count(*) AS count FROM __diesel_schema_migrations";
    // In SQLite the usage ledger is a file with migrations of its own.
    let folder = match home.backend {
        Backend::Sqlite => "sqlite",
        Backend::Postgres => "postgres",
    };
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let known = fs::read_dir(migrations.join(folder)).unwrap();
    assert_eq!(
        count(&home, migrated).await,
        i64::try_from(known.count()).unwrap()
    );
}

async fn a_kill_in_mid_migration_is_completed_by_the_next_start(home: Home) {
    match home.backend {
        Backend::Postgres => killed_between_two_tables(&home.empty().await).await,
        Backend::Sqlite => {
            // A migration is a matter of milliseconds, and begins some milliseconds after the start.
            for millis in [4, 8, 12, 16, 24, 32, 48] {
                let home = home.empty().await;
                let mut node = home.start(&[]);
                tokio::time::sleep(Duration::from_millis(millis)).await;
                node.signal("KILL");
                node.ended(BOUND).await;
                assert_serves(&home).await;
            }
        }
    }
}

/// One of the tables is being made by somebody else who has not committed, so the migration waits in
/// its midst.
async fn killed_between_two_tables(home: &Home) {
    let (release, released) = oneshot::channel::<()>();
    let holder = home.db();
    let holding = tokio::spawn(async move {
        holder
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                sql(conn, "CREATE TABLE audit_event (id integer)").await?;
                let _dropped_counts_too = released.await;
                Err(db::Error::Busy)
            })
            .await
    });
    let waiting = "SELECT count(*) AS count FROM pg_stat_activity \
                   WHERE datname = current_database() AND wait_event_type = 'Lock'";
    let mut node = home.start(&[]);
    until(BOUND, "the migration waits in its midst", async || {
        count(home, waiting).await == 1
    })
    .await;
    node.signal("KILL");
    node.ended(BOUND).await;
    drop(release);
    holding.await.unwrap().expect_err("nothing of it is kept");
    assert_serves(home).await;
}

/// The connections that pages of usage are read on are open before anybody asks for one.
#[test]
fn whoever_asks_first_for_uses_waits_for_no_connection() {
    run(Backend::Postgres, async |home: Home| {
        let _node = home.spawn(&[]).await;
        let read = "SELECT count(*) AS count FROM pg_stat_activity \
                    WHERE datname = current_database() AND query LIKE '%\"usage_%' AND query NOT LIKE '%pg_stat_activity%'";
        until(BOUND, "each has read something", async || {
            count(&home, read).await == 6
        })
        .await;
    });
}

// Linux alone has a niceness for each thread.
#[cfg(target_os = "linux")]
both!(threads_of_databases_give_way_and_no_others_do);
#[cfg(target_os = "linux")]
async fn threads_of_databases_give_way_and_no_others_do(home: Home) {
    let node = home.spawn(&[]).await;
    let owner = node.owner();
    // Pages, changes, hashes: threads that are made when there is something for them to do.
    join_all((0..16).map(async |one| {
        let slug = format!("c{one}");
        owner.create("/v1/consumers", json!({"slug": slug})).await;
        let key = json!({
            "name": "own", "consumer": slug, "grants": [{"service": "keystead", "scopes": ["verify"]}],
        });
        owner.create("/v1/keys", key).await;
        owner.get("/v1/usage/events").send().await.expect(200);
    }))
    .await;
    let first = niceness(&format!("/proc/{}/stat", node.id())).unwrap().1;
    let threads = fs::read_dir(format!("/proc/{}/task", node.id())).unwrap();
    // One that has ended meanwhile says nothing.
    let threads = threads.filter_map(|one| niceness(one.ok()?.path().join("stat").to_str()?));
    let mut seen: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for (name, own) in threads {
        seen.entry(name).or_default().insert(own);
    }
    assert!(seen.len() > 4, "{seen:?}");
    for name in ["database", "usage ledger", "usage journal"] {
        assert!(seen.contains_key(name), "{seen:?}");
    }
    for (name, own) in &seen {
        let more = match name.as_str() {
            "database" => 5,
            "usage ledger" | "usage journal" => 10,
            _ => 0,
        };
        assert_eq!(
            own,
            &BTreeSet::from([(first + more).min(19)]),
            "{name}: {seen:?}"
        );
    }
}

/// The name of a thread, and how nice it is: see `proc_pid_stat(5)`.
#[cfg(target_os = "linux")]
fn niceness(stat: &str) -> Option<(String, i32)> {
    let stat = fs::read_to_string(stat).ok()?;
    let (name, rest) = stat.rsplit_once(')')?;
    let (_, name) = name.split_once('(')?;
    let niceness = rest.split_whitespace().nth(16)?;
    Some((name.to_owned(), niceness.parse().ok()?))
}

/// A node starts and has everything it needs.
async fn assert_serves(home: &Home) {
    let node = home.spawn(&[]).await;
    let owner = match fs::read_to_string(node.data_dir.join("owner.key")) {
        Ok(key) => key,
        // An earlier start came as far as making one.
        Err(_) => {
            let made = home.keystead(&["owner-key"]).output().unwrap();
            assert!(made.status.success(), "{made:?}");
            stdout(&made).to_owned()
        }
    };
    let owner = node.client().with_key(owner.trim());
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    let report = owner
        .post("/v1/audit/verify")
        .json(json!({}))
        .send()
        .await
        .expect(200);
    assert_eq!(report["valid"], true, "{report}");
}

/// Asks the node to stop and waits until it has.
async fn stop(mut node: Process) {
    node.signal("TERM");
    let status = node.ended(BOUND).await;
    assert_eq!(status.code(), Some(0), "{}", node.log());
}

async fn what_was_asked_before_the_stop_is_answered(home: Home) {
    let mut node = home.spawn(&[("SERVER__DRAIN_DELAY", "300ms")]).await;
    let key = fs::read_to_string(node.data_dir.join("owner.key")).unwrap();
    // Clients that go on until they are told that the connection closes.
    let clients: Vec<_> = (0..3)
        .map(|n| {
            let owner = node.owner();
            tokio::spawn(async move {
                for round in 0.. {
                    let body = json!({"slug": format!("consumer-{n}-{round}")});
                    let answer = owner.post("/v1/consumers").json(body).send().await;
                    let closes = answer
                        .headers
                        .get("connection")
                        .is_some_and(|v| v == "close");
                    answer.expect(201);
                    if closes {
                        return;
                    }
                }
            })
        })
        .collect();
    // And one whose request is under way all the time.
    let mut slow = TcpStream::connect(&node.address).await.unwrap();
    let body = json!({"slug": "slow"}).to_string();
    let head = format!(
        "POST /v1/consumers HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\nexpect: 100-continue\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        key.trim(),
        body.len()
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let mut continues = [0; 25];
    slow.read_exact(&mut continues).await.unwrap();
    assert_eq!(&continues, b"HTTP/1.1 100 Continue\r\n\r\n");

    node.signal("TERM");
    until(BOUND, "it stops", async || node.log().contains("stopping")).await;
    for client in clients {
        client.await.expect("every request was answered");
    }
    let refused = async || TcpStream::connect(&node.address).await.is_err();
    until(BOUND, "it takes no more connections", refused).await;
    slow.write_all(body.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 Created\r\n"), "{answer}");
    assert!(answer.contains("connection: close\r\n"), "{answer}");
    assert_eq!(node.ended(BOUND).await.code(), Some(0));
    let stored = "SELECT count(*) AS count FROM consumer WHERE slug = 'slow'";
    assert_eq!(count(&home, stored).await, 1);
}

async fn a_log_that_nobody_takes_stops_nothing(home: Home) {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    for stdout in [Stdio::from(full), Stdio::from(closed)] {
        let mut command = Command::new(BINARY);
        command.arg("serve");
        let mut node = home.start_by(command, &[("LOG__LEVEL", "trace")], Some(stdout));
        node.ready(BOUND).await;
        let client = node.client();
        until(BOUND, "it counts the lines that were lost", async || {
            assert_eq!(client.get("/v1/keys").send().await.status, 401);
            let metrics = client.get("/metrics").send().await;
            let mut lines = metrics.text.lines();
            let lost = lines.find_map(|line| line.strip_prefix("keystead_log_lines_lost_total "));
            lost.expect("the metric is there").parse::<u64>().unwrap() > 0
        })
        .await;
        stop(node).await;
    }
}

#[test]
fn whatever_the_umask_what_a_server_makes_is_its_owners_alone() {
    run(Backend::Sqlite, async |home| {
        let mut command = Command::new("sh");
        command.args(["-c", "umask 000; exec \"$0\" serve", BINARY]);
        let data_dir = home.dir().join("own");
        let url = format!("sqlite:{}", data_dir.join("keystead.db").display());
        let settings = [
            ("DATABASE__URL", &*url),
            ("DATA_DIR", data_dir.to_str().unwrap()),
        ];
        let mut node = home.start_by(command, &settings, None);
        node.ready(BOUND).await;
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&data_dir), 0o700);
        let names = names(&data_dir);
        for name in &names {
            assert_eq!(mode(&data_dir.join(name)), 0o600, "{name}");
        }
        for name in [
            "keystead.db",
            "keystead.db-wal",
            "keystead.db-shm",
            "keystead.lock",
            "owner.key",
        ] {
            assert!(names.iter().any(|made| made == name), "{name} of {names:?}");
        }
    });
}

#[test]
fn the_demo_shows_each_step_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let demo = keystead(dir.path(), &["demo", "--once"])
        .env("TMPDIR", dir.path())
        .output()
        .unwrap();
    assert_eq!(demo.status.code(), Some(0), "{demo:?}");
    let told = stdout(&demo);
    let mut from = 0;
    for step in [
        "1. ",
        "2. ",
        "3. ",
        "4. ",
        "5. ",
        "6. ",
        "7. ",
        "That is the tour: every answer was as told.",
    ] {
        let at = told[from..].find(&format!("\n{step}"));
        let at = from + at.unwrap_or_else(|| panic!("no {step:?} after {from}: {told}"));
        let (requests, answers) = (
            told[from..at].matches("\n  > "),
            told[from..at].matches("\n  < "),
        );
        let (requests, answers) = (requests.count(), answers.count());
        assert_eq!(requests, answers, "before {step:?}");
        assert_eq!(requests > 0, step != "1. ", "before {step:?}");
        from = at + 1;
    }
    assert_eq!(names(dir.path()), Vec::<String>::new());
}

#[derive(diesel::QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

/// What a query with one column `count` answers.
async fn count(home: &Home, query: &'static str) -> i64 {
    home.eyes()
        .read(async move |conn: &mut Conn| -> db::Result<i64> {
            let rows: Vec<Count> = each!(conn, c => diesel::sql_query(query).load(c).await)?;
            Ok(rows[0].count)
        })
        .await
        .unwrap()
}

async fn sql(conn: &mut Conn, query: &str) -> db::Result<usize> {
    Ok(each!(conn, c => diesel::sql_query(query).execute(c).await)?)
}
