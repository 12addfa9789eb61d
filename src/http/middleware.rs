//! The edge: what happens to every request before routing and to every answer before it leaves.
//!
//! One middleware, outermost, in this order: request id and client address; no credential in the
//! query; nothing but health while the node starts; then the application, with a time limit and a
//! net under it for panics; then the body of a problem, the headers that every answer has, the count
//! and the line in the access log.

use std::any::Any;
use std::future::{Future, Ready, poll_fn, ready};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Service, ServiceRequest, ServiceResponse, Transform};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::{Error, HttpMessage as _, HttpResponse};
use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use ipnet::IpNet;

use super::client_ip::client_ip;
use super::context::{RequestContext, X_REQUEST_ID, request_id, take_response_headers};
use super::direct::{Answer, Direct, Posted, Reply, Soon, plain, take_body};
use super::form;
use super::headers::IDENTITY;
use super::health::{Phase, Readiness};
use super::operations::{Known, Operations};
use super::problem::{Code, Problem};
use super::query_credential;
use crate::clock::{Clock, Reading};
use crate::entropy::Entropy;
use crate::metrics::{Metrics, UNDECIDED};
use crate::patience;
use crate::telemetry::{SecurityEvent, Sighting};

/// No answer takes longer to begin than this.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);

/// What every answer says, unless the application has set it.
static EVERY_ANSWER: [(HeaderName, HeaderValue); 4] = [
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    ),
    (
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    ),
];

/// What a direct answer, which is JSON, begins with: copied as a whole, which costs less than to put
/// it together.
pub fn direct_headers() -> HeaderMap {
    static HEADERS: LazyLock<HeaderMap> = LazyLock::new(|| {
        let json = HeaderValue::from_static("application/json");
        let all = EVERY_ANSWER.iter().cloned();
        all.chain([(header::CONTENT_TYPE, json)]).collect()
    });
    HEADERS.clone()
}

/// What the edge needs to know.
#[derive(Clone, Debug)]
pub struct EdgeSettings {
    pub clock: Clock,
    pub entropy: Entropy,
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    pub operations: Operations,
    pub trusted_proxies: Vec<IpNet>,
    pub time_limit: Duration,
    /// What is answered without routing.
    pub direct: Vec<Direct>,
}

/// The middleware; one for all workers.
#[derive(Clone, Debug)]
pub struct Edge(Arc<EdgeSettings>);

impl Edge {
    pub fn new(settings: EdgeSettings) -> Self {
        Self(Arc::new(settings))
    }

    /// The same edge with another limit than [`TIME_LIMIT`].
    #[must_use]
    pub fn with_time_limit(&self, time_limit: Duration) -> Self {
        Self::new(EdgeSettings {
            time_limit,
            ..EdgeSettings::clone(&self.0)
        })
    }

    /// The same edge before an application that has none of the routes which are answered directly.
    #[must_use]
    pub fn without_direct(&self) -> Self {
        Self::new(EdgeSettings {
            direct: Vec::new(),
            ..EdgeSettings::clone(&self.0)
        })
    }
}

impl<S, B> Transform<S, ServiceRequest> for Edge
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type InitError = ();
    type Transform = EdgeService<S>;
    type Future = Ready<Result<Self::Transform, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(EdgeService {
            service: Rc::new(service),
            settings: Arc::clone(&self.0),
        }))
    }
}

/// The middleware of one worker.
pub struct EdgeService<S> {
    service: Rc<S>,
    settings: Arc<EdgeSettings>,
}

impl<S, B> Service<ServiceRequest> for EdgeService<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error> + 'static,
    B: MessageBody + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>>>>;

    fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&self, req: ServiceRequest) -> Self::Future {
        let visit = Visit::begin(Arc::clone(&self.settings), &req);
        let service = Rc::clone(&self.service);
        Box::pin(async move {
            let mut req = req;
            if let Err(problem) = visit.admit(&req) {
                let res = req.into_response(visit.answer(&problem));
                return Ok(visit.end(res));
            }
            match visit.directly(&mut req).await? {
                Some(Reply::Dressed(answer)) => {
                    return Ok(visit.end_directly(req.into_response(answer)));
                }
                Some(Reply::Bare(answer)) => return Ok(visit.end(req.into_response(answer))),
                None => {}
            }
            // In a box of its own: what is answered directly does not carry its size around.
            Box::pin(visit.routed(req, service)).await
        })
    }
}

/// The level of an event is a constant of the place that writes it, so the line is a macro.
macro_rules! access_line {
    ($level:ident, $line:expr) => {
        tracing::event!(
            target: "keystead::access",
            tracing::Level::$level,
            request_id = &*$line.visit.context.request_id,
            method = $line.visit.method.as_str(),
            route = $line.operation.route,
            operation = $line.operation.id,
            status = $line.status,
            latency_us = $line.latency_us,
            ip = %$line.visit.context.ip,
            "answered"
        )
    };
}

/// One request on its way through.
struct Visit {
    settings: Arc<EdgeSettings>,
    /// When it began.
    at: Reading,
    context: RequestContext,
    method: Method,
    is_gateway: bool,
    /// Known before routing for paths without parameters.
    operation: Option<Arc<Known>>,
}

impl Visit {
    fn begin(settings: Arc<EdgeSettings>, req: &ServiceRequest) -> Self {
        let at = settings.clock.read();
        let context = RequestContext {
            request_id: request_id(req.headers(), at.wall, &settings.entropy),
            ip: client_ip(req.peer_addr(), req.headers(), &settings.trusted_proxies),
            peer: client_ip(req.peer_addr(), req.headers(), &[]),
        };
        Self {
            at,
            operation: settings
                .operations
                .by_path(req.method(), req.path())
                .cloned(),
            method: req.method().clone(),
            is_gateway: is_gateway(req.path()),
            context,
            settings,
        }
    }

    /// What is refused before routing.
    fn admit(&self, req: &ServiceRequest) -> Result<(), Problem> {
        let host = req.headers().get(header::HOST);
        if host.is_some_and(|host| !is_host(host.as_bytes())) {
            return Err(Problem::invalid_at("Host", "must be a host and a port"));
        }
        if !req.query_string().is_empty() && !is_gateway(req.path()) {
            let known = self.operation.as_ref();
            let declared = known.map_or(&[][..], |known| &known.parameters);
            query_credential::refuse_credentials(req.query_string(), declared)?;
        }
        if self.settings.readiness.phase() == Phase::Starting && !is_operations(req.path()) {
            return Err(Problem::new(
                Code::Starting,
                "the node is starting, try again",
            ));
        }
        Ok(())
    }

    /// Answers directly, or `None` if that is for the application.
    async fn directly(&self, req: &mut ServiceRequest) -> Result<Option<Reply>, Error> {
        let mut all = self.settings.direct.iter();
        let found = all.find_map(|direct| Some((direct, direct.takes(req)?)));
        let Some((direct, length)) = found else {
            return Ok(None);
        };
        let Some(taken) = take_body(req, length, self.settings.time_limit).await else {
            return Err(self.lost(Problem::new(
                Code::RequestTimeout,
                "the body did not arrive in time",
            )));
        };
        let at = if taken.was_waited_for() {
            self.settings.clock.read()
        } else {
            self.at
        };
        let answered = match (direct.answer(), taken.whole()) {
            (Answer::Plain(answer), Some(body)) => {
                let plain = plain(req, &self.context, at, body);
                let answer = AssertUnwindSafe(|| plain.and_then(|plain| answer(plain)));
                let answered = std::panic::catch_unwind(answer);
                let answered = match answered.map_err(|panic| self.panicked(panic.as_ref()))? {
                    Some(Soon::Now(answered)) => Some(answered),
                    Some(Soon::Later(later)) => self.within_time(later).await?,
                    None => None,
                };
                answered.map(Reply::Dressed)
            }
            (Answer::Form(answer), Some(body)) => {
                let posted = Posted {
                    req: req.request(),
                    context: &self.context,
                    at,
                    pairs: form::pairs(body),
                };
                Some(self.within_time(answer(posted)).await?)
            }
            (_, None) => None,
        };
        if answered.is_some() {
            self.settings.metrics.answered_directly.inc();
        } else {
            taken.put_back(req);
        }
        Ok(answered)
    }

    /// An answer that may be waited for, within the time there is. What memory knows needs no timer.
    async fn within_time<T>(&self, answering: LocalBoxFuture<'_, T>) -> Result<T, Error> {
        let mut answering = AssertUnwindSafe(answering).catch_unwind();
        let first = poll_fn(|cx| Poll::Ready(Pin::new(&mut answering).poll(cx))).await;
        let answered = match first {
            Poll::Ready(answered) => answered,
            Poll::Pending => {
                let rest = tokio::time::timeout(self.settings.time_limit, answering);
                match Box::pin(rest).await {
                    Ok(answered) => answered,
                    Err(_elapsed) => return Err(self.too_slow()),
                }
            }
        };
        answered.map_err(|panic| self.panicked(panic.as_ref()))
    }

    /// Asks the application. The request must have one owner while it is routed: after a panic or at
    /// the time limit it is gone, and the answer is made without it.
    async fn routed<S, B>(
        self,
        req: ServiceRequest,
        service: Rc<S>,
    ) -> Result<ServiceResponse<BoxBody>, Error>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
        B: MessageBody + 'static,
    {
        let waits_max = if is_validation(req.path()) {
            patience::OF_VALIDATION
        } else {
            patience::OF_OTHERS
        };
        let running = patience::limited(waits_max, self.run(req, &*service));
        let running = AssertUnwindSafe(running).catch_unwind();
        match tokio::time::timeout(self.settings.time_limit, running).await {
            Ok(Ok(Ok(res))) => Ok(self.end(res)),
            Ok(Ok(Err(error))) => Err(self.lost(foreign(&error))),
            Ok(Err(panic)) => Err(self.panicked(panic.as_ref())),
            Err(_elapsed) => Err(self.too_slow()),
        }
    }

    async fn run<S, B>(
        &self,
        req: ServiceRequest,
        service: &S,
    ) -> Result<ServiceResponse<BoxBody>, Error>
    where
        S: Service<ServiceRequest, Response = ServiceResponse<B>, Error = Error>,
        B: MessageBody + 'static,
    {
        req.extensions_mut().insert(self.context.clone());
        let res = service.call(req).await?;
        Ok(res.map_into_boxed_body())
    }

    fn answer(&self, problem: &Problem) -> HttpResponse {
        self.note(problem);
        problem.response(&self.context.request_id)
    }

    /// Completes an answer of the application.
    fn end(&self, res: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
        let extra = take_response_headers(res.request());
        let mut res = self.with_problem_body(res);
        let status = res.status();
        self.dress(res.headers_mut());
        for (name, value) in extra {
            res.headers_mut().append(name, value);
        }
        let closes = matches!(
            status,
            StatusCode::PAYLOAD_TOO_LARGE | StatusCode::REQUEST_TIMEOUT
        );
        if closes || self.settings.readiness.phase() == Phase::Draining {
            close_after(&mut res);
        }
        let operation = match &self.operation {
            Some(operation) => operation,
            None => self.settings.operations.of(res.request()),
        };
        self.record(operation, status);
        res
    }

    /// Completes a direct answer, which is 200 and begins with [`direct_headers`].
    fn end_directly(&self, mut res: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
        let (headers, status) = (res.headers_mut(), StatusCode::OK);
        if let Ok(id) = HeaderValue::from_str(&self.context.request_id) {
            headers.insert(X_REQUEST_ID, id);
        }
        if self.settings.readiness.phase() == Phase::Draining {
            close_after(&mut res);
        }
        let unmatched = self.settings.operations.unmatched();
        self.record(self.operation.as_ref().unwrap_or(unmatched), status);
        res
    }

    /// Writes the body of a problem, whoever it comes from.
    fn with_problem_body(&self, res: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
        if let Some(error) = res.response().error() {
            if let Some(problem) = error.as_error::<Problem>() {
                self.note(problem);
                let body = problem.body(&self.context.request_id);
                return res.map_body(|_, _| BoxBody::new(body));
            }
            let problem = foreign(error);
            return self.replace(res, &problem);
        }
        let bare = matches!(
            res.response().body().size(),
            BodySize::None | BodySize::Sized(0)
        );
        let problem = match res.status() {
            StatusCode::NOT_FOUND if bare => Problem::not_found("resource"),
            StatusCode::METHOD_NOT_ALLOWED if bare => {
                Problem::new(Code::MethodNotAllowed, "see the header Allow for what is")
            }
            _ => return res,
        };
        self.replace(res, &problem)
    }

    /// Headers that the application set, such as `Allow`, stay.
    fn replace(
        &self,
        mut res: ServiceResponse<BoxBody>,
        problem: &Problem,
    ) -> ServiceResponse<BoxBody> {
        self.note(problem);
        *res.response_mut().status_mut() = problem.code().status();
        problem.write_headers(res.headers_mut());
        let body = problem.body(&self.context.request_id);
        res.map_body(|_, _| BoxBody::new(body))
    }

    fn security_event(&self, event: SecurityEvent) {
        let ip = self.context.ip.to_string();
        self.settings.metrics.security.note(Sighting {
            ip: Some(ip.clone()),
            request_id: Some(self.context.request_id.to_string()),
            ..Sighting::new(event, ip)
        });
    }

    /// Counts a problem and logs its cause: here alone, so it is told once.
    fn note(&self, problem: &Problem) {
        let metrics = &self.settings.metrics;
        metrics.problems.inc(problem.code().slug());
        match problem.code() {
            Code::Forbidden => metrics.auth_failures.inc("forbidden"),
            Code::CallerNotAllowed => metrics.auth_failures.inc("caller_not_allowed"),
            Code::Escalation => self.security_event(SecurityEvent::Escalation),
            Code::CredentialInQuery => self.security_event(SecurityEvent::CredentialInQuery),
            _ => {}
        }
        let decides = self.operation.as_ref().is_some_and(|known| known.decides);
        // A gateway that is not let in has its answer: it is not for us to try again.
        let is_ours = problem.code() != Code::CallerNotAllowed;
        if decides && is_ours && problem.code().status().is_server_error() {
            metrics.decisions.inc(UNDECIDED);
        }
        if let Some(kind) = problem.database_error() {
            metrics.database_errors.inc(kind);
        }
        let Some(cause) = problem.cause_chain() else {
            return;
        };
        let code = problem.code().slug();
        let request_id = &*self.context.request_id;
        if problem.code() == Code::Busy {
            tracing::warn!(request_id, code, cause, "refused for lack of room");
        } else {
            tracing::error!(request_id, code, cause, "failed to answer");
        }
    }

    fn panicked(&self, panic: &(dyn Any + Send)) -> Error {
        self.security_event(SecurityEvent::Panic);
        self.lost(panicked(panic))
    }

    fn too_slow(&self) -> Error {
        self.lost(Problem::new(
            Code::Busy,
            "the request took too long; what it began may still complete",
        ))
    }

    /// The answer to a request that is gone.
    fn lost(&self, problem: Problem) -> Error {
        self.note(&problem);
        let operation = match &self.operation {
            Some(operation) => operation,
            None => self.settings.operations.unmatched(),
        };
        self.record(operation, problem.code().status());
        let mut headers = HeaderMap::new();
        self.dress(&mut headers);
        headers
            .into_iter()
            .fold(problem, |problem, (name, value)| {
                problem.header(name, value)
            })
            .with_request_id(&self.context.request_id)
            .into()
    }

    /// Headers that every answer has; what the application set stays.
    fn dress(&self, headers: &mut HeaderMap) {
        for (name, value) in &EVERY_ANSWER {
            if !headers.contains_key(name) {
                headers.insert(name.clone(), value.clone());
            }
        }
        if self.is_gateway {
            for name in IDENTITY {
                if !headers.contains_key(&name) {
                    headers.insert(name, HeaderValue::from_static(""));
                }
            }
        }
        if let Ok(id) = HeaderValue::from_str(&self.context.request_id) {
            headers.insert(X_REQUEST_ID, id);
        }
    }

    /// The count and the line in the access log: the route, never the path or query.
    fn record(&self, operation: &Known, status: StatusCode) {
        let duration = self
            .settings
            .clock
            .monotonic()
            .saturating_duration_since(self.at.monotonic);
        operation.metrics.answered(status.as_u16(), duration);
        let line = AccessLine {
            visit: self,
            operation,
            status: status.as_u16(),
            latency_us: u64::try_from(duration.as_micros()).unwrap_or(u64::MAX),
        };
        if operation.is_quiet && !status.is_server_error() {
            access_line!(DEBUG, line);
        } else {
            access_line!(INFO, line);
        }
    }
}

/// What a line of the access log says.
struct AccessLine<'a> {
    visit: &'a Visit,
    operation: &'a Known,
    status: u16,
    latency_us: u64,
}

/// Says `Connection: close` and means it. actix does not export the word, so a response lends it.
fn close_after(res: &mut ServiceResponse<BoxBody>) {
    let closing = HttpResponse::Ok().force_close().finish();
    let close = closing.head().connection_type();
    res.response_mut().head_mut().set_connection_type(close);
}

/// What actix or one of its parts refused, in our words.
fn foreign(error: &Error) -> Problem {
    if let Some(problem) = error.as_error::<Problem>() {
        return Problem::new(problem.code(), problem.detail());
    }
    let status = error.as_response_error().status_code();
    match status {
        StatusCode::NOT_FOUND => Problem::not_found("resource"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::new(Code::MethodNotAllowed, "the method is not allowed here")
        }
        StatusCode::REQUEST_TIMEOUT => {
            Problem::new(Code::RequestTimeout, "the request did not arrive in time")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(Code::PayloadTooLarge, "the body is too large")
        }
        StatusCode::UNSUPPORTED_MEDIA_TYPE => Problem::new(
            Code::UnsupportedMediaType,
            "send the body as application/json",
        ),
        _ if status.is_client_error() => {
            Problem::new(Code::InvalidRequest, "the request could not be read")
        }
        _ => Problem::new(Code::Internal, "the request met a defect of Keystead")
            .cause(anyhow::anyhow!("{error}")),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Problem {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message");
    Problem::new(Code::Internal, "the request met a defect of Keystead")
        .cause(anyhow::anyhow!("panicked: {message}"))
}

/// `host [":" port]` (RFC 9110 §7.2) as browsers and proxies send it. Nothing is routed by it, but
/// what joins it to a path must not be led astray by a `/`, `@` or `#` in it.
fn is_host(host: &[u8]) -> bool {
    host.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(byte))
}

/// Answers while the node starts.
fn is_operations(path: &str) -> bool {
    path.starts_with("/health/") || path == "/metrics"
}

/// Whoever asks there waits with a request of his own.
fn is_validation(path: &str) -> bool {
    path == "/v1/verify" || is_gateway(path)
}

/// There the query may hold the client's own, and nothing that a client sends is a 400.
fn is_gateway(path: &str) -> bool {
    path.starts_with("/gateway/")
}
