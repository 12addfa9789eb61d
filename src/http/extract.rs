//! What handlers take from a request: body and headers, parsed into types that cannot be wrong.
//!
//! Everything here waits behind the [gate](super::gate) until the caller is known and permitted.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use actix_web::http::Method;
use actix_web::http::header::{self, HeaderMap};
use actix_web::web::{Bytes, BytesMut};
use actix_web::{FromRequest, HttpRequest, web};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::gate::Gate;
pub use super::headers::{AuditReason, IdempotencyKey, IfMatch, etag, replayed};
use super::json_body::{self, RefusesRepeats};
use super::problem::{Code, Problem};
pub use super::query::Query;

/// The most bytes of an ordinary body.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// The most bytes of a body that carries a list of up to 1000 things.
pub const BULK_BODY_BYTES_MAX: usize = 1024 * 1024;

/// A body that has not arrived by then is given up.
const BODY_WAIT_MAX: Duration = Duration::from_secs(9);

/// A part of the application that `app.rs` put there.
pub fn wired<T: 'static>(req: &HttpRequest) -> Result<&T, Problem> {
    req.app_data::<web::Data<T>>()
        .map(|data| data.as_ref())
        .ok_or_else(|| {
            let name = std::any::type_name::<T>();
            Problem::new(Code::Internal, "a defect of Keystead").cause(anyhow::anyhow!(
                "the application was built without its {name}"
            ))
        })
}

/// A JSON body. Derefs to the parsed value.
pub struct Body<T, const BYTES_MAX: usize = BODY_BYTES_MAX> {
    value: T,
    raw: Bytes,
}

/// A JSON body of what is asked so often that it is read once.
pub struct BodyReadOnce<T>(pub T);

/// A JSON body of up to 1 MiB, for lists.
pub type BulkBody<T> = Body<T, BULK_BODY_BYTES_MAX>;

/// A JSON body that may be absent: then it is `T::default()`.
pub struct OptionalBody<T> {
    value: T,
    raw: Bytes,
}

impl<T, const BYTES_MAX: usize> Body<T, BYTES_MAX> {
    pub fn into_inner(self) -> T {
        self.value
    }

    /// SHA-256 of the bytes as they came: what makes two bodies the same.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.raw).into()
    }
}

impl<T> OptionalBody<T> {
    pub fn into_inner(self) -> T {
        self.value
    }

    /// SHA-256 of the bytes as they came, of none if there was no body.
    pub fn sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.raw).into()
    }
}

impl<T, const BYTES_MAX: usize> Deref for Body<T, BYTES_MAX> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Deref for OptionalBody<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

type LocalFuture<T> = Pin<Box<dyn Future<Output = Result<T, Problem>>>>;

impl<T: DeserializeOwned + 'static, const BYTES_MAX: usize> FromRequest for Body<T, BYTES_MAX> {
    type Error = Problem;
    type Future = LocalFuture<Self>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let gate = judge_head(req, BYTES_MAX);
        let payload = payload.take();
        Box::pin(async move {
            let raw = read_some(&gate, payload, BYTES_MAX).await?;
            let value = json(&raw)?;
            Ok(Self { value, raw })
        })
    }
}

impl<T: DeserializeOwned + Default + 'static> FromRequest for OptionalBody<T> {
    type Error = Problem;
    type Future = LocalFuture<Self>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let gate = judge_head(req, BODY_BYTES_MAX);
        let payload = payload.take();
        Box::pin(async move {
            let raw = read(&gate, payload, BODY_BYTES_MAX).await?;
            let value = if raw.is_empty() {
                T::default()
            } else {
                json(&raw)?
            };
            Ok(Self { value, raw })
        })
    }
}

impl<T: RefusesRepeats + 'static> FromRequest for BodyReadOnce<T> {
    type Error = Problem;
    type Future = LocalFuture<Self>;

    fn from_request(req: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let gate = judge_head(req, BODY_BYTES_MAX);
        let payload = payload.take();
        Box::pin(async move {
            let raw = read_some(&gate, payload, BODY_BYTES_MAX).await?;
            json_body::parse_once(&raw)
                .map(Self)
                .map_err(|violation| Problem::invalid(vec![violation]))
        })
    }
}

async fn read_some(gate: &Gate, payload: Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    let raw = read(gate, payload, bytes_max).await?;
    if raw.is_empty() {
        return Err(Problem::invalid_at("", "a JSON body is needed"));
    }
    Ok(raw)
}

fn json<T: DeserializeOwned>(raw: &[u8]) -> Result<T, Problem> {
    json_body::parse(raw).map_err(|violation| Problem::invalid(vec![violation]))
}

/// Judges what the head says of the body; a refusal is left at the gate.
fn judge_head(req: &HttpRequest, bytes_max: usize) -> Rc<Gate> {
    let gate = Gate::of(req);
    if let Err(problem) = head(req.method(), req.headers(), bytes_max) {
        gate.refuse(problem);
    }
    gate
}

fn head(method: &Method, headers: &HeaderMap, bytes_max: usize) -> Result<(), Problem> {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.trim().parse::<u64>().ok());
    if length.is_some_and(|length| length > bytes_max as u64) {
        return Err(too_large(bytes_max));
    }
    if length.unwrap_or(0) == 0 && !headers.contains_key(header::TRANSFER_ENCODING) {
        return Ok(());
    }
    let identity = headers
        .get_all(header::CONTENT_ENCODING)
        .all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"));
    if !identity {
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            "a compressed body is not taken: send it as it is",
        ));
    }
    let mut types = headers.get_all(header::CONTENT_TYPE);
    let json = matches!(
        (types.next().and_then(|value| value.to_str().ok()), types.next()),
        (Some(one), None) if is_json(one, method)
    );
    if !json {
        let merge_patch = if *method == Method::PATCH {
            " or application/merge-patch+json"
        } else {
            ""
        };
        return Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("send the body as Content-Type: application/json{merge_patch}"),
        ));
    }
    Ok(())
}

fn is_json(content_type: &str, method: &Method) -> bool {
    let mut parts = content_type.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let known = essence.eq_ignore_ascii_case("application/json")
        || (*method == Method::PATCH
            && essence.eq_ignore_ascii_case("application/merge-patch+json"));
    // JSON between systems is UTF-8 (RFC 8259 §8.1); other parameters mean nothing.
    known
        && parts.all(|parameter| {
            parameter.split_once('=').is_none_or(|(name, value)| {
                !name.trim().eq_ignore_ascii_case("charset")
                    || value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
            })
        })
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(
        Code::PayloadTooLarge,
        format!("the body must have at most {bytes_max} bytes"),
    )
}

/// Reads the body once the gate is open.
async fn read(gate: &Gate, payload: Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    gate.pass().await?;
    collect_in_time(payload, bytes_max).await
}

/// Reads the body, unless it is too long or takes too long.
pub(super) async fn collect_in_time(payload: Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(BODY_WAIT_MAX, collect(payload, bytes_max)).await {
        Ok(collected) => collected,
        Err(_elapsed) => Err(Problem::new(
            Code::RequestTimeout,
            "the body did not arrive in time",
        )),
    }
}

async fn collect(mut payload: Payload, bytes_max: usize) -> Result<Bytes, Problem> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(|error| unreadable(&error, bytes_max))?;
        if first.len() + all.len() + chunk.len() > bytes_max {
            return Err(too_large(bytes_max));
        }
        // A small body comes as one chunk and is not copied.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            if !first.is_empty() {
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&chunk);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn unreadable(error: &PayloadError, bytes_max: usize) -> Problem {
    match error {
        PayloadError::Overflow => too_large(bytes_max),
        _ => Problem::invalid_at("", "the body ended early or could not be read"),
    }
}
