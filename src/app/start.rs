//! The start: schema, first tenant, peppers, owner key. What is unreachable is waited for; what is
//! wrong ends the process.

use crate::audit::{Actor, Attribution, NodeStart, TenantRef};
use crate::config::{ConfigError, LockError};
use crate::db;
use crate::error::Error;
use crate::keys::pepper::{self, PepperFault};
use crate::keys::pepper_store;
use crate::redis_link::Fault;

use super::{App, owner};

/// Why the server cannot begin.
#[derive(Debug)]
pub enum StartError {
    /// It will not get better by itself: one line that names the setting and the fix.
    Wrong(String),
    /// It may come back: try again.
    Away(String),
}

impl From<db::Error> for StartError {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Refused(text) => Self::Wrong(format!("database.url is refused: {text}")),
            db::Error::Unavailable(cause) => Self::Away(format!("{cause:#}")),
            db::Error::Busy => Self::Away("the database does not answer in time".to_owned()),
            db::Error::Taken(what) => Self::Away(format!("another node was faster ({what})")),
            db::Error::Query(cause) => Self::Wrong(format!("the database cannot be used: {cause}")),
            db::Error::Corrupt(what) | db::Error::AuditBroken(what) => Self::Wrong(what),
        }
    }
}

impl From<Error> for StartError {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::Busy => Self::Away("too much is going on".to_owned()),
            other => Self::Wrong(other.to_string()),
        }
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Wrong(error.to_string())
    }
}

impl From<LockError> for StartError {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Config(error) => error.into(),
            LockError::InUse { .. } => Self::Away(error.to_string()),
        }
    }
}

impl From<PepperFault> for StartError {
    fn from(fault: PepperFault) -> Self {
        Self::Wrong(fault.to_string())
    }
}

/// What the command line and the system itself act as, in the tenant `default`.
pub(crate) fn system(tenant: TenantRef, actor: Actor) -> Attribution {
    Attribution {
        tenant,
        actor,
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    }
}

impl App {
    /// Brings the database to where the server can serve from it. Safe to call again after
    /// [`StartError::Away`], and with several nodes starting together.
    pub async fn start(&self) -> Result<(), StartError> {
        // What refuses us will go on to; what is away is done without until it comes.
        if let Some(redis) = &self.redis
            && let Err(fault @ (Fault::Refused(_) | Fault::Certificate(_))) = redis.check().await
        {
            return Err(StartError::Wrong(format!(
                "redis.url cannot be used: {fault}"
            )));
        }
        let applied = self.migrate().await?;
        if !applied.is_empty() {
            tracing::info!(
                migrations = applied.join(", "),
                "brought the schema up to date"
            );
        }
        let tenant = self
            .tenants
            .ensure_default(&self.clock, &self.entropy)
            .await?
            .to_ref();
        self.load_peppers().await?;
        self.config.create_data_dir()?;
        self.ledger.begin().await?;
        self.nodes.join().await?;
        self.follower.begin(tenant.id.as_str()).await?;
        self.audit.renew_heads().await?;
        self.begin_audit_key(tenant.clone()).await?;
        self.note_start(tenant.clone()).await?;
        self.begin_signing(tenant.clone()).await?;
        self.validation.prepare(tenant.id.clone()).await;
        owner::bootstrap(self, tenant).await
    }

    /// Loads the peppers; a master key that is not theirs ends the start.
    pub async fn load_peppers(&self) -> Result<(), StartError> {
        let (master, now) = (self.master.clone(), self.clock.now());
        let rows = self
            .db
            .write(async move |conn| -> db::Result<_> {
                pepper_store::ensure_first(conn, &master, now).await?;
                pepper_store::load(conn).await
            })
            .await?;
        pepper::verify_checks(&rows, &self.master)?;
        let peppers = self.peppers.clone();
        self.db
            .read(async move |conn| -> db::Result<()> { peppers.reload(conn).await.map(drop) })
            .await?;
        Ok(())
    }

    /// The first master key may be another than the last time.
    async fn begin_audit_key(&self, tenant: TenantRef) -> Result<(), StartError> {
        match self.audit.begin_key(system(tenant, Actor::System)).await {
            Err(db::Error::Corrupt(cause) | db::Error::AuditBroken(cause)) => {
                tracing::error!(target: "security", cause, "started without an audit key");
                Ok(())
            }
            done => Ok(done?),
        }
    }

    /// There is a key to sign tokens with before the first is asked for. While the audit trail is
    /// broken none is made: those that there are go on.
    async fn begin_signing(&self, tenant: TenantRef) -> Result<(), StartError> {
        match self.keyring.tend(system(tenant, Actor::System)).await {
            Err(db::Error::Corrupt(cause) | db::Error::AuditBroken(cause)) => {
                tracing::error!(target: "security", cause, "started without a new signing key");
                Ok(())
            }
            done => Ok(done?),
        }
    }

    async fn note_start(&self, tenant: TenantRef) -> Result<(), StartError> {
        let start = NodeStart {
            node: hostname(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            config_digest: self.config.digest(),
            roles: self.people.role_map(),
        };
        let at = system(tenant, Actor::System);
        match self.audit.record_node_start(at, start).await {
            // Nothing can be changed until somebody has looked, but validation goes on.
            Err(db::Error::Corrupt(cause) | db::Error::AuditBroken(cause)) => {
                tracing::error!(target: "security", cause, "started without an audit line");
                Ok(())
            }
            done => Ok(done?),
        }
    }
}

pub(crate) fn hostname() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}
