//! `POST /v1/verify` at the edge: from memory, and charged to the counters that nodes share, or not at all.
//!
//! Whatever is not plain is declined, and the ordinary way judges it: bodies that are refused, callers
//! that are no good or have limits of their own, entries that are missing or due, a cost that no limit
//! allows.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;

use super::{ask, asking};
use crate::auth::http::expiry_notice;
use crate::http::direct::{Direct, Plain, Soon};
use crate::http::json_body;
use crate::http::middleware::direct_headers;
use crate::patience;
use crate::validation::body::VerifyRequest;
use crate::validation::decide::Request;
use crate::validation::snapshot::Subject;
use crate::validation::{Answer, Validation, answer};

/// Answers verifications for the edge.
pub fn verify_directly(validation: Validation) -> Direct {
    let validation = Arc::new(validation);
    Direct::plain("/v1/verify", move |plain| answer_soon(&validation, plain))
}

fn answer_soon<'a>(validation: &Arc<Validation>, plain: Plain<'a>) -> Option<Soon<'a>> {
    let body = json_body::parse_once::<VerifyRequest>(plain.body).ok()?;
    let caller = validation.caller_now(plain.key, plain.context.ip, &plain.at)?;
    let visit = Visit {
        plain,
        caller,
        body,
    };
    let (service, request) = visit.asked()?;
    let key = visit.body.api_key.expose_secret();
    let at = &visit.plain.at;
    let mut answer = validation.judge_now(&visit.caller, key, &service, &request, at)?;
    if let Some(charged) = validation.charge_now(&mut answer, request.cost, at) {
        charged.ok()?;
        let told = visit.tell(validation, &service, &request, &answer);
        return Some(Soon::Now(told));
    }
    drop((service, request));
    let validation = Arc::clone(validation);
    Some(Soon::Later(Box::pin(visit.charge(validation, answer))))
}

/// A verification that is answered here.
struct Visit<'a> {
    plain: Plain<'a>,
    caller: Rc<Subject>,
    body: VerifyRequest,
}

impl Visit<'_> {
    /// For which service, and what.
    fn asked(&self) -> Option<(Cow<'_, str>, Request<'_>)> {
        let own = Some(&self.caller.key.owner.environment);
        ask(self.caller.rights(), own, self.body.asked()).ok()
    }

    async fn charge(self, validation: Arc<Validation>, mut answer: Answer) -> Option<HttpResponse> {
        let (service, request) = self.asked()?;
        let charge = validation.charge_waiting(&mut answer, request.cost);
        patience::limited(patience::OF_VALIDATION, charge).await;
        Some(self.tell(&validation, &service, &request, &answer))
    }

    /// Records the use and writes the answer.
    fn tell(
        &self,
        validation: &Validation,
        service: &str,
        request: &Request<'_>,
        decided: &Answer,
    ) -> HttpResponse {
        let (at, request_id) = (&self.plain.at, &self.plain.context.request_id);
        let asking = asking("", request_id, &self.body.asked(), at.uptime_us);
        validation.note_for(&self.caller, service, request, decided, asking, at.wall);
        let mut response =
            HttpResponse::with_body(StatusCode::OK, answer::write(decided, request_id));
        *response.headers_mut() = direct_headers();
        let end = self.caller.end();
        if let Some((name, value)) = end.and_then(|end| expiry_notice(end, at.wall)) {
            response.headers_mut().insert(name, value);
        }
        response.map_into_boxed_body()
    }
}
