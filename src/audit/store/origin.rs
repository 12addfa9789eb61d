//! The newest line of one action on each of several targets: who did it last, and why.

use std::collections::HashMap;

use diesel::dsl::max;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::audit::chain::{AuditOutcome, Event};
use crate::db::schema::audit_event;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;

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
    let read = rows.into_iter().map(|(seq, target, record)| {
        let event = serde_json::from_str(&record).map_err(|error| {
            db::Error::Corrupt(format!("the record of audit event {seq}: {error}"))
        })?;
        Ok((target, event))
    });
    read.collect()
}
