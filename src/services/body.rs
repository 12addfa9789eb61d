//! Services as JSON: what is sent and what is answered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Service;
use super::exchange::{ExchangePatch, ExchangeSettings};
use super::settings::{KeyPolicy, KeyPolicyPatch, OnOutage, UsagePatch, UsageSettings};
use super::tokens::{TokenPatch, TokenSettings};
use super::upstream::{UpstreamPatch, UpstreamSettings};
use crate::catalogue::Status;
use crate::id::ServiceId;
use crate::limits::{Quota, QuotaPatch, RateLimits};
use crate::metadata::{Metadata, MetadataPatch};
use crate::patch::{Reason, double_option};
use crate::scope::ScopeEntry;
use crate::text::{Description, Name, Slug};
use crate::time::Timestamp;

/// A service to create. What is left out has its default.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "slug": "billing",
    "name": "Billing",
    "scopes": [
        {"name": "invoice:read", "description": "Read invoices"},
        {"name": "invoice:write", "implies": ["invoice:read"], "description": "Create and send invoices"}
    ],
    "key_policy": {"default_ttl": "90d", "max_ttl": "365d", "environments": ["live", "test"]},
    "rate_limits": [{"name": "per-minute", "limit": 600, "period": "1m", "burst": 100}]
}))]
pub struct CreateService {
    pub slug: Slug,
    /// The slug, unless given.
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The scope catalogue; empty: any scope may be granted. To take a scope out takes it from no key: see
    /// who has it with `/v1/keys?service=`.
    #[serde(default)]
    #[schema(required = false, max_items = 1000)]
    pub scopes: Vec<ScopeEntry>,
    pub key_policy: Option<KeyPolicyPatch>,
    /// Counted for each key, where neither the key nor its grant names any; an empty list there does
    /// not lift them.
    #[serde(default)]
    #[schema(required = false)]
    pub rate_limits: RateLimits,
    /// Counted for each key that has none of its own.
    pub quota: Option<Quota>,
    #[serde(default)]
    #[schema(required = false)]
    pub on_outage: OnOutage,
    pub usage: Option<UsagePatch>,
    pub tokens: Option<TokenPatch>,
    pub exchange: Option<ExchangePatch>,
    /// Whose tokens keys are swapped for; ours, unless given.
    pub upstream: Option<UpstreamPatch>,
    #[serde(default)]
    #[schema(required = false)]
    pub metadata: Metadata,
    pub reason: Option<Reason>,
}

/// A service as it shall be: what is left out has its default, whatever it had before.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Billing", "scopes": [{"name": "invoice:read"}]}))]
pub struct ReplaceService {
    /// If given, the one of the path.
    pub slug: Option<Slug>,
    /// The slug, unless given.
    pub name: Option<Name>,
    pub description: Option<Description>,
    /// The scope catalogue; empty: any scope may be granted. To take a scope out takes it from no key: see
    /// who has it with `/v1/keys?service=`.
    #[serde(default)]
    #[schema(required = false, max_items = 1000)]
    pub scopes: Vec<ScopeEntry>,
    pub key_policy: Option<KeyPolicyPatch>,
    /// Counted for each key, where neither the key nor its grant names any; an empty list there does
    /// not lift them.
    #[serde(default)]
    #[schema(required = false)]
    pub rate_limits: RateLimits,
    /// Counted for each key that has none of its own.
    pub quota: Option<Quota>,
    #[serde(default)]
    #[schema(required = false)]
    pub on_outage: OnOutage,
    pub usage: Option<UsagePatch>,
    pub tokens: Option<TokenPatch>,
    pub exchange: Option<ExchangePatch>,
    /// Whose tokens keys are swapped for; ours, unless given.
    pub upstream: Option<UpstreamPatch>,
    #[serde(default)]
    #[schema(required = false)]
    pub metadata: Metadata,
    pub reason: Option<Reason>,
}

impl ReplaceService {
    /// The service that is made when there is none to replace.
    pub fn create(self, slug: Slug) -> CreateService {
        CreateService {
            slug,
            name: self.name,
            description: self.description,
            scopes: self.scopes,
            key_policy: self.key_policy,
            rate_limits: self.rate_limits,
            quota: self.quota,
            on_outage: self.on_outage,
            usage: self.usage,
            tokens: self.tokens,
            exchange: self.exchange,
            upstream: self.upstream,
            metadata: self.metadata,
            reason: self.reason,
        }
    }
}

/// A merge patch (RFC 7396) for a service: lists are replaced whole, `null` sets the default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"description": "Creates and sends invoices.", "key_policy": {"max_ttl": "30d"}}))]
pub struct UpdateService {
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Name>)]
    pub name: Option<Option<Name>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Description>)]
    pub description: Option<Option<Description>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Vec<ScopeEntry>>, max_items = 1000)]
    pub scopes: Option<Option<Vec<ScopeEntry>>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<KeyPolicyPatch>)]
    pub key_policy: Option<Option<KeyPolicyPatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<RateLimits>)]
    pub rate_limits: Option<Option<RateLimits>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<QuotaPatch>)]
    pub quota: Option<Option<QuotaPatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<OnOutage>)]
    pub on_outage: Option<Option<OnOutage>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<UsagePatch>)]
    pub usage: Option<Option<UsagePatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<TokenPatch>)]
    pub tokens: Option<Option<TokenPatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<ExchangePatch>)]
    pub exchange: Option<Option<ExchangePatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<UpstreamPatch>)]
    pub upstream: Option<Option<UpstreamPatch>>,
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<MetadataPatch>)]
    pub metadata: Option<Option<MetadataPatch>>,
    pub reason: Option<Reason>,
}

/// A service.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "Service", example = json!({
    "id": "svc_01jd8k3v9we5m8t7q2x4z6y0ab",
    "tenant": "default",
    "slug": "billing",
    "name": "Billing",
    "description": "",
    "scopes": [{"name": "invoice:read", "implies": [], "description": "Read invoices"}],
    "key_policy": {
        "default_ttl": "90d",
        "max_ttl": "365d",
        "allow_no_expiry": false,
        "environments": ["live", "test"],
        "prefix": "ks",
        "rotation_overlap": null,
        "self_rotate": false
    },
    "rate_limits": [
        {"name": "per-minute", "limit": 600, "period": "1m", "burst": 100, "fail_mode": "local"}
    ],
    "quota": null,
    "on_outage": "serve",
    "usage": {"events": "all"},
    "tokens": {
        "ttl": "5m", "claims": {"plan": "consumer.metadata.plan"}, "resources": [],
        "introspection_jwt_member": false, "accepts": ["key"], "embed": {}
    },
    "exchange": {"domain": null, "from": ["shop"], "actors": ["shop-backend"]},
    "upstream": null,
    "metadata": {},
    "status": "active",
    "version": 1,
    "created_at": "2026-11-22T05:00:00.000Z",
    "updated_at": "2026-11-22T05:00:00.000Z"
}))]
pub struct ServiceBody {
    pub id: ServiceId,
    /// The slug of its tenant.
    pub tenant: Slug,
    pub slug: Slug,
    pub name: Name,
    pub description: Description,
    pub scopes: Vec<ScopeEntry>,
    pub key_policy: KeyPolicy,
    pub rate_limits: RateLimits,
    #[schema(required = true)]
    pub quota: Option<Quota>,
    pub on_outage: OnOutage,
    pub usage: UsageSettings,
    pub tokens: TokenSettings,
    pub exchange: ExchangeSettings,
    #[schema(required = true)]
    pub upstream: Option<UpstreamSettings>,
    pub metadata: Metadata,
    pub status: Status,
    pub version: i64,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl ServiceBody {
    pub fn new(service: &Service, tenant: &Slug) -> Self {
        let settings = &service.settings;
        Self {
            id: service.id.clone(),
            tenant: tenant.clone(),
            slug: service.slug.clone(),
            name: service.name.clone(),
            description: service.description.clone(),
            scopes: settings.scopes.clone(),
            key_policy: settings.key_policy.clone(),
            rate_limits: settings.rate_limits.clone(),
            quota: settings.quota,
            on_outage: settings.on_outage,
            usage: settings.usage,
            tokens: settings.tokens.clone(),
            exchange: settings.exchange.clone(),
            upstream: settings.upstream.clone(),
            metadata: service.metadata.clone(),
            status: service.status(),
            version: service.version,
            created_at: service.created_at,
            updated_at: service.updated_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::http::json_body;

    fn pointer<T: serde::de::DeserializeOwned>(body: &Value) -> String {
        match json_body::parse::<T>(body.to_string().as_bytes()) {
            Ok(_) => panic!("accepted: {body}"),
            Err(violation) => violation.pointer,
        }
    }

    #[test]
    fn what_the_server_sets_cannot_be_sent() {
        for member in [
            "id",
            "tenant",
            "tenant_id",
            "status",
            "disabled_at",
            "deleted_at",
            "version",
            "created_at",
            "created_by",
            "updated_at",
            "settings",
            "is_admin",
        ] {
            let create = json!({"slug": "a", member: null});
            assert_eq!(pointer::<CreateService>(&create), format!("/{member}"));
            let other = json!({member: null});
            assert_eq!(pointer::<ReplaceService>(&other), format!("/{member}"));
            assert_eq!(pointer::<UpdateService>(&other), format!("/{member}"));
        }
        assert_eq!(pointer::<UpdateService>(&json!({"slug": "b"})), "/slug");
    }

    #[test]
    fn a_fault_is_told_by_its_place() {
        let limit = |limit: Value| json!([{"name": "a", "limit": limit, "period": "1m"}]);
        for (member, value, expected) in [
            ("name", json!("a\u{0}b"), "/name"),
            ("name", json!("x".repeat(201)), "/name"),
            ("description", json!("a\u{0}b"), "/description"),
            ("description", json!("x".repeat(2001)), "/description"),
            ("scopes", json!([{"name": "a b"}]), "/scopes/0/name"),
            (
                "scopes",
                json!([{"name": "a", "domains": "x"}]),
                "/scopes/0/domains",
            ),
            (
                "key_policy",
                json!({"environments": []}),
                "/key_policy/environments",
            ),
            (
                "key_policy",
                json!({"max_tll": "1d"}),
                "/key_policy/max_tll",
            ),
            ("key_policy", json!({"max_ttl": 1}), "/key_policy/max_ttl"),
            ("rate_limits", limit(json!(-1)), "/rate_limits/0/limit"),
            ("rate_limits", limit(json!("1")), "/rate_limits/0/limit"),
            ("rate_limits", limit(json!(1e308)), "/rate_limits/0/limit"),
            ("rate_limits", limit(json!(0)), "/rate_limits/0"),
            ("rate_limits", limit(json!(i64::MAX)), "/rate_limits/0"),
            ("rate_limits", limit(json!(u64::MAX)), "/rate_limits/0"),
            (
                "quota",
                json!({"limit": 1, "period": "year"}),
                "/quota/period",
            ),
            ("usage", json!({"events": "some"}), "/usage/events"),
            ("usage", json!({"event": "all"}), "/usage/event"),
            ("tokens", json!({"ttl": 300}), "/tokens/ttl"),
            ("tokens", json!({"tll": "5m"}), "/tokens/tll"),
            (
                "tokens",
                json!({"claims": {"sub": "key.name"}}),
                "/tokens/claims",
            ),
            (
                "tokens",
                json!({"resources": ["billing"]}),
                "/tokens/resources",
            ),
            ("upstream", json!({"provider": "A B"}), "/upstream/provider"),
            (
                "upstream",
                json!({"provider": "a", "scopes": {"x": ""}}),
                "/upstream/scopes",
            ),
            (
                "upstream",
                json!({"provider": "a", "client_secret": "x"}),
                "/upstream/client_secret",
            ),
            ("tokens", json!({"accepts": []}), "/tokens/accepts"),
            (
                "tokens",
                json!({"introspection_jwt_member": "yes"}),
                "/tokens/introspection_jwt_member",
            ),
            ("on_outage", json!("maybe"), "/on_outage"),
            ("on_outage", json!(5), "/on_outage"),
            ("quota", json!({"limit": 1, "period": {}}), "/quota/period"),
            ("metadata", json!([]), "/metadata"),
            ("metadata", json!({"a": "\u{0}"}), "/metadata"),
            ("metadata", json!({"a": "x".repeat(65 * 1024)}), "/metadata"),
            ("reason", json!("x".repeat(501)), "/reason"),
        ] {
            let create = json!({"slug": "a", member: value});
            assert_eq!(pointer::<CreateService>(&create), expected, "{value}");
            let replace = json!({member: value});
            assert_eq!(pointer::<ReplaceService>(&replace), expected, "{value}");
            // What a patch makes of metadata is judged together with what is there.
            if member != "metadata" || value.is_array() {
                assert_eq!(pointer::<UpdateService>(&replace), expected, "{value}");
            }
        }
        assert_eq!(pointer::<CreateService>(&json!({"slug": "A"})), "/slug");
    }

    #[test]
    fn null_is_a_value_in_a_patch_alone() {
        let patch = json!({
            "name": null, "description": null, "scopes": null, "key_policy": null,
            "rate_limits": null, "quota": null, "on_outage": null, "metadata": null,
        });
        let read: UpdateService = json_body::parse(patch.to_string().as_bytes()).unwrap();
        assert!(matches!(read.scopes, Some(None)));
        assert!(matches!(read.metadata, Some(None)));
        let empty: UpdateService = json_body::parse(b"{}").unwrap();
        assert!(empty.scopes.is_none() && empty.metadata.is_none());
        for member in ["scopes", "rate_limits", "on_outage", "metadata"] {
            let create = json!({"slug": "a", member: null});
            assert_eq!(pointer::<CreateService>(&create), format!("/{member}"));
        }
    }
}
