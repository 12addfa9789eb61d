//! `POST /v1/verify`, `/v1/verify/batch` and `/v1/explain`.

pub mod direct;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use actix_web::http::header::{ContentType, HeaderName, HeaderValue};
use actix_web::{HttpResponse, web};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::answer;
use super::body::{
    CheckTold, ExplainAnswer, ExplainRequest, VerifyAnswer, VerifyAsked, VerifyBatch, VerifyRequest,
};
use super::decide::{AskedEnvironment, Check, Outcome, Request};
use super::recorded::Asking;
use super::spend::LimitHeaders;
use super::{Asked, AuthFailure, Failure, Validation};
use crate::auth::CallerIdentity;
use crate::auth::http::{Caller, perm};
use crate::clock::Clock;
use crate::error::Violation;
use crate::http::extract::{Body, BodyReadOnce};
use crate::http::json_body::{self, RefusesRepeats};
use crate::http::problem::{Code, Problem, ProblemBody};
use crate::id::ServiceId;
use crate::keys::secret::UnparsedKey;
use crate::patience;
use crate::rights::{Permission, Rights};
use crate::text::{Environment, Slug};
use crate::usage::record::Operation;

/// At most so many keys in one batch.
const BATCH_MAX: usize = 100;

/// The name of no service.
const NO_SERVICE: &str = "-";

/// So many of a batch are looked up at the same time.
const BATCH_PARALLEL: usize = 8;

const SCOPES_MAX: usize = 200;
const CONTEXT_MAX: usize = 8;

impl RefusesRepeats for VerifyRequest {}

/// An answer of a batch: the verification's, or the problem of that item.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum BatchItem {
    #[schema(value_type = VerifyAnswer)]
    Answer(Box<RawValue>),
    Problem {
        #[schema(value_type = ProblemBody<'static>)]
        problem: serde_json::Value,
    },
}

#[derive(Debug, Serialize, ToSchema)]
pub struct VerifyBatchAnswer {
    /// In the order of the request.
    pub items: Vec<BatchItem>,
}

/// Decides whether a key may do something now
///
/// The answer is 200 for every decision; `status` is what to tell the client. Nothing is cached but
/// the key's identity and rules: each request is decided afresh from its own inputs.
#[utoipa::path(
    post, path = "/v1/verify", tag = "validation", operation_id = "verify_key",
    request_body = VerifyRequest,
    responses((status = 200, description = "What was decided", body = VerifyAnswer)),
)]
pub async fn verify_key(
    caller: Caller<perm::Verify>,
    BodyReadOnce(body): BodyReadOnce<VerifyRequest>,
    validation: web::Data<Validation>,
) -> Result<HttpResponse, Problem> {
    let answer = verify(&caller, &validation, &body.api_key, body.asked()).await?;
    Ok(HttpResponse::Ok()
        .insert_header(ContentType::json())
        .body(answer))
}

/// Decides about up to 100 keys, each by itself
///
/// One bad item is answered with its problem and never fails the rest.
#[utoipa::path(
    post, path = "/v1/verify/batch", tag = "validation", operation_id = "verify_keys",
    request_body = VerifyBatch,
    responses((status = 200, description = "What was decided, in order", body = VerifyBatchAnswer)),
)]
pub async fn verify_keys(
    caller: Caller<perm::Verify>,
    body: Body<VerifyBatch>,
    validation: web::Data<Validation>,
) -> Result<HttpResponse, Problem> {
    let items = body.into_inner().items;
    if items.is_empty() || items.len() > BATCH_MAX {
        return Err(Problem::invalid_at("/items", "must have 1 to 100 items"));
    }
    let (caller, validation) = (&caller, &validation);
    let items = futures_util::stream::iter(items)
        .map(|item| async move {
            let done = match json_body::parse_once::<VerifyRequest>(item.get().as_bytes()) {
                Ok(request) => {
                    let done = verify(caller, validation, &request.api_key, request.asked());
                    // Each has its own, from when its turn comes.
                    patience::limited(patience::OF_VALIDATION, done).await
                }
                Err(violation) => Err(Problem::invalid(vec![violation])),
            };
            let done = match done {
                Ok(answer) => match RawValue::from_string(answer) {
                    Ok(answer) => return BatchItem::Answer(answer),
                    Err(defect) => {
                        Problem::new(Code::Internal, "a defect of Keystead").cause(defect)
                    }
                },
                Err(problem) => problem,
            };
            validation.note_problem(done.code().slug());
            if done.code().status().is_server_error() {
                validation.note_undecided();
            }
            BatchItem::Problem {
                problem: done.to_value(caller.request_id.as_deref().unwrap_or_default()),
            }
        })
        .buffered(BATCH_PARALLEL)
        .collect()
        .await;
    Ok(HttpResponse::Ok().json(VerifyBatchAnswer { items }))
}

/// Explains a decision check by check
///
/// Limits and quotas are looked at where all else passes. Nothing is charged, and it is not recorded as a
/// use.
#[utoipa::path(
    post, path = "/v1/explain", tag = "validation", operation_id = "explain_key",
    request_body = ExplainRequest,
    responses((status = 200, description = "Each check and its result", body = ExplainAnswer)),
)]
pub async fn explain_key(
    caller: Caller<perm::Verify>,
    body: Body<ExplainRequest>,
    validation: web::Data<Validation>,
) -> Result<HttpResponse, Problem> {
    let body = body.into_inner();
    let (service, request) = ask(&caller.rights, caller.environment.as_ref(), body.asked())?;
    let (tenant, asked) = (&caller.tenant.id, Asked::Service(&service));
    let (decision, mut checks, subject) = match (&body.api_key, &body.key_id) {
        (Some(key), None) => {
            validation
                .explain(key.expose_secret(), tenant, asked, &request)
                .await?
        }
        (None, Some(id)) => {
            let (decision, checks, subject) = validation
                .explain_key(id, tenant, asked, &request)
                .await?
                .ok_or_else(|| Problem::not_found("key"))?;
            (decision, checks, Some(subject))
        }
        (Some(_), Some(_)) | (None, None) => {
            return Err(Problem::invalid_at(
                "/api_key",
                "give api_key or key_id, one of them",
            ));
        }
    };
    let mut code = decision.outcome;
    if let (Some(subject), Outcome::Valid) = (&subject, code) {
        let (outcome, limits) = validation.explain_limits(subject, request.cost).await?;
        code = outcome;
        checks.extend(limits);
    }
    // Of a key that is not for this service no more is told than verify tells.
    let foreign = code == Outcome::WrongService
        || checks
            .iter()
            .any(|check| check.fails_with == Outcome::WrongService && !check.passed);
    let checks = checks
        .into_iter()
        .filter(|check| !foreign || check.fails_with == Outcome::WrongService)
        .map(
            |Check {
                 fails_with,
                 passed,
                 detail,
             }| CheckTold {
                name: fails_with,
                passed,
                detail,
            },
        )
        .collect();
    Ok(HttpResponse::Ok().json(ExplainAnswer { code, checks }))
}

async fn verify(
    caller: &CallerIdentity,
    validation: &Validation,
    key: &UnparsedKey,
    asked: VerifyAsked<'_>,
) -> Result<String, Problem> {
    let began_us = Clock::uptime_us();
    let (service, request) = ask(&caller.rights, caller.environment.as_ref(), asked)?;
    let name = caller.name();
    let request_id = caller.request_id.as_deref().unwrap_or_default();
    let asking = asking(&name, request_id, &asked, began_us);
    let tenant = &caller.tenant.id;
    let answer = validation
        .validate(key.expose_secret(), tenant, &service, &request, &asking)
        .await?;
    Ok(answer::write(&answer, request_id))
}

/// What is recorded of a verification beside what is asked.
fn asking<'a>(
    caller: &'a str,
    request_id: &'a str,
    asked: &VerifyAsked<'a>,
    began_us: u64,
) -> Asking<'a> {
    Asking {
        operation: Operation::Verify,
        caller,
        request_id,
        method: asked.method,
        path: asked.path,
        user_agent: None,
        context: asked.context,
        began_us,
        token: None,
    }
}

/// Checks what is asked and settles the service: named, or the only one of the caller.
fn ask<'a>(
    rights: &Rights,
    own: Option<&'a Environment>,
    asked: VerifyAsked<'a>,
) -> Result<(Cow<'a, str>, Request<'a>), Problem> {
    let mut errors = Vec::new();
    let ip = match asked.ip {
        None => None,
        Some(text) => match text.parse::<IpAddr>() {
            Ok(ip) => Some(ip.to_canonical()),
            Err(_not_an_address) => {
                errors.push(Violation::new("/ip", "must be an IPv4 or IPv6 address"));
                None
            }
        },
    };
    if asked.required_scopes.len() > SCOPES_MAX {
        errors.push(Violation::new(
            "/required_scopes",
            "must have at most 200 items",
        ));
    }
    if let Some(any) = asked.any_scopes
        && !(1..=SCOPES_MAX).contains(&any.len())
    {
        errors.push(Violation::new("/any_scopes", "must have 1 to 200 items"));
    }
    if asked.cost.is_some_and(|cost| cost > 1_000_000_000) {
        errors.push(Violation::new("/cost", "must be 0 to 1000000000"));
    }
    let token = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
    if let Some(method) = asked.method
        && (!(1..=32).contains(&method.len()) || !token(method))
    {
        errors.push(Violation::new(
            "/method",
            "must be 1 to 32 visible ASCII characters",
        ));
    }
    if let Some(path) = asked.path
        && (path.len() > 2048 || crate::text::has_control(path))
    {
        errors.push(Violation::new(
            "/path",
            "must have at most 2048 bytes, none of them a control character",
        ));
    }
    if let Some(context) = asked.context {
        check_context(context, &mut errors);
    }
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let service = settle_service(rights, asked.service)?;
    let environment = match (asked.environment, own) {
        (Some(environment), _) | (None, Some(environment)) => {
            AskedEnvironment::Is(Cow::Borrowed(environment))
        }
        (None, None) => AskedEnvironment::ServiceDefault,
    };
    Ok((
        service,
        Request {
            environment,
            required_scopes: asked.required_scopes.into(),
            any_scopes: asked.any_scopes.map(Cow::from),
            ip,
            cost: asked.cost.unwrap_or(1),
        },
    ))
}

fn check_context(context: &BTreeMap<String, String>, errors: &mut Vec<Violation>) {
    if context.len() > CONTEXT_MAX {
        errors.push(Violation::new("/context", "must have at most 8 pairs"));
    }
    let bad = |text: &str, max: usize| text.len() > max || crate::text::has_control(text);
    if context
        .iter()
        .any(|(name, value)| name.is_empty() || bad(name, 64) || bad(value, 256))
    {
        errors.push(Violation::new(
            "/context",
            "must have names of 1 to 64 bytes and values of up to 256, without control characters",
        ));
    }
}

/// The service to judge for: named and within the caller's scope, or the only one it has.
pub fn settle_service<'a>(
    rights: &Rights,
    named: Option<&'a str>,
) -> Result<Cow<'a, str>, Problem> {
    match named {
        Some(reference) => {
            // A name that is no slug is no service; only who may verify for all is told so.
            let slug = Slug::parse(reference).ok();
            let is_name = slug.is_some() || ServiceId::parse(reference).is_some();
            if rights.allows(Permission::Verify, slug.as_ref()) {
                // All that can be no service's name are one, which is looked for once.
                Ok(if is_name { reference } else { NO_SERVICE }.into())
            } else {
                Err(Problem::forbidden(
                    Permission::Verify.scope_for(slug.as_ref()),
                ))
            }
        }
        None => match rights.only_service(Permission::Verify) {
            Some(service) => Ok(service.to_string().into()),
            None => Err(Problem::new(
                Code::ServiceRequired,
                "you may verify for more than one service: name it as service",
            )),
        },
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => error.into(),
            failure @ (Failure::Busy | Failure::Late) => Self::busy().cause(failure),
            failure @ Failure::CostExceedsLimit(_) => {
                Self::new(Code::CostExceedsLimit, failure.to_string())
            }
        }
    }
}

impl From<AuthFailure> for Problem {
    fn from(failure: AuthFailure) -> Self {
        match failure {
            AuthFailure::Invalid | AuthFailure::NoManagementKey(_) => Self::invalid_credential(),
            AuthFailure::Refused(outcome) => refused(outcome),
            AuthFailure::Limited(outcome, headers) => used_up(outcome, &headers),
            AuthFailure::Failed(failure) => failure.into(),
        }
    }
}

/// 429, with what is left of each limit and when to come again.
pub fn used_up(outcome: Outcome, headers: &LimitHeaders) -> Problem {
    let code = if outcome == Outcome::QuotaExceeded {
        Code::QuotaExceeded
    } else {
        Code::RateLimited
    };
    let problem = Problem::new(code, code.title())
        .retry_after_seconds(headers.retry_after_seconds.unwrap_or(1));
    limit_headers(headers)
        .into_iter()
        .fold(problem, |problem, (name, value)| {
            problem.header(name, value)
        })
}

/// `RateLimit-Policy` and `RateLimit`, where there is something to say.
pub fn limit_headers(headers: &LimitHeaders) -> Vec<(HeaderName, HeaderValue)> {
    [
        ("ratelimit-policy", &headers.policy),
        ("ratelimit", &headers.state),
    ]
    .into_iter()
    .filter(|(_, text)| !text.is_empty())
    .filter_map(|(name, text)| {
        let value = HeaderValue::from_str(text).ok()?;
        Some((HeaderName::from_static(name), value))
    })
    .collect()
}

/// What a holder is told of its own refused key.
pub fn refused(outcome: Outcome) -> Problem {
    let code = match outcome {
        Outcome::Revoked => Code::Revoked,
        Outcome::Disabled => Code::Disabled,
        Outcome::Expired => Code::Expired,
        Outcome::NotYetValid => Code::NotYetValid,
        Outcome::Missing => return Problem::unauthenticated("present an API key as x-api-key"),
        Outcome::Valid
        | Outcome::Malformed
        | Outcome::Unknown
        | Outcome::WrongEnvironment
        | Outcome::WrongService
        | Outcome::IpNotAllowed
        | Outcome::InsufficientScope
        | Outcome::RateLimited
        | Outcome::QuotaExceeded => return Problem::invalid_credential(),
    };
    Problem::refused_credential(code, code.title())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_given_twice_is_refused_wherever_it_stands() {
        for (body, pointer) in [
            (r#"{"api_key":"a","api_key":"a"}"#, "/api_key"),
            (r#"{"api_key":"a","\u0061pi_key":"a"}"#, "/api_key"),
            (r#"{"api_key":"a","cost":null,"cost":null}"#, "/cost"),
            (
                r#"{"api_key":"a","required_scopes":[],"required_scopes":[]}"#,
                "/required_scopes",
            ),
            (
                r#"{"api_key":"a","context":{"x":"1","\u0078":"1"}}"#,
                "/context/x",
            ),
        ] {
            let violation = json_body::parse_once::<VerifyRequest>(body.as_bytes()).unwrap_err();
            assert_eq!(violation.pointer, pointer, "{body}");
            assert_eq!(violation.detail, "is given twice", "{body}");
        }
        let body = r#"{"api_key":"a","context":{"x":"1","y":"1"},"service":null}"#;
        assert!(json_body::parse_once::<VerifyRequest>(body.as_bytes()).is_ok());
    }
}
