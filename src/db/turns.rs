//! Turns at what takes long: so much of it at once, of each tenant less, and whoever waits longest is next.
//! So no tenant keeps the others out, and what is short finds its connections free.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Error, Result};

/// So many of a tenant wait or have a turn; a further one is refused at once.
const PLACES_MAX: usize = 32;

/// Who has a turn and who waits for one, cheap to clone.
#[derive(Clone, Debug)]
pub struct Turns {
    all: Arc<Semaphore>,
    of_one: usize,
    places: Arc<Mutex<HashMap<String, Places>>>,
}

/// Those of one tenant, as long as there are any.
#[derive(Debug)]
struct Places {
    taken: usize,
    own: Arc<Semaphore>,
}

/// A turn, until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _of_all: OwnedSemaphorePermit,
    _own: OwnedSemaphorePermit,
    /// Given back last.
    _place: Place,
}

/// A place among those of one tenant.
#[derive(Debug)]
struct Place {
    places: Arc<Mutex<HashMap<String, Places>>>,
    whose: String,
    own: Arc<Semaphore>,
}

impl Turns {
    /// `at_once` of all, and `of_one` of each tenant.
    pub fn new(at_once: usize, of_one: usize) -> Self {
        Self {
            all: Arc::new(Semaphore::new(at_once)),
            of_one,
            places: Arc::default(),
        }
    }

    /// Waits for a turn of the tenant `whose`.
    ///
    /// # Errors
    /// [`Error::Busy`] after `wait_max`, or at once if too many of the tenant wait.
    pub async fn take(&self, whose: &str, wait_max: Duration) -> Result<Turn> {
        let place = self.place(whose)?;
        let (own, all) = (Arc::clone(&place.own), Arc::clone(&self.all));
        // One's own first: who waits for that takes no place among all.
        let taken = async {
            let own = own.acquire_owned().await.ok()?;
            Some((own, all.acquire_owned().await.ok()?))
        };
        match tokio::time::timeout(wait_max, taken).await {
            Ok(Some((own, of_all))) => Ok(Turn {
                _of_all: of_all,
                _own: own,
                _place: place,
            }),
            Ok(None) | Err(_) => Err(Error::Busy),
        }
    }

    fn place(&self, whose: &str) -> Result<Place> {
        let mut places = lock(&self.places);
        let of_whose = places.entry(whose.to_owned()).or_insert_with(|| Places {
            taken: 0,
            own: Arc::new(Semaphore::new(self.of_one)),
        });
        if of_whose.taken >= PLACES_MAX {
            return Err(Error::Busy);
        }
        of_whose.taken += 1;
        Ok(Place {
            places: Arc::clone(&self.places),
            whose: whose.to_owned(),
            own: Arc::clone(&of_whose.own),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = lock(&self.places);
        if let Some(of_whose) = places.get_mut(&self.whose) {
            of_whose.taken -= 1;
            if of_whose.taken == 0 {
                places.remove(&self.whose);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_WAIT: Duration = Duration::ZERO;
    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn a_tenant_has_its_share_and_others_find_theirs() {
        let turns = Turns::new(3, 2);
        let (first, _second) = (
            turns.take("a", NO_WAIT).await.unwrap(),
            turns.take("a", NO_WAIT).await.unwrap(),
        );
        assert!(turns.take("a", NO_WAIT).await.is_err());
        let _other = turns.take("b", NO_WAIT).await.unwrap();
        assert!(turns.take("b", NO_WAIT).await.is_err(), "no more at once");
        assert!(turns.take("c", NO_WAIT).await.is_err());
        drop(first);
        let _third = turns.take("c", NO_WAIT).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_longest_is_next_however_many_another_tenant_sends() {
        let turns = Turns::new(1, 1);
        let mut held = turns.take("flood", NO_WAIT).await.unwrap();
        let wait = |whose: &'static str| {
            let turns = turns.clone();
            tokio::spawn(async move { turns.take(whose, LONG).await })
        };
        let mut flood = Vec::new();
        for _ in 0..10 {
            flood.push(wait("flood"));
        }
        tokio::task::yield_now().await;
        let other = wait("other");
        tokio::task::yield_now().await;
        // At most one more of the flood goes before.
        for _ in 0..2 {
            drop(held);
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            if other.is_finished() {
                break;
            }
            held = flood.remove(0).await.unwrap().unwrap();
        }
        assert!(other.await.unwrap().is_ok());
    }

    #[tokio::test]
    async fn places_are_bounded_and_nothing_is_left_of_who_went() {
        let turns = Turns::new(1, 1);
        let held = turns.take("a", NO_WAIT).await.unwrap();
        let waiting: Vec<Place> = (1..PLACES_MAX).map(|_| turns.place("a").unwrap()).collect();
        assert!(turns.place("a").is_err());
        assert!(turns.take("b", NO_WAIT).await.is_err());
        drop(waiting);
        assert!(turns.take("a", NO_WAIT).await.is_err());
        drop(held);
        assert!(lock(&turns.places).is_empty());
        assert!(turns.take("a", NO_WAIT).await.is_ok());
    }
}
