//! The commands: what may be typed, and what it means to [`Sources`]. [`run`] does it.

mod audit;
mod health;
mod maintenance;
mod pepper;
mod run;
mod signing_key;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use self::run::{Failure, run};
use crate::config::{ConfigFile, Flag, Sources};
use crate::time::{Span, Timestamp};

/// Where the settings are looked for when `--config` is not given.
const USUAL_FILE: &str = "keystead.toml";

/// Centralized API key management: issue, validate, limit and audit API keys.
#[derive(Debug, Parser)]
#[command(
    name = "keystead",
    version,
    arg_required_else_help = true,
    after_help = "Settings come from ./keystead.toml or --config, then from variables such as \
                  KEYSTEAD__SERVER__LISTEN, then from flags; each is stronger than the one before. \
                  `keystead check-config --example` prints all of them with their defaults."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: CommonFlags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server.
    #[command(after_help = "Examples:\n  \
        keystead serve\n  \
        keystead serve --listen 127.0.0.1:9000 --data-dir /var/lib/keystead\n\n\
        Without any setting: SQLite and a master key in ./keystead-data, on 127.0.0.1:8080. The \
        first start makes an owner key in <data_dir>/owner.key.")]
    Serve {
        #[command(flatten)]
        server: ServerFlags,
    },
    /// Show the main job end to end on a throw-away server, then stay up.
    Demo {
        /// Exit after the tour.
        #[arg(long)]
        once: bool,
    },
    /// Print the OpenAPI document of this version.
    Openapi,
    /// Make an owner key from database and master key alone, when all others are lost.
    ///
    /// Works beside a running server. It stands in the audit trail.
    #[command(after_help = "Example:\n  keystead owner-key --ttl 1h")]
    OwnerKey {
        /// How long it lives, such as 24h
        #[arg(long, default_value = "24h", value_name = "TIME")]
        ttl: Span,
    },
    /// Check the settings and print those in force, without secrets.
    #[command(after_help = "Examples:\n  \
        keystead check-config\n  \
        keystead check-config --config /etc/keystead.toml\n  \
        keystead check-config --example > keystead.toml\n\n\
        Ends with 2 and one line that names the setting if something is wrong.")]
    CheckConfig {
        /// Print every setting with its default and what it is for, and check nothing.
        #[arg(long)]
        example: bool,
        #[command(flatten)]
        server: ServerFlags,
    },
    /// Ask a running server whether it is ready; for health checks of containers.
    #[command(
        after_help = "Ends with 0 if the server at server.listen says that it is ready, else \
        with 1."
    )]
    Health {
        #[command(flatten)]
        server: ServerFlags,
    },
    /// Bring the database's schema up to date.
    ///
    /// A server does so by itself when it starts; this is for those who want it done before, by a
    /// database user with more rights. Several may run at once: one works, the others wait.
    #[command(after_help = "Examples:\n  \
        keystead migrate\n  \
        KEYSTEAD__DATABASE__URL_FILE=/run/secrets/database.url keystead migrate")]
    Migrate,
    /// Prove that nothing in the audit trail was altered, removed or inserted.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Look after the peppers, under which keys are looked up.
    #[command(subcommand)]
    Pepper(PepperCommand),
    /// Look after the keys that tokens are signed with.
    #[command(subcommand)]
    SigningKey(SigningKeyCommand),
    /// Print the version.
    Version,
}

#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Verify the chains and name the first record that does not hold.
    #[command(after_help = "Examples:\n  \
        keystead audit verify\n  \
        keystead audit verify --tenant acme --json\n  \
        keystead audit verify --checkpoints /backup/checkpoints.ndjson\n  \
        keystead audit verify --export audit.ndjson --checkpoints checkpoints.ndjson --keys keys.json\n\n\
        Works beside a running server, and against the checkpoints in its files if they are there.\n\
        With --export it needs neither database nor master key: the file is what\n\
        GET /v1/audit/export answers without a filter, the keys what GET /v1/audit/keys answers.\n\
        Ends with 1 if a chain does not verify, and then names each fault on a line of its own, or if\n\
        no checkpoint vouches for an export; else with 2 if a file of --checkpoints holds none.")]
    Verify {
        /// The slug of one tenant, instead of all
        #[arg(long, value_name = "SLUG", conflicts_with = "export")]
        tenant: Option<String>,
        /// A file of checkpoints to hold the chains against; may be repeated
        #[arg(long, value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
        /// Verify this export instead of the database
        #[arg(long, value_name = "FILE", requires = "keys")]
        export: Option<PathBuf>,
        /// The public audit keys, for --export
        #[arg(long, value_name = "FILE", requires = "export")]
        keys: Option<PathBuf>,
        /// One JSON object a line, with the end of each chain
        #[arg(long)]
        json: bool,
    },
    /// Sign the ends of the chains now, and print what was signed.
    ///
    /// It also goes to the log and to the files of checkpoints, as it does on schedule.
    #[command(after_help = "Example:\n  keystead audit checkpoint >> /backup/checkpoints.ndjson")]
    Checkpoint {
        /// The slug of one tenant, instead of all
        #[arg(long, value_name = "SLUG")]
        tenant: Option<String>,
    },
    /// Cut off old records: the beginnings of the chains, as far as they are signed.
    ///
    /// A chain that does not verify is left as it is. What was cut is printed as a signed statement,
    /// which also goes to where checkpoints go; keep it, for chains are verified from there on.
    #[command(after_help = "Example:\n  \
        keystead audit cut --before 2020-01-01T00:00:00Z --reason \"kept for seven years\"")]
    Cut {
        /// Records from before this time
        #[arg(long, value_name = "TIME")]
        before: Timestamp,
        /// The slug of one tenant, instead of all
        #[arg(long, value_name = "SLUG")]
        tenant: Option<String>,
        /// Why; for the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
    /// Take chains that do not verify back into use, once you know why they do not.
    ///
    /// Records what was found and who accepted it; that stays in every later report. It names the audit
    /// keys that no listed master key vouches for, and takes none of them for yours unless you name it.
    #[command(after_help = "Examples:\n  \
        keystead audit reseal --tenant acme --reason \"restored from a damaged disk, see OPS-12\"\n  \
        keystead audit reseal --adopt-key kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k \\\n    \
        --reason \"the master key is lost; compared with our copy of /v1/audit/keys\"")]
    Reseal {
        /// The slug of one tenant, instead of all
        #[arg(long, value_name = "SLUG")]
        tenant: Option<String>,
        /// A file of checkpoints that a chain rolled back does not fit; may be repeated
        #[arg(long, value_name = "FILE")]
        checkpoints: Vec<PathBuf>,
        /// The kid of an audit key whose master key is lost, and that you know; may be repeated
        #[arg(long, value_name = "KID", conflicts_with = "tenant")]
        adopt_key: Vec<String>,
        /// Why it is accepted; for the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum PepperCommand {
    /// Make a new pepper version, which becomes current after 60 s.
    ///
    /// Every key moves to it when it is used; nothing fails meanwhile. It is derived from the first
    /// of the master keys.
    #[command(after_help = "Examples:\n  \
        keystead pepper rotate\n  \
        keystead pepper rotate --wait --reason \"yearly\"")]
    Rotate {
        /// Return when the new version is current
        #[arg(long)]
        wait: bool,
        /// For the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show the versions and how many secrets carry each.
    Status,
    /// End an old version although secrets still carry it.
    ///
    /// They stay valid: at their next use they are proved by their argon2id verifier.
    Retire {
        /// Its number, as `status` shows it
        version: i32,
        /// For the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Give up the versions whose master key is lost for ever.
    ///
    /// Their secrets stay valid: at their next use they are proved by their argon2id verifier, which
    /// needs no master key. The audit chains are sealed anew. Stop the servers before.
    #[command(after_help = "Example:\n  \
        keystead pepper lost --reason \"the disk with master.key burnt\"")]
    Lost {
        /// For the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum SigningKeyCommand {
    /// Make a new key, which signs after ten minutes.
    ///
    /// It is published at once and the old one stays published for as long as its last token lives, so
    /// nothing fails. Servers also do so by themselves, every 90 days unless set otherwise.
    #[command(after_help = "Examples:\n  \
        keystead signing-key rotate --reason \"somebody left\"\n  \
        keystead signing-key rotate --now\n  \
        keystead signing-key rotate --compromised")]
    Rotate {
        /// Let it sign at once: those who keep the published keys must fetch them again
        #[arg(long)]
        now: bool,
        /// The same, and give up all others: every token that they signed is refused from now on
        #[arg(long)]
        compromised: bool,
        /// For the audit trail
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Show the keys and the state of each.
    Status,
}

/// Flags that every command takes.
#[derive(Args, Debug, Default)]
pub struct CommonFlags {
    /// The file with the settings [default: ./keystead.toml, if it is there]
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The folder for what is kept on this machine [default: ./keystead-data]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub data_dir: Option<String>,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// auto, pretty or json [default: auto]
    #[arg(long, global = true, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// Flags of commands that are about a server.
#[derive(Args, Debug, Default)]
pub struct ServerFlags {
    /// The address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// The URL that clients use, when a proxy stands before the server
    #[arg(long, value_name = "URL")]
    pub public_url: Option<String>,
    /// Allow plain HTTP on an address that is not loopback
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub dangerous_plain_http: Option<String>,
}

impl CommonFlags {
    /// All places that settings come from. `variables` are the process's own.
    pub fn sources(
        &self,
        server: &ServerFlags,
        variables: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    ) -> Sources {
        let file = match &self.config {
            Some(path) => ConfigFile::Required(path.clone()),
            None => ConfigFile::IfPresent(USUAL_FILE.into()),
        };
        let typed = [
            ("--data-dir", "data_dir", &self.data_dir),
            ("--listen", "server.listen", &server.listen),
            ("--public-url", "server.public_url", &server.public_url),
            (
                "--dangerous-plain-http",
                "server.dangerous_plain_http",
                &server.dangerous_plain_http,
            ),
            ("--log-level", "log.level", &self.log_level),
            ("--log-format", "log.format", &self.log_format),
        ];
        let flags = typed
            .into_iter()
            .filter_map(|(name, path, value)| {
                let value = value.clone()?;
                Some(Flag { name, path, value })
            })
            .collect();
        Sources {
            file,
            variables,
            flags,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::config::Config;

    #[test]
    fn the_commands_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_flag_sets_what_it_says() {
        let cli = Cli::try_parse_from([
            "keystead",
            "check-config",
            "--listen",
            "0.0.0.0:1",
            "--dangerous-plain-http",
            "--public-url=https://keys.example.com",
            "--data-dir",
            "/srv/keys",
            "--log-level",
            "debug",
            "--log-format",
            "json",
        ])
        .unwrap();
        let Command::CheckConfig { server, .. } = cli.command else {
            panic!("{cli:?}");
        };
        let mut sources = cli.common.sources(&server, Vec::new());
        sources.file = ConfigFile::None;
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.server.listen, "0.0.0.0:1".parse().unwrap());
        assert_eq!(
            config.server.public_url.as_str(),
            "https://keys.example.com"
        );
        assert_eq!(config.data_dir, PathBuf::from("/srv/keys"));
        assert!(
            config
                .to_toml()
                .contains("format = \"json\"\nlevel = \"debug\"")
        );
    }
}
