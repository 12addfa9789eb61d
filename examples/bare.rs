//! What `scripts/bench` compares with: an actix-web handler that reads the same body and answers the
//! same bytes, and does nothing else.
//!
//! `bare <address> <file with the answer's body>`

use actix_web::http::header::ContentType;
use actix_web::{App, HttpResponse, HttpServer, web};

/// What is compared. Both servers are asked for the same path.
const PATHS: [&str; 3] = ["/v1/verify", "/oauth/token", "/oauth/introspect"];

async fn answer(_read: web::Bytes, body: web::Data<Vec<u8>>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header(ContentType::json())
        .body(body.as_slice().to_vec())
}

fn main() -> std::io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err(std::io::Error::other("usage: bare <address> <file>"));
    };
    let body = web::Data::new(std::fs::read(file)?);
    actix_web::rt::System::new().block_on(async move {
        HttpServer::new(move || {
            PATHS
                .iter()
                .fold(App::new().app_data(body.clone()), |app, path| {
                    app.route(path, web::post().to(answer))
                })
        })
        .workers(1)
        .bind(address)?
        .run()
        .await
    })
}
