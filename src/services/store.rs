//! Services in SQL.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::settings::UsageSettings;
use super::{Service, ServiceFilter, ServiceSettings};
use crate::catalogue::Status;
use crate::db::schema::{api_key, consumer, key_grant, service};
use crate::db::{Conn, Error, Result};
use crate::each;
use crate::id::{ServiceId, TenantId};
use crate::metadata::Metadata;
use crate::page::PageRequest;
use crate::rights::Reach;
use crate::text::{Description, Name, Slug, has_control};
use crate::time::Timestamp;

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = service, treat_none_as_null = true)]
struct Row {
    id: ServiceId,
    tenant_id: TenantId,
    slug: Slug,
    name: Name,
    description: Description,
    settings: String,
    metadata: String,
    disabled_at: Option<Timestamp>,
    deleted_at: Option<Timestamp>,
    version: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl TryFrom<&Service> for Row {
    type Error = Error;

    fn try_from(service: &Service) -> Result<Self> {
        Ok(Self {
            id: service.id.clone(),
            tenant_id: service.tenant_id.clone(),
            slug: service.slug.clone(),
            name: service.name.clone(),
            description: service.description.clone(),
            settings: serde_json::to_string(&service.settings).map_err(corrupt)?,
            metadata: service.metadata.to_text(),
            disabled_at: service.disabled_at,
            deleted_at: service.deleted_at,
            version: service.version,
            created_at: service.created_at,
            updated_at: service.updated_at,
        })
    }
}

impl TryFrom<Row> for Service {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            settings: serde_json::from_str(&row.settings).map_err(corrupt)?,
            metadata: Metadata::from_stored(&row.metadata)?,
            id: row.id,
            tenant_id: row.tenant_id,
            slug: row.slug,
            name: row.name,
            description: row.description,
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
    Error::Corrupt(format!("the settings of a service: {error}"))
}

pub async fn insert(conn: &mut Conn, service: &Service) -> Result<()> {
    let row = Row::try_from(service)?;
    each!(conn, c => diesel::insert_into(service::table).values(&row).execute(c).await)?;
    Ok(())
}

pub async fn update(conn: &mut Conn, service: &Service) -> Result<()> {
    let row = Row::try_from(service)?;
    each!(conn, c => diesel::update(service::table.find(&row.id)).set(&row).execute(c).await)?;
    Ok(())
}

/// What each service keeps of its uses, where that is not everything.
pub async fn usage_settings(conn: &mut Conn) -> Result<Vec<(TenantId, Slug, UsageSettings)>> {
    let rows: Vec<(TenantId, Slug, String)> = each!(conn, c => service::table
        .filter(service::settings.like("%\"usage\":{\"events\":\"%"))
        .select((service::tenant_id, service::slug, service::settings))
        .load(c)
        .await)?;
    let mut kept = Vec::new();
    for (tenant, slug, settings) in rows {
        let settings: ServiceSettings = serde_json::from_str(&settings).map_err(corrupt)?;
        if settings.usage != UsageSettings::default() {
            kept.push((tenant, slug, settings.usage));
        }
    }
    Ok(kept)
}

/// Also a deleted one.
pub async fn load_by_id(conn: &mut Conn, id: &ServiceId) -> Result<Option<Service>> {
    let row = each!(conn, c => service::table.find(id)
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Service::try_from).transpose()
}

/// Also a deleted one.
pub async fn load_by_slug(
    conn: &mut Conn,
    tenant: &TenantId,
    slug: &Slug,
) -> Result<Option<Service>> {
    find(conn, tenant, slug.as_str()).await
}

/// By id or slug; also a deleted one. A slug never looks like an id.
pub async fn find(conn: &mut Conn, tenant: &TenantId, reference: &str) -> Result<Option<Service>> {
    // PostgreSQL takes no text with a NUL, and nothing is called by one.
    if has_control(reference) {
        return Ok(None);
    }
    let row = each!(conn, c => service::table
        .filter(service::tenant_id.eq(tenant))
        .filter(service::id.eq(reference).or(service::slug.eq(reference)))
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Service::try_from).transpose()
}

/// Those not deleted and within reach, newest first.
pub async fn page(
    conn: &mut Conn,
    tenant: &TenantId,
    reach: &Reach,
    filter: &ServiceFilter,
    page: &PageRequest,
) -> Result<Vec<Service>> {
    let rows: Vec<Row> = each!(conn, c => {
        let mut query = service::table
            .filter(service::tenant_id.eq(tenant))
            .filter(service::deleted_at.is_null())
            .select(Row::as_select())
            .order((service::created_at.desc(), service::id.desc()))
            .limit(page.fetch())
            .into_boxed();
        match reach {
            Reach::All => {}
            Reach::Only(slugs) => query = query.filter(service::slug.eq_any(slugs)),
        }
        if let Some(slug) = &filter.slug {
            query = query.filter(service::slug.eq(slug));
        }
        match filter.status {
            Some(Status::Active) => query = query.filter(service::disabled_at.is_null()),
            Some(Status::Disabled) => query = query.filter(service::disabled_at.is_not_null()),
            None => {}
        }
        if let Some(after) = &page.after {
            query = query.filter(
                service::created_at.lt(after.at)
                    .or(service::created_at.eq(after.at).and(service::id.lt(&after.id))),
            );
        }
        query.load(c).await
    })?;
    rows.into_iter().map(Service::try_from).collect()
}

/// How many keys with a grant on the service could be used at `now` or later.
pub async fn live_keys(conn: &mut Conn, id: &ServiceId, now: Timestamp) -> Result<u64> {
    let count: i64 = each!(conn, c => key_grant::table
        .inner_join(api_key::table.on(api_key::id.eq(key_grant::key_id)))
        .inner_join(consumer::table.on(consumer::id.eq(api_key::consumer_id)))
        .filter(key_grant::service_id.eq(id))
        .filter(api_key::revoked_at.is_null())
        .filter(api_key::expires_at.is_null().or(api_key::expires_at.gt(now)))
        .filter(consumer::deleted_at.is_null())
        .count()
        .get_result(c)
        .await)?;
    Ok(count.unsigned_abs())
}
