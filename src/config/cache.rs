//! `[cache]`: what validations remember.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::db::nodes::STALE_MAX_LONGEST;
use crate::time::Span;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cache {
    pub refresh: Span,
    pub stale_max: Span,
    pub entries_max: usize,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            refresh: Span::minutes(5),
            stale_max: Span::minutes(15),
            entries_max: 1_000_000,
        }
    }
}

impl Cache {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Span::seconds(1)..=Span::hours(24)).contains(&self.refresh) {
            return Err(ConfigError::of("cache.refresh", "must be 1s to 24h"));
        }
        if !(Span::seconds(5)..=STALE_MAX_LONGEST).contains(&self.stale_max) {
            return Err(ConfigError::of("cache.stale_max", "must be 5s to 1h"));
        }
        if !(100..=100_000_000).contains(&self.entries_max) {
            return Err(ConfigError::of(
                "cache.entries_max",
                "must be a number from 100 to 100000000",
            ));
        }
        Ok(())
    }
}
