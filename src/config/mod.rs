//! The settings: one TOML file, the environment, and flags, each stronger than the one before.
//!
//! Everything is read, typed and checked by [`Config::load`] before a port is bound; an error names
//! the file, variable or flag, the setting, and the fix. Every setting and its default stand in
//! `config.example.toml`, which the binary carries as [`EXAMPLE`].

mod audit;
mod cache;
mod data_dir;
mod error;
mod hashing;
pub mod issuers;
mod log;
mod oauth;
mod private_file;
mod redis;
mod secrets;
mod server;
mod settings;
mod sources;
mod storage;
pub mod upstreams;
mod usage;

use std::path::PathBuf;

use figment::Figment;
use figment::error::Kind as FigmentKind;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::audit::Audit;
pub use self::cache::Cache;
pub use self::data_dir::{DataDirLock, LockError};
pub use self::error::ConfigError;
pub use self::hashing::Argon2;
use self::issuers::IssuerConfig;
pub use self::log::{Log, LogFormat, LogLevel};
pub use self::oauth::{Oauth, SigningAlgorithm};
pub use self::redis::{Redis, RedisTls, RedisUrl};
pub use self::secrets::{MAKE_MASTER_KEY, Secrets};
pub use self::server::{Network, Operations, Origin, PublicUrl, Server};
use self::settings::{Kind, SETTINGS, Setting};
use self::sources::Layer;
pub use self::sources::{ConfigFile, Flag, Sources};
pub use self::storage::{Database, DatabaseUrl};
use self::upstreams::UpstreamConfig;
pub use self::usage::{Usage, UsageSink};

/// Every setting with its default and what it is for.
pub const EXAMPLE: &str = include_str!("../../config.example.toml");

/// The effective settings. `Debug` and [`Config::to_toml`] hold no secret.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub data_dir: PathBuf,
    #[serde(default)]
    pub server: Server,
    pub database: Database,
    #[serde(default)]
    pub redis: Redis,
    #[serde(default)]
    pub secrets: Secrets,
    #[serde(default)]
    pub cache: Cache,
    #[serde(default)]
    pub audit: Audit,
    #[serde(default)]
    pub usage: Usage,
    #[serde(default)]
    pub oauth: Oauth,
    #[serde(default)]
    pub argon2: Argon2,
    #[serde(default)]
    pub log: Log,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub issuers: Vec<IssuerConfig>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<UpstreamConfig>,
}

/// A loaded configuration that still knows where each value came from.
#[derive(Debug)]
pub struct Loaded {
    pub config: Config,
    figment: Figment,
}

impl Config {
    /// Reads, types and checks the settings.
    ///
    /// # Errors
    /// The first thing that is wrong, in one line without any secret.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        Loaded::load(sources).map(|loaded| loaded.config)
    }

    /// The effective settings as TOML, secrets replaced by `***`.
    #[expect(
        clippy::missing_panics_doc,
        clippy::expect_used,
        reason = "every type here has a TOML form; a test writes them all"
    )]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("the configuration has a TOML form")
    }

    /// SHA-256 of [`Config::to_toml`] in hexadecimal digits: tells whether two starts had the same
    /// settings. A changed secret does not show in it.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.to_toml()))
    }

    /// The files that statements about the audit trail are appended to.
    pub fn statement_files(&self) -> Vec<PathBuf> {
        let file = self.audit.checkpoint_file.clone();
        let file = file.unwrap_or_else(|| self.data_dir.join("checkpoints.ndjson"));
        std::iter::once(file)
            .chain(self.audit.sink.clone())
            .collect()
    }

    /// The file that events of uses are copied to, if they are.
    pub fn usage_file(&self) -> Option<PathBuf> {
        let file = self.usage.file.clone();
        self.usage
            .sink
            .contains(&UsageSink::File)
            .then(|| file.unwrap_or_else(|| self.data_dir.join("usage-events.ndjson")))
    }

    /// What no single value shows.
    fn check(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() {
            return Err(ConfigError::of(
                "data_dir",
                "must be the path of a folder, such as \"./keystead-data\"",
            ));
        }
        self.server.check()?;
        self.secrets.check()?;
        self.cache.check()?;
        self.audit.check()?;
        self.usage.check()?;
        self.oauth.check()?;
        self.argon2.check()?;
        issuers::resolve(&self.issuers).map_err(|faults| first_of("issuers", faults))?;
        upstreams::resolve(&self.upstreams).map_err(|faults| first_of("upstreams", faults))?;
        Ok(())
    }
}

impl Default for Config {
    /// What is in force when nothing is set.
    #[expect(
        clippy::expect_used,
        reason = "the defaults are constants that tests load"
    )]
    fn default() -> Self {
        Self::load(&Sources::default()).expect("the defaults are valid")
    }
}

impl Loaded {
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let figment = with_derived(sources.layers()?)?;
        let config: Config = figment
            .extract()
            .map_err(|error| explain(&figment, error))?;
        config
            .check()
            .map_err(|error| error.with_origin(|key| origin(&figment, key)))?;
        Ok(Self { config, figment })
    }

    /// Each setting that is not at its default, and the file, variable or flag that set it.
    pub fn origins(&self) -> Vec<(&'static str, String)> {
        SETTINGS
            .iter()
            .map(|setting| (setting.path, origin(&self.figment, setting.path)))
            .filter(|(_, origin)| !origin.is_empty())
            .collect()
    }
}

fn first_of(setting: &str, faults: Vec<issuers::Fault>) -> ConfigError {
    faults.into_iter().next().map_or_else(
        || ConfigError::of(setting, "cannot be understood"),
        |fault| ConfigError::of(&format!("{}:", fault.key), fault.detail),
    )
}

/// Adds the defaults that depend on other settings.
fn with_derived(figment: Figment) -> Result<Figment, ConfigError> {
    const DATA_DIR: &str = "./keystead-data";
    let figment = figment.join(Layer::derived("data_dir", DATA_DIR));
    let data_dir: PathBuf = figment
        .extract_inner("data_dir")
        .map_err(|error| explain(&figment, error))?;
    let mut figment = figment.join(Layer::derived(
        "database.url",
        DatabaseUrl::default_text(&data_dir),
    ));
    if figment.contains("server.listen") {
        let listen = figment
            .extract_inner("server.listen")
            .map_err(|error| explain(&figment, error))?;
        let url = String::from(PublicUrl::of(listen));
        figment = figment.join(Layer::derived("server.public_url", url));
    }
    Ok(figment)
}

/// Says what a value must be, and never what it is.
fn explain(figment: &Figment, error: figment::Error) -> ConfigError {
    let key = error.path.join(".");
    // An issuer's own settings have no shape in the list, but messages that say enough.
    let setting =
        Setting::find(&key).filter(|setting| setting.kind != Kind::Tables || setting.path == key);
    let problem = match (error.kind, setting) {
        // The standard library's parsers say "invalid ..." and no more.
        (FigmentKind::Message(message), _) if !message.starts_with("invalid ") => message,
        (_, Some(setting)) => setting.shape.to_owned(),
        (FigmentKind::Message(message), None) => message,
        (FigmentKind::UnknownField(_, known), None) => {
            format!("is not a setting; there are: {}", known.join(", "))
        }
        (FigmentKind::MissingField(field), None) => format!("needs {field}"),
        (FigmentKind::UnknownVariant(_, known), None) => {
            format!("must be one of: {}", known.join(", "))
        }
        (
            FigmentKind::InvalidType(_, expected)
            | FigmentKind::InvalidValue(_, expected)
            | FigmentKind::InvalidLength(_, expected),
            None,
        ) => format!("must be {expected}"),
        (other, None) => {
            drop(other);
            "has a value of the wrong type".to_owned()
        }
    };
    let origin = match error.metadata {
        Some(metadata) => metadata.name.into_owned(),
        None => origin(figment, &key),
    };
    ConfigError::new(origin, key, problem)
}

/// Where a setting was set; empty for a default.
fn origin(figment: &Figment, key: &str) -> String {
    let setting = Setting::find(key).map_or(key, |setting| setting.path);
    figment
        .find_metadata(setting)
        .map(|metadata| metadata.name.to_string())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
