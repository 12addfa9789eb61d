//! Checkpoints: now and then the end of each chain is signed and leaves the database.
//!
//! Who rolls the database back to an old backup, or makes a chain anew with a head of his own, ends
//! in another place than the checkpoints say.
//!
//! 1. the head is read and its MAC verified: we sign no end that we did not seal. So is the signature of
//!    the checkpoint before it: one that somebody else wrote must not say that none is due;
//! 2. the statement is stored, once for each number: of several nodes that sign at the same time one
//!    does;
//! 3. it leaves the database before the transaction is committed: what was stored has left. If the
//!    commit fails, what has left is true all the same.
//!
//! No audit line is written for one, or no chain would ever stop growing.

use super::chain::Head;
use super::signing::key::{KeySpan, LEEWAY};
use super::signing::{Statement, StatementKind};
use super::store::checkpoint::{self, StatementFilter};
use super::store::{self, key};
use super::verify::{Chains, tenants};
use super::{Audit, TenantRef};
use crate::db::{self, Conn};
use crate::id::TenantId;
use crate::page::{Page, PageRequest};
use crate::telemetry::SecurityEvent;
use crate::text::Slug;
use crate::time::{Span, Timestamp};

/// A checkpoint, and whether it was signed just now.
#[derive(Clone, Debug)]
pub struct Made {
    pub statement: Statement,
    pub is_new: bool,
}

impl Audit {
    /// Signs the end of a chain, or answers the statement that says so already.
    ///
    /// # Errors
    /// [`db::Error::AuditBroken`] if the head was not left by us: there is nothing to be signed then.
    pub async fn checkpoint(&self, tenant: &TenantRef) -> db::Result<Made> {
        match self.sign_end(tenant, None).await? {
            Some(made) => Ok(made),
            None => Err(db::Error::Busy),
        }
    }

    /// Signs the ends of chains, whether they are due or not.
    pub async fn checkpoint_all(&self, chains: &Chains) -> db::Result<Vec<Statement>> {
        let mut statements = Vec::new();
        for (id, slug) in tenants(&self.db, chains).await? {
            if let Some(Ok(slug)) = slug.as_deref().map(Slug::parse) {
                let made = self.checkpoint(&TenantRef { id, slug }).await?;
                statements.push(made.statement);
            }
        }
        Ok(statements)
    }

    /// Signs the end of each chain that has grown, if its last checkpoint is `every` old. Answers how
    /// many were signed. What was said of cuts and could not leave is told again.
    ///
    /// # Errors
    /// The first that failed; the other chains get theirs all the same.
    pub async fn checkpoint_due(&self, every: Span) -> db::Result<usize> {
        let (mut signed, mut failed) = (0, self.tell_untold().err());
        for (id, slug) in tenants(&self.db, &Chains::All).await? {
            let Some(Ok(slug)) = slug.as_deref().map(Slug::parse) else {
                continue;
            };
            let tenant = TenantRef { id, slug };
            match self.is_due(&tenant, every).await {
                Ok(true) => {}
                Ok(false) => continue,
                Err(error) => {
                    failed = failed.or(Some(error));
                    continue;
                }
            }
            match self.sign_end(&tenant, Some(every)).await {
                Ok(Some(made)) => signed += usize::from(made.is_new),
                Ok(None) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(signed), Err)
    }

    /// Asked before anything is written: as a rule nothing is due.
    async fn is_due(&self, tenant: &TenantRef, every: Span) -> db::Result<bool> {
        let (this, tenant, now) = (self.clone(), tenant.clone(), self.clock.now());
        self.db
            .read(async move |conn: &mut Conn| {
                let last = this.last_signed(conn, &tenant).await?;
                let Some((head, _)) = store::head(conn, &tenant.id).await? else {
                    return Ok(true);
                };
                db::Result::Ok(match last {
                    None => head.seq > 0,
                    Some(last) if last.seq < head.seq => is_old(&last, now, every),
                    // Another hash, or a chain that has become shorter, is told as a fault.
                    Some(last) => last.head().as_ref() != Some(&head),
                })
            })
            .await
    }

    /// The statements about a chain, newest first.
    pub async fn checkpoints(
        &self,
        tenant: TenantId,
        filter: StatementFilter,
        page: PageRequest,
    ) -> db::Result<Page<Statement>> {
        self.db
            .read(async move |conn: &mut Conn| checkpoint::list(conn, &tenant, filter, &page).await)
            .await
    }

    /// `None` if it is not due, or another node is at it.
    async fn sign_end(&self, tenant: &TenantRef, every: Option<Span>) -> db::Result<Option<Made>> {
        let (this, tenant, now) = (self.clone(), tenant.clone(), self.clock.now());
        self.cover(&tenant.id, now).await?;
        self.db
            .write(async move |conn: &mut Conn| {
                let mut ahead = None;
                let head = this.sealed_head(conn, &tenant.id).await?;
                let last = this.last_signed(conn, &tenant).await?;
                if let Some(last) = last {
                    if last.seq == head.seq {
                        return this.same(&tenant, &head, last).map(Some);
                    }
                    if last.seq > head.seq {
                        return Err(this.rolled_back(&tenant, &head, &last));
                    }
                    if every.is_some_and(|every| !is_old(&last, now, every)) {
                        return Ok(None);
                    }
                    ahead = Some(last).filter(|last| is_ahead(last, now));
                } else if every.is_some() && head.seq == 0 {
                    return Ok(None);
                }
                this.require_own_key(conn, now).await?;
                let signer = &this.signing.signer;
                let statement = Statement::checkpoint(signer, tenant.slug.as_str(), &head, now)?;
                if !checkpoint::insert(conn, &tenant.id, &statement).await? {
                    let other = this.last_signed(conn, &tenant).await?;
                    let other = other.filter(|other| other.seq == head.seq);
                    return other
                        .map(|other| this.same(&tenant, &head, other))
                        .transpose();
                }
                this.leave(&statement)?;
                if let Some(last) = ahead {
                    let told = format!(
                        "the checkpoint at {} was signed on {}, which has not come yet by the clock that shows \
                         {now}",
                        last.seq, last.at
                    );
                    this.security_event(SecurityEvent::ClockJumped, &tenant.id, told);
                }
                Ok(Some(Made {
                    statement,
                    is_new: true,
                }))
            })
            .await
    }

    /// Step 1.
    async fn sealed_head(&self, conn: &mut Conn, tenant: &TenantId) -> db::Result<Head> {
        let told = match store::head(conn, tenant).await? {
            Some((head, mac)) if self.keys.opens(tenant, &head, &mac) => {
                // Not whether it is the newest: changes go on beside this.
                let is_there = head.seq == 0
                    || store::line(conn, tenant, head.seq)
                        .await?
                        .is_some_and(|line| line.hash == head.hash);
                if is_there {
                    return Ok(head);
                }
                "the record that the head names is not there, so it is not signed"
            }
            Some(_) | None => "the head was not left by us, so it is not signed",
        };
        self.security_event(SecurityEvent::AuditBroken, tenant, told.to_owned());
        let fault = format!("the audit chain of {tenant}: {told}");
        Err(db::Error::AuditBroken(fault))
    }

    /// The checkpoint that reaches furthest.
    ///
    /// # Errors
    /// [`db::Error::AuditBroken`] if it is none of ours, which is told as well.
    async fn last_signed(
        &self,
        conn: &mut Conn,
        tenant: &TenantRef,
    ) -> db::Result<Option<Statement>> {
        let last = checkpoint::last(conn, &tenant.id, StatementKind::Checkpoint).await?;
        let Some(last) = last else { return Ok(None) };
        let keys = self.signing.trusted(&key::all(conn).await?);
        let why = match last.verify(&keys) {
            Ok(()) if last.tenant == tenant.slug.as_str() => return Ok(Some(last)),
            Ok(()) => "it is of another tenant's chain",
            Err(why) => why,
        };
        let told = format!("the checkpoint at {}: {why}", last.seq);
        let fault = format!("the audit chain of {}: {told}", tenant.slug);
        self.security_event(SecurityEvent::AuditBroken, &tenant.id, told);
        Err(db::Error::AuditBroken(fault))
    }

    /// A node that was not restarted since the first master key changed signs nothing any more.
    ///
    /// # Errors
    /// [`db::Error::Busy`] if the clock was set back since [`Audit::cover`].
    pub(super) async fn require_own_key(&self, conn: &mut Conn, now: Timestamp) -> db::Result<()> {
        let kid = self.signing.signer.public().kid();
        let rows = key::all(conn).await?;
        if rows.iter().any(|row| row.kid == kid && row.until.is_none()) {
            let trusted = self.signing.trusted(&rows);
            let covers = |key: &KeySpan| key.public.kid() == kid && key.covers(now);
            return if trusted.iter().any(covers) {
                Ok(())
            } else {
                Err(db::Error::Busy)
            };
        }
        Err(db::Error::Corrupt(format!(
            "the audit key {kid} does not sign at present: restart this node with the first master \
             key that the others have"
        )))
    }

    /// Step 3.
    pub(super) fn leave(&self, statement: &Statement) -> db::Result<()> {
        tokio::task::block_in_place(|| self.outlet.tell(statement))
    }
}

/// Whether it is time for the next one: also if this one is of a time that has not come.
fn is_old(last: &Statement, now: Timestamp, every: Span) -> bool {
    now.since(last.at) >= every || is_ahead(last, now)
}

/// The clock was ahead that it was signed by.
fn is_ahead(last: &Statement, now: Timestamp) -> bool {
    last.at > now.plus(LEEWAY)
}

impl Audit {
    fn same(&self, tenant: &TenantRef, head: &Head, last: Statement) -> db::Result<Made> {
        if last.head().as_ref() != Some(head) {
            return Err(self.rolled_back(tenant, head, &last));
        }
        Ok(Made {
            statement: last,
            is_new: false,
        })
    }

    fn rolled_back(&self, tenant: &TenantRef, head: &Head, last: &Statement) -> db::Error {
        let told = format!(
            "the chain ends at {}, but is not the one of its checkpoint at {}",
            head.seq, last.seq
        );
        let fault = format!("the audit chain of {}: {told}", tenant.slug);
        self.security_event(SecurityEvent::AuditBroken, &tenant.id, told);
        db::Error::AuditBroken(fault)
    }
}
