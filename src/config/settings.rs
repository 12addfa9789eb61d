//! The list of settings: what exists, how a variable's text becomes a value, what each must be.

/// How the text of an environment variable or a flag is read; a file has types of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    /// Text that may be a secret: also `<VARIABLE>_FILE`, and never in a file that others may read.
    Secret,
    Switch,
    Number,
    /// In a variable: separated by commas.
    List,
    /// In a variable: a TOML array of tables.
    Tables,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    /// What the value must be: the end of an error's line.
    pub(super) shape: &'static str,
}

const fn setting(path: &'static str, kind: Kind, shape: &'static str) -> Setting {
    Setting { path, kind, shape }
}

const SWITCH: &str = "must be true or false";

/// In the order of config.example.toml.
pub(super) const SETTINGS: &[Setting] = &[
    setting(
        "data_dir",
        Kind::Text,
        "must be the path of a folder, such as \"./keystead-data\"",
    ),
    setting(
        "server.listen",
        Kind::Text,
        "must be an IP address and a port, such as \"127.0.0.1:8080\"",
    ),
    setting(
        "server.public_url",
        Kind::Text,
        "must be the URL that clients use, such as \"https://keys.example.com\"",
    ),
    setting(
        "server.trusted_proxies",
        Kind::List,
        "must be a list of addresses or networks, such as [\"10.0.0.0/8\"]",
    ),
    setting("server.dangerous_plain_http", Kind::Switch, SWITCH),
    setting(
        "server.drain_delay",
        Kind::Text,
        "must be a time of at most 5m, such as \"5s\"",
    ),
    setting(
        "server.operations",
        Kind::Text,
        "must be \"auto\", \"on\" or \"off\"",
    ),
    setting(
        "server.operations_listen",
        Kind::Text,
        "must be an IP address and a port, such as \"127.0.0.1:9090\"",
    ),
    setting(
        "server.cors_origins",
        Kind::List,
        "must be a list of origins, such as [\"https://console.example.com\"]",
    ),
    setting(
        "server.workers",
        Kind::Number,
        "must be a number from 0 (one for each core) to 512",
    ),
    setting(
        "database.url",
        Kind::Secret,
        "must be sqlite:<path> or postgres://user@host/name",
    ),
    setting(
        "redis.url",
        Kind::Secret,
        "must be redis://host:6379, or rediss:// for TLS",
    ),
    setting(
        "secrets.master_key",
        Kind::Secret,
        "must be 32 random bytes as 64 hexadecimal digits or as base64; make one with: \
         openssl rand -hex 32",
    ),
    setting(
        "secrets.master_key_files",
        Kind::List,
        "must be a list of paths, such as [\"/run/secrets/master.key\"]",
    ),
    setting(
        "cache.refresh",
        Kind::Text,
        "must be a time from 1s to 24h, such as \"5m\"",
    ),
    setting(
        "cache.stale_max",
        Kind::Text,
        "must be a time from 5s to 1h, such as \"15m\"",
    ),
    setting(
        "cache.entries_max",
        Kind::Number,
        "must be a number from 100 to 100000000",
    ),
    setting(
        "audit.checkpoint_every",
        Kind::Text,
        "must be a time from 1s to 7d, such as \"1h\"",
    ),
    setting(
        "audit.checkpoint_file",
        Kind::Text,
        "must be the path of a file, such as \"/var/log/keystead/checkpoints.ndjson\"",
    ),
    setting(
        "audit.sink",
        Kind::Text,
        "must be the path of a file, such as \"/mnt/worm/checkpoints.ndjson\"",
    ),
    setting(
        "audit.retention",
        Kind::Text,
        "must be a time of at least 1d, such as \"2555d\"",
    ),
    setting("usage.recording", Kind::Switch, SWITCH),
    setting(
        "usage.events_retention",
        Kind::Text,
        "must be a time from 1h to 3650d, such as \"30d\"",
    ),
    setting(
        "usage.events_bytes_max",
        Kind::Number,
        "must be a number of bytes, at least 67108864",
    ),
    setting(
        "usage.sink",
        Kind::List,
        "must be [\"database\"] or [\"database\", \"file\"]",
    ),
    setting(
        "usage.file",
        Kind::Text,
        "must be the path of a file, such as \"/var/log/keystead/usage-events.ndjson\"",
    ),
    setting(
        "usage.file_bytes_max",
        Kind::Number,
        "must be a number of bytes, at least 65536",
    ),
    setting(
        "usage.files_kept",
        Kind::Number,
        "must be a number from 1 to 1000",
    ),
    setting(
        "oauth.signing_algorithm",
        Kind::Text,
        "must be \"ES256\", \"EdDSA\" or \"RS256\"",
    ),
    setting(
        "oauth.signing_rotation",
        Kind::Text,
        "must be a time from 1h to 3650d, such as \"90d\"",
    ),
    setting(
        "argon2.memory_kib",
        Kind::Number,
        "must be a number of KiB from 8 to 1048576",
    ),
    setting(
        "argon2.passes",
        Kind::Number,
        "must be a number from 1 to 64",
    ),
    setting(
        "argon2.lanes",
        Kind::Number,
        "must be a number from 1 to 16",
    ),
    setting("argon2.dangerous_weak_argon2", Kind::Switch, SWITCH),
    setting(
        "log.format",
        Kind::Text,
        "must be \"auto\", \"pretty\" or \"json\"",
    ),
    setting(
        "log.level",
        Kind::Text,
        "must be off, error, warn, info, debug or trace, and may add targets as in \
         \"info,keystead::audit=debug\"",
    ),
    setting(
        "issuers",
        Kind::Tables,
        "must be a list of issuers, [[issuers]] in a file and [{issuer = \"...\", ...}] in a variable",
    ),
    setting(
        "upstreams",
        Kind::Tables,
        "must be a list of authorization servers, [[upstreams]] in a file and \
         [{name = \"...\", ...}] in a variable",
    ),
];

impl Setting {
    /// The setting that `path` names or lies within (an element of a list).
    pub(super) fn find(path: &str) -> Option<&'static Self> {
        SETTINGS.iter().find(|setting| {
            path.strip_prefix(setting.path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// `server.listen` is `KEYSTEAD__SERVER__LISTEN`.
    pub(super) fn variable(&self) -> String {
        format!("KEYSTEAD__{}", self.path.to_uppercase().replace('.', "__"))
    }

    /// The variable that names a file with a secret's value.
    pub(super) fn file_variable(&self) -> String {
        format!("{}_FILE", self.variable())
    }
}

/// What may stand where `path` was written: the end of "is not a setting".
pub(super) fn neighbours(path: &str) -> String {
    let section = path.split_once('.').map(|(section, _)| section);
    let names: Vec<&str> = match section {
        Some(section) if is_section(section) => SETTINGS
            .iter()
            .filter_map(|setting| setting.path.strip_prefix(section)?.strip_prefix('.'))
            .collect(),
        Some(_) | None => {
            let mut names: Vec<&str> = SETTINGS
                .iter()
                .map(|setting| setting.path.split('.').next().unwrap_or(setting.path))
                .collect();
            names.dedup();
            names
        }
    };
    let list = names.join(", ");
    match section {
        Some(section) if is_section(section) => format!("[{section}] has: {list}"),
        Some(_) | None => format!("there are: {list}"),
    }
}

pub(super) fn is_section(name: &str) -> bool {
    SETTINGS
        .iter()
        .any(|setting| setting.path.split_once('.').is_some_and(|(s, _)| s == name))
}
