//! `[oauth]`: what tokens are signed with, and how long with the same key.

use serde::{Deserialize, Serialize};

use super::ConfigError;
use crate::time::Span;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Oauth {
    pub signing_algorithm: SigningAlgorithm,
    pub signing_rotation: Span,
}

/// What tokens may be signed with (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
pub enum SigningAlgorithm {
    /// ECDSA with P-256 and SHA-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
    /// RSA of 2048 bits, PKCS #1 v1.5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl SigningAlgorithm {
    pub const ALL: [Self; 3] = [Self::Es256, Self::EdDsa, Self::Rs256];

    /// As the header `alg` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
            Self::Rs256 => "RS256",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

impl Default for Oauth {
    fn default() -> Self {
        Self {
            signing_algorithm: SigningAlgorithm::default(),
            signing_rotation: Span::days(90),
        }
    }
}

impl Oauth {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        if !(Span::hours(1)..=Span::days(3650)).contains(&self.signing_rotation) {
            return Err(ConfigError::of(
                "oauth.signing_rotation",
                "must be 1h to 3650d",
            ));
        }
        Ok(())
    }
}
