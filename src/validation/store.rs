//! What a validation reads, as snapshots.

use std::sync::OnceLock;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::last_used::LastNoted;
use super::snapshot::{
    Counted, GrantSnapshot, KeySnapshot, KeyTold, SecretSnapshot, SecretTold, counted_quota,
    members,
};
use crate::db::schema::{api_key, key_grant, revoked_token, secret};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId, TokenId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::secret::LookupId;
use crate::limits::RateLimits;
use crate::metadata::Metadata;
use crate::ratelimit::CounterId;
use crate::text::{Environment, Name, Tag};
use crate::time::Timestamp;

#[derive(Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = api_key)]
struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    consumer_id: ConsumerId,
    environment: Environment,
    name: Name,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    disabled_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    allowed_ips: Option<String>,
    rate_limits: String,
    quota: Option<String>,
    metadata: String,
    tags: String,
}

#[derive(Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = secret)]
struct SecretRow {
    id: SecretId,
    valid_until: Option<Timestamp>,
    superseded_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

#[derive(Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = key_grant)]
struct GrantRow {
    service_id: ServiceId,
    scopes: String,
    rate_limits: Option<String>,
}

/// The rows of a key and of one of its secrets.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRows {
    key: KeyRow,
    secret: SecretRow,
    grants: Vec<GrantRow>,
}

impl KeyRows {
    pub fn secret_id(&self) -> &SecretId {
        &self.secret.id
    }
}

/// A secret whose proof is its verifier alone.
pub struct Unproven {
    pub secret: SecretId,
    /// The version its fingerprint is under, if it has one.
    pub pepper_version: Option<i32>,
    pub verifier: String,
}

/// A key found by its fingerprint, and how it was found.
pub struct Hit {
    pub rows: KeyRows,
    /// The pepper version of the fingerprint that is stored.
    pub pepper_version: Option<i32>,
    /// Whether the secret still waits for its verifier.
    pub verifier_missing: bool,
}

fn parse<T: DeserializeOwned>(column: &str, text: &str) -> db::Result<T> {
    serde_json::from_str(text).map_err(|error| db::Error::Corrupt(format!("{column}: {error}")))
}

/// Finds the key of a plaintext by its fingerprints.
pub async fn by_fingerprint(
    conn: &mut Conn,
    fingerprints: &[Fingerprint],
) -> db::Result<Option<Hit>> {
    let row: Option<(SecretRow, Option<i32>, Option<String>, KeyRow)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(secret::fingerprint.eq_any(fingerprints))
        .select((
            SecretRow::as_select(),
            secret::pepper_version,
            secret::verifier,
            KeyRow::as_select(),
        ))
        .first(c)
        .await
        .optional())?;
    let Some((secret, pepper_version, verifier, key)) = row else {
        return Ok(None);
    };
    Ok(Some(Hit {
        rows: complete(conn, key, secret).await?,
        pepper_version,
        verifier_missing: verifier.is_none(),
    }))
}

/// Whether a token was revoked by itself.
pub async fn is_revoked(conn: &mut Conn, id: &TokenId) -> db::Result<bool> {
    Ok(each!(conn, c => diesel::select(diesel::dsl::exists(
            revoked_token::table.filter(revoked_token::id.eq(id)),
        ))
        .get_result(c)
        .await)?)
}

/// Finds the key of a secret that was proven otherwise: by its verifier, or by a token.
pub async fn by_secret(conn: &mut Conn, id: &SecretId) -> db::Result<Option<KeyRows>> {
    let row: Option<(SecretRow, KeyRow)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(secret::id.eq(id))
        .select((SecretRow::as_select(), KeyRow::as_select()))
        .first(c)
        .await
        .optional())?;
    match row {
        Some((secret, key)) => Ok(Some(complete(conn, key, secret).await?)),
        None => Ok(None),
    }
}

/// The secrets of a lookup id whose fingerprint we cannot compute: under a lost pepper, or none.
pub async fn unproven(
    conn: &mut Conn,
    lookup_id: &LookupId,
    computable: &[i32],
) -> db::Result<Vec<Unproven>> {
    let rows: Vec<(SecretId, Option<i32>, Option<String>)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(api_key::lookup_id.eq(lookup_id))
        .filter(
            secret::pepper_version.is_null().or(secret::pepper_version.ne_all(computable)),
        )
        .order(secret::created_at.desc())
        .limit(8)
        .select((secret::id, secret::pepper_version, secret::verifier))
        .load(c)
        .await)?;
    Ok(rows
        .into_iter()
        .filter_map(|(secret, pepper_version, verifier)| {
            verifier.map(|verifier| Unproven {
                secret,
                pepper_version,
                verifier,
            })
        })
        .collect())
}

/// Finds a key by id for `explain`, as its newest secret would prove it.
pub async fn by_key(conn: &mut Conn, tenant: &TenantId, id: &KeyId) -> db::Result<Option<KeyRows>> {
    let row: Option<(SecretRow, KeyRow)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(api_key::tenant_id.eq(tenant))
        .filter(api_key::id.eq(id))
        .order((secret::created_at.desc(), secret::id.desc()))
        .select((SecretRow::as_select(), KeyRow::as_select()))
        .first(c)
        .await
        .optional())?;
    match row {
        Some((secret, key)) => Ok(Some(complete(conn, key, secret).await?)),
        None => Ok(None),
    }
}

async fn complete(conn: &mut Conn, key: KeyRow, secret: SecretRow) -> db::Result<KeyRows> {
    let grants = each!(conn, c => key_grant::table
        .filter(key_grant::key_id.eq(&key.id))
        .order(key_grant::position)
        .select(GrantRow::as_select())
        .load(c)
        .await)?;
    Ok(KeyRows {
        key,
        secret,
        grants,
    })
}

impl TryFrom<KeyRows> for KeySnapshot {
    type Error = db::Error;

    fn try_from(rows: KeyRows) -> db::Result<Self> {
        let KeyRows {
            key,
            secret,
            grants,
        } = rows;
        let grants = grants
            .into_iter()
            .map(|row| {
                let limits: Option<RateLimits> = row
                    .rate_limits
                    .as_deref()
                    .map(|limits| parse("rate_limits", limits))
                    .transpose()?;
                let (owner, service) = (key.id.as_str(), row.service_id.as_str());
                Ok(GrantSnapshot {
                    scopes: parse("scopes", &row.scopes)?,
                    limits: Counted::all(owner, service, limits.unwrap_or_default()),
                    defaults: CounterId::new(owner, "default", service),
                    service_id: row.service_id,
                })
            })
            .collect::<db::Result<_>>()?;
        let metadata = Metadata::from_stored(&key.metadata)?;
        let tags: Vec<Tag> = parse("tags", &key.tags)?;
        let told = KeyTold {
            name: &key.name,
            environment: &key.environment,
            metadata: &metadata,
            tags: &tags,
            expires_at: key.expires_at,
            secret: SecretTold {
                id: &secret.id,
                superseded: secret.superseded_at.is_some(),
                valid_until: secret.valid_until,
            },
        };
        let told = members(&told)
            .map_err(|error| db::Error::Corrupt(format!("the key {}: {error}", key.id)))?;
        Ok(Self {
            told,
            rights: OnceLock::new(),
            last_noted: LastNoted::default(),
            limits: Counted::all(
                key.id.as_str(),
                "limit",
                parse("rate_limits", &key.rate_limits)?,
            ),
            quota: counted_quota(
                key.id.as_str(),
                key.quota
                    .as_deref()
                    .map(|quota| parse("quota", quota))
                    .transpose()?,
            ),
            allowed_ips: key
                .allowed_ips
                .as_deref()
                .map(|ips| parse("allowed_ips", ips))
                .transpose()?,
            key_id: key.id,
            tenant_id: key.tenant_id,
            consumer_id: key.consumer_id,
            environment: key.environment,
            not_before: key.not_before,
            expires_at: key.expires_at,
            disabled: key.disabled_at.is_some(),
            revoked: key.revoked_at.is_some(),
            grants,
            secret: SecretSnapshot {
                id: secret.id,
                valid_until: secret.valid_until,
                superseded: secret.superseded_at.is_some(),
                revoked: secret.revoked_at.is_some(),
            },
        })
    }
}
