//! Loads of one kind: each in its turn, one of a key, and waited for no longer than there is patience.

use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::cache::flights::{Landing, NoLanding};
use crate::cache::line::Turn;
use crate::cache::{Changes, Entry, Flights, Line};
use crate::patience;
use crate::validation::source::LoadError;

/// So many have a turn at once, so that every connection is busy: twice as many as there are connections for them.
pub(super) const AT_ONCE: usize = 16;

/// So many loads of each kind are under way at once, with those that are late.
const LOADS_MAX: usize = 1_000;

/// No load is waited for longer, however much patience there is.
const WAIT_MAX: Duration = patience::OF_VALIDATION;

/// A load that a change overtook is repeated so often.
const TRIES: usize = 4;

/// What a load answers to all who wait for it.
pub(super) type Loaded<T> = Result<Option<Arc<Entry<T>>>, LoadError>;

/// How to come to what a load brings.
pub(super) enum Way<T> {
    /// By one that has begun.
    Begun(Landing<Loaded<T>>),
    Turn(Turn),
}

/// The loads of one kind.
pub(super) struct Loads<K, T> {
    line: Line,
    flights: Flights<K, Loaded<T>>,
}

impl<K, T> Loads<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + Sync + 'static,
{
    /// Of which so many have a turn at once.
    pub(super) fn new(runtime: &Handle, at_once: usize) -> Self {
        Self {
            line: Line::new(WAIT_MAX, at_once),
            flights: Flights::new(runtime.clone(), LOADS_MAX),
        }
    }

    pub(super) fn is_under_way(&self, key: &K) -> bool {
        self.flights.is_under_way(key)
    }

    /// A load of the key that has begun, or a turn to load it: in line, unless there is something that will
    /// do meanwhile.
    ///
    /// # Errors
    /// [`NoLanding`] where there is no turn.
    pub(super) async fn way(&self, key: &K, is_due: bool) -> Result<Way<T>, NoLanding> {
        if let Some(begun) = self.flights.under_way(key) {
            return Ok(Way::Begun(begun));
        }
        let turn = if is_due {
            self.line.turn_now().ok_or(NoLanding::Full)?
        } else {
            self.line.turn().await?
        };
        // Another may have had a turn meanwhile.
        let begun = self.flights.under_way(key);
        Ok(begun.map_or(Way::Turn(turn), Way::Begun))
    }

    /// What `load` brings when no change has overtaken it; each try has a turn of its own.
    ///
    /// # Errors
    /// [`NoLanding`], also where each was overtaken.
    pub(super) async fn settle<F>(
        &self,
        first: Way<T>,
        key: K,
        changes: &Changes,
        load: impl FnOnce() -> F + Clone,
    ) -> Result<Loaded<T>, NoLanding>
    where
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let mut first = Some(first);
        for _ in 0..TRIES {
            let way = match first.take() {
                Some(way) => way,
                // What was due may not be used meanwhile: it was overtaken too.
                None => self.way(&key, false).await?,
            };
            let loaded = self.go(way, key.clone(), load.clone()).await?;
            let Ok(Some(entry)) = &loaded else {
                return Ok(loaded);
            };
            entry.tell(changes);
            if entry.is_fresh(changes) {
                return Ok(loaded);
            }
            // What is there now is asked for again.
        }
        Err(NoLanding::Full)
    }

    async fn go<F>(
        &self,
        way: Way<T>,
        key: K,
        load: impl FnOnce() -> F,
    ) -> Result<Loaded<T>, NoLanding>
    where
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let landing = match way {
            Way::Begun(landing) => landing,
            Way::Turn(turn) => self.flights.board(key, || turn.run(load()))?,
        };
        let landed = patience::wait(WAIT_MAX, pin!(landing.wait(WAIT_MAX))).await;
        landed.unwrap_or(Err(NoLanding::Late))
    }
}

impl<T> Way<T> {
    /// Whether something may be there now that was not before.
    pub(super) fn was_waited_for(&self) -> bool {
        match self {
            Self::Begun(_) => false,
            Self::Turn(turn) => turn.was_waited_for(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::FutureExt as _;

    use super::*;
    use crate::cache::changes::Entity;
    use crate::db::feed::Kind;

    fn entry(value: u8, as_of: i64) -> Arc<Entry<u8>> {
        let entity = Entity::new(Kind::Key, "key_1");
        Arc::new(Entry::new(value, (0, as_of), entity, 1))
    }

    /// All the turns there are.
    fn turns(loads: &Loads<u8, u8>) -> Vec<Turn> {
        std::iter::from_fn(|| loads.line.turn_now()).collect()
    }

    #[tokio::test]
    async fn what_a_change_overtook_is_loaded_again_in_a_turn_of_its_own() {
        let loads = Loads::<u8, u8>::new(&Handle::current(), AT_ONCE);
        let changes = Changes::new();
        changes.note(2, Kind::Key, "key_1");
        let begun = Arc::new(AtomicUsize::new(0));
        let load = || {
            let begun = Arc::clone(&begun);
            async move {
                // The first is from before the change.
                let is_first = begun.fetch_add(1, Ordering::SeqCst) == 0;
                Ok(Some(entry(7, if is_first { 1 } else { 2 })))
            }
        };
        let first = loads.way(&1, false).await.unwrap();
        let others = turns(&loads);
        // Another stands in line before it comes back.
        let mut next = pin!(loads.line.turn());
        assert!(next.as_mut().now_or_never().is_none());
        let mut settled = pin!(loads.settle(first, 1, &changes, load));
        for _ in 0..100 {
            assert!(settled.as_mut().now_or_never().is_none());
            tokio::task::yield_now().await;
        }
        assert_eq!(begun.load(Ordering::SeqCst), 1, "there was no turn for it");
        drop((next.await, others));
        let loaded = settled.await.unwrap().unwrap().unwrap();
        assert_eq!((**loaded, begun.load(Ordering::SeqCst)), (7, 2));
    }

    #[tokio::test]
    async fn who_finds_a_load_begun_makes_none_also_when_it_is_over_by_then() {
        let loads = Loads::<u8, u8>::new(&Handle::current(), AT_ONCE);
        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        let first = loads.way(&1, false).await.unwrap();
        let mut first = pin!(loads.go(first, 1, || async move {
            let _opened = gate.await;
            Ok(Some(entry(7, 0)))
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let second = loads.way(&1, false).await.unwrap();
        assert!(matches!(second, Way::Begun(_)));
        open.send(()).unwrap();
        assert_eq!(**first.await.unwrap().unwrap().unwrap(), 7);
        assert!(!loads.is_under_way(&1));
        let second = loads.go(second, 1, || async { panic!("it has no turn") });
        assert_eq!(**second.await.unwrap().unwrap().unwrap(), 7);
    }
}
