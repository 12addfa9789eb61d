//! The change feed: the one order in which changes that a decision depends on are committed.
//!
//! The update of the single row of `change_head` takes a lock that is held to the commit, so the
//! numbers are in commit order and without gaps. It is the last statement of its transaction, after
//! the audit head: one lock order everywhere.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::{change, change_head};
use super::{Conn, Result};
use crate::each;
use crate::time::Timestamp;

/// Rows a statement: `PostgreSQL` takes at most 65,535 parameters.
const INSERT_MAX: usize = 1000;

/// What kind of entity changed; with its id it names a cache entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Tenant,
    Service,
    Consumer,
    Key,
    Pepper,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tenant => "tenant",
            Self::Service => "service",
            Self::Consumer => "consumer",
            Self::Key => "key",
            Self::Pepper => "pepper",
        }
    }
}

/// Steps the counter and notes what changed under the new number, which it answers.
pub async fn step(conn: &mut Conn, touched: &[(Kind, String)], now: Timestamp) -> Result<i64> {
    let seq: i64 = each!(conn, c => diesel::update(change_head::table)
        .set(change_head::seq.eq(change_head::seq + 1))
        .returning(change_head::seq)
        .get_result(c)
        .await)?;
    let row = |(kind, id): &(Kind, String)| {
        (
            change::seq.eq(seq),
            change::kind.eq(kind.as_str()),
            change::id.eq(id.clone()),
            change::at.eq(now),
        )
    };
    match conn {
        // diesel-async has no batch insert for SQLite, where a statement costs no round trip.
        Conn::Sqlite(c) => {
            for touched in touched {
                diesel::insert_into(change::table)
                    .values(row(touched))
                    .on_conflict_do_nothing()
                    .execute(&mut **c)
                    .await?;
            }
        }
        // Everybody waits for this row lock: few round trips.
        Conn::Postgres(c) => {
            for touched in touched.chunks(INSERT_MAX) {
                let rows: Vec<_> = touched.iter().map(row).collect();
                diesel::insert_into(change::table)
                    .values(rows)
                    .on_conflict_do_nothing()
                    .execute(&mut **c)
                    .await?;
            }
        }
    }
    Ok(seq)
}
