//! The place a test lives in: an empty directory and an empty, migrated database of its own.

use std::future::Future;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::FutureExt as _;
use keystead::db::{Db, Target};
use url::Url;

use super::postgres;

/// The databases that every promise holds on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// Cheap to clone; what it names is removed when the test ends, not when this is dropped.
#[derive(Clone)]
pub struct Home {
    pub backend: Backend,
    /// What `database.url` is set to.
    pub database_url: String,
    dir: PathBuf,
    /// The test's own eyes on the database, opened at the first look.
    eyes: Arc<OnceLock<Db>>,
    usage_eyes: Arc<OnceLock<Db>>,
}

/// The same for all nodes of all tests.
pub const MASTER_KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

impl Home {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What a node of this home is told, as environment variables without their `KEYSTEAD__`.
    pub fn settings(&self, data_dir: &Path, listen: &str) -> Vec<(&'static str, String)> {
        vec![
            ("DATA_DIR", data_dir.display().to_string()),
            ("DATABASE__URL", self.database_url.clone()),
            ("SECRETS__MASTER_KEY", MASTER_KEY.to_owned()),
            ("SERVER__LISTEN", listen.to_owned()),
            ("SERVER__DRAIN_DELAY", "0s".to_owned()),
            // Verifiers of full cost would make every test one of Argon2.
            ("ARGON2__MEMORY_KIB", "8".to_owned()),
            ("ARGON2__PASSES", "1".to_owned()),
            ("ARGON2__DANGEROUS_WEAK_ARGON2", "true".to_owned()),
        ]
    }

    /// Where the PostgreSQL server of this home listens.
    pub fn database_address(&self) -> SocketAddr {
        let url = Url::parse(&self.database_url).expect("the support made the URL");
        let addresses = url
            .socket_addrs(|| None)
            .expect("it names a host and a port");
        addresses[0]
    }

    /// The same database, reached at another address.
    pub fn database_url_at(&self, address: SocketAddr) -> String {
        let mut url = Url::parse(&self.database_url).expect("the support made the URL");
        url.set_ip_host(address.ip()).expect("it has a host");
        url.set_port(Some(address.port())).expect("it has a port");
        url.into()
    }

    /// `keystead` beside this home's nodes, with the settings that they have.
    pub fn keystead(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::process::binary());
        command.args(arguments).current_dir(&self.dir).env_clear();
        for (name, value) in self.settings(&self.dir.join("beside"), "127.0.0.1:1") {
            command.env(format!("KEYSTEAD__{name}"), value);
        }
        command
    }

    pub fn eyes(&self) -> &Db {
        self.eyes.get_or_init(|| self.db())
    }

    /// The same for the usage ledger, which may be a database of its own.
    pub fn usage_eyes(&self) -> &Db {
        self.usage_eyes.get_or_init(|| self.usage_db())
    }

    pub fn usage_db(&self) -> Db {
        Db::open_usage(&self.target()).expect("a home's usage ledger opens")
    }

    pub fn target(&self) -> Target {
        Target::parse(&self.database_url).expect("the support made the URL")
    }

    /// A handle of the test's own, beside the server's.
    pub fn db(&self) -> Db {
        Db::open(&self.target()).expect("a home's database opens")
    }

    /// A second, empty and unmigrated database of the same kind.
    pub async fn empty(&self) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let database_url = match self.backend {
            Backend::Sqlite => {
                // A folder of its own, because the usage ledger is a file beside it.
                let dir = self.dir.join(format!("empty-{count}"));
                std::fs::create_dir(&dir).expect("the home is writable");
                sqlite_url(&dir.join("keystead.db"))
            }
            Backend::Postgres => postgres::create_empty(&self.database_url, count).await,
        };
        Self {
            database_url,
            eyes: Arc::default(),
            usage_eyes: Arc::default(),
            ..self.clone()
        }
    }
}

/// Runs `test` in a new home on a runtime of its own, and clears up whatever happens.
pub fn run<F, R>(backend: Backend, test: F)
where
    F: FnOnce(Home) -> R,
    R: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime starts");
    let dir = tempfile::Builder::new()
        .prefix("keystead-test-")
        .tempdir()
        .expect("a temporary directory can be made");
    runtime.block_on(async {
        let home = Home {
            backend,
            database_url: match backend {
                Backend::Sqlite => {
                    let path = dir.path().join("keystead.db");
                    let url = sqlite_url(&path);
                    super::migrate(&url).await;
                    url
                }
                Backend::Postgres => postgres::create_migrated().await,
            },
            dir: dir.path().to_owned(),
            eyes: Arc::default(),
            usage_eyes: Arc::default(),
        };
        let outcome = AssertUnwindSafe(test(home.clone())).catch_unwind().await;
        if backend == Backend::Postgres {
            postgres::remove(&home.database_url).await;
        }
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

fn sqlite_url(path: &Path) -> String {
    format!("sqlite:{}", path.display())
}
