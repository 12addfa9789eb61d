//! Servers to test with: those the environment names, else ones that end with this process. And what
//! is only installed: then the URL is a folder.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

/// A server that is found or started at its first use.
pub struct Throwaway {
    kind: &'static str,
    variable: &'static str,
    running: Mutex<Option<Running>>,
}

struct Running {
    url: String,
    /// `scripts/throwaway` stops the server when this pipe closes, however this process ends.
    _owned: Option<Child>,
}

impl Throwaway {
    pub const fn new(kind: &'static str, variable: &'static str) -> Self {
        Self {
            kind,
            variable,
            running: Mutex::new(None),
        }
    }

    /// # Panics
    /// When there is no server and none can be started: it says what to install.
    pub fn url(&self) -> String {
        // Poisoned means that an earlier test found no server: this one looks again.
        let mut running = self
            .running
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        running.get_or_insert_with(|| self.start()).url.clone()
    }

    fn start(&self) -> Running {
        if let Some(url) = super::setting(self.variable) {
            return Running { url, _owned: None };
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/throwaway");
        let mut child = Command::new(script)
            .arg(self.kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot run {script}: {error}"));
        let mut url = String::new();
        BufReader::new(child.stdout.take().expect("it is piped"))
            .read_line(&mut url)
            .expect("its output is text");
        if url.is_empty() {
            let ended = child.wait_with_output().expect("it has ended");
            let why = String::from_utf8_lossy(&ended.stderr);
            panic!("{} is not set, and {why}", self.variable);
        }
        Running {
            url: url.trim().to_owned(),
            _owned: Some(child),
        }
    }
}
