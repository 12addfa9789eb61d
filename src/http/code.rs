//! The one table of problem codes: slug, status and title. docs/errors.md has a heading for each.

use actix_web::http::StatusCode;

macro_rules! codes {
    ($($variant:ident = $status:literal $slug:literal $title:literal;)+) => {
        /// What went wrong, as programs tell it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $(#[doc = $title] $variant,)+
        }

        impl Code {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The member `code` of a problem, and the heading in docs/errors.md.
            pub const fn slug(self) -> &'static str {
                match self { $(Self::$variant => $slug,)+ }
            }

            /// The same sentence for every problem of this code (RFC 9457 §3.1.3).
            pub const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)+ }
            }

            const fn status_number(self) -> u16 {
                match self { $(Self::$variant => $status,)+ }
            }

            /// Its place in [`Code::ALL`], for tables of counters.
            pub const fn index(self) -> usize {
                self as usize
            }
        }
    };
}

codes! {
    InvalidRequest = 400 "invalid_request" "The request is not valid";
    TwoCredentials = 400 "two_credentials" "More than one credential was presented";
    CredentialInQuery = 400 "credential_in_query" "A credential was presented in the query";
    ServiceRequired = 400 "service_required" "The service must be named";
    CostExceedsLimit = 400 "cost_exceeds_limit" "The cost can never be granted";

    Unauthenticated = 401 "unauthenticated" "A credential is needed";
    InvalidCredential = 401 "invalid_credential" "The credential is not valid";
    AmbiguousCredential = 401 "ambiguous_credential" "More than one of our credentials was presented";
    Revoked = 401 "revoked" "The key was revoked";
    Disabled = 401 "disabled" "The key is disabled";
    Expired = 401 "expired" "The key has expired";
    NotYetValid = 401 "not_yet_valid" "The key is not valid yet";

    Forbidden = 403 "forbidden" "A scope is missing";
    Escalation = 403 "escalation" "More would be handed out than the caller holds";
    WrongEnvironment = 403 "wrong_environment" "The key belongs to another environment";
    WrongService = 403 "wrong_service" "The key is not for this service";
    IpNotAllowed = 403 "ip_not_allowed" "The key may not be used from this address";
    InsufficientScope = 403 "insufficient_scope" "The key lacks a scope";

    NotFound = 404 "not_found" "There is no such thing";
    MethodNotAllowed = 405 "method_not_allowed" "The method is not allowed here";
    RequestTimeout = 408 "request_timeout" "The request did not arrive in time";

    SlugTaken = 409 "slug_taken" "The slug is in use";
    ExternalIdTaken = 409 "external_id_taken" "The external id is in use";
    HasLiveKeys = 409 "has_live_keys" "There are live keys";
    TooManySecrets = 409 "too_many_secrets" "The key has too many live secrets";
    KeyRevoked = 409 "key_revoked" "The key is revoked for good";
    KeyExpired = 409 "key_expired" "The key has expired";
    CountChanged = 409 "count_changed" "The number of objects has changed";
    InProgress = 409 "in_progress" "The first request of this kind is still running";
    ReviewClosed = 409 "review_closed" "The review is closed";
    ReviewUndecided = 409 "review_undecided" "Keys of the review are undecided";
    BuiltIn = 409 "built_in" "The object is part of Keystead itself";

    VersionMismatch = 412 "version_mismatch" "The object was changed in the meantime";
    PayloadTooLarge = 413 "payload_too_large" "The body is too large";
    UnsupportedMediaType = 415 "unsupported_media_type" "The body is of another media type";
    IdempotencyMismatch = 422 "idempotency_mismatch" "The Idempotency-Key belongs to another request";
    RateLimited = 429 "rate_limited" "Too many requests";
    QuotaExceeded = 429 "quota_exceeded" "The quota is used up";

    Internal = 500 "internal" "A defect of Keystead";
    StoreUnavailable = 503 "store_unavailable" "The database cannot be asked";
    Busy = 503 "busy" "Too much is going on";
    Starting = 503 "starting" "The node is starting";
    CallerNotAllowed = 503 "caller_not_allowed" "The gateway may not ask";
    AuditBroken = 503 "audit_broken" "The audit trail is broken";
}

impl Code {
    #[expect(
        clippy::expect_used,
        clippy::missing_panics_doc,
        reason = "a test walks the whole table"
    )]
    pub fn status(self) -> StatusCode {
        StatusCode::from_u16(self.status_number()).expect("the table holds HTTP status codes")
    }

    /// The member `type` (RFC 9457 §3.1.1). A URN, because an installation has no address that we
    /// could know: it is the same behind every host name and path, and nobody is led to fetch it.
    pub fn type_uri(self) -> String {
        format!("urn:keystead:error:{}", self.slug())
    }

    pub fn parse(slug: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.slug() == slug)
    }

    /// Seconds after which another try makes sense, for what passes by itself.
    pub const fn retry_after_seconds(self) -> Option<u64> {
        match self {
            Self::Busy | Self::InProgress => Some(1),
            Self::StoreUnavailable | Self::Starting => Some(2),
            Self::CallerNotAllowed | Self::AuditBroken => Some(30),
            Self::InvalidRequest
            | Self::TwoCredentials
            | Self::CredentialInQuery
            | Self::ServiceRequired
            | Self::CostExceedsLimit
            | Self::Unauthenticated
            | Self::InvalidCredential
            | Self::AmbiguousCredential
            | Self::Revoked
            | Self::Disabled
            | Self::Expired
            | Self::NotYetValid
            | Self::Forbidden
            | Self::Escalation
            | Self::WrongEnvironment
            | Self::WrongService
            | Self::IpNotAllowed
            | Self::InsufficientScope
            | Self::NotFound
            | Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::SlugTaken
            | Self::ExternalIdTaken
            | Self::HasLiveKeys
            | Self::TooManySecrets
            | Self::KeyRevoked
            | Self::KeyExpired
            | Self::CountChanged
            | Self::ReviewClosed
            | Self::ReviewUndecided
            | Self::BuiltIn
            | Self::VersionMismatch
            | Self::PayloadTooLarge
            | Self::UnsupportedMediaType
            | Self::IdempotencyMismatch
            | Self::RateLimited
            | Self::QuotaExceeded
            | Self::Internal => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_a_slug_of_its_own_and_a_status() {
        for (index, code) in Code::ALL.iter().enumerate() {
            assert_eq!(code.index(), index);
            assert_eq!(Code::parse(code.slug()), Some(*code));
            assert!(code.status().is_client_error() || code.status().is_server_error());
            let slug = code.slug();
            assert!(
                slug.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{slug}"
            );
        }
    }

    #[test]
    fn whatever_is_503_says_when_to_come_again() {
        for code in Code::ALL {
            if code.status() == StatusCode::SERVICE_UNAVAILABLE {
                assert!(code.retry_after_seconds().is_some(), "{}", code.slug());
            }
        }
    }

    #[test]
    fn errors_md_has_a_heading_for_every_code_below_its_status() {
        let page = include_str!("../../docs/errors.md");
        let mut status = "";
        let mut documented = Vec::new();
        for line in page.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                status = heading;
            } else if let Some(heading) = line.strip_prefix("### ") {
                documented.push((status, heading));
            }
        }
        let table: Vec<_> = Code::ALL
            .iter()
            .map(|code| (code.status().as_str().to_owned(), code.slug()))
            .collect();
        let table: Vec<_> = table.iter().map(|(s, slug)| (s.as_str(), *slug)).collect();
        assert_eq!(documented, table);
    }
}
