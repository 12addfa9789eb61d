//! Requests that no proper client would send, byte by byte.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Client;

impl Client {
    /// Sends these bytes, which must ask for `Connection: close`, and answers what came back.
    pub async fn raw(&self, request: &[u8]) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address())
                .await
                .expect("it listens");
            stream.write_all(request).await.expect("it reads");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("it answers");
            String::from_utf8_lossy(&answer).into_owned()
        };
        tokio::time::timeout(Duration::from_secs(10), exchange)
            .await
            .expect("the server answers and closes")
    }
}
