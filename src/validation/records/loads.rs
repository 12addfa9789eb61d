//! Loads of one kind: in turn, one of a key, and waited for no longer than there is patience.

use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::cache::flights::NoLanding;
use crate::cache::line::Turn;
use crate::cache::{Entry, Flights, Line};
use crate::patience;
use crate::validation::source::LoadError;

/// So many loads of each kind are under way at once, with those that are late.
const LOADS_MAX: usize = 1_000;

/// No load is waited for longer, however much patience there is.
const WAIT_MAX: Duration = patience::OF_VALIDATION;

/// What a load answers to all who wait for it.
pub(super) type Loaded<T> = Result<Option<Arc<Entry<T>>>, LoadError>;

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
    pub(super) fn new(runtime: &Handle) -> Self {
        Self {
            line: Line::new(WAIT_MAX),
            flights: Flights::new(runtime.clone(), LOADS_MAX),
        }
    }

    pub(super) fn is_under_way(&self, key: &K) -> bool {
        self.flights.is_under_way(key)
    }

    /// A turn to load something, in line unless there is something that will do meanwhile; `None` if it is
    /// being loaded.
    pub(super) async fn turn(&self, key: &K, is_due: bool) -> Result<Option<Turn>, NoLanding> {
        if self.is_under_way(key) {
            return Ok(None);
        }
        let turn = if is_due {
            self.line.turn_now().ok_or(NoLanding::Full)
        } else {
            self.line.turn().await
        };
        turn.map(Some)
    }

    /// What `load` brings in this turn, or the load of the same that is under way.
    pub(super) async fn join<F>(
        &self,
        turn: Option<Turn>,
        key: K,
        load: impl FnOnce() -> F,
    ) -> Result<Loaded<T>, NoLanding>
    where
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let in_turn = || {
            let load = load();
            async move {
                match turn {
                    Some(turn) => turn.run(load).await,
                    // The one that was under way is over.
                    None => load.await,
                }
            }
        };
        let joined = self.flights.join(key, WAIT_MAX, in_turn);
        let joined = patience::wait(WAIT_MAX, pin!(joined)).await;
        joined.unwrap_or(Err(NoLanding::Late))
    }
}
