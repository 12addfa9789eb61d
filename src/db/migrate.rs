//! Migrations, embedded for both databases and run under a lock.

use diesel::QueryResult;
use diesel::backend::Backend;
use diesel::migration::MigrationSource;
use diesel_async::pooled_connection::deadpool::Object;
use diesel_async::{AsyncMigrationHarness, RunQueryDsl as _};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use crate::each;

use super::content::Content;
use super::pools::{Lane, Pools};
use super::{Conn, Error, Result, WAIT_MAX, postgres};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
const SQLITE_USAGE: EmbeddedMigrations = embed_migrations!("migrations/sqlite_usage");
const SQLITE_JOURNAL: EmbeddedMigrations = embed_migrations!("migrations/sqlite_journal");
const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");

/// Any number that no other program takes an advisory lock on: "keystead" in ASCII.
const LOCK: i64 = 0x6b65_7973_7465_6164;

/// Answers the versions that were applied now.
pub(super) async fn run(pools: &Pools) -> Result<Vec<String>> {
    let _turn = match pools {
        Pools::Sqlite { path, .. } => {
            let turn = tokio::task::block_in_place(|| super::sqlite::migration_turn(path));
            Some(turn.map_err(|error| Error::Unavailable(error.into()))?)
        }
        Pools::Postgres { .. } => None,
    };
    let source = match pools {
        Pools::Sqlite {
            content: Content::Main,
            ..
        } => SQLITE,
        Pools::Sqlite {
            content: Content::Usage,
            ..
        } => SQLITE_USAGE,
        Pools::Sqlite {
            content: Content::Journal,
            ..
        } => SQLITE_JOURNAL,
        Pools::Postgres { .. } => POSTGRES,
    };
    let mut conn = pools.lease(Lane::Write, WAIT_MAX).await?;
    // Before anything is made there.
    if let Conn::Postgres(c) = &mut conn {
        postgres::require_encoding(c).await?;
    }
    let (lock, unlock) = match &conn {
        Conn::Sqlite(_) => (String::new(), String::new()),
        Conn::Postgres(_) => (
            format!(
                "SET statement_timeout = 0; SET lock_timeout = '60s'; SELECT pg_advisory_lock({LOCK})"
            ),
            format!("SELECT pg_advisory_unlock({LOCK})"),
        ),
    };
    if !lock.is_empty() {
        conn.batch(&lock).await?;
    }
    if is_up_to_date(&mut conn, &source).await {
        conn.batch(&unlock).await?;
        conn.discard();
        return Ok(Vec::new());
    }
    // The connection is closed at the end, with its lock and its settings, whatever happened.
    match conn {
        Conn::Sqlite(object) => {
            let mut harness = AsyncMigrationHarness::new(Object::take(object));
            pending(&mut harness, source)
        }
        Conn::Postgres(object) => {
            let mut harness = AsyncMigrationHarness::new(Object::take(object));
            let done = pending(&mut harness, source);
            let mut conn = harness.into_inner();
            diesel_async::SimpleAsyncConnection::batch_execute(&mut conn, &unlock).await?;
            done
        }
    }
}

/// Whether there is nothing to do. Asked first, because diesel makes its table even if it is there,
/// and a user that may not change the schema may not even try.
async fn is_up_to_date(conn: &mut Conn, source: &EmbeddedMigrations) -> bool {
    #[derive(diesel::QueryableByName)]
    struct Applied {
        #[diesel(sql_type = diesel::sql_types::Text)]
        version: String,
    }
    let known = match conn {
        Conn::Sqlite(_) => versions::<diesel::sqlite::Sqlite>(source),
        Conn::Postgres(_) => versions::<diesel::pg::Pg>(source),
    };
    let query = "SELECT version FROM __diesel_schema_migrations";
    let applied: QueryResult<Vec<Applied>> =
        each!(conn, c => diesel::sql_query(query).load(c).await);
    // Without the table, nothing was applied.
    let Ok(applied) = applied else { return false };
    let applied: Vec<String> = applied.into_iter().map(|row| row.version).collect();
    known.is_some_and(|known| known.iter().all(|version| applied.contains(version)))
}

fn versions<DB: Backend>(source: &EmbeddedMigrations) -> Option<Vec<String>> {
    let migrations = MigrationSource::<DB>::migrations(source).ok()?;
    let versions = migrations
        .iter()
        .map(|one| one.name().version().to_string());
    Some(versions.collect())
}

fn pending<DB, H>(harness: &mut H, source: EmbeddedMigrations) -> Result<Vec<String>>
where
    DB: Backend,
    H: MigrationHarness<DB>,
{
    harness
        .run_pending_migrations(source)
        .map(|versions| versions.iter().map(ToString::to_string).collect())
        .map_err(|error| {
            let text = format!("a migration failed: {error}");
            if text.contains("permission denied") {
                Error::Refused(format!(
                    "{text}; run keystead migrate with a user that may change the schema"
                ))
            } else {
                Error::Unavailable(anyhow::anyhow!(text))
            }
        })
}
