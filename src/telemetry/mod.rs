//! What the process says about itself: one line for each event, as JSON or for people.
//!
//! A log line cannot be forged from within a value ([`escape`]), cannot stop the server
//! ([`writer`]), and the libraries we use say nothing below `info`, because what they would say
//! there (statements with their values, headers) may be a secret.

mod escape;
mod security;
mod writer;

use std::io::{IsTerminal as _, Write as _};
use std::panic::PanicHookInfo;
use std::time::Duration;

use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer as _};

pub use self::escape::escape;
pub use self::security::{SecurityEvent, SecurityLog, Sighting};
pub use self::writer::LostLines;
use self::writer::{LogWriter, Sink};
use crate::clock::Clock;
use crate::config::{Log, LogFormat};

/// How long the end of the process waits for the last lines.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// Handle of the running log.
#[derive(Clone, Debug)]
pub struct Telemetry {
    writer: LogWriter,
}

/// Starts the log on standard output and turns panics into log lines.
///
/// # Errors
/// When a log was started before in this process.
pub fn start(log: &Log) -> Result<Telemetry, TryInitError> {
    let stdout = std::io::stdout();
    start_on(log, stdout.is_terminal(), Sink::of(&stdout))
}

/// The same on standard error, for commands whose result goes to standard output.
pub fn start_on_stderr(log: &Log) -> Result<Telemetry, TryInitError> {
    let stderr = std::io::stderr();
    start_on(log, stderr.is_terminal(), Sink::of(&stderr))
}

fn start_on(log: &Log, is_terminal: bool, sink: Sink) -> Result<Telemetry, TryInitError> {
    let pretty = match log.format {
        LogFormat::Auto => is_terminal,
        LogFormat::Pretty => true,
        LogFormat::Json => false,
    };
    let writer = LogWriter::start(sink);
    subscriber(log.level.filter(), pretty, writer.clone()).try_init()?;
    std::panic::set_hook(Box::new(|info| {
        let Panic { message, location } = Panic::of(info);
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        tracing::error!(location, thread, panic = message, "panicked");
    }));
    Ok(Telemetry { writer })
}

impl Telemetry {
    /// Lines that standard output did not take since the start.
    pub fn lost_lines(&self) -> LostLines {
        self.writer.lost_lines()
    }

    /// Waits until what was logged so far is written, at most a second.
    pub fn flush(&self) {
        self.writer.flush(FLUSH_MAX);
    }
}

fn subscriber(
    level: EnvFilter,
    pretty: bool,
    writer: LogWriter,
) -> impl tracing::Subscriber + Send + Sync {
    let capped = Targets::new()
        .with_default(LevelFilter::INFO)
        .with_target("keystead", LevelFilter::TRACE);
    // The hashes that a rolled-back database is found against, and what may be an attack.
    let always = Targets::new()
        .with_target("audit", LevelFilter::INFO)
        .with_target("security", LevelFilter::INFO);
    let layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_timer(Now)
        .log_internal_errors(false)
        .with_writer(writer);
    let layer = if pretty {
        layer.boxed()
    } else {
        layer
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .boxed()
    };
    tracing_subscriber::registry().with(layer.with_filter(level.and(capped).or(always)))
}

/// For commands that have no log: a panic is one line on standard error.
pub fn report_panics_on_stderr() {
    std::panic::set_hook(Box::new(|info| {
        let Panic { message, location } = Panic::of(info);
        let _stderr_may_be_closed = writeln!(
            std::io::stderr(),
            "keystead: panicked at {}: {}",
            escape(&location),
            escape(message)
        );
    }));
}

struct Panic {
    /// Only if it is a constant of the code: one made at run time may hold a secret, as `unwrap`
    /// prints its error.
    message: &'static str,
    location: String,
}

impl Panic {
    fn of(info: &PanicHookInfo<'_>) -> Self {
        let message = info.payload().downcast_ref::<&'static str>();
        Self {
            message: message.copied().unwrap_or("(message withheld)"),
            location: info.location().map(ToString::to_string).unwrap_or_default(),
        }
    }
}

struct Now;

impl FormatTime for Now {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(w, "{}", Clock::System.now())
    }
}

#[cfg(test)]
mod tests;
