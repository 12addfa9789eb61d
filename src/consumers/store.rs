//! Consumers in SQL.

use std::collections::BTreeSet;

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{Consumer, ConsumerFilter};
use crate::catalogue::Status;
use crate::db::schema::{api_key, consumer, key_grant, service};
use crate::db::{Conn, Error, Result};
use crate::each;
use crate::id::{ConsumerId, KeyId, ServiceId, TenantId};
use crate::metadata::Metadata;
use crate::page::PageRequest;
use crate::rights::{self, Reach};
use crate::scope::Scope;
use crate::text::{ExternalId, Name, Slug, has_control};
use crate::time::Timestamp;

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = consumer, treat_none_as_null = true)]
struct Row {
    id: ConsumerId,
    tenant_id: TenantId,
    slug: Slug,
    external_id: Option<ExternalId>,
    name: Name,
    rate_limits: String,
    quota: Option<String>,
    metadata: String,
    disabled_at: Option<Timestamp>,
    deleted_at: Option<Timestamp>,
    version: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl TryFrom<&Consumer> for Row {
    type Error = Error;

    fn try_from(consumer: &Consumer) -> Result<Self> {
        let quota = consumer.quota.as_ref().map(serde_json::to_string);
        Ok(Self {
            id: consumer.id.clone(),
            tenant_id: consumer.tenant_id.clone(),
            slug: consumer.slug.clone(),
            external_id: consumer.external_id.clone(),
            name: consumer.name.clone(),
            rate_limits: serde_json::to_string(&consumer.rate_limits).map_err(corrupt)?,
            quota: quota.transpose().map_err(corrupt)?,
            metadata: consumer.metadata.to_text(),
            disabled_at: consumer.disabled_at,
            deleted_at: consumer.deleted_at,
            version: consumer.version,
            created_at: consumer.created_at,
            updated_at: consumer.updated_at,
        })
    }
}

impl TryFrom<Row> for Consumer {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        let quota = row.quota.as_deref().map(serde_json::from_str);
        Ok(Self {
            rate_limits: serde_json::from_str(&row.rate_limits).map_err(corrupt)?,
            quota: quota.transpose().map_err(corrupt)?,
            metadata: Metadata::from_stored(&row.metadata)?,
            id: row.id,
            tenant_id: row.tenant_id,
            slug: row.slug,
            external_id: row.external_id,
            name: row.name,
            disabled_at: row.disabled_at,
            deleted_at: row.deleted_at,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
fn corrupt(error: serde_json::Error) -> Error {
    Error::Corrupt(format!("the limits of a consumer: {error}"))
}

pub async fn insert(conn: &mut Conn, consumer: &Consumer) -> Result<()> {
    let row = Row::try_from(consumer)?;
    each!(conn, c => diesel::insert_into(consumer::table).values(&row).execute(c).await)?;
    Ok(())
}

pub async fn update(conn: &mut Conn, consumer: &Consumer) -> Result<()> {
    let row = Row::try_from(consumer)?;
    each!(conn, c => diesel::update(consumer::table.find(&row.id)).set(&row).execute(c).await)?;
    Ok(())
}

/// Also a deleted one.
pub async fn load_by_id(conn: &mut Conn, id: &ConsumerId) -> Result<Option<Consumer>> {
    let row = each!(conn, c => consumer::table.find(id)
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Consumer::try_from).transpose()
}

/// Also a deleted one.
pub async fn load_by_slug(
    conn: &mut Conn,
    tenant: &TenantId,
    slug: &Slug,
) -> Result<Option<Consumer>> {
    let row = each!(conn, c => consumer::table
        .filter(consumer::tenant_id.eq(tenant))
        .filter(consumer::slug.eq(slug))
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Consumer::try_from).transpose()
}

/// A deleted one has none.
pub async fn load_by_external_id(
    conn: &mut Conn,
    tenant: &TenantId,
    external_id: &ExternalId,
) -> Result<Option<Consumer>> {
    let row = each!(conn, c => consumer::table
        .filter(consumer::tenant_id.eq(tenant))
        .filter(consumer::external_id.eq(external_id))
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Consumer::try_from).transpose()
}

/// By id, else by slug, else by external id; also a deleted one. That one hides what another is
/// called by others: to delete twice must not delete two.
pub async fn find(conn: &mut Conn, tenant: &TenantId, reference: &str) -> Result<Option<Consumer>> {
    // PostgreSQL takes no text with a NUL, and nothing is called by one.
    if has_control(reference) {
        return Ok(None);
    }
    let rows: Vec<Row> = each!(conn, c => consumer::table
        .filter(consumer::tenant_id.eq(tenant))
        .filter(
            consumer::id.eq(reference)
                .or(consumer::slug.eq(reference))
                .or(consumer::external_id.eq(reference).assume_not_null()),
        )
        .select(Row::as_select())
        .load(c)
        .await)?;
    let first = rows.into_iter().min_by_key(|row| {
        if row.id.as_str() == reference {
            0
        } else if row.slug.as_str() == reference {
            1
        } else {
            2
        }
    });
    first.map(Consumer::try_from).transpose()
}

/// The services that the consumer's keys have grants on, of keys that are not revoked.
pub async fn granted_services(conn: &mut Conn, id: &ConsumerId) -> Result<Vec<Slug>> {
    Ok(each!(conn, c => key_grant::table
        .inner_join(api_key::table.on(api_key::id.eq(key_grant::key_id)))
        .inner_join(service::table.on(service::id.eq(key_grant::service_id)))
        .filter(api_key::consumer_id.eq(id))
        .filter(api_key::revoked_at.is_null())
        .select(service::slug)
        .distinct()
        .load(c)
        .await)?)
}

/// What the consumer's management keys hold that are not revoked, each scope once. Looked for among the
/// management keys of the tenant: there are fewer of those than a consumer may have keys.
pub async fn management_scopes(conn: &mut Conn, consumer: &Consumer) -> Result<BTreeSet<Scope>> {
    // By itself, so that PostgreSQL knows from its statistics how few grants there are on it.
    let management: ServiceId = each!(&mut *conn, c => service::table
        .filter(service::tenant_id.eq(&consumer.tenant_id))
        .filter(service::slug.eq(rights::SERVICE))
        .select(service::id)
        .first(c)
        .await)?;
    let held: Vec<String> = each!(conn, c => {
        let its_keys = api_key::table
            .filter(api_key::id.eq(key_grant::key_id))
            .filter(api_key::consumer_id.eq(&consumer.id))
            .filter(api_key::revoked_at.is_null());
        key_grant::table
            .filter(key_grant::service_id.eq(&management))
            .filter(exists(its_keys))
            .select(key_grant::scopes)
            .distinct()
            .load(c)
            .await
    })?;
    let mut scopes = BTreeSet::new();
    for list in held {
        let list: Vec<Scope> = serde_json::from_str(&list)
            .map_err(|error| Error::Corrupt(format!("the scopes of a grant: {error}")))?;
        scopes.extend(list);
    }
    Ok(scopes)
}

/// Those not deleted, newest first; with less than all in reach, those whose keys have a grant on a
/// service within it, or no grant yet.
pub async fn page(
    conn: &mut Conn,
    tenant: &TenantId,
    reach: &Reach,
    filter: &ConsumerFilter,
    page: &PageRequest,
) -> Result<Vec<Consumer>> {
    let rows: Vec<Row> = each!(conn, c => {
        let mut query = consumer::table
            .filter(consumer::tenant_id.eq(tenant))
            .filter(consumer::deleted_at.is_null())
            .select(Row::as_select())
            .order((consumer::created_at.desc(), consumer::id.desc()))
            .limit(page.fetch())
            .into_boxed();
        match reach {
            Reach::All => {}
            Reach::Only(slugs) => {
                let grants = key_grant::table
                    .inner_join(api_key::table.on(api_key::id.eq(key_grant::key_id)))
                    .inner_join(service::table.on(service::id.eq(key_grant::service_id)))
                    .filter(api_key::consumer_id.eq(consumer::id))
                    .filter(api_key::revoked_at.is_null());
                let within = grants.filter(service::slug.eq_any(slugs));
                query = query.filter(exists(within).or(not(exists(grants))));
            }
        }
        if let Some(slug) = &filter.slug {
            query = query.filter(consumer::slug.eq(slug));
        }
        if let Some(external_id) = &filter.external_id {
            query = query.filter(consumer::external_id.eq(external_id));
        }
        if let Some(name) = &filter.name {
            query = query.filter(consumer::name.eq(name));
        }
        match filter.status {
            Some(Status::Active) => query = query.filter(consumer::disabled_at.is_null()),
            Some(Status::Disabled) => query = query.filter(consumer::disabled_at.is_not_null()),
            None => {}
        }
        if let Some(after) = &page.after {
            query = query.filter(
                consumer::created_at.lt(after.at)
                    .or(consumer::created_at.eq(after.at).and(consumer::id.lt(&after.id))),
            );
        }
        query.load(c).await
    })?;
    rows.into_iter().map(Consumer::try_from).collect()
}

/// How many keys of the consumer could be used at `now` or later.
pub async fn live_keys(conn: &mut Conn, id: &ConsumerId, now: Timestamp) -> Result<u64> {
    let count: i64 = each!(conn, c => api_key::table
        .filter(api_key::consumer_id.eq(id))
        .filter(api_key::revoked_at.is_null())
        .filter(api_key::expires_at.is_null().or(api_key::expires_at.gt(now)))
        .count()
        .get_result(c)
        .await)?;
    Ok(count.unsigned_abs())
}

/// Revokes the keys that [`live_keys`] counts, and answers which those were.
pub async fn revoke_keys(
    conn: &mut Conn,
    id: &ConsumerId,
    now: Timestamp,
    by: &str,
    reason: Option<&str>,
) -> Result<Vec<KeyId>> {
    Ok(each!(conn, c => diesel::update(
            api_key::table
                .filter(api_key::consumer_id.eq(id))
                .filter(api_key::revoked_at.is_null())
                .filter(api_key::expires_at.is_null().or(api_key::expires_at.gt(now))),
        )
        .set((
            api_key::revoked_at.eq(now),
            api_key::revoked_by.eq(by),
            api_key::reason.eq(reason),
            api_key::version.eq(api_key::version + 1),
            api_key::updated_at.eq(now),
        ))
        .returning(api_key::id)
        .get_results(c)
        .await)?)
}
