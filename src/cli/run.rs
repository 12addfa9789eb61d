//! Does what was asked, and turns what went wrong into one line and an exit code.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};

use super::{Cli, Command, ServerFlags, audit, health, maintenance, pepper, signing_key};
use crate::app::{self, App, StartError, owner};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, EXAMPLE, Loaded, Sources};
use crate::db::{self, Db};
use crate::entropy::Entropy;
use crate::http::openapi;
use crate::routes;
use crate::telemetry::{self, escape};
use crate::time::Span;

/// Why a command did not do what it is for. Its text is one line and holds no secret.
#[derive(Debug)]
pub enum Failure {
    /// What was typed or configured is wrong: 2, and trying again will not help.
    Usage(String),
    /// It did not work: 1.
    Failed(String),
}

/// Parses the command line, runs the command, and answers its exit code.
pub fn run() -> ExitCode {
    telemetry::report_panics_on_stderr();
    if let Err(error) = crate::process::harden() {
        complain(&format!("the process could not be hardened: {error}"));
    }
    let outcome = match Cli::try_parse() {
        Ok(cli) => execute(cli),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => print(&error.to_string()),
            ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
                let _stderr_may_be_closed = write!(io::stderr(), "{error}");
                return ExitCode::from(2);
            }
            _ => Err(Failure::Usage(usage(
                &error.to_string(),
                std::env::args_os(),
            ))),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(line)) => {
            complain(&line);
            ExitCode::from(2)
        }
        Err(Failure::Failed(line)) => {
            complain(&line);
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> Result<(), Failure> {
    let variables = std::env::vars_os().collect::<Vec<_>>();
    let sources = |server: &ServerFlags| cli.common.sources(server, variables);
    match cli.command {
        Command::Serve { server } => {
            let config = Config::load(&sources(&server))?;
            let telemetry = telemetry::start(&config.log)
                .map_err(|error| Failure::Failed(format!("logging cannot start: {error}")))?;
            let served = app::serve(config, telemetry.lost_lines());
            telemetry.flush();
            Ok(served?)
        }
        Command::Demo { once } => app::demo::run(once).map_err(Failure::Failed),
        Command::Openapi => print(&openapi::to_json(&routes::document())),
        Command::OwnerKey { ttl } => {
            owner_key(Config::load(&sources(&ServerFlags::default()))?, ttl)
        }
        Command::CheckConfig { example: true, .. } => print(EXAMPLE),
        Command::CheckConfig {
            example: false,
            server,
        } => check_config(&sources(&server)),
        Command::Health { server } => {
            let config = Config::load(&sources(&server))?;
            health::ask(config.server.listen).map_err(Failure::Failed)
        }
        Command::Migrate => migrate(&Config::load(&sources(&ServerFlags::default()))?),
        Command::Audit(command) => audit::run(command, &sources(&ServerFlags::default())),
        Command::Pepper(command) => pepper::run(command, &sources(&ServerFlags::default())),
        Command::SigningKey(command) => {
            signing_key::run(command, &sources(&ServerFlags::default()))
        }
        Command::Version => print(concat!("keystead ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn owner_key(config: Config, ttl: Span) -> Result<(), Failure> {
    maintenance::require_database(config.database.url.target())?;
    let master = config.master_keys()?;
    let telemetry = telemetry::start_on_stderr(&config.log)
        .map_err(|error| Failure::Failed(format!("logging cannot start: {error}")))?;
    let app = App::build(config, master, Clock::System, Entropy::System).map_err(Failure::Usage)?;
    let made = maintenance::wait_for(async {
        app.migrate().await?;
        owner::make(&app, ttl).await
    })?;
    telemetry.flush();
    print(&format!("{}\n", made?.expose_secret()))
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Wrong(line) => Self::Usage(line),
            StartError::Away(line) => Self::Failed(line),
        }
    }
}

fn check_config(sources: &Sources) -> Result<(), Failure> {
    let loaded = Loaded::load(sources)?;
    let mut text = loaded.config.to_toml();
    if loaded.config.makes_own_master_key() {
        text.push_str("\n# There is no master key yet: `keystead serve` makes one.\n");
    } else {
        loaded.config.master_keys()?;
    }
    let origins = loaded.origins();
    if !origins.is_empty() {
        text.push_str("\n# Set, and not at its default:\n");
    }
    for (key, origin) in origins {
        // Infallible for a String.
        let _infallible = writeln!(text, "# {key} by {}", escape(&origin));
    }
    print(&text)
}

fn migrate(config: &Config) -> Result<(), Failure> {
    let target = config.database.url.target();
    if target.is_sqlite() {
        config.create_data_dir()?;
    }
    let db = Db::open(target)
        .map_err(|error| Failure::Usage(format!("database.url cannot be opened: {error}")))?;
    let usage_db = Db::open_usage(target)
        .map_err(|error| Failure::Usage(format!("the usage ledger cannot be opened: {error}")))?;
    let applied = maintenance::wait_for(db::migrate_all(&db, &usage_db))??;
    if applied.is_empty() {
        return print("the schema is up to date\n");
    }
    print(&format!("applied {}\n", applied.join(", ")))
}

/// Writes a command's result. A reader that has seen enough, as `head`, is no failure.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Failed(format!(
            "standard output does not take the result: {error}"
        ))),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn complain(line: &str) {
    let _stderr_may_be_closed = writeln!(io::stderr(), "keystead: {}", escape(line));
}

/// The parser's paragraphs as one line, without the synopsis. Its help has it, of the command that the
/// `arguments` name.
fn usage<A: AsRef<OsStr>>(text: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let said = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"))
        .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
        .map(|line| line.strip_prefix("error: ").unwrap_or(line));
    let mut line = String::new();
    for part in said {
        // What is listed follows its colon.
        match line.chars().last() {
            None => {}
            Some(':') => line.push(' '),
            Some(_) => line.push_str("; "),
        }
        line.push_str(part);
    }
    let top = Cli::command();
    let (mut command, mut named) = (&top, "keystead".to_owned());
    for argument in arguments.into_iter().skip(1) {
        if let Some(below) = command.find_subcommand(argument) {
            command = below;
            named = format!("{named} {}", below.get_name());
        }
    }
    format!("{line}; see {named} --help")
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<crate::error::Error> for Failure {
    fn from(error: crate::error::Error) -> Self {
        match error {
            crate::error::Error::Store(error) => error.into(),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// With its causes: here the operator is the caller.
impl From<db::Error> for Failure {
    fn from(error: db::Error) -> Self {
        let mut line = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            let text = cause.to_string();
            if !line.ends_with(&text) {
                line = format!("{line}: {text}");
            }
            source = cause.source();
        }
        Self::Failed(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_command_line_is_told_in_one_line() {
        let told = |arguments: &[&str]| {
            let error = Cli::try_parse_from(arguments).unwrap_err();
            usage(&error.to_string(), arguments)
        };
        insta::assert_snapshot!(
            [
                told(&["keystead", "migrat"]),
                told(&["keystead", "migrate", "--lisen", "x"]),
                told(&["keystead", "check-config", "--listen"]),
                told(&["keystead", "audit", "verify", "--export", "x"]),
                told(&["keystead", "audit", "cut"]),
                told(&["keystead", "pepper", "retire", "first"]),
            ]
            .join("\n"),
            @r#"
            unrecognized subcommand 'migrat'; tip: a similar subcommand exists: 'migrate'; see keystead --help
            unexpected argument '--lisen' found; see keystead migrate --help
            a value is required for '--listen <ADDRESS:PORT>' but none was supplied; see keystead check-config --help
            the following required arguments were not provided: --keys <FILE>; see keystead audit verify --help
            the following required arguments were not provided: --before <TIME>; --reason <TEXT>; see keystead audit cut --help
            invalid value 'first' for '<VERSION>': invalid digit found in string; see keystead pepper retire --help
            "#
        );
    }
}
