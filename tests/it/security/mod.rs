//! What strangers, callers and typos try, and what each of it comes to. A row number in a comment
//! names the threat in the list that the tests were made from.

mod carriers;
mod detours;
mod edge;
mod escalation;
mod events;
mod inputs;
mod lookups;
mod restrictions;
mod secrets;
mod texts;

use keystead::entropy::Entropy;
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::text::{Environment, Prefix};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Home, Request, Server, both, text};

/// The ways on which a key is presented to be judged, and those on which a caller presents its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carrier {
    VerifyBody,
    GatewayHeader,
    GatewayBearer,
    CallerHeader,
    CallerBearer,
}

impl Carrier {
    const JUDGED: [Self; 3] = [Self::VerifyBody, Self::GatewayHeader, Self::GatewayBearer];
    const CALLERS: [Self; 2] = [Self::CallerHeader, Self::CallerBearer];
    const ALL: [Self; 5] = [
        Self::VerifyBody,
        Self::GatewayHeader,
        Self::GatewayBearer,
        Self::CallerHeader,
        Self::CallerBearer,
    ];
}

/// A node with a service `invoicing`, a consumer `acme` and a gateway for the service.
struct World {
    server: Server,
    owner: Client,
    gateway: String,
}

impl World {
    async fn new(home: &Home) -> Self {
        let proxies = [("SERVER__TRUSTED_PROXIES", "127.0.0.1")];
        let server = home.serve_with(&proxies).await;
        let owner = server.owner();
        Self::catalogue(&owner).await;
        let gateway = json!({"service": "keystead", "scopes": ["verify:invoicing"]});
        let gateway = Self::issue(&owner, &key_with(gateway)).await.1;
        Self {
            server,
            owner,
            gateway,
        }
    }

    async fn catalogue(owner: &Client) {
        let new = json!({"slug": "invoicing", "key_policy": {"allow_no_expiry": true}});
        owner.create("/v1/services", new).await;
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
    }

    /// A key's id and plaintext.
    async fn issue(owner: &Client, new: &Value) -> (String, String) {
        let issued = owner.create("/v1/keys", new.clone()).await;
        (text(&issued, "/key/id"), text(&issued, "/api_key"))
    }

    async fn key(&self) -> (String, String) {
        Self::issue(&self.owner, &new_key()).await
    }

    /// The request that presents the key.
    fn present(&self, carrier: Carrier, key: &[u8]) -> Request {
        let client = self.server.client();
        let gateway = || {
            client
                .get("/gateway/authorize?required_scopes=invoice:read")
                .header("x-keystead-caller", &self.gateway)
                // The proxy is trusted to say whose request it holds.
                .header("x-forwarded-for", "127.0.0.9")
        };
        let bearer = [b"Bearer ", key].concat();
        match carrier {
            Carrier::VerifyBody => self.owner.post("/v1/verify").json(json!({
                "api_key": String::from_utf8_lossy(key),
                "service": "invoicing",
                "required_scopes": ["invoice:read"],
                "ip": "127.0.0.1",
            })),
            Carrier::GatewayHeader => gateway().header_bytes("x-api-key", key),
            Carrier::GatewayBearer => gateway().header_bytes("authorization", &bearer),
            Carrier::CallerHeader => client.get("/v1/keys").header_bytes("x-api-key", key),
            Carrier::CallerBearer => client
                .get("/v1/keys")
                .header_bytes("authorization", &bearer),
        }
    }

    /// What became of it: the code of the decision, or of the problem, or `valid`.
    async fn judge(&self, carrier: Carrier, key: &str) -> String {
        code(&self.present(carrier, key.as_bytes()).send().await)
    }
}

fn code(answer: &Answer) -> String {
    match (answer.status, answer.code()) {
        (200, "") => "valid".to_owned(),
        (_, "") => panic!("no code: {answer}"),
        (_, code) => code.to_owned(),
    }
}

/// What a key that cannot be told apart from no key is called on this way.
fn nobody(carrier: Carrier, verdict: &'static str) -> &'static str {
    match carrier {
        Carrier::VerifyBody => verdict,
        // Only what is a key of ours is our business there.
        Carrier::GatewayBearer if verdict == "malformed" => "unauthenticated",
        Carrier::GatewayHeader
        | Carrier::GatewayBearer
        | Carrier::CallerHeader
        | Carrier::CallerBearer => "invalid_credential",
    }
}

fn new_key() -> Value {
    key_with(json!({"service": "invoicing", "scopes": ["invoice:read"]}))
}

fn key_with(grant: Value) -> Value {
    json!({"name": "worker", "consumer": "acme", "grants": [grant]})
}

/// A key that nobody was ever given.
pub fn stranger(lookup_id: &str) -> String {
    ApiKey::generate(
        &Prefix::parse("ks").expect("a prefix"),
        &Environment::parse("live").expect("an environment"),
        &LookupId::parse(lookup_id).expect("a lookup id"),
        &Entropy::System,
    )
    .expose_secret()
    .to_owned()
}

fn lookup_id(key: &str) -> &str {
    key.split('_').nth(2).expect("a key")
}
