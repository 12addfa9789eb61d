//! The program as an operator meets it: exit codes, one line of error, no secret in it.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::{Home, both};

pub const MASTER_KEY: &str = "8f1d0a5b6c7e4932a1b0c9d8e7f60514233241506f7e8d9cabbacadbecfd0e1f";

/// `keystead` in a directory of its own, with nothing in its environment.
pub fn keystead(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
    command.args(arguments).current_dir(dir).env_clear();
    command
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

/// The one line of a failure.
pub fn complaint(output: &Output) -> &str {
    let text = std::str::from_utf8(&output.stderr).unwrap();
    let line = text.strip_suffix('\n').unwrap();
    assert!(!line.contains('\n'), "{text}");
    line.strip_prefix("keystead: ").unwrap()
}

fn empty_dir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn the_version_is_printed() {
    let output = keystead(empty_dir().path(), &["version"]).output().unwrap();
    assert!(output.status.success());
    assert_eq!(
        stdout(&output),
        format!("keystead {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn a_wrong_command_line_ends_with_2_and_one_line() {
    let output = keystead(empty_dir().path(), &["migrat"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).starts_with("unrecognized subcommand 'migrat'"));
    let output = keystead(empty_dir().path(), &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_effective_settings_are_valid_toml_and_say_who_set_them() {
    let dir = empty_dir();
    fs::write(
        dir.path().join("keystead.toml"),
        "[log]\nlevel = \"debug\"\n",
    )
    .unwrap();
    let output = keystead(dir.path(), &["check-config", "--listen", "127.0.0.1:9"])
        .env("KEYSTEAD__SECRETS__MASTER_KEY", MASTER_KEY)
        .env(
            "KEYSTEAD__DATABASE__URL",
            "postgres://keystead:hush@db.example.com/keystead",
        )
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", complaint(&output));
    insta::assert_snapshot!(stdout(&output), @r#"
    data_dir = "./keystead-data"

    [server]
    listen = "127.0.0.1:9"
    public_url = "http://127.0.0.1:9"
    trusted_proxies = []
    dangerous_plain_http = false
    drain_delay = "5s"
    operations = "auto"
    cors_origins = []
    workers = 0

    [database]
    url = "postgres://keystead:***@db.example.com/keystead"

    [redis]

    [secrets]
    master_key = "***"
    master_key_files = []

    [cache]
    refresh = "5m"
    stale_max = "15m"
    entries_max = 1000000

    [audit]
    checkpoint_every = "1h"

    [usage]
    recording = true
    events_retention = "30d"
    events_bytes_max = 21474836480
    sink = ["database"]
    file_bytes_max = 268435456
    files_kept = 10

    [oauth]
    signing_algorithm = "ES256"
    signing_rotation = "90d"

    [argon2]
    memory_kib = 19456
    passes = 2
    lanes = 1
    dangerous_weak_argon2 = false

    [log]
    format = "auto"
    level = "debug"

    # Set, and not at its default:
    # server.listen by --listen
    # database.url by KEYSTEAD__DATABASE__URL
    # secrets.master_key by KEYSTEAD__SECRETS__MASTER_KEY
    # log.level by keystead.toml
    "#);
    stdout(&output).parse::<toml::Table>().unwrap();
}

#[test]
fn the_printed_example_is_accepted_as_it_is() {
    let dir = empty_dir();
    let output = keystead(dir.path(), &["check-config", "--example"])
        .output()
        .unwrap();
    fs::write(dir.path().join("keystead.toml"), &output.stdout).unwrap();
    let output = keystead(dir.path(), &["check-config"]).output().unwrap();
    assert!(output.status.success(), "{}", complaint(&output));
    assert!(
        stdout(&output).ends_with("makes one.\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn a_bad_setting_ends_with_2_and_names_it() {
    let dir = empty_dir();
    let output = keystead(dir.path(), &["check-config", "--config", "nowhere.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).starts_with("nowhere.toml: cannot be read: No such file"));

    let output = keystead(dir.path(), &["migrate"])
        .env("KEYSTEAD__DATABASE__URL", "mysql://root:hush@localhost/x")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(
        complaint(&output),
        "KEYSTEAD__DATABASE__URL: database.url must start with sqlite: or postgres://"
    );
}

#[test]
fn no_start_up_error_shows_a_secret() {
    let dir = empty_dir();
    let loose = dir.path().join("loose.key");
    fs::write(&loose, "hush").unwrap();
    fs::set_permissions(&loose, fs::Permissions::from_mode(0o644)).unwrap();
    for (name, value) in [
        ("KEYSTEAD__SECRETS__MASTER_KEY", "hush"),
        (
            "KEYSTEAD__SECRETS__MASTER_KEY_FILE",
            loose.to_str().unwrap(),
        ),
        ("KEYSTEAD__DATABASE__URL", "postgres://u:hush@localhost:x/d"),
        (
            "KEYSTEAD__DATABASE__URL",
            "postgres://u:hush@localhost:1/d?sslrootcert=/dev/null",
        ),
        ("KEYSTEAD__DATABASE__URL", "postgres://u:hush@127.0.0.1:1/d"),
        ("KEYSTEAD__DATABASE__URL_FILE", loose.to_str().unwrap()),
        ("KEYSTEAD__SERVER__LISTEN", "hush"),
    ] {
        let output = keystead(dir.path(), &["migrate"])
            .env(name, value)
            .env("RUST_LOG", "trace")
            .env("RUST_BACKTRACE", "full")
            .output()
            .unwrap();
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{name}: {output:?}"
        );
        assert!(!complaint(&output).contains("hush"), "{name}: {output:?}");
        assert!(output.stdout.is_empty(), "{name}: {output:?}");
    }
}

#[test]
fn the_help_names_no_flag_for_a_secret() {
    for arguments in [
        &["--help"][..],
        &["check-config", "--help"],
        &["health", "--help"],
        &["migrate", "--help"],
        &["audit", "verify", "--help"],
        &["pepper", "lost", "--help"],
    ] {
        let output = keystead(empty_dir().path(), arguments).output().unwrap();
        assert!(output.status.success());
        for secret in ["--database-url", "--master-key", "--api-key", "--password"] {
            assert!(!stdout(&output).contains(secret), "{arguments:?}");
        }
    }
}

#[test]
fn a_result_that_nobody_takes_is_told_without_a_panic() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let output = keystead(empty_dir().path(), &["check-config", "--example"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(complaint(&output).contains("No space left"), "{output:?}");

    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let output = keystead(empty_dir().path(), &["check-config", "--example"])
        .stdout(closed)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

#[test]
fn whatever_the_umask_files_are_their_owners_alone() {
    let dir = empty_dir();
    let output = Command::new("sh")
        .args([
            "-c",
            "umask 000; exec \"$0\" migrate",
            env!("CARGO_BIN_EXE_keystead"),
        ])
        .current_dir(dir.path())
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let data_dir = dir.path().join("keystead-data");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data_dir), 0o700);
    let mut files = 0;
    for entry in fs::read_dir(&data_dir).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(mode(&path), 0o600, "{}", path.display());
        files += 1;
    }
    assert!(files > 0);
}

#[test]
fn nobody_is_healthy_where_nobody_listens() {
    let output = keystead(empty_dir().path(), &["health", "--listen", "127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).starts_with("127.0.0.1:1 cannot be asked"),
        "{output:?}"
    );
}

both!(
    one_of_five_migrates_and_the_others_wait,
    a_migrated_database_is_left_alone
);

async fn one_of_five_migrates_and_the_others_wait(home: Home) {
    let url = home.empty().await.database_url;
    let dir = empty_dir();
    let started: Vec<_> = (0..5)
        .map(|_| {
            keystead(dir.path(), &["migrate"])
                .env("KEYSTEAD__DATABASE__URL", &url)
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut applied = Vec::new();
    for child in started {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let told = stdout(&output);
        let told = told.strip_prefix("applied ").unwrap_or_default();
        applied.extend(told.split([',', '\n']).map(|one| one.trim().to_owned()));
    }
    applied.retain(|one| !one.is_empty());
    // Ledger and database may be two files, each migrated by whoever comes first.
    let each: HashSet<&String> = applied.iter().collect();
    assert!(
        !applied.is_empty() && each.len() == applied.len(),
        "{applied:?}"
    );
}

async fn a_migrated_database_is_left_alone(home: Home) {
    let output = keystead(empty_dir().path(), &["migrate"])
        .env("KEYSTEAD__DATABASE__URL", &home.database_url)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(stdout(&output), "the schema is up to date\n");
}
