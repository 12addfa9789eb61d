//! What lies on the disk and in the trail: no plaintext, no plain hash of one.

use std::collections::HashMap;

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use keystead::db::{self, Conn};
use keystead::each;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::support::{Backend, Home, both};

both!(no_plaintext_and_no_plain_hash_is_at_rest);

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

async fn no_plaintext_and_no_plain_hash_is_at_rest(home: Home) {
    let mut process = home.spawn(&[("LOG__LEVEL", "trace")]).await;
    let owner = process.owner();
    catalogue(&owner).await;
    let mut keys = Vec::new();
    for _ in 0..20 {
        let (id, key) = issue(&owner, new_key()).await;
        assert_eq!(verify(&owner, &key, "invoice:read").await, "valid");
        let path = format!("/v1/keys/{id}/rotate");
        let rotated = owner.post(&path).send().await.expect(200);
        keys.push(text(&rotated, "/api_key"));
        verify(&owner, &altered(&key, 30), "invoice:read").await;
        keys.push(key);
    }
    let batch = json!({"items": vec![new_key(); 100]});
    let issued = owner
        .post("/v1/keys/batch")
        .header("idempotency-key", "all-of-them")
        .json(batch)
        .send()
        .await
        .expect(201);
    let issued = issued["items"].as_array().expect("a list");
    keys.extend(issued.iter().map(|one| text(one, "/api_key")));
    expect_no_pasted_key_is_kept(&owner, &keys[0]).await;
    let find = json!({"api_keys": keys});
    let found = owner.post("/v1/keys/find").json(find).send().await;
    let mut told = vec![found.text];
    let mut path = "/v1/audit/events?limit=200".to_owned();
    loop {
        let page = owner.get(&path).send().await;
        told.push(page.text.clone());
        match page.expect(200)["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/audit/events?limit=200&cursor={cursor}"),
            None => break,
        }
    }
    process.signal("TERM");
    process.ended(std::time::Duration::from_secs(20)).await;

    let log = process.log();
    assert!(
        log.contains("recorded a change"),
        "the log is the server's: {log}"
    );
    assert!(keys.len() == 140, "{}", keys.len());
    let needles = Needles::of(&keys);
    assert_eq!(needles.find(keys[7].as_bytes()), Some("the key"));
    for (path, bytes) in files(home.dir()) {
        assert_eq!(needles.find(&bytes), None, "in {}", path.display());
    }
    for text in told {
        assert!(text.contains("items"), "{text}");
        assert_eq!(needles.find(text.as_bytes()), None, "in an answer");
    }
    if home.backend == Backend::Postgres {
        for row in rows(&home).await {
            assert_eq!(needles.find(row.as_bytes()), None, "in a row");
        }
    }
}

/// Texts go to whoever reads of an object, and into the trail for ever.
async fn expect_no_pasted_key_is_kept(owner: &Client, pasted: &str) {
    let with = |mut body: Value, name: &str, value: Value| {
        body[name] = value;
        body
    };
    let noted = format!("of acme ({pasted})");
    let consumer = json!({"slug": "other"});
    for (path, body, pointer) in [
        (
            "consumers",
            with(consumer.clone(), "name", json!(pasted)),
            "/name",
        ),
        (
            "consumers",
            with(consumer.clone(), "external_id", json!(noted)),
            "/external_id",
        ),
        (
            "consumers",
            with(consumer, "metadata", json!({"a": [noted]})),
            "/metadata",
        ),
        ("keys", with(new_key(), "name", json!(noted)), "/name"),
        (
            "keys",
            with(new_key(), "metadata", json!({pasted: 1})),
            "/metadata",
        ),
    ] {
        let refused = owner.post(&format!("/v1/{path}")).json(body).send().await;
        assert_eq!(
            (refused.status, refused.code()),
            (400, "invalid_request"),
            "{refused}"
        );
        assert_eq!(refused.body["errors"][0]["pointer"], pointer, "{refused}");
        assert!(!refused.text.contains(pasted), "{refused}");
    }
    // Whoever ends it in a hurry is not kept from it.
    let (id, _) = issue(owner, new_key()).await;
    let revoke = owner.post(&format!("/v1/keys/{id}/revoke"));
    let revoked = revoke.json(json!({"reason": format!("leaked: {pasted}!")}));
    let revoked = revoked.send().await.expect(200);
    assert_eq!(revoked["reason"], "leaked: [key]!");
    let (id, _) = issue(owner, new_key()).await;
    let disable = owner.post(&format!("/v1/keys/{id}/disable"));
    let disabled = disable.header("audit-reason", pasted).send().await;
    assert_eq!(disabled.expect(200)["reason"], "[key]");
}

/// What must be nowhere, by its first eight bytes, so that one look at each place is enough.
struct Needles(HashMap<[u8; 8], Vec<(&'static str, Vec<u8>)>>);

impl Needles {
    fn of(keys: &[String]) -> Self {
        let mut needles: HashMap<_, Vec<_>> = HashMap::new();
        for key in keys {
            let secret = &key[key.len() - 49..key.len() - 6];
            let plain_hash = Sha256::digest(key.as_bytes());
            for (what, needle) in [
                ("the key", key.as_bytes()),
                ("its secret part", secret.as_bytes()),
                ("its plain hash", plain_hash.as_slice()),
                ("its plain hash in hexadecimal", hex(&plain_hash).as_bytes()),
            ] {
                let start = *needle.first_chunk().expect("it is longer");
                needles
                    .entry(start)
                    .or_default()
                    .push((what, needle.to_vec()));
            }
        }
        Self(needles)
    }

    fn find(&self, place: &[u8]) -> Option<&'static str> {
        (0..place.len()).find_map(|at| {
            let rest = &place[at..];
            let candidates = self.0.get(rest.first_chunk()?)?;
            let found = candidates
                .iter()
                .find(|(_, needle)| rest.starts_with(needle));
            found.map(|(what, _)| *what)
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Every file of the home: database, WAL, logs. The owner key's own file is not about these keys.
fn files(dir: &std::path::Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if let Ok(bytes) = std::fs::read(&path) {
            found.push((path, bytes));
        }
    }
    assert!(!found.is_empty());
    found
}

/// Every row of every table as text, binary columns as hexadecimal.
async fn rows(home: &Home) -> Vec<String> {
    let mut rows = Vec::new();
    for (table, _) in crate::schema::tables() {
        let sql = format!("SELECT t::text AS line FROM {table} t");
        let lines = home
            .eyes()
            .read(async move |conn: &mut Conn| -> db::Result<Vec<Line>> {
                Ok(each!(conn, c => diesel::sql_query(sql).load(c).await)?)
            })
            .await;
        rows.extend(lines.expect("a query").into_iter().map(|row| row.line));
    }
    assert!(rows.len() > 300, "{}", rows.len());
    rows
}
