//! What may be done with consumers, by whom, and what it leaves behind.
//!
//! A consumer belongs to no service, its keys have grants on some. So, like a key, it may be read by
//! who may read consumers for one of these services, and changed by who may write them for all. One
//! without keys may be read and changed by anybody who may read or write any.

use serde_json::{Value, json};

use super::body::{ConsumerBody, CreateConsumer, ReplaceConsumer, UpdateConsumer};
use super::{Consumer, ConsumerFilter, store};
use crate::audit::{Attribution, Audit, Change, TenantRef};
use crate::catalogue::{self, check_version};
use crate::db::feed::Kind;
use crate::db::{self, Db};
use crate::error::{Conflict, Error, Result};
use crate::id::ConsumerId;
use crate::idempotency::{self, Claim, Idempotent};
use crate::limits::RateLimits;
use crate::metadata::Metadata;
use crate::page::{Page, PageRequest, Position};
use crate::rights::{Permission, Reach, Rights};
use crate::text::{Name, Slug};

const KIND: &str = "consumer";

/// A deletion revokes so many keys at most.
const REVOKED_MAX: u64 = 10_000;

/// Keeps consumers, cheap to clone.
#[derive(Clone)]
pub struct Consumers {
    db: Db,
    audit: Audit,
}

impl Consumers {
    pub fn new(db: Db, audit: Audit) -> Self {
        Self { db, audit }
    }

    /// # Errors
    /// As [`create`].
    pub async fn create(
        &self,
        at: Attribution,
        rights: Rights,
        claim: Option<Claim>,
        input: CreateConsumer,
    ) -> Result<Idempotent<Consumer, Consumer>> {
        self.audit
            .change(at, async move |change: &mut Change| {
                if let Some(id) = idempotency::replayed_id(change, claim.as_ref()).await? {
                    let found = load(change, &rights, &id).await?;
                    return Ok(Idempotent::Replayed(found));
                }
                let made = create(change, input).await?;
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
        filter: ConsumerFilter,
        request: PageRequest,
    ) -> Result<Page<Consumer>> {
        let tenant = tenant.id.clone();
        let reach = rights.services_for(Permission::ConsumersRead);
        self.db
            .read(async move |conn| {
                let rows = store::page(conn, &tenant, &reach, &filter, &request).await?;
                Ok(request.page(rows, |consumer| Position {
                    at: consumer.created_at,
                    id: consumer.id.to_string(),
                }))
            })
            .await
    }

    pub async fn read(
        &self,
        tenant: &TenantRef,
        rights: &Rights,
        reference: String,
    ) -> Result<Consumer> {
        let tenant = tenant.id.clone();
        let reads_all = matches!(rights.services_for(Permission::ConsumersRead), Reach::All);
        let (consumer, granted) = self
            .db
            .read(async move |conn| -> Result<(Consumer, Option<Vec<Slug>>)> {
                let consumer = store::find(conn, &tenant, &reference)
                    .await?
                    .filter(|consumer| consumer.deleted_at.is_none())
                    .ok_or(Error::NotFound(KIND))?;
                // To find those every key of the consumer is looked at.
                let granted = if reads_all {
                    None
                } else {
                    Some(store::granted_services(conn, &consumer.id).await?)
                };
                Ok((consumer, granted))
            })
            .await?;
        if let Some(granted) = granted {
            check_readable(rights, &granted)?;
        }
        Ok(consumer)
    }

    /// Makes the consumer what `input` says, and tells whether it was created. The same again
    /// changes nothing.
    ///
    /// # Errors
    /// [`Conflict::SlugTaken`] for the slug of a deleted consumer, [`Conflict::ExternalIdTaken`];
    /// [`Error::NotFound`] for an id, by which nothing is created.
    pub async fn replace(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
        expected: Option<i64>,
        input: ReplaceConsumer,
    ) -> Result<(Consumer, bool)> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let tenant = change.attribution().tenant.id.clone();
                // An external id is not asked for: who puts the slug of a new consumer must not
                // replace another that is called so elsewhere.
                let existing = store::find(change.conn(), &tenant, &reference)
                    .await?
                    .filter(|consumer| {
                        reference == consumer.id.as_str() || reference == consumer.slug.as_str()
                    })
                    .filter(|consumer| consumer.deleted_at.is_none());
                let Some(before) = existing else {
                    let slug = Slug::parse(&reference).map_err(|_an_id| Error::NotFound(KIND))?;
                    catalogue::check_slug(&slug, input.slug.as_ref())?;
                    catalogue::check_absent(expected)?;
                    let consumer = create(change, input.create(slug)).await?;
                    return Ok((consumer, true));
                };
                catalogue::check_slug(&before.slug, input.slug.as_ref())?;
                check_writable(change, &rights, &before).await?;
                let mut after = before.clone();
                set(&mut after, input.create(before.slug.clone()));
                check_external_id(change, &after).await?;
                check_version(before.version, expected)?;
                let consumer = commit(change, "consumer.update", before, after).await?;
                Ok((consumer, false))
            })
            .await
    }

    /// # Errors
    /// [`Conflict::ExternalIdTaken`]
    pub async fn update(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
        expected: Option<i64>,
        patch: UpdateConsumer,
    ) -> Result<Consumer> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                let mut after = before.clone();
                patched(&mut after, patch)?;
                check_external_id(change, &after).await?;
                check_version(before.version, expected)?;
                commit(change, "consumer.update", before, after).await
            })
            .await
    }

    /// Its external id is free again.
    ///
    /// # Errors
    /// [`Conflict::HasLiveKeys`] with their count, unless `revoke_keys`: then they are revoked, if they
    /// are at most [`REVOKED_MAX`].
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
                let now = change.now();
                let count = store::live_keys(change.conn(), &before.id, now).await?;
                if !revoke_keys {
                    catalogue::check_no_live_keys(KIND, count)?;
                } else if count > REVOKED_MAX {
                    return Err(catalogue::has_live_keys(
                        count,
                        format!(
                            "the consumer has more than {REVOKED_MAX} live keys: revoke them first, \
                             with POST /v1/keys/revoke"
                        ),
                    ));
                }
                check_version(before.version, expected)?;
                if revoke_keys {
                    revoke_its_keys(change, &before).await?;
                }
                let mut after = before.clone();
                after.external_id = None;
                after.deleted_at = Some(change.now());
                after.version += 1;
                after.updated_at = change.now();
                store::update(change.conn(), &after).await?;
                let shown = shown(change, &before);
                change.record(
                    "consumer.delete",
                    (KIND, after.id.as_str()),
                    Some(shown),
                    None,
                );
                change.touch(Kind::Consumer, after.id.as_str());
                Ok(())
            })
            .await
    }

    pub async fn disable(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
    ) -> Result<Consumer> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = before.disabled_at.or(Some(change.now()));
                commit(change, "consumer.disable", before, after).await
            })
            .await
    }

    pub async fn enable(
        &self,
        at: Attribution,
        rights: Rights,
        reference: String,
    ) -> Result<Consumer> {
        self.audit
            .change(at, async move |change: &mut Change| {
                let before = load(change, &rights, &reference).await?;
                let mut after = before.clone();
                after.disabled_at = None;
                commit(change, "consumer.enable", before, after).await
            })
            .await
    }
}

async fn revoke_its_keys(change: &mut Change, consumer: &Consumer) -> Result<()> {
    let at = change.attribution();
    let by = serde_json::to_string(&at.actor)
        .map_err(|error| db::Error::Corrupt(format!("an actor: {error}")))?;
    let (now, reason) = (change.now(), at.reason.clone());
    let revoked =
        store::revoke_keys(change.conn(), &consumer.id, now, &by, reason.as_deref()).await?;
    for key in &revoked {
        let status = |status: &str| Some(json!({"status": status}));
        let target = ("key", key.as_str());
        change.record("key.revoke", target, status("active"), status("revoked"));
        change.touch(Kind::Key, key.as_str());
    }
    Ok(())
}

/// Creates the consumer in the tenant acted in.
///
/// # Errors
/// [`Conflict::SlugTaken`]: the slug of a deleted consumer is taken for ever;
/// [`Conflict::ExternalIdTaken`].
pub async fn create(change: &mut Change, input: CreateConsumer) -> Result<Consumer> {
    let tenant = change.attribution().tenant.id.clone();
    let now = change.now();
    let mut consumer = Consumer {
        id: ConsumerId::new(change.clock(), change.entropy()),
        tenant_id: tenant.clone(),
        slug: input.slug.clone(),
        external_id: None,
        name: Name::from(&input.slug),
        rate_limits: RateLimits::default(),
        quota: None,
        metadata: Metadata::default(),
        disabled_at: None,
        deleted_at: None,
        version: 1,
        created_at: now,
        updated_at: now,
    };
    set(&mut consumer, input);
    if let Some(existing) = store::load_by_slug(change.conn(), &tenant, &consumer.slug).await? {
        return Err(Error::taken(
            Conflict::SlugTaken,
            "a consumer has or had this slug",
            existing.id.as_str(),
        ));
    }
    check_external_id(change, &consumer).await?;
    store::insert(change.conn(), &consumer).await?;
    let shown = shown(change, &consumer);
    change.record(
        "consumer.create",
        (KIND, consumer.id.as_str()),
        None,
        Some(shown),
    );
    change.touch(Kind::Consumer, consumer.id.as_str());
    Ok(consumer)
}

/// Sets everything that may be set.
fn set(consumer: &mut Consumer, input: CreateConsumer) {
    let CreateConsumer {
        slug,
        external_id,
        name,
        rate_limits,
        quota,
        metadata,
        reason: _,
    } = input;
    consumer.external_id = external_id;
    consumer.name = name.unwrap_or_else(|| Name::from(&slug));
    consumer.rate_limits = rate_limits;
    consumer.quota = quota;
    consumer.metadata = metadata;
}

/// Sets what the patch names.
fn patched(consumer: &mut Consumer, patch: UpdateConsumer) -> Result<()> {
    let UpdateConsumer {
        external_id,
        name,
        rate_limits,
        quota,
        metadata,
        reason: _,
    } = patch;
    if let Some(external_id) = external_id {
        consumer.external_id = external_id;
    }
    if let Some(name) = name {
        consumer.name = name.unwrap_or_else(|| Name::from(&consumer.slug));
    }
    if let Some(rate_limits) = rate_limits {
        consumer.rate_limits = rate_limits.unwrap_or_default();
    }
    catalogue::patch_quota(&mut consumer.quota, quota)?;
    catalogue::patch_metadata(&mut consumer.metadata, metadata)
}

async fn check_external_id(change: &mut Change, consumer: &Consumer) -> Result<()> {
    let Some(external_id) = &consumer.external_id else {
        return Ok(());
    };
    match store::load_by_external_id(change.conn(), &consumer.tenant_id, external_id).await? {
        Some(other) if other.id != consumer.id => Err(Error::taken(
            Conflict::ExternalIdTaken,
            "another consumer has this external_id",
            other.id.as_str(),
        )),
        Some(_) | None => Ok(()),
    }
}

/// The consumer to change, if the caller may.
async fn load(change: &mut Change, rights: &Rights, reference: &str) -> Result<Consumer> {
    let tenant = change.attribution().tenant.id.clone();
    let consumer = store::find(change.conn(), &tenant, reference)
        .await?
        .filter(|consumer| consumer.deleted_at.is_none())
        .ok_or(Error::NotFound(KIND))?;
    check_writable(change, rights, &consumer).await?;
    Ok(consumer)
}

fn check_readable(rights: &Rights, granted: &[Slug]) -> Result<()> {
    let readable = match rights.services_for(Permission::ConsumersRead) {
        Reach::All => true,
        Reach::Only(within) => {
            !within.is_empty()
                && (granted.is_empty() || granted.iter().any(|slug| within.contains(slug)))
        }
    };
    if readable {
        Ok(())
    } else {
        Err(Error::Forbidden(Permission::ConsumersRead.scope_for(None)))
    }
}

/// A consumer of management keys is changed only by who holds all that they hold: to disable it, or to
/// limit it, is to end them.
async fn check_writable(change: &mut Change, rights: &Rights, consumer: &Consumer) -> Result<()> {
    for scope in store::management_scopes(change.conn(), consumer).await? {
        if !rights.covers(&scope) {
            return Err(Error::Escalation(format!(
                "the consumer has a management key that holds {scope}, which you do not hold"
            )));
        }
    }
    let within = match rights.services_for(Permission::ConsumersWrite) {
        Reach::All => return Ok(()),
        Reach::Only(within) => within,
    };
    let granted = store::granted_services(change.conn(), &consumer.id).await?;
    if !within.is_empty() && granted.iter().all(|slug| within.contains(slug)) {
        return Ok(());
    }
    Err(Error::Forbidden(Permission::ConsumersWrite.scope_for(None)))
}

/// Stores a change and its line; leaves no trace of one that changes nothing.
async fn commit(
    change: &mut Change,
    action: &'static str,
    before: Consumer,
    mut after: Consumer,
) -> Result<Consumer> {
    if after == before {
        return Ok(before);
    }
    after.version += 1;
    after.updated_at = change.now();
    store::update(change.conn(), &after).await?;
    let (old, new) = catalogue::difference(shown(change, &before), shown(change, &after));
    change.record(action, (KIND, after.id.as_str()), Some(old), Some(new));
    change.touch(Kind::Consumer, after.id.as_str());
    Ok(after)
}

/// As an audit line shows it.
fn shown(change: &Change, consumer: &Consumer) -> Value {
    json!(ConsumerBody::new(
        consumer,
        &change.attribution().tenant.slug
    ))
}
