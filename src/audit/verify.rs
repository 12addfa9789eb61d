//! Proves that nothing was altered, removed or inserted, or names the first record that was.
//!
//! 1. the head is read first, and its MAC verified: lines appended meanwhile are not its business;
//! 2. the lines up to it are walked a page at a time, in bounded memory;
//! 3. the walk must end at the head's number and hash, and nothing may lie beyond it;
//! 4. what does not hold may be missing because it was cut off on the way: then the chain is walked once
//!    more, from the cut.
//!
//! On the way it is held against the checkpoints that were signed of it: those in the database, and
//! those in the files that are given. Who rolls the whole database back to an old copy of itself is
//! found against the latter.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::chain::{Head, HeadKeys};
use super::fault::{BadRecord, Fault};
use super::outside::{Checks, Found};
use super::reseal;
use super::signing::Statement;
use super::signing::span::SigningKeys;
use super::store::{self, checkpoint, key};
use super::walk::Walk;
use super::{Audit, TenantRef};
use crate::db::{self, Conn, Db};
use crate::id::TenantId;
use crate::master::MasterKeys;
use crate::text::Slug;

/// Lines a page: a database connection is held for one page at a time.
pub(super) const PAGE: i64 = 1000;

/// Which chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chains {
    All,
    Of(TenantId),
}

/// What was found in one chain.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "AuditReport")]
pub struct Report {
    /// The tenant's id; empty of a tenant that is gone.
    pub tenant_id: String,
    /// Its slug, if its row is there, or something was signed of it.
    #[schema(required = true)]
    pub tenant: Option<String>,
    /// Nothing was altered, removed or inserted.
    pub valid: bool,
    /// What that holds for.
    pub covers: Vec<Covered>,
    /// How many records were checked.
    pub checked: i64,
    /// The first record that does not hold and was not accepted by a reseal.
    #[schema(required = true)]
    pub first_bad: Option<BadRecord>,
    /// The first twenty of them.
    pub faults: Vec<BadRecord>,
    /// How many do not hold.
    pub bad: u64,
    /// How many of those a reseal further on may have accepted. Only a check that goes from the first record to the
    /// reseal at once tells, as `keystead audit verify` does.
    pub undecided: u64,
    /// How many checkpoints were found to fit.
    pub checkpoints: i64,
    /// How many did not hold when an operator resealed the chain after looking.
    pub accepted: u64,
    /// The record to go on with, if the time was up before the end: then the rest is not checked.
    #[schema(required = true)]
    pub next_seq: Option<i64>,
    #[schema(required = true)]
    pub head: Option<HeadReport>,
}

/// What was checked of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(title = "AuditCovered")]
pub enum Covered {
    /// Each record, its hash and its place, as far as `checked` and `next_seq` say.
    Records,
    /// The end of the chain, and that nothing lies beyond it.
    Head,
    /// The checkpoints that the database has.
    Checkpoints,
    /// The checkpoints in files that were given.
    CheckpointsOutside,
}

/// The end of the chain when it was verified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct HeadReport {
    pub seq: i64,
    /// SHA-256 in hexadecimal.
    pub hash: String,
    /// The MAC verifies under a listed master key.
    pub sealed_by_us: bool,
}

/// Verifies chains, one report each. Works beside a running server.
///
/// # Errors
/// Only when the database cannot be asked; what is wrong with a chain is in its report.
pub async fn verify(db: &Db, master: &MasterKeys, chains: &Chains) -> db::Result<Vec<Report>> {
    verify_against(db, master, chains, &[]).await
}

/// The same, also against what was found outside of the database.
pub async fn verify_against(
    db: &Db,
    master: &MasterKeys,
    chains: &Chains,
    found: &[Found],
) -> db::Result<Vec<Report>> {
    let mut against = Against {
        heads: HeadKeys::new(master),
        signing: SigningKeys::new(master),
        found: found.to_vec(),
    };
    let mut reports = Vec::new();
    let mut slugs = Vec::new();
    for (tenant, slug) in tenants(db, chains).await? {
        slugs.extend(slug.clone());
        reports.push(one(db, &against, tenant, slug, 1, || true).await?);
        // What cannot be read belongs to no chain: it is told once.
        against.found.retain(|found| found.statement.is_ok());
    }
    if *chains == Chains::All {
        reports.extend(gone(db, &against, &slugs).await?);
    }
    Ok(reports)
}

/// A report for each tenant that something was signed of outside, and that the database does not know:
/// none is ever removed.
async fn gone(db: &Db, against: &Against, slugs: &[String]) -> db::Result<Vec<Report>> {
    let rows = async move |conn: &mut Conn| key::all(conn).await;
    let keys = against.signing.trusted(&db.read(rows).await?);
    let statements = against.found.iter();
    let statements = statements.filter_map(|found| found.statement.as_ref().ok());
    let mut furthest: BTreeMap<&str, Option<&Statement>> = BTreeMap::new();
    for said in statements {
        if slugs.contains(&said.tenant) {
            continue;
        }
        let known = furthest.entry(&said.tenant).or_default();
        let is_further = known.is_none_or(|known| known.seq < said.seq);
        if is_further && said.verify(&keys).is_ok() {
            *known = Some(said);
        }
    }
    let reports = furthest.into_iter().map(|(tenant, last)| {
        let gone = last.map(|last| {
            let detail = format!(
                "the tenant and its chain are gone, but it had reached number {} on {}",
                last.seq, last.at
            );
            BadRecord::new(1, None, Fault::RolledBack, detail)
        });
        let (_, forged) = Checks::of(Some(tenant), &against.found, &keys);
        let faults: Vec<BadRecord> = gone.into_iter().chain(forged).collect();
        Report {
            tenant_id: String::new(),
            tenant: Some(tenant.to_owned()),
            valid: false,
            covers: covered(&against.found, true),
            checked: 0,
            first_bad: faults.first().cloned(),
            bad: u64::try_from(faults.len()).unwrap_or(u64::MAX),
            faults,
            undecided: 0,
            accepted: 0,
            checkpoints: 0,
            next_seq: None,
            head: None,
        }
    });
    Ok(reports.collect())
}

/// What chains are verified with.
struct Against {
    heads: HeadKeys,
    signing: SigningKeys,
    found: Vec<Found>,
}

/// What a chain is held against: what the database says was signed of it, and `found`.
pub(super) async fn checks(
    conn: &mut Conn,
    tenant: &TenantId,
    slug: Option<&str>,
    signing: &SigningKeys,
    found: &[Found],
) -> db::Result<(Checks, Vec<BadRecord>)> {
    let keys = signing.trusted(&key::all(conn).await?);
    let stored = checkpoint::texts(conn, tenant).await?;
    let stored: Vec<Found> = stored
        .iter()
        .map(|(seq, text)| Found {
            origin: format!("row {seq} of the database"),
            statement: serde_json::from_str(text).map_err(|error| error.to_string()),
        })
        .collect();
    // Without its row the tenant's name is not known, and files tell tenants by their names.
    let found = found.iter().filter(|_| slug.is_some());
    Ok(Checks::of(slug, stored.iter().chain(found), &keys))
}

/// How long a verification for a waiting caller runs before it answers how far it came.
pub const TURN: Duration = Duration::from_secs(3);

/// How long a caller waits for others' turns to end: the longest of those that run, and with its own turn
/// less than the edge gives an answer.
pub const TURN_WAIT_MAX: Duration = Duration::from_secs(5);

/// So many verifications run at once on a node, for as many tenants.
pub const TURNS: usize = 2;

impl Audit {
    /// Verifies the chain of one tenant for a caller who waits: from the line `from`, for at most
    /// some seconds, one of the tenant at a time. [`Report::next_seq`] says where to go on.
    ///
    /// # Errors
    /// [`db::Error::Busy`] when others run for longer than the caller waits.
    pub async fn verify(&self, tenant: &TenantId, from: i64) -> db::Result<Report> {
        let _turn = self.verifying.take(tenant.as_str(), TURN_WAIT_MAX).await?;
        let id = tenant.clone();
        let slug = self
            .db
            .read(async move |conn: &mut Conn| store::slug(conn, &id).await)
            .await?;
        let until = self.clock.monotonic() + TURN;
        let may_go_on = || self.clock.monotonic() < until;
        let against = Against {
            heads: self.keys.clone(),
            signing: self.signing.clone(),
            found: Vec::new(),
        };
        one(&self.db, &against, tenant.clone(), slug, from, may_go_on).await
    }
}

impl Audit {
    /// Verifies a chain to its end, for housekeeping.
    pub(super) async fn verify_all(&self, tenant: &TenantId) -> db::Result<Report> {
        let against = Against {
            heads: self.keys.clone(),
            signing: self.signing.clone(),
            found: Vec::new(),
        };
        let id = tenant.clone();
        let slug = self
            .db
            .read(async move |conn: &mut Conn| store::slug(conn, &id).await)
            .await?;
        one(&self.db, &against, tenant.clone(), slug, 1, || true).await
    }
}

/// The tenants whose chains these are, without those that are no tenants any more.
///
/// # Errors
/// The database's.
pub async fn tenants_of(db: &Db, chains: &Chains) -> db::Result<Vec<TenantRef>> {
    let all = tenants(db, chains).await?;
    let named = all.into_iter().filter_map(|(id, slug)| {
        let slug = Slug::parse(slug.as_deref()?).ok()?;
        Some(TenantRef { id, slug })
    });
    Ok(named.collect())
}

pub(super) async fn tenants(
    db: &Db,
    chains: &Chains,
) -> db::Result<Vec<(TenantId, Option<String>)>> {
    let chains = chains.clone();
    db.read(async move |conn: &mut Conn| match chains {
        Chains::All => store::tenants(conn).await,
        Chains::Of(id) => {
            let slug = store::slug(conn, &id).await?;
            Ok(vec![(id, slug)])
        }
    })
    .await
}

/// Verifies one chain from the line `from`, as long as `may_go_on`.
async fn one(
    db: &Db,
    against: &Against,
    tenant: TenantId,
    slug: Option<String>,
    from: i64,
    may_go_on: impl Fn() -> bool,
) -> db::Result<Report> {
    loop {
        let of = (&tenant, slug.as_deref());
        let (report, cut_to) = walked(db, against, of, from, &may_go_on).await?;
        // Step 4.
        if report.valid || cut_to == cut_to_now(db, against, of).await? {
            return Ok(report);
        }
    }
}

/// Up to where the chain is cut off at present, as far as that was signed.
async fn cut_to_now(
    db: &Db,
    against: &Against,
    (tenant, slug): (&TenantId, Option<&str>),
) -> db::Result<i64> {
    let (id, name) = (tenant.clone(), slug.map(ToOwned::to_owned));
    let (signing, found) = (against.signing.clone(), against.found.clone());
    db.read(async move |conn: &mut Conn| {
        let (checks, _told) = checks(conn, &id, name.as_deref(), &signing, &found).await?;
        Ok(checks.cut_to())
    })
    .await
}

/// Steps 1 to 3. Answers the report, and up to where the chain was cut off when it was begun.
async fn walked(
    db: &Db,
    against: &Against,
    (tenant, slug): (&TenantId, Option<&str>),
    from: i64,
    may_go_on: impl Fn() -> bool,
) -> db::Result<(Report, i64)> {
    let keys = &against.heads;
    let (tenant, slug) = (tenant.clone(), slug.map(ToOwned::to_owned));
    let (id, name) = (tenant.clone(), slug.clone());
    let (signing, found) = (against.signing.clone(), against.found.clone());
    let (head, mut walk, strange) = db
        .read(async move |conn: &mut Conn| {
            // First, so that none of them is about lines behind the head.
            let (checks, strange) = checks(conn, &id, name.as_deref(), &signing, &found).await?;
            let head = store::head(conn, &id).await?;
            let before = if from > 1 {
                store::line_before(conn, &id, from).await?
            } else {
                None
            };
            db::Result::Ok((head, Walk::from(id, name, before, checks), strange))
        })
        .await?;
    let cut_to = walk.cut_to;
    let to = head.as_ref().map_or(i64::MAX, |(head, _)| head.seq);
    let mut after = walk.begins_after;
    loop {
        let id = tenant.clone();
        let (walked, last) = db
            .read(async move |conn: &mut Conn| {
                let lines = store::stretch(conn, &id, after, to, PAGE).await?;
                walk.over(conn, &lines).await?;
                db::Result::Ok((walk, lines.last().map(|line| line.seq)))
            })
            .await?;
        walk = walked;
        match last {
            Some(last) if last < to => after = Some(store::behind(after, last)),
            Some(_) | None => break,
        }
        if !may_go_on() {
            let id = tenant.clone();
            let resealed = db
                .read(async move |conn: &mut Conn| store::last_of(conn, &id, reseal::ACTION).await)
                .await?;
            if resealed.is_some_and(|seq| seq >= walk.next) {
                walk.undecided = walk.bad;
            }
            let head = head.map(|(head, mac)| HeadReport::of(keys, &tenant, &head, &mac));
            let next_seq = Some(walk.next);
            let covers = covered(&against.found, false);
            let report = Report {
                next_seq,
                ..Report::of(&tenant, slug, covers, walk, head)
            };
            return Ok((report, cut_to));
        }
    }
    let id = tenant.clone();
    let beyond = db
        .read(async move |conn: &mut Conn| store::beyond_head(conn, &id).await)
        .await?;
    let head = end(&mut walk, keys, &tenant, head);
    if let Some(line) = beyond {
        walk.note_beyond_head(&line);
    }
    let ends = walk.last().max(head.as_ref().map_or(0, |head| head.seq));
    if let Some(bad) = walk.checks.beyond(ends) {
        walk.note(bad);
    }
    for bad in strange {
        walk.note(bad);
    }
    let covers = covered(&against.found, true);
    Ok((Report::of(&tenant, slug, covers, walk, head), cut_to))
}

pub(super) fn covered(outside: &[Found], is_to_end: bool) -> Vec<Covered> {
    let mut covers = vec![Covered::Records, Covered::Checkpoints];
    if is_to_end {
        covers.push(Covered::Head);
    }
    if !outside.is_empty() {
        covers.push(Covered::CheckpointsOutside);
    }
    covers
}

impl HeadReport {
    fn of(keys: &HeadKeys, tenant: &TenantId, head: &Head, mac: &[u8]) -> Self {
        Self {
            seq: head.seq,
            hash: hex::encode(&head.hash),
            sealed_by_us: keys.opens(tenant, head, mac),
        }
    }
}

impl Report {
    pub(super) fn of(
        tenant: &TenantId,
        slug: Option<String>,
        covers: Vec<Covered>,
        walk: Walk,
        head: Option<HeadReport>,
    ) -> Self {
        Self {
            tenant_id: tenant.to_string(),
            tenant: slug,
            valid: walk.bad == 0,
            covers,
            checked: walk.checked,
            first_bad: walk.named.first().cloned(),
            faults: walk.named,
            bad: walk.bad,
            undecided: walk.undecided,
            accepted: walk.accepted,
            checkpoints: walk.checks.fitting,
            next_seq: None,
            head,
        }
    }
}

/// Step 3, for a chain walked to the number in `head`.
pub(super) fn end(
    walk: &mut Walk,
    keys: &HeadKeys,
    tenant: &TenantId,
    head: Option<(Head, Vec<u8>)>,
) -> Option<HeadReport> {
    let last_id = walk.last_id.clone();
    let last_id = last_id.as_deref();
    let Some((head, mac)) = head else {
        let detail = "the chain has no head, so its end cannot be proved".to_owned();
        walk.note(BadRecord::new(
            walk.last(),
            last_id,
            Fault::HeadMissing,
            detail,
        ));
        return None;
    };
    let report = HeadReport::of(keys, tenant, &head, &mac);
    if !report.sealed_by_us {
        walk.note(BadRecord::new(
            head.seq,
            last_id.filter(|_| walk.last() == head.seq),
            Fault::HeadForged,
            "the head's MAC does not verify under any listed master key".to_owned(),
        ));
    } else if walk.last() < head.seq {
        let missing = walk.next;
        walk.note(BadRecord::new(
            missing,
            None,
            Fault::TailCut,
            format!("the last {} records are missing", head.seq - walk.last()),
        ));
    } else if walk.prev_hash != head.hash && walk.bad == 0 {
        walk.note(BadRecord::new(
            head.seq,
            last_id,
            Fault::Rehashed,
            "it ends in another hash than the head's: it or one before it was altered, and every \
             hash from there on made anew"
                .to_owned(),
        ));
    }
    Some(report)
}

impl fmt::Display for Report {
    /// One line for a chain that holds, a second one for what does not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.as_deref().unwrap_or(&self.tenant_id);
        let state = if self.valid { "whole" } else { "BROKEN" };
        write!(f, "{tenant}: {state}, {} records checked", self.checked)?;
        if let Some(head) = &self.head {
            write!(f, ", head {} {}", head.seq, head.hash)?;
        }
        if self.checkpoints > 0 {
            write!(f, ", {} checkpoints fit", self.checkpoints)?;
        }
        if self.accepted > 0 {
            write!(f, ", {} faults accepted by a reseal", self.accepted)?;
        }
        for (index, bad) in self.faults.iter().enumerate() {
            let what = if index == 0 { "first bad" } else { "bad" };
            write!(f, "\n  {what} record: {bad}")?;
        }
        if self.bad > 1 {
            write!(f, "\n  faults in all: {}", self.bad)?;
        }
        Ok(())
    }
}
