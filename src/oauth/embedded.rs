//! Tokens within a token: where the service of a token asks for it (`tokens.embed`), and the other service
//! takes its tokens in exchange, a token for that stands in the claim `embedded`. So the service has what
//! it needs for its next hop at hand, and asks nobody.
//!
//! They are made from the same key as the token around them, and have its id: who revokes one revokes all.
//! None lives longer than that token, and none does more than the key does, or than was asked for.

use super::Oauth;
use super::delegation::Delegation;
use super::mint::{ACCESS_TOKEN, Claims, Inner, Life, Mint, MintError, Provenance, asked_for};
use super::phantom::scope_of;
use super::refusal::Refusal;
use crate::id::TokenId;
use crate::scope::Scope;
use crate::time::Timestamp;
use crate::validation::Failure;
use crate::validation::snapshot::Subject;

impl Oauth {
    /// The key of a token at each of the services whose tokens are to be embedded, narrowed to what those
    /// may do; `asked` is what the token around them was narrowed to.
    pub(super) async fn inner(
        &self,
        subject: &Subject,
        asked: Option<&[Scope]>,
    ) -> Result<Vec<Subject>, Failure> {
        let Some(outer) = &subject.service else {
            return Ok(Vec::new());
        };
        let (outer, tenant) = (&outer.service, &subject.tenant.id);
        let mut inner = Vec::new();
        for (slug, scopes) in outer.settings.tokens.embed.iter() {
            let Some(entry) = self.validation.service(tenant, slug.as_str()).await? else {
                continue;
            };
            let settings = &entry.service.settings;
            let is_willing = entry.is_active
                && !entry.service.is_built_in()
                && settings.upstream.is_none()
                && settings
                    .exchange
                    .takes_service(&outer.slug, &outer.settings.exchange);
            if !is_willing {
                continue;
            }
            let mut there = subject.on(entry).narrowed_to(scopes);
            if let Some(asked) = asked {
                there = there.narrowed_to(asked);
            }
            if !there.scopes().is_empty() {
                inner.push(there);
            }
        }
        Ok(inner)
    }
}

/// The tokens themselves, within one with this id and life.
///
/// # Errors
/// [`Refusal`] when nothing can be signed.
pub(super) fn signed(
    mint: &Mint,
    inner: &[Subject],
    consumer: &str,
    id: &TokenId,
    outer: Life,
) -> Result<Inner, Refusal> {
    let mut tokens = Inner::default();
    for subject in inner {
        let Some(entry) = &subject.service else {
            continue;
        };
        let service = &entry.service;
        let settings = &service.settings.tokens;
        let begin = Timestamp::from_millis(outer.iat * 1000);
        let end = Timestamp::from_millis(outer.exp * 1000);
        let Some(life) = Life::new(begin, settings.ttl, Some(end)) else {
            continue;
        };
        let scope = scope_of(subject);
        let claims = Claims {
            iss: mint.issuer(),
            sub: consumer,
            aud: service.slug.as_str(),
            client_id: consumer,
            scope: &scope,
            iat: life.iat,
            exp: life.exp,
            jti: id.as_str(),
            delegation: Delegation::NONE,
            keystead: Provenance::of(subject),
            embedded: Inner::default(),
            more: asked_for(&settings.claims, subject),
        };
        let token = mint
            .sign(ACCESS_TOKEN, &claims)
            .map_err(|error| match error {
                MintError::TooLong => Refusal::invalid_scope("an embedded token would be too long"),
                MintError::NoKey | MintError::Key(_) => Refusal::unavailable(error),
            })?;
        tokens.insert(&service.slug, token);
    }
    Ok(tokens)
}
