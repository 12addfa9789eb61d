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

    pub fn address(&self) -> SocketAddr {
        let url = url::Url::parse(&self.url()).expect("it is a URL");
        url.socket_addrs(|| None).expect("it resolves")[0]
    }

    /// Of the server itself.
    pub async fn process_id(&self) -> u32 {
        let link = patient_link(&self.url(), Duration::from_secs(5));
        let mut info = redis::cmd("INFO");
        info.arg("server");
        let told: String = link.query(&info).await.expect("it answers");
        let id = told
            .lines()
            .find_map(|line| line.strip_prefix("process_id:"));
        id.expect("it says").trim().parse().expect("a number")
    }

    /// Sends a command that is answered with nothing to know.
    pub async fn command(&self, words: &[&str]) {
        let link = patient_link(&self.url(), Duration::from_secs(5));
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        let _told: redis::Value = link.query(&command).await.expect("it answers");
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
