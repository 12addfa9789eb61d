//! Promises about the configuration as a whole.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::settings::{Kind, SETTINGS};
use super::*;
use crate::entropy::Entropy;
use crate::time::Span;

const MASTER_KEY: &str = "8f1d0a5b6c7e4932a1b0c9d8e7f60514233241506f7e8d9cabbacadbecfd0e1f";

fn written(text: &str) -> (tempfile::TempDir, Sources) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keystead.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let sources = Sources {
        file: ConfigFile::Required(path),
        ..Sources::default()
    };
    (dir, sources)
}

fn variables(pairs: &[(&str, &str)]) -> Sources {
    Sources {
        variables: pairs
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)))
            .collect(),
        ..Sources::default()
    }
}

/// The error's line, with the file's name instead of its path.
fn refused(sources: &Sources) -> String {
    let error = Config::load(sources).expect_err("refused").to_string();
    assert!(!error.contains('\n'), "{error}");
    match &sources.file {
        ConfigFile::Required(path) => error.replace(&path.display().to_string(), "keystead.toml"),
        ConfigFile::IfPresent(_) | ConfigFile::None => error,
    }
}

fn refused_text(text: &str) -> String {
    let (_dir, sources) = written(text);
    refused(&sources)
}

#[test]
fn the_example_holds_every_setting_at_its_default() {
    let set: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{rest}\n"),
            Some(_) | None => format!("{line}\n"),
        })
        .collect();
    let (_dir, sources) = written(&set);
    assert_eq!(
        Config::load(&sources).unwrap().to_toml(),
        Config::default().to_toml()
    );

    let mut section = "";
    let mut named = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(name) = line.strip_prefix("# [[") {
            named.push(name.trim_end_matches("]]").to_owned());
        }
        // Those of a block are looked at by themselves.
        if line.starts_with("# ") && !line.starts_with("# Example: ") {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        }
        let setting = line
            .strip_prefix("# Example: ")
            .or(line.strip_prefix('#'))
            .and_then(|line| line.split_once(" = "));
        if let Some((name, _)) = setting
            && name
                .chars()
                .all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
        {
            named.push(
                format!("{section}.{name}")
                    .trim_start_matches('.')
                    .to_owned(),
            );
        }
    }
    let settings: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
    assert_eq!(named, settings);
}

/// What follows `# [[name]]` in the example, without the first `# `.
fn example_block(name: &str) -> String {
    let lines: Vec<_> = EXAMPLE
        .lines()
        .skip_while(|line| *line != format!("# [[{name}]]"))
        .map_while(|line| line.strip_prefix("# "))
        .collect();
    lines.join("\n") + "\n"
}

fn example_issuer() -> String {
    example_block("issuers")
}

/// With a secret that is there.
fn example_upstream(dir: &Path) -> String {
    let secret = private(dir, "upstream", "hush\n");
    example_block("upstreams").replace("/run/secrets/upstream.secret", &secret)
}

#[test]
fn the_example_of_an_upstream_is_accepted_and_holds_every_setting_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let example = example_upstream(dir.path());
    let (_dir, sources) = written(&example);
    let config = Config::load(&sources).unwrap();
    let secret = dir.path().join("upstream");
    let least = format!(
        "[[upstreams]]\nname = \"company\"\nissuer = \"https://login.example.com\"\n\
         client_id = \"keystead\"\nclient_secret_file = {secret:?}\n"
    );
    let (_dir, sources) = written(&least);
    assert_eq!(config.to_toml(), Config::load(&sources).unwrap().to_toml());

    let unknown = refused_text(&format!("{least}typo = 1\n"));
    let known = unknown
        .strip_prefix("keystead.toml: upstreams.0.typo is not a setting; there are: ")
        .unwrap();
    for name in known.split(", ") {
        assert!(example.contains(&format!("{name} = ")), "{name}");
    }
    let bad = refused_text(&least.replace("https", "http"));
    assert!(
        bad.starts_with("keystead.toml: upstreams[0].issuer: must be an https URL"),
        "{bad}"
    );
}

#[test]
fn the_example_of_an_issuer_is_accepted_and_holds_every_setting_with_its_default() {
    let (_dir, sources) = written(&example_issuer());
    let config = Config::load(&sources).unwrap();
    let least = "[[issuers]]\nissuer = \"https://login.example.com\"\ndiscovery = true\n\
                 audience = \"https://keys.example.com\"\nalgorithms = [\"ES256\"]\n\
                 tenant = \"default\"\n";
    let (_dir, sources) = written(least);
    let mut defaults = Config::load(&sources).unwrap();
    defaults.issuers[0].name = Some("company".to_owned());
    defaults.issuers[0].roles = config.issuers[0].roles.clone();
    assert_eq!(config.to_toml(), defaults.to_toml());

    let unknown = refused_text(&format!("{least}typo = 1\n"));
    let known = unknown
        .strip_prefix("keystead.toml: issuers.0.typo is not a setting; there are: ")
        .unwrap();
    for name in known.split(", ") {
        assert!(example_issuer().contains(&format!("{name} = ")), "{name}");
    }
}

#[test]
fn a_bad_issuer_names_its_setting() {
    let issuer = |text: &str| {
        let line = "issuer = \"https://login.example.com\"\n";
        refused_text(&format!("[[issuers]]\n{line}{text}"))
    };
    insta::assert_snapshot!(
        [
            issuer(""),
            issuer("audience = 1\n"),
            issuer("audience = \"a\"\nalgorithms = [\"none\"]\n"),
            issuer("audience = \"a\"\nalgorithms = [\"ES256\"]\ntenant = \"default\"\n"),
            refused_text("issuers = 1\n"),
            refused_text("[issuers]\nissuer = \"x\"\n"),
            refused(&variables(&[("KEYSTEAD__ISSUERS", "https://login.example.com")])),
            refused(&variables(&[("KEYSTEAD__ISSUERS", "[{issuer = \"hush\"}]")])),
        ]
        .join("\n"),
        @r#"
        keystead.toml: issuers.0 needs audience
        keystead.toml: issuers.0.audience must be a string
        keystead.toml: issuers.0.algorithms.0 must be one of: HS256, HS384, HS512, ES256, ES384, RS256, RS384, RS512, PS256, PS384, PS512, EdDSA
        keystead.toml: issuers[0].discovery: say where its keys come from, in exactly one way: discovery = true, jwks_url, public_key, public_key_file, hmac_secret or hmac_secret_file
        keystead.toml: issuers must be a list of issuers, [[issuers]] in a file and [{issuer = "...", ...}] in a variable
        keystead.toml: issuers must be a list of issuers, [[issuers]] in a file and [{issuer = "...", ...}] in a variable
        KEYSTEAD__ISSUERS: issuers must be a list of issuers, [[issuers]] in a file and [{issuer = "...", ...}] in a variable
        KEYSTEAD__ISSUERS: issuers.0 needs audience
        "#
    );
}

#[test]
fn every_field_is_a_listed_setting() {
    let mut config = Config::default();
    config.server.operations_listen = Some(config.server.listen);
    config.redis.url = Some(RedisUrl::parse("redis://localhost").unwrap());
    config.secrets.master_key = Some(crate::master::MasterKey::parse(MASTER_KEY).unwrap());
    let (_dir, sources) = written(&example_issuer());
    config.issuers = Config::load(&sources).unwrap().issuers;
    let dir = tempfile::tempdir().unwrap();
    let (_dir, sources) = written(&example_upstream(dir.path()));
    config.upstreams = Config::load(&sources).unwrap().upstreams;
    config.audit.checkpoint_file = Some("/a".into());
    config.audit.sink = Some("/b".into());
    config.audit.retention = Some(Span::days(9));
    config.usage.file = Some("/c".into());
    let table: toml::Table = toml::from_str(&config.to_toml()).unwrap();
    let mut fields = Vec::new();
    for (name, value) in &table {
        match value {
            toml::Value::Table(section) => {
                fields.extend(section.keys().map(|key| format!("{name}.{key}")));
            }
            _ => fields.push(name.clone()),
        }
    }
    let mut settings: Vec<_> = SETTINGS.iter().map(|setting| setting.path).collect();
    fields.sort();
    settings.sort_unstable();
    assert_eq!(fields, settings);
}

#[test]
fn a_variable_wins_over_the_file_and_a_flag_over_both() {
    let (_dir, mut sources) =
        written("[server]\nlisten = \"127.0.0.1:1\"\nworkers = 1\n[log]\nlevel = \"warn\"\n");
    sources.variables = variables(&[
        ("KEYSTEAD__SERVER__LISTEN", "127.0.0.1:2"),
        ("KEYSTEAD__SERVER__WORKERS", "2"),
        ("PATH", "/bin"),
        ("KEYSTEAD_PORT", "tcp://10.0.0.1:80"),
    ])
    .variables;
    sources.flags = vec![Flag {
        name: "--listen",
        path: "server.listen",
        value: "127.0.0.1:3".to_owned(),
    }];
    let loaded = Loaded::load(&sources).unwrap();
    assert_eq!(loaded.config.server.listen.port(), 3);
    assert_eq!(
        loaded.config.server.public_url.as_str(),
        "http://127.0.0.1:3"
    );
    assert_eq!(loaded.config.server.workers, 2);
    assert_eq!(String::from(loaded.config.log.level.clone()), "warn");
    let mut origins = loaded.origins();
    origins.retain(|(key, _)| *key != "log.level");
    assert_eq!(
        origins,
        [
            ("server.listen", "--listen".to_owned()),
            ("server.workers", "KEYSTEAD__SERVER__WORKERS".to_owned()),
        ]
    );
}

#[test]
fn every_setting_can_be_set_by_a_variable() {
    for setting in SETTINGS {
        let (value, shown) = match setting.path {
            "data_dir" => ("/srv/keys", "/srv/keys"),
            "server.listen" | "server.operations_listen" => ("127.0.0.1:9", "127.0.0.1:9"),
            "server.public_url" => ("https://keys.example.com/", "https://keys.example.com"),
            "server.trusted_proxies" => ("10.1.2.3/8, ::1", "::1/128"),
            "server.drain_delay"
            | "cache.refresh"
            | "cache.stale_max"
            | "audit.checkpoint_every" => ("90s", "90s"),
            "audit.checkpoint_file" | "audit.sink" => ("/srv/a.ndjson", "/srv/a.ndjson"),
            "audit.retention" => ("2555d", "2555d"),
            "usage.recording" => ("false", "false"),
            "usage.events_retention" | "oauth.signing_rotation" => ("40d", "40d"),
            "usage.events_bytes_max" | "usage.file_bytes_max" => ("100000000", "100000000"),
            "usage.sink" => ("database, file", "file"),
            "usage.file" => ("/srv/u.ndjson", "/srv/u.ndjson"),
            "oauth.signing_algorithm" => ("EdDSA", "EdDSA"),
            "server.operations" => ("off", "off"),
            "server.cors_origins" => ("https://a.example.com", "https://a.example.com"),
            "database.url" => ("postgres://u:hush@h/d", "postgres://u:***@h/d"),
            "redis.url" => ("rediss://u:hush@h/1", "rediss://u:***@h/1"),
            "secrets.master_key" => (MASTER_KEY, "***"),
            "secrets.master_key_files" => ("/a,/b", "/b"),
            "log.format" => ("json", "json"),
            "log.level" => ("info,keystead::audit=debug", "info,keystead::audit=debug"),
            "issuers" => (
                r#"[{issuer = "https://i", discovery = true, audience = "a", algorithms = ["ES256"], tenant = "default"}]"#,
                "https://i",
            ),
            "upstreams" => (
                r#"[{name = "u", issuer = "https://u", client_id = "c", client_secret = "hush"}]"#,
                "https://u",
            ),
            "cache.entries_max" => ("5000", "5000"),
            "argon2.memory_kib" => ("65536", "65536"),
            _ if setting.kind == Kind::Switch => ("true", "true"),
            _ => ("3", "3"),
        };
        let config = Config::load(&variables(&[(&setting.variable(), value)])).unwrap();
        let table: toml::Table = toml::from_str(&config.to_toml()).unwrap();
        let found = match setting.path.split_once('.') {
            Some((section, name)) => table[section][name].to_string(),
            None => table[setting.path].to_string(),
        };
        assert!(found.contains(shown), "{}: {found}", setting.path);
        assert!(!config.to_toml().contains("hush"));
        assert!(!config.to_toml().contains(MASTER_KEY));
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!format!("{config:?}").contains(MASTER_KEY));
    }
}

#[test]
fn a_bad_value_names_the_file_the_setting_and_the_fix() {
    insta::assert_snapshot!(
        [
            "[server]\nlisten = \"localhost\"\n",
            "[server]\nlisten = 8080\n",
            "[server]\nlisten = \"0.0.0.0:8080\"\n",
            "[server]\noperations_listen = \"[::]:9090\"\n",
            "[server]\noperations_listen = \"127.0.0.1:8080\"\n",
            "[server]\npublic_url = \"http://keys.example.com\"\n",
            "[server]\npublic_url = \"https://me:pw@keys.example.com\"\n",
            "[server]\ntrusted_proxies = [\"10.0.0.0/8\", \"lan\"]\n",
            "[server]\ntrusted_proxies = [\"0.0.0.0/0\"]\n",
            "[server]\ntrusted_proxies = \"10.0.0.0/8\"\n",
            "[server]\ncors_origins = [\"*\"]\n",
            "[server]\ndrain_delay = \"1 minute\"\n",
            "[server]\ndrain_delay = \"1h\"\n",
            "[server]\nworkers = 70000\n",
            "[server]\noperations = \"yes\"\n",
            "[server]\nlisten_on = \"127.0.0.1:80\"\n",
            "server = 1\n",
            "redis = \"x\"\n",
            "[redis]\nurl = \"memcached://:hush@h\"\n",
            "[redis]\nurl = 6379\n",
            "[database]\nurl = \"mysql://u@h/d\"\n",
            "[usage]\nsink = [\"file\"]\n",
            "[usage]\nsink = [\"database\", \"syslog\"]\n",
            "[usage]\nfile_bytes_max = 1000\n",
            "[usage]\nfiles_kept = 0\n",
            "[argon2]\npasses = 1\n",
            "[argon2]\nmemory_kib = 9999999\n",
            "[log]\nlevel = \"verbose\"\n",
            "data_dir = \"\"\n",
            "[server\n",
        ]
        .map(refused_text)
        .join("\n"),
        @r#"
        keystead.toml: server.listen must be an IP address and a port, such as "127.0.0.1:8080"
        keystead.toml: server.listen must be an IP address and a port, such as "127.0.0.1:8080"
        keystead.toml: server.listen = 0.0.0.0:8080 is not a loopback address, and this server speaks plain HTTP: listen on 127.0.0.1 behind a proxy that speaks TLS, or set server.dangerous_plain_http = true where the network is yours alone
        keystead.toml: server.operations_listen = [::]:9090 is not a loopback address, and this server speaks plain HTTP: listen on 127.0.0.1 behind a proxy that speaks TLS, or set server.dangerous_plain_http = true where the network is yours alone
        keystead.toml: server.operations_listen must not be the same as server.listen
        keystead.toml: server.public_url must start with https:// unless it is a loopback address or server.dangerous_plain_http = true
        keystead.toml: server.public_url must not hold a user name or password
        keystead.toml: server.trusted_proxies.1 must be an address or network, such as 10.0.0.0/8
        keystead.toml: server.trusted_proxies.0 must not be every address: any client could then choose its own
        keystead.toml: server.trusted_proxies must be a list of addresses or networks, such as ["10.0.0.0/8"]
        keystead.toml: server.cors_origins.0 must be an origin as browsers send it, such as https://console.example.com: no path, no wildcard
        keystead.toml: server.drain_delay must be a whole number with a unit s, m, h, d or w, such as "90d"
        keystead.toml: server.drain_delay must be at most 5m, such as "5s"
        keystead.toml: server.workers must be a number from 0 (one for each core) to 512
        keystead.toml: server.operations must be "auto", "on" or "off"
        keystead.toml: server.listen_on is not a setting; [server] has: listen, public_url, trusted_proxies, dangerous_plain_http, drain_delay, operations, operations_listen, cors_origins, workers
        keystead.toml: server must be a section, [server]
        keystead.toml: redis must be a section, [redis]
        keystead.toml: redis.url must start with redis:// or rediss://
        keystead.toml: redis.url must be redis://host:6379, or rediss:// for TLS
        keystead.toml: database.url must start with sqlite: or postgres://
        keystead.toml: usage.sink must be ["database"] or ["database", "file"]
        keystead.toml: usage.sink.1 must be ["database"] or ["database", "file"]
        keystead.toml: usage.file_bytes_max must be a number of bytes, at least 65536
        keystead.toml: usage.files_kept must be a number from 1 to 1000
        keystead.toml: argon2.passes is weaker than OWASP's minimum while argon2.memory_kib = 19456: use memory_kib = 19456 and passes = 2, or more
        keystead.toml: argon2.memory_kib must be a number from 8 to 1048576
        keystead.toml: log.level must be off, error, warn, info, debug or trace, and may add targets as in "info,keystead::audit=debug"
        keystead.toml: data_dir must be the path of a folder, such as "./keystead-data"
        keystead.toml: is not TOML: line 1: unclosed table, expected `]`
        "#
    );
}

#[test]
fn a_bad_variable_or_flag_is_named() {
    let flag = Sources {
        flags: vec![Flag {
            name: "--listen",
            path: "server.listen",
            value: "80".to_owned(),
        }],
        ..Sources::default()
    };
    insta::assert_snapshot!(
        [
            refused(&variables(&[("KEYSTEAD__SERVER__LISTEN", "")])),
            refused(&variables(&[("KEYSTEAD__SERVER__WORKERS", "many")])),
            refused(&variables(&[("KEYSTEAD__SERVER__DANGEROUS_PLAIN_HTTP", "yes")])),
            refused(&variables(&[("KEYSTEAD__SERVER__PORT", "80")])),
            refused(&variables(&[("KEYSTEAD__LISTEN", "80")])),
            refused(&variables(&[("KEYSTEAD_SERVER_LISTEN", "127.0.0.1:80")])),
            refused(&variables(&[("KEYSTEAD_SERVER__LISTEN", "127.0.0.1:80")])),
            refused(&variables(&[("KEYSTEAD__SERVER_LISTEN", "127.0.0.1:80")])),
            refused(&variables(&[("KEYSTEAD__SERVER__LISTEN_FILE", "/x")])),
            refused(&variables(&[("KEYSTEAD__SECRETS__MASTER_KEY_FILE", "/dev/null/x")])),
            refused(&flag),
        ]
        .join("\n"),
        @r#"
        KEYSTEAD__SERVER__LISTEN: server.listen must be an IP address and a port, such as "127.0.0.1:8080"
        KEYSTEAD__SERVER__WORKERS: server.workers must be a number from 0 (one for each core) to 512
        KEYSTEAD__SERVER__DANGEROUS_PLAIN_HTTP: server.dangerous_plain_http must be true or false
        KEYSTEAD__SERVER__PORT: is not a setting; [server] has: listen, public_url, trusted_proxies, dangerous_plain_http, drain_delay, operations, operations_listen, cors_origins, workers
        KEYSTEAD__LISTEN: is not a setting; there are: data_dir, server, database, redis, secrets, cache, audit, usage, oauth, argon2, log, issuers, upstreams
        KEYSTEAD_SERVER_LISTEN: is not a setting; write two underscores: KEYSTEAD__SERVER__LISTEN
        KEYSTEAD_SERVER__LISTEN: is not a setting; write two underscores: KEYSTEAD__SERVER__LISTEN
        KEYSTEAD__SERVER_LISTEN: is not a setting; write two underscores: KEYSTEAD__SERVER__LISTEN
        KEYSTEAD__SERVER__LISTEN_FILE: is not a setting; [server] has: listen, public_url, trusted_proxies, dangerous_plain_http, drain_delay, operations, operations_listen, cors_origins, workers
        KEYSTEAD__SECRETS__MASTER_KEY_FILE: secrets.master_key names /dev/null/x, which cannot be read: Not a directory (os error 20)
        --listen: server.listen must be an IP address and a port, such as "127.0.0.1:8080"
        "#
    );
}

#[test]
fn a_weak_or_bad_master_key_is_refused_by_name_and_never_shown() {
    let repeated = "ab".repeat(32);
    for value in [
        "",
        "changeme",
        "secret",
        "password",
        &"x".repeat(31),
        &repeated,
    ] {
        let error = refused(&variables(&[("KEYSTEAD__SECRETS__MASTER_KEY", value)]));
        let what = error
            .strip_prefix("KEYSTEAD__SECRETS__MASTER_KEY: secrets.master_key must be ")
            .and_then(|what| what.strip_suffix("; make one with: openssl rand -hex 32"));
        let expected = if value == repeated {
            "random: it has fewer than 8 different bytes"
        } else {
            "32 random bytes as 64 hexadecimal digits or as base64"
        };
        assert_eq!(what, Some(expected), "{error}");
    }
}

#[test]
fn no_error_shows_a_secret() {
    for text in [
        "[secrets]\nmaster_key = \"hush\"\n",
        "[secrets]\nmaster_key = [\"hush\"]\n",
        "[secrets]\nmaster_key = \"hush\n",
        "[secrets]\nmaster_key = hush\n",
        "[database]\nurl = \"postgres://u:hush@h:x/d\"\n",
        "[database]\nurl = { hush = \"hush\" }\n",
        "[server]\nlisten = \"hush\"\n",
        "[server]\nworkers = \"hush\"\n",
        "[server]\noperations = \"hush\"\n",
    ] {
        let error = refused_text(text);
        assert!(!error.contains("hush"), "{error}");
    }
}

#[test]
fn a_secret_in_a_file_that_others_may_read_is_refused() {
    for (text, key) in [
        (
            format!("[secrets]\nmaster_key = \"{MASTER_KEY}\"\n"),
            "secrets.master_key",
        ),
        (
            "[database]\nurl = \"postgres://u:hush@h/d\"\n".to_owned(),
            "database.url",
        ),
        (
            "[redis]\nurl = \"redis://:hush@h\"\n".to_owned(),
            "redis.url",
        ),
        (
            "[[issuers]]\nissuer = \"https://i\"\naudience = \"a\"\nalgorithms = [\"HS256\"]\n\
             tenant = \"default\"\nhmac_secret = \"8f2c1d0b9a7e6f5d4c3b2a190817161514131211\"\n"
                .to_owned(),
            "issuers.hmac_secret",
        ),
        (
            "[[upstreams]]\nname = \"u\"\nissuer = \"https://u\"\nclient_id = \"c\"\n\
             client_secret = \"hush\"\n"
                .to_owned(),
            "upstreams.client_secret",
        ),
    ] {
        let (_dir, sources) = written(&text);
        Config::load(&sources).unwrap();
        let ConfigFile::Required(path) = &sources.file else {
            unreachable!("written names a file")
        };
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = refused(&sources);
        assert!(
            error.starts_with(&format!("keystead.toml: {key} is a secret")),
            "{error}"
        );
        assert!(error.contains("chmod 600"), "{error}");
    }
}

#[test]
fn secrets_are_read_from_private_files() {
    let dir = tempfile::tempdir().unwrap();
    let url = private(dir.path(), "url", "postgres://u:hush@db.example.com/d\n");
    let key = private(dir.path(), "key", &format!("{MASTER_KEY}\n"));
    let config = Config::load(&variables(&[
        ("KEYSTEAD__DATABASE__URL_FILE", &url),
        ("KEYSTEAD__SECRETS__MASTER_KEY_FILE", &key),
    ]))
    .unwrap();
    assert!(!config.database.url.target().is_sqlite());
    assert_eq!(
        config.master_keys().unwrap().first.to_hex().as_str(),
        MASTER_KEY
    );

    let twice = refused(&variables(&[
        ("KEYSTEAD__DATABASE__URL", "sqlite:x"),
        ("KEYSTEAD__DATABASE__URL_FILE", &url),
    ]));
    assert!(twice.contains("is set twice"), "{twice}");
}

#[test]
fn the_first_master_key_file_seals_and_the_others_open() {
    let dir = tempfile::tempdir().unwrap();
    let old = "0123456789abcdef".repeat(4);
    let first = private(dir.path(), "first", MASTER_KEY);
    let second = private(dir.path(), "second", &old);
    let files = format!("{first},{second}");
    let config = Config::load(&variables(&[(
        "KEYSTEAD__SECRETS__MASTER_KEY_FILES",
        &files,
    )]))
    .unwrap();
    let keys = config.master_keys().unwrap();
    assert_eq!(keys.first.to_hex().as_str(), MASTER_KEY);
    assert_eq!(keys.others.len(), 1);

    let both = refused(&variables(&[
        ("KEYSTEAD__SECRETS__MASTER_KEY", MASTER_KEY),
        ("KEYSTEAD__SECRETS__MASTER_KEY_FILES", &files),
    ]));
    assert!(both.contains("is set beside secrets.master_key"), "{both}");
}

#[test]
fn an_embedded_server_makes_its_master_key_once_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let config = Config::load(&variables(&[("KEYSTEAD__DATA_DIR", data_dir)])).unwrap();
    let missing = config.master_keys().unwrap_err().to_string();
    assert!(missing.contains("master.key"), "{missing}");

    // What a crash in the middle of the first start leaves.
    fs::write(dir.path().join("master.key.new"), "half").unwrap();
    let made = config
        .master_keys_or_new(&Entropy::System)
        .unwrap()
        .first
        .id();
    let again = config
        .master_keys_or_new(&Entropy::System)
        .unwrap()
        .first
        .id();
    assert_eq!(made, again);
    assert_eq!(config.master_keys().unwrap().first.id(), made);
    let mode_of_key = fs::metadata(dir.path().join("master.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode_of_key & 0o777, 0o600);
    assert!(!dir.path().join("master.key.new").exists());
}

#[test]
fn with_postgres_a_master_key_must_be_given() {
    let config = Config::load(&variables(&[(
        "KEYSTEAD__DATABASE__URL",
        "postgres://u@h/d",
    )]))
    .unwrap();
    let missing = config
        .master_keys_or_new(&Entropy::System)
        .unwrap_err()
        .to_string();
    assert!(
        missing.starts_with("secrets.master_key_files must name a file"),
        "{missing}"
    );
}

#[test]
fn the_database_lies_in_the_data_folder() {
    let config = Config::load(&variables(&[("KEYSTEAD__DATA_DIR", "/srv/keys")])).unwrap();
    assert_eq!(
        format!("{:?}", config.database.url),
        "sqlite:/srv/keys/keystead.db"
    );
}

#[test]
fn operations_are_served_on_loopback_unless_they_have_a_place_of_their_own() {
    let on_main = |pairs: &[(&str, &str)]| {
        Config::load(&variables(pairs))
            .unwrap()
            .server
            .operations_on_main()
    };
    let plain = ("KEYSTEAD__SERVER__DANGEROUS_PLAIN_HTTP", "true");
    let wide = ("KEYSTEAD__SERVER__LISTEN", "0.0.0.0:8080");
    let own = ("KEYSTEAD__SERVER__OPERATIONS_LISTEN", "127.0.0.1:9090");
    let on = ("KEYSTEAD__SERVER__OPERATIONS", "on");
    assert!(on_main(&[]));
    assert!(!on_main(&[own]));
    assert!(on_main(&[own, on]));
    assert!(!on_main(&[plain, wide]));
    assert!(on_main(&[plain, wide, on]));
    assert!(!on_main(&[("KEYSTEAD__SERVER__OPERATIONS", "off")]));
}

#[test]
fn a_mapped_address_is_judged_as_ipv4() {
    let config = Config::load(&variables(&[
        ("KEYSTEAD__SERVER__TRUSTED_PROXIES", "10.0.0.0/8"),
        ("KEYSTEAD__SERVER__LISTEN", "[::ffff:127.0.0.1]:0"),
    ]))
    .unwrap();
    assert!(
        config
            .server
            .trusts_proxy("::ffff:10.1.2.3".parse().unwrap())
    );
    assert!(!config.server.trusts_proxy("11.0.0.1".parse().unwrap()));
}

#[test]
fn the_digest_follows_the_settings_and_not_the_secrets() {
    let plain = Config::default().digest();
    assert_eq!(plain, Config::default().digest());
    assert_eq!(plain.len(), 64);
    let other = Config::load(&variables(&[("KEYSTEAD__SERVER__WORKERS", "2")])).unwrap();
    assert_ne!(plain, other.digest());
}

#[test]
fn every_variable_that_we_ship_or_document_is_a_setting() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, least) in [
        ("Dockerfile", 3),
        ("docker-compose.yml", 6),
        ("config.example.toml", 4),
        ("docs/operating.md", 4),
    ] {
        let text = fs::read_to_string(root.join(file)).unwrap();
        let mut found = 0;
        for (at, _) in text.match_indices("KEYSTEAD__") {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_uppercase() && c != '_');
            let name = &rest[..end.unwrap_or(rest.len())];
            assert!(super::sources::is_variable(name), "{file}: {name}");
            found += 1;
        }
        assert!(found >= least, "{file}: {found}");
    }
}

fn private(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}
