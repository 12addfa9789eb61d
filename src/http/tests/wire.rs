//! The same over a real connection: what only bytes can show.

use actix_web::HttpServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// A server on a free port; it ends with the test's runtime.
fn serve(parts: &Parts) -> std::net::SocketAddr {
    let edge = parts.edge.clone();
    let server = HttpServer::new(move || {
        App::new()
            .service(web::resource("/things").route(web::post().to(create_thing)))
            .service(web::resource("/fail/{kind}").route(web::get().to(fail)))
            .wrap(edge.clone())
    })
    .workers(1)
    .disable_signals()
    .bind(("127.0.0.1", 0))
    .unwrap();
    let address = server.addrs()[0];
    actix_web::rt::spawn(server.run());
    address
}

/// Sends bytes and reads answers until the server closes, or has been silent for three seconds.
async fn talk(address: std::net::SocketAddr, request: &str) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let read = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut chunk)).await;
        match read {
            Ok(Ok(0) | Err(_)) => return (String::from_utf8(answer).unwrap(), true),
            Ok(Ok(count)) => answer.extend_from_slice(&chunk[..count]),
            Err(_silent) => return (String::from_utf8(answer).unwrap(), false),
        }
    }
}

#[actix_web::test]
async fn after_a_panic_the_connection_and_the_worker_serve_on() {
    let parts = parts();
    let address = serve(&parts);
    let twice = "GET /fail/panic HTTP/1.1\r\nHost: a\r\n\r\n\
                 GET /fail/not HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (answer, closed) = talk(address, twice).await;
    assert!(closed);
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("\"code\":\"internal\""), "{answer}");
    assert!(answer.contains("x-request-id: "), "{answer}");
    assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("fine"), "{answer}");
}

#[actix_web::test]
async fn a_body_that_is_too_large_is_not_waited_for() {
    let parts = parts();
    let address = serve(&parts);
    let request = "POST /things HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n\
                   Content-Length: 1000000000\r\n\r\n{";
    let (answer, closed) = talk(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    assert!(closed);
}

#[actix_web::test]
async fn a_body_that_stalls_is_given_up() {
    let parts = parts();
    let address = serve(&parts);
    let request = "POST /things HTTP/1.1\r\nHost: a\r\nx-api-key: good\r\n\
                   Content-Type: application/json\r\nContent-Length: 20\r\n\r\n{\"name\":";
    let (answer, closed) = talk(address, request).await;
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(closed, "the rest of the body is not waited for");
}

#[actix_web::test]
async fn a_host_that_is_odd_or_missing_changes_no_route() {
    let parts = parts();
    let address = serve(&parts);
    for (hosts, status) in [
        ("Host: a\r\n", "404"),
        ("Host: a/fail/not#@x\r\n", "400"),
        ("Host: a\r\nHost: b\r\n", "400"),
        ("", "400"),
        ("Host: a\r\nX-Forwarded-Host: fail/not\r\n", "404"),
        ("Host: a\r\nX-Original-URL: /fail/not\r\n", "404"),
    ] {
        let request = format!("GET /nothing HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let (answer, _) = talk(address, &request).await;
        let told = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(told, status, "{hosts:?}: {answer}");
    }
}

#[actix_web::test]
async fn answers_say_nothing_of_the_software() {
    let parts = parts();
    let address = serve(&parts);
    let request = "GET /fail/not HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let (answer, _) = talk(address, request).await;
    let answer = answer.to_lowercase();
    for word in ["server:", "actix", "keystead/", env!("CARGO_PKG_VERSION")] {
        assert!(!answer.contains(word), "{word}: {answer}");
    }
}
