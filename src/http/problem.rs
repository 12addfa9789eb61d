//! Refusals and failures on the wire: `application/problem+json` (RFC 9457).
//!
//! A handler returns a [`Problem`]; `http/middleware.rs` writes the body, because it alone knows
//! the request id, and logs the cause once. What a caller is told and what is logged are two texts.

use std::fmt;

use actix_web::body::BoxBody;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use utoipa::ToSchema;

pub use super::code::Code;
use crate::db;
use crate::error::{Conflict, Error, Violation};

pub const MEDIA_TYPE: &str = "application/problem+json";

/// What a handler answers instead of a result.
pub struct Problem(Box<Parts>);

struct Parts {
    code: Code,
    detail: String,
    errors: Vec<Violation>,
    existing_id: Option<String>,
    count: Option<u64>,
    required_scope: Option<String>,
    retry_after_seconds: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
    cause: Option<anyhow::Error>,
    /// Known only where the middleware had to answer without a response of the application's.
    request_id: Option<String>,
}

/// The body of every refusal and failure (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody<'a> {
    /// Identifies the kind of problem; a URN that ends in `code`.
    #[serde(rename = "type")]
    #[schema(example = "urn:keystead:error:invalid_request")]
    type_uri: String,
    /// The same for every problem of this kind.
    #[schema(example = "The request is not valid")]
    title: &'a str,
    /// The HTTP status again.
    #[schema(example = 400, minimum = 400, maximum = 599)]
    status: u16,
    /// What happened this time; for people.
    detail: &'a str,
    /// What happened; for programs. docs/errors.md has a heading for each.
    #[schema(example = "invalid_request")]
    code: &'a str,
    /// Stands in the answer's `X-Request-Id`, in logs and in the audit trail too.
    #[schema(example = "5f0c2f4b9d1e4a7786c01b2a")]
    request_id: &'a str,
    /// What is wrong with the input, one by one.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(required = false)]
    errors: Vec<ViolationBody<'a>>,
    /// The object that already has the slug or external id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    existing_id: Option<&'a str>,
    /// How many objects stand in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    count: Option<u64>,
    /// The scope that the caller lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false, nullable = false)]
    required_scope: Option<&'a str>,
}

/// One thing that is wrong with the input.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Violation)]
pub struct ViolationBody<'a> {
    /// JSON pointer into the body (RFC 6901), or the name of a query parameter or header.
    #[schema(example = "/grants/0/scopes")]
    pointer: &'a str,
    /// What it must be.
    #[schema(example = "is required")]
    detail: &'a str,
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            code,
            detail: detail.into(),
            errors: Vec::new(),
            existing_id: None,
            count: None,
            required_scope: None,
            retry_after_seconds: code.retry_after_seconds(),
            headers: Vec::new(),
            cause: None,
            request_id: None,
        }))
    }

    /// 400 `invalid_request`.
    pub fn invalid(errors: Vec<Violation>) -> Self {
        let detail = match errors.as_slice() {
            [one] if one.pointer.is_empty() => one.detail.clone(),
            [one] => format!("{} {}", one.pointer, one.detail),
            several => format!("{} things are wrong, see errors", several.len()),
        };
        let mut problem = Self::new(Code::InvalidRequest, detail);
        problem.0.errors = errors;
        problem
    }

    /// 400 `invalid_request` about one place.
    pub fn invalid_at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::invalid(vec![Violation::new(pointer, detail)])
    }

    /// 401 without a credential: says how to present one, and no `error` (RFC 6750 §3.1).
    pub fn unauthenticated(detail: &str) -> Self {
        Self::new(Code::Unauthenticated, detail).header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"keystead\""),
        )
    }

    /// 401 for a presented credential: the same body for whatever may not be told apart.
    pub fn invalid_credential() -> Self {
        Self::refused_credential(
            Code::InvalidCredential,
            "the presented credential is not valid",
        )
    }

    /// 401 about a presented credential, with a code that its holder may be told.
    pub fn refused_credential(code: Code, detail: impl Into<String>) -> Self {
        Self::new(code, detail).header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"keystead\", error=\"invalid_token\""),
        )
    }

    /// 403 `forbidden`: names the scope, in the body and as RFC 6750 §3.1 has it.
    pub fn forbidden(scope: impl Into<String>) -> Self {
        let scope = scope.into();
        let mut problem = Self::new(Code::Forbidden, format!("the scope {scope} is needed"));
        let challenge =
            format!("Bearer realm=\"keystead\", error=\"insufficient_scope\", scope=\"{scope}\"");
        if let Ok(challenge) = HeaderValue::from_str(&challenge) {
            problem = problem.header(header::WWW_AUTHENTICATE, challenge);
        }
        problem.0.required_scope = Some(scope);
        problem
    }

    /// 404: the same whether the object is not there or belongs to another tenant.
    pub fn not_found(kind: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no such {kind}"))
    }

    pub fn busy() -> Self {
        Self::new(
            Code::Busy,
            "nothing more can be taken on just now, try again",
        )
    }

    #[must_use]
    pub fn violation(mut self, pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        self.0.errors.push(Violation::new(pointer, detail));
        self
    }

    #[must_use]
    pub fn existing_id(mut self, id: impl Into<String>) -> Self {
        self.0.existing_id = Some(id.into());
        self
    }

    #[must_use]
    pub fn count(mut self, count: u64) -> Self {
        self.0.count = Some(count);
        self
    }

    /// When to come again: as `other` says, if that is earlier.
    #[must_use]
    pub fn retry_after_of(mut self, other: &Self) -> Self {
        let both = [self.0.retry_after_seconds, other.0.retry_after_seconds];
        self.0.retry_after_seconds = both.into_iter().flatten().min();
        self
    }

    /// When to come again, at the earliest.
    #[must_use]
    pub fn retry_after_seconds(mut self, seconds: u64) -> Self {
        self.0.retry_after_seconds = Some(seconds);
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// What the log is told and the caller is not.
    #[must_use]
    pub fn cause(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.0.cause = Some(cause.into());
        self
    }

    #[must_use]
    pub(crate) fn with_request_id(mut self, request_id: &str) -> Self {
        self.0.request_id = Some(request_id.to_owned());
        self
    }

    pub fn code(&self) -> Code {
        self.0.code
    }

    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    pub fn errors(&self) -> &[Violation] {
        &self.0.errors
    }

    /// What the database's failure is called in metrics, if that is the cause.
    pub(crate) fn database_error(&self) -> Option<&'static str> {
        let cause = self.0.cause.as_ref()?;
        Some(match cause.downcast_ref::<db::Error>()? {
            db::Error::Unavailable(_) => "unavailable",
            db::Error::Busy => "busy",
            db::Error::Taken(_) => "taken",
            db::Error::Query(_) => "query",
            db::Error::Corrupt(_) | db::Error::AuditBroken(_) => "corrupt",
            db::Error::Refused(_) => "refused",
        })
    }

    pub(crate) fn cause_chain(&self) -> Option<String> {
        self.0.cause.as_ref().map(|cause| format!("{cause:#}"))
    }

    /// The complete answer.
    pub fn response(&self, request_id: &str) -> HttpResponse {
        let mut response = HttpResponse::new(self.0.code.status());
        self.write_headers(response.headers_mut());
        response.set_body(BoxBody::new(self.body(request_id)))
    }

    pub(crate) fn write_headers(&self, headers: &mut HeaderMap) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.0.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in &self.0.headers {
            headers.insert(name.clone(), value.clone());
        }
    }

    /// The body as a value, for a list in which one item is a problem.
    pub fn to_value(&self, request_id: &str) -> serde_json::Value {
        serde_json::from_slice(&self.body(request_id)).unwrap_or_default()
    }

    pub(crate) fn body(&self, request_id: &str) -> Vec<u8> {
        let parts = &*self.0;
        let body = ProblemBody {
            type_uri: parts.code.type_uri(),
            title: parts.code.title(),
            status: parts.code.status().as_u16(),
            detail: &parts.detail,
            code: parts.code.slug(),
            request_id,
            errors: parts
                .errors
                .iter()
                .map(|violation| ViolationBody {
                    pointer: &violation.pointer,
                    detail: &violation.detail,
                })
                .collect(),
            existing_id: parts.existing_id.as_deref(),
            count: parts.count,
            required_scope: parts.required_scope.as_deref(),
        };
        // Only strings and numbers: serialization cannot fail, and an empty body beats a panic.
        serde_json::to_vec(&body).unwrap_or_default()
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.0.code.status()
    }

    fn error_response(&self) -> HttpResponse<BoxBody> {
        self.response(self.0.request_id.as_deref().unwrap_or_default())
    }
}

impl fmt::Debug for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Problem")
            .field("code", &self.0.code)
            .field("detail", &self.0.detail)
            .field("errors", &self.0.errors)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.slug(), self.0.detail)
    }
}

impl std::error::Error for Problem {}

impl From<Conflict> for Code {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::SlugTaken => Self::SlugTaken,
            Conflict::ExternalIdTaken => Self::ExternalIdTaken,
            Conflict::HasLiveKeys => Self::HasLiveKeys,
            Conflict::TooManySecrets => Self::TooManySecrets,
            Conflict::KeyRevoked => Self::KeyRevoked,
            Conflict::KeyExpired => Self::KeyExpired,
            Conflict::CountChanged => Self::CountChanged,
            Conflict::InProgress => Self::InProgress,
            Conflict::ReviewClosed => Self::ReviewClosed,
            Conflict::ReviewUndecided => Self::ReviewUndecided,
            Conflict::BuiltIn => Self::BuiltIn,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Invalid(violations) => Self::invalid(violations),
            Error::NotFound(kind) => Self::not_found(kind),
            Error::Forbidden(scope) => Self::forbidden(scope),
            Error::NotAllowed(detail) => Self::new(Code::Forbidden, detail),
            Error::Escalation(detail) => Self::new(Code::Escalation, detail),
            Error::Conflict {
                conflict,
                detail,
                existing_id,
                count,
                errors,
            } => {
                let mut problem = Self::new(conflict.into(), detail);
                problem.0.existing_id = existing_id;
                problem.0.count = count;
                problem.0.errors = errors;
                problem
            }
            Error::VersionMismatch { .. } => Self::new(Code::VersionMismatch, error.to_string()),
            Error::IdempotencyMismatch => Self::new(Code::IdempotencyMismatch, error.to_string()),
            Error::Busy => Self::busy(),
            Error::Store(error) => error.into(),
        }
    }
}

impl From<db::Error> for Problem {
    fn from(error: db::Error) -> Self {
        match error {
            db::Error::Busy => Self::busy().cause(error),
            // Two requests took the same name at once: the one that lost may simply ask again.
            db::Error::Taken(ref index) if index.contains("external_id") => {
                Self::new(Code::ExternalIdTaken, "the external id was taken just now").cause(error)
            }
            db::Error::Taken(ref index) if index.contains("slug") => {
                Self::new(Code::SlugTaken, "the slug was taken just now").cause(error)
            }
            db::Error::AuditBroken(_) => Self::new(
                Code::AuditBroken,
                "the audit trail of the tenant is broken, and nothing is added to it until an operator \
                 has looked: keystead audit verify",
            )
            .cause(error),
            db::Error::Taken(_)
            | db::Error::Unavailable(_)
            | db::Error::Refused(_)
            | db::Error::Query(_)
            | db::Error::Corrupt(_) => Self::new(
                Code::StoreUnavailable,
                "the database cannot be asked just now, try again",
            )
            .cause(error),
        }
    }
}
