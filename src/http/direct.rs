//! Requests that are answered at the edge, without routing, extractors and middlewares: the few
//! operations that services ask with every request of theirs.
//!
//! A verification is answered here when memory has all that is needed but the counters that nodes share. Who
//! answers it may decline whatever is not plain: the request then takes the ordinary way, where everything is
//! judged and told as ever, so an answer given here is the one given there. A form is answered by the very
//! function that its route has, which may wait for what it needs.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use actix_web::dev::{Payload, ServiceRequest};
use actix_web::error::PayloadError;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap};
use actix_web::web::{Bytes, BytesMut};
use actix_web::{HttpMessage as _, HttpRequest, HttpResponse};
use futures_util::future::LocalBoxFuture;
use futures_util::{StreamExt as _, stream};

use super::context::RequestContext;
use super::form::{self, Pairs};
use super::headers::X_API_KEY;
use super::problem::Problem;
use crate::clock::Reading;

/// Larger bodies take the ordinary way.
const BODY_BYTES_MAX: usize = 8 * 1024;

/// Headers that change nothing for an operation that reads none of them.
const MEANINGLESS: [&str; 11] = [
    "accept",
    "accept-encoding",
    "accept-language",
    "connection",
    "host",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-forwarded-for",
    "x-forwarded-proto",
    // Read by the edge itself.
    "x-request-id",
];

/// A request that is as plain as can be: a JSON body of known length, one credential, and no header
/// that could mean something.
pub struct Plain<'a> {
    pub context: &'a RequestContext,
    /// When all of it was there.
    pub at: Reading,
    /// The one line of `x-api-key`.
    pub key: &'a str,
    pub body: &'a [u8],
}

/// A form that was posted, and whose head is in order. At the edge the request itself knows no context.
pub struct Posted<'a> {
    pub req: &'a HttpRequest,
    pub context: &'a RequestContext,
    /// When all of it was there.
    pub at: Reading,
    pub pairs: Result<Pairs<'a>, Problem>,
}

/// What a plain request is answered with.
pub enum Soon<'a> {
    /// 200, beginning with [`direct_headers`](super::middleware::direct_headers).
    Now(HttpResponse),
    /// The same, after a wait; or declined as if nothing had happened, for nothing has.
    Later(LocalBoxFuture<'a, Option<HttpResponse>>),
}

/// What a form is answered with.
pub enum Reply {
    /// 200, beginning with [`direct_headers`](super::middleware::direct_headers).
    Dressed(HttpResponse),
    /// Any other.
    Bare(HttpResponse),
}

impl Reply {
    /// As a route answers.
    pub fn into_response(self) -> HttpResponse {
        match self {
            Self::Dressed(response) | Self::Bare(response) => response,
        }
    }
}

/// Who answers `POST` of one path directly.
#[derive(Clone)]
pub struct Direct {
    path: &'static str,
    answer: Answer,
}

#[derive(Clone)]
pub(super) enum Answer {
    /// Or declines with `None` before anything has happened.
    Plain(Arc<dyn for<'a> Fn(Plain<'a>) -> Option<Soon<'a>> + Send + Sync>),
    /// As its route does.
    Form(Arc<dyn for<'a> Fn(Posted<'a>) -> LocalBoxFuture<'a, Reply> + Send + Sync>),
}

impl fmt::Debug for Direct {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Direct")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Direct {
    /// What is as plain as can be.
    pub fn plain(
        path: &'static str,
        answer: impl for<'a> Fn(Plain<'a>) -> Option<Soon<'a>> + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            answer: Answer::Plain(Arc::new(answer)),
        }
    }

    /// Forms, by the function that the route of the same path has. It reads of the request what it likes.
    pub fn form(
        path: &'static str,
        answer: impl for<'a> Fn(Posted<'a>) -> LocalBoxFuture<'a, Reply> + Send + Sync + 'static,
    ) -> Self {
        Self {
            path,
            answer: Answer::Form(Arc::new(answer)),
        }
    }

    /// The length of the body of a request that may be answered directly.
    pub(super) fn takes(&self, req: &ServiceRequest) -> Option<usize> {
        if req.path() != self.path
            || *req.method() != Method::POST
            || !req.query_string().is_empty()
        {
            return None;
        }
        let length = match self.answer {
            Answer::Plain(_) => plain_length(req.headers()),
            Answer::Form(_) => form_length(req),
        };
        length.filter(|length| (1..=BODY_BYTES_MAX).contains(length))
    }

    pub(super) fn answer(&self) -> &Answer {
        &self.answer
    }
}

/// The length of a JSON body beside one key and nothing else that means anything.
fn plain_length(headers: &HeaderMap) -> Option<usize> {
    let mut length = None;
    let (mut keys, mut is_json) = (0, false);
    for (name, value) in headers {
        if *name == X_API_KEY {
            keys += 1;
        } else if *name == header::CONTENT_LENGTH {
            length = value.to_str().ok()?.parse().ok();
        } else if *name == header::CONTENT_TYPE {
            // Two lines of it are as odd as another type.
            if is_json || value.as_bytes() != b"application/json" {
                return None;
            }
            is_json = true;
        } else if !MEANINGLESS.contains(&name.as_str()) {
            return None;
        }
    }
    length.filter(|_| keys == 1 && is_json)
}

/// The length of a form in order. One that a browser sent for a page of somebody's is for the middleware that
/// knows which pages may.
fn form_length(req: &ServiceRequest) -> Option<usize> {
    let headers = req.headers();
    if headers.contains_key(header::ORIGIN) || form::head(req.request(), false).is_err() {
        return None;
    }
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// The key of a request that [`Direct::takes`] took, with its body.
pub(super) fn plain<'a>(
    req: &'a ServiceRequest,
    context: &'a RequestContext,
    at: Reading,
    body: &'a [u8],
) -> Option<Plain<'a>> {
    let key = req.headers().get(&X_API_KEY)?.to_str().ok()?;
    Some(Plain {
        context,
        at,
        key,
        body,
    })
}

/// Takes the body off a request; what comes of it stays in memory, so that it can be put back. `None`
/// if it does not come within `time_limit`.
///
/// A small body comes with the head as a rule, but is handed on only after the request was asked for
/// its answer once. So no timer is set before the second look.
pub(super) async fn take_body(
    req: &mut ServiceRequest,
    length: usize,
    time_limit: Duration,
) -> Option<Taken> {
    let mut taking = pin!(take_whole(req.take_payload(), length));
    let mut looks = 0;
    let soon = poll_fn(|cx| match taking.as_mut().poll(cx) {
        Poll::Ready(taken) => Poll::Ready(Some(taken)),
        Poll::Pending if looks == 0 => {
            looks += 1;
            cx.waker().wake_by_ref();
            Poll::Pending
        }
        Poll::Pending => Poll::Ready(None),
    });
    if let Some(taken) = soon.await {
        return Some(taken);
    }
    let taken = Box::pin(tokio::time::timeout(time_limit, taking)).await;
    taken.ok().map(|taken| Taken {
        was_waited_for: true,
        ..taken
    })
}

async fn take_whole(mut rest: Payload, length: usize) -> Taken {
    let (mut bytes, mut error) = (Bytes::new(), None);
    while bytes.len() < length {
        match rest.next().await {
            // A small body comes as one chunk and is not copied.
            Some(Ok(chunk)) if bytes.is_empty() => bytes = chunk,
            Some(Ok(chunk)) => {
                let mut longer = BytesMut::from(bytes);
                longer.extend_from_slice(&chunk);
                bytes = longer.freeze();
            }
            Some(Err(broken)) => {
                error = Some(broken);
                break;
            }
            None => break,
        }
    }
    Taken {
        bytes,
        error,
        rest,
        was_waited_for: false,
    }
}

/// A body, or the beginning of one that broke off.
pub(super) struct Taken {
    bytes: Bytes,
    error: Option<PayloadError>,
    rest: Payload,
    was_waited_for: bool,
}

impl Taken {
    /// Whether it came some time behind its head.
    pub(super) fn was_waited_for(&self) -> bool {
        self.was_waited_for
    }

    /// Nothing if it broke off.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        self.error.is_none().then_some(&*self.bytes)
    }

    pub(super) fn put_back(self, req: &mut ServiceRequest) {
        let taken = [Some(Ok(self.bytes)), self.error.map(Err)];
        let payload = stream::iter(taken.into_iter().flatten()).chain(self.rest);
        req.set_payload(Payload::Stream {
            payload: Box::pin(payload),
        });
    }
}
