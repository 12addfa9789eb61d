//! What a validation is decided from: the identity and rules of one secret's key, never a decision.
//!
//! Consumer, service and tenant are entries of their own, joined at decision time, so that a change
//! of a service makes one entry stale and not its million keys. What is only told, and never
//! decided by, is written once, when the snapshot is made: the members of the answer as JSON text.

use std::sync::{Arc, OnceLock};

use ipnet::IpNet;
use serde::Serialize;

use super::last_used::LastNoted;
use crate::audit::TenantRef;
use crate::cache::Entry;
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
use crate::text::{Environment, ExternalId, Name, Slug, Tag};
use crate::time::Timestamp;

/// A key as one of its secrets proves it.
#[derive(Clone, Debug)]
pub struct KeySnapshot {
    pub key_id: KeyId,
    pub tenant_id: TenantId,
    pub consumer_id: ConsumerId,
    pub environment: Environment,
    pub not_before: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub disabled: bool,
    pub revoked: bool,
    pub allowed_ips: Option<Box<[IpNet]>>,
    pub limits: Box<[Counted]>,
    pub quota: Option<QuotaCharge>,
    pub grants: Box<[GrantSnapshot]>,
    pub secret: SecretSnapshot,
    /// [`KeyTold`] without its braces.
    pub told: Box<str>,
    /// Of a management key, worked out at its first use as a credential.
    pub rights: OnceLock<Rights>,
    pub last_noted: LastNoted,
}

#[derive(Clone, Debug)]
pub struct GrantSnapshot {
    pub service_id: ServiceId,
    pub scopes: Box<[Scope]>,
    pub limits: Box<[Counted]>,
    /// Paired with the name of a default of the service: the key's counter for it.
    pub defaults: CounterId,
}

/// A rate limit and the counter it is kept by.
#[derive(Clone, Debug)]
pub struct Counted {
    pub counter: CounterId,
    pub limit: RateLimit,
}

impl Counted {
    /// The limits of `owner`; `kind` tells those of one owner apart.
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

/// The secret that was presented.
#[derive(Clone, Debug)]
pub struct SecretSnapshot {
    pub id: SecretId,
    pub valid_until: Option<Timestamp>,
    pub superseded: bool,
    pub revoked: bool,
}

/// What is told of a key and the secret that was presented.
#[derive(Serialize)]
pub struct KeyTold<'a> {
    pub name: &'a Name,
    pub environment: &'a Environment,
    pub metadata: &'a Metadata,
    pub tags: &'a [Tag],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    pub secret: SecretTold<'a>,
}

#[derive(Serialize)]
pub struct SecretTold<'a> {
    pub id: &'a SecretId,
    pub superseded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
}

/// What is told of a consumer.
#[derive(Serialize)]
struct ConsumerTold<'a> {
    id: &'a ConsumerId,
    slug: &'a Slug,
    name: &'a Name,
    metadata: &'a Metadata,
}

/// Members of an object as JSON text, without the braces around them.
pub fn members<T: Serialize>(told: &T) -> Result<Box<str>, serde_json::Error> {
    let text = serde_json::to_string(told)?;
    let inner = text
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    Ok(Box::from(inner.unwrap_or_default()))
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
        self.key
            .grants
            .iter()
            .find(|grant| grant.service_id == service.id)
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
        self.key.rights.get_or_init(|| {
            let scopes = self.grant().map(|grant| &*grant.scopes);
            Rights::new(scopes.unwrap_or_default())
        })
    }

    /// When the presented secret stops being good, by the clock alone.
    pub fn end(&self) -> Option<Timestamp> {
        match (self.key.expires_at, self.key.secret.valid_until) {
            (Some(key), Some(secret)) => Some(key.min(secret)),
            (key, secret) => key.or(secret),
        }
    }
}
