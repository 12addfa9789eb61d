//! What is asked of a validation and what it tells, as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::decide::Outcome;
use crate::id::{ConsumerId, KeyId, SecretId};
use crate::keys::secret::UnparsedKey;
use crate::metadata::Metadata;
use crate::scope::{RequiredScope, Scope};
use crate::text::{Environment, Name, Slug, Tag};
use crate::time::Timestamp;

/// A request body with what it names the key by, and all that is asked of the key.
macro_rules! asking {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_attribute:meta])* $field:ident: $type:ty,)+ }) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$attribute])*
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $type,)+
            /// Slug or id. Default: the one service that the caller may verify for.
            #[schema(min_length = 1, max_length = 63)]
            pub service: Option<String>,
            /// All of these are needed; none if it is empty.
            #[serde(default)]
            #[schema(max_items = 200)]
            pub required_scopes: Vec<RequiredScope>,
            /// One of these is needed.
            #[schema(min_items = 1, max_items = 200)]
            pub any_scopes: Option<Vec<RequiredScope>>,
            /// The address that the key was presented from.
            #[schema(example = "203.0.113.7")]
            pub ip: Option<String>,
            /// What is charged to limits and quota; 0 decides, as for 1, and records without charging.
            #[schema(minimum = 0, maximum = 1_000_000_000, default = 1)]
            pub cost: Option<u64>,
            /// Default: the environment of the caller's own key; for a JWT the first of the
            /// service's list.
            pub environment: Option<Environment>,
            /// Recorded.
            #[schema(min_length = 1, max_length = 32)]
            pub method: Option<String>,
            /// Recorded, without its query.
            #[schema(max_length = 2048)]
            pub path: Option<String>,
            /// Up to 8 pairs of your own, recorded.
            #[schema(value_type = Option<BTreeMap<String, String>>)]
            pub context: Option<Context>,
        }

        impl $name {
            pub(super) fn asked(&self) -> VerifyAsked<'_> {
                VerifyAsked {
                    service: self.service.as_deref(),
                    required_scopes: &self.required_scopes,
                    any_scopes: self.any_scopes.as_deref(),
                    ip: self.ip.as_deref(),
                    cost: self.cost,
                    environment: self.environment.as_ref(),
                    method: self.method.as_deref(),
                    path: self.path.as_deref(),
                    context: self.context.as_ref().map(|context| &context.0),
                }
            }
        }
    };
}

asking! {
    /// May this key do this, now?
    #[schema(example = json!({
        "api_key": "ks_live_4hT0aZq81xPd_...",
        "service": "invoicing",
        "required_scopes": ["invoice:read"],
        "ip": "203.0.113.7"
    }))]
    VerifyRequest {
        api_key: UnparsedKey,
    }
}

asking! {
    /// Verify's body, or `key_id` in the place of `api_key`.
    #[schema(example = json!({
        "key_id": "key_01jd8k3v9we5m8t7q2x4z6y0ab",
        "service": "invoicing",
        "required_scopes": ["invoice:read"]
    }))]
    ExplainRequest {
        api_key: Option<UnparsedKey>,
        key_id: Option<KeyId>,
    }
}

/// Pairs of the caller's own; a name given twice is refused.
#[derive(Debug)]
pub struct Context(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Context {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Context;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Context, A::Error> {
                let mut pairs = BTreeMap::new();
                while let Some((name, value)) = members.next_entry::<String, String>()? {
                    if pairs.insert(name, value).is_some() {
                        return Err(de::Error::custom("has a name that is given twice"));
                    }
                }
                Ok(Context(pairs))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

/// What is asked of the key.
#[derive(Clone, Copy)]
pub(super) struct VerifyAsked<'a> {
    pub(super) service: Option<&'a str>,
    pub(super) required_scopes: &'a [RequiredScope],
    pub(super) any_scopes: Option<&'a [RequiredScope]>,
    pub(super) ip: Option<&'a str>,
    pub(super) cost: Option<u64>,
    pub(super) environment: Option<&'a Environment>,
    pub(super) method: Option<&'a str>,
    pub(super) path: Option<&'a str>,
    pub(super) context: Option<&'a BTreeMap<String, String>>,
}

/// Verifications, each decided by itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VerifyBatch {
    #[schema(value_type = Vec<VerifyRequest>, min_items = 1, max_items = 100)]
    pub items: Vec<Box<RawValue>>,
}

// The answer itself is written by answer.rs; a test holds it to this.
/// What was decided. Members that say nothing are left out.
#[derive(Debug, ToSchema)]
#[cfg_attr(test, derive(Deserialize), serde(deny_unknown_fields))]
#[schema(example = json!({
    "valid": true, "code": "valid", "status": 200,
    "key_id": "key_01jd8k3v9we5m8t7q2x4z6y0ab", "name": "billing worker",
    "consumer": {"id": "con_01jd8k3v9we5m8t7q2x4z6y0ab", "slug": "acme", "name": "ACME", "metadata": {}},
    "tenant": "default", "service": "invoicing", "environment": "live",
    "scopes": ["invoice:read"], "metadata": {}, "tags": [],
    "expires_at": "2027-01-31T12:00:00.000Z",
    "secret": {"id": "sec_01jd8k3v9we5m8t7q2x4z6y0ab", "superseded": false},
    "request_id": "5f0c2f4b9d1e4a7786c01b2a"
}))]
pub struct VerifyAnswer {
    pub valid: bool,
    pub code: Outcome,
    /// The HTTP status to tell the client who presented the key.
    pub status: u16,
    #[schema(nullable = false)]
    pub key_id: Option<KeyId>,
    #[schema(nullable = false)]
    pub name: Option<Name>,
    #[schema(nullable = false)]
    pub consumer: Option<ConsumerTold>,
    #[schema(nullable = false)]
    pub tenant: Option<Slug>,
    #[schema(nullable = false)]
    pub service: Option<Slug>,
    #[schema(nullable = false)]
    pub environment: Option<Environment>,
    /// Granted on that service.
    #[schema(nullable = false)]
    pub scopes: Option<Vec<Scope>>,
    #[schema(nullable = false)]
    pub missing_scopes: Option<Vec<RequiredScope>>,
    #[schema(nullable = false)]
    pub metadata: Option<Metadata>,
    #[schema(nullable = false)]
    pub tags: Option<Vec<Tag>>,
    #[schema(nullable = false)]
    pub expires_at: Option<Timestamp>,
    #[schema(nullable = false)]
    pub secret: Option<SecretTold>,
    /// Every limit that the decision was charged to; of one that was refused, which charges nothing,
    /// every limit that was asked.
    #[schema(nullable = false)]
    pub rate_limits: Option<Vec<LimitTold>>,
    /// The key's own quota, or else the service's, or the consumer's: whichever is nearest to its end.
    #[schema(nullable = false)]
    pub quota: Option<QuotaTold>,
    /// When to come again, of one that was refused: the longest wait of all that refuse it.
    #[schema(nullable = false)]
    pub retry_after_ms: Option<u64>,
    pub request_id: String,
}

#[derive(Debug, ToSchema)]
#[cfg_attr(test, derive(Deserialize), serde(deny_unknown_fields))]
pub struct ConsumerTold {
    pub id: ConsumerId,
    pub slug: Slug,
    pub name: Name,
    pub metadata: Metadata,
}

#[derive(Debug, ToSchema)]
#[cfg_attr(test, derive(Deserialize), serde(deny_unknown_fields))]
pub struct SecretTold {
    pub id: SecretId,
    /// Whether a rotation has put another in its place: time to switch.
    pub superseded: bool,
    #[schema(nullable = false)]
    pub valid_until: Option<Timestamp>,
}

#[derive(Debug, ToSchema)]
#[cfg_attr(test, derive(Deserialize), serde(deny_unknown_fields))]
pub struct LimitTold {
    /// Whose it is (`key`, `grant`, `consumer` or `service`), and its name.
    #[schema(example = "key:burst")]
    pub name: String,
    pub limit: u64,
    /// What could be spent at once.
    pub remaining: u64,
    /// Until the whole burst is there again.
    pub reset_after_ms: u64,
    /// `true` where Redis did not answer and the limit's `fail_mode` decided in the place of the counter that all
    /// nodes share: one that is `closed` refuses then, whatever is left of it. Else left out.
    #[schema(nullable = false)]
    pub degraded: Option<bool>,
}

#[derive(Debug, ToSchema)]
#[cfg_attr(test, derive(Deserialize), serde(deny_unknown_fields))]
pub struct QuotaTold {
    pub limit: u64,
    pub remaining: u64,
    pub resets_at: Timestamp,
}

/// Each check and its result.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "code": "insufficient_scope",
    "checks": [{"name": "revoked", "passed": true, "detail": "neither the key nor the secret is revoked"}]
}))]
pub struct ExplainAnswer {
    pub code: Outcome,
    /// In their order, then each limit and quota if those before all passed; empty for a key that is not
    /// identified.
    pub checks: Vec<CheckTold>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct CheckTold {
    /// The code that a failure gives.
    pub name: Outcome,
    pub passed: bool,
    pub detail: String,
}
