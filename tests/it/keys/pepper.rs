//! The pepper changes, or is lost, while keys are used.

use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::cli::stdout;
use crate::support::{Backend, Home, both, run, until};
use futures_util::future::join_all;

both!(
    a_rotation_under_load_fails_nothing_and_moves_what_is_used,
    after_a_lost_master_key_every_key_works_again_and_is_proved_once,
);

const OTHER_KEY: &str = "00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0";

const BOUND: Duration = Duration::from_secs(10);

/// Keys made one by one, so that each has its verifier.
async fn keys(owner: &Client, count: usize) -> Vec<String> {
    let mut made = Vec::new();
    for _ in 0..count {
        made.push(issue(owner, new_key()).await.1);
    }
    made
}

fn done(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    stdout(&output).to_owned()
}

/// Version, state and number of secrets, as `keystead pepper status` shows them.
fn status(home: &Home) -> Vec<(String, String, usize)> {
    let output = home.keystead(&["pepper", "status"]).output().unwrap();
    let lines = done(output);
    let words = lines.lines().skip(1).map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        (
            words[0].to_owned(),
            words[1].to_owned(),
            words[3].parse().unwrap(),
        )
    });
    words.collect()
}

/// A key is valid as soon as its turn comes; until then nobody says that it is not.
async fn works(owner: &Client, key: &str) {
    until(BOUND, "the key's turn came", async || {
        let body = json!({"api_key": key, "service": "invoicing"});
        let answer = owner.post("/v1/verify").json(body).send().await;
        if answer.status == 503 {
            assert_eq!(answer.code(), "busy", "{answer}");
            return false;
        }
        assert_eq!(answer.expect(200)["code"], "valid");
        true
    })
    .await;
}

/// The value of a metric without labels.
async fn metric(client: &Client, name: &str) -> u64 {
    let metrics = client.get("/metrics").send().await;
    let line = metrics
        .text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name} ")));
    line.unwrap_or_else(|| panic!("no {name}: {metrics}"))
        .parse()
        .unwrap()
}

/// Verifies keys without a pause until it is stopped; each must be valid.
struct Load {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(owner: &Client, keys: &[String]) -> Self {
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let tasks = (0..3).map(|task| {
            let (owner, keys) = (owner.clone(), keys.to_vec());
            let (stop, count) = (Arc::clone(&stop), Arc::clone(&count));
            tokio::spawn(async move {
                for key in keys.iter().cycle().skip(task) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    assert_eq!(verify(&owner, key, "invoice:read").await, "valid");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let tasks = tasks.collect();
        Self { stop, count, tasks }
    }

    /// Until every key was verified once more, by requests that begin now or later.
    async fn round(&self, keys: usize) {
        let from = self.count.load(Ordering::Relaxed);
        until(BOUND, "every key was verified again", async || {
            assert!(
                self.tasks.iter().all(|task| !task.is_finished()),
                "a verification failed"
            );
            self.count.load(Ordering::Relaxed) > from + 4 * keys
        })
        .await;
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.expect("every verification said valid");
        }
    }
}

async fn a_rotation_under_load_fails_nothing_and_moves_what_is_used(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    catalogue(&owner).await;
    let mut used = keys(&owner, 8).await;
    let dormant = keys(&owner, 3).await;
    let is_current = |version: i32| server.app.peppers.ring().current() == Some(version);
    let load = Load::start(&owner, &used);
    load.round(used.len()).await;
    let runs = server.app.hasher.runs();

    let rotate = home
        .keystead(&["pepper", "rotate", "--reason", "yearly"])
        .output();
    assert!(done(rotate.unwrap()).starts_with("version 2 becomes current"));
    load.round(used.len()).await;
    assert!(is_current(1), "a next version is known first");
    forward(&server, Span::seconds(61));
    server.app.tend_peppers().await.unwrap();
    assert!(is_current(2));
    load.round(used.len()).await;
    assert_eq!(server.app.hasher.runs(), runs, "verification ran argon2");

    // What is used has moved; what is not shows in the metric and to the operator.
    until(BOUND, "the keys in use carry the new version", async || {
        status(&home)
            == [
                ("1".to_owned(), "old".to_owned(), dormant.len()),
                // With the owner key, which was used too.
                ("2".to_owned(), "current".to_owned(), used.len() + 1),
            ]
    })
    .await;
    server.app.tend_peppers().await.unwrap();
    assert_eq!(
        metric(&owner, "keystead_secrets_under_old_peppers").await,
        3
    );
    forward(&server, Span::seconds(60));
    server.app.tend_peppers().await.unwrap();
    assert!(
        server.app.peppers.ring().computes(1),
        "secrets still carry it"
    );

    for key in &dormant {
        assert_eq!(verify(&owner, key, "invoice:read").await, "valid");
    }
    until(BOUND, "the old version has ended", async || {
        server.app.tend_peppers().await.unwrap();
        status(&home).len() == 1
    })
    .await;
    assert!(!server.app.peppers.ring().computes(1));
    assert_eq!(
        metric(&owner, "keystead_secrets_under_old_peppers").await,
        0
    );
    load.round(used.len()).await;
    assert_eq!(server.app.hasher.runs(), runs, "verification ran argon2");
    load.end().await;
    used.extend(keys(&owner, 1).await);
    used.extend(dormant);
    for key in &used {
        assert_eq!(verify(&owner, key, "invoice:read").await, "valid");
    }
    // Neither a version nor a line for what nobody decided.
    assert_eq!(versions_of_keys(&owner).await, lines_of_keys(&owner).await);
}

#[test]
fn a_node_that_lags_behind_a_rotation_never_says_unknown() {
    run(Backend::Postgres, async |home| {
        let ahead = home.serve().await;
        let owner = ahead.owner();
        catalogue(&owner).await;
        let before = keys(&owner, 3).await;
        // Used on the lagging node alone, so that nothing moves it.
        let callers = [
            manager_key(&owner, &["*"]).await,
            manager_key(&owner, &["*"]).await,
        ];
        for (version, caller) in [(2, &callers[0]), (3, &callers[1])] {
            // New, so that it looks at the peppers by itself no sooner than in ten seconds.
            let lagging = home.serve().await;
            let late = lagging.client().with_key(caller);
            assert_eq!(verify(&late, &before[0], "invoice:read").await, "valid");
            done(home.keystead(&["pepper", "rotate"]).output().unwrap());
            forward(&ahead, Span::seconds(61));
            ahead.app.tend_peppers().await.unwrap();
            assert_eq!(ahead.app.peppers.ring().current(), Some(version));
            let after = keys(&owner, 3).await;
            for key in &before {
                assert_eq!(verify(&owner, key, "invoice:read").await, "valid");
            }
            assert!(
                !lagging.app.peppers.ring().computes(version),
                "it does not lag"
            );

            if version == 2 {
                let asked = join_all(before.iter().chain(&after).map(|key| {
                    let late = &late;
                    async move { verify(late, key, "invoice:read").await }
                }));
                assert_eq!(asked.await, ["valid"; 6]);
            } else {
                // Nor does it miss what was found in a public repository.
                let found = late.post("/v1/keys/find").json(json!({"api_keys": after}));
                let found = found.send().await.expect(200);
                for item in found["items"].as_array().unwrap() {
                    assert_eq!(item["status"], "active", "{found}");
                }
            }
        }
    });
}

async fn after_a_lost_master_key_every_key_works_again_and_is_proved_once(home: Home) {
    let first = home.serve().await;
    let owner = first.owner();
    catalogue(&owner).await;
    let keys = keys(&owner, 8).await;
    let unproved = metric(&owner, "keystead_verifiers_pending").await;
    assert_eq!(unproved, 0);
    drop(first);

    let lost = ["pepper", "lost", "--reason", "the disk burnt"];
    let mut lost = home.keystead(&lost);
    let lost = lost
        .env("KEYSTEAD__SECRETS__MASTER_KEY", OTHER_KEY)
        .output();
    let lost = done(lost.unwrap());
    assert!(
        lost.contains("gave up: 1; current: 2; secrets that nothing proves any more: 0"),
        "{lost}"
    );

    let server = home.serve_with(&[("SECRETS__MASTER_KEY", OTHER_KEY)]).await;
    let owner = owner.at(&server);
    let many = (0..5).flat_map(|_| &keys);
    join_all(many.map(|key| works(&owner, key))).await;
    // And the owner key, which all of them were asked with.
    let secrets = keys.len() as u64 + 1;
    assert_eq!(server.app.hasher.runs(), secrets);
    server.app.tend_peppers().await.unwrap();
    assert_eq!(
        metric(&owner, "keystead_secrets_under_old_peppers").await,
        0
    );
    for key in &keys {
        assert_eq!(verify(&owner, key, "invoice:read").await, "valid");
    }
    assert_eq!(server.app.hasher.runs(), secrets);
    assert_trail_verifies(&owner).await;
}
