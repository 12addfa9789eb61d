//! The audit tables: chains and their heads.

pub(super) mod checkpoint;
pub(super) mod export;
pub mod history;
pub(super) mod key;
pub(super) mod list;
pub mod origin;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use diesel::dsl::sql;
use diesel::expression::SqlLiteral;
use diesel::prelude::*;
use diesel::sql_types::{Binary, Text};
use diesel_async::RunQueryDsl;

use super::Actor;
use super::chain::{Event, Head};
use crate::db::schema::{audit_event, audit_head, tenant};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{AuditId, TenantId};
use crate::insert_all;
use crate::time::Timestamp;

#[derive(Insertable)]
#[diesel(table_name = audit_event)]
struct NewRow<'a> {
    tenant_id: &'a TenantId,
    seq: i64,
    id: &'a str,
    at: Timestamp,
    actor: String,
    via: Option<String>,
    action: &'a str,
    target_kind: &'a str,
    target_id: &'a str,
    outcome: &'a str,
    request_id: Option<&'a str>,
    ip: Option<&'a str>,
    services: Option<String>,
    record: &'a str,
    prev_hash: &'a [u8],
    hash: &'a [u8],
}

/// Slugs as their column has them: each between commas, which no slug has.
pub(super) fn listed<S: AsRef<str>>(services: &[S]) -> String {
    let slugs = services.iter().map(|slug| format!("{},", slug.as_ref()));
    std::iter::once(",".to_owned()).chain(slugs).collect()
}

/// An event with what stands beside it.
pub(super) struct Sealed {
    pub(super) event: Event,
    /// The canonical JSON of `event`.
    pub(super) record: String,
    pub(super) prev_hash: Vec<u8>,
    pub(super) hash: Vec<u8>,
}

impl Sealed {
    fn row<'a>(&'a self, tenant_id: &'a TenantId) -> NewRow<'a> {
        let event = &self.event;
        NewRow {
            tenant_id,
            seq: event.seq,
            id: &event.id,
            at: event.at,
            actor: event.actor.name(),
            via: event.via.as_ref().map(Actor::name),
            action: &event.action,
            target_kind: &event.target.kind,
            target_id: &event.target.id,
            outcome: event.outcome.as_str(),
            request_id: event.request_id.as_deref(),
            ip: event.ip.as_deref(),
            services: event.services.as_deref().map(listed),
            record: &self.record,
            prev_hash: &self.prev_hash,
            hash: &self.hash,
        }
    }
}

pub(super) async fn insert(conn: &mut Conn, tenant: &TenantId, lines: &[Sealed]) -> db::Result<()> {
    let rows: Vec<NewRow<'_>> = lines.iter().map(|line| line.row(tenant)).collect();
    insert_all!(conn, audit_event::table, rows);
    Ok(())
}

/// Takes the tenant's turn: the row stays locked to the end of the transaction. Answers the head
/// and its MAC ([`types::mac`]), which is not verified yet; `None` if there is no head.
pub(super) async fn lock_head(
    conn: &mut Conn,
    tenant: &TenantId,
) -> db::Result<Option<(Head, Vec<u8>)>> {
    let mac = sql::<Binary>(types::mac(conn));
    let row: Option<(i64, Vec<u8>, Vec<u8>)> = each!(conn, c =>
        diesel::update(audit_head::table.find(tenant))
            .set(audit_head::seq.eq(audit_head::seq))
            .returning((audit_head::seq, audit_head::hash, mac))
            .get_result(c)
            .await
            .optional())?;
    Ok(row.map(|(seq, hash, mac)| (Head { seq, hash }, mac)))
}

/// The head and its MAC as they stand now.
pub(super) async fn head(
    conn: &mut Conn,
    tenant: &TenantId,
) -> db::Result<Option<(Head, Vec<u8>)>> {
    let mac = sql::<Binary>(types::mac(conn));
    let row: Option<(i64, Vec<u8>, Vec<u8>)> = each!(conn, c => audit_head::table
        .find(tenant)
        .select((audit_head::seq, audit_head::hash, mac))
        .first(c)
        .await
        .optional())?;
    Ok(row.map(|(seq, hash, mac)| (Head { seq, hash }, mac)))
}

/// What the head must say: the number and hash of the newest line.
pub(super) async fn newest(conn: &mut Conn, tenant: &TenantId) -> db::Result<Head> {
    let row: Option<(i64, Vec<u8>)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .order(audit_event::seq.desc())
        .select((audit_event::seq, audit_event::hash))
        .first(c)
        .await
        .optional())?;
    Ok(row.map_or_else(Head::genesis, |(seq, hash)| Head { seq, hash }))
}

/// Starts a chain.
pub(super) async fn insert_head(
    conn: &mut Conn,
    tenant: &TenantId,
    head: &Head,
    mac: &[u8],
) -> db::Result<()> {
    each!(conn, c => diesel::insert_into(audit_head::table)
        .values((
            audit_head::tenant_id.eq(tenant),
            audit_head::seq.eq(head.seq),
            audit_head::hash.eq(&head.hash),
            audit_head::mac.eq(mac),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

pub(super) async fn move_head(
    conn: &mut Conn,
    tenant: &TenantId,
    head: &Head,
    mac: &[u8],
) -> db::Result<()> {
    each!(conn, c => diesel::update(audit_head::table.find(tenant))
        .set((
            audit_head::seq.eq(head.seq),
            audit_head::hash.eq(&head.hash),
            audit_head::mac.eq(mac),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

/// A line as it is stored, whoever wrote it.
#[derive(Queryable, Selectable)]
#[diesel(table_name = audit_event)]
pub(super) struct Stored {
    pub(super) seq: i64,
    pub(super) id: String,
    pub(super) at: Timestamp,
    pub(super) actor: String,
    pub(super) via: Option<String>,
    pub(super) action: String,
    pub(super) target_kind: String,
    pub(super) target_id: String,
    pub(super) outcome: String,
    pub(super) request_id: Option<String>,
    pub(super) ip: Option<String>,
    pub(super) services: Option<String>,
    pub(super) record: String,
    pub(super) prev_hash: Vec<u8>,
    pub(super) hash: Vec<u8>,
    /// The columns with values of other types than ours ([`types::mistyped`]). Only who walks asks.
    #[diesel(select_expression = sql::<Text>("''"))]
    #[diesel(select_expression_type = SqlLiteral<Text>)]
    pub(super) mistyped: String,
}

impl Stored {
    fn typed((line, mistyped): (Self, String)) -> Self {
        Self { mistyped, ..line }
    }
}

/// At most `limit` lines up to number `to`, in the order of the chain: from the very first one there is, or
/// those behind the number `after`.
pub(super) async fn stretch(
    conn: &mut Conn,
    tenant: &TenantId,
    after: Option<i64>,
    to: i64,
    limit: i64,
) -> db::Result<Vec<Stored>> {
    let mistyped = sql::<Text>(&types::mistyped(conn));
    let lines: Vec<(Stored, String)> = each!(conn, c => {
        let mut query = audit_event::table
            .filter(audit_event::tenant_id.eq(tenant))
            .filter(audit_event::seq.le(to))
            .into_boxed();
        if let Some(after) = after {
            query = query.filter(audit_event::seq.gt(after));
        }
        query
            .order(audit_event::seq)
            .limit(limit)
            .select((Stored::as_select(), mistyped))
            .load(c)
            .await
    })?;
    Ok(lines.into_iter().map(Stored::typed).collect())
}

/// Where to go on behind a page of lines that ends with the number `last`. `SQLite` takes 5.5 for a number too,
/// which we read as 5: that never keeps anybody where he is.
pub(super) fn behind(after: Option<i64>, last: i64) -> i64 {
    after.map_or(last, |after| last.max(after.saturating_add(1)))
}

/// The line with this number.
pub(super) async fn line(
    conn: &mut Conn,
    tenant: &TenantId,
    seq: i64,
) -> db::Result<Option<Stored>> {
    Ok(each!(conn, c => audit_event::table
        .find((tenant, seq))
        .select(Stored::as_select())
        .first(c)
        .await
        .optional())?)
}

/// The number of the line with this id, if it is there.
pub(super) async fn seq_of(
    conn: &mut Conn,
    tenant: &TenantId,
    id: &AuditId,
) -> db::Result<Option<i64>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::id.eq(id.as_str()))
        .filter(audit_event::tenant_id.eq(tenant))
        .select(audit_event::seq)
        .first(c)
        .await
        .optional())?)
}

/// The number of the last line of an action, whoever wrote it.
pub(super) async fn last_of(
    conn: &mut Conn,
    tenant: &TenantId,
    action: &str,
) -> db::Result<Option<i64>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::action.eq(action))
        .order(audit_event::seq.desc())
        .select(audit_event::seq)
        .first(c)
        .await
        .optional())?)
}

/// The last line with a number from 1 to below `seq`.
pub(super) async fn line_before(
    conn: &mut Conn,
    tenant: &TenantId,
    seq: i64,
) -> db::Result<Option<Stored>> {
    Ok(each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.lt(seq))
        .filter(audit_event::seq.ge(1))
        .order(audit_event::seq.desc())
        .select(Stored::as_select())
        .first(c)
        .await
        .optional())?)
}

/// The first line beyond the head, seen in one snapshot with it: there can be none. To `SQLite` what is no
/// number lies beyond all of them.
pub(super) async fn beyond_head(conn: &mut Conn, tenant: &TenantId) -> db::Result<Option<Stored>> {
    let mistyped = sql::<Text>(&types::mistyped(conn));
    let line: Option<(Stored, String)> = each!(conn, c => audit_event::table
        .inner_join(audit_head::table.on(audit_head::tenant_id.eq(audit_event::tenant_id)))
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.gt(audit_head::seq))
        .order(audit_event::seq)
        .select((Stored::as_select(), mistyped))
        .first(c)
        .await
        .optional())?;
    Ok(line.map(Stored::typed))
}

/// The first line beyond the number `to`, for who holds the head.
pub(super) async fn beyond(
    conn: &mut Conn,
    tenant: &TenantId,
    to: i64,
) -> db::Result<Option<Stored>> {
    let mistyped = sql::<Text>(&types::mistyped(conn));
    let line: Option<(Stored, String)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.gt(to))
        .order(audit_event::seq)
        .select((Stored::as_select(), mistyped))
        .first(c)
        .await
        .optional())?;
    Ok(line.map(Stored::typed))
}

/// Every tenant that has a row, a head or a line, with its slug if it has a row.
pub(super) async fn tenants(conn: &mut Conn) -> db::Result<Vec<(TenantId, Option<String>)>> {
    let rows: Vec<(TenantId, String)> = each!(conn, c => tenant::table
        .select((tenant::id, tenant::slug))
        .load(c)
        .await)?;
    let mut all: BTreeMap<TenantId, Option<String>> = rows
        .into_iter()
        .map(|(id, slug)| (id, Some(slug)))
        .collect();
    let heads: Vec<TenantId> = each!(conn, c => audit_head::table
        .select(audit_head::tenant_id)
        .load(c)
        .await)?;
    for id in heads {
        all.entry(id).or_default();
    }
    // From tenant to tenant by the primary key, not through a million lines.
    let mut last: Option<TenantId> = None;
    let mut seen = BTreeSet::new();
    loop {
        let next: Option<TenantId> = each!(conn, c => {
            let mut query = audit_event::table
                .select(audit_event::tenant_id)
                .order(audit_event::tenant_id)
                .into_boxed();
            if let Some(last) = &last {
                query = query.filter(audit_event::tenant_id.gt(last));
            }
            query.first(c).await.optional()
        })?;
        // To `SQLite` an id in bytes, which is no tenant's, lies beyond every text, also its own.
        let Some(next) = next.filter(|next| seen.insert(next.clone())) else {
            break;
        };
        all.entry(next.clone()).or_default();
        last = Some(next);
    }
    Ok(all.into_iter().collect())
}

pub(super) async fn slug(conn: &mut Conn, id: &TenantId) -> db::Result<Option<String>> {
    Ok(each!(conn, c => tenant::table
        .find(id)
        .select(tenant::slug)
        .first(c)
        .await
        .optional())?)
}
