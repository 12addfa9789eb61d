//! Services: the APIs that are protected. A service's slug is the audience of its keys.

pub mod body;
pub mod exchange;
pub mod http;
pub mod service;
pub mod settings;
pub mod store;
pub mod tokens;
pub mod upstream;

use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use crate::catalogue::Status;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::id::{ServiceId, TenantId};
use crate::metadata::Metadata;
use crate::rights;
use crate::text::{Description, Name, Slug};
use crate::time::Timestamp;

pub use exchange::ExchangeSettings;
pub use service::Services;
pub use settings::{KeyPolicy, OnOutage, ServiceSettings};
pub use tokens::TokenSettings;
pub use upstream::UpstreamSettings;

/// The service that is Keystead's own API: a grant on it makes a management key. Every tenant has it
/// from its creation, and it never changes.
pub const BUILT_IN: &str = rights::SERVICE;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub id: ServiceId,
    pub tenant_id: TenantId,
    pub slug: Slug,
    pub name: Name,
    pub description: Description,
    pub settings: ServiceSettings,
    pub metadata: Metadata,
    pub disabled_at: Option<Timestamp>,
    /// The row stays: its slug is never used again.
    pub deleted_at: Option<Timestamp>,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl Service {
    pub fn status(&self) -> Status {
        Status::of(self.disabled_at)
    }

    pub fn is_built_in(&self) -> bool {
        self.slug.as_str() == BUILT_IN
    }
}

/// What a list of services is narrowed to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ServiceFilter {
    pub slug: Option<Slug>,
    pub status: Option<Status>,
}

/// The built-in service of a new tenant.
#[expect(clippy::expect_used, reason = "the constants are well formed")]
#[expect(clippy::missing_panics_doc, reason = "the constants are well formed")]
pub fn built_in(tenant: &TenantId, clock: &Clock, entropy: &Entropy) -> Service {
    let now = clock.now();
    Service {
        id: ServiceId::new(clock, entropy),
        tenant_id: tenant.clone(),
        slug: Slug::parse(BUILT_IN).expect("a slug"),
        name: Name::parse("Keystead").expect("a name"),
        description: Description::parse(
            "The administration of this tenant. A key with a grant on it is a management key.",
        )
        .expect("a description"),
        settings: ServiceSettings::default(),
        metadata: Metadata::default(),
        disabled_at: None,
        deleted_at: None,
        version: 1,
        created_at: now,
        updated_at: now,
    }
}
