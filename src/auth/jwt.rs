//! One JWT: is it good, and whose is it? RFC 7515, RFC 7519 and the best practice of RFC 8725.
//!
//! 1. [`Token::parse`]: compact form and nothing else, strict base64url and JSON, no header that
//!    changes what a signature means or brings its own key;
//! 2. [`Token::issuer`] picks the issuer; that is all the unverified token decides;
//! 3. [`Token::judge`]: kind, algorithm and claims against what is configured for that issuer;
//! 4. [`Judged::verify`]: the signature, with a key of that very issuer.
//!
//! Claims are judged before the signature because that is cheap and needs no key: a token that is
//! refused anyway never makes us ask anybody for keys. Whoever presented it learns only that it is
//! no good; [`Refusal`] is for the log and the metrics.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::key::{self, VerificationKey};
use super::strict;
use crate::config::issuers::Issuer;
use crate::text::has_control;
use crate::time::{Span, Timestamp};

/// The longest token, in bytes.
pub const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// How far the issuer's clock and ours may be apart.
const LEEWAY: Span = Span::seconds(30);

/// The end of the year 9999, in seconds since 1970.
const SECONDS_MAX: i64 = 253_402_300_799;

/// Headers that change what is signed, or bring or point to a key of the sender's choice.
const REFUSED_HEADERS: [&str; 10] = [
    "crit", "b64", "zip", "enc", "epk", "jwk", "jku", "x5u", "x5c", "cty",
];

/// Claims that tell another kind of token: ID, logout or event tokens, introspection answers; and
/// `cnf`, which binds a token to a key whose proof we do not ask for (RFC 9449, RFC 8705).
const REFUSED_CLAIMS: [&str; 7] = [
    "nonce",
    "at_hash",
    "c_hash",
    "s_hash",
    "events",
    "token_introspection",
    "cnf",
];

/// Why a token is no good: for logs and metrics, never for the one who presented it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Not a JWS in compact form, or too long.
    Malformed,
    /// A header that is not read, or of a wrong type.
    Header,
    /// Of another kind than an access token.
    Kind,
    Algorithm,
    Issuer,
    Audience,
    Subject,
    /// No sane `exp`, `nbf` or `iat`, or a life longer than allowed.
    Lifetime,
    Expired,
    NotYetValid,
    /// No key of the issuer has this `kid` and algorithm.
    Key,
    Signature,
    /// Its tenant is not named, not there, disabled, or not the one of the key that acts for it.
    Tenant,
}

impl Refusal {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Header => "header",
            Self::Kind => "kind",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::Lifetime => "lifetime",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::Key => "key",
            Self::Signature => "signature",
            Self::Tenant => "tenant",
        }
    }
}

/// A token that has the right form; nothing in it is believed.
#[derive(Debug)]
pub struct Token<'a> {
    algorithm: Algorithm,
    kid: Option<String>,
    typ: Option<String>,
    claims: Map<String, Value>,
    message: &'a str,
    signature: &'a str,
}

/// A token that is good if its signature is.
#[derive(Debug)]
pub struct Judged<'a> {
    token: Token<'a>,
    subject: String,
    expires_at: Timestamp,
}

/// A good token.
#[derive(Clone, Debug)]
pub struct Verified {
    /// 1 to 255 bytes, no control characters.
    pub subject: String,
    pub expires_at: Timestamp,
    pub claims: Map<String, Value>,
}

impl<'a> Token<'a> {
    /// # Errors
    /// [`Refusal::Malformed`], [`Refusal::Header`] or [`Refusal::Algorithm`].
    pub fn parse(text: &'a str) -> Result<Self, Refusal> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(Refusal::Malformed);
        }
        let (message, signature) = text.rsplit_once('.').ok_or(Refusal::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(Refusal::Malformed)?;
        let clean = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        if !clean || claims.contains('.') || signature.is_empty() {
            return Err(Refusal::Malformed);
        }
        // Refuses padding and the other spellings of the last character (RFC 4648 §3.5).
        let decode = |part: &str| {
            URL_SAFE_NO_PAD
                .decode(part)
                .map_err(|_bad_base64| Refusal::Malformed)
        };
        decode(signature)?;
        let header = strict::object(&decode(header)?).ok_or(Refusal::Malformed)?;
        let claims = strict::object(&decode(claims)?).ok_or(Refusal::Malformed)?;
        if REFUSED_HEADERS
            .iter()
            .any(|name| header.contains_key(*name))
        {
            return Err(Refusal::Header);
        }
        // The names of algorithms are case-sensitive (RFC 7515 §4.1.1); `none` is not among them.
        let algorithm = text_member(&header, "alg")?
            .and_then(|name| name.parse().ok())
            .ok_or(Refusal::Algorithm)?;
        let kid = text_member(&header, "kid")?;
        if kid.is_some_and(|kid| !key::is_kid(kid)) {
            return Err(Refusal::Header);
        }
        Ok(Self {
            algorithm,
            kid: kid.map(str::to_owned),
            typ: text_member(&header, "typ")?.map(str::to_owned),
            claims,
            message,
            signature,
        })
    }

    /// Who says to have issued it.
    ///
    /// # Errors
    /// [`Refusal::Issuer`] if nobody does.
    pub fn issuer(&self) -> Result<&str, Refusal> {
        self.claims
            .get("iss")
            .and_then(Value::as_str)
            .ok_or(Refusal::Issuer)
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Holds everything but the signature to what is configured for `issuer`.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn judge(self, issuer: &Issuer, now: Timestamp) -> Result<Judged<'a>, Refusal> {
        if self.issuer()? != issuer.issuer {
            return Err(Refusal::Issuer);
        }
        if !issuer.algorithms.contains(&self.algorithm) {
            return Err(Refusal::Algorithm);
        }
        self.judge_kind(&issuer.token_types)?;
        self.judge_audience(&issuer.audience)?;
        self.judge_rest(&issuer.issuer, issuer.max_lifetime, now)
    }

    /// Holds everything but the signature to what access tokens of our own are like, whoever they are
    /// for. One that ended within the leeway is let through: its end is judged when it is used.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn judge_own(
        self,
        issuer: &str,
        types: &[&str],
        life_max: Span,
        now: Timestamp,
    ) -> Result<Judged<'a>, Refusal> {
        if self.issuer()? != issuer {
            return Err(Refusal::Issuer);
        }
        self.judge_kind(types)?;
        self.judge_rest(issuer, life_max, now)
    }

    fn judge_rest(
        self,
        issuer: &str,
        life_max: Span,
        now: Timestamp,
    ) -> Result<Judged<'a>, Refusal> {
        let expires_at = self.judge_time(life_max, now)?;
        let subject = self
            .claims
            .get("sub")
            .and_then(Value::as_str)
            .filter(|sub| (1..=255).contains(&sub.len()) && !has_control(sub))
            // A client that vouches for itself: an assertion, not an access token (RFC 7523 §3).
            .filter(|sub| *sub != issuer)
            .ok_or(Refusal::Subject)?
            .to_owned();
        Ok(Judged {
            token: self,
            subject,
            expires_at,
        })
    }

    /// RFC 8725 §3.11 and §3.12: a token is good for one purpose.
    fn judge_kind<S: AsRef<str>>(&self, accepted: &[S]) -> Result<(), Refusal> {
        let typ = self.typ.as_deref().unwrap_or("JWT");
        // RFC 7515 §4.1.9: a media type, whose case does not count and whose `application/` may be
        // left out.
        let bare = typ
            .get(..12)
            .filter(|start| start.eq_ignore_ascii_case("application/"))
            .and(typ.get(12..))
            .unwrap_or(typ);
        if !accepted
            .iter()
            .any(|one| one.as_ref().eq_ignore_ascii_case(bare))
        {
            return Err(Refusal::Kind);
        }
        // Keycloak tells its kinds by a claim.
        let kind = match self.claims.get("typ") {
            None => None,
            Some(Value::String(kind)) => Some(kind.as_str()),
            Some(_) => return Err(Refusal::Kind),
        };
        let other = kind.is_some_and(|kind| {
            ["ID", "Refresh", "Offline", "Logout"]
                .iter()
                .any(|other| other.eq_ignore_ascii_case(kind))
        });
        if other
            || REFUSED_CLAIMS
                .iter()
                .any(|name| self.claims.contains_key(*name))
        {
            return Err(Refusal::Kind);
        }
        Ok(())
    }

    /// RFC 7519 §4.1.3: a string, or a list of strings; ours must be among them.
    fn judge_audience(&self, ours: &str) -> Result<(), Refusal> {
        let good = match self.claims.get("aud") {
            Some(Value::String(audience)) => audience == ours,
            Some(Value::Array(audiences)) => {
                audiences.iter().all(Value::is_string) && audiences.iter().any(|one| one == ours)
            }
            _ => false,
        };
        good.then_some(()).ok_or(Refusal::Audience)
    }

    fn judge_time(&self, life_max: Span, now: Timestamp) -> Result<Timestamp, Refusal> {
        let expires = self.seconds("exp")?.ok_or(Refusal::Lifetime)?;
        let issued = self.seconds("iat")?;
        let starts = self.seconds("nbf")?;
        if expires.plus(LEEWAY) <= now {
            return Err(Refusal::Expired);
        }
        let ahead = now.plus(LEEWAY);
        if issued.is_some_and(|at| at > ahead) || starts.is_some_and(|at| at > ahead) {
            return Err(Refusal::NotYetValid);
        }
        // Who does not say when it was issued may still not live longer from now.
        let end_max = issued.unwrap_or(ahead).plus(life_max);
        if expires > end_max {
            return Err(Refusal::Lifetime);
        }
        Ok(expires)
    }

    /// A `NumericDate` (RFC 7519 §2), whole seconds from 1970 to the end of 9999.
    fn seconds(&self, name: &str) -> Result<Option<Timestamp>, Refusal> {
        let Some(value) = self.claims.get(name) else {
            return Ok(None);
        };
        value
            .as_i64()
            .filter(|seconds| (1..=SECONDS_MAX).contains(seconds))
            .map(|seconds| Some(Timestamp::from_millis(seconds * 1000)))
            .ok_or(Refusal::Lifetime)
    }
}

impl Judged<'_> {
    pub fn algorithm(&self) -> Algorithm {
        self.token.algorithm
    }

    pub fn kid(&self) -> Option<&str> {
        self.token.kid()
    }

    /// # Errors
    /// [`Refusal::Signature`] if none of `keys`, all of the token's own issuer, made it.
    pub fn verify(self, keys: &[VerificationKey]) -> Result<Verified, Refusal> {
        let token = self.token;
        let good = keys.iter().any(|key| {
            key.algorithm() == token.algorithm && key.verifies(token.signature, token.message)
        });
        if !good {
            return Err(Refusal::Signature);
        }
        Ok(Verified {
            subject: self.subject,
            expires_at: self.expires_at,
            claims: token.claims,
        })
    }
}

/// A header of text. One of another type is no header we read.
fn text_member<'a>(header: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, Refusal> {
    match header.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(Refusal::Header),
    }
}
