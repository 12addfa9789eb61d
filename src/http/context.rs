//! What every part of the application knows about a request: its id and whose address it is from.

use std::future::{Ready, ready};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest};

use super::problem::Problem;
use crate::entropy::Entropy;
use crate::id;
use crate::time::Timestamp;

pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Set by the middleware before anything else runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestContext {
    pub request_id: Arc<str>,
    /// The client's, as far as trusted proxies tell it; else the peer's.
    pub ip: IpAddr,
    /// Who the connection is from.
    pub peer: IpAddr,
}

impl FromRequest for RequestContext {
    type Error = Problem;
    type Future = Ready<Result<Self, Problem>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(Ok(Self::of(req)))
    }
}

impl RequestContext {
    /// Empty without the middleware, as in a test of one handler.
    pub fn of(req: &HttpRequest) -> Self {
        req.extensions()
            .get::<Self>()
            .cloned()
            .unwrap_or_else(|| Self {
                request_id: Arc::from(""),
                ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
                peer: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            })
    }

    /// The address of somebody behind the peer, if a trusted proxy tells it.
    pub fn forwarded_ip(&self) -> Option<IpAddr> {
        (self.ip != self.peer).then_some(self.ip)
    }
}

/// Takes the client's `X-Request-Id` if it is sane, else makes one of the time and 74 random bits. The
/// ledger has an index of them, which would be written all over if they were in no order. Nothing is
/// granted for knowing one.
pub fn request_id(headers: &HeaderMap, at: Timestamp, entropy: &Entropy) -> Arc<str> {
    let mut given = headers.get_all(&X_REQUEST_ID);
    if let (Some(one), None) = (given.next(), given.next())
        && let Ok(text) = one.to_str()
        && is_sane(text)
    {
        return Arc::from(text);
    }
    Arc::from(&*id::sortable(at, &entropy.nonce()))
}

/// `[A-Za-z0-9._-]{1,64}`
fn is_sane(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

/// Headers that extractors want on the answer, whatever the handler makes of it.
#[derive(Default)]
struct Extra(Vec<(HeaderName, HeaderValue)>);

/// Adds a header to the answer of this request, also if the answer is a problem.
pub fn add_response_header(req: &HttpRequest, name: HeaderName, value: HeaderValue) {
    let mut extensions = req.extensions_mut();
    if let Some(extra) = extensions.get_mut::<Extra>() {
        extra.0.push((name, value));
    } else {
        extensions.insert(Extra(vec![(name, value)]));
    }
}

pub(crate) fn take_response_headers(req: &HttpRequest) -> Vec<(HeaderName, HeaderValue)> {
    if req.extensions().contains::<Extra>() {
        req.extensions_mut()
            .remove::<Extra>()
            .map(|extra| extra.0)
            .unwrap_or_default()
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-25T08:00:00Z
    const AT_MS: i64 = 1_795_593_600_000;

    fn id(lines: &[&str]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(X_REQUEST_ID, HeaderValue::from_str(line).unwrap());
        }
        let at = Timestamp::from_millis(AT_MS);
        request_id(&headers, at, &Entropy::seeded(7)).to_string()
    }

    #[test]
    fn a_sane_request_id_is_kept() {
        for sane in ["a", "0123-abc_DEF.9", &"x".repeat(64)] {
            assert_eq!(id(&[sane]), sane);
        }
    }

    #[test]
    fn another_is_replaced_by_a_random_one() {
        let made = id(&[]);
        assert_eq!(made.len(), 26);
        assert!(is_sane(&made));
        for odd in ["", "a b", "a\"b", "{\"level\":\"info\"}", &"x".repeat(65)] {
            assert_eq!(id(&[odd]), made, "{odd}");
        }
        assert_eq!(id(&["one", "two"]), made, "two lines");
    }
    #[test]
    fn what_is_made_later_sorts_later() {
        let entropy = Entropy::seeded(7);
        let made = |ms| request_id(&HeaderMap::new(), Timestamp::from_millis(ms), &entropy);
        let ids: Vec<_> = (0..1_000).map(|n| made(AT_MS + n * 1_000)).collect();
        assert!(ids.is_sorted());
        assert_ne!(made(AT_MS), made(AT_MS));
    }
}
