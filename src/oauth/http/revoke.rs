//! `POST /oauth/revoke`.

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::parameters::RevocationRequest;
use super::{OauthError, form, lines, origin, refuse};
use crate::http::context::RequestContext;
use crate::http::form::FormBody;
use crate::http::wait::{Ended, Wait, Waiting};
use crate::keys::secret::UnparsedKey;
use crate::oauth::Oauth;
use crate::oauth::client::Client;
use crate::oauth::refusal::Refusal;

/// Nothing: that it is answered is all there is to tell.
#[derive(Serialize, ToSchema)]
pub struct Revoked {}

/// Ends an access token before its time
///
/// RFC 7009, for the client that the token was issued to, by any of its keys. It is over at once on the
/// node that answers, elsewhere as fast as a key that is revoked; who verifies tokens by himself hears of
/// it by introspection alone. A token that has ended, or never was one, is 200 too.
#[utoipa::path(
    post, path = "/oauth/revoke", tag = "oauth", operation_id = "revoke_token",
    params(
        Wait,
        ("authorization" = Option<String>, Header, description = "Basic: client id and API key"),
        ("x-api-key" = Option<String>, Header, description = "The API key, in place of a client secret"),
    ),
    request_body(content = RevocationRequest, content_type = "application/x-www-form-urlencoded"),
    responses(
        (status = 200, description = "It is over", body = Ended<Revoked>),
        (status = 400, description = "`invalid_request`; `unauthorized_client`: the token is another \
            client's, and stays as it is; `unsupported_token_type`: an API key, which its holder ends \
            at `/v1/self/revoke`", body = OauthError<'static>),
        (status = 401, description = "`invalid_client`", body = OauthError<'static>),
        (status = 503, description = "`temporarily_unavailable`: the token still counts, try again \
            after `Retry-After`", body = OauthError<'static>),
    ),
    security(()),
)]
pub async fn revoke_token(
    req: HttpRequest,
    FormBody(pairs): FormBody<true>,
    context: RequestContext,
    oauth: web::Data<Oauth>,
) -> HttpResponse {
    let origin = origin(&req, &context, oauth.clock.read());
    let revoked = async {
        let mut form = form(pairs)?;
        let waiting =
            Waiting::of(&req).map_err(|problem| Refusal::invalid_request(problem.detail()))?;
        let client = Client::of(&lines(&req), &mut form)?;
        let token = UnparsedKey::new(form.require("token")?.into_owned());
        oauth
            .revoke(&client, token.expose_secret(), &origin)
            .await?;
        Ok(waiting)
    };
    match revoked.await {
        Ok(waiting) => HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "no-store"))
            .json(waiting.until_known(Revoked {}).await),
        Err(refusal) => refuse(&req, &refusal, &context),
    }
}
