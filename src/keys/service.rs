//! What can be done with keys. Each verb is one change: read, judge, write, one line a key.

use std::collections::HashSet;
use std::sync::Arc;

use super::hash::Hasher;
use super::issue::{KeyPatch, NewKey};
use super::key::{Key, LIVE_SECRETS_MAX};
use super::may::{may_end, may_wield, there};
use super::pepper::Peppers;
use super::plan::{Parents, plan};
use super::secret::{ApiKey, LookupId};
use super::store::{self, KeyFilter};
use super::verifier_queue::VerifierQueue;
use super::work::{
    Minted, apply, check_version, disabled, find, finish, insert, load, refuse_revoked, replayed,
    replayed_batch, revoked, rotate, secret_of, too_many_secrets,
};
use crate::audit::{Attribution, Audit, Change, TenantRef};
use crate::clock::Clock;
use crate::consumers;
use crate::db::{Conn, Db};
use crate::entropy::Entropy;
use crate::error::{Conflict, Error, Result, Violation};
use crate::id::ServiceId;
use crate::idempotency::{self, Claim, Idempotent};
use crate::page::{Page, PageRequest};
use crate::rights::{Permission, Reach, Rights};
use crate::services;
use crate::text::{Environment, Prefix};
use crate::time::{Span, Timestamp};

/// At most so many keys in one batch.
pub const BATCH_MAX: usize = 1000;

/// The longest overlap of a rotation.
pub(super) const OVERLAP_MAX: Span = Span::days(30);

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
                let (rights, new) = (&by.rights, std::slice::from_ref(&new));
                let place = |_| String::new();
                let issued = insert(change, rights, &peppers, new, vec![minted], place).await?;
                let issued = issued.into_iter().next().ok_or(Error::NotFound("key"))?;
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
                let mut external_ids = HashSet::new();
                for (index, new) in asked.iter().enumerate() {
                    if let Some(external_id) = &new.external_id
                        && !external_ids.insert(external_id.as_str())
                    {
                        let given = Violation::new("/external_id", "is given to a key above");
                        errors.extend(under(index, vec![given]));
                    }
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
                    let keys = replayed_batch(change, &ids).await?;
                    return Ok(Idempotent::Replayed(keys));
                }
                let issued = insert(change, &by.rights, &peppers, &batch, minted, item).await?;
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
                if own {
                    let before = find(change, &reference).await?;
                    return revoke(change, before.ok_or(Error::NotFound("key"))?).await;
                }
                revoke_within(change, &by.rights, &reference).await
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

/// Ends a key for good as part of a larger change, with the rights of who makes it.
///
/// # Errors
/// As [`Keys::revoke`].
pub async fn revoke_within(change: &mut Change, rights: &Rights, reference: &str) -> Result<Key> {
    let before = find(change, reference).await?;
    let before = there(rights, Permission::KeysRevoke, before)?;
    may_end(rights, &before.grants)?;
    revoke(change, before).await
}

async fn revoke(change: &mut Change, before: Key) -> Result<Key> {
    if before.revoked_at.is_some() {
        return Ok(before);
    }
    let after = revoked(change, &before);
    finish(change, "key.revoke", &before, after, false).await
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
    let place = item(index);
    wrong
        .into_iter()
        .map(move |violation| violation.under(&place))
}

/// The pointer to a key of a batch.
fn item(index: usize) -> String {
    format!("/items/{index}")
}
