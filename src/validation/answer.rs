//! The answer of a verification as JSON text.
//!
//! It is put together from texts that were written when the entries were loaded: nothing that is
//! told of a key is serialized again for every request.

use std::fmt::Write as _;

use super::Answer;
use super::decide::Outcome;
use super::snapshot::Subject;
use super::spend::{nearest_quota, told};
use crate::json::number;
use crate::ratelimit::Spent;

/// So long is an answer as a rule; a longer one grows.
const LENGTH: usize = 768;

/// Nothing of a key before it is identified, only its id if it is not for this service, whatever
/// else is wrong with it.
pub fn write(answer: &Answer, request_id: &str) -> String {
    let outcome = answer.decision.outcome;
    let mut out = String::with_capacity(LENGTH);
    out.push_str(if outcome.is_valid() {
        "{\"valid\":true,\"code\":\""
    } else {
        "{\"valid\":false,\"code\":\""
    });
    out.push_str(outcome.code());
    out.push_str("\",\"status\":");
    number(&mut out, u64::from(outcome.status()));
    if let Some(subject) = &answer.subject {
        let key = &subject.key;
        member(&mut out, "key_id", key.key_id.as_str());
        let is_for_service = subject.grant().is_some()
            && subject
                .service
                .as_ref()
                .is_some_and(|service| service.is_active);
        if is_for_service && !matches!(outcome, Outcome::WrongEnvironment) {
            out.push(',');
            key.told_to(&mut out);
            out.push_str(",\"consumer\":");
            out.push_str(&subject.consumer.told);
            member(&mut out, "tenant", subject.tenant.slug.as_str());
            if let Some(entry) = &subject.service {
                member(&mut out, "service", entry.service.slug.as_str());
            }
            let granted = subject.grant().map(|grant| &*grant.scopes);
            list(
                &mut out,
                "scopes",
                granted.unwrap_or_default(),
                |out, scope| {
                    out.push_str(scope.as_str());
                },
            );
        }
    }
    if !answer.decision.missing_scopes.is_empty() {
        let missing = &answer.decision.missing_scopes;
        list(&mut out, "missing_scopes", missing, |out, scope| {
            let _infallible = write!(out, "{scope}");
        });
    }
    if let (Some(subject), Some(spent)) = (&answer.subject, &answer.spent) {
        limits(&mut out, subject, spent);
    }
    member(&mut out, "request_id", request_id);
    out.push('}');
    out
}

fn limits(out: &mut String, subject: &Subject, spent: &Spent) {
    if spent.is_free() {
        return;
    }
    let mut before = ",\"rate_limits\":[";
    for (of, limit, state) in told(subject, spent) {
        for text in [
            before,
            "{\"name\":\"",
            of,
            ":",
            limit.name.as_str(),
            "\",\"limit\":",
        ] {
            out.push_str(text);
        }
        number(out, limit.limit);
        out.push_str(",\"remaining\":");
        number(out, state.remaining);
        out.push_str(",\"reset_after_ms\":");
        number(out, state.reset_after_ms);
        out.push_str(if state.is_degraded {
            ",\"degraded\":true}"
        } else {
            "}"
        });
        before = ",";
    }
    if before == "," {
        out.push(']');
    }
    if let Some((charge, state)) = nearest_quota(subject, spent) {
        let _infallible = write!(
            out,
            ",\"quota\":{{\"limit\":{},\"remaining\":{},\"resets_at\":\"{}\"}}",
            charge.quota.limit, state.remaining, state.resets_at
        );
    }
    if spent.retry_after_ms > 0 {
        let _infallible = write!(out, ",\"retry_after_ms\":{}", spent.retry_after_ms);
    }
}

/// Ids, slugs, scopes and request ids hold nothing that JSON would have to escape.
fn member(out: &mut String, name: &str, value: &str) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":\"");
    out.push_str(value);
    out.push('"');
}

fn list<T>(out: &mut String, name: &str, values: &[T], write: impl Fn(&mut String, &T)) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":[");
    for (index, value) in values.iter().enumerate() {
        out.push_str(if index == 0 { "\"" } else { ",\"" });
        write(out, value);
        out.push('"');
    }
    out.push(']');
}
