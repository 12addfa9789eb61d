//! The one way to Redis (or Valkey).
//!
//! - Each thread has a connection of its own, whose driver lives on that thread's runtime: a worker's
//!   command wakes no other thread of ours.
//! - A call takes at most [`CALL_MAX`], whatever happens, and a connection is made in twice that.
//! - After three failures in a row, on whichever threads, a breaker opens: calls then fail at once,
//!   until [`RedisLink::keep_probing`] finds that Redis answers again.
//!
//! A call that failed may have been carried out. Nothing is sent twice.

mod breaker;
mod connect;

use std::cell::RefCell;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use redis::aio::PubSub;
use redis::{Cmd, ErrorKind, FromRedisValue, Pipeline, RedisError, ServerErrorKind, ToRedisArgs};

use self::breaker::Breaker;
use self::connect::{Connection, Connector, fault};
use crate::clock::Clock;
use crate::config::RedisUrl;

pub use self::connect::Fault;

/// The longest a call takes.
pub const CALL_MAX: Duration = Duration::from_millis(50);

/// The longest that the start waits for an answer.
const CHECK_MAX: Duration = Duration::from_secs(1);

/// Between two probes: of one that is away or in doubt, and of one that is idle.
const PROBE_AWAY: Duration = Duration::from_millis(200);
const PROBE_IDLE: Duration = Duration::from_secs(1);

/// How often it is told that Redis is there and refuses us.
const REFUSAL_EVERY_US: u64 = 60_000_000;

/// Calls on one connection that time out in a row before another connection is made.
const TIMEOUTS_MAX: u32 = 2;

/// Redis did not do what it was asked, or nobody knows whether it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Redis is away")]
pub struct RedisAway;

/// A Lua script that is sent once and then called by its hash.
#[derive(Debug)]
pub struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    pub fn new(code: &'static str) -> Self {
        let hash = redis::Script::new(code).get_hash().to_owned();
        Self { code, hash }
    }
}

/// The way to one Redis, cheap to clone.
#[derive(Clone)]
pub struct RedisLink(Arc<Inner>);

struct Inner {
    connector: Connector,
    call_max: Duration,
    breaker: Breaker,
    clock: Clock,
    began: Instant,
    /// Start of the last call that succeeded, in microseconds since `began`, plus one; 0 for none.
    last_ok: AtomicU64,
    calls: AtomicU64,
    failures: AtomicU64,
    /// When it was last told that Redis is there and refuses us, as `last_ok`.
    refusal_told: AtomicU64,
}

/// What a thread has towards one Redis.
struct Line {
    link: Weak<Inner>,
    era: u64,
    /// Made by a task of its own, because who waits for it may give up before it is there.
    connection: Shared<BoxFuture<'static, Result<Connection, Fault>>>,
    timeouts: AtomicU32,
    given_up: AtomicBool,
}

thread_local! {
    static LINES: RefCell<Vec<Arc<Line>>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy)]
enum Request<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    Script(&'a Cmd, &'static str),
}

impl RedisLink {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// What is wrong with the certificates that `url` names.
    pub fn open(url: &RedisUrl, clock: Clock) -> Result<Self, String> {
        Self::open_with(url, clock, CALL_MAX)
    }

    /// The same with another limit than [`CALL_MAX`], for who has more time.
    ///
    /// # Errors
    /// As [`RedisLink::open`].
    pub fn open_with(url: &RedisUrl, clock: Clock, call_max: Duration) -> Result<Self, String> {
        Ok(Self(Arc::new(Inner {
            connector: Connector::new(url)?,
            call_max,
            breaker: Breaker::default(),
            began: clock.monotonic(),
            clock,
            last_ok: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            refusal_told: AtomicU64::new(0),
        })))
    }

    /// Whether Redis can be used at all; for the start.
    ///
    /// # Errors
    /// [`Fault::Away`] may get better by itself, the others will not.
    pub async fn check(&self) -> Result<(), Fault> {
        let answered = async {
            let mut connection = self.0.connector.connect().await?;
            ping(&mut connection).await
        };
        match tokio::time::timeout(CHECK_MAX, answered).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Fault::Away("no answer within a second".to_owned())),
        }
    }

    pub async fn query<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisAway> {
        self.call(Request::Command(command)).await
    }

    /// Sends all commands at once; `atomic` ones make a transaction.
    pub async fn pipeline<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisAway> {
        self.call(Request::Pipeline(pipeline)).await
    }

    /// Calls a script, which is loaded first if Redis does not know it.
    pub async fn script<T: FromRedisValue>(
        &self,
        script: &Script,
        keys: &[impl ToRedisArgs],
        args: &[impl ToRedisArgs],
    ) -> Result<T, RedisAway> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&script.hash).arg(keys.len());
        for key in keys {
            command.arg(key);
        }
        for arg in args {
            command.arg(arg);
        }
        self.call(Request::Script(&command, script.code)).await
    }

    /// A connection of its own that receives messages, not subscribed to anything yet. It ends when
    /// Redis goes away; whoever listens then asks for another.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn messages(&self) -> Result<PubSub, Fault> {
        let connecting = self.0.connector.connect_for_messages();
        match tokio::time::timeout(CHECK_MAX, connecting).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Fault::Away("no answer within a second".to_owned())),
        }
    }

    /// Whether calls fail at once.
    pub fn is_away(&self) -> bool {
        self.0.breaker.is_open()
    }

    /// When the last call that succeeded was *begun*, in microseconds since the link was opened: at
    /// that moment, or after it, Redis answered.
    pub fn last_ok_us(&self) -> Option<u64> {
        self.0.last_ok.load(Ordering::Acquire).checked_sub(1)
    }

    /// Now, on the scale of [`RedisLink::last_ok_us`].
    pub fn elapsed_us(&self) -> u64 {
        self.0.elapsed_us()
    }

    /// Calls made so far that reached out to Redis.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::Relaxed)
    }

    /// Those of them that failed.
    pub fn failures(&self) -> u64 {
        self.0.failures.load(Ordering::Relaxed)
    }

    /// Probes Redis while it is away, and while nobody else calls it, so that a dead one is noticed
    /// before a request pays for it. Never ends.
    pub async fn keep_probing(self) {
        let mut kept = None;
        loop {
            let breaker = &self.0.breaker;
            let pause = if breaker.is_open() || breaker.is_in_doubt() {
                PROBE_AWAY
            } else {
                PROBE_IDLE
            };
            tokio::time::sleep(pause).await;
            let idle_us = self
                .elapsed_us()
                .saturating_sub(self.last_ok_us().unwrap_or(0));
            let is_idle = Duration::from_micros(idle_us) >= PROBE_IDLE;
            if breaker.is_open() || breaker.is_in_doubt() || is_idle {
                self.probe(&mut kept).await;
            }
        }
    }

    /// One `PING` on a connection that nobody else uses.
    async fn probe(&self, kept: &mut Option<Connection>) {
        let began = self.elapsed_us();
        // What was open before Redis went away proves nothing about connections to come.
        let reused = kept
            .take()
            .filter(|open| !open.has_ended() && !self.is_away());
        let answered = async {
            let mut connection = match reused {
                Some(connection) => connection,
                None => self.0.connector.connect().await?,
            };
            ping(&mut connection).await?;
            Ok(connection)
        };
        let done = match tokio::time::timeout(self.0.connect_max(), answered).await {
            Ok(done) => done,
            Err(_elapsed) => Err(Fault::Away("no answer in time".to_owned())),
        };
        match done {
            Ok(connection) => {
                *kept = Some(connection);
                self.0.succeeded(began);
                if self.0.breaker.close() {
                    tracing::info!("Redis answers again");
                }
            }
            Err(fault) => self.0.failed(&fault),
        }
    }

    async fn call<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, RedisAway> {
        if self.is_away() {
            return Err(RedisAway);
        }
        let began = self.elapsed_us();
        self.0.calls.fetch_add(1, Ordering::Relaxed);
        let line = self.line();
        let answered = tokio::time::timeout(self.0.call_max, line.ask(request)).await;
        match answered {
            Ok(Ok(answer)) => {
                line.timeouts.store(0, Ordering::Relaxed);
                self.0.succeeded(began);
                Ok(answer)
            }
            Ok(Err(Failure::Command(error))) => {
                // Redis is well; what we asked is not. Somebody has to look at it.
                self.0.succeeded(began);
                self.0.failures.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, "Redis does not understand us");
                Err(RedisAway)
            }
            Ok(Err(Failure::Link(fault))) => {
                line.given_up.store(true, Ordering::Relaxed);
                self.0.failed(&fault);
                Err(RedisAway)
            }
            Err(_elapsed) => {
                if line.timeouts.fetch_add(1, Ordering::Relaxed) + 1 >= TIMEOUTS_MAX {
                    line.given_up.store(true, Ordering::Relaxed);
                }
                self.0.failed(&Fault::Away("no answer in time".to_owned()));
                Err(RedisAway)
            }
        }
    }

    /// This thread's connection to this Redis, or a new one if it has none that is worth using.
    fn line(&self) -> Arc<Line> {
        LINES.with_borrow_mut(|lines| {
            let at = Arc::as_ptr(&self.0);
            let mine = lines.iter().find(|line| line.link.as_ptr() == at);
            if let Some(line) = mine
                && line.is_good(self.0.breaker.era())
            {
                return Arc::clone(line);
            }
            // Those of links that nobody holds any more go too.
            lines.retain(|line| line.link.as_ptr() != at && line.link.strong_count() > 0);
            let line = Arc::new(Line::new(&self.0));
            lines.push(Arc::clone(&line));
            line
        })
    }
}

impl Inner {
    /// The longest that making a connection takes, and a probe.
    fn connect_max(&self) -> Duration {
        self.call_max.saturating_mul(2)
    }

    fn elapsed_us(&self) -> u64 {
        let elapsed = self.clock.monotonic().saturating_duration_since(self.began);
        u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
    }

    fn succeeded(&self, began_us: u64) {
        self.last_ok
            .fetch_max(began_us.saturating_add(1), Ordering::AcqRel);
        self.breaker.succeeded();
    }

    fn failed(&self, fault: &Fault) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if self.breaker.failed() {
            tracing::warn!(%fault, "Redis is away: this node goes on alone");
        } else if !matches!(fault, Fault::Away(_)) && self.breaker.is_open() && self.may_tell() {
            tracing::warn!(%fault, "Redis is there again and cannot be used: this node goes on alone");
        }
    }

    /// Whether nothing was told of a refusal for a minute.
    fn may_tell(&self) -> bool {
        let now = self.elapsed_us().saturating_add(1);
        let is_due =
            |told: u64| (told == 0 || now.saturating_sub(told) >= REFUSAL_EVERY_US).then_some(now);
        self.refusal_told
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_due)
            .is_ok()
    }
}

/// Why a call failed.
enum Failure {
    /// This command, on a connection that works.
    Command(RedisError),
    Link(Fault),
}

impl Line {
    fn new(link: &Arc<Inner>) -> Self {
        // The task ends by itself, and must not keep the link alive beyond that.
        let inner = Arc::clone(link);
        let connecting = tokio::spawn(async move {
            let connecting = inner.connector.connect();
            match tokio::time::timeout(inner.connect_max(), connecting).await {
                Ok(done) => done,
                Err(_elapsed) => Err(Fault::Away("no connection in time".to_owned())),
            }
        });
        let connection = connecting
            .map(|joined| match joined {
                Ok(done) => done,
                Err(error) => Err(Fault::Away(error.to_string())),
            })
            .boxed()
            .shared();
        Self {
            link: Arc::downgrade(link),
            era: link.breaker.era(),
            connection,
            timeouts: AtomicU32::new(0),
            given_up: AtomicBool::new(false),
        }
    }

    /// Whether something sent on it may arrive. One that the other side closed while it was idle is
    /// noticed here, before anything is sent, so no call fails for it.
    fn is_good(&self, era: u64) -> bool {
        let is_open = match self.connection.peek() {
            Some(Ok(connection)) => !connection.has_ended(),
            Some(Err(_)) => false,
            None => true,
        };
        is_open && self.era == era && !self.given_up.load(Ordering::Relaxed)
    }

    async fn ask<T: FromRedisValue>(&self, request: Request<'_>) -> Result<T, Failure> {
        let connecting: &Shared<_> = &self.connection;
        let mut redis = match connecting.clone().await {
            Ok(connection) => connection.redis,
            Err(fault) => return Err(Failure::Link(fault)),
        };
        let redis = &mut redis;
        let done = match request {
            Request::Command(command) => command.query_async(redis).await,
            Request::Pipeline(pipeline) => pipeline.query_async(redis).await,
            Request::Script(command, code) => match command.query_async(redis).await {
                Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                    let mut load = redis::cmd("SCRIPT");
                    load.arg("LOAD").arg(code);
                    match load.query_async::<String>(redis).await {
                        Ok(_hash) => command.query_async(redis).await,
                        Err(error) => Err(error),
                    }
                }
                done => done,
            },
        };
        done.map_err(|error| {
            if is_about_the_command(&error) {
                Failure::Command(error)
            } else {
                Failure::Link(fault(&error))
            }
        })
    }
}

async fn ping(connection: &mut Connection) -> Result<(), Fault> {
    let command = redis::cmd("PING");
    let answer = command.query_async::<String>(&mut connection.redis);
    answer.await.map(drop).map_err(|error| fault(&error))
}

/// Whether another command could have succeeded on the same Redis. Everything else, such as a full
/// memory, a replica that was promoted by nobody, or a dump that is still loaded, is being away.
fn is_about_the_command(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::UnexpectedReturnType => true,
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::ResponseError
                | ServerErrorKind::ExecAbort
                | ServerErrorKind::NoScript
                | ServerErrorKind::CrossSlot
        ),
        _ => error.code() == Some("WRONGTYPE"),
    }
}

impl fmt::Debug for RedisLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisLink")
            .field("is_away", &self.is_away())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_send<T: Send>(_: &T) {}

    #[test]
    fn a_call_may_move_between_threads() {
        let url = RedisUrl::parse("redis://127.0.0.1:1").unwrap();
        let link = RedisLink::open(&url, Clock::System).unwrap();
        let command = redis::cmd("PING");
        is_send(&link.query::<()>(&command));
        is_send(&link.clone().keep_probing());
        assert_eq!((link.calls(), link.last_ok_us()), (0, None));
    }

    #[test]
    fn a_missing_certificate_is_named() {
        let url = RedisUrl::parse("rediss://localhost?sslrootcert=/nowhere.pem").unwrap();
        let problem = RedisLink::open(&url, Clock::System).unwrap_err();
        let told = "names /nowhere.pem as sslrootcert, which cannot be read: ";
        assert!(problem.starts_with(told), "{problem}");
    }
}
