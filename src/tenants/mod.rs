//! Tenants: isolated worlds. Every row, entry and query belongs to exactly one.
//!
//! Tenants are kept by callers who act in the tenant [`DEFAULT`], and their audit lines stand in its
//! chain; everybody else sees their own tenant and no other.

pub mod body;
pub mod http;
pub mod service;
pub mod store;

use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::audit::TenantRef;
use crate::catalogue::Status;
use crate::id::TenantId;
use crate::metadata::Metadata;
use crate::text::{Name, Slug};
use crate::time::Timestamp;

pub use service::{Sight, Tenants};

/// The tenant that exists from the first start.
pub const DEFAULT: &str = "default";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenant {
    pub id: TenantId,
    pub slug: Slug,
    pub name: Name,
    pub metadata: Metadata,
    pub disabled_at: Option<Timestamp>,
    /// The row stays: its slug is never used again.
    pub deleted_at: Option<Timestamp>,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Tenant {
    pub fn status(&self) -> Status {
        Status::of(self.disabled_at)
    }

    pub fn is_default(&self) -> bool {
        self.slug.as_str() == DEFAULT
    }

    pub fn to_ref(&self) -> TenantRef {
        TenantRef {
            id: self.id.clone(),
            slug: self.slug.clone(),
        }
    }
}

/// What a list of tenants is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct TenantFilter {
    pub slug: Option<Slug>,
    pub status: Option<Status>,
}
