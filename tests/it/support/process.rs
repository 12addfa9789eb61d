//! The real binary, as an operator runs it: for what is about starting, stopping and being killed.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::{Client, Home, until};

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
        let client = process.client();
        until(Duration::from_secs(20), "the node is ready", async || {
            if let Some(status) = process.child.try_wait().expect("our child") {
                panic!("the node ended with {status}: {}", process.log());
            }
            let answer = client.get("/health/ready").try_send().await;
            answer.is_some_and(|answer| answer.status == 200)
        })
        .await;
        process
    }

    /// Starts a node and does not wait: it may have to end by itself.
    pub fn start(&self, settings: &[(&str, &str)]) -> Process {
        // Free now; nobody else binds it before the node does, as far as anybody can tell.
        let probe = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let probe = probe.local_addr().expect("it is bound");
        let address = probe.to_string();
        let log = self.dir().join(format!("node-{}.log", probe.port()));
        let output = File::create(&log).expect("the home is writable");
        let mut command = Command::new(env!("CARGO_BIN_EXE_keystead"));
        command
            .arg("serve")
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stderr(output.try_clone().expect("it is open"))
            .stdout(output);
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

impl Process {
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
        let sent = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .expect("kill is everywhere");
        assert!(sent.success(), "kill -{name}");
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
