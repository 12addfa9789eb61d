//! `POST /v1/verify` at the edge: from memory alone, or not at all.
//!
//! Whatever is not plain is declined, and the ordinary way judges it: bodies that are refused, callers
//! that are no good or have limits of their own, entries that are missing or due, counters in Redis.

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;

use super::{ask, asking};
use crate::auth::http::expiry_notice;
use crate::clock::Clock;
use crate::http::direct::{Direct, Plain};
use crate::http::json_body;
use crate::validation::body::VerifyRequest;
use crate::validation::{Validation, answer};

/// Answers verifications for the edge.
pub fn verify_directly(validation: Validation, clock: Clock) -> Direct {
    Direct::new("/v1/verify", move |plain| {
        answer_now(&validation, &clock, &plain)
    })
}

fn answer_now(validation: &Validation, clock: &Clock, plain: &Plain<'_>) -> Option<HttpResponse> {
    let began_us = Clock::uptime_us();
    let body = json_body::parse_once::<VerifyRequest>(plain.body).ok()?;
    let (caller, decided) = validation.validate_now(
        plain.key,
        plain.context.ip,
        body.api_key.expose_secret(),
        asking("", &plain.context.request_id, &body.asked(), began_us),
        |caller| {
            ask(
                &caller.rights(),
                Some(&caller.key.environment),
                body.asked(),
            )
            .ok()
        },
    )?;
    let mut response = HttpResponse::Ok();
    response.insert_header(ContentType::json());
    if let Some(notice) = caller.end().and_then(|end| expiry_notice(end, clock.now())) {
        response.insert_header(notice);
    }
    Some(response.body(answer::write(&decided, &plain.context.request_id)))
}
