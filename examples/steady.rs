//! A load generator at a fixed rate, for `scripts/bench`: a request is sent when it is due, whether or
//! not those before it were answered, and its latency counts from then. So a server that stalls
//! cannot hide it by being asked less.
//!
//! `steady <address> <requests a second> <seconds> <connections> <file> [<samples>]`
//!
//! The file holds what stands before the key of a request, what stands behind it, and the keys, apart
//! by lines of `---`. It spins on its core, so it is never late by itself for want of a timer; it sleeps
//! while nothing is under way and nothing is due soon, and at rates that leave the time for it a moment
//! whenever there is nothing to read, so that who shares the core gets some of it. A due request that finds every connection busy waits, and that counts. It prints JSON: how many were
//! answered 200, how many otherwise, percentiles of the latency in microseconds, and of all answers, the
//! first ones too, how many had which `code`. Into `samples` goes a line for each that is counted: when it
//! was due, in milliseconds from the beginning, and its latency.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufWriter, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use serde_json::json;

/// A connection that was not needed for so long is opened anew: the server may be about to close it.
const IDLE: Duration = Duration::from_secs(2);

/// Nothing that is due sooner is slept for.
const SOON: Duration = Duration::from_micros(60);

/// At rates with so long between two requests it sleeps for [`MOMENT`] when there is nothing to read.
const UNHURRIED: Duration = Duration::from_micros(100);

const MOMENT: Duration = Duration::from_micros(20);

/// What was sent first is not counted: connections and caches are still cold.
const WARM_UP: Duration = Duration::from_secs(1);

struct Plan {
    head: String,
    tail: String,
    keys: Vec<String>,
}

struct Connection {
    address: String,
    stream: TcpStream,
    /// When it was last sent a request.
    sent: Instant,
    /// When the request under way was due.
    due: Option<Instant>,
    received: Vec<u8>,
}

/// What was answered, and when all of it was.
struct Answer {
    status: u16,
    code: String,
}

#[derive(Default)]
struct Tally {
    micros: Vec<u64>,
    refused: u64,
    codes: BTreeMap<String, u64>,
    samples: Option<BufWriter<File>>,
}

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ([address, rate, seconds, connections, file]
    | [address, rate, seconds, connections, file, _]) = arguments.as_slice()
    else {
        return Err(anyhow!(
            "usage: steady <address> <rate> <seconds> <connections> <file> [<samples>]"
        ));
    };
    let samples = arguments.get(5).map(File::create).transpose()?;
    let plan = Plan::read(file)?;
    let interval = Duration::from_secs(1)
        .checked_div(rate.parse()?)
        .context("the rate must not be 0")?;
    let mut connections = (0..connections.parse()?)
        .map(|_| Connection::open(address))
        .collect::<io::Result<Vec<_>>>()?;
    let lasts = WARM_UP + Duration::from_secs(seconds.parse()?);
    let mut tally = Tally {
        samples: samples.map(BufWriter::new),
        ..Tally::default()
    };
    run(&plan, &mut connections, interval, lasts, &mut tally)?;
    writeln!(io::stdout(), "{}", tally.told()?)?;
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
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let began = now();
    let (counted_from, end) = (began + WARM_UP, began + lasts);
    let mut keys = plan.keys.iter().cycle();
    let mut next = began;
    let mut due = VecDeque::new();
    loop {
        let at = now();
        while next <= at && next < end {
            due.push_back(next);
            next += interval;
        }
        let (mut is_idle, mut has_moved) = (true, false);
        for connection in &mut *connections {
            if let Some(was_due) = connection.due {
                is_idle = false;
                if let Some(answer) = connection.answered()? {
                    has_moved = true;
                    let took = now().duration_since(was_due);
                    let counts = was_due >= counted_from;
                    tally.add(
                        answer,
                        counts.then(|| (was_due.duration_since(began), took)),
                    )?;
                }
            }
            if connection.due.is_none()
                && let Some(is_due) = due.pop_front()
            {
                let key = keys.next().context("the file has no keys")?;
                connection.send(plan, key, is_due)?;
                (is_idle, has_moved) = (false, true);
            }
        }
        if next >= end && due.is_empty() && is_idle {
            return Ok(());
        }
        if is_idle && due.is_empty() {
            nap(next.saturating_duration_since(now()).saturating_sub(SOON));
        } else if !has_moved && interval >= UNHURRIED {
            nap(MOMENT);
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "who shares the core gets some of it"
)]
fn nap(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
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
            address: address.to_owned(),
            stream,
            sent: now(),
            due: None,
            received: Vec::new(),
        })
    }

    fn send(&mut self, plan: &Plan, key: &str, due: Instant) -> io::Result<()> {
        let at = now();
        if at.duration_since(self.sent) > IDLE {
            *self = Self::open(&self.address)?;
        }
        self.sent = at;
        // Far less than a socket's buffer, which is empty: it is taken whole.
        let request = [plan.head.as_str(), key, plan.tail.as_str()].concat();
        self.stream.write_all(request.as_bytes())?;
        self.due = Some(due);
        Ok(())
    }

    /// Once the whole of it is there.
    fn answered(&mut self) -> anyhow::Result<Option<Answer>> {
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
        // Nothing before it in an answer is text of ours.
        let code = body.split_once("\"code\":\"");
        let code = code.and_then(|(_, rest)| rest.split('"').next());
        let code = code.unwrap_or_default().to_owned();
        self.received.clear();
        self.due = None;
        Ok(Some(Answer { status, code }))
    }
}

impl Tally {
    /// `counted` is when it was due, from the beginning, and how long it took.
    fn add(&mut self, answer: Answer, counted: Option<(Duration, Duration)>) -> io::Result<()> {
        *self.codes.entry(answer.code).or_default() += 1;
        let Some((due, took)) = counted else {
            return Ok(());
        };
        if answer.status != 200 {
            self.refused += 1;
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.micros.push(micros);
        if let Some(samples) = &mut self.samples {
            writeln!(samples, "{} {micros}", due.as_millis())?;
        }
        Ok(())
    }

    fn told(mut self) -> io::Result<serde_json::Value> {
        if let Some(samples) = &mut self.samples {
            samples.flush()?;
        }
        self.micros.sort_unstable();
        let percentile = |per_mille: usize| {
            let at =
                (self.micros.len() * per_mille / 1000).min(self.micros.len().saturating_sub(1));
            self.micros.get(at)
        };
        Ok(json!({
            "answered": self.micros.len(),
            "refused": self.refused,
            "p50_us": percentile(500),
            "p99_us": percentile(990),
            "p999_us": percentile(999),
            "max_us": self.micros.last(),
            "codes": self.codes,
        }))
    }
}
