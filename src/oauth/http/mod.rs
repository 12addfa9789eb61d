//! `POST /oauth/token`, the key set and the metadata; [`introspect`] and [`revoke`] beside them.
//!
//! Refusals here have the bodies of RFC 6749 §5.2, not problems: any OAuth client reads them.

pub mod direct;
pub mod introspect;
mod parameters;
pub mod revoke;

use std::sync::LazyLock;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use parameters::TokenRequest;

use super::client::{Client, Lines};
use super::form::Form;
use super::grant::{Granted, Origin};
use super::keyring::JWKS_MAX_AGE_SECONDS;
use super::metadata::{
    AuthorizationServer, GRANT_CLIENT_CREDENTIALS, GRANT_TOKEN_EXCHANGE, WELL_KNOWN,
};
use super::refusal::{ErrorCode, Refusal};
use super::{Issuer, Oauth};
use crate::auth::http::refused;
use crate::clock::Reading;
use crate::http::context::RequestContext;
use crate::http::direct::{Posted, Reply};
use crate::http::form::{FormBody, Pairs};
use crate::http::headers::X_API_KEY;
use crate::http::middleware::direct_headers;
use crate::http::problem::Problem;
use crate::metrics::Metrics;
use crate::telemetry::SecurityEvent;
use crate::validation::http::limit_headers;
use crate::validation::spend::LimitHeaders;

/// The grants that are offered.
#[derive(Clone, Copy)]
enum Grant {
    ClientCredentials,
    TokenExchange,
}

/// An access token (RFC 6749 §5.1, RFC 8693 §2.2.1).
#[derive(Serialize, ToSchema)]
#[schema(example = json!({
    "access_token": "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIs...",
    "token_type": "Bearer",
    "expires_in": 300,
    "scope": "invoice:read"
}))]
pub struct TokenAnswer {
    access_token: String,
    /// Of an exchange: the type that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(
        nullable = false,
        example = "urn:ietf:params:oauth:token-type:access_token"
    )]
    issued_token_type: Option<&'static str>,
    #[schema(example = "Bearer")]
    token_type: &'static str,
    /// In seconds.
    expires_in: i64,
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schema(required = false)]
    scope: String,
}

/// A refusal (RFC 6749 §5.2).
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "error": "invalid_scope",
    "error_description": "the key does not hold every scope that was asked for"
}))]
pub struct OauthError<'a> {
    error: &'a str,
    error_description: &'a str,
}

/// A key set (RFC 7517 §5).
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({"keys": [{
    "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig",
    "kid": "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"
}]}))]
pub struct KeySet {
    /// The newest first; those that sign next and those that no longer do among them.
    #[schema(value_type = Vec<serde_json::Value>)]
    keys: Vec<serde_json::Value>,
}

/// Swaps an API key, or another token, for an access token
///
/// Client credentials (RFC 6749, 4.4): the client is a consumer, the secret one of its API keys. The
/// key is judged, charged and recorded as in a verification. The token is a JWT (RFC 9068) that any
/// resource server verifies with the published keys; it never outlives its key.
///
/// Token exchange (RFC 8693): what was presented to the client, an API key, an access token or a JWT of a
/// configured issuer, becomes a token for the service that is named, as far as its `exchange` settings
/// let it. It never does more than the subject token, the key behind that and the client's key all do,
/// and ends with the first of them.
#[utoipa::path(
    post, path = "/oauth/token", tag = "oauth", operation_id = "issue_token",
    params(
        ("authorization" = Option<String>, Header, description = "Basic: client id and API key"),
        ("x-api-key" = Option<String>, Header, description = "The API key, in place of a client secret"),
    ),
    request_body(content = TokenRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "The token", body = TokenAnswer),
        (status = 400, description = "`invalid_request`, `invalid_scope`, `invalid_target`, \
            `unauthorized_client` or `unsupported_grant_type`", body = OauthError<'static>),
        (status = 401, description = "`invalid_client`", body = OauthError<'static>),
        (status = 429, description = "`rate_limited` or `quota_exceeded`: the key's own limits; or it asks \
            an upstream for too many different scopes", body = OauthError<'static>),
        (status = 503, description = "`temporarily_unavailable`: try again after `Retry-After`",
            body = OauthError<'static>),
    ),
    security(()),
)]
pub async fn issue_token(
    req: HttpRequest,
    FormBody(pairs): FormBody,
    context: RequestContext,
    oauth: web::Data<Oauth>,
) -> HttpResponse {
    let posted = Posted {
        req: &req,
        context: &context,
        at: oauth.clock.read(),
        pairs,
    };
    token(posted, &oauth).await.into_response()
}

async fn token(posted: Posted<'_>, oauth: &Oauth) -> Reply {
    let Posted {
        req,
        context,
        at,
        pairs,
    } = posted;
    let origin = origin(req, context, at);
    let granted = async {
        let mut form = form(pairs)?;
        let grant_type = form.require("grant_type")?;
        let grant = match &*grant_type {
            GRANT_CLIENT_CREDENTIALS => Grant::ClientCredentials,
            GRANT_TOKEN_EXCHANGE => Grant::TokenExchange,
            _ => {
                return Err(Refusal::new(
                    ErrorCode::UnsupportedGrantType,
                    "this grant is not offered: see the metadata for those that are",
                ));
            }
        };
        let client = Client::of(&lines(req), &mut form)?;
        match grant {
            Grant::ClientCredentials => oauth.client_credentials(&client, &mut form, &origin).await,
            Grant::TokenExchange => oauth.exchange(&client, &mut form, &origin).await,
        }
    };
    match granted.await.and_then(answer) {
        Ok(reply) => reply,
        Err(refusal) => Reply::Bare(refuse(req, &refusal, context)),
    }
}

/// The keys that tokens are verified with
///
/// May be kept for five minutes: a key is published ten before it signs.
#[utoipa::path(
    get, path = "/.well-known/jwks.json", tag = "oauth", operation_id = "read_jwks",
    responses((status = 200, description = "The key set", body = KeySet)),
    security(()),
)]
pub async fn read_jwks(oauth: web::Data<Oauth>) -> HttpResponse {
    let now = oauth.clock.now();
    public(&oauth.keyring.ring().jwks(now))
}

/// What the authorization server offers
///
/// RFC 8414. The issuer is `server.public_url`, whatever the request says of itself; a path of that
/// URL stands behind this one.
#[utoipa::path(
    get, path = "/.well-known/oauth-authorization-server", tag = "oauth",
    operation_id = "read_authorization_server",
    responses((status = 200, description = "The metadata", body = AuthorizationServer)),
    security(()),
)]
pub async fn read_authorization_server(
    req: HttpRequest,
    oauth: web::Data<Oauth>,
) -> Result<HttpResponse, Problem> {
    if !is_of(&oauth.issuer, req.path()) {
        return Err(Problem::not_found("resource"));
    }
    let mut algorithms: Vec<&'static str> = oauth
        .keyring
        .ring()
        .published(oauth.clock.now())
        .map(|key| key.algorithm().as_str())
        .collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    let issuer = oauth.issuer.as_str();
    Ok(public(&AuthorizationServer::new(issuer, algorithms)))
}

/// RFC 8414 §3.1: the path of the issuer stands behind the well-known one. A proxy that takes that
/// path away asks without it.
fn is_of(issuer: &Issuer, path: &str) -> bool {
    path.strip_prefix(WELL_KNOWN)
        .is_some_and(|rest| rest.is_empty() || rest == issuer.path())
}

fn public<T: Serialize>(body: &T) -> HttpResponse {
    let cached = format!("public, max-age={JWKS_MAX_AGE_SECONDS}");
    HttpResponse::Ok()
        .insert_header((header::CACHE_CONTROL, cached))
        .json(body)
}

fn origin<'a>(req: &'a HttpRequest, context: &'a RequestContext, at: Reading) -> Origin<'a> {
    let user_agent = req.headers().get(header::USER_AGENT);
    Origin {
        ip: context.ip,
        request_id: &context.request_id,
        user_agent: user_agent.and_then(|line| line.to_str().ok()),
        at,
    }
}

/// The lines of the headers that may carry a client's credential.
fn lines(req: &HttpRequest) -> Lines<'_> {
    let all = |name: HeaderName| {
        let lines = req.headers().get_all(name);
        lines.map(HeaderValue::as_bytes).collect()
    };
    Lines {
        authorization: all(header::AUTHORIZATION),
        api_key: all(X_API_KEY),
    }
}

fn form(pairs: Result<Pairs<'_>, Problem>) -> Result<Form<'_>, Refusal> {
    match pairs {
        Ok(pairs) => Form::new(pairs),
        Err(problem) => Err(Refusal::invalid_request(problem.detail())),
    }
}

fn answer(granted: Granted) -> Result<Reply, Refusal> {
    let answer = TokenAnswer {
        access_token: granted.token.into_exposed(),
        issued_token_type: granted.issued_token_type,
        token_type: "Bearer",
        expires_in: granted.expires_in_seconds,
        scope: granted.scope,
    };
    let body = serde_json::to_string(&answer).map_err(Refusal::unavailable)?;
    Ok(told(body, JSON, granted.limits.as_ref()))
}

const JSON: &str = "application/json";

/// A token, or what is told of one: nobody may keep it (RFC 6749 §5.1).
fn told(body: String, media_type: &'static str, limits: Option<&LimitHeaders>) -> Reply {
    static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
        let mut headers = direct_headers();
        headers.insert(header::PRAGMA, HeaderValue::from_static("no-cache"));
        headers
    });
    let mut response = HttpResponse::with_body(StatusCode::OK, body).map_into_boxed_body();
    let headers = response.headers_mut();
    *headers = HEADERS.clone();
    if media_type != JSON {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    for (name, value) in limits.into_iter().flat_map(limit_headers) {
        headers.insert(name, value);
    }
    Reply::Dressed(response)
}

fn refuse(req: &HttpRequest, refusal: &Refusal, context: &RequestContext) -> HttpResponse {
    let code = refusal.code.as_str();
    if let Some(metrics) = req.app_data::<web::Data<Metrics>>() {
        metrics.oauth_errors.inc(code);
    }
    if refusal.code == ErrorCode::InvalidClient {
        refused(
            req,
            context,
            "key",
            SecurityEvent::UnknownKey,
            "invalid_client",
            None,
        );
    }
    if let Some(forged) = refusal.forged {
        let reason = forged.as_str();
        refused(req, context, "jwt", SecurityEvent::InvalidJwt, reason, None);
    }
    if let Some(cause) = &refusal.cause {
        let request_id = &*context.request_id;
        tracing::error!(
            request_id,
            code,
            cause = format!("{cause:#}"),
            "failed to answer"
        );
    }
    let status = StatusCode::from_u16(refusal.code.status());
    let mut response = HttpResponse::build(status.unwrap_or(StatusCode::BAD_REQUEST));
    response
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::PRAGMA, "no-cache"));
    if refusal.code == ErrorCode::InvalidClient {
        // RFC 6749 §5.2: the scheme that was, or may be, used.
        response.insert_header((
            header::WWW_AUTHENTICATE,
            "Basic realm=\"keystead\", charset=\"UTF-8\"",
        ));
    }
    if let Some(seconds) = refusal.retry_after_seconds {
        response.insert_header((header::RETRY_AFTER, seconds));
    }
    for header in refusal.limits.iter().flat_map(limit_headers) {
        response.insert_header(header);
    }
    response.json(OauthError {
        error: code,
        error_description: refusal.description(),
    })
}
