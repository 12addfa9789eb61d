//! What the disk holds: every commit, and nothing by halves when it is full.

use std::process::Command;
use std::time::Duration;

use diesel_async::RunQueryDsl as _;
use keystead::db::{self, Conn};
use keystead::each;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

use crate::support::{BINARY, Backend, Home, both, run, until};

both!(an_acknowledged_change_is_on_the_disk);

#[derive(diesel::QueryableByName)]
struct Setting {
    #[diesel(sql_type = diesel::sql_types::Text)]
    value: String,
}

async fn settings(conn: &mut Conn, queries: [&'static str; 2]) -> db::Result<Vec<String>> {
    let mut values = Vec::new();
    for query in queries {
        let rows: Vec<Setting> = each!(conn, c => diesel::sql_query(query).load(c).await)?;
        values.push(rows[0].value.clone());
    }
    Ok(values)
}

/// As the connections that write are set up in a running server.
async fn an_acknowledged_change_is_on_the_disk(home: Home) {
    let server = home.serve().await;
    let (queries, expected) = match home.backend {
        // 2 is FULL: the log is written through at each commit.
        Backend::Sqlite => (
            [
                "SELECT CAST(synchronous AS TEXT) AS value FROM pragma_synchronous",
                "SELECT journal_mode AS value FROM pragma_journal_mode",
            ],
            ["2", "wal"],
        ),
        Backend::Postgres => (
            [
                "SELECT current_setting('synchronous_commit') AS value",
                "SELECT current_setting('transaction_read_only') AS value",
            ],
            ["on", "off"],
        ),
    };
    let found = server
        .app
        .db
        .write(async move |conn: &mut Conn| settings(conn, queries).await);
    assert_eq!(found.await.unwrap(), expected);
}

/// A limit on the size of files stands for a disk without room, which only root could make: every
/// write that would make a file longer fails.
#[test]
fn a_full_disk_refuses_changes_and_nothing_else() {
    run(Backend::Sqlite, async |home| {
        let mut command = Command::new("sh");
        // Without it, the limit is a signal that ends the process.
        command.args(["-c", "trap '' XFSZ; exec \"$0\" serve", BINARY]);
        let mut node = home.start_by(command, &[], None);
        node.ready(Duration::from_secs(20)).await;
        let owner = node.owner();
        owner
            .create("/v1/services", json!({"slug": "invoicing"}))
            .await;
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        let new = json!({
            "name": "worker", "consumer": "acme", "grants": [{"service": "invoicing", "scopes": []}]
        });
        let key = owner.create("/v1/keys", new.clone()).await;
        let verify = async || {
            let body = json!({"api_key": key["api_key"], "service": "invoicing"});
            owner.post("/v1/verify").json(body).send().await.expect(200)["code"].clone()
        };
        let listed = async |path: &str| owner.get(path).send().await.expect(200)["items"].clone();
        let stored = async || (listed("/v1/keys").await, listed("/v1/audit/events").await);
        let path = format!("/v1/keys/{}", key["key"]["id"].as_str().unwrap());
        assert_eq!(verify().await, "valid");
        let before = stored().await;

        let room = getrlimit(Resource::Fsize);
        let limit = |current| {
            let limit = Rlimit {
                current,
                maximum: room.maximum,
            };
            let pid = Pid::from_raw(node.id().try_into().unwrap());
            prlimit(pid, Resource::Fsize, limit).expect("it is ours");
        };
        limit(Some(1));
        let patch = |name: &str| {
            let patch = owner.request("PATCH".parse().unwrap(), &path);
            patch.json(json!({"name": name})).send()
        };
        let revoke = || owner.post(&format!("{path}/revoke")).send();
        for _ in 0..3 {
            for refused in [
                owner.post("/v1/keys").json(new.clone()).send().await,
                patch("other").await,
                revoke().await,
            ] {
                assert_eq!(
                    (refused.status, refused.code()),
                    (503, "store_unavailable"),
                    "{refused}"
                );
                assert!(refused.headers.contains_key("retry-after"), "{refused}");
            }
            assert_eq!(verify().await, "valid");
        }
        assert_eq!(owner.get("/health/live").send().await.status, 200);
        assert_eq!(without_use(stored().await), without_use(before.clone()));

        limit(room.current);
        until(
            Duration::from_secs(5),
            "changes are taken again",
            async || patch("other").await.status == 200,
        )
        .await;
        assert_eq!(verify().await, "valid");
        revoke().await.expect(200);
        assert_eq!(verify().await, "revoked");
        let report = owner
            .post("/v1/audit/verify")
            .json(json!({}))
            .send()
            .await
            .expect(200);
        assert_eq!(report["valid"], true, "{report}");
        let checked = home
            .eyes()
            .read(async |conn: &mut Conn| {
                let check = "SELECT integrity_check AS value FROM pragma_integrity_check";
                settings(conn, [check, check]).await
            })
            .await;
        assert_eq!(checked.unwrap(), ["ok", "ok"]);
        assert_eq!(
            stored().await.1.as_array().unwrap().len(),
            before.1.as_array().unwrap().len() + 2
        );
    });
}

/// But for when a key was last used, which is noted now and then.
fn without_use((mut keys, events): (Value, Value)) -> (Value, Value) {
    for key in keys.as_array_mut().unwrap() {
        key["last_used"] = Value::Null;
        for secret in key["secrets"].as_array_mut().unwrap() {
            secret["last_used_at"] = Value::Null;
        }
    }
    (keys, events)
}
