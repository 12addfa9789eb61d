//! Programs of others, such as OAuth clients and an identity provider, as their users run them: in
//! Node.js and Python, with the libraries that `scripts/throwaway clients` installs.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::throwaway::Throwaway;
use super::{Client, Frozen, free_address, until};

static INSTALLED: Throwaway = Throwaway::new("clients", "KEYSTEAD_TEST_CLIENTS");

/// Longer than any of them takes on a machine that has much else to do.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// `path` with the Python in front that has the libraries, as `python3`.
pub fn path_with_python(path: &str) -> String {
    let installed = PathBuf::from(INSTALLED.url());
    format!("{}:{path}", installed.join("venv/bin").display())
}

/// A program that runs. Killed when it is dropped.
struct Program {
    name: &'static str,
    child: Child,
    told: NamedTempFile,
    complaints: NamedTempFile,
}

impl Program {
    /// Runs a file of tests/clients, told `input`.
    fn start(name: &'static str, input: &Value) -> Self {
        let installed = PathBuf::from(INSTALLED.url());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let program = File::open(folder.join(name)).expect("the program is there");
        let file = || NamedTempFile::new().expect("a temporary file can be made");
        let (told, complaints) = (file(), file());
        let mut command = if name.ends_with(".py") {
            Command::new(installed.join("venv/bin/python"))
        } else {
            let mut node = Command::new(installed.join("node"));
            node.arg("--input-type=module");
            node
        };
        let child = command
            .args(["-", &input.to_string()])
            // What is imported is looked for from here.
            .current_dir(&installed)
            .stdin(program)
            .stdout(told.reopen().expect("it is there"))
            .stderr(complaints.reopen().expect("it is there"))
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not run: {error}"));
        Self {
            name,
            child,
            told,
            complaints,
        }
    }

    /// What it wrote so far.
    fn told(&self) -> String {
        read(&self.told)
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our child")
    }

    fn complain(&self) -> String {
        format!("{}: {}{}", self.name, self.told(), read(&self.complaints))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(file: &NamedTempFile) -> String {
    std::fs::read_to_string(file).expect("they write text")
}

/// Runs a file of tests/clients to its end and gives what it prints.
pub async fn ask(name: &'static str, input: &Value) -> Value {
    let mut program = Program::start(name, input);
    let mut status = None;
    until(WAIT_MAX, "the program has ended", async || {
        status = program.ended();
        status.is_some()
    })
    .await;
    let good = status.is_some_and(|status| status.success());
    assert!(good, "{}", program.complain());
    serde_json::from_str(&program.told()).unwrap_or_else(|_| panic!("{}", program.complain()))
}

/// A real identity provider, `oidc-provider`, with an address that stays the same.
pub struct Provider {
    pub settings: Value,
    port: u16,
    running: Option<Program>,
    /// Of the runs that have ended.
    before: String,
}

impl Provider {
    /// Starts one. `settings` are those of tests/clients/identity_provider.mjs but for the port.
    pub async fn start(settings: Value) -> Self {
        let mut provider = Self {
            settings,
            port: free_address().port(),
            running: None,
            before: String::new(),
        };
        provider.run().await;
        provider
    }

    /// Starts it again, after [`Provider::kill`].
    pub async fn run(&mut self) {
        let mut input = self.settings.clone();
        input["port"] = json!(self.port);
        let mut program = Program::start("identity_provider.mjs", &input);
        until(WAIT_MAX, "the identity provider listens", async || {
            assert!(program.ended().is_none(), "{}", program.complain());
            program.told().contains("\"listening\"")
        })
        .await;
        self.running = Some(program);
    }

    /// Kills it where it stands.
    pub fn kill(&mut self) {
        let running = self.running.take().expect("it runs");
        self.before.push_str(&running.told());
    }

    /// It stands still until the answer is dropped.
    pub fn freeze(&self) -> Frozen {
        let running = self.running.as_ref().expect("it runs");
        Frozen::process(running.child.id())
    }

    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// A token that one of its clients gets for itself.
    pub async fn token(&self, client: &str, parameters: &[(&str, &str)]) -> String {
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", PROVIDER_SECRET),
        ];
        form.extend_from_slice(parameters);
        let request = Client::new(self.issuer()).post("/token").form(&form);
        super::text(&request.send().await.expect(200), "/access_token")
    }

    /// What it said of each token that it issued, in all its runs.
    pub fn issued(&self) -> Vec<Value> {
        let now = self.running.as_ref().map(Program::told).unwrap_or_default();
        let lines = self.before.lines().chain(now.lines());
        let lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["issued"].is_string()).collect()
    }
}

/// What every client of the provider authenticates with, unless a test says otherwise.
pub const PROVIDER_SECRET: &str = "a secret of +%:/&=-_.~ 1";

/// A private key of a provider's.
pub fn provider_key(kid: &str) -> Value {
    let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key is made");
    let private: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().expect("it is P-256");
    // SEC 1 §2.3.3: 4, x, y.
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    json!({
        "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": kid,
        "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        "d": URL_SAFE_NO_PAD.encode(private.as_ref()),
    })
}
