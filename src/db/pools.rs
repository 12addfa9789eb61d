//! The connections to a database, apart by what they are for, and the lease of one.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diesel::ConnectionError;
use diesel_async::AsyncPgConnection;
use diesel_async::pooled_connection::PoolError as ConnectError;
use diesel_async::pooled_connection::deadpool::{Object, Pool, PoolError};

use super::content::Content;
use super::{Conn, Error, Result, SqliteConn, Target, postgres, sqlite};

/// How much longer than anybody waits for it a connection may take to be made: nine ways to the database and back,
/// which may be far. Nobody else makes one in its place meanwhile, so no longer than somebody who was told
/// that the database is away takes to ask again a few times.
const CONNECT_MAX: Duration = Duration::from_secs(5);

tokio::task_local! {
    /// Whether this lease makes a connection.
    static CONNECTS: Arc<AtomicBool>;
}

#[derive(Clone)]
pub(super) enum Pools {
    /// One writer, so that `BEGIN IMMEDIATE` never meets another of ours; readers do not block it.
    Sqlite {
        writer: Pool<SqliteConn>,
        readers: Pool<SqliteConn>,
        loads: Pool<SqliteConn>,
        looks: Pool<SqliteConn>,
        longs: Pool<SqliteConn>,
        path: PathBuf,
        content: Content,
    },
    Postgres {
        pool: Pool<AsyncPgConnection>,
        loads: Pool<AsyncPgConnection>,
        looks: Pool<AsyncPgConnection>,
        longs: Pool<AsyncPgConnection>,
    },
}

/// Which connections a piece of work is for: none of them stands before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Write,
    Read,
    Load,
    Look,
    Long,
}

/// The connections of a [`Lane`].
enum Pooled<'p> {
    Sqlite(&'p Pool<SqliteConn>),
    Postgres(&'p Pool<AsyncPgConnection>),
}

impl Pools {
    /// Connects to nothing yet.
    pub(super) fn open(target: &Target, content: Content) -> io::Result<Self> {
        Ok(match target {
            Target::Sqlite { path } => {
                sqlite::create_private_file(path)?;
                Self::Sqlite {
                    writer: sqlite::writer(path, content),
                    readers: sqlite::readers(path, sqlite::READERS),
                    loads: sqlite::readers(path, sqlite::READERS),
                    looks: sqlite::readers(path, sqlite::READERS),
                    longs: sqlite::readers(path, sqlite::LONG_READERS),
                    path: path.clone(),
                    content,
                }
            }
            Target::Postgres { url } => Self::Postgres {
                pool: postgres::pool(url, postgres::connections(content), "")?,
                loads: postgres::pool(url, postgres::LOAD_CONNECTIONS, postgres::LOAD_SETUP)?,
                looks: postgres::pool(url, 1, "")?,
                longs: postgres::pool(url, postgres::LONG_CONNECTIONS, "")?,
            },
        })
    }

    fn of(&self, lane: Lane) -> Pooled<'_> {
        match self {
            Self::Sqlite {
                writer,
                readers,
                loads,
                looks,
                longs,
                ..
            } => Pooled::Sqlite(match lane {
                Lane::Write => writer,
                Lane::Read => readers,
                Lane::Load => loads,
                Lane::Look => looks,
                Lane::Long => longs,
            }),
            Self::Postgres {
                pool,
                loads,
                looks,
                longs,
            } => Pooled::Postgres(match lane {
                Lane::Write | Lane::Read => pool,
                Lane::Load => loads,
                Lane::Look => looks,
                Lane::Long => longs,
            }),
        }
    }

    pub(super) fn connections(&self, lane: Lane) -> usize {
        match self.of(lane) {
            Pooled::Sqlite(pool) => pool.status().max_size,
            Pooled::Postgres(pool) => pool.status().max_size,
        }
    }

    /// Closes the connections to `PostgreSQL` that nobody uses at the moment. For who was not answered though
    /// what was asked costs nothing: then those are dead too, and each would be found to be so by somebody else.
    pub(super) fn forget_idle(&self) {
        match self {
            Self::Sqlite { .. } => {}
            Self::Postgres {
                pool,
                loads,
                looks,
                longs,
            } => {
                for pool in [pool, loads, looks, longs] {
                    drop(pool.retain(|_, _| false));
                }
            }
        }
    }

    pub(super) async fn lease(&self, lane: Lane, wait: Duration) -> Result<Conn> {
        match self.of(lane) {
            Pooled::Sqlite(pool) => lease(pool, wait).await.map(Conn::Sqlite),
            Pooled::Postgres(pool) => lease(pool, wait).await.map(Conn::Postgres),
        }
    }
}

fn refused(error: &PoolError) -> Option<Error> {
    match error {
        PoolError::Backend(ConnectError::ConnectionError(
            ConnectionError::InvalidConnectionUrl(text),
        )) => Some(Error::Refused(text.clone())),
        _ => None,
    }
}

/// Says to the lease that it makes a connection, and waits for none.
pub(super) fn note_connecting() {
    // A connection that is made outside of any lease is nobody's to note.
    let _noted = CONNECTS.try_with(|connects| connects.store(true, Ordering::Relaxed));
}

/// A connection or, if there is none after `wait`, [`Error::Busy`]. Only to be polled on the database's own runtime.
async fn lease<C>(pool: &Pool<C>, wait: Duration) -> Result<Object<C>>
where
    C: diesel_async::pooled_connection::PoolableConnection + Send + 'static,
    for<'a> diesel::dsl::select<diesel::dsl::AsExprOf<i32, diesel::sql_types::Integer>>:
        diesel_async::methods::LoadQuery<'a, C, i32>,
    diesel::query_builder::SqlQuery: diesel::query_builder::QueryFragment<C::Backend>,
{
    let connects = Arc::new(AtomicBool::new(false));
    let pool = pool.clone();
    let getting = async move { pool.get().await };
    let mut getting = Box::pin(CONNECTS.scope(Arc::clone(&connects), getting));
    match tokio::time::timeout(wait, &mut getting).await {
        Ok(Ok(object)) => Ok(object),
        Ok(Err(deadpool_error)) => {
            Err(refused(&deadpool_error)
                .unwrap_or_else(|| Error::Unavailable(deadpool_error.into())))
        }
        Err(_elapsed) => {
            // It has a place in the pool, and is there for the next one; who only waits for a place leaves the line.
            if connects.load(Ordering::Relaxed) {
                tokio::spawn(tokio::time::timeout(CONNECT_MAX, getting));
            }
            Err(Error::Busy)
        }
    }
}
