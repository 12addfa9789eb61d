//! What may be done with tenants, and what it leaves behind.

use serde_json::{Value, json};

use super::body::{CreateTenant, TenantBody, UpdateTenant};
use super::{DEFAULT, Tenant, TenantFilter, store};
use crate::audit::{Actor, Attribution, Audit, Change, TenantRef};
use crate::catalogue::{self, check_version};
use crate::clock::Clock;
use crate::db::feed::Kind;
use crate::db::{self, Conn, Db};
use crate::entropy::Entropy;
use crate::error::{Conflict, Error, Result};
use crate::id::TenantId;
use crate::idempotency::{self, Claim, Idempotent};
use crate::metadata::Metadata;
use crate::page::{Page, PageRequest, Position};
use crate::services;
use crate::text::{Name, Slug};
use crate::time::Timestamp;

const KIND: &str = "tenant";

/// Which tenants a caller sees. Nobody else's is told from one that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    All,
    Own,
}

/// Keeps tenants, cheap to clone.
#[derive(Clone)]
pub struct Tenants {
    db: Db,
    audit: Audit,
}

impl Tenants {
    pub fn new(db: Db, audit: Audit) -> Self {
        Self { db, audit }
    }

    /// The tenant to act in, if it is there.
    pub async fn by_slug(&self, slug: Slug) -> Result<Option<TenantRef>> {
        let found = self
            .db
            .read(async move |conn: &mut Conn| store::load_by_slug(conn, &slug).await)
            .await?;
        Ok(found
            .filter(|tenant| tenant.deleted_at.is_none())
            .map(|tenant| tenant.to_ref()))
    }

    /// The tenant `default`, which every start sees to.
    ///
    /// # Errors
    /// [`db::Error::Corrupt`] if it is not there.
    pub async fn default(&self) -> db::Result<TenantRef> {
        let found = self
            .db
            .read(async move |conn: &mut Conn| store::find(conn, DEFAULT).await)
            .await?;
        let gone = || db::Error::Corrupt(format!("there is no tenant {DEFAULT}"));
        Ok(found.ok_or_else(gone)?.to_ref())
    }

    /// Makes the tenant `default` when it is not there. Several nodes may try at the same time.
    pub async fn ensure_default(&self, clock: &Clock, entropy: &Entropy) -> Result<Tenant> {
        let slug = Slug::parse(DEFAULT).map_err(|detail| Error::invalid("/slug", detail))?;
        let wanted = new_tenant(slug, None, Metadata::default(), clock, entropy);
        let audit = self.audit.clone();
        let (entropy, clock) = (entropy.clone(), clock.clone());
        let (tenant, made) = self
            .db
            .write(async move |conn| -> Result<(Tenant, bool)> {
                if let Some(tenant) = store::load_by_slug(conn, &wanted.slug).await? {
                    return Ok((tenant, false));
                }
                if store::insert_if_new(conn, &wanted).await? {
                    let built_in = services::built_in(&wanted.id, &clock, &entropy);
                    services::store::insert(conn, &built_in).await?;
                    audit.create_head(conn, &wanted.id).await?;
                    return Ok((wanted, true));
                }
                let tenant = store::load_by_slug(conn, &wanted.slug).await?;
                let tenant = tenant.ok_or(Error::NotFound(KIND))?;
                Ok((tenant, false))
            })
            .await?;
        if made {
            let at = Attribution {
                tenant: tenant.to_ref(),
                actor: Actor::System,
                via: None,
                home: None,
                reason: Some("first start".to_owned()),
                request_id: None,
                ip: None,
            };
            let tenant = tenant.clone();
            self.audit
                .change(at, async move |change: &mut Change| -> Result<()> {
                    record_created(change, &tenant);
                    Ok(())
                })
                .await?;
        }
        Ok(tenant)
    }

    /// # Errors
    /// As [`create`].
    pub async fn create(
        &self,
        at: Attribution,
        claim: Option<Claim>,
        input: CreateTenant,
    ) -> Result<Idempotent<Tenant, Tenant>> {
        let audit = self.audit.clone();
        self.audit
            .change(at, async move |change: &mut Change| {
                if let Some(id) = idempotency::replayed_id(change, claim.as_ref()).await? {
                    let found = load(change, &id).await?;
                    return Ok(Idempotent::Replayed(found));
                }
                let made = create(change, &audit, input).await?;
                idempotency::remember_id(change, claim.as_ref(), made.id.as_str()).await?;
                Ok(Idempotent::Fresh(made))
            })
            .await
    }

    pub async fn list(
        &self,
        acting: &TenantRef,
        sight: Sight,
        filter: TenantFilter,
        request: PageRequest,
    ) -> Result<Page<Tenant>> {
        let only = match sight {
            Sight::All => None,
            Sight::Own => Some(acting.id.clone()),
        };
        self.db
            .read(async move |conn| {
                let rows = store::page(conn, only.as_ref(), &filter, &request).await?;
                Ok(request.page(rows, |tenant| Position {
                    at: tenant.created_at,
                    id: tenant.id.to_string(),
                }))
            })
            .await
    }

    pub async fn read(
        &self,
        acting: &TenantRef,
        sight: Sight,
        reference: String,
    ) -> Result<Tenant> {
        let own = acting.id.clone();
        self.db
            .read(async move |conn| {
                let tenant = store::find(conn, &reference).await?;
                tenant
                    .filter(|tenant| tenant.deleted_at.is_none())
                    .filter(|tenant| sight == Sight::All || tenant.id == own)
                    .ok_or(Error::NotFound(KIND))
            })
            .await
    }

    pub async fn update(
        &self,
        at: Attribution,
        reference: String,
        expected: Option<i64>,
        patch: UpdateTenant,
    ) -> Result<Tenant> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &reference).await?;
                check_version(before.version, expected)?;
                let mut after = before.clone();
                patched(&mut after, patch)?;
                commit(change, "tenant.update", before, after).await
            })
            .await
    }

    /// # Errors
    /// [`Conflict::HasLiveKeys`] with their count, unless `revoke_keys`: then they are worth nothing
    /// from now on, because their tenant is gone. [`Conflict::BuiltIn`] for `default`.
    pub async fn delete(
        &self,
        at: Attribution,
        reference: String,
        expected: Option<i64>,
        revoke_keys: bool,
    ) -> Result<()> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load_changeable(change, &reference).await?;
                if !revoke_keys {
                    let now = change.now();
                    let count = store::live_keys(change.conn(), &before.id, now).await?;
                    catalogue::check_no_live_keys(KIND, count)?;
                }
                check_version(before.version, expected)?;
                let mut after = before.clone();
                after.deleted_at = Some(change.now());
                after.version += 1;
                after.updated_at = change.now();
                store::update(change.conn(), &after).await?;
                let id = after.id.as_str();
                change.record("tenant.delete", (KIND, id), Some(shown(&before)), None);
                change.touch(Kind::Tenant, id);
                Ok(())
            })
            .await
    }

    /// # Errors
    /// [`Conflict::BuiltIn`] for `default`.
    pub async fn disable(&self, at: Attribution, reference: String) -> Result<Tenant> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load_changeable(change, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = before.disabled_at.or(Some(change.now()));
                commit(change, "tenant.disable", before, after).await
            })
            .await
    }

    pub async fn enable(&self, at: Attribution, reference: String) -> Result<Tenant> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = None;
                commit(change, "tenant.enable", before, after).await
            })
            .await
    }
}

/// Creates the tenant with its built-in service and the head of its audit chain.
///
/// # Errors
/// [`Conflict::SlugTaken`]; the slug of a deleted tenant is taken for ever.
pub async fn create(change: &mut Change, audit: &Audit, input: CreateTenant) -> Result<Tenant> {
    check_acting(&change.attribution().tenant)?;
    if let Some(existing) = store::load_by_slug(change.conn(), &input.slug).await? {
        return Err(Error::taken(
            Conflict::SlugTaken,
            "a tenant has or had this slug",
            existing.id.as_str(),
        ));
    }
    let (clock, entropy) = (change.clock().clone(), change.entropy().clone());
    let mut tenant = new_tenant(input.slug, input.name, input.metadata, &clock, &entropy);
    tenant.created_at = change.now();
    tenant.updated_at = change.now();
    store::insert(change.conn(), &tenant).await?;
    let built_in = services::built_in(&tenant.id, &clock, &entropy);
    services::store::insert(change.conn(), &built_in).await?;
    audit.create_head(change.conn(), &tenant.id).await?;
    record_created(change, &tenant);
    Ok(tenant)
}

fn new_tenant(
    slug: Slug,
    name: Option<Name>,
    metadata: Metadata,
    clock: &Clock,
    entropy: &Entropy,
) -> Tenant {
    let now: Timestamp = clock.now();
    Tenant {
        id: TenantId::new(clock, entropy),
        name: name.unwrap_or_else(|| Name::from(&slug)),
        slug,
        metadata,
        disabled_at: None,
        deleted_at: None,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}

fn patched(tenant: &mut Tenant, patch: UpdateTenant) -> Result<()> {
    if let Some(name) = patch.name {
        tenant.name = name.unwrap_or_else(|| Name::from(&tenant.slug));
    }
    catalogue::patch_metadata(&mut tenant.metadata, patch.metadata)
}

/// Tenants are kept from `default` alone; its audit chain, and so its lock, is the one they share.
fn check_acting(acting: &TenantRef) -> Result<()> {
    if acting.slug.as_str() == DEFAULT {
        return Ok(());
    }
    Err(Error::Escalation(
        "tenants are kept by callers of the tenant default alone".to_owned(),
    ))
}

/// The tenant to change. Who acts elsewhere sees its own alone, and may not change that one.
async fn load(change: &mut Change, reference: &str) -> Result<Tenant> {
    let acting = change.attribution().tenant.clone();
    let tenant = store::find(change.conn(), reference)
        .await?
        .filter(|tenant| tenant.deleted_at.is_none())
        .filter(|tenant| acting.slug.as_str() == DEFAULT || tenant.id == acting.id)
        .ok_or(Error::NotFound(KIND))?;
    check_acting(&acting)?;
    Ok(tenant)
}

/// [`load`], and not the one that all begins with.
async fn load_changeable(change: &mut Change, reference: &str) -> Result<Tenant> {
    let tenant = load(change, reference).await?;
    if tenant.is_default() {
        return Err(Error::conflict(
            Conflict::BuiltIn,
            "the tenant default can be neither disabled nor deleted",
        ));
    }
    Ok(tenant)
}

/// Stores a change and its line; leaves no trace of one that changes nothing.
async fn commit(
    change: &mut Change,
    action: &'static str,
    before: Tenant,
    mut after: Tenant,
) -> Result<Tenant> {
    if after == before {
        return Ok(before);
    }
    after.version += 1;
    after.updated_at = change.now();
    store::update(change.conn(), &after).await?;
    let (old, new) = catalogue::difference(shown(&before), shown(&after));
    change.record(action, (KIND, after.id.as_str()), Some(old), Some(new));
    change.touch(Kind::Tenant, after.id.as_str());
    Ok(after)
}

fn record_created(change: &mut Change, tenant: &Tenant) {
    let id = tenant.id.as_str();
    change.record("tenant.create", (KIND, id), None, Some(shown(tenant)));
    change.touch(Kind::Tenant, id);
}

/// As an audit line shows it.
fn shown(tenant: &Tenant) -> Value {
    json!(TenantBody::from(tenant))
}
