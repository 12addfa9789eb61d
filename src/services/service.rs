//! What may be done with services, by whom, and what it leaves behind.

use std::sync::Arc;

use serde_json::{Value, json};

use super::body::{CreateService, ReplaceService, ServiceBody, UpdateService};
use super::exchange::{ExchangePatch, ExchangeSettings};
use super::settings::{KeyPolicy, KeyPolicyPatch, UsagePatch, UsageSettings};
use super::tokens::{TokenPatch, TokenSettings};
use super::upstream::UpstreamPatch;
use super::{Service, ServiceFilter, ServiceSettings, store};
use crate::audit::{Attribution, Audit, Change, TenantRef};
use crate::catalogue::{self, check_version};
use crate::config::upstreams::Upstream;
use crate::db::feed::Kind;
use crate::db::{self, Conn, Db};
use crate::error::{Conflict, Error, Result};
use crate::id::ServiceId;
use crate::idempotency::{self, Claim, Idempotent};
use crate::page::{Page, PageRequest, Position};
use crate::rights::{Permission, Rights};
use crate::scope::{Catalogue, ScopeEntry};
use crate::text::{Description, Name, Slug};
use crate::usage::Rules;

const KIND: &str = "service";

/// Keeps services, cheap to clone.
#[derive(Clone)]
pub struct Services {
    db: Db,
    audit: Audit,
    upstreams: Arc<[Upstream]>,
}

impl Services {
    pub fn new(db: Db, audit: Audit) -> Self {
        Self {
            db,
            audit,
            upstreams: Arc::default(),
        }
    }

    /// Where there are authorization servers that services may name.
    #[must_use]
    pub fn with_upstreams(self, upstreams: Arc<[Upstream]>) -> Self {
        Self { upstreams, ..self }
    }

    /// Which uses of which services leave an event.
    pub async fn usage_rules(&self) -> db::Result<Rules> {
        let all = self
            .db
            .read(async move |conn: &mut Conn| store::usage_settings(conn).await)
            .await?;
        let mut rules = Rules::default();
        for (tenant, slug, settings) in all {
            rules.set(tenant.as_str(), slug.as_str(), settings.events);
        }
        Ok(rules)
    }

    /// # Errors
    /// As [`create`].
    pub async fn create(
        &self,
        at: Attribution,
        rights: Rights,
        claim: Option<Claim>,
        input: CreateService,
    ) -> Result<Idempotent<Service, Service>> {
        check_scopes(&input.scopes)?;
        self.check_provider(&at, input.upstream.as_ref())?;
        self.audit
            .change(at, async move |change: &mut Change| {
                if let Some(id) = idempotency::replayed_id(change, claim.as_ref()).await? {
                    let found = load(change, &rights, &id).await?;
                    return Ok(Idempotent::Replayed(found));
                }
                let made = create(change, &rights, input).await?;
                idempotency::remember_id(change, claim.as_ref(), made.id.as_str()).await?;
                Ok(Idempotent::Fresh(made))
            })
            .await
    }

    /// Those that the caller may read.
    pub async fn list(
        &self,
        tenant: &TenantRef,
        rights: &Rights,
        filter: ServiceFilter,
        request: PageRequest,
    ) -> Result<Page<Service>> {
        let tenant = tenant.id.clone();
        let reach = rights.services_for(Permission::ServicesRead);
        self.db
            .read(async move |conn| {
                let rows = store::page(conn, &tenant, &reach, &filter, &request).await?;
                Ok(request.page(rows, |service| Position {
                    at: service.created_at,
                    id: service.id.to_string(),
                }))
            })
            .await
    }

    pub async fn read(
        &self,
        tenant: &TenantRef,
        rights: &Rights,
        reference: String,
    ) -> Result<Service> {
        let tenant = tenant.id.clone();
        let service = self
            .db
            .read(async move |conn| -> Result<Option<Service>> {
                Ok(store::find(conn, &tenant, &reference).await?)
            })
            .await?
            .filter(|service| service.deleted_at.is_none())
            .ok_or(Error::NotFound(KIND))?;
        rights.require(Permission::ServicesRead, Some(&service.slug))?;
        Ok(service)
    }

    /// Makes the service what `input` says, and tells whether it was created. The same again changes
    /// nothing.
    ///
    /// # Errors
    /// [`Conflict::SlugTaken`] for the slug of a deleted service, [`Conflict::BuiltIn`];
    /// [`Error::NotFound`] for an id, by which nothing is created.
    pub async fn replace(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
        expected: Option<i64>,
        input: ReplaceService,
    ) -> Result<(Service, bool)> {
        check_scopes(&input.scopes)?;
        self.check_provider(&at, input.upstream.as_ref())?;
        self.audit
            .change(at, async move |change: &mut Change| {
                let tenant = change.attribution().tenant.id.clone();
                let existing = store::find(change.conn(), &tenant, &reference).await?;
                let Some(before) = existing.filter(|service| service.deleted_at.is_none()) else {
                    let slug = Slug::parse(&reference).map_err(|_an_id| Error::NotFound(KIND))?;
                    catalogue::check_slug(&slug, input.slug.as_ref())?;
                    catalogue::check_absent(expected)?;
                    let service = create(change, &rights, input.create(slug)).await?;
                    return Ok((service, true));
                };
                catalogue::check_slug(&before.slug, input.slug.as_ref())?;
                rights.require(Permission::ServicesWrite, Some(&before.slug))?;
                check_changeable(&before)?;
                check_version(before.version, expected)?;
                let mut after = before.clone();
                set(&mut after, input.create(before.slug.clone()))?;
                check_domain(&rights, &before, &after)?;
                let service = commit(change, "service.update", before, after).await?;
                Ok((service, false))
            })
            .await
    }

    pub async fn update(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
        expected: Option<i64>,
        patch: UpdateService,
    ) -> Result<Service> {
        if let Some(Some(scopes)) = &patch.scopes {
            check_scopes(scopes)?;
        }
        self.check_provider(&at, patch.upstream.as_ref().and_then(Option::as_ref))?;
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                check_version(before.version, expected)?;
                let mut after = before.clone();
                patched(&mut after, patch)?;
                check_domain(&rights, &before, &after)?;
                commit(change, "service.update", before, after).await
            })
            .await
    }

    /// A provider must be there when it is named. One that is taken away later leaves its services
    /// without tokens.
    fn check_provider(&self, at: &Attribution, patch: Option<&UpstreamPatch>) -> Result<()> {
        let Some(name) = patch.and_then(|patch| patch.provider.as_ref()) else {
            return Ok(());
        };
        let is_offered = self
            .upstreams
            .iter()
            .any(|upstream| upstream.name == *name && upstream.tenants.contains(&at.tenant.slug));
        if is_offered {
            return Ok(());
        }
        Err(Error::invalid(
            "/upstream/provider",
            "must be the name of one of the configured upstreams that lists this tenant",
        ))
    }

    /// # Errors
    /// [`Conflict::HasLiveKeys`] with their count, unless `revoke_keys`: then their grants on this
    /// service are worth nothing from now on, because it is gone.
    pub async fn delete(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
        expected: Option<i64>,
        revoke_keys: bool,
    ) -> Result<()> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
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
                let shown = shown(change, &before);
                change.record(
                    "service.delete",
                    (KIND, after.id.as_str()),
                    Some(shown),
                    None,
                );
                change.concerns([after.slug.to_string()]);
                change.touch(Kind::Service, after.id.as_str());
                Ok(())
            })
            .await
    }

    pub async fn disable(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
    ) -> Result<Service> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = before.disabled_at.or(Some(change.now()));
                commit(change, "service.disable", before, after).await
            })
            .await
    }

    pub async fn enable(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
    ) -> Result<Service> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = None;
                commit(change, "service.enable", before, after).await
            })
            .await
    }
}

/// Creates the service in the tenant acted in.
///
/// # Errors
/// [`Error::Invalid`] for a policy that contradicts itself, [`Error::Forbidden`] for who may write
/// some services but not all, [`Conflict::SlugTaken`]: the slug of a deleted service is taken for
/// ever.
pub async fn create(change: &mut Change, rights: &Rights, input: CreateService) -> Result<Service> {
    check_scopes(&input.scopes)?;
    let tenant = change.attribution().tenant.id.clone();
    let now = change.now();
    let mut service = Service {
        id: ServiceId::new(change.clock(), change.entropy()),
        tenant_id: tenant.clone(),
        slug: input.slug.clone(),
        name: Name::from(&input.slug),
        description: Description::default(),
        settings: ServiceSettings::default(),
        metadata: input.metadata.clone(),
        disabled_at: None,
        deleted_at: None,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    set(&mut service, input)?;
    rights.require(Permission::ServicesWrite, None)?;
    if let Some(existing) = store::load_by_slug(change.conn(), &tenant, &service.slug).await? {
        return Err(Error::taken(
            Conflict::SlugTaken,
            "a service has or had this slug",
            existing.id.as_str(),
        ));
    }
    store::insert(change.conn(), &service).await?;
    let shown = shown(change, &service);
    change.record(
        "service.create",
        (KIND, service.id.as_str()),
        None,
        Some(shown),
    );
    change.concerns([service.slug.to_string()]);
    change.touch(Kind::Service, service.id.as_str());
    Ok(service)
}

/// Sets everything that may be set.
fn set(service: &mut Service, input: CreateService) -> Result<()> {
    let CreateService {
        slug,
        name,
        description,
        scopes,
        key_policy,
        rate_limits,
        quota,
        on_outage,
        usage,
        tokens,
        exchange,
        upstream,
        metadata,
        reason: _,
    } = input;
    service.name = name.unwrap_or_else(|| Name::from(&slug));
    service.description = description.unwrap_or_default();
    service.settings = ServiceSettings {
        scopes,
        key_policy: policy(KeyPolicy::default(), key_policy.unwrap_or_default())?,
        rate_limits,
        quota,
        on_outage,
        usage: kept(UsageSettings::default(), usage),
        tokens: token_settings(TokenSettings::default(), tokens)?,
        exchange: exchange_settings(ExchangeSettings::default(), exchange),
        upstream: upstream.map(|patch| patch.apply(None)).transpose()?,
    };
    service.metadata = metadata;
    Ok(())
}

/// Sets what the patch names.
fn patched(service: &mut Service, patch: UpdateService) -> Result<()> {
    let UpdateService {
        name,
        description,
        scopes,
        key_policy,
        rate_limits,
        quota,
        on_outage,
        usage,
        tokens,
        exchange,
        upstream,
        metadata,
        reason: _,
    } = patch;
    let settings = &mut service.settings;
    if let Some(name) = name {
        service.name = name.unwrap_or_else(|| Name::from(&service.slug));
    }
    if let Some(description) = description {
        service.description = description.unwrap_or_default();
    }
    if let Some(scopes) = scopes {
        settings.scopes = scopes.unwrap_or_default();
    }
    match key_policy {
        None => {}
        Some(None) => settings.key_policy = KeyPolicy::default(),
        Some(Some(patch)) => settings.key_policy = policy(settings.key_policy.clone(), patch)?,
    }
    if let Some(rate_limits) = rate_limits {
        settings.rate_limits = rate_limits.unwrap_or_default();
    }
    catalogue::patch_quota(&mut settings.quota, quota)?;
    if let Some(on_outage) = on_outage {
        settings.on_outage = on_outage.unwrap_or_default();
    }
    match usage {
        None => {}
        Some(None) => settings.usage = UsageSettings::default(),
        Some(patch) => settings.usage = kept(settings.usage, patch),
    }
    match tokens {
        None => {}
        Some(None) => settings.tokens = TokenSettings::default(),
        Some(patch) => settings.tokens = token_settings(settings.tokens.clone(), patch)?,
    }
    match exchange {
        None => {}
        Some(None) => settings.exchange = ExchangeSettings::default(),
        Some(patch) => {
            settings.exchange = exchange_settings(settings.exchange.clone(), patch);
        }
    }
    match upstream {
        None => {}
        Some(None) => settings.upstream = None,
        Some(Some(patch)) => settings.upstream = Some(patch.apply(settings.upstream.take())?),
    }
    catalogue::patch_metadata(&mut service.metadata, metadata)
}

fn kept(mut settings: UsageSettings, patch: Option<UsagePatch>) -> UsageSettings {
    patch.unwrap_or_default().apply(&mut settings);
    settings
}

fn token_settings(mut settings: TokenSettings, patch: Option<TokenPatch>) -> Result<TokenSettings> {
    patch.unwrap_or_default().apply(&mut settings);
    settings.check()?;
    Ok(settings)
}

fn exchange_settings(
    mut settings: ExchangeSettings,
    patch: Option<ExchangePatch>,
) -> ExchangeSettings {
    patch.unwrap_or_default().apply(&mut settings);
    settings
}

/// Who puts a service into a security domain decides what is taken by the others in it too. To take one
/// out opens nothing.
fn check_domain(rights: &Rights, before: &Service, after: &Service) -> Result<()> {
    let (before, after) = (&before.settings.exchange, &after.settings.exchange);
    if after.domain.is_none() || after.domain == before.domain {
        return Ok(());
    }
    rights.require(Permission::ServicesWrite, None)
}

fn policy(mut policy: KeyPolicy, patch: KeyPolicyPatch) -> Result<KeyPolicy> {
    patch.apply(&mut policy);
    policy.check()?;
    Ok(policy)
}

fn check_scopes(entries: &[ScopeEntry]) -> Result<()> {
    Catalogue::new(entries, "/scopes")
        .map(drop)
        .map_err(Error::Invalid)
}

/// The service to change, if the caller may and anybody may.
async fn load(change: &mut Change, rights: &Rights, reference: &str) -> Result<Service> {
    let tenant = change.attribution().tenant.id.clone();
    let service = store::find(change.conn(), &tenant, reference)
        .await?
        .filter(|service| service.deleted_at.is_none())
        .ok_or(Error::NotFound(KIND))?;
    rights.require(Permission::ServicesWrite, Some(&service.slug))?;
    check_changeable(&service)?;
    Ok(service)
}

fn check_changeable(service: &Service) -> Result<()> {
    if service.is_built_in() {
        return Err(Error::conflict(
            Conflict::BuiltIn,
            "the built-in service keystead cannot be changed",
        ));
    }
    Ok(())
}

/// Stores a change and its line; leaves no trace of one that changes nothing.
async fn commit(
    change: &mut Change,
    action: &'static str,
    before: Service,
    mut after: Service,
) -> Result<Service> {
    if after == before {
        return Ok(before);
    }
    after.version += 1;
    after.updated_at = change.now();
    store::update(change.conn(), &after).await?;
    let (old, new) = catalogue::difference(shown(change, &before), shown(change, &after));
    change.record(action, (KIND, after.id.as_str()), Some(old), Some(new));
    change.concerns([after.slug.to_string()]);
    change.touch(Kind::Service, after.id.as_str());
    Ok(after)
}

/// As an audit line shows it.
fn shown(change: &Change, service: &Service) -> Value {
    json!(ServiceBody::new(service, &change.attribution().tenant.slug))
}
