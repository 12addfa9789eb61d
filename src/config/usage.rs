//! `[usage]`: what is recorded of the uses of keys, and for how long.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::time::Span;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    pub recording: bool,
    pub events_retention: Span,
    pub events_bytes_max: u64,
    pub sink: Vec<UsageSink>,
    /// By default `<data_dir>/usage-events.ndjson`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    pub file_bytes_max: u64,
    pub files_kept: u32,
}

/// Where events go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSink {
    Database,
    File,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            recording: true,
            events_retention: Span::days(30),
            events_bytes_max: 20 * 1024 * 1024 * 1024,
            sink: vec![UsageSink::Database],
            file: None,
            file_bytes_max: 256 * 1024 * 1024,
            files_kept: 10,
        }
    }
}

impl Usage {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Span::hours(1)..=Span::days(3650)).contains(&self.events_retention) {
            return Err(ConfigError::of(
                "usage.events_retention",
                "must be 1h to 3650d",
            ));
        }
        if self.events_bytes_max < 64 * 1024 * 1024 {
            return Err(ConfigError::of(
                "usage.events_bytes_max",
                "must be a number of bytes, at least 67108864",
            ));
        }
        // The file is a copy of what the database took.
        if !self.sink.contains(&UsageSink::Database) {
            return Err(ConfigError::of(
                "usage.sink",
                "must be [\"database\"] or [\"database\", \"file\"]",
            ));
        }
        if self.file_bytes_max < 64 * 1024 {
            return Err(ConfigError::of(
                "usage.file_bytes_max",
                "must be a number of bytes, at least 65536",
            ));
        }
        if !(1..=1000).contains(&self.files_kept) {
            return Err(ConfigError::of(
                "usage.files_kept",
                "must be a number from 1 to 1000",
            ));
        }
        Ok(())
    }
}
