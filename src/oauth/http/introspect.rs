//! `POST /oauth/introspect`.

use std::pin::pin;

use actix_web::http::header::{Accept, Header as _, Quality};
use actix_web::{HttpRequest, HttpResponse, web};

use super::parameters::IntrospectionRequest;
use super::{JSON, OauthError, form, lines, origin, refuse};
use crate::auth::http::refused;
use crate::http::context::RequestContext;
use crate::http::direct::{Posted, Reply};
use crate::http::form::FormBody;
use crate::oauth::Oauth;
use crate::oauth::client::Client;
use crate::oauth::introspection::{Question, Told, Written};
use crate::oauth::told::Active;
use crate::patience;
use crate::telemetry::SecurityEvent;

const INTROSPECTION_JWT: &str = "application/token-introspection+jwt";
const JWT: &str = "application/jwt";

/// Tells what a key or token is worth now
///
/// RFC 7662, for callers whose management key holds `introspect` for the audience, as HTTP Basic (any id
/// of the caller and its key), `Authorization: Bearer` or `x-api-key`. What is not active for this caller
/// is `{"active":false}` and no more. Nothing is charged; the use is recorded.
///
/// `Accept: application/token-introspection+jwt` has the answer signed (RFC 9701), `Accept:
/// application/jwt` a token for the service in its place; what is not active is then told as JSON.
#[utoipa::path(
    post, path = "/oauth/introspect", tag = "oauth", operation_id = "introspect_token",
    params(
        ("authorization" = Option<String>, Header, description = "Basic: id and management key; or Bearer"),
        ("x-api-key" = Option<String>, Header, description = "The management key, in their place"),
        ("accept" = Option<String>, Header, description = "How the answer is written"),
    ),
    request_body(content = IntrospectionRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "What it is worth", content(
            (Active<'static> = "application/json"),
            (String = "application/token-introspection+jwt"),
            (String = "application/jwt"),
        )),
        (status = 400, description = "`invalid_request`, also for a caller who presents nothing; \
            `invalid_target`", body = OauthError<'static>),
        (status = 401, description = "`invalid_client`", body = OauthError<'static>),
        (status = 403, description = "`insufficient_scope`", body = OauthError<'static>),
        (status = 429, description = "`rate_limited` or `quota_exceeded`: the caller's own limits",
            body = OauthError<'static>),
        (status = 503, description = "`temporarily_unavailable`: try again after `Retry-After`",
            body = OauthError<'static>),
    ),
    security(()),
)]
pub async fn introspect_token(
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
    introspect(posted, &oauth).await.into_response()
}

pub(super) async fn introspect(posted: Posted<'_>, oauth: &Oauth) -> Reply {
    let Posted {
        req,
        context,
        at,
        pairs,
    } = posted;
    let origin = origin(req, context, at);
    let told = async {
        let mut form = form(pairs)?;
        let client = Client::or_bearer(&lines(req), &mut form)?;
        let asker = oauth.asker(&client, &origin).await?;
        let question = Question::of(&mut form)?;
        let (told, forged) = oauth
            .introspect(&asker, &question, written(req), &origin)
            .await?;
        Ok((told, forged, asker.limits))
    };
    let told = pin!(told);
    let told = patience::limited(patience::OF_VALIDATION, told);
    let (told, forged, limits) = match told.await {
        Ok(told) => told,
        Err(refusal) => return Reply::Bare(refuse(req, &refusal, context)),
    };
    if let Some(forged) = forged {
        let reason = forged.as_str();
        refused(req, context, "jwt", SecurityEvent::InvalidJwt, reason, None);
    }
    let (body, media_type) = match told {
        Told::Json(text) => (text, JSON),
        Told::IntrospectionJwt(token) => (token.into_exposed(), INTROSPECTION_JWT),
        Told::Phantom(token) => (token.into_exposed(), JWT),
    };
    super::told(body, media_type, limits.as_ref())
}

/// The one of the three that the caller likes best; JSON if it says nothing that is known here.
fn written(req: &HttpRequest) -> Written {
    let Ok(mut accept) = Accept::parse(req) else {
        return Written::Json;
    };
    accept.0.retain(|item| item.quality > Quality::ZERO);
    accept
        .ranked()
        .iter()
        .find_map(|media| match media.essence_str() {
            "application/json" | "application/*" | "*/*" => Some(Written::Json),
            INTROSPECTION_JWT => Some(Written::IntrospectionJwt),
            JWT => Some(Written::Phantom),
            _ => None,
        })
        .unwrap_or(Written::Json)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn the_answer_is_written_as_the_caller_likes_best() {
        for (accept, expected) in [
            (&[][..], Written::Json),
            (&["*/*"], Written::Json),
            (&["application/json"], Written::Json),
            (&["application/jwt"], Written::Phantom),
            (&["APPLICATION/JWT"], Written::Phantom),
            (&[INTROSPECTION_JWT], Written::IntrospectionJwt),
            (&["application/jwt;q=0.5, application/json"], Written::Json),
            (
                &["application/json;q=0.5, application/jwt"],
                Written::Phantom,
            ),
            (
                &["application/json;q=0.5", "application/jwt"],
                Written::Phantom,
            ),
            (&["application/jwt;q=0, */*;q=0.1"], Written::Json),
            (&["*/*, application/jwt"], Written::Phantom),
            (&["text/html, application/jwt;q=0.1"], Written::Phantom),
            (&["text/html"], Written::Json),
            (&["application/jwt+x, nonsense"], Written::Json),
            (&[""], Written::Json),
        ] {
            let request = accept.iter().fold(TestRequest::post(), |request, line| {
                request.append_header(("accept", *line))
            });
            assert_eq!(written(&request.to_http_request()), expected, "{accept:?}");
        }
    }
}
