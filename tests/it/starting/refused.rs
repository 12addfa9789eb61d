//! A start that must fail is told in one line within two seconds, and changes nothing.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::cli::{MASTER_KEY, complaint, keystead};
use crate::support::tables;

/// What the operator waits for, at most, to be told that something is wrong.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

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

both!(
    a_wrong_master_key_ends_the_start_and_changes_nothing,
    a_second_server_on_one_data_folder_is_told_who_has_it,
);

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
pub(super) async fn untrusted(listener: tokio::net::TcpListener) {
    let pem = include_bytes!("../support/untrusted.pem");
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

/// An emoji in a path would be a use that no ledger takes.
#[test]
fn a_database_that_cannot_hold_every_text_ends_the_start_and_nothing_is_made_there() {
    run(Backend::Postgres, async |home| {
        let mut url = url::Url::parse(&home.database_url).unwrap();
        let name = format!("{}_latin", url.path().trim_start_matches('/'));
        let make = format!(
            "CREATE DATABASE {name} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        );
        home.session().await.run(&make).await;
        url.set_path(&name);
        let dir = tempfile::tempdir().unwrap();
        let settings = [
            ("SERVER__LISTEN", "127.0.0.1:0"),
            ("DATABASE__URL", url.as_str()),
            ("SECRETS__MASTER_KEY", MASTER_KEY),
        ];
        let (code, line) = refused(dir.path(), &settings).await;
        assert_eq!(code, 2, "{line}");
        let told = "database.url is refused: the database is encoded in LATIN1; make one with \
                    ENCODING 'UTF8' TEMPLATE template0";
        assert_eq!(line, told);
        assert_eq!(names(dir.path()), ["keystead-data/keystead.lock"]);
        let mut latin = home.empty().await;
        latin.database_url = url.to_string();
        let tables = "SELECT count(*) AS count FROM pg_tables WHERE schemaname = 'public'";
        assert_eq!(count(&latin, tables).await, 0);
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
            tables::execute_on(home.eyes(), &statement).await;
        }
        let revoke = "REVOKE CREATE ON SCHEMA public FROM PUBLIC";
        tables::execute_on(empty.eyes(), revoke).await;

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
            tables::execute_on(home.eyes(), &format!("{statement} {name}")).await;
        }
    });
}

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
