//! A load generator at a fixed rate, for `scripts/bench`: a request is sent when it is due, whether or
//! not those before it were answered, and its latency counts from then. So a server that stalls
//! cannot hide it by being asked less.
//!
//! `steady <address> <requests a second> <seconds> <connections> <file>`
//!
//! The file holds what stands before the key of a request, what stands behind it, and the keys, apart
//! by lines of `---`. It spins on its core, so it is never late by itself for want of a timer. A due
//! request that finds every connection busy waits, and that counts. It prints JSON: how many were
//! answered 200, how many otherwise, and percentiles of the latency in microseconds.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde_json::json;

/// What was sent first is not counted: connections and caches are still cold.
const WARM_UP: Duration = Duration::from_secs(1);

struct Plan {
    head: String,
    tail: String,
    keys: Vec<String>,
}

struct Connection {
    stream: TcpStream,
    /// When the request under way was due.
    due: Option<Instant>,
    received: Vec<u8>,
}

#[derive(Default)]
struct Tally {
    micros: Vec<u64>,
    refused: u64,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, rate, seconds, connections, file] = arguments.as_slice() else {
        return Err(anyhow!(
            "usage: steady <address> <rate> <seconds> <connections> <file>"
        ));
    };
    let plan = Plan::read(file)?;
    let interval = Duration::from_secs(1)
        .checked_div(rate.parse()?)
        .context("the rate must not be 0")?;
    let mut connections = (0..connections.parse()?)
        .map(|_| Connection::open(address))
        .collect::<io::Result<Vec<_>>>()?;
    let lasts = WARM_UP + Duration::from_secs(seconds.parse()?);
    let tally = run(&plan, &mut connections, interval, lasts)?;
    writeln!(io::stdout(), "{}", tally.told())?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a generator measures by the real clock"
)]
fn now() -> Instant {
    Instant::now()
}

fn run(
    plan: &Plan,
    connections: &mut [Connection],
    interval: Duration,
    lasts: Duration,
) -> anyhow::Result<Tally> {
    let began = now();
    let (counted_from, end) = (began + WARM_UP, began + lasts);
    let mut keys = plan.keys.iter().cycle();
    let mut next = began;
    let mut due = VecDeque::new();
    let mut tally = Tally::default();
    loop {
        let at = now();
        while next <= at && next < end {
            due.push_back(next);
            next += interval;
        }
        let mut is_idle = true;
        for connection in &mut *connections {
            if let Some(was_due) = connection.due {
                is_idle = false;
                if let Some(status) = connection.answered()?
                    && was_due >= counted_from
                {
                    tally.add(status, now().duration_since(was_due));
                }
            }
            if connection.due.is_none()
                && let Some(is_due) = due.pop_front()
            {
                let key = keys.next().context("the file has no keys")?;
                connection.send(plan, key, is_due)?;
                is_idle = false;
            }
        }
        if next >= end && due.is_empty() && is_idle {
            return Ok(tally);
        }
    }
}

impl Plan {
    fn read(file: &str) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file)?;
        let mut parts = text.split("\n---\n");
        let (Some(head), Some(tail), Some(keys)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(anyhow!("the file must have three parts"));
        };
        Ok(Self {
            head: head.to_owned(),
            tail: tail.to_owned(),
            keys: keys.lines().map(str::to_owned).collect(),
        })
    }
}

impl Connection {
    fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            due: None,
            received: Vec::new(),
        })
    }

    fn send(&mut self, plan: &Plan, key: &str, due: Instant) -> io::Result<()> {
        // Far less than a socket's buffer, which is empty: it is taken whole.
        let request = [plan.head.as_str(), key, plan.tail.as_str()].concat();
        self.stream.write_all(request.as_bytes())?;
        self.due = Some(due);
        Ok(())
    }

    /// The status, once the whole answer is there.
    fn answered(&mut self) -> anyhow::Result<Option<u16>> {
        let mut some = [0; 4096];
        match self.stream.read(&mut some) {
            Ok(0) => return Err(anyhow!("the server closed a connection")),
            Ok(count) => self.received.extend(some.iter().take(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let text = std::str::from_utf8(&self.received)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            return Ok(None);
        };
        let length: usize = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .context("an answer without a length")?
            .1
            .parse()?;
        if body.len() < length {
            return Ok(None);
        }
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        self.received.clear();
        self.due = None;
        Ok(Some(status))
    }
}

impl Tally {
    fn add(&mut self, status: u16, latency: Duration) {
        if status != 200 {
            self.refused += 1;
        }
        self.micros
            .push(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    fn told(mut self) -> serde_json::Value {
        self.micros.sort_unstable();
        let percentile = |per_mille: usize| {
            let at =
                (self.micros.len() * per_mille / 1000).min(self.micros.len().saturating_sub(1));
            self.micros.get(at)
        };
        json!({
            "answered": self.micros.len(),
            "refused": self.refused,
            "p50_us": percentile(500),
            "p99_us": percentile(990),
            "p999_us": percentile(999),
            "max_us": self.micros.last(),
        })
    }
}
