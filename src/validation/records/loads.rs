//! Loads of one kind: each in its turn, one of a key, and waited for no longer than there is patience.

use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
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

/// What was known of changes at an instant: the history, and its highest number.
type Known = (u32, i64);

/// What a load answers, and what was known before it.
type Landed<T> = (Known, Loaded<T>);

/// How to come to what a load brings.
pub(super) enum Way<T> {
    /// By one that has begun.
    Begun(Landing<Landed<T>>),
    Turn(Turn),
}

/// The loads of one kind.
pub(super) struct Loads<K, T> {
    line: Line,
    flights: Flights<K, Landed<T>>,
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

    /// What `load` brings when no change has overtaken it; each try has a turn of its own. That there is nothing
    /// is believed of a load that began after what is known now.
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
        let came = known(changes);
        let mut first = Some(first);
        for _ in 0..TRIES {
            let way = match first.take() {
                Some(way) => way,
                // What was due may not be used meanwhile: it was overtaken too.
                None => self.way(&key, false).await?,
            };
            let (began, loaded) = self.go(way, key.clone(), changes, load.clone()).await?;
            let is_overtaken = match &loaded {
                Ok(Some(entry)) => {
                    entry.tell(changes);
                    !entry.is_fresh(changes)
                }
                Ok(None) => began < came,
                Err(_) => false,
            };
            if !is_overtaken {
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
        changes: &Changes,
        load: impl FnOnce() -> F,
    ) -> Result<Landed<T>, NoLanding>
    where
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let landing = match way {
            Way::Begun(landing) => landing,
            Way::Turn(turn) => self.flights.board(key, || {
                let began = known(changes);
                turn.run(load()).map(move |loaded| (began, loaded))
            })?,
        };
        let landed = patience::wait(WAIT_MAX, pin!(landing.wait(WAIT_MAX))).await;
        landed.unwrap_or(Err(NoLanding::Late))
    }
}

fn known(changes: &Changes) -> Known {
    (changes.epoch(), changes.highest())
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
        let changes = Changes::new();
        let first = loads.way(&1, false).await.unwrap();
        let mut first = pin!(loads.go(first, 1, &changes, || async move {
            let _opened = gate.await;
            Ok(Some(entry(7, 0)))
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let second = loads.way(&1, false).await.unwrap();
        assert!(matches!(second, Way::Begun(_)));
        open.send(()).unwrap();
        assert_eq!(**first.await.unwrap().1.unwrap().unwrap(), 7);
        assert!(!loads.is_under_way(&1));
        let second = loads.go(second, 1, &changes, || async { panic!("it has no turn") });
        assert_eq!(**second.await.unwrap().1.unwrap().unwrap(), 7);
    }

    #[tokio::test]
    async fn what_a_load_did_not_find_is_looked_for_again_by_who_came_after_a_change() {
        let loads = Loads::<u8, u8>::new(&Handle::current(), AT_ONCE);
        let changes = Changes::new();
        let begun = Arc::new(AtomicUsize::new(0));
        let (open, gate) = tokio::sync::watch::channel(false);
        let load = || {
            let (begun, mut gate) = (Arc::clone(&begun), gate.clone());
            async move {
                // The first looks before it is there.
                let is_first = begun.fetch_add(1, Ordering::SeqCst) == 0;
                gate.wait_for(|is_open| *is_open).await.unwrap();
                Ok((!is_first).then(|| entry(7, 1)))
            }
        };
        let come = async || {
            let way = loads.way(&1, false).await.unwrap();
            loads.settle(way, 1, &changes, load).await.unwrap().unwrap()
        };
        let (mut before, mut with) = (pin!(come()), pin!(come()));
        assert!(before.as_mut().now_or_never().is_none());
        assert!(with.as_mut().now_or_never().is_none());
        changes.note(1, Kind::Tenant, "ten_1");
        let mut after = pin!(come());
        assert!(after.as_mut().now_or_never().is_none());
        open.send(true).unwrap();
        assert!(before.await.is_none() && with.await.is_none());
        assert_eq!(**after.await.unwrap(), 7);
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }
}
