//! Holds the counts of the ledger against the seals in the audit chain, hour by hour.
//!
//! It takes the chain as it is: whether that is whole is another question, to be asked first.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::counts::HOUR_MS;
use super::seal::{CUT, Counted, SEALED, Seal, Seals, look, name, nothing, read};
use super::store::seal;
use crate::audit::verify::{TURN, TURN_WAIT_MAX, tenants_of};
use crate::audit::{Chains, TenantRef, origin};
use crate::db::{self, Conn, Db};
use crate::telemetry::SecurityEvent;
use crate::time::Timestamp;

/// Lines that are read at a time.
const PAGE: i64 = 1_000;

/// Hours that are named; of more, the rest is counted.
const NAMED_MAX: usize = 20;

/// What was done to the counts of an hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HourFault {
    /// They are not what was sealed.
    Altered,
    /// They are gone, and no line says that they are no longer kept.
    Removed,
    /// There were none when the hour was sealed.
    Inserted,
}

/// An hour whose counts do not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct BadHour {
    /// Its beginning.
    pub hour: Timestamp,
    pub fault: HourFault,
    pub detail: String,
}

/// What was found in the hours of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(title = "UsageReport")]
pub struct HoursReport {
    /// Its slug.
    #[schema(example = "default")]
    pub tenant: String,
    /// Every sealed hour that is kept is what was sealed.
    pub valid: bool,
    /// How many sealed hours hold.
    pub sealed_hours: u64,
    /// How many were sealed and are no longer kept, as the chain says.
    pub dropped_hours: u64,
    /// How many have counts from a time whose seals were cut off with the beginning of the chain.
    pub unproved_hours: u64,
    /// The first twenty that do not hold.
    pub faults: Vec<BadHour>,
    /// How many do not hold.
    pub bad: u64,
    /// The hour to go on with, if the time was up before the end: then the rest is not checked.
    #[schema(required = true)]
    pub next_hour: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Dropped {
    before: Timestamp,
}

/// What a chain says of a ledger.
struct Said {
    seals: BTreeMap<i64, Seal>,
    /// Counts of hours before this are no longer kept.
    kept_from: i64,
    /// Hours that ended before this may have had seals that were cut off.
    proved_from: i64,
    through: i64,
}

/// Verifies the hours of these tenants, against no ledger if there is none. Works beside running
/// servers.
///
/// # Errors
/// Only when a database cannot be asked; what is wrong with an hour is in the report.
pub async fn verify(
    main: &Db,
    ledger: Option<&Db>,
    chains: &Chains,
) -> db::Result<Vec<HoursReport>> {
    let mut reports = Vec::new();
    for tenant in tenants_of(main, chains).await? {
        let said = said(main, &tenant).await?;
        reports.push(one(ledger, &tenant, said, 0, || true).await?);
    }
    Ok(reports)
}

impl Seals {
    /// Verifies the hours of one tenant for a caller who waits: from `from` on, for at most some seconds,
    /// one of the tenant at a time. [`HoursReport::next_hour`] says where to go on.
    ///
    /// # Errors
    /// [`db::Error::Busy`] when others run for longer than the caller waits.
    pub async fn verify(&self, tenant: &TenantRef, from: Timestamp) -> db::Result<HoursReport> {
        let whose = tenant.id.as_str();
        let _turn = self.verifying.take(whose, TURN_WAIT_MAX).await?;
        let until = self.clock.monotonic() + TURN;
        let may_go_on = || self.clock.monotonic() < until;
        let said = said(&self.main, tenant).await?;
        let ledger = Some(&self.ledger);
        let report = one(ledger, tenant, said, from.millis(), may_go_on).await?;
        if let Some(bad) = report.faults.first() {
            let told = format!("hour {}", name(bad.hour.millis()));
            let event = SecurityEvent::UsageBroken;
            self.audit.security_event(event, &tenant.id, told);
        }
        Ok(report)
    }
}

async fn said(main: &Db, tenant: &TenantRef) -> db::Result<Said> {
    let mut said = Said {
        seals: BTreeMap::new(),
        kept_from: 0,
        proved_from: 0,
        through: 0,
    };
    for action in [SEALED, CUT] {
        let mut after = 0;
        loop {
            let id = tenant.id.clone();
            let lines = main
                .read(async move |conn: &mut Conn| {
                    origin::all_of(conn, &id, action, after, PAGE).await
                })
                .await?;
            let Some(last) = lines.last() else { break };
            after = last.seq;
            for line in lines {
                if action == CUT {
                    let dropped = line.after.and_then(|after| {
                        let dropped: Option<Dropped> = serde_json::from_value(after).ok();
                        dropped
                    });
                    let before = dropped.map_or(0, |dropped| dropped.before.millis());
                    said.kept_from = said.kept_from.max(before);
                } else if let (Ok(hour), Some(seal)) =
                    (line.target.id.parse::<Timestamp>(), read(line.after))
                {
                    said.through = said.through.max(seal.through.millis());
                    said.seals.insert(hour.millis(), seal);
                }
            }
        }
    }
    let id = tenant.id.clone();
    let first = main
        .read(async move |conn: &mut Conn| origin::first(conn, &id).await)
        .await?;
    if let Some((seq, at)) = first
        && seq > 1
    {
        said.proved_from = at.millis();
    }
    Ok(said)
}

/// Verifies hours that begin at `from` or later, as long as `may_go_on`, and one at least.
async fn one(
    ledger: Option<&Db>,
    tenant: &TenantRef,
    said: Said,
    from: i64,
    may_go_on: impl Fn() -> bool,
) -> db::Result<HoursReport> {
    let mut report = HoursReport {
        tenant: tenant.slug.to_string(),
        valid: true,
        sealed_hours: 0,
        dropped_hours: 0,
        unproved_hours: 0,
        faults: Vec::new(),
        bad: 0,
        next_hour: None,
    };
    let dropped = said.seals.range(from.min(said.kept_from)..said.kept_from);
    report.dropped_hours = u64::try_from(dropped.count()).unwrap_or(u64::MAX);
    let mut at = from.max(said.kept_from);
    // Hours that have counts, beside those that have seals.
    while let Some(hour) = next_of(ledger, tenant, &said, at).await? {
        if at > from.max(said.kept_from) && !may_go_on() {
            report.next_hour = Some(Timestamp::from_millis(hour));
            return Ok(report);
        }
        let stretch = (at, hour.saturating_add(1));
        at = stretch.1;
        let seal = said.seals.get(&hour);
        let late_to = seal.map_or(0, |seal| seal.late_to);
        let id = tenant.id.to_string();
        let found = match ledger {
            None => Ok(nothing()),
            Some(ledger) => {
                let look = async move |conn: &mut Conn| {
                    if let Some(key) = seal::mistyped(conn, &id, stretch).await? {
                        return db::Result::Ok(Err(key));
                    }
                    Ok(Ok(look(conn, &id, hour, late_to).await?.on_time))
                };
                ledger.snapshot(look).await?
            }
        };
        let found = match found {
            Ok(found) => found,
            Err(key) => {
                report.note(mistyped(hour, &key));
                continue;
            }
        };
        match seal {
            Some(seal) if seal.digest == found.digest => report.sealed_hours += 1,
            None if found.digest == nothing().digest => {}
            None if hour.saturating_add(HOUR_MS) <= said.proved_from => report.unproved_hours += 1,
            Some(_) | None => report.note(bad(hour, seal, &found)),
        }
    }
    Ok(report)
}

/// The first hour from `at` on that has a seal or counts.
async fn next_of(
    ledger: Option<&Db>,
    tenant: &TenantRef,
    said: &Said,
    at: i64,
) -> db::Result<Option<i64>> {
    let sealed = said.seals.range(at..).next().map(|(hour, _)| *hour);
    let Some(ledger) = ledger else {
        return Ok(sealed);
    };
    let (id, through) = (tenant.id.to_string(), said.through);
    let counted: Option<i64> = ledger
        .read(async move |conn: &mut Conn| seal::next_hour(conn, &id, at, through).await)
        .await?;
    Ok(sealed.into_iter().chain(counted).min())
}

fn mistyped(hour: i64, key: &str) -> BadHour {
    let detail = format!(
        "a row of key {key} has a value of another type than what was written, so it counts otherwise than it reads"
    );
    BadHour {
        hour: Timestamp::from_millis(hour),
        fault: HourFault::Altered,
        detail,
    }
}

fn bad(hour: i64, seal: Option<&Seal>, found: &Counted) -> BadHour {
    let there = format!("{} uses in {} rows are there", found.uses, found.rows);
    let (fault, detail) = match seal {
        None => (
            HourFault::Inserted,
            format!("{there}, and nothing was when the hours around it were sealed"),
        ),
        Some(seal) if found.rows == 0 => (
            HourFault::Removed,
            format!(
                "{} uses in {} rows were sealed, none is there",
                seal.uses, seal.rows
            ),
        ),
        Some(seal) => (
            HourFault::Altered,
            format!(
                "{} uses in {} rows were sealed, {there}",
                seal.uses, seal.rows
            ),
        ),
    };
    BadHour {
        hour: Timestamp::from_millis(hour),
        fault,
        detail,
    }
}

impl HourFault {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Removed => "removed",
            Self::Inserted => "inserted",
        }
    }
}

impl HoursReport {
    fn note(&mut self, bad: BadHour) {
        self.valid = false;
        self.bad += 1;
        if self.faults.len() < NAMED_MAX {
            self.faults.push(bad);
        }
    }

    /// There was nothing to verify.
    pub fn is_empty(&self) -> bool {
        self.sealed_hours + self.dropped_hours + self.unproved_hours + self.bad == 0
    }
}

impl fmt::Display for HoursReport {
    /// One line for hours that hold, one more for each that does not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.valid { "whole" } else { "BROKEN" };
        let hours = self.sealed_hours;
        write!(
            f,
            "{}: uses {state}, {hours} sealed hours hold",
            self.tenant
        )?;
        if self.dropped_hours > 0 {
            write!(f, ", {} are no longer kept", self.dropped_hours)?;
        }
        if self.unproved_hours > 0 {
            let hours = self.unproved_hours;
            write!(f, ", {hours} from before the chain was cut have no seal")?;
        }
        for bad in &self.faults {
            let (hour, fault) = (name(bad.hour.millis()), bad.fault.as_str());
            write!(f, "\n  bad hour: {hour}: {fault}: {}", bad.detail)?;
        }
        if self.bad > self.faults.len() as u64 {
            write!(f, "\n  bad hours in all: {}", self.bad)?;
        }
        Ok(())
    }
}
