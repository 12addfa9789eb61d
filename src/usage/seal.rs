//! Seals: what was counted in an hour stands in the audit chain as a digest, so that nobody changes it
//! afterwards without being found.
//!
//! 1. When an hour is over, and some minutes more for what is still on its way, the mark in the ledger
//!    is moved behind it: from then on what a batch adds to it is late, and noted as such. It never goes
//!    back, so no clock that is ahead moves it far: that of the database must say so too, and an hour is
//!    over only if there are uses from about then.
//! 2. A line in the chain of each tenant holds the digest of the hour's rows. It is the same whichever
//!    node makes it, and the chain takes the first alone.
//! 3. What came late is taken in by a further seal, but only if without it the rows still are what was
//!    sealed before. If they are not, nothing is sealed, and the hour stays a fault.
//! 4. Counts that are no longer kept leave a line that says so, before they go.
//!
//! The digest of an hour is the SHA-256 over the SHA-256 of each of its rows, in ascending order; a row
//! is hashed as the JSON array of key, secret, superseded (0 or 1), service, outcome, operation, caller,
//! consumer, uses and cost, without spaces.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::Usage;
use super::counts::{HOUR_MS, start};
use super::retention::counts_from;
use super::store::retention;
use super::store::seal::{self, HourRow, LateRow};
use crate::audit::verify::{TURNS, tenants_of};
use crate::audit::{Actor, Attribution, Audit, Chains, Change, TenantRef, origin};
use crate::clock::Clock;
use crate::db::{self, Conn, Db, Turns};
use crate::id::TenantId;
use crate::telemetry::SecurityEvent;
use crate::time::{Span, Timestamp};

/// The action of a seal's line; its target is of the kind [`KIND`] and named by the hour.
pub const SEALED: &str = "usage.sealed";

/// The action of the line that says which counts are no longer kept.
pub const CUT: &str = "usage.counts_cut";

pub const KIND: &str = "usage_hour";

/// How long after its end an hour is sealed: longer than uses take into a ledger that can be reached.
const GRACE: Span = Span::minutes(5);

/// Rows that are read at a time.
const PAGE: i64 = 2_000;

/// Seals the hours of the ledger, cheap to clone.
#[derive(Clone)]
pub struct Seals {
    pub(super) main: Db,
    pub(super) ledger: Db,
    pub(super) audit: Audit,
    pub(super) clock: Clock,
    pub(super) verifying: Turns,
    /// What was due when this node last sealed all that was: earlier than that again if a clock is set back.
    done_to: Arc<AtomicI64>,
}

/// What a seal says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// SHA-256 in hexadecimal.
    pub digest: String,
    pub rows: u64,
    pub uses: i64,
    pub cost: i64,
    /// Every hour of the tenant that ends by then is sealed, or had no uses.
    pub through: Timestamp,
    /// What batches up to this number added late is in it.
    pub late_to: i64,
    /// How many of the uses came after the seal before this one.
    pub late_uses: i64,
}

/// What was counted in an hour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) digest: String,
    pub(super) rows: u64,
    pub(super) uses: i64,
    pub(super) cost: i64,
}

/// An hour of one tenant as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) all: Counted,
    /// Without what came late and is not sealed yet.
    pub(super) on_time: Counted,
    /// The number of the last batch that was late.
    pub(super) late_to: i64,
    pub(super) late_uses: i64,
}

/// What is told apart in an hour.
type Name = (String, String, i32, String, String, String, String);

/// Hashes of rows, until all are there.
#[derive(Default)]
struct Tally {
    hashes: Vec<[u8; 32]>,
    uses: i64,
    cost: i64,
}

impl Tally {
    fn add(&mut self, row: &HourRow) {
        let row_text = json!([
            row.key_id,
            row.secret_id,
            row.superseded,
            row.service,
            row.outcome,
            row.operation,
            row.caller,
            row.consumer_id,
            row.uses,
            row.cost
        ])
        .to_string();
        self.hashes.push(Sha256::digest(row_text).into());
        self.uses = self.uses.saturating_add(row.uses);
        self.cost = self.cost.saturating_add(row.cost);
    }

    fn end(mut self) -> Counted {
        self.hashes.sort_unstable();
        let mut digest = Sha256::new();
        for hash in &self.hashes {
            digest.update(hash);
        }
        Counted {
            digest: hex::encode(digest.finalize()),
            rows: u64::try_from(self.hashes.len()).unwrap_or(u64::MAX),
            uses: self.uses,
            cost: self.cost,
        }
    }
}

/// The hour as it stands, of which the batches up to `late_to` are sealed already.
pub(super) async fn look(
    conn: &mut Conn,
    tenant: &str,
    hour: i64,
    sealed_late_to: i64,
) -> db::Result<Looked> {
    let late = seal::late_rows(conn, tenant, hour, sealed_late_to).await?;
    let (mut late_to, mut late_uses) = (sealed_late_to, 0_i64);
    let mut pending: HashMap<Name, (i64, i64)> = HashMap::new();
    for row in late {
        late_to = late_to.max(row.seq);
        late_uses = late_uses.saturating_add(row.uses);
        let LateRow {
            key_id,
            secret_id,
            superseded,
            service,
            outcome,
            operation,
            caller,
            uses,
            cost,
            seq: _,
        } = row;
        let name = (
            key_id, secret_id, superseded, service, outcome, operation, caller,
        );
        pending.insert(name, (uses, cost));
    }
    let (mut all, mut on_time) = (Tally::default(), Tally::default());
    let mut after: Option<HourRow> = None;
    loop {
        let rows = seal::rows_after(conn, (tenant, hour), after.as_ref(), PAGE).await?;
        for row in &rows {
            all.add(row);
            let name = (
                row.key_id.clone(),
                row.secret_id.clone(),
                row.superseded,
                row.service.clone(),
                row.outcome.clone(),
                row.operation.clone(),
                row.caller.clone(),
            );
            let (uses, cost) = pending.remove(&name).unwrap_or_default();
            let rest = HourRow {
                uses: row.uses.saturating_sub(uses),
                cost: row.cost.saturating_sub(cost),
                ..row.clone()
            };
            if (rest.uses, rest.cost) != (0, 0) {
                on_time.add(&rest);
            }
        }
        let is_last = i64::try_from(rows.len()).is_ok_and(|count| count < PAGE);
        after = rows.into_iter().next_back();
        if is_last || after.is_none() {
            break;
        }
    }
    // What is noted as late and stands nowhere was taken away from the hour.
    for (name, (uses, cost)) in pending {
        let (key_id, secret_id, superseded, service, outcome, operation, caller) = name;
        on_time.add(&HourRow {
            key_id,
            secret_id,
            superseded,
            service,
            outcome,
            operation,
            caller,
            consumer_id: String::new(),
            uses: uses.saturating_neg(),
            cost: cost.saturating_neg(),
        });
    }
    Ok(Looked {
        all: all.end(),
        on_time: on_time.end(),
        late_to,
        late_uses,
    })
}

/// What an hour without uses gives.
pub(super) fn nothing() -> Counted {
    Tally::default().end()
}

/// The seal that a line holds.
pub(super) fn read(after: Option<serde_json::Value>) -> Option<Seal> {
    serde_json::from_value(after?).ok()
}

impl Seals {
    /// `main` has the audit chains, `ledger` the counts.
    pub fn new(main: Db, ledger: Db, audit: Audit, clock: Clock) -> Self {
        Self {
            main,
            ledger,
            audit,
            clock,
            verifying: Turns::new(TURNS, 1),
            done_to: Arc::default(),
        }
    }

    /// Steps 1 and 2, for hours that are over. Asked often: as a rule there is nothing to do. Answers
    /// how many seals were made.
    ///
    /// # Errors
    /// The first that failed; the other tenants get theirs all the same.
    pub async fn seal_due(&self) -> db::Result<usize> {
        let now = self.ledger.bounded_by_clock(self.clock.now()).await?;
        let due = start(now.minus(GRACE), HOUR_MS);
        if due == self.done_to.load(Ordering::Relaxed) {
            return Ok(0);
        }
        let newest = async move |conn: &mut Conn| retention::newest(conn).await;
        let newest: Option<i64> = self.ledger.read(newest).await?;
        let Some(newest) = newest.map(Timestamp::from_millis) else {
            return Ok(0);
        };
        // A batch tells when its last event was: what it only counts may be of the hour after that one.
        let to = due.min(start(newest, HOUR_MS).saturating_add(2 * HOUR_MS));
        // A mark that somebody has moved ahead is not where we have sealed to.
        self.ledger
            .write(async move |conn: &mut Conn| seal::move_to(conn, to).await)
            .await?;
        let (mut sealed, mut failed) = (0, None);
        for tenant in tenants_of(&self.main, &Chains::All).await? {
            match self.seal_tenant(&tenant, to).await {
                Ok(count) => sealed += count,
                // A chain that is not whole is looked at by somebody: once an hour is enough.
                Err(db::Error::Corrupt(what) | db::Error::AuditBroken(what)) => {
                    tracing::error!(tenant = %tenant.slug, what, "did not seal hours of uses");
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.done_to.store(due, Ordering::Relaxed);
        Ok(sealed)
    }

    async fn seal_tenant(&self, tenant: &TenantRef, to: i64) -> db::Result<usize> {
        let (mut sealed, mut from) = (0, self.through(tenant).await?);
        loop {
            let id = tenant.id.to_string();
            let next: Option<i64> = self
                .ledger
                .read(async move |conn: &mut Conn| seal::next_hour(conn, &id, from, to).await)
                .await?;
            let Some(hour) = next else { return Ok(sealed) };
            sealed += usize::from(self.seal_hour(tenant, hour).await?);
            from = hour.saturating_add(HOUR_MS);
        }
    }

    /// Where the sealed hours of a tenant end. Of a chain whose beginning was cut off, what the rest says.
    async fn through(&self, tenant: &TenantRef) -> db::Result<i64> {
        let id = tenant.id.clone();
        self.main
            .read(async move |conn: &mut Conn| sealed_through(conn, &id).await)
            .await
    }

    /// Step 2; `false` if another node was faster.
    async fn seal_hour(&self, tenant: &TenantRef, hour: i64) -> db::Result<bool> {
        let looked = self.look(tenant, hour, 0).await?;
        let seal = Seal {
            through: Timestamp::from_millis(hour.saturating_add(HOUR_MS)),
            late_to: looked.late_to,
            late_uses: looked.late_uses,
            digest: looked.all.digest,
            rows: looked.all.rows,
            uses: looked.all.uses,
            cost: looked.all.cost,
        };
        self.audit
            .change(system(tenant), async move |change: &mut Change| {
                let id = change.attribution().tenant.id.clone();
                if sealed_through(change.conn(), &id).await? > hour {
                    return Ok(false);
                }
                record(change, hour, &seal);
                db::Result::Ok(true)
            })
            .await
    }

    async fn look(&self, tenant: &TenantRef, hour: i64, late_to: i64) -> db::Result<Looked> {
        let id = tenant.id.to_string();
        self.ledger
            .snapshot(async move |conn: &mut Conn| look(conn, &id, hour, late_to).await)
            .await
    }

    /// Step 3, now and then: a line for each hour that something came late for.
    ///
    /// # Errors
    /// The databases'; what was not taken in is taken in the next time.
    pub async fn take_in_late(&self) -> db::Result<usize> {
        let mut taken = 0;
        for tenant in tenants_of(&self.main, &Chains::All).await? {
            let id = tenant.id.to_string();
            let hours: Vec<i64> = self
                .ledger
                .read(async move |conn: &mut Conn| seal::late_hours(conn, &id).await)
                .await?;
            for hour in hours {
                taken += usize::from(self.take_in(&tenant, hour).await?);
            }
        }
        Ok(taken)
    }

    async fn take_in(&self, tenant: &TenantRef, hour: i64) -> db::Result<bool> {
        let (id, target) = (tenant.id.clone(), name(hour));
        let (through, last, cut) = self
            .main
            .read(async move |conn: &mut Conn| {
                let through = sealed_through(conn, &id).await?;
                let last = last_seal(conn, &id, &target).await?;
                db::Result::Ok((through, last, cut_before(conn, &id).await?))
            })
            .await?;
        if last.is_none() && hour >= through {
            // It is not sealed at all yet, and will be with all that it has.
            return Ok(false);
        }
        let late_to = last.as_ref().map_or(0, |seal| seal.late_to);
        let looked = self.look(tenant, hour, late_to).await?;
        // Its seal may have been cut off with the chain, as a verification takes it: then there is nothing to
        // hold the rest against, and no seal to take this in.
        let ends = hour.saturating_add(HOUR_MS);
        let is_unproved = last.is_none()
            && looked.on_time.digest != nothing().digest
            && cut.is_some_and(|first| ends <= first.millis());
        let is_new = looked.late_to > late_to && !is_unproved;
        if is_new {
            let before = last.map_or_else(|| nothing().digest, |seal| seal.digest);
            if looked.on_time.digest != before {
                let told = format!("hour {}", name(hour));
                let event = SecurityEvent::UsageBroken;
                self.audit.security_event(event, &tenant.id, told);
                return Ok(false);
            }
            let seal = Seal {
                through: Timestamp::from_millis(through),
                late_to: looked.late_to,
                late_uses: looked.late_uses,
                digest: looked.all.digest,
                rows: looked.all.rows,
                uses: looked.all.uses,
                cost: looked.all.cost,
            };
            let is_done = self
                .audit
                .change(system(tenant), async move |change: &mut Change| {
                    let id = change.attribution().tenant.id.clone();
                    let known = last_seal(change.conn(), &id, &name(hour)).await?;
                    if known.map_or(0, |seal| seal.late_to) != late_to {
                        return Ok(false);
                    }
                    record(change, hour, &seal);
                    db::Result::Ok(true)
                })
                .await?;
            if !is_done {
                return Ok(false);
            }
        }
        // Also what a node left that ended between the two databases.
        let (id, to) = (tenant.id.to_string(), looked.late_to);
        self.ledger
            .write(async move |conn: &mut Conn| {
                seal::forget_late(conn, &id, hour, to).await.map(drop)
            })
            .await?;
        Ok(is_new)
    }

    /// Step 4, to be called before [`Usage::cut_counts`]: answers since when counts must be kept, because nothing
    /// says that they go. It is said once, however often what was said is tried.
    ///
    /// # Errors
    /// What cannot be said must not be done: of one tenant, then no counts must go.
    pub async fn announce_cut(&self, usage: &Usage) -> db::Result<Timestamp> {
        let Some(judged) = usage.judged().await?.filter(|judged| judged.is_believed) else {
            return Ok(Timestamp::from_millis(0));
        };
        let before = counts_from(judged.now);
        for tenant in tenants_of(&self.main, &Chains::All).await? {
            let id = tenant.id.to_string();
            let oldest: Option<i64> = self
                .ledger
                .read(async move |conn: &mut Conn| {
                    seal::next_hour(conn, &id, i64::MIN, before).await
                })
                .await?;
            let Some(oldest) = oldest else { continue };
            self.audit
                .to_end()
                .change(system(&tenant), async move |change: &mut Change| {
                    let id = change.attribution().tenant.id.clone();
                    if said_before(change.conn(), &id).await? >= before {
                        return Ok(());
                    }
                    let after = json!({
                        "from": Timestamp::from_millis(oldest),
                        "before": Timestamp::from_millis(before),
                    });
                    change.record(CUT, ("usage", "counts"), None, Some(after));
                    db::Result::Ok(())
                })
                .await?;
        }
        Ok(Timestamp::from_millis(before))
    }
}

/// How an hour is called in the chain.
pub(super) fn name(hour: i64) -> String {
    Timestamp::from_millis(hour).to_string()
}

async fn last_seal(conn: &mut Conn, tenant: &TenantId, hour: &str) -> db::Result<Option<Seal>> {
    let mut lines = origin::newest_done(conn, tenant, SEALED, &[hour]).await?;
    Ok(lines.remove(hour).and_then(|line| read(line.after)))
}

/// Counts before this are said to be no longer kept.
async fn said_before(conn: &mut Conn, tenant: &TenantId) -> db::Result<i64> {
    let line = origin::newest_of(conn, tenant, CUT).await?;
    let said = line.and_then(|line| line.after?.get("before")?.as_str()?.parse().ok());
    Ok(said.map_or(i64::MIN, |before: Timestamp| before.millis()))
}

async fn sealed_through(conn: &mut Conn, tenant: &TenantId) -> db::Result<i64> {
    if let Some(line) = origin::newest_of(conn, tenant, SEALED).await? {
        let seal = read(line.after).ok_or_else(|| {
            db::Error::Corrupt(format!("the seal in audit event {} is none", line.seq))
        })?;
        return Ok(seal.through.millis());
    }
    // The seals of what was before may have been cut off: it is not sealed anew as it is now.
    let cut = cut_before(conn, tenant).await?;
    Ok(cut.map_or(0, |first| start(first, HOUR_MS)))
}

/// When the first line was written that there still is, if those before it were cut off.
async fn cut_before(conn: &mut Conn, tenant: &TenantId) -> db::Result<Option<Timestamp>> {
    let first = origin::first(conn, tenant).await?;
    Ok(first.filter(|(seq, _)| *seq > 1).map(|(_, at)| at))
}

fn record(change: &mut Change, hour: i64, seal: &Seal) {
    change.record(SEALED, (KIND, &name(hour)), None, Some(json!(seal)));
}

fn system(tenant: &TenantRef) -> Attribution {
    Attribution {
        tenant: tenant.clone(),
        actor: Actor::System,
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    }
}
