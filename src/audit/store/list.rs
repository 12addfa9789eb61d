//! Lists of events, newest first in the order of the chain, which is the order of the commits.

use std::net::IpAddr;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::audit::Audit;
use crate::audit::asked;
use crate::audit::chain::{AuditOutcome, Event};
use crate::db::schema::audit_event;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;
use crate::page::{Page, PageRequest, Position};
use crate::text::Slug;
use crate::time::Timestamp;

/// Which events: those that meet all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventFilter {
    /// Who acted: a key's id, `<issuer>#<subject>`, `cli:<user>@<host>` or `system`.
    pub actor: Option<String>,
    /// Through whose credential, written in the same way.
    pub via: Option<String>,
    #[serde(default, deserialize_with = "asked::action")]
    #[param(example = "key.revoke")]
    pub action: Option<String>,
    #[serde(default, deserialize_with = "asked::target_kind")]
    #[param(example = "key")]
    pub target_kind: Option<String>,
    /// The id of what was acted upon.
    pub target: Option<String>,
    /// The slug of a service: events about it, and about keys that grant on it.
    #[param(value_type = Option<String>, example = "billing")]
    pub service: Option<Slug>,
    pub outcome: Option<AuditOutcome>,
    #[param(value_type = Option<String>, example = "192.0.2.1")]
    pub ip: Option<IpAddr>,
    pub request_id: Option<String>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
}

/// An event and its place in the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub event: Event,
    pub prev_hash: Vec<u8>,
    pub hash: Vec<u8>,
}

impl Entry {
    fn position(&self) -> Position {
        Position {
            at: self.event.at,
            id: self.event.seq.to_string(),
        }
    }
}

impl Audit {
    /// The events of one tenant.
    ///
    /// # Errors
    /// [`db::Error::Corrupt`] names the event whose record cannot be read.
    pub async fn events(
        &self,
        tenant: TenantId,
        filter: EventFilter,
        page: PageRequest,
    ) -> db::Result<Page<Entry>> {
        self.db
            .read(async move |conn: &mut Conn| list(conn, &tenant, &filter, &page).await)
            .await
    }
}

/// Narrows a boxed query, whose type each database has its own of, to what a filter means.
macro_rules! matching {
    ($query:expr, $filter:expr) => {{
        let mut query = $query;
        let filter = $filter;
        if let Some(actor) = &filter.actor {
            query = query.filter(audit_event::actor.eq(actor));
        }
        if let Some(via) = &filter.via {
            query = query.filter(audit_event::via.eq(via));
        }
        if let Some(action) = &filter.action {
            query = query.filter(audit_event::action.eq(action));
        }
        if let Some(kind) = &filter.target_kind {
            query = query.filter(audit_event::target_kind.eq(kind));
        }
        if let Some(target) = &filter.target {
            query = query.filter(audit_event::target_id.eq(target));
        }
        if let Some(outcome) = filter.outcome {
            query = query.filter(audit_event::outcome.eq(outcome.as_str()));
        }
        if let Some(ip) = filter.ip {
            query = query.filter(audit_event::ip.eq(ip.to_canonical().to_string()));
        }
        if let Some(request_id) = &filter.request_id {
            query = query.filter(audit_event::request_id.eq(request_id));
        }
        if let Some(from) = filter.from {
            query = query.filter(audit_event::at.ge(from));
        }
        if let Some(to) = filter.to {
            query = query.filter(audit_event::at.lt(to));
        }
        if let Some(service) = &filter.service {
            query = query
                .filter(audit_event::services.is_not_null())
                .filter(audit_event::services.like(format!("%,{service},%")));
        }
        query
    }};
}
pub(super) use matching;

async fn list(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &EventFilter,
    page: &PageRequest,
) -> db::Result<Page<Entry>> {
    let before: Option<i64> = match &page.after {
        None => None,
        Some(position) => Some(position.id.parse().map_err(|_not_ours| {
            db::Error::Corrupt("a cursor of audit events without a number".to_owned())
        })?),
    };
    // First the numbers, from an index alone: a window of time far back passes a million lines
    // in a moment, where reading them, or sorting what is in the window, would take seconds.
    let seqs: Vec<i64> = each!(conn, c => {
        let mut query = audit_event::table
            .filter(audit_event::tenant_id.eq(tenant))
            .into_boxed();
        if let Some(before) = before {
            query = query.filter(audit_event::seq.lt(before));
        }
        let query = matching!(query, filter);
        query
            .order(audit_event::seq.desc())
            .limit(page.fetch())
            .select(audit_event::seq)
            .load(c)
            .await
    })?;
    let rows: Vec<(i64, String, Vec<u8>, Vec<u8>)> = each!(conn, c => audit_event::table
        .filter(audit_event::tenant_id.eq(tenant))
        .filter(audit_event::seq.eq_any(&seqs))
        .order(audit_event::seq.desc())
        .select((
            audit_event::seq,
            audit_event::record,
            audit_event::prev_hash,
            audit_event::hash,
        ))
        .load(c)
        .await)?;
    let mut entries = Vec::with_capacity(rows.len());
    for (seq, record, prev_hash, hash) in rows {
        let event = serde_json::from_str(&record).map_err(|error| {
            db::Error::Corrupt(format!("the record of audit event {seq}: {error}"))
        })?;
        entries.push(Entry {
            event,
            prev_hash,
            hash,
        });
    }
    Ok(page.page(entries, Entry::position))
}
