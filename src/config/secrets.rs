//! `[secrets]`: the master keys, from the environment, from files, or made on the first start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

use super::{Config, ConfigError, private_file};
use crate::entropy::Entropy;
use crate::master::{MasterKey, MasterKeys};

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Secrets {
    #[serde(
        skip_serializing_if = "Option::is_none",
        deserialize_with = "read_key",
        serialize_with = "hide_key"
    )]
    pub master_key: Option<MasterKey>,
    /// The first seals and derives, the others only open.
    pub master_key_files: Vec<PathBuf>,
}

/// How an operator makes one.
pub const MAKE_MASTER_KEY: &str = "(umask 077; openssl rand -hex 32 > master.key)";

/// The file of the key that an embedded server makes for itself.
const OWN_KEY: &str = "master.key";

impl Config {
    /// The master keys, for commands that run beside a server: none is made.
    ///
    /// # Errors
    /// Names the setting or the file, and the fix.
    pub fn master_keys(&self) -> Result<MasterKeys, ConfigError> {
        let secrets = &self.secrets;
        if let Some(first) = &secrets.master_key {
            return Ok(MasterKeys {
                first: first.clone(),
                others: Vec::new(),
            });
        }
        let mut keys = Vec::new();
        for path in &secrets.master_key_files {
            let key = read_key_file(path)
                .map_err(|problem| ConfigError::of("secrets.master_key_files", problem))?;
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        if let Some(first) = keys.next() {
            return Ok(MasterKeys {
                first,
                others: keys.collect(),
            });
        }
        if !self.database.url.target().is_sqlite() {
            return Err(ConfigError::of(
                "secrets.master_key_files",
                format!(
                    "must name a file with the master key when the database is PostgreSQL (or set \
                     KEYSTEAD__SECRETS__MASTER_KEY); make one with: {MAKE_MASTER_KEY}, the same for all nodes"
                ),
            ));
        }
        let path = self.own_master_key();
        let first = read_key_file(&path).map_err(|problem| {
            ConfigError::of(
                "data_dir",
                format!(
                    "{problem}; `keystead serve` makes it on its first start, and a copy of the \
                     database is of no use without the key that belongs to it"
                ),
            )
        })?;
        Ok(MasterKeys {
            first,
            others: Vec::new(),
        })
    }

    /// The master keys, for the server: an embedded one makes its own on its first start.
    /// Only for who holds the data folder's lock.
    pub fn master_keys_or_new(&self, entropy: &Entropy) -> Result<MasterKeys, ConfigError> {
        if self.makes_own_master_key() {
            let path = self.own_master_key();
            make_key_file(&path, entropy).map_err(|error| {
                ConfigError::of(
                    "data_dir",
                    format!("does not take {}: {error}", path.display()),
                )
            })?;
            tracing::info!(
                path = %path.display(),
                "made the master key: keep a copy of it away from the database"
            );
        }
        self.master_keys()
    }

    /// Whether the master key comes from the settings: the data folder has none then.
    pub fn is_given_its_master_key(&self) -> bool {
        !self.database.url.target().is_sqlite()
            || self.secrets.master_key.is_some()
            || !self.secrets.master_key_files.is_empty()
    }

    /// Whether the next start of the server makes the master key.
    pub fn makes_own_master_key(&self) -> bool {
        !self.is_given_its_master_key() && !self.own_master_key().try_exists().unwrap_or(true)
    }

    /// Where an embedded server keeps the master key that it makes for itself.
    pub fn own_master_key(&self) -> PathBuf {
        self.data_dir.join(OWN_KEY)
    }
}

impl Secrets {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if self.master_key.is_some() && !self.master_key_files.is_empty() {
            return Err(ConfigError::of(
                "secrets.master_key_files",
                "is set beside secrets.master_key; use the files alone",
            ));
        }
        Ok(())
    }
}

fn read_key_file(path: &Path) -> Result<MasterKey, String> {
    let text = private_file::read(path)?;
    MasterKey::parse(&text).map_err(|shape| format!("names {}, which {shape}", path.display()))
}

/// Written beside its place and linked into it when it is whole: a crash leaves no half key, and an
/// existing one is never replaced.
fn make_key_file(path: &Path, entropy: &Entropy) -> io::Result<()> {
    let unfinished = path.with_extension("key.new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)?;
    let bytes = Zeroizing::new(entropy.bytes::<32>());
    let key = MasterKey::new(*bytes);
    file.write_all(key.to_hex().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::hard_link(&unfinished, path)?;
    fs::remove_file(&unfinished)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<MasterKey>, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    MasterKey::parse(&text).map(Some).map_err(de::Error::custom)
}

#[expect(clippy::ref_option, reason = "the form that serde calls")]
fn hide_key<S: Serializer>(_key: &Option<MasterKey>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("***")
}
