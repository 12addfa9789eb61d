//! Before a request is routed: the host it names, the origin it comes from.

use super::*;

both!(
    a_host_that_is_none_is_refused_before_routing,
    another_host_in_a_header_of_a_proxy_changes_nothing,
    no_answer_speaks_of_origins_unless_origins_are_listed,
);

/// D20: what follows the request line of a request for a new consumer.
async fn ask(client: &Client, key: &str, hosts: &str) -> String {
    let body = r#"{"slug":"by-host"}"#;
    let request = format!(
        "POST /v1/consumers HTTP/1.1\r\n{hosts}x-api-key: {key}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    client.raw(request.as_bytes()).await
}

async fn a_host_that_is_none_is_refused_before_routing(home: Home) {
    let server = home.serve().await;
    let (client, key) = (server.client(), server.owner_key().expect("the first node"));
    for host in [
        "localhost:4000/#@x",
        "localhost/v1/keys",
        "localhost#x",
        "admin@localhost",
        "local host",
        "localhost?x=1",
        "localhost\\x",
        "localhost,other",
        "localhost:80\"",
        "\u{6c}ocalhost%2f",
        "l\u{f6}calhost",
    ] {
        let told = ask(&client, key, &format!("Host: {host}\r\n")).await;
        assert!(told.starts_with("HTTP/1.1 400 "), "{host}: {told}");
    }
    for hosts in [
        "",
        "Host: localhost\r\nHost: localhost\r\n",
        "Host: a\r\nHost: b\r\n",
    ] {
        let told = ask(&client, key, hosts).await;
        assert!(told.starts_with("HTTP/1.1 400 "), "{hosts:?}: {told}");
    }
    let made = server.owner().get("/v1/consumers/by-host").send().await;
    assert_eq!(made.status, 404, "{made}");
    let told = ask(&client, key, &format!("Host: {}\r\n", client.address())).await;
    assert!(told.starts_with("HTTP/1.1 201 "), "{told}");
}

async fn another_host_in_a_header_of_a_proxy_changes_nothing(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let mut places = Vec::new();
    for (slug, name, value) in [
        ("plain", "x-keystead-nothing", ""),
        ("by-xfh", "x-forwarded-host", "evil.example"),
        ("by-xh", "x-host", "evil.example"),
        ("by-fwd", "forwarded", "host=evil.example;proto=https"),
        ("by-url", "x-original-url", "/v1/tenants"),
        ("by-rewrite", "x-rewrite-url", "/v1/tenants"),
        ("by-prefix", "x-forwarded-prefix", "//evil.example"),
        ("by-method", "x-http-method-override", "DELETE"),
    ] {
        let request = owner.post("/v1/consumers").header(name, value);
        let made = request.json(json!({"slug": slug})).send().await;
        let place = made.headers["location"].to_str().unwrap().to_owned();
        let made = made.expect(201);
        places.push(place.replace(made["id"].as_str().unwrap(), "<id>"));
    }
    places.dedup();
    assert_eq!(places, ["/v1/consumers/<id>"]);
}

async fn no_answer_speaks_of_origins_unless_origins_are_listed(home: Home) {
    let server = home.serve().await;
    let speaks = async |method: &str| {
        let request = server.owner().request(method.parse().unwrap(), "/v1/keys");
        let asked = request
            .header("origin", "https://evil.example")
            .header("access-control-request-method", "GET")
            .send()
            .await;
        let names = asked.headers.keys().map(|name| name.as_str().to_owned());
        names
            .filter(|name| name.starts_with("access-control-") || name == "vary")
            .collect::<Vec<_>>()
    };
    assert_eq!(speaks("GET").await, [""; 0]);
    assert_eq!(speaks("OPTIONS").await, [""; 0]);
    let open = home
        .serve_with(&[("SERVER__CORS_ORIGINS", "https://console.example")])
        .await;
    let told = open
        .client()
        .get("/v1/keys")
        .header("origin", "https://console.example")
        .send()
        .await;
    assert_eq!(
        told.headers["access-control-allow-origin"],
        "https://console.example"
    );
}
