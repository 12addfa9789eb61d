//! The reviews API: who has access, and who said that it may stay.

pub mod body;
pub mod export;

use actix_web::{HttpResponse, web};

use self::body::{AccessReviewBody, CloseAccessReview, DecideAccessReview, ReviewItemBody};
use super::service::Decide;
use super::{ItemFilter, ListFilter, NewReview, Reviews};
use crate::auth::CallerIdentity;
use crate::auth::http::{Caller, perm};
use crate::http::extract::{AuditReason, Body, IdempotencyKey, OptionalBody, Query, replayed};
use crate::http::page::{CursorKey, List, NoFilter, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::idempotency::{Claim, Idempotent};
use crate::keys::service::By;
use crate::patch::Reason;

const LIST: &str = "access reviews newest first";
const ITEMS: &str = "keys of an access review newest first";

fn by(caller: &CallerIdentity, body: Option<Reason>, header: AuditReason) -> By {
    let reason = body.map(Reason::into_inner).or(header.0);
    By {
        rights: caller.rights.clone(),
        at: caller.attribution(reason),
    }
}

/// Begins a review of access
///
/// Takes in the keys of the filter that are neither revoked nor past their end, as they stand at one
/// instant, each with its findings; at most 100000. `keys:write` is needed for each service of the
/// filter, or for all if it names none. If it takes longer than some seconds, the answer has the status
/// `freezing`, and the review opens by itself.
#[utoipa::path(
    post, path = "/v1/reviews/access", tag = "reviews", operation_id = "create_access_review",
    request_body = NewReview,
    params(IdempotencyKey, AuditReason),
    responses((status = 201, description = "The review", body = AccessReviewBody)),
)]
pub async fn create_access_review(
    caller: Caller<perm::KeysWrite>,
    body: Body<NewReview>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    reviews: web::Data<Reviews>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let mut new = body.into_inner();
    let by = by(&caller, new.reason.take(), reason);
    let target = ("POST", "/v1/reviews/access");
    let claim = Claim::of(&by.at, target, idempotency.0.as_deref(), hash);
    let tenant = by.at.tenant.slug.clone();
    let (review, is_replay) = match reviews.create(by, new, claim).await? {
        Idempotent::Fresh(review) => (review, false),
        Idempotent::Replayed(review) => (review, true),
    };
    let location = format!("/v1/reviews/access/{}", review.id);
    let response = HttpResponse::Created()
        .insert_header(("Location", location))
        .json(AccessReviewBody::new(review, tenant));
    Ok(if is_replay {
        replayed(response)
    } else {
        response
    })
}

/// Lists reviews of access, newest first
///
/// Those for whose services, all of them, the caller has `keys:read`.
#[utoipa::path(
    get, path = "/v1/reviews/access", tag = "reviews", operation_id = "list_access_reviews",
    params(ListFilter, PageParams),
    responses((status = 200, description = "A page of reviews", body = PageBody<AccessReviewBody>)),
)]
pub async fn list_access_reviews(
    caller: Caller<perm::KeysRead>,
    list: List<ListFilter>,
    reviews: web::Data<Reviews>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let tenant = &caller.tenant.id;
    let request = list.page.request(&cursors, tenant, LIST)?;
    let by = by(&caller, None, AuditReason(None));
    let page = reviews.list(&by, list.filter, request).await?;
    let body = list.page.body(&cursors, tenant, LIST, page, |review| {
        AccessReviewBody::new(review, by.at.tenant.slug.clone())
    });
    Ok(HttpResponse::Ok().json(body))
}

/// Shows a review of access
///
/// With how many keys each finding has, and how many were decided how.
#[utoipa::path(
    get, path = "/v1/reviews/access/{id}", tag = "reviews", operation_id = "read_access_review",
    params(("id" = String, Path, description = "Id")),
    responses((status = 200, description = "The review", body = AccessReviewBody)),
)]
pub async fn read_access_review(
    caller: Caller<perm::KeysRead>,
    id: web::Path<String>,
    _none: Query<NoFilter>,
    reviews: web::Data<Reviews>,
) -> Result<HttpResponse, Problem> {
    let by = by(&caller, None, AuditReason(None));
    let review = reviews.load(&by, id.into_inner()).await?;
    Ok(HttpResponse::Ok().json(AccessReviewBody::new(review, by.at.tenant.slug)))
}

/// Lists the keys of a review of access, the newest first
///
/// As they stood when it began, with what was decided about them.
#[utoipa::path(
    get, path = "/v1/reviews/access/{id}/items", tag = "reviews",
    operation_id = "list_access_review_items",
    params(("id" = String, Path, description = "Id"), ItemFilter, PageParams),
    responses(
        (status = 200, description = "A page of keys", body = PageBody<ReviewItemBody>),
        (status = 409, description = "`in_progress`: the keys are still being put into the review"),
    ),
)]
pub async fn list_access_review_items(
    caller: Caller<perm::KeysRead>,
    id: web::Path<String>,
    list: List<ItemFilter>,
    reviews: web::Data<Reviews>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let (tenant, id) = (&caller.tenant.id, id.into_inner());
    // A page of one review leads to no other.
    let name = format!("{ITEMS} {id}");
    let request = list.page.request(&cursors, tenant, &name)?;
    let by = by(&caller, None, AuditReason(None));
    let page = reviews.items(&by, id, list.filter, request).await?;
    let body = list
        .page
        .body(&cursors, tenant, &name, page, ReviewItemBody::new);
    Ok(HttpResponse::Ok().json(body))
}

/// Decides about a key of a review of access
///
/// What was decided before is replaced, until the review is closed. `own` in the answer says that the
/// reviewer made the key or rotated it last. `keys:write` is needed for what the review is about; with
/// `revoke_now` the key is revoked in the same step, with the caller's own right to do so.
#[utoipa::path(
    post, path = "/v1/reviews/access/{id}/items/{key}/decide", tag = "reviews",
    operation_id = "decide_access_review",
    params(
        ("id" = String, Path, description = "Id"),
        ("key" = String, Path, description = "Id of the key"),
        AuditReason,
    ),
    request_body = DecideAccessReview,
    responses(
        (status = 200, description = "The key with the decision", body = ReviewItemBody),
        (status = 409, description = "`review_closed`; `in_progress`: the keys are still being put into the review"),
    ),
)]
pub async fn decide_access_review(
    caller: Caller<perm::KeysWrite>,
    path: web::Path<(String, String)>,
    body: Body<DecideAccessReview>,
    reason: AuditReason,
    reviews: web::Data<Reviews>,
) -> Result<HttpResponse, Problem> {
    let (id, key) = path.into_inner();
    let body = body.into_inner();
    let by = by(&caller, body.reason, reason);
    let asked = Decide {
        decision: body.decision.into(),
        note: body.note.map(Reason::into_inner),
        revoke_now: body.revoke_now,
    };
    let item = reviews.decide(by, id, key, asked).await?;
    Ok(HttpResponse::Ok().json(ReviewItemBody::new(item)))
}

/// Closes a review of access
///
/// Nothing in it changes any more.
#[utoipa::path(
    post, path = "/v1/reviews/access/{id}/close", tag = "reviews",
    operation_id = "close_access_review",
    params(("id" = String, Path, description = "Id"), AuditReason),
    request_body(content = Option<CloseAccessReview>),
    responses(
        (status = 200, description = "The closed review", body = AccessReviewBody),
        (status = 409, description = "`review_undecided`: so many keys as `count` says; `in_progress`: the keys are still being put into the review"),
    ),
)]
pub async fn close_access_review(
    caller: Caller<perm::KeysWrite>,
    id: web::Path<String>,
    body: OptionalBody<CloseAccessReview>,
    reason: AuditReason,
    reviews: web::Data<Reviews>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let by = by(&caller, body.reason, reason);
    let tenant = by.at.tenant.slug.clone();
    let closed = reviews
        .close(by, id.into_inner(), body.leave_undecided)
        .await?;
    Ok(HttpResponse::Ok().json(AccessReviewBody::new(closed, tenant)))
}
