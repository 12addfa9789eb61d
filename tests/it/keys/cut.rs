//! Changes whose client goes away in their midst, or whose time is up: each is made as a whole or
//! not at all, what was made is in force on this node and on the record, and nobody waits for it.

use std::time::Duration;

use futures_util::future::join_all;
use keystead::entropy::Entropy;
use keystead::id::TenantId;
use keystead::scope::RequiredScope;
use keystead::text::Slug;
use keystead::time::Timestamp;
use keystead::validation::Failure;
use keystead::validation::decide::Request;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::support::{Fault, Home, Proxy, both, setting, until};

both!(
    a_client_that_resets_its_connection_leaves_whole_changes,
    a_change_whose_time_is_up_is_whole_and_in_force,
);

/// Clients at once, each with keys of its own.
const CLIENTS: usize = 4;

/// Changes of each client whose connection is reset, and changes whose time is up: 500 in all.
const RESET: usize = 100;
const TIMED_OUT: usize = 100;

/// Keys of each client. Twelve changes in a row aim at one.
const KEYS: usize = 10;

const BOUND: Duration = Duration::from_secs(5);

/// A key that changes aim at, with the one plaintext of it that is known.
struct Target {
    id: String,
    secret: String,
    api_key: String,
}

/// Times as many under `scripts/test --long`.
fn rounds(usual: usize) -> usize {
    usual
        * if setting("KEYSTEAD_TEST_LONG").is_some() {
            10
        } else {
            1
        }
}

async fn targets(owner: &Client, count: usize) -> Vec<Target> {
    let items: Vec<_> = (0..count).map(|_| new_key()).collect();
    let made = owner
        .create("/v1/keys/batch", json!({"items": items}))
        .await;
    let made = made["items"].as_array().expect("a list");
    made.iter()
        .map(|one| Target {
            id: text(one, "/key/id"),
            secret: text(one, "/key/secrets/0/id"),
            api_key: text(one, "/api_key"),
        })
        .collect()
}

/// The `n`th change of a client. Few revocations, because nothing can be changed after one.
fn mutation(n: usize, target: &Target) -> (&'static str, String, Value) {
    let key = format!("/v1/keys/{}", target.id);
    let scope = ["invoice:send", "invoice:read"][n / 12 % 2];
    let overlap = ["0s", "1h"][n / 12 % 2];
    let grants = json!([{"service": "invoicing", "scopes": [scope]}]);
    match n % 12 {
        0 => {
            let mut new = new_key();
            new["name"] = json!("cut");
            ("POST", "/v1/keys".to_owned(), new)
        }
        1 | 5 | 9 => ("PATCH", key, json!({"grants": grants})),
        2 | 6 => ("POST", format!("{key}/rotate"), json!({"overlap": overlap})),
        3 | 7 => ("POST", format!("{key}/disable"), json!({})),
        4 | 8 | 10 => ("POST", format!("{key}/enable"), json!({})),
        _ if n % 24 == 11 => ("POST", format!("{key}/revoke"), json!({})),
        _ => {
            let items = [(); 3].map(|()| {
                let mut item = new_key();
                item["tags"] = json!([format!("batch-{}-{n}", target.id)]);
                item
            });
            ("POST", "/v1/keys/batch".to_owned(), json!({"items": items}))
        }
    }
}

/// What validation must say of the known plaintext, of a key that is stored so.
fn expected(key: &Value, target: &Target, now: Timestamp) -> &'static str {
    let secrets = key["secrets"].as_array().expect("a list");
    let secret = secrets.iter().find(|secret| secret["id"] == *target.secret);
    // Both are RFC 3339 in UTC to the millisecond, which sorts as it is written.
    let ended = secret.is_none_or(|secret| {
        let end = secret["valid_until"].as_str();
        end.is_some_and(|end| end <= now.to_string().as_str())
    });
    match (key["status"].as_str(), ended) {
        (Some("revoked"), _) => "revoked",
        (Some("disabled"), _) => "disabled",
        (_, true) => "expired",
        _ if key["grants"][0]["scopes"] != json!(["invoice:read"]) => "insufficient_scope",
        _ => "valid",
    }
}

/// Holds `told` against what is stored. A change may come in between: then both are asked again.
async fn assert_in_force(owner: &Client, target: &Target, mut told: impl AsyncFnMut() -> String) {
    until(BOUND, "a key stayed as it is for a moment", async || {
        let key = || owner.get(&format!("/v1/keys/{}", target.id)).send();
        let before = key().await.expect(200);
        let now = keystead::clock::Clock::System.now();
        let code = told().await;
        let settled = before["version"] == key().await.expect(200)["version"];
        assert!(
            !settled || code == expected(&before, target, now),
            "told {code} of {before}"
        );
        settled
    })
    .await;
}

/// As soon as what is under way has ended: a line for each version of each key, and none besides;
/// every batch has all its keys or none; the chain is whole.
async fn assert_whole(owner: &Client) {
    let mut seen = (BTreeMap::new(), BTreeMap::new());
    let agreed = async || {
        seen = (versions_of_keys(owner).await, lines_of_keys(owner).await);
        // The owner key is made by the system, with a line like every other.
        seen.0 == seen.1
    };
    until(BOUND, "every change had its one line", agreed).await;
    let mut batches = BTreeMap::<String, usize>::new();
    for key in owner.all("/v1/keys", 200).await {
        for tag in key["tags"].as_array().expect("a list") {
            *batches.entry(tag.to_string()).or_default() += 1;
        }
    }
    assert!(batches.values().all(|count| *count == 3), "{batches:?}");
    assert_trail_verifies(owner).await;
}

/// How many lines each action has.
async fn actions(owner: &Client) -> BTreeMap<String, usize> {
    let mut actions = BTreeMap::new();
    for line in owner.all("/v1/audit/events?outcome=done", 200).await {
        *actions.entry(text(&line, "/action")).or_default() += 1;
    }
    actions
}

/// How long a change takes here and now.
async fn typical(owner: &Client) -> Duration {
    let mut took = Vec::new();
    for _ in 0..7 {
        let began = tokio::time::Instant::now();
        issue(owner, new_key()).await;
        took.push(began.elapsed());
    }
    took.sort();
    took[3]
}

/// Somewhere between nothing and `most`.
fn at_random(most: Duration) -> Duration {
    let share = u16::from_be_bytes(Entropy::System.bytes());
    most.mul_f64(f64::from(share) / f64::from(u16::MAX))
}

fn request(key: &str, (method, path, body): &(&'static str, String, Value)) -> Vec<u8> {
    let body = body.to_string();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

async fn a_client_that_resets_its_connection_leaves_whole_changes(home: Home) {
    let node = home.spawn(&[]).await;
    let owner = node.owner();
    let key = std::fs::read_to_string(node.data_dir.join("owner.key")).expect("the owner key");
    catalogue(&owner).await;
    let targets = targets(&owner, KEYS * CLIENTS).await;
    let most = typical(&owner).await * 3;
    let address = node.address.parse().expect("an address");
    let clients = targets.chunks(KEYS).map(|targets| {
        let (owner, key) = (owner.clone(), key.trim());
        async move {
            let (witness, _) = issue(&owner, new_key()).await;
            let mut proxy = Proxy::before(address).await;
            for n in 0..rounds(RESET) {
                let target = &targets[n / 12 % targets.len()];
                let bytes = request(key, &mutation(n, target));
                // Now and then it is the network that breaks, and both sides hear of it.
                let breaks = n % 8 == 7;
                let to = if breaks { proxy.address } else { address };
                let mut stream = TcpStream::connect(to).await.expect("the node listens");
                // The first one goes before it has said everything.
                let said = &bytes[..bytes.len() - usize::from(n == 0)];
                stream.write_all(said).await.expect("it is taken");
                tokio::time::sleep(at_random(most)).await;
                if breaks {
                    proxy.set(Fault::Reset).await;
                    proxy.set(Fault::None).await;
                }
                stream.set_zero_linger().expect("the socket is open");
                drop(stream);

                if n % 3 == 2 {
                    let told = async || verify(&owner, &target.api_key, "invoice:read").await;
                    assert_in_force(&owner, target, told).await;
                }
                if n % 5 == 0 {
                    let patch =
                        owner.request("PATCH".parse().unwrap(), &format!("/v1/keys/{witness}"));
                    let patched = patch.json(json!({"name": format!("after {n}")}));
                    patched.send().await.expect(200);
                }
            }
        }
    });
    join_all(clients).await;
    assert_whole(&owner).await;

    let after = actions(&owner).await;
    for verb in ["create", "update", "rotate", "disable", "enable", "revoke"] {
        assert!(after.contains_key(&format!("key.{verb}")), "{after:?}");
    }
    let keys = owner.all("/v1/keys?consumer=acme", 200).await;
    let made = keys.iter().filter(|key| key["name"] == "cut").count();
    let asked = CLIENTS * rounds(RESET).div_ceil(12);
    assert!((1..asked).contains(&made), "{made} of {asked} were made");
    for line in node.log().lines() {
        let defects = ["panicked", "ended early", "\"status\":500"];
        assert!(!defects.iter().any(|what| line.contains(what)), "{line}");
    }
}

async fn a_change_whose_time_is_up_is_whole_and_in_force(home: Home) {
    let patient = home.serve().await;
    let owner = patient.owner();
    catalogue(&owner).await;
    let targets = targets(&owner, 40).await;
    let typical = typical(&owner).await;
    let before = actions(&owner).await;
    let slug = Slug::parse("default").unwrap();
    let tenant = patient.app.tenants.by_slug(slug).await.unwrap().unwrap();
    let (mut in_time, mut late) = (0, 0);
    for quarters in 1..=4 {
        let node = home.serve_within(typical * quarters / 4).await;
        let hurried = owner.at(&node);
        for n in 0..rounds(TIMED_OUT) / 4 {
            let n = n + 25 * quarters as usize;
            let target = &targets[n / 12 % targets.len()];
            let (method, path, body) = mutation(n, target);
            let asked = hurried.request(method.parse().unwrap(), &path).json(body);
            let answer = asked.send().await;
            match answer.status {
                503 => {
                    assert_eq!(answer.code(), "busy", "{answer}");
                    late += 1;
                }
                200 | 201 | 409 => in_time += 1,
                _ => panic!("{answer}"),
            }
            let told = async || judge(&node, &tenant.id, &target.api_key).await;
            assert_in_force(&owner, target, told).await;
        }
        assert_eq!(node.app.metrics.security_events.value("panic"), 0);
    }
    assert!(late > 0, "{in_time} in time: no change's time was up");
    issue(&owner, new_key()).await;
    assert_whole(&owner).await;
    assert_ne!(actions(&owner).await, before);
}

/// What validation says on a node, without its edge.
async fn judge(node: &Server, tenant: &TenantId, key: &str) -> String {
    let request = Request {
        required_scopes: vec![RequiredScope::parse("invoice:read").unwrap()].into(),
        ..Request::default()
    };
    let asking = crate::support::asking();
    let validation = &node.app.validation;
    loop {
        match validation
            .validate(key, tenant, "invoicing", &request, &asking)
            .await
        {
            Ok(answer) => return answer.decision.outcome.code().to_owned(),
            // A machine that is busy: asked again, as a client does.
            Err(Failure::Late | Failure::Busy) => {}
            Err(failure) => panic!("{failure}"),
        }
    }
}
