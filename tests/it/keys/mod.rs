//! Keys from issue to revocation over HTTP, on both databases: what validation says at each step,
//! who may do what, what many at once leave behind, what a kill or a client that goes away leaves
//! behind, what is at rest, what a change of the pepper means.

mod cut;
mod history;
mod killed;
mod life;
mod many;
mod pepper;
mod rest;
mod rights;

use std::collections::BTreeMap;

use keystead::time::Span;
use serde_json::{Value, json};

use crate::support::{Client, Server, text};

/// A service `invoicing` and a consumer `acme`.
async fn catalogue(owner: &Client) {
    let scopes = json!([{"name": "invoice:read"}, {"name": "invoice:send"}]);
    owner
        .create(
            "/v1/services",
            json!({"slug": "invoicing", "scopes": scopes}),
        )
        .await;
    owner.create("/v1/consumers", json!({"slug": "acme"})).await;
}

fn new_key() -> Value {
    json!({
        "name": "worker", "consumer": "acme",
        "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}]
    })
}

/// A key's id and plaintext.
async fn issue(owner: &Client, new: Value) -> (String, String) {
    let issued = owner.create("/v1/keys", new).await;
    (text(&issued, "/key/id"), text(&issued, "/api_key"))
}

/// The plaintext of a management key with these scopes.
async fn manager_key(owner: &Client, scopes: &[&str]) -> String {
    let grants = json!([{"service": "keystead", "scopes": scopes}]);
    let new = json!({"name": "manager", "consumer": "acme", "grants": grants});
    issue(owner, new).await.1
}

/// Who presents it.
async fn manager(owner: &Client, scopes: &[&str]) -> Client {
    owner.with_key(&manager_key(owner, scopes).await)
}

/// The code of a verification for `invoicing`.
async fn verify(owner: &Client, key: &str, scope: &str) -> String {
    let body = json!({"api_key": key, "service": "invoicing", "required_scopes": [scope]});
    let answer = owner.post("/v1/verify").json(body).send().await.expect(200);
    text(&answer, "/code")
}

async fn action(owner: &Client, id: &str, verb: &str) {
    owner
        .post(&format!("/v1/keys/{id}/{verb}"))
        .send()
        .await
        .expect(200);
}

/// The same key with another character at `at`.
fn altered(key: &str, at: usize) -> String {
    let mut bytes = key.as_bytes().to_vec();
    bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
    String::from_utf8(bytes).unwrap()
}

fn forward(server: &Server, span: Span) {
    server.clock.advance(span);
}

/// What the trail has on keys: how many lines each has, by id.
async fn lines_of_keys(owner: &Client) -> BTreeMap<String, i64> {
    let mut lines = BTreeMap::new();
    for line in owner.all("/v1/audit/events?outcome=done", 200).await {
        if line["target"]["kind"] == "key" {
            *lines.entry(text(&line, "/target/id")).or_default() += 1;
        }
    }
    lines
}

/// The version of each key, by id. Every change of a key raises it by one.
async fn versions_of_keys(owner: &Client) -> BTreeMap<String, i64> {
    let keys = owner.all("/v1/keys", 200).await;
    keys.iter()
        .map(|key| (text(key, "/id"), key["version"].as_i64().expect("a number")))
        .collect()
}

/// The trail is whole from its first line to its last.
async fn assert_trail_verifies(owner: &Client) {
    let asked = owner.post("/v1/audit/verify").json(json!({}));
    let report = asked.send().await.expect(200);
    assert_eq!(report["valid"], true, "{report}");
}
