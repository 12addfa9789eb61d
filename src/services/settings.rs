//! What a service decides for its keys: scope catalogue, key policy, default limits.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::exchange::ExchangeSettings;
use super::tokens::TokenSettings;
use super::upstream::UpstreamSettings;
use crate::error::{Error, Result};
use crate::limits::{Quota, RateLimits};
use crate::patch::double_option;
use crate::scope::ScopeEntry;
use crate::text::{Environment, Prefix};
use crate::time::Span;
use crate::usage::Events;

/// The life of a key for which neither it nor its service says anything.
pub const DEFAULT_TTL: Span = Span::days(90);

/// How long an old secret stays valid when neither the call nor the service says anything.
pub const DEFAULT_ROTATION_OVERLAP: Span = Span::hours(24);

/// The longest time that an old secret may stay valid beside a new one.
pub const ROTATION_OVERLAP_MAX: Span = Span::days(30);

const TTL_MIN: Span = Span::seconds(1);

const ENVIRONMENTS_MAX: usize = 16;

/// Everything about a service but its identity; stored as one JSON text. Members that a newer
/// version of the program wrote are ignored, so that old and new nodes may run side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServiceSettings {
    /// Empty when the service has no catalogue: then any scope may be granted.
    pub scopes: Vec<ScopeEntry>,
    pub key_policy: KeyPolicy,
    pub rate_limits: RateLimits,
    pub quota: Option<Quota>,
    pub on_outage: OnOutage,
    pub usage: UsageSettings,
    pub tokens: TokenSettings,
    pub exchange: ExchangeSettings,
    /// Where keys are swapped for the tokens of another authorization server.
    pub upstream: Option<UpstreamSettings>,
}

/// What is kept of the uses of the service's keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct UsageSettings {
    /// Which uses leave an event; all of them are counted.
    #[schema(required = true)]
    pub events: Events,
}

/// The same where a member that is left out stays as it is, and null is its default.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UsagePatch {
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Events>)]
    pub events: Option<Option<Events>>,
}

impl UsagePatch {
    pub fn apply(self, settings: &mut UsageSettings) {
        if let Some(events) = self.events {
            settings.events = events.unwrap_or_default();
        }
    }
}

/// What the service's keys must be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct KeyPolicy {
    /// The life of a key that is given none; null: 90 days, or `max_ttl` if that is shorter.
    #[schema(example = "90d", required = true)]
    pub default_ttl: Option<Span>,
    /// The longest life, from the creation; null: no bound.
    #[schema(example = "365d", required = true)]
    pub max_ttl: Option<Span>,
    /// Whether a key may be made that never expires.
    #[schema(required = true)]
    pub allow_no_expiry: bool,
    /// The environments a key may be for; the first is the default.
    #[schema(required = true)]
    pub environments: Environments,
    /// What the service's keys start with.
    #[schema(required = true)]
    pub prefix: Prefix,
    /// How long an old secret stays valid after a rotation, at most 30 d; null: 24 h.
    #[schema(example = "24h", required = true)]
    pub rotation_overlap: Option<Span>,
    /// Whether a holder may rotate its key with the key itself.
    #[schema(required = true)]
    pub self_rotate: bool,
}

impl KeyPolicy {
    /// The life of a key that is given none.
    pub fn effective_default_ttl(&self) -> Span {
        let default = self.default_ttl.unwrap_or(DEFAULT_TTL);
        self.max_ttl.map_or(default, |max| max.min(default))
    }

    pub fn effective_rotation_overlap(&self) -> Span {
        self.rotation_overlap.unwrap_or(DEFAULT_ROTATION_OVERLAP)
    }

    /// # Errors
    /// [`Error::Invalid`] for values that contradict each other or are out of range.
    pub fn check(&self) -> Result<()> {
        let invalid = |member: &str, detail: &str| {
            Err(Error::invalid(format!("/key_policy/{member}"), detail))
        };
        if self.default_ttl.is_some_and(|ttl| ttl < TTL_MIN) {
            return invalid("default_ttl", "must be at least 1s");
        }
        if self.max_ttl.is_some_and(|ttl| ttl < TTL_MIN) {
            return invalid("max_ttl", "must be at least 1s");
        }
        if let (Some(default), Some(max)) = (self.default_ttl, self.max_ttl)
            && default > max
        {
            return invalid("default_ttl", "must be at most max_ttl");
        }
        if self
            .rotation_overlap
            .is_some_and(|overlap| overlap > ROTATION_OVERLAP_MAX)
        {
            return invalid("rotation_overlap", "must be 0s to 30d");
        }
        Ok(())
    }
}

impl Default for KeyPolicy {
    #[expect(clippy::expect_used, reason = "ks is a prefix")]
    fn default() -> Self {
        Self {
            default_ttl: None,
            max_ttl: None,
            allow_no_expiry: false,
            environments: Environments::default(),
            prefix: Prefix::parse("ks").expect("ks is a prefix"),
            rotation_overlap: None,
            self_rotate: false,
        }
    }
}

/// The members of a key policy that are sent; `null` sets one back to its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"default_ttl": "90d", "max_ttl": "365d", "environments": ["live", "test"]}))]
pub struct KeyPolicyPatch {
    /// The life of a key that is given none; 90 days, or `max_ttl` if that is shorter, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Span>)]
    pub default_ttl: Option<Option<Span>>,
    /// The longest life, from the creation; no bound, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Span>)]
    pub max_ttl: Option<Option<Span>>,
    /// Whether a key may be made that never expires; `false`, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<bool>)]
    pub allow_no_expiry: Option<Option<bool>>,
    /// `["live", "test"]`, unless given; the first is the default.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Environments>)]
    pub environments: Option<Option<Environments>>,
    /// `ks`, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Prefix>)]
    pub prefix: Option<Option<Prefix>>,
    /// 0 s to 30 d; 24 h, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Span>)]
    pub rotation_overlap: Option<Option<Span>>,
    /// `false`, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<bool>)]
    pub self_rotate: Option<Option<bool>>,
}

impl KeyPolicyPatch {
    pub fn apply(self, policy: &mut KeyPolicy) {
        let Self {
            default_ttl,
            max_ttl,
            allow_no_expiry,
            environments,
            prefix,
            rotation_overlap,
            self_rotate,
        } = self;
        let default = KeyPolicy::default();
        if let Some(ttl) = default_ttl {
            policy.default_ttl = ttl;
        }
        if let Some(ttl) = max_ttl {
            policy.max_ttl = ttl;
        }
        if let Some(allow) = allow_no_expiry {
            policy.allow_no_expiry = allow.unwrap_or(default.allow_no_expiry);
        }
        if let Some(environments) = environments {
            policy.environments = environments.unwrap_or(default.environments);
        }
        if let Some(prefix) = prefix {
            policy.prefix = prefix.unwrap_or(default.prefix);
        }
        if let Some(overlap) = rotation_overlap {
            policy.rotation_overlap = overlap;
        }
        if let Some(allow) = self_rotate {
            policy.self_rotate = allow.unwrap_or(default.self_rotate);
        }
    }
}

/// What happens to the service's requests while the database cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnOutage {
    /// They are decided from what is cached, within its bounds.
    #[default]
    Serve,
    /// They are refused.
    Refuse,
}

/// The environments of a service's keys: 1 to 16, each once, the first is the default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(min_items = 1, max_items = 16, example = json!(["live", "test"]))]
pub struct Environments(Vec<Environment>);

impl Environments {
    /// # Errors
    /// What the list must be.
    pub fn new(environments: Vec<Environment>) -> std::result::Result<Self, &'static str> {
        if !(1..=ENVIRONMENTS_MAX).contains(&environments.len()) {
            return Err("must have 1 to 16 environments");
        }
        if environments.iter().collect::<BTreeSet<_>>().len() < environments.len() {
            return Err("must name each environment once");
        }
        Ok(Self(environments))
    }

    #[expect(clippy::expect_used, reason = "the list is never empty")]
    #[expect(clippy::missing_panics_doc, reason = "the list is never empty")]
    pub fn first(&self) -> &Environment {
        self.0.first().expect("the list is never empty")
    }

    pub fn contains(&self, environment: &Environment) -> bool {
        self.0.contains(environment)
    }

    pub fn as_slice(&self) -> &[Environment] {
        &self.0
    }
}

impl Default for Environments {
    #[expect(clippy::expect_used, reason = "both are environments")]
    fn default() -> Self {
        let parse = |text| Environment::parse(text).expect("an environment");
        Self(vec![parse("live"), parse("test")])
    }
}

impl<'de> Deserialize<'de> for Environments {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    fn patched(value: serde_json::Value) -> KeyPolicy {
        let mut policy = KeyPolicy::default();
        from_value::<KeyPolicyPatch>(value)
            .unwrap()
            .apply(&mut policy);
        policy
    }

    #[test]
    fn a_member_set_to_null_has_its_default_again() {
        let mut policy = patched(json!({
            "default_ttl": "30d", "max_ttl": "60d", "allow_no_expiry": true, "prefix": "acme",
            "environments": ["prod"], "rotation_overlap": "1h", "self_rotate": true,
        }));
        assert_eq!(policy.effective_default_ttl(), Span::days(30));
        let reset = json!({
            "default_ttl": null, "max_ttl": null, "allow_no_expiry": null, "prefix": null,
            "environments": null, "rotation_overlap": null, "self_rotate": null,
        });
        from_value::<KeyPolicyPatch>(reset)
            .unwrap()
            .apply(&mut policy);
        assert_eq!(policy, KeyPolicy::default());
    }

    #[test]
    fn a_key_lives_90_days_or_the_longest_it_may() {
        assert_eq!(patched(json!({})).effective_default_ttl(), Span::days(90));
        assert_eq!(
            patched(json!({"max_ttl": "7d"})).effective_default_ttl(),
            Span::days(7)
        );
    }

    #[test]
    fn a_policy_out_of_range_is_refused() {
        for good in [
            json!({}),
            json!({"default_ttl": "1s", "max_ttl": "1s"}),
            json!({"rotation_overlap": "0s"}),
            json!({"rotation_overlap": "30d"}),
        ] {
            patched(good).check().unwrap();
        }
        for bad in [
            json!({"default_ttl": "0s"}),
            json!({"max_ttl": "999ms"}),
            json!({"default_ttl": "2d", "max_ttl": "1d"}),
            json!({"rotation_overlap": "31d"}),
        ] {
            assert!(patched(bad.clone()).check().is_err(), "{bad}");
        }
        for bad in [
            json!({"environments": []}),
            json!({"environments": ["live", "live"]}),
            json!({"environments": ["Live"]}),
            json!({"environments": (0..17).map(|i| format!("e{i}")).collect::<Vec<_>>()}),
            json!({"prefix": "k"}),
            json!({"default_tll": "1d"}),
            json!({"max_ttl": 90}),
            json!({"max_ttl": "18446744073709551615s"}),
        ] {
            assert!(from_value::<KeyPolicyPatch>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn settings_of_a_newer_version_can_be_read() {
        let newer = json!({"routes": [], "key_policy": {"max_ttl": "1d", "colour": "red"}});
        let settings: ServiceSettings = from_value(newer).unwrap();
        assert_eq!(settings.key_policy.max_ttl, Some(Span::days(1)));
        assert_eq!(settings.on_outage, OnOutage::Serve);
    }
}
