//! What the claims of a good token are worth: the role rules and the tenant of its issuer.
//!
//! | claim | rule for `admin` |
//! | --- | --- |
//! | `"admin"` or `["viewer", "admin"]` | met |
//! | `"admin viewer"`, `" admin"`, `"ADMIN"`, `{"admin": true}`, `[["admin"]]`, `true` | not met |
//!
//! Who meets no rule is known and may do nothing.

use serde_json::{Map, Value};

use crate::config::issuers::{RoleRule, TenantRule};
use crate::json::find;
use crate::rights::Rights;
use crate::text::Slug;

/// The rights of all roles whose rule is met.
pub fn rights(claims: &Map<String, Value>, rules: &[RoleRule]) -> Rights {
    let mut scopes: Vec<String> = Vec::new();
    for rule in rules.iter().filter(|rule| is_met(claims, rule)) {
        match &rule.services {
            Some(services) => scopes.extend(rule.role.scopes_for(services)),
            None => scopes.extend(rule.role.scopes().iter().map(ToString::to_string)),
        }
    }
    Rights::new(scopes)
}

/// The tenant that the token's subject belongs to, if it is named.
pub fn tenant(claims: &Map<String, Value>, rule: &TenantRule) -> Option<Slug> {
    match rule {
        TenantRule::Fixed(slug) => Some(slug.clone()),
        TenantRule::Claim(name) => Slug::parse(find(claims, name)?.as_str()?).ok(),
    }
}

fn is_met(claims: &Map<String, Value>, rule: &RoleRule) -> bool {
    match find(claims, &rule.claim) {
        Some(Value::String(value)) => *value == rule.value,
        Some(Value::Array(values)) => values.iter().any(|value| *value == *rule.value),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::rights::{Permission, Role};

    fn rule(claim: &str, value: &str, role: Role) -> RoleRule {
        RoleRule {
            claim: claim.to_owned(),
            value: value.to_owned(),
            role,
            services: None,
        }
    }

    fn claims(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else {
            panic!("an object");
        };
        map
    }

    #[test]
    fn a_role_is_met_by_its_exact_value_alone() {
        let rules = [
            rule("roles", "admin", Role::Admin),
            rule("roles", "viewer", Role::Viewer),
        ];
        for (roles, expected) in [
            (json!("admin"), Rights::new(Role::Admin.scopes())),
            (json!("viewer"), Rights::new(Role::Viewer.scopes())),
            (json!(["x", "viewer"]), Rights::new(Role::Viewer.scopes())),
            (json!("admin viewer"), Rights::none()),
            (json!("admin,viewer"), Rights::none()),
            (json!(" admin"), Rights::none()),
            (json!("ADMIN"), Rights::none()),
            (json!("administrator"), Rights::none()),
            (json!(["admin viewer"]), Rights::none()),
            (json!([["admin"]]), Rights::none()),
            (json!({"admin": true}), Rights::none()),
            (json!({"roles": ["admin"]}), Rights::none()),
            (json!(true), Rights::none()),
            (json!(null), Rights::none()),
            (json!(""), Rights::none()),
            (json!("unknown"), Rights::none()),
        ] {
            assert_eq!(
                rights(&claims(json!({"roles": roles})), &rules),
                expected,
                "{roles}"
            );
        }
        assert_eq!(rights(&claims(json!({})), &rules), Rights::none());
        let both = rights(&claims(json!({"roles": ["viewer", "admin"]})), &rules);
        assert!(both.allows(Permission::KeysWrite, None));
        assert!(!both.allows(Permission::TenantsWrite, None));
    }

    #[test]
    fn a_claim_is_named_whole_or_by_its_path() {
        let nested = claims(json!({
            "realm_access": {"roles": ["admin"]},
            "https://idp.example/roles": ["viewer"],
        }));
        for (name, found) in [
            ("realm_access.roles", true),
            ("https://idp.example/roles", true),
            ("realm_access", true),
            ("realm_access.roles.0", false),
            ("realm_access.roles.", false),
            (".realm_access", false),
            ("roles", false),
            ("realm_access.Roles", false),
        ] {
            assert_eq!(find(&nested, name).is_some(), found, "{name}");
        }
    }

    #[test]
    fn a_role_for_services_is_worth_no_more_elsewhere() {
        let billing = Slug::parse("billing").unwrap();
        let rules = [RoleRule {
            services: Some(vec![billing.clone()]),
            ..rule("roles", "admin", Role::Admin)
        }];
        let rights = rights(&claims(json!({"roles": ["admin"]})), &rules);
        assert!(rights.allows(Permission::KeysWrite, Some(&billing)));
        assert!(!rights.allows(Permission::KeysWrite, None));
    }

    #[test]
    fn a_tenant_is_a_slug_or_nothing() {
        let rule = TenantRule::Claim("org".to_owned());
        for (org, expected) in [
            (json!("acme"), Slug::parse("acme").ok()),
            (json!("Acme"), None),
            (json!(["acme"]), None),
            (json!(""), None),
            (json!(null), None),
        ] {
            assert_eq!(
                tenant(&claims(json!({"org": org})), &rule),
                expected,
                "{org}"
            );
        }
        assert_eq!(tenant(&claims(json!({})), &rule), None);
    }
}
