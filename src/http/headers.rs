//! Headers that handlers take and give, parsed into types that cannot be wrong.

use actix_web::dev::Payload;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::gate::Gated;
use super::problem::Problem;
use crate::patch::Reason;

/// Who a gateway is told that a request is from. Every answer to a gateway has all of them, empty where
/// there is nothing to say, so that a client's own never reach the backend.
pub const IDENTITY: [HeaderName; 7] = [
    HeaderName::from_static("x-keystead-key-id"),
    HeaderName::from_static("x-keystead-consumer"),
    HeaderName::from_static("x-keystead-tenant"),
    HeaderName::from_static("x-keystead-service"),
    HeaderName::from_static("x-keystead-scopes"),
    HeaderName::from_static("x-keystead-environment"),
    HeaderName::from_static("x-keystead-subject"),
];

/// Where an API key is presented.
pub const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const AUDIT_REASON: HeaderName = HeaderName::from_static("audit-reason");

/// `If-Match` with the version that the caller has seen; none, or `*`, matches any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IfMatch(pub Option<i64>);

impl IfMatch {
    fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(text) = single(headers, &header::IF_MATCH, "If-Match")? else {
            return Ok(Self(None));
        };
        if text == "*" {
            return Ok(Self(None));
        }
        let tag = text
            .strip_prefix('"')
            .and_then(|rest| rest.strip_suffix('"'))
            .filter(|tag| !tag.contains('"'))
            .ok_or_else(|| {
                Problem::invalid_at("If-Match", "must be one strong entity tag, such as \"3\"")
            })?;
        // A tag that we never gave matches nothing: versions start at 1.
        let ours = !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_digit());
        Ok(Self(Some(
            ours.then(|| tag.parse().ok()).flatten().unwrap_or(-1),
        )))
    }
}

/// The header `ETag` of an object's version (RFC 9110 §8.8.3).
pub fn etag(version: i64) -> (HeaderName, HeaderValue) {
    let value = HeaderValue::from_str(&format!("\"{version}\""))
        .unwrap_or_else(|_never| HeaderValue::from_static("\"0\""));
    (header::ETAG, value)
}

/// Marks the answer to a repeated request.
pub fn replayed(mut response: HttpResponse) -> HttpResponse {
    response
        .headers_mut()
        .insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    response
}

/// `Idempotency-Key`: the same key with the same body makes one thing only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(pub Option<String>);

impl IdempotencyKey {
    fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(text) = single(headers, &IDEMPOTENCY_KEY, "Idempotency-Key")? else {
            return Ok(Self(None));
        };
        if !(1..=255).contains(&text.len()) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(Problem::invalid_at(
                "Idempotency-Key",
                "must be 1 to 255 visible ASCII characters",
            ));
        }
        Ok(Self(Some(text.to_owned())))
    }
}

/// `Audit-Reason`: why, where there is no body to say it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditReason(pub Option<String>);

impl AuditReason {
    fn parse(headers: &HeaderMap) -> Result<Self, Problem> {
        let Some(text) = single(headers, &AUDIT_REASON, "Audit-Reason")? else {
            return Ok(Self(None));
        };
        if text.is_empty() {
            return Ok(Self(None));
        }
        let reason =
            Reason::parse(text).map_err(|detail| Problem::invalid_at("Audit-Reason", detail))?;
        Ok(Self(Some(reason.into_inner())))
    }
}

/// The one line of a header, as UTF-8.
fn single<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    shown: &str,
) -> Result<Option<&'a str>, Problem> {
    let mut lines = headers.get_all(name);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        (Some(line), None) => str::from_utf8(line.as_bytes())
            .map(|text| Some(text.trim()))
            .map_err(|_not_utf8| Problem::invalid_at(shown, "must be UTF-8")),
        (Some(_), Some(_)) => Err(Problem::invalid_at(shown, "is given more than once")),
    }
}

macro_rules! from_headers {
    ($($type:ident $header:literal $description:literal;)+) => {
        $(impl FromRequest for $type {
            type Error = Problem;
            type Future = Gated<Self>;

            fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
                Gated::new(req, Self::parse(req.headers()))
            }
        }

        /// For `params(..)` of an operation.
        impl IntoParams for $type {
            fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
                vec![
                    ParameterBuilder::new()
                        .name($header)
                        .parameter_in(ParameterIn::Header)
                        .required(Required::False)
                        .description(Some($description))
                        .schema(Some(
                            ObjectBuilder::new()
                                .schema_type(Type::String),
                        ))
                        .build(),
                ]
            }
        })+
    };
}

from_headers! {
    IfMatch "If-Match"
        "The `ETag` of the version that was read: 412 `version_mismatch` if the object has changed since.";
    IdempotencyKey "Idempotency-Key"
        "Up to 255 visible ASCII characters. Within 24 hours the same key and body answer with the \
         same object and `Idempotency-Replayed: true`; another body is 422 `idempotency_mismatch`.";
    AuditReason "Audit-Reason"
        "Why this is done, up to 500 characters; stands in the audit trail.";
}
