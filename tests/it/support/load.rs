//! Load on nodes: a bounded number of keep-alive clients that keep to a schedule, and what they were
//! told. The clients are small enough not to be what is measured.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// No answer is waited for longer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// What an answer to a key that is good begins with.
const VALID: &[u8] = br#"{"valid":true,"code":"valid","#;

/// A validation as it goes over the wire, made once.
#[derive(Clone)]
pub struct Question(Arc<[u8]>);

impl Question {
    /// Asks for the key at the service `invoicing`, as `caller`.
    pub fn verify(caller: &str, api_key: &str) -> Self {
        Self::verify_for(caller, api_key, "invoicing", 1)
    }

    pub fn verify_for(caller: &str, api_key: &str, service: &str, cost: u32) -> Self {
        let body = json!({
            "api_key": api_key, "service": service, "ip": "203.0.113.9",
            "required_scopes": ["invoice:read"], "cost": cost,
        });
        let body = body.to_string();
        let request = format!(
            "POST /v1/verify HTTP/1.1\r\nhost: keystead\r\nx-api-key: {caller}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Self(request.into_bytes().into())
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// 0 if there was no answer.
    pub status: u16,
    /// A decision's or a problem's; empty if there is none.
    pub code: String,
    pub retry_after_ms: Option<u64>,
    /// As the node calls the request; empty if there was no answer.
    pub request_id: String,
}

impl Told {
    pub fn is_valid(&self) -> bool {
        (self.status, self.code.as_str()) == (200, "valid")
    }

    fn nothing(why: impl fmt::Display) -> Self {
        Self {
            status: 0,
            code: format!("({why})"),
            retry_after_ms: None,
            request_id: String::new(),
        }
    }
}

/// One keep-alive connection. One that the other side closed while it was idle is made anew, as any
/// client does; what fails once it was sent is never sent again.
pub struct Line {
    address: SocketAddr,
    stream: Option<TcpStream>,
}

impl Line {
    pub fn to(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
        }
    }

    pub async fn open(&mut self) -> std::io::Result<()> {
        if let Some(stream) = &self.stream {
            let idle = stream.try_read(&mut [0]);
            let is_open = idle.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            if is_open {
                return Ok(());
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.stream = Some(stream);
        Ok(())
    }

    pub async fn ask(&mut self, question: &Question) -> Told {
        let asked = tokio::time::timeout(ANSWER_MAX, self.exchange(question)).await;
        match asked {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                self.stream = None;
                Told::nothing(error)
            }
            Err(elapsed) => {
                self.stream = None;
                Told::nothing(elapsed)
            }
        }
    }

    async fn exchange(&mut self, question: &Question) -> std::io::Result<Told> {
        self.open().await?;
        let stream = self.stream.as_mut().expect("it was opened");
        stream.write_all(&question.0).await?;
        let mut answer = Answer {
            bytes: Vec::with_capacity(4_096),
            ..Answer::default()
        };
        while !answer.is_whole() {
            if stream.read_buf(&mut answer.bytes).await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
        }
        if answer.field("connection: ") == Some("close") {
            self.stream = None;
        }
        Ok(answer.told())
    }
}

/// What was read of an answer.
#[derive(Default)]
struct Answer {
    bytes: Vec<u8>,
    /// In lower case, without the empty line; empty until it is there.
    head: String,
    /// Where the body begins, and how long it is.
    body: (usize, usize),
}

impl Answer {
    fn is_whole(&mut self) -> bool {
        const END: &str = "\r\n\r\n";
        if self.head.is_empty() {
            let text = String::from_utf8_lossy(&self.bytes);
            let Some(end) = text.find(END) else {
                return false;
            };
            self.head = text[..end].to_ascii_lowercase();
            let length = self.field("content-length: ");
            let length = length.and_then(|length| length.parse().ok());
            self.body = (end + END.len(), length.unwrap_or(0));
        }
        self.bytes.len() >= self.body.0 + self.body.1
    }

    fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.split("\r\n");
        fields.find_map(|line| line.strip_prefix(name))
    }

    fn told(&self) -> Told {
        let status = self.head.split(' ').nth(1);
        let status = status.and_then(|status| status.parse().ok()).unwrap_or(0);
        let request_id = self.field("x-request-id: ").unwrap_or_default().to_owned();
        // What stands behind it, if anything, is no JSON then.
        let body = &self.bytes[self.body.0..];
        if status == 200 && body.starts_with(VALID) && body.ends_with(b"}") {
            // Thousands of these are told a second by a client that no compiler made fast.
            return Told {
                status,
                code: "valid".to_owned(),
                retry_after_ms: None,
                request_id,
            };
        }
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        Told {
            status,
            code: body["code"].as_str().unwrap_or_default().to_owned(),
            retry_after_ms: body["retry_after_ms"].as_u64(),
            request_id,
        }
    }
}

/// One question that was due.
#[derive(Clone, Debug)]
pub struct Shot {
    /// When it was due, from the beginning of the load.
    pub at: Duration,
    /// From when it was due: what had to wait for a free client counts too.
    pub latency: Duration,
    pub told: Told,
}

/// Load that runs, on a thread of its own: what is measured does not stand behind other loads' answers.
pub struct Load {
    pub began: Instant,
    clients: Vec<JoinHandle<Vec<Shot>>>,
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    _thread: Thread,
}

struct Thread(Option<Runtime>);

impl Thread {
    fn new() -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name("load").enable_all();
        Self(Some(runtime.build().expect("a runtime starts")))
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.0.as_ref().expect("it runs").spawn(work)
    }
}

impl Drop for Thread {
    /// Waits for nothing: that is not allowed where other tasks run.
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a load is made of.
pub struct Plan {
    /// Asked in turn, as are the questions.
    pub nodes: Vec<SocketAddr>,
    pub questions: Vec<Question>,
    /// A second; 0 is as fast as the clients can.
    pub rate: u32,
    pub clients: usize,
    /// So many in all, unless it is stopped.
    pub count: u64,
}

impl Plan {
    /// The usual one: at this rate, until it is stopped.
    pub fn at(rate: u32, nodes: Vec<SocketAddr>, questions: Vec<Question>) -> Self {
        Self {
            nodes,
            questions,
            rate,
            clients: 48,
            count: u64::MAX,
        }
    }

    /// So many at once, each client with one.
    pub fn at_once(count: usize, nodes: Vec<SocketAddr>, questions: Vec<Question>) -> Self {
        Self {
            clients: count,
            count: count as u64,
            ..Self::at(0, nodes, questions)
        }
    }

    /// Those who are to ask at once are connected before it begins.
    pub async fn start(self) -> Load {
        let thread = Thread::new();
        let plan = Arc::new(self);
        let lines = thread.spawn({
            let plan = Arc::clone(&plan);
            async move { plan.lines().await }
        });
        let lines = lines.await.unwrap();
        let began = Instant::now();
        let (next, stop) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let clients = lines.into_iter().map(|lines| {
            let (plan, next, stop) = (Arc::clone(&plan), Arc::clone(&next), Arc::clone(&stop));
            thread.spawn(async move { plan.work(began, lines, &next, &stop).await })
        });
        let clients = clients.collect();
        Load {
            began,
            clients,
            next,
            stop,
            _thread: thread,
        }
    }

    /// Those of each client.
    async fn lines(&self) -> Vec<Vec<Line>> {
        let mut clients = Vec::new();
        let is_one_each = self.count == self.clients as u64;
        for client in 0..self.clients {
            let mut lines: Vec<_> = self.nodes.iter().map(|node| Line::to(*node)).collect();
            if is_one_each {
                let mut line = Line::to(self.nodes[client % self.nodes.len()]);
                line.open().await.expect("the node listens");
                lines = vec![line];
            }
            clients.push(lines);
        }
        clients
    }

    pub async fn run(self) -> Report {
        assert!(self.count < u64::MAX, "it would never end");
        self.start().await.ended().await
    }

    async fn work(
        &self,
        began: Instant,
        mut lines: Vec<Line>,
        next: &AtomicU64,
        stop: &AtomicBool,
    ) -> Vec<Shot> {
        let mut shots = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.count || stop.load(Ordering::Relaxed) {
                return shots;
            }
            let mut due = Instant::now();
            if self.rate > 0 {
                due = began + Duration::from_secs(1) * u32::try_from(number).unwrap() / self.rate;
                sleep_until(due).await;
            }
            let at = usize::try_from(number).unwrap();
            let question = &self.questions[at % self.questions.len()];
            // Not in step with the questions, so that every node is asked all of them.
            let turn = (at + at / self.questions.len()) % lines.len();
            let told = lines[turn].ask(question).await;
            shots.push(Shot {
                at: due - began,
                latency: due.elapsed(),
                told,
            });
        }
    }
}

impl Load {
    /// So far.
    pub fn asked(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    pub async fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        self.ended().await
    }

    async fn ended(self) -> Report {
        let shots = join_all(self.clients).await;
        let mut shots: Vec<_> = shots.into_iter().flat_map(Result::unwrap).collect();
        shots.sort_by_key(|shot| shot.at);
        Report(shots)
    }
}

/// What came of it, in the order of the schedule.
pub struct Report(pub Vec<Shot>);

impl Report {
    /// Those that were due within these times from the beginning.
    pub fn between(&self, from: Duration, to: Duration) -> Self {
        let within = |shot: &&Shot| (from..to).contains(&shot.at);
        Self(self.0.iter().filter(within).cloned().collect())
    }

    pub fn count(&self, code: &str) -> usize {
        self.0.iter().filter(|shot| shot.told.code == code).count()
    }

    pub fn p99(&self) -> Duration {
        percentile(self.0.iter().map(|shot| shot.latency), 99)
    }

    pub fn max(&self) -> Duration {
        percentile(self.0.iter().map(|shot| shot.latency), 100)
    }

    /// Admissions of a limit that admits `limit`: never more. Whether it was exactly so many, which it
    /// is but for calls to Redis that took too long, on a machine that stalls. They are refused for a
    /// second, which nobody else is, and may have been counted.
    ///
    /// # Panics
    /// If anything was answered but `valid` and `rate_limited`.
    #[track_caller]
    pub fn admits_exactly(&self, limit: usize) -> bool {
        let (admitted, refused) = (self.count("valid"), self.count("rate_limited"));
        assert_eq!(admitted + refused, self.0.len(), "{self}");
        let lost = self.0.iter();
        let lost = lost.filter(|shot| shot.told.retry_after_ms == Some(1_000));
        let least = limit - lost.count().min(limit);
        assert!(
            (least..=limit).contains(&admitted),
            "{admitted} admitted, not {least} to {limit}"
        );
        admitted == limit
    }

    /// # Panics
    /// If anything was answered but `valid`, or if nothing was asked.
    #[track_caller]
    pub fn expect_all_valid(&self, when: &str) {
        assert!(!self.0.is_empty(), "{when}: nothing was asked");
        let mut failed = self.0.iter().filter(|shot| !shot.told.is_valid());
        let first = failed.next();
        assert!(
            first.is_none(),
            "{when}: {} of {} failed; the first: {first:?}",
            failed.count() + 1,
            self.0.len()
        );
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut codes = BTreeMap::<_, usize>::new();
        for shot in &self.0 {
            let code = (shot.told.status, shot.told.code.as_str());
            *codes.entry(code).or_default() += 1;
        }
        for ((status, code), count) in codes {
            write!(f, "{count} {status} {code}, ")?;
        }
        let p50 = percentile(self.0.iter().map(|shot| shot.latency), 50);
        let (p99, max) = (self.p99(), self.max());
        write!(f, "p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}")
    }
}

/// The smallest that `percent` of them do not exceed; zero of none.
pub fn percentile(times: impl IntoIterator<Item = Duration>, percent: usize) -> Duration {
    let mut times: Vec<_> = times.into_iter().collect();
    times.sort();
    let at = (times.len() * percent).div_ceil(100).saturating_sub(1);
    times.get(at).copied().unwrap_or_default()
}
