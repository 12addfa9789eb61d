//! Retention: the beginning of a chain is cut off, as far as a checkpoint covers it.
//!
//! 1. nothing is cut of a chain that does not verify: what is wrong with it is evidence;
//! 2. with the head locked, the lines up to the cut are removed, at most so many at a time that
//!    nobody waits long for the lock;
//! 3. a line of the chain says what was removed, and a signed statement, which is what the chain is
//!    verified from afterwards;
//! 4. all of it is committed, and then the statement leaves the database. One that left without being
//!    committed would call the lines that are still there strangers. What a file does not take is told
//!    again each minute, as long as the process lives; nothing else is cut until then.

use std::sync::{MutexGuard, PoisonError};

use serde_json::json;

use super::chain::Head;
use super::signing::{Statement, StatementKind};
use super::store::{self, checkpoint, export, key};
use super::verify::{Chains, tenants, tenants_of};
use super::{Actor, Attribution, Audit, Change, TenantRef, age};
use crate::db::{self, Conn};
use crate::id::TenantId;
use crate::telemetry::SecurityEvent;
use crate::text::Slug;
use crate::time::{Span, Timestamp};

/// Lines a transaction.
const LINES_MAX: i64 = 20_000;

/// Retention waits until there is a day's worth, or the cuts would be more lines than are cut.
const OVERDUE: Span = Span::days(1);

/// A cut of chains of which one or more failed: what was signed of the others.
#[derive(Debug)]
pub struct EndedEarly {
    pub statements: Vec<Statement>,
    /// The first.
    pub error: db::Error,
}

impl Audit {
    /// Cuts what is older than `before` off the chains. `by` says who and why; its tenant does not
    /// matter. Answers what was signed.
    ///
    /// # Errors
    /// The first that failed; the other chains are cut all the same. [`db::Error::Corrupt`] for a chain that
    /// does not verify, with nothing of it cut.
    pub async fn cut(
        &self,
        chains: &Chains,
        before: Timestamp,
        by: &Attribution,
    ) -> Result<Vec<Statement>, EndedEarly> {
        let mut statements = Vec::new();
        match self.cut_into(&mut statements, chains, before, by).await {
            Ok(()) => Ok(statements),
            Err(error) => Err(EndedEarly { statements, error }),
        }
    }

    async fn cut_into(
        &self,
        statements: &mut Vec<Statement>,
        chains: &Chains,
        before: Timestamp,
        by: &Attribution,
    ) -> db::Result<()> {
        let mut failed = None;
        for (id, slug) in tenants(&self.db, chains).await? {
            let Some(Ok(slug)) = slug.as_deref().map(Slug::parse) else {
                continue;
            };
            let at = Attribution {
                tenant: TenantRef { id, slug },
                ..by.clone()
            };
            if let Err(error) = self.cut_one(&at, before, statements).await {
                tracing::warn!(tenant = %at.tenant.slug, %error, "did not cut an audit chain");
                failed = failed.or(Some(error));
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn cut_one(
        &self,
        at: &Attribution,
        before: Timestamp,
        statements: &mut Vec<Statement>,
    ) -> db::Result<()> {
        let oldest = self.oldest(&at.tenant.id).await?;
        if oldest.is_none_or(|at| at >= before) {
            return Ok(());
        }
        self.tell_untold()?;
        self.require_whole(&at.tenant).await?;
        while let Some(statement) = self.cut_some(at.clone(), before).await? {
            statements.push(statement);
        }
        Ok(())
    }

    /// The same for retention, once a chain has enough that is older than it is kept. What is older is not
    /// judged by the clock of this node alone (`age.rs`).
    ///
    /// # Errors
    /// The first that failed; the other chains are cut all the same.
    pub async fn cut_due(&self, retention: Span) -> db::Result<usize> {
        let now = self.db.bounded_by_clock(self.clock.now()).await?;
        let before = now.minus(retention);
        let all = tenants_of(&self.db, &Chains::All).await?;
        let mut due = Vec::new();
        for tenant in &all {
            let is_due = |at: Timestamp| at < before.minus(OVERDUE);
            if self.oldest(&tenant.id).await?.is_some_and(is_due) {
                due.push(tenant.clone());
            }
        }
        let Some(first) = due.first() else {
            return Ok(0);
        };
        if !self.is_believed(now, &all).await? {
            let told = format!(
                "kept audit lines from before {before}: the clocks show {now}, but nothing was recorded for \
                 weeks before that"
            );
            self.security_event(SecurityEvent::ClockJumped, &first.id, told);
            return Ok(0);
        }
        let (mut statements, mut failed) = (Vec::new(), None);
        for tenant in due {
            let chain = Chains::Of(tenant.id.clone());
            let by = Attribution {
                tenant,
                actor: Actor::System,
                via: None,
                home: None,
                reason: Some("audit.retention".to_owned()),
                request_id: None,
                ip: None,
            };
            let cut = self.cut_into(&mut statements, &chain, before, &by).await;
            failed = failed.or(cut.err());
        }
        failed.map_or(Ok(statements.len()), Err)
    }

    /// Whether the lines of any chain speak for this time.
    async fn is_believed(&self, now: Timestamp, tenants: &[TenantRef]) -> db::Result<bool> {
        let mut newest = None;
        for tenant in tenants {
            let (id, before) = (tenant.id.clone(), age::settled_before(now));
            let last: Option<Timestamp> = self
                .db
                .read(async move |conn: &mut Conn| export::last_before(conn, &id, before).await)
                .await?;
            newest = newest.max(last);
            if newest.is_some() && age::is_believed(now, newest) {
                return Ok(true);
            }
        }
        Ok(age::is_believed(now, newest))
    }

    async fn oldest(&self, tenant: &TenantId) -> db::Result<Option<Timestamp>> {
        let tenant = tenant.clone();
        self.db
            .read(async move |conn: &mut Conn| export::oldest(conn, &tenant).await)
            .await
    }

    /// Step 1.
    async fn require_whole(&self, tenant: &TenantRef) -> db::Result<()> {
        let report = self.verify_all(&tenant.id).await?;
        if report.valid && report.accepted == 0 {
            return Ok(());
        }
        self.note_fault(&report);
        let (slug, accepted) = (&tenant.slug, report.accepted);
        let faults = report.bad + accepted;
        Err(db::Error::Corrupt(format!(
            "the audit chain of {slug} has {faults} faults, {accepted} of them accepted by a reseal, so \
             nothing of it is cut; look with: keystead audit verify"
        )))
    }

    async fn cut_some(&self, at: Attribution, before: Timestamp) -> db::Result<Option<Statement>> {
        let this = self.clone();
        self.cover(&at.tenant.id, self.clock.now()).await?;
        let cut = self
            .db
            .spawn(None, async move {
                let mut tx = this.db.begin().await?;
                let head = match this.lock(tx.conn(), &at.tenant).await {
                    Ok(head) => head,
                    Err(error) => return tx.end(Err(error)).await,
                };
                let mut change = this.begin(tx, at);
                let done = async {
                    let cut = this.cut_in(&mut change, before).await?;
                    db::Result::Ok((cut, this.seal(&mut change, head).await?))
                }
                .await;
                let (cut, left) = change.end(done).await?;
                this.committed(left);
                db::Result::Ok(cut)
            })
            .await?;
        if let Some(statement) = &cut {
            self.untold().push(statement.clone());
            self.tell_untold()?;
        }
        Ok(cut)
    }

    /// Step 4, again for what could not leave.
    pub(super) fn tell_untold(&self) -> db::Result<()> {
        let mut untold = self.untold();
        while let Some(statement) = untold.first() {
            self.outlet.tell(statement)?;
            untold.remove(0);
        }
        Ok(())
    }

    /// What is locked here is whole between any two statements.
    fn untold(&self) -> MutexGuard<'_, Vec<Statement>> {
        self.untold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Steps 2 and 3.
    async fn cut_in(
        &self,
        change: &mut Change,
        before: Timestamp,
    ) -> db::Result<Option<Statement>> {
        let (tenant, now) = (change.attribution().tenant.clone(), change.now());
        let conn = change.conn();
        self.require_own_key(conn, now).await?;
        let keys = self.signing.trusted(&key::all(conn).await?);
        let signed = async |conn: &mut Conn, kind| -> db::Result<i64> {
            let last = checkpoint::last(conn, &tenant.id, kind).await?;
            let last = last.filter(|said| said.verify(&keys).is_ok());
            Ok(last
                .filter(|said| said.tenant == tenant.slug.as_str())
                .map_or(0, |said| said.seq))
        };
        let from = signed(conn, StatementKind::Cut).await?.saturating_add(1);
        let covered = signed(conn, StatementKind::Checkpoint).await?;
        let older = match export::first_since(conn, &tenant.id, before).await? {
            Some(first_kept) => first_kept - 1,
            None => covered,
        };
        let to = older
            .min(covered)
            .min(from.saturating_add(LINES_MAX).saturating_sub(1));
        let last = match store::line(conn, &tenant.id, to).await? {
            Some(line) if to >= from => Head {
                seq: to,
                hash: line.hash,
            },
            Some(_) | None => return Ok(None),
        };
        let slug = tenant.slug.as_str();
        let statement = Statement::cut(&self.signing.signer, slug, from, &last, now)?;
        let removed = export::remove_to(conn, &tenant.id, to).await?;
        if i64::try_from(removed).ok() != statement.count {
            return Err(db::Error::Corrupt(format!(
                "the audit chain of {slug} changed while it was cut"
            )));
        }
        checkpoint::insert(conn, &tenant.id, &statement).await?;
        change.record(
            "audit.cut",
            ("tenant", tenant.id.as_str()),
            None,
            Some(json!({
                "from_seq": from,
                "to_seq": to,
                "last_hash": statement.hash,
                "count": removed,
                "before": before,
            })),
        );
        Ok(Some(statement))
    }
}
