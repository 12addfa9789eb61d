//! Credentials that are refused: what is counted, what is logged, what is told.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use actix_web::{HttpRequest, web};
use tracing::warn;

use super::now;
use crate::auth::people::NotAPerson;
use crate::http::context::RequestContext;
use crate::http::problem::{Code, Problem};
use crate::id::KeyId;
use crate::metrics::Metrics;
use crate::validation::AuthFailure;
use crate::validation::decide::Outcome;

/// The most refused credentials a second that are written to the log one by one.
const LOGGED_A_SECOND: u64 = 100;

pub(super) fn refuse_person(req: &HttpRequest, error: NotAPerson) -> Problem {
    match error {
        NotAPerson::Refused(refusal) => {
            security_event(req, "jwt", "invalid_jwt", refusal.as_str());
            Problem::invalid_credential()
        }
        NotAPerson::Away => Problem::new(
            Code::StoreUnavailable,
            "the keys of the token's issuer cannot be fetched just now, try again",
        ),
        NotAPerson::Store(error) => error.into(),
    }
}

pub(super) fn refuse_key(req: &HttpRequest, failure: AuthFailure) -> Problem {
    match &failure {
        AuthFailure::Failed(_) => {}
        AuthFailure::Invalid => security_event(req, "key", "unknown_key", failure.reason()),
        AuthFailure::NoManagementKey(key) => {
            count(req, |metrics| metrics.auth_failures.inc("key"));
            log_refused(req, failure.reason(), Some(key));
        }
        AuthFailure::Refused(Outcome::IpNotAllowed) => {
            security_event(req, "key", "ip_not_allowed", failure.reason());
        }
        AuthFailure::Refused(_) | AuthFailure::Limited(_, _) => {
            count(req, |metrics| metrics.auth_failures.inc("key"));
            log_refused(req, failure.reason(), None);
        }
    }
    failure.into()
}

/// Somebody nobody knows was refused: that is for the log and the metrics, not the audit trail.
pub fn security_event(req: &HttpRequest, kind: &str, event: &str, reason: &'static str) {
    count(req, |metrics| {
        metrics.auth_failures.inc(kind);
        metrics.security_events.inc(event);
    });
    log_refused(req, reason, None);
}

pub(super) fn count(req: &HttpRequest, by: impl FnOnce(&Metrics)) {
    if let Some(metrics) = req.app_data::<web::Data<Metrics>>() {
        by(metrics);
    }
}

/// A flood of refused credentials does not flood the log.
fn log_refused(req: &HttpRequest, reason: &'static str, key: Option<&KeyId>) {
    static SECOND: AtomicI64 = AtomicI64::new(0);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let context = RequestContext::of(req);
    let second = now(req).unix_seconds();
    let suppressed = if SECOND.swap(second, Ordering::Relaxed) == second {
        0
    } else {
        let last = COUNT.swap(0, Ordering::Relaxed);
        last.saturating_sub(LOGGED_A_SECOND)
    };
    if COUNT.fetch_add(1, Ordering::Relaxed) < LOGGED_A_SECOND {
        warn!(
            target: "security",
            reason,
            suppressed,
            key.id = key.map(KeyId::as_str),
            ip = %context.ip,
            request_id = &*context.request_id,
            "refused a credential"
        );
    }
}
