//! `[audit]`: how often the trail is signed, where that goes, and how long lines are kept.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::time::Span;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    pub checkpoint_every: Span,
    /// By default `<data_dir>/checkpoints.ndjson`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sink: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retention: Option<Span>,
}

impl Default for Audit {
    fn default() -> Self {
        Self {
            checkpoint_every: Span::hours(1),
            checkpoint_file: None,
            sink: None,
            retention: None,
        }
    }
}

impl Audit {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Span::seconds(1)..=Span::days(7)).contains(&self.checkpoint_every) {
            return Err(ConfigError::of(
                "audit.checkpoint_every",
                "must be 1s to 7d",
            ));
        }
        // Less is a mistake rather than a wish: what it cuts does not come back.
        if self
            .retention
            .is_some_and(|retention| retention < Span::days(1))
        {
            return Err(ConfigError::of(
                "audit.retention",
                "must be at least 1d; leave it out to keep everything",
            ));
        }
        Ok(())
    }
}
