//! `[redis]`: what the nodes of a cluster share besides the database.

use std::fmt;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use serde::{Deserialize, Serialize};
use url::{Host, Url};
use zeroize::Zeroizing;

const PORT: u16 = 6379;
const HIDDEN: &str = "***";

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Redis {
    /// None: this node shares nothing but the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<RedisUrl>,
}

/// Where Redis or Valkey is and who we are there. Shown without its password.
#[derive(Clone, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RedisUrl {
    pub host: String,
    pub port: u16,
    pub db: u16,
    pub username: Option<String>,
    pub password: Option<Zeroizing<String>>,
    pub tls: Option<RedisTls>,
    redacted: String,
}

/// The server's certificate and name are always verified.
#[derive(Clone, Debug, Default)]
pub struct RedisTls {
    /// A PEM file of the authorities to trust instead of the system's.
    pub root_cert: Option<PathBuf>,
}

impl RedisUrl {
    /// # Errors
    /// What the URL must be, without repeating it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text)
            .map_err(|error| format!("is not a URL: {error}; write redis://host:6379"))?;
        let mut tls = match url.scheme() {
            "redis" | "valkey" => None,
            "rediss" | "valkeys" => Some(RedisTls::default()),
            _ => return Err("must start with redis:// or rediss://".to_owned()),
        };
        // Not `host_str`, which would keep the brackets of an IPv6 address.
        let host = match url.host() {
            Some(Host::Domain(name)) => decoded(name)?,
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        if host.is_empty() {
            return Err("must name a host, such as redis://localhost:6379".to_owned());
        }
        if url.fragment().is_some() {
            return Err("must not have a #fragment: certificates are always verified".to_owned());
        }
        for (name, value) in url.query_pairs() {
            match (name.as_ref(), &mut tls) {
                ("sslrootcert", Some(tls)) => {
                    tls.root_cert = Some(PathBuf::from(value.into_owned()));
                }
                ("sslrootcert", None) => {
                    return Err("has sslrootcert, which needs rediss://".to_owned());
                }
                (_, _) => {
                    return Err("has a parameter other than sslrootcert".to_owned());
                }
            }
        }
        let db = match url.path().trim_matches('/') {
            "" => 0,
            path => path
                .parse()
                .map_err(|_not_a_number| "must end in the number of a database, such as /0")?,
        };
        let username = Some(url.username())
            .filter(|name| !name.is_empty())
            .map(decoded)
            .transpose()?;
        let password = url.password().map(decoded).transpose()?;
        Ok(Self {
            host,
            port: url.port().unwrap_or(PORT),
            db,
            username,
            password: password.map(Zeroizing::new),
            tls,
            redacted: redact(url),
        })
    }

    pub(super) fn has_password(&self) -> bool {
        self.password.is_some()
    }
}

fn decoded(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_not_utf8| "must be UTF-8 where it is percent-encoded".to_owned())
}

fn redact(mut url: Url) -> String {
    if url.password().is_some() && url.set_password(Some(HIDDEN)).is_err() {
        return HIDDEN.to_owned();
    }
    url.into()
}

impl TryFrom<String> for RedisUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&Zeroizing::new(text))
    }
}

impl From<RedisUrl> for String {
    fn from(url: RedisUrl) -> Self {
        url.redacted
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_url_is_read_part_by_part() {
        let url = RedisUrl::parse("redis://localhost").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.db),
            ("localhost", 6379, 0)
        );
        assert!(url.username.is_none() && url.password.is_none() && url.tls.is_none());

        let url = RedisUrl::parse("rediss://me:p%40ss@[::1]:7000/3?sslrootcert=/ca.pem").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.db), ("::1", 7000, 3));
        assert_eq!(url.username.as_deref(), Some("me"));
        assert_eq!(url.password.as_ref().unwrap().as_str(), "p@ss");
        let root_cert = url.tls.unwrap().root_cert.unwrap();
        assert_eq!(root_cert, PathBuf::from("/ca.pem"));

        let url = RedisUrl::parse("valkey://:only-a-password@10.0.0.1").unwrap();
        assert!(url.username.is_none() && url.has_password());
    }

    #[test]
    fn a_redis_url_is_shown_without_its_password() {
        let url = RedisUrl::parse("redis://me:hush@redis.example.com:6380/1").unwrap();
        for shown in [format!("{url:?}"), String::from(url)] {
            assert_eq!(shown, "redis://me:***@redis.example.com:6380/1");
        }
    }

    #[test]
    fn a_bad_redis_url_is_refused_without_repeating_it() {
        for text in [
            "hush",
            "http://hush@localhost",
            "unix:///hush.sock",
            "redis+unix:///hush.sock",
            "redis://",
            "redis://:hush@",
            "redis://:hush@localhost:99999",
            "redis://:hush@localhost/zero",
            "redis://:hush@localhost/70000",
            "redis://:hush@localhost/-1",
            "redis://:hush@localhost?protocol=resp3",
            "redis://:hush@localhost?sslrootcert=/ca.pem",
            "rediss://:hush@localhost/#insecure",
            "redis://:hush%ff@localhost",
        ] {
            let problem = RedisUrl::parse(text).unwrap_err();
            assert!(!problem.contains("hush"), "{text}: {problem}");
        }
    }
}
