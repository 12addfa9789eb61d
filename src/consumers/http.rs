//! The consumers API.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};

use super::body::{ConsumerBody, CreateConsumer, ReplaceConsumer, UpdateConsumer};
use super::{Consumer, ConsumerFilter, Consumers};
use crate::auth::http::{Caller, perm};
use crate::catalogue::{self, Act, Deletion};
use crate::http::extract::{
    AuditReason, Body, IdempotencyKey, IfMatch, OptionalBody, Query, etag, replayed,
};
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::id::ConsumerId;
use crate::idempotency::{Claim, Idempotent};
use crate::text::Slug;

const LIST: &str = "consumers newest first";

fn answer(status: StatusCode, consumer: &Consumer, tenant: &Slug) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    if status == StatusCode::CREATED {
        response.insert_header(("Location", format!("/v1/consumers/{}", consumer.id)));
    }
    response
        .insert_header(etag(consumer.version))
        .json(ConsumerBody::new(consumer, tenant))
}

/// Creates a consumer
///
/// The slug never changes and is never used again.
#[utoipa::path(
    post, path = "/v1/consumers", tag = "consumers", operation_id = "create_consumer",
    params(IdempotencyKey, AuditReason),
    request_body = CreateConsumer,
    responses(
        (status = 201, description = "The consumer", body = ConsumerBody),
        (
            status = 409,
            description = "`slug_taken`, `external_id_taken`: `existing_id` has or had the slug, or has the external id",
        ),
    ),
)]
pub async fn create_consumer(
    caller: Caller<perm::ConsumersWrite>,
    body: Body<CreateConsumer>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let mut input = body.into_inner();
    let at = caller.attribution(catalogue::reason(input.reason.take(), reason.0));
    let claim = Claim::of(
        &at,
        ("POST", "/v1/consumers"),
        idempotency.0.as_deref(),
        hash,
    );
    let made = consumers
        .create(at, caller.rights.clone(), claim, input)
        .await?;
    Ok(match made {
        Idempotent::Fresh(consumer) => answer(StatusCode::CREATED, &consumer, &caller.tenant.slug),
        Idempotent::Replayed(consumer) => {
            replayed(answer(StatusCode::CREATED, &consumer, &caller.tenant.slug))
        }
    })
}

/// Lists consumers, newest first
///
/// Those that the caller may read: with `consumers:read` for some services alone, those whose keys
/// have a grant on one of them, or no grant yet.
#[utoipa::path(
    get, path = "/v1/consumers", tag = "consumers", operation_id = "list_consumers",
    params(ConsumerFilter, PageParams),
    responses((status = 200, description = "A page of consumers", body = PageBody<ConsumerBody>)),
)]
pub async fn list_consumers(
    caller: Caller<perm::ConsumersRead>,
    list: List<ConsumerFilter>,
    consumers: web::Data<Consumers>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let tenant = &caller.tenant;
    let request = list.page.request(&cursors, &tenant.id, LIST)?;
    let page = consumers
        .list(tenant, &caller.rights, list.filter, request)
        .await?;
    let body = list
        .page
        .body(&cursors, &tenant.id, LIST, page, |consumer| {
            ConsumerBody::new(&consumer, &tenant.slug)
        });
    Ok(HttpResponse::Ok().json(body))
}

/// Shows a consumer
#[utoipa::path(
    get, path = "/v1/consumers/{id}", tag = "consumers", operation_id = "read_consumer",
    params(("id" = String, Path, description = "Id, slug or external id")),
    responses((status = 200, description = "The consumer", body = ConsumerBody)),
)]
pub async fn read_consumer(
    caller: Caller<perm::ConsumersRead>,
    id: web::Path<String>,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let consumer = consumers
        .read(&caller.tenant, &caller.rights, id.into_inner())
        .await?;
    Ok(answer(StatusCode::OK, &consumer, &caller.tenant.slug))
}

/// Makes a consumer what the body says
///
/// Creates it, or replaces everything about it: what is left out has its default. The same again
/// changes nothing.
#[utoipa::path(
    put, path = "/v1/consumers/{id}", tag = "consumers", operation_id = "replace_consumer",
    params(("id" = String, Path, description = "Slug; or the id of one that is there"), IfMatch, AuditReason),
    request_body = ReplaceConsumer,
    responses(
        (status = 200, description = "The consumer as it is now", body = ConsumerBody),
        (status = 201, description = "The consumer, created", body = ConsumerBody),
        (
            status = 409,
            description = "`slug_taken`: a deleted consumer had the slug. `external_id_taken`: `existing_id` has it",
        ),
    ),
)]
pub async fn replace_consumer(
    caller: Caller<perm::ConsumersWrite>,
    id: web::Path<String>,
    body: Body<ReplaceConsumer>,
    if_match: IfMatch,
    reason: AuditReason,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    if let Err(detail) = Slug::parse(&id)
        && ConsumerId::parse(&id).is_none()
    {
        return Err(Problem::invalid_at("id", detail));
    }
    let mut input = body.into_inner();
    let at = caller.attribution(catalogue::reason(input.reason.take(), reason.0));
    let (consumer, created) = consumers
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
    Ok(answer(status, &consumer, &caller.tenant.slug))
}

/// Changes a consumer
///
/// With `consumers:write` for some services alone it must cover all that its keys have grants on; so
/// for all that changes, disables or deletes one.
#[utoipa::path(
    patch, path = "/v1/consumers/{id}", tag = "consumers", operation_id = "update_consumer",
    params(("id" = String, Path, description = "Id, slug or external id"), IfMatch, AuditReason),
    request_body = UpdateConsumer,
    responses(
        (status = 200, description = "The consumer as it is now", body = ConsumerBody),
        (status = 409, description = "`external_id_taken`: `existing_id` has it"),
    ),
)]
pub async fn update_consumer(
    caller: Caller<perm::ConsumersWrite>,
    id: web::Path<String>,
    body: Body<UpdateConsumer>,
    if_match: IfMatch,
    reason: AuditReason,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let mut patch = body.into_inner();
    let at = caller.attribution(catalogue::reason(patch.reason.take(), reason.0));
    let consumer = consumers
        .update(
            at,
            caller.rights.clone(),
            id.into_inner(),
            if_match.0,
            patch,
        )
        .await?;
    Ok(answer(StatusCode::OK, &consumer, &caller.tenant.slug))
}

/// Deletes a consumer
///
/// Its keys are worth nothing from then on. Its slug is never used again, its external id may be.
#[utoipa::path(
    delete, path = "/v1/consumers/{id}", tag = "consumers", operation_id = "delete_consumer",
    params(("id" = String, Path, description = "Id, slug or external id"), Deletion, IfMatch, AuditReason),
    responses(
        (status = 204, description = "It is gone"),
        (
            status = 409,
            description = "`has_live_keys`: it has `count` keys and `revoke_keys` was not given",
        ),
    ),
)]
pub async fn delete_consumer(
    caller: Caller<perm::ConsumersWrite>,
    id: web::Path<String>,
    query: Query<Deletion>,
    if_match: IfMatch,
    reason: AuditReason,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(reason.0);
    let (rights, id) = (caller.rights.clone(), id.into_inner());
    consumers
        .delete(at, rights, id, if_match.0, query.revoke_keys)
        .await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Stops a consumer until it is enabled
///
/// None of its keys is valid meanwhile.
#[utoipa::path(
    post, path = "/v1/consumers/{id}/disable", tag = "consumers", operation_id = "disable_consumer",
    params(("id" = String, Path, description = "Id, slug or external id"), Wait, AuditReason),
    request_body(content = Option<Act>),
    responses((status = 200, description = "The disabled consumer", body = Ended<ConsumerBody>)),
)]
pub async fn disable_consumer(
    caller: Caller<perm::ConsumersWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    waiting: Waiting,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let consumer = consumers
        .disable(at, caller.rights.clone(), id.into_inner())
        .await?;
    let body = ConsumerBody::new(&consumer, &caller.tenant.slug);
    Ok(waiting.answer(consumer.version, body).await)
}

/// Lets a disabled consumer's keys be used again
#[utoipa::path(
    post, path = "/v1/consumers/{id}/enable", tag = "consumers", operation_id = "enable_consumer",
    params(("id" = String, Path, description = "Id, slug or external id"), AuditReason),
    request_body(content = Option<Act>),
    responses((status = 200, description = "The enabled consumer", body = ConsumerBody)),
)]
pub async fn enable_consumer(
    caller: Caller<perm::ConsumersWrite>,
    id: web::Path<String>,
    body: OptionalBody<Act>,
    reason: AuditReason,
    consumers: web::Data<Consumers>,
) -> Result<HttpResponse, Problem> {
    let at = caller.attribution(catalogue::reason(body.into_inner().reason, reason.0));
    let consumer = consumers
        .enable(at, caller.rights.clone(), id.into_inner())
        .await?;
    Ok(answer(StatusCode::OK, &consumer, &caller.tenant.slug))
}
