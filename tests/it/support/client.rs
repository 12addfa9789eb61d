//! A small HTTP client that speaks as somebody: `server.owner().post("/v1/keys").json(..).send()`.

use std::fmt;

use reqwest::Method;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};

use super::{Server, text};

/// Speaks to one server, as the holder of one credential or as nobody.
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
    /// An admin JWT, or a key, in `Authorization: Bearer`.
    bearer: Option<String>,
    /// Where a caller of `default` acts.
    tenant: Option<String>,
}

impl Client {
    pub fn new(base: String) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(std::time::Duration::from_secs(20))
            .build()
            .expect("a client without special settings");
        Self {
            http,
            base,
            key: None,
            bearer: None,
            tenant: None,
        }
    }

    /// `host:port`
    pub fn address(&self) -> &str {
        self.base.trim_start_matches("http://")
    }

    /// The same client with a management key in `x-api-key`.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self {
            key: Some(key.to_owned()),
            ..self.clone()
        }
    }

    /// The same client with a token, or a key, in `Authorization: Bearer` alone.
    #[must_use]
    pub fn with_bearer(&self, bearer: &str) -> Self {
        Self {
            key: None,
            bearer: Some(bearer.to_owned()),
            ..self.clone()
        }
    }

    #[must_use]
    pub fn anonymous(&self) -> Self {
        Self {
            key: None,
            bearer: None,
            ..self.clone()
        }
    }

    /// The same client, acting in another tenant.
    #[must_use]
    pub fn within(&self, tenant: &str) -> Self {
        Self {
            tenant: Some(tenant.to_owned()),
            ..self.clone()
        }
    }

    /// The same credential, presented to another node.
    #[must_use]
    pub fn at(&self, node: &Server) -> Self {
        Self {
            base: node.client().base,
            ..self.clone()
        }
    }

    pub fn get(&self, path: &str) -> Request {
        self.request(Method::GET, path)
    }

    /// What a list holds, from its first page of `limit` to its last.
    pub async fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let joined = if path.contains('?') { '&' } else { '?' };
        let first = format!("{path}{joined}limit={limit}");
        let (mut items, mut next) = (Vec::new(), first.clone());
        loop {
            let page = self.get(&next).send().await.expect(200);
            items.extend(page["items"].as_array().expect("a page").iter().cloned());
            match page["next_cursor"].as_str() {
                Some(cursor) => next = format!("{first}&cursor={cursor}"),
                None => return items,
            }
        }
    }

    pub fn post(&self, path: &str) -> Request {
        self.request(Method::POST, path)
    }

    pub fn request(&self, method: Method, path: &str) -> Request {
        let mut builder = self.http.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            builder = builder.header("x-api-key", key);
        }
        if let Some(bearer) = &self.bearer {
            builder = builder.header("authorization", format!("Bearer {bearer}"));
        }
        if let Some(tenant) = &self.tenant {
            builder = builder.header("x-keystead-tenant", tenant);
        }
        Request(builder)
    }

    /// Posts and expects what a create answers.
    pub async fn create(&self, path: &str, body: Value) -> Value {
        self.post(path).json(body).send().await.expect(201)
    }

    /// Two consumers, `acme` and `managers`, and a service with one scope, `invoicing`.
    pub async fn create_world(&self) {
        for slug in ["acme", "managers"] {
            self.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let scopes = json!([{"name": "invoice:read"}]);
        let service = json!({"slug": "invoicing", "scopes": scopes});
        self.create("/v1/services", service).await;
    }

    /// A key of the consumer for all scopes of the service: its id, and the key itself.
    pub async fn issue(&self, consumer: &str, service: &str) -> (String, String) {
        let grants = json!([{"service": service, "scopes": ["*"]}]);
        let new = json!({"name": "worker", "consumer": consumer, "grants": grants});
        let issued = self.create("/v1/keys", new).await;
        (text(&issued, "/key/id"), text(&issued, "/api_key"))
    }
}

pub struct Request(reqwest::RequestBuilder);

impl Request {
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        Self(self.0.header(name, value))
    }

    /// A value of any bytes that a header may have.
    #[must_use]
    pub fn header_bytes(self, name: &str, value: &[u8]) -> Self {
        let value = reqwest::header::HeaderValue::from_bytes(value).expect("a header may say so");
        Self(self.0.header(name, value))
    }

    /// A JSON body as it is written.
    #[must_use]
    pub fn json_text(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.header("content-type", "application/json").body(body))
    }

    /// A form as it is written.
    #[must_use]
    pub fn form_text(self, body: impl Into<reqwest::Body>) -> Self {
        let form = "application/x-www-form-urlencoded";
        Self(self.0.header("content-type", form).body(body))
    }

    /// A body of which nothing else is said.
    #[must_use]
    pub fn body_text(self, body: impl Into<reqwest::Body>) -> Self {
        Self(self.0.body(body))
    }

    #[must_use]
    pub fn form(self, pairs: &[(&str, &str)]) -> Self {
        Self(self.0.form(pairs))
    }

    #[must_use]
    pub fn json(self, body: Value) -> Self {
        Self(self.0.json(&body))
    }

    /// `None` if the server cannot be reached.
    pub async fn try_send(self) -> Option<Answer> {
        let response = self.0.send().await.ok()?;
        Some(Answer::read(response).await)
    }

    /// A question that finds the node too busy, as on a slow machine, is asked again: it changes
    /// nothing, and what it waited for goes on.
    pub async fn send(self) -> Answer {
        let again = self.0.try_clone().and_then(|copy| copy.build().ok());
        let is_question = again.as_ref().is_some_and(|request| {
            let path = request.url().path();
            request.method() == Method::GET
                || path.starts_with("/v1/verify")
                || path == "/v1/explain"
                || path == "/oauth/introspect"
        });
        for _ in 0..50 {
            let Some(copy) = self.0.try_clone().filter(|_| is_question) else {
                break;
            };
            let answer = Self(copy).once().await;
            let is_busy =
                answer.code() == "busy" || answer.body["error"] == "temporarily_unavailable";
            if answer.status != 503 || !is_busy {
                return answer;
            }
        }
        self.once().await
    }

    async fn once(self) -> Answer {
        let response = self.0.send().await.expect("the server answers");
        Answer::read(response).await
    }
}

pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    /// Null if it is not JSON.
    pub body: Value,
    pub text: String,
}

impl Answer {
    async fn read(response: reqwest::Response) -> Self {
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let text = response.text().await.expect("the answer is text");
        Self {
            status,
            body: serde_json::from_str(&text).unwrap_or(Value::Null),
            headers,
            text,
        }
    }

    /// The body, of an answer that has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        self.body
    }

    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// The whole answer but for what differs from one request to the next: status, headers, body.
    pub fn redacted(&self) -> String {
        let mut lines: Vec<String> = self
            .headers
            .iter()
            .filter(|(name, _)| !["connection", "date", "x-request-id"].contains(&name.as_str()))
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
            .collect();
        lines.sort();
        let id = self.headers.get("x-request-id");
        let id = id.map_or("", |id| id.to_str().expect("ours is ASCII"));
        let body = self.text.replace(id, "<request id>");
        format!("{}\n{}\n\n{body}", self.status, lines.join("\n"))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.text)
    }
}
