//! Events newest first: they are walked back in windows of time that double, so that `PostgreSQL` looks into few
//! partitions.
//!
//! A walk that takes long, because few events meet what is asked, pauses between two windows and says where
//! to go on.
//!
//! Where a key has no event for long, its counts say where to go on: planning a look into hundreds of
//! partitions takes longer than all the rest.

use std::collections::VecDeque;
use std::time::Duration;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::events::{Part, StoredEvent, Wanted, load, sizes};
use crate::clock::Clock;
use crate::db::schema::usage_hour;
use crate::db::{self, Conn};
use crate::each;
use crate::page::{Page, PageRequest, Position, fitting};
use crate::time::Timestamp;
use crate::usage::counts::HOUR_MS;
use crate::usage::retention::COUNTS_KEPT;

/// So many hours are looked into at once, where they are told apart: each is compared with each partition, so
/// what planning takes grows with their square.
const HOURS_TOGETHER: usize = 16;

/// So many hours of a key are told apart at once.
const HOURS_KNOWN: usize = 256;

/// A window takes at most some times as long as those before it together, so what has not paused until then
/// ends before who asks stops waiting.
pub const PAUSE_AFTER: Duration = Duration::from_millis(400);

/// How much is read at once.
#[derive(Clone, Copy, Debug)]
pub struct Most {
    pub events: i64,
    /// Bytes, of which one event alone may take more; `None` where so many events are few.
    pub bytes: Option<i64>,
}

/// Events newest first, and where a walk that paused goes on.
#[derive(Clone, Debug)]
pub struct Walked {
    pub events: Vec<StoredEvent>,
    pub paused: Option<Position>,
}

/// The hours in which a key was used, as its counts say.
#[derive(Debug)]
struct UsedHours {
    /// The beginnings of those that were not looked into so far, newest first.
    hours: VecDeque<i64>,
    /// They are all that there are from here on.
    down_to: i64,
}

/// A page, newest first. One that paused has fewer events than there is room for, and a next one.
pub async fn newest(
    conn: &mut Conn,
    wanted: &Wanted,
    page: &PageRequest,
) -> db::Result<Page<StoredEvent>> {
    let after = page.after.as_ref();
    let most = Most {
        events: page.fetch(),
        bytes: None,
    };
    let walked = walk(conn, wanted, after, most, PAUSE_AFTER).await?;
    let page = page.page(walked.events, StoredEvent::position);
    Ok(Page {
        next: page.next.or(walked.paused),
        ..page
    })
}

/// Up to `most` of the events behind `after`, newest first; fewer when there are no more, or when it pauses:
/// that is when they are as many bytes, and after the first window that ends later than `pause_after`.
pub async fn walk(
    conn: &mut Conn,
    wanted: &Wanted,
    after: Option<&Position>,
    most: Most,
    pause_after: Duration,
) -> db::Result<Walked> {
    let began_us = Clock::uptime_us();
    let mut paused = None;
    let mut rows: Vec<StoredEvent> = Vec::new();
    let mut bytes_left = most.bytes;
    let oldest = wanted.filter.from.map_or(0, Timestamp::millis);
    let oldest = oldest.max(wanted.oldest.millis());
    // A clock that is ahead may have stamped what is not yet.
    let mut high = wanted.filter.to.map_or(i64::MAX, Timestamp::millis);
    let mut end = high.min(wanted.now.millis());
    if let Some(after) = after {
        high = high.min(after.at.millis().saturating_add(1));
        end = end.min(high);
    }
    let mut span = HOUR_MS;
    let mut is_first = true;
    let mut used = None;
    while high > oldest {
        let wide = end.saturating_sub(span).max(oldest);
        let mut left = most.events.saturating_sub(count(&rows));
        if let Some(key) = wanted.filter.key.as_ref().filter(|_| !is_first)
            && used.as_ref().is_none_or(UsedHours::is_over)
        {
            used = used_between(conn, wanted, key, (oldest, high)).await?;
        }
        let (low, hours) = match &mut used {
            Some(used) => used.next(span),
            None => (wide, None),
        };
        let part = Part::Window {
            low,
            high,
            after,
            hours,
        };
        let mut is_full = false;
        if let Some(bytes) = &mut bytes_left {
            // Before they are read: a few that are large are as much as many that are not.
            let sizes = sizes(conn, wanted, &part, left).await?;
            is_full = spend(&sizes, bytes, &mut left, rows.is_empty());
        }
        let found = load(conn, wanted, &part, left).await?;
        let is_empty = found.is_empty();
        rows.extend(found);
        if is_full {
            let last = rows.last().map(StoredEvent::position);
            paused = Some(last.unwrap_or_else(|| before_all_at(high)));
            break;
        }
        if count(&rows) >= most.events {
            break;
        }
        high = low;
        if let Some(key) = wanted.filter.key.as_ref().filter(|_| is_empty)
            && used.is_none()
        {
            high = low.min(last_use(conn, wanted, key, low).await?);
        }
        end = high;
        if !is_first {
            span = span.saturating_mul(2);
        }
        is_first = false;
        let took = Duration::from_micros(Clock::uptime_us().saturating_sub(began_us));
        if high > oldest && took >= pause_after {
            paused = Some(before_all_at(high));
            break;
        }
    }
    Ok(Walked {
        events: rows,
        paused,
    })
}

/// Takes events of these sizes from the bytes that are left; `true` if not all of them fit, which is when
/// `limit` is lowered to those that do. Otherwise it stays: others may be stored before these are read, newer ones
/// among them, which would push out the oldest of as many.
fn spend(sizes: &[i64], bytes_left: &mut i64, limit: &mut i64, is_first: bool) -> bool {
    // A page has one at least, or the next would begin where it began.
    let fit = fitting(sizes, *bytes_left).max(usize::from(is_first));
    let spent = sizes.iter().take(fit);
    *bytes_left = spent.fold(*bytes_left, |left, size| left.saturating_sub(*size));
    let is_full = fit < sizes.len();
    if is_full {
        *limit = i64::try_from(fit).unwrap_or(i64::MAX);
    }
    is_full
}

fn count(rows: &[StoredEvent]) -> i64 {
    i64::try_from(rows.len()).unwrap_or(i64::MAX)
}

/// Before all events of this instant: none of them was looked at.
fn before_all_at(millis: i64) -> Position {
    Position {
        at: Timestamp::from_millis(millis),
        id: String::new(),
    }
}

/// Behind `before` there is no event of `key` at this time or later, as its counts say. What is older than
/// they are kept they know nothing of.
async fn last_use(conn: &mut Conn, wanted: &Wanted, key: &str, before: i64) -> db::Result<i64> {
    use diesel::dsl::max;
    let hour: Option<i64> = each!(conn, c => usage_hour::table
        .filter(usage_hour::tenant_id.concat("").eq(&wanted.tenant_id))
        .filter(usage_hour::key_id.eq(key))
        .filter(usage_hour::start.lt(before))
        .select(max(usage_hour::start))
        .first(c)
        .await)?;
    Ok(match hour {
        Some(start) => start.saturating_add(HOUR_MS),
        None => wanted.now.minus(COUNTS_KEPT).millis(),
    })
}

/// The newest hours from `low` to `high` in which `key` was used: `PostgreSQL` plans for their partitions alone.
/// `None` where nobody counted, and for `SQLite`.
async fn used_between(
    conn: &mut Conn,
    wanted: &Wanted,
    key: &str,
    (low, high): (i64, i64),
) -> db::Result<Option<UsedHours>> {
    // Of the hour that this lies in the counts may be gone.
    let counted = wanted.now.minus(COUNTS_KEPT).millis();
    let counted = counted.saturating_add(HOUR_MS - counted.rem_euclid(HOUR_MS));
    if matches!(conn, Conn::Sqlite(_)) || high <= counted {
        return Ok(None);
    }
    let low = low.max(counted);
    let limit = i64::try_from(HOURS_KNOWN).unwrap_or(i64::MAX);
    let hours: Vec<i64> = each!(conn, c => usage_hour::table
        .filter(usage_hour::tenant_id.concat("").eq(&wanted.tenant_id))
        .filter(usage_hour::key_id.eq(key))
        .filter(usage_hour::start.gt(low.saturating_sub(HOUR_MS)))
        .filter(usage_hour::start.lt(high))
        .select(usage_hour::start)
        .distinct()
        .order(usage_hour::start.desc())
        .limit(limit)
        .load(c)
        .await)?;
    let oldest = hours.last().filter(|_| hours.len() >= HOURS_KNOWN);
    Ok(Some(UsedHours {
        down_to: oldest.map_or(low, |oldest| low.max(*oldest)),
        hours: hours.into(),
    }))
}

impl UsedHours {
    fn is_over(&self) -> bool {
        self.hours.is_empty()
    }

    /// The next of them that last as long together, and down to where these are all.
    fn next(&mut self, span: i64) -> (i64, Option<Vec<i64>>) {
        let count = usize::try_from(span / HOUR_MS).unwrap_or(HOURS_TOGETHER);
        let count = count.clamp(1, HOURS_TOGETHER).min(self.hours.len());
        let next: Vec<i64> = self.hours.drain(..count).collect();
        let down_to = next.last().filter(|_| !self.is_over());
        (down_to.map_or(self.down_to, |first| *first), Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_all_fit_there_is_room_for_what_is_stored_meanwhile() {
        for (sizes, is_first, is_full, limit, left) in [
            (&[][..], true, false, 1000, 10),
            (&[4, 6], true, false, 1000, 0),
            (&[4, 7], true, true, 1, 6),
            (&[11, 1], true, true, 1, -1),
            (&[11], true, false, 1000, -1),
            (&[11], false, true, 0, 10),
        ] {
            let (mut bytes, mut most) = (10, 1000);
            assert_eq!(spend(sizes, &mut bytes, &mut most, is_first), is_full);
            assert_eq!((most, bytes), (limit, left), "{sizes:?}");
        }
    }
}
