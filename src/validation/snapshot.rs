//! What a validation is decided from: the identity and rules of one secret's key, never a decision.
//!
//! Consumer, service and tenant are entries of their own, joined at decision time, so that a change
//! of a service makes one entry stale and not its million keys.

use std::sync::Arc;

use ipnet::IpNet;

use crate::consumers::Consumer;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId};
use crate::keys::catalogue::Catalogue;
use crate::limits::{Quota, RateLimits};
use crate::metadata::Metadata;
use crate::scope::Scope;
use crate::services::Service;
use crate::tenants::Tenant;
use crate::text::{Environment, Name, Tag};
use crate::time::Timestamp;

/// A key as one of its secrets proves it.
#[derive(Clone, Debug)]
pub struct KeySnapshot {
    pub key_id: KeyId,
    pub tenant_id: TenantId,
    pub consumer_id: ConsumerId,
    pub environment: Environment,
    pub name: Name,
    pub not_before: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub disabled: bool,
    pub revoked: bool,
    pub allowed_ips: Option<Vec<IpNet>>,
    pub rate_limits: RateLimits,
    pub quota: Option<Quota>,
    pub metadata: Metadata,
    pub tags: Vec<Tag>,
    pub grants: Vec<GrantSnapshot>,
    pub secret: SecretSnapshot,
}

#[derive(Clone, Debug)]
pub struct GrantSnapshot {
    pub service_id: ServiceId,
    pub scopes: Vec<Scope>,
    pub rate_limits: Option<RateLimits>,
}

/// The secret that was presented.
#[derive(Clone, Debug)]
pub struct SecretSnapshot {
    pub id: SecretId,
    pub valid_until: Option<Timestamp>,
    pub superseded: bool,
    pub revoked: bool,
}

/// Everything that one decision is made from.
#[derive(Clone, Debug)]
pub struct Subject {
    pub key: Arc<KeySnapshot>,
    pub consumer: Arc<Consumer>,
    pub tenant: Arc<Tenant>,
    /// The service asked for; `None` when there is none by that name.
    pub service: Option<Arc<ServiceEntry>>,
    /// Whether a service is asked for at all: a holder's own affairs ask for none.
    pub asks_service: bool,
}

/// A service with its scope catalogue, built once when it is loaded.
#[derive(Clone, Debug)]
pub struct ServiceEntry {
    pub service: Service,
    pub catalogue: Catalogue,
}

impl ServiceEntry {
    pub fn new(service: Service) -> Self {
        // It was checked when it was stored; one that is not whole implies nothing.
        let catalogue = Catalogue::new(&service.settings.scopes, "").unwrap_or_default();
        Self { service, catalogue }
    }
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

    /// When the presented secret stops being good, by the clock alone.
    pub fn end(&self) -> Option<Timestamp> {
        match (self.key.expires_at, self.key.secret.valid_until) {
            (Some(key), Some(secret)) => Some(key.min(secret)),
            (key, secret) => key.or(secret),
        }
    }
}
