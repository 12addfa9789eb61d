//! The way to Redis, and what happens when Redis does not answer. Times here are real: that they are
//! short is the promise.
#![expect(
    clippy::disallowed_methods,
    reason = "how long a call takes is measured in real time"
)]

use std::time::{Duration, Instant};

use keystead::redis_link::{Fault as LinkFault, RedisAway, RedisLink, Script};
use tokio::task::JoinHandle;

use crate::support::redis::{OwnRedis, behind_proxy, link, patient_link, url};
use crate::support::{Fault, until};

/// A little more than a call may take, and for one call in three on a machine with other things to
/// do twice as much.
const CALL: Duration = Duration::from_millis(60);
/// Where it is not about time.
const PATIENCE: Duration = Duration::from_secs(5);
const OPENS: Duration = Duration::from_secs(1);
const CLOSES: Duration = Duration::from_secs(2);

struct Probing(JoinHandle<()>);

impl Probing {
    fn of(link: &RedisLink) -> Self {
        Self(tokio::spawn(link.clone().keep_probing()))
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn ping(link: &RedisLink) -> Result<String, RedisAway> {
    link.query(&redis::cmd("PING")).await
}

#[tokio::test]
async fn commands_pipelines_and_scripts_are_answered() {
    let link = patient_link(&url(), PATIENCE);
    assert_eq!(ping(&link).await.unwrap(), "PONG");
    let mut pipeline = redis::pipe();
    pipeline.cmd("ECHO").arg("a").cmd("ECHO").arg(7);
    let both: (String, u64) = link.pipeline(&pipeline).await.unwrap();
    assert_eq!(both, ("a".to_owned(), 7));

    // One that Redis cannot know yet, whoever ran before us.
    let code = format!("return {{KEYS[1], ARGV[1], '{}'}}", std::process::id());
    let script = Script::new(code.leak());
    for _ in 0..2 {
        let answer: Vec<String> = link.script(&script, &["k"], &["a"]).await.unwrap();
        assert_eq!(answer[..2], ["k", "a"]);
    }
    let failing = Script::new("return redis.call('GET')");
    for _ in 0..5 {
        let answer = link.script::<()>(&failing, &["k"; 0], &["a"; 0]).await;
        assert_eq!(answer, Err(RedisAway));
    }
    assert!(!link.is_away(), "a bad script is not a Redis that is away");
    assert_eq!(ping(&link).await.unwrap(), "PONG");
}

#[tokio::test]
async fn each_fault_fails_calls_fast_then_at_once_and_ends_within_two_seconds() {
    for fault in [
        Fault::Hang,
        Fault::Reset,
        Fault::Refuse,
        Fault::Delay(Duration::from_millis(300)),
    ] {
        let (mut proxy, url) = behind_proxy(&url()).await;
        let link = link(&url);
        let _probing = Probing::of(&link);
        assert_eq!(ping(&link).await.unwrap(), "PONG");

        proxy.set(fault).await;
        let began = Instant::now();
        let mut took = Vec::new();
        while !link.is_away() {
            let call = Instant::now();
            assert_eq!(ping(&link).await, Err(RedisAway), "{fault:?}");
            took.push(call.elapsed());
        }
        assert!(took.len() <= 3, "{fault:?}: {took:?}");
        took.sort();
        assert!(
            took.iter().all(|took| *took < CALL * 2),
            "{fault:?}: {took:?}"
        );
        assert!(took[took.len() / 2] < CALL, "{fault:?}: {took:?}");
        assert!(began.elapsed() < OPENS, "{fault:?}: {:?}", began.elapsed());
        let calls = link.calls();
        let call = Instant::now();
        for _ in 0..100 {
            assert_eq!(ping(&link).await, Err(RedisAway));
        }
        assert!(call.elapsed() < Duration::from_millis(100), "{fault:?}");
        assert_eq!(link.calls(), calls, "{fault:?}: the network was touched");

        proxy.set(Fault::None).await;
        until(CLOSES, "Redis is used again", async || {
            ping(&link).await.is_ok()
        })
        .await;
        // And it stays so, on this thread's new connection.
        let answered = futures_util::future::join_all((0..20).map(|_| ping(&link))).await;
        assert!(
            answered.iter().any(Result::is_ok) && !link.is_away(),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn an_idle_link_notices_that_redis_is_away_before_anybody_calls() {
    let (mut proxy, url) = behind_proxy(&url()).await;
    let link = link(&url);
    let _probing = Probing::of(&link);
    assert_eq!(ping(&link).await.unwrap(), "PONG");
    let calls = link.calls();
    proxy.set(Fault::Hang).await;
    until(Duration::from_secs(3), "it is away", async || {
        link.is_away()
    })
    .await;
    assert_eq!(link.calls(), calls);
}

#[tokio::test]
async fn a_connection_that_redis_closed_while_idle_fails_no_call() {
    let redis = OwnRedis::start();
    let link = patient_link(&redis.url(), PATIENCE);
    let other = patient_link(&redis.url(), PATIENCE);
    for _ in 0..5 {
        assert_eq!(ping(&link).await.unwrap(), "PONG");
        let mut kill = redis::cmd("CLIENT");
        kill.arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes");
        let killed: u64 = other.query(&kill).await.unwrap();
        assert_eq!(killed, 1);
        // Idle, as the promise says: nothing tells when this end has heard of it.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(link.failures(), 0);
}

#[tokio::test]
async fn every_thread_has_a_connection_of_its_own() {
    let redis = OwnRedis::start();
    let link = patient_link(&redis.url(), PATIENCE);
    let mut id = redis::cmd("CLIENT");
    id.arg("ID");
    let mine: u64 = link.query(&id).await.unwrap();
    assert_eq!(link.query::<u64>(&id).await.unwrap(), mine);
    let there = link.clone();
    let theirs = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let mut id = redis::cmd("CLIENT");
        id.arg("ID");
        runtime.block_on(async { there.query::<u64>(&id).await.unwrap() })
    });
    assert_ne!(theirs.join().unwrap(), mine);
}

#[tokio::test]
async fn a_proof_is_as_old_as_the_beginning_of_its_call() {
    let (mut proxy, url) = behind_proxy(&url()).await;
    let link = patient_link(&url, PATIENCE);
    assert_eq!(link.last_ok_us(), None);
    ping(&link).await.unwrap();
    proxy.set(Fault::Delay(Duration::from_millis(15))).await;
    let before = link.elapsed_us();
    ping(&link).await.unwrap();
    let proof = link.last_ok_us().unwrap();
    assert!(proof >= before && link.elapsed_us() - proof >= 30_000);
    proxy.set(Fault::Refuse).await;
    ping(&link).await.unwrap_err();
    assert_eq!(link.last_ok_us(), Some(proof));
}

#[tokio::test]
async fn a_wrong_password_is_told_from_a_redis_that_is_not_there() {
    let redis = OwnRedis::start();
    let open = redis.url();
    link(&open).check().await.unwrap();
    let admin = patient_link(&open, PATIENCE);
    let mut set = redis::cmd("CONFIG");
    set.arg("SET").arg("requirepass").arg("right");
    admin.query::<()>(&set).await.unwrap();

    let with = |login: &str| open.replace("redis://", &format!("redis://{login}"));
    link(&with(":right@")).check().await.unwrap();
    link(&with("default:right@")).check().await.unwrap();
    for wrong in [
        with(":wrong@"),
        with("nobody:right@"),
        with(""),
        format!("{}/9999", with(":right@")),
    ] {
        let fault = link(&wrong).check().await.unwrap_err();
        assert!(matches!(fault, LinkFault::Refused(_)), "{wrong}: {fault}");
        assert!(!fault.to_string().contains("wrong@"), "{fault}");
    }
    let (mut proxy, url) = redis.behind_proxy().await;
    for away in [Fault::Refuse, Fault::Reset, Fault::Hang] {
        proxy.set(away).await;
        let began = Instant::now();
        let fault = link(&url).check().await.unwrap_err();
        assert!(matches!(fault, LinkFault::Away(_)), "{away:?}: {fault}");
        assert!(began.elapsed() < Duration::from_secs(2), "{away:?}");
    }
}

#[tokio::test]
async fn messages_arrive_on_a_connection_of_their_own() {
    use futures_util::StreamExt as _;

    let link = patient_link(&url(), PATIENCE);
    let channel = format!("test-{}", std::process::id());
    let mut messages = link.messages().await.unwrap();
    messages.subscribe(&channel).await.unwrap();
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(&channel).arg("changed");
    assert_eq!(link.query::<u64>(&publish).await.unwrap(), 1);
    let mut messages = messages.into_on_message();
    let message = tokio::time::timeout(Duration::from_secs(5), messages.next()).await;
    let text: String = message.unwrap().unwrap().get_payload().unwrap();
    assert_eq!(text, "changed");
}
