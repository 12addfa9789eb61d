//! `POST /v1/verify` at the edge: from memory alone, or not at all.
//!
//! Whatever is not plain is declined, and the ordinary way judges it: bodies that are refused, callers
//! that are no good or have limits of their own, entries that are missing or due, counters in Redis.

use actix_web::HttpResponse;
use actix_web::http::StatusCode;

use super::{ask, asking};
use crate::auth::http::expiry_notice;
use crate::http::direct::{Direct, Plain};
use crate::http::json_body;
use crate::http::middleware::direct_headers;
use crate::validation::body::VerifyRequest;
use crate::validation::{Validation, answer};

/// Answers verifications for the edge.
pub fn verify_directly(validation: Validation) -> Direct {
    Direct::now("/v1/verify", move |plain| answer_now(&validation, &plain))
}

fn answer_now(validation: &Validation, plain: &Plain<'_>) -> Option<HttpResponse> {
    let at = &plain.at;
    let body = json_body::parse_once::<VerifyRequest>(plain.body).ok()?;
    let (asked, request_id) = (body.asked(), &plain.context.request_id);
    let caller = validation.caller_now(plain.key, plain.context.ip, at)?;
    let own = Some(&caller.key.owner.environment);
    let (service, request) = ask(caller.rights(), own, asked).ok()?;
    let decided = validation.validate_now(
        &caller,
        body.api_key.expose_secret(),
        &service,
        &request,
        asking("", request_id, &asked, at.uptime_us),
        at,
    )?;
    let mut response = HttpResponse::with_body(StatusCode::OK, answer::write(&decided, request_id));
    *response.headers_mut() = direct_headers();
    if let Some((name, value)) = caller.end().and_then(|end| expiry_notice(end, at.wall)) {
        response.headers_mut().insert(name, value);
    }
    Some(response.map_into_boxed_body())
}
