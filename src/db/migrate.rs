//! Migrations, embedded for both databases and run under a lock.

use diesel_async::AsyncMigrationHarness;
use diesel_async::pooled_connection::deadpool::Object;
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

use super::{Conn, Error, Pools, Result, WAIT_MAX};

const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");
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
    let mut conn = pools.writer(WAIT_MAX).await?;
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
    // The connection is closed at the end, with its lock and its settings, whatever happened.
    match conn {
        Conn::Sqlite(object) => {
            let mut harness = AsyncMigrationHarness::new(Object::take(object));
            pending(&mut harness, SQLITE)
        }
        Conn::Postgres(object) => {
            let mut harness = AsyncMigrationHarness::new(Object::take(object));
            let done = pending(&mut harness, POSTGRES);
            let mut conn = harness.into_inner();
            diesel_async::SimpleAsyncConnection::batch_execute(&mut conn, &unlock).await?;
            done
        }
    }
}

fn pending<DB, H>(harness: &mut H, source: EmbeddedMigrations) -> Result<Vec<String>>
where
    DB: diesel::backend::Backend,
    H: MigrationHarness<DB>,
{
    harness
        .run_pending_migrations(source)
        .map(|versions| versions.iter().map(ToString::to_string).collect())
        .map_err(|error| Error::Unavailable(anyhow::anyhow!("a migration failed: {error}")))
}
