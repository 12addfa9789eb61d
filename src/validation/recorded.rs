//! What is recorded of a validation, whatever was decided.

use std::collections::BTreeMap;

use super::Answer;
use super::decide::{AskedEnvironment, Request};
use crate::clock::Clock;
use crate::id::TenantId;
use crate::time::Timestamp;
use crate::usage::Recorder;
use crate::usage::codec::{Use, UsedKey, UsedToken};
use crate::usage::record::Operation;

/// Longer than anything is kept.
const TEXT_BYTES_MAX: usize = 2048;

/// Who asked, from where and about what: told by whoever asks.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub operation: Operation,
    /// The id of a management key, or issuer and subject.
    pub caller: &'a str,
    pub request_id: &'a str,
    pub method: Option<&'a str>,
    pub path: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub context: Option<&'a BTreeMap<String, String>>,
    /// When it began, see [`Clock::uptime_us`].
    pub began_us: u64,
    /// The token that was presented, or that is issued if the key is good.
    pub token: Option<TokenNamed<'a>>,
}

/// A token, by what joins its uses to the key it was made from.
#[derive(Clone, Copy, Debug)]
pub struct TokenNamed<'a> {
    /// Its `jti`.
    pub id: &'a str,
    /// Its `sub`.
    pub subject: &'a str,
    /// Who acts for the subject, of a token that was exchanged.
    pub actor: Option<&'a str>,
}

pub(super) fn record(
    recorder: &Recorder,
    asking: &Asking<'_>,
    (tenant, service): (&TenantId, &str),
    request: &Request<'_>,
    answer: &Answer,
    now: Timestamp,
) {
    if !recorder.is_on() {
        return;
    }
    let subject = answer.subject.as_ref();
    // Of a service that is not there the name is not kept: there may be any number of them.
    let service = match subject {
        Some(subject) => subject
            .service
            .as_ref()
            .map_or("", |entry| entry.service.slug.as_str()),
        None => service,
    };
    let environment = match (subject, &request.environment) {
        (Some(subject), _) => subject.key.owner.environment.as_str(),
        (None, AskedEnvironment::Is(environment)) => environment.as_str(),
        (None, AskedEnvironment::Any | AskedEnvironment::ServiceDefault) => "",
    };
    let any_scopes = request.any_scopes.as_deref().unwrap_or_default();
    let met = answer
        .passed()
        .and_then(|subject| any_scopes.iter().find(|scope| subject.has(scope)));
    recorder.record(&Use {
        at: now.millis(),
        tenant_id: tenant.as_str(),
        key: subject.map(|subject| UsedKey {
            key_id: subject.key.key_id.as_str(),
            secret_id: subject.key.secret_id.as_str(),
            superseded: subject.key.superseded,
            consumer_id: subject.key.owner.consumer_id.as_str(),
        }),
        service,
        environment,
        operation: asking.operation,
        outcome: answer.decision.outcome.code(),
        required_scopes: &request.required_scopes,
        any_scopes,
        met,
        cost: request.cost,
        ip: request.ip,
        method: asking.method.map(head),
        path: asking.path.map(head),
        user_agent: asking.user_agent.map(head),
        context: asking.context,
        caller: asking.caller,
        request_id: asking.request_id,
        latency_us: Clock::uptime_us().saturating_sub(asking.began_us),
        token: token(asking, answer),
    });
}

/// Where no token was issued there is none to name.
fn token<'a>(asking: &Asking<'a>, answer: &Answer) -> UsedToken<'a> {
    let issues = match asking.operation {
        Operation::Token | Operation::Exchange => true,
        Operation::Verify | Operation::Authorize | Operation::Introspect => false,
    };
    let is_there = answer.decision.outcome.is_valid() || !issues;
    asking
        .token
        .filter(|_| is_there)
        .map_or_else(UsedToken::default, |token| UsedToken {
            id: Some(token.id),
            subject: Some(token.subject),
            actor: token.actor,
        })
}

/// No more of a text than is kept of it.
fn head(text: &str) -> &str {
    let end = text.floor_char_boundary(TEXT_BYTES_MAX);
    text.get(..end).unwrap_or_default()
}
