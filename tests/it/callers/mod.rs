//! Who calls the administration with a JWT: what is refused, whose keys are believed and when, what
//! claims are worth, for whom a service acts, and the owner key that needs no issuer.

mod acting;
mod forged;
mod owner_key;
mod provider;
mod published;
mod remembered;
mod roles;

use keystead::clock::Clock;
use serde_json::{Value, json};

use crate::support::forge::forged::{A, AUDIENCE, HEADER, good_claims, with};
use crate::support::forge::{IdentityProvider, Signers};
use crate::support::{Client, Home, Server, text};

/// Another issuer than A, with the same key.
const C: &str = "https://c.example";

/// Issuers of the tables of a file, as the one variable that names them all.
pub fn variable(issuers: &[String]) -> String {
    let tables = issuers.iter().map(|lines| {
        let table: toml::Table = lines.parse().expect("the test writes TOML");
        toml::Value::Table(table)
    });
    toml::Value::Array(tables.collect()).to_string()
}

/// An issuer whose key stands in the configuration; `lines` says the rest.
fn issuer(iss: &str, lines: &str) -> String {
    format!(
        "issuer = \"{iss}\"\naudience = \"{AUDIENCE}\"\nalgorithms = [\"ES256\"]\n\
         public_key = '''{}'''\n{lines}\n",
        Signers::shared().pem("ES256")
    )
}

/// Everybody with the role `admin` is one, in the tenant `default`.
const ADMINS: &str = "tenant = \"default\"\n\
                      roles = [{claim = \"roles\", value = \"admin\", role = \"admin\"}]";

/// A node that believes these issuers.
async fn serve(home: &Home, issuers: &[String]) -> Server {
    home.serve_with(&[("ISSUERS", &variable(issuers))]).await
}

/// A good token of A but for the changes, signed by the key that A and C share.
fn token(clock: &Clock, changes: Value) -> String {
    Signers::shared().token("ES256", HEADER, &with(good_claims(clock), changes))
}

/// Who bears it.
fn bearer(server: &Server, changes: Value) -> Client {
    server.client().with_bearer(&token(&server.clock, changes))
}

/// The plaintext of a management key with these scopes.
async fn manager_key(owner: &Client, scopes: &[&str]) -> String {
    let consumer = json!({"slug": "managers"});
    let made = owner.post("/v1/consumers").json(consumer).send().await;
    assert!([201, 409].contains(&made.status), "{made}");
    let grants = json!([{"service": "keystead", "scopes": scopes}]);
    let new = json!({"name": "manager", "consumer": "managers", "grants": grants});
    text(&owner.create("/v1/keys", new).await, "/api_key")
}
