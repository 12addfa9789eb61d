//! A form in a request body: `application/x-www-form-urlencoded`, as OAuth has it.
//!
//! What is wrong with it is left to the handler, whose protocol may have errors of its own.

use std::borrow::Cow;
use std::future::Future;
use std::pin::Pin;

use actix_web::dev::Payload;
use actix_web::http::header;
use actix_web::{FromRequest, HttpRequest};

use super::extract::{BODY_BYTES_MAX, collect_in_time};
use super::problem::{Code, Problem};
use super::query::Params;

const MEDIA_TYPE: &str = "application/x-www-form-urlencoded";

/// Names and values, decoded: parts of the body where there was nothing to decode.
pub type Pairs<'a> = Vec<(Cow<'a, str>, Cow<'a, str>)>;

/// The pairs of a form, or what is wrong with it. Where the handler does not read
/// the query itself (`QUERY`), there must be none.
pub struct FormBody<const QUERY: bool = false>(pub Result<Pairs<'static>, Problem>);

impl<const QUERY: bool> FromRequest for FormBody<QUERY> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let head = head(req, QUERY);
        let payload = payload.take();
        Box::pin(async move {
            let read = async {
                head?;
                let body = collect_in_time(payload, BODY_BYTES_MAX).await?;
                let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
                let pairs = pairs(&body)?.into_iter();
                Ok(pairs
                    .map(|(name, value)| (owned(name), owned(value)))
                    .collect())
            };
            Ok(Self(read.await))
        })
    }
}

/// The pairs of a body.
pub(super) fn pairs(body: &[u8]) -> Result<Pairs<'_>, Problem> {
    let text = str::from_utf8(body)
        .map_err(|_not_utf8| Problem::invalid_at("", "the form must be UTF-8"))?;
    let params = Params::parse(text).map_err(|violation| Problem::invalid(vec![violation]))?;
    Ok(params.into_pairs())
}

/// What is wrong with the head of a form.
pub(super) fn head(req: &HttpRequest, reads_query: bool) -> Result<(), Problem> {
    let headers = req.headers();
    let mut types = headers.get_all(header::CONTENT_TYPE);
    let is_form = match (
        types.next().and_then(|line| line.to_str().ok()),
        types.next(),
    ) {
        (Some(line), None) => line
            .split(';')
            .next()
            .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(MEDIA_TYPE)),
        (_, _) => false,
    };
    if !is_form || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("send the parameters in the body as {MEDIA_TYPE}, not compressed"),
        ));
    }
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|line| line.to_str().ok()?.trim().parse::<u64>().ok());
    if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
        return Err(Problem::new(
            Code::PayloadTooLarge,
            format!("the body must have at most {BODY_BYTES_MAX} bytes"),
        ));
    }
    if !reads_query && !req.query_string().is_empty() {
        return Err(Problem::invalid_at(
            "",
            "the parameters belong in the body: this address takes no query",
        ));
    }
    Ok(())
}
