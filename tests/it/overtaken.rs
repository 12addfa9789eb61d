//! The oldest race of caches, held open on purpose where every node remembers for itself: what was read
//! before a change arrives after it. That over a shared Redis is in `cluster/held.rs`.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::{Backend, Client, Home, Proxy, run, setting, text};

/// Without Redis a change is found by asking for it.
const BOUND: Duration = Duration::from_secs(5);

/// Refusals after which it is over.
const REFUSALS: usize = 5;

#[test]
fn what_was_read_before_a_revocation_and_arrives_after_it_is_not_remembered() {
    run(Backend::Postgres, async |home: Home| {
        let trials = if setting("KEYSTEAD_TEST_LONG").is_some() {
            200
        } else {
            6
        };
        let a = home.serve().await;
        let owner_a = a.owner();
        for slug in ["acme", "managers"] {
            owner_a.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let scopes = json!([{"name": "invoice:read"}]);
        let service = json!({"slug": "invoicing", "scopes": scopes});
        owner_a.create("/v1/services", service).await;
        let proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let b = home.serve_with(&[("DATABASE__URL", &url)]).await;
        let new = json!({
            "name": "b", "consumer": "managers",
            "grants": [{"service": "keystead", "scopes": ["*"]}],
        });
        let key = owner_a.create("/v1/keys", new).await;
        let owner_b = b.client().with_key(&text(&key, "/api_key"));
        let issue = async |name: &str| {
            let new = json!({
                "name": name, "consumer": "acme",
                "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
            });
            let issued = owner_a.create("/v1/keys", new).await;
            (text(&issued, "/key/id"), text(&issued, "/api_key"))
        };
        // What the keys have in common is known.
        let (_, warm) = issue("warm").await;
        while code(&owner_b, &warm).await != "valid" {}

        let mut ended = Vec::new();
        for trial in 0..trials {
            let name = format!("held-{trial:03}");
            let (id, key) = issue(&name).await;
            proxy.hold_answer(&name);
            let asked = async {
                assert_eq!(code(&owner_b, &key).await, "busy", "its load is held");
            };
            tokio::join!(asked, proxy.holds());
            // The change is made on the very node, or on another.
            let is_on_b = trial % 2 == 0;
            let writer = if is_on_b { &owner_b } else { &owner_a };
            let path = format!("/v1/keys/{id}/revoke");
            writer.post(&path).send().await.expect(200);
            if is_on_b {
                assert_ne!(code(&owner_b, &key).await, "valid", "trial {trial}");
            }
            proxy.release();
            let (released, mut refused) = (Instant::now(), 0);
            while refused < REFUSALS {
                assert!(released.elapsed() < BOUND, "trial {trial}: it lives on");
                let told = code(&owner_b, &key).await;
                // On another node it takes a moment until the change is known at all.
                let may_pass = !is_on_b && refused == 0;
                assert!(told != "valid" || may_pass, "trial {trial}");
                refused += usize::from(told == "revoked");
                sleep(Duration::from_millis(5)).await;
            }
            ended.push(key);
        }
        for key in &ended {
            for owner in [&owner_a, &owner_b] {
                assert_ne!(code(owner, key).await, "valid");
            }
        }
    });
}

/// A decision's or a problem's, at the first try.
async fn code(client: &Client, key: &str) -> String {
    let body = json!({
        "api_key": key, "service": "invoicing", "required_scopes": ["invoice:read"],
    });
    let answer = client.post("/v1/verify").json(body).try_send().await;
    answer.expect("an answer").code().to_owned()
}
