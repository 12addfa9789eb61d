//! Documents fetched from addresses that others name: where we may go, and how much we take.
//!
//! An identity provider's metadata tells us a URL to fetch. So every URL is held to one policy,
//! and the addresses that a name resolves to are judged when the connection is made: a name
//! that resolves to something else a moment later gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use url::{Host, Url};

/// The longest a document is waited for, from the lookup of the name to its last byte.
const WAIT_MAX: Duration = Duration::from_secs(2);

/// The most bytes of a document that are taken.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// What the operator allows beyond `https` to public addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub allow_http: bool,
    pub allow_private_addresses: bool,
}

impl Policy {
    /// # Errors
    /// What the URL must be.
    pub fn check(self, url: &Url) -> Result<(), &'static str> {
        match url.scheme() {
            "https" => {}
            "http" if self.allow_http => {}
            _ => return Err("must be an https URL (dangerous_allow_http permits http)"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("must not hold a user name or password");
        }
        if url.fragment().is_some() {
            return Err("must not have a fragment");
        }
        let literal = match url.host() {
            Some(Host::Domain(_)) => None,
            Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
            Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
            None => return Err("must name a host"),
        };
        if literal.is_some_and(|ip| !self.permits(ip)) {
            return Err(PRIVATE);
        }
        Ok(())
    }

    fn permits(self, ip: IpAddr) -> bool {
        self.allow_private_addresses || is_public(ip)
    }
}

const PRIVATE: &str = "must not lead to a private, loopback or otherwise special address \
                       (allow_private_addresses permits it)";

/// Why there is no document.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the address {0}")]
    Refused(&'static str),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer has more than {BODY_BYTES_MAX} bytes")]
    TooLarge,
    #[error("there is no answer")]
    Unreachable(#[source] reqwest::Error),
}

/// A client held to one [`Policy`], cheap to clone.
#[derive(Clone, Debug)]
pub struct Outbound {
    policy: Policy,
    client: reqwest::Client,
}

impl Outbound {
    /// # Errors
    /// When the trust store of the system cannot be read.
    pub fn new(policy: Policy) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            .user_agent(concat!("keystead/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .timeout(WAIT_MAX)
            .connect_timeout(WAIT_MAX)
            // A connection belongs to the runtime of the worker that opened it; none is kept.
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(Guarded(policy)))
            .build()?;
        Ok(Self { policy, client })
    }

    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Fetches one document. Nothing is followed: a redirect is an answer without a document.
    ///
    /// # Errors
    /// When the policy forbids the address, or there is no complete answer of status 200 in time
    /// and in size.
    pub async fn fetch(&self, url: &Url) -> Result<Vec<u8>, Error> {
        let (status, body) = self.ask(url, self.client.get(url.clone())).await?;
        if status == 200 {
            Ok(body)
        } else {
            Err(Error::Status(status))
        }
    }

    /// Posts a form, `application/x-www-form-urlencoded`, and gives the status and body of the answer.
    ///
    /// # Errors
    /// When the policy forbids the address, or there is no complete answer in time and in size.
    pub async fn post(
        &self,
        url: &Url,
        form: String,
        authorization: Option<&str>,
    ) -> Result<(u16, Vec<u8>), Error> {
        let mut request = self
            .client
            .post(url.clone())
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(form);
        if let Some(authorization) = authorization {
            let mut value = HeaderValue::from_str(authorization)
                .map_err(|_not_visible| Error::Refused("cannot be sent such a credential"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        self.ask(url, request).await
    }

    async fn ask(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<(u16, Vec<u8>), Error> {
        self.policy.check(url).map_err(Error::Refused)?;
        let request = request.header(ACCEPT, "application/json");
        let mut response = request.send().await.map_err(Error::Unreachable)?;
        let announced = response.content_length().unwrap_or(0);
        if usize::try_from(announced).map_or(true, |bytes| bytes > BODY_BYTES_MAX) {
            return Err(Error::TooLarge);
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Error::Unreachable)? {
            if body.len() + chunk.len() > BODY_BYTES_MAX {
                return Err(Error::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok((response.status().as_u16(), body))
    }
}

/// Resolves a name, and refuses it whole if any of its addresses is not permitted.
struct Guarded(Policy);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = self.0;
        Box::pin(async move {
            let found: Vec<SocketAddr> =
                tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.iter().any(|address| !policy.permits(address.ip())) {
                return Err(PRIVATE.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether the address belongs to the public internet, judged by what it finally reaches: an IPv4
/// address inside an IPv6 one counts as itself.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    !(ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_documentation()
        || a == 0
        || (a == 100 && (64..128).contains(&b)) // RFC 6598, carriers' shared addresses
        || (a == 192 && b == 0 && c == 0) // RFC 6890, protocol assignments
        || (a == 198 && (b == 18 || b == 19)) // RFC 2544, benchmarks
        || a >= 224) // multicast, reserved, broadcast
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let bits = ip.to_bits();
    let embedded = |shift: u32| {
        let ip = u32::try_from((bits >> shift) & u128::from(u32::MAX)).unwrap_or(0);
        is_public_v4(Ipv4Addr::from_bits(ip))
    };
    let within = |prefix: u128, length: u32| bits >> (128 - length) == prefix;
    if within(0xffff, 96) || within(0x64_ff9b << 64, 96) {
        // Mapped, and translated by NAT64 (RFC 6052).
        embedded(0)
    } else if within(0x2002, 16) {
        // 6to4 (RFC 3056).
        embedded(80)
    } else if within(0x2001_0000 >> 9, 23) || within(0x2001_0db8, 32) {
        // Teredo and what else 2001::/23 is for; documentation.
        false
    } else {
        // Only 2000::/3 is handed out for the public internet.
        within(1, 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_public() {
        for ip in [
            "1.1.1.1",
            "93.184.216.34",
            "2606:4700::1111",
            "::ffff:1.1.1.1",
            "64:ff9b::101:101",
        ] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "127.0.0.1",
            "127.255.255.254",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.170",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::7f00:1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:7f00:1::",
            "2001:db8::1",
            "fc00::1",
            "fd12::1",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_url_that_leads_inside_is_refused_however_it_is_written() {
        let strict = Policy::default();
        for url in [
            "https://idp.example/jwks",
            "https://idp.example:8443/jwks?v=1",
        ] {
            assert_eq!(strict.check(&Url::parse(url).unwrap()), Ok(()), "{url}");
        }
        for url in [
            "http://idp.example/jwks",
            "file:///etc/passwd",
            "ftp://idp.example/jwks",
            "data:application/json,{}",
            "https://[::1]/jwks",
            "https://[::ffff:127.0.0.1]/jwks",
            "https://127.0.0.1/jwks",
            "https://2130706433/jwks",
            "https://0x7f.1/jwks",
            "https://0177.0.0.1/jwks",
            "https://169.254.169.254/latest/meta-data",
            "https://user:pass@idp.example/jwks",
            "https://idp.example/jwks#x",
        ] {
            assert!(strict.check(&Url::parse(url).unwrap()).is_err(), "{url}");
        }
        let open = Policy {
            allow_http: true,
            allow_private_addresses: true,
        };
        let url = Url::parse("http://127.0.0.1:9/jwks").unwrap();
        assert_eq!(open.check(&url), Ok(()));
        let http_only = Policy {
            allow_http: true,
            ..strict
        };
        assert!(http_only.check(&url).is_err());
    }

    #[tokio::test]
    async fn a_name_that_resolves_to_loopback_is_refused_before_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = Url::parse(&format!("http://localhost:{port}/jwks")).unwrap();
        let outbound = Outbound::new(Policy {
            allow_http: true,
            allow_private_addresses: false,
        })
        .unwrap();
        tokio::select! {
            answer = outbound.fetch(&url) => {
                assert!(matches!(answer, Err(Error::Unreachable(_))), "{answer:?}");
            }
            _ = listener.accept() => panic!("a connection was made"),
        }
    }
}
