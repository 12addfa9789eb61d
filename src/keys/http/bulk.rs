//! Many keys at once: issue, find after a leak, end all that match.

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{KeyWithPlaintext, by, claim, show};
use crate::auth::http::{Caller, perm};
use crate::clock::Clock;
use crate::http::extract::{AuditReason, BulkBody, IdempotencyKey};
use crate::http::problem::Problem;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::idempotency::Idempotent;
use crate::keys::bulk::{EndKeys, Found};
use crate::keys::issue::NewKey;
use crate::keys::key::KeyView;
use crate::keys::secret::{LookupId, RevealedKey, UnparsedKey};
use crate::keys::service::Keys;

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
    /// Of these, those that were not ended before; of a dry run, those that would change.
    pub changed: u64,
    /// Of a dry run, the first 200 that would change.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub items: Option<Vec<KeyView>>,
}

/// Issues up to 1000 keys, all or none
#[utoipa::path(
    post, path = "/v1/keys/batch", tag = "keys", operation_id = "issue_keys",
    request_body = NewKeys,
    params(IdempotencyKey, AuditReason),
    responses(
        (status = 201, description = "The keys and their plaintexts", body = KeysWithPlaintext),
        (status = 409, description = "`external_id_taken`: `errors` has the keys, and `existing_id` names who has the first; `in_progress`: the first request with this key still runs"),
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
/// First with `dry_run`, then with `expected`, what it told as `matched`. Keys that were ended before match
/// and do not change.
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
