//! What `scripts/bench` compares with: an actix-web handler that reads the same body and answers the
//! same bytes, and does nothing else.
//!
//! `bare <address> <file with the answer>`: headers, each a line, then an empty line, then the body.

use std::io::{Error, Result};

use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{App, HttpResponse, HttpServer, web};

/// What is compared. Both servers are asked for the same path.
const PATHS: [&str; 3] = ["/v1/verify", "/oauth/token", "/oauth/introspect"];

#[derive(Clone)]
struct Answer {
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn parse(text: &[u8]) -> Option<Self> {
        let end = text.windows(2).position(|two| two == b"\n\n")?;
        let (head, body) = text.split_at_checked(end)?;
        let head = std::str::from_utf8(head).ok()?;
        let headers = head.lines().map(|line| {
            let (name, value) = line.split_once(": ")?;
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        });
        Some(Self {
            headers: headers.collect::<Option<_>>()?,
            body: body.strip_prefix(b"\n\n")?.to_vec(),
        })
    }
}

async fn answer(_read: web::Bytes, answer: web::Data<Answer>) -> HttpResponse {
    let mut response = HttpResponse::Ok().body(answer.body.clone());
    // Copied as a whole, which is the cheapest way to set several.
    *response.headers_mut() = answer.headers.clone();
    response
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err(Error::other("usage: bare <address> <file>"));
    };
    let answered = Answer::parse(&std::fs::read(file)?)
        .ok_or_else(|| Error::other("the file must hold headers, an empty line and a body"))?;
    let answered = web::Data::new(answered);
    actix_web::rt::System::new().block_on(async move {
        HttpServer::new(move || {
            PATHS
                .iter()
                .fold(App::new().app_data(answered.clone()), |app, path| {
                    app.route(path, web::post().to(answer))
                })
        })
        .workers(1)
        .bind(address)?
        .run()
        .await
    })
}
