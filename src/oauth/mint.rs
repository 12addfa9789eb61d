//! Access tokens: JWTs as RFC 9068 has them, explicitly typed, of at most 8 KiB.
//!
//! `sub` and `client_id` of a token that a client got for itself are the consumer's id, which is in a
//! name space of its own: no client can be named like a person (RFC 9068 §5). Beside the registered
//! claims stand those that the service asks for, and one object, `keystead`, that names the key and the
//! secret the token was made from: it dies with either.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::bonds::Bonds;
use super::delegation::Delegation;
use super::keyring::{KeyError, SigningKey};
use super::{Issuer, Keyring};
use crate::auth::jwt::TOKEN_BYTES_MAX;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::id::TokenId;
use crate::json;
use crate::services::tokens::{ClaimSource, TokenClaims};
use crate::text::Slug;
use crate::time::{Span, Timestamp};
use crate::validation::snapshot::Subject;

/// The header `typ` of an access token (RFC 9068 §2.1).
pub const ACCESS_TOKEN: &str = "at+jwt";

/// What a token says.
#[derive(Clone, Debug, Serialize)]
pub struct Claims<'a> {
    pub iss: &'a str,
    pub sub: &'a str,
    pub aud: &'a str,
    pub client_id: &'a str,
    /// Separated by spaces; left out if there is none.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub scope: &'a str,
    /// In seconds, as `exp`.
    pub iat: i64,
    pub exp: i64,
    pub jti: &'a str,
    #[serde(flatten)]
    pub delegation: &'a Delegation,
    pub keystead: Provenance<'a>,
    /// Tokens for other services, by their slugs.
    #[serde(skip_serializing_if = "Inner::is_empty")]
    pub embedded: Inner,
    /// What the service asks for. None of them is one of the above.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// Tokens within a token, by the slugs of their services.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Inner(BTreeMap<String, SignedToken>);

impl Inner {
    pub(super) fn insert(&mut self, service: &Slug, token: SignedToken) {
        self.0.insert(service.to_string(), token);
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a token was made from.
#[derive(Clone, Copy, Debug)]
pub struct Provenance<'a> {
    pub tenant: &'a str,
    pub environment: &'a str,
    /// The slug of the service that it is for, by whatever name that was asked for.
    pub service: &'a str,
    pub key_id: &'a str,
    pub secret_id: &'a str,
    /// The key of the client that it was exchanged for, if that is another: it dies with that too.
    pub client_key_id: Option<&'a str>,
    pub client_secret_id: Option<&'a str>,
    /// By spaces: whose keys it passed through before, and dies with.
    pub other_secret_ids: Option<&'a str>,
}

impl<'a> Provenance<'a> {
    pub fn of(subject: &'a Subject) -> Self {
        let service = subject.service.as_ref();
        Self {
            service: service.map_or("", |entry| entry.service.slug.as_str()),
            tenant: subject.tenant.slug.as_str(),
            environment: subject.key.owner.environment.as_str(),
            key_id: subject.key.key_id.as_str(),
            secret_id: subject.key.secret_id.as_str(),
            client_key_id: None,
            client_secret_id: None,
            other_secret_ids: None,
        }
    }

    /// Its members, by their names.
    pub(super) fn members(&self) -> impl Iterator<Item = (&'static str, &'a str)> {
        [
            ("tenant", Some(self.tenant)),
            ("environment", Some(self.environment)),
            ("service", Some(self.service)),
            ("key_id", Some(self.key_id)),
            ("secret_id", Some(self.secret_id)),
            ("client_key_id", self.client_key_id),
            ("client_secret_id", self.client_secret_id),
            ("other_secret_ids", self.other_secret_ids),
        ]
        .into_iter()
        .filter_map(|(name, value)| Some((name, value?)))
    }

    /// The same, of a token that dies with these too.
    #[must_use]
    pub fn bound(self, bonds: Option<&'a Bonds>) -> Self {
        let client = bonds.and_then(Bonds::client);
        Self {
            other_secret_ids: bonds.and_then(Bonds::text),
            client_key_id: client.map(|(key, _)| key.as_str()),
            client_secret_id: client.map(|(_, secret)| secret.as_str()),
            ..self
        }
    }
}

impl Serialize for Provenance<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.members())
    }
}

/// From when until when a token is good, in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    pub iat: i64,
    pub exp: i64,
}

impl Life {
    /// `ttl` from now, and never past `end`. `None` if there is not one whole second left.
    pub fn new(now: Timestamp, ttl: Span, end: Option<Timestamp>) -> Option<Self> {
        let exp = now.plus(ttl).unix_seconds();
        let exp = end.map_or(exp, |end| exp.min(end.unix_seconds()));
        let iat = now.unix_seconds();
        (exp > iat).then_some(Self { iat, exp })
    }

    /// How many seconds are left at its beginning.
    pub fn seconds(self) -> i64 {
        self.exp - self.iat
    }
}

/// A signed token: known to whom it was given. No useful `Debug`.
#[derive(Clone, Serialize)]
#[serde(transparent)]
pub struct SignedToken(String);

impl SignedToken {
    /// A token that another authorization server made.
    pub fn of_another(token: &str) -> Self {
        Self(token.to_owned())
    }

    pub fn expose_secret(&self) -> &str {
        &self.0
    }

    pub fn into_exposed(self) -> String {
        self.0
    }
}

impl fmt::Debug for SignedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SignedToken(..)")
    }
}

/// Why there is no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MintError {
    /// It would have more than 8 KiB, which nobody takes.
    #[error("the token would be too long")]
    TooLong,
    #[error("there is no key to sign with")]
    NoKey,
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// Makes tokens, cheap to clone.
#[derive(Clone)]
pub struct Mint {
    keyring: Keyring,
    issuer: Issuer,
    clock: Clock,
    entropy: Entropy,
}

impl Mint {
    pub fn new(keyring: Keyring, issuer: Issuer, clock: Clock, entropy: Entropy) -> Self {
        Self {
            keyring,
            issuer,
            clock,
            entropy,
        }
    }

    /// Who issues.
    pub fn names(&self) -> &Issuer {
        &self.issuer
    }

    pub fn issuer(&self) -> &str {
        self.issuer.as_str()
    }

    /// The `jti` of a token that is to be made.
    pub fn next_id(&self) -> TokenId {
        TokenId::made_of(self.clock.now(), &self.entropy.nonce())
    }

    /// Whether tokens that a key has signed are taken still.
    pub fn keeps(&self, key: &SigningKey) -> bool {
        let ring = self.keyring.ring();
        ring.find(key.kid(), self.clock.now()).is_some()
    }

    /// Signs `claims` as a JWT of the type `typ`.
    ///
    /// # Errors
    /// [`MintError`]
    pub fn sign<T: Serialize>(
        &self,
        typ: &'static str,
        claims: &T,
    ) -> Result<SignedToken, MintError> {
        self.sign_told(typ, claims).map(|(token, _)| token)
    }

    /// The same, and the key that signed it.
    ///
    /// # Errors
    /// [`MintError`]
    pub fn sign_told<T: Serialize>(
        &self,
        typ: &'static str,
        claims: &T,
    ) -> Result<(SignedToken, Arc<SigningKey>), MintError> {
        let ring = self.keyring.ring();
        let key = ring.signer(self.clock.now()).ok_or(MintError::NoKey)?;
        let token = key.sign(typ, claims)?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(MintError::TooLong);
        }
        Ok((SignedToken(token), Arc::clone(key)))
    }
}

/// The claims that a service asks for, as far as key and consumer have them.
pub fn asked_for(claims: &TokenClaims, subject: &Subject) -> Map<String, Value> {
    if claims.is_empty() {
        return Map::new();
    }
    // Both were written by us when the entries were loaded.
    let read = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap_or_default();
    let consumer = read(&subject.consumer.told);
    let mut key = "{".to_owned();
    subject.key.told_to(&mut key);
    key.push('}');
    let key = read(&key);
    let metadata = |of: &Map<String, Value>, path: &str| {
        let metadata = of.get("metadata")?.as_object()?;
        json::find(metadata, path).cloned()
    };
    let value = |source: &ClaimSource| match source {
        ClaimSource::ConsumerSlug => consumer.get("slug").cloned(),
        ClaimSource::ConsumerName => consumer.get("name").cloned(),
        ClaimSource::ConsumerExternalId => {
            let id = subject.consumer.external_id.as_ref()?;
            Some(id.as_str().into())
        }
        ClaimSource::ConsumerMetadata(path) => metadata(&consumer, path),
        ClaimSource::KeyName => key.get("name").cloned(),
        ClaimSource::KeyTags => key.get("tags").cloned(),
        ClaimSource::KeyMetadata(path) => metadata(&key, path),
    };
    claims
        .iter()
        .filter_map(|(name, source)| Some((name.to_owned(), value(source)?)))
        .filter(|(_, value)| !value.is_null())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_ends_with_its_key_at_the_latest_and_lives_whole_seconds() {
        let at = |millis: i64| Timestamp::from_millis(1_800_000_000_000 + millis);
        let life = |now, end| Life::new(at(now), Span::minutes(5), end);
        let start = 1_800_000_000;
        let whole = Life {
            iat: start,
            exp: start + 300,
        };
        assert_eq!(life(0, None), Some(whole));
        assert_eq!(life(999, Some(at(600_000))), Some(whole));
        assert_eq!(whole.seconds(), 300);
        // Never later than the key by a fraction of a second.
        assert_eq!(life(0, Some(at(9_999))).unwrap().exp, start + 9);
        assert_eq!(life(9_100, Some(at(9_999))), None);
        assert_eq!(life(9_999, Some(at(10_000))).unwrap().seconds(), 1);
        assert_eq!(life(20_000, Some(at(10_000))), None);
    }
}
