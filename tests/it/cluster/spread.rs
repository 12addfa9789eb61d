//! How soon a change holds on every node while all is well.

use std::time::Duration;

use keystead::clock::Clock;
use keystead::time::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Cluster, Key, change, figure, is_long, sized, three_nodes};
use crate::support::load::{Line, Question, percentile};
use crate::support::{Client, text};

three_nodes!(
    a_revoked_key_ends_at_once_on_its_node_and_soon_on_the_others,
    so_does_every_other_end_of_a_key,
    an_overlap_ends_at_its_instant_on_every_node,
);

const OTHERS_MAX: Duration = Duration::from_secs(1);
const OTHERS_P99: Duration = Duration::from_millis(100);

/// What ends a key.
#[derive(Clone, Copy, Debug)]
enum End {
    Revoke,
    Disable,
    ScopeTaken,
    AddressTaken,
    SecretEnded,
    ConsumerDisabled,
    ServiceDisabled,
    ServiceDeleted,
}

impl End {
    const OTHERS: [Self; 7] = [
        Self::Disable,
        Self::ScopeTaken,
        Self::AddressTaken,
        Self::SecretEnded,
        Self::ConsumerDisabled,
        Self::ServiceDisabled,
        Self::ServiceDeleted,
    ];

    fn code(self) -> &'static str {
        match self {
            Self::Revoke | Self::SecretEnded => "revoked",
            Self::Disable | Self::ConsumerDisabled => "disabled",
            Self::ScopeTaken => "insufficient_scope",
            Self::AddressTaken => "ip_not_allowed",
            Self::ServiceDisabled | Self::ServiceDeleted => "wrong_service",
        }
    }

    async fn make(self, client: &Client, key: &Key) {
        let Key {
            id,
            secret,
            service,
            consumer,
            ..
        } = key;
        let grants = json!([{"service": service, "scopes": ["invoice:send"]}]);
        let (method, path, body) = match self {
            Self::Revoke => ("POST", format!("/v1/keys/{id}/revoke"), Value::Null),
            Self::Disable => ("POST", format!("/v1/keys/{id}/disable"), Value::Null),
            Self::ScopeTaken => ("PATCH", format!("/v1/keys/{id}"), json!({"grants": grants})),
            Self::AddressTaken => {
                let elsewhere = json!({"allowed_ips": ["198.51.100.0/24"]});
                ("PATCH", format!("/v1/keys/{id}"), elsewhere)
            }
            Self::SecretEnded => {
                let path = format!("/v1/keys/{id}/secrets/{secret}/revoke");
                ("POST", path, Value::Null)
            }
            Self::ConsumerDisabled => (
                "POST",
                format!("/v1/consumers/{consumer}/disable"),
                Value::Null,
            ),
            Self::ServiceDisabled => (
                "POST",
                format!("/v1/services/{service}/disable"),
                Value::Null,
            ),
            Self::ServiceDeleted => {
                let path = format!("/v1/services/{service}?revoke_keys=true");
                ("DELETE", path, Value::Null)
            }
        };
        change(client, method, &path, body).await;
    }
}

/// Ends each key at one node after the other, and holds what follows to the promise.
async fn spread(cluster: &Cluster, end: End, keys: &[Key]) {
    let mut others = Vec::new();
    for (number, key) in keys.iter().enumerate() {
        let writer = number % 3;
        let change = end.make(&cluster.nodes[writer].client, key);
        let lived = cluster.outlived(&[0, 1, 2], key, end.code(), change).await;
        assert_eq!(lived[writer], Duration::ZERO, "{end:?}, on its own node");
        let nodes = lived.into_iter().enumerate();
        others.extend(
            nodes
                .filter(|(node, _)| *node != writer)
                .map(|(_, lived)| lived),
        );
    }
    let (p99, max) = (
        percentile(others.clone(), 99),
        percentile(others.clone(), 100),
    );
    let p50 = percentile(others, 50);
    figure(format_args!(
        "{end:?}: {} times, on other nodes p50 {p50:.1?}, p99 {p99:.1?}, max {max:.1?}",
        keys.len()
    ));
    assert!(max <= OTHERS_MAX, "{end:?}: {max:?}");
    assert!(!is_long() || p99 <= OTHERS_P99, "{end:?}: {p99:?}");
    cluster.expect_none_lives(keys).await;
}

async fn a_revoked_key_ends_at_once_on_its_node_and_soon_on_the_others(cluster: Cluster) {
    let good = cluster.issue(100).await;
    let ended = cluster.issue(sized(60, 1_000)).await;
    cluster.warm(&good).await;
    cluster.warm(&ended).await;
    let load = cluster.load(sized(100, 500), &good).start().await;
    spread(&cluster, End::Revoke, &ended).await;
    let load = load.stop().await;
    figure(format_args!("load beside it: {load}"));
    load.expect_all_valid("beside revocations");
}

async fn so_does_every_other_end_of_a_key(cluster: Cluster) {
    let good = cluster.issue(100).await;
    cluster.warm(&good).await;
    let load = cluster.load(sized(50, 500), &good).start().await;
    for (kind, end) in End::OTHERS.into_iter().enumerate() {
        let mut keys = Vec::new();
        for number in 0..sized(3, 100) {
            let parents = (
                format!("service-{kind}-{number}"),
                format!("consumer-{kind}-{number}"),
            );
            let parents = (parents.0.as_str(), parents.1.as_str());
            cluster.make_parents(parents.0, parents.1).await;
            let more = json!({"allowed_ips": ["203.0.113.0/24"]});
            keys.extend(cluster.issue_with(1, parents, more).await);
        }
        cluster.warm(&keys).await;
        spread(&cluster, end, &keys).await;
    }
    let load = load.stop().await;
    figure(format_args!("load beside it: {load}"));
    load.expect_all_valid("beside changes");
}

async fn an_overlap_ends_at_its_instant_on_every_node(cluster: Cluster) {
    let keys = cluster.issue(sized(3, 100)).await;
    cluster.warm(&keys).await;
    for key in &keys {
        let path = format!("/v1/keys/{}/rotate", key.id);
        let rotate = cluster.client().post(&path).json(json!({"overlap": "1s"}));
        let rotated = rotate.send().await.expect(200);
        let ends: Timestamp =
            serde_json::from_value(rotated["key"]["secrets"][1]["valid_until"].clone()).unwrap();
        let fresh = Question::verify(&cluster.owner, &text(&rotated, "/api_key"));
        let asking = cluster.nodes.iter().map(async |node| {
            let mut line = Line::to(node.address);
            let (mut before, mut after) = (0, 0);
            let began = Instant::now();
            while after < 20 {
                assert!(began.elapsed() < Duration::from_secs(10), "it never ended");
                let sent = Clock::System.now();
                let told = line.ask(&key.question).await;
                let answered = Clock::System.now();
                if sent >= ends {
                    assert_eq!(told.code, "expired", "sent at {sent}, ended at {ends}");
                    after += 1;
                } else if answered < ends {
                    // A node that has to load it anew may be too busy to do so in time.
                    assert!(
                        told.is_valid() || told.status == 503,
                        "before its end: {told:?}"
                    );
                    before += usize::from(told.is_valid());
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            before
        });
        let before = futures_util::future::join_all(asking).await;
        assert!(before.iter().all(|before| *before > 0), "{before:?}");
        for told in cluster.ask_all(&fresh).await {
            assert!(told.is_valid(), "{told:?}");
        }
    }
}
