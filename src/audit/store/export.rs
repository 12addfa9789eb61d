//! Lines in the order of the chain, for exports and for cuts.

use diesel::dsl::sql;
use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;

use super::Stored;
use super::list::{EventFilter, matching};
use crate::db::schema::audit_event;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;
use crate::time::Timestamp;

/// What a line takes beside its record, about.
const BYTES_BESIDE_RECORD: i64 = 1024;

/// The first lines that meet the filter, with numbers above `after`, if it is given, and up to `to`.
macro_rules! stretch {
    ($tenant:expr, $filter:expr, $after:expr, $to:expr, $limit:expr) => {{
        let mut query = audit_event::table
            .filter(audit_event::tenant_id.eq($tenant))
            .filter(audit_event::seq.le($to))
            .into_boxed();
        if let Some(after) = $after {
            query = query.filter(audit_event::seq.gt(after));
        }
        matching!(query, $filter)
            .order(audit_event::seq)
            .limit($limit)
    }};
}

/// At most `limit` lines that meet the filter, with numbers above `after`, if it is given, and up to `to`.
pub(in crate::audit) async fn stretch_of(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &EventFilter,
    (after, to): (Option<i64>, i64),
    limit: i64,
) -> db::Result<Vec<Stored>> {
    Ok(each!(conn, c => stretch!(tenant, filter, after, to, limit)
        .select(Stored::as_select())
        .load(c)
        .await)?)
}

/// How many bytes each of these lines takes in memory, about.
pub(in crate::audit) async fn sizes_of(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &EventFilter,
    (after, to): (Option<i64>, i64),
    limit: i64,
) -> db::Result<Vec<i64>> {
    let records: Vec<i64> = each!(conn, c => stretch!(tenant, filter, after, to, limit)
        .select(sql::<BigInt>("CAST(OCTET_LENGTH(record) AS BIGINT)"))
        .load(c)
        .await)?;
    let records = records.into_iter();
    Ok(records
        .map(|record| record.saturating_add(BYTES_BESIDE_RECORD))
        .collect())
}

/// The number of the first line that is not older than `at`.
pub(in crate::audit) async fn first_since(
    conn: &mut Conn,
    tenant: &TenantId,
    at: Timestamp,
) -> db::Result<Option<i64>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::at.ge(at))
        .order(audit_event::seq)
        .select(audit_event::seq)
        .first(c)
        .await
        .optional())?)
}

/// The time of the last line that is older than `at`.
pub(in crate::audit) async fn last_before(
    conn: &mut Conn,
    tenant: &TenantId,
    at: Timestamp,
) -> db::Result<Option<Timestamp>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::at.lt(at))
        .order(audit_event::seq.desc())
        .select(audit_event::at)
        .first(c)
        .await
        .optional())?)
}

/// The time of the first line there is.
pub(in crate::audit) async fn oldest(
    conn: &mut Conn,
    tenant: &TenantId,
) -> db::Result<Option<Timestamp>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .order(audit_event::seq)
        .select(audit_event::at)
        .first(c)
        .await
        .optional())?)
}

/// Removes the lines up to `to`; answers how many there were.
pub(in crate::audit) async fn remove_to(
    conn: &mut Conn,
    tenant: &TenantId,
    to: i64,
) -> db::Result<usize> {
    Ok(each!(conn, c => diesel::delete(
        audit_event::table
            .filter(audit_event::tenant_id.eq(tenant))
            .filter(audit_event::seq.le(to)),
    )
    .execute(c)
    .await)?)
}
