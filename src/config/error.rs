//! What is wrong with a setting, in one line: where it was set, its name, and what it must be.

use std::fmt;

use crate::telemetry::escape;

/// A bad setting. Its text never holds the value of a secret.
#[derive(Debug)]
pub struct ConfigError {
    /// The file, variable or flag; empty for a default.
    origin: String,
    /// The dotted name; empty when the whole file is at fault.
    key: String,
    problem: String,
}

impl ConfigError {
    pub fn new(
        origin: impl Into<String>,
        key: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self {
            origin: origin.into(),
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// Of a setting wherever it was set.
    pub(super) fn of(key: &str, problem: impl Into<String>) -> Self {
        Self::new("", key, problem)
    }

    /// Fills in where the setting was set, unless that is known.
    #[must_use]
    pub(super) fn with_origin(mut self, origin: impl FnOnce(&str) -> String) -> Self {
        if self.origin.is_empty() {
            self.origin = origin(&self.key);
        }
        self
    }

    pub fn key(&self) -> &str {
        &self.key
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = String::new();
        if !self.origin.is_empty() {
            line.push_str(&self.origin);
            line.push_str(": ");
        }
        if !self.key.is_empty() {
            line.push_str(&self.key);
            line.push(' ');
        }
        line.push_str(&self.problem);
        f.write_str(&escape(&line))
    }
}

impl std::error::Error for ConfigError {}
