//! From the buffers into the journal: step 1 of `ledger.rs`.
//!
//! While the journal has no room for events, counts are written down nearly each second, and those of ten
//! seconds are then put together in one block, since most are one line with others by then. Until that is done
//! none of them is sent: a block that the ledger may have is never changed.
//!
//! What the journal does not take, as on a full disk, stays in memory, events up to [`HELD_BYTES_MAX`] and counts
//! as far as there are lines for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::codec;
use super::fold::Folded;
use super::ledger::{Ledger, UNREADABLE};
use super::recorder::Collected;
use super::store::journal::{self, NewBlock};
use crate::db::{self, Conn, Db};

/// Without room for events, and after a failure, what was collected is written down so much later: with the
/// next flush that is less than a second.
const PAUSE: Duration = Duration::from_millis(700);

/// Counts of so long are put together.
const COUNTS_EVERY: Duration = Duration::from_secs(10);

/// What goes on being wrong is told so seldom.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What cannot be kept is held in memory up to here; a block is not larger either.
const HELD_BYTES_MAX: usize = 32 * 1024 * 1024;

const USES: &str = "uses";
pub(super) const FOLDED: &str = "folded";

/// What an appended block takes in the journal's log beside its bytes, at most: two pages of 16 KiB.
const OVERHEAD: u64 = 2 * 16_384;

/// What is kept from one flush to the next.
#[derive(Debug, Default)]
pub(super) struct Flushing {
    /// What was taken from the buffers and is not in the journal yet.
    collected: Collected,
    /// Counts that are there and not put together yet.
    counted: Option<Counted>,
    /// When it was last written down without room for events, or could not be.
    last: Option<Instant>,
    is_failing: bool,
    failures: Told,
    shed: Told,
    lost: Told,
}

/// Blocks of counts, from one on the last of the journal.
#[derive(Debug)]
struct Counted {
    since: Instant,
    first: i64,
    bytes: i64,
    /// All that is in them.
    folded: Folded,
}

/// What is told now and then.
#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    untold: u64,
}

impl Told {
    /// Answers how often it was since it was last told, if that is long ago.
    fn add(&mut self, times: u64, now: Instant) -> Option<u64> {
        self.untold = self.untold.saturating_add(times);
        if is_within(TOLD_EVERY, self.last, now) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

fn is_within(span: Duration, last: Option<Instant>, now: Instant) -> bool {
    last.is_some_and(|last| now.saturating_duration_since(last) < span)
}

impl Ledger {
    /// The newest block that may be sent, as a number; without one, that of none.
    ///
    /// # Errors
    /// The journal's.
    pub(super) async fn newest(&self, journal: &Db) -> db::Result<i64> {
        // Held, or counts could come between.
        let flushing = self.0.flushing.lock().await;
        if let Some(counted) = &flushing.counted {
            return Ok(counted.first - 1);
        }
        let newest = async move |conn: &mut Conn| journal::newest(conn).await;
        journal.read(newest).await
    }

    pub(super) async fn flush_to_end(&self, is_last: bool) -> db::Result<()> {
        let inner = &*self.0;
        let Some(journal) = inner.journal.get() else {
            return Ok(());
        };
        let mut flushing = inner.flushing.lock().await;
        let flushing = &mut *flushing;
        let collected = &mut flushing.collected;
        inner
            .recorder
            .give_back(collected.merge(inner.recorder.take()));
        let now = inner.clock.monotonic();
        let room = inner.room.get().copied().unwrap_or_default();
        let waiting = inner.waiting_bytes.load(Ordering::Relaxed);
        let is_full = waiting > room.events;
        if is_full || collected.block.len() > HELD_BYTES_MAX {
            self.fold(collected, &mut flushing.shed, now);
        }
        let is_pressed = is_last || collected.folded.is_full() && !flushing.is_failing;
        let is_slow = is_full || flushing.is_failing;
        if is_slow && !is_pressed && is_within(PAUSE, flushing.last, now) {
            return Ok(());
        }
        self.lose(collected, waiting > room.counts, &mut flushing.lost, now);
        let is_open = |counted: &Counted| {
            is_full && !is_last && counted.folded.has_room_for(&collected.folded)
        };
        // Others are sent as they stand.
        let counted = flushing.counted.take().filter(is_open);
        let is_due = counted
            .as_ref()
            .is_some_and(|counted| !is_within(COUNTS_EVERY, Some(counted.since), now));
        flushing.counted = counted;
        if collected.is_empty() && !is_due {
            return Ok(());
        }
        let together = flushing.counted.as_ref().filter(|_| is_due).map(|counted| {
            let mut folded = counted.folded.clone();
            folded.merge(collected.folded.clone());
            folded
        });
        let folded = self.counts(together.as_ref().unwrap_or(&collected.folded));
        let bytes = collected.block.len() + folded.len();
        // Never without what takes their place.
        let replaced = if together.is_some() && !folded.is_empty() {
            flushing.counted.as_ref().map(|counted| counted.first)
        } else {
            None
        };
        let blocks = [
            (USES, Arc::new(std::mem::take(&mut collected.block))),
            (FOLDED, Arc::new(folded)),
        ];
        let written = self.append(journal, replaced, blocks.clone()).await;
        let [(_, block), _] = blocks;
        let block = Arc::unwrap_or_clone(block);
        flushing.is_failing = written.is_err();
        flushing.last = (is_full || flushing.is_failing).then_some(now);
        let number = match written {
            Ok(number) => number,
            Err(error) => {
                collected.block = block;
                let is_told = flushing.failures.add(1, now).is_some();
                return if is_told || is_last {
                    Err(error)
                } else {
                    Ok(())
                };
            }
        };
        inner.recorder.give_back(block);
        let folded = std::mem::take(&mut collected.folded);
        let appended = OVERHEAD.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        inner.appended.fetch_add(appended, Ordering::Relaxed);
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        inner.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        if is_due {
            let counted = flushing.counted.take().filter(|_| replaced.is_some());
            let gone = counted.map_or(0, |counted| counted.bytes);
            inner.waiting_bytes.fetch_sub(gone, Ordering::Relaxed);
        } else if let Some(counted) = &mut flushing.counted {
            counted.folded.merge(folded);
            counted.bytes += bytes;
        } else if is_full && !is_last {
            flushing.counted = number.map(|first| Counted {
                since: now,
                first,
                bytes,
                folded,
            });
        }
        Ok(())
    }

    /// As a block holds them.
    fn counts(&self, counts: &Folded) -> Vec<u8> {
        if counts.is_empty() {
            return Vec::new();
        }
        counts.to_bytes().unwrap_or_else(|error| {
            self.0.lost.fetch_add(UNREADABLE, Ordering::Relaxed);
            tracing::error!(%error, "counted uses could not be written down");
            Vec::new()
        })
    }

    /// Puts blocks at the end of the journal, or in the place of the one that is given and all behind it.
    /// Answers the last one's number.
    async fn append(
        &self,
        journal: &Db,
        replaced: Option<i64>,
        blocks: [(&'static str, Arc<Vec<u8>>); 2],
    ) -> db::Result<Option<i64>> {
        let ledger = self.clone();
        let append = async move |conn: &mut Conn| {
            if let Some(first) = replaced {
                journal::remove_from(conn, first).await?;
            }
            let mut number = None;
            for (kind, block) in blocks.iter().filter(|(_, block)| !block.is_empty()) {
                let new = NewBlock {
                    node: &ledger.0.node,
                    kind,
                    form: i32::from(codec::FORM),
                    block,
                };
                number = Some(journal::append(conn, &new).await?);
            }
            Ok(number)
        };
        journal.write_to_end(append).await
    }

    /// Counts that there is no line for, or no room.
    fn lose(&self, collected: &mut Collected, is_all: bool, told: &mut Told, now: Instant) {
        let mut uses_lost = collected.folded.take_lost();
        if is_all {
            uses_lost += std::mem::take(&mut collected.folded).uses();
        }
        if uses_lost == 0 {
            return;
        }
        self.0.uses_lost.fetch_add(uses_lost, Ordering::Relaxed);
        if let Some(uses) = told.add(uses_lost, now) {
            tracing::error!(
                target: "security",
                uses,
                "no room in the journal for counts: uses leave nothing"
            );
        }
    }

    /// Of what leaves no event only the counts are kept.
    fn fold(&self, collected: &mut Collected, told: &mut Told, now: Instant) {
        let block = std::mem::take(&mut collected.block);
        match codec::read(codec::FORM, &block) {
            Ok(records) if records.is_empty() => {}
            Ok(records) => {
                let count = u64::try_from(records.len()).unwrap_or(u64::MAX);
                self.0.shed.fetch_add(count, Ordering::Relaxed);
                for record in records {
                    collected.folded.add(record);
                }
                if let Some(events) = told.add(count, now) {
                    tracing::warn!(
                        target: "security",
                        events,
                        "no room in the journal: uses leave counts and no events"
                    );
                }
            }
            Err(error) => {
                self.0.lost.fetch_add(UNREADABLE, Ordering::Relaxed);
                tracing::error!(%error, "uses could not be folded");
            }
        }
    }
}
