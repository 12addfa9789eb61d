//! The middleware notes what known callers are refused, and nothing else.

use std::rc::Rc;

use actix_web::http::{Method, StatusCode};
use actix_web::middleware::from_fn;
use actix_web::{App, HttpMessage as _, HttpRequest, HttpResponse, test, web};
use keystead::audit::Refusals;
use keystead::audit::http::{RefusedRecorder, record_refused};
use keystead::auth::CallerIdentity;
use keystead::http::problem::{Code, Problem};
use keystead::rights::Rights;

use super::*;
use crate::support::{Home, both};

both!(a_refusal_of_a_known_caller_is_noted_and_nothing_else);

fn action(method: &Method, pattern: &str) -> Option<&'static str> {
    match (method.as_str(), pattern) {
        ("POST", "/v1/keys/{id}/revoke") => Some("key.revoke"),
        ("POST", "/v1/verify") => None,
        _ => Some("other.act"),
    }
}

/// Answers the status that `?status=` asks for, to a caller who is known unless `?anonymous`.
async fn answer(req: HttpRequest, tenant: web::Data<TenantRef>) -> Result<HttpResponse, Problem> {
    let query = req.query_string();
    if !query.contains("anonymous") {
        req.extensions_mut().insert(Rc::new(CallerIdentity {
            actor: Actor::Key {
                key_id: "key_admin".to_owned(),
            },
            via: None,
            tenant: tenant.as_ref().clone(),
            home: None,
            rights: Rights::all(),
            environment: None,
            key_id: None,
            expires_at: None,
            request_id: Some("request-9".into()),
            ip: Some("192.0.2.9".parse().unwrap()),
        }));
    }
    if query.contains("escalation") {
        return Err(Problem::new(Code::Escalation, "too much"));
    }
    if query.contains("missing") {
        return Err(Problem::not_found("key"));
    }
    if query.contains("invalid") {
        return Err(Problem::invalid_at("/name", "must be a name"));
    }
    Ok(HttpResponse::Ok().finish())
}

async fn a_refusal_of_a_known_caller_is_noted_and_nothing_else(home: Home) {
    let trail = Trail::new(&home).await;
    let recorder = RefusedRecorder {
        refusals: Refusals::start(trail.audit.clone()),
        action,
    };
    let app = test::init_service(
        App::new()
            .wrap(from_fn(record_refused))
            .app_data(web::Data::new(recorder.clone()))
            .app_data(web::Data::new(trail.ours.clone()))
            .route("/v1/keys/{id}/revoke", web::post().to(answer))
            .route("/v1/verify", web::post().to(answer)),
    )
    .await;
    for (path, status) in [
        (
            "/v1/keys/key_01jd8k3v9we5m8t7q2x4z6y0ab/revoke?escalation",
            403,
        ),
        ("/v1/keys/ks_live_secret/revoke?missing", 404),
        ("/v1/keys/a/revoke?missing&anonymous", 404),
        ("/v1/keys/a/revoke?invalid", 400),
        ("/v1/keys/a/revoke", 200),
        ("/v1/verify?missing", 404),
        ("/v1/nowhere", 404),
    ] {
        let req = test::TestRequest::post().uri(path).to_request();
        let res = test::call_service(&app, req).await;
        assert_eq!(
            res.status(),
            StatusCode::from_u16(status).unwrap(),
            "{path}"
        );
    }
    recorder.refusals.stop().await;
    let lines: Vec<Value> = trail
        .records()
        .await
        .into_iter()
        .map(|mut line| {
            let line = line.as_object_mut().unwrap();
            for member in ["id", "at", "seq"] {
                line.remove(member).unwrap();
            }
            Value::Object(line.clone())
        })
        .collect();
    let line = |target: &str, code: &str| {
        json!({
            "tenant": "default",
            "actor": {"kind": "key", "key_id": "key_admin"},
            "action": "key.revoke",
            "target": {"kind": "key", "id": target},
            "outcome": "refused",
            "code": code,
            "count": 1,
            "request_id": "request-9",
            "ip": "192.0.2.9",
        })
    };
    assert_eq!(
        lines,
        [
            line("key_01jd8k3v9we5m8t7q2x4z6y0ab", "escalation"),
            line("-", "not_found"),
        ]
    );
}
