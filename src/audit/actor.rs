//! Who acts, on whose behalf, where and from where.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::TenantId;
use crate::text::Slug;

/// Somebody who acts. A person is told by issuer *and* subject: the same subject of two issuers is
/// two people.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Actor {
    Jwt { issuer: String, subject: String },
    Key { key_id: String },
    Cli { user: String, host: String },
    System,
}

impl Actor {
    /// One word for filters and log lines, without control characters.
    pub fn name(&self) -> String {
        let name = match self {
            Self::Jwt { issuer, subject } => format!("{issuer}#{subject}"),
            Self::Key { key_id } => key_id.clone(),
            Self::Cli { user, host } => format!("cli:{user}@{host}"),
            Self::System => "system".to_owned(),
        };
        if !crate::text::has_control(&name) {
            return name;
        }
        name.chars().fold(String::new(), |mut shown, c| {
            if c.is_control() {
                shown.extend(c.escape_unicode());
            } else {
                shown.push(c);
            }
            shown
        })
    }
}

/// The tenant that something happens in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TenantRef {
    pub id: TenantId,
    pub slug: Slug,
}

/// What an audit line says about the one who acted.
#[derive(Clone, Debug)]
pub struct Attribution {
    /// Whose chain the line goes to: the tenant acted in.
    pub tenant: TenantRef,
    pub actor: Actor,
    /// The credential through which `actor` acted, if it is another's: a service acting for a
    /// person, or a caller of the tenant `default` in another tenant.
    pub via: Option<Actor>,
    /// The tenant that the actor belongs to, if it acts in another.
    pub home: Option<Slug>,
    pub reason: Option<String>,
    pub request_id: Option<String>,
    pub ip: Option<IpAddr>,
}
