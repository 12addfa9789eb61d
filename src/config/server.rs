//! `[server]`: where we listen, whom we believe, what we show.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::ConfigError;
use crate::time::Span;

const WORKERS_MAX: u16 = 512;
const DRAIN_DELAY_MAX: Span = Span::minutes(5);

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Server {
    pub listen: SocketAddr,
    /// What clients call us; by default made from `listen`.
    pub public_url: PublicUrl,
    /// Only these may tell a client's address by `X-Forwarded-For`.
    pub trusted_proxies: Vec<Network>,
    pub dangerous_plain_http: bool,
    /// How long a stopping server still answers while balancers notice that it is not ready.
    pub drain_delay: Span,
    pub operations: Operations,
    /// A listener of its own for `/metrics`, `/docs` and `/openapi.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operations_listen: Option<SocketAddr>,
    pub cors_origins: Vec<Origin>,
    /// HTTP workers; 0 is one for each core.
    pub workers: u16,
}

/// Whether the main listener serves `/metrics`, `/docs` and `/openapi.json`; else they are 404.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operations {
    /// On a loopback address, unless they have a listener of their own.
    Auto,
    On,
    Off,
}

impl Server {
    /// Whether the main listener serves the operations endpoints.
    pub fn operations_on_main(&self) -> bool {
        match self.operations {
            Operations::Auto => self.operations_listen.is_none() && is_loopback(self.listen.ip()),
            Operations::On => true,
            Operations::Off => false,
        }
    }

    pub fn trusts_proxy(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies
            .iter()
            .any(|network| network.0.contains(&address))
    }

    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for (key, listen) in [
            ("server.listen", Some(self.listen)),
            ("server.operations_listen", self.operations_listen),
        ] {
            if let Some(listen) = listen
                && !is_loopback(listen.ip())
                && !self.dangerous_plain_http
            {
                return Err(ConfigError::of(
                    key,
                    format!(
                        "= {listen} is not a loopback address, and this server speaks plain HTTP: \
                         listen on 127.0.0.1 behind a proxy that speaks TLS, or set \
                         server.dangerous_plain_http = true where the network is yours alone"
                    ),
                ));
            }
        }
        if !self.public_url.is_safe() && !self.dangerous_plain_http {
            return Err(ConfigError::of(
                "server.public_url",
                "must start with https:// unless it is a loopback address or \
                 server.dangerous_plain_http = true",
            ));
        }
        if let Some(own) = self.operations_listen {
            if own == self.listen && own.port() != 0 {
                return Err(ConfigError::of(
                    "server.operations_listen",
                    "must not be the same as server.listen",
                ));
            }
            if self.operations == Operations::Off {
                return Err(ConfigError::of(
                    "server.operations_listen",
                    "is set while server.operations is \"off\"; remove one of them",
                ));
            }
        }
        if self.drain_delay > DRAIN_DELAY_MAX {
            return Err(ConfigError::of(
                "server.drain_delay",
                "must be at most 5m, such as \"5s\"",
            ));
        }
        if self.workers > WORKERS_MAX {
            return Err(ConfigError::of(
                "server.workers",
                "must be a number from 0 (one for each core) to 512",
            ));
        }
        Ok(())
    }
}

impl Default for Server {
    fn default() -> Self {
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        Self {
            listen,
            public_url: PublicUrl::of(listen),
            trusted_proxies: Vec::new(),
            dangerous_plain_http: false,
            drain_delay: Span::seconds(5),
            operations: Operations::Auto,
            operations_listen: None,
            cors_origins: Vec::new(),
            workers: 0,
        }
    }
}

/// Counts an IPv4 address mapped into IPv6 as IPv4.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// An `http` or `https` URL without credentials, query, fragment or a slash at its end.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicUrl(String);

impl PublicUrl {
    /// Of a server that nobody stands before.
    pub fn of(listen: SocketAddr) -> Self {
        let mut reached = listen;
        if listen.ip().is_unspecified() {
            reached.set_ip(Ipv4Addr::LOCALHOST.into());
        }
        Self(format!("http://{reached}"))
    }

    /// Without a slash at the end.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether what is sent there cannot be read on the way.
    fn is_safe(&self) -> bool {
        Url::parse(&self.0).is_ok_and(|url| {
            url.scheme() == "https"
                || match url.host() {
                    Some(Host::Domain(name)) => name == "localhost",
                    Some(Host::Ipv4(address)) => address.is_loopback(),
                    Some(Host::Ipv6(address)) => is_loopback(address.into()),
                    None => false,
                }
        })
    }
}

impl TryFrom<String> for PublicUrl {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const SHAPE: &str = "must be the URL that clients use, such as https://keys.example.com";
        let url = Url::parse(&text).map_err(|_not_a_url| SHAPE)?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(SHAPE);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password");
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err("must not have a query or fragment");
        }
        Ok(Self(url.as_str().trim_end_matches('/').to_owned()))
    }
}

impl From<PublicUrl> for String {
    fn from(url: PublicUrl) -> Self {
        url.0
    }
}

/// A network in CIDR notation; an address alone is a network of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(pub IpNet);

impl TryFrom<String> for Network {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const SHAPE: &str = "must be an address or network, such as 10.0.0.0/8";
        let net: IpNet = match text.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().into(),
            Err(_not_an_address) => text.parse().map_err(|_not_a_network| SHAPE)?,
        };
        if net.prefix_len() == 0 {
            return Err("must not be every address: any client could then choose its own");
        }
        Ok(Self(net.trunc()))
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.0.to_string()
    }
}

/// A web origin (RFC 6454): scheme, host and port as a browser sends them.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(String);

impl Origin {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Origin {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        const SHAPE: &str = "must be an origin as browsers send it, such as \
                             https://console.example.com: no path, no wildcard";
        let url = Url::parse(&text).map_err(|_not_a_url| SHAPE)?;
        let origin = url.origin().ascii_serialization();
        if !matches!(url.scheme(), "http" | "https") || origin != text || text.contains('*') {
            return Err(SHAPE);
        }
        Ok(Self(origin))
    }
}

impl From<Origin> for String {
    fn from(origin: Origin) -> Self {
        origin.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8414 §2: it is the issuer of tokens.
    #[test]
    fn a_public_url_has_no_query_fragment_or_password() {
        let read = |text: &str| PublicUrl::try_from(text.to_owned()).map(String::from);
        for bad in [
            "https://keys.example.com?a=b",
            "https://keys.example.com/?",
            "https://keys.example.com#a",
            "https://keys.example.com/keys#",
            "https://me:pw@keys.example.com",
            "ftp://keys.example.com",
            "keys.example.com",
            "",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        for good in ["https://keys.example.com", "https://keys.example.com/keys"] {
            assert_eq!(read(good).as_deref(), Ok(good));
            assert_eq!(read(&format!("{good}/")).as_deref(), Ok(good));
        }
    }
}
