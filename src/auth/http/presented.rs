//! The one credential of a request, and the person for whom a service acts.

use actix_web::http::header::{self, HeaderMap, HeaderName};

use super::{ON_BEHALF_OF, X_API_KEY};
use crate::http::problem::{Code, Problem};

const CREDENTIALS: &str =
    "present a management key as x-api-key, or an admin JWT as Authorization: Bearer";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Credential<'a> {
    /// In `x-api-key`.
    Key(&'a str),
    /// In `Authorization: Bearer`: a token or a key.
    Bearer(&'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Presented<'a> {
    pub(super) credential: Credential<'a>,
    pub(super) on_behalf_of: Option<&'a str>,
}

impl<'a> Presented<'a> {
    /// Exactly one credential, in one line of one header, and the person it acts for.
    pub(super) fn of(headers: &'a HeaderMap) -> Result<Self, Problem> {
        let authorization = one_line(headers, &header::AUTHORIZATION)?;
        let api_key = one_line(headers, &X_API_KEY)?;
        let on_behalf_of = one_line(headers, &ON_BEHALF_OF)?;
        let credential = match (authorization, api_key) {
            (Some(_), Some(_)) => return Err(two_credentials()),
            (None, None) => return Err(Problem::unauthenticated(CREDENTIALS)),
            (None, Some(key)) => Credential::Key(key),
            // A key acts for a person from `x-api-key` alone: there is one way to write it.
            (Some(_), None) if on_behalf_of.is_some() => return Err(two_credentials()),
            // RFC 9110 §11.1: the case of the scheme does not count.
            (Some(authorization), None) => match authorization.split_once(' ') {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => {
                    Credential::Bearer(token)
                }
                Some(_) | None => return Err(Problem::invalid_credential()),
            },
        };
        Ok(Self {
            credential,
            on_behalf_of,
        })
    }
}

/// The value of a header that may stand once and hold one credential: neither two lines nor a list
/// leave it to chance which one counts (RFC 6750 §2). No credential of ours holds a comma.
fn one_line<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut lines = headers.get_all(name);
    let (first, second) = (lines.next(), lines.next());
    let Some(line) = first else {
        return Ok(None);
    };
    if second.is_some() || line.as_bytes().contains(&b',') {
        return Err(two_credentials());
    }
    line.to_str()
        .map(Some)
        .map_err(|_not_ascii| Problem::invalid_credential())
}

pub(super) fn two_credentials() -> Problem {
    Problem::new(
        Code::TwoCredentials,
        "present one credential, once: an admin JWT or a management key as Authorization: Bearer, \
         or a management key as x-api-key, which alone may stand beside X-Keystead-On-Behalf-Of",
    )
}

/// Tells a token from a key: no management key holds a dot.
pub(super) fn is_token(bearer: &str) -> bool {
    bearer.contains('.')
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::HeaderValue;

    use super::*;

    fn judge(lines: &[(&str, &str)]) -> Result<String, Code> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        Presented::of(&headers)
            .map(
                |presented| match (presented.credential, presented.on_behalf_of) {
                    (Credential::Key(key), None) => format!("key {key}"),
                    (Credential::Key(key), Some(token)) => format!("key {key} for {token}"),
                    (Credential::Bearer(token), _) => format!("bearer {token}"),
                },
            )
            .map_err(|problem| problem.code())
    }

    #[test]
    fn one_credential_is_taken_from_where_it_stands() {
        const AUTH: &str = "authorization";
        for (lines, expected) in [
            (&[("x-api-key", "k")][..], "key k"),
            (&[("X-API-Key", "k")], "key k"),
            (&[(AUTH, "Bearer t")], "bearer t"),
            (&[(AUTH, "bearer t")], "bearer t"),
            (&[(AUTH, "BEARER t")], "bearer t"),
            // What is behind the one space is the credential, and then no good one.
            (&[(AUTH, "Bearer  t")], "bearer  t"),
            (&[(AUTH, "Bearer Bearer t")], "bearer Bearer t"),
            (
                &[("x-api-key", "k"), ("x-keystead-on-behalf-of", "t")],
                "key k for t",
            ),
        ] {
            assert_eq!(judge(lines), Ok(expected.to_owned()), "{lines:?}");
        }
    }

    #[test]
    fn two_credentials_are_refused_however_they_are_sent() {
        for lines in [
            &[("x-api-key", "k"), ("authorization", "Bearer t")][..],
            &[("x-api-key", "k"), ("authorization", "Basic eA==")],
            &[("x-api-key", "k"), ("x-api-key", "k")],
            &[("x-api-key", "k, l")],
            &[("x-api-key", "k,l")],
            &[("authorization", "Bearer t"), ("authorization", "Bearer t")],
            &[("authorization", "Bearer t, Bearer u")],
            &[("authorization", "Bearer t,u")],
            &[
                ("authorization", "Bearer t"),
                ("x-keystead-on-behalf-of", "u"),
            ],
            &[
                ("x-api-key", "k"),
                ("x-keystead-on-behalf-of", "t"),
                ("x-keystead-on-behalf-of", "u"),
            ],
            &[("x-api-key", "k"), ("x-keystead-on-behalf-of", "t, u")],
        ] {
            assert_eq!(judge(lines), Err(Code::TwoCredentials), "{lines:?}");
        }
    }

    #[test]
    fn no_credential_is_told_from_a_bad_one() {
        assert_eq!(judge(&[]), Err(Code::Unauthenticated));
        assert_eq!(
            judge(&[("x-keystead-on-behalf-of", "t")]),
            Err(Code::Unauthenticated)
        );
        for authorization in ["", "Bearer", "Basic eA==", "Bearert", "Token t", "t"] {
            assert_eq!(
                judge(&[("authorization", authorization)]),
                Err(Code::InvalidCredential),
                "{authorization}"
            );
        }
        assert_eq!(
            judge(&[("x-api-key", "k\u{e9}y")]),
            Err(Code::InvalidCredential)
        );
    }
}
