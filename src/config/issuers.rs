//! `[[issuers]]`: whose JWTs are believed, and what their claims are worth here.
//!
//! [`IssuerConfig`] is what stands in the file; [`resolve`] gives what it means, or every fault
//! with the key it stands at and what to do about it.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use jsonwebtoken::Algorithm;
use serde::{Deserialize, Serialize, Serializer};
use url::Url;
use zeroize::{ZeroizeOnDrop, Zeroizing};

use super::private_file;
use crate::outbound::Policy;
use crate::rights::Role;
use crate::text::{Slug, has_control};
use crate::time::Span;

/// HMAC-SHA-256 takes keys of any length; below its output's it is worth less than its name.
const HMAC_BYTES_MIN: usize = 32;

/// A person does not choose a random secret: these words give one away.
const HUMAN_WORDS: [&str; 7] = [
    "changeme",
    "change-me",
    "secret",
    "password",
    "example",
    "keystead",
    "replace",
];

/// One issuer as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// For logs and metrics; the issuer itself if there is none.
    #[serde(default)]
    pub name: Option<String>,
    /// The exact `iss` of its tokens.
    pub issuer: String,
    /// Its keys are found by `OpenID` Connect Discovery, below the issuer's own URL.
    #[serde(default)]
    pub discovery: bool,
    #[serde(default)]
    pub jwks_url: Option<Url>,
    /// PEM (`BEGIN PUBLIC KEY`).
    #[serde(default)]
    pub public_key: Option<String>,
    #[serde(default)]
    pub public_key_file: Option<PathBuf>,
    #[serde(default)]
    pub hmac_secret: Option<HmacSecret>,
    #[serde(default)]
    pub hmac_secret_file: Option<PathBuf>,
    /// What `aud` must hold.
    pub audience: String,
    /// The algorithms it signs with; nothing else is accepted.
    pub algorithms: Vec<Algorithm>,
    /// The tenant that its people belong to.
    #[serde(default)]
    pub tenant: Option<Slug>,
    /// The claim that names the tenant.
    #[serde(default)]
    pub tenant_claim: Option<String>,
    /// Accepted values of the header `typ`; with `JWT` it may be absent.
    #[serde(default = "default_token_types")]
    pub token_types: Vec<String>,
    /// What claims are worth; who matches no rule may do nothing.
    #[serde(default)]
    pub roles: Vec<RoleRule>,
    /// The longest life of a token.
    #[serde(default = "default_max_lifetime")]
    pub max_lifetime: Span,
    /// How long the last good keys serve while the issuer cannot be reached.
    #[serde(default = "default_jwks_max_age")]
    pub jwks_max_age: Span,
    /// The least time between two fetches of its keys.
    #[serde(default = "default_cooldown")]
    pub cooldown: Span,
    /// Keys may be fetched from private and loopback addresses.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// Keys may be fetched without TLS: who is on the way may then sign tokens.
    #[serde(default)]
    pub dangerous_allow_http: bool,
}

/// A claim with this very value gives the role.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoleRule {
    /// The name of a claim, or a path with dots into an object, such as `realm_access.roles`.
    pub claim: String,
    /// Compared exactly with a string, or with each string of a list.
    pub value: String,
    pub role: Role,
    /// The role holds for these services alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Slug>>,
}

/// A secret shared with another server; never shown.
#[derive(Clone, Deserialize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct HmacSecret(String);

impl HmacSecret {
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HmacSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HmacSecret(..)")
    }
}

impl Serialize for HmacSecret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(hidden)")
    }
}

fn default_token_types() -> Vec<String> {
    vec!["JWT".to_owned(), "at+jwt".to_owned()]
}

fn default_max_lifetime() -> Span {
    Span::hours(24)
}

fn default_jwks_max_age() -> Span {
    Span::hours(24)
}

fn default_cooldown() -> Span {
    Span::seconds(30)
}

/// One issuer as it is meant.
#[derive(Clone, Debug)]
pub struct Issuer {
    pub name: String,
    pub issuer: String,
    pub keys: KeySource,
    pub audience: String,
    /// Not empty. HMAC stands alone.
    pub algorithms: Vec<Algorithm>,
    pub tenant: TenantRule,
    pub token_types: Vec<String>,
    pub roles: Vec<RoleRule>,
    pub max_lifetime: Span,
    pub jwks_max_age: Span,
    pub cooldown: Span,
    pub outbound: Policy,
}

/// Where the keys of an issuer come from.
#[derive(Clone)]
pub enum KeySource {
    /// The URL of its metadata document.
    Discovery(Url),
    Jwks(Url),
    /// PEM.
    PublicKey(String),
    Hmac(Zeroizing<Vec<u8>>),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discovery(url) => write!(f, "Discovery({url})"),
            Self::Jwks(url) => write!(f, "Jwks({url})"),
            Self::PublicKey(_) => f.write_str("PublicKey"),
            Self::Hmac(_) => f.write_str("Hmac(..)"),
        }
    }
}

/// Which tenant the people of an issuer belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TenantRule {
    Fixed(Slug),
    Claim(String),
}

/// What is wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Such as `issuers[0].audience`.
    pub key: String,
    /// What to do about it; never repeats a secret.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.detail)
    }
}

/// Reads the files that the configuration names, and nothing else.
///
/// # Errors
/// Every fault there is.
pub fn resolve(configs: &[IssuerConfig]) -> Result<Vec<Issuer>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut issuers = Vec::new();
    let mut seen = HashSet::new();
    for (index, config) in configs.iter().enumerate() {
        let mut check = Check {
            at: format!("issuers[{index}]"),
            faults: &mut faults,
        };
        if !seen.insert(config.issuer.as_str()) {
            check.fault(
                "issuer",
                "is already the issuer of another entry; merge the two",
            );
        }
        issuers.extend(check.issuer(config));
    }
    if faults.is_empty() {
        Ok(issuers)
    } else {
        Err(faults)
    }
}

struct Check<'a> {
    at: String,
    faults: &'a mut Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, key: &str, detail: impl Into<String>) {
        self.faults.push(Fault {
            key: format!("{}.{key}", self.at),
            detail: detail.into(),
        });
    }

    fn require(&mut self, good: bool, key: &str, detail: &str) {
        if !good {
            self.fault(key, detail);
        }
    }

    fn issuer(&mut self, config: &IssuerConfig) -> Option<Issuer> {
        for (key, text) in [("issuer", &config.issuer), ("audience", &config.audience)] {
            self.require(
                (1..=255).contains(&text.len()) && !has_control(text) && text.trim() == text,
                key,
                "must be 1 to 255 bytes, without space around it: the very text that stands in \
                 the tokens",
            );
        }
        self.bounds(config);
        self.roles(&config.roles);
        let tenant = match (&config.tenant, &config.tenant_claim) {
            (Some(slug), None) => Some(TenantRule::Fixed(slug.clone())),
            (None, Some(claim)) if !claim.is_empty() => Some(TenantRule::Claim(claim.clone())),
            _ => {
                self.fault(
                    "tenant",
                    "name either the tenant of its people, such as tenant = \"default\", or the \
                     claim that does, as tenant_claim",
                );
                None
            }
        };
        let outbound = Policy {
            allow_http: config.dangerous_allow_http,
            allow_private_addresses: config.allow_private_addresses,
        };
        let keys = self.keys(config, outbound)?;
        self.algorithms(config, &keys);
        Some(Issuer {
            name: config.name.clone().unwrap_or_else(|| config.issuer.clone()),
            issuer: config.issuer.clone(),
            keys,
            audience: config.audience.clone(),
            algorithms: config.algorithms.clone(),
            tenant: tenant?,
            token_types: config.token_types.clone(),
            roles: config.roles.clone(),
            max_lifetime: config.max_lifetime,
            jwks_max_age: config.jwks_max_age,
            cooldown: config.cooldown,
            outbound,
        })
    }

    fn bounds(&mut self, config: &IssuerConfig) {
        self.require(
            !config.token_types.is_empty() && config.token_types.iter().all(|typ| !typ.is_empty()),
            "token_types",
            "name at least one, such as [\"at+jwt\"]",
        );
        for (key, span, least, most) in [
            (
                "max_lifetime",
                config.max_lifetime,
                Span::minutes(1),
                Span::days(30),
            ),
            (
                "jwks_max_age",
                config.jwks_max_age,
                Span::minutes(10),
                Span::days(30),
            ),
            (
                "cooldown",
                config.cooldown,
                Span::seconds(1),
                Span::hours(1),
            ),
        ] {
            if span < least || span > most {
                self.fault(key, format!("must be from {least} to {most}"));
            }
        }
    }

    fn roles(&mut self, rules: &[RoleRule]) {
        for (index, rule) in rules.iter().enumerate() {
            self.require(
                !rule.claim.is_empty(),
                &format!("roles[{index}].claim"),
                "name a claim, such as \"roles\"",
            );
            self.require(
                !rule.value.is_empty() && rule.value.trim() == rule.value,
                &format!("roles[{index}].value"),
                "must be the very value of the claim, not empty and without space around it",
            );
            let Some(services) = &rule.services else {
                continue;
            };
            self.require(
                !services.is_empty(),
                &format!("roles[{index}].services"),
                "name at least one service, or leave it out for all",
            );
            self.require(
                rule.role != Role::Owner,
                &format!("roles[{index}].role"),
                "an owner is never limited to services; use admin",
            );
        }
    }

    fn keys(&mut self, config: &IssuerConfig, outbound: Policy) -> Option<KeySource> {
        let named = [
            config.discovery,
            config.jwks_url.is_some(),
            config.public_key.is_some(),
            config.public_key_file.is_some(),
            config.hmac_secret.is_some(),
            config.hmac_secret_file.is_some(),
        ];
        if named.into_iter().filter(|named| *named).count() != 1 {
            self.fault(
                "discovery",
                "say where its keys come from, in exactly one way: discovery = true, jwks_url, \
                 public_key, public_key_file, hmac_secret or hmac_secret_file",
            );
            return None;
        }
        if config.discovery {
            return self.discovery(&config.issuer, outbound);
        }
        if let Some(url) = &config.jwks_url {
            return self
                .permitted("jwks_url", url.clone(), outbound)
                .map(KeySource::Jwks);
        }
        if let Some(pem) = &config.public_key {
            return Some(KeySource::PublicKey(pem.clone()));
        }
        if let Some(path) = &config.public_key_file {
            return self
                .read("public_key_file", path)
                .map(|pem| KeySource::PublicKey(pem.as_str().to_owned()));
        }
        if let Some(secret) = &config.hmac_secret {
            return self.hmac("hmac_secret", &secret.0);
        }
        match private_file::read(config.hmac_secret_file.as_ref()?) {
            Ok(secret) => self.hmac("hmac_secret_file", &secret),
            Err(problem) => {
                self.fault("hmac_secret_file", problem);
                None
            }
        }
    }

    fn read(&mut self, key: &str, path: &PathBuf) -> Option<Zeroizing<String>> {
        match std::fs::read_to_string(path) {
            Ok(text) => Some(Zeroizing::new(text)),
            Err(error) => {
                self.fault(key, format!("{} cannot be read: {error}", path.display()));
                None
            }
        }
    }

    fn hmac(&mut self, key: &str, secret: &str) -> Option<KeySource> {
        if let Err(detail) = strong(secret) {
            self.fault(key, detail);
            return None;
        }
        Some(KeySource::Hmac(Zeroizing::new(secret.as_bytes().to_vec())))
    }

    /// `OpenID` Connect Discovery 1.0 §4: the well-known path is appended to the issuer.
    fn discovery(&mut self, issuer: &str, outbound: Policy) -> Option<KeySource> {
        let document = format!(
            "{}/.well-known/openid-configuration",
            issuer.strip_suffix('/').unwrap_or(issuer)
        );
        match Url::parse(&document) {
            Ok(url) if url.query().is_none() => self
                .permitted("issuer", url, outbound)
                .map(KeySource::Discovery),
            Ok(_) | Err(_) => {
                self.fault(
                    "issuer",
                    "must be a URL without a query, since discovery is on",
                );
                None
            }
        }
    }

    fn permitted(&mut self, key: &str, url: Url, outbound: Policy) -> Option<Url> {
        match outbound.check(&url) {
            Ok(()) => Some(url),
            Err(detail) => {
                self.fault(key, detail);
                None
            }
        }
    }

    fn algorithms(&mut self, config: &IssuerConfig, keys: &KeySource) {
        let symmetric = config.algorithms.iter().filter(|a| is_hmac(**a)).count();
        let fault = match keys {
            KeySource::Hmac(_) => (symmetric != 1 || config.algorithms.len() != 1).then_some(
                "name the one algorithm of the secret: [\"HS256\"], [\"HS384\"] or [\"HS512\"]",
            ),
            KeySource::Discovery(_) | KeySource::Jwks(_) | KeySource::PublicKey(_) => {
                if config.algorithms.is_empty() {
                    Some("name the algorithms that the issuer signs with, such as [\"RS256\"]")
                } else {
                    (symmetric > 0).then_some(
                        "HS256, HS384 and HS512 need hmac_secret: a public key is no secret",
                    )
                }
            }
        };
        if let Some(detail) = fault {
            self.fault("algorithms", detail);
        }
    }
}

fn is_hmac(algorithm: Algorithm) -> bool {
    matches!(
        algorithm,
        Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512
    )
}

/// RFC 8725 §3.5: a password is no key.
fn strong(secret: &str) -> Result<(), &'static str> {
    let lower = Zeroizing::new(secret.to_ascii_lowercase());
    let mut distinct = Zeroizing::new(secret.as_bytes().to_vec());
    distinct.sort_unstable();
    distinct.dedup();
    let weak = secret.len() < HMAC_BYTES_MIN
        || distinct.len() < 12
        || HUMAN_WORDS.iter().any(|word| lower.contains(word));
    if weak {
        Err("must be at least 32 random bytes; make it with: openssl rand -base64 48")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = r#"
        issuer = "https://idp.example"
        audience = "https://keys.example"
        algorithms = ["RS256"]
        tenant = "default"
    "#;

    const STRONG: &str = "8f2c1d0b9a7e6f5d4c3b2a190817161514131211";

    fn resolve_toml(text: &str) -> Result<Vec<Issuer>, Vec<String>> {
        let config: IssuerConfig =
            toml::from_str(text).map_err(|error| vec![error.message().to_owned()])?;
        resolve(&[config]).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    fn with(lines: &str) -> Result<Vec<Issuer>, Vec<String>> {
        resolve_toml(&format!("{BASE}\n{lines}"))
    }

    fn hmac_with(lines: &str) -> Result<Vec<Issuer>, Vec<String>> {
        resolve_toml(&format!("{}\n{lines}", BASE.replace("RS256", "HS256")))
    }

    #[test]
    fn each_way_to_find_keys_is_understood() {
        let found = with("discovery = true").unwrap();
        assert_eq!(
            format!("{:?}", found[0].keys),
            "Discovery(https://idp.example/.well-known/openid-configuration)"
        );
        assert_eq!(found[0].cooldown, Span::seconds(30));
        assert_eq!(found[0].max_lifetime, Span::hours(24));
        assert!(with("jwks_url = \"https://idp.example/jwks\"").is_ok());
        assert!(with("public_key = \"x\"").is_ok());
        assert!(hmac_with(&format!("hmac_secret = \"{STRONG}\"")).is_ok());
    }

    #[test]
    fn a_weak_secret_is_refused_by_the_name_of_its_setting_and_not_repeated() {
        for secret in [
            "",
            "secret",
            "changeme",
            "8f2c1d0b9a7e6f5d4c3b2a190817161",
            "changemechangemechangemechangeme0123456789",
            "my-very-long-company-Password-2026-0123456789",
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "replace-me-with-openssl-rand-base64-48-output",
        ] {
            let faults = hmac_with(&format!("hmac_secret = \"{secret}\"")).unwrap_err();
            assert_eq!(faults.len(), 1, "{secret}");
            assert!(
                faults[0].starts_with("issuers[0].hmac_secret: must be"),
                "{faults:?}"
            );
            assert!(
                secret.len() < 9 || !faults[0].contains(secret),
                "{faults:?}"
            );
        }
    }

    #[test]
    fn a_secret_from_a_file_is_held_to_the_same() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hmac");
        let line = format!("hmac_secret_file = {path:?}");
        let faults = hmac_with(&line).unwrap_err();
        assert!(faults[0].starts_with("issuers[0].hmac_secret_file: "));
        std::fs::write(&path, "short\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(hmac_with(&line).is_err());
        std::fs::write(&path, "8f2c1d0b9a7e6f5d4c3b2a1908171615\n").unwrap();
        let found = hmac_with(&line).unwrap();
        let KeySource::Hmac(secret) = &found[0].keys else {
            panic!("{found:?}");
        };
        assert_eq!(secret.len(), 32);
    }

    #[test]
    fn what_is_unsafe_or_unclear_is_refused_with_its_key() {
        let jwks = "jwks_url = \"https://idp.example/jwks\"";
        let role = |rest: &str| format!("{jwks}\nroles = [{{claim = \"r\", {rest}}}]");
        for (lines, key) in [
            (String::new(), "discovery"),
            (format!("{jwks}\ndiscovery = true"), "discovery"),
            (jwks.replace("https", "http"), "jwks_url"),
            (jwks.replace("idp.example", "127.0.0.1"), "jwks_url"),
            (jwks.replace("idp.example", "2130706433"), "jwks_url"),
            (jwks.replace("idp.example", "[::1]"), "jwks_url"),
            ("jwks_url = \"file:///etc/passwd\"".to_owned(), "jwks_url"),
            (format!("{jwks}\ntenant_claim = \"org\""), "tenant"),
            (format!("{jwks}\nmax_lifetime = \"3650d\""), "max_lifetime"),
            (format!("{jwks}\ncooldown = \"0s\""), "cooldown"),
            (format!("{jwks}\ntoken_types = []"), "token_types"),
            (
                role("value = \"a\", role = \"admin\", services = []"),
                "roles[0].services",
            ),
            (
                role("value = \"a\", role = \"owner\", services = [\"a\"]"),
                "roles[0].role",
            ),
            (role("value = \" a\", role = \"viewer\""), "roles[0].value"),
            (format!("hmac_secret = \"{STRONG}\""), "algorithms"),
        ] {
            let faults = with(&lines).unwrap_err();
            let start = format!("issuers[0].{key}: ");
            assert!(
                faults.iter().any(|fault| fault.starts_with(&start)),
                "{lines}: {faults:?}"
            );
        }
        let mixed = BASE.replace("\"RS256\"", "\"RS256\", \"HS256\"");
        assert!(resolve_toml(&format!("{mixed}\n{jwks}")).is_err());
        assert!(resolve_toml(&format!("{mixed}\nhmac_secret = \"{STRONG}\"")).is_err());
        let typo = with(&format!("{jwks}\naudiences = \"x\"")).unwrap_err();
        assert!(typo[0].contains("unknown field `audiences`"), "{typo:?}");
    }

    #[test]
    fn one_issuer_stands_in_one_entry() {
        let config: IssuerConfig = toml::from_str(&format!("{BASE}\ndiscovery = true")).unwrap();
        let faults = resolve(&[config.clone(), config]).unwrap_err();
        assert_eq!(faults[0].key, "issuers[1].issuer");
    }

    #[test]
    fn the_secret_is_never_shown() {
        let config: IssuerConfig =
            toml::from_str(&format!("{BASE}\nhmac_secret = \"{STRONG}\"")).unwrap();
        assert!(!format!("{config:?}").contains(STRONG));
        assert!(!serde_json::to_string(&config).unwrap().contains(STRONG));
    }
}
