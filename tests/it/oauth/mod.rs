//! The OAuth bridge, as its clients and resource servers meet it. A number in a comment names the line
//! of the conformance list, or the threat, that a test was made from.

mod asked;
mod at_gateway;
mod at_the_edge;
mod clients;
mod ended;
mod exchange;
mod exchange_ended;
mod exchange_refused;
mod guide;
mod keyring;
mod published;
mod refused;
mod rotated;
mod shared;
mod signed_answers;
mod token;
mod upstream;

use std::collections::HashSet;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Home, Request, Server, text, until};
use crate::usage::lines;

/// A node with a service `invoicing`, and a consumer `acme` with an external id as odd as they come.
pub struct World {
    pub server: Server,
    pub owner: Client,
}

pub const EXTERNAL_ID: &str = "acme:prod/1 +%-_=é";

impl World {
    pub async fn new(home: &Home) -> Self {
        Self::with(home, &[]).await
    }

    pub async fn with(home: &Home, settings: &[(&str, &str)]) -> Self {
        let server = home.serve_with(settings).await;
        let owner = server.owner();
        let service = json!({
            "slug": "invoicing",
            "scopes": [
                {"name": "invoice:read"},
                {"name": "invoice:write", "implies": ["invoice:read"]},
                {"name": "report:read"},
            ],
            "key_policy": {"allow_no_expiry": true},
        });
        owner.create("/v1/services", service).await;
        let consumer = json!({"slug": "acme", "external_id": EXTERNAL_ID});
        owner.create("/v1/consumers", consumer).await;
        Self { server, owner }
    }

    /// What a create answers, of a key with these scopes on `invoicing` and what else `more` says.
    pub async fn issue(&self, scopes: &[&str], more: Value) -> Value {
        let mut new = json!({
            "name": "worker",
            "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": scopes}],
        });
        for (name, value) in more.as_object().expect("an object") {
            new[name] = value.clone();
        }
        self.owner.create("/v1/keys", new).await
    }

    /// The plaintext of an ordinary key.
    pub async fn key(&self) -> String {
        text(
            &self
                .issue(&["invoice:read", "report:read"], json!({}))
                .await,
            "/api_key",
        )
    }

    /// The plaintext of a key with a grant on a second service, `shipping`, too.
    pub async fn key_of_two(&self) -> String {
        let slug = json!({"slug": "shipping"});
        self.owner.create("/v1/services", slug).await;
        let grants = json!({"grants": [
            {"service": "invoicing", "scopes": ["invoice:read"]},
            {"service": "shipping", "scopes": ["parcel:send"]},
        ]});
        text(&self.issue(&[], grants).await, "/api_key")
    }

    /// Asks for a token with the key in `x-api-key` and these parameters beside the grant.
    pub async fn ask(&self, key: &str, pairs: &[(&str, &str)]) -> Answer {
        let mut form = vec![("grant_type", "client_credentials")];
        form.extend_from_slice(pairs);
        let client = self.server.client().with_key(key);
        client.post("/oauth/token").form(&form).send().await
    }

    /// The token that is answered.
    pub async fn token(&self, key: &str, pairs: &[(&str, &str)]) -> String {
        text(&self.ask(key, pairs).await.expect(200), "/access_token")
    }

    /// A management key of these scopes.
    pub async fn asker(&self, scopes: &[&str]) -> String {
        let grants = json!({"grants": [{"service": "keystead", "scopes": scopes}]});
        text(&self.issue(&[], grants).await, "/api_key")
    }

    /// An introspection, ready to send.
    pub fn asks(&self, asker: &str, token: &str, pairs: &[(&str, &str)]) -> Request {
        let mut form = vec![("token", token)];
        form.extend_from_slice(pairs);
        let client = self.server.client().with_key(asker);
        client.post("/oauth/introspect").form(&form)
    }

    pub async fn introspect(&self, asker: &str, token: &str, pairs: &[(&str, &str)]) -> Answer {
        self.asks(asker, token, pairs).send().await
    }

    pub async fn change(&self, path: &str, patch: Value) {
        let request = self.owner.request("PATCH".parse().expect("a method"), path);
        request.json(patch).send().await.expect(200);
    }

    /// What a token says, once a stock library has verified it with the published keys alone.
    pub async fn verified(&self, token: &str, audience: &str) -> Value {
        let set = self
            .server
            .client()
            .get("/.well-known/jwks.json")
            .send()
            .await;
        verify(token, &set.expect(200), &self.issuer(), audience)
    }

    pub fn issuer(&self) -> String {
        format!("http://{}", self.server.client().address())
    }
}

/// What a resource server does with a JWT library: key by `kid`, signature, `iss`, `aud`, `exp`.
#[track_caller]
pub fn verify(token: &str, set: &Value, issuer: &str, audience: &str) -> Value {
    let header = jsonwebtoken::decode_header(token).expect("a JWT");
    assert_eq!(header.typ.as_deref(), Some("at+jwt"));
    let set: JwkSet = serde_json::from_value(set.clone()).expect("a key set");
    let jwk: &Jwk = set
        .find(header.kid.as_deref().expect("a kid"))
        .expect("the kid");
    let key = DecodingKey::from_jwk(jwk).expect("a key");
    let mut validation = Validation::new(header.alg);
    validation.set_audience(&[audience]);
    validation.set_issuer(&[issuer]);
    validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
    // Tests move the clock of the node.
    validation.validate_exp = false;
    assert_ne!(header.alg, Algorithm::HS256);
    jsonwebtoken::decode::<Value>(token, &key, &validation)
        .expect("it verifies")
        .claims
}

/// What a JWT of this type says, verified with the published keys: signature alone.
#[track_caller]
pub fn verified_as(typ: &str, token: &str, set: &Value) -> Value {
    let header = jsonwebtoken::decode_header(token).expect("a JWT");
    assert_eq!(header.typ.as_deref(), Some(typ));
    let set: JwkSet = serde_json::from_value(set.clone()).expect("a key set");
    let jwk = set.find(header.kid.as_deref().expect("a kid"));
    let key = DecodingKey::from_jwk(jwk.expect("the kid")).expect("a key");
    let mut validation = Validation::new(header.alg);
    validation.validate_aud = false;
    validation.validate_exp = false;
    validation.required_spec_claims.clear();
    jsonwebtoken::decode::<Value>(token, &key, &validation)
        .expect("it verifies")
        .claims
}

/// One part of a JWT, unverified.
pub fn part(token: &str, index: usize) -> Value {
    let part = token.split('.').nth(index).expect("three parts");
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).expect("base64url")).expect("JSON")
}

/// `Authorization: Basic` as RFC 6749 §2.3.1 has it: both form-encoded. Everything but letters and
/// digits is escaped, as some clients do.
pub fn basic(id: &str, secret: &str) -> String {
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b if b.is_ascii_alphanumeric() => char::from(b).to_string(),
                b => format!("%{b:02X}"),
            })
            .collect()
    };
    format!(
        "Basic {}",
        STANDARD.encode(format!("{}:{}", encode(id), encode(secret)))
    )
}

/// The key with another last character, whatever that is.
pub fn typo(key: &str) -> String {
    let (head, last) = key.split_at(key.len() - 1);
    format!("{head}{}", if last == "0" { "1" } else { "0" })
}

/// The words of a scope, in no order.
pub fn words(scope: &Value) -> HashSet<String> {
    let scope = scope.as_str().unwrap_or_default();
    scope
        .split(' ')
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The stored uses of an operation, once there are so many: outcome, token id and subject.
async fn stored(home: &Home, operation: &str, count: usize) -> Vec<String> {
    let query = format!(
        "SELECT outcome || ' ' || coalesce(token_id, '-') || ' ' || coalesce(subject, '-') AS line \
         FROM usage_event WHERE operation = '{operation}' ORDER BY at, outcome"
    );
    let mut events = Vec::new();
    until(Duration::from_secs(20), "all uses are stored", async || {
        events = lines(home, &query).await;
        events.len() == count
    })
    .await;
    events
}
