//! How long the ledger keeps what: events for a time and within so many bytes, counts for longer.
//!
//! What is old is judged by the newest use that is stored, by the clocks of this node and of the database,
//! whichever is earliest, and only if uses speak for that time (`audit::age`).

use std::time::Duration;

use tokio::time::Instant;

use super::Usage;
use super::store::retention::{Part, ROWS_MAX};
use super::store::{partition, retention};
use crate::audit::age;
use crate::db::{self, Conn};
use crate::time::{Span, Timestamp};
use crate::usage::counts::{self, HOUR_MS};

/// Counts are kept so long.
pub(super) const COUNTS_KEPT: Span = Span::days(400);

/// Counts by the minute.
pub(super) const MINUTES_KEPT: Span = Span::days(7);

/// Those before this are not kept: whole minutes, and one more than the last seven days have, for who works out
/// their beginning and asks a moment later.
pub(super) fn minutes_from(now: Timestamp) -> i64 {
    counts::start(now.minus(MINUTES_KEPT), counts::MINUTE_MS) - counts::MINUTE_MS
}

/// In `SQLite` what goes is deleted by a thread of the node, on the core of those that answer if there is only
/// one: so few rows delay whoever asks meanwhile by half a millisecond as a rule.
const ROWS_GENTLY: i64 = 20;

/// The wait before such rows when the time to be gentle is almost over: double that with five minutes left, and
/// so on, so that few notice what is done soon, and much is done in time.
const WAIT: Duration = Duration::from_millis(1);
const WAIT_DOUBLED_EACH: Duration = Duration::from_mins(5);
const WAIT_DOUBLED_MAX: u64 = 6;

/// Beyond the room that there is by this share of it, hours go as fast as they can.
const ROOM_SHARE: u64 = 20;

/// Hours for which `PostgreSQL` has a partition before there is an event.
const HOURS_AHEAD: i64 = 24;

/// What a cut took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// Whole hours of events.
    pub hours: u64,
    /// Of them, those that were not old, but more than there is room for.
    pub hours_for_room: u64,
    /// The end of the last of them.
    pub until: Option<Timestamp>,
    /// There is something that seems to be old, but nothing speaks for the time: it was kept.
    pub is_held: bool,
    /// There is more to go: this was told after a while.
    pub is_part: bool,
}

/// A cut that ended early: what it took until then is gone.
#[derive(Debug)]
pub struct EndedEarly {
    pub cut: Cut,
    pub error: db::Error,
}

/// What age is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Judged {
    pub(super) now: Timestamp,
    /// Otherwise nothing is old.
    pub(super) is_believed: bool,
}

/// Counts before this are not kept: whole days, so that the trail has a line a day of it and no more.
pub(super) fn counts_from(now: Timestamp) -> i64 {
    counts::start(now.minus(COUNTS_KEPT), counts::DAY_MS)
}

/// What is to be kept.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub events: Span,
    pub bytes_max: u64,
    /// Counts from this time on, however old they are: the audit trail does not say of them that they went.
    pub counts_since: Timestamp,
    /// Until then what goes from `SQLite` goes slowly, and faster and faster; then as fast as it can.
    pub gently_until: Instant,
    /// A cut that takes longer ends when a whole hour is gone, so that it can be told.
    pub told_after: Duration,
}

impl Usage {
    /// Makes room for what comes.
    ///
    /// # Errors
    /// The database's.
    pub async fn prepare_hours(&self) -> db::Result<()> {
        let now = partition::hour_of(self.clock.now().millis());
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                for hour in now..=now.saturating_add(HOURS_AHEAD) {
                    partition::ensure(conn, hour).await?;
                }
                Ok(())
            })
            .await
    }

    /// Deletes events that are old, or more than there is room for. The hour at hand stays.
    ///
    /// # Errors
    /// The database's, with what was cut until then.
    pub async fn cut_events(&self, keep: Keep) -> Result<Cut, EndedEarly> {
        let mut cut = Cut::default();
        match self.cut_into(&mut cut, keep).await {
            Ok(()) => Ok(cut),
            Err(error) => Err(EndedEarly { cut, error }),
        }
    }

    async fn cut_into(&self, cut: &mut Cut, keep: Keep) -> db::Result<()> {
        let Some(Judged { now, is_believed }) = self.judged().await? else {
            return Ok(());
        };
        let begun = Instant::now();
        let old = now.minus(keep.events).millis();
        let mut is_held = false;
        while let Some(hour) = self.oldest_hour(old).await? {
            if !is_believed {
                is_held = true;
                break;
            }
            if !self.drop_hour(hour, cut, keep, begun).await? {
                return Ok(());
            }
        }
        loop {
            let bytes = self.bytes().await?;
            if bytes <= keep.bytes_max {
                break;
            }
            let Some(hour) = self.oldest_hour(now.millis()).await? else {
                break;
            };
            let mut keep = keep;
            if bytes - keep.bytes_max > keep.bytes_max / ROOM_SHARE {
                keep.gently_until = begun;
            }
            if !self.drop_hour(hour, cut, keep, begun).await? {
                return Ok(());
            }
            cut.hours_for_room += 1;
        }
        cut.is_held = is_held;
        Ok(())
    }

    /// Deletes counts that are old, and batches whose events are; each part by itself, so that what is
    /// stored meanwhile waits for one part alone.
    ///
    /// # Errors
    /// The database's.
    pub async fn cut_counts(&self, keep: Keep) -> db::Result<()> {
        let judged = self.judged().await?;
        let Some(Judged { now, .. }) = judged.filter(|judged| judged.is_believed) else {
            return Ok(());
        };
        let minutes = minutes_from(now);
        let counts = counts_from(now).min(keep.counts_since.millis());
        for table in retention::COUNTS {
            let before = if table.is_by_minute { minutes } else { counts };
            let part = |part| {
                self.db.write(async move |conn: &mut Conn| {
                    retention::cut_counts(conn, table, before, part).await
                })
            };
            self.delete(keep, || false, part).await?;
        }
        let before = now.minus(keep.events).millis().min(minutes);
        let part = |part: Part| {
            self.db.write(async move |conn: &mut Conn| {
                retention::cut_batches(conn, before, part.rows).await
            })
        };
        self.delete(keep, || false, part).await.map(drop)
    }

    /// `None` for an empty ledger.
    pub(super) async fn judged(&self) -> db::Result<Option<Judged>> {
        let newest = async move |conn: &mut Conn| retention::newest(conn).await;
        let newest: Option<i64> = self.db.read(newest).await?;
        let Some(newest) = newest.map(Timestamp::from_millis) else {
            return Ok(None);
        };
        let clocks = self.db.bounded_by_clock(self.clock.now()).await?;
        let now = clocks.min(newest);
        let before = age::settled_before(now).millis();
        let settled: Option<i64> = self
            .db
            .read(async move |conn: &mut Conn| retention::newest_day_before(conn, before).await)
            .await?;
        Ok(Some(Judged {
            now,
            is_believed: age::is_believed(now, settled.map(Timestamp::from_millis)),
        }))
    }

    async fn oldest_hour(&self, before_ms: i64) -> db::Result<Option<i64>> {
        let hours = async move |conn: &mut Conn| retention::hours_before(conn, before_ms).await;
        let hours: Vec<i64> = self.db.read(hours).await?;
        Ok(hours.first().copied())
    }

    /// Answers whether all of it went: not if it is time to tell of those before it.
    async fn drop_hour(
        &self,
        hour: i64,
        cut: &mut Cut,
        keep: Keep,
        begun: Instant,
    ) -> db::Result<bool> {
        let has_some = cut.hours > 0;
        let is_time_to_tell = || has_some && begun.elapsed() > keep.told_after;
        // To the end: what is dropped after all must be counted.
        let part = |part| {
            self.db.write_to_end(async move |conn: &mut Conn| {
                retention::drop_hour(conn, hour, part).await
            })
        };
        if !self.delete(keep, is_time_to_tell, part).await? {
            cut.is_part = true;
            return Ok(false);
        }
        cut.hours += 1;
        let end = (hour + 1).saturating_mul(HOUR_MS);
        cut.until = cut.until.max(Some(Timestamp::from_millis(end)));
        Ok(true)
    }

    /// Deletes part after part, and answers whether nothing is left: not if `is_over` ended it.
    async fn delete<F>(
        &self,
        keep: Keep,
        is_over: impl Fn() -> bool,
        part: impl Fn(Part) -> F,
    ) -> db::Result<bool>
    where
        F: Future<Output = db::Result<Option<String>>>,
    {
        let mut from = String::new();
        while !is_over() {
            let left = self.gently_for(keep);
            let rows = match left {
                Some(left) => {
                    let doubled = left.as_secs() / WAIT_DOUBLED_EACH.as_secs();
                    tokio::time::sleep(WAIT * (1 << doubled.min(WAIT_DOUBLED_MAX))).await;
                    ROWS_GENTLY
                }
                None => ROWS_MAX,
            };
            let deleted = part(Part {
                from: from.clone(),
                rows,
            });
            match deleted.await {
                Ok(Some(next)) => from = next,
                Ok(None) => return Ok(true),
                // There is time to wait for whoever has the only writer.
                Err(db::Error::Busy) if left.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// How long what goes is to go slowly, if at all.
    fn gently_for(&self, keep: Keep) -> Option<Duration> {
        let left = keep.gently_until.saturating_duration_since(Instant::now());
        (self.db.is_sqlite() && !left.is_zero()).then_some(left)
    }

    async fn bytes(&self) -> db::Result<u64> {
        let bytes = async move |conn: &mut Conn| retention::bytes(conn).await;
        let bytes: i64 = self.db.read(bytes).await?;
        Ok(u64::try_from(bytes).unwrap_or_default())
    }
}
