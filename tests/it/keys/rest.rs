//! What lies on the disk: no plaintext, no plain hash of one.

use diesel::prelude::*;
use diesel::sql_types::BigInt;
use diesel_async::RunQueryDsl;
use keystead::db::{self, Conn};
use keystead::each;
use sha2::{Digest as _, Sha256};

use super::*;
use crate::support::{Backend, Home, both};

both!(no_plaintext_and_no_plain_hash_is_at_rest);

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = BigInt)]
    count: i64,
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
    process.signal("TERM");
    process.ended(std::time::Duration::from_secs(20)).await;

    let log = process.log();
    assert!(
        log.contains("recorded a change"),
        "the log is the server's: {log}"
    );
    let files = files(home.dir());
    for key in &keys {
        let secret = &key[key.len() - 49..key.len() - 6];
        let plain_hash = Sha256::digest(key.as_bytes());
        let hex = hex(&plain_hash);
        for (what, needle) in [
            ("the key", key.as_bytes()),
            ("its secret part", secret.as_bytes()),
            ("its plain hash", plain_hash.as_slice()),
            ("its plain hash in hexadecimal", hex.as_bytes()),
        ] {
            for (path, bytes) in &files {
                let found = bytes.windows(needle.len()).any(|window| window == needle);
                assert!(!found, "{what} is in {}", path.display());
            }
        }
        if home.backend == Backend::Postgres {
            for needle in [secret.to_owned(), hex] {
                assert_eq!(rows_with(&home, &needle).await, 0, "a row holds it");
            }
        }
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

/// Rows of any table whose text, binary columns as hexadecimal, holds the needle.
async fn rows_with(home: &Home, needle: &str) -> i64 {
    let mut rows = 0;
    for table in [
        "api_key",
        "secret",
        "audit_event",
        "idempotency",
        "key_grant",
        "change",
    ] {
        let sql = format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%{needle}%'");
        let counted = home
            .eyes()
            .read(async move |conn: &mut Conn| -> db::Result<i64> {
                let count: Count = each!(conn, c => diesel::sql_query(sql).get_result(c).await)?;
                Ok(count.count)
            })
            .await;
        rows += counted.unwrap();
    }
    rows
}
