//! The promises of the edge, the extractors and problems, kept by an application in miniature.

use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{Payload, ServiceResponse};
use actix_web::http::header::HeaderMap;
use actix_web::http::{Method, StatusCode, header};
use actix_web::test::{TestRequest, call_service, init_service, read_body, try_call_service};
use actix_web::{App, FromRequest, HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::OpenApi as _;

use crate::clock::Clock;
use crate::db;
use crate::entropy::Entropy;
use crate::error;
use crate::http::context::{self, RequestContext};
use crate::http::cors::cors;
use crate::http::direct::{Direct, Reply};
use crate::http::extract::{
    AuditReason, Body, BulkBody, IdempotencyKey, IfMatch, OptionalBody, Query, etag,
};
use crate::http::gate::Gate;
use crate::http::health::{self, Modes, Phase, Readiness};
use crate::http::middleware::{Edge, EdgeSettings};
use crate::http::operations::Operations;
use crate::http::problem::{Code, Problem};
use crate::http::{docs, openapi};
use crate::metrics::Metrics;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thing {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Options {
    #[serde(default)]
    force: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    tag: Vec<String>,
}

/// Authenticates slowly: who holds the credential `good` passes after a turn of the runtime.
struct SlowCaller;

impl FromRequest for SlowCaller {
    type Error = Problem;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self, Problem>>>>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let gate = Gate::close(req);
        let req = req.clone();
        Box::pin(async move {
            gate.refusal()?;
            tokio::task::yield_now().await;
            let key = req.headers().get("x-api-key");
            match key.map(header::HeaderValue::as_bytes) {
                Some(b"good") => {}
                Some(_) => return Err(Problem::invalid_credential()),
                None => return Err(Problem::unauthenticated("present a key")),
            }
            context::add_response_header(
                &req,
                header::HeaderName::from_static("x-caller"),
                header::HeaderValue::from_static("good"),
            );
            gate.open(req.query_string())?;
            Ok(Self)
        })
    }
}

async fn create_thing(
    _caller: SlowCaller,
    filter: Query<Filter>,
    body: Body<Thing>,
    reason: AuditReason,
    idempotency: IdempotencyKey,
    context: RequestContext,
) -> HttpResponse {
    HttpResponse::Created().json(json!({
        "name": body.name, "tags": filter.tag, "reason": reason.0, "idempotency": idempotency.0,
        "sha256": hex::encode(body.sha256()), "ip": context.ip,
    }))
}

/// The extractor that authenticates stands last, to show that the order of arguments means nothing.
async fn create_backwards(body: Body<Thing>, _caller: SlowCaller) -> HttpResponse {
    HttpResponse::Created().json(json!({ "name": body.name }))
}

async fn change_thing(if_match: IfMatch, body: OptionalBody<Options>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(etag(7))
        .json(json!({ "if_match": if_match.0, "force": body.force }))
}

async fn create_many(body: BulkBody<Vec<u8>>) -> HttpResponse {
    HttpResponse::Ok().json(body.len())
}

async fn fail(kind: web::Path<String>) -> Result<HttpResponse, Problem> {
    match kind.as_str() {
        "unavailable" => {
            Err(db::Error::Unavailable(anyhow::anyhow!("postgres://u:SECRET@h")).into())
        }
        "corrupt" => Err(db::Error::Corrupt("table secrets".to_owned()).into()),
        "audit_broken" => Err(db::Error::AuditBroken("the head of secrets".to_owned()).into()),
        "busy" => Err(error::Error::Busy.into()),
        "forbidden" => Err(error::Error::Forbidden("keys:write:billing".to_owned()).into()),
        "taken" => {
            let conflict = error::Conflict::SlugTaken;
            Err(error::Error::taken(conflict, "the slug a is in use", "svc_1").into())
        }
        "panic" => panic!("table secrets"),
        "slow" => {
            std::future::pending::<()>().await;
            Ok(HttpResponse::Ok().finish())
        }
        _ => Ok(HttpResponse::Ok()
            .insert_header((header::CACHE_CONTROL, "public"))
            .body("fine")),
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(paths(
    health::check_liveness,
    health::check_readiness,
    health::read_metrics,
    docs::read_openapi
))]
struct Document;

struct Parts {
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    edge: Edge,
}

fn parts() -> Parts {
    let slugs: Vec<_> = Code::ALL.iter().map(|code| code.slug()).collect();
    let metrics = Arc::new(Metrics::new(&slugs));
    let readiness = Arc::new(Readiness::telling(|| {
        Modes::from([("database", "reachable")])
    }));
    readiness.set_phase(Phase::Ready);
    let edge = Edge::new(EdgeSettings {
        clock: Clock::System,
        entropy: Entropy::System,
        metrics: Arc::clone(&metrics),
        readiness: Arc::clone(&readiness),
        operations: Operations::new(&Document::openapi(), &metrics),
        trusted_proxies: vec!["10.0.0.0/8".parse().unwrap()],
        time_limit: Duration::from_millis(200),
        direct: vec![Direct::form("/posted", |posted| {
            Box::pin(async move {
                let pairs = posted.pairs.expect("what was sent is in order");
                match pairs.first().map(|(name, _)| &**name) {
                    Some("panic") => panic!("table secrets"),
                    Some("slow") => std::future::pending().await,
                    Some("later") => tokio::time::sleep(Duration::from_millis(20)).await,
                    _ => {}
                }
                Reply::Bare(HttpResponse::Ok().json(pairs))
            })
        })],
    });
    Parts {
        metrics,
        readiness,
        edge,
    }
}

macro_rules! app {
    ($parts:expr) => {
        app!($parts, true)
    };
    ($parts:expr, $operations:expr) => {
        init_service(
            App::new()
                .app_data(web::Data::from(Arc::clone(&$parts.metrics)))
                .app_data(web::Data::from(Arc::clone(&$parts.readiness)))
                .configure(health::routes)
                .configure(docs::routes(
                    $operations,
                    docs::Document::new(&openapi::finish(Document::openapi())),
                ))
                .service(web::resource("/things").route(web::post().to(create_thing)))
                .service(web::resource("/backwards").route(web::post().to(create_backwards)))
                .service(web::resource("/bulk").route(web::post().to(create_many)))
                .service(
                    web::resource("/things/{id}")
                        .route(web::patch().to(change_thing))
                        .route(web::post().to(change_thing)),
                )
                .service(web::resource("/fail/{kind}").route(web::get().to(fail)))
                .wrap(cors(&["https://console.example".to_owned()]))
                .wrap($parts.edge.clone()),
        )
        .await
    };
}

fn told(headers: &HeaderMap, name: impl header::AsHeaderName) -> &str {
    headers.get(name).expect("the header").to_str().unwrap()
}

async fn problem(res: ServiceResponse) -> (StatusCode, Value) {
    assert_eq!(
        told(res.headers(), header::CONTENT_TYPE),
        "application/problem+json"
    );
    let (status, id) = (res.status(), told(res.headers(), "x-request-id").to_owned());
    let body: Value = serde_json::from_slice(&read_body(res).await).unwrap();
    assert_eq!(body["status"], status.as_u16());
    assert_eq!(body["request_id"], id);
    let code = Code::parse(body["code"].as_str().unwrap()).unwrap();
    assert_eq!(body["type"], code.type_uri());
    assert_eq!(body["title"], code.title());
    (status, body)
}

fn post(uri: &str, body: &'static str) -> TestRequest {
    TestRequest::with_uri(uri)
        .method(Method::POST)
        .insert_header((header::CONTENT_TYPE, "application/json"))
        .insert_header((header::CONTENT_LENGTH, body.len()))
        .set_payload(body)
}

mod bodies;
mod operations;
mod refusals;
mod wire;
