//! Nodes are replaced one by one behind a balancer that never tries twice.

use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::{Cluster, expect_all_valid_or_busy, figure, sized, three_nodes};
use crate::support::load::Plan;
use crate::support::{free_address, until};

three_nodes!(a_rolling_restart_behind_a_balancer_fails_no_request);

const BOUND: Duration = Duration::from_secs(20);

/// HAProxy before all nodes, without a second try.
struct Balancer {
    address: SocketAddr,
    /// It ends when this closes.
    child: Child,
}

impl Balancer {
    async fn before(cluster: &Cluster) -> Self {
        let address = free_address();
        let mut config = format!(
            "defaults\n mode http\n timeout connect 1s\n timeout client 30s\n timeout server 30s\n \
             retries 0\n\
             listen nodes\n bind {address}\n balance roundrobin\n \
             option httpchk GET /health/ready\n \
             timeout check 2s\n default-server check inter 100ms fall 2 rise 1\n"
        );
        for (number, node) in cluster.nodes.iter().enumerate() {
            config += &format!(" server node{number} {}\n", node.address);
        }
        let path = cluster.home.dir().join("haproxy.cfg");
        std::fs::write(&path, config).expect("the home is writable");
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/throwaway"))
            .arg("haproxy")
            .arg(path)
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the script runs");
        until(BOUND, "the balancer listens", async || {
            if child.try_wait().expect("our child").is_some() {
                let mut why = String::new();
                child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut why)
                    .unwrap();
                panic!("{why}");
            }
            TcpStream::connect(address).await.is_ok()
        })
        .await;
        Self { address, child }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ended = self.child.wait();
    }
}

async fn a_rolling_restart_behind_a_balancer_fails_no_request(mut cluster: Cluster) {
    let keys = cluster.issue(100).await;
    cluster.warm(&keys).await;
    let balancer = Balancer::before(&cluster).await;
    let questions = keys.iter().map(|key| key.question.clone()).collect();
    let plan = Plan::at(sized(400, 1_000), vec![balancer.address], questions);
    let load = plan.start().await;
    let (mut rounds, mut slowest) = (0, Duration::ZERO);
    while load.asked() < sized(5_000, 100_000) {
        for node in &mut cluster.nodes {
            let began = Instant::now();
            node.process.signal("TERM");
            assert!(node.process.ended(BOUND).await.success());
            slowest = slowest.max(began.elapsed());
            node.start_again(&cluster.home);
            node.process.ready(BOUND).await;
            // Until the balancer has seen it: else the next would leave nobody.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        rounds += 1;
    }
    let load = load.stop().await;
    figure(format_args!(
        "{rounds} rounds, slowest end {slowest:.1?}: {load}"
    ));
    expect_all_valid_or_busy(&load, "while nodes were replaced");
}
