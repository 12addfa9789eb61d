//! How each operation of the API document is called so that it succeeds, what it needs and what it
//! leaves behind. An operation without a recipe fails the matrix.

use reqwest::Method;
use serde_json::{Value, json};

use super::world::World;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nobody has to say who they are.
    Nothing,
    /// A caller with this management scope.
    Scope(&'static str),
    /// The holder of an ordinary key, with that key.
    Key,
    /// The gateway's own header: its refusals are a protocol of its own, in gateway.rs.
    Gateway,
    /// The client authentication of OAuth, in whose words it also refuses: see the tests in oauth/.
    Client,
}

/// What to do to call one operation in one world.
#[derive(Clone, Copy)]
pub struct Recipe {
    pub needs: Needs,
    /// The status of success.
    pub status: u16,
    /// The actions of the audit lines that a success leaves.
    pub lines: &'static [&'static str],
    /// Another operation that makes this one possible.
    pub first: Option<&'static str>,
    /// The values of the path's parameters, in order.
    ids: fn(&World) -> Vec<&str>,
    query: fn(&World) -> String,
    body: fn(&World) -> Value,
}

/// A request that is ready to send.
#[derive(Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub body: Option<Value>,
}

impl Recipe {
    /// The request for `world`; `route` is the path as the document writes it.
    pub fn call(&self, method: &Method, route: &str, world: &World) -> Call {
        let mut ids = (self.ids)(world).into_iter();
        let path: Vec<&str> = route
            .split('/')
            .map(|part| match part.starts_with('{') {
                true => ids.next().unwrap_or_else(|| panic!("{route}: too few ids")),
                false => part,
            })
            .collect();
        assert_eq!(ids.next(), None, "{route}: too many ids");
        let query = (self.query)(world);
        let mark = if query.is_empty() { "" } else { "?" };
        let body = (self.body)(world);
        Call {
            method: method.clone(),
            path: format!("{}{mark}{query}", path.join("/")),
            body: (!body.is_null()).then_some(body),
        }
    }

    const fn needs(needs: Needs) -> Self {
        Self {
            needs,
            status: 200,
            lines: &[],
            first: None,
            ids: |_| Vec::new(),
            query: |_| String::new(),
            body: |_| Value::Null,
        }
    }

    const fn scope(scope: &'static str) -> Self {
        Self::needs(Needs::Scope(scope))
    }

    const fn answers(self, status: u16) -> Self {
        Self { status, ..self }
    }

    const fn leaves(self, lines: &'static [&'static str]) -> Self {
        Self { lines, ..self }
    }

    const fn after(self, first: &'static str) -> Self {
        Self {
            first: Some(first),
            ..self
        }
    }

    const fn ids(self, ids: fn(&World) -> Vec<&str>) -> Self {
        Self { ids, ..self }
    }

    const fn query(self, query: fn(&World) -> String) -> Self {
        Self { query, ..self }
    }

    const fn body(self, body: fn(&World) -> Value) -> Self {
        Self { body, ..self }
    }
}

/// The recipe of an operation, by its id.
pub fn recipe(operation: &str) -> Option<Recipe> {
    let nothing = Recipe::needs(Needs::Nothing);
    let holder = Recipe::needs(Needs::Key);
    let scope = Recipe::scope;
    let recipe = match operation {
        // Keys
        "issue_key" => scope("keys:write")
            .body(new_key)
            .answers(201)
            .leaves(&["key.create"]),
        "issue_keys" => scope("keys:write")
            .body(|world| json!({"items": [new_key(world), new_key(world)]}))
            .answers(201)
            .leaves(&["key.create", "key.create"]),
        "list_keys" => scope("keys:read").query(|world| {
            format!(
                "consumer={}&service={}",
                world.consumer_id, world.service_id
            )
        }),
        "read_key" => scope("keys:read").ids(key),
        "update_key" => scope("keys:write")
            .ids(key)
            .body(|_| json!({"name": "renamed"}))
            .leaves(&["key.update"]),
        "rotate_key" => scope("keys:write").ids(key).leaves(&["key.rotate"]),
        "revoke_key" => scope("keys:revoke").ids(key).leaves(&["key.revoke"]),
        "disable_key" => scope("keys:revoke").ids(key).leaves(&["key.disable"]),
        "enable_key" => scope("keys:write")
            .ids(key)
            .after("disable_key")
            .leaves(&["key.enable"]),
        "revoke_secret" => scope("keys:revoke").ids(secret).leaves(&["secret.revoke"]),
        "update_secret" => scope("keys:write")
            .ids(secret)
            .body(|_| json!({"valid_until": "2199-01-01T00:00:00Z"}))
            .leaves(&["secret.update"]),
        "export_keys" => scope("keys:read").leaves(&["key.export"]),
        "find_keys" => scope("keys:read").body(|world| json!({"lookup_ids": [world.lookup_id]})),
        "revoke_keys" => scope("keys:revoke")
            .body(|world| json!({"ids": [world.key_id], "expected": 1}))
            .leaves(&["key.revoke"]),
        "list_key_patterns" => nothing,
        // The holder's own affairs
        "read_self" => holder,
        "revoke_self" => holder.leaves(&["key.revoke"]),
        "rotate_self" => holder.leaves(&["key.rotate"]),
        // Validation
        "verify_key" => scope("verify").body(verify),
        "verify_keys" => scope("verify").body(|world| json!({"items": [verify(world)]})),
        "explain_key" => scope("verify").body(verify),
        "authorize_request" => Recipe::needs(Needs::Gateway),
        // OAuth
        "issue_token" | "introspect_token" | "revoke_token" => Recipe::needs(Needs::Client),
        "read_jwks" | "read_authorization_server" => nothing,
        // Tenants
        "create_tenant" => scope("tenants:write")
            .body(|world| json!({"slug": format!("{}-new", world.name)}))
            .answers(201)
            .leaves(&["tenant.create"]),
        "list_tenants" => scope("tenants:write"),
        "read_tenant" => scope("tenants:write").ids(tenant),
        "update_tenant" => scope("tenants:write")
            .ids(tenant)
            .body(|_| json!({"name": "renamed"}))
            .leaves(&["tenant.update"]),
        "delete_tenant" => scope("tenants:write")
            .ids(tenant)
            .query(|_| "revoke_keys=true".to_owned())
            .answers(204)
            .leaves(&["tenant.delete"]),
        "disable_tenant" => scope("tenants:write")
            .ids(tenant)
            .leaves(&["tenant.disable"]),
        "enable_tenant" => scope("tenants:write")
            .ids(tenant)
            .after("disable_tenant")
            .leaves(&["tenant.enable"]),
        // Services
        "create_service" => scope("services:write")
            .body(|world| json!({"slug": format!("{}-new", world.name)}))
            .answers(201)
            .leaves(&["service.create"]),
        "list_services" => scope("services:read"),
        "read_service" => scope("services:read").ids(service),
        "update_service" => scope("services:write")
            .ids(service)
            .body(|_| json!({"name": "renamed"}))
            .leaves(&["service.update"]),
        "replace_service" => scope("services:write")
            .ids(service)
            .body(|_| json!({"name": "replaced"}))
            .leaves(&["service.update"]),
        "delete_service" => scope("services:write")
            .ids(service)
            .query(|_| "revoke_keys=true".to_owned())
            .answers(204)
            .leaves(&["service.delete"]),
        "disable_service" => scope("services:write")
            .ids(service)
            .leaves(&["service.disable"]),
        "enable_service" => scope("services:write")
            .ids(service)
            .after("disable_service")
            .leaves(&["service.enable"]),
        // Consumers
        "create_consumer" => scope("consumers:write")
            .body(|world| json!({"slug": format!("{}-new", world.name)}))
            .answers(201)
            .leaves(&["consumer.create"]),
        "list_consumers" => scope("consumers:read"),
        "read_consumer" => scope("consumers:read").ids(consumer),
        "update_consumer" => scope("consumers:write")
            .ids(consumer)
            .body(|_| json!({"name": "renamed"}))
            .leaves(&["consumer.update"]),
        "replace_consumer" => scope("consumers:write")
            .ids(consumer)
            .body(|_| json!({"name": "replaced"}))
            .leaves(&["consumer.update"]),
        "delete_consumer" => scope("consumers:write")
            .ids(consumer)
            .query(|_| "revoke_keys=true".to_owned())
            .answers(204)
            .leaves(&["key.revoke", "consumer.delete"]),
        "disable_consumer" => scope("consumers:write")
            .ids(consumer)
            .leaves(&["consumer.disable"]),
        "enable_consumer" => scope("consumers:write")
            .ids(consumer)
            .after("disable_consumer")
            .leaves(&["consumer.enable"]),
        // Usage
        "list_usage_events" => scope("usage:read").query(|world| format!("key={}", world.key_id)),
        "summarize_usage" => {
            scope("usage:read").query(|world| format!("key={}&group_by=outcome", world.key_id))
        }
        "export_usage_events" => scope("usage:read")
            .query(|world| format!("key={}", world.key_id))
            .leaves(&["usage.export"]),
        // Audit
        "list_audit_events" => {
            scope("audit:read").query(|world| format!("target={}", world.key_id))
        }
        "create_audit_checkpoint" => scope("audit:read").answers(201),
        "list_audit_checkpoints" => scope("audit:read"),
        "list_audit_keys" => scope("audit:read"),
        "verify_audit" | "verify_usage" => scope("audit:read"),
        "export_audit_events" => scope("audit:read").leaves(&["audit.export"]),
        // Reviews
        "create_access_review" => scope("keys:write")
            .body(|world| json!({"name": "made", "filter": {"services": [world.service_id]}}))
            .answers(201)
            .leaves(&["access_review.create"]),
        "list_access_reviews" => scope("keys:read"),
        "read_access_review" => scope("keys:read").ids(review),
        "list_access_review_items" => scope("keys:read").ids(review),
        "decide_access_review" => scope("keys:write")
            .ids(|world| vec![&world.review_id, &world.key_id])
            .body(|_| json!({"decision": "keep"}))
            .leaves(&["access_review.decide"]),
        "close_access_review" => scope("keys:write")
            .ids(review)
            .body(|_| json!({"leave_undecided": true}))
            .leaves(&["access_review.close"]),
        "export_access_review" => scope("keys:read")
            .ids(review)
            .leaves(&["access_review.export"]),
        // Operations
        "check_liveness" | "check_readiness" | "read_metrics" | "read_openapi" | "read_docs" => {
            nothing
        }
        _ => return None,
    };
    Some(recipe)
}

fn new_key(world: &World) -> Value {
    json!({
        "name": "made by the matrix",
        "consumer": world.consumer_id,
        "grants": [{"service": world.service_id, "scopes": ["invoice:read"]}],
    })
}

fn verify(world: &World) -> Value {
    json!({"api_key": world.api_key, "service": world.service_slug})
}

fn key(world: &World) -> Vec<&str> {
    vec![&world.key_id]
}

fn secret(world: &World) -> Vec<&str> {
    vec![&world.key_id, &world.secret_id]
}

fn tenant(world: &World) -> Vec<&str> {
    vec![&world.tenant_id]
}

fn service(world: &World) -> Vec<&str> {
    vec![&world.service_id]
}

fn review(world: &World) -> Vec<&str> {
    vec![&world.review_id]
}

fn consumer(world: &World) -> Vec<&str> {
    vec![&world.consumer_id]
}
