//! The `OpenAPI` document and Swagger UI over it, served from the binary.

use std::sync::Arc;

use actix_web::http::header;
use actix_web::web::{self, Bytes};
use actix_web::{HttpResponse, Responder};
use utoipa::openapi::OpenApi;

use super::health;
use super::openapi;
use super::problem::Problem;

/// Scripts and styles from here alone; Swagger UI sets styles on its elements.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; \
     style-src 'self' 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const CACHE_CONTROL: &str = "public, max-age=300";

/// The document as text, made once.
#[derive(Clone, Debug)]
pub struct Document(Bytes);

impl Document {
    pub fn new(document: &OpenApi) -> Self {
        Self(Bytes::from(openapi::to_json(document)))
    }
}

/// This document
///
/// Answers 404 unless operations are switched on for this listener.
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "read_openapi",
    tag = "operations",
    security(()),
    responses((status = 200, description = "The OpenAPI document", body = serde_json::Value))
)]
pub async fn read_openapi(document: web::Data<Document>) -> impl Responder {
    HttpResponse::Ok()
        .content_type("application/json")
        .insert_header((header::CACHE_CONTROL, CACHE_CONTROL))
        .body(document.0.clone())
}

/// A file of Swagger UI. The handler has no description: it is not part of the API.
async fn read_docs(
    file: web::Path<String>,
    config: web::Data<utoipa_swagger_ui::Config<'static>>,
) -> Result<HttpResponse, Problem> {
    let file = utoipa_swagger_ui::serve(&file, config.into_inner())
        .ok()
        .flatten()
        .ok_or_else(|| Problem::not_found("resource"))?;
    let mut response = HttpResponse::Ok();
    response
        .content_type(file.content_type)
        .insert_header((header::CACHE_CONTROL, CACHE_CONTROL))
        .insert_header((header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY));
    if file.gzpipped {
        response.insert_header((header::CONTENT_ENCODING, "gzip"));
    }
    Ok(response.body(file.bytes.into_owned()))
}

/// Relative, so that it also holds behind a proxy's path.
async fn redirect_to_docs() -> HttpResponse {
    HttpResponse::PermanentRedirect()
        .insert_header((header::LOCATION, "docs/"))
        .finish()
}

/// `/metrics`, `/openapi.json` and `/docs/`, where they are `served`; otherwise they are 404 like
/// anything that does not exist.
pub fn routes(served: bool, document: Document) -> impl Fn(&mut web::ServiceConfig) + Clone {
    let ui = Arc::new(utoipa_swagger_ui::Config::new(["../openapi.json"]).validator_url("none"));
    move |config| {
        if !served {
            return;
        }
        config
            .service(web::resource("/metrics").route(web::get().to(health::read_metrics)))
            .service(
                web::resource("/openapi.json")
                    .app_data(web::Data::new(document.clone()))
                    .route(web::get().to(read_openapi)),
            )
            .service(web::resource("/docs").route(web::get().to(redirect_to_docs)))
            .service(
                web::resource("/docs/{file:.*}")
                    .app_data(web::Data::from(Arc::clone(&ui)))
                    .route(web::get().to(read_docs)),
            );
    }
}
