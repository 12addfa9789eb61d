//! People: the bearers of tokens of the configured issuers, in their tenants.

use std::sync::Arc;

use super::issuers::{Issuers, TokenError};
use super::jwt::Refusal;
use crate::audit::{Actor, TenantRef};
use crate::rights::Rights;
use crate::text::Slug;
use crate::time::Timestamp;
use crate::validation::{Failure, Validation};

/// Somebody whose token was verified.
#[derive(Clone, Debug)]
pub struct Person {
    pub actor: Actor,
    pub tenant: TenantRef,
    pub rights: Rights,
    /// The end of the token.
    pub expires_at: Timestamp,
}

/// Why a token names nobody.
#[derive(Debug)]
pub enum NotAPerson {
    /// Whoever presented it gets one answer for every fault; the fault is for the log.
    Refused(Refusal),
    /// The issuer's keys are not known and cannot be fetched just now.
    Away,
    /// Its tenant cannot be found out just now.
    Failed(Failure),
}

impl From<TokenError> for NotAPerson {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Refused(refusal) => Self::Refused(refusal),
            TokenError::Unavailable => Self::Away,
        }
    }
}

/// Knows people by their tokens, cheap to clone.
#[derive(Clone)]
pub struct People {
    issuers: Arc<Issuers>,
    validation: Validation,
}

impl People {
    pub fn new(issuers: Arc<Issuers>, validation: Validation) -> Self {
        Self {
            issuers,
            validation,
        }
    }

    /// Whether a role rule makes somebody an owner: then no first owner key is needed.
    pub fn can_be_owner(&self) -> bool {
        self.issuers.can_be_owner()
    }

    /// Which claims of which issuers give which roles, for the audit line of a start.
    pub fn role_map(&self) -> serde_json::Value {
        self.issuers.role_map()
    }

    pub async fn authenticate(&self, token: &str) -> Result<Person, NotAPerson> {
        let vouched = self.issuers.verify(token).await?;
        let tenant = self
            .tenant(&vouched.tenant)
            .await
            .map_err(NotAPerson::Failed)?
            .ok_or(NotAPerson::Refused(Refusal::Tenant))?;
        Ok(Person {
            actor: Actor::Jwt {
                issuer: vouched.issuer,
                subject: vouched.subject,
            },
            tenant,
            rights: vouched.rights,
            expires_at: vouched.expires_at,
        })
    }

    /// The tenant, unless it is disabled: then its people are locked out with it.
    async fn tenant(&self, slug: &Slug) -> Result<Option<TenantRef>, Failure> {
        let found = self.validation.tenant(slug).await?;
        Ok(found
            .filter(|tenant| tenant.is_active)
            .map(|tenant| tenant.to_ref()))
    }
}
