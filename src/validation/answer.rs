//! The answer of a verification as JSON text.
//!
//! It is put together from texts that were written when the entries were loaded: nothing that is
//! told of a key is serialized again for every request.

use std::fmt::Write as _;

use super::Answer;
use super::decide::Outcome;
use super::snapshot::Subject;
use super::spend::Charges;
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
            out.push_str(&key.told);
            out.push_str(",\"consumer\":");
            out.push_str(&subject.consumer.told);
            member(&mut out, "tenant", subject.tenant.slug.as_str());
            if let Some(entry) = &subject.service {
                member(&mut out, "service", entry.service.slug.as_str());
            }
            let granted = subject.grant().map(|grant| &*grant.scopes);
            begin_list(&mut out, "scopes");
            for (index, scope) in granted.unwrap_or_default().iter().enumerate() {
                out.push_str(if index == 0 { "\"" } else { ",\"" });
                out.push_str(scope.as_str());
                out.push('"');
            }
            out.push(']');
        }
    }
    if !answer.decision.missing_scopes.is_empty() {
        begin_list(&mut out, "missing_scopes");
        for (index, scope) in answer.decision.missing_scopes.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            let _infallible = write!(out, "{comma}\"{scope}\"");
        }
        out.push(']');
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
    let charges = Charges::of(subject);
    let mut before = ",\"rate_limits\":[";
    for (of, limit, state) in charges.told(spent) {
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
        out.push('}');
        before = ",";
    }
    if before == "," {
        out.push(']');
    }
    if let Some((charge, state)) = charges.quota(spent) {
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

fn begin_list(out: &mut String, name: &str) {
    out.push_str(",\"");
    out.push_str(name);
    out.push_str("\":[");
}

/// What `write!` does, without the machinery of formats, which costs more than the rest.
fn number(out: &mut String, mut number: u64) {
    // 2^64 has 20 digits.
    let mut digits = [b'0'; 20];
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        // Below 10, so nothing is cut off.
        *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
        number /= 10;
        length += 1;
        if number == 0 {
            break;
        }
    }
    out.extend(
        digits
            .iter()
            .skip(digits.len() - length)
            .map(|digit| char::from(*digit)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_written_as_formats_write_it() {
        for n in [0, 7, 10, 200, 4_294_967_296, u64::MAX] {
            let mut out = String::new();
            number(&mut out, n);
            assert_eq!(out, n.to_string());
        }
    }
}
