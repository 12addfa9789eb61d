//! What the OAuth endpoints refuse with: the error codes of RFC 6749 §5.2 and RFC 8693 §2.2.2, and a
//! few of our own where those have none.

use crate::auth::jwt;
use crate::db;
use crate::validation::Failure;
use crate::validation::decide::Outcome;
use crate::validation::spend::LimitHeaders;

/// The member `error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    InvalidRequest,
    /// Also for what is no known key: the same words for everything that may not be told apart.
    InvalidClient,
    InvalidScope,
    /// RFC 8707 §2.
    InvalidTarget,
    UnauthorizedClient,
    UnsupportedGrantType,
    /// RFC 7009 §2.2.1.
    UnsupportedTokenType,
    /// RFC 6750 §3.1: 403.
    InsufficientScope,
    /// Our own: 429.
    RateLimited,
    /// Our own: 429.
    QuotaExceeded,
    /// We failed: 503. RFC 6749 §4.1.2.1 has the word.
    TemporarilyUnavailable,
}

impl ErrorCode {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidClient => "invalid_client",
            Self::InvalidScope => "invalid_scope",
            Self::InvalidTarget => "invalid_target",
            Self::UnauthorizedClient => "unauthorized_client",
            Self::UnsupportedGrantType => "unsupported_grant_type",
            Self::UnsupportedTokenType => "unsupported_token_type",
            Self::InsufficientScope => "insufficient_scope",
            Self::RateLimited => "rate_limited",
            Self::QuotaExceeded => "quota_exceeded",
            Self::TemporarilyUnavailable => "temporarily_unavailable",
        }
    }

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::InvalidRequest
            | Self::InvalidScope
            | Self::InvalidTarget
            | Self::UnauthorizedClient
            | Self::UnsupportedGrantType
            | Self::UnsupportedTokenType => 400,
            Self::InvalidClient => 401,
            Self::InsufficientScope => 403,
            Self::RateLimited | Self::QuotaExceeded => 429,
            Self::TemporarilyUnavailable => 503,
        }
    }
}

/// A refusal, or a failure of ours.
#[derive(Debug)]
pub struct Refusal {
    pub code: ErrorCode,
    description: String,
    pub retry_after_seconds: Option<u64>,
    /// Where the key's limits stand.
    pub limits: Option<LimitHeaders>,
    /// For the log alone.
    pub cause: Option<anyhow::Error>,
    /// What is wrong with a token that was presented and is none: for the log and the metrics alone.
    pub forged: Option<jwt::Refusal>,
}

impl Refusal {
    pub fn new(code: ErrorCode, description: &str) -> Self {
        Self {
            code,
            description: description.chars().map(told).collect(),
            retry_after_seconds: match code {
                ErrorCode::TemporarilyUnavailable => Some(2),
                ErrorCode::RateLimited | ErrorCode::QuotaExceeded => Some(1),
                ErrorCode::InvalidRequest
                | ErrorCode::InvalidClient
                | ErrorCode::InvalidScope
                | ErrorCode::InvalidTarget
                | ErrorCode::UnauthorizedClient
                | ErrorCode::UnsupportedGrantType
                | ErrorCode::UnsupportedTokenType
                | ErrorCode::InsufficientScope => None,
            },
            limits: None,
            cause: None,
            forged: None,
        }
    }

    pub fn invalid_request(description: &str) -> Self {
        Self::new(ErrorCode::InvalidRequest, description)
    }

    /// Whatever presents no known key, or one that is not the named client's.
    pub fn unknown_client() -> Self {
        Self::new(
            ErrorCode::InvalidClient,
            "the client or its secret is not known",
        )
    }

    pub fn invalid_target(description: &str) -> Self {
        Self::new(ErrorCode::InvalidTarget, description)
    }

    pub fn invalid_scope(description: &str) -> Self {
        Self::new(ErrorCode::InvalidScope, description)
    }

    /// A token of somebody who did not sign it, or of a kind that is not taken here.
    pub fn forged(description: &str, refusal: jwt::Refusal) -> Self {
        Self {
            forged: Some(refusal),
            ..Self::invalid_request(description)
        }
    }

    /// We failed, and it may be asked again.
    pub fn unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::new(
                ErrorCode::TemporarilyUnavailable,
                "this cannot be answered just now, try again",
            )
        }
    }

    #[must_use]
    pub fn limited(self, limits: Option<LimitHeaders>) -> Self {
        Self {
            retry_after_seconds: limits
                .as_ref()
                .and_then(|limits| limits.retry_after_seconds)
                .or(self.retry_after_seconds),
            limits,
            ..self
        }
    }

    /// RFC 6749 §5.2: `%x20-21 / %x23-5B / %x5D-7E`.
    pub fn description(&self) -> &str {
        &self.description
    }
}

/// What a holder is told of a key that was refused as a client; `None` for a good one.
pub fn of_outcome(outcome: Outcome) -> Option<Refusal> {
    let invalid_client = |what| Some(Refusal::new(ErrorCode::InvalidClient, what));
    match outcome {
        Outcome::Valid => None,
        Outcome::Missing => invalid_client(
            "authenticate the client: HTTP Basic with an API key as the password, client_secret in \
             the body, or the header x-api-key",
        ),
        Outcome::Malformed | Outcome::Unknown => Some(Refusal::unknown_client()),
        Outcome::Revoked => invalid_client("the key was revoked"),
        Outcome::Disabled => invalid_client("the key is disabled"),
        Outcome::Expired => invalid_client("the key has expired"),
        Outcome::NotYetValid => invalid_client("the key is not valid yet"),
        Outcome::WrongEnvironment | Outcome::IpNotAllowed => Some(Refusal::new(
            ErrorCode::UnauthorizedClient,
            "the key may not be used from this address or for this environment",
        )),
        Outcome::WrongService => Some(Refusal::invalid_target(
            "the key grants nothing on this service, or there is none",
        )),
        Outcome::InsufficientScope => Some(Refusal::invalid_scope(
            "the key does not hold every scope that was asked for",
        )),
        Outcome::RateLimited => Some(Refusal::new(
            ErrorCode::RateLimited,
            "too many requests with this key",
        )),
        Outcome::QuotaExceeded => Some(Refusal::new(
            ErrorCode::QuotaExceeded,
            "the quota of the key is used up",
        )),
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        match failure {
            failure @ Failure::CostExceedsLimit(_) => Self {
                cause: Some(failure.into()),
                ..Self::new(ErrorCode::RateLimited, "this can never be granted")
            },
            failure @ (Failure::Store(_) | Failure::Busy | Failure::Late) => {
                Self::unavailable(failure)
            }
        }
    }
}

impl From<db::Error> for Refusal {
    fn from(error: db::Error) -> Self {
        Self::unavailable(error)
    }
}

/// Nothing else may stand in a description, whoever wrote it.
fn told(c: char) -> char {
    match c {
        ' ' | '!' | '#'..='[' | ']'..='~' => c,
        '"' => '\'',
        _ => '?',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_holds_what_the_rfc_allows_and_nothing_else() {
        let refusal = Refusal::invalid_request("a \"b\" \\ \r\nSet-Cookie: é \u{202e}\0 ~!");
        assert_eq!(refusal.description(), "a 'b' ? ??Set-Cookie: ? ?? ~!");
    }

    #[test]
    fn what_may_not_be_told_apart_is_told_in_the_same_words() {
        let words = |outcome| of_outcome(outcome).unwrap().description().to_owned();
        assert_eq!(words(Outcome::Malformed), words(Outcome::Unknown));
        assert_eq!(
            words(Outcome::Unknown),
            Refusal::unknown_client().description()
        );
        for outcome in Outcome::ALL {
            assert_eq!(of_outcome(outcome).is_none(), outcome.is_valid());
        }
    }
}
