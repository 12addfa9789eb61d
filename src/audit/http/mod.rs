//! The audit API: what happened, and the proof that nothing was altered.

pub mod checkpoints;
pub mod export;
mod refused;

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::chain::{AuditOutcome, Target};
use super::signing::key::AuditKeyBody;
use super::{Actor, Audit, Entry, EventFilter, Report};
use crate::auth::http::{Caller, perm};
use crate::http::extract::{OptionalBody, Query};
use crate::http::page::{CursorKey, List, NoFilter, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::query::in_order;
use crate::rights::Permission;
use crate::time::Timestamp;

pub use refused::{RefusedRecorder, record_refused};

const LIST: &str = "audit events newest first";

/// Something that happened, or was refused.
///
/// `hash` is the SHA-256 of the bytes of `prev_hash` and the RFC 8785 canonical JSON of all other
/// members that are not null.
#[derive(Serialize, ToSchema)]
#[schema(title = "AuditEvent")]
pub struct AuditEventBody {
    #[schema(example = "aud_01jd8k3v9we5m8t7q2x4z6y0ab")]
    id: String,
    /// Its number in the tenant's chain: 1, 2, 3 and so on, without gaps.
    #[schema(minimum = 1)]
    seq: i64,
    at: Timestamp,
    /// The slug of the tenant that it happened in.
    #[schema(example = "default")]
    tenant: String,
    /// Who answers for it.
    actor: Actor,
    /// The credential through which the actor acted, if it was another's.
    #[schema(required = true)]
    via: Option<Actor>,
    /// The slug of the tenant that the actor belongs to, if it acted in another.
    #[schema(required = true)]
    home_tenant: Option<String>,
    #[schema(example = "key.revoke")]
    action: String,
    target: Target,
    outcome: AuditOutcome,
    /// What changed, as it was; integers beyond 2^53 are text.
    #[schema(required = true, value_type = Option<Object>)]
    before: Option<Value>,
    /// What changed, as it is.
    #[schema(required = true, value_type = Option<Object>)]
    after: Option<Value>,
    #[schema(required = true)]
    reason: Option<String>,
    #[schema(required = true)]
    request_id: Option<String>,
    #[schema(required = true, example = "192.0.2.1")]
    ip: Option<String>,
    /// The slugs of the services that it concerns: the service itself, or those that a key grants on.
    #[schema(required = true, value_type = Option<Vec<String>>, example = json!(["billing"]))]
    services: Option<Vec<String>>,
    /// Of refused attempts: the code of the problem they were answered.
    #[schema(required = true, example = "forbidden")]
    code: Option<String>,
    /// Of refused attempts: how many of this kind the event stands for.
    #[schema(required = true)]
    count: Option<i64>,
    /// The hash of the event before, in hexadecimal; of the first one 64 zeros.
    prev_hash: String,
    /// In hexadecimal.
    hash: String,
}

impl From<Entry> for AuditEventBody {
    fn from(entry: Entry) -> Self {
        let event = entry.event;
        Self {
            id: event.id,
            seq: event.seq,
            at: event.at,
            tenant: event.tenant,
            actor: event.actor,
            via: event.via,
            home_tenant: event.home_tenant,
            action: event.action,
            target: event.target,
            outcome: event.outcome,
            before: event.before,
            after: event.after,
            reason: event.reason,
            request_id: event.request_id,
            ip: event.ip,
            services: event.services,
            code: event.code,
            count: event.count,
            prev_hash: hex::encode(entry.prev_hash),
            hash: hex::encode(entry.hash),
        }
    }
}

/// Lists audit events, newest first
///
/// In the order in which they were committed; every event that was there when the first page was
/// asked for is on one page, however many are added meanwhile.
#[utoipa::path(
    get, path = "/v1/audit/events", tag = "audit", operation_id = "list_audit_events",
    params(EventFilter, PageParams),
    responses((status = 200, description = "A page of events", body = PageBody<AuditEventBody>)),
)]
pub async fn list_audit_events(
    caller: Caller<perm::AuditRead>,
    list: List<EventFilter>,
    audit: web::Data<Audit>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    // A trail tells of all services: who may read of some may not read it.
    caller.require(Permission::AuditRead, None)?;
    in_order(list.filter.from, list.filter.to)?;
    let tenant = &caller.tenant.id;
    let request = list.page.request(&cursors, tenant, LIST)?;
    let page = audit.events(tenant.clone(), list.filter, request).await?;
    let body = list
        .page
        .body(&cursors, tenant, LIST, page, AuditEventBody::from);
    Ok(HttpResponse::Ok().json(body))
}

/// The audit keys.
#[derive(Serialize, ToSchema)]
#[schema(title = "AuditKeys")]
pub struct AuditKeysBody {
    /// Oldest first.
    keys: Vec<AuditKeyBody>,
}

/// Lists the audit keys
///
/// The public halves of all keys that checkpoints were ever signed with, as JWK Set (RFC 7517),
/// each with the time in which it signed. Keep a copy of your own: checkpoints and exports are
/// verified with it without Keystead. The keys are those of the installation, not of a tenant.
#[utoipa::path(
    get, path = "/v1/audit/keys", tag = "audit", operation_id = "list_audit_keys",
    responses((status = 200, description = "The keys", body = AuditKeysBody)),
)]
pub async fn list_audit_keys(
    caller: Caller<perm::AuditRead>,
    _none: Query<NoFilter>,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    let keys = audit.audit_keys().await?;
    let keys = keys.iter().map(AuditKeyBody::from).collect();
    Ok(HttpResponse::Ok().json(AuditKeysBody { keys }))
}

/// Where to begin.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub struct VerifyAudit {
    /// The number of the first event to check: 1, or the `next_seq` of the answer before. At most the
    /// number of the last event.
    #[schema(minimum = 1, default = 1)]
    from_seq: Option<i64>,
}

/// Verifies the audit trail
///
/// Recomputes the hash chain of the caller's tenant and names the first event that was altered,
/// removed or inserted. A check of a long trail answers after some seconds how far it came: then
/// `next_seq` says where to go on, and `valid` holds for what was checked, which `covers` says. One check
/// of a tenant runs at a time, and few on a node: who waits for others in vain is told `busy`. Whether counts of uses are what was sealed in it, `POST /v1/usage/verify` tells, and
/// whether it fits the checkpoints that left the database, `keystead audit verify`.
#[utoipa::path(
    post, path = "/v1/audit/verify", tag = "audit", operation_id = "verify_audit",
    request_body(content = Option<VerifyAudit>),
    responses((status = 200, description = "What was found", body = Report)),
)]
pub async fn verify_audit(
    caller: Caller<perm::AuditRead>,
    body: OptionalBody<VerifyAudit>,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    let from = body.from_seq.unwrap_or(1);
    if from < 1 {
        return Err(Problem::invalid_at("/from_seq", "must be at least 1"));
    }
    let report = audit.verify(&caller.tenant.id, from).await?;
    audit.note_fault(&report);
    // Of nothing that was checked nobody shall read that it is valid.
    if let Some(head) = report.head.as_ref().filter(|head| head.seq < from)
        && report.valid
    {
        let detail = format!("must be at most {}, with which the trail ends", head.seq);
        return Err(Problem::invalid_at("/from_seq", detail));
    }
    Ok(HttpResponse::Ok().json(report))
}
