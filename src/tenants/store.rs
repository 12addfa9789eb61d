//! Tenants in SQL.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{Tenant, TenantFilter};
use crate::catalogue::Status;
use crate::db::schema::{api_key, consumer, tenant};
use crate::db::{Conn, Error, Result};
use crate::each;
use crate::id::TenantId;
use crate::metadata::Metadata;
use crate::page::PageRequest;
use crate::text::{Name, Slug, has_control};
use crate::time::Timestamp;

#[derive(Queryable, Selectable, Insertable, AsChangeset)]
#[diesel(table_name = tenant, treat_none_as_null = true)]
struct Row {
    id: TenantId,
    slug: Slug,
    name: Name,
    metadata: String,
    disabled_at: Option<Timestamp>,
    deleted_at: Option<Timestamp>,
    version: i64,
    created_at: Timestamp,
    updated_at: Timestamp,
}

impl From<&Tenant> for Row {
    fn from(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.clone(),
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            metadata: tenant.metadata.to_text(),
            disabled_at: tenant.disabled_at,
            deleted_at: tenant.deleted_at,
            version: tenant.version,
            created_at: tenant.created_at,
            updated_at: tenant.updated_at,
        }
    }
}

impl TryFrom<Row> for Tenant {
    type Error = Error;

    fn try_from(row: Row) -> Result<Self> {
        Ok(Self {
            metadata: Metadata::from_stored(&row.metadata)?,
            id: row.id,
            slug: row.slug,
            name: row.name,
            disabled_at: row.disabled_at,
            deleted_at: row.deleted_at,
            version: row.version,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

pub async fn insert(conn: &mut Conn, tenant: &Tenant) -> Result<()> {
    let row = Row::from(tenant);
    each!(conn, c => diesel::insert_into(tenant::table).values(&row).execute(c).await)?;
    Ok(())
}

/// `false` when the slug is taken, also by a node that inserts it at the same time.
pub async fn insert_if_new(conn: &mut Conn, tenant: &Tenant) -> Result<bool> {
    let row = Row::from(tenant);
    let inserted = each!(conn, c => diesel::insert_into(tenant::table)
        .values(&row)
        .on_conflict(tenant::slug)
        .do_nothing()
        .execute(c)
        .await)?;
    Ok(inserted == 1)
}

pub async fn update(conn: &mut Conn, tenant: &Tenant) -> Result<()> {
    let row = Row::from(tenant);
    each!(conn, c => diesel::update(tenant::table.find(&row.id)).set(&row).execute(c).await)?;
    Ok(())
}

/// Also a deleted one.
pub async fn load_by_id(conn: &mut Conn, id: &TenantId) -> Result<Option<Tenant>> {
    let row = each!(conn, c => tenant::table.find(id)
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Tenant::try_from).transpose()
}

/// Also a deleted one.
pub async fn load_by_slug(conn: &mut Conn, slug: &Slug) -> Result<Option<Tenant>> {
    find(conn, slug.as_str()).await
}

/// By id or slug; also a deleted one. A slug never looks like an id.
pub async fn find(conn: &mut Conn, reference: &str) -> Result<Option<Tenant>> {
    // PostgreSQL takes no text with a NUL, and nothing is called by one.
    if has_control(reference) {
        return Ok(None);
    }
    let row = each!(conn, c => tenant::table
        .filter(tenant::id.eq(reference).or(tenant::slug.eq(reference)))
        .select(Row::as_select())
        .first::<Row>(c)
        .await
        .optional())?;
    row.map(Tenant::try_from).transpose()
}

/// Those not deleted, newest first; with `only`, at most that one.
pub async fn page(
    conn: &mut Conn,
    only: Option<&TenantId>,
    filter: &TenantFilter,
    page: &PageRequest,
) -> Result<Vec<Tenant>> {
    let rows: Vec<Row> = each!(conn, c => {
        let mut query = tenant::table
            .filter(tenant::deleted_at.is_null())
            .select(Row::as_select())
            .order((tenant::created_at.desc(), tenant::id.desc()))
            .limit(page.fetch())
            .into_boxed();
        if let Some(id) = only {
            query = query.filter(tenant::id.eq(id));
        }
        if let Some(slug) = &filter.slug {
            query = query.filter(tenant::slug.eq(slug));
        }
        match filter.status {
            Some(Status::Active) => query = query.filter(tenant::disabled_at.is_null()),
            Some(Status::Disabled) => query = query.filter(tenant::disabled_at.is_not_null()),
            None => {}
        }
        if let Some(after) = &page.after {
            query = query.filter(
                tenant::created_at.lt(after.at)
                    .or(tenant::created_at.eq(after.at).and(tenant::id.lt(&after.id))),
            );
        }
        query.load(c).await
    })?;
    rows.into_iter().map(Tenant::try_from).collect()
}

/// How many keys of the tenant could be used at `now` or later.
pub async fn live_keys(conn: &mut Conn, id: &TenantId, now: Timestamp) -> Result<u64> {
    let count: i64 = each!(conn, c => api_key::table
        .inner_join(consumer::table.on(consumer::id.eq(api_key::consumer_id)))
        .filter(api_key::tenant_id.eq(id))
        .filter(api_key::revoked_at.is_null())
        .filter(api_key::expires_at.is_null().or(api_key::expires_at.gt(now)))
        .filter(consumer::deleted_at.is_null())
        .count()
        .get_result(c)
        .await)?;
    Ok(count.unsigned_abs())
}
