//! The audit key: Ed25519 (RFC 8032), derived from the master key under a purpose of its own.
//!
//! Its private half exists only in the memory of a process that has the master key, so who steals or
//! writes to the database can sign nothing. Its public half is kept for ever.

use std::fmt;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use crate::master::MasterKey;
use crate::time::{Span, Timestamp};

/// The purpose for which the seed of the audit key is derived from the master key.
pub const SIGNING_PURPOSE: &str = "keystead audit signing key 1";

/// How far the clocks of two nodes may be apart.
pub(in crate::audit) const LEEWAY: Span = Span::minutes(5);

/// Signs statements.
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// The public half, 32 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl Signer {
    #[expect(
        clippy::expect_used,
        reason = "any 32 bytes are a seed, and its public half has 32 bytes (RFC 8032 §5.1.5)"
    )]
    #[expect(clippy::missing_panics_doc, reason = "it never does")]
    pub fn new(master: &MasterKey) -> Self {
        let seed = master.derive(SIGNING_PURPOSE);
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.expose_secret()).expect("a seed");
        let public = PublicKey::parse(pair.public_key().as_ref()).expect("a public half");
        Self { pair, public }
    }

    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public.kid())
    }
}

impl PublicKey {
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The JWK thumbprint (RFC 7638 §3, RFC 8037 §2), so that a key is told by what it is.
    pub fn kid(&self) -> String {
        // The required members of an OKP key in lexicographic order, without white space.
        let members = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, self.x());
        URL_SAFE_NO_PAD.encode(Sha256::digest(members))
    }

    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .is_ok()
    }

    fn x(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// A public key and when it signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeySpan {
    pub public: PublicKey,
    pub from: Timestamp,
    /// `None`: it signs now.
    pub until: Option<Timestamp>,
}

impl KeySpan {
    /// Whether it may have signed at `at`.
    pub fn covers(&self, at: Timestamp) -> bool {
        at >= self.from.minus(LEEWAY) && self.until.is_none_or(|until| at <= until.plus(LEEWAY))
    }
}

/// A public key as JWK (RFC 7517, RFC 8037 §2), with the time in which it signed.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[schema(title = "AuditKey")]
pub struct AuditKeyBody {
    #[schema(example = "OKP")]
    kty: String,
    #[schema(example = "Ed25519")]
    crv: String,
    /// The public key, base64url.
    #[schema(example = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")]
    x: String,
    /// Its thumbprint (RFC 7638).
    #[schema(example = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k")]
    kid: String,
    #[serde(rename = "use")]
    #[schema(example = "sig")]
    usage: String,
    #[schema(example = "EdDSA")]
    alg: String,
    /// Since when it signs.
    from: Timestamp,
    /// Until when it signed; null for the one that signs now.
    #[schema(required = true)]
    until: Option<Timestamp>,
}

impl From<&KeySpan> for AuditKeyBody {
    fn from(key: &KeySpan) -> Self {
        Self {
            kty: "OKP".to_owned(),
            crv: "Ed25519".to_owned(),
            x: key.public.x(),
            kid: key.public.kid(),
            usage: "sig".to_owned(),
            alg: "EdDSA".to_owned(),
            from: key.from,
            until: key.until,
        }
    }
}

impl AuditKeyBody {
    /// # Errors
    /// What is wrong with a key that somebody wrote down.
    pub fn to_key(&self) -> Result<KeySpan, String> {
        let bytes = URL_SAFE_NO_PAD.decode(&self.x).ok();
        let public = bytes.as_deref().and_then(PublicKey::parse);
        match public {
            Some(public) if self.crv == "Ed25519" && public.kid() == self.kid => Ok(KeySpan {
                public,
                from: self.from,
                until: self.until,
            }),
            Some(_) | None => Err(format!("the key {} is no Ed25519 key of ours", self.kid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_id_is_the_thumbprint_of_rfc_8037() {
        // RFC 8037 appendix A.2 and A.3.
        let x = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";
        let public = PublicKey::parse(&URL_SAFE_NO_PAD.decode(x).unwrap()).unwrap();
        assert_eq!(public.kid(), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_key_comes_from_its_master_key_alone() {
        let signer = |byte| Signer::new(&MasterKey::new([byte; 32]));
        assert_eq!(signer(1).public(), signer(1).public());
        assert_ne!(signer(1).public(), signer(2).public());
        let signature = signer(1).sign(b"said");
        assert!(signer(1).public().verify(b"said", &signature));
        assert!(!signer(1).public().verify(b"sad", &signature));
        assert!(!signer(2).public().verify(b"said", &signature));
    }

    #[test]
    fn a_key_is_read_from_its_jwk() {
        let key = KeySpan {
            public: Signer::new(&MasterKey::new([3; 32])).public().clone(),
            from: Timestamp::from_millis(1_800_000_000_000),
            until: None,
        };
        let mut body = AuditKeyBody::from(&key);
        assert_eq!(body.to_key(), Ok(key));
        "AAAA".clone_into(&mut body.kid);
        assert!(body.to_key().is_err());
    }
}
