//! What a service decides for its tokens: how long they live, what they say, what they are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::error::{Error, Result};
use crate::patch::double_option;
use crate::scope::Scope;
use crate::text::{Slug, has_control};
use crate::time::Span;

/// The life of a token where its service says nothing.
pub const TOKEN_TTL_DEFAULT: Span = Span::minutes(5);

/// No token lives longer: who verifies it by himself hears of no revocation.
pub const TOKEN_TTL_MAX: Span = Span::minutes(15);

const TOKEN_TTL_MIN: Span = Span::seconds(10);

const CLAIMS_MAX: usize = 20;

const EMBEDDED_MAX: usize = 5;

const EMBEDDED_SCOPES_MAX: usize = 20;

const RESOURCES_MAX: usize = 20;

const RESOURCE_BYTES_MAX: usize = 512;

/// Claims that mean something already (RFC 7519 §4.1, RFC 8693 §4, RFC 9068 §2.2, RFC 7662 §2.2,
/// RFC 7800, `OpenID` Connect), or that tell another kind of token.
const RESERVED_CLAIMS: [&str; 32] = [
    "acr",
    "act",
    "active",
    "amr",
    "at_hash",
    "aud",
    "auth_time",
    "azp",
    "c_hash",
    "client_id",
    "cnf",
    "embedded",
    "events",
    "exp",
    "iat",
    "iss",
    "jti",
    "jwt",
    "keystead",
    "may_act",
    "nbf",
    "nonce",
    "s_hash",
    "scope",
    "sid",
    "sub",
    "sub_id",
    "token_introspection",
    "token_type",
    "typ",
    "username",
    "vot",
];

/// What the service's tokens are like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct TokenSettings {
    /// How long a token lives, 10 s to 15 min; never past the end of its key.
    #[schema(required = true, example = "5m")]
    pub ttl: Span,
    #[schema(required = true)]
    pub claims: TokenClaims,
    #[schema(required = true)]
    pub resources: Resources,
    /// Whether the answer of an introspection has the member `jwt` beside the others: a token for the
    /// service that says the same.
    #[schema(required = true)]
    pub introspection_jwt_member: bool,
    #[schema(required = true)]
    pub accepts: Accepted,
    #[schema(required = true)]
    pub embed: Embedded,
}

impl Default for TokenSettings {
    fn default() -> Self {
        Self {
            ttl: TOKEN_TTL_DEFAULT,
            claims: TokenClaims::default(),
            resources: Resources::default(),
            introspection_jwt_member: false,
            accepts: Accepted::default(),
            embed: Embedded::default(),
        }
    }
}

impl TokenSettings {
    /// # Errors
    /// [`Error::Invalid`] for a life out of range.
    pub fn check(&self) -> Result<()> {
        if !(TOKEN_TTL_MIN..=TOKEN_TTL_MAX).contains(&self.ttl) {
            return Err(Error::invalid("/tokens/ttl", "must be 10s to 15m"));
        }
        Ok(())
    }
}

/// The same where a member that is left out stays as it is, and null is its default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "ttl": "5m",
    "claims": {"plan": "consumer.metadata.plan"},
    "resources": ["https://billing.example.com/"],
    "introspection_jwt_member": false,
    "accepts": ["key", "jwt"],
    "embed": {"shipping": ["parcel:track"]}
}))]
pub struct TokenPatch {
    /// 10 s to 15 min; 5 min, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Span>)]
    pub ttl: Option<Option<Span>>,
    /// Replaced as a whole; none, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<TokenClaims>)]
    pub claims: Option<Option<TokenClaims>>,
    /// Replaced as a whole; none, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Resources>)]
    pub resources: Option<Option<Resources>>,
    /// False, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<bool>)]
    pub introspection_jwt_member: Option<Option<bool>>,
    /// Replaced as a whole; keys alone, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Accepted>)]
    pub accepts: Option<Option<Accepted>>,
    /// Replaced as a whole; none, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Embedded>)]
    pub embed: Option<Option<Embedded>>,
}

impl TokenPatch {
    pub fn apply(self, settings: &mut TokenSettings) {
        let Self {
            ttl,
            claims,
            resources,
            introspection_jwt_member,
            accepts,
            embed,
        } = self;
        if let Some(ttl) = ttl {
            settings.ttl = ttl.unwrap_or(TOKEN_TTL_DEFAULT);
        }
        if let Some(claims) = claims {
            settings.claims = claims.unwrap_or_default();
        }
        if let Some(resources) = resources {
            settings.resources = resources.unwrap_or_default();
        }
        if let Some(member) = introspection_jwt_member {
            settings.introspection_jwt_member = member.unwrap_or_default();
        }
        if let Some(accepts) = accepts {
            settings.accepts = accepts.unwrap_or_default();
        }
        if let Some(embed) = embed {
            settings.embed = embed.unwrap_or_default();
        }
    }
}

/// Up to 20 claims by their names, each with what it is taken from: `consumer.slug`,
/// `consumer.name`, `consumer.external_id`, `key.name`, `key.tags`, or a member of the metadata, such
/// as `consumer.metadata.plan` or `key.metadata.owner.team`. What is not there is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = BTreeMap<String, String>, example = json!({"plan": "consumer.metadata.plan"}))]
pub struct TokenClaims(BTreeMap<String, ClaimSource>);

impl TokenClaims {
    /// # Errors
    /// What the claims must be.
    pub fn new(claims: BTreeMap<String, ClaimSource>) -> std::result::Result<Self, String> {
        if claims.len() > CLAIMS_MAX {
            return Err(format!("must have at most {CLAIMS_MAX} claims"));
        }
        for name in claims.keys() {
            let is_name = (1..=64).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
            if !is_name {
                return Err("must have names of 1 to 64 of A-Z, a-z, 0-9 and ._:/-".to_owned());
            }
            if RESERVED_CLAIMS.contains(&name.as_str()) {
                return Err(format!(
                    "must not set {name}, which has a meaning of its own"
                ));
            }
        }
        Ok(Self(claims))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &ClaimSource)> {
        self.0.iter().map(|(name, source)| (name.as_str(), source))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'de> Deserialize<'de> for TokenClaims {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Where the value of a claim comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimSource {
    ConsumerSlug,
    ConsumerName,
    ConsumerExternalId,
    /// A member of the consumer's metadata, or a path into it.
    ConsumerMetadata(String),
    KeyName,
    KeyTags,
    /// A member of the key's metadata, or a path into it.
    KeyMetadata(String),
}

const CONSUMER_METADATA: &str = "consumer.metadata.";
const KEY_METADATA: &str = "key.metadata.";

impl ClaimSource {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> std::result::Result<Self, &'static str> {
        const SHAPE: &str = "must be consumer.slug, consumer.name, consumer.external_id, key.name, \
                             key.tags, consumer.metadata.<member> or key.metadata.<member>";
        let member = |text: &str| {
            let good = (1..=128).contains(&text.len())
                && !has_control(text)
                && text.split('.').all(|part| !part.is_empty());
            good.then(|| text.to_owned()).ok_or(SHAPE)
        };
        if let Some(path) = text.strip_prefix(CONSUMER_METADATA) {
            return member(path).map(Self::ConsumerMetadata);
        }
        if let Some(path) = text.strip_prefix(KEY_METADATA) {
            return member(path).map(Self::KeyMetadata);
        }
        match text {
            "consumer.slug" => Ok(Self::ConsumerSlug),
            "consumer.name" => Ok(Self::ConsumerName),
            "consumer.external_id" => Ok(Self::ConsumerExternalId),
            "key.name" => Ok(Self::KeyName),
            "key.tags" => Ok(Self::KeyTags),
            _ => Err(SHAPE),
        }
    }
}

impl fmt::Display for ClaimSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConsumerSlug => f.write_str("consumer.slug"),
            Self::ConsumerName => f.write_str("consumer.name"),
            Self::ConsumerExternalId => f.write_str("consumer.external_id"),
            Self::ConsumerMetadata(path) => write!(f, "{CONSUMER_METADATA}{path}"),
            Self::KeyName => f.write_str("key.name"),
            Self::KeyTags => f.write_str("key.tags"),
            Self::KeyMetadata(path) => write!(f, "{KEY_METADATA}{path}"),
        }
    }
}

impl Serialize for ClaimSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ClaimSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// A kind of credential that is taken for the service at `/gateway/authorize`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Credential {
    /// An API key.
    Key,
    /// An access token of Keystead's.
    Jwt,
}

/// What is taken for the service at `/gateway/authorize`: keys, access tokens of Keystead's, or both. What
/// is not taken counts as not presented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Vec<Credential>, min_items = 1, max_items = 2, example = json!(["key", "jwt"]))]
pub struct Accepted(BTreeSet<Credential>);

impl Accepted {
    /// # Errors
    /// What the list must be.
    pub fn new(list: Vec<Credential>) -> std::result::Result<Self, &'static str> {
        let count = list.len();
        let kinds: BTreeSet<Credential> = list.into_iter().collect();
        if kinds.is_empty() || kinds.len() < count {
            return Err("must name key, jwt or both, each once");
        }
        Ok(Self(kinds))
    }

    pub fn has(&self, kind: Credential) -> bool {
        self.0.contains(&kind)
    }
}

impl Default for Accepted {
    fn default() -> Self {
        Self(BTreeSet::from([Credential::Key]))
    }
}

impl<'de> Deserialize<'de> for Accepted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Up to 5 other services by their slugs, each with the scopes, up to 20, of the tokens for it that stand
/// in those of this service, in the claim `embedded`. One is there if the other service takes tokens of
/// this one in exchange (`exchange`), with what the key holds of these scopes; else it is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    value_type = BTreeMap<String, Vec<Scope>>,
    example = json!({"shipping": ["parcel:track"]})
)]
pub struct Embedded(BTreeMap<Slug, Vec<Scope>>);

impl Embedded {
    /// # Errors
    /// What the map must be.
    pub fn new(embedded: BTreeMap<Slug, Vec<Scope>>) -> std::result::Result<Self, &'static str> {
        if embedded.len() > EMBEDDED_MAX {
            return Err("must have at most 5 services");
        }
        let is_list = |scopes: &Vec<Scope>| {
            (1..=EMBEDDED_SCOPES_MAX).contains(&scopes.len())
                && scopes.iter().collect::<BTreeSet<_>>().len() == scopes.len()
        };
        if !embedded.values().all(is_list) {
            return Err("must give each service 1 to 20 scopes, each once");
        }
        Ok(Self(embedded))
    }

    /// Each service, and the scopes of the tokens for it.
    pub fn iter(&self) -> impl Iterator<Item = (&Slug, &[Scope])> {
        self.0.iter().map(|(slug, scopes)| (slug, &**scopes))
    }
}

impl<'de> Deserialize<'de> for Embedded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(BTreeMap::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Up to 20 absolute URIs (RFC 8707 §2) by which clients may name the service as `resource`, each
/// compared as it is written. A token that was asked for by one has it as its audience.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Vec<String>, max_items = 20, example = json!(["https://billing.example.com/"]))]
pub struct Resources(Vec<String>);

impl Resources {
    /// # Errors
    /// What the list must be.
    pub fn new(resources: Vec<String>) -> std::result::Result<Self, &'static str> {
        if resources.len() > RESOURCES_MAX {
            return Err("must have at most 20 URIs");
        }
        if !resources.iter().all(|uri| is_resource(uri)) {
            return Err(
                "must be absolute URIs of at most 512 characters, without a fragment, such \
                        as https://billing.example.com/",
            );
        }
        if resources.iter().collect::<BTreeSet<_>>().len() < resources.len() {
            return Err("must name each URI once");
        }
        Ok(Self(resources))
    }

    pub fn contains(&self, uri: &str) -> bool {
        self.0.iter().any(|one| one == uri)
    }
}

/// An absolute URI without a fragment (RFC 3986 §4.3, RFC 8707 §2).
pub fn is_resource(text: &str) -> bool {
    text.len() <= RESOURCE_BYTES_MAX
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !b"\"\\<>^`{|}#".contains(&b))
        && url::Url::parse(text).is_ok()
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn patched(value: Value) -> TokenSettings {
        let mut settings = TokenSettings::default();
        from_value::<TokenPatch>(value)
            .unwrap()
            .apply(&mut settings);
        settings
    }

    #[test]
    fn a_member_set_to_null_has_its_default_again() {
        let mut settings = patched(json!({
            "ttl": "1m",
            "claims": {"plan": "consumer.metadata.plan"},
            "resources": ["https://a.example/"],
            "introspection_jwt_member": true,
            "accepts": ["jwt", "key"],
            "embed": {"shipping": ["parcel:track"]},
        }));
        assert!(settings.introspection_jwt_member);
        assert_eq!(json!(settings.accepts), json!(["key", "jwt"]));
        assert_eq!(settings.ttl, Span::minutes(1));
        let nulls = json!({
            "ttl": null, "claims": null, "resources": null,
            "introspection_jwt_member": null, "accepts": null, "embed": null,
        });
        from_value::<TokenPatch>(nulls)
            .unwrap()
            .apply(&mut settings);
        assert_eq!(settings, TokenSettings::default());
    }

    #[test]
    fn what_is_accepted_is_named_once_and_never_nothing() {
        for bad in [
            json!([]),
            json!(["key", "key"]),
            json!(["Key"]),
            json!(["opaque"]),
            json!("jwt"),
            json!([1]),
        ] {
            assert!(from_value::<Accepted>(bad.clone()).is_err(), "{bad}");
        }
        let both: Accepted = from_value(json!(["jwt", "key"])).unwrap();
        assert!(both.has(Credential::Key) && both.has(Credential::Jwt));
        assert!(!Accepted::default().has(Credential::Jwt));
    }

    #[test]
    fn what_is_embedded_names_services_and_their_scopes() {
        let scopes = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>();
        let services: BTreeMap<_, _> = (0..6).map(|n| (format!("s{n}"), scopes(1))).collect();
        for bad in [
            json!({"Shipping": ["a"]}),
            json!({"shipping": []}),
            json!({"shipping": ["a", "a"]}),
            json!({"shipping": ["a b"]}),
            json!({"shipping": scopes(21)}),
            json!({"shipping": "a"}),
            json!(services),
            json!(["shipping"]),
        ] {
            assert!(from_value::<Embedded>(bad.clone()).is_err(), "{bad}");
        }
        let good = json!({"a": ["x:*"], "b": scopes(20)});
        assert_eq!(json!(from_value::<Embedded>(good.clone()).unwrap()), good);
    }

    #[test]
    fn a_token_lives_ten_seconds_to_a_quarter_of_an_hour() {
        for good in ["10s", "15m"] {
            patched(json!({ "ttl": good })).check().unwrap();
        }
        for bad in ["0s", "9s", "16m", "1h"] {
            assert!(patched(json!({ "ttl": bad })).check().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_claim_has_a_name_of_its_own_and_a_source_that_there_is() {
        for good in [
            json!({"plan": "consumer.metadata.plan"}),
            json!({"https://example.com/team": "key.metadata.owner.team"}),
            json!({"a": "consumer.slug", "b": "consumer.external_id", "c": "key.tags"}),
        ] {
            let claims: TokenClaims = from_value(good.clone()).unwrap();
            assert_eq!(json!(claims), good);
        }
        let many: BTreeMap<_, _> = (0..21).map(|i| (format!("c{i}"), "key.name")).collect();
        for bad in [
            json!({"sub": "consumer.slug"}),
            json!({"scope": "key.metadata.scope"}),
            json!({"exp": "key.metadata.exp"}),
            json!({"act": "key.metadata.act"}),
            json!({"keystead": "key.name"}),
            json!({"": "key.name"}),
            json!({"a b": "key.name"}),
            json!({"a": "key.secret"}),
            json!({"a": "key.metadata."}),
            json!({"a": "key.metadata..b"}),
            json!({"a": "consumer.metadata"}),
            json!({"a": 1}),
            json!(many),
            json!([]),
        ] {
            assert!(from_value::<TokenClaims>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_resource_is_an_absolute_uri_without_a_fragment() {
        for good in [
            "https://a.example/",
            "https://a.example/b?c=d",
            "urn:example:billing",
        ] {
            assert!(is_resource(good), "{good}");
        }
        for bad in [
            "",
            "billing",
            "/billing",
            "https://a.example/#f",
            "https://a.example/ ",
            "https://\u{e9}.example/",
            "https://a.example/\u{0}",
            &format!("https://a.example/{}", "x".repeat(512)),
        ] {
            assert!(!is_resource(bad), "{bad}");
        }
        assert!(from_value::<Resources>(json!(["urn:a:b", "urn:a:b"])).is_err());
    }
}
