//! `[log]`: how much is said, and in which form.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    #[default]
    Auto,
    Pretty,
    Json,
}

/// A level, and after it levels of single targets: `info,keystead::audit=debug`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct LogLevel(String);

impl LogLevel {
    /// Parsed anew each time, as a filter cannot be cloned.
    pub fn filter(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }
}

impl Default for LogLevel {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl TryFrom<String> for LogLevel {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const SHAPE: &str = "must be off, error, warn, info, debug or trace, and may add targets \
                             as in \"info,keystead::audit=debug\"";
        let mut parts = text.split(',').map(str::trim);
        // A word that is no level would be read as a target, and silence everything else.
        let first = parts.next().unwrap_or_default();
        let level = ["off", "error", "warn", "info", "debug", "trace"].contains(&first);
        if !level || !parts.all(|part| part.contains('=')) || EnvFilter::try_new(&text).is_err() {
            return Err(SHAPE);
        }
        Ok(Self(text))
    }
}

impl From<LogLevel> for String {
    fn from(level: LogLevel) -> Self {
        level.0
    }
}
