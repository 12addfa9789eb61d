//! One key that tokens are signed with: made here, sealed for the database, opened again.
//!
//! The public half and the `kid` are worked out from the private half each time it is opened: what else
//! stands in the row is believed only as far as it was sealed with it.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{Jwk, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Serialize;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::auth::key::VerificationKey;
use crate::config::SigningAlgorithm;
use crate::entropy::Entropy;
use crate::master::MasterKey;

/// The purpose for which the key that seals private halves is derived from the master key.
const PURPOSE: &str = "keystead token signing key 1";

/// A defect of ours, or of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("a signing key could not be made")]
    Make,
    #[error("a signing key could not be sealed")]
    Seal,
    #[error("a signing key cannot be opened: it was not sealed by us, or was altered")]
    Open,
    #[error("a token could not be signed")]
    Sign,
}

enum Pair {
    Es256(EcdsaKeyPair),
    EdDsa(Ed25519KeyPair),
    Rs256(Box<RsaKeyPair>),
}

/// A private key, ready to sign, and its public half.
pub struct SigningKey {
    kid: String,
    algorithm: SigningAlgorithm,
    pair: Pair,
    jwk: Map<String, Value>,
    verification: VerificationKey,
}

impl SigningKey {
    /// A new key. One of RSA takes some tenths of a second.
    ///
    /// The randomness is the library's own, as it is in each signature: it takes no other.
    ///
    /// # Errors
    /// [`KeyError::Make`]
    pub fn generate(algorithm: SigningAlgorithm) -> Result<Self, KeyError> {
        let pair = match algorithm {
            SigningAlgorithm::Es256 => {
                EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Pair::Es256)
            }
            SigningAlgorithm::EdDsa => Ed25519KeyPair::generate().map(Pair::EdDsa),
            SigningAlgorithm::Rs256 => {
                RsaKeyPair::generate(KeySize::Rsa2048).map(|pair| Pair::Rs256(Box::new(pair)))
            }
        };
        Self::of(algorithm, pair.map_err(|_unspecified| KeyError::Make)?).ok_or(KeyError::Make)
    }

    fn of(algorithm: SigningAlgorithm, pair: Pair) -> Option<Self> {
        let public = match &pair {
            Pair::Es256(pair) => DecodingKey::from_ec_der(pair.public_key().as_ref()),
            Pair::EdDsa(pair) => DecodingKey::from_ed_der(pair.public_key().as_ref()),
            Pair::Rs256(pair) => DecodingKey::from_rsa_der(pair.public_key().as_ref()),
        };
        let jwk = Jwk::from_decoding_key(&public, None).ok()?;
        // RFC 7638: a key is told by what it is.
        let kid = jwk.thumbprint(ThumbprintHash::SHA256).ok()?;
        let Ok(Value::Object(mut jwk)) = serde_json::to_value(&jwk) else {
            return None;
        };
        jwk.insert("kid".to_owned(), kid.clone().into());
        jwk.insert("use".to_owned(), "sig".into());
        jwk.insert("alg".to_owned(), algorithm.as_str().into());
        let verification = VerificationKey::from_jwk(&jwk, &[verifies(algorithm)])?;
        Some(Self {
            kid,
            algorithm,
            pair,
            jwk,
            verification,
        })
    }

    pub fn kid(&self) -> &str {
        &self.kid
    }

    pub fn algorithm(&self) -> SigningAlgorithm {
        self.algorithm
    }

    /// The public half as it is published (RFC 7517 §4).
    pub fn jwk(&self) -> &Map<String, Value> {
        &self.jwk
    }

    /// The public half as signatures are verified with it.
    pub fn verification(&self) -> &VerificationKey {
        &self.verification
    }

    /// A JWS in compact form (RFC 7515 §7.1) over `claims`, explicitly typed (RFC 8725 §3.11).
    ///
    /// # Errors
    /// [`KeyError::Sign`]
    pub fn sign<T: Serialize>(&self, typ: &'static str, claims: &T) -> Result<String, KeyError> {
        // `typ`, `alg` and `kid` hold nothing that JSON would have to escape.
        let header = format!(
            r#"{{"typ":"{typ}","alg":"{}","kid":"{}"}}"#,
            self.algorithm.as_str(),
            self.kid
        );
        let claims = serde_json::to_vec(claims).map_err(|_no_json| KeyError::Sign)?;
        let mut token = String::with_capacity(claims.len() * 4 / 3 + 256);
        URL_SAFE_NO_PAD.encode_string(header, &mut token);
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims, &mut token);
        let signature = self.signature(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    fn signature(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Es256(pair) => pair
                .sign(&random, message)
                .map(|made| made.as_ref().to_vec()),
            Pair::EdDsa(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rs256(pair) => {
                let mut made = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut made)
                    .map(|()| made)
            }
        }
        .map_err(|_unspecified| KeyError::Sign)
    }

    /// The private half as it is stored: AES-256-GCM under a key derived from `master`, bound to `kid`
    /// and algorithm; the nonce stands before it.
    ///
    /// # Errors
    /// [`KeyError::Seal`]
    pub fn seal(&self, master: &MasterKey, entropy: &Entropy) -> Result<Vec<u8>, KeyError> {
        let private = Zeroizing::new(self.pkcs8().ok_or(KeyError::Seal)?);
        let bound_to = bound_to(&self.kid, self.algorithm);
        master
            .derive(PURPOSE)
            .encrypt(&bound_to, &private, entropy)
            .ok_or(KeyError::Seal)
    }

    /// # Errors
    /// [`KeyError::Open`] for what was not sealed for this very `kid` and algorithm.
    pub fn open(
        kid: &str,
        algorithm: SigningAlgorithm,
        master: &MasterKey,
        sealed: &[u8],
    ) -> Result<Self, KeyError> {
        let private = master
            .derive(PURPOSE)
            .decrypt(&bound_to(kid, algorithm), sealed)
            .ok_or(KeyError::Open)?;
        let private = private.as_slice();
        let pair = match algorithm {
            SigningAlgorithm::Es256 => {
                EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private).map(Pair::Es256)
            }
            SigningAlgorithm::EdDsa => Ed25519KeyPair::from_pkcs8(private).map(Pair::EdDsa),
            SigningAlgorithm::Rs256 => {
                RsaKeyPair::from_pkcs8(private).map(|pair| Pair::Rs256(Box::new(pair)))
            }
        };
        let pair = pair.map_err(|_rejected| KeyError::Open)?;
        Self::of(algorithm, pair)
            .filter(|key| key.kid == kid)
            .ok_or(KeyError::Open)
    }

    fn pkcs8(&self) -> Option<Vec<u8>> {
        Some(match &self.pair {
            Pair::Es256(pair) => pair.to_pkcs8v1().ok()?.as_ref().to_vec(),
            Pair::EdDsa(pair) => pair.to_pkcs8v1().ok()?.as_ref().to_vec(),
            Pair::Rs256(pair) => {
                let der: Pkcs8V1Der<'_> = pair.as_der().ok()?;
                der.as_ref().to_vec()
            }
        })
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.kid)
    }
}

/// What verifies its signatures.
pub const fn verifies(algorithm: SigningAlgorithm) -> Algorithm {
    match algorithm {
        SigningAlgorithm::Es256 => Algorithm::ES256,
        SigningAlgorithm::EdDsa => Algorithm::EdDSA,
        SigningAlgorithm::Rs256 => Algorithm::RS256,
    }
}

fn bound_to(kid: &str, algorithm: SigningAlgorithm) -> String {
    format!("{kid} {}", algorithm.as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::jwt::Token;

    fn master(byte: u8) -> MasterKey {
        MasterKey::new([byte; 32])
    }

    #[test]
    fn a_key_of_each_kind_signs_what_its_public_half_verifies() {
        for algorithm in SigningAlgorithm::ALL {
            let key = SigningKey::generate(algorithm).unwrap();
            let token = key.sign("at+jwt", &json!({"sub": "con_a"})).unwrap();
            let parsed = Token::parse(&token).unwrap();
            assert_eq!(parsed.kid(), Some(key.kid()));
            assert_eq!(parsed.algorithm(), verifies(algorithm));
            let (message, signature) = token.rsplit_once('.').unwrap();
            assert!(key.verification().verifies(signature, message));
            assert!(!key.verification().verifies(signature, "another.message"));
            for member in ["d", "p", "q", "dp", "dq", "qi", "oth", "k"] {
                assert!(!key.jwk().contains_key(member), "{member}");
            }
            assert_eq!(key.jwk()["use"], "sig");
            assert_eq!(key.jwk()["alg"], algorithm.as_str());
        }
    }

    #[test]
    fn a_sealed_key_opens_as_what_it_was_and_under_its_master_key_alone() {
        for algorithm in SigningAlgorithm::ALL {
            let key = SigningKey::generate(algorithm).unwrap();
            let sealed = key.seal(&master(1), &Entropy::System).unwrap();
            let open = |kid: &str, algorithm, key: u8, sealed: &[u8]| {
                SigningKey::open(kid, algorithm, &master(key), sealed).map(|key| key.jwk)
            };
            let opened = open(key.kid(), algorithm, 1, &sealed).unwrap();
            assert_eq!(&opened, key.jwk());
            assert_eq!(open(key.kid(), algorithm, 2, &sealed), Err(KeyError::Open));
            assert_eq!(open("another", algorithm, 1, &sealed), Err(KeyError::Open));
            for other in SigningAlgorithm::ALL {
                let opened = open(key.kid(), other, 1, &sealed);
                assert_eq!(opened.is_ok(), other == algorithm);
            }
            for at in (0..sealed.len()).step_by(7) {
                let mut altered = sealed.clone();
                altered[at] ^= 1;
                assert!(open(key.kid(), algorithm, 1, &altered).is_err(), "{at}");
                assert!(
                    open(key.kid(), algorithm, 1, &sealed[..at]).is_err(),
                    "{at}"
                );
            }
        }
    }

    #[test]
    fn a_key_shows_no_more_of_itself_than_its_name() {
        let key = SigningKey::generate(SigningAlgorithm::Es256).unwrap();
        assert_eq!(format!("{key:?}"), format!("SigningKey({})", key.kid()));
    }
}
