//! The stored counts that others begin from, as a decision asks for them: each read once for all who wait for
//! it, on the connections that loads have, and so few at once that there are always some for keys.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::counter::CounterId;
use super::store;
use crate::cache::Flights;
use crate::db::{self, Conn, Db};
use crate::patience;
use crate::time::Timestamp;

/// The longest that a decision waits for a stored count.
const WAIT_MAX: Duration = Duration::from_millis(80);

/// No reading takes longer, whoever still waits.
const READ_MAX: Duration = Duration::from_millis(500);

/// So many are waited for at once.
const ASKED_MAX: usize = 1_000;

/// So many have a connection at once: half of those that loads have.
const AT_ONCE: usize = 4;
const AT_ONCE_IN_SQLITE: usize = 2;

/// The counts of a decision, each with the beginning of its period.
pub(super) type Asked = SmallVec<[(CounterId, Timestamp); 2]>;

/// What is used of each.
pub(super) type Counts = SmallVec<[u64; 2]>;

type Read = Result<Counts, Arc<db::Error>>;

pub(super) struct Stored {
    db: Db,
    turns: Arc<Semaphore>,
    readings: Flights<Asked, Read>,
}

impl Stored {
    pub(super) fn new(db: Db) -> Self {
        let at_once = if db.is_sqlite() {
            AT_ONCE_IN_SQLITE
        } else {
            AT_ONCE
        };
        Self {
            turns: Arc::new(Semaphore::new(at_once)),
            readings: Flights::new(db.runtime(), ASKED_MAX),
            db,
        }
    }

    /// # Errors
    /// The database's; [`db::Error::Busy`] when it does not answer in time.
    pub(super) async fn counts(&self, asked: Asked) -> Read {
        let read = || read(self.db.clone(), Arc::clone(&self.turns), asked.clone());
        let reading = self.readings.join(asked.clone(), WAIT_MAX, read);
        let landed = patience::wait(WAIT_MAX, pin!(reading)).await;
        match landed {
            Ok(Ok(read)) => read,
            Ok(Err(_)) | Err(_) => Err(Arc::new(db::Error::Busy)),
        }
    }
}

async fn read(db: Db, turns: Arc<Semaphore>, asked: Asked) -> Read {
    let Ok(Ok(turn)) = timeout(WAIT_MAX, turns.acquire_owned()).await else {
        return Err(Arc::new(db::Error::Busy));
    };
    let read = async move |conn: &mut Conn| -> db::Result<Counts> {
        // As long as it has the connection, whoever waits.
        let _turn = turn;
        let mut counts = Counts::new();
        for (counter, period_start) in asked {
            counts.push(store::load(conn, counter, period_start).await?);
        }
        Ok(counts)
    };
    db.load(READ_MAX, read).await.map_err(Arc::new)
}
