//! The keys API: issue and care, rotation, ending, bulk, and the holder's own affairs.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::bulk::{EndKeys, Found};
use super::issue::{KeyPatch, NewKey};
use super::key::{Key, KeyStatus, KeyView};
use super::secret::{LookupId, RevealedKey, UnparsedKey, any_prefix_pattern};
use super::service::{By, Issued, Keys, Rotation};
use super::store::KeyFilter;
use crate::audit::Attribution;
use crate::auth::CallerIdentity;
use crate::auth::http::{Caller, Holder, perm};
use crate::clock::Clock;
use crate::http::extract::{
    AuditReason, Body, BulkBody, IdempotencyKey, IfMatch, OptionalBody, etag,
};
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::idempotency::{Claim, Idempotent};
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

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKeys {
    #[schema(min_items = 1, max_items = 1000)]
    pub items: Vec<NewKey>,
}

#[derive(Serialize, ToSchema)]
pub struct KeysWithPlaintext {
    /// In the order of the request.
    pub items: Vec<KeyWithPlaintext>,
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

/// Which keys a leak may belong to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"lookup_ids": ["4hT0aZq81xPd"]}))]
pub struct FindKeys {
    #[schema(min_items = 1, max_items = 1000)]
    pub api_keys: Option<Vec<UnparsedKey>>,
    #[schema(min_items = 1, max_items = 1000)]
    pub lookup_ids: Option<Vec<LookupId>>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct FoundKeys {
    /// In the order of the request; `null` for what is not known here.
    pub items: Vec<Option<Found>>,
}

/// How many keys matched, and what was done.
#[derive(Serialize, ToSchema)]
pub struct EndedKeys {
    pub matched: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub changed: Option<u64>,
    /// Of a dry run, the first 200.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub items: Option<Vec<KeyView>>,
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

/// The answer of what ends a key or a part of it.
async fn answer_ended(
    key: &Key,
    at: &Attribution,
    now: Timestamp,
    waiting: &Waiting,
) -> HttpResponse {
    let ended = waiting.until_known(show(key, at, now)).await;
    HttpResponse::Ok()
        .insert_header(etag(key.version))
        .json(ended)
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

/// Issues up to 1000 keys, all or none
#[utoipa::path(
    post, path = "/v1/keys/batch", tag = "keys", operation_id = "issue_keys",
    request_body = NewKeys,
    params(IdempotencyKey, AuditReason),
    responses(
        (status = 201, description = "The keys and their plaintexts", body = KeysWithPlaintext),
        (status = 409, description = "`external_id_taken` with `existing_id`; `in_progress`: the first request with this key still runs"),
    ),
)]
pub async fn issue_keys(
    caller: Caller<perm::KeysWrite>,
    body: BulkBody<NewKeys>,
    idempotency: IdempotencyKey,
    reason: AuditReason,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let hash = body.sha256();
    let by = by(&caller, None, reason);
    let at = by.at.clone();
    let claim = claim(&at, ("POST", "/v1/keys/batch"), idempotency, hash);
    let made = keys.issue_batch(by, body.into_inner().items, claim).await?;
    let now = clock.now();
    let mut response = HttpResponse::Created();
    let items = match made {
        Idempotent::Fresh(issued) => issued
            .into_iter()
            .map(|one| KeyWithPlaintext {
                key: show(&one.key, &at, now),
                api_key: Some(RevealedKey(one.api_key)),
            })
            .collect(),
        Idempotent::Replayed(keys) => {
            response.insert_header(("Idempotency-Replayed", "true"));
            keys.iter()
                .map(|key| KeyWithPlaintext {
                    key: show(key, &at, now),
                    api_key: None,
                })
                .collect()
        }
    };
    Ok(response.json(KeysWithPlaintext { items }))
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
    Ok(answer_ended(&key, &at, clock.now(), &waiting).await)
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
    Ok(answer_ended(&key, &at, clock.now(), &waiting).await)
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
    Ok(answer_ended(&key, &at, clock.now(), &waiting).await)
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

/// Tells which keys plaintexts or lookup ids belong to
///
/// For a leak at three in the morning. The values are never logged.
#[utoipa::path(
    post, path = "/v1/keys/find", tag = "keys", operation_id = "find_keys",
    request_body = FindKeys,
    responses((status = 200, description = "Key, secret and state, in order", body = FoundKeys)),
)]
pub async fn find_keys(
    caller: Caller<perm::KeysRead>,
    body: BulkBody<FindKeys>,
    keys: web::Data<Keys>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let by = by(&caller, None, AuditReason(None));
    let items = keys.find(&by, body.api_keys, body.lookup_ids).await?;
    Ok(HttpResponse::Ok().json(FoundKeys { items }))
}

/// Revokes or disables every key that matches
///
/// First with `dry_run`, then with `expected`, the count that it told.
#[utoipa::path(
    post, path = "/v1/keys/revoke", tag = "keys", operation_id = "revoke_keys",
    request_body = EndKeys,
    params(Wait, AuditReason),
    responses(
        (status = 200, description = "How many matched and changed", body = Ended<EndedKeys>),
        (status = 409, description = "`count_changed`: as many match now as `count` says"),
    ),
)]
pub async fn revoke_keys(
    caller: Caller<perm::KeysRevoke>,
    body: BulkBody<EndKeys>,
    reason: AuditReason,
    waiting: Waiting,
    keys: web::Data<Keys>,
    clock: web::Data<Clock>,
) -> Result<HttpResponse, Problem> {
    let mut asked = body.into_inner();
    let by = by(&caller, asked.reason.take(), reason);
    let at = by.at.clone();
    let dry_run = asked.dry_run;
    let ended = keys.end_matching(by, asked).await?;
    let now = clock.now();
    let ended = EndedKeys {
        matched: ended.matched,
        changed: ended.changed,
        items: dry_run.then(|| ended.sample.iter().map(|key| show(key, &at, now)).collect()),
    };
    Ok(HttpResponse::Ok().json(waiting.until_known(ended).await))
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
    Ok(answer_ended(&key, &at, clock.now(), &waiting).await)
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

/// How a holder rotates: its life is not its own to stretch.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"overlap": "1h"}))]
pub struct RotateSelf {
    pub overlap: Option<Span>,
    pub reason: Option<Reason>,
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
    fn resolved(&self) -> super::service::ListFilter {
        super::service::ListFilter {
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
