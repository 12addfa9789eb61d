//! The two databases behind one face.
//!
//! Every query text is written once and compiled for both by [`each!`](crate::each). All database
//! work runs on a runtime of its own and is never polled by an HTTP worker: who waits may stop
//! waiting, what changes something always runs to its end. A dropped `SQLite` query future panics and a
//! transaction dropped between two statements keeps its lock, so none of that is ever dropped.
//!
//! What only reads from `PostgreSQL`, and the `BEGIN` of a transaction, is given up with its connection when it
//! takes longer than anybody waits: a server whose host died, or that is behind a way which swallows everything,
//! never says so, and new connections may lead to another.

mod conn;
mod content;
mod error;
pub mod feed;
mod migrate;
pub mod nodes;
mod pools;
mod postgres;
pub mod schema;
mod sqlite;
mod turns;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use diesel::result::Error as DieselError;
use futures_util::future::join_all;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Barrier;

use self::content::Content;
use self::pools::{Lane, Pools};
use crate::time::Timestamp;

pub use conn::Conn;
use conn::LATE_MAX;
pub(crate) use conn::{ROWS_TOGETHER, SqliteConn, Tx};
pub use error::{Error, Result};
pub use turns::{Turn, Turns};

/// The longest anybody waits for the database on behalf of an administrative request.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(2);

/// The longest that who asks for what takes long waits for a turn, and then for the answer: both together
/// less than the edge gives an answer.
pub(crate) const LONG_WAIT_MAX: Duration = Duration::from_secs(4);

/// The longest that a download, which has begun, waits for its next page.
pub(crate) const DOWNLOAD_WAIT_MAX: Duration = Duration::from_secs(30);

/// So much of what takes long is done at once for one tenant.
const LONG_OF_ONE: usize = 2;

/// Which database, from `database.url`.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a process")]
pub enum Target {
    Sqlite { path: PathBuf },
    Postgres { url: postgres::PgUrl },
}

impl Target {
    /// # Errors
    /// A text for the operator that names the fault, without the URL's password.
    pub fn parse(url: &str) -> std::result::Result<Self, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.contains(['?', '#']) {
                return Err("must be sqlite:<path of a file>".to_owned());
            }
            return Ok(Self::Sqlite {
                path: PathBuf::from(path),
            });
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Ok(Self::Postgres {
                url: postgres::PgUrl::parse(url)?,
            });
        }
        Err("must start with sqlite: or postgres://".to_owned())
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self, Self::Sqlite { .. })
    }

    /// The file of the usage ledger, where it is one beside the database.
    pub fn usage_file(&self) -> Option<PathBuf> {
        match self {
            Self::Sqlite { path } => Some(path.with_file_name(USAGE_FILE)),
            Self::Postgres { .. } => None,
        }
    }
}

/// The name of the file beside an embedded database that the usage ledger is in.
const USAGE_FILE: &str = "usage.db";

/// The database, cheap to clone.
#[derive(Clone)]
pub struct Db {
    pools: Pools,
    runtime: Arc<OwnRuntime>,
    turns: Turns,
    wait_max: Duration,
}

/// Shut down without waiting, so that the last handle may be dropped inside another runtime.
struct OwnRuntime(Option<Runtime>);

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// An async closure whose future is `Send`; the bound cannot be written on `AsyncFnOnce` itself.
pub trait Work<A, R>: AsyncFnOnce(A) -> R + FnOnce(A) -> <Self as Work<A, R>>::Running {
    type Running: Future<Output = R>;
}

impl<F, A, R, Running> Work<A, R> for F
where
    F: AsyncFnOnce(A) -> R + FnOnce(A) -> Running,
    Running: Future<Output = R>,
{
    type Running = Running;
}

/// What is done on one connection.
pub trait OnConn<R>:
    for<'c> AsyncFnOnce(&'c mut Conn) -> R
    + for<'c> Work<&'c mut Conn, R, Running: Send>
    + Send
    + 'static
{
}

impl<F, R> OnConn<R> for F where
    F: for<'c> AsyncFnOnce(&'c mut Conn) -> R
        + for<'c> Work<&'c mut Conn, R, Running: Send>
        + Send
        + 'static
{
}

/// The time by the database's own clock; `SQLite` has none of its own.
async fn clock(conn: &mut Conn) -> Result<Option<Timestamp>> {
    match conn {
        Conn::Sqlite(_) => Ok(None),
        Conn::Postgres(c) => postgres::clock(c).await.map(Some),
    }
}

/// Whether nobody else does `what` at the moment, on whatever node; nobody begins it until this transaction
/// ends. For what removes many rows in whatever order it finds them: two who did that could wait for each
/// other. Who writes in `SQLite` is alone.
pub(crate) async fn alone(conn: &mut Conn, what: &str) -> Result<bool> {
    match conn {
        Conn::Sqlite(_) => Ok(true),
        Conn::Postgres(c) => postgres::alone(c, what).await,
    }
}

impl Db {
    /// Prepares the pools; connects to nothing yet, so an unreachable database can be waited for.
    pub fn open(target: &Target) -> std::io::Result<Self> {
        Self::open_with(target, Content::Main)
    }

    /// The database of the usage ledger: the same one in `PostgreSQL`, a file beside it in `SQLite`; with
    /// connections and threads of its own, so that no batch of uses ever stands before a revocation.
    pub fn open_usage(target: &Target) -> std::io::Result<Self> {
        match target {
            Target::Sqlite { path } => {
                let path = path.with_file_name(USAGE_FILE);
                Self::open_with(&Target::Sqlite { path }, Content::Usage)
            }
            Target::Postgres { .. } => Self::open_with(target, Content::Usage),
        }
    }

    /// The journal of a node's uses, a file whatever the database is.
    pub fn open_journal(path: PathBuf) -> std::io::Result<Self> {
        Self::open_with(&Target::Sqlite { path }, Content::Journal)
    }

    fn open_with(target: &Target, content: Content) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(16)
            .thread_name(content.thread_name())
            .on_thread_start(move || content.give_way())
            .enable_all()
            .build()?;
        let pools = Pools::open(target, content)?;
        Ok(Self {
            turns: Turns::new(pools.connections(Lane::Long), LONG_OF_ONE),
            pools,
            runtime: Arc::new(OwnRuntime(Some(runtime))),
            wait_max: WAIT_MAX,
        })
    }

    pub fn is_sqlite(&self) -> bool {
        matches!(self.pools, Pools::Sqlite { .. })
    }

    /// The runtime that database work runs on, for tasks that must outlive a request.
    ///
    /// # Panics
    /// Never: the runtime lives as long as any handle of the database.
    #[expect(
        clippy::expect_used,
        reason = "only the drop of the last handle takes the runtime"
    )]
    pub fn runtime(&self) -> Handle {
        self.runtime
            .0
            .as_ref()
            .expect("it lives as long as this handle")
            .handle()
            .clone()
    }

    /// `now`, or the time by the database's own clock if that is earlier. `SQLite` has none of its own.
    ///
    /// # Errors
    /// The database's.
    pub async fn bounded_by_clock(&self, now: Timestamp) -> Result<Timestamp> {
        let own = self.read(async |conn: &mut Conn| clock(conn).await).await?;
        Ok(own.map_or(now, |own| now.min(own)))
    }

    /// Brings the schema up to date, under a lock that several nodes starting together survive.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the database cannot be reached: try again later.
    pub async fn migrate(&self) -> Result<Vec<String>> {
        let pools = self.pools.clone();
        self.spawn(None, async move { migrate::run(&pools).await })
            .await
    }

    /// Runs `work` on a connection that reads. It goes on if the caller stops waiting; in `PostgreSQL` hardly longer
    /// than anybody would wait.
    pub async fn read<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.on(Lane::Read, self.wait_max, work).await
    }

    /// As [`Self::read`], for what a validation waits for: on connections of its own, so that no
    /// list and no report stands before it, and with `limit` on the whole of it.
    pub async fn load<T, E, F>(&self, limit: Duration, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.on(Lane::Load, limit, work).await
    }

    /// Runs `work` once on each connection that loads are made on: they are open then, and what it asks
    /// is prepared there, before anybody waits for it.
    pub async fn prepare_loads<F>(&self, limit: Duration, work: F)
    where
        F: OnConn<Result<()>> + Clone,
    {
        self.prepare(Lane::Load, limit, work).await;
    }

    /// As [`Self::prepare_loads`], on each connection that reads. In `PostgreSQL` those write too, and whoever
    /// would write waits meanwhile: `limit` is short.
    pub async fn prepare_reads<F>(&self, limit: Duration, work: F)
    where
        F: OnConn<Result<()>> + Clone,
    {
        self.prepare(Lane::Read, limit, work).await;
    }

    async fn prepare<F>(&self, lane: Lane, limit: Duration, work: F)
    where
        F: OnConn<Result<()>> + Clone,
    {
        let count = self.pools.connections(lane);
        let all = Arc::new(Barrier::new(count));
        let prepared = join_all((0..count).map(|_| {
            let (all, work) = (Arc::clone(&all), work.clone());
            self.on(lane, limit, async move |conn: &mut Conn| -> Result<()> {
                // So that none of them is given out twice.
                let _all = tokio::time::timeout(limit / 2, all.wait()).await;
                work(conn).await
            })
        }));
        for error in prepared.await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "a connection is made at its first use");
        }
    }

    /// As [`Self::load`], on a connection that nobody uses but who follows the changes: no flood of
    /// loads stands before that.
    pub async fn look<T, E, F>(&self, limit: Duration, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.on(Lane::Look, limit, work).await
    }

    /// As [`Self::read`], for what takes long, such as a summary or a page of an export for the tenant
    /// `whose`: on connections of its own and in [`Turns`], so that neither what is short nor what another
    /// tenant asks stands behind it. Waits `turn_max` for a turn.
    pub async fn long<T, E, F>(
        &self,
        whose: &str,
        turn_max: Duration,
        work: F,
    ) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        // Who stops waiting for a turn has none any more.
        let turn = self.turns.take(whose, turn_max).await?;
        let in_turn = async move |conn: &mut Conn| {
            // As long as it runs, whoever waits.
            let _turn = turn;
            work(conn).await
        };
        self.on(Lane::Long, LONG_WAIT_MAX, in_turn).await
    }

    async fn on<T, E, F>(&self, lane: Lane, limit: Duration, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        let db = self.clone();
        self.spawn(Some(limit), async move {
            let conn = db.pools.lease(lane, limit).await?;
            // On a new connection a statement takes two ways, not one: what would be in time there when it is no
            // longer new is not given up.
            let wait_max = limit * 2 + LATE_MAX;
            let Some((_conn, done)) = conn.ask(wait_max, work).await else {
                // It asks for little, on a connection of its own: the others are dead too.
                if lane == Lane::Look {
                    db.pools.forget_idle();
                }
                return Err(Error::Busy.into());
            };
            done
        })
        .await
    }

    /// As [`Self::read`], with one picture of the database from the first look to the last, whatever
    /// is committed meanwhile. Waits to the end; of such work there may be little at a time, because
    /// it keeps its connection.
    pub async fn snapshot<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.picture(Lane::Read, work).await
    }

    /// As [`Self::snapshot`], for what takes long: as [`Self::long`].
    pub async fn long_snapshot<T, E, F>(&self, whose: &str, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        let turn = self.turns.take(whose, LONG_WAIT_MAX).await?;
        let in_turn = async move |conn: &mut Conn| {
            let _turn = turn;
            work(conn).await
        };
        self.picture(Lane::Long, in_turn).await
    }

    /// Runs `work` in a transaction that only reads.
    async fn picture<T, E, F>(&self, lane: Lane, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        let db = self.clone();
        self.spawn(None, async move {
            let postgres = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
            let mut tx = db.begin_on(lane, "BEGIN", postgres).await?;
            let done = work(tx.conn()).await;
            tx.end(done).await
        })
        .await
    }

    /// Runs `work` in one write transaction: all of it is committed, or none of it.
    ///
    /// For housekeeping alone: a change that an administrator makes goes through
    /// `audit::Audit::change`, which leaves its audit line and steps the change feed.
    pub async fn write<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.write_within(Some(self.wait_max), work).await
    }

    /// As [`Self::write`], for who must know how it ended before trying again: waits to the end.
    pub async fn write_to_end<T, E, F>(&self, work: F) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        self.write_within(None, work).await
    }

    async fn write_within<T, E, F>(
        &self,
        wait: Option<Duration>,
        work: F,
    ) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: OnConn<std::result::Result<T, E>>,
    {
        let db = self.clone();
        self.spawn(wait, async move {
            let mut tx = db.begin().await?;
            let done = work(tx.conn()).await;
            tx.end(done).await
        })
        .await
    }

    /// Begins a write transaction. Only to be polled inside [`Db::spawn`].
    ///
    /// `SQLite` begins `IMMEDIATE` on the one writer.
    pub(crate) async fn begin(&self) -> Result<Tx> {
        self.begin_on(Lane::Write, "BEGIN IMMEDIATE", "BEGIN").await
    }

    /// Nothing is in it yet, so that it can be given up.
    async fn begin_on(
        &self,
        lane: Lane,
        sqlite: &'static str,
        postgres: &'static str,
    ) -> Result<Tx> {
        let conn = self.pools.lease(lane, self.wait_max).await?;
        let statement = match conn {
            Conn::Sqlite(_) => sqlite,
            Conn::Postgres(_) => postgres,
        };
        let begin = async move |conn: &mut Conn| conn.batch(statement).await;
        let Some((conn, done)) = conn.ask(self.wait_max + LATE_MAX, begin).await else {
            self.pools.forget_idle();
            return Err(Error::Busy);
        };
        done?;
        Ok(Tx(Some(conn)))
    }

    /// Runs `task` on the database's runtime to its end, whoever waits.
    ///
    /// # Errors
    /// [`Error::Busy`] when it takes longer than `wait`; the task goes on. [`Error::Query`] when it panics:
    /// that is a defect of ours, and no sign that the database is away.
    pub(crate) async fn spawn<T, E, F>(
        &self,
        wait: Option<Duration>,
        task: F,
    ) -> std::result::Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
        F: Future<Output = std::result::Result<T, E>> + Send + 'static,
    {
        let Some(runtime) = &self.runtime.0 else {
            return Err(Error::Busy.into());
        };
        let running = runtime.spawn(task);
        let joined = match wait {
            Some(wait) => match tokio::time::timeout(wait, running).await {
                Ok(joined) => joined,
                Err(_elapsed) => return Err(Error::Busy.into()),
            },
            None => running.await,
        };
        match joined {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "a database task ended early");
                if error.is_panic() {
                    let what = "a database task panicked";
                    return Err(Error::Query(DieselError::QueryBuilderError(what.into())).into());
                }
                Err(Error::Unavailable(anyhow::anyhow!("a database task ended early")).into())
            }
        }
    }
}

/// Brings the database and the one of the usage ledger up to date; answers the versions applied now.
///
/// # Errors
/// As [`Db::migrate`].
pub async fn migrate_all(main: &Db, usage: &Db) -> Result<Vec<String>> {
    let mut applied = main.migrate().await?;
    if usage.is_sqlite() {
        applied.extend(usage.migrate().await?);
    }
    Ok(applied)
}
