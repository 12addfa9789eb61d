//! Whose token a service's keys are swapped for, where it is not ours: a provider of the configuration,
//! named by its name, and what our scopes are called there.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use super::tokens::is_resource;
use crate::error::{Error, Result};
use crate::patch::{double_option, given};
use crate::scope::Scope;
use crate::text::{Slug, has_control};

const SCOPES_MAX: usize = 200;

const SCOPE_BYTES_MAX: usize = 512;

const AUDIENCE_BYTES_MAX: usize = 512;

/// Whose tokens the service's keys are swapped for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UpstreamSettings {
    /// The name of one of the configured `[[upstreams]]`.
    pub provider: Slug,
    #[serde(default)]
    #[schema(required = true)]
    pub scopes: ScopeMap,
    /// Sent as `audience`, where the provider asks for one.
    #[serde(default)]
    #[schema(required = true, example = "https://ledger.example.com/")]
    pub audience: Option<String>,
    /// Sent as `resource` (RFC 8707), where the provider asks for one.
    #[serde(default)]
    #[schema(required = true, example = "https://ledger.example.com/")]
    pub resource: Option<String>,
}

/// The members that are sent: one that is left out stays as it is, and null is its default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "provider": "company",
    "scopes": {"invoice:read": "ledger.read"},
    "resource": "https://ledger.example.com/"
}))]
pub struct UpstreamPatch {
    /// The name of one of the configured `[[upstreams]]`, which the tenant may use.
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub provider: Option<Slug>,
    /// Replaced as a whole; empty, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<ScopeMap>)]
    pub scopes: Option<Option<ScopeMap>>,
    /// None, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<String>, max_length = 512)]
    pub audience: Option<Option<String>>,
    /// None, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<String>, max_length = 512)]
    pub resource: Option<Option<String>>,
}

impl UpstreamPatch {
    /// What becomes of the settings that there were.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a first one that names no provider, and for what cannot be sent.
    pub fn apply(self, before: Option<UpstreamSettings>) -> Result<UpstreamSettings> {
        let Self {
            provider,
            scopes,
            audience,
            resource,
        } = self;
        let mut settings = match (provider, before) {
            (Some(provider), Some(before)) => UpstreamSettings { provider, ..before },
            (Some(provider), None) => UpstreamSettings {
                provider,
                scopes: ScopeMap::default(),
                audience: None,
                resource: None,
            },
            (None, Some(before)) => before,
            (None, None) => {
                return Err(Error::invalid("/upstream/provider", "is required"));
            }
        };
        if let Some(scopes) = scopes {
            settings.scopes = scopes.unwrap_or_default();
        }
        if let Some(audience) = audience {
            settings.audience = audience;
        }
        if let Some(resource) = resource {
            settings.resource = resource;
        }
        settings.check()?;
        Ok(settings)
    }
}

impl UpstreamSettings {
    fn check(&self) -> Result<()> {
        let is_audience =
            |text: &String| (1..=AUDIENCE_BYTES_MAX).contains(&text.len()) && !has_control(text);
        if !self.audience.iter().all(is_audience) {
            return Err(Error::invalid(
                "/upstream/audience",
                "must be 1 to 512 bytes without a control character",
            ));
        }
        if !self.resource.iter().all(|uri| is_resource(uri)) {
            return Err(Error::invalid(
                "/upstream/resource",
                "must be an absolute URI of at most 512 characters, without a fragment",
            ));
        }
        Ok(())
    }
}

/// Up to 200 of our scopes, each with what to ask the provider for, by spaces. Empty: the provider knows
/// our scopes by the same names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = BTreeMap<String, String>, example = json!({"invoice:read": "ledger.read"}))]
pub struct ScopeMap(BTreeMap<Scope, String>);

impl ScopeMap {
    /// # Errors
    /// What the map must be.
    pub fn new(scopes: BTreeMap<Scope, String>) -> std::result::Result<Self, &'static str> {
        if scopes.len() > SCOPES_MAX {
            return Err("must have at most 200 scopes");
        }
        if !scopes.values().all(|theirs| is_scope_list(theirs)) {
            return Err(
                "must give each scope those to ask the provider for, separated by one space, in at \
                 most 512 characters, such as \"ledger.read\"",
            );
        }
        Ok(Self(scopes))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Ours, and what each is there.
    pub fn iter(&self) -> impl Iterator<Item = (&Scope, &str)> {
        self.0.iter().map(|(ours, theirs)| (ours, theirs.as_str()))
    }
}

impl<'de> Deserialize<'de> for ScopeMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// RFC 6749 §3.3: one or more tokens of `%x21 / %x23-5B / %x5D-7E`, with one space between.
fn is_scope_list(text: &str) -> bool {
    text.len() <= SCOPE_BYTES_MAX
        && text.split(' ').all(|scope| {
            !scope.is_empty()
                && scope
                    .bytes()
                    .all(|b| b.is_ascii_graphic() && !b"\"\\".contains(&b))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn patched(before: Option<UpstreamSettings>, value: Value) -> Result<UpstreamSettings> {
        from_value::<UpstreamPatch>(value).unwrap().apply(before)
    }

    #[test]
    fn members_are_patched_one_by_one_and_the_first_patch_names_the_provider() {
        let whole = json!({
            "provider": "company", "scopes": {"a:b": "c d"}, "audience": "x", "resource": "urn:y",
        });
        let settings = patched(None, whole.clone()).unwrap();
        assert_eq!(json!(settings), whole);
        let other = patched(Some(settings.clone()), json!({"provider": "other"})).unwrap();
        assert_eq!(
            (other.provider.as_str(), &other.scopes),
            ("other", &settings.scopes)
        );
        let reset = json!({"scopes": null, "audience": null, "resource": null});
        let bare = patched(Some(settings), reset).unwrap();
        assert_eq!(bare, patched(None, json!({"provider": "company"})).unwrap());
        assert!(patched(None, json!({"audience": "x"})).is_err());
    }

    #[test]
    fn what_cannot_be_sent_is_refused() {
        for bad in [
            json!({"provider": "a", "audience": ""}),
            json!({"provider": "a", "audience": "x".repeat(513)}),
            json!({"provider": "a", "audience": "a\nb"}),
            json!({"provider": "a", "resource": "ledger"}),
            json!({"provider": "a", "resource": "https://a.example/#f"}),
        ] {
            assert!(patched(None, bad.clone()).is_err(), "{bad}");
        }
        let many: BTreeMap<_, _> = (0..201).map(|i| (format!("s{i}"), "x")).collect();
        for bad in [
            json!({"a": ""}),
            json!({"a": " b"}),
            json!({"a": "b  c"}),
            json!({"a": "b\"c"}),
            json!({"a": "b\u{e9}"}),
            json!({"a": "x".repeat(513)}),
            json!({"a b": "c"}),
            json!({"a": 1}),
            json!(many),
        ] {
            assert!(from_value::<ScopeMap>(bad.clone()).is_err(), "{bad}");
        }
        for bad in [
            json!({"provider": null}),
            json!({"client_secret": "x"}),
            json!({"issuer": "https://a.example"}),
        ] {
            assert!(from_value::<UpstreamPatch>(bad.clone()).is_err(), "{bad}");
        }
    }
}
