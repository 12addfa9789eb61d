//! What can be done with keys. Each verb is one change: read, judge, write, one line a key.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::hash::Hasher;
use super::issue::{self, KeyPatch, NewGrant, NewKey, Policy};
use super::key::{ConsumerRef, Grant, Key, KeyView, LIVE_SECRETS_MAX, Secret};
use super::pepper::Peppers;
use super::secret::{ApiKey, LookupId};
use super::store::{self, KeyFilter, NewSecret};
use super::verifier::Verifier;
use super::verifier_queue::VerifierQueue;
use crate::audit::{Attribution, Audit, Change, TenantRef};
use crate::clock::Clock;
use crate::consumers;
use crate::db::feed::Kind;
use crate::db::{Conn, Db};
use crate::entropy::Entropy;
use crate::error::{Conflict, Error, Result, Violation};
use crate::id::{KeyId, SecretId, ServiceId};
use crate::idempotency::{self, Claim, Idempotent};
use crate::metadata::Metadata;
use crate::page::{Page, PageRequest};
use crate::rights::{self, Permission, Reach, Rights};
use crate::services::{self, Service};
use crate::text::{Environment, Prefix};
use crate::time::{Span, Timestamp};

/// At most so many keys in one batch.
pub const BATCH_MAX: usize = 1000;

/// The longest overlap of a rotation.
const OVERLAP_MAX: Span = Span::days(30);

/// Who asks, with what rights, and what the audit line will say.
#[derive(Clone, Debug)]
pub struct By {
    pub rights: Rights,
    pub at: Attribution,
}

/// Makes and changes keys, cheap to clone.
#[derive(Clone)]
pub struct Keys {
    pub(super) db: Db,
    pub(super) audit: Audit,
    pub(super) clock: Clock,
    pub(super) entropy: Entropy,
    pub(super) peppers: Arc<Peppers>,
    pub(super) hasher: Hasher,
    pub(super) verifiers: VerifierQueue,
}

/// A key with the plaintext that exists only now.
pub struct Issued {
    pub key: Key,
    pub api_key: ApiKey,
}

/// What a rotation asks for.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    pub overlap: Option<Span>,
    pub ttl: Option<Span>,
    pub expires_at: Option<Option<Timestamp>>,
    /// Whether the holder presented a secret that has a successor already.
    pub by_superseded: bool,
}

/// Which keys to list: the filter, and names that are still to be looked up.
#[derive(Clone, Debug, Default)]
pub struct ListFilter {
    /// Id, slug or external id.
    pub consumer: Option<String>,
    /// Id or slug.
    pub service: Option<String>,
    pub filter: KeyFilter,
}

/// A plaintext made before the change that stores it, with what it was made for.
struct Minted {
    lookup_id: LookupId,
    prefix: Prefix,
    environment: Environment,
    api_key: ApiKey,
    verifier: Option<Verifier>,
}

/// Parents by the names that requests give them, each looked up once. Only for one change, or one
/// look before it: in a change of its tenant nothing else changes them.
#[derive(Default)]
struct Parents {
    consumers: HashMap<String, Option<ConsumerRef>>,
    services: HashMap<String, Option<Service>>,
}

impl Parents {
    async fn consumer(
        &mut self,
        conn: &mut Conn,
        tenant: &TenantRef,
        reference: &str,
    ) -> Result<Option<ConsumerRef>> {
        if let Some(known) = self.consumers.get(reference) {
            return Ok(known.clone());
        }
        let found = consumers::store::find(conn, &tenant.id, reference).await?;
        let found = found
            .filter(|consumer| consumer.deleted_at.is_none())
            .map(|consumer| ConsumerRef {
                id: consumer.id,
                slug: consumer.slug,
            });
        self.consumers.insert(reference.to_owned(), found.clone());
        Ok(found)
    }

    /// The services of grants, each there or not.
    async fn services(
        &mut self,
        conn: &mut Conn,
        tenant: &TenantRef,
        grants: &[NewGrant],
    ) -> Result<Vec<Option<Service>>> {
        let mut services = Vec::with_capacity(grants.len().min(51));
        // One more than is allowed is enough to refuse.
        for grant in grants.iter().take(51) {
            if let Some(known) = self.services.get(&grant.service) {
                services.push(known.clone());
                continue;
            }
            let found = services::store::find(conn, &tenant.id, &grant.service).await?;
            let found = found.filter(|service| service.deleted_at.is_none());
            self.services.insert(grant.service.clone(), found.clone());
            services.push(found);
        }
        Ok(services)
    }
}

/// A key to be: everything but its secret.
struct Plan {
    consumer: ConsumerRef,
    policy: Policy,
    environment: Environment,
    expires_at: Option<Timestamp>,
    grants: Vec<Grant>,
}

async fn plan(
    conn: &mut Conn,
    parents: &mut Parents,
    tenant: &TenantRef,
    new: &NewKey,
    now: Timestamp,
) -> Result<std::result::Result<Plan, Vec<Violation>>> {
    let mut errors = Vec::new();
    let consumer = parents.consumer(conn, tenant, &new.consumer).await?;
    if consumer.is_none() {
        errors.push(Violation::new("/consumer", "there is no such consumer"));
    }
    let services = parents.services(conn, tenant, &new.grants).await?;
    let grants = issue::check_grants(&new.grants, &services, &mut errors);
    let known: Vec<&Service> = services.iter().flatten().collect();
    issue::check_rules(new.allowed_ips.as_deref(), Some(&new.tags), &mut errors);
    let (Some(consumer), Some(policy)) = (consumer, Policy::of(&known)) else {
        return Ok(Err(errors));
    };
    let environment = policy.environment(new.environment.as_ref(), &mut errors);
    let expires_at = policy.end(new.ttl, new.expires_at, now, &mut errors);
    issue::check_span(new.not_before, expires_at, &mut errors);
    if !errors.is_empty() {
        return Ok(Err(errors));
    }
    Ok(Ok(Plan {
        consumer,
        policy,
        environment,
        expires_at,
        grants,
    }))
}

/// To issue, change, enable or rotate a key one must hold the right for every service it grants;
/// for a key with a grant on `keystead`, all that it holds.
fn may_wield(rights: &Rights, grants: &[Grant]) -> Result<()> {
    for grant in grants {
        if grant.service.as_str() == rights::SERVICE
            && let Some(scope) = grant.scopes.iter().find(|scope| !rights.covers(scope))
        {
            return Err(Error::Escalation(format!(
                "you do not hold {scope} yourself, so you cannot hand it out"
            )));
        }
        if !rights.allows(Permission::KeysWrite, Some(&grant.service)) {
            return Err(Error::Escalation(format!(
                "keys:write for the service {} is needed, for every service that the key grants",
                grant.service
            )));
        }
    }
    Ok(())
}

/// To revoke or disable a key the right for one of its services is enough, unless it is a
/// management key.
pub(super) fn may_end(rights: &Rights, grants: &[Grant]) -> Result<()> {
    for grant in grants {
        if grant.service.as_str() == rights::SERVICE
            && let Some(scope) = grant.scopes.iter().find(|scope| !rights.covers(scope))
        {
            return Err(Error::Escalation(format!(
                "a management key may be ended only by who holds all it holds; \
                     you lack {scope}"
            )));
        }
    }
    if grants
        .iter()
        .any(|grant| rights.allows(Permission::KeysRevoke, Some(&grant.service)))
    {
        return Ok(());
    }
    Err(Error::Escalation(
        "keys:revoke for a service that the key grants is needed".to_owned(),
    ))
}

impl Keys {
    pub fn new(
        db: Db,
        audit: Audit,
        clock: Clock,
        entropy: Entropy,
        peppers: Arc<Peppers>,
        hasher: Hasher,
        verifiers: VerifierQueue,
    ) -> Self {
        Self {
            db,
            audit,
            clock,
            entropy,
            peppers,
            hasher,
            verifiers,
        }
    }

    /// Shows a key, if the caller may see it.
    pub async fn read(&self, by: &By, reference: &str) -> Result<Key> {
        let (tenant, reference) = (by.at.tenant.clone(), reference.to_owned());
        let key = self
            .db
            .read(async move |conn: &mut Conn| store::find(conn, &tenant.id, &reference).await)
            .await?;
        there(&by.rights, Permission::KeysRead, key)
    }

    /// A page of the keys that the caller may see. A consumer or service that is not there has none.
    pub async fn list(&self, by: &By, asked: ListFilter, page: PageRequest) -> Result<Page<Key>> {
        let tenant = by.at.tenant.clone();
        let reach = by.rights.services_for(Permission::KeysRead);
        let now = self.clock.now();
        self.db
            .read(async move |conn: &mut Conn| {
                let mut filter = asked.filter;
                if let Some(reference) = &asked.consumer {
                    match consumers::store::find(conn, &tenant.id, reference).await? {
                        Some(consumer) => filter.consumer = Some(consumer.id),
                        None => {
                            return Ok(Page {
                                items: Vec::new(),
                                next: None,
                            });
                        }
                    }
                }
                if let Some(reference) = &asked.service {
                    match services::store::find(conn, &tenant.id, reference).await? {
                        Some(service) => filter.service = Some(service.id),
                        None => {
                            return Ok(Page {
                                items: Vec::new(),
                                next: None,
                            });
                        }
                    }
                }
                restrict(conn, &tenant, reach, &mut filter).await?;
                store::list(conn, &tenant.id, &filter, &page, now)
                    .await
                    .map_err(Error::from)
            })
            .await
    }

    /// Issues one key. `claim` makes a repetition answer the first key, without its plaintext.
    pub async fn issue(
        &self,
        by: By,
        new: NewKey,
        claim: Option<Claim>,
    ) -> Result<Idempotent<Issued, Key>> {
        let (tenant, asked, now) = (by.at.tenant.clone(), new.clone(), self.clock.now());
        let planned = self
            .db
            .read(async move |conn: &mut Conn| {
                plan(conn, &mut Parents::default(), &tenant, &asked, now).await
            })
            .await?;
        let planned = planned.map_err(Error::Invalid)?;
        may_wield(&by.rights, &planned.grants)?;
        let minted = self
            .mint(planned.policy.prefix, planned.environment, None, true)
            .await?;
        let peppers = Arc::clone(&self.peppers);
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                if let Some(claim) = &claim
                    && let Some(ids) = idempotency::replay(change, claim).await?
                {
                    return Ok(Idempotent::Replayed(replayed(change, &ids).await?));
                }
                let issued = insert(
                    change,
                    &mut Parents::default(),
                    &by.rights,
                    &peppers,
                    &new,
                    minted,
                )
                .await;
                let issued = issued.map_err(|error| within(None, error))?;
                if let Some(claim) = &claim {
                    let id = issued.key.id.as_str();
                    idempotency::remember(change, claim, 201, &[id]).await?;
                }
                Ok(Idempotent::Fresh(issued))
            })
            .await
    }

    /// Issues up to [`BATCH_MAX`] keys, all or none. Their verifiers follow from memory.
    pub async fn issue_batch(
        &self,
        by: By,
        batch: Vec<NewKey>,
        claim: Option<Claim>,
    ) -> Result<Idempotent<Vec<Issued>, Vec<Key>>> {
        check_batch(batch.len(), "/items")?;
        let (tenant, asked, now) = (by.at.tenant.clone(), batch.clone(), self.clock.now());
        let planned = self
            .db
            .read(async move |conn: &mut Conn| {
                let mut parents = Parents::default();
                let mut plans = Vec::with_capacity(asked.len());
                let mut errors = Vec::new();
                for (index, new) in asked.iter().enumerate() {
                    match plan(conn, &mut parents, &tenant, new, now).await? {
                        Ok(plan) => plans.push(plan),
                        Err(wrong) => errors.extend(under(index, wrong)),
                    }
                    // A caller who gets everything wrong is told enough by the first hundred.
                    if errors.len() > 100 {
                        break;
                    }
                }
                if errors.is_empty() {
                    Ok(plans)
                } else {
                    Err(Error::Invalid(errors))
                }
            })
            .await?;
        let mut minted = Vec::with_capacity(planned.len());
        for plan in planned {
            may_wield(&by.rights, &plan.grants)?;
            minted.push(
                self.mint(plan.policy.prefix, plan.environment, None, false)
                    .await?,
            );
        }
        let peppers = Arc::clone(&self.peppers);
        let made = self
            .audit
            .patient()
            .change(by.at.clone(), async move |change: &mut Change| {
                if let Some(claim) = &claim
                    && let Some(ids) = idempotency::replay(change, claim).await?
                {
                    let mut keys = Vec::with_capacity(ids.len());
                    for id in &ids {
                        keys.push(replayed(change, std::slice::from_ref(id)).await?);
                    }
                    return Ok(Idempotent::Replayed(keys));
                }
                let mut parents = Parents::default();
                let mut issued = Vec::with_capacity(batch.len());
                for (index, (new, minted)) in batch.iter().zip(minted).enumerate() {
                    let key = insert(change, &mut parents, &by.rights, &peppers, new, minted).await;
                    issued.push(key.map_err(|error| within(Some(index), error))?);
                }
                if let Some(claim) = &claim {
                    let ids: Vec<&str> = issued.iter().map(|i| i.key.id.as_str()).collect();
                    idempotency::remember(change, claim, 201, &ids).await?;
                }
                Ok::<_, Error>(Idempotent::Fresh(issued))
            })
            .await?;
        if let Idempotent::Fresh(issued) = &made {
            self.verifiers.push(issued.iter().filter_map(|one| {
                Some((one.key.secrets.first()?.id.clone(), one.api_key.clone()))
            }));
        }
        Ok(made)
    }

    /// Puts a new secret beside the old, which stay valid for the overlap.
    ///
    /// # Errors
    /// `key_revoked`, `key_expired`; `too_many_secrets` when three would still be live beside it.
    pub async fn rotate(
        &self,
        by: By,
        reference: &str,
        rotation: Rotation,
        claim: Option<Claim>,
        own: bool,
    ) -> Result<Idempotent<Issued, Key>> {
        let key = if own {
            self.own(&by, reference).await?
        } else {
            self.read(&by, reference).await?
        };
        if !own {
            may_wield(&by.rights, &key.grants)?;
        }
        let minted = self
            .mint(
                key.prefix.clone(),
                key.environment.clone(),
                Some(key.lookup_id),
                true,
            )
            .await?;
        let (peppers, id) = (Arc::clone(&self.peppers), key.id);
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                if let Some(claim) = &claim
                    && let Some(ids) = idempotency::replay(change, claim).await?
                {
                    return Ok(Idempotent::Replayed(replayed(change, &ids).await?));
                }
                let key = load(change, id.as_str()).await?;
                if rotation.by_superseded {
                    // Whoever has an old secret, perhaps because it leaked, must not end the new one
                    // with it.
                    return Err(Error::Escalation(
                        "a superseded secret cannot rotate its key: use its successor".to_owned(),
                    ));
                }
                if !own {
                    may_wield(&by.rights, &key.grants)?;
                }
                let issued = rotate(change, &peppers, key, &rotation, minted, own).await?;
                if let Some(claim) = &claim {
                    idempotency::remember(change, claim, 200, &[issued.key.id.as_str()]).await?;
                }
                Ok(Idempotent::Fresh(issued))
            })
            .await
    }

    /// The holder's own key, whatever it grants.
    pub async fn own(&self, by: &By, id: &str) -> Result<Key> {
        let (tenant, id) = (by.at.tenant.clone(), id.to_owned());
        self.db
            .read(async move |conn: &mut Conn| store::find(conn, &tenant.id, &id).await)
            .await?
            .ok_or(Error::NotFound("key"))
    }

    /// Changes what may be changed of a key.
    pub async fn update(
        &self,
        by: By,
        reference: String,
        patch: KeyPatch,
        if_match: Option<i64>,
    ) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = there(&by.rights, Permission::KeysWrite, before)?;
                may_wield(&by.rights, &before.grants)?;
                check_version(&before, if_match)?;
                refuse_revoked(&before)?;
                let mut after = before.clone();
                apply(change, &by.rights, &mut after, patch).await?;
                finish(change, "key.update", &before, after, true).await
            })
            .await
    }

    /// Ends a key for good. A revoked one is answered as it is.
    pub async fn revoke(&self, by: By, reference: String, own: bool) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = if own {
                    before.ok_or(Error::NotFound("key"))?
                } else {
                    let before = there(&by.rights, Permission::KeysRevoke, before)?;
                    may_end(&by.rights, &before.grants)?;
                    before
                };
                if before.revoked_at.is_some() {
                    return Ok(before);
                }
                let after = revoked(change, &before);
                finish(change, "key.revoke", &before, after, false).await
            })
            .await
    }

    /// Stops a key until it is enabled.
    pub async fn disable(&self, by: By, reference: String) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = there(&by.rights, Permission::KeysRevoke, before)?;
                may_end(&by.rights, &before.grants)?;
                refuse_revoked(&before)?;
                if before.disabled_at.is_some() {
                    return Ok(before);
                }
                let after = disabled(change, &before);
                finish(change, "key.disable", &before, after, false).await
            })
            .await
    }

    pub async fn enable(&self, by: By, reference: String) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = there(&by.rights, Permission::KeysWrite, before)?;
                may_wield(&by.rights, &before.grants)?;
                refuse_revoked(&before)?;
                if before.disabled_at.is_none() {
                    return Ok(before);
                }
                let mut after = before.clone();
                after.disabled_at = None;
                after.reason = None;
                finish(change, "key.enable", &before, after, false).await
            })
            .await
    }

    /// Ends one secret at once.
    pub async fn revoke_secret(&self, by: By, reference: String, secret: String) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = there(&by.rights, Permission::KeysRevoke, before)?;
                may_end(&by.rights, &before.grants)?;
                let mut after = before.clone();
                let now = change.now();
                let found = secret_of(&mut after, &secret)?;
                if found.revoked_at.is_some() {
                    return Ok(before);
                }
                refuse_revoked(&before)?;
                found.revoked_at = Some(now);
                let found = found.clone();
                store::update_secret(change.conn(), &found).await?;
                finish(change, "secret.revoke", &before, after, false).await
            })
            .await
    }

    /// Ends a secret at an instant, or stretches its overlap.
    pub async fn update_secret(
        &self,
        by: By,
        reference: String,
        secret: String,
        valid_until: Option<Timestamp>,
        if_match: Option<i64>,
    ) -> Result<Key> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let before = find(change, &reference).await?;
                let before = there(&by.rights, Permission::KeysWrite, before)?;
                may_wield(&by.rights, &before.grants)?;
                check_version(&before, if_match)?;
                refuse_revoked(&before)?;
                let now = change.now();
                let mut after = before.clone();
                if let (Some(until), Some(end)) = (valid_until, before.expires_at)
                    && until > end
                {
                    return Err(Error::invalid(
                        "/valid_until",
                        "must not lie past the end of the key",
                    ));
                }
                let found = secret_of(&mut after, &secret)?;
                if found.revoked_at.is_some() {
                    return Err(Error::conflict(
                        Conflict::KeyRevoked,
                        "a revoked secret stays revoked",
                    ));
                }
                let longest = found.superseded_at.map(|at| at.plus(OVERLAP_MAX));
                if let (Some(until), Some(longest)) = (valid_until, longest)
                    && until > longest
                {
                    return Err(Error::invalid(
                        "/valid_until",
                        "must lie within 30d of the rotation that superseded the secret",
                    ));
                }
                if valid_until.is_none() && found.superseded_at.is_some() {
                    return Err(Error::invalid(
                        "/valid_until",
                        "must be a time: a superseded secret has an end",
                    ));
                }
                found.valid_until = valid_until;
                let found = found.clone();
                if after.live_secrets(now).count() > LIVE_SECRETS_MAX {
                    return Err(too_many_secrets());
                }
                store::update_secret(change.conn(), &found).await?;
                finish(change, "secret.update", &before, after, false).await
            })
            .await
    }

    /// Lends a plaintext its lookup id and, `with_verifier`, its argon2id verifier.
    async fn mint(
        &self,
        prefix: Prefix,
        environment: Environment,
        lookup_id: Option<LookupId>,
        with_verifier: bool,
    ) -> Result<Minted> {
        let lookup_id = lookup_id.unwrap_or_else(|| LookupId::new(&self.entropy));
        let api_key = ApiKey::generate(&prefix, &environment, &lookup_id, &self.entropy);
        let verifier = if with_verifier {
            Some(
                self.hasher
                    .hash(&api_key)
                    .await
                    .map_err(|_busy| Error::Busy)?,
            )
        } else {
            None
        };
        Ok(Minted {
            lookup_id,
            prefix,
            environment,
            api_key,
            verifier,
        })
    }
}

/// Limits a filter to what the caller may see.
pub(super) async fn restrict(
    conn: &mut Conn,
    tenant: &TenantRef,
    reach: Reach,
    filter: &mut KeyFilter,
) -> Result<()> {
    if let Reach::Only(slugs) = reach {
        let mut ids: Vec<ServiceId> = Vec::with_capacity(slugs.len());
        for slug in slugs {
            if let Some(service) = services::store::load_by_slug(conn, &tenant.id, &slug).await? {
                ids.push(service.id);
            }
        }
        filter.visible_services = Some(ids);
    }
    Ok(())
}

pub(super) fn check_batch(len: usize, pointer: &str) -> Result<()> {
    if len == 0 {
        return Err(Error::invalid(pointer, "must have at least one item"));
    }
    if len > BATCH_MAX {
        return Err(Error::invalid(pointer, "must have at most 1000 items"));
    }
    Ok(())
}

fn under(index: usize, wrong: Vec<Violation>) -> impl Iterator<Item = Violation> {
    wrong.into_iter().map(move |violation| Violation {
        pointer: format!("/items/{index}{}", violation.pointer),
        detail: violation.detail,
    })
}

/// Puts the index of a batch before the pointers of an error.
fn within(index: Option<usize>, error: Error) -> Error {
    match (index, error) {
        (Some(index), Error::Invalid(wrong)) => Error::Invalid(under(index, wrong).collect()),
        (_, error) => error,
    }
}

async fn find(change: &mut Change, reference: &str) -> Result<Option<Key>> {
    let tenant = change.attribution().tenant.id.clone();
    Ok(store::find(change.conn(), &tenant, reference).await?)
}

async fn load(change: &mut Change, id: &str) -> Result<Key> {
    find(change, id).await?.ok_or(Error::NotFound("key"))
}

async fn replayed(change: &mut Change, ids: &[String]) -> Result<Key> {
    match ids.first() {
        Some(id) => load(change, id).await,
        None => Err(Error::NotFound("key")),
    }
}

/// A key is there for who may read it, or do what is asked, for one of its services; for others not.
fn there(rights: &Rights, permission: Permission, key: Option<Key>) -> Result<Key> {
    key.filter(|key| {
        key.services().any(|service| {
            rights.allows(Permission::KeysRead, Some(service))
                || rights.allows(permission, Some(service))
        })
    })
    .ok_or(Error::NotFound("key"))
}

fn check_version(key: &Key, if_match: Option<i64>) -> Result<()> {
    match if_match {
        Some(version) if version != key.version => Err(Error::VersionMismatch {
            current: key.version,
        }),
        _ => Ok(()),
    }
}

fn refuse_revoked(key: &Key) -> Result<()> {
    if key.revoked_at.is_some() {
        return Err(Error::conflict(
            Conflict::KeyRevoked,
            "the key is revoked, and that is final; issue another",
        ));
    }
    Ok(())
}

fn too_many_secrets() -> Error {
    Error::conflict(
        Conflict::TooManySecrets,
        "three secrets of the key are live; end one, or rotate with a shorter overlap",
    )
}

fn secret_of<'k>(key: &'k mut Key, id: &str) -> Result<&'k mut Secret> {
    key.secrets
        .iter_mut()
        .find(|secret| secret.id.as_str() == id)
        .ok_or(Error::NotFound("secret"))
}

/// Inserts one key of a plan that is made again inside the change: what was read before may have
/// changed since.
async fn insert(
    change: &mut Change,
    parents: &mut Parents,
    rights: &Rights,
    peppers: &Peppers,
    new: &NewKey,
    minted: Minted,
) -> Result<Issued> {
    let tenant = change.attribution().tenant.clone();
    let now = change.now();
    let plan = plan(change.conn(), parents, &tenant, new, now)
        .await?
        .map_err(Error::Invalid)?;
    may_wield(rights, &plan.grants)?;
    if plan.policy.prefix != minted.prefix || plan.environment != minted.environment {
        // The policy changed between the two looks: a repetition meets the new one.
        return Err(Error::Busy);
    }
    if let Some(external_id) = &new.external_id {
        refuse_taken(change, external_id, None).await?;
    }
    let id = KeyId::new(change.clock(), change.entropy());
    let mut key = Key {
        id,
        tenant_id: tenant.id.clone(),
        consumer: plan.consumer,
        lookup_id: minted.lookup_id.clone(),
        prefix: minted.prefix.clone(),
        environment: minted.environment.clone(),
        name: new.name.clone(),
        external_id: new.external_id.clone(),
        not_before: new.not_before,
        expires_at: plan.expires_at,
        rate_limits: new.rate_limits.clone(),
        quota: new.quota,
        allowed_ips: new
            .allowed_ips
            .as_ref()
            .map(|ips| ips.iter().map(|ip| ip.0).collect()),
        metadata: new.metadata.clone(),
        tags: sorted(new.tags.clone()),
        disabled_at: None,
        revoked_at: None,
        revoked_by: None,
        reason: None,
        rotated_at: None,
        last_used_at: None,
        version: 1,
        created_at: now,
        created_by: change.attribution().actor.clone(),
        updated_at: now,
        grants: plan.grants,
        secrets: Vec::new(),
    };
    store::insert(change.conn(), &key).await?;
    let (secret, api_key) = add_secret(change, peppers, &key.id, minted).await?;
    key.secrets.push(secret);
    record(change, "key.create", None, &key);
    Ok(Issued { key, api_key })
}

fn sorted(mut tags: Vec<crate::text::Tag>) -> Vec<crate::text::Tag> {
    tags.sort();
    tags.dedup();
    tags
}

async fn refuse_taken(
    change: &mut Change,
    external_id: &crate::text::ExternalId,
    own: Option<&KeyId>,
) -> Result<()> {
    let tenant = change.attribution().tenant.id.clone();
    match store::id_by_external(change.conn(), &tenant, external_id).await? {
        Some(id) if Some(&id) != own => Err(Error::taken(
            Conflict::ExternalIdTaken,
            "another key has this external_id",
            id.as_str(),
        )),
        _ => Ok(()),
    }
}

/// Stores what proves a plaintext, under the pepper that the database calls current.
async fn add_secret(
    change: &mut Change,
    peppers: &Peppers,
    key: &KeyId,
    minted: Minted,
) -> Result<(Secret, ApiKey)> {
    let (pepper_version, fingerprint) = peppers
        .fingerprint_current(change.conn(), &minted.api_key)
        .await?;
    let secret = Secret {
        id: SecretId::new(change.clock(), change.entropy()),
        created_at: change.now(),
        valid_until: None,
        superseded_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    let new = NewSecret {
        id: secret.id.clone(),
        fingerprint,
        pepper_version,
        verifier: minted.verifier.map(|verifier| verifier.as_str().to_owned()),
        created_at: secret.created_at,
        valid_until: None,
    };
    store::insert_secret(change.conn(), key, &new).await?;
    // What a node remembers as unknown may be this key now.
    change.touch(Kind::LookupId, minted.lookup_id.as_str());
    Ok((secret, minted.api_key))
}

async fn rotate(
    change: &mut Change,
    peppers: &Peppers,
    before: Key,
    rotation: &Rotation,
    minted: Minted,
    own: bool,
) -> Result<Issued> {
    let now = change.now();
    refuse_revoked(&before)?;
    if before.expires_at.is_some_and(|end| end <= now) {
        return Err(Error::conflict(
            Conflict::KeyExpired,
            "the key has expired; give it a new end first, or issue another",
        ));
    }
    let mut services = Vec::with_capacity(before.grants.len());
    for grant in &before.grants {
        if let Some(service) = services::store::load_by_id(change.conn(), &grant.service_id).await?
        {
            services.push(service);
        }
    }
    let services: Vec<&Service> = services.iter().collect();
    let policy = Policy::of(&services).ok_or(Error::NotFound("service"))?;
    if own && !policy.self_rotate {
        return Err(Error::Forbidden("key_policy.self_rotate".to_owned()));
    }
    let overlap = rotation.overlap.unwrap_or(policy.rotation_overlap);
    if overlap > OVERLAP_MAX {
        return Err(Error::invalid("/overlap", "must be at most 30d"));
    }
    let mut after = before.clone();
    if rotation.ttl.is_some() || rotation.expires_at.is_some() {
        let mut errors = Vec::new();
        after.expires_at = policy.end(rotation.ttl, rotation.expires_at, now, &mut errors);
        issue::check_span(after.not_before, after.expires_at, &mut errors);
        if !errors.is_empty() {
            return Err(Error::Invalid(errors));
        }
    }
    let mut until = now.plus(overlap);
    if let Some(end) = after.expires_at {
        until = until.min(end);
    }
    let mut ended = Vec::new();
    for secret in &mut after.secrets {
        if secret.is_live(now) && secret.superseded_at.is_none() {
            secret.superseded_at = Some(now);
            secret.valid_until = Some(secret.valid_until.map_or(until, |end| end.min(until)));
            ended.push(secret.clone());
        }
    }
    if after.live_secrets(now).count() >= LIVE_SECRETS_MAX {
        return Err(too_many_secrets());
    }
    for secret in &ended {
        store::update_secret(change.conn(), secret).await?;
    }
    let (secret, api_key) = add_secret(change, peppers, &before.id, minted).await?;
    after.secrets.insert(0, secret);
    after.rotated_at = Some(now);
    let key = finish(change, "key.rotate", &before, after, false).await?;
    Ok(Issued { key, api_key })
}

async fn apply(change: &mut Change, rights: &Rights, key: &mut Key, patch: KeyPatch) -> Result<()> {
    let tenant = change.attribution().tenant.clone();
    let now = change.now();
    let mut errors = Vec::new();
    issue::check_rules(
        patch.allowed_ips.as_ref().and_then(|ips| ips.as_deref()),
        patch.tags.as_ref().and_then(|tags| tags.as_deref()),
        &mut errors,
    );
    if let Some(grants) = &patch.grants {
        let services = Parents::default()
            .services(change.conn(), &tenant, grants)
            .await?;
        key.grants = issue::check_grants(grants, &services, &mut errors);
        if let Some(policy) = Policy::of(&services.iter().flatten().collect::<Vec<_>>()) {
            policy.environment(Some(&key.environment), &mut errors);
        }
    }
    if let Some(not_before) = patch.not_before {
        key.not_before = not_before;
    }
    let new_end = patch.ttl.is_some() || patch.expires_at.is_some();
    if new_end || patch.grants.is_some() {
        let mut services = Vec::with_capacity(key.grants.len());
        for grant in &key.grants {
            services.extend(services::store::load_by_id(change.conn(), &grant.service_id).await?);
        }
        if let Some(policy) = Policy::of(&services.iter().collect::<Vec<_>>()) {
            // max_ttl counts from the creation, or from the rotation that came last.
            let from = key.rotated_at.unwrap_or(key.created_at);
            // The end that the key has is judged by the services that it grants from now on.
            let end = if new_end {
                policy.end(patch.ttl, patch.expires_at, now, &mut errors)
            } else {
                if key.expires_at.is_none() && !policy.allow_no_expiry {
                    errors.push(Violation::new(
                        "/expires_at",
                        "must be given: a service of the new grants has no allow_no_expiry",
                    ));
                }
                key.expires_at
            };
            if let (Some(max), Some(end)) = (policy.ttl_max, end)
                && end > from.plus(max)
                && errors.is_empty()
            {
                errors.push(Violation::new(
                    "/expires_at",
                    format!("must lie within max_ttl, {max}, of the creation or last rotation"),
                ));
            }
            key.expires_at = end;
        }
    }
    if let Some(metadata) = patch.metadata {
        match metadata {
            None => key.metadata = Metadata::default(),
            Some(metadata) => match key.metadata.patched(metadata) {
                Ok(patched) => key.metadata = patched,
                Err(detail) => errors.push(Violation::new("/metadata", detail)),
            },
        }
    }
    match patch.quota {
        None => {}
        Some(None) => key.quota = None,
        Some(Some(quota)) => match quota.apply(key.quota) {
            Ok(quota) => key.quota = Some(quota),
            Err(detail) => errors.push(Violation::new("/quota", detail)),
        },
    }
    issue::check_span(key.not_before, key.expires_at, &mut errors);
    if !errors.is_empty() {
        return Err(Error::Invalid(errors));
    }
    may_wield(rights, &key.grants)?;
    if let Some(name) = patch.name {
        key.name = name;
    }
    if let Some(limits) = patch.rate_limits {
        key.rate_limits = limits.unwrap_or_default();
    }
    if let Some(ips) = patch.allowed_ips {
        key.allowed_ips = ips.map(|ips| ips.into_iter().map(|ip| ip.0).collect());
    }
    if let Some(tags) = patch.tags {
        key.tags = sorted(tags.unwrap_or_default());
    }
    if let Some(external_id) = patch.external_id {
        if let Some(external_id) = &external_id {
            refuse_taken(change, external_id, Some(&key.id)).await?;
        }
        key.external_id = external_id;
    }
    Ok(())
}

pub(super) fn revoked(change: &Change, before: &Key) -> Key {
    let mut after = before.clone();
    after.revoked_at = Some(change.now());
    after.revoked_by = Some(change.attribution().actor.clone());
    after.reason.clone_from(&change.attribution().reason);
    after
}

pub(super) fn disabled(change: &Change, before: &Key) -> Key {
    let mut after = before.clone();
    after.disabled_at = Some(change.now());
    after.reason.clone_from(&change.attribution().reason);
    after
}

/// Writes a changed key, raises its version, leaves its line and makes decisions look again.
///
/// A change that changes nothing is answered without a version, a line or a step of the feed.
pub(super) async fn finish(
    change: &mut Change,
    action: &'static str,
    before: &Key,
    mut after: Key,
    rules: bool,
) -> Result<Key> {
    if action == "key.update" && shown(change, before) == shown(change, &after) {
        return Ok(before.clone());
    }
    after.version = before.version + 1;
    after.updated_at = change.now();
    store::update(change.conn(), &after, rules).await?;
    record(change, action, Some(before), &after);
    change.touch(Kind::Key, after.id.as_str());
    Ok(after)
}

fn shown(change: &Change, key: &Key) -> Value {
    let tenant = &change.attribution().tenant.slug;
    serde_json::to_value(KeyView::new(key, tenant, change.now())).unwrap_or_else(|_| json!(null))
}

fn record(change: &mut Change, action: &'static str, before: Option<&Key>, after: &Key) {
    let before = before.map(|key| shown(change, key));
    let after_shown = shown(change, after);
    change.record(
        action,
        ("key", after.id.as_str()),
        before,
        Some(after_shown),
    );
}
