//! Notes the refusals that known callers are answered.

use std::rc::Rc;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage as _, HttpRequest, web};

use crate::audit::chain::Target;
use crate::audit::{Refusal, Refusals};
use crate::auth::CallerIdentity;
use crate::http::problem::{Code, Problem};
use crate::metrics::Metrics;
use crate::telemetry::{SecurityEvent, Sighting};
use crate::text::Slug;

/// What stands for the id of a target that is not known, or whose name is not recorded.
const UNKNOWN: &str = "-";

/// What [`record_refused`] needs, as `web::Data`.
#[derive(Clone)]
pub struct RefusedRecorder {
    pub refusals: Refusals,
    /// The action of an operation, such as `key.revoke`, by its method and the pattern of its
    /// path; `None` if its refusals are no attempts at anything.
    pub action: fn(&Method, &str) -> Option<&'static str>,
}

/// A middleware for `middleware::from_fn`: leaves a line for each 403 and 404 that a caller is
/// answered who is known. The answer does not wait for it.
///
/// # Errors
/// What the application answers.
pub async fn record_refused(
    recorder: web::Data<RefusedRecorder>,
    req: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let res = next.call(req).await?;
    let code = match res.status() {
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not_found",
        _ => return Ok(res),
    };
    let code = res
        .response()
        .error()
        .and_then(|error| error.as_error::<Problem>())
        .map_or(code, |problem| problem.code().slug());
    if let Some(refusal) = refusal(&recorder, res.request(), code) {
        // What is not found may be a typing error, and escalation is told where it is refused.
        if res.status() == StatusCode::FORBIDDEN && code != Code::Escalation.slug() {
            note(res.request(), &refusal);
        }
        recorder.refusals.note(refusal);
    }
    Ok(res)
}

fn note(req: &HttpRequest, refusal: &Refusal) {
    let Some(metrics) = req.app_data::<web::Data<Metrics>>() else {
        return;
    };
    let by = &refusal.by;
    let caller = by.actor.name();
    metrics.security.note(Sighting {
        reason: Some(format!("{}: {}", refusal.action, refusal.code)),
        tenant: Some(by.tenant.id.to_string()),
        caller: Some(caller.clone()),
        ip: by.ip.map(|ip| ip.to_string()),
        request_id: by.request_id.as_deref().map(str::to_owned),
        ..Sighting::new(SecurityEvent::RefusedAttempt, caller)
    });
}

fn refusal(recorder: &RefusedRecorder, req: &HttpRequest, code: &'static str) -> Option<Refusal> {
    let extensions = req.extensions();
    let caller = extensions.get::<Rc<CallerIdentity>>()?;
    let action = (recorder.action)(req.method(), &req.match_pattern()?)?;
    let kind = action.split('.').next().unwrap_or(action);
    let id = req
        .match_info()
        .iter()
        .next()
        .map_or(UNKNOWN, |(_, value)| target_id(kind, value));
    Some(Refusal {
        by: caller.attribution(None),
        action,
        target: Target {
            kind: kind.to_owned(),
            id: id.to_owned(),
        },
        code,
    })
}

/// What a path names, if that can be no secret: somebody may well put a key where its id belongs.
fn target_id<'a>(kind: &str, value: &'a str) -> &'a str {
    let is_id = value.split_once('_').is_some_and(|(prefix, encoded)| {
        prefix.len() == 3
            && encoded.len() == 26
            && encoded.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    let is_slug = matches!(kind, "tenant" | "service" | "consumer") && Slug::parse(value).is_ok();
    if is_id || is_slug { value } else { UNKNOWN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_in_the_place_of_an_id_is_not_recorded() {
        for (kind, value) in [
            (
                "key",
                "ks_live_4hT0aZq81xPdXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
            ),
            ("key", "0123456789abcdef0123456789abcdef"),
            ("key", "my-key"),
            ("consumer", "with space"),
            ("consumer", ""),
        ] {
            assert_eq!(target_id(kind, value), UNKNOWN, "{value}");
        }
        for (kind, value) in [
            ("key", "key_01jd8k3v9we5m8t7q2x4z6y0ab"),
            ("consumer", "billing"),
        ] {
            assert_eq!(target_id(kind, value), value);
        }
    }
}
