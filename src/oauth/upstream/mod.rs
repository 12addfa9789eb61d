//! Tokens of another authorization server, for which a service has its keys swapped.
//!
//! 1. what is wanted is a [`Slot`]: the provider, tenant and service, and the scopes. Tenants and
//!    services share no token, whatever else is the same; callers of one service share it;
//! 2. a token in memory that is good for a while yet is given at once. Early, at a moment that differs
//!    from node to node, one who asks has it fetched anew and does not wait for that;
//! 3. else one fetch a slot is under way, however many wait for it, and each waits [`WAIT_MAX`] at most;
//! 4. a fetch looks into Redis first ([`shared`]), where a node leaves its tokens encrypted and marks
//!    what it is about to ask for, so that the others wait for its token and do not ask too;
//! 5. then the provider is asked ([`provider`]). While it fails it is left alone, a little longer each
//!    time: who asks meanwhile is told so at once.
//!
//! A key with many scopes may ask for any part of them, and each part is a token of its own. So it has the
//! provider asked only so often: what is in memory it gets as ever.

mod answer;
mod provider;
mod shared;
mod swap;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use zeroize::ZeroizeOnDrop;

pub use self::provider::UpstreamError;
use self::provider::{Provider, Wanted};
pub use self::shared::Shared;
use crate::cache::flights::{Flights, NoLanding};
use crate::clock::Clock;
use crate::config::upstreams::Upstream;
use crate::entropy::Entropy;
use crate::id::{KeyId, ServiceId, TenantId};
use crate::metrics::Metrics;
use crate::ratelimit::budget::NamedBudget;
use crate::services::UpstreamSettings;
use crate::text::Slug;
use crate::time::{Span, Timestamp};

/// The longest that anybody waits for a token.
const WAIT_MAX: Duration = Duration::from_millis(1900);

/// No token is given that ends earlier: who gets it shall have time to use it.
const LEFT_MIN: Span = Span::seconds(30);

/// A provider whose tokens live shorter would be asked all the time.
const LIFE_MIN_SECONDS: u64 = 60;

/// However long a token lives, it is fetched anew after a day.
const LIFE_MAX_SECONDS: u64 = 24 * 60 * 60;

/// More are not remembered: those asked for least go first.
const SLOTS_MAX: usize = 1000;

/// More fetches are not under way at once.
const FLIGHTS_MAX: usize = 64;

/// So often at once one key has a provider asked, and once more each [`ASKED_EVERY`].
const ASKED_AT_ONCE: u32 = 20;
const ASKED_EVERY: Duration = Duration::from_secs(6);

/// So many keys have a budget of their own.
const KEYS_MAX: usize = 16_384;

/// Which token is wanted: equal for those who may share one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Slot([u8; 32]);

impl Slot {
    fn new(provider: &Provider, tenant: &TenantId, service: &ServiceId, wanted: &Wanted) -> Self {
        let mut digest = Sha256::new();
        for part in [
            provider.identity(),
            tenant.as_str(),
            service.as_str(),
            wanted.audience.as_deref().unwrap_or_default(),
            wanted.resource.as_deref().unwrap_or_default(),
            &wanted.scope,
        ] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }

    fn name(&self) -> String {
        hex::encode(self.0)
    }
}

/// A credential of somebody else's. No useful `Debug`.
#[derive(Clone, Serialize, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
struct Secret(String);

/// A token of a provider's. No useful `Debug`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamToken {
    token: Secret,
    /// What the provider says that it may do, or else what was asked for.
    pub scope: String,
    pub obtained_at: Timestamp,
    pub expires_at: Timestamp,
}

impl UpstreamToken {
    pub fn expose_secret(&self) -> &str {
        &self.token.0
    }

    fn is_good(&self, now: Timestamp) -> bool {
        now.plus(LEFT_MIN) < self.expires_at
    }
}

impl fmt::Debug for UpstreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamToken")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A token in memory, and from when on it is fetched anew.
#[derive(Clone, Debug)]
struct Held {
    token: Arc<UpstreamToken>,
    due_at: Timestamp,
}

impl Held {
    /// Due when 60 to 90 % of the time that it is given for has passed.
    fn new(token: Arc<UpstreamToken>, entropy: &Entropy) -> Self {
        let usable = token.expires_at.millis() - token.obtained_at.millis() - LEFT_MIN.millis();
        let part = 600 + i64::from(u16::from_be_bytes(entropy.nonce())) % 301;
        let after = usable.max(0) / 1000 * part;
        Self {
            due_at: Timestamp::from_millis(token.obtained_at.millis() + after),
            token,
        }
    }
}

/// Whose tokens keys are swapped for, cheap to clone.
#[derive(Clone)]
pub struct Upstreams(Arc<Inner>);

struct Inner {
    providers: Vec<Arc<Provider>>,
    held: Cache<Slot, Held>,
    flights: Flights<Slot, Result<Arc<UpstreamToken>, UpstreamError>>,
    shared: Shared,
    /// By the id of a key.
    budget: NamedBudget,
    clock: Clock,
    entropy: Entropy,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    /// Fetches run on `runtime`.
    ///
    /// # Errors
    /// When the trust store of the system cannot be read.
    pub fn new(
        upstreams: &[Upstream],
        shared: Shared,
        runtime: Handle,
        clock: Clock,
        entropy: Entropy,
        metrics: Arc<Metrics>,
    ) -> Result<Self, reqwest::Error> {
        let providers = upstreams
            .iter()
            .map(|upstream| Provider::new(upstream.clone(), clock.clone()).map(Arc::new))
            .collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            providers,
            held: Cache::new(SLOTS_MAX),
            flights: Flights::new(runtime, FLIGHTS_MAX),
            shared,
            budget: NamedBudget::new(ASKED_AT_ONCE, ASKED_EVERY, KEYS_MAX),
            clock,
            entropy,
            metrics,
        })))
    }

    /// A token for the service, that may do what these scopes of the provider's are; `key` is for whom.
    ///
    /// # Errors
    /// [`UpstreamError`], in [`WAIT_MAX`] at the latest.
    pub async fn token(
        &self,
        (tenant, tenant_slug): (&TenantId, &Slug),
        service: &ServiceId,
        settings: &UpstreamSettings,
        scopes: &BTreeSet<&str>,
        key: &KeyId,
    ) -> Result<Arc<UpstreamToken>, UpstreamError> {
        let provider = self
            .0
            .providers
            .iter()
            .find(|one| one.name() == &settings.provider && one.serves(tenant_slug))
            .ok_or(UpstreamError::NotConfigured)?;
        let wanted = Wanted {
            scope: scopes.iter().copied().collect::<Vec<_>>().join(" "),
            audience: settings.audience.clone(),
            resource: settings.resource.clone(),
        };
        let slot = Slot::new(provider, tenant, service, &wanted);
        let now = self.0.clock.now();
        let held = self.0.held.get(&slot);
        let wait = match &held {
            Some(held) if held.token.is_good(now) && now < held.due_at => {
                return Ok(Arc::clone(&held.token));
            }
            Some(held) if held.token.is_good(now) => Duration::ZERO,
            Some(_) | None => WAIT_MAX,
        };
        let fetched = if self.0.budget.has(key.as_str(), Clock::uptime_us()) {
            let fetch = {
                let (inner, provider) = (Arc::clone(&self.0), Arc::clone(provider));
                let (slot, key) = (slot.clone(), key.clone());
                let known = held.as_ref().map(|held| held.token.obtained_at);
                move || async move { inner.fetch(&provider, &slot, &wanted, &key, known).await }
            };
            // Too late or too many count like any failure: what is held is still good.
            match self.0.flights.join(slot, wait, fetch).await {
                Ok(fetched) => fetched,
                Err(NoLanding::Full | NoLanding::Late) => Err(UpstreamError::Late),
            }
        } else {
            Err(UpstreamError::TooOften)
        };
        match (fetched, held) {
            (Ok(token), _) => Ok(token),
            (Err(_), Some(held)) if held.token.is_good(now) => Ok(held.token),
            (Err(error), _) => Err(error),
        }
    }
}

impl Inner {
    /// Steps 4 and 5, for who knows of no token or of the one obtained at `known`.
    async fn fetch(
        &self,
        provider: &Provider,
        slot: &Slot,
        wanted: &Wanted,
        key: &KeyId,
        known: Option<Timestamp>,
    ) -> Result<Arc<UpstreamToken>, UpstreamError> {
        let name = slot.name();
        let is_news = |token: &UpstreamToken| {
            token.is_good(self.clock.now()) && known.is_none_or(|at| token.obtained_at > at)
        };
        // It came between the look of who asks and the beginning of this.
        if let Some(held) = self.held.get(slot).filter(|held| is_news(&held.token)) {
            return Ok(held.token);
        }
        if let Some(token) = self.shared.take(&name).await.filter(is_news) {
            return Ok(self.hold(slot, token));
        }
        provider.check_rest(&name)?;
        if !self.shared.claim(&name).await {
            // Another node asks: its token will be there in a moment.
            let token = self.shared.wait(&name, is_news).await;
            return token
                .map(|token| self.hold(slot, token))
                .ok_or(UpstreamError::Late);
        }
        // Some may begin at the same moment with the last one that is left: others wait for what they ask for
        // too, so it is asked for.
        let is_charged = self.budget.take(key.as_str(), Clock::uptime_us());
        let fetched = provider.fetch(&name, wanted).await;
        let is_done = matches!(fetched, Ok(_) | Err(UpstreamError::Refused(_)));
        if is_charged && !is_done {
            // It is the provider's fault, and that is left alone anyway.
            self.budget.give_back(key.as_str());
        }
        self.metrics.upstream_fetches.inc(match &fetched {
            Ok(_) => "good",
            Err(UpstreamError::Refused(_)) => "refused",
            Err(_) => "failed",
        });
        let token = fetched?;
        self.shared.put(&name, &token).await;
        Ok(self.hold(slot, token))
    }

    fn hold(&self, slot: &Slot, token: UpstreamToken) -> Arc<UpstreamToken> {
        let token = Arc::new(token);
        let held = Held::new(Arc::clone(&token), &self.entropy);
        self.held.insert(slot.clone(), held);
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(life_seconds: u64) -> Arc<UpstreamToken> {
        Arc::new(UpstreamToken {
            token: Secret("hush".to_owned()),
            scope: String::new(),
            obtained_at: Timestamp::from_millis(1_000_000),
            expires_at: Timestamp::from_millis(1_000_000).plus(Span::seconds(life_seconds)),
        })
    }

    #[test]
    fn a_token_is_fetched_anew_before_it_stops_being_given_and_not_everywhere_at_once() {
        let entropy = Entropy::seeded(7);
        for life in [LIFE_MIN_SECONDS, 300, LIFE_MAX_SECONDS] {
            let token = token(life);
            let usable = i64::try_from(life - 30).unwrap() * 1000;
            let dues: BTreeSet<i64> = (0..50)
                .map(|_| Held::new(Arc::clone(&token), &entropy).due_at.millis() - 1_000_000)
                .collect();
            assert!(
                *dues.first().unwrap() >= usable * 6 / 10,
                "{life}: {dues:?}"
            );
            assert!(*dues.last().unwrap() <= usable * 9 / 10, "{life}: {dues:?}");
            assert!(dues.len() > 10, "{life}: {dues:?}");
        }
    }

    #[test]
    fn a_token_is_not_given_in_its_last_half_minute_and_shows_nothing() {
        let token = token(60);
        let at = |seconds: i64| Timestamp::from_millis(1_000_000 + seconds * 1000);
        assert!(token.is_good(at(29)));
        assert!(!token.is_good(at(30)));
        assert!(!token.is_good(at(61)));
        assert!(!format!("{token:?}").contains("hush"));
    }
}
