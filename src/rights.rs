//! What a caller may do: scopes on the built-in service `keystead`, and the roles that stand for
//! them.
//!
//! A scope names a permission; bare it holds for every service, with `:<service>` for that one.
//! A wildcard over a permission (`keys:write:*`) holds for every service, one over a group
//! (`keys:*`) for every permission of the group, `*` for all there is and will be.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text::Slug;

/// The slug of the built-in service whose scopes are the management scopes.
pub const SERVICE: &str = "keystead";

/// What an operation of the administration asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Permission {
    TenantsWrite,
    ServicesRead,
    ServicesWrite,
    ConsumersRead,
    ConsumersWrite,
    KeysRead,
    KeysWrite,
    KeysRevoke,
    Verify,
    Introspect,
    UsageRead,
    AuditRead,
}

impl Permission {
    pub const ALL: [Self; 12] = [
        Self::TenantsWrite,
        Self::ServicesRead,
        Self::ServicesWrite,
        Self::ConsumersRead,
        Self::ConsumersWrite,
        Self::KeysRead,
        Self::KeysWrite,
        Self::KeysRevoke,
        Self::Verify,
        Self::Introspect,
        Self::UsageRead,
        Self::AuditRead,
    ];

    /// The bare scope.
    pub const fn scope(self) -> &'static str {
        match self {
            Self::TenantsWrite => "tenants:write",
            Self::ServicesRead => "services:read",
            Self::ServicesWrite => "services:write",
            Self::ConsumersRead => "consumers:read",
            Self::ConsumersWrite => "consumers:write",
            Self::KeysRead => "keys:read",
            Self::KeysWrite => "keys:write",
            Self::KeysRevoke => "keys:revoke",
            Self::Verify => "verify",
            Self::Introspect => "introspect",
            Self::UsageRead => "usage:read",
            Self::AuditRead => "audit:read",
        }
    }

    /// What one needs to be told: the scope, with the service if it is needed for one.
    pub fn scope_for(self, service: Option<&Slug>) -> String {
        match service {
            Some(service) => format!("{}:{service}", self.scope()),
            None => self.scope().to_owned(),
        }
    }

    /// What comes with it.
    pub const fn implies(self) -> &'static [Self] {
        match self {
            Self::ServicesWrite => &[Self::ServicesRead],
            Self::ConsumersWrite => &[Self::ConsumersRead],
            Self::KeysWrite => &[Self::KeysRead, Self::KeysRevoke],
            Self::TenantsWrite
            | Self::ServicesRead
            | Self::ConsumersRead
            | Self::KeysRead
            | Self::KeysRevoke
            | Self::Verify
            | Self::Introspect
            | Self::UsageRead
            | Self::AuditRead => &[],
        }
    }

    /// A tenant is above its services, so there is no right on tenants for one service.
    const fn has_service_form(self) -> bool {
        !matches!(self, Self::TenantsWrite)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.scope())
    }
}

/// A name for a set of scopes, given to people by the role rules of their issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Owner,
    Admin,
    Issuer,
    Operator,
    Auditor,
    Viewer,
    Verifier,
}

impl Role {
    pub const ALL: [Self; 7] = [
        Self::Owner,
        Self::Admin,
        Self::Issuer,
        Self::Operator,
        Self::Auditor,
        Self::Viewer,
        Self::Verifier,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Issuer => "issuer",
            Self::Operator => "operator",
            Self::Auditor => "auditor",
            Self::Viewer => "viewer",
            Self::Verifier => "verifier",
        }
    }

    /// Held for every service.
    pub const fn scopes(self) -> &'static [&'static str] {
        match self {
            Self::Owner => &["*"],
            Self::Admin => &[
                "services:*",
                "consumers:*",
                "keys:*",
                "verify",
                "introspect",
                "usage:*",
                "audit:*",
            ],
            Self::Issuer => &["services:read", "consumers:*", "keys:*"],
            Self::Operator => &["keys:read", "keys:revoke", "usage:read"],
            Self::Auditor => &[
                "services:read",
                "consumers:read",
                "keys:read",
                "usage:read",
                "audit:read",
            ],
            Self::Viewer => &["services:read", "consumers:read", "keys:read"],
            Self::Verifier => &["verify", "introspect"],
        }
    }

    /// Held for these services alone: every permission of the role, each for each service. What
    /// has no form for one service is left out.
    pub fn scopes_for(self, services: &[Slug]) -> Vec<String> {
        let powers: Vec<Power> = self
            .scopes()
            .iter()
            .flat_map(|scope| powers(scope))
            .collect();
        let mut scopes = Vec::new();
        for service in services {
            for power in &powers {
                if power.permission.has_service_form() {
                    scopes.push(power.permission.scope_for(Some(service)));
                }
            }
        }
        scopes
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A permission for all services, or for one.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Power {
    permission: Permission,
    service: Option<Slug>,
}

/// The permissions that a scope names; those it implies are not among them. None for a scope that
/// is not a management scope: it is worth nothing.
fn powers(scope: &str) -> Vec<Power> {
    let for_all = |permission| Power {
        permission,
        service: None,
    };
    if scope == "*" {
        return Permission::ALL.into_iter().map(for_all).collect();
    }
    if let Some(stem) = scope.strip_suffix(":*") {
        return Permission::ALL
            .into_iter()
            .filter(|permission| {
                let name = permission.scope();
                name == stem
                    || name
                        .strip_prefix(stem)
                        .is_some_and(|rest| rest.starts_with(':'))
            })
            .map(for_all)
            .collect();
    }
    Permission::ALL
        .into_iter()
        .find_map(|permission| {
            let rest = scope.strip_prefix(permission.scope())?;
            if rest.is_empty() {
                return Some(for_all(permission));
            }
            let service = Slug::parse(rest.strip_prefix(':')?).ok()?;
            permission.has_service_form().then_some(Power {
                permission,
                service: Some(service),
            })
        })
        .into_iter()
        .collect()
}

/// Whether a scope means anything on the built-in service.
pub fn is_management_scope(scope: &str) -> bool {
    !powers(scope).is_empty()
}

/// A wildcard over a group of permissions, such as `keys:*` or `*`: it also stands for what the
/// group may hold one day, so only who holds the wildcard may hand it out.
fn is_group_wildcard(scope: &str) -> bool {
    scope == "*"
        || scope
            .strip_suffix(":*")
            .is_some_and(|stem| Permission::ALL.iter().all(|p| p.scope() != stem))
}

/// For which services something is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    All,
    /// Sorted; empty for none.
    Only(Vec<Slug>),
}

/// One credential's scopes.
#[derive(Debug, PartialEq, Eq)]
struct Member {
    scopes: Vec<String>,
    /// With what they imply.
    powers: Vec<Power>,
}

impl Member {
    fn allows(&self, permission: Permission, service: Option<&Slug>) -> bool {
        self.powers.iter().any(|power| {
            power.permission == permission
                && (power.service.is_none() || power.service.as_ref() == service)
        })
    }

    fn reach(&self, permission: Permission) -> Reach {
        if self.allows(permission, None) {
            return Reach::All;
        }
        let mut services: Vec<Slug> = self.services(permission).cloned().collect();
        services.sort_unstable();
        services.dedup();
        Reach::Only(services)
    }

    /// Those that it is held for by name.
    fn services(&self, permission: Permission) -> impl Iterator<Item = &Slug> {
        self.powers
            .iter()
            .filter(move |power| power.permission == permission)
            .filter_map(|power| power.service.as_ref())
    }

    fn covers(&self, scope: &str) -> bool {
        if self.scopes.iter().any(|held| held == "*" || held == scope) {
            return true;
        }
        if is_group_wildcard(scope) {
            return false;
        }
        let wanted = powers(scope);
        !wanted.is_empty()
            && wanted
                .iter()
                .all(|power| self.allows(power.permission, power.service.as_ref()))
    }
}

/// All that a caller may do: what every one of its credentials allows. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights(Vec<Arc<Member>>);

impl Rights {
    /// The rights of one credential. A scope that means nothing here gives nothing.
    pub fn new<S: ToString>(scopes: impl IntoIterator<Item = S>) -> Self {
        let scopes: Vec<String> = scopes.into_iter().map(|scope| scope.to_string()).collect();
        let mut held = Vec::new();
        for power in scopes.iter().flat_map(|scope| powers(scope)) {
            for implied in power.permission.implies() {
                held.push(Power {
                    permission: *implied,
                    service: power.service.clone(),
                });
            }
            held.push(power);
        }
        Self(vec![Arc::new(Member {
            scopes,
            powers: held,
        })])
    }

    /// A credential that is good and allows nothing.
    pub fn none() -> Self {
        Self::new::<&str>([])
    }

    /// All rights there are: of the process itself and its command line.
    pub fn all() -> Self {
        Self::new(["*"])
    }

    pub fn of_role(role: Role) -> Self {
        Self::new(role.scopes())
    }

    /// What both allow: one acting for the other.
    #[must_use]
    pub fn intersect(mut self, other: &Self) -> Self {
        self.0.extend(other.0.iter().cloned());
        self
    }

    /// Whether it is allowed for that service; with `None`, for all services.
    pub fn allows(&self, permission: Permission, service: Option<&Slug>) -> bool {
        self.0
            .iter()
            .all(|member| member.allows(permission, service))
    }

    /// # Errors
    /// [`Error::Forbidden`] that names the scope, unless it is allowed.
    pub fn require(&self, permission: Permission, service: Option<&Slug>) -> Result<()> {
        if self.allows(permission, service) {
            Ok(())
        } else {
            Err(Error::Forbidden(permission.scope_for(service)))
        }
    }

    /// Whether it is allowed for at least one service.
    pub fn allows_any(&self, permission: Permission) -> bool {
        let named = self.0.iter().flat_map(|member| member.services(permission));
        self.allows(permission, None)
            || named
                .into_iter()
                .any(|service| self.allows(permission, Some(service)))
    }

    /// The service that it is allowed for, if that is one alone.
    pub fn only_service(&self, permission: Permission) -> Option<&Slug> {
        if self.allows(permission, None) {
            return None;
        }
        let named = self.0.iter().flat_map(|member| member.services(permission));
        let mut allowed = named.filter(|service| self.allows(permission, Some(*service)));
        let first = allowed.next()?;
        allowed.all(|other| other == first).then_some(first)
    }

    pub fn services_for(&self, permission: Permission) -> Reach {
        let mut reach = Reach::All;
        for member in &self.0 {
            reach = match (reach, member.reach(permission)) {
                (Reach::All, other) | (other, Reach::All) => other,
                (Reach::Only(mut services), Reach::Only(others)) => {
                    services.retain(|service| others.contains(service));
                    Reach::Only(services)
                }
            };
        }
        reach
    }

    /// Whether the caller holds all that the management scope gives, and so may hand it out.
    pub fn covers(&self, scope: &(impl ToString + ?Sized)) -> bool {
        let scope = scope.to_string();
        self.0.iter().all(|member| member.covers(&scope))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slug(text: &str) -> Slug {
        Slug::parse(text).unwrap()
    }

    #[test]
    fn a_scope_meets_a_need_as_the_table_says() {
        use Permission::{ConsumersRead, KeysRead, KeysRevoke, KeysWrite, TenantsWrite, Verify};
        let (billing, other) = (slug("billing"), slug("other"));
        // held, needed; for billing, for another service, for all
        for (held, need, expected) in [
            ("keys:write", KeysWrite, [true, true, true]),
            ("keys:write", KeysRead, [true, true, true]),
            ("keys:write", KeysRevoke, [true, true, true]),
            ("keys:write:billing", KeysWrite, [true, false, false]),
            ("keys:write:billing", KeysRevoke, [true, false, false]),
            ("keys:write:billing", KeysRead, [true, false, false]),
            ("keys:write:*", KeysWrite, [true, true, true]),
            ("keys:*", KeysRevoke, [true, true, true]),
            ("*", TenantsWrite, [true, true, true]),
            ("keys:read", KeysWrite, [false; 3]),
            ("keys:revoke", KeysWrite, [false; 3]),
            ("keys:revoke", KeysRead, [false; 3]),
            ("consumers:write", ConsumersRead, [true, true, true]),
            ("keys:write", ConsumersRead, [false; 3]),
            ("verify", Verify, [true, true, true]),
            ("verify:billing", Verify, [true, false, false]),
            ("verify:*", Verify, [true, true, true]),
            // Not management scopes: worth nothing.
            ("keys", KeysRead, [false; 3]),
            ("KEYS:READ", KeysRead, [false; 3]),
            ("keys:readx", KeysRead, [false; 3]),
            ("keys:read:", KeysRead, [false; 3]),
            ("keys:read:a:b", KeysRead, [false; 3]),
            ("keys:read:Billing", KeysRead, [false; 3]),
            ("key:*", KeysRead, [false; 3]),
            ("keys:re:*", KeysRead, [false; 3]),
            ("tenants:write:billing", TenantsWrite, [false; 3]),
            ("", KeysRead, [false; 3]),
        ] {
            let rights = Rights::new([held]);
            let actual = [
                rights.allows(need, Some(&billing)),
                rights.allows(need, Some(&other)),
                rights.allows(need, None),
            ];
            assert_eq!(actual, expected, "{held} for {need}");
            assert_eq!(rights.allows_any(need), expected.contains(&true), "{held}");
        }
    }

    #[test]
    fn services_are_listed_as_far_as_they_reach() {
        let rights = Rights::new(["verify:b", "verify:a", "verify:b", "keys:read"]);
        assert_eq!(
            rights.services_for(Permission::Verify),
            Reach::Only(vec![slug("a"), slug("b")])
        );
        assert_eq!(rights.only_service(Permission::Verify), None);
        assert_eq!(rights.services_for(Permission::KeysRead), Reach::All);
        assert_eq!(rights.only_service(Permission::KeysRead), None);
        assert_eq!(rights.only_service(Permission::AuditRead), None);
        let twice = Rights::new(["verify:b", "verify:b"]);
        assert_eq!(twice.only_service(Permission::Verify), Some(&slug("b")));
        assert_eq!(
            rights.services_for(Permission::AuditRead),
            Reach::Only(vec![])
        );
    }

    #[test]
    fn who_acts_for_another_may_do_what_both_may() {
        let service = Rights::new(["keys:write:a", "keys:write:b", "consumers:read"]);
        let person = Rights::new(["keys:read", "keys:write:b", "keys:write:c"]);
        let both = service.clone().intersect(&person);
        assert_eq!(
            both.services_for(Permission::KeysWrite),
            Reach::Only(vec![slug("b")])
        );
        assert_eq!(both.only_service(Permission::KeysWrite), Some(&slug("b")));
        assert_eq!(
            both.services_for(Permission::KeysRead),
            Reach::Only(vec![slug("a"), slug("b")])
        );
        assert_eq!(both.only_service(Permission::KeysRead), None);
        assert!(!both.allows_any(Permission::ConsumersRead));
        assert!(both.covers("keys:write:b"));
        assert!(!both.covers("keys:write:a"));
        assert!(!both.covers("keys:write:c"));
        let nobody = service.intersect(&Rights::none());
        assert!(Permission::ALL.iter().all(|p| !nobody.allows_any(*p)));
        assert!(
            !Rights::all()
                .intersect(&Rights::new(["keys:*"]))
                .covers("*")
        );
    }

    #[test]
    fn nobody_hands_out_more_than_they_hold() {
        for (held, wanted, expected) in [
            ("*", "*", true),
            ("*", "anything:at:all", true),
            ("keys:*", "*", false),
            ("keys:*", "keys:*", true),
            ("keys:*", "keys:write", true),
            ("keys:*", "keys:write:*", true),
            ("keys:*", "keys:write:a", true),
            ("keys:*", "consumers:read", false),
            // The group may grow one day.
            ("keys:write", "keys:*", false),
            ("keys:write", "keys:write:*", true),
            ("keys:write", "keys:write:a", true),
            ("keys:write", "keys:revoke:a", true),
            ("keys:write:*", "keys:write", true),
            ("keys:write:a", "keys:write", false),
            ("keys:write:a", "keys:write:b", false),
            ("keys:write:a", "keys:revoke:a", true),
            ("keys:revoke", "keys:read", false),
            ("verify", "verify:a", true),
            ("keys:read", "no:such:scope", false),
        ] {
            assert_eq!(
                Rights::new([held]).covers(wanted),
                expected,
                "{held} hands out {wanted}"
            );
        }
    }

    /// The table in docs/callers.md, made anew.
    #[test]
    fn each_role_may_do_what_its_column_in_the_manual_says() {
        let roles: Vec<&str> = Role::ALL.into_iter().map(Role::as_str).collect();
        let mut table = vec![
            format!("| | {} |", roles.join(" | ")),
            format!("|{}", " --- |".repeat(1 + roles.len())),
        ];
        for permission in Permission::ALL {
            let marks: String = Role::ALL
                .into_iter()
                .map(|role| {
                    let holds = Rights::of_role(role).allows(permission, None);
                    if holds { " x |" } else { " |" }
                })
                .collect();
            table.push(format!("| `{permission}` |{marks}"));
        }
        let table = table.join("\n");
        let manual = include_str!("../docs/callers.md");
        assert!(manual.contains(&table), "the table should be\n{table}");
        // Some of it again, in case both are wrong.
        let may = |role, permission| Rights::of_role(role).allows(permission, None);
        assert!(may(Role::Owner, Permission::TenantsWrite));
        assert!(!may(Role::Admin, Permission::TenantsWrite));
        assert!(may(Role::Operator, Permission::KeysRevoke));
        assert!(!may(Role::Operator, Permission::KeysWrite));
        assert!(!may(Role::Verifier, Permission::KeysRead));
    }

    #[test]
    fn a_role_for_some_services_reaches_those_alone() {
        let services = [slug("a"), slug("b")];
        for role in Role::ALL {
            let whole = Rights::of_role(role);
            let limited = Rights::new(role.scopes_for(&services));
            for permission in Permission::ALL {
                let expected = whole.allows(permission, None) && permission.has_service_form();
                assert_eq!(limited.allows(permission, Some(&services[0])), expected);
                assert_eq!(limited.allows(permission, Some(&services[1])), expected);
                assert!(!limited.allows(permission, Some(&slug("c"))));
                assert!(!limited.allows(permission, None));
            }
        }
    }
}
