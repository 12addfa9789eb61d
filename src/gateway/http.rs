//! `ANY /gateway/authorize`: what nginx, Envoy, Traefik and Caddy ask before they let a request in.
//!
//! The credential is a key, or an access token of ours where the service takes them: what it does not
//! take is none.
//!
//! The gateway names itself by `X-Keystead-Caller`; one that fails that gets 503, never 401, which
//! would be told to the client. Every answer carries the complete set of identity headers, empty
//! where there is nothing to say, so that a client's own never reach the backend.

use std::borrow::Cow;
use std::sync::Arc;

use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::auth::CallerIdentity;
use crate::auth::http::{caller_by_key, refused as unauthenticated};
use crate::auth::jwt::Refusal;
use crate::clock::Clock;
use crate::http::context::RequestContext;
use crate::http::headers::{IDENTITY, X_API_KEY};
use crate::http::problem::{Code, Problem};
use crate::http::query::Query;
use crate::keys::secret::Presented;
use crate::oauth::Oauth;
use crate::oauth::own::{Bearer, OwnToken};
use crate::scope::{RequiredScope, Scope};
use crate::services::tokens::{Accepted, Credential as Kind};
use crate::telemetry::SecurityEvent;
use crate::text::Environment;
use crate::usage::record::Operation;
use crate::validation::decide::{AskedEnvironment, Outcome, Request};
use crate::validation::http::{limit_headers, refused, settle_service, used_up};
use crate::validation::proof::Credential;
use crate::validation::recorded::Asking;
use crate::validation::snapshot::Subject;
use crate::validation::spend::LimitHeaders;
use crate::validation::{Answer, Validation};

const X_KEYSTEAD_CALLER: HeaderName = HeaderName::from_static("x-keystead-caller");

/// What a header value may not hold as it is: a reader decodes percent signs.
const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b'"').add(b',').add(b';');

/// Set in the gateway's configuration, never by its clients.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AuthorizeQuery {
    /// Slug or id. Default: the one service that the gateway's key may verify for.
    service: Option<String>,
    /// All of these are needed; repeated, or separated by spaces or commas.
    #[serde(default)]
    required_scopes: Vec<String>,
    /// One of these is needed.
    #[serde(default)]
    any_scopes: Vec<String>,
    /// Default: the environment of the gateway's own key.
    environment: Option<Environment>,
}

/// Judges the credential of the request itself
///
/// Takes every method. The credential is `x-api-key`, else `Authorization: Bearer` if it holds one
/// of our keys or, where the service's `tokens.accepts` has `jwt`, an access token of ours; any other
/// Authorization is the client's business.
#[utoipa::path(
    get, path = "/gateway/authorize", tag = "validation", operation_id = "authorize_request",
    params(
        AuthorizeQuery,
        ("x-keystead-caller" = String, Header, description = "The gateway's management key"),
        ("x-api-key" = Option<String>, Header, description = "The client's key"),
        ("authorization" = Option<String>, Header, description = "Bearer: the client's key or token"),
    ),
    responses(
        (status = 200, description = "Let it in", headers(
            ("X-Keystead-Key-Id" = String, description = "The key's id"),
            ("X-Keystead-Consumer" = String, description = "The consumer's slug"),
            ("X-Keystead-Tenant" = String, description = "The tenant's slug"),
            ("X-Keystead-Service" = String, description = "The service's slug"),
            ("X-Keystead-Scopes" = String, description = "Granted on the service, by spaces; \
                of a token what it was narrowed to"),
            ("X-Keystead-Environment" = String, description = "The key's environment"),
            ("X-Keystead-Subject" = String, description = "The consumer's id, or the subject of \
                the token"),
            ("RateLimit-Policy" = String, description = "The limits of the client's key, as of a 429"),
            ("RateLimit" = String, description = "Where they stand, as of a 429"),
        )),
        (status = 401, description = "`unauthenticated`, `invalid_credential`, \
            `ambiguous_credential`, or why a known key does not count"),
        (status = 403, description = "`wrong_environment`, `wrong_service`, `ip_not_allowed` or \
            `insufficient_scope`"),
        (status = 429, description = "`rate_limited` or `quota_exceeded`: a limit or a quota of the \
            client's key"),
        (status = 503, description = "`caller_not_allowed`: the gateway itself is not let in; \
            `store_unavailable`, `busy` or `starting`: try again after `Retry-After`"),
    ),
    security(()),
)]
pub async fn authorize_request(
    req: HttpRequest,
    query: Query<AuthorizeQuery>,
    context: RequestContext,
    validation: web::Data<Validation>,
    oauth: web::Data<Oauth>,
) -> Result<HttpResponse, Problem> {
    judge(&req, query.into_inner(), &context, &validation, &oauth).await
}

async fn judge(
    req: &HttpRequest,
    query: AuthorizeQuery,
    context: &RequestContext,
    validation: &Validation,
    oauth: &Oauth,
) -> Result<HttpResponse, Problem> {
    let began_us = Clock::uptime_us();
    let caller = gateway(req.headers(), context, validation).await?;
    let service = settle_service(&caller.rights, query.service.as_deref())
        .map_err(|problem| Problem::new(Code::CallerNotAllowed, problem.detail().to_owned()))?;
    let tenant = &caller.tenant.id;
    let accepts = match validation.service(tenant, &service).await? {
        Some(entry) => entry.service.settings.tokens.accepts.clone(),
        None => Accepted::default(),
    };
    let presented = credential(req.headers(), oauth, &accepts)?;
    let request = Request {
        environment: match (query.environment, caller.environment.clone()) {
            (Some(environment), _) | (None, Some(environment)) => {
                AskedEnvironment::Is(Cow::Owned(environment))
            }
            (None, None) => AskedEnvironment::ServiceDefault,
        },
        required_scopes: scopes("required_scopes", &query.required_scopes)?.into(),
        any_scopes: match scopes("any_scopes", &query.any_scopes)? {
            none if none.is_empty() => None,
            some => Some(some.into()),
        },
        // The peer is the gateway. Whose request it holds is known from a proxy that is trusted to
        // say so; from no other, and then a key that is bound to addresses is refused.
        ip: context.forwarded_ip(),
        cost: 1,
    };
    let name = caller.name();
    let text = |name| req.headers().get(name).and_then(|line| line.to_str().ok());
    let asking = Asking {
        operation: Operation::Authorize,
        caller: &name,
        request_id: &context.request_id,
        method: Some(req.method().as_str()),
        path: None,
        user_agent: text(header::USER_AGENT),
        context: None,
        began_us,
        token: presented.token().map(OwnToken::named),
    };
    if let Client::Forged(refusal) = &presented {
        let reason = refusal.as_str();
        let event = SecurityEvent::InvalidJwt;
        unauthenticated(req, context, "jwt", event, reason, None);
    }
    let answer = validation
        .validate(presented.credential(), tenant, &service, &request, &asking)
        .await?;
    let limits = match (&answer.subject, &answer.spent) {
        (Some(subject), Some(spent)) => LimitHeaders::of(subject, spent),
        (_, _) => None,
    };
    match (answer.decision.outcome, &answer.subject) {
        (Outcome::Valid, Some(subject)) => Ok(admit(subject, presented.token(), limits.as_ref())),
        (Outcome::RateLimited | Outcome::QuotaExceeded, Some(_)) => Err(used_up(
            answer.decision.outcome,
            &limits.unwrap_or_default(),
        )),
        (outcome, _) => Err(turn_away(outcome, &answer)),
    }
}

/// The gateway itself, by its management key.
async fn gateway(
    headers: &HeaderMap,
    context: &RequestContext,
    validation: &Validation,
) -> Result<CallerIdentity, Problem> {
    let not_allowed = |detail: &str| Problem::new(Code::CallerNotAllowed, detail);
    let mut lines = headers.get_all(&X_KEYSTEAD_CALLER);
    let (Some(line), None) = (lines.next(), lines.next()) else {
        return Err(not_allowed(
            "the gateway must send its management key, once, as X-Keystead-Caller",
        ));
    };
    let key = line.to_str().unwrap_or_default();
    match caller_by_key(validation, key, context).await {
        Ok(caller) => Ok(caller),
        Err(problem) if problem.code().status().is_server_error() => Err(problem),
        Err(problem) => Err(match problem.code() {
            Code::RateLimited | Code::QuotaExceeded => {
                not_allowed("the limits of the key in X-Keystead-Caller are used up")
                    .retry_after_of(&problem)
            }
            _ => not_allowed(
                "the key in X-Keystead-Caller is not good: it must be live, and have a grant on keystead with a \
                 scope such as verify:invoicing",
            ),
        }),
    }
}

/// What the client presents.
enum Client<'a> {
    /// A key; empty for none of ours.
    Key(&'a str),
    Token(Arc<OwnToken>),
    /// It says that we issued it.
    Forged(Refusal),
}

impl Client<'_> {
    fn token(&self) -> Option<&OwnToken> {
        match self {
            Self::Token(token) => Some(token),
            Self::Key(_) | Self::Forged(_) => None,
        }
    }

    fn credential(&self) -> Credential<'_> {
        match self {
            Self::Key(key) => Credential::Key(key),
            Self::Token(token) => token.proof(),
            Self::Forged(_) => Credential::Malformed,
        }
    }
}

/// The client's credential, of the kinds that the service takes.
fn credential<'a>(
    headers: &'a HeaderMap,
    oauth: &Oauth,
    accepts: &Accepted,
) -> Result<Client<'a>, Problem> {
    let ambiguous = || {
        Problem::new(Code::AmbiguousCredential, "present one key, once").header(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"keystead\", error=\"invalid_token\""),
        )
    };
    let (takes_keys, takes_tokens) = (accepts.has(Kind::Key), accepts.has(Kind::Jwt));
    let bearer = headers.get_all(header::AUTHORIZATION).filter_map(|line| {
        let (scheme, token) = line.to_str().ok()?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        if takes_keys && matches!(Presented::parse(token, &[]), Presented::Native { .. }) {
            return Some(Client::Key(token));
        }
        match takes_tokens.then(|| oauth.read(token))? {
            Bearer::Own(token) => Some(Client::Token(token)),
            Bearer::Forged(refusal) => Some(Client::Forged(refusal)),
            Bearer::NotOurs => None,
        }
    });
    // A header that is not even text is a malformed key, not a missing one.
    let keys = headers
        .get_all(&X_API_KEY)
        .filter(|_| takes_keys)
        .map(|line| Client::Key(line.to_str().unwrap_or("\u{fffd}")));
    let mut ours = keys.chain(bearer);
    match (ours.next(), ours.next()) {
        (None, _) => Ok(Client::Key("")),
        (Some(one), None) => Ok(one),
        (Some(_), Some(_)) => Err(ambiguous()),
    }
}

/// A parameter that is there and names no scope is a mistake in the gateway's configuration, such as a
/// variable that is not set: it must not let everybody in.
fn scopes(name: &str, lists: &[String]) -> Result<Vec<RequiredScope>, Problem> {
    let named: Vec<RequiredScope> = lists
        .iter()
        .flat_map(|list| list.split([' ', ',']))
        .filter(|scope| !scope.is_empty())
        .map(|scope| {
            RequiredScope::parse(scope).map_err(|detail| Problem::invalid_at(name, detail))
        })
        .collect::<Result<_, _>>()?;
    if named.is_empty() && !lists.is_empty() {
        return Err(Problem::new(
            Code::CallerNotAllowed,
            format!("the gateway asks for {name} and names none: leave it out, or name one"),
        ));
    }
    Ok(named)
}

fn admit(
    subject: &Subject,
    token: Option<&OwnToken>,
    limits: Option<&LimitHeaders>,
) -> HttpResponse {
    let scopes: Vec<&str> = subject.scopes().iter().map(Scope::as_str).collect();
    let service = subject
        .service
        .as_ref()
        .map_or("", |entry| entry.service.slug.as_str());
    let values = [
        subject.key.key_id.as_str(),
        subject.consumer.slug.as_str(),
        subject.tenant.slug.as_str(),
        service,
        &scopes.join(" "),
        subject.key.owner.environment.as_str(),
        token.map_or(subject.consumer.id.as_str(), |token| &token.subject),
    ];
    let mut response = HttpResponse::Ok();
    for (name, value) in IDENTITY.into_iter().zip(values) {
        let encoded = utf8_percent_encode(value, ESCAPED).to_string();
        let value = HeaderValue::from_str(&encoded).unwrap_or(HeaderValue::from_static(""));
        response.insert_header((name, value));
    }
    for header in limits.map(limit_headers).unwrap_or_default() {
        response.insert_header(header);
    }
    response.insert_header((header::CACHE_CONTROL, "no-store"));
    response.finish()
}

/// What the client is told; malformed, unknown and another tenant's key are one answer.
fn turn_away(outcome: Outcome, answer: &Answer) -> Problem {
    let code = match outcome {
        Outcome::WrongEnvironment => Code::WrongEnvironment,
        Outcome::WrongService => Code::WrongService,
        Outcome::IpNotAllowed => Code::IpNotAllowed,
        Outcome::InsufficientScope => {
            let missing: Vec<String> = answer
                .decision
                .missing_scopes
                .iter()
                .map(ToString::to_string)
                .collect();
            return Problem::new(
                Code::InsufficientScope,
                format!("the key lacks {}", missing.join(" ")),
            );
        }
        Outcome::RateLimited => Code::RateLimited,
        Outcome::QuotaExceeded => Code::QuotaExceeded,
        Outcome::Valid
        | Outcome::Missing
        | Outcome::Malformed
        | Outcome::Unknown
        | Outcome::Revoked
        | Outcome::Disabled
        | Outcome::Expired
        | Outcome::NotYetValid => return refused(outcome),
    };
    Problem::new(code, code.title())
}
