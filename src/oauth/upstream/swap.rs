//! What a key is swapped for, where its service names an upstream: another's token in place of ours.

use std::collections::BTreeSet;

use super::{UpstreamError, UpstreamToken};
use crate::keys::catalogue::Catalogue;
use crate::oauth::Oauth;
use crate::oauth::grant::{Granted, Wanted};
use crate::oauth::mint::SignedToken;
use crate::oauth::refusal::{ErrorCode, Refusal};
use crate::scope::{RequiredScope, Scope};
use crate::services::UpstreamSettings;
use crate::services::upstream::ScopeMap;
use crate::time::Timestamp;
use crate::validation::snapshot::Subject;
use crate::validation::spend::LimitHeaders;

/// More is asked of no provider.
const SCOPE_BYTES_MAX: usize = 4096;

impl Oauth {
    /// The upstream's token, for a key that was found good.
    ///
    /// # Errors
    /// `invalid_scope` if the provider would be asked for nothing: it might then grant everything.
    /// `rate_limited` if the key has it asked for another part of its scopes too often.
    /// `temporarily_unavailable` if it gives no token, whatever its reason: that is told in the log.
    pub(in crate::oauth) async fn upstream_token(
        &self,
        subject: &Subject,
        wanted: &Wanted,
        settings: &UpstreamSettings,
        limits: Option<LimitHeaders>,
    ) -> Result<Granted, Refusal> {
        let (Some(service), Some(grant)) = (&subject.service, subject.grant()) else {
            return Err(Refusal::invalid_target("there is no such service"));
        };
        let granted = wanted.scopes.as_deref().unwrap_or(&grant.scopes);
        let scopes = theirs(&settings.scopes, granted, &service.catalogue);
        if scopes.is_empty() {
            return Err(Refusal::invalid_scope(
                "none of the scopes means anything to the upstream of the service",
            ));
        }
        if scopes.iter().map(|scope| scope.len() + 1).sum::<usize>() > SCOPE_BYTES_MAX {
            return Err(Refusal::invalid_scope("ask for fewer scopes"));
        }
        let tenant = (&subject.tenant.id, &subject.tenant.slug);
        let token = self
            .upstreams
            .token(
                tenant,
                &service.service.id,
                settings,
                &scopes,
                &subject.key.key_id,
            )
            .await?;
        let left = told_life(&token, self.clock.now(), subject.end())
            .ok_or_else(|| Refusal::new(ErrorCode::InvalidClient, "the key has expired"))?;
        Ok(Granted {
            token: SignedToken::of_another(token.expose_secret()),
            expires_in_seconds: left,
            scope: token.scope.clone(),
            issued_token_type: None,
            limits,
        })
    }
}

/// What is asked of the provider for what is granted here.
fn theirs<'a>(map: &'a ScopeMap, granted: &'a [Scope], catalogue: &Catalogue) -> BTreeSet<&'a str> {
    if map.is_empty() {
        return granted.iter().map(Scope::as_str).collect();
    }
    map.iter()
        .filter(|(ours, _)| catalogue.satisfied(granted, &RequiredScope::Exact(Scope::clone(ours))))
        .flat_map(|(_, theirs)| theirs.split(' '))
        .collect()
}

/// How many whole seconds the holder is told that the token lives. It is not ours to be cut short, but
/// who believes what he is told asks again when his key has ended, and is refused.
fn told_life(token: &UpstreamToken, now: Timestamp, end: Option<Timestamp>) -> Option<i64> {
    let end = end.map_or(token.expires_at, |end| end.min(token.expires_at));
    let left = end.unix_seconds() - now.unix_seconds();
    (left > 0).then_some(left)
}

impl From<UpstreamError> for Refusal {
    fn from(error: UpstreamError) -> Self {
        let mut refusal = if error == UpstreamError::TooOften {
            Self::new(
                ErrorCode::RateLimited,
                "the key asks for too many different scopes: ask for what it got before, or wait",
            )
        } else {
            Self::new(
                ErrorCode::TemporarilyUnavailable,
                "the upstream of the service gives no token just now, try again",
            )
        };
        refusal.retry_after_seconds = Some(error.retry_after_seconds());
        // Of what the key did to itself nothing is told in the log.
        refusal.cause = (error != UpstreamError::TooOften).then(|| error.into());
        refusal
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn the_provider_is_asked_for_what_is_granted_and_no_more() {
        let entries = json!([{"name": "a:read"}, {"name": "a:write", "implies": ["a:read"]}]);
        let catalogue = Catalogue::new(&from_value::<Vec<_>>(entries).unwrap(), "").unwrap();
        let map: ScopeMap = from_value(json!({
            "a:read": "ledger.read base", "a:write": "ledger.write base", "a:*": "ledger.all",
            "b": "other",
        }))
        .unwrap();
        let asked = |granted: &[&str]| {
            let granted: Vec<Scope> = granted.iter().map(|s| Scope::parse(s).unwrap()).collect();
            theirs(&map, &granted, &catalogue)
                .into_iter()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(asked(&["a:read"]), "base ledger.read");
        assert_eq!(asked(&["a:write"]), "base ledger.read ledger.write");
        assert_eq!(asked(&["a:*"]), "base ledger.all ledger.read ledger.write");
        assert_eq!(asked(&["c"]), "");
        assert_eq!(asked(&[]), "");
        let same = ScopeMap::default();
        let granted = [Scope::parse("a:read").unwrap()];
        let there: Vec<_> = theirs(&same, &granted, &catalogue).into_iter().collect();
        assert_eq!(there, ["a:read"]);
    }
}
