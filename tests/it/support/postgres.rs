//! One PostgreSQL server a process, one database a test.
//!
//! The server is the one of `KEYSTEAD_TEST_POSTGRES_URL`, else one that `scripts/throwaway` starts
//! and that ends with this process. A test's database is copied from a migrated template, which is
//! named after the migrations, so it is made once however many processes test.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use super::throwaway::Throwaway;

static SERVER: Throwaway = Throwaway::new("postgres", "KEYSTEAD_TEST_POSTGRES_URL");

/// The URL of the administrators' database.
fn server_url() -> String {
    SERVER.url()
}

/// A new database with all migrations; answers its URL.
pub async fn create_migrated() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("keystead_test_{}_{count}", std::process::id());
    let template = TEMPLATE.get_or_init(make_template).await;
    let admin = connect(&server_url()).await;
    create(&admin, &name, template).await;
    url_of(&name)
}

/// A new database with nothing in it, which goes when the one at `url` goes.
pub async fn create_empty(url: &str, count: usize) -> String {
    let name = format!("{}_{count}", name_of(url));
    let admin = connect(&server_url()).await;
    create(&admin, &name, "template0").await;
    url_of(&name)
}

/// Removes a test's databases, whoever is still connected to them.
pub async fn remove(url: &str) {
    let name = name_of(url);
    let admin = connect(&server_url()).await;
    let rows = admin
        .query(
            "SELECT datname FROM pg_database WHERE datname = $1 OR starts_with(datname, $1 || '_')",
            &[&name],
        )
        .await
        .expect("the catalogue can be read");
    for row in rows {
        drop_database(&admin, row.get("datname")).await;
    }
}

/// A session of the test's own, for what it locks.
pub struct Session(Client);

impl super::Home {
    /// On PostgreSQL.
    pub async fn session(&self) -> Session {
        Session(connect(&self.database_url).await)
    }
}

impl Session {
    /// Runs statements whose answers do not matter.
    ///
    /// # Panics
    /// If one fails.
    pub async fn run(&self, statements: &str) {
        self.try_run(statements)
            .await
            .unwrap_or_else(|error| panic!("{statements}: {error:?}"));
    }

    pub async fn try_run(&self, statements: &str) -> Result<(), tokio_postgres::Error> {
        self.0.batch_execute(statements).await
    }

    /// Waits until another session waits for a lock that this one has.
    pub async fn until_waited_for(&self) {
        let waiting = "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND pg_backend_pid() = ANY (pg_blocking_pids(pid))";
        super::until(
            Duration::from_secs(5),
            "somebody waits for it",
            async || {
                // In a transaction what was seen once stands.
                self.run("SELECT pg_stat_clear_snapshot()").await;
                let row = self.0.query_one(waiting, &[]).await;
                row.expect("it can be asked").get::<_, i64>(0) > 0
            },
        )
        .await;
    }
}

/// Counts the look-ups of presented keys in one database, whichever node makes them.
pub struct Lookups(Client);

impl super::Home {
    /// # Panics
    /// If the server was not started with `pg_stat_statements`, as `scripts/throwaway` starts it.
    pub async fn lookups(&self) -> Lookups {
        let client = connect(&self.database_url).await;
        let install = "CREATE EXTENSION IF NOT EXISTS pg_stat_statements";
        client
            .batch_execute(install)
            .await
            .expect("shared_preload_libraries has pg_stat_statements (package postgresql-contrib)");
        Lookups(client)
    }
}

impl Lookups {
    pub async fn count(&self) -> i64 {
        let count = "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements AS statement
             JOIN pg_database ON pg_database.oid = dbid
             WHERE datname = current_database() AND query LIKE '%fingerprint\" = ANY(%'";
        let row = self.0.query_one(count, &[]).await;
        row.expect("the statistics can be read").get(0)
    }
}

async fn create(admin: &Client, name: &str, template: &str) {
    // A process that was killed and had our id may have left one.
    drop_database(admin, name).await;
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
    admin.batch_execute(&create).await.expect("the name is new");
}

async fn drop_database(admin: &Client, name: &str) {
    let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
    admin.batch_execute(&drop).await.expect("it is ours");
}

/// Under a lock, because several test processes may share the server.
async fn make_template() -> String {
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations/postgres");
    let mut digest = Sha256::new();
    let mut steps: Vec<_> = std::fs::read_dir(&migrations)
        .expect("the migrations are there")
        .map(|entry| entry.expect("it can be read").path().join("up.sql"))
        .collect();
    steps.sort();
    for step in steps {
        digest.update(std::fs::read(step).expect("each migration has an up.sql"));
    }
    let name = format!(
        "keystead_template_{}",
        &hex::encode(digest.finalize())[..16]
    );

    let admin = connect(&server_url()).await;
    let lock = "SELECT pg_advisory_lock(hashtext('keystead test template'))";
    admin.batch_execute(lock).await.expect("the lock comes");
    let made = admin
        .query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&name])
        .await
        .expect("the catalogue can be read");
    if made.is_none() {
        let draft = format!("{name}_draft");
        create(&admin, &draft, "template0").await;
        super::migrate(&url_of(&draft)).await;
        // A database that somebody is connected to cannot be renamed or copied.
        let done = format!(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{draft}';
             ALTER DATABASE {draft} RENAME TO {name}"
        );
        for statement in done.split(';') {
            admin.batch_execute(statement).await.expect("it is ours");
        }
    }
    name
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .unwrap_or_else(|error| panic!("the test server does not answer: {error:?}"));
    tokio::spawn(connection);
    client
}

fn url_of(name: &str) -> String {
    let mut url = url::Url::parse(&server_url()).expect("KEYSTEAD_TEST_POSTGRES_URL is a URL");
    url.set_path(name);
    url.to_string()
}

fn name_of(url: &str) -> String {
    let url = url::Url::parse(url).expect("we made it");
    url.path().trim_start_matches('/').to_owned()
}
