//! `[argon2]`: what a verifier costs to make and to guess.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// What the OWASP Password Storage Cheat Sheet holds to be equally strong: KiB of memory and the
/// passes over it. The first is the default.
const OWASP: [(u32, u32); 5] = [
    (19_456, 2),
    (47_104, 1),
    (12_288, 3),
    (9_216, 4),
    (7_168, 5),
];

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Argon2 {
    pub memory_kib: u32,
    pub passes: u32,
    pub lanes: u32,
    /// Allows less than OWASP's minimum; for tests.
    pub dangerous_weak_argon2: bool,
}

impl Argon2 {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, value, (least, most)) in [
            ("argon2.memory_kib", self.memory_kib, (8, 1_048_576)),
            ("argon2.passes", self.passes, (1, 64)),
            ("argon2.lanes", self.lanes, (1, 16)),
        ] {
            if !(least..=most).contains(&value) {
                return Err(ConfigError::of(
                    key,
                    format!("must be a number from {least} to {most}"),
                ));
            }
        }
        // RFC 9106 §3.1
        if self.memory_kib < self.lanes.saturating_mul(8) {
            return Err(ConfigError::of(
                "argon2.memory_kib",
                "must be at least 8 for each lane",
            ));
        }
        let strong = OWASP
            .iter()
            .any(|(memory_kib, passes)| self.memory_kib >= *memory_kib && self.passes >= *passes);
        if !strong && !self.dangerous_weak_argon2 {
            let (key, name, value) = if self.passes < OWASP[0].1 {
                ("argon2.passes", "argon2.memory_kib", self.memory_kib)
            } else {
                ("argon2.memory_kib", "argon2.passes", self.passes)
            };
            return Err(ConfigError::of(
                key,
                format!(
                    "is weaker than OWASP's minimum while {name} = {value}: use memory_kib = 19456 \
                     and passes = 2, or more"
                ),
            ));
        }
        Ok(())
    }
}

impl Default for Argon2 {
    fn default() -> Self {
        Self {
            memory_kib: 19_456,
            passes: 2,
            lanes: 1,
            dangerous_weak_argon2: false,
        }
    }
}
