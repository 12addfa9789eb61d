//! What the maintenance commands stand on: the database and the master keys, beside a running
//! server and without its lock, and the name of who runs them.

use std::future::Future;

use super::Failure;
use crate::app::owner;
use crate::audit::{Attribution, Audit, Outlet, TenantRef};
use crate::clock::Clock;
use crate::config::{Config, Sources};
use crate::db::{Conn, Db, Target};
use crate::entropy::Entropy;
use crate::keys::pepper::{self, PepperVersion, store};
use crate::master::MasterKeys;
use crate::patch::Reason;
use crate::telemetry::{self, Telemetry};
use crate::tenants::{DEFAULT, Tenants};
use crate::text::Slug;

/// An opened database and what changes to it need.
pub(super) struct Maintenance {
    pub(super) db: Db,
    pub(super) master: MasterKeys,
    pub(super) audit: Audit,
    pub(super) clock: Clock,
    pub(super) config: Config,
    telemetry: Option<Telemetry>,
}

impl Maintenance {
    pub(super) fn open(sources: &Sources) -> Result<Self, Failure> {
        let config = Config::load(sources)?;
        let target = config.database.url.target();
        require_database(target)?;
        let master = config.master_keys()?;
        let db = Db::open(target)
            .map_err(|error| Failure::Usage(format!("database.url cannot be opened: {error}")))?;
        let clock = Clock::System;
        Ok(Self {
            audit: Audit::new(db.clone(), clock.clone(), Entropy::System, &master).telling(
                Outlet {
                    files: config.statement_files(),
                },
            ),
            db,
            master,
            clock,
            // The hashes of what is recorded now belong into the log like all others.
            telemetry: telemetry::start_on_stderr(&config.log).ok(),
            config,
        })
    }

    /// Where the usage ledger is, if there is one.
    pub(super) fn usage_db(&self) -> Result<Option<Db>, Failure> {
        let target = self.config.database.url.target();
        if target.usage_file().is_some_and(|path| !path.exists()) {
            return Ok(None);
        }
        Db::open_usage(target)
            .map(Some)
            .map_err(|error| Failure::Usage(format!("the usage ledger cannot be opened: {error}")))
    }

    pub(super) async fn tenant(&self, slug: &str) -> Result<TenantRef, Failure> {
        let slug =
            Slug::parse(slug).map_err(|shape| Failure::Usage(format!("--tenant {shape}")))?;
        let shown = slug.to_string();
        Tenants::new(self.db.clone(), self.audit.clone())
            .by_slug(slug)
            .await?
            .ok_or_else(|| Failure::Failed(format!("there is no tenant {shown}")))
    }

    /// Who runs this command, in the tenant `default`.
    pub(super) async fn attribution(&self, reason: Option<&str>) -> Result<Attribution, Failure> {
        let reason = reason
            .map(Reason::parse)
            .transpose()
            .map_err(|shape| Failure::Usage(format!("--reason {shape}")))?;
        Ok(Attribution {
            tenant: self.tenant(DEFAULT).await?,
            actor: owner::operator(),
            via: None,
            home: None,
            reason: reason.map(Reason::into_inner),
            request_id: None,
            ip: None,
        })
    }

    pub(super) async fn pepper_versions(&self) -> Result<Vec<PepperVersion>, Failure> {
        let versions = self
            .db
            .read(async move |conn: &mut Conn| store::load(conn).await)
            .await?;
        if versions.is_empty() {
            return Err(Failure::Failed(
                "this database has no pepper yet; `keystead serve` makes the first".to_owned(),
            ));
        }
        Ok(versions)
    }

    /// Refuses to work with a master key that is not this database's.
    pub(super) async fn require_its_master_keys(&self) -> Result<(), Failure> {
        pepper::verify_checks(&self.pepper_versions().await?, &self.master)
            .map_err(|fault| Failure::Usage(fault.to_string()))
    }
}

/// Opening an embedded database would make an empty one.
pub(super) fn require_database(target: &Target) -> Result<(), Failure> {
    match target {
        Target::Sqlite { path } if !path.exists() => Err(Failure::Usage(format!(
            "database.url names {}, which is not there; `keystead serve` makes it",
            path.display()
        ))),
        Target::Sqlite { .. } | Target::Postgres { .. } => Ok(()),
    }
}

impl Drop for Maintenance {
    fn drop(&mut self) {
        if let Some(telemetry) = &self.telemetry {
            telemetry.flush();
        }
    }
}

/// Runs a command's future on a runtime of its own.
pub(super) fn wait_for<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("no runtime can be started: {error}")))?;
    Ok(runtime.block_on(work))
}
