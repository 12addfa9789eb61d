//! From the journal into the ledger: several blocks by one transaction, each as a batch of its own, and
//! while one group is stored the next is read and made ready.
//!
//! A block that the ledger does not take fails its group; then the blocks of the group are sent one by
//! one, and the one that fails alone waits in the journal while the others pass it by. It is tried again
//! after a minute, and nothing of it is given up: what is wrong may be the ledger. When no block at all is
//! taken, it is the ledger, and all of them wait.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::codec;
use super::fold::Folded;
use super::leave::Leaving;
use super::ledger::{FOLDED, Ledger, UNREADABLE};
use super::record::Batch;
use super::rules::{Refusals, Rules};
use super::store::batch::{Group, Written};
use super::store::journal::{self, Block};
use crate::db::{self, Conn, Db};

/// So many blocks go in one transaction: some seconds of a node.
const BLOCKS_MAX: usize = 16;

/// A group takes no further block beyond so many bytes: some 12,000 uses that differ in all.
const BYTES_MAX: i64 = 4 * 1024 * 1024;

/// Nor beyond so many uses, however few bytes they have: each is some 3 KB while it is made ready, with the
/// rows that it counts in, and two groups are there at a time.
const USES_MAX: usize = 12_000;

/// A block that was not taken is tried again so much later.
const ASIDE_FOR: Duration = Duration::from_mins(1);

/// When so many blocks are not taken and none is, it is not the blocks.
const REFUSED_MAX: usize = 4;

/// So many appended bytes are left in the journal's log.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is kept from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Progress {
    refusals: Refusals,
    /// The blocks that were not taken, and when they are tried again.
    aside: BTreeMap<i64, Instant>,
    /// Whether the last group did not come through: then the next one is a single block, that may be
    /// small enough to.
    is_careful: bool,
}

/// One time.
struct Run {
    journal: Db,
    rules: Arc<Rules>,
    stored: usize,
    /// Whether the ledger took anything, also what it had.
    is_taken: bool,
    /// The blocks that were not taken, and why.
    refused: Vec<(i64, db::Error)>,
}

/// Which blocks are read.
struct Wanted {
    /// Behind this number.
    after: i64,
    left_out: Vec<i64>,
    blocks_max: usize,
    refusals: Refusals,
}

/// Blocks that are ready for the ledger.
struct Ready {
    sent: Sent,
    group: Group,
    /// As they are when these are stored.
    refusals: Refusals,
}

/// What leaves the journal when the ledger has it.
struct Sent {
    numbers: Vec<i64>,
    bytes: i64,
    batches: Vec<Leaving>,
}

impl Ledger {
    /// Step 2, until the journal is empty. Answers how many batches it stored. It goes on if the caller
    /// stops waiting.
    ///
    /// # Errors
    /// The ledger's or the journal's; what was not stored waits.
    pub async fn store(&self, rules: Rules) -> db::Result<usize> {
        let this = self.clone();
        // On the heap: it is a large future, in all that waits for it.
        let store = Box::pin(async move { this.store_to_end(rules).await });
        self.0.ledger.spawn(None, store).await
    }

    async fn store_to_end(&self, rules: Rules) -> db::Result<usize> {
        let Some(journal) = self.0.journal.get() else {
            return Ok(0);
        };
        let mut run = Run {
            journal: journal.clone(),
            rules: Arc::new(rules),
            stored: 0,
            is_taken: false,
            refused: Vec::new(),
        };
        let mut progress = self.0.storing.lock().await;
        self.checkpoint(&run).await;
        if progress.is_careful {
            // Blocks are read and made ready only for a ledger that takes something again.
            let nothing = async |_: &mut Conn| db::Result::Ok(());
            self.0.ledger.write(nothing).await?;
        }
        self.drain(&mut run, &mut progress).await?;
        let until = self.0.clock.monotonic() + ASIDE_FOR;
        for (number, error) in run.refused {
            if !run.is_taken && !progress.aside.contains_key(&number) {
                return Err(error);
            }
            tracing::error!(
                target: "security",
                number,
                %error,
                cause = error.source().map(tracing::field::display),
                "the ledger does not take a block of uses: it waits for a minute, the others go on"
            );
            progress.aside.insert(number, until);
        }
        let aside = u64::try_from(progress.aside.len()).unwrap_or(u64::MAX);
        self.0.aside.store(aside, Ordering::Relaxed);
        Ok(run.stored)
    }

    async fn drain(&self, run: &mut Run, progress: &mut Progress) -> db::Result<()> {
        let mut next = self.ready(run, self.wanted(run, progress, 0)).await?;
        while let Some(ready) = next {
            let after = ready.sent.numbers.last().copied().unwrap_or(i64::MAX);
            let mut wanted = self.wanted(run, progress, after);
            wanted.refusals = ready.refusals.clone();
            let reading = self.clone();
            let (journal, rules) = (run.journal.clone(), Arc::clone(&run.rules));
            let following = async move { reading.read(&journal, &rules, wanted).await };
            let sent = ready.sent;
            let (written, following) = tokio::join!(
                self.write(ready.group),
                self.0.ledger.spawn(None, following)
            );
            match written {
                Ok(written) => {
                    progress.refusals = ready.refusals;
                    self.taken(run, progress, sent, &written).await?;
                    next = following?;
                }
                Err(error) => {
                    self.refused(run, progress, sent.numbers, error).await?;
                    next = self.ready(run, self.wanted(run, progress, after)).await?;
                }
            }
        }
        Ok(())
    }

    /// The group of these blocks was not stored: sends them one by one.
    async fn refused(
        &self,
        run: &mut Run,
        progress: &mut Progress,
        numbers: Vec<i64>,
        error: db::Error,
    ) -> db::Result<()> {
        if !progress.is_of_the_blocks(&error) {
            progress.is_careful = true;
            return Err(error);
        }
        if let [number] = *numbers {
            return run.refuse(number, error);
        }
        for number in numbers {
            let mut wanted = self.wanted(run, progress, number - 1);
            wanted.blocks_max = 1;
            let Some(ready) = self.ready(run, wanted).await? else {
                continue;
            };
            match self.write(ready.group).await {
                Ok(written) => {
                    progress.refusals = ready.refusals;
                    self.taken(run, progress, ready.sent, &written).await?;
                }
                Err(error) if progress.is_of_the_blocks(&error) => run.refuse(number, error)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the ledger has leaves the journal: its commit is on the disk by now.
    async fn taken(
        &self,
        run: &mut Run,
        progress: &mut Progress,
        sent: Sent,
        written: &[Written],
    ) -> db::Result<()> {
        run.is_taken = true;
        run.stored += written
            .iter()
            .filter(|one| matches!(one, Written::Stored { .. }))
            .count();
        progress.is_careful = false;
        for number in &sent.numbers {
            progress.aside.remove(number);
        }
        // In a box of its own: what leads here does not carry its size around.
        Box::pin(self.leave(sent.batches)).await?;
        self.remove(&run.journal, sent.numbers, sent.bytes).await
    }

    async fn remove(&self, journal: &Db, numbers: Vec<i64>, bytes: i64) -> db::Result<()> {
        journal
            .write_to_end(async move |conn: &mut Conn| journal::remove(conn, &numbers).await)
            .await?;
        self.0.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    async fn write(&self, group: Group) -> db::Result<Vec<Written>> {
        let now = self.0.clock.now();
        let write = async move |conn: &mut Conn| group.write(conn, now).await;
        self.0.ledger.write_to_end(write).await
    }

    fn wanted(&self, run: &Run, progress: &Progress, after: i64) -> Wanted {
        let now = self.0.clock.monotonic();
        let aside = progress.aside.iter();
        let aside = aside.filter(|(_, until)| **until > now);
        let mut left_out: Vec<i64> = aside.map(|(number, _)| *number).collect();
        left_out.extend(run.refused.iter().map(|(number, _)| number));
        Wanted {
            after,
            left_out,
            blocks_max: if progress.is_careful { 1 } else { BLOCKS_MAX },
            refusals: progress.refusals.clone(),
        }
    }

    async fn ready(&self, run: &Run, wanted: Wanted) -> db::Result<Option<Ready>> {
        self.read(&run.journal, &run.rules, wanted).await
    }

    /// Reads blocks and makes them ready; `None` when there are none.
    async fn read(
        &self,
        journal: &Db,
        rules: &Arc<Rules>,
        wanted: Wanted,
    ) -> db::Result<Option<Ready>> {
        let Wanted {
            mut after,
            left_out,
            blocks_max,
            mut refusals,
        } = wanted;
        let left_out: Arc<[i64]> = left_out.into();
        let (mut numbers, mut batches, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut leaving, mut uses) = (Vec::new(), 0);
        while numbers.len() < blocks_max && bytes < BYTES_MAX && uses < USES_MAX {
            let without = Arc::clone(&left_out);
            let next = async move |conn: &mut Conn| {
                journal::next(conn, after, &without, codec::FORM).await
            };
            let Some(block) = journal.read(next).await? else {
                break;
            };
            after = block.number;
            let length = i64::try_from(block.block.len()).unwrap_or(i64::MAX);
            // Tens of milliseconds for a long block: whoever else runs on these threads, such as the look-up of
            // a key, goes on on others.
            let Some(mut batch) = block_in_place(|| self.batch(&block)) else {
                self.remove(journal, vec![block.number], length).await?;
                continue;
            };
            if batch.node != self.0.node {
                self.inherit(&batch);
            }
            refusals.fold(&mut batch);
            uses += batch.records.len() + batch.counts_only.len();
            numbers.push(block.number);
            leaving.push(Leaving::of(&batch));
            batches.push(batch);
            bytes += length;
        }
        if numbers.is_empty() {
            return Ok(None);
        }
        Ok(Some(Ready {
            sent: Sent {
                numbers,
                bytes,
                batches: leaving,
            },
            group: block_in_place(|| Group::of(batches, rules))?,
            refusals,
        }))
    }

    /// `None` for a block that cannot be read: it would stand before all others for ever.
    fn batch(&self, block: &Block) -> Option<Batch> {
        let mut batch = Batch {
            node: block.node.clone(),
            number: block.number,
            records: Vec::new(),
            shed: 0,
            counts_only: Vec::new(),
        };
        let read = if block.kind == FOLDED {
            Folded::from_bytes(&block.block)
                .map_err(|error| error.to_string())
                .map(|folded| {
                    batch.shed = folded.uses();
                    batch.counts_only = folded.lines();
                })
        } else {
            let form = u8::try_from(block.form).unwrap_or_default();
            codec::read(form, &block.block)
                .map_err(|error| error.to_string())
                .map(|records| batch.records = records)
        };
        if let Err(error) = read {
            self.0.lost.fetch_add(UNREADABLE, Ordering::Relaxed);
            tracing::error!(
                target: "security",
                number = block.number,
                bytes = block.block.len(),
                error,
                "gave up a block of uses that cannot be read"
            );
            return None;
        }
        Some(batch)
    }

    /// No commit into the journal waits for the disk; this does, beside them. What it does not get
    /// done is done the next time.
    async fn checkpoint(&self, run: &Run) {
        if self.0.appended.load(Ordering::Relaxed) < LOG_BYTES_MAX {
            return;
        }
        self.0.appended.store(0, Ordering::Relaxed);
        let checkpoint = async move |conn: &mut Conn| journal::checkpoint(conn).await;
        if let Err(error) = run.journal.read(checkpoint).await {
            tracing::debug!(%error, "the journal's log is brought into its file later");
        }
    }
}

impl Progress {
    /// Whether another block may be taken all the same. A ledger that does not answer in time may not
    /// do so because of how large the block is; the second time that is looked at.
    fn is_of_the_blocks(&self, error: &db::Error) -> bool {
        match error {
            db::Error::Query(_) | db::Error::Corrupt(_) | db::Error::Taken(_) => true,
            db::Error::Busy => self.is_careful,
            db::Error::Unavailable(_) | db::Error::Refused(_) | db::Error::AuditBroken(_) => false,
        }
    }
}

impl Run {
    /// # Errors
    /// The given one when it seems that none would be taken.
    fn refuse(&mut self, number: i64, error: db::Error) -> db::Result<()> {
        if !self.is_taken && self.refused.len() + 1 >= REFUSED_MAX {
            return Err(error);
        }
        self.refused.push((number, error));
        Ok(())
    }
}
