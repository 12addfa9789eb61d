//! Who may run argon2, how many at once, and who waits.
//!
//! 1. Runs happen on blocking threads of a runtime that is given, never on an HTTP worker.
//! 2. A permit for each core is moved into the run itself, so a request that gives up frees
//!    nothing early.
//! 3. Who gets no permit within [`WAIT_MAX`], or finds too long a queue, is told
//!    [`HashError::Busy`].
//! 4. Of one secret one verification runs at a time. Those who bring the same plaintext share its
//!    answer; others take their turn behind it, so a flood of wrong plaintexts for one lookup id
//!    costs that key its queue and no other.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::timeout;

use super::secret::ApiKey;
use super::verifier::{Argon2Settings, Failure, Verifier};
use crate::entropy::Entropy;
use crate::id::SecretId;

/// The longest anybody waits for a turn.
pub const WAIT_MAX: Duration = Duration::from_secs(2);

/// About what a core gets through in [`WAIT_MAX`]: who comes behind would wait in vain.
const WAITING_MAX_PER_CORE: usize = 64;

/// Different plaintexts for one secret that may be under way at once.
const FLIGHTS_MAX: usize = 8;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("too much is being hashed just now")]
    Busy,
    /// The stored verifier cannot be run, or the run failed. Logged where it happened.
    #[error("hashing failed")]
    Failed,
}

/// The pool, cheap to clone.
#[derive(Clone, Debug)]
pub struct Hasher(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Argon2Settings,
    entropy: Entropy,
    runtime: Handle,
    permits: Arc<Semaphore>,
    waiting: AtomicUsize,
    waiting_max: usize,
    wait_max: Duration,
    runs: AtomicU64,
    flights: Mutex<HashMap<SecretId, Flights>>,
}

/// What outlives a verification: both run inside its flight, so that of those who come with one
/// plaintext at any time, one runs argon2.
pub struct Memory {
    /// Whether it was proved before.
    pub proved: BoxFuture<'static, bool>,
    /// Remembers that it is proved.
    pub keep: BoxFuture<'static, ()>,
}

impl Memory {
    pub fn none() -> Self {
        Self {
            proved: Box::pin(async { false }),
            keep: Box::pin(async {}),
        }
    }
}

/// The verifications of one secret that are under way.
#[derive(Debug)]
struct Flights {
    turn: Arc<Semaphore>,
    under_way: Vec<Flight>,
}

#[derive(Debug)]
struct Flight {
    key: ApiKey,
    answer: watch::Receiver<Option<Result<bool, HashError>>>,
}

impl Hasher {
    /// Runs on the blocking threads of `runtime`, at most `cores` at once (at least one).
    pub fn new(settings: Argon2Settings, cores: usize, runtime: Handle, entropy: Entropy) -> Self {
        let cores = cores.max(1);
        Self(Arc::new(Inner {
            settings,
            entropy,
            runtime,
            permits: Arc::new(Semaphore::new(cores)),
            waiting: AtomicUsize::new(0),
            waiting_max: cores.saturating_mul(WAITING_MAX_PER_CORE),
            wait_max: WAIT_MAX,
            runs: AtomicU64::new(0),
            flights: Mutex::default(),
        }))
    }

    /// How often argon2 has run.
    pub fn runs(&self) -> u64 {
        self.0.runs.load(Ordering::Relaxed)
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.0.runtime
    }

    /// How many wait for a permit.
    pub fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Relaxed)
    }

    /// Computes the verifier of a key.
    ///
    /// # Errors
    /// [`HashError::Busy`] when no permit came free in time.
    pub async fn hash(&self, key: &ApiKey) -> Result<Verifier, HashError> {
        let inner = &self.0;
        let permit = inner.in_time(inner.permit()).await?;
        let (settings, key, entropy) = (inner.settings, key.clone(), inner.entropy.clone());
        inner
            .run(permit, move || Verifier::compute(settings, &key, &entropy))
            .await
    }

    /// Whether `verifier`, which is that of this secret, is the verifier of `key`. Runs unless
    /// `memory` knows, and lets it keep what was proved.
    ///
    /// # Errors
    /// [`HashError::Busy`] when its turn did not come in time.
    pub async fn verify(
        &self,
        secret: &SecretId,
        verifier: &Verifier,
        key: &ApiKey,
        memory: Memory,
    ) -> Result<bool, HashError> {
        let mut answer = self.join_or_start(secret, verifier, key, memory)?;
        match answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.unwrap_or(Err(HashError::Busy)),
            // The runtime went away with the run.
            Err(_closed) => Err(HashError::Busy),
        }
    }

    fn join_or_start(
        &self,
        secret: &SecretId,
        verifier: &Verifier,
        key: &ApiKey,
        memory: Memory,
    ) -> Result<watch::Receiver<Option<Result<bool, HashError>>>, HashError> {
        let inner = &self.0;
        let (tell, answer) = watch::channel(None);
        let turn = {
            let mut flights = inner.flights();
            let flights = flights.entry(secret.clone()).or_insert_with(|| Flights {
                turn: Arc::new(Semaphore::new(1)),
                under_way: Vec::new(),
            });
            if let Some(flight) = flights.under_way.iter().find(|f| f.key.is_same_as(key)) {
                return Ok(flight.answer.clone());
            }
            if flights.under_way.len() >= FLIGHTS_MAX {
                return Err(HashError::Busy);
            }
            flights.under_way.push(Flight {
                key: key.clone(),
                answer: answer.clone(),
            });
            Arc::clone(&flights.turn)
        };
        let landing = Landing {
            inner: Arc::clone(inner),
            secret: secret.clone(),
            key: key.clone(),
        };
        let (verifier, key) = (verifier.clone(), key.clone());
        // A task of its own: the one who started it may give up, those who joined have not.
        inner.runtime.spawn(async move {
            let inner = Arc::clone(&landing.inner);
            let turns = inner.in_time(async {
                let turn = turn
                    .acquire_owned()
                    .await
                    .map_err(|_closed| HashError::Busy)?;
                Ok((turn, inner.permit().await?))
            });
            let result = match turns.await {
                Ok(turns) if !memory.proved.await => {
                    let result = inner.run(turns, move || verifier.verify(&key)).await;
                    if result == Ok(true) {
                        memory.keep.await;
                    }
                    result
                }
                Ok(_turns) => Ok(true),
                Err(error) => Err(error),
            };
            drop(landing);
            tell.send_replace(Some(result));
        });
        Ok(answer)
    }
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<SecretId, Flights>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, HashError> {
        let _place = Place::take(self)?;
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .map_err(|_closed| HashError::Busy)
    }

    async fn in_time<T>(
        &self,
        turn: impl Future<Output = Result<T, HashError>>,
    ) -> Result<T, HashError> {
        timeout(self.wait_max, turn)
            .await
            .unwrap_or(Err(HashError::Busy))
    }

    /// Runs `work` to its end, with what it holds, whoever waits.
    async fn run<T, H>(
        self: &Arc<Self>,
        held: H,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, HashError>
    where
        T: Send + 'static,
        H: Send + 'static,
    {
        let inner = Arc::clone(self);
        let running = self.runtime.spawn_blocking(move || {
            inner.runs.fetch_add(1, Ordering::Relaxed);
            let result = work();
            drop(held);
            result
        });
        match running.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(failure)) => {
                tracing::error!(%failure, "could not hash");
                Err(HashError::Failed)
            }
            Err(error) if error.is_cancelled() => Err(HashError::Busy),
            Err(error) => {
                tracing::error!(%error, "hashing panicked");
                Err(HashError::Failed)
            }
        }
    }
}

/// A place in the queue, given back however the waiting ends.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(inner: &'a Inner) -> Result<Self, HashError> {
        let place = Self(&inner.waiting);
        if inner.waiting.fetch_add(1, Ordering::Relaxed) < inner.waiting_max {
            Ok(place)
        } else {
            Err(HashError::Busy)
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a flight off the list, even if its task is dropped with its runtime.
struct Landing {
    inner: Arc<Inner>,
    secret: SecretId,
    key: ApiKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = self.inner.flights();
        if let Entry::Occupied(mut entry) = flights.entry(self.secret.clone()) {
            entry
                .get_mut()
                .under_way
                .retain(|f| !f.key.is_same_as(&self.key));
            if entry.get().under_way.is_empty() {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures_util::FutureExt as _;
    use futures_util::future::join_all;

    use super::*;
    use crate::clock::Clock;

    /// As strong as in service, so that runs overlap.
    const SETTINGS: Argon2Settings = Argon2Settings {
        memory_kib: 19_456,
        passes: 2,
        lanes: 1,
    };

    fn hasher(cores: usize) -> Hasher {
        Hasher::new(SETTINGS, cores, Handle::current(), Entropy::System)
    }

    /// With a shorter patience and queue than in service.
    fn impatient(waiting_max: usize) -> Hasher {
        let mut hasher = hasher(1);
        let inner = Arc::get_mut(&mut hasher.0).unwrap();
        inner.wait_max = Duration::from_millis(50);
        inner.waiting_max = waiting_max;
        hasher
    }

    fn secret_id() -> SecretId {
        SecretId::new(&Clock::System, &Entropy::System)
    }

    fn key(name: &str) -> ApiKey {
        ApiKey::of_test(name)
    }

    /// Polls, with a bound, for what another thread is about to do.
    async fn until(mut done: impl FnMut() -> bool) {
        timeout(Duration::from_secs(10), async {
            while !done() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await
        .expect("it comes true");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn those_who_bring_the_same_plaintext_share_one_run() {
        let (hasher, secret, key) = (hasher(2), secret_id(), key("a plaintext"));
        let verifier = hasher.hash(&key).await.unwrap();
        assert_eq!(hasher.runs(), 1);
        let answers =
            join_all((0..20).map(|_| hasher.verify(&secret, &verifier, &key, Memory::none())))
                .await;
        assert!(answers.iter().all(|answer| *answer == Ok(true)));
        assert_eq!(hasher.runs(), 2);
        assert!(hasher.0.flights().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn another_plaintext_never_gets_the_answer_of_the_right_one() {
        let (hasher, secret) = (hasher(2), secret_id());
        let (right, wrong) = (key("the right one"), key("the wrong one"));
        let verifier = hasher.hash(&right).await.unwrap();
        let (yes, no) = tokio::join!(
            hasher.verify(&secret, &verifier, &right, Memory::none()),
            hasher.verify(&secret, &verifier, &wrong, Memory::none()),
        );
        assert_eq!((yes, no), (Ok(true), Ok(false)));
        assert_eq!(hasher.runs(), 3);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_that_gives_up_frees_no_permit_early() {
        let hasher = hasher(1);
        let permits = Arc::clone(&hasher.0.permits);
        let (finish, finished) = mpsc::channel::<()>();
        let (start, started) = mpsc::channel::<()>();
        let inner = Arc::clone(&hasher.0);
        let request = tokio::spawn(async move {
            let permit = inner.permit().await?;
            let work = move || {
                start.send(()).unwrap();
                finished.recv().unwrap();
                Ok(())
            };
            inner.run(permit, work).await
        });
        tokio::task::spawn_blocking(move || started.recv().unwrap())
            .await
            .unwrap();
        request.abort();
        assert!(request.await.unwrap_err().is_cancelled());
        assert_eq!(permits.available_permits(), 0);
        finish.send(()).unwrap();
        until(|| permits.available_permits() == 1).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_finds_no_permit_in_time_is_told_busy() {
        let hasher = impatient(64);
        let verifier = hasher.hash(&key("a plaintext")).await.unwrap();
        let held = Arc::clone(&hasher.0.permits).acquire_owned().await.unwrap();
        assert_eq!(
            hasher.hash(&key("another")).await.unwrap_err(),
            HashError::Busy
        );
        let (secret, right) = (secret_id(), key("a plaintext"));
        let answer = hasher
            .verify(&secret, &verifier, &right, Memory::none())
            .await;
        assert_eq!(answer, Err(HashError::Busy));
        assert_eq!(hasher.runs(), 1);
        assert_eq!(hasher.waiting(), 0);
        assert!(hasher.0.flights().is_empty());
        drop(held);
        assert!(hasher.hash(&key("another")).await.is_ok());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_finds_the_queue_full_is_told_at_once() {
        let hasher = impatient(0);
        let inner = Arc::clone(&hasher.0);
        assert!(matches!(inner.permit().await, Err(HashError::Busy)));
        assert_eq!(hasher.waiting(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_remembered_is_not_run_and_only_what_is_proved_is_kept() {
        let hasher = hasher(1);
        let (secret, right, wrong) = (secret_id(), key("a plaintext"), key("another"));
        let verifier = hasher.hash(&right).await.unwrap();
        let kept = Arc::new(AtomicUsize::new(0));
        let memory = |proved: bool| {
            let kept = Arc::clone(&kept);
            Memory {
                proved: Box::pin(async move { proved }),
                keep: Box::pin(async move {
                    kept.fetch_add(1, Ordering::Relaxed);
                }),
            }
        };
        for (presented, proved, answer, runs) in [
            (&wrong, false, false, 2),
            (&right, false, true, 3),
            (&right, true, true, 3),
        ] {
            let told = hasher.verify(&secret, &verifier, presented, memory(proved));
            assert_eq!(told.await, Ok(answer));
            assert_eq!(hasher.runs(), runs);
        }
        assert_eq!(kept.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_starter_may_give_up_and_those_who_joined_are_answered() {
        let (hasher, secret, key) = (hasher(1), secret_id(), key("a plaintext"));
        let verifier = hasher.hash(&key).await.unwrap();
        let held = Arc::clone(&hasher.0.permits).acquire_owned().await.unwrap();
        let starter = {
            let (hasher, secret) = (hasher.clone(), secret.clone());
            let (verifier, key) = (verifier.clone(), key.clone());
            tokio::spawn(async move {
                hasher
                    .verify(&secret, &verifier, &key, Memory::none())
                    .await
            })
        };
        until(|| hasher.waiting() == 1).await;
        let mut joined = Box::pin(hasher.verify(&secret, &verifier, &key, Memory::none()));
        assert_eq!(joined.as_mut().now_or_never(), None);
        starter.abort();
        assert!(starter.await.unwrap_err().is_cancelled());
        drop(held);
        assert_eq!(joined.await, Ok(true));
        assert_eq!(hasher.runs(), 2);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_flood_for_one_secret_costs_the_others_nothing() {
        let (hasher, flooded) = (hasher(2), secret_id());
        let right = key("the right one");
        let verifier = hasher.hash(&right).await.unwrap();
        let held = Arc::clone(&hasher.0.permits)
            .acquire_many_owned(2)
            .await
            .unwrap();
        let flood: Vec<_> = (0..FLIGHTS_MAX)
            .map(|n| {
                let (hasher, flooded, verifier) =
                    (hasher.clone(), flooded.clone(), verifier.clone());
                let wrong = key(&format!("wrong {n}"));
                tokio::spawn(async move {
                    hasher
                        .verify(&flooded, &verifier, &wrong, Memory::none())
                        .await
                })
            })
            .collect();
        until(|| {
            let flights = hasher.0.flights();
            flights
                .get(&flooded)
                .is_some_and(|f| f.under_way.len() == FLIGHTS_MAX)
        })
        .await;
        let one_more = key("one more");
        let more = hasher
            .verify(&flooded, &verifier, &one_more, Memory::none())
            .await;
        assert_eq!(more, Err(HashError::Busy));
        // All but one of them wait for the turn of their secret, so the next one's place in the
        // queue for permits is the second.
        until(|| hasher.waiting() == 1).await;
        let other = {
            let (hasher, verifier, right) = (hasher.clone(), verifier.clone(), right.clone());
            tokio::spawn(async move {
                hasher
                    .verify(&secret_id(), &verifier, &right, Memory::none())
                    .await
            })
        };
        until(|| hasher.waiting() == 2).await;
        drop(held);
        assert_eq!(other.await.unwrap(), Ok(true));
        for wrong in join_all(flood).await {
            assert_eq!(wrong.unwrap(), Ok(false));
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stored_verifier_that_cannot_be_run_is_a_failure_not_a_panic() {
        let hasher = hasher(1);
        let verifier = Verifier::of_test("$argon2id$v=19$m=4194304,t=1,p=1$c29tZXNhbHQ$AAAA");
        let answer = hasher
            .verify(&secret_id(), &verifier, &key("a plaintext"), Memory::none())
            .await;
        assert_eq!(answer, Err(HashError::Failed));
        assert_eq!(hasher.0.permits.available_permits(), 1);
    }
}
