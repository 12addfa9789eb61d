//! The one who calls, authenticated: what a handler is given.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use super::people::Person;
use crate::audit::{Actor, Attribution, TenantRef};
use crate::error::Error;
use crate::id::KeyId;
use crate::rights::{Permission, Rights};
use crate::tenants;
use crate::text::{Environment, Slug};
use crate::time::Timestamp;
use crate::validation::Identified;

/// An authenticated caller, in the tenant it acts in.
#[derive(Clone, Debug)]
pub struct CallerIdentity {
    /// Who answers for what is done: with two credentials the person.
    pub actor: Actor,
    /// The credential through which the actor acts, if it is another's, or in another tenant.
    pub via: Option<Actor>,
    /// The tenant acted in.
    pub tenant: TenantRef,
    /// The tenant the caller belongs to, if that is another one.
    pub home: Option<TenantRef>,
    /// What all credentials presented allow.
    pub rights: Rights,
    /// Of the management key, if one was presented.
    pub environment: Option<Environment>,
    /// The management key, if one was presented.
    pub key_id: Option<KeyId>,
    /// The end of the management key, or of the admin's token.
    pub expires_at: Option<Timestamp>,
    pub request_id: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
}

/// Whence a request comes, for what is written down about it.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    pub request_id: Option<Arc<str>>,
    pub ip: Option<IpAddr>,
}

impl CallerIdentity {
    pub fn of_key(key: Identified, origin: Origin) -> Self {
        Self {
            actor: Actor::Key {
                key_id: key.key_id.to_string(),
            },
            via: None,
            tenant: key.tenant,
            home: None,
            rights: key.rights,
            environment: Some(key.environment),
            key_id: Some(key.key_id),
            expires_at: key.expires_at,
            request_id: origin.request_id,
            ip: origin.ip,
        }
    }

    pub fn of_person(person: Person, origin: Origin) -> Self {
        Self {
            actor: person.actor,
            via: None,
            tenant: person.tenant,
            home: None,
            rights: person.rights,
            environment: None,
            key_id: None,
            expires_at: Some(person.expires_at),
            request_id: origin.request_id,
            ip: origin.ip,
        }
    }

    /// A service that acts for a person of its own tenant: it may do what both may, and the person
    /// answers for it. `None` for a person of another tenant.
    pub fn on_behalf_of(self, person: Person) -> Option<Self> {
        (person.tenant.id == self.tenant.id).then(|| Self {
            actor: person.actor,
            via: Some(self.actor),
            rights: self.rights.intersect(&person.rights),
            ..self
        })
    }

    /// The id of its management key, or the issuer and subject of a person.
    pub fn name(&self) -> Cow<'_, str> {
        match &self.key_id {
            Some(key) => Cow::Borrowed(key.as_str()),
            None => Cow::Owned(self.actor.name()),
        }
    }

    /// Whether it may act in other tenants than its own.
    pub fn is_host(&self) -> bool {
        self.home.is_none()
            && self.tenant.slug.as_str() == tenants::DEFAULT
            && self.rights.allows(Permission::TenantsWrite, None)
    }

    /// The same caller in another tenant, whose audit trail names the credential and its home.
    #[must_use]
    pub fn acting_in(self, tenant: TenantRef) -> Self {
        if tenant.id == self.tenant.id {
            return self;
        }
        Self {
            via: self.via.or_else(|| Some(self.actor.clone())),
            home: Some(self.tenant),
            tenant,
            ..self
        }
    }

    /// What an audit line of this caller's deeds says.
    pub fn attribution(&self, reason: Option<String>) -> Attribution {
        Attribution {
            tenant: self.tenant.clone(),
            actor: self.actor.clone(),
            via: self.via.clone(),
            home: self.home.as_ref().map(|home| home.slug.clone()),
            reason,
            request_id: self.request_id.as_deref().map(str::to_owned),
            ip: self.ip,
        }
    }

    /// Holds the caller to a permission, for that service or, with `None`, for all.
    ///
    /// # Errors
    /// [`Error::Forbidden`] that names the scope.
    pub fn require(&self, permission: Permission, service: Option<&Slug>) -> Result<(), Error> {
        if self.rights.allows(permission, service) {
            Ok(())
        } else {
            Err(Error::Forbidden(permission.scope_for(service)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;
    use crate::id::TenantId;

    fn tenant(slug: &str) -> TenantRef {
        TenantRef {
            id: TenantId::new(&Clock::System, &Entropy::System),
            slug: Slug::parse(slug).unwrap(),
        }
    }

    fn service(tenant: &TenantRef, scopes: &[&str]) -> CallerIdentity {
        let key = Identified {
            key_id: KeyId::new(&Clock::System, &Entropy::System),
            tenant: tenant.clone(),
            rights: Rights::new(scopes),
            environment: Environment::parse("live").unwrap(),
            expires_at: None,
            superseded: false,
            limits: None,
        };
        CallerIdentity::of_key(key, Origin::default())
    }

    fn person(issuer: &str, tenant: &TenantRef, scopes: &[&str]) -> Person {
        Person {
            actor: Actor::Jwt {
                issuer: issuer.to_owned(),
                subject: "alice".to_owned(),
            },
            tenant: tenant.clone(),
            rights: Rights::new(scopes),
            expires_at: Timestamp::from_millis(0),
        }
    }

    #[test]
    fn a_service_acts_for_a_person_with_what_both_may_and_both_are_named() {
        let home = tenant("acme");
        let key = service(&home, &["keys:write", "consumers:read"]);
        let key_actor = key.actor.clone();
        let alice = person("https://idp.example", &home, &["keys:write:billing"]);
        let both = key.on_behalf_of(alice.clone()).unwrap();
        assert_eq!(both.actor, alice.actor);
        assert_eq!(both.via, Some(key_actor));
        let billing = Slug::parse("billing").unwrap();
        assert!(both.require(Permission::KeysWrite, Some(&billing)).is_ok());
        assert!(both.require(Permission::KeysWrite, None).is_err());
        assert!(both.require(Permission::ConsumersRead, None).is_err());
    }

    #[test]
    fn nobody_acts_for_a_person_of_another_tenant() {
        let key = service(&tenant("acme"), &["*"]);
        let eve = person("https://idp.example", &tenant("evil"), &["*"]);
        assert!(key.on_behalf_of(eve).is_none());
    }

    #[test]
    fn the_same_subject_of_two_issuers_is_two_actors() {
        let home = tenant("acme");
        let actor = |issuer| {
            CallerIdentity::of_person(person(issuer, &home, &[]), Origin::default())
                .attribution(None)
                .actor
        };
        let (one, other) = (actor("https://a.example"), actor("https://b.example"));
        assert_ne!(one, other);
        assert_ne!(one.name(), other.name());
    }

    #[test]
    fn in_another_tenant_the_caller_and_its_home_are_named() {
        let (home, other) = (tenant(tenants::DEFAULT), tenant("acme"));
        let host = service(&home, &["tenants:write", "keys:read"]);
        let own = host.actor.clone();
        assert!(host.is_host());
        let there = host.clone().acting_in(other.clone()).attribution(None);
        assert_eq!(there.tenant, other);
        assert_eq!(there.actor, own);
        assert_eq!(there.via, Some(own.clone()));
        assert_eq!(there.home.as_ref(), Some(&home.slug));
        assert!(!host.clone().acting_in(other.clone()).is_host());
        // Acting for a person keeps the key as the credential.
        let alice = person("https://idp.example", &home, &["*"]);
        let both = host
            .on_behalf_of(alice.clone())
            .unwrap()
            .acting_in(other)
            .attribution(None);
        assert_eq!((both.actor, both.via), (alice.actor, Some(own)));
    }

    #[test]
    fn only_a_keeper_of_tenants_in_the_first_tenant_is_a_host() {
        let (first, acme) = (tenant(tenants::DEFAULT), tenant("acme"));
        assert!(service(&first, &["*"]).is_host());
        assert!(!service(&first, &["keys:*", "tenants:read"]).is_host());
        assert!(!service(&acme, &["*"]).is_host());
        let limited = person("https://idp.example", &first, &["keys:read"]);
        assert!(
            !service(&first, &["*"])
                .on_behalf_of(limited)
                .unwrap()
                .is_host()
        );
    }
}
