//! One connection to either database, and a transaction on it.

use std::time::Duration;

use diesel::SqliteConnection;
use diesel_async::pooled_connection::deadpool::Object;
use diesel_async::sync_connection_wrapper::SyncConnectionWrapper;
use diesel_async::{AsyncPgConnection, SimpleAsyncConnection as _};

use super::{Error, OnConn, Result};

/// What `PostgreSQL` ends itself, after two seconds, it says in time, and that costs no connection.
pub(super) const LATE_MAX: Duration = Duration::from_millis(500);

pub(crate) type SqliteConn = SyncConnectionWrapper<SqliteConnection>;

/// One connection, leased from its pool for one piece of work.
#[expect(
    clippy::large_enum_variant,
    reason = "a lease is moved twice in its life"
)]
pub enum Conn {
    Sqlite(Object<SqliteConn>),
    Postgres(Object<AsyncPgConnection>),
}

/// Compiles one query text for both databases: `each!(conn, c => users.load(c).await)`.
#[macro_export]
macro_rules! each {
    ($conn:expr, $c:ident => $query:expr) => {
        match $conn {
            $crate::db::Conn::Sqlite($c) => {
                let $c = &mut **$c;
                $query
            }
            $crate::db::Conn::Postgres($c) => {
                let $c = &mut **$c;
                $query
            }
        }
    };
}

/// Rows of one statement: `PostgreSQL` takes at most 65,535 parameters, and a row may have some 10 KiB.
pub(crate) const ROWS_TOGETHER: usize = 250;

/// Inserts rows in as few round trips as there can be: `insert_all!(conn, users::table, rows)`.
///
/// diesel-async has no batch insert for `SQLite`, where a statement costs no round trip.
#[macro_export]
macro_rules! insert_all {
    ($conn:expr, $table:expr, $rows:expr) => {
        match $conn {
            $crate::db::Conn::Sqlite(c) => {
                for row in &*$rows {
                    diesel::insert_into($table)
                        .values(row)
                        .execute(&mut **c)
                        .await?;
                }
            }
            $crate::db::Conn::Postgres(c) => {
                for rows in $rows.chunks($crate::db::ROWS_TOGETHER) {
                    diesel::insert_into($table)
                        .values(rows)
                        .execute(&mut **c)
                        .await?;
                }
            }
        }
    };
}

impl Conn {
    pub(crate) async fn batch(&mut self, sql: &str) -> Result<()> {
        Ok(each!(self, c => c.batch_execute(sql).await)?)
    }

    /// What `work`, which changes nothing, brings, and the connection. `None` if in `PostgreSQL` it takes longer
    /// than `wait_max`: then the connection is closed, and its place in the pool is free at once. The driver closes
    /// the socket without waiting for the answer, and the server ends by itself what nobody hears of any more.
    pub(super) async fn ask<R, F>(mut self, wait_max: Duration, work: F) -> Option<(Self, R)>
    where
        R: Send,
        F: OnConn<R>,
    {
        let done = match self {
            Self::Sqlite(_) => Some(work(&mut self).await),
            Self::Postgres(_) => {
                let asked = tokio::time::timeout(wait_max, work(&mut self));
                asked.await.ok()
            }
        };
        let Some(done) = done else {
            tracing::debug!("gave up a connection that did not answer");
            self.discard();
            return None;
        };
        Some((self, done))
    }

    /// Closes the connection instead of giving it back: with it ends whatever it had open.
    pub(super) fn discard(self) {
        match self {
            Self::Sqlite(object) => drop(Object::take(object)),
            Self::Postgres(object) => drop(Object::take(object)),
        }
    }
}

/// An open transaction. Dropped unfinished, by a panic, it closes its connection.
pub(crate) struct Tx(pub(super) Option<Conn>);

impl Tx {
    #[expect(
        clippy::expect_used,
        reason = "only `end` takes the connection, and it takes self"
    )]
    pub(crate) fn conn(&mut self) -> &mut Conn {
        self.0
            .as_mut()
            .expect("a transaction that has not ended has its connection")
    }

    /// Commits if `done` is `Ok`, rolls back otherwise.
    pub(crate) async fn end<T, E: From<Error>>(
        mut self,
        done: std::result::Result<T, E>,
    ) -> std::result::Result<T, E> {
        let sql = if done.is_ok() { "COMMIT" } else { "ROLLBACK" };
        match (self.conn().batch(sql).await, done) {
            (Ok(()), done) => {
                drop(self.0.take());
                done
            }
            // The connection is dropped with whatever it still had open.
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error.into()),
        }
    }
}

impl Drop for Tx {
    fn drop(&mut self) {
        if let Some(conn) = self.0.take() {
            conn.discard();
        }
    }
}
