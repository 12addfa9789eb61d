//! One load a key at a time: whoever asks for what is being loaded waits for that load.
//!
//! A load is a task of its own. What ends is the waiting, never the load: one that comes late still
//! fills the cache.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

/// Loads under way.
#[derive(Debug)]
pub struct Flights<K, T> {
    runtime: Handle,
    room: usize,
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<T>>>>>,
}

/// What a load answers to somebody who waits for it, also when it is over already.
#[derive(Debug)]
pub struct Landing<T>(watch::Receiver<Option<T>>);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLanding {
    /// Too many are under way.
    Full,
    /// It takes longer than anybody waits.
    Late,
}

impl<K: Hash + Eq + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Loads run on `runtime`, at most `flights_max` at once.
    pub fn new(runtime: Handle, flights_max: usize) -> Self {
        Self {
            runtime,
            room: flights_max,
            under_way: Arc::default(),
        }
    }

    /// What `load` answers, or what the load of the same key that is under way answers.
    pub async fn join<F>(
        &self,
        key: K,
        wait_max: Duration,
        load: impl FnOnce() -> F,
    ) -> Result<T, NoLanding>
    where
        F: Future<Output = T> + Send + 'static,
    {
        self.board(key, load)?.wait(wait_max).await
    }

    /// Whether who asks for it now waits for a load that has begun.
    pub fn is_under_way(&self, key: &K) -> bool {
        lock(&self.under_way).contains_key(key)
    }

    /// The load of this key that has begun.
    pub fn under_way(&self, key: &K) -> Option<Landing<T>> {
        lock(&self.under_way).get(key).cloned().map(Landing)
    }

    /// `load`, begun now, or the load of the same key that is under way.
    ///
    /// # Errors
    /// [`NoLanding::Full`]
    pub fn board<F>(&self, key: K, load: impl FnOnce() -> F) -> Result<Landing<T>, NoLanding>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(&key) {
            return Ok(Landing(flight.clone()));
        }
        if under_way.len() >= self.room {
            return Err(NoLanding::Full);
        }
        let (tell, landing) = watch::channel(None);
        under_way.insert(key.clone(), landing.clone());
        let gone = Gone {
            under_way: Arc::clone(&self.under_way),
            key,
        };
        // Apart from the task, which is moved about: it may be large.
        let load = Box::pin(load());
        self.runtime.spawn(async move {
            let value = load.await;
            // First off the list: who comes from now on needs a load that begins now.
            drop(gone);
            tell.send_replace(Some(value));
        });
        Ok(Landing(landing))
    }

    pub fn len(&self) -> usize {
        lock(&self.under_way).len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone> Landing<T> {
    /// # Errors
    /// [`NoLanding::Late`]
    pub async fn wait(mut self, wait_max: Duration) -> Result<T, NoLanding> {
        let landed = tokio::time::timeout(wait_max, self.0.wait_for(Option::is_some)).await;
        match landed {
            Ok(Ok(value)) => value.clone().ok_or(NoLanding::Late),
            // The load ended without an answer, by a panic; or it takes too long.
            Ok(Err(_)) | Err(_) => Err(NoLanding::Late),
        }
    }
}

/// Takes a flight off the list, also when its load panics.
struct Gone<K: Hash + Eq, T> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<T>>>>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for Gone<K, T> {
    fn drop(&mut self) {
        lock(&self.under_way).remove(&self.key);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    const LONG: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn those_who_ask_for_the_same_share_one_load() {
        let flights = Flights::<u8, u8>::new(Handle::current(), 10);
        let loads = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let loads = Arc::clone(&loads);
            flights.join(1, LONG, move || async move {
                tokio::task::yield_now().await;
                loads.fetch_add(1, Ordering::SeqCst);
                7
            })
        };
        assert!(!flights.is_under_way(&1));
        let answers = join_all((0..500).map(|_| async {
            let answer = ask();
            tokio::pin!(answer);
            // Nobody can have landed yet.
            let first = futures_util::FutureExt::now_or_never(answer.as_mut());
            assert!(first.is_none() && flights.is_under_way(&1));
            answer.await
        }))
        .await;
        assert!(answers.iter().all(|answer| *answer == Ok(7)));
        assert_eq!(loads.load(Ordering::SeqCst), 1);
        assert_eq!(ask().await, Ok(7));
        assert_eq!(loads.load(Ordering::SeqCst), 2, "the next one begins anew");
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn a_load_goes_on_when_nobody_waits_and_one_that_panics_leaves_nothing() {
        let flights = Flights::<u8, u8>::new(Handle::current(), 2);
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let given_up = flights
            .join(1, Duration::ZERO, || async move {
                let _opened = gate.await;
                7
            })
            .await;
        assert_eq!(given_up, Err(NoLanding::Late));
        assert_eq!(flights.len(), 1);
        let joined = flights.join(1, LONG, || async { 8 });
        open.send(()).unwrap();
        assert_eq!(joined.await, Ok(7));
        let panicked = flights.join(2, LONG, || async { panic!("on purpose") });
        assert_eq!(panicked.await, Err(NoLanding::Late));
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn there_are_never_more_loads_than_were_allowed() {
        let flights = Flights::<u8, u8>::new(Handle::current(), 2);
        for key in [1, 2] {
            let endless = flights.join(key, Duration::ZERO, std::future::pending);
            assert_eq!(endless.await, Err(NoLanding::Late));
        }
        let full = flights.join(3, LONG, || async { 7 }).await;
        assert_eq!(full, Err(NoLanding::Full));
    }
}
