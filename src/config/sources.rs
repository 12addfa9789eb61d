//! Where settings come from: the file, the environment, the flags; a later one wins.
//!
//! Each value carries its origin, so that an error can name the file, the variable or the flag. No
//! error repeats a value: it could be a secret in the wrong place.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use zeroize::Zeroizing;

use super::redis::RedisUrl;
use super::settings::{Kind, SETTINGS, Setting, is_section, neighbours};
use super::storage::DatabaseUrl;
use super::{ConfigError, private_file};

const PREFIX: &str = "KEYSTEAD__";

/// Everything that settings are taken from, read by nobody else.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub file: ConfigFile,
    /// The environment's variables; those that do not start with `KEYSTEAD__` are not ours.
    pub variables: Vec<(OsString, OsString)>,
    pub flags: Vec<Flag>,
}

#[derive(Clone, Debug, Default)]
pub enum ConfigFile {
    #[default]
    None,
    /// The usual place: nothing is wrong if it is not there.
    IfPresent(PathBuf),
    /// Named by the operator: it must be there.
    Required(PathBuf),
}

/// A flag as it was typed.
#[derive(Clone, Debug)]
pub struct Flag {
    /// `--listen`
    pub name: &'static str,
    /// `server.listen`
    pub path: &'static str,
    pub value: String,
}

/// Values of one origin.
pub(super) struct Layer {
    origin: String,
    values: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

impl Sources {
    /// All of them, the stronger over the weaker.
    pub(super) fn layers(&self) -> Result<Figment, ConfigError> {
        let mut figment = Figment::new();
        let file = match &self.file {
            ConfigFile::None => None,
            ConfigFile::IfPresent(path) => match fs::symlink_metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Ok(_) | Err(_) => Some(file(path)?),
            },
            ConfigFile::Required(path) => Some(file(path)?),
        };
        if let Some(layer) = file {
            figment = figment.merge(layer);
        }
        for layer in variables(&self.variables)? {
            figment = figment.merge(layer);
        }
        for flag in &self.flags {
            let value = Setting::find(flag.path)
                .ok_or(neighbours(flag.path))
                .and_then(|setting| setting.read(&flag.value))
                .map_err(|problem| ConfigError::new(flag.name, flag.path, problem))?;
            figment = figment.merge(Layer::of(flag.name.to_owned(), flag.path, value));
        }
        Ok(figment)
    }
}

impl Layer {
    /// A default that follows from other settings: it has no origin.
    pub(super) fn derived(path: &str, value: impl Into<Value>) -> Self {
        Self::of(String::new(), path, value.into())
    }

    fn of(origin: String, path: &str, value: Value) -> Self {
        let mut values = Dict::new();
        match path.split_once('.') {
            Some((section, name)) => {
                let inner = Dict::from([(name.to_owned(), value)]);
                values.insert(section.to_owned(), inner.into());
            }
            None => {
                values.insert(path.to_owned(), value);
            }
        }
        Self { origin, values }
    }
}

impl Setting {
    /// The value that a variable's or flag's text means.
    fn read(&self, text: &str) -> Result<Value, String> {
        Ok(match self.kind {
            Kind::Text | Kind::Secret => Value::from(text),
            Kind::Switch => match text {
                "true" => Value::from(true),
                "false" => Value::from(false),
                _ => return Err(self.shape.to_owned()),
            },
            Kind::Number => {
                let number: i64 = text
                    .parse()
                    .map_err(|_not_a_number| self.shape.to_owned())?;
                Value::from(number)
            }
            Kind::List => text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .collect::<Vec<_>>()
                .into(),
            Kind::Tables => {
                let shape = || self.shape.to_owned();
                let table: toml::Table =
                    toml::from_str(&format!("it = {text}")).map_err(|_not_toml| shape())?;
                let value = table.get("it").filter(|value| value.is_array());
                Value::serialize(value.ok_or_else(shape)?).map_err(|_no_value| shape())?
            }
        })
    }
}

fn file(path: &Path) -> Result<Layer, ConfigError> {
    let origin = path.display().to_string();
    let bad = |problem: String| ConfigError::new(&origin, "", problem);
    let text = fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| bad(format!("cannot be read: {error}")))?;
    // Only the message: the error's own text would show the line, and a secret with it.
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
        bad(format!("is not TOML: line {line}: {}", error.message()))
    })?;
    known(&table).map_err(|error| error.with_origin(|_key| origin.clone()))?;
    let private = fs::metadata(path).is_ok_and(|metadata| private_file::is_private(&metadata));
    if !private && let Some((key, own_file)) = secret_in(&table) {
        return Err(ConfigError::new(
            &origin,
            key,
            format!(
                "is a secret in a file that others may read; mend it with: chmod 600 {origin}, or \
                 move the secret into a file of its own named by {own_file}"
            ),
        ));
    }
    let values: Dict = table
        .try_into()
        .map_err(|error: toml::de::Error| bad(error.message().to_owned()))?;
    Ok(Layer { origin, values })
}

/// Refuses names that mean nothing: a typo must not leave a default in force.
fn known(table: &toml::Table) -> Result<(), ConfigError> {
    let unknown =
        |path: &str| ConfigError::of(path, format!("is not a setting; {}", neighbours(path)));
    for (name, value) in table {
        match value {
            toml::Value::Table(section) if is_section(name) => {
                for key in section.keys() {
                    let path = format!("{name}.{key}");
                    Setting::find(&path).ok_or_else(|| unknown(&path))?;
                }
            }
            _ if is_section(name) => {
                return Err(ConfigError::of(
                    name,
                    format!("must be a section, [{name}]"),
                ));
            }
            _ => {
                Setting::find(name).ok_or_else(|| unknown(name))?;
            }
        }
    }
    Ok(())
}

/// The first secret that stands in a file itself, and what would name a file of its own.
fn secret_in(table: &toml::Table) -> Option<(&'static str, String)> {
    let own_file = |key: &str| Setting::find(key).map_or_else(String::new, Setting::file_variable);
    let issuers = table.get("issuers").and_then(toml::Value::as_array);
    let mut issuers = issuers.into_iter().flatten();
    if issuers.any(|issuer| issuer.get("hmac_secret").is_some()) {
        return Some(("issuers.hmac_secret", "hmac_secret_file".to_owned()));
    }
    let upstreams = table.get("upstreams").and_then(toml::Value::as_array);
    let mut upstreams = upstreams.into_iter().flatten();
    if upstreams.any(|upstream| upstream.get("client_secret").is_some()) {
        return Some(("upstreams.client_secret", "client_secret_file".to_owned()));
    }
    let text = |path: &str| {
        let (section, name) = path.split_once('.')?;
        table.get(section)?.get(name)?.as_str()
    };
    if text("secrets.master_key").is_some() {
        let key = "secrets.master_key";
        return Some((key, own_file(key)));
    }
    let database = text("database.url").and_then(|url| DatabaseUrl::try_from(url.to_owned()).ok());
    if database.is_some_and(|url| url.has_password()) {
        return Some(("database.url", own_file("database.url")));
    }
    let redis = text("redis.url").and_then(|url| RedisUrl::parse(url).ok());
    redis
        .is_some_and(|url| url.has_password())
        .then(|| ("redis.url", own_file("redis.url")))
}

/// A setting's name with a single underscore for two, or two for one, is a typo. Others that begin so may be
/// somebody else's: Kubernetes sets `KEYSTEAD_PORT` for a service called keystead.
fn refuse_mistyped(variables: &[(OsString, OsString)]) -> Result<(), ConfigError> {
    let single = |name: &str| name.replace("__", "_");
    let rights = SETTINGS
        .iter()
        .flat_map(|setting| [setting.variable(), setting.file_variable()]);
    for right in rights {
        let mistyped = variables
            .iter()
            .filter_map(|(name, _)| name.to_str())
            .find(|name| *name != right && single(name) == single(&right));
        if let Some(mistyped) = mistyped {
            let problem = format!("is not a setting; write two underscores: {right}");
            return Err(ConfigError::new(mistyped, "", problem));
        }
    }
    Ok(())
}

fn variables(variables: &[(OsString, OsString)]) -> Result<Vec<Layer>, ConfigError> {
    refuse_mistyped(variables)?;
    let mut layers: Vec<Layer> = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    let mut ours: Vec<_> = variables
        .iter()
        .filter(|(name, _)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes()))
        .collect();
    ours.sort();
    for (name, value) in ours {
        let origin = name.to_string_lossy().into_owned();
        let (setting, from_file) = named(&origin).ok_or_else(|| {
            let path = origin
                .trim_start_matches(PREFIX)
                .to_lowercase()
                .replace("__", ".");
            ConfigError::new(
                &origin,
                "",
                format!("is not a setting; {}", neighbours(&path)),
            )
        })?;
        let bad = |problem: String| ConfigError::new(&origin, setting.path, problem);
        if seen.contains(&setting.path) {
            return Err(bad(
                "is set twice, by a variable and by its _FILE".to_owned()
            ));
        }
        seen.push(setting.path);
        let text = value
            .to_str()
            .ok_or_else(|| bad("is not UTF-8".to_owned()))?;
        let value = if from_file {
            let secret = private_file::read(Path::new(text)).map_err(bad)?;
            setting.read(&secret).map_err(bad)?
        } else {
            setting.read(text).map_err(bad)?
        };
        layers.push(Layer::of(origin, setting.path, value));
    }
    Ok(layers)
}

/// The setting of a variable, and whether the variable names a file that holds it.
fn named(variable: &str) -> Option<(&'static Setting, bool)> {
    SETTINGS.iter().find_map(|setting| {
        let rest = variable.strip_prefix(&setting.variable())?;
        match (rest, setting.kind) {
            ("", _) => Some((setting, false)),
            ("_FILE", Kind::Secret) => Some((setting, true)),
            _ => None,
        }
    })
}

#[cfg(test)]
pub(super) fn is_variable(name: &str) -> bool {
    named(name).is_some()
}
