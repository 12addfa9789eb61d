//! Refusals: their order, their bodies, and what they do not tell.

use super::*;

#[actix_web::test]
async fn refusals_come_in_the_order_that_is_promised() {
    let parts = parts();
    let app = app!(parts);
    let good = ("x-api-key", "good");
    let text = ("content-type", "text/plain");
    for uri in ["/things", "/backwards"] {
        for (what, req, code) in [
            (
                "404 first",
                post("/nothing", "x").insert_header(text),
                Code::NotFound,
            ),
            (
                "405",
                post(uri, "x").method(Method::PUT).insert_header(text),
                Code::MethodNotAllowed,
            ),
            (
                "413 by the head",
                post(uri, "x")
                    .insert_header(text)
                    .insert_header((header::CONTENT_LENGTH, 65537)),
                Code::PayloadTooLarge,
            ),
            (
                "415 without a credential",
                post(uri, "x").insert_header(text),
                Code::UnsupportedMediaType,
            ),
            ("401 before the body", post(uri, "{"), Code::Unauthenticated),
            (
                "401 before the body",
                post(uri, "{").insert_header(("x-api-key", "bad")),
                Code::InvalidCredential,
            ),
            (
                "400",
                post(uri, "{").insert_header(good),
                Code::InvalidRequest,
            ),
        ] {
            let (status, body) = problem(call_service(&app, req.to_request()).await).await;
            assert_eq!(
                (status, &body["code"]),
                (code.status(), &json!(code.slug())),
                "{uri} {what}"
            );
        }
        let res = call_service(
            &app,
            post(uri, r#"{"name":"x"}"#)
                .insert_header(good)
                .to_request(),
        )
        .await;
        assert_eq!(res.status(), StatusCode::CREATED, "{uri}");
    }
    let req = post("/things?x=1", r#"{"name":"x"}"#);
    let (_, body) = problem(call_service(&app, req.to_request()).await).await;
    assert_eq!(body["code"], "unauthenticated", "401 before the query");
    for name in ["audit-reason", "idempotency-key"] {
        let req = post("/things", r#"{"name":"x"}"#).insert_header((name, "x".repeat(600)));
        let (_, body) = problem(call_service(&app, req.to_request()).await).await;
        assert_eq!(body["code"], "unauthenticated", "401 before {name}");
    }
}

#[actix_web::test]
async fn a_method_that_is_not_there_is_405_with_those_that_are() {
    let parts = parts();
    let app = app!(parts);
    for method in [
        Method::GET,
        Method::TRACE,
        Method::from_bytes(b"BREW").unwrap(),
    ] {
        let req = TestRequest::with_uri("/things/1").method(method);
        let res = call_service(&app, req.to_request()).await;
        let mut allow: Vec<_> = told(res.headers(), header::ALLOW).split(", ").collect();
        allow.sort_unstable();
        assert_eq!(allow, ["PATCH", "POST"]);
        let (status, body) = problem(res).await;
        assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(body["code"], "method_not_allowed");
    }
}

#[actix_web::test]
async fn a_failure_tells_its_code_and_never_its_cause() {
    let parts = parts();
    let app = app!(parts);
    for (kind, code, retry_after) in [
        ("unavailable", Code::StoreUnavailable, Some("2")),
        ("corrupt", Code::StoreUnavailable, Some("2")),
        ("audit_broken", Code::AuditBroken, Some("30")),
        ("busy", Code::Busy, Some("1")),
        ("forbidden", Code::Forbidden, None),
        ("taken", Code::SlugTaken, None),
    ] {
        let req = TestRequest::get().uri(&format!("/fail/{kind}"));
        let res = call_service(&app, req.to_request()).await;
        let told = res
            .headers()
            .get(header::RETRY_AFTER)
            .map(|v| v.to_str().unwrap());
        assert_eq!(told, retry_after, "{kind}");
        let (status, body) = problem(res).await;
        assert_eq!(
            (status, &body["code"]),
            (code.status(), &json!(code.slug()))
        );
        assert!(
            !body.to_string().to_lowercase().contains("secret"),
            "{body}"
        );
        assert!(parts.metrics.problems.value(code.slug()) > 0);
    }
    for (kind, count) in [("unavailable", 1), ("corrupt", 2), ("busy", 0)] {
        assert_eq!(parts.metrics.database_errors.value(kind), count, "{kind}");
    }
    assert_eq!(parts.metrics.auth_failures.value("forbidden"), 1);
    let req = TestRequest::get().uri("/fail/forbidden");
    let res = call_service(&app, req.to_request()).await;
    assert_eq!(
        told(res.headers(), header::WWW_AUTHENTICATE),
        "Bearer realm=\"keystead\", error=\"insufficient_scope\", scope=\"keys:write:billing\""
    );
    assert_eq!(problem(res).await.1["required_scope"], "keys:write:billing");
    let req = TestRequest::get().uri("/fail/taken");
    let (_, body) = problem(call_service(&app, req.to_request()).await).await;
    assert_eq!(body["existing_id"], "svc_1");
}

#[actix_web::test]
async fn a_401_says_invalid_token_only_if_something_was_presented() {
    let parts = parts();
    let app = app!(parts);
    let req = post("/things", "{}");
    let res = call_service(&app, req.to_request()).await;
    assert_eq!(
        told(res.headers(), header::WWW_AUTHENTICATE),
        "Bearer realm=\"keystead\""
    );
    let req = post("/things", "{}").insert_header(("x-api-key", "bad"));
    let res = call_service(&app, req.to_request()).await;
    assert_eq!(
        told(res.headers(), header::WWW_AUTHENTICATE),
        "Bearer realm=\"keystead\", error=\"invalid_token\""
    );
}

#[actix_web::test]
async fn a_panic_and_a_hanging_handler_become_problems() {
    let parts = parts();
    let app = app!(parts);
    for (kind, code) in [("panic", Code::Internal), ("slow", Code::Busy)] {
        let req = TestRequest::get()
            .uri(&format!("/fail/{kind}"))
            .insert_header(("x-request-id", "r-1"));
        let error = try_call_service(&app, req.to_request()).await.unwrap_err();
        let res = error.error_response();
        assert_eq!(res.status(), code.status());
        assert_eq!(told(res.headers(), "x-request-id"), "r-1");
        assert_eq!(
            told(res.headers(), header::X_CONTENT_TYPE_OPTIONS),
            "nosniff"
        );
        let body = actix_web::body::to_bytes(res.into_body()).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&body["code"], &body["request_id"]),
            (&json!(code.slug()), &json!("r-1"))
        );
        assert!(!body.to_string().contains("secrets"));
    }
    assert_eq!(parts.metrics.security_events.value("panic"), 1);
    let res = call_service(&app, TestRequest::get().uri("/fail/not").to_request()).await;
    assert_eq!(res.status(), StatusCode::OK, "the next request is served");
    assert_eq!(
        told(res.headers(), header::CACHE_CONTROL),
        "public",
        "what a handler set stays"
    );
}

#[actix_web::test]
async fn a_form_at_the_edge_panics_and_hangs_like_one_that_is_routed() {
    let parts = parts();
    let app = app!(parts);
    let posted = |form: &'static str| {
        TestRequest::with_uri("/posted")
            .method(Method::POST)
            .insert_header(("x-request-id", "r-1"))
            .insert_header((header::CONTENT_TYPE, "application/x-www-form-urlencoded"))
            .insert_header((header::CONTENT_LENGTH, form.len()))
            .set_payload(form)
    };
    for (form, code) in [("panic=", Code::Internal), ("slow=", Code::Busy)] {
        let error = try_call_service(&app, posted(form).to_request()).await;
        let res = error.unwrap_err().error_response();
        assert_eq!(res.status(), code.status());
        assert_eq!(told(res.headers(), "x-request-id"), "r-1");
        let body = actix_web::body::to_bytes(res.into_body()).await.unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["code"], code.slug());
        assert!(!body.to_string().contains("secrets"));
    }
    assert_eq!(parts.metrics.security_events.value("panic"), 1);
    for form in ["a=b%20c", "later=", "later=1&x=2"] {
        let res = call_service(&app, posted(form).to_request()).await;
        assert_eq!(res.status(), StatusCode::OK, "{form}");
        assert_eq!(
            told(res.headers(), header::X_CONTENT_TYPE_OPTIONS),
            "nosniff"
        );
        assert_eq!(told(res.headers(), "x-request-id"), "r-1");
    }
    let res = call_service(&app, posted("a=b%20c").to_request()).await;
    assert_eq!(read_body(res).await, r#"[["a","b c"]]"#);
    // A page of somebody's, a query, a body of another type or of no known length: none of it is plain.
    for req in [
        posted("a=b").insert_header((header::ORIGIN, "https://console.example")),
        posted("a=b").uri("/posted?x=y"),
        posted("a=b").insert_header((header::CONTENT_TYPE, "text/plain")),
        posted("a=b").insert_header((header::CONTENT_ENCODING, "gzip")),
        posted("a=b").insert_header((header::CONTENT_LENGTH, 9_000)),
        posted("a=b").method(Method::PUT),
    ] {
        let res = call_service(&app, req.to_request()).await;
        assert_eq!(
            res.status(),
            StatusCode::NOT_FOUND,
            "there is no such route"
        );
    }
}

#[actix_web::test]
async fn a_credential_in_the_query_is_refused_on_every_route_but_the_gateways() {
    let parts = parts();
    let app = app!(parts);
    for uri in [
        "/things?api_key=SECRET",
        "/health/live?a=1&Token=SECRET",
        "/nothing?key=SECRET",
    ] {
        let (status, body) =
            problem(call_service(&app, TestRequest::with_uri(uri).to_request()).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(body["code"], "credential_in_query");
        assert!(!body.to_string().contains("SECRET"));
    }
    assert_eq!(
        parts.metrics.security_events.value("credential_in_query"),
        3
    );
    let req = TestRequest::with_uri("/gateway/authorize?api_key=x");
    assert_eq!(
        call_service(&app, req.to_request()).await.status(),
        StatusCode::NOT_FOUND
    );
}
