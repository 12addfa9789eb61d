//! The way of a use from the buffers into the ledger.
//!
//! 1. **collect**: five times a second the buffers are taken and kept in the journal of this node
//!    (`flush.rs`). What was answered longer ago than that survives the end of the process, whatever ends it.
//! 2. **store**: the journal goes into the ledger, each block as one batch that the ledger takes once
//!    (`drain.rs`), and from there into the file of events, if there is one (`leave.rs`); then it leaves
//!    the journal. A crash between these is a batch that is sent again.
//!
//! A journal that is full keeps counts in the place of events, and one that is full of counts keeps
//! nothing: how many uses that were is told.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;

use super::drain::Progress;
use super::file::EventFile;
use super::flush::Flushing;
use super::leave::Outlets;
use super::record::Batch;
use super::recorder::Recorder;
use super::store::journal;
use crate::clock::Clock;
use crate::db::{self, Conn, Db};
use crate::id::{KeyId, SecretId};
use crate::time::Timestamp;

/// A kill loses at most so much; with a journal that is full of events, a second.
pub const FLUSH_EVERY: Duration = Duration::from_millis(200);

/// How often it is looked whether the journal has something for the ledger. The rows of a key that is used all
/// the time are written once each time.
pub const STORE_EVERY: Duration = Duration::from_secs(1);

/// How much may wait in a journal.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Bytes; from here on only counts are kept.
    pub events: i64,
    /// Bytes of all; from here on nothing is.
    pub counts: i64,
}

impl Default for Room {
    fn default() -> Self {
        let mib = 1024 * 1024;
        Self {
            events: 1024 * mib,
            counts: 1280 * mib,
        }
    }
}

/// Beyond so many secrets further ones wait for their next use.
const INHERITED_MAX: usize = 100_000;

/// How many uses a block could not be read for, at least: it does not say.
pub(super) const UNREADABLE: u64 = 1;

/// Keeps what a node records, cheap to clone.
#[derive(Clone)]
pub struct Ledger(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) recorder: Arc<Recorder>,
    /// The file of the journal, opened when the node begins.
    path: PathBuf,
    pub(super) journal: OnceLock<Db>,
    pub(super) ledger: Db,
    /// Set before the node begins.
    pub(super) outlets: OnceLock<Outlets>,
    pub(super) room: OnceLock<Room>,
    pub(super) clock: Clock,
    /// New with each start, so that no number of this node is ever another block's.
    pub(super) node: String,
    pub(super) waiting_bytes: AtomicI64,
    /// How many bytes were appended to the journal since its last checkpoint.
    pub(super) appended: AtomicU64,
    pub(super) shed: AtomicU64,
    pub(super) uses_lost: AtomicU64,
    pub(super) lost: AtomicU64,
    pub(super) aside: AtomicU64,
    /// One at a time: blocks leave in their order.
    pub(super) storing: Mutex<Progress>,
    /// What was taken from the buffers and is not in the journal yet.
    pub(super) flushing: Mutex<Flushing>,
    /// Uses that were let through in lives of this node that ended, until somebody takes them.
    inherited: StdMutex<HashMap<SecretId, (KeyId, Timestamp)>>,
}

impl Ledger {
    /// `path` is where the journal is, or will be.
    pub fn new(
        recorder: Arc<Recorder>,
        path: PathBuf,
        ledger: Db,
        clock: Clock,
        node: String,
    ) -> Self {
        Self(Arc::new(Inner {
            recorder,
            path,
            journal: OnceLock::new(),
            ledger,
            outlets: OnceLock::new(),
            room: OnceLock::new(),
            clock,
            node,
            waiting_bytes: AtomicI64::new(0),
            appended: AtomicU64::new(0),
            shed: AtomicU64::new(0),
            uses_lost: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            aside: AtomicU64::new(0),
            storing: Mutex::default(),
            flushing: Mutex::default(),
            inherited: StdMutex::default(),
        }))
    }

    /// With another journal than of the usual [`Room`].
    #[must_use]
    pub fn within(self, room: Room) -> Self {
        let _only_the_first = self.0.room.set(room);
        self
    }

    /// What the ledger has is told there too.
    #[must_use]
    pub fn telling(self, outlets: Outlets) -> Self {
        let _only_the_first = self.0.outlets.set(outlets);
        self
    }

    /// Opens the journal, and sees what waits in it from before. Until then nothing is kept.
    ///
    /// # Errors
    /// The journal's: a folder that cannot be written, a file that is none of ours.
    pub async fn begin(&self) -> db::Result<()> {
        let inner = &*self.0;
        let journal = match inner.journal.get() {
            Some(journal) => journal.clone(),
            None => Db::open_journal(inner.path.clone())
                .map_err(|error| db::Error::Unavailable(error.into()))?,
        };
        journal.migrate().await?;
        let touch = async move |conn: &mut Conn| journal::touch(conn).await;
        journal.write(touch).await?;
        let read = async move |conn: &mut Conn| journal::bytes(conn).await;
        let bytes = journal.read(read).await?;
        inner.waiting_bytes.store(bytes, Ordering::Relaxed);
        // Whoever was faster has opened the same file.
        let _first = inner.journal.set(journal);
        Ok(())
    }

    /// Step 1. What cannot be kept now is kept the next time. It goes on to its end if the caller stops
    /// waiting: or what is under way into the journal would be put there once more.
    ///
    /// # Errors
    /// The journal's, of which it tells once in ten seconds.
    pub async fn flush(&self) -> db::Result<()> {
        self.flush_or(false).await
    }

    /// As [`Self::flush`], for the last time: nothing stays in memory.
    ///
    /// # Errors
    /// The journal's.
    pub async fn finish(&self) -> db::Result<()> {
        self.flush_or(true).await
    }

    async fn flush_or(&self, is_last: bool) -> db::Result<()> {
        let this = self.clone();
        self.by_journal(async move { this.flush_to_end(is_last).await })
            .await
    }

    /// Runs `work` on the threads of the journal: there nothing stands before it for long, while those of
    /// the ledger may be busy for a second with blocks to store. Nothing is done before the journal is open.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn by_journal(
        &self,
        work: impl Future<Output = db::Result<()>> + Send + 'static,
    ) -> db::Result<()> {
        match self.0.journal.get() {
            Some(journal) => journal.spawn(None, work).await,
            None => Ok(()),
        }
    }

    /// A life that was killed has not said when keys were last used, but what it journaled tells.
    pub(super) fn inherit(&self, batch: &Batch) {
        let folded = batch.counts_only.iter().map(|line| &line.record);
        let mut inherited = self.inherited();
        for record in batch.records.iter().chain(folded) {
            let Some(key) = record.key.as_ref().filter(|_| record.is_valid()) else {
                continue;
            };
            let ids = (KeyId::parse(&key.key_id), SecretId::parse(&key.secret_id));
            if let (Some(key), Some(secret)) = ids
                && (inherited.len() < INHERITED_MAX || inherited.contains_key(&secret))
            {
                let last = inherited.entry(secret).or_insert((key, record.at));
                last.1 = last.1.max(record.at);
            }
        }
    }

    fn inherited(&self) -> MutexGuard<'_, HashMap<SecretId, (KeyId, Timestamp)>> {
        let inherited = self.0.inherited.lock();
        inherited.unwrap_or_else(PoisonError::into_inner)
    }

    /// When keys and secrets were last used in lives of this node that ended, as far as their blocks
    /// were read since this was last asked.
    pub fn take_inherited(&self) -> Vec<(KeyId, SecretId, Timestamp)> {
        let taken = std::mem::take(&mut *self.inherited());
        let uses = taken.into_iter();
        uses.map(|(secret, (key, at))| (key, secret, at)).collect()
    }

    /// How many bytes wait in the journal.
    pub fn waiting_bytes(&self) -> i64 {
        self.0.waiting_bytes.load(Ordering::Relaxed)
    }

    /// Whether there is anything for the ledger.
    pub fn is_waiting(&self) -> bool {
        self.waiting_bytes() > 0
    }

    /// How many uses left a count and no event, for lack of room.
    pub fn shed(&self) -> u64 {
        self.0.shed.load(Ordering::Relaxed) + self.0.recorder.shed()
    }

    /// How many uses left nothing at all, for lack of room.
    pub fn uses_lost(&self) -> u64 {
        self.0.uses_lost.load(Ordering::Relaxed)
    }

    /// How many events the file did not take.
    pub fn file_lost(&self) -> u64 {
        let file = self.0.outlets.get().and_then(|to| to.file.as_ref());
        file.map_or(0, EventFile::lost)
    }

    /// How many blocks the ledger did not take and others passed by: each is tried again.
    pub fn aside(&self) -> u64 {
        self.0.aside.load(Ordering::Relaxed)
    }

    /// How many blocks were given up.
    pub fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }
}
