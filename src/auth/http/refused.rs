//! Credentials that are refused: what is counted, what is logged, what is told.

use actix_web::{HttpRequest, web};

use crate::auth::people::NotAPerson;
use crate::http::context::RequestContext;
use crate::http::problem::{Code, Problem};
use crate::id::KeyId;
use crate::metrics::Metrics;
use crate::telemetry::{SecurityEvent, Sighting};
use crate::validation::AuthFailure;
use crate::validation::decide::Outcome;

pub(super) fn refuse_person(req: &HttpRequest, error: NotAPerson) -> Problem {
    match error {
        NotAPerson::Refused(refusal) => {
            let reason = refusal.as_str();
            let context = RequestContext::of(req);
            refused(
                req,
                &context,
                "jwt",
                SecurityEvent::InvalidJwt,
                reason,
                None,
            );
            Problem::invalid_credential()
        }
        NotAPerson::Away => Problem::new(
            Code::StoreUnavailable,
            "the keys of the token's issuer cannot be fetched just now, try again",
        ),
        NotAPerson::Failed(failure) => failure.into(),
    }
}

pub(super) fn refuse_key(req: &HttpRequest, failure: AuthFailure) -> Problem {
    match &failure {
        AuthFailure::Failed(_) => {}
        AuthFailure::Invalid => of_key(req, SecurityEvent::UnknownKey, &failure, None),
        AuthFailure::NoManagementKey(key) => {
            of_key(req, SecurityEvent::CallerRefused, &failure, Some(key));
        }
        AuthFailure::Refused(Outcome::IpNotAllowed) => {
            of_key(req, SecurityEvent::IpNotAllowed, &failure, None);
        }
        AuthFailure::Refused(_) | AuthFailure::Limited(_, _) => {
            of_key(req, SecurityEvent::CallerRefused, &failure, None);
        }
    }
    failure.into()
}

fn of_key(req: &HttpRequest, event: SecurityEvent, failure: &AuthFailure, key: Option<&KeyId>) {
    let context = RequestContext::of(req);
    refused(req, &context, "key", event, failure.reason(), key);
}

/// Somebody nobody knows was refused: that is for the log and the metrics, not the audit trail.
pub fn refused(
    req: &HttpRequest,
    context: &RequestContext,
    kind: &str,
    event: SecurityEvent,
    reason: &'static str,
    key: Option<&KeyId>,
) {
    let ip = context.ip.to_string();
    count(req, |metrics| {
        metrics.auth_failures.inc(kind);
        metrics.security.note(Sighting {
            reason: Some(reason.to_owned()),
            key: key.map(KeyId::to_string),
            ip: Some(ip.clone()),
            request_id: Some(context.request_id.to_string()),
            ..Sighting::new(event, ip)
        });
    });
}

pub(super) fn count(req: &HttpRequest, by: impl FnOnce(&Metrics)) {
    if let Some(metrics) = req.app_data::<web::Data<Metrics>>() {
        by(metrics);
    }
}
