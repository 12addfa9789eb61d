//! What a request carries, and what is taken of it.

use super::*;

#[actix_web::test]
async fn a_good_request_passes_with_all_it_carries() {
    let parts = parts();
    let app = app!(parts);
    let req = post("/things?tag=a&tag=b", r#"{"name":"x"}"#)
        .insert_header(("x-api-key", "good"))
        .insert_header(("x-request-id", "mine.1"))
        .insert_header(("audit-reason", "because"))
        .insert_header(("idempotency-key", "k-1"))
        .insert_header(("x-forwarded-for", "203.0.113.9, 192.0.2.7"))
        .peer_addr("10.0.0.1:4711".parse().unwrap());
    let res = call_service(&app, req.to_request()).await;
    assert_eq!(res.status(), StatusCode::CREATED);
    for (name, value) in [
        ("x-request-id", "mine.1"),
        ("x-caller", "good"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        (
            "content-security-policy",
            "default-src 'none'; frame-ancestors 'none'",
        ),
    ] {
        assert_eq!(told(res.headers(), name), value, "{name}");
    }
    assert!(!res.headers().contains_key(header::SERVER));
    let body: Value = serde_json::from_slice(&read_body(res).await).unwrap();
    assert_eq!(
        body,
        json!({
            "name": "x", "tags": ["a", "b"], "reason": "because", "idempotency": "k-1",
            "sha256": "0229d37e33daae149bf40543a5ce1db4459d10f830d5139279aa2bfd5f6485a1",
            "ip": "192.0.2.7",
        })
    );
}

#[actix_web::test]
async fn only_plain_json_is_taken() {
    let parts = parts();
    let app = app!(parts);
    let with = |content_type: &'static str| {
        TestRequest::post()
            .uri("/things/1")
            .insert_header((header::CONTENT_TYPE, content_type))
            .insert_header((header::CONTENT_LENGTH, 2))
            .set_payload("{}")
    };
    for good in [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;q=1",
    ] {
        let res = call_service(&app, with(good).to_request()).await;
        assert_eq!(res.status(), StatusCode::OK, "{good}");
    }
    for bad in [
        "text/json",
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-16",
        "application/merge-patch+json",
        "",
    ] {
        let res = call_service(&app, with(bad).to_request()).await;
        assert_eq!(
            problem(res).await.1["code"],
            "unsupported_media_type",
            "{bad}"
        );
    }
    let patch = with("application/merge-patch+json").method(Method::PATCH);
    assert_eq!(
        call_service(&app, patch.to_request()).await.status(),
        StatusCode::OK
    );
    for encoding in ["gzip", "br", "identity, gzip"] {
        let req = with("application/json").insert_header((header::CONTENT_ENCODING, encoding));
        let (_, body) = problem(call_service(&app, req.to_request()).await).await;
        assert_eq!(body["code"], "unsupported_media_type", "{encoding}");
    }
}

#[actix_web::test]
async fn a_body_has_a_bound_even_if_the_head_is_silent() {
    let parts = parts();
    let app = app!(parts);
    for (uri, bytes, status) in [
        ("/things/1", 64 * 1024, StatusCode::BAD_REQUEST),
        ("/things/1", 64 * 1024 + 1, StatusCode::PAYLOAD_TOO_LARGE),
        ("/bulk", 1024 * 1024, StatusCode::OK),
        ("/bulk", 1024 * 1024 + 1, StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let list = format!("[{}1]", " ".repeat(bytes - 3));
        let req = TestRequest::post()
            .uri(uri)
            .insert_header((header::CONTENT_TYPE, "application/json"))
            .insert_header((header::TRANSFER_ENCODING, "chunked"))
            .set_payload(list);
        let res = call_service(&app, req.to_request()).await;
        assert_eq!(res.status(), status, "{uri} {bytes}");
        let closes = res.response().head().connection_type()
            == HttpResponse::Ok()
                .force_close()
                .finish()
                .head()
                .connection_type();
        assert_eq!(closes, status == StatusCode::PAYLOAD_TOO_LARGE);
    }
}

#[actix_web::test]
async fn a_body_that_may_be_absent_may_be_absent() {
    let parts = parts();
    let app = app!(parts);
    let res = call_service(&app, TestRequest::post().uri("/things/1").to_request()).await;
    assert_eq!(told(res.headers(), header::ETAG), "\"7\"");
    let body: Value = serde_json::from_slice(&read_body(res).await).unwrap();
    assert_eq!(body, json!({ "if_match": null, "force": false }));
    let req = post("/things", "").insert_header(("x-api-key", "good"));
    let (_, body) = problem(call_service(&app, req.to_request()).await).await;
    assert_eq!(
        body["errors"],
        json!([{ "pointer": "", "detail": "a JSON body is needed" }])
    );
}

#[actix_web::test]
async fn if_match_is_one_strong_tag() {
    let parts = parts();
    let app = app!(parts);
    for (tag, version) in [
        ("\"3\"", json!(3)),
        ("*", Value::Null),
        ("\"abc\"", json!(-1)),
        ("\"\"", json!(-1)),
        ("\"99999999999999999999\"", json!(-1)),
    ] {
        let req = TestRequest::post()
            .uri("/things/1")
            .insert_header((header::IF_MATCH, tag));
        let res = call_service(&app, req.to_request()).await;
        let body: Value = serde_json::from_slice(&read_body(res).await).unwrap();
        assert_eq!(body["if_match"], version, "{tag}");
    }
    for bad in ["3", "W/\"3\"", "\"1\", \"2\"", "\"", ""] {
        let req = TestRequest::post()
            .uri("/things/1")
            .insert_header((header::IF_MATCH, bad));
        let (status, body) = problem(call_service(&app, req.to_request()).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{bad}");
        assert_eq!(body["errors"][0]["pointer"], "If-Match");
    }
}
