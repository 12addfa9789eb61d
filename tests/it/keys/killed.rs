//! The node is killed in the midst of changes.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::*;
use crate::support::{Home, both, setting, until};

both!(
    a_kill_loses_no_acknowledged_change_and_leaves_none_without_its_line,
    a_create_whose_answer_died_with_its_node_is_answered_when_it_is_repeated,
);

const BOUND: Duration = Duration::from_secs(10);

/// What a client was told of one key.
struct Told {
    id: String,
    version: i64,
    api_key: String,
    revoked: bool,
}

/// Makes, changes, rotates and revokes keys until there is no answer, and remembers what it was told.
async fn change_until_killed(owner: Client) -> Vec<Told> {
    let mut told = Vec::<Told>::new();
    for n in 0..40 {
        let (method, path, body) = match (n % 5, told.last()) {
            (1, Some(key)) => (
                "PATCH",
                format!("/v1/keys/{}", key.id),
                json!({"name": format!("name {n}")}),
            ),
            (2, Some(key)) => (
                "POST",
                format!("/v1/keys/{}/rotate", key.id),
                json!({"overlap": "0s"}),
            ),
            (4, Some(key)) => ("POST", format!("/v1/keys/{}/revoke", key.id), json!({})),
            _ => ("POST", "/v1/keys".to_owned(), new_key()),
        };
        let asked = owner.request(method.parse().unwrap(), &path).json(body);
        let Some(answer) = asked.try_send().await else {
            break;
        };
        let key = answer.body.get("key").unwrap_or(&answer.body);
        let version = key["version"].as_i64();
        let version = version.unwrap_or_else(|| panic!("{method} {path}: {answer}"));
        let id = text(key, "/id");
        if told.last().is_none_or(|last| last.id != id) {
            told.push(Told {
                id,
                version,
                api_key: text(&answer.body, "/api_key"),
                revoked: false,
            });
        }
        let last = told.last_mut().expect("just added");
        last.version = version;
        last.revoked = n % 5 == 4;
        if let Some(api_key) = answer.body["api_key"].as_str() {
            api_key.clone_into(&mut last.api_key);
        }
    }
    told
}

/// The node is killed at a random moment while keys are made, changed, rotated and revoked, again
/// and again.
async fn a_kill_loses_no_acknowledged_change_and_leaves_none_without_its_line(home: Home) {
    let first = home.spawn(&[]).await;
    let key = std::fs::read_to_string(first.data_dir.join("owner.key")).expect("the owner key");
    let key = key.trim();
    catalogue(&first.owner()).await;
    drop(first);

    let kills: u64 = if setting("KEYSTEAD_TEST_LONG").is_some() {
        100
    } else {
        5
    };
    let mut told = Vec::new();
    for kill in 0..kills {
        let mut node = home.spawn(&[]).await;
        let changing = tokio::spawn(change_until_killed(node.client().with_key(key)));
        // Different each time: some kills meet the first change, some the last.
        tokio::time::sleep(Duration::from_millis(20 + kill * 997 % 650)).await;
        node.signal("KILL");
        node.ended(BOUND).await;
        told.extend(changing.await.expect("it does not panic"));
    }

    let node = home.spawn(&[]).await;
    let owner = node.client().with_key(key);
    let versions = versions_of_keys(&owner).await;
    assert_eq!(versions, lines_of_keys(&owner).await);
    for Told {
        id,
        version,
        api_key,
        revoked,
    } in &told
    {
        let stored = versions.get(id).copied();
        assert!(
            stored >= Some(*version),
            "{id}: told {version}, stored {stored:?}"
        );
        // Unless one more change was made that nobody was told of.
        if stored == Some(*version) {
            let code = verify(&owner, api_key, "invoice:read").await;
            assert_eq!(code, if *revoked { "revoked" } else { "valid" }, "{id}");
        }
    }
    assert!(told.iter().any(|key| key.revoked), "no client came far");
    assert_trail_verifies(&owner).await;
}

/// The key is committed, its answer is not read, the node is killed: nobody holds the plaintext.
async fn a_create_whose_answer_died_with_its_node_is_answered_when_it_is_repeated(home: Home) {
    let mut node = home.spawn(&[]).await;
    let owner = node.owner();
    let key = std::fs::read_to_string(node.data_dir.join("owner.key")).expect("the owner key");
    let key = key.trim();
    catalogue(&owner).await;
    let mut new = new_key();
    new["name"] = json!("once");
    let body = new.to_string();
    let request = format!(
        "POST /v1/keys HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\nidempotency-key: once\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut unread = TcpStream::connect(&node.address).await.expect("it listens");
    unread
        .write_all(request.as_bytes())
        .await
        .expect("it is taken");
    let mut made = Vec::new();
    until(BOUND, "the key is committed", async || {
        made = owner.all("/v1/keys?name=once", 200).await;
        !made.is_empty()
    })
    .await;
    node.signal("KILL");
    node.ended(BOUND).await;
    drop(unread);

    let node = home.spawn(&[]).await;
    let owner = node.client().with_key(key);
    let repeat = || {
        owner
            .post("/v1/keys")
            .header("idempotency-key", "once")
            .json(new.clone())
    };
    for _ in 0..2 {
        let answer = repeat().send().await;
        assert!(
            answer.headers.contains_key("idempotency-replayed"),
            "{answer}"
        );
        let answer = answer.expect(201);
        assert_eq!(answer["key"]["id"], made[0]["id"]);
        assert!(answer["api_key"].is_null(), "{answer}");
    }
    let unused = owner
        .all("/v1/keys?never_used=true&consumer=acme", 200)
        .await;
    assert_eq!(unused.len(), 1, "{unused:?}");
    assert_eq!(unused[0]["id"], made[0]["id"]);
    assert_eq!(versions_of_keys(&owner).await, lines_of_keys(&owner).await);
}
