//! Verifiers that are made after the answer: the keys of a batch wait here, in memory alone.
//!
//! What is lost by a crash or does not fit is no harm: a secret without a verifier is found by its
//! fingerprint, and gets its verifier at a later use.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::hash::{HashError, Hasher};
use super::secret::ApiKey;
use super::verifier::Verifier;
use crate::id::SecretId;

/// Keys that may wait: ten batches of the largest size.
pub const CAPACITY: usize = 10_000;

/// How long to leave a busy pool alone.
const PAUSE: Duration = Duration::from_millis(250);

/// The queue, cheap to clone. Its worker ends when the last clone is gone and the queue is empty.
#[derive(Clone, Debug)]
pub struct VerifierQueue {
    sender: mpsc::Sender<(SecretId, ApiKey)>,
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    secrets: Mutex<HashSet<SecretId>>,
    emptied: Notify,
}

impl Pending {
    fn secrets(&self) -> MutexGuard<'_, HashSet<SecretId>> {
        self.secrets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn done(&self, secret: &SecretId) {
        let mut secrets = self.secrets();
        secrets.remove(secret);
        if secrets.is_empty() {
            self.emptied.notify_waiters();
        }
    }
}

impl VerifierQueue {
    /// Starts the worker on the hasher's runtime. It makes one verifier at a time, so it never holds
    /// more than one permit, and hands each to `sink`, which stores it.
    pub fn start<F, Storing>(hasher: &Hasher, capacity: usize, sink: F) -> Self
    where
        F: Fn(SecretId, Verifier) -> Storing + Send + 'static,
        Storing: Future<Output = ()> + Send,
    {
        let (sender, mut keys) = mpsc::channel::<(SecretId, ApiKey)>(capacity.max(1));
        let pending = Arc::new(Pending::default());
        let (worker, counted) = (hasher.clone(), Arc::clone(&pending));
        hasher.runtime().spawn(async move {
            while let Some((secret, key)) = keys.recv().await {
                if let Some(verifier) = make(&worker, &key).await {
                    drop(key);
                    sink(secret.clone(), verifier).await;
                }
                counted.done(&secret);
            }
        });
        Self { sender, pending }
    }

    /// Takes the keys there is room for, and says how many of them wait now. A secret that waits
    /// already is not taken twice, however often it is used meanwhile; the rest is forgotten.
    pub fn push(&self, keys: impl IntoIterator<Item = (SecretId, ApiKey)>) -> usize {
        let mut waiting = 0;
        for (secret, key) in keys {
            // Noted before it is sent, or the worker could be done before it is noted.
            if self.pending.secrets().insert(secret.clone())
                && self.sender.try_send((secret.clone(), key)).is_err()
            {
                self.pending.done(&secret);
                break;
            }
            waiting += 1;
        }
        waiting
    }

    /// How many wait or are being made.
    pub fn pending(&self) -> usize {
        self.pending.secrets().len()
    }

    /// Waits until nothing waits.
    pub async fn drained(&self) {
        loop {
            let emptied = self.pending.emptied.notified();
            tokio::pin!(emptied);
            // Listen first, or the last one could end between the look and the waiting.
            emptied.as_mut().enable();
            if self.pending() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

async fn make(hasher: &Hasher, key: &ApiKey) -> Option<Verifier> {
    loop {
        match hasher.hash(key).await {
            Ok(verifier) => return Some(verifier),
            Err(HashError::Busy) => tokio::time::sleep(PAUSE).await,
            Err(HashError::Failed) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;
    use tokio::sync::Semaphore;

    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;
    use crate::keys::hash::Memory;
    use crate::keys::verifier::Argon2Settings;

    fn hasher() -> Hasher {
        let weak = Argon2Settings {
            memory_kib: 8,
            passes: 1,
            lanes: 1,
        };
        Hasher::new(weak, 2, Handle::current(), Entropy::System)
    }

    fn keys(count: usize) -> Vec<(SecretId, ApiKey)> {
        (0..count)
            .map(|n| {
                let secret = SecretId::new(&Clock::System, &Entropy::System);
                (secret, ApiKey::of_test(&format!("plaintext {n}")))
            })
            .collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_key_of_a_batch_gets_its_verifier_and_is_forgotten() {
        let hasher = hasher();
        let made = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&made);
        let queue = VerifierQueue::start(&hasher, 100, move |secret, verifier| {
            sink.lock().unwrap().push((secret, verifier));
            std::future::ready(())
        });
        let keys = keys(100);
        assert_eq!(queue.push(keys.clone()), 100);
        queue.drained().await;
        assert_eq!(queue.pending(), 0);
        let made = std::mem::take(&mut *made.lock().unwrap());
        assert_eq!(made.len(), 100);
        for ((secret, key), (of, verifier)) in keys.into_iter().zip(made) {
            assert_eq!(secret, of);
            assert_eq!(
                hasher.verify(&of, &verifier, &key, Memory::none()).await,
                Ok(true)
            );
            assert!(key.is_last_copy());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_does_not_fit_is_forgotten_and_not_counted() {
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let queue = VerifierQueue::start(&hasher(), 10, move |_secret, _verifier| {
            let opened = Arc::clone(&opened);
            async move { opened.acquire().await.unwrap().forget() }
        });
        let keys = keys(100);
        let taken = queue.push(keys.clone());
        // The worker may have one in its hands.
        assert!((10..=11).contains(&taken), "{taken}");
        assert_eq!(queue.pending(), taken);
        assert!(keys[taken..].iter().all(|(_, key)| key.is_last_copy()));
        gate.add_permits(taken);
        queue.drained().await;
        assert_eq!(queue.pending(), 0);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_secret_that_is_used_often_is_hashed_once() {
        let hasher = hasher();
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let queue = VerifierQueue::start(&hasher, 10, move |_secret, _verifier| {
            let opened = Arc::clone(&opened);
            async move { opened.acquire().await.unwrap().forget() }
        });
        let keys = keys(2);
        for _ in 0..50 {
            assert_eq!(queue.push(keys.clone()), 2);
            assert_eq!(queue.pending(), 2);
        }
        gate.add_permits(2);
        queue.drained().await;
        assert_eq!(hasher.runs(), 2);
    }
}
