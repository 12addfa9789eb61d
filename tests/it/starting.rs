//! How `keystead serve` begins and ends: what is wrong is told in one line within two seconds, what
//! is away is waited for, and a stop keeps what it promised.

use std::fs;
use std::net::TcpListener as Listener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use diesel_async::RunQueryDsl as _;
use futures_util::future::join_all;
use keystead::db::{self, Conn};
use keystead::each;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::cli::{MASTER_KEY, complaint, keystead, stdout};
use crate::support::{
    BINARY, Backend, Fault, Home, Process, Proxy, both, free_address, run, until,
};

/// What the operator waits for, at most, to be told that something is wrong.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

const BOUND: Duration = Duration::from_secs(20);

/// A start that must fail: its exit code and its one line, in time.
async fn refused(dir: &Path, settings: &[(&str, &str)]) -> (i32, String) {
    let mut command = keystead(dir, &["serve"]);
    for (name, value) in settings {
        command.env(format!("KEYSTEAD__{name}"), value);
    }
    let began = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ended = false;
    while !ended && began.elapsed() < TOLD_WITHIN {
        ended = child.try_wait().unwrap().is_some();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // It has ended, or it gets no longer.
    let _it_had_ended = child.kill();
    let output = child.wait_with_output().unwrap();
    assert!(
        ended,
        "{settings:?}: it goes on after {TOLD_WITHIN:?}: {output:?}"
    );
    (output.status.code().unwrap(), complaint(&output).to_owned())
}

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

#[tokio::test]
async fn a_bad_setting_ends_the_start_in_one_line_before_anything_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (file, settings, told) in [
        (
            "[server]\nlisten = \"here\"",
            &[][..],
            "keystead.toml: server.listen must be an IP address",
        ),
        (
            "[server]\nlisen = \"127.0.0.1:1\"",
            &[],
            "keystead.toml: server.lisen is not a setting; [server] has: listen, ",
        ),
        ("[server", &[], "keystead.toml: "),
        (
            "",
            &[("DATABASE__URL", "mysql://u:hush@h/d")],
            "KEYSTEAD__DATABASE__URL: database.url must start with",
        ),
        (
            "",
            &[("DATABASE__URL", "postgres://u:hush@h:x/d")],
            "KEYSTEAD__DATABASE__URL: database.url is not a URL",
        ),
        (
            "",
            &[("DATABASE__URL", "postgres://u:hush@h/d")],
            "secrets.master_key_files must name a file with the master key when the database is",
        ),
        (
            "",
            &[("SERVER__LISTEN", "0.0.0.0:0")],
            "KEYSTEAD__SERVER__LISTEN: server.listen ",
        ),
        (
            "",
            &[("ARGON2__MEMORY_KIB", "8")],
            "KEYSTEAD__ARGON2__MEMORY_KIB: argon2.memory_kib ",
        ),
        (
            "",
            &[("SECRETS__MASTER_KEY", "hush")],
            "KEYSTEAD__SECRETS__MASTER_KEY: secrets.master_key ",
        ),
        (
            "",
            &[("SECRETS__MASTER_KEY_FILES", "nowhere.key")],
            "secrets.master_key_files names nowhere.key, which cannot be read: ",
        ),
    ] {
        fs::write(dir.join("keystead.toml"), file).unwrap();
        let (code, line) = refused(dir, settings).await;
        assert_eq!(code, 2, "{line}");
        assert!(line.starts_with(told), "{line}");
        assert!(!line.contains("hush"), "{line}");
        assert_eq!(names(dir), ["keystead.toml"], "{line}");
    }
}

#[tokio::test]
async fn a_data_folder_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("file"), "").unwrap();
    // Below a file; and a folder in which nothing can be made, whoever one is.
    for (data_dir, told) in [
        (
            dir.join("file/data").display().to_string(),
            "cannot be made",
        ),
        ("/proc".to_owned(), "cannot be written to"),
    ] {
        let (code, line) = refused(dir, &[("DATA_DIR", &data_dir)]).await;
        assert_eq!(code, 2, "{line}");
        assert!(
            line.contains(&format!("data_dir = {data_dir} {told}: ")),
            "{line}"
        );
        assert!(
            line.contains("; give it to the user that runs keystead, or name another"),
            "{line}"
        );
    }
    assert_eq!(names(dir), ["file"]);
}

/// Takes TLS connections at this address, by a certificate that nobody trusts.
async fn untrusted(listener: tokio::net::TcpListener) {
    let pem = include_bytes!("support/untrusted.pem");
    let certificate = CertificateDer::from_pem_slice(pem).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        // The other side refuses it.
        let _refused = acceptor.accept(connection).await;
    }
}

#[tokio::test]
async fn a_redis_whose_certificate_does_not_count_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("rediss://:hush@{}", listener.local_addr().unwrap());
    let serving = tokio::spawn(untrusted(listener));
    fs::write(dir.join("empty.pem"), "").unwrap();
    let (nowhere, empty) = (dir.join("nowhere.pem"), dir.join("empty.pem"));
    let with = |file: &Path| format!("{url}?sslrootcert={}", file.display());
    for (url, told) in [
        (
            url.clone(),
            "redis.url cannot be used: the certificate of Redis is not trusted: invalid peer certificate: \
             UnknownIssuer; name the file of the authority that signed it in redis.url, as \
             ?sslrootcert=<file>"
                .to_owned(),
        ),
        (
            with(&nowhere),
            format!(
                "redis.url names {} as sslrootcert, which cannot be read: No such file or directory (os \
                 error 2); name the PEM file of the authority that signed the certificate of Redis",
                nowhere.display()
            ),
        ),
        (
            with(&empty),
            format!(
                "redis.url names {} as sslrootcert, which holds no certificate; name the PEM file of the \
                 authority that signed the certificate of Redis",
                empty.display()
            ),
        ),
    ] {
        let settings = [("REDIS__URL", &*url), ("SERVER__LISTEN", "127.0.0.1:0")];
        let (code, line) = refused(dir, &settings).await;
        assert_eq!((code, line), (2, told));
    }
    serving.abort();
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
        let serving = tokio::spawn(untrusted(listener));
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

#[tokio::test]
async fn a_database_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let settings = [
        ("DATABASE__URL", "sqlite:/nowhere/keystead.db"),
        ("SERVER__LISTEN", "127.0.0.1:0"),
    ];
    let (code, line) = refused(dir.path(), &settings).await;
    assert_eq!(code, 2, "{line}");
    let told = "database.url cannot be opened: /nowhere/keystead.db: No such file or directory";
    assert!(line.starts_with(told), "{line}");
    assert!(line.contains("; its folder must be there "), "{line}");
}

#[tokio::test]
async fn a_port_in_use_is_named_and_no_database_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let held = Listener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap().to_string();
    let (code, line) = refused(dir, &[("SERVER__LISTEN", &taken)]).await;
    drop(held);
    assert_eq!(code, 1);
    let told =
        format!("server.listen {taken} is in use; stop what listens there or set another port");
    assert_eq!(line, told);
    assert_eq!(names(dir), ["keystead-data/keystead.lock"]);
}

#[test]
fn a_database_that_refuses_is_named_without_its_password() {
    run(Backend::Postgres, async |home| {
        let with = |change: &dyn Fn(&mut url::Url)| {
            let mut url = url::Url::parse(&home.database_url).unwrap();
            change(&mut url);
            url.to_string()
        };
        let wrong_password = with(&|url| url.set_password(Some("hush")).unwrap());
        let unknown_user = with(&|url| url.set_username("hush-hush").unwrap());
        let unknown_database = with(&|url| url.set_path("/nowhere"));
        for (url, told) in [
            (wrong_password, "password authentication failed"),
            (unknown_user, "password authentication failed"),
            (unknown_database, "database \"nowhere\" does not exist"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let settings = [
                ("SERVER__LISTEN", "127.0.0.1:0"),
                ("DATABASE__URL", &*url),
                ("SECRETS__MASTER_KEY", MASTER_KEY),
            ];
            let (code, line) = refused(dir.path(), &settings).await;
            assert_eq!(code, 2, "{line}");
            assert!(
                line.starts_with("database.url is refused: ") && line.contains(told),
                "{line}"
            );
            assert!(!line.contains("hush\"") || !line.contains(&url), "{line}");
            assert_eq!(names(dir.path()), ["keystead-data/keystead.lock"]);
        }
    });
}

/// `keystead migrate` has run as somebody who may.
#[test]
fn a_database_user_without_the_right_to_change_the_schema_is_enough_to_serve() {
    run(Backend::Postgres, async |home| {
        let name = url::Url::parse(&home.database_url)
            .unwrap()
            .path()
            .replace('/', "server_of_");
        let empty = home.empty().await;
        let url_of = |home: &Home| {
            let mut url = url::Url::parse(&home.database_url).unwrap();
            url.set_username(&name).unwrap();
            url.set_password(Some("hush")).unwrap();
            url.to_string()
        };
        for statement in [
            format!("CREATE ROLE {name} LOGIN PASSWORD 'hush'"),
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned(),
            format!(
                "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}"
            ),
        ] {
            execute(&home, statement).await;
        }
        execute(
            &empty,
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC".to_owned(),
        )
        .await;

        let node = home.spawn(&[("DATABASE__URL", &url_of(&home))]).await;
        node.owner()
            .create("/v1/consumers", json!({"slug": "acme"}))
            .await;
        stop(node).await;

        let dir = tempfile::tempdir().unwrap();
        let settings = [
            ("SERVER__LISTEN", "127.0.0.1:0"),
            ("DATABASE__URL", &*url_of(&empty)),
            ("SECRETS__MASTER_KEY", MASTER_KEY),
        ];
        let (code, line) = refused(dir.path(), &settings).await;
        assert_eq!(code, 2, "{line}");
        assert!(line.contains("permission denied"), "{line}");
        assert!(
            line.ends_with("run keystead migrate with a user that may change the schema"),
            "{line}"
        );
        for statement in ["DROP OWNED BY", "DROP ROLE"] {
            execute(&home, format!("{statement} {name}")).await;
        }
    });
}

both!(
    a_wrong_master_key_ends_the_start_and_changes_nothing,
    a_second_server_on_one_data_folder_is_told_who_has_it,
    five_nodes_that_start_together_on_nothing_make_one_owner_key,
    a_kill_in_mid_migration_is_completed_by_the_next_start,
    what_was_asked_before_the_stop_is_answered,
    a_log_that_nobody_takes_stops_nothing,
    a_thousand_clients_that_come_at_once_are_connected,
);

async fn a_wrong_master_key_ends_the_start_and_changes_nothing(home: Home) {
    let node = home.spawn(&[]).await;
    let data_dir = node.data_dir.display().to_string();
    stop(node).await;
    let state = async || {
        let events = "SELECT count(*) AS count FROM audit_event";
        (listing(Path::new(&data_dir)), count(&home, events).await)
    };
    let before = state().await;
    let settings = [
        ("SERVER__LISTEN", "127.0.0.1:0"),
        ("DATABASE__URL", &*home.database_url),
        ("SECRETS__MASTER_KEY", MASTER_KEY),
        ("DATA_DIR", &data_dir),
    ];
    let (code, line) = refused(home.dir(), &settings).await;
    assert_eq!(code, 2);
    assert!(
        line.starts_with("secrets.master_key: none of the configured master keys is "),
        "{line}"
    );
    assert!(
        line.contains("configure that one") && line.contains("keystead pepper lost"),
        "{line}"
    );
    // But for the number of the last process in the lock.
    let after = state().await;
    assert_eq!(after.1, before.1);
    let names = |state: &[(String, u64)]| -> Vec<String> {
        state.iter().map(|file| file.0.clone()).collect()
    };
    assert_eq!(names(&after.0), names(&before.0));
}

#[tokio::test]
async fn a_master_key_that_went_missing_is_asked_for_and_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data_dir = data.display().to_string();
    let settings = [("SERVER__LISTEN", "127.0.0.1:0"), ("DATA_DIR", &*data_dir)];
    let run = |command: &str| {
        let mut run = keystead(dir.path(), &[command]);
        run.envs(settings.map(|(name, value)| (format!("KEYSTEAD__{name}"), value)));
        run
    };
    // A database alone never had one.
    fs::create_dir(&data).unwrap();
    assert!(run("migrate").status().unwrap().success());
    let mut node = run("serve").stdout(Stdio::null()).spawn().unwrap();
    let (began, owner_key) = (Instant::now(), data.join("owner.key"));
    while !owner_key.is_file() && began.elapsed() < BOUND {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    node.kill().unwrap();
    node.wait().unwrap();
    assert!(owner_key.is_file());
    fs::rename(data.join("master.key"), dir.path().join("copy")).unwrap();
    // The kill left logs, which SQLite may take into their files.
    let files = || {
        names(&data)
            .into_iter()
            .filter(|name| !name.contains(".db-"))
    };
    let before: Vec<_> = files().collect();
    let (code, line) = refused(dir.path(), &settings).await;
    assert_eq!(code, 2);
    let told = format!("data_dir: {data_dir}/master.key is missing");
    assert!(line.starts_with(&told), "{line}");
    assert!(
        line.contains("put its copy back") && line.contains("keystead pepper lost"),
        "{line}"
    );
    assert!(files().eq(before));
}

/// As after the end of another node: a connection that the system turns away is tried again only a second later.
async fn a_thousand_clients_that_come_at_once_are_connected(home: Home) {
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

async fn a_second_server_on_one_data_folder_is_told_who_has_it(home: Home) {
    let node = home.spawn(&[]).await;
    let data_dir = node.data_dir.display().to_string();
    let before = listing(&node.data_dir);
    let mut settings = home.settings(&node.data_dir, "127.0.0.1:0");
    settings.retain(|(name, _)| !name.starts_with("ARGON2"));
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .collect();
    let (code, line) = refused(home.dir(), &settings).await;
    assert_eq!(code, 1);
    let told = format!(
        "data_dir {data_dir} is in use by another keystead (process {}); stop it, or give this one a \
         folder of its own",
        node.id()
    );
    assert_eq!(line, told);
    assert_eq!(listing(&node.data_dir), before);
    assert_eq!(node.client().get("/health/ready").send().await.status, 200);
}

#[test]
fn a_node_that_starts_before_its_database_is_ready_soon_after_it() {
    run(Backend::Postgres, async |home| {
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

async fn execute(home: &Home, statement: String) {
    let done = home
        .eyes()
        .write(async move |conn: &mut Conn| sql(conn, &statement).await);
    done.await.unwrap();
}

async fn sql(conn: &mut Conn, query: &str) -> db::Result<usize> {
    Ok(each!(conn, c => diesel::sql_query(query).execute(c).await)?)
}
