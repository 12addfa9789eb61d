//! Rows that any node read, in Redis, for the others.
//!
//! What stands there is rows, not decisions, sealed under its name together with the counter before
//! they were read. It is judged like what a node remembers itself: by the changes known at its use. So
//! nothing need be deleted, and neither a slow writer nor an old value put back does harm.

use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::history::History;
use super::seal::Seal;
use crate::clock::Clock;
use crate::redis_link::{RedisAway, RedisLink};
use crate::time::Timestamp;

/// How long rows stand there unless they are put there again.
const LIFE: Duration = Duration::from_hours(1);

/// So many are on their way there at once; more are not put there.
const PUTS_MAX: usize = 256;

/// Nothing longer is put there.
const BYTES_MAX: usize = 64 * 1024;

/// Cheap to clone; empty without Redis.
#[derive(Clone)]
pub struct Shelf(Option<Arc<Inner>>);

struct Inner {
    redis: RedisLink,
    seal: Seal,
    clock: Clock,
    runtime: Handle,
    history: History,
    puts: Arc<Semaphore>,
}

/// The history that a reading belongs to, noted before anything is read.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(u64);

/// Rows from the shelf.
#[derive(Debug)]
pub struct Taken<R> {
    pub rows: R,
    pub as_of: i64,
    /// How long ago they were read, by the clocks of two nodes.
    pub age_us: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept<R> {
    as_of: i64,
    read_at: Timestamp,
    rows: R,
}

impl Shelf {
    pub fn none() -> Self {
        Self(None)
    }

    pub fn new(
        redis: RedisLink,
        seal: Seal,
        clock: Clock,
        runtime: Handle,
        history: History,
    ) -> Self {
        Self(Some(Arc::new(Inner {
            redis,
            seal,
            clock,
            runtime,
            history,
            puts: Arc::new(Semaphore::new(PUTS_MAX)),
        })))
    }

    /// To be taken before anything is read that may be put here.
    pub fn ticket(&self) -> Ticket {
        Ticket(self.0.as_ref().map_or(0, |inner| inner.history.name()))
    }

    /// The rows by the first of these names that has any, and which name that was.
    pub async fn take<R: DeserializeOwned>(
        &self,
        ticket: Ticket,
        names: &[String],
    ) -> Option<(usize, Taken<R>)> {
        let inner = self.0.as_ref().filter(|_| ticket.0 != 0)?;
        let mut pipeline = redis::pipe();
        let keys: Vec<String> = names.iter().map(|name| inner.key(ticket, name)).collect();
        for key in &keys {
            pipeline.cmd("GET").arg(key);
        }
        let found: Result<Vec<Option<Vec<u8>>>, RedisAway> = inner.redis.pipeline(&pipeline).await;
        let found = found.ok()?;
        keys.iter()
            .zip(found)
            .enumerate()
            .find_map(|(at, (key, sealed))| Some((at, inner.open(key, &sealed?)?)))
    }

    /// Puts rows on the shelf, in the background.
    pub fn put<R: Serialize>(&self, ticket: Ticket, name: &str, as_of: i64, rows: &R) {
        let Some(inner) = self.0.as_ref().filter(|inner| !inner.redis.is_away()) else {
            return;
        };
        if ticket.0 == 0 {
            return;
        }
        let Ok(place) = Arc::clone(&inner.puts).try_acquire_owned() else {
            return;
        };
        let kept = Kept {
            as_of,
            read_at: inner.clock.now(),
            rows,
        };
        let Ok(text) = serde_json::to_vec(&kept) else {
            return;
        };
        if text.len() > BYTES_MAX {
            return;
        }
        let key = inner.key(ticket, name);
        let mut set = redis::cmd("SET");
        set.arg(&key)
            .arg(inner.seal.close(&key, &text))
            .arg("PX")
            .arg(LIFE.as_millis());
        let redis = inner.redis.clone();
        inner.runtime.spawn(async move {
            let _place = place;
            // What is not there is read from the database.
            let _kept: Result<(), RedisAway> = redis.query(&set).await;
        });
    }
}

impl Inner {
    fn key(&self, ticket: Ticket, name: &str) -> String {
        let database = self.history.database().unwrap_or_default();
        format!("keystead:{database}:1:{:016x}:{name}", ticket.0)
    }

    fn open<R: DeserializeOwned>(&self, key: &str, sealed: &[u8]) -> Option<Taken<R>> {
        let Some(text) = self.seal.open(key, sealed) else {
            tracing::warn!(target: "security", "refused rows in Redis: not sealed by us");
            return None;
        };
        // Rows of another version of the program mean nothing to us.
        let kept: Kept<R> = serde_json::from_slice(text).ok()?;
        let age = self.clock.now().millis() - kept.read_at.millis();
        Some(Taken {
            rows: kept.rows,
            as_of: kept.as_of,
            age_us: u64::try_from(age).unwrap_or(0).saturating_mul(1000),
        })
    }
}
