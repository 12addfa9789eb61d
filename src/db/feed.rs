//! The change feed: the one order in which changes that a decision depends on are committed.
//!
//! The update of the single row of `change_head` takes a lock that is held to the commit, so the
//! numbers are in commit order and without gaps. It is the last statement of its transaction, after
//! the audit head: one lock order everywhere.

use diesel::dsl::case_when;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};

use super::schema::{change, change_head};
use super::{Conn, Result};
use crate::each;
use crate::insert_all;
use crate::time::Timestamp;

/// What kind of entity changed; with its id it names a cache entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Tenant,
    Service,
    Consumer,
    Key,
    /// The lookup id of a key that has a new secret: what was unknown may be it.
    LookupId,
    Pepper,
    /// A key that tokens are signed with.
    SigningKey,
    /// A token that was revoked by itself.
    Token,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Service => "service",
            Self::Consumer => "consumer",
            Self::Key => "key",
            Self::LookupId => "lookup_id",
            Self::Pepper => "pepper",
            Self::SigningKey => "signing_key",
            Self::Token => "token",
        }
    }

    /// `None` for a kind that a newer version of the program knows.
    pub fn parse(text: &str) -> Option<Self> {
        [
            Self::Tenant,
            Self::Service,
            Self::Consumer,
            Self::Key,
            Self::LookupId,
            Self::Pepper,
            Self::SigningKey,
            Self::Token,
        ]
        .into_iter()
        .find(|kind| kind.as_str() == text)
    }
}

/// One entity of one change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Changed {
    pub seq: i64,
    /// `None` for a kind that only a newer version of the program knows.
    pub kind: Option<Kind>,
    pub id: String,
    pub at: Timestamp,
}

#[derive(Insertable, PartialEq, Eq, PartialOrd, Ord)]
#[diesel(table_name = change)]
struct NewChange<'a> {
    seq: i64,
    kind: &'a str,
    id: &'a str,
    at: Timestamp,
}

impl From<(i64, String, String, Timestamp)> for Changed {
    fn from((seq, kind, id, at): (i64, String, String, Timestamp)) -> Self {
        Self {
            seq,
            kind: Kind::parse(&kind),
            id,
            at,
        }
    }
}

/// The counter: read before anything else of a reading, it is that reading's `as_of`.
pub async fn head(conn: &mut Conn) -> Result<i64> {
    Ok(each!(conn, c => change_head::table
        .select(change_head::seq)
        .first(c)
        .await)?)
}

/// The oldest change that is still known.
pub async fn oldest(conn: &mut Conn) -> Result<Option<i64>> {
    Ok(each!(conn, c => change::table
        .select(diesel::dsl::min(change::seq))
        .first(c)
        .await)?)
}

/// The counter, and the changes from the number `position` on, oldest first: whole changes among the first `rows`
/// rows. `None` if none behind `position` is whole among them; then who asks for more finds it. By one statement,
/// because the way to the database may be long.
///
/// The answer begins with `position`, or the feed was cut there; where the counter stands below it, with the number
/// of the counter.
pub async fn from(
    conn: &mut Conn,
    position: i64,
    rows: i64,
) -> Result<Option<(i64, Vec<Changed>)>> {
    let (mut counter, mut found) = rows_from(conn, position, rows).await?;
    if counter.is_none() {
        // There is no change yet. The counter before them: it must not stand behind what is read.
        counter = Some(head(conn).await?);
        (_, found) = rows_from(conn, position, rows).await?;
    }
    if i64::try_from(found.len()).unwrap_or(i64::MAX) >= rows
        && let Some(last) = found.last().map(|changed| changed.seq)
    {
        // It may have more rows than were read.
        found.retain(|changed| changed.seq < last);
        if found.last().is_none_or(|changed| changed.seq <= position) {
            return Ok(None);
        }
    }
    Ok(counter.map(|counter| (counter, found)))
}

type Row = (i64, String, String, Timestamp);

/// The counter is `None` where no row is found.
async fn rows_from(
    conn: &mut Conn,
    position: i64,
    rows: i64,
) -> Result<(Option<i64>, Vec<Changed>)> {
    // No joins: the rows of one would all be sorted before the first of them is taken.
    let counter = change_head::table.select(change_head::seq).single_value();
    let first = change_head::table
        .select(case_when(change_head::seq.lt(position), change_head::seq).otherwise(position))
        .single_value();
    let found: Vec<(Option<i64>, Row)> = each!(conn, c => change::table
        .filter(change::seq.nullable().ge(first))
        .order((change::seq, change::kind, change::id))
        .select((counter, (change::seq, change::kind, change::id, change::at)))
        .limit(rows)
        .load(c)
        .await)?;
    let counter = found.iter().find_map(|(counter, _)| *counter);
    let found = found.into_iter().map(|(_, row)| Changed::from(row));
    Ok((counter, found.collect()))
}

/// The change of one number; empty if it is not known any more.
pub async fn at(conn: &mut Conn, seq: i64) -> Result<Vec<Changed>> {
    let rows: Vec<(i64, String, String, Timestamp)> = each!(conn, c => change::table
        .filter(change::seq.eq(seq))
        .order((change::kind, change::id))
        .select((change::seq, change::kind, change::id, change::at))
        .load(c)
        .await)?;
    Ok(rows.into_iter().map(Changed::from).collect())
}

/// Forgets changes from before `at`, but never the last of them: whoever stands there goes on with the first that
/// came after it, which may have been made just now. A node that has not followed for so long begins anew.
pub async fn cut(conn: &mut Conn, at: Timestamp) -> Result<usize> {
    if !super::alone(conn, "cut changes").await? {
        return Ok(0);
    }
    let last: Option<i64> = each!(conn, c => change::table
        .filter(change::at.lt(at))
        .select(change::seq)
        .order(change::seq.desc())
        .first(c)
        .await
        .optional())?;
    let Some(last) = last else {
        return Ok(0);
    };
    Ok(each!(conn, c => diesel::delete(change::table
            .filter(change::at.lt(at))
            .filter(change::seq.lt(last)))
        .execute(c)
        .await)?)
}

/// Steps the counter and notes what changed under the new number, which it answers.
pub async fn step(conn: &mut Conn, touched: &[(Kind, String)], now: Timestamp) -> Result<i64> {
    let seq: i64 = each!(conn, c => diesel::update(change_head::table)
        .set(change_head::seq.eq(change_head::seq + 1))
        .returning(change_head::seq)
        .get_result(c)
        .await)?;
    let mut rows: Vec<NewChange<'_>> = touched
        .iter()
        .map(|(kind, id)| NewChange {
            seq,
            kind: kind.as_str(),
            id,
            at: now,
        })
        .collect();
    rows.sort_unstable();
    rows.dedup();
    // Everybody waits for this row lock.
    insert_all!(conn, change::table, rows);
    Ok(seq)
}
