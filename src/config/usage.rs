//! `[usage]`: what is recorded of the uses of keys, and for how long.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::time::Span;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    pub recording: bool,
    pub events_retention: Span,
    pub events_bytes_max: u64,
}

impl Default for Usage {
    fn default() -> Self {
        Self {
            recording: true,
            events_retention: Span::days(30),
            events_bytes_max: 20 * 1024 * 1024 * 1024,
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
        Ok(())
    }
}
