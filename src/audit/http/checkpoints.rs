//! Checkpoints of the audit trail: signed on demand, and listed.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::audit::Audit;
use crate::audit::signing::Statement;
use crate::audit::store::checkpoint::StatementFilter;
use crate::auth::http::{Caller, perm};
use crate::http::extract::OptionalBody;
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::rights::Permission;

const LIST: &str = "audit checkpoints newest first";

/// Nothing has to be said.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub struct CreateCheckpoint {}

/// Signs the end of the audit trail
///
/// Makes a checkpoint of the trail of the caller's tenant as it stands now, and leaves it in the log
/// and in the server's files of checkpoints as well. If nothing was added since the last checkpoint,
/// the answer is that one, with status 200.
#[utoipa::path(
    post, path = "/v1/audit/checkpoints", tag = "audit", operation_id = "create_audit_checkpoint",
    request_body(content = Option<CreateCheckpoint>),
    responses(
        (status = 201, description = "The new checkpoint", body = Statement),
        (status = 200, description = "The last checkpoint still holds", body = Statement),
    ),
)]
pub async fn create_audit_checkpoint(
    caller: Caller<perm::AuditRead>,
    _body: OptionalBody<CreateCheckpoint>,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    let made = audit.checkpoint(&caller.tenant).await?;
    let mut answer = if made.is_new {
        HttpResponse::Created()
    } else {
        HttpResponse::Ok()
    };
    Ok(answer.json(made.statement))
}

/// Lists checkpoints, newest first
///
/// Everything that was signed about the trail of the caller's tenant: checkpoints, and what was cut
/// off by retention. The files that the server wrote are worth more as a proof than this list, which
/// is in the database.
#[utoipa::path(
    get, path = "/v1/audit/checkpoints", tag = "audit", operation_id = "list_audit_checkpoints",
    params(StatementFilter, PageParams),
    responses((status = 200, description = "A page of checkpoints", body = PageBody<Statement>)),
)]
pub async fn list_audit_checkpoints(
    caller: Caller<perm::AuditRead>,
    list: List<StatementFilter>,
    audit: web::Data<Audit>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    let tenant = &caller.tenant.id;
    let request = list.page.request(&cursors, tenant, LIST)?;
    let page = audit
        .checkpoints(tenant.clone(), list.filter, request)
        .await?;
    let body = list
        .page
        .body(&cursors, tenant, LIST, page, std::convert::identity);
    Ok(HttpResponse::Ok().json(body))
}
