//! What lines say that objects of one kind were, at a place of the chain.

use std::collections::HashMap;

use diesel::dsl::{max, min};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::origin::read;
use crate::audit::chain::{AuditOutcome, Event};
use crate::db::schema::audit_event;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;
use crate::time::Timestamp;

/// Lines of these actions on objects of this kind.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    pub kind: &'static str,
    pub actions: &'static [&'static str],
}

/// The number of the last line that is not younger than `at`; 0 if there is none.
pub async fn number_at(conn: &mut Conn, tenant: &TenantId, at: Timestamp) -> db::Result<i64> {
    let seq: Option<i64> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::at.le(at))
        .order(audit_event::seq.desc())
        .select(audit_event::seq)
        .first(c)
        .await
        .optional())?;
    Ok(seq.unwrap_or_default())
}

/// Of the next `limit` targets behind `after` the newest line up to number `to`, by target.
///
/// # Errors
/// [`db::Error::Corrupt`] names the line whose record cannot be read.
pub async fn states(
    conn: &mut Conn,
    tenant: &TenantId,
    lines: Lines,
    to: i64,
    after: &str,
    limit: i64,
) -> db::Result<Vec<Event>> {
    let newest: Vec<(String, Option<i64>)> = each!(&mut *conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::target_kind.eq(lines.kind))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .filter(audit_event::action.eq_any(lines.actions))
        .filter(audit_event::seq.le(to))
        .filter(audit_event::target_id.gt(after))
        .group_by(audit_event::target_id)
        .order(audit_event::target_id)
        .select((audit_event::target_id, max(audit_event::seq)))
        .limit(limit)
        .load(c)
        .await)?;
    let mut found = numbered(conn, tenant, &newest).await?;
    let events = newest.iter().filter_map(|(target, _)| found.remove(target));
    Ok(events.collect())
}

/// The newest lines on these targets up to number `to`.
///
/// # Errors
/// As [`states`].
pub async fn newest_to(
    conn: &mut Conn,
    tenant: &TenantId,
    lines: Lines,
    to: i64,
    targets: &[&str],
) -> db::Result<HashMap<String, Event>> {
    let newest: Vec<(String, Option<i64>)> = each!(&mut *conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::target_id.eq_any(targets))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .filter(audit_event::action.eq_any(lines.actions))
        .filter(audit_event::seq.le(to))
        .group_by(audit_event::target_id)
        .select((audit_event::target_id, max(audit_event::seq)))
        .load(c)
        .await)?;
    numbered(conn, tenant, &newest).await
}

/// The first lines on these targets behind number `to`.
///
/// # Errors
/// As [`states`].
pub async fn first_behind(
    conn: &mut Conn,
    tenant: &TenantId,
    lines: Lines,
    to: i64,
    targets: &[&str],
) -> db::Result<HashMap<String, Event>> {
    let first: Vec<(String, Option<i64>)> = each!(&mut *conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::target_id.eq_any(targets))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .filter(audit_event::action.eq_any(lines.actions))
        .filter(audit_event::seq.gt(to))
        .group_by(audit_event::target_id)
        .select((audit_event::target_id, min(audit_event::seq)))
        .load(c)
        .await)?;
    numbered(conn, tenant, &first).await
}

async fn numbered(
    conn: &mut Conn,
    tenant: &TenantId,
    lines: &[(String, Option<i64>)],
) -> db::Result<HashMap<String, Event>> {
    let numbers = lines.iter().filter_map(|(_, seq)| *seq);
    let numbers: Vec<i64> = numbers.collect();
    let rows: Vec<(i64, String, String)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.eq_any(numbers))
        .select((audit_event::seq, audit_event::target_id, audit_event::record))
        .load(c)
        .await)?;
    rows.into_iter()
        .map(|(seq, target, record)| Ok((target, read(seq, &record)?)))
        .collect()
}
