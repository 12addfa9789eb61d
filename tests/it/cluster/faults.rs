//! How soon a change holds on every node while something is broken: the rows of the promise.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::{Cluster, Key, figure, sized, three_nodes};
use crate::support::load::{Line, Told, percentile};
use crate::support::{Fault, Frozen, until};

three_nodes!(
    a_change_is_followed_whatever_redis_the_database_and_the_writer_do,
    a_node_that_is_cut_off_decides_for_thirty_seconds_and_then_not_at_all,
);

/// However it has to be learnt, if the database can be reached.
const FOLLOWED_MAX: Duration = Duration::from_secs(5);

/// Without any proof that nothing has changed.
const ALONE_MAX: Duration = Duration::from_secs(30);

const BACK_MAX: Duration = Duration::from_secs(10);

impl Cluster {
    async fn until_redis_is(&self, mode: &str) {
        for node in &self.nodes {
            node.until_it_says("redis", mode, BACK_MAX).await;
        }
    }

    /// Revokes a key at the first node and answers how long the others let it pass.
    async fn followed(&self, key: &Key) -> Vec<Duration> {
        let readers: &[usize] = &[1, 2];
        self.outlived(readers, key, "revoked", self.revoke(0, key))
            .await
    }
}

fn judge(row: &str, lived: &[Duration]) {
    let (p50, max) = (
        percentile(lived.to_vec(), 50),
        percentile(lived.to_vec(), 100),
    );
    figure(format_args!(
        "{row}: {} times, p50 {p50:.1?}, max {max:.1?}",
        lived.len()
    ));
    assert!(max <= FOLLOWED_MAX, "{row}: {max:?}");
}

async fn a_change_is_followed_whatever_redis_the_database_and_the_writer_do(mut cluster: Cluster) {
    let changes = sized(3, 50);
    let keys = cluster.issue(5 * changes).await;
    cluster.warm(&keys).await;
    let mut rows = keys.chunks(changes);

    let mut lived = Vec::new();
    for key in rows.next().unwrap() {
        cluster
            .redis
            .command(&["CLIENT", "KILL", "TYPE", "pubsub"])
            .await;
        lived.extend(cluster.followed(key).await);
    }
    judge("subscriptions killed", &lived);

    lived.clear();
    cluster.nodes[0].redis.set(Fault::Refuse).await;
    for key in rows.next().unwrap() {
        lived.extend(cluster.followed(key).await);
    }
    judge("the writer cut from Redis", &lived);
    cluster.nodes[0].redis.set(Fault::None).await;
    cluster.until_redis_is("reachable").await;

    lived.clear();
    let redis = Frozen::process(cluster.redis.process_id().await);
    for key in rows.next().unwrap() {
        lived.extend(cluster.followed(key).await);
    }
    drop(redis);
    judge("Redis stopped", &lived);
    cluster.until_redis_is("reachable").await;

    lived.clear();
    for node in &mut cluster.nodes[1..] {
        node.database.set(Fault::Refuse).await;
    }
    for node in &cluster.nodes[1..] {
        node.until_it_says("database", "away", BACK_MAX).await;
    }
    for key in rows.next().unwrap() {
        // The writer is asked too: what it reads then, the others find in Redis.
        let revoked = cluster.revoke(0, key);
        lived.extend(cluster.outlived(&[0, 1, 2], key, "revoked", revoked).await);
    }
    judge("the readers cut from the database", &lived);
    for node in &mut cluster.nodes[1..] {
        node.database.set(Fault::None).await;
    }
    for node in &cluster.nodes[1..] {
        node.until_it_says("database", "reachable", BACK_MAX).await;
    }

    lived.clear();
    for key in rows.next().unwrap() {
        // What it would tell the others hangs, and then it is gone.
        cluster.nodes[0].redis.set(Fault::Hang).await;
        let killed = async {
            cluster.revoke(0, key).await;
            cluster.nodes[0].process.signal("KILL");
        };
        lived.extend(cluster.outlived(&[1, 2], key, "revoked", killed).await);
        // What hangs is not to arrive when the fault ends.
        cluster.nodes[0].redis.set(Fault::Reset).await;
        cluster.nodes[0].redis.set(Fault::None).await;
        cluster.nodes[0].start_again(&cluster.home);
        cluster.nodes[0].process.ready(BACK_MAX).await;
    }
    judge("the writer killed before it told anybody", &lived);
    cluster.expect_none_lives(&keys).await;
}

async fn a_node_that_is_cut_off_decides_for_thirty_seconds_and_then_not_at_all(
    mut cluster: Cluster,
) {
    let faults = sized(&[Fault::Refuse][..], &[Fault::Hang, Fault::Refuse]);
    let mut keys = cluster.issue(1 + sized(3, 100)).await;
    cluster.warm(&keys).await;
    let stays = keys.pop().unwrap();
    for (fault, ended) in faults.iter().zip(keys.chunks(keys.len() / faults.len())) {
        cut_off(&mut cluster, *fault, ended, &stays).await;
    }
}

/// Cuts the last node off, revokes the keys elsewhere, and looks at what it answers until it is back.
async fn cut_off(cluster: &mut Cluster, fault: Fault, ended: &[Key], stays: &Key) {
    let cut = &mut cluster.nodes[2];
    cut.database.set(fault).await;
    cut.redis.set(fault).await;
    // From here on it has no proof.
    let began = Instant::now();
    let address = cut.address;
    for key in ended {
        cluster.revoke(0, key).await;
    }
    let ask = async |key: &Key| {
        let mut line = Line::to(address);
        let mut told: Vec<(Duration, Told)> = Vec::new();
        while began.elapsed() < ALONE_MAX + Duration::from_secs(3) {
            let sent = began.elapsed();
            told.push((sent, line.ask(&key.question).await));
            sleep(Duration::from_millis(50)).await;
        }
        told
    };
    let asked = join_all(ended.iter().chain([stays]).map(ask)).await;
    let mut longest = Duration::ZERO;
    for told in &asked {
        let passed = told.iter().take_while(|(_, told)| told.is_valid()).count();
        assert!(passed > 0, "what it remembers it may use: {:?}", told[0]);
        longest = longest.max(told[passed - 1].0);
        for (sent, told) in &told[passed..] {
            assert_eq!(told.status, 503, "after {sent:?}: {told:?}");
        }
    }
    figure(format_args!(
        "cut off ({fault:?}): decided for {longest:.1?}"
    ));
    assert!(longest <= ALONE_MAX, "{longest:?}");
    let node = &cluster.nodes[2];
    let ready = node.client.get("/health/ready").send().await;
    assert_eq!(
        (ready.status, &ready.body["modes"]["decisions"]),
        (503, &"cut_off".into())
    );
    assert_eq!(node.client.get("/health/live").send().await.status, 200);

    // It is back, and has caught up before it decides anything.
    cluster.nodes[2].database.set(Fault::None).await;
    cluster.nodes[2].redis.set(Fault::None).await;
    let mut lines: Vec<_> = ended.iter().map(|_| Line::to(address)).collect();
    let mut line = Line::to(address);
    until(BACK_MAX, "the node decides again", async || {
        for (line, key) in lines.iter_mut().zip(ended) {
            let told = line.ask(&key.question).await;
            assert!(told.code == "revoked" || told.status == 503, "{told:?}");
        }
        line.ask(&stays.question).await.is_valid()
    })
    .await;
    for key in ended {
        let mut line = Line::to(address);
        until(BACK_MAX, "a revoked key is told as such", async || {
            let told = line.ask(&key.question).await;
            assert!(told.code == "revoked" || told.status == 503, "{told:?}");
            told.code == "revoked"
        })
        .await;
    }
}
