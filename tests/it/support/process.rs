//! The real binary, as an operator runs it: for what is about starting, stopping and being killed.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use keystead::entropy::Entropy;

use super::{Client, Home, until};

/// The program.
pub const BINARY: &str = env!("CARGO_BIN_EXE_keystead");

/// The program, or its release build where it is measured.
pub fn binary() -> String {
    super::setting("KEYSTEAD_TEST_BINARY").unwrap_or_else(|| BINARY.to_owned())
}

/// A `keystead serve`. Killed when it is dropped.
pub struct Process {
    pub address: String,
    pub data_dir: PathBuf,
    child: Child,
    log: PathBuf,
}

impl Home {
    /// Starts a node on this home's database and waits until it is ready. `settings` are
    /// environment variables without their `KEYSTEAD__`, such as `("SERVER__DRAIN_DELAY", "0s")`.
    pub async fn spawn(&self, settings: &[(&str, &str)]) -> Process {
        let mut process = self.start(settings);
        process.ready(Duration::from_secs(20)).await;
        process
    }

    /// Starts a node and does not wait: it may have to end by itself.
    pub fn start(&self, settings: &[(&str, &str)]) -> Process {
        let mut command = Command::new(binary());
        command.arg("serve");
        self.start_by(command, settings, None)
    }

    /// Starts a node by another command, which must become it, and maybe with another standard
    /// output than the log.
    pub fn start_by(
        &self,
        mut command: Command,
        settings: &[(&str, &str)],
        stdout: Option<Stdio>,
    ) -> Process {
        let given = settings.iter().find(|(name, _)| *name == "SERVER__LISTEN");
        let probe = match given {
            Some((_, address)) => address.parse().expect("an address"),
            None => free_address(),
        };
        let address = probe.to_string();
        let log = self.dir().join(format!("node-{}.log", probe.port()));
        let output = File::create(&log).expect("the home is writable");
        command
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("it is open"))
            .stdout(stdout.unwrap_or_else(|| output.into()));
        let data_dir = self.dir().join(format!("data-{}", probe.port()));
        for (name, value) in self.settings(&data_dir, &address) {
            command.env(format!("KEYSTEAD__{name}"), value);
        }
        for (name, value) in settings {
            command.env(format!("KEYSTEAD__{name}"), value);
        }
        let child = command.spawn().expect("cargo built the binary");
        Process {
            address,
            data_dir,
            child,
            log,
        }
    }
}

/// Free now, and below those that clients get: nobody else binds it before the node does, as far as
/// anybody can tell.
pub fn free_address() -> SocketAddr {
    loop {
        let port = 10_000 + u16::from_be_bytes(Entropy::System.bytes()) % 20_000;
        if let Ok(probe) = TcpListener::bind(("127.0.0.1", port)) {
            return probe.local_addr().expect("it is bound");
        }
    }
}

impl Process {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is ready.
    pub async fn ready(&mut self, bound: Duration) {
        let client = self.client();
        until(bound, "the node is ready", async || {
            if let Some(status) = self.child.try_wait().expect("our child") {
                panic!("the node ended with {status}: {}", self.log());
            }
            let answer = client.get("/health/ready").try_send().await;
            answer.is_some_and(|answer| answer.status == 200)
        })
        .await;
    }

    pub fn client(&self) -> Client {
        Client::new(format!("http://{}", self.address))
    }

    /// Speaks with the owner key that its first start left.
    pub fn owner(&self) -> Client {
        let key = std::fs::read_to_string(self.data_dir.join("owner.key"));
        self.client().with_key(key.expect("an owner key").trim())
    }

    /// Everything it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("we made it")
    }

    /// Sends a signal, such as `TERM`, `STOP` or `KILL`.
    pub fn signal(&self, name: &str) {
        signal(self.child.id(), name);
    }

    /// The memory that it holds.
    pub fn memory_kib(&self) -> u64 {
        let id = self.id().to_string();
        if let Ok(status) = std::fs::read_to_string(format!("/proc/{id}/status")) {
            let held = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let held = held.expect("the node runs").trim().trim_end_matches(" kB");
            return held.parse().expect("a number");
        }
        let told = Command::new("ps").args(["-o", "rss=", "-p", &id]).output();
        let told = told.expect("without /proc there is ps").stdout;
        String::from_utf8_lossy(&told)
            .trim()
            .parse()
            .expect("a number")
    }

    /// Waits for its end.
    pub async fn ended(&mut self, bound: Duration) -> ExitStatus {
        let mut status = None;
        until(bound, "the node has ended", async || {
            status = self.child.try_wait().expect("our child");
            status.is_some()
        })
        .await;
        status.expect("it has ended")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends a signal to any process that a test has to do with.
pub fn signal(id: u32, name: &str) {
    let sent = Command::new("kill")
        .args([format!("-{name}"), id.to_string()])
        .status()
        .expect("kill is everywhere");
    assert!(sent.success(), "kill -{name}");
}

/// A process that stands still until this is dropped.
pub struct Frozen(u32);

impl Frozen {
    pub fn process(id: u32) -> Self {
        signal(id, "STOP");
        Self(id)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal(self.0, "CONT");
    }
}
