//! What a validation is decided from: the identity and rules of one secret's key, never a decision.
//!
//! Consumer, service and tenant are entries of their own, joined at decision time, so that a change
//! of a service makes one entry stale and not its million keys. What is only told, and never
//! decided by, is written once, when the snapshot is made: the members of the answer as JSON text.
//!
//! There may be a million keys of a few kinds: what they have in common is kept once, see [`Common`], and
//! never changed. A key that changes is read again, and becomes another snapshot.

use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock, OnceLock};

use ipnet::IpNet;
use serde::Serialize;

use super::last_used::LastNoted;
use super::told::{Told, ToldSecret};
use crate::audit::TenantRef;
use crate::cache::{Entry, Shared};
use crate::consumers::Consumer;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId};
use crate::keys::catalogue::Catalogue;
use crate::limits::{Quota, RateLimit, RateLimits};
use crate::metadata::Metadata;
use crate::ratelimit::{CounterId, HashTag, QuotaCharge};
use crate::rights::Rights;
use crate::scope::{RequiredScope, Scope};
use crate::services::Service;
use crate::tenants::Tenant;
use crate::text::{Environment, ExternalId, Name, Slug};
use crate::time::Timestamp;

/// A key as one of its secrets proves it.
#[derive(Clone, Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is by itself: any of them may be set whatever the others are"
)]
pub struct KeySnapshot {
    pub key_id: KeyId,
    pub owner: Arc<Owner>,
    pub terms: Arc<Terms>,
    pub not_before: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub disabled: bool,
    pub revoked: bool,
    /// The secret that was presented. It lies flat, and so do its marks: there are no gaps between them.
    pub secret_id: SecretId,
    pub secret_until: Option<Timestamp>,
    pub superseded: bool,
    pub secret_revoked: bool,
    /// What every counter of its terms, and of the defaults of services, is paired with.
    pub counter: CounterId,
    pub told: Told,
    pub last_noted: LastNoted,
}

impl KeySnapshot {
    /// What is told of it: members of an object as JSON text.
    pub fn told_to(&self, out: &mut String) {
        self.told.write(&self.owner, &self.secret(), out);
    }

    fn secret(&self) -> ToldSecret<'_> {
        ToldSecret {
            id: &self.secret_id,
            valid_until: self.secret_until,
            superseded: self.superseded,
        }
    }
}

/// Whose a key is, and what is told of many.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub tenant_id: TenantId,
    pub consumer_id: ConsumerId,
    pub environment: Environment,
    /// See [`Told`].
    pub told: Box<str>,
}

/// What a key may do, from where and how often.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms {
    pub grants: Arc<[GrantSnapshot]>,
    pub limits: Arc<[Counted]>,
    pub quota: Option<QuotaCharge>,
    pub allowed_ips: Option<Box<[IpNet]>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GrantSnapshot {
    pub service_id: ServiceId,
    pub scopes: Box<[Scope]>,
    pub limits: Box<[Counted]>,
    /// Paired with a key's counter and the name of a default of the service: the key's counter for it.
    pub defaults: CounterId,
    pub rights: GrantedRights,
}

/// What the scopes of a grant on `keystead` come to, worked out when a key with them is first used as a
/// credential. It is no part of what a grant is: no two differ by it.
#[derive(Clone, Debug, Default)]
pub struct GrantedRights(OnceLock<Rights>);

impl PartialEq for GrantedRights {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for GrantedRights {}

impl Hash for GrantedRights {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What keys have in common, kept once while any of them is remembered.
#[derive(Debug, Default)]
pub struct Common {
    pub owners: Shared<Owner>,
    pub terms: Shared<Terms>,
    /// Of these, those of keys that differ in the rest of their terms.
    pub grants: Shared<[GrantSnapshot]>,
    pub limits: Shared<[Counted]>,
}

/// A rate limit and the counter it is kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Counted {
    pub counter: CounterId,
    pub limit: RateLimit,
}

impl Counted {
    /// The limits of `owner`, or of nobody, to be paired with the counter of whose they are; `kind` tells
    /// those of one owner apart.
    pub fn all(owner: &str, kind: &str, limits: RateLimits) -> Box<[Self]> {
        limits
            .into_iter()
            .map(|limit| Self {
                counter: CounterId::new(owner, kind, limit.name.as_str()),
                limit,
            })
            .collect()
    }
}

/// A quota and the counter it is kept by.
pub fn counted_quota(owner: &str, quota: Option<Quota>) -> Option<QuotaCharge> {
    quota.map(|quota| QuotaCharge {
        counter: CounterId::new(owner, "quota", ""),
        quota,
    })
}

/// What is told of a consumer.
#[derive(Serialize)]
struct ConsumerTold<'a> {
    id: &'a ConsumerId,
    slug: &'a Slug,
    name: &'a Name,
    metadata: &'a Metadata,
}

/// A consumer as its keys' decisions need it.
#[derive(Clone, Debug)]
pub struct ConsumerSnapshot {
    pub id: ConsumerId,
    pub slug: Slug,
    pub external_id: Option<ExternalId>,
    pub is_active: bool,
    /// Shared by all its keys.
    pub limits: Box<[Counted]>,
    pub quota: Option<QuotaCharge>,
    /// Under which its counters, and those of its keys, are kept together.
    pub tag: HashTag,
    /// [`ConsumerTold`] as JSON.
    pub told: Box<str>,
}

impl ConsumerSnapshot {
    /// # Errors
    /// A consumer without a JSON form: there is none.
    pub fn new(consumer: Consumer) -> Result<Self, serde_json::Error> {
        let told = serde_json::to_string(&ConsumerTold {
            id: &consumer.id,
            slug: &consumer.slug,
            name: &consumer.name,
            metadata: &consumer.metadata,
        })?;
        Ok(Self {
            is_active: is_active(consumer.disabled_at, consumer.deleted_at),
            limits: Counted::all(consumer.id.as_str(), "limit", consumer.rate_limits),
            quota: counted_quota(consumer.id.as_str(), consumer.quota),
            tag: HashTag::new(&consumer.tenant_id, &consumer.id),
            id: consumer.id,
            slug: consumer.slug,
            external_id: consumer.external_id,
            told: told.into(),
        })
    }
}

/// A tenant as decisions need it.
#[derive(Clone, Debug)]
pub struct TenantSnapshot {
    pub id: TenantId,
    pub slug: Slug,
    pub is_active: bool,
    /// Who may act in other tenants may in one that is disabled, but in none that is deleted.
    pub is_deleted: bool,
}

impl TenantSnapshot {
    pub fn to_ref(&self) -> TenantRef {
        TenantRef {
            id: self.id.clone(),
            slug: self.slug.clone(),
        }
    }
}

impl From<Tenant> for TenantSnapshot {
    fn from(tenant: Tenant) -> Self {
        Self {
            is_active: is_active(tenant.disabled_at, tenant.deleted_at),
            is_deleted: tenant.deleted_at.is_some(),
            id: tenant.id,
            slug: tenant.slug,
        }
    }
}

fn is_active(disabled_at: Option<Timestamp>, deleted_at: Option<Timestamp>) -> bool {
    disabled_at.is_none() && deleted_at.is_none()
}

/// A service with its scope catalogue, built once when it is loaded.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    pub service: Service,
    pub catalogue: Catalogue,
    pub is_active: bool,
    /// The defaults for keys that name no limits, by names that are paired with a key's.
    pub limits: Box<[Counted]>,
    pub quota: Option<QuotaCharge>,
}

impl ServiceEntry {
    pub fn new(service: Service) -> Self {
        // It was checked when it was stored; one that is not whole implies nothing.
        let catalogue = Catalogue::new(&service.settings.scopes, "").unwrap_or_default();
        Self {
            is_active: is_active(service.disabled_at, service.deleted_at),
            limits: Counted::all("", "default", service.settings.rate_limits.clone()),
            quota: counted_quota("default", service.settings.quota),
            service,
            catalogue,
        }
    }
}

/// Everything that one decision is made from.
#[derive(Clone, Debug)]
pub struct Subject {
    pub key: Arc<Entry<KeySnapshot>>,
    pub consumer: Arc<Entry<ConsumerSnapshot>>,
    pub tenant: Arc<Entry<TenantSnapshot>>,
    /// The service asked for; `None` when there is none by that name.
    pub service: Option<Arc<Entry<ServiceEntry>>>,
    /// Whether a service is asked for at all: a holder's own affairs ask for none.
    pub asks_service: bool,
    /// The part of what is granted on the service that a token stands for; `None` for all of it.
    pub narrowed: Option<Arc<[Scope]>>,
}

impl Subject {
    /// The key's grant on the service asked for.
    pub fn grant(&self) -> Option<&GrantSnapshot> {
        let service = &self.service.as_ref()?.service;
        let mut grants = self.key.terms.grants.iter();
        grants.find(|grant| grant.service_id == service.id)
    }

    /// What may be done on the service asked for: nothing without a grant.
    pub fn scopes(&self) -> &[Scope] {
        match (self.grant(), &self.narrowed) {
            (Some(_), Some(narrowed)) => narrowed,
            (Some(grant), None) => &grant.scopes,
            (None, _) => &[],
        }
    }

    /// The same with no more on the service asked for than `scopes` and what it had before both allow: of
    /// either what the other satisfies.
    #[must_use]
    pub fn narrowed_to(mut self, scopes: &[Scope]) -> Self {
        if let (Some(_), Some(service)) = (self.grant(), &self.service) {
            let within = |these: &[Scope], those: &[Scope]| {
                let satisfied = |scope: &&Scope| {
                    let exactly = RequiredScope::Exact(Scope::clone(scope));
                    service.catalogue.satisfied(those, &exactly)
                };
                these.iter().filter(satisfied).cloned().collect::<Vec<_>>()
            };
            let before = self.scopes();
            let mut both = within(scopes, before);
            for scope in within(before, scopes) {
                if !both.contains(&scope) {
                    both.push(scope);
                }
            }
            self.narrowed = Some(both.into());
        }
        self
    }

    /// The same key asked for another service, with all that it grants there.
    #[must_use]
    pub fn on(&self, service: Arc<Entry<ServiceEntry>>) -> Self {
        Self {
            service: Some(service),
            asks_service: true,
            narrowed: None,
            ..self.clone()
        }
    }

    /// Whether what may be done on the service asked for is enough for this scope.
    pub fn has(&self, required: &RequiredScope) -> bool {
        self.service
            .as_ref()
            .is_some_and(|service| service.catalogue.satisfied(self.scopes(), required))
    }

    /// What the key may do in the administration, when `keystead` is the service asked for.
    pub fn rights(&self) -> &Rights {
        static NONE: LazyLock<Rights> = LazyLock::new(Rights::none);
        self.grant().map_or(&*NONE, |grant| {
            let rights = &grant.rights.0;
            rights.get_or_init(|| Rights::new(&*grant.scopes))
        })
    }

    /// When the presented secret stops being good, by the clock alone.
    pub fn end(&self) -> Option<Timestamp> {
        match (self.key.expires_at, self.key.secret_until) {
            (Some(key), Some(secret)) => Some(key.min(secret)),
            (key, secret) => key.or(secret),
        }
    }
}
