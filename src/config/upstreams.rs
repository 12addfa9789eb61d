//! `[[upstreams]]`: other authorization servers, whose tokens keys may be swapped for.
//!
//! A service names one of these by its name and never by an address: whoever may change a service
//! decides neither where a secret of ours is sent nor which one. [`UpstreamConfig`] is what stands in the
//! file; [`resolve`] gives what it means, or every fault.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;
use zeroize::Zeroizing;

use super::issuers::{Fault, HmacSecret};
use super::private_file;
use crate::outbound::Policy;
use crate::text::{Slug, has_control};

const TEXT_BYTES_MAX: usize = 512;

/// One authorization server as it is written.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// What services name it by.
    pub name: Slug,
    /// Its issuer identifier. Where its token endpoint is stands in its metadata (RFC 8414, or `OpenID`
    /// Connect Discovery), unless `token_endpoint` says.
    pub issuer: String,
    #[serde(default)]
    pub token_endpoint: Option<Url>,
    /// The tenants whose services may name it.
    #[serde(default = "default_tenants")]
    pub tenants: Vec<Slug>,
    /// Who we are there.
    pub client_id: String,
    #[serde(default)]
    pub client_secret: Option<HmacSecret>,
    #[serde(default)]
    pub client_secret_file: Option<PathBuf>,
    /// How we authenticate there.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// It may be at a private or loopback address.
    #[serde(default)]
    pub allow_private_addresses: bool,
    /// It may be asked without TLS: who is on the way then has our secret, and its tokens.
    #[serde(default)]
    pub dangerous_allow_http: bool,
}

/// RFC 6749 §2.3.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientAuth {
    #[default]
    ClientSecretBasic,
    ClientSecretPost,
}

/// One authorization server as it is meant.
#[derive(Clone)]
pub struct Upstream {
    pub name: Slug,
    pub issuer: String,
    /// Where its metadata may be, in the order in which they are asked for; or its token endpoint itself.
    pub place: Place,
    pub tenants: Vec<Slug>,
    pub client_id: String,
    pub client_secret: Zeroizing<String>,
    pub client_auth: ClientAuth,
    pub outbound: Policy,
}

/// How the token endpoint is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Metadata([Url; 2]),
    TokenEndpoint(Url),
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("name", &self.name)
            .field("place", &self.place)
            .finish_non_exhaustive()
    }
}

#[expect(clippy::expect_used, reason = "default is a slug")]
fn default_tenants() -> Vec<Slug> {
    vec![Slug::parse("default").expect("a slug")]
}

/// Reads the files that the configuration names, and nothing else.
///
/// # Errors
/// Every fault there is.
pub fn resolve(configs: &[UpstreamConfig]) -> Result<Vec<Upstream>, Vec<Fault>> {
    let mut faults = Vec::new();
    let mut upstreams = Vec::new();
    let mut seen = HashSet::new();
    for (index, config) in configs.iter().enumerate() {
        let mut fault = |key: &str, detail: String| {
            faults.push(Fault {
                key: format!("upstreams[{index}].{key}"),
                detail,
            });
        };
        if !seen.insert(&config.name) {
            fault("name", "is already the name of another entry".to_owned());
        }
        if config.tenants.is_empty() {
            fault("tenants", "name at least one tenant".to_owned());
        }
        if !is_text(&config.client_id) {
            fault("client_id", NO_TEXT.to_owned());
        }
        let outbound = Policy {
            allow_http: config.dangerous_allow_http,
            allow_private_addresses: config.allow_private_addresses,
        };
        let place = place(config, outbound)
            .map_err(|(key, detail)| fault(key, detail.to_owned()))
            .ok();
        let secret = secret(config)
            .map_err(|(key, detail)| fault(key, detail))
            .ok();
        if let (Some(place), Some(client_secret)) = (place, secret) {
            upstreams.push(Upstream {
                name: config.name.clone(),
                issuer: config.issuer.clone(),
                place,
                tenants: config.tenants.clone(),
                client_id: config.client_id.clone(),
                client_secret,
                client_auth: config.client_auth,
                outbound,
            });
        }
    }
    if faults.is_empty() {
        Ok(upstreams)
    } else {
        Err(faults)
    }
}

const NO_TEXT: &str = "must be 1 to 512 bytes without a control character";

fn is_text(text: &str) -> bool {
    (1..=TEXT_BYTES_MAX).contains(&text.len()) && !has_control(text)
}

/// The well-known path stands before that of the issuer (RFC 8414 §3.1), or behind it (`OpenID` Connect
/// Discovery 1.0 §4).
fn place(config: &UpstreamConfig, outbound: Policy) -> Result<Place, (&'static str, &'static str)> {
    let issuer = Url::parse(&config.issuer)
        .ok()
        .filter(|url| url.query().is_none() && is_text(&config.issuer))
        .ok_or(("issuer", "must be a URL without a query"))?;
    outbound.check(&issuer).map_err(|what| ("issuer", what))?;
    if let Some(url) = &config.token_endpoint {
        outbound
            .check(url)
            .map_err(|what| ("token_endpoint", what))?;
        return Ok(Place::TokenEndpoint(url.clone()));
    }
    let path = issuer.path().trim_end_matches('/').to_owned();
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    };
    Ok(Place::Metadata([
        at(format!("/.well-known/oauth-authorization-server{path}")),
        at(format!("{path}/.well-known/openid-configuration")),
    ]))
}

fn secret(config: &UpstreamConfig) -> Result<Zeroizing<String>, (&'static str, String)> {
    let (key, secret) = match (&config.client_secret, &config.client_secret_file) {
        (Some(secret), None) => ("client_secret", Zeroizing::new(secret.expose().to_owned())),
        (None, Some(path)) => {
            let key = "client_secret_file";
            (
                key,
                private_file::read(path).map_err(|problem| (key, problem))?,
            )
        }
        (Some(_), Some(_)) | (None, None) => {
            let detail = "set it, or client_secret_file, and not both";
            return Err(("client_secret", detail.to_owned()));
        }
    };
    if !is_text(&secret) {
        return Err((key, NO_TEXT.to_owned()));
    }
    Ok(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "name = \"company\"\nissuer = \"https://idp.example/realms/a\"\n\
                        client_id = \"keystead\"\n";

    fn with(lines: &str) -> Result<Vec<Upstream>, Vec<String>> {
        let config: UpstreamConfig = toml::from_str(&format!("{BASE}{lines}"))
            .map_err(|error| vec![error.message().to_owned()])?;
        resolve(&[config]).map_err(|faults| faults.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn the_metadata_is_looked_for_in_both_places() {
        let found = with("client_secret = \"hush\"").unwrap();
        let Place::Metadata(places) = &found[0].place else {
            panic!("{found:?}");
        };
        assert_eq!(
            places.each_ref().map(Url::as_str),
            [
                "https://idp.example/.well-known/oauth-authorization-server/realms/a",
                "https://idp.example/realms/a/.well-known/openid-configuration",
            ]
        );
        assert_eq!(found[0].tenants[0].as_str(), "default");
        assert_eq!(found[0].client_auth, ClientAuth::ClientSecretBasic);
    }

    #[test]
    fn what_is_unsafe_or_unclear_is_refused_with_its_key() {
        let secret = "client_secret = \"hush\"\n";
        for (lines, key) in [
            (String::new(), "client_secret"),
            (
                format!("{secret}client_secret_file = \"/x\""),
                "client_secret",
            ),
            ("client_secret = \"\"".to_owned(), "client_secret"),
            (
                "client_secret_file = \"/nowhere\"".to_owned(),
                "client_secret_file",
            ),
            (format!("{secret}tenants = []"), "tenants"),
            (
                format!("{secret}token_endpoint = \"http://idp.example/token\""),
                "token_endpoint",
            ),
            (
                format!("{secret}token_endpoint = \"https://169.254.169.254/\""),
                "token_endpoint",
            ),
        ] {
            let faults = with(&lines).unwrap_err();
            let start = format!("upstreams[0].{key}: ");
            assert!(faults[0].starts_with(&start), "{lines}: {faults:?}");
            assert!(!faults[0].contains("hush"), "{faults:?}");
        }
        let config: UpstreamConfig = toml::from_str(&format!("{BASE}{secret}")).unwrap();
        let twice = resolve(&[config.clone(), config.clone()]).unwrap_err();
        assert_eq!(twice[0].key, "upstreams[1].name");
        for issuer in [
            "http://idp.example",
            "https://10.0.0.1",
            "https://idp.example?a=b",
            "idp",
        ] {
            let config = UpstreamConfig {
                issuer: issuer.to_owned(),
                ..config.clone()
            };
            let faults = resolve(&[config]).unwrap_err();
            assert_eq!(faults[0].key, "upstreams[0].issuer", "{issuer}");
        }
        assert!(with(&format!("{secret}client_auth = \"none\"")).is_err());
    }

    #[test]
    fn the_secret_is_never_shown() {
        let config: UpstreamConfig =
            toml::from_str(&format!("{BASE}client_secret = \"hush\"")).unwrap();
        assert!(!format!("{config:?}").contains("hush"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hush"));
        assert!(!format!("{:?}", resolve(&[config]).unwrap()).contains("hush"));
    }
}
