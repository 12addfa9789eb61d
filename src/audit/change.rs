//! A change: one transaction that holds what is changed, its audit lines and its step of the feed.
//!
//! 1. lock the audit head of the tenant: changes of one tenant happen one after the other, so a
//!    change may read, decide and write without another in between; the head's MAC is verified, and
//!    the newest line must be the one it names, so that nobody has his cut or rewritten chain sealed by
//!    our next change;
//! 2. the work itself, which records a line for each object and touches what decisions depend on;
//! 3. the lines are numbered, chained and inserted, the head is moved and MACed;
//! 4. the change head is stepped, if anything was touched;
//! 5. commit; until what was touched is noted on this node, its validations ask the database, also when
//!    nobody hears whether it was committed. Who waits may have stopped waiting by then: the change does
//!    not notice.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;

use super::action::{is_action, is_kind};
use super::actor::{Attribution, TenantRef};
use super::chain::{AuditOutcome, Event, Head, HeadKeys, Target, link, recordable};
use super::signing::span::SigningKeys;
use super::signing::{Outlet, Statement};
use super::store::{self, Sealed};
use super::verify::{Report, TURNS};
use crate::cache::Changes;
use crate::cache::changes::Committing;
use crate::cache::relay::Relay;
use crate::clock::Clock;
use crate::db::feed::{self, Kind};
use crate::db::{self, Conn, Db, Turns, Work};
use crate::entropy::Entropy;
use crate::id::{AuditId, TenantId};
use crate::master::MasterKeys;
use crate::metrics::Metrics;
use crate::telemetry::{SecurityEvent, Sighting};
use crate::time::Timestamp;

/// The longest that the caller of a bulk change waits: less than the edge gives an answer.
const BULK_WAIT_MAX: Duration = Duration::from_secs(9);

/// The longest that validations ask the database for what a change touched of which nobody heard how it ended:
/// longer than another database takes to take the place of one that died.
const UNHEARD_MAX: Duration = Duration::from_secs(30);

/// Makes changes, cheap to clone.
#[derive(Clone)]
pub struct Audit {
    pub(super) db: Db,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    pub(super) keys: HeadKeys,
    pub(super) signing: SigningKeys,
    /// Where checkpoints go, beside the log.
    pub(super) outlet: Outlet,
    /// Statements that are committed and could not leave: told before anything else is cut.
    pub(super) untold: Arc<Mutex<Vec<Statement>>>,
    pub(super) metrics: Option<Arc<Metrics>>,
    /// What this node knows of changes learns of its own before anybody is answered.
    changes: Option<Changes>,
    /// Where other nodes are told, and woken to read the database.
    relay: Option<Relay>,
    /// How long a caller waits for a change; `None`: to its end.
    wait_max: Option<Duration>,
    /// Verifications for waiting callers.
    pub(super) verifying: Turns,
}

/// A change under way: the connection to work on, and what it leaves behind.
pub struct Change {
    tx: db::Tx,
    at: Attribution,
    clock: Clock,
    entropy: Entropy,
    now: Timestamp,
    lines: Vec<Line>,
    touched: Vec<(Kind, String)>,
}

/// What a change left behind: its audit lines, and what decisions must look at again.
#[derive(Default)]
pub(super) struct Left {
    pub(super) lines: Vec<Sealed>,
    touched: Vec<(Kind, String)>,
    /// Its number in the feed, if it touched anything.
    step: i64,
    /// Until it is noted, or given up.
    committing: Option<Committing>,
}

struct Line {
    /// Made when it is written, unless somebody asks for it by this one.
    id: Option<AuditId>,
    action: &'static str,
    target: Target,
    outcome: AuditOutcome,
    before: Option<Value>,
    after: Option<Value>,
    services: Vec<String>,
    code: Option<String>,
    count: Option<i64>,
}

impl Change {
    pub fn conn(&mut self) -> &mut Conn {
        self.tx.conn()
    }

    /// The instant of the whole change.
    pub fn now(&self) -> Timestamp {
        self.now
    }

    pub fn attribution(&self) -> &Attribution {
        &self.at
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// One line for one object that changed. `before` and `after` hold no secret.
    pub fn record(
        &mut self,
        action: &'static str,
        (kind, id): (&str, &str),
        before: Option<Value>,
        after: Option<Value>,
    ) {
        debug_assert!(is_action(action) && is_kind(kind), "{action} of {kind}");
        self.lines.push(Line {
            id: None,
            action,
            target: Target {
                kind: kind.to_owned(),
                id: id.to_owned(),
            },
            outcome: AuditOutcome::Done,
            before: before.and_then(recordable),
            after: after.and_then(recordable),
            services: Vec::new(),
            code: None,
            count: None,
        });
    }

    /// Says which services, by their slugs, the line recorded last concerns.
    pub fn concerns(&mut self, services: impl IntoIterator<Item = String>) {
        if let Some(line) = self.lines.last_mut() {
            line.services = services.into_iter().collect();
            line.services.sort_unstable();
            line.services.dedup();
        }
    }

    /// Gives the line recorded last its id, by which it can be found: see [`store::seq_of`].
    pub(super) fn called(&mut self, id: AuditId) {
        if let Some(line) = self.lines.last_mut() {
            line.id = Some(id);
        }
    }

    /// One line for refused attempts; `target` is what was attempted, as far as it is known.
    pub fn record_refused(&mut self, action: &'static str, target: Target, code: &str, count: i64) {
        debug_assert!(
            is_action(action) && is_kind(&target.kind),
            "{action} of {}",
            target.kind
        );
        self.lines.push(Line {
            id: None,
            action,
            target,
            outcome: AuditOutcome::Refused,
            before: None,
            after: None,
            services: Vec::new(),
            code: Some(code.to_owned()),
            count: Some(count),
        });
    }

    /// Notes that decisions made from this entity must look again.
    pub fn touch(&mut self, kind: Kind, id: &str) {
        self.touched.push((kind, id.to_owned()));
    }
}

impl Audit {
    pub fn new(db: Db, clock: Clock, entropy: Entropy, master: &MasterKeys) -> Self {
        Self {
            db,
            clock,
            entropy,
            keys: HeadKeys::new(master),
            signing: SigningKeys::new(master),
            outlet: Outlet::default(),
            untold: Arc::default(),
            metrics: None,
            changes: None,
            relay: None,
            wait_max: Some(db::WAIT_MAX),
            verifying: Turns::new(TURNS, 1),
        }
    }

    /// Counts what happens.
    #[must_use]
    pub fn counted(self, metrics: Arc<Metrics>) -> Self {
        Self {
            metrics: Some(metrics),
            ..self
        }
    }

    /// Tells `outlet` of every checkpoint.
    #[must_use]
    pub fn telling(self, outlet: Outlet) -> Self {
        Self { outlet, ..self }
    }

    /// Tells `changes` of every change that is committed, and wakes other nodes through `relay`.
    #[must_use]
    pub fn noted_in(self, changes: Changes, relay: Option<Relay>) -> Self {
        Self {
            changes: Some(changes),
            relay,
            ..self
        }
    }

    /// Counts and tells what somebody should look at.
    pub fn security_event(&self, event: SecurityEvent, tenant: &TenantId, reason: String) {
        self.note(event, tenant.as_str(), reason);
    }

    fn note(&self, event: SecurityEvent, tenant: &str, reason: String) {
        let sighting = Sighting {
            tenant: Some(tenant.to_string()),
            reason: Some(reason),
            ..Sighting::new(event, tenant)
        };
        match &self.metrics {
            Some(metrics) => metrics.security.note(sighting),
            None => sighting.tell(),
        }
    }

    /// A chain that does not verify is told wherever that is found. What a reseal may have accepted is no alarm,
    /// but is not passed over in silence: nobody has verified yet that there is such a reseal.
    pub fn note_fault(&self, report: &Report) {
        if report.bad > report.undecided {
            // Without an id if the tenant is gone.
            let told = report.to_string();
            self.note(SecurityEvent::AuditBroken, &report.tenant_id, told);
        } else if report.bad > 0 {
            tracing::warn!(
                target: "security",
                tenant = %report.tenant_id,
                faults = report.bad,
                "a part of an audit chain has faults that a reseal further on may have accepted: look with \
                 keystead audit verify"
            );
        }
    }

    /// For changes of many objects: their callers wait longer.
    #[must_use]
    pub fn patient(&self) -> Self {
        Self {
            wait_max: Some(BULK_WAIT_MAX),
            ..self.clone()
        }
    }

    /// For what no client waits for, and who must know how a change ended: waits to the end.
    #[must_use]
    pub fn to_end(&self) -> Self {
        Self {
            wait_max: None,
            ..self.clone()
        }
    }

    /// Runs `work` as one change. It goes on to its end if the caller stops waiting.
    ///
    /// # Errors
    /// What `work` answers, with nothing changed; [`db::Error::Busy`] when the caller waited as
    /// long as it may: then the change may still be made.
    pub async fn change<T, E, F>(&self, at: Attribution, work: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<db::Error> + Send + 'static,
        for<'c> F: AsyncFnOnce(&'c mut Change) -> Result<T, E>
            + Work<&'c mut Change, Result<T, E>, Running: Send>
            + Send
            + 'static,
    {
        let this = self.clone();
        self.db
            .spawn(self.wait_max, async move {
                let mut tx = this.db.begin().await?;
                let head = match this.lock(tx.conn(), &at.tenant).await {
                    Ok(head) => head,
                    Err(error) => return tx.end(Err(error.into())).await,
                };
                let mut change = this.begin(tx, at);
                let mut done = match work(&mut change).await {
                    Ok(value) => match this.seal(&mut change, head).await {
                        Ok(sealed) => Ok((value, sealed)),
                        Err(error) => {
                            this.not_written(&change.at.tenant, &error);
                            Err(error.into())
                        }
                    },
                    Err(error) => Err(error),
                };
                let touching = done
                    .as_mut()
                    .ok()
                    .and_then(|(_, sealed)| Some((sealed.committing.take()?, sealed.step)));
                match change.tx.end(done).await {
                    Ok((value, sealed)) => {
                        this.committed(sealed);
                        drop(touching);
                        Ok(value)
                    }
                    Err(error) => {
                        if let Some((committing, step)) = touching {
                            this.keep_asking(committing, step);
                        }
                        Err(error)
                    }
                }
            })
            .await
    }

    /// For a change that may be committed although that was not answered. It is not noted here: if it is not
    /// committed, its number is another's.
    fn keep_asking(&self, committing: Committing, step: i64) {
        let Some(changes) = self.changes.clone() else {
            return;
        };
        self.db.runtime().spawn(async move {
            let learned = async {
                while changes.position() < step {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            };
            let _learned = tokio::time::timeout(UNHEARD_MAX, learned).await;
            drop(committing);
        });
    }

    pub(super) fn begin(&self, tx: db::Tx, at: Attribution) -> Change {
        Change {
            tx,
            at,
            now: self.clock.now(),
            clock: self.clock.clone(),
            entropy: self.entropy.clone(),
            lines: Vec::new(),
            touched: Vec::new(),
        }
    }

    fn not_written(&self, tenant: &TenantRef, error: &db::Error) {
        let event = SecurityEvent::AuditNotWritten;
        self.security_event(event, &tenant.id, error.to_string());
    }

    /// Step 1.
    pub(super) async fn lock(&self, conn: &mut Conn, at: &TenantRef) -> db::Result<Head> {
        let tenant = &at.id;
        let reason = match store::lock_head(conn, tenant).await? {
            Some((head, mac)) if self.keys.opens(tenant, &head, &mac) => {
                // In a statement of its own: the one that waited for the lock does not see the lines that
                // were added meanwhile.
                let newest = store::newest(conn, tenant).await;
                let newest = newest.inspect_err(|error| {
                    if matches!(error, db::Error::Query(_) | db::Error::Corrupt(_)) {
                        self.not_written(at, error);
                    }
                })?;
                if newest == head {
                    return Ok(head);
                }
                "the newest record is not the one that it names"
            }
            Some(_) => "its MAC does not verify under any listed master key",
            None => "it is missing",
        };
        let told = format!("refused a change: the head of the chain: {reason}");
        self.security_event(SecurityEvent::AuditBroken, tenant, told);
        Err(db::Error::AuditBroken(format!(
            "the audit head of {tenant}: {reason}"
        )))
    }

    /// Steps 3 and 4.
    pub(super) async fn seal(&self, change: &mut Change, mut head: Head) -> db::Result<Left> {
        let tenant = change.at.tenant.id.clone();
        let lines = std::mem::take(&mut change.lines);
        let touched = std::mem::take(&mut change.touched);
        if lines.is_empty() {
            return match touched.first() {
                None => Ok(Left::default()),
                Some((kind, id)) => Err(db::Error::Corrupt(format!(
                    "a change of the {} {id} has no audit line",
                    kind.as_str()
                ))),
            };
        }
        let mut sealed = Vec::with_capacity(lines.len());
        for line in lines {
            let seq = head.seq.checked_add(1).ok_or_else(|| {
                db::Error::Corrupt(format!("the audit chain of {tenant} is at its last number"))
            })?;
            let event = change.event(line, seq);
            let record = event.canonical()?;
            let hash = link(&head.hash, &record).to_vec();
            let prev_hash = std::mem::replace(&mut head.hash, hash.clone());
            head.seq = seq;
            sealed.push(Sealed {
                event,
                record,
                prev_hash,
                hash,
            });
        }
        store::insert(change.tx.conn(), &tenant, &sealed).await?;
        let mac = self.keys.seal(&tenant, &head);
        store::move_head(change.tx.conn(), &tenant, &head, &mac).await?;
        let step = if touched.is_empty() {
            0
        } else {
            feed::step(change.tx.conn(), &touched, change.now).await?
        };
        let changes = self.changes.as_ref().filter(|_| step > 0);
        Ok(Left {
            lines: sealed,
            committing: changes.map(|changes| changes.commit(&touched)),
            touched,
            step,
        })
    }

    /// Tells the log what the database now holds, a line each: against these is found what a
    /// database that was rolled back to an old backup no longer knows.
    pub(super) fn committed(&self, left: Left) {
        if let (Some(metrics), false) = (&self.metrics, left.lines.is_empty()) {
            metrics.changes.inc();
        }
        if let Some(changes) = &self.changes {
            for (kind, id) in &left.touched {
                changes.note(left.step, *kind, id);
            }
        }
        drop(left.committing);
        if let (Some(relay), true) = (&self.relay, left.step > 0) {
            // Nobody waits for it: whoever does not hear of it asks the database within a second.
            let wake = relay.clone().wake(left.step, left.touched);
            self.db.runtime().spawn(wake);
        }
        for Sealed { event, hash, .. } in &left.lines {
            tracing::info!(
                target: "audit",
                tenant = event.tenant,
                seq = event.seq,
                action = event.action,
                outcome = event.outcome.as_str(),
                target_id = event.target.id,
                actor = event.actor.name(),
                hash = hex::encode(hash),
                "recorded a change"
            );
        }
    }

    /// Starts the chain of a tenant that this very transaction creates.
    pub async fn create_head(&self, conn: &mut Conn, tenant: &TenantId) -> db::Result<()> {
        let head = Head::genesis();
        let mac = self.keys.seal(tenant, &head);
        store::insert_head(conn, tenant, &head, &mac).await
    }
}

impl Change {
    /// Ends the transaction, see [`db::Tx::end`].
    pub(super) async fn end<T, E: From<db::Error>>(self, done: Result<T, E>) -> Result<T, E> {
        self.tx.end(done).await
    }

    /// The event of one of this change's lines.
    fn event(&self, line: Line, seq: i64) -> Event {
        let at = &self.at;
        let id = line
            .id
            .unwrap_or_else(|| AuditId::new(&self.clock, &self.entropy));
        Event {
            id: id.to_string(),
            seq,
            at: self.now,
            tenant: at.tenant.slug.to_string(),
            actor: at.actor.clone(),
            via: at.via.clone(),
            home_tenant: at.home.as_ref().map(ToString::to_string),
            action: line.action.to_owned(),
            target: line.target,
            outcome: line.outcome,
            before: line.before,
            after: line.after,
            reason: at.reason.clone(),
            request_id: at.request_id.clone(),
            ip: at.ip.map(|ip| ip.to_canonical().to_string()),
            services: (!line.services.is_empty()).then_some(line.services),
            code: line.code,
            count: line.count,
        }
    }
}
