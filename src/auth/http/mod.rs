//! Extractors: who calls, held to the permission that the handler's signature names.
//!
//! 1. exactly one credential: `x-api-key` with a management key, or `Authorization: Bearer` with
//!    a key or a token; beside `x-api-key`, `X-Keystead-On-Behalf-Of` may carry the token of the
//!    person for whom a service acts;
//! 2. the credential is authenticated, and from here on refusals stand in the audit trail;
//! 3. the permission is judged for at least one service; the object's own comes in the handler;
//! 4. the tenant acted in is settled: its own, or the one that `X-Keystead-Tenant` names;
//! 5. the gate is opened to what reads the body and the query (`http/gate.rs`).

pub mod perm;
mod presented;
mod refused;

use std::future::Future;
use std::marker::PhantomData;
use std::ops::Deref;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use actix_web::dev::Payload;
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{FromRequest, HttpMessage as _, HttpRequest, web};

use self::perm::Need;
use self::presented::{Credential, Presented, is_token, two_credentials};
pub use self::refused::refused;
use self::refused::{count, refuse_key, refuse_person};
use super::caller::{CallerIdentity, Origin};
use super::people::{People, Person};
use crate::clock::Clock;
use crate::http::context::{RequestContext, add_response_header};
use crate::http::extract::wired;
use crate::http::gate::Gate;
use crate::http::problem::{Code, Problem};
use crate::telemetry::{SecurityEvent, Sighting};
use crate::text::Slug;
use crate::time::{Span, Timestamp};
use crate::validation::Validation;
use crate::validation::http::limit_headers;
use crate::validation::spend::LimitHeaders;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const ON_BEHALF_OF: HeaderName = HeaderName::from_static("x-keystead-on-behalf-of");
const TENANT: HeaderName = HeaderName::from_static("x-keystead-tenant");
const CALLER_EXPIRES: HeaderName = HeaderName::from_static("x-keystead-caller-expires");

/// So long before a management key ends its answers say so.
const EXPIRY_NOTICE: Span = Span::days(30);

/// The authenticated caller, who holds `P` for at least one service.
#[derive(Debug)]
pub struct Caller<P> {
    identity: Rc<CallerIdentity>,
    permission: PhantomData<P>,
}

impl<P> Deref for Caller<P> {
    type Target = CallerIdentity;

    fn deref(&self) -> &CallerIdentity {
        &self.identity
    }
}

impl<P: Need> FromRequest for Caller<P> {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let gate = Gate::close(req);
        let req = req.clone();
        Box::pin(async move {
            gate.refusal()?;
            let identity = Rc::new(identify(&req).await?);
            tell_expiry(&req, &identity);
            req.extensions_mut().insert(Rc::clone(&identity));
            if let Some(permission) = P::PERMISSION
                && !identity.rights.allows_any(permission)
            {
                return Err(Problem::forbidden(permission.scope()));
            }
            let identity = settle_tenant(&req, identity).await?;
            gate.open(req.query_string())?;
            Ok(Self {
                identity,
                permission: PhantomData,
            })
        })
    }
}

/// The holder of the presented key, whatever it grants, in its own affairs.
#[derive(Debug)]
pub struct Holder {
    identity: Rc<CallerIdentity>,
    key_id: String,
    superseded: bool,
}

impl Holder {
    pub fn key(&self) -> &str {
        &self.key_id
    }

    /// Whether a rotation has put another secret in the place of the presented one.
    pub fn is_superseded(&self) -> bool {
        self.superseded
    }
}

impl Deref for Holder {
    type Target = CallerIdentity;

    fn deref(&self) -> &CallerIdentity {
        &self.identity
    }
}

impl FromRequest for Holder {
    type Error = Problem;
    type Future = Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let gate = Gate::close(req);
        let req = req.clone();
        Box::pin(async move {
            gate.refusal()?;
            let context = RequestContext::of(&req);
            let presented = presented(&req)?;
            if presented.on_behalf_of.is_some() {
                return Err(two_credentials());
            }
            let (Credential::Key(key) | Credential::Bearer(key)) = presented.credential;
            let identified = wired::<Validation>(&req)?
                .authenticate_holder(key, Some(context.ip))
                .await
                .map_err(|failure| refuse_key(&req, failure))?;
            tell_limits(&req, identified.limits.as_ref());
            let (key_id, superseded) = (identified.key_id.to_string(), identified.superseded);
            let identity = Rc::new(CallerIdentity::of_key(identified, origin(&context)));
            tell_expiry(&req, &identity);
            req.extensions_mut().insert(Rc::clone(&identity));
            gate.open(req.query_string())?;
            Ok(Self {
                identity,
                key_id,
                superseded,
            })
        })
    }
}

/// A management key alone, as a gateway presents it.
pub async fn caller_by_key(
    validation: &Validation,
    key: &str,
    context: &RequestContext,
) -> Result<CallerIdentity, Problem> {
    // Whoever is behind the gateway does not hold its key.
    let identified = validation.authenticate(key, Some(context.peer)).await?;
    Ok(CallerIdentity::of_key(identified, origin(context)))
}

/// Steps 1 and 2.
async fn identify(req: &HttpRequest) -> Result<CallerIdentity, Problem> {
    let context = RequestContext::of(req);
    let presented = presented(req)?;
    let key = match presented.credential {
        Credential::Bearer(token) if is_token(token) => {
            let person = person(req, token).await?;
            return Ok(CallerIdentity::of_person(person, origin(&context)));
        }
        Credential::Key(key) | Credential::Bearer(key) => key,
    };
    let identified = wired::<Validation>(req)?
        .authenticate(key, Some(context.ip))
        .await
        .map_err(|failure| refuse_key(req, failure))?;
    tell_limits(req, identified.limits.as_ref());
    let service = CallerIdentity::of_key(identified, origin(&context));
    let Some(token) = presented.on_behalf_of else {
        return Ok(service);
    };
    let person = person(req, token).await?;
    service.on_behalf_of(person).ok_or_else(|| {
        let event = SecurityEvent::InvalidJwt;
        refused(req, &context, "jwt", event, "tenant", None);
        Problem::invalid_credential()
    })
}

async fn person(req: &HttpRequest, token: &str) -> Result<Person, Problem> {
    let authenticated = wired::<People>(req)?.authenticate(token).await;
    authenticated.map_err(|error| refuse_person(req, error))
}

/// Step 4. Another tenant is there only for a caller of `default` with `tenants:write`: to
/// everybody else it is as if there were none.
async fn settle_tenant(
    req: &HttpRequest,
    identity: Rc<CallerIdentity>,
) -> Result<Rc<CallerIdentity>, Problem> {
    let Some(slug) = single(req.headers(), &TENANT)? else {
        return Ok(identity);
    };
    let slug = Slug::parse(slug).ok().filter(|_| identity.is_host());
    let tenant = match slug {
        Some(slug) => wired::<Validation>(req)?.tenant(&slug).await?,
        None => None,
    };
    let Some(tenant) = tenant.filter(|tenant| !tenant.is_deleted) else {
        let by = identity.attribution(None).actor.name();
        count(req, |metrics| {
            metrics.security.note(Sighting {
                caller: Some(by.clone()),
                ..Sighting::new(SecurityEvent::CrossTenant, by)
            });
        });
        return Err(Problem::not_found("tenant"));
    };
    let identity = Rc::new(Rc::unwrap_or_clone(identity).acting_in(tenant.to_ref()));
    req.extensions_mut().insert(Rc::clone(&identity));
    Ok(identity)
}

/// Step 1, counted.
fn presented(req: &HttpRequest) -> Result<Presented<'_>, Problem> {
    Presented::of(req.headers()).inspect_err(|problem| {
        let kind = match problem.code() {
            Code::TwoCredentials => "two_credentials",
            Code::Unauthenticated => "no_credential",
            _ => "key",
        };
        refused(
            req,
            &RequestContext::of(req),
            kind,
            SecurityEvent::Unauthenticated,
            problem.code().slug(),
            None,
        );
    })
}

fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut lines = headers.get_all(name);
    match (lines.next(), lines.next()) {
        (None, _) => Ok(None),
        // What is not even text names no tenant.
        (Some(line), None) => Ok(Some(line.to_str().unwrap_or_default())),
        (Some(_), Some(_)) => Err(Problem::invalid_at(name.as_str(), "must be given once")),
    }
}

fn origin(context: &RequestContext) -> Origin {
    Origin {
        request_id: Some(Arc::clone(&context.request_id)),
        ip: Some(context.ip),
    }
}

fn tell_expiry(req: &HttpRequest, caller: &CallerIdentity) {
    if let (Some(_), Some(end)) = (&caller.key_id, caller.expires_at)
        && let Some((name, value)) = expiry_notice(end, now(req))
    {
        add_response_header(req, name, value);
    }
}

/// 30 days before a management key ends, its answers say when.
pub fn expiry_notice(end: Timestamp, now: Timestamp) -> Option<(HeaderName, HeaderValue)> {
    if end > now.plus(EXPIRY_NOTICE) {
        return None;
    }
    let value = HeaderValue::from_str(&end.to_string()).ok()?;
    Some((CALLER_EXPIRES, value))
}

/// Where the caller's own limits stand.
fn tell_limits(req: &HttpRequest, limits: Option<&LimitHeaders>) {
    for (name, value) in limits.map(limit_headers).unwrap_or_default() {
        add_response_header(req, name, value);
    }
}

fn now(req: &HttpRequest) -> Timestamp {
    req.app_data::<web::Data<Clock>>()
        .map_or_else(|| Clock::System.now(), |clock| clock.now())
}
