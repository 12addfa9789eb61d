//! One authorization server that gives us tokens: where it is, how it is asked, and when it is left alone.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tracing::warn;
use url::Url;
use zeroize::Zeroizing;

use super::{UpstreamToken, answer};
use crate::auth::strict;
use crate::clock::Clock;
use crate::config::upstreams::{ClientAuth, Place, Upstream};
use crate::outbound::{self, Outbound};
use crate::text::Slug;
use crate::time::Span;

/// The longest that one fetch takes, with the metadata: nobody waits longer.
const FETCH_MAX: Duration = Duration::from_secs(2);

/// How long metadata are believed.
const DISCOVERED_FOR: Duration = Duration::from_hours(1);

/// How long a provider that failed is left alone: at first, and at most. It doubles with each failure.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(30);

/// How long a request that was refused is not sent again.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// So many refused requests are remembered.
const REFUSED_MAX: usize = 1000;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    #[error("the service names an upstream that is not configured here for its tenant")]
    NotConfigured,
    #[error("the upstream's metadata cannot be had: {0}")]
    Metadata(String),
    #[error("the upstream's metadata are not of this issuer, or name no token endpoint")]
    MetadataContent,
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    #[error("the upstream answers with status {0}")]
    Status(u16),
    #[error("the upstream refuses us: {0}")]
    Refused(&'static str),
    #[error("the upstream's answer {0}")]
    Answer(&'static str),
    #[error("the upstream failed lately and is asked again in {0} s")]
    Resting(u64),
    #[error("the upstream did not answer in time")]
    Late,
    #[error("the key has the upstream asked for something else too often")]
    TooOften,
}

impl UpstreamError {
    /// In how many seconds it is worth to ask again.
    pub fn retry_after_seconds(&self) -> u64 {
        match self {
            Self::Resting(seconds) => *seconds,
            Self::NotConfigured | Self::Refused(_) => REFUSED_FOR.as_secs(),
            Self::TooOften => super::ASKED_EVERY.as_secs(),
            Self::Metadata(_)
            | Self::MetadataContent
            | Self::Unreachable(_)
            | Self::Status(_)
            | Self::Answer(_)
            | Self::Late => REST_FIRST.as_secs(),
        }
    }
}

/// What a token is asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) scope: String,
    pub(super) audience: Option<String>,
    pub(super) resource: Option<String>,
}

pub(super) struct Provider {
    config: Upstream,
    /// Who it is, and who we are there.
    identity: String,
    outbound: Outbound,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    discovered: Option<(Url, Instant)>,
    /// In a row.
    failures: u32,
    rests_until: Option<Instant>,
    /// By the name of what was asked for.
    refused: HashMap<String, (&'static str, Instant)>,
}

impl Provider {
    pub(super) fn new(config: Upstream, clock: Clock) -> Result<Self, reqwest::Error> {
        Ok(Self {
            outbound: Outbound::new(config.outbound)?,
            identity: format!("{} {} {:?}", config.client_id, config.issuer, config.place),
            config,
            clock,
            state: Mutex::default(),
        })
    }

    pub(super) fn name(&self) -> &Slug {
        &self.config.name
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    pub(super) fn serves(&self, tenant: &Slug) -> bool {
        self.config.tenants.contains(tenant)
    }

    /// # Errors
    /// While it is left alone, or would refuse what is asked for again.
    pub(super) fn check_rest(&self, slot: &str) -> Result<(), UpstreamError> {
        let now = self.clock.monotonic();
        let state = self.state();
        if let Some(left) = state.rests_until.and_then(|until| left(until, now)) {
            return Err(UpstreamError::Resting(left));
        }
        match state.refused.get(slot) {
            Some((code, until)) if left(*until, now).is_some() => Err(UpstreamError::Refused(code)),
            Some(_) | None => Ok(()),
        }
    }

    /// Asks for a token, and notes how that went.
    pub(super) async fn fetch(
        &self,
        slot: &str,
        wanted: &Wanted,
    ) -> Result<UpstreamToken, UpstreamError> {
        let asked = tokio::time::timeout(FETCH_MAX, self.ask(wanted)).await;
        let fetched = asked.unwrap_or(Err(UpstreamError::Late));
        let now = self.clock.monotonic();
        let mut state = self.state();
        match &fetched {
            Ok(_) => {
                state.failures = 0;
                state.rests_until = None;
                state.refused.remove(slot);
            }
            Err(UpstreamError::Refused(code)) => {
                state.failures = 0;
                state
                    .refused
                    .retain(|_, (_, until)| left(*until, now).is_some());
                if state.refused.len() < REFUSED_MAX {
                    state
                        .refused
                        .insert(slot.to_owned(), (code, now + REFUSED_FOR));
                }
            }
            Err(_) => {
                let rest = REST_FIRST * 2_u32.saturating_pow(state.failures.min(5));
                state.failures = state.failures.saturating_add(1);
                state.rests_until = Some(now + rest.min(REST_MAX));
                state.discovered = None;
            }
        }
        drop(state);
        if let Err(error) = &fetched {
            warn!(upstream = %self.config.name, %error, "could not get a token from an upstream");
        }
        fetched
    }

    async fn ask(&self, wanted: &Wanted) -> Result<UpstreamToken, UpstreamError> {
        let url = self.token_endpoint().await?;
        let (form, authorization) = self.request(wanted);
        let authorization = authorization.as_ref().map(|line| line.as_str());
        // From before it was asked for: a token never lives longer than we think.
        let obtained_at = self.clock.now();
        let answered = self.outbound.post(&url, form, authorization).await;
        let (status, body) =
            answered.map_err(|error| UpstreamError::Unreachable(error.to_string()))?;
        let body = Zeroizing::new(body);
        let answer = answer::read(status, &body)?;
        Ok(UpstreamToken {
            token: answer.token,
            scope: answer.scope.unwrap_or_else(|| wanted.scope.clone()),
            obtained_at,
            expires_at: obtained_at.plus(Span::seconds(answer.life_seconds)),
        })
    }

    /// Body and `Authorization` (RFC 6749 §4.4.2).
    fn request(&self, wanted: &Wanted) -> (String, Option<Zeroizing<String>>) {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        form.append_pair("scope", &wanted.scope);
        for (name, value) in [
            ("audience", &wanted.audience),
            ("resource", &wanted.resource),
        ] {
            if let Some(value) = value {
                form.append_pair(name, value);
            }
        }
        let (id, secret) = (&self.config.client_id, &self.config.client_secret);
        let authorization = match self.config.client_auth {
            ClientAuth::ClientSecretBasic => Some(basic(id, secret)),
            ClientAuth::ClientSecretPost => {
                form.append_pair("client_id", id);
                form.append_pair("client_secret", secret);
                None
            }
        };
        (form.finish(), authorization)
    }

    /// RFC 8414 §3.3: the metadata must name the very issuer.
    async fn token_endpoint(&self) -> Result<Url, UpstreamError> {
        let places = match &self.config.place {
            Place::TokenEndpoint(url) => return Ok(url.clone()),
            Place::Metadata(places) => places,
        };
        let now = self.clock.monotonic();
        if let Some((url, at)) = &self.state().discovered
            && now.saturating_duration_since(*at) < DISCOVERED_FOR
        {
            return Ok(url.clone());
        }
        let [first, second] = places;
        let body = match self.outbound.fetch(first).await {
            // Who speaks OpenID Connect alone.
            Err(outbound::Error::Status(400..=499)) => self.outbound.fetch(second).await,
            fetched => fetched,
        };
        let body = body.map_err(|error| UpstreamError::Metadata(error.to_string()))?;
        let metadata = strict::object(&body).ok_or(UpstreamError::MetadataContent)?;
        let member = |name: &str| metadata.get(name).and_then(Value::as_str);
        let url = member("token_endpoint")
            .filter(|_| member("issuer") == Some(&self.config.issuer))
            .and_then(|url| Url::parse(url).ok())
            .ok_or(UpstreamError::MetadataContent)?;
        self.state().discovered = Some((url.clone(), now));
        Ok(url)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// RFC 6749 §2.3.1: both halves form-encoded.
fn basic(id: &str, secret: &str) -> Zeroizing<String> {
    let encode =
        |text: &str| -> String { url::form_urlencoded::byte_serialize(text.as_bytes()).collect() };
    let pair = Zeroizing::new(format!("{}:{}", encode(id), encode(secret)));
    Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
}

/// In whole seconds, rounded up; `None` once it is past.
fn left(until: Instant, now: Instant) -> Option<u64> {
    let left = until.checked_duration_since(now)?;
    (!left.is_zero()).then(|| left.as_secs() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_form_encoded_before_they_are_joined() {
        let line = basic("svc:a b", "s+%é");
        let decoded = STANDARD
            .decode(line.strip_prefix("Basic ").unwrap())
            .unwrap();
        assert_eq!(decoded, b"svc%3Aa+b:s%2B%25%C3%A9");
    }
}
