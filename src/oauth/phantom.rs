//! The phantom token: what an introspection tells, as an access token for the service that asked. So an
//! opaque credential outside is a signed JWT inside.
//!
//! Signing is most of the work, so a token is given out again while everything that it was made from is
//! the very same reading (a key, its consumer, the tenant and the service at their versions) and more
//! than half of its life is left. The phantom of a token has the id of that token and ends with it: who
//! revokes one revokes both.

use std::sync::Arc;

use quick_cache::sync::Cache;

use super::delegation::Delegation;
use super::embedded;
use super::keyring::SigningKey;
use super::mint::{
    ACCESS_TOKEN, Claims, Life, Mint, MintError, Provenance, SignedToken, asked_for,
};
use super::own::OwnToken;
use super::refusal::Refusal;
use crate::id::{SecretId, ServiceId, TokenId};
use crate::scope::Scope;
use crate::time::Timestamp;
use crate::validation::snapshot::Subject;

/// So many are kept to be given out again.
const PHANTOMS_MAX: usize = 20_000;

/// A token that was made for an introspection.
pub(super) struct Phantom {
    pub(super) id: TokenId,
    pub(super) token: SignedToken,
    life: Life,
    /// The key that signed it.
    signer: Arc<SigningKey>,
    made_from: Subject,
    /// The same key at the services whose tokens are embedded.
    inner: Vec<Subject>,
}

impl Phantom {
    fn is_good(&self, subject: &Subject, inner: &[Subject], now: Timestamp) -> bool {
        // Of a token that was exchanged the key of the client narrows it too.
        let is_same = is_same(&self.made_from, subject)
            && self.made_from.narrowed == subject.narrowed
            && self.inner.len() == inner.len()
            && self
                .inner
                .iter()
                .zip(inner)
                .all(|(one, other)| is_same(one, other));
        let left = self.life.exp - now.unix_seconds();
        is_same && now.unix_seconds() >= self.life.iat && left * 2 > self.life.seconds()
    }
}

/// Whether both are the very same reading.
fn is_same(one: &Subject, other: &Subject) -> bool {
    Arc::ptr_eq(&one.key, &other.key)
        && Arc::ptr_eq(&one.consumer, &other.consumer)
        && Arc::ptr_eq(&one.tenant, &other.tenant)
        && match (&one.service, &other.service) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (_, _) => false,
        }
}

/// Makes phantom tokens, or gives one out again.
pub(super) struct Phantoms {
    mint: Mint,
    made: Cache<(SecretId, ServiceId, Option<TokenId>), Arc<Phantom>>,
}

impl Phantoms {
    pub(super) fn new(mint: Mint) -> Self {
        Self {
            mint,
            made: Cache::new(PHANTOMS_MAX),
        }
    }

    /// Forgets those that have ended.
    pub(super) fn forget_ended(&self, now: Timestamp) {
        self.made
            .retain(|_, phantom| phantom.life.exp > now.unix_seconds());
    }

    /// `None` for what has not one whole second left, or is for no service. `of` is the token that was
    /// asked about, if it was one, and `inner` the key at the services whose tokens are embedded.
    ///
    /// # Errors
    /// [`Refusal`] when nothing can be signed.
    pub(super) fn of(
        &self,
        subject: &Subject,
        of: Option<&OwnToken>,
        inner: Vec<Subject>,
        now: Timestamp,
    ) -> Result<Option<Arc<Phantom>>, Refusal> {
        let Some(service) = &subject.service else {
            return Ok(None);
        };
        let name = (
            subject.key.secret_id.clone(),
            service.service.id.clone(),
            of.map(|token| token.id.clone()),
        );
        // Of one id may be several tokens with ends of their own: a shared one, and those made of it.
        let outlasts = |made: &Phantom| {
            of.is_some_and(|token| made.life.exp > token.expires_at.unix_seconds())
        };
        if let Some(made) = self.made.get(&name)
            && made.is_good(subject, &inner, now)
            && !outlasts(&made)
            && self.mint.keeps(&made.signer)
        {
            return Ok(Some(made));
        }
        let settings = &service.service.settings.tokens;
        let end = match (subject.end(), of.map(|token| token.expires_at)) {
            (Some(key), Some(token)) => Some(key.min(token)),
            (key, token) => key.or(token),
        };
        let Some(life) = Life::new(now, settings.ttl, end) else {
            return Ok(None);
        };
        let id = of.map_or_else(|| self.mint.next_id(), |token| token.id.clone());
        let consumer = subject.consumer.id.as_str();
        let scope = scope_of(subject);
        let claims = Claims {
            iss: self.mint.issuer(),
            sub: of.map_or(consumer, |token| &token.subject),
            // One that is shared was made for another service.
            aud: of
                .filter(|token| token.service == service.service.slug)
                .map_or(service.service.slug.as_str(), |token| &token.audience),
            client_id: of.map_or(consumer, |token| token.client.as_str()),
            scope: &scope,
            iat: life.iat,
            exp: life.exp,
            jti: id.as_str(),
            delegation: of.map_or(Delegation::NONE, |token| &token.delegation),
            keystead: Provenance::of(subject).bound(of.map(|token| &token.bonds)),
            embedded: embedded::signed(&self.mint, &inner, consumer, &id, life)?,
            more: asked_for(&settings.claims, subject),
        };
        let (token, signer) = match self.mint.sign_told(ACCESS_TOKEN, &claims) {
            Ok(signed) => signed,
            Err(MintError::TooLong) => {
                return Err(Refusal::invalid_request(
                    "the token would be too long: ask for JSON",
                ));
            }
            Err(error @ (MintError::NoKey | MintError::Key(_))) => {
                return Err(Refusal::unavailable(error));
            }
        };
        let phantom = Arc::new(Phantom {
            id,
            token,
            life,
            signer,
            made_from: subject.clone(),
            inner,
        });
        self.made.insert(name, Arc::clone(&phantom));
        Ok(Some(phantom))
    }
}

/// The scopes that hold now, separated by spaces (RFC 6749 §3.3).
pub(super) fn scope_of(subject: &Subject) -> String {
    subject
        .scopes()
        .iter()
        .map(Scope::as_str)
        .collect::<Vec<_>>()
        .join(" ")
}
