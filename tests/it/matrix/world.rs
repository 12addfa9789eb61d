//! Objects to try the operations on: a service, a consumer, a key, a tenant of their own.

use keystead::entropy::Entropy;
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::text::{Environment, Prefix};
use serde_json::{Value, json};

use crate::support::Client;

/// One of each kind of object, by id and by name.
#[derive(Clone, Debug)]
pub struct World {
    pub name: String,
    /// For what is done to tenants.
    pub tenant_id: String,
    pub service_id: String,
    pub service_slug: String,
    pub consumer_id: String,
    pub key_id: String,
    pub lookup_id: String,
    pub secret_id: String,
    pub api_key: String,
    /// Of the keys of the service.
    pub review_id: String,
}

impl World {
    /// Makes the objects where `caller` acts.
    pub async fn make(caller: &Client, tenant_id: &str, name: &str) -> Self {
        let service = caller
            .create(
                "/v1/services",
                json!({
                    "slug": format!("{name}-svc"),
                    "key_policy": {"self_rotate": true, "allow_no_expiry": true},
                }),
            )
            .await;
        let consumer = caller
            .create("/v1/consumers", json!({"slug": format!("{name}-con")}))
            .await;
        let issued = caller
            .create(
                "/v1/keys",
                json!({
                    "name": name,
                    "consumer": consumer["id"],
                    "grants": [{"service": service["id"], "scopes": ["invoice:read"]}],
                    "expires_at": null,
                }),
            )
            .await;
        let about = json!({"name": name, "filter": {"services": [service["id"]]}});
        let review = caller.create("/v1/reviews/access", about).await;
        Self {
            name: name.to_owned(),
            tenant_id: tenant_id.to_owned(),
            service_id: text(&service["id"]),
            service_slug: text(&service["slug"]),
            consumer_id: text(&consumer["id"]),
            key_id: text(&issued["key"]["id"]),
            lookup_id: text(&issued["key"]["lookup_id"]),
            secret_id: text(&issued["key"]["secrets"][0]["id"]),
            api_key: text(&issued["api_key"]),
            review_id: text(&review["id"]),
        }
    }

    /// Well-formed names of what nobody ever made.
    pub fn ghost() -> Self {
        let id = |kind: &str| format!("{kind}_01jd8k3v9we5m8t7q2x4z6y0ab");
        Self {
            name: "ghost".to_owned(),
            tenant_id: id("ten"),
            service_id: id("svc"),
            service_slug: "ghost-svc".to_owned(),
            consumer_id: id("con"),
            key_id: id("key"),
            lookup_id: "000000000000".to_owned(),
            secret_id: id("sec"),
            review_id: id("rev"),
            api_key: ApiKey::generate(
                &Prefix::parse("ks").expect("a prefix"),
                &Environment::parse("live").expect("an environment"),
                &LookupId::parse("000000000000").expect("a lookup id"),
                &Entropy::seeded(1),
            )
            .expose_secret()
            .to_owned(),
        }
    }

    /// `text` with this world's names taken out, so that two worlds' answers can be compared.
    pub fn anonymous(&self, text: &str) -> String {
        [
            &self.tenant_id,
            &self.service_id,
            &self.service_slug,
            &self.consumer_id,
            &self.key_id,
            &self.lookup_id,
            &self.secret_id,
            &self.review_id,
            &self.api_key,
            &self.name,
        ]
        .into_iter()
        .fold(text.to_owned(), |text, name| text.replace(name, "<>"))
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
