//! A key and its secrets, as they are stored and as they are shown. Never a plaintext.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::audit::Actor;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId};
use crate::keys::secret::LookupId;
use crate::limits::{Quota, RateLimits};
use crate::metadata::Metadata;
use crate::scope::Scope;
use crate::text::{Environment, ExternalId, Name, Prefix, Slug, Tag};
use crate::time::Timestamp;

/// At most so many secrets of a key are live at a time: two rotations may overlap.
pub const LIVE_SECRETS_MAX: usize = 3;

/// One credential of one consumer.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: KeyId,
    pub tenant_id: TenantId,
    pub consumer: ConsumerRef,
    pub lookup_id: LookupId,
    pub prefix: Prefix,
    pub environment: Environment,
    pub name: Name,
    pub external_id: Option<ExternalId>,
    pub not_before: Option<Timestamp>,
    /// `None` is a key without an end.
    pub expires_at: Option<Timestamp>,
    pub rate_limits: RateLimits,
    pub quota: Option<Quota>,
    /// `None` allows every address; never empty.
    pub allowed_ips: Option<Vec<IpNet>>,
    pub metadata: Metadata,
    pub tags: Vec<Tag>,
    pub disabled_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<Actor>,
    /// Why it was revoked or disabled.
    pub reason: Option<String>,
    pub rotated_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    pub version: i64,
    pub created_at: Timestamp,
    pub created_by: Actor,
    pub updated_at: Timestamp,
    /// In the order given at creation; at least one.
    pub grants: Vec<Grant>,
    /// Newest first.
    pub secrets: Vec<Secret>,
}

/// The consumer of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct ConsumerRef {
    pub id: ConsumerId,
    pub slug: Slug,
}

/// What a key may do at one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub service_id: ServiceId,
    pub service: Slug,
    pub scopes: Vec<Scope>,
    pub rate_limits: Option<RateLimits>,
}

/// A record of one plaintext of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    pub id: SecretId,
    pub created_at: Timestamp,
    pub valid_until: Option<Timestamp>,
    /// When a rotation put another in its place.
    pub superseded_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}

/// What a key is at an instant, in the precedence in which validation refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum KeyStatus {
    Active,
    NotYetValid,
    Expired,
    Disabled,
    Revoked,
}

impl Key {
    /// Computed now; the consumer's and the tenant's own state is not in it.
    pub fn status(&self, now: Timestamp) -> KeyStatus {
        if self.revoked_at.is_some() {
            KeyStatus::Revoked
        } else if self.disabled_at.is_some() {
            KeyStatus::Disabled
        } else if self.expires_at.is_some_and(|end| end <= now) {
            KeyStatus::Expired
        } else if self.not_before.is_some_and(|start| now < start) {
            KeyStatus::NotYetValid
        } else {
            KeyStatus::Active
        }
    }

    pub fn is_management(&self) -> bool {
        self.grants
            .iter()
            .any(|grant| grant.service.as_str() == crate::rights::SERVICE)
    }

    pub fn services(&self) -> impl Iterator<Item = &Slug> {
        self.grants.iter().map(|grant| &grant.service)
    }

    pub fn live_secrets(&self, now: Timestamp) -> impl Iterator<Item = &Secret> {
        self.secrets
            .iter()
            .filter(move |secret| secret.is_live(now))
    }
}

impl Secret {
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.valid_until.is_none_or(|end| now < end)
    }
}

/// A key as every answer and audit line shows it.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyView {
    pub id: KeyId,
    /// The tenant's slug.
    pub tenant: Slug,
    /// The public part of the key, the same for all its secrets.
    pub lookup_id: LookupId,
    pub status: KeyStatus,
    pub name: Name,
    pub consumer: ConsumerRef,
    pub environment: Environment,
    pub grants: Vec<GrantView>,
    pub not_before: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub rate_limits: RateLimits,
    pub quota: Option<Quota>,
    #[schema(value_type = Option<Vec<String>>)]
    pub allowed_ips: Option<Vec<IpNet>>,
    pub metadata: Metadata,
    pub tags: Vec<Tag>,
    pub external_id: Option<ExternalId>,
    pub secrets: Vec<SecretView>,
    pub last_used: Option<Timestamp>,
    pub version: i64,
    pub created_at: Timestamp,
    #[schema(value_type = Object)]
    pub created_by: Actor,
    pub updated_at: Timestamp,
    pub rotated_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    #[schema(value_type = Option<Object>)]
    pub revoked_by: Option<Actor>,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Grant)]
pub struct GrantView {
    pub service: Slug,
    pub scopes: Vec<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limits: Option<RateLimits>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Secret)]
pub struct SecretView {
    pub id: SecretId,
    pub created_at: Timestamp,
    pub valid_until: Option<Timestamp>,
    pub superseded: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
}

impl KeyView {
    pub fn new(key: &Key, tenant: &Slug, now: Timestamp) -> Self {
        Self {
            id: key.id.clone(),
            tenant: tenant.clone(),
            lookup_id: key.lookup_id.clone(),
            status: key.status(now),
            name: key.name.clone(),
            consumer: key.consumer.clone(),
            environment: key.environment.clone(),
            grants: key.grants.iter().map(GrantView::from).collect(),
            not_before: key.not_before,
            expires_at: key.expires_at,
            rate_limits: key.rate_limits.clone(),
            quota: key.quota,
            allowed_ips: key.allowed_ips.clone(),
            metadata: key.metadata.clone(),
            tags: key.tags.clone(),
            external_id: key.external_id.clone(),
            secrets: key.secrets.iter().map(SecretView::from).collect(),
            last_used: key.last_used_at,
            version: key.version,
            created_at: key.created_at,
            created_by: key.created_by.clone(),
            updated_at: key.updated_at,
            rotated_at: key.rotated_at,
            revoked_at: key.revoked_at,
            revoked_by: key.revoked_by.clone(),
            reason: key.reason.clone(),
        }
    }
}

impl From<&Grant> for GrantView {
    fn from(grant: &Grant) -> Self {
        Self {
            service: grant.service.clone(),
            scopes: grant.scopes.clone(),
            rate_limits: grant.rate_limits.clone(),
        }
    }
}

impl From<&Secret> for SecretView {
    fn from(secret: &Secret) -> Self {
        Self {
            id: secret.id.clone(),
            created_at: secret.created_at,
            valid_until: secret.valid_until,
            superseded: secret.superseded_at.is_some(),
            revoked_at: secret.revoked_at,
            last_used_at: secret.last_used_at,
        }
    }
}
