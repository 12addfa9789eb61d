//! Client authentication (RFC 6749 §2.3): which client is it, and with which API key?
//!
//! | method | client id | secret |
//! | --- | --- | --- |
//! | `client_secret_basic` | the user of HTTP Basic, form-encoded | its password, form-encoded |
//! | `client_secret_post` | `client_id` in the body | `client_secret` in the body |
//! | our own | if any, `client_id` in the body | the header `x-api-key` |
//!
//! Whoever introspects may send the key as `Authorization: Bearer` too (RFC 7662 §2.1).
//!
//! The secret alone authenticates: the client id is not looked up, but must name the client whose key
//! it is. So an unknown client costs what a wrong secret costs.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use super::form::Form;
use super::refusal::{ErrorCode, Refusal};
use crate::keys::secret::{Presented, UnparsedKey};
use crate::validation::snapshot::Subject;

/// The headers that may carry a credential, each with all its lines.
#[derive(Clone, Debug, Default)]
pub struct Lines<'a> {
    pub authorization: SmallVec<[&'a [u8]; 1]>,
    pub api_key: SmallVec<[&'a [u8]; 1]>,
}

/// What was presented to be a client by. `Debug` shows no secret.
#[derive(Debug)]
pub struct Client {
    pub secret: UnparsedKey,
    /// Each spelling of each id that was given.
    names: Vec<Vec<String>>,
}

impl Client {
    /// # Errors
    /// `invalid_request` for two methods or half of one; `invalid_client` for none, or one that is not
    /// offered.
    pub fn of(lines: &Lines<'_>, form: &mut Form<'_>) -> Result<Self, Refusal> {
        Self::read(lines, form, basic)
    }

    /// As [`Self::of`], of one who may also present its key as a bearer token.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn or_bearer(lines: &Lines<'_>, form: &mut Form<'_>) -> Result<Self, Refusal> {
        Self::read(lines, form, |line| match bearer(line) {
            Some(key) => Ok((UnparsedKey::new(key.to_owned()), None)),
            None => basic(line),
        })
    }

    fn read(
        lines: &Lines<'_>,
        form: &mut Form<'_>,
        authorization: impl FnOnce(&[u8]) -> Result<(UnparsedKey, Option<Vec<String>>), Refusal>,
    ) -> Result<Self, Refusal> {
        let client_id = form.take("client_id");
        let client_secret = form.take("client_secret");
        let assertion =
            form.take("client_assertion").is_some() | form.take("client_assertion_type").is_some();
        let methods = lines.authorization.len()
            + lines.api_key.len()
            + usize::from(client_secret.is_some())
            + usize::from(assertion);
        if methods > 1 {
            return Err(Refusal::invalid_request(
                "authenticate the client in one way, once (RFC 6749, 2.3)",
            ));
        }
        let in_body = client_id.map(|id| vec![id.into_owned()]);
        let (secret, name) = if let Some(line) = lines.authorization.first() {
            authorization(line)?
        } else if let Some(line) = lines.api_key.first() {
            // What is not even text is a malformed key.
            let text = str::from_utf8(line).unwrap_or("\u{fffd}");
            (UnparsedKey::new(text.to_owned()), None)
        } else if let Some(secret) = client_secret {
            if in_body.is_none() {
                return Err(Refusal::invalid_request(
                    "client_id is required beside client_secret",
                ));
            }
            (UnparsedKey::new(secret.into_owned()), None)
        } else if assertion {
            return Err(Refusal::new(
                ErrorCode::InvalidClient,
                "client assertions are not offered here",
            ));
        } else {
            (UnparsedKey::new(String::new()), None)
        };
        Ok(Self {
            secret,
            names: name.into_iter().chain(in_body).collect(),
        })
    }

    /// Whether nothing was presented.
    pub fn is_missing(&self) -> bool {
        self.secret.expose_secret().is_empty() && self.names.is_empty()
    }

    /// Whether every id that was given names the client whose key this is.
    pub fn is_named(&self, subject: &Subject) -> bool {
        self.names
            .iter()
            .all(|spellings| self.spelling(spellings, subject).is_some())
    }

    /// What the client calls itself: an id that was given and names it, else the consumer's.
    pub fn name<'a>(&'a self, subject: &'a Subject) -> &'a str {
        self.names
            .first()
            .and_then(|spellings| self.spelling(spellings, subject))
            .unwrap_or(subject.consumer.id.as_str())
    }

    /// That of one id which names the client.
    fn spelling<'a>(&self, spellings: &'a [String], subject: &Subject) -> Option<&'a str> {
        let (key, consumer) = (&subject.key, &subject.consumer);
        let lookup_id = match self.secret.parse(&[]) {
            Presented::Native { lookup_id, .. } => Some(lookup_id),
            Presented::Foreign(_) | Presented::Malformed => None,
        };
        let names = |spelling: &str| {
            spelling == consumer.id.as_str()
                || spelling == consumer.slug.as_str()
                || consumer
                    .external_id
                    .as_ref()
                    .is_some_and(|id| id.as_str() == spelling)
                || spelling == key.key_id.as_str()
                || lookup_id.as_ref().is_some_and(|id| id.as_str() == spelling)
        };
        spellings
            .iter()
            .map(String::as_str)
            .find(|spelling| names(spelling))
    }
}

/// The key of `Bearer` (RFC 6750 §2.1).
fn bearer(line: &[u8]) -> Option<&str> {
    let (scheme, key) = str::from_utf8(line).ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(key)
}

/// The secret and the client id of `Basic` (RFC 7617 §2), in each spelling that was meant.
fn basic(line: &[u8]) -> Result<(UnparsedKey, Option<Vec<String>>), Refusal> {
    let refused = || {
        Refusal::new(
            ErrorCode::InvalidClient,
            "the Authorization header is no client authentication: send Basic",
        )
    };
    let text = str::from_utf8(line).map_err(|_not_text| refused())?;
    let (scheme, credentials) = text.split_once(' ').ok_or_else(refused)?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(refused());
    }
    let decoded = STANDARD
        .decode(credentials.trim())
        .map_err(|_bad_base64| refused())?;
    // RFC 7617 §2.1 leaves the charset open: some send Latin-1.
    let decoded = String::from_utf8(decoded)
        .unwrap_or_else(|error| error.as_bytes().iter().copied().map(char::from).collect());
    let (id, secret) = decoded.split_once(':').ok_or_else(refused)?;
    // RFC 6749 §2.3.1 has both form-encoded, and many clients send them as they are. No key of ours
    // holds a character that would tell one from the other.
    let secret = UnparsedKey::new(form_decoded(secret).unwrap_or_else(|| secret.to_owned()));
    let mut names = vec![id.to_owned()];
    names.extend(form_decoded(id).filter(|decoded| decoded != id));
    Ok((secret, Some(names)))
}

/// `None` for what is not form-encoded.
fn form_decoded(text: &str) -> Option<String> {
    let well_formed = text.split('%').skip(1).all(|rest| {
        let digits = rest.as_bytes().get(..2);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    if !well_formed {
        return None;
    }
    let spaced = text.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
    Some(decoded.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &str) -> String {
        format!("Basic {}", STANDARD.encode(text))
    }

    fn parse(text: &str) -> (String, Vec<String>) {
        let (secret, names) = basic(encoded(text).as_bytes()).unwrap();
        (secret.expose_secret().to_owned(), names.unwrap())
    }

    #[test]
    fn the_basic_header_of_a_real_client_is_form_decoded() {
        // As oauth4webapi encodes `svc-billing_prod` and `ks_live_AbC-9.x~z+/=`.
        let (secret, names) = parse("svc%2Dbilling%5Fprod:ks%5Flive%5FAbC%2D9%2Ex%7Ez%2B%2F%3D");
        assert_eq!(secret, "ks_live_AbC-9.x~z+/=");
        assert!(names.contains(&"svc-billing_prod".to_owned()));
        // And as curl sends one.
        let (secret, names) = parse("a+b%zz:ks_live_x");
        assert_eq!(
            (secret.as_str(), &*names),
            ("ks_live_x", &["a+b%zz".to_owned()][..])
        );
        assert!(
            parse("caf%C3%A9+1%3A2:x")
                .1
                .contains(&"café 1:2".to_owned())
        );
        let latin = [b"caf\xe9".as_slice(), b":x"].concat();
        let line = format!("Basic {}", STANDARD.encode(latin));
        assert_eq!(basic(line.as_bytes()).unwrap().1.unwrap(), ["café"]);
    }

    #[test]
    fn what_is_no_basic_is_refused() {
        for line in [
            "",
            "Basic",
            "Bearer ks_live_x",
            "Basic ****",
            "Digest eDp5",
            &encoded("no colon"),
        ] {
            assert!(basic(line.as_bytes()).is_err(), "{line}");
        }
        assert!(basic(b"Basic \xff\xfe").is_err());
        assert!(basic(b"bAsIc eDp5").is_ok());
    }

    #[test]
    fn a_client_authenticates_in_one_way_alone() {
        fn form<'a>(pairs: &[(&'a str, &'a str)]) -> Form<'a> {
            let pairs = pairs.iter();
            Form::new(pairs.map(|(n, v)| ((*n).into(), (*v).into())).collect()).unwrap()
        }
        let basic = encoded("x:y");
        let lines = |authorization: usize, api_key: usize| Lines {
            authorization: SmallVec::from_elem(basic.as_bytes(), authorization),
            api_key: SmallVec::from_elem(&b"ks_live_x"[..], api_key),
        };
        let (header, key) = (lines(1, 0), lines(0, 1));
        let (both, twice) = (lines(1, 1), lines(2, 0));
        let none = Lines::default();
        let secret = &[("client_id", "x"), ("client_secret", "y")][..];
        for (lines, pairs) in [
            (&header, &[][..]),
            (&key, &[]),
            (&none, secret),
            (&none, &[]),
        ] {
            assert!(Client::of(lines, &mut form(pairs)).is_ok());
        }
        for (lines, pairs, code) in [
            (&header, secret, ErrorCode::InvalidRequest),
            (&key, secret, ErrorCode::InvalidRequest),
            (&both, &[][..], ErrorCode::InvalidRequest),
            (&twice, &[], ErrorCode::InvalidRequest),
            (&none, &[("client_secret", "y")], ErrorCode::InvalidRequest),
            (
                &header,
                &[("client_assertion", "y")],
                ErrorCode::InvalidRequest,
            ),
            (
                &none,
                &[("client_assertion", "y")],
                ErrorCode::InvalidClient,
            ),
        ] {
            let refusal = Client::of(lines, &mut form(pairs)).unwrap_err();
            assert_eq!(refusal.code, code, "{pairs:?}");
        }
    }
}
