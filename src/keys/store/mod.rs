//! Keys in SQL. Functions take the connection and compose in one change.

mod write;

use std::collections::HashMap;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fingerprint::Fingerprint;
use super::key::{ConsumerRef, Grant, Key, KeyStatus, Secret};
use super::secret::LookupId;
use crate::db::schema::{api_key, consumer, key_grant, key_tag, secret, service};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId};
use crate::metadata::Metadata;
use crate::page::{Page, PageRequest, Position};
use crate::text::{Environment, ExternalId, Name, Prefix, Slug, Tag};
use crate::time::Timestamp;

pub use write::{
    NewSecret, Used, disable, insert, insert_secrets, revoke, store_last_used, store_verifier,
    update, update_secret,
};

#[derive(Queryable, Selectable, Insertable, AsChangeset, Clone)]
#[diesel(table_name = api_key)]
#[diesel(treat_none_as_null = true)]
struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    consumer_id: ConsumerId,
    lookup_id: LookupId,
    prefix: Prefix,
    environment: Environment,
    name: Name,
    external_id: Option<ExternalId>,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    rate_limits: String,
    quota: Option<String>,
    allowed_ips: Option<String>,
    metadata: String,
    tags: String,
    disabled_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    revoked_by: Option<String>,
    reason: Option<String>,
    rotated_at: Option<Timestamp>,
    version: i64,
    created_at: Timestamp,
    created_by: String,
    created_by_name: String,
    updated_at: Timestamp,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = key_grant)]
struct GrantRow {
    key_id: KeyId,
    service_id: ServiceId,
    scopes: String,
    rate_limits: Option<String>,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = secret)]
struct SecretRow {
    id: SecretId,
    key_id: KeyId,
    created_at: Timestamp,
    valid_until: Option<Timestamp>,
    superseded_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    last_used_at: Option<Timestamp>,
}

/// Which keys. Every part that is given must match; `tenant` always does.
#[derive(Clone, Debug, Default)]
pub struct KeyFilter {
    pub ids: Option<Vec<KeyId>>,
    pub lookup_ids: Option<Vec<LookupId>>,
    pub consumer: Option<ConsumerId>,
    /// Of any of these.
    pub consumers: Option<Vec<ConsumerId>>,
    pub service: Option<ServiceId>,
    /// Keys that grant on any of these.
    pub services: Option<Vec<ServiceId>>,
    /// Only keys that grant on one of these services: what the caller may see.
    pub visible_services: Option<Vec<ServiceId>>,
    /// Leaves out keys that grant on this service.
    pub without_service: Option<ServiceId>,
    pub status: Option<KeyStatus>,
    pub tags: Vec<Tag>,
    pub environment: Option<Environment>,
    /// Of any of these.
    pub environments: Option<Vec<Environment>>,
    /// Neither revoked nor past its end: what is or may be in use.
    pub is_live: bool,
    /// Not revoked, past its end or not.
    pub is_unrevoked: bool,
    /// Not disabled.
    pub is_enabled: bool,
    pub name: Option<String>,
    pub external_id: Option<String>,
    pub created_by: Option<String>,
    pub expiring_before: Option<Timestamp>,
    pub no_expiry: Option<bool>,
    pub never_used: Option<bool>,
    pub unused_since: Option<Timestamp>,
}

pub(super) fn to_json<T: Serialize>(value: &T) -> db::Result<String> {
    serde_json::to_string(value).map_err(|error| db::Error::Corrupt(error.to_string()))
}

pub(super) fn from_json<T: DeserializeOwned>(column: &str, text: &str) -> db::Result<T> {
    serde_json::from_str(text).map_err(|error| db::Error::Corrupt(format!("{column}: {error}")))
}

impl KeyRow {
    fn from_key(key: &Key) -> db::Result<Self> {
        Ok(Self {
            id: key.id.clone(),
            tenant_id: key.tenant_id.clone(),
            consumer_id: key.consumer.id.clone(),
            lookup_id: key.lookup_id.clone(),
            prefix: key.prefix.clone(),
            environment: key.environment.clone(),
            name: key.name.clone(),
            external_id: key.external_id.clone(),
            not_before: key.not_before,
            expires_at: key.expires_at,
            rate_limits: to_json(&key.rate_limits)?,
            quota: key.quota.as_ref().map(to_json).transpose()?,
            allowed_ips: key.allowed_ips.as_ref().map(to_json).transpose()?,
            metadata: to_json(&key.metadata)?,
            tags: to_json(&key.tags)?,
            disabled_at: key.disabled_at,
            revoked_at: key.revoked_at,
            revoked_by: key.revoked_by.as_ref().map(to_json).transpose()?,
            reason: key.reason.clone(),
            rotated_at: key.rotated_at,
            version: key.version,
            created_at: key.created_at,
            created_by: to_json(&key.created_by)?,
            created_by_name: key.created_by.name(),
            updated_at: key.updated_at,
        })
    }

    fn into_key(
        self,
        consumer: ConsumerRef,
        last_used_at: Option<Timestamp>,
        grants: Vec<Grant>,
        secrets: Vec<Secret>,
    ) -> db::Result<Key> {
        Ok(Key {
            consumer,
            rate_limits: from_json("rate_limits", &self.rate_limits)?,
            quota: self
                .quota
                .as_deref()
                .map(|q| from_json("quota", q))
                .transpose()?,
            allowed_ips: self
                .allowed_ips
                .as_deref()
                .map(|ips| from_json("allowed_ips", ips))
                .transpose()?,
            metadata: Metadata::from_stored(&self.metadata)?,
            tags: from_json("tags", &self.tags)?,
            revoked_by: self
                .revoked_by
                .as_deref()
                .map(|actor| from_json("revoked_by", actor))
                .transpose()?,
            created_by: from_json("created_by", &self.created_by)?,
            id: self.id,
            tenant_id: self.tenant_id,
            lookup_id: self.lookup_id,
            prefix: self.prefix,
            environment: self.environment,
            name: self.name,
            external_id: self.external_id,
            not_before: self.not_before,
            expires_at: self.expires_at,
            disabled_at: self.disabled_at,
            revoked_at: self.revoked_at,
            reason: self.reason,
            rotated_at: self.rotated_at,
            last_used_at,
            version: self.version,
            created_at: self.created_at,
            updated_at: self.updated_at,
            grants,
            secrets,
        })
    }
}

/// Finds one key by id or, failing that, by external id.
pub async fn find(conn: &mut Conn, tenant: &TenantId, reference: &str) -> db::Result<Option<Key>> {
    let row = match KeyId::parse(reference) {
        Some(id) => each!(conn, c => api_key::table
            .filter(api_key::tenant_id.eq(tenant))
            .filter(api_key::id.eq(&id))
            .select((KeyRow::as_select(), api_key::last_used_at))
            .first(c)
            .await
            .optional())?,
        None => each!(conn, c => api_key::table
            .filter(api_key::tenant_id.eq(tenant))
            .filter(api_key::external_id.eq(reference))
            .select((KeyRow::as_select(), api_key::last_used_at))
            .first(c)
            .await
            .optional())?,
    };
    Ok(complete(conn, row.into_iter().collect()).await?.pop())
}

/// Which keys hold these external ids, of a thousand at most.
pub async fn by_external_ids(
    conn: &mut Conn,
    tenant: &TenantId,
    external_ids: &[&ExternalId],
) -> db::Result<HashMap<ExternalId, KeyId>> {
    if external_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(Option<ExternalId>, KeyId)> = each!(conn, c => api_key::table
        .filter(api_key::tenant_id.eq(tenant))
        .filter(api_key::external_id.eq_any(external_ids))
        .select((api_key::external_id, api_key::id))
        .load(c)
        .await)?;
    let held = rows.into_iter().filter_map(|(held, id)| Some((held?, id)));
    Ok(held.collect())
}

/// The keys with a grant of which this holds.
macro_rules! granting {
    ($holds:expr) => {
        key_grant::table.filter($holds).select(key_grant::key_id)
    };
}

/// The boxed query of a filter; a macro, because its type differs by database.
macro_rules! filtered {
    ($tenant:expr, $filter:expr, $now:expr) => {{
        let (tenant, filter, now): (&TenantId, &KeyFilter, Timestamp) = ($tenant, $filter, $now);
        let mut query = api_key::table
            .filter(api_key::tenant_id.eq(tenant))
            .into_boxed();
        if let Some(ids) = &filter.ids {
            query = query.filter(api_key::id.eq_any(ids));
        }
        if let Some(lookup_ids) = &filter.lookup_ids {
            query = query.filter(api_key::lookup_id.eq_any(lookup_ids));
        }
        if let Some(consumer) = &filter.consumer {
            query = query.filter(api_key::consumer_id.eq(consumer));
        }
        if let Some(consumers) = &filter.consumers {
            query = query.filter(api_key::consumer_id.eq_any(consumers));
        }
        if let Some(services) = &filter.services {
            query =
                query.filter(api_key::id.eq_any(granting!(key_grant::service_id.eq_any(services))));
        }
        if let Some(environments) = &filter.environments {
            query = query.filter(api_key::environment.eq_any(environments));
        }
        if filter.is_live {
            query = query.filter(api_key::revoked_at.is_null()).filter(
                api_key::expires_at
                    .is_null()
                    .or(api_key::expires_at.gt(now)),
            );
        }
        if filter.is_unrevoked {
            query = query.filter(api_key::revoked_at.is_null());
        }
        if filter.is_enabled {
            query = query.filter(api_key::disabled_at.is_null());
        }
        if let Some(service) = &filter.service {
            query = query.filter(api_key::id.eq_any(granting!(key_grant::service_id.eq(service))));
        }
        if let Some(visible) = &filter.visible_services {
            query =
                query.filter(api_key::id.eq_any(granting!(key_grant::service_id.eq_any(visible))));
        }
        if let Some(service) = &filter.without_service {
            query = query.filter(api_key::id.ne_all(granting!(key_grant::service_id.eq(service))));
        }
        for tag in &filter.tags {
            query = query.filter(
                api_key::id.eq_any(
                    key_tag::table
                        .filter(key_tag::tag.eq(tag))
                        .select(key_tag::key_id),
                ),
            );
        }
        if let Some(environment) = &filter.environment {
            query = query.filter(api_key::environment.eq(environment));
        }
        if let Some(name) = &filter.name {
            query = query.filter(api_key::name.eq(name));
        }
        if let Some(external_id) = &filter.external_id {
            query = query.filter(api_key::external_id.eq(external_id));
        }
        if let Some(created_by) = &filter.created_by {
            query = query.filter(api_key::created_by_name.eq(created_by));
        }
        if let Some(before) = filter.expiring_before {
            query = query.filter(api_key::expires_at.lt(before));
        }
        match filter.no_expiry {
            Some(true) => query = query.filter(api_key::expires_at.is_null()),
            Some(false) => query = query.filter(api_key::expires_at.is_not_null()),
            None => {}
        }
        match filter.never_used {
            Some(true) => query = query.filter(api_key::last_used_at.is_null()),
            Some(false) => query = query.filter(api_key::last_used_at.is_not_null()),
            None => {}
        }
        if let Some(since) = filter.unused_since {
            query = query.filter(
                api_key::last_used_at
                    .is_null()
                    .or(api_key::last_used_at.lt(since)),
            );
        }
        if let Some(status) = filter.status {
            query = match status {
                KeyStatus::Revoked => query.filter(api_key::revoked_at.is_not_null()),
                KeyStatus::Disabled => query
                    .filter(api_key::revoked_at.is_null())
                    .filter(api_key::disabled_at.is_not_null()),
                KeyStatus::Expired => query
                    .filter(api_key::revoked_at.is_null())
                    .filter(api_key::disabled_at.is_null())
                    .filter(api_key::expires_at.le(now)),
                KeyStatus::NotYetValid => query
                    .filter(api_key::revoked_at.is_null())
                    .filter(api_key::disabled_at.is_null())
                    .filter(
                        api_key::expires_at
                            .is_null()
                            .or(api_key::expires_at.gt(now)),
                    )
                    .filter(api_key::not_before.gt(now)),
                KeyStatus::Active => query
                    .filter(api_key::revoked_at.is_null())
                    .filter(api_key::disabled_at.is_null())
                    .filter(
                        api_key::expires_at
                            .is_null()
                            .or(api_key::expires_at.gt(now)),
                    )
                    .filter(
                        api_key::not_before
                            .is_null()
                            .or(api_key::not_before.le(now)),
                    ),
            };
        }
        query
    }};
}

/// A page of keys, newest first.
pub async fn list(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &KeyFilter,
    page: &PageRequest,
    now: Timestamp,
) -> db::Result<Page<Key>> {
    let rows: Vec<(KeyRow, Option<Timestamp>)> = each!(conn, c => {
        let mut query = filtered!(tenant, filter, now);
        if let Some(after) = &page.after {
            query = query.filter(
                api_key::created_at
                    .lt(after.at)
                    .or(api_key::created_at.eq(after.at).and(api_key::id.lt(&after.id))),
            );
        }
        query
            .order((api_key::created_at.desc(), api_key::id.desc()))
            .limit(page.fetch())
            .select((KeyRow::as_select(), api_key::last_used_at))
            .load(c)
            .await
    })?;
    let page = page.page(rows, |(row, _)| Position {
        at: row.created_at,
        id: row.id.to_string(),
    });
    Ok(Page {
        items: complete(conn, page.items).await?,
        next: page.next,
    })
}

/// Every key that matches, oldest first, at most `limit`.
pub async fn matching(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &KeyFilter,
    limit: i64,
    now: Timestamp,
) -> db::Result<Vec<Key>> {
    let rows: Vec<(KeyRow, Option<Timestamp>)> = each!(conn, c => filtered!(tenant, filter, now)
        .order((api_key::created_at.asc(), api_key::id.asc()))
        .limit(limit)
        .select((KeyRow::as_select(), api_key::last_used_at))
        .load(c)
        .await)?;
    complete(conn, rows).await
}

/// The keys that match, by their ids, behind `after`, at most `limit`.
pub async fn matching_after(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &KeyFilter,
    after: Option<&KeyId>,
    limit: i64,
    now: Timestamp,
) -> db::Result<Vec<Key>> {
    let rows: Vec<(KeyRow, Option<Timestamp>)> = each!(&mut *conn, c => {
        let mut query = filtered!(tenant, filter, now);
        if let Some(after) = after {
            query = query.filter(api_key::id.gt(after));
        }
        query
            .order(api_key::id.asc())
            .limit(limit)
            .select((KeyRow::as_select(), api_key::last_used_at))
            .load(c)
            .await
    })?;
    complete(conn, rows).await
}

/// How many keys match.
pub async fn count(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: &KeyFilter,
    now: Timestamp,
) -> db::Result<i64> {
    Ok(each!(conn, c => filtered!(tenant, filter, now).count().get_result(c).await)?)
}

/// A fingerprint's owner: key and secret.
pub async fn by_fingerprints(
    conn: &mut Conn,
    tenant: &TenantId,
    fingerprints: &[Fingerprint],
) -> db::Result<HashMap<Fingerprint, (KeyId, SecretId)>> {
    let rows: Vec<(Option<Fingerprint>, KeyId, SecretId)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(api_key::tenant_id.eq(tenant))
        .filter(secret::fingerprint.eq_any(fingerprints))
        .select((secret::fingerprint, secret::key_id, secret::id))
        .load(c)
        .await)?;
    Ok(rows
        .into_iter()
        .filter_map(|(fingerprint, key, secret)| fingerprint.map(|f| (f, (key, secret))))
        .collect())
}

/// Joins rows with their consumers, grants and secrets, in two bounded queries more.
async fn complete(conn: &mut Conn, rows: Vec<(KeyRow, Option<Timestamp>)>) -> db::Result<Vec<Key>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&KeyId> = rows.iter().map(|(row, _)| &row.id).collect();
    let mut consumers: HashMap<ConsumerId, Slug> = HashMap::new();
    let mut grants: HashMap<KeyId, Vec<Grant>> = HashMap::new();
    let mut secrets: HashMap<KeyId, Vec<Secret>> = HashMap::new();
    // SQLite takes 32,766 values a statement; pages of a thousand stay far below.
    for ids in ids.chunks(1000) {
        let grant_rows: Vec<(GrantRow, Slug)> = each!(conn, c => key_grant::table
            .inner_join(service::table.on(service::id.eq(key_grant::service_id)))
            .filter(key_grant::key_id.eq_any(ids.iter().copied()))
            .order((key_grant::key_id, key_grant::position))
            .select((GrantRow::as_select(), service::slug))
            .load(c)
            .await)?;
        for (row, slug) in grant_rows {
            grants.entry(row.key_id).or_default().push(Grant {
                service_id: row.service_id,
                service: slug,
                scopes: from_json("scopes", &row.scopes)?,
                rate_limits: row
                    .rate_limits
                    .as_deref()
                    .map(|limits| from_json("rate_limits", limits))
                    .transpose()?,
            });
        }
        let secret_rows: Vec<SecretRow> = each!(conn, c => secret::table
            .filter(secret::key_id.eq_any(ids.iter().copied()))
            .order((secret::created_at.desc(), secret::id.desc()))
            .select(SecretRow::as_select())
            .load(c)
            .await)?;
        for row in secret_rows {
            secrets.entry(row.key_id).or_default().push(Secret {
                id: row.id,
                created_at: row.created_at,
                valid_until: row.valid_until,
                superseded_at: row.superseded_at,
                revoked_at: row.revoked_at,
                last_used_at: row.last_used_at,
            });
        }
    }
    let mut consumer_ids: Vec<&ConsumerId> = rows.iter().map(|(row, _)| &row.consumer_id).collect();
    consumer_ids.sort_unstable();
    consumer_ids.dedup();
    for ids in consumer_ids.chunks(1000) {
        let found: Vec<(ConsumerId, Slug)> = each!(conn, c => consumer::table
            .filter(consumer::id.eq_any(ids.iter().copied()))
            .select((consumer::id, consumer::slug))
            .load(c)
            .await)?;
        consumers.extend(found);
    }
    rows.into_iter()
        .map(|(row, last_used_at)| {
            let slug = consumers.get(&row.consumer_id).cloned().ok_or_else(|| {
                db::Error::Corrupt(format!("the consumer of the key {} is gone", row.id))
            })?;
            let consumer = ConsumerRef {
                id: row.consumer_id.clone(),
                slug,
            };
            let grants = grants.remove(&row.id).unwrap_or_default();
            let secrets = secrets.remove(&row.id).unwrap_or_default();
            row.into_key(consumer, last_used_at, grants, secrets)
        })
        .collect()
}
