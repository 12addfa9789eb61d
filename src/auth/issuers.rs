//! All issuers whose JWTs we believe: from the text of a token to a person and its rights.

use std::collections::BTreeMap;
use std::sync::Arc;

use jsonwebtoken::Algorithm;
use serde_json::{Map, Value, json};

use super::claims;
use super::jwks::{Found, KeysState, Published};
use super::jwt::{Refusal, Token};
use super::key::VerificationKey;
use crate::clock::Clock;
use crate::config::issuers::{Fault, Issuer, KeySource, RoleRule};
use crate::rights::{Rights, Role};
use crate::text::Slug;
use crate::time::Timestamp;

/// The configured issuers, by the `iss` of their tokens.
#[derive(Debug)]
pub struct Issuers {
    trusted: BTreeMap<String, Trusted>,
    clock: Clock,
}

#[derive(Debug)]
struct Trusted {
    issuer: Issuer,
    keys: Keys,
}

#[derive(Debug)]
enum Keys {
    /// Stands in the configuration; the `kid` of a token says nothing then.
    Fixed(VerificationKey),
    Published(Arc<Published>),
}

/// What a good token says.
#[derive(Clone, Debug)]
pub struct Vouched {
    pub issuer: String,
    pub subject: String,
    /// The tenant it belongs to, by the issuer's rule; whether it exists is not known yet.
    pub tenant: Slug,
    pub rights: Rights,
    pub expires_at: Timestamp,
    /// All that it says.
    pub claims: Map<String, Value>,
}

/// Why a token speaks for nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    Refused(Refusal),
    /// The issuer's keys are not known and cannot be fetched just now.
    Unavailable,
}

impl From<Refusal> for TokenError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Issuers {
    /// # Errors
    /// Keys in the configuration that cannot be used.
    pub fn new(issuers: Vec<Issuer>, clock: Clock) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut trusted = BTreeMap::new();
        for (index, issuer) in issuers.into_iter().enumerate() {
            match keys(&issuer, &clock) {
                Ok(keys) => {
                    trusted.insert(issuer.issuer.clone(), Trusted { issuer, keys });
                }
                Err((key, detail)) => faults.push(Fault {
                    key: format!("issuers[{index}].{key}"),
                    detail,
                }),
            }
        }
        if faults.is_empty() {
            Ok(Self { trusted, clock })
        } else {
            Err(faults)
        }
    }

    /// Whom the token speaks for.
    ///
    /// # Errors
    /// [`TokenError`]; a refusal is for the log, whoever presented the token learns none of it.
    pub async fn verify(&self, token: &str) -> Result<Vouched, TokenError> {
        let token = Token::parse(token)?;
        let trusted = self.trusted.get(token.issuer()?).ok_or(Refusal::Issuer)?;
        let issuer = &trusted.issuer;
        let judged = token.judge(issuer, self.clock.now())?;
        let verified = match &trusted.keys {
            Keys::Fixed(key) => judged.verify(std::slice::from_ref(key))?,
            Keys::Published(published) => {
                match published.find(judged.algorithm(), judged.kid()).await {
                    Found::Keys(keys) => judged.verify(&keys)?,
                    Found::Unknown => return Err(Refusal::Key.into()),
                    Found::Unavailable => return Err(TokenError::Unavailable),
                }
            }
        };
        Ok(Vouched {
            issuer: issuer.issuer.clone(),
            subject: verified.subject,
            tenant: claims::tenant(&verified.claims, &issuer.tenant).ok_or(Refusal::Tenant)?,
            rights: claims::rights(&verified.claims, &issuer.roles),
            expires_at: verified.expires_at,
            claims: verified.claims,
        })
    }

    /// Whether a text is a JWT that says to be of one of them: nothing in it is believed.
    pub fn claims_to_be_known(&self, token: &str) -> bool {
        Token::parse(token).is_ok_and(|token| {
            let issuer = token.issuer();
            issuer.is_ok_and(|issuer| self.trusted.contains_key(issuer))
        })
    }

    /// Whether a role rule makes somebody an owner.
    pub fn can_be_owner(&self) -> bool {
        self.rules()
            .any(|(_, rule)| rule.role == Role::Owner && rule.services.is_none())
    }

    /// Which claims of which issuers give which roles.
    pub fn role_map(&self) -> Value {
        self.rules()
            .map(|(issuer, rule)| {
                json!({
                    "issuer": issuer,
                    "claim": rule.claim,
                    "value": rule.value,
                    "role": rule.role,
                    "services": rule.services,
                })
            })
            .collect()
    }

    fn rules(&self) -> impl Iterator<Item = (&str, &RoleRule)> {
        self.trusted.iter().flat_map(|(issuer, trusted)| {
            trusted
                .issuer
                .roles
                .iter()
                .map(|rule| (issuer.as_str(), rule))
        })
    }

    /// Keeps the published keys fresh for as long as it is polled: to be spawned once.
    pub async fn keep_fresh(self: Arc<Self>) {
        futures_util::future::join_all(self.published().cloned().map(Published::keep_fresh)).await;
    }

    /// How the published keys are.
    pub fn states(&self) -> Vec<KeysState> {
        self.published()
            .map(|published| published.state())
            .collect()
    }

    fn published(&self) -> impl Iterator<Item = &Arc<Published>> {
        self.trusted
            .values()
            .filter_map(|trusted| match &trusted.keys {
                Keys::Fixed(_) => None,
                Keys::Published(published) => Some(published),
            })
    }
}

/// # Errors
/// The setting at fault and what it must be.
fn keys(issuer: &Issuer, clock: &Clock) -> Result<Keys, (&'static str, String)> {
    let algorithm = issuer
        .algorithms
        .first()
        .copied()
        .unwrap_or(Algorithm::RS256);
    match &issuer.keys {
        KeySource::Hmac(secret) => Ok(Keys::Fixed(VerificationKey::hmac(secret, algorithm))),
        KeySource::PublicKey(pem) => VerificationKey::from_pem(pem, &issuer.algorithms)
            .map(Keys::Fixed)
            .map_err(|detail| ("public_key", detail.to_owned())),
        KeySource::Discovery(_) | KeySource::Jwks(_) => Published::new(issuer, clock.clone())
            .ok()
            .flatten()
            .map(Keys::Published)
            .ok_or_else(|| {
                let detail = "the system's certificate authorities cannot be read, so no keys \
                              can be fetched; install ca-certificates";
                ("issuer", detail.to_owned())
            }),
    }
}
