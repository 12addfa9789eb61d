//! One Redis server a process; each test has keys of its own in it, or starts a server for itself.

use std::net::SocketAddr;
use std::time::Duration;

use keystead::clock::Clock;
use keystead::config::RedisUrl;
use keystead::redis_link::RedisLink;

use super::Proxy;
use super::throwaway::Throwaway;

static SERVER: Throwaway = Throwaway::new("redis", "KEYSTEAD_TEST_REDIS_URL");

/// A Redis server that ends when this is dropped, for a test that flushes it or takes it away.
pub struct OwnRedis {
    server: Throwaway,
}

impl OwnRedis {
    pub fn start() -> Self {
        // Without a variable: nobody else may use this one.
        let server = Throwaway::new("redis", "");
        server.url();
        Self { server }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }

    /// A proxy before it, and the URL that leads through the proxy.
    pub async fn behind_proxy(&self) -> (Proxy, String) {
        behind_proxy(&self.url()).await
    }
}

pub fn url() -> String {
    SERVER.url()
}

/// A proxy before the server at `url`, and the URL that leads through it.
pub async fn behind_proxy(url: &str) -> (Proxy, String) {
    let mut url = url::Url::parse(url).expect("it is a URL");
    let host = url.host_str().expect("it has a host").to_owned();
    let port = url.port().unwrap_or(6379);
    let upstream = tokio::net::lookup_host((host, port)).await;
    let upstream: SocketAddr = upstream.expect("it resolves").next().expect("to something");
    let proxy = Proxy::before(upstream).await;
    url.set_host(Some("127.0.0.1")).expect("it may have a host");
    url.set_port(Some(proxy.address.port()))
        .expect("it may have a port");
    (proxy, url.to_string())
}

/// For tests of what is decided, not of how fast, on a machine that may be busy.
pub fn patient_link(url: &str, call_max: Duration) -> RedisLink {
    let url = RedisUrl::parse(url).expect("the support made the URL");
    RedisLink::open_with(&url, Clock::System, call_max).expect("it opens")
}

pub fn link(url: &str) -> RedisLink {
    let url = RedisUrl::parse(url).expect("the support made the URL");
    RedisLink::open(&url, Clock::System).expect("it opens")
}
