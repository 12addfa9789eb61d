//! Consumers as JSON: what is sent and what is answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Consumer;
use crate::catalogue::Status;
use crate::id::ConsumerId;
use crate::limits::{Quota, QuotaPatch, RateLimits};
use crate::metadata::{Metadata, MetadataPatch};
use crate::patch::{Reason, double_option};
use crate::text::{ExternalId, Name, Slug};
use crate::time::Timestamp;

/// A consumer to create. What is left out has its default.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "slug": "checkout",
    "external_id": "crm-4711",
    "name": "Checkout, production",
    "metadata": {"team": "payments"}
}))]
pub struct CreateConsumer {
    pub slug: Slug,
    /// The id that another system knows it by; unique in the tenant.
    pub external_id: Option<ExternalId>,
    /// The slug, unless given.
    pub name: Option<Name>,
    /// Shared by all its keys.
    #[serde(default)]
    #[schema(required = false)]
    pub rate_limits: RateLimits,
    /// Shared by all its keys.
    pub quota: Option<Quota>,
    #[serde(default)]
    #[schema(required = false)]
    pub metadata: Metadata,
    pub reason: Option<Reason>,
}

/// A consumer as it shall be: what is left out has its default, whatever it had before.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"external_id": "crm-4711", "name": "Checkout, production"}))]
pub struct ReplaceConsumer {
    /// If given, the one of the path.
    pub slug: Option<Slug>,
    /// The id that another system knows it by; unique in the tenant.
    pub external_id: Option<ExternalId>,
    /// The slug, unless given.
    pub name: Option<Name>,
    /// Shared by all its keys.
    #[serde(default)]
    #[schema(required = false)]
    pub rate_limits: RateLimits,
    /// Shared by all its keys.
    pub quota: Option<Quota>,
    #[serde(default)]
    #[schema(required = false)]
    pub metadata: Metadata,
    pub reason: Option<Reason>,
}

impl ReplaceConsumer {
    /// The consumer that is made when there is none to replace.
    pub fn create(self, slug: Slug) -> CreateConsumer {
        CreateConsumer {
            slug,
            external_id: self.external_id,
            name: self.name,
            rate_limits: self.rate_limits,
            quota: self.quota,
            metadata: self.metadata,
            reason: self.reason,
        }
    }
}

/// A merge patch (RFC 7396) for a consumer: lists are replaced whole, `null` sets the default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"quota": {"limit": 100_000, "period": "month"}, "metadata": {"team": null}}))]
pub struct UpdateConsumer {
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<ExternalId>)]
    pub external_id: Option<Option<ExternalId>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Name>)]
    pub name: Option<Option<Name>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<RateLimits>)]
    pub rate_limits: Option<Option<RateLimits>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<QuotaPatch>)]
    pub quota: Option<Option<QuotaPatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<MetadataPatch>)]
    pub metadata: Option<Option<MetadataPatch>>,
    pub reason: Option<Reason>,
}

/// A consumer.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "Consumer", example = json!({
    "id": "con_01jd8k3v9we5m8t7q2x4z6y0ab",
    "tenant": "default",
    "slug": "checkout",
    "external_id": "crm-4711",
    "name": "Checkout, production",
    "rate_limits": [],
    "quota": null,
    "metadata": {"team": "payments"},
    "status": "active",
    "version": 1,
    "created_at": "2026-11-22T05:00:00.000Z",
    "updated_at": "2026-11-22T05:00:00.000Z"
}))]
pub struct ConsumerBody {
    pub id: ConsumerId,
    /// The slug of its tenant.
    pub tenant: Slug,
    pub slug: Slug,
    #[schema(required = true)]
    pub external_id: Option<ExternalId>,
    pub name: Name,
    pub rate_limits: RateLimits,
    #[schema(required = true)]
    pub quota: Option<Quota>,
    pub metadata: Metadata,
    pub status: Status,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl ConsumerBody {
    pub fn new(consumer: &Consumer, tenant: &Slug) -> Self {
        Self {
            id: consumer.id.clone(),
            tenant: tenant.clone(),
            slug: consumer.slug.clone(),
            external_id: consumer.external_id.clone(),
            name: consumer.name.clone(),
            rate_limits: consumer.rate_limits.clone(),
            quota: consumer.quota,
            metadata: consumer.metadata.clone(),
            status: consumer.status(),
            version: consumer.version,
            created_at: consumer.created_at,
            updated_at: consumer.updated_at,
        }
    }
}
