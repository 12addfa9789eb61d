//! The services API.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::body::{CreateService, ReplaceService, ServiceBody, UpdateService};
use super::{Service, ServiceFilter, Services};
use crate::auth::http::{Caller, perm};
use crate::catalogue::{self, Act, Deletion};
use crate::http::extract::{
    AuditReason, BulkBody, IdempotencyKey, IfMatch, OptionalBody, Query, etag, replayed,
};
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::id::ServiceId;
use crate::idempotency::{Claim, Idempotent};
use crate::text::Slug;

const LIST: &str = "services newest first";

fn answer(status: StatusCode, service: &Service, tenant: &Slug) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    if status == StatusCode::CREATED {
        response.insert_header(("Location", format!("/v1/services/{}", service.id)));
    }
    response
        .insert_header(etag(service.version))
        .json(ServiceBody::new(service, tenant))
}

/// Creates a service
///
/// Needs `services:write` for all services. The slug is the audience of the service's keys; it never
/// changes and is never used again.
#[utoipa::path(
    post, path = "/v1/services", tag = "services", operation_id = "create_service",
    params(IdempotencyKey, AuditReason),
    request_body = CreateService,
    responses(
        (status = 201, description = "The service", body = ServiceBody),
        (status = 409, description = "`slug_taken`: `existing_id` has or had the slug"),
    ),
)]
pub async fn create_service(
    caller: Caller<perm::ServicesWrite>,
    body: BulkBody<CreateService>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let mut input = body.into_inner();
    let at = caller.attribution(catalogue::reason(input.reason.take(), reason.0));
    let claim = Claim::of(
        &at,
        ("POST", "/v1/services"),
        idempotency.0.as_deref(),
        hash,
    );
    let made = services
        .create(at, caller.rights.clone(), claim, input)
        .await?;
    Ok(match made {
        Idempotent::Fresh(service) => answer(StatusCode::CREATED, &service, &caller.tenant.slug),
        Idempotent::Replayed(service) => {
            replayed(answer(StatusCode::CREATED, &service, &caller.tenant.slug))
        }
    })
}

/// Lists services, newest first
///
/// Those that the caller may read.
#[utoipa::path(
    get, path = "/v1/services", tag = "services", operation_id = "list_services",
    params(ServiceFilter, PageParams),
    responses((status = 200, description = "A page of services", body = PageBody<ServiceBody>)),
)]
pub async fn list_services(
    caller: Caller<perm::ServicesRead>,
    list: List<ServiceFilter>,
    services: web::Data<Services>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let tenant = &caller.tenant;
    let request = list.page.request(&cursors, &tenant.id, LIST)?;
    let page = services
        .list(tenant, &caller.rights, list.filter, request)
        .await?;
    let body = list.page.body(&cursors, &tenant.id, LIST, page, |service| {
        ServiceBody::new(&service, &tenant.slug)
    });
    Ok(HttpResponse::Ok().json(body))
}

/// Shows a service
#[utoipa::path(
    get, path = "/v1/services/{id}", tag = "services", operation_id = "read_service",
    params(("id" = String, Path, description = "Id or slug")),
    responses((status = 200, description = "The service", body = ServiceBody)),
)]
pub async fn read_service(
    caller: Caller<perm::ServicesRead>,
    id: web::Path<String>,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let service = services
        .read(&caller.tenant, &caller.rights, id.into_inner())
        .await?;
    Ok(answer(StatusCode::OK, &service, &caller.tenant.slug))
}

/// Makes a service what the body says
///
/// Creates it, which needs `services:write` for all services, or replaces everything about it: what
/// is left out has its default. The same again changes nothing.
#[utoipa::path(
    put, path = "/v1/services/{id}", tag = "services", operation_id = "replace_service",
    params(("id" = String, Path, description = "Slug; or the id of one that is there"), IfMatch, AuditReason),
    request_body = ReplaceService,
    responses(
        (status = 200, description = "The service as it is now", body = ServiceBody),
        (status = 201, description = "The service, created", body = ServiceBody),
        (
            status = 409,
            description = "`slug_taken`: a deleted service had the slug. `built_in`: it is the service `keystead`",
        ),
    ),
)]
pub async fn replace_service(
    caller: Caller<perm::ServicesWrite>,
    id: web::Path<String>,
    body: BulkBody<ReplaceService>,
    if_match: IfMatch,
    reason: AuditReason,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    if let Err(detail) = Slug::parse(&id)
        && ServiceId::parse(&id).is_none()
    {
        return Err(Problem::invalid_at("id", detail));
    }
    let mut input = body.into_inner();
    let at = caller.attribution(catalogue::reason(input.reason.take(), reason.0));
    let (service, created) = services
        .replace(
            at,
            caller.rights.clone(),
            id.into_inner(),
            if_match.0,
            input,
        )
        .await?;
    let status = if created {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    Ok(answer(status, &service, &caller.tenant.slug))
}

/// Changes a service
#[utoipa::path(
    patch, path = "/v1/services/{id}", tag = "services", operation_id = "update_service",
    params(("id" = String, Path, description = "Id or slug"), IfMatch, AuditReason),
    request_body = UpdateService,
    responses(
        (status = 200, description = "The service as it is now", body = ServiceBody),
        (status = 409, description = "`built_in`: it is the service `keystead`"),
    ),
)]
pub async fn update_service(
    caller: Caller<perm::ServicesWrite>,
    id: web::Path<String>,
    body: BulkBody<UpdateService>,
    if_match: IfMatch,
    reason: AuditReason,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let mut patch = body.into_inner();
    let at = caller.attribution(catalogue::reason(patch.reason.take(), reason.0));
    let service = services
        .update(
            at,
            caller.rights.clone(),
            id.into_inner(),
            if_match.0,
            patch,
        )
        .await?;
    Ok(answer(StatusCode::OK, &service, &caller.tenant.slug))
}

/// Deletes a service
///
/// Its keys' grants on it are worth nothing from then on. Its slug is never used again.
#[utoipa::path(
    delete, path = "/v1/services/{id}", tag = "services", operation_id = "delete_service",
    params(("id" = String, Path, description = "Id or slug"), Deletion, IfMatch, AuditReason),
    responses(
        (status = 204, description = "It is gone"),
        (
            status = 409,
            description = "`has_live_keys`: `count` keys have a grant on it and `revoke_keys` was not given. `built_in`: it is the service `keystead`",
        ),
    ),
)]
pub async fn delete_service(
    caller: Caller<perm::ServicesWrite>,
    id: web::Path<String>,
    query: Query<Deletion>,
    if_match: IfMatch,
    reason: AuditReason,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(reason.0);
    let (rights, id) = (caller.rights.clone(), id.into_inner());
    services
        .delete(at, rights, id, if_match.0, query.revoke_keys)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Stops a service until it is enabled
///
/// Nothing is valid for it meanwhile.
#[utoipa::path(
    post, path = "/v1/services/{id}/disable", tag = "services", operation_id = "disable_service",
    params(("id" = String, Path, description = "Id or slug"), Wait, AuditReason),
    request_body(content = Option<Act>),
    responses(
        (status = 200, description = "The disabled service", body = Ended<ServiceBody>),
        (status = 409, description = "`built_in`: it is the service `keystead`"),
    ),
)]
pub async fn disable_service(
    caller: Caller<perm::ServicesWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    waiting: Waiting,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let service = services
        .disable(at, caller.rights.clone(), id.into_inner())
        .await?;
    let body = ServiceBody::new(&service, &caller.tenant.slug);
    Ok(waiting.answer(service.version, body).await)
}

/// Lets a disabled service be used again
#[utoipa::path(
    post, path = "/v1/services/{id}/enable", tag = "services", operation_id = "enable_service",
    params(("id" = String, Path, description = "Id or slug"), AuditReason),
    request_body(content = Option<Act>),
    responses(
        (status = 200, description = "The enabled service", body = ServiceBody),
        (status = 409, description = "`built_in`: it is the service `keystead`"),
    ),
)]
pub async fn enable_service(
    caller: Caller<perm::ServicesWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    services: web::Data<Services>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let service = services
        .enable(at, caller.rights.clone(), id.into_inner())
        .await?;
    Ok(answer(StatusCode::OK, &service, &caller.tenant.slug))
}
