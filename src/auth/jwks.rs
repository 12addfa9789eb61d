//! The published keys of one issuer: fetched, kept, and fetched again without a storm.
//!
//! - A token whose key is at hand never waits and never causes a fetch.
//! - An unknown `kid` causes one, but never two within the cool-down, whatever the last one came
//!   to: a set, an empty set, an error, or nothing at all. Tokens that come meanwhile wait for that
//!   one, up to a bound in number and time, and no longer than their requests have patience. Who
//!   could not wait for it is told to come again, not that there is no such key.
//! - A fetched set replaces the old one as a whole, so a withdrawn key is refused from then on. A
//!   failed fetch changes nothing: the last good set serves until it is too old.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use jsonwebtoken::Algorithm;
use serde_json::Value;
use tokio::sync::{Semaphore, watch};
use tracing::{info, warn};
use url::Url;

use super::key::{self, VerificationKey};
use super::strict;
use crate::clock::Clock;
use crate::config::issuers::{Issuer, KeySource};
use crate::outbound::{self, Outbound};
use crate::patience;
use crate::time::Span;

/// How often the keys are fetched in the background.
const REFRESH_EVERY: Span = Span::minutes(10);

/// How long a metadata document is believed to name the right place of the keys.
const DISCOVERED_FOR: Span = Span::hours(1);

/// The longest a token waits for the keys of its issuer, if its request has as much patience; the fetch
/// itself may go on.
const WAIT_MAX: Duration = Duration::from_millis(1500);

/// The most tokens that wait for the keys of one issuer; the others are refused at once.
const WAITING_MAX: usize = 64;

/// The keys that an issuer publishes.
#[derive(Debug)]
pub(super) struct Published {
    name: String,
    source: Source,
    algorithms: Vec<Algorithm>,
    cooldown: Span,
    age_max: Span,
    outbound: Outbound,
    clock: Clock,
    current: ArcSwapOption<KeySet>,
    attempts: Mutex<Attempts>,
    /// Counts the fetches that have ended.
    ended: watch::Sender<u64>,
    waiting: Semaphore,
    fetches: AtomicU64,
    failures: AtomicU64,
}

#[derive(Debug)]
enum Source {
    Discovery { issuer: String, document: Url },
    Jwks(Url),
}

#[derive(Debug)]
struct KeySet {
    keys: Vec<VerificationKey>,
    loaded_at: Instant,
}

#[derive(Debug, Default)]
struct Attempts {
    last: Option<Instant>,
    running: bool,
    /// Where the metadata said that the keys are, and when.
    discovered: Option<(Url, Instant)>,
}

/// What the key store says to a token.
#[derive(Debug)]
pub(super) enum Found {
    /// Never empty.
    Keys(Vec<VerificationKey>),
    /// The issuer has no such key.
    Unknown,
    /// The issuer's keys are not known, or too old to be believed, or were not waited for.
    Unavailable,
}

/// How the keys of one issuer are, for readiness and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeysState {
    pub issuer: String,
    pub keys: usize,
    /// Since the last good fetch; `None` if there was none.
    pub age: Option<Duration>,
    pub fetches: u64,
    pub failures: u64,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the metadata cannot be fetched")]
    Metadata(#[source] outbound::Error),
    #[error("the metadata is not of this issuer, or names no place for its keys")]
    MetadataContent,
    #[error("the keys cannot be fetched")]
    Keys(#[source] outbound::Error),
    #[error("the answer is no key set, or has too many keys, or none that is of use here")]
    KeysContent,
}

impl Published {
    /// `None` for an issuer whose keys stand in the configuration.
    ///
    /// # Errors
    /// When the trust store of the system cannot be read.
    pub(super) fn new(issuer: &Issuer, clock: Clock) -> Result<Option<Arc<Self>>, reqwest::Error> {
        let source = match &issuer.keys {
            KeySource::Discovery(document) => Source::Discovery {
                issuer: issuer.issuer.clone(),
                document: document.clone(),
            },
            KeySource::Jwks(url) => Source::Jwks(url.clone()),
            KeySource::PublicKey(_) | KeySource::Hmac(_) => return Ok(None),
        };
        Ok(Some(Arc::new(Self {
            name: issuer.name.clone(),
            source,
            algorithms: issuer.algorithms.clone(),
            cooldown: issuer.cooldown,
            age_max: issuer.jwks_max_age,
            outbound: Outbound::new(issuer.outbound)?,
            clock,
            current: ArcSwapOption::empty(),
            attempts: Mutex::default(),
            ended: watch::Sender::new(0),
            waiting: Semaphore::new(WAITING_MAX),
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })))
    }

    /// The keys that a token with this header may be signed with.
    pub(super) async fn find(self: &Arc<Self>, algorithm: Algorithm, kid: Option<&str>) -> Found {
        let first = self.lookup(algorithm, kid);
        if matches!(first, Found::Keys(_)) {
            return first;
        }
        let Some(mut ended) = self.refresh() else {
            return first;
        };
        let Ok(_place) = self.waiting.try_acquire() else {
            return first;
        };
        let _given_up = patience::wait(WAIT_MAX, ended.changed()).await;
        let found = self.lookup(algorithm, kid);
        if matches!(found, Found::Unknown) && self.may_be_on_its_way() {
            return Found::Unavailable;
        }
        found
    }

    /// Keeps the keys fresh for as long as it is polled.
    pub(super) async fn keep_fresh(self: Arc<Self>) {
        loop {
            if let Some(mut ended) = self.refresh() {
                let _sender_lives_as_long_as_we = ended.changed().await;
            }
            let fresh = self
                .set()
                .is_some_and(|set| self.age(&set) < REFRESH_EVERY.duration());
            let pause = if fresh { REFRESH_EVERY } else { self.cooldown };
            tokio::time::sleep(pause.duration()).await;
        }
    }

    pub(super) fn state(&self) -> KeysState {
        let set = self.current.load_full();
        KeysState {
            issuer: self.name.clone(),
            keys: set.as_ref().map_or(0, |set| set.keys.len()),
            age: set.map(|set| self.age(&set)),
            fetches: self.fetches.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    fn lookup(&self, algorithm: Algorithm, kid: Option<&str>) -> Found {
        let Some(set) = self.set() else {
            return Found::Unavailable;
        };
        let fits = |key: &&VerificationKey| {
            key.algorithm() == algorithm && (kid.is_none() || key.kid() == kid)
        };
        let keys: Vec<VerificationKey> = set.keys.iter().filter(fits).cloned().collect();
        // Without a `kid` there must be no choice.
        if keys.is_empty() || (kid.is_none() && keys.len() > 1) {
            Found::Unknown
        } else {
            Found::Keys(keys)
        }
    }

    /// The last good set, unless it is too old.
    fn set(&self) -> Option<Arc<KeySet>> {
        self.current
            .load_full()
            .filter(|set| self.age(set) <= self.age_max.duration())
    }

    fn age(&self, set: &KeySet) -> Duration {
        self.clock
            .monotonic()
            .saturating_duration_since(set.loaded_at)
    }

    fn attempts(&self) -> MutexGuard<'_, Attempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a fetch runs that others would still wait for.
    fn may_be_on_its_way(&self) -> bool {
        let attempts = self.attempts();
        let now = self.clock.monotonic();
        let is_young = |last| now.saturating_duration_since(last) < WAIT_MAX;
        attempts.running && attempts.last.is_some_and(is_young)
    }

    /// Starts a fetch, unless one runs or the last one is too recent. Gives what to wait for.
    fn refresh(self: &Arc<Self>) -> Option<watch::Receiver<u64>> {
        let mut attempts = self.attempts();
        let ended = self.ended.subscribe();
        if attempts.running {
            return Some(ended);
        }
        let now = self.clock.monotonic();
        let cooling = attempts
            .last
            .is_some_and(|last| now.saturating_duration_since(last) < self.cooldown.duration());
        if cooling {
            return None;
        }
        attempts.last = Some(now);
        attempts.running = true;
        drop(attempts);
        // A task of its own: the fetch goes on when the one who asked for it goes away.
        let running = Running(Arc::clone(self));
        tokio::spawn(async move { running.0.fetch().await });
        Some(ended)
    }

    async fn fetch(&self) {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        match self.fetch_keys().await {
            Ok(keys) => {
                info!(
                    issuer = self.name,
                    keys = keys.len(),
                    "fetched the keys of an issuer"
                );
                self.current.store(Some(Arc::new(KeySet {
                    keys,
                    loaded_at: self.clock.monotonic(),
                })));
            }
            Err(error) => {
                self.failures.fetch_add(1, Ordering::Relaxed);
                self.attempts().discovered = None;
                warn!(
                    issuer = self.name,
                    error = format!("{:#}", anyhow::Error::from(error)),
                    "could not fetch the keys of an issuer"
                );
            }
        }
    }

    async fn fetch_keys(&self) -> Result<Vec<VerificationKey>, FetchError> {
        let url = match &self.source {
            Source::Jwks(url) => url.clone(),
            Source::Discovery { issuer, document } => self.discover(issuer, document).await?,
        };
        let body = self.outbound.fetch(&url).await.map_err(FetchError::Keys)?;
        key::read_set(&body, &self.algorithms).ok_or(FetchError::KeysContent)
    }

    /// `OpenID` Connect Discovery 1.0 §4.3: the document must name the very issuer.
    async fn discover(&self, issuer: &str, document: &Url) -> Result<Url, FetchError> {
        let now = self.clock.monotonic();
        if let Some((url, at)) = &self.attempts().discovered
            && now.saturating_duration_since(*at) < DISCOVERED_FOR.duration()
        {
            return Ok(url.clone());
        }
        let body = self
            .outbound
            .fetch(document)
            .await
            .map_err(FetchError::Metadata)?;
        let metadata = strict::object(&body).ok_or(FetchError::MetadataContent)?;
        let member = |name: &str| metadata.get(name).and_then(Value::as_str);
        let url = member("jwks_uri")
            .filter(|_| member("issuer") == Some(issuer))
            .and_then(|url| Url::parse(url).ok())
            .ok_or(FetchError::MetadataContent)?;
        self.attempts().discovered = Some((url.clone(), now));
        Ok(url)
    }
}

/// A fetch under way. However it ends, others may start the next one.
struct Running(Arc<Published>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.attempts().running = false;
        self.0.ended.send_modify(|count| *count += 1);
    }
}
