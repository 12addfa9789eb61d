//! The keys API: issue and care, rotation and ending of one key; [`bulk`] and the [`holder`]'s own
//! affairs beside it.

pub mod bulk;
pub mod export;
pub mod holder;

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::audit::Attribution;
use crate::auth::CallerIdentity;
use crate::auth::http::{Caller, perm};
use crate::clock::Clock;
use crate::http::extract::{AuditReason, Body, IdempotencyKey, IfMatch, OptionalBody, etag};
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::idempotency::{Claim, Idempotent};
use crate::keys::issue::{KeyPatch, NewKey};
use crate::keys::key::{Key, KeyStatus, KeyView};
use crate::keys::secret::{LookupId, RevealedKey, any_prefix_pattern};
use crate::keys::service::{By, Issued, Keys, Rotation};
use crate::keys::store::KeyFilter;
use crate::patch::{Reason, double_option};
use crate::text::{Environment, Tag};
use crate::time::{Span, Timestamp};

const LIST: &str = "keys newest first";

/// A key and the plaintext of its newest secret.
#[derive(Serialize, ToSchema)]
pub struct KeyWithPlaintext {
    pub key: KeyView,
    /// Shown only here; `null` in a replay, which cannot know it any more.
    #[schema(value_type = Option<String>, required = true, example = "ks_live_4hT0aZq81xPd_...")]
    pub api_key: Option<RevealedKey>,
}

/// How to rotate.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"overlap": "24h", "reason": "yearly rotation"}))]
pub struct RotateKey {
    /// How long the old secret stays valid, up to `30d`; `0s` ends it now. Default: the service's
    /// `rotation_overlap`, else `24h`.
    pub overlap: Option<Span>,
    /// A new life from now; not together with `expires_at`. Default: the end stays.
    pub ttl: Option<Span>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Timestamp>)]
    pub expires_at: Option<Option<Timestamp>>,
    pub reason: Option<Reason>,
}

/// The body of an action.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "found in a public repository"}))]
pub struct ActOnKey {
    pub reason: Option<Reason>,
}

/// When a secret ends.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"valid_until": "2027-01-31T12:00:00Z"}))]
pub struct SecretPatch {
    /// `null`: with the key; not for a superseded secret.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true)]
    pub valid_until: Option<Timestamp>,
    pub reason: Option<Reason>,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct KeyListFilter {
    /// Id, slug or external id.
    consumer: Option<String>,
    /// Id or slug: keys that grant on it.
    service: Option<String>,
    status: Option<KeyStatus>,
    /// Repeatable: all must be there.
    #[serde(default)]
    tag: Vec<Tag>,
    environment: Option<Environment>,
    name: Option<String>,
    external_id: Option<String>,
    lookup_id: Option<LookupId>,
    /// `issuer#subject`, or a key id.
    created_by: Option<String>,
    /// Keys that end before this time.
    expiring_before: Option<Timestamp>,
    /// `true`: keys without an end.
    no_expiry: Option<bool>,
    never_used: Option<bool>,
    /// Keys not used since, or never.
    unused_since: Option<Timestamp>,
}

/// What to look for in code and logs.
#[derive(Serialize, ToSchema)]
pub struct KeyPatterns {
    pub items: Vec<KeyPattern>,
}

#[derive(Serialize, ToSchema)]
pub struct KeyPattern {
    pub name: String,
    /// A regular expression; the last six characters are a CRC-32 of all before them in base62.
    pub pattern: String,
}

fn by(caller: &CallerIdentity, body: Option<Reason>, header: AuditReason) -> By {
    let reason = body.map(Reason::into_inner).or(header.0);
    By {
        rights: caller.rights.clone(),
        at: caller.attribution(reason),
    }
}

fn claim(
    at: &Attribution,
    target: (&str, &str),
    key: IdempotencyKey,
    body_hash: [u8; 32],
) -> Option<Claim> {
    let credential = at.via.as_ref().map_or_else(
        || at.actor.name(),
        |via| format!("{} by {}", at.actor.name(), via.name()),
    );
    key.0
        .map(|key| Claim::new(&at.tenant, &credential, target, &key, body_hash))
}

fn show(key: &Key, at: &Attribution, now: Timestamp) -> KeyView {
    KeyView::new(key, &at.tenant.slug, now)
}

fn answer(status: StatusCode, key: &Key, at: &Attribution, now: Timestamp) -> HttpResponse {
    HttpResponse::build(status)
        .insert_header(etag(key.version))
        .json(show(key, at, now))
}

/// The answer of what makes a plaintext: with it, or as a replay without.
fn reveal(
    status: StatusCode,
    made: &Idempotent<Issued, Key>,
    at: &Attribution,
    now: Timestamp,
) -> HttpResponse {
    let mut response = HttpResponse::build(status);
    let (key, api_key) = match made {
        Idempotent::Fresh(issued) => (&issued.key, Some(RevealedKey(issued.api_key.clone()))),
        Idempotent::Replayed(key) => {
            response.insert_header(("Idempotency-Replayed", "true"));
            (key, None)
        }
    };
    if status == StatusCode::CREATED {
        response.insert_header(("Location", format!("/v1/keys/{}", key.id)));
    }
    response
        .insert_header(etag(key.version))
        .json(KeyWithPlaintext {
            key: show(key, at, now),
            api_key,
        })
}

/// Issues a key
///
/// The plaintext is in this answer and nowhere else, ever.
#[utoipa::path(
    post, path = "/v1/keys", tag = "keys", operation_id = "issue_key",
    request_body = NewKey,
    params(IdempotencyKey, AuditReason),
    responses(
        (status = 201, description = "The key and its plaintext", body = KeyWithPlaintext),
        (status = 409, description = "`external_id_taken` with `existing_id`; `in_progress`: the first request with this key still runs"),
    ),
)]
pub async fn issue_key(
    caller: Caller<perm::KeysWrite>,
    body: Body<NewKey>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let mut new = body.into_inner();
    let by = by(&caller, new.reason.take(), reason);
    let at = by.at.clone();
    let claim = claim(&at, ("POST", "/v1/keys"), idempotency, hash);
    let made = keys.issue(by, new, claim).await?;
    Ok(reveal(StatusCode::CREATED, &made, &at, clock.now()))
}

/// Lists keys, newest first
#[utoipa::path(
    get, path = "/v1/keys", tag = "keys", operation_id = "list_keys",
    params(KeyListFilter, PageParams),
    responses((status = 200, description = "A page of keys", body = PageBody<KeyView>)),
)]
pub async fn list_keys(
    caller: Caller<perm::KeysRead>,
    list: List<KeyListFilter>,
    keys: web::Data<Keys>,
    cursors: web::Data<CursorKey>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let tenant = &caller.tenant.id;
    let request = list.page.request(&cursors, tenant, LIST)?;
    let by = by(&caller, None, AuditReason(None));
    let page = keys.list(&by, list.filter.resolved(), request).await?;
    let now = clock.now();
    let body = list
        .page
        .body(&cursors, tenant, LIST, page, |key| show(&key, &by.at, now));
    Ok(HttpResponse::Ok().json(body))
}

/// Shows a key
#[utoipa::path(
    get, path = "/v1/keys/{id}", tag = "keys", operation_id = "read_key",
    params(("id" = String, Path, description = "Id or external id")),
    responses((status = 200, description = "The key", body = KeyView)),
)]
pub async fn read_key(
    caller: Caller<perm::KeysRead>,
    id: web::Path<String>,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&caller, None, AuditReason(None));
    let key = keys.read(&by, &id).await?;
    Ok(answer(StatusCode::OK, &key, &by.at, clock.now()))
}

/// Changes a key
///
/// Consumer, environment and prefix never change.
#[utoipa::path(
    patch, path = "/v1/keys/{id}", tag = "keys", operation_id = "update_key",
    params(("id" = String, Path, description = "Id or external id"), IfMatch, AuditReason),
    request_body = KeyPatch,
    responses(
        (status = 200, description = "The key as it is now", body = KeyView),
        (status = 409, description = "`key_revoked`; `external_id_taken` with `existing_id`"),
    ),
)]
pub async fn update_key(
    caller: Caller<perm::KeysWrite>,
    id: web::Path<String>,
    body: Body<KeyPatch>,
    if_match: IfMatch,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let mut patch = body.into_inner();
    let by = by(&caller, patch.reason.take(), reason);
    let at = by.at.clone();
    let key = keys.update(by, id.into_inner(), patch, if_match.0).await?;
    Ok(answer(StatusCode::OK, &key, &at, clock.now()))
}

/// Puts a new secret in the place of the old
///
/// The old one stays valid for the overlap. Grants, limits, counters and history stay.
#[utoipa::path(
    post, path = "/v1/keys/{id}/rotate", tag = "keys", operation_id = "rotate_key",
    params(("id" = String, Path, description = "Id or external id"), IdempotencyKey, AuditReason),
    request_body(content = Option<RotateKey>),
    responses(
        (status = 200, description = "The key and its new plaintext", body = KeyWithPlaintext),
        (status = 409, description = "`too_many_secrets`, `key_expired`, `key_revoked`; `in_progress`: the first request with this key still runs"),
    ),
)]
pub async fn rotate_key(
    caller: Caller<perm::KeysWrite>,
    id: web::Path<String>,
    body: OptionalBody<RotateKey>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let body = body.into_inner();
    let by = by(&caller, body.reason, reason);
    let at = by.at.clone();
    let path = format!("/v1/keys/{id}/rotate");
    let claim = claim(&at, ("POST", &path), idempotency, hash);
    let rotation = Rotation {
        overlap: body.overlap,
        ttl: body.ttl,
        expires_at: body.expires_at,
        by_superseded: false,
    };
    let made = keys.rotate(by, &id, rotation, claim, false).await?;
    Ok(reveal(StatusCode::OK, &made, &at, clock.now()))
}

/// Ends a key for good
#[utoipa::path(
    post, path = "/v1/keys/{id}/revoke", tag = "keys", operation_id = "revoke_key",
    params(("id" = String, Path, description = "Id or external id"), Wait, AuditReason),
    request_body(content = Option<ActOnKey>),
    responses((status = 200, description = "The revoked key", body = Ended<KeyView>)),
)]
pub async fn revoke_key(
    caller: Caller<perm::KeysRevoke>,
    id: web::Path<String>,
    body: OptionalBody<ActOnKey>,
    reason: AuditReason,
    waiting: Waiting,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&caller, body.into_inner().reason, reason);
    let at = by.at.clone();
    let key = keys.revoke(by, id.into_inner(), false).await?;
    Ok(waiting
        .answer(key.version, show(&key, &at, clock.now()))
        .await)
}

/// Stops a key until it is enabled
#[utoipa::path(
    post, path = "/v1/keys/{id}/disable", tag = "keys", operation_id = "disable_key",
    params(("id" = String, Path, description = "Id or external id"), Wait, AuditReason),
    request_body(content = Option<ActOnKey>),
    responses(
        (status = 200, description = "The disabled key", body = Ended<KeyView>),
        (status = 409, description = "`key_revoked`"),
    ),
)]
pub async fn disable_key(
    caller: Caller<perm::KeysRevoke>,
    id: web::Path<String>,
    body: OptionalBody<ActOnKey>,
    reason: AuditReason,
    waiting: Waiting,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&caller, body.into_inner().reason, reason);
    let at = by.at.clone();
    let key = keys.disable(by, id.into_inner()).await?;
    Ok(waiting
        .answer(key.version, show(&key, &at, clock.now()))
        .await)
}

/// Lets a disabled key work again
#[utoipa::path(
    post, path = "/v1/keys/{id}/enable", tag = "keys", operation_id = "enable_key",
    params(("id" = String, Path, description = "Id or external id"), AuditReason),
    request_body(content = Option<ActOnKey>),
    responses(
        (status = 200, description = "The key", body = KeyView),
        (status = 409, description = "`key_revoked`"),
    ),
)]
pub async fn enable_key(
    caller: Caller<perm::KeysWrite>,
    id: web::Path<String>,
    body: OptionalBody<ActOnKey>,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let by = by(&caller, body.into_inner().reason, reason);
    let at = by.at.clone();
    let key = keys.enable(by, id.into_inner()).await?;
    Ok(answer(StatusCode::OK, &key, &at, clock.now()))
}

/// Ends one secret of a key at once
#[utoipa::path(
    post, path = "/v1/keys/{id}/secrets/{secret}/revoke", tag = "keys",
    operation_id = "revoke_secret",
    params(
        ("id" = String, Path, description = "Id or external id of the key"),
        ("secret" = String, Path, description = "Id of the secret"),
        Wait, AuditReason,
    ),
    request_body(content = Option<ActOnKey>),
    responses(
        (status = 200, description = "The key as it is now", body = Ended<KeyView>),
        (status = 409, description = "`key_revoked`"),
    ),
)]
pub async fn revoke_secret(
    caller: Caller<perm::KeysRevoke>,
    path: web::Path<(String, String)>,
    body: OptionalBody<ActOnKey>,
    reason: AuditReason,
    waiting: Waiting,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let (id, secret) = path.into_inner();
    let by = by(&caller, body.into_inner().reason, reason);
    let at = by.at.clone();
    let key = keys.revoke_secret(by, id, secret).await?;
    Ok(waiting
        .answer(key.version, show(&key, &at, clock.now()))
        .await)
}

/// Ends a secret at an instant, or stretches its overlap
#[utoipa::path(
    patch, path = "/v1/keys/{id}/secrets/{secret}", tag = "keys", operation_id = "update_secret",
    params(
        ("id" = String, Path, description = "Id or external id of the key"),
        ("secret" = String, Path, description = "Id of the secret"),
        IfMatch, AuditReason,
    ),
    request_body = SecretPatch,
    responses(
        (status = 200, description = "The key as it is now", body = KeyView),
        (status = 409, description = "`key_revoked`: the key or the secret is"),
    ),
)]
pub async fn update_secret(
    caller: Caller<perm::KeysWrite>,
    path: web::Path<(String, String)>,
    body: Body<SecretPatch>,
    if_match: IfMatch,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let (id, secret) = path.into_inner();
    let body = body.into_inner();
    let by = by(&caller, body.reason, reason);
    let at = by.at.clone();
    let key = keys
        .update_secret(by, id, secret, body.valid_until, if_match.0)
        .await?;
    Ok(answer(StatusCode::OK, &key, &at, clock.now()))
}

/// Tells secret scanners what our keys look like
#[utoipa::path(
    get, path = "/v1/key-patterns", tag = "keys", operation_id = "list_key_patterns",
    responses((status = 200, description = "Regular expressions", body = KeyPatterns)),
    security(()),
)]
pub async fn list_key_patterns() -> HttpResponse {
    // One pattern for every prefix: which prefixes are in use is nobody's business.
    let items = vec![KeyPattern {
        name: "keystead".to_owned(),
        pattern: any_prefix_pattern(),
    }];
    HttpResponse::Ok()
        .insert_header(("Cache-Control", "public, max-age=3600"))
        .json(KeyPatterns { items })
}

impl KeyListFilter {
    fn resolved(&self) -> crate::keys::service::ListFilter {
        crate::keys::service::ListFilter {
            consumer: self.consumer.clone(),
            service: self.service.clone(),
            filter: KeyFilter {
                lookup_ids: self.lookup_id.clone().map(|id| vec![id]),
                status: self.status,
                tags: self.tag.clone(),
                environment: self.environment.clone(),
                name: self.name.clone(),
                external_id: self.external_id.clone(),
                created_by: self.created_by.clone(),
                expiring_before: self.expiring_before,
                no_expiry: self.no_expiry,
                never_used: self.never_used,
                unused_since: self.unused_since,
                ..KeyFilter::default()
            },
        }
    }
}
