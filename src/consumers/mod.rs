//! Consumers: who holds keys. A service, a team, a customer, a notebook.

pub mod body;
pub mod http;
pub mod service;
pub mod store;

use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::catalogue::Status;
use crate::id::{ConsumerId, TenantId};
use crate::limits::{Quota, RateLimits};
use crate::metadata::Metadata;
use crate::text::{ExternalId, Name, Slug};
use crate::time::Timestamp;

pub use service::Consumers;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consumer {
    pub id: ConsumerId,
    pub tenant_id: TenantId,
    pub slug: Slug,
    /// Unique among the tenant's consumers that are not deleted.
    pub external_id: Option<ExternalId>,
    pub name: Name,
    /// Shared by all its keys.
    pub rate_limits: RateLimits,
    /// Shared by all its keys.
    pub quota: Option<Quota>,
    pub metadata: Metadata,
    pub disabled_at: Option<Timestamp>,
    /// The row stays: its slug is never used again.
    pub deleted_at: Option<Timestamp>,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Consumer {
    pub fn status(&self) -> Status {
        Status::of(self.disabled_at)
    }
}

/// What a list of consumers is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsumerFilter {
    pub slug: Option<Slug>,
    pub external_id: Option<ExternalId>,
    /// The whole name.
    pub name: Option<Name>,
    pub status: Option<Status>,
}
