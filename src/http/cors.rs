//! Cross-origin requests: off unless origins are listed.

use actix_web::http::Method;
use actix_web::http::header::{self, HeaderName};

use super::context::X_REQUEST_ID;

/// Cross-origin requests, for the listed origins alone and without cookies.
pub fn cors(origins: &[String]) -> actix_cors::Cors {
    let cors = actix_cors::Cors::default()
        .allowed_methods([
            Method::GET,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
        ])
        .allowed_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            HeaderName::from_static("x-api-key"),
            HeaderName::from_static("x-keystead-on-behalf-of"),
            HeaderName::from_static("x-keystead-tenant"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("audit-reason"),
            X_REQUEST_ID,
        ])
        .expose_headers([
            header::ETAG,
            header::LOCATION,
            header::RETRY_AFTER,
            X_REQUEST_ID,
            HeaderName::from_static("idempotency-replayed"),
            HeaderName::from_static("x-keystead-caller-expires"),
        ])
        .max_age(3600);
    origins
        .iter()
        .fold(cors, |cors, origin| cors.allowed_origin(origin))
}
