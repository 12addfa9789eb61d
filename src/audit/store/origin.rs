//! Lines by what was done: who did it last to each of several targets and why, and all of one kind.

use std::collections::HashMap;

use diesel::dsl::max;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::audit::chain::{AuditOutcome, Event};
use crate::db::schema::audit_event;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;
use crate::time::Timestamp;

/// By target. Those whose lines were cut off are not among them.
///
/// # Errors
/// [`db::Error::Corrupt`] names the line whose record cannot be read.
pub async fn newest_done(
    conn: &mut Conn,
    tenant: &TenantId,
    action: &str,
    targets: &[&str],
) -> db::Result<HashMap<String, Event>> {
    let newest: Vec<(String, Option<i64>)> = each!(&mut *conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::target_id.eq_any(targets))
        .filter(audit_event::action.eq(action))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .group_by(audit_event::target_id)
        .select((audit_event::target_id, max(audit_event::seq)))
        .load(c)
        .await)?;
    let numbers: Vec<i64> = newest.into_iter().filter_map(|(_, seq)| seq).collect();
    let rows: Vec<(i64, String, String)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.eq_any(numbers))
        .select((audit_event::seq, audit_event::target_id, audit_event::record))
        .load(c)
        .await)?;
    let read = rows
        .into_iter()
        .map(|(seq, target, record)| Ok((target, self::read(seq, &record)?)));
    read.collect()
}

/// The newest line of an action.
///
/// # Errors
/// As [`newest_done`].
pub async fn newest_of(
    conn: &mut Conn,
    tenant: &TenantId,
    action: &str,
) -> db::Result<Option<Event>> {
    let row: Option<(i64, String)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::action.eq(action))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .order(audit_event::seq.desc())
        .select((audit_event::seq, audit_event::record))
        .first(c)
        .await
        .optional())?;
    row.map(|(seq, record)| read(seq, &record)).transpose()
}

/// At most `limit` lines of an action with numbers above `after`, in the order of the chain.
///
/// # Errors
/// As [`newest_done`].
pub async fn all_of(
    conn: &mut Conn,
    tenant: &TenantId,
    action: &str,
    after: i64,
    limit: i64,
) -> db::Result<Vec<Event>> {
    let rows: Vec<(i64, String)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::action.eq(action))
        .filter(audit_event::outcome.eq(AuditOutcome::Done.as_str()))
        .filter(audit_event::seq.gt(after))
        .order(audit_event::seq)
        .limit(limit)
        .select((audit_event::seq, audit_event::record))
        .load(c)
        .await)?;
    rows.into_iter()
        .map(|(seq, record)| read(seq, &record))
        .collect()
}

/// The number and the time of the first line there is: not 1 where the beginning was cut off.
pub async fn first(conn: &mut Conn, tenant: &TenantId) -> db::Result<Option<(i64, Timestamp)>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .order(audit_event::seq)
        .select((audit_event::seq, audit_event::at))
        .first(c)
        .await
        .optional())?)
}

pub(super) fn read(seq: i64, record: &str) -> db::Result<Event> {
    serde_json::from_str(record)
        .map_err(|error| db::Error::Corrupt(format!("the record of audit event {seq}: {error}")))
}
