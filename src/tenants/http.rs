//! The tenants API.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::body::{CreateTenant, TenantBody, UpdateTenant};
use super::{DEFAULT, Sight, Tenant, TenantFilter, Tenants};
use crate::auth::CallerIdentity;
use crate::auth::http::{Caller, perm};
use crate::catalogue::{self, Act, Deletion};
use crate::http::extract::{
    AuditReason, Body, IdempotencyKey, IfMatch, OptionalBody, Query, etag, replayed,
};
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::idempotency::{Claim, Idempotent};

const LIST: &str = "tenants newest first";

fn answer(status: StatusCode, tenant: &Tenant) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    if status == StatusCode::CREATED {
        response.insert_header(("Location", format!("/v1/tenants/{}", tenant.id)));
    }
    response
        .insert_header(etag(tenant.version))
        .json(TenantBody::from(tenant))
}

/// Who acts in `default` sees all tenants, everybody else their own.
fn sight(caller: &CallerIdentity) -> Sight {
    if caller.tenant.slug.as_str() == DEFAULT {
        Sight::All
    } else {
        Sight::Own
    }
}

/// Creates a tenant
///
/// With its built-in service `keystead`. Tenants are kept by callers of the tenant `default` alone.
/// The slug never changes and is never used again.
#[utoipa::path(
    post, path = "/v1/tenants", tag = "tenants", operation_id = "create_tenant",
    params(IdempotencyKey, AuditReason),
    request_body = CreateTenant,
    responses(
        (status = 201, description = "The tenant", body = TenantBody),
        (status = 409, description = "`slug_taken`: `existing_id` has or had the slug"),
    ),
)]
pub async fn create_tenant(
    caller: Caller<perm::TenantsWrite>,
    body: Body<CreateTenant>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let mut input = body.into_inner();
    let at = caller.attribution(catalogue::reason(input.reason.take(), reason.0));
    let claim = Claim::of(&at, ("POST", "/v1/tenants"), idempotency.0.as_deref(), hash);
    let made = tenants.create(at, claim, input).await?;
    Ok(match made {
        Idempotent::Fresh(tenant) => answer(StatusCode::CREATED, &tenant),
        Idempotent::Replayed(tenant) => replayed(answer(StatusCode::CREATED, &tenant)),
    })
}

/// Lists tenants, newest first
///
/// All of them for callers of the tenant `default`, their own for others.
#[utoipa::path(
    get, path = "/v1/tenants", tag = "tenants", operation_id = "list_tenants",
    params(TenantFilter, PageParams),
    responses((status = 200, description = "A page of tenants", body = PageBody<TenantBody>)),
)]
pub async fn list_tenants(
    caller: Caller<perm::TenantsWrite>,
    list: List<TenantFilter>,
    tenants: web::Data<Tenants>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let acting = &caller.tenant;
    let sight = sight(&caller);
    let request = list.page.request(&cursors, &acting.id, LIST)?;
    let page = tenants.list(acting, sight, list.filter, request).await?;
    let body = list.page.body(&cursors, &acting.id, LIST, page, |tenant| {
        TenantBody::from(&tenant)
    });
    Ok(HttpResponse::Ok().json(body))
}

/// Shows a tenant
#[utoipa::path(
    get, path = "/v1/tenants/{id}", tag = "tenants", operation_id = "read_tenant",
    params(("id" = String, Path, description = "Id or slug")),
    responses((status = 200, description = "The tenant", body = TenantBody)),
)]
pub async fn read_tenant(
    caller: Caller<perm::TenantsWrite>,
    id: web::Path<String>,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let tenant = tenants
        .read(&caller.tenant, sight(&caller), id.into_inner())
        .await?;
    Ok(answer(StatusCode::OK, &tenant))
}

/// Changes a tenant
#[utoipa::path(
    patch, path = "/v1/tenants/{id}", tag = "tenants", operation_id = "update_tenant",
    params(("id" = String, Path, description = "Id or slug"), IfMatch, AuditReason),
    request_body = UpdateTenant,
    responses(
        (status = 200, description = "The tenant as it is now", body = TenantBody),
    ),
)]
pub async fn update_tenant(
    caller: Caller<perm::TenantsWrite>,
    id: web::Path<String>,
    body: Body<UpdateTenant>,
    if_match: IfMatch,
    reason: AuditReason,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let mut patch = body.into_inner();
    let at = caller.attribution(catalogue::reason(patch.reason.take(), reason.0));
    let tenant = tenants
        .update(at, id.into_inner(), if_match.0, patch)
        .await?;
    Ok(answer(StatusCode::OK, &tenant))
}

/// Deletes a tenant
///
/// With everything in it: none of its keys is valid from then on. Its slug is never used again.
#[utoipa::path(
    delete, path = "/v1/tenants/{id}", tag = "tenants", operation_id = "delete_tenant",
    params(("id" = String, Path, description = "Id or slug"), Deletion, IfMatch, AuditReason),
    responses(
        (status = 204, description = "It is gone"),
        (
            status = 409,
            description = "`has_live_keys`: it has `count` keys and `revoke_keys` was not given. `built_in`: it is the tenant `default`",
        ),
    ),
)]
pub async fn delete_tenant(
    caller: Caller<perm::TenantsWrite>,
    id: web::Path<String>,
    query: Query<Deletion>,
    if_match: IfMatch,
    reason: AuditReason,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(reason.0);
    tenants
        .delete(at, id.into_inner(), if_match.0, query.revoke_keys)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Stops a tenant until it is enabled
///
/// None of its keys is valid meanwhile.
#[utoipa::path(
    post, path = "/v1/tenants/{id}/disable", tag = "tenants", operation_id = "disable_tenant",
    params(("id" = String, Path, description = "Id or slug"), Wait, AuditReason),
    request_body(content = Option<Act>),
    responses(
        (status = 200, description = "The disabled tenant", body = Ended<TenantBody>),
        (status = 409, description = "`built_in`: it is the tenant `default`"),
    ),
)]
pub async fn disable_tenant(
    caller: Caller<perm::TenantsWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    waiting: Waiting,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let tenant = tenants.disable(at, id.into_inner()).await?;
    let body = TenantBody::from(&tenant);
    Ok(waiting.answer(tenant.version, body).await)
}

/// Lets a disabled tenant's keys be used again
#[utoipa::path(
    post, path = "/v1/tenants/{id}/enable", tag = "tenants", operation_id = "enable_tenant",
    params(("id" = String, Path, description = "Id or slug"), AuditReason),
    request_body(content = Option<Act>),
    responses((status = 200, description = "The enabled tenant", body = TenantBody)),
)]
pub async fn enable_tenant(
    caller: Caller<perm::TenantsWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    tenants: web::Data<Tenants>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let tenant = tenants.enable(at, id.into_inner()).await?;
    Ok(answer(StatusCode::OK, &tenant))
}
