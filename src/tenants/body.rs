//! Tenants as JSON: what is sent and what is answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Tenant;
use crate::catalogue::Status;
use crate::id::TenantId;
use crate::metadata::{Metadata, MetadataPatch};
use crate::patch::{Reason, double_option};
use crate::text::{Name, Slug};
use crate::time::Timestamp;

/// A tenant to create.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"slug": "acme", "name": "Acme Corporation"}))]
pub struct CreateTenant {
    pub slug: Slug,
    /// The slug, unless given.
    pub name: Option<Name>,
    #[serde(default)]
    #[schema(required = false)]
    pub metadata: Metadata,
    pub reason: Option<Reason>,
}

/// A merge patch (RFC 7396) for a tenant.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Acme Incorporated"}))]
pub struct UpdateTenant {
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Name>)]
    pub name: Option<Option<Name>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<MetadataPatch>)]
    pub metadata: Option<Option<MetadataPatch>>,
    pub reason: Option<Reason>,
}

/// A tenant.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "Tenant", example = json!({
    "id": "ten_01jd8k3v9we5m8t7q2x4z6y0ab",
    "slug": "acme",
    "name": "Acme Corporation",
    "metadata": {},
    "status": "active",
    "version": 1,
    "created_at": "2026-11-22T05:00:00.000Z",
    "updated_at": "2026-11-22T05:00:00.000Z"
}))]
pub struct TenantBody {
    pub id: TenantId,
    pub slug: Slug,
    pub name: Name,
    pub metadata: Metadata,
    pub status: Status,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl From<&Tenant> for TenantBody {
    fn from(tenant: &Tenant) -> Self {
        Self {
            id: tenant.id.clone(),
            slug: tenant.slug.clone(),
            name: tenant.name.clone(),
            metadata: tenant.metadata.clone(),
            status: tenant.status(),
            version: tenant.version,
            created_at: tenant.created_at,
            updated_at: tenant.updated_at,
        }
    }
}
