//! Health, metrics, documents, and other origins.

use super::*;

#[actix_web::test]
async fn readiness_follows_the_node() {
    let parts = parts();
    let app = app!(parts);
    for (phase, status, word) in [
        (Phase::Starting, StatusCode::SERVICE_UNAVAILABLE, "starting"),
        (Phase::Ready, StatusCode::OK, "ready"),
        (Phase::Draining, StatusCode::SERVICE_UNAVAILABLE, "draining"),
    ] {
        parts.readiness.set_phase(phase);
        let res = call_service(&app, TestRequest::with_uri("/health/ready").to_request()).await;
        assert_eq!(res.status(), status);
        let body: Value = serde_json::from_slice(&read_body(res).await).unwrap();
        assert_eq!(
            body,
            json!({ "status": word, "modes": { "database": "reachable" } })
        );
        let res = call_service(&app, TestRequest::with_uri("/health/live").to_request()).await;
        assert_eq!(res.status(), StatusCode::OK);
        let req = TestRequest::with_uri("/fail/not");
        let res = call_service(&app, req.to_request()).await;
        match phase {
            Phase::Starting => assert_eq!(problem(res).await.1["code"], "starting"),
            Phase::Ready | Phase::Draining => assert_eq!(res.status(), StatusCode::OK),
        }
    }
}

#[actix_web::test]
async fn operations_are_404_like_anything_unknown_where_they_are_not_served() {
    let parts = parts();
    let app = app!(parts, false);
    let mut bodies = Vec::new();
    for uri in ["/metrics", "/openapi.json", "/docs", "/docs/", "/debug"] {
        let req = TestRequest::with_uri(uri).insert_header(("x-request-id", "r"));
        let (status, body) = problem(call_service(&app, req.to_request()).await).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{uri}");
        bodies.push(body);
    }
    bodies.dedup();
    assert_eq!(bodies.len(), 1);
}

#[actix_web::test]
async fn operations_are_served_where_they_are() {
    let parts = parts();
    let app = app!(parts);
    for n in 0..100 {
        let req = TestRequest::with_uri(&format!("/nothing/{n}"));
        call_service(&app, req.to_request()).await;
    }
    let res = call_service(&app, TestRequest::with_uri("/metrics").to_request()).await;
    let text = String::from_utf8(read_body(res).await.to_vec()).unwrap();
    let unmatched = "keystead_http_requests_total{operation=\"unmatched\",status=\"4xx\"} 100";
    assert!(text.contains(unmatched), "{text}");
    assert!(!text.contains("nothing"), "no path becomes a label");
    let res = call_service(&app, TestRequest::with_uri("/docs/").to_request()).await;
    assert!(told(res.headers(), header::CONTENT_SECURITY_POLICY).contains("script-src 'self'"));
    let page = String::from_utf8(read_body(res).await.to_vec()).unwrap();
    assert!(page.contains("swagger-ui"));
    assert!(
        !page.contains("<script>"),
        "its policy forbids scripts in the page"
    );
    let res = call_service(
        &app,
        TestRequest::with_uri("/docs/swagger-initializer.js").to_request(),
    )
    .await;
    let script = String::from_utf8(read_body(res).await.to_vec()).unwrap();
    assert!(script.contains("../openapi.json"));
    let res = call_service(
        &app,
        TestRequest::with_uri("/docs/../Cargo.toml").to_request(),
    )
    .await;
    assert_eq!(res.status(), StatusCode::NOT_FOUND);
    let res = call_service(&app, TestRequest::with_uri("/openapi.json").to_request()).await;
    let document: Value = serde_json::from_slice(&read_body(res).await).unwrap();
    assert_eq!(
        document["paths"]["/health/live"]["get"]["operationId"],
        "check_liveness"
    );
}

#[actix_web::test]
async fn only_listed_origins_may_ask_across() {
    let parts = parts();
    let app = app!(parts);
    let ask = |origin: &'static str| {
        TestRequest::with_uri("/things")
            .method(Method::OPTIONS)
            .insert_header((header::ORIGIN, origin))
            .insert_header((header::ACCESS_CONTROL_REQUEST_METHOD, "POST"))
            .to_request()
    };
    let res = call_service(&app, ask("https://console.example")).await;
    assert_eq!(
        told(res.headers(), header::ACCESS_CONTROL_ALLOW_ORIGIN),
        "https://console.example"
    );
    let res = call_service(&app, ask("https://evil.example")).await;
    assert!(
        !res.headers()
            .contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN)
    );
    let req = TestRequest::with_uri("/fail/forbidden")
        .insert_header((header::ORIGIN, "https://console.example"));
    let res = call_service(&app, req.to_request()).await;
    assert_eq!(
        told(res.headers(), header::ACCESS_CONTROL_ALLOW_ORIGIN),
        "https://console.example"
    );
    assert_eq!(problem(res).await.1["code"], "forbidden");
}
