//! `SQLite`: one file, one writer, a few readers, every commit on the disk before it is answered.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use diesel::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncConnection as _, SimpleAsyncConnection as _};
use futures_util::FutureExt as _;

use super::SqliteConn;
use super::content::Content;

/// `synchronous=FULL`: an acknowledged change survives a power cut. `busy_timeout` is for the
/// maintenance commands that write beside the server.
const SETUP: &str = "PRAGMA busy_timeout=1500; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; \
                     PRAGMA foreign_keys=ON; PRAGMA trusted_schema=OFF; \
                     PRAGMA journal_size_limit=67108864;";

/// For the journal of uses. A commit is with the kernel and not yet on the disk: the end of the process
/// loses none, a power cut the last moments, and the file is whole all the same. So no commit waits for
/// the disk but the first of a log that begins anew, and those of one that has grown to 64 MiB because
/// nobody made the checkpoints that are asked for elsewhere.
///
/// A number that a power cut took back is given again; not to a block of the same node, whose name is
/// new with each start.
const JOURNAL_SETUP: &str = "PRAGMA synchronous=NORMAL; PRAGMA wal_autocheckpoint=4096;";

/// Of a file that is made, 16 KiB: what is written into it are long blocks, each page by a call of its own.
const JOURNAL_PAGE: &str = "PRAGMA page_size=16384;";

/// For the usage ledger, which stays at `synchronous=FULL`: a block leaves the journal when its batch
/// is committed here, and is nowhere else then. A transaction touches thousands of pages of the index by
/// request id, which is in no order: 64 MiB hold them until the commit, and a checkpoint each 128 MiB of
/// log writes those that many commits have touched once.
const USAGE_SETUP: &str = "PRAGMA cache_size=-65536; PRAGMA wal_autocheckpoint=32768; \
                           PRAGMA journal_size_limit=134217728;";

pub(super) const READERS: usize = 4;

/// For what takes long, beside the others: so few that they leave time to those that answer.
pub(super) const LONG_READERS: usize = 3;

/// `SQLite` gives its WAL and SHM files the mode of the database file.
///
/// A file that is there is not opened: closing it would end the POSIX locks that other connections
/// of this process hold on it.
pub(super) fn create_private_file(path: &Path) -> io::Result<()> {
    let new = OpenOptions::new()
        .create_new(true)
        .append(true)
        .mode(0o600)
        .open(path);
    match new {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io::Error::new(
            error.kind(),
            format!(
                "{}: {error}; its folder must be there and belong to the user that runs keystead",
                path.display()
            ),
        )),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Waits until no other process or handle migrates this file; dropping the answer ends the turn.
///
/// Neither the first switch to WAL nor "is this migration missing?" waits for `busy_timeout`.
pub(super) fn migration_turn(path: &Path) -> io::Result<File> {
    let mut lock = path.as_os_str().to_owned();
    lock.push("-migration");
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(lock)?;
    file.lock()?;
    Ok(file)
}

pub(super) fn writer(path: &Path, content: Content) -> Pool<SqliteConn> {
    let (page, more) = match content {
        Content::Main => ("", ""),
        Content::Usage => ("", USAGE_SETUP),
        Content::Journal => (JOURNAL_PAGE, JOURNAL_SETUP),
    };
    pool(path, 1, format!("{page} {SETUP} {more}"))
}

pub(super) fn readers(path: &Path, count: usize) -> Pool<SqliteConn> {
    pool(path, count, format!("{SETUP} PRAGMA query_only=ON;"))
}

fn pool(path: &Path, size: usize, setup: String) -> Pool<SqliteConn> {
    let mut config = ManagerConfig::<SqliteConn>::default();
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |path| {
        let setup = setup.clone();
        let path = path.to_owned();
        async move { connect(&path, &setup).await }.boxed()
    });
    let path = path.to_string_lossy().into_owned();
    let manager = AsyncDieselConnectionManager::new_with_config(path, config);
    #[expect(
        clippy::expect_used,
        reason = "building fails only for timeouts without a runtime"
    )]
    Pool::builder(manager)
        .max_size(size)
        .build()
        .expect("a pool without timeouts builds")
}

async fn connect(path: &str, setup: &str) -> ConnectionResult<SqliteConn> {
    let mut conn = SqliteConn::establish(path).await?;
    conn.batch_execute(setup)
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}
