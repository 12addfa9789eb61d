//! From the journal into the ledger: several blocks by one transaction, each as a batch of its own, and
//! while one group is stored the next is read and made ready.
//!
//! 1. Blocks that are new are sent, oldest first. One that the ledger does not take fails its group; then
//!    the blocks of the group are sent one by one, and the one that fails alone waits in the journal while the
//!    others pass it by. After some in a row it may be the ledger: then the rest is passed by untried, so that
//!    what comes next never waits for them.
//! 2. What was passed by is sent again, each minute and never before what is new. After some in a row that are
//!    not taken it is left there too, and goes on behind them the next time; so it does after a few groups, because
//!    what is new comes meanwhile.
//!
//! So a ledger that takes nothing is asked a few times and no more, however much waits; and no number of blocks
//! that it does not take stops one that it does. Nothing of them is given up: what is wrong may be the ledger.
//! When no block at all was taken, it is, and none is said to be set aside.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::task::block_in_place;

use super::codec;
use super::flush::FOLDED;
use super::fold::Folded;
use super::leave::Leaving;
use super::ledger::{Ledger, UNREADABLE};
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

/// A block that was not taken is tried again so much later, at the latest.
const ASIDE_FOR: Duration = Duration::from_mins(1);

/// When so many blocks in a row are not taken, it may not be the blocks.
const REFUSED_MAX: usize = 4;

/// So many groups of what was passed by are sent at a time.
const AGAIN_MAX: usize = 4;

/// So many appended bytes are left in the journal's log.
const LOG_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What is kept from one time to the next.
#[derive(Debug, Default)]
pub(super) struct Progress {
    refusals: Refusals,
    /// Blocks up to this number were not taken or are passed by, those behind it are new.
    passed: i64,
    /// The blocks that were not taken while others were.
    aside: BTreeSet<i64>,
    /// How far what was passed by was tried again, and when that goes on.
    again: i64,
    again_at: Option<Instant>,
    /// Whether it may have been the ledger since that began: then it begins anew at once.
    is_doubtful: bool,
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
    /// How many were not taken since one was.
    refused_in_a_row: usize,
}

/// Blocks that are sent, by their numbers.
struct Stretch {
    /// They come behind this one: it grows with each that is not taken.
    after: i64,
    to: i64,
    /// Whether they were tried before.
    is_again: bool,
}

/// Which blocks are read.
struct Wanted {
    /// Behind this number.
    after: i64,
    /// Up to this one.
    to: i64,
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
    /// Step 2, for what is in the journal now. Answers how many batches it stored. It goes on if the caller
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
            refused_in_a_row: 0,
        };
        let mut progress = self.0.storing.lock().await;
        self.checkpoint(&run).await;
        if progress.is_careful {
            // Blocks are read and made ready only for a ledger that takes something again.
            let nothing = async |_: &mut Conn| db::Result::Ok(());
            self.0.ledger.write(nothing).await?;
        }
        let drained = self.drain(&mut run, &mut progress).await;
        // Whatever ended it: what was not taken before is told of.
        let stored = self.settle(run, &mut progress);
        drained.and(stored)
    }

    /// Steps 1 and 2.
    async fn drain(&self, run: &mut Run, progress: &mut Progress) -> db::Result<()> {
        let newest = self.newest(&run.journal).await?;
        let now = self.0.clock.monotonic();
        let later = now + ASIDE_FOR;
        let is_due = *progress.again_at.get_or_insert(later) <= now;
        let mut new = Stretch {
            after: progress.passed,
            to: newest,
            is_again: false,
        };
        let mut passed = Stretch {
            after: progress.again,
            to: progress.passed,
            is_again: true,
        };
        let sent = self.send(run, progress, &mut new).await;
        progress.passed = new.after;
        let mut is_all = sent?;
        if !is_all {
            progress.passed = newest;
        }
        if is_due {
            let sent = self.send(run, progress, &mut passed).await;
            progress.again = passed.after;
            if sent? {
                progress.again = 0;
                is_all &= !std::mem::take(&mut progress.is_doubtful);
            } else {
                is_all = false;
            }
        }
        if !is_all {
            progress.again_at = Some(now);
        } else if is_due {
            progress.again_at = Some(later);
        }
        Ok(())
    }

    /// Answers whether all of them were tried; of what is sent again it may be the first few groups.
    async fn send(
        &self,
        run: &mut Run,
        progress: &mut Progress,
        stretch: &mut Stretch,
    ) -> db::Result<bool> {
        run.refused_in_a_row = 0;
        let mut next = self
            .ready(run, progress.wanted(stretch, stretch.after))
            .await?;
        let mut groups = 0;
        while let Some(ready) = next {
            if stretch.is_again && groups == AGAIN_MAX {
                return Ok(false);
            }
            groups += 1;
            let last = ready.sent.numbers.last().copied().unwrap_or(i64::MAX);
            let mut wanted = progress.wanted(stretch, last);
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
                    let goes_on = self.refused(run, progress, stretch, sent.numbers, error);
                    if !goes_on.await? {
                        return Ok(false);
                    }
                    next = self.ready(run, progress.wanted(stretch, last)).await?;
                }
            }
        }
        Ok(true)
    }

    /// The group of these blocks was not stored: sends them one by one. Answers whether others may be taken.
    async fn refused(
        &self,
        run: &mut Run,
        progress: &mut Progress,
        stretch: &mut Stretch,
        numbers: Vec<i64>,
        error: db::Error,
    ) -> db::Result<bool> {
        let error = progress.of_the_blocks(error, stretch)?;
        if let [number] = *numbers {
            return Ok(run.refuse(stretch, number, error));
        }
        for number in numbers {
            let mut wanted = progress.wanted(stretch, number - 1);
            wanted.to = number;
            let Some(ready) = self.ready(run, wanted).await? else {
                continue;
            };
            match self.write(ready.group).await {
                Ok(written) => {
                    progress.refusals = ready.refusals;
                    self.taken(run, progress, ready.sent, &written).await?;
                }
                Err(error) => {
                    let error = progress.of_the_blocks(error, stretch)?;
                    if !run.refuse(stretch, number, error) {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    /// Tells of what was not taken. Answers how many batches were stored.
    ///
    /// # Errors
    /// Why none was: then it seems to be the ledger, and all of them are tried again at once.
    fn settle(&self, run: Run, progress: &mut Progress) -> db::Result<usize> {
        for (number, error) in run.refused {
            if !run.is_taken && !progress.aside.contains(&number) {
                progress.again_at = Some(self.0.clock.monotonic());
                progress.is_doubtful = true;
                return Err(error);
            }
            tracing::error!(
                target: "security",
                number,
                %error,
                cause = error.source().map(tracing::field::display),
                "the ledger does not take a block of uses: it waits for a minute, the others go on"
            );
            progress.aside.insert(number);
        }
        let aside = u64::try_from(progress.aside.len()).unwrap_or(u64::MAX);
        self.0.aside.store(aside, Ordering::Relaxed);
        Ok(run.stored)
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
        run.refused_in_a_row = 0;
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
            to,
            blocks_max,
            mut refusals,
        } = wanted;
        let (mut numbers, mut batches, mut bytes) = (Vec::new(), Vec::new(), 0);
        let (mut leaving, mut uses) = (Vec::new(), 0);
        while numbers.len() < blocks_max && bytes < BYTES_MAX && uses < USES_MAX {
            let next =
                async move |conn: &mut Conn| journal::next(conn, after, to, codec::FORM).await;
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
    /// The blocks of the stretch behind the number `after`.
    fn wanted(&self, stretch: &Stretch, after: i64) -> Wanted {
        Wanted {
            after,
            to: stretch.to,
            blocks_max: if self.is_careful { 1 } else { BLOCKS_MAX },
            refusals: self.refusals.clone(),
        }
    }

    /// # Errors
    /// The given one, unless another block may be taken all the same. A ledger that does not answer in time
    /// may not do so because of how large the block is; the second time that is looked at.
    fn of_the_blocks(&mut self, error: db::Error, stretch: &Stretch) -> db::Result<db::Error> {
        let is_of_the_blocks = match &error {
            db::Error::Query(_) | db::Error::Corrupt(_) | db::Error::Taken(_) => true,
            db::Error::Busy => self.is_careful || stretch.is_again,
            db::Error::Unavailable(_) | db::Error::Refused(_) | db::Error::AuditBroken(_) => false,
        };
        if is_of_the_blocks {
            return Ok(error);
        }
        self.is_careful = true;
        Err(error)
    }
}

impl Run {
    /// Answers whether others may be taken.
    fn refuse(&mut self, stretch: &mut Stretch, number: i64, error: db::Error) -> bool {
        stretch.after = number;
        self.refused.push((number, error));
        self.refused_in_a_row += 1;
        self.refused_in_a_row < REFUSED_MAX
    }
}
