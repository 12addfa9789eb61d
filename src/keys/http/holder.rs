//! The holder's own affairs: the presented key is the credential.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{ActOnKey, KeyWithPlaintext, answer, by, claim, reveal, show};
use crate::auth::http::Holder;
use crate::clock::Clock;
use crate::http::extract::{AuditReason, IdempotencyKey, OptionalBody};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::keys::key::KeyView;
use crate::keys::service::{Keys, Rotation};
use crate::patch::Reason;
use crate::time::Span;

/// How a holder rotates: its life is not its own to stretch.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"overlap": "1h"}))]
pub struct RotateSelf {
    pub overlap: Option<Span>,
    pub reason: Option<Reason>,
}

/// Shows the presented key to its holder
#[utoipa::path(
    get, path = "/v1/self", tag = "self", operation_id = "read_self",
    responses((status = 200, description = "The key", body = KeyView)),
)]
pub async fn read_self(
    holder: Holder,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&holder, None, AuditReason(None));
    let key = keys.own(&by, holder.key()).await?;
    Ok(answer(StatusCode::OK, &key, &by.at, clock.now()))
}

/// Ends the presented key for good
#[utoipa::path(
    post, path = "/v1/self/revoke", tag = "self", operation_id = "revoke_self",
    params(Wait, AuditReason),
    request_body(content = Option<ActOnKey>),
    responses((status = 200, description = "The revoked key", body = Ended<KeyView>)),
)]
pub async fn revoke_self(
    holder: Holder,
    body: OptionalBody<ActOnKey>,
    reason: AuditReason,
    waiting: Waiting,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&holder, body.into_inner().reason, reason);
    let at = by.at.clone();
    let key = keys.revoke(by, holder.key().to_owned(), true).await?;
    Ok(waiting
        .answer(key.version, show(&key, &at, clock.now()))
        .await)
}

/// Rotates the presented key, where `key_policy.self_rotate` allows it
#[utoipa::path(
    post, path = "/v1/self/rotate", tag = "self", operation_id = "rotate_self",
    params(IdempotencyKey, AuditReason),
    request_body(content = Option<RotateSelf>),
    responses(
        (status = 200, description = "The key and its new plaintext", body = KeyWithPlaintext),
        (status = 409, description = "`too_many_secrets`, `key_expired`, `key_revoked`; `in_progress`: the first request with this key still runs"),
    ),
)]
pub async fn rotate_self(
    holder: Holder,
    body: OptionalBody<RotateSelf>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let body = body.into_inner();
    let by = by(&holder, body.reason, reason);
    let at = by.at.clone();
    let claim = claim(&at, ("POST", "/v1/self/rotate"), idempotency, hash);
    let rotation = Rotation {
        overlap: body.overlap,
        by_superseded: holder.is_superseded(),
        ..Rotation::default()
    };
    let made = keys.rotate(by, holder.key(), rotation, claim, true).await?;
    Ok(reveal(StatusCode::OK, &made, &at, clock.now()))
}
