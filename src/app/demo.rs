//! `keystead demo`: the main job end to end, against a real server in a folder of its own.
//!
//! Every line is a request that was sent and an answer that came; an answer that is not the one the
//! tour tells of ends it with an error.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use super::{App, Listeners};
use crate::clock::Clock;
use crate::config::{Config, ConfigFile, Flag, Sources};
use crate::entropy::Entropy;

/// Runs the tour; with `once` the server stops after it, else it stays up until Ctrl-C.
///
/// # Errors
/// What could not be set up, or the answer that was not as told.
pub fn run(once: bool) -> Result<(), String> {
    let folder = Folder::make()?;
    let config = Config::load(&Sources {
        file: ConfigFile::None,
        variables: Vec::new(),
        flags: vec![
            flag("data_dir", folder.0.to_string_lossy().into_owned()),
            flag("server.listen", "127.0.0.1:0".to_owned()),
        ],
    })
    .map_err(|error| error.to_string())?;
    let _lock = config.lock_data_dir().map_err(|error| error.to_string())?;
    let master = config
        .master_keys_or_new(&Entropy::System)
        .map_err(|error| error.to_string())?;
    let listeners = Listeners::bind(&config)?;
    let app = App::build(config, master, Clock::System, Entropy::System)?;
    actix_web::rt::System::new().block_on(async move {
        let running = app.listen(listeners).map_err(|error| error.to_string())?;
        app.become_ready().await?;
        let owner = fs::read_to_string(folder.0.join("owner.key"))
            .map_err(|error| format!("owner.key: {error}"))?;
        let tour = Tour::new(running.address, owner.trim())?;
        let toured = tour.run().await;
        if toured.is_ok() && !once {
            stay(running.address, owner.trim()).await?;
        }
        running.stop().await;
        toured
    })
}

fn flag(path: &'static str, value: String) -> Flag {
    Flag {
        name: path,
        path,
        value,
    }
}

/// A private folder that is gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Result<Self, String> {
        let name = format!(
            "keystead-demo-{}",
            hex::encode(Entropy::System.bytes::<8>())
        );
        let path = std::env::temp_dir().join(name);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _what_is_left_is_temporary = fs::remove_dir_all(&self.0);
    }
}

async fn stay(address: SocketAddr, owner: &str) -> Result<(), String> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    say(&format!(
        "\nThe server stays up at http://{address} (its documents: http://{address}/docs).\n\
         The owner key of this demo: {owner}\n\
         Try: curl -H \"x-api-key: {owner}\" http://{address}/v1/keys\n\
         Ctrl-C ends it and removes its folder.\n"
    ));
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// The demo's own output; a reader that went away misses the rest.
fn say(text: &str) {
    let mut stdout = io::stdout().lock();
    let _gone = io::Write::write_all(&mut stdout, text.as_bytes());
    let _gone = io::Write::write_all(&mut stdout, b"\n");
    let _gone = io::Write::flush(&mut stdout);
}

struct Tour {
    http: reqwest::Client,
    base: String,
    owner: String,
}

struct Told {
    body: Value,
}

impl Told {
    fn text(&self, pointer: &str) -> Result<String, String> {
        self.body
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| format!("the answer has no {pointer}: {}", self.body))
    }
}

impl Tour {
    fn new(address: SocketAddr, owner: &str) -> Result<Self, String> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            http,
            base: format!("http://{address}"),
            owner: owner.to_owned(),
        })
    }

    async fn run(&self) -> Result<(), String> {
        say("Keystead, end to end, on a server and a database made for this tour.");

        say("\n1. An admin sets up a service and a consumer.");
        let catalogue = json!({
            "slug": "invoicing", "name": "Invoicing",
            "scopes": [{"name": "invoice:read"}, {"name": "invoice:send", "implies": ["invoice:read"]}]
        });
        self.admin("POST", "/v1/services", Some(catalogue), 201)
            .await?;
        self.admin(
            "POST",
            "/v1/consumers",
            Some(json!({"slug": "acme", "name": "ACME"})),
            201,
        )
        .await?;

        say("\n2. The admin issues a key: its plaintext is in this answer and nowhere else.");
        let new = json!({
            "name": "ACME worker", "consumer": "acme",
            "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}], "ttl": "90d",
            "reason": "onboarding"
        });
        let issued = self.admin("POST", "/v1/keys", Some(new), 201).await?;
        let (id, first) = (issued.text("/key/id")?, issued.text("/api_key")?);
        let gateway = self.verifier().await?;

        say("\n3. The invoicing service gets a request with `x-api-key` and has it judged.");
        self.header(&gateway, &first, "invoice:read", 200).await?;
        self.verify(&first, "invoice:read", "valid").await?;

        say("\n4. A scope that was not granted; and a typo, told by the checksum alone.");
        self.header(&gateway, &first, "invoice:send", 403).await?;
        self.verify(&first, "invoice:send", "insufficient_scope")
            .await?;
        self.verify(&typo(&first), "invoice:read", "malformed")
            .await?;

        say("\n5. Rotation with an overlap: both secrets work, then the old one is ended.");
        let path = format!("/v1/keys/{id}/rotate");
        let rotated = self
            .admin("POST", &path, Some(json!({"overlap": "1h"})), 200)
            .await?;
        let second = rotated.text("/api_key")?;
        let old = rotated.text("/key/secrets/1/id")?;
        self.verify(&first, "invoice:read", "valid").await?;
        self.verify(&second, "invoice:read", "valid").await?;
        let path = format!("/v1/keys/{id}/secrets/{old}");
        let end = json!({"valid_until": Clock::System.now()});
        self.admin("PATCH", &path, Some(end), 200).await?;
        self.verify(&first, "invoice:read", "expired").await?;
        self.verify(&second, "invoice:read", "valid").await?;

        say("\n6. The key leaks, and is revoked: the very next request is refused.");
        let path = format!("/v1/keys/{id}/revoke");
        self.admin(
            "POST",
            &path,
            Some(json!({"reason": "found in a public repository"})),
            200,
        )
        .await?;
        self.verify(&second, "invoice:read", "revoked").await?;
        self.header(&gateway, &second, "invoice:read", 401).await?;

        say("\n7. The auditor sees who did what, and has the chain checked.");
        let path = format!("/v1/audit/events?target={id}");
        self.admin("GET", &path, None, 200).await?;
        let checked = self.admin("POST", "/v1/audit/verify", None, 200).await?;
        if checked.body.get("valid") != Some(&json!(true)) {
            return Err("the audit chain does not verify".to_owned());
        }
        say("\nThat is the tour: every answer was as told.");
        Ok(())
    }

    /// A key for the gateway, that may verify for the service and nothing else.
    async fn verifier(&self) -> Result<String, String> {
        let new = json!({
            "name": "gateway", "consumer": "acme",
            "grants": [{"service": "keystead", "scopes": ["verify:invoicing"]}]
        });
        self.admin("POST", "/v1/keys", Some(new), 201)
            .await?
            .text("/api_key")
    }

    async fn verify(&self, key: &str, scope: &str, code: &str) -> Result<(), String> {
        let body = json!({"api_key": key, "service": "invoicing", "required_scopes": [scope]});
        let told = self.admin("POST", "/v1/verify", Some(body), 200).await?;
        if told.text("/code")? == code {
            Ok(())
        } else {
            Err(format!("{code} was expected"))
        }
    }

    /// What a gateway asks about the request it holds.
    async fn header(
        &self,
        gateway: &str,
        key: &str,
        scope: &str,
        status: u16,
    ) -> Result<(), String> {
        let path = format!("/gateway/authorize?service=invoicing&required_scopes={scope}");
        let headers = [("x-keystead-caller", gateway), ("x-api-key", key)];
        self.send("GET", &path, &headers, None, status)
            .await
            .map(drop)
    }

    async fn admin(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
        status: u16,
    ) -> Result<Told, String> {
        self.send(method, path, &[("x-api-key", &self.owner)], body, status)
            .await
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
        expected: u16,
    ) -> Result<Told, String> {
        let mut line = format!("\n  > {method} {path}");
        let verb = method
            .parse()
            .map_err(|_no_method| format!("{method} is no method"))?;
        let mut request = self.http.request(verb, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
            let shown = if *value == self.owner {
                "(the owner key)"
            } else {
                value
            };
            let _infallible = write!(line, "\n    {name}: {shown}");
        }
        if let Some(body) = body {
            let _infallible = write!(line, "\n    {body}");
            request = request
                .header("content-type", "application/json")
                .body(body.to_string());
        }
        say(&line);
        let response = request.send().await.map_err(|error| error.to_string())?;
        let status = response.status().as_u16();
        let mut line = format!("  < {status}");
        for (name, value) in response.headers() {
            let value = value.to_str().unwrap_or_default();
            if name.as_str().starts_with("x-keystead-") && !value.is_empty() {
                let _infallible = write!(line, "\n    {name}: {value}");
            }
        }
        let text = response.text().await.map_err(|error| error.to_string())?;
        if !text.is_empty() {
            let _infallible = write!(line, "\n    {text}");
        }
        say(&line);
        if status != expected {
            return Err(format!("{method} {path} answered {status}, not {expected}"));
        }
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        Ok(Told { body })
    }
}

/// The same key with one character of its secret part changed.
fn typo(key: &str) -> String {
    let at = key.len().saturating_sub(10);
    key.char_indices()
        .map(|(index, c)| match (index == at, c) {
            (true, 'x') => 'y',
            (true, _) => 'x',
            (false, c) => c,
        })
        .collect()
}
