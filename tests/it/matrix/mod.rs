//! Every operation of the API document, by every role, and against another tenant's objects.
//!
//! The operations come from the document that the server serves, so a new one is tested or fails:
//! [`recipes`] says how each is called so that it succeeds.

pub mod recipes;
pub mod world;

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};

use self::recipes::{Call, Needs, Recipe, recipe};
use self::world::World;
use crate::support::{Answer, Client, Home, Server, both, tables};

/// The roles of DESIGN's list of rights, and the scopes each stands for.
const ROLES: [(&str, &[&str]); 7] = [
    ("owner", &["*"]),
    (
        "admin",
        &[
            "services:write",
            "consumers:write",
            "keys:write",
            "verify",
            "introspect",
            "usage:read",
            "audit:read",
        ],
    ),
    (
        "issuer",
        &["services:read", "consumers:write", "keys:write"],
    ),
    ("operator", &["keys:read", "keys:revoke", "usage:read"]),
    (
        "auditor",
        &[
            "services:read",
            "consumers:read",
            "keys:read",
            "usage:read",
            "audit:read",
        ],
    ),
    ("viewer", &["services:read", "consumers:read", "keys:read"]),
    ("verifier", &["verify", "introspect"]),
];

const SCOPES: [&str; 12] = [
    "tenants:write",
    "services:read",
    "services:write",
    "consumers:read",
    "consumers:write",
    "keys:read",
    "keys:write",
    "keys:revoke",
    "verify",
    "introspect",
    "usage:read",
    "audit:read",
];

/// Whether one scope is enough for what needs another: `write` meets `read`, `keys:write` more.
fn meets(granted: &str, needed: &str) -> bool {
    granted == "*"
        || granted == needed
        || (granted == "keys:write" && needed.starts_with("keys:"))
        || (granted.strip_suffix("write").is_some()
            && granted.strip_suffix("write") == needed.strip_suffix("read"))
}

/// One operation of the document.
pub struct Operation {
    pub id: String,
    pub method: Method,
    pub route: String,
    /// The document says that no credential is needed.
    pub open: bool,
    pub recipe: Recipe,
}

impl Operation {
    pub fn call(&self, world: &World) -> Call {
        self.recipe.call(&self.method, &self.route, world)
    }
}

/// Every operation that the server says it has.
pub async fn operations(server: &Server) -> Vec<Operation> {
    let document = server
        .client()
        .get("/openapi.json")
        .send()
        .await
        .expect(200);
    let mut operations = Vec::new();
    let mut without_recipe = Vec::new();
    for (route, item) in document["paths"].as_object().expect("it has paths") {
        for (method, operation) in item.as_object().expect("a path item") {
            let Ok(method) = Method::from_bytes(method.to_ascii_uppercase().as_bytes()) else {
                continue;
            };
            let Some(id) = operation["operationId"].as_str() else {
                continue;
            };
            let Some(recipe) = recipe(id) else {
                without_recipe.push(format!("{id}: {method} {route}"));
                continue;
            };
            operations.push(Operation {
                id: id.to_owned(),
                method,
                route: route.clone(),
                open: operation["security"] == json!([{}]),
                recipe,
            });
        }
    }
    assert!(
        without_recipe.is_empty(),
        "add a recipe to tests/it/matrix/recipes.rs for each of {without_recipe:#?}"
    );
    assert!(
        operations.len() > 20,
        "the document has lost its operations"
    );
    operations
}

pub async fn send(caller: &Client, call: &Call) -> Answer {
    let mut request = caller.request(call.method.clone(), &call.path);
    if let Some(body) = &call.body {
        request = request.json(body.clone());
    }
    request.send().await
}

/// A management key of the tenant that `owner` acts in, with these scopes.
async fn caller(owner: &Client, consumer: &str, scopes: &[&str]) -> (Client, String) {
    let body = json!({
        "name": scopes.join(" "),
        "consumer": consumer,
        "grants": [{"service": "keystead", "scopes": scopes}],
    });
    let issued = owner.create("/v1/keys", body).await;
    let key = issued["api_key"].as_str().expect("a fresh key");
    let id = issued["key"]["id"].as_str().expect("an id");
    (owner.anonymous().with_key(key), id.to_owned())
}

both!(only_callers_with_the_scope_get_in_and_each_change_leaves_its_lines);
async fn only_callers_with_the_scope_get_in_and_each_change_leaves_its_lines(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    owner
        .create("/v1/consumers", json!({"slug": "callers"}))
        .await;
    let mut count = 0;
    let mut roles = Vec::new();
    for (role, scopes) in ROLES {
        let (client, _) = caller(&owner, "callers", scopes).await;
        roles.push((role.to_owned(), scopes.to_vec(), client));
    }

    for operation in operations(&server).await {
        let Needs::Scope(needed) = operation.recipe.needs else {
            continue;
        };
        // Nothing but the scope, and everything but the scope.
        let without: Vec<&str> = SCOPES.into_iter().filter(|s| !meets(s, needed)).collect();
        let mut callers = roles.clone();
        for scopes in [vec![needed], without] {
            let (client, _) = caller(&owner, "callers", &scopes).await;
            callers.push((scopes.join(" "), scopes, client));
        }
        for (role, scopes, client) in callers {
            count += 1;
            let world = fresh(&owner, count).await;
            if let Some(first) = operation.recipe.first {
                let route = operation.route.replace("/enable", "/disable");
                let first =
                    recipe(first)
                        .expect("a recipe")
                        .call(&operation.method, &route, &world);
                send(&owner, &first).await.expect(200);
            }
            let before = tables::changes(&home).await;
            let answer = send(&client, &operation.call(&world)).await;
            let done = tables::changes_since(&home, &before).await;
            let what = format!("{} as {role}: {answer}", operation.id);
            if scopes.iter().any(|granted| meets(granted, needed)) {
                assert_eq!(answer.status, operation.recipe.status, "{what}");
                assert_eq!(done, operation.recipe.lines, "{what}");
            } else {
                assert_eq!((answer.status, answer.code()), (403, "forbidden"), "{what}");
                let detail = answer.body["detail"].as_str().unwrap_or_default();
                assert!(detail.contains(needed), "{what}");
                assert!(done.is_empty(), "{what}\n{done:?}");
            }
        }
    }
}

both!(whoever_has_no_valid_credential_is_refused_everywhere);
async fn whoever_has_no_valid_credential_is_refused_everywhere(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let world = fresh(&owner, 0).await;
    let consumer = &world.consumer_id;
    let (revoked, id) = caller(&owner, consumer, &["*"]).await;
    owner
        .post(&format!("/v1/keys/{id}/revoke"))
        .send()
        .await
        .expect(200);
    let (disabled, id) = caller(&owner, consumer, &["*"]).await;
    owner
        .post(&format!("/v1/keys/{id}/disable"))
        .send()
        .await
        .expect(200);
    let short = json!({
        "name": "short", "consumer": consumer, "ttl": "1m",
        "grants": [{"service": "keystead", "scopes": ["*"]}],
    });
    let short = owner.create("/v1/keys", short).await;
    let expired = owner.with_key(short["api_key"].as_str().unwrap());
    let unknown = owner.with_key(&World::ghost().api_key);
    let malformed = owner.with_key("letmein");
    server.clock.advance("2m".parse().unwrap());

    let before = tables::changes(&home).await;
    let mut seen = BTreeSet::new();
    for operation in operations(&server).await {
        let open = operation.recipe.needs == Needs::Nothing;
        let by_header = matches!(operation.recipe.needs, Needs::Gateway | Needs::Client);
        assert_eq!(
            open || by_header,
            operation.open,
            "{}: does the document say so?",
            operation.id
        );
        if open {
            let answer = send(&server.client(), &operation.call(&world)).await;
            assert_eq!(
                answer.status, operation.recipe.status,
                "{}: {answer}",
                operation.id
            );
            continue;
        }
        if by_header {
            continue;
        }
        for (client, code) in [
            (&server.client(), "unauthenticated"),
            (&malformed, "invalid_credential"),
            (&unknown, "invalid_credential"),
            (&revoked, "revoked"),
            (&disabled, "disabled"),
            (&expired, "expired"),
        ] {
            let answer = send(client, &operation.call(&world)).await;
            let what = format!("{} {code}: {answer}", operation.id);
            assert_eq!((answer.status, answer.code()), (401, code), "{what}");
            assert!(answer.headers.contains_key("www-authenticate"), "{what}");
            seen.insert(code);
        }
    }
    assert_eq!(seen.len(), 5);
    assert_eq!(tables::changes(&home).await, before);
}

both!(the_holder_of_a_key_minds_only_its_own_affairs);
async fn the_holder_of_a_key_minds_only_its_own_affairs(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    for (count, operation) in operations(&server).await.into_iter().enumerate() {
        let world = fresh(&owner, count).await;
        let holder = owner.with_key(&world.api_key);
        let before = tables::changes(&home).await;
        let answer = send(&holder, &operation.call(&world)).await;
        let done = tables::changes_since(&home, &before).await;
        let what = format!("{}: {answer}", operation.id);
        match operation.recipe.needs {
            Needs::Key => {
                assert_eq!(answer.status, operation.recipe.status, "{what}");
                assert_eq!(done, operation.recipe.lines, "{what}");
            }
            // It is no management key, and that is all that is said.
            Needs::Scope(_) => {
                assert_eq!(
                    (answer.status, answer.code()),
                    (401, "invalid_credential"),
                    "{what}"
                );
                assert!(done.is_empty(), "{what}");
            }
            Needs::Nothing => assert_eq!(answer.status, operation.recipe.status, "{what}"),
            Needs::Gateway | Needs::Client => {}
        }
    }
}

both!(another_tenants_objects_do_not_exist);
async fn another_tenants_objects_do_not_exist(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let tenant = async |slug: &str| {
        let tenant = owner.create("/v1/tenants", json!({"slug": slug})).await;
        let within = owner.within(slug);
        let id = tenant["id"].as_str().unwrap().to_owned();
        (World::make(&within, &id, slug).await, within)
    };
    let (own, within_own) = tenant("own").await;
    let (foreign, _) = tenant("foreign").await;
    let ghost = World::ghost();
    let (caller, _) = caller(&within_own, &own.consumer_id, &["*"]).await;

    let before = tables::rows_of(&home, &foreign.tenant_id).await;
    assert!(before.len() > 8, "{before:#?}");
    for operation in operations(&server).await {
        let Needs::Scope(_) = operation.recipe.needs else {
            continue;
        };
        // Those that create answer twice the same way only if the name is free each time.
        let theirs = send(&caller, &operation.call(&foreign)).await;
        let nobodys = send(&caller, &operation.call(&ghost)).await;
        let what = format!(
            "{}: {theirs}\nand for what nobody made: {nobodys}",
            operation.id
        );
        assert_eq!(theirs.status, nobodys.status, "{what}");
        assert_eq!(
            redacted(&foreign, &theirs.text),
            redacted(&ghost, &nobodys.text),
            "{what}"
        );
        if operation.route.contains('{') && operation.id.strip_prefix("replace_").is_none() {
            assert_eq!((theirs.status, theirs.code()), (404, "not_found"), "{what}");
        }

        // Nor can it be stepped into.
        let theirs = send(&caller.within("foreign"), &operation.call(&foreign)).await;
        let nobodys = send(&caller.within("ghost"), &operation.call(&ghost)).await;
        let what = format!(
            "{}: {theirs}\nand where nobody lives: {nobodys}",
            operation.id
        );
        assert_eq!((theirs.status, theirs.code()), (404, "not_found"), "{what}");
        assert_eq!(
            redacted(&foreign, &theirs.text),
            redacted(&ghost, &nobodys.text),
            "{what}"
        );
    }
    let after = tables::rows_of(&home, &foreign.tenant_id).await;
    assert_eq!(before, after, "the other tenant's rows");
}

/// Objects in `default`, and a tenant for what is done to tenants.
pub async fn fresh(owner: &Client, count: usize) -> World {
    let name = format!("w{count}");
    let tenant: Value = owner.create("/v1/tenants", json!({"slug": name})).await;
    let tenant_id = tenant["id"].as_str().expect("an id");
    World::make(owner, tenant_id, &name).await
}

/// The text of an answer without what differs from one request to the next.
fn redacted(world: &World, text: &str) -> String {
    let mut text = world.anonymous(text);
    for member in [
        "request_id",
        "id",
        "lookup_id",
        "api_key",
        "created_at",
        "updated_at",
        "at",
    ] {
        let start = format!("\"{member}\":\"");
        let mut kept = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once(&start) {
            kept.push_str(before);
            kept.push_str(&start);
            rest = after.split_once('"').map_or("", |(_, rest)| rest);
        }
        kept.push_str(rest);
        text = kept;
    }
    text
}
