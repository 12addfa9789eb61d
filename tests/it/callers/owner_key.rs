//! The owner key: made at the first start unless people can be owners, made again by who has the
//! database and the master key, its owner's alone, in no log.

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};

use super::*;
use crate::support::both;

both!(
    the_first_start_leaves_an_owner_key_that_is_its_owners_alone_and_in_no_log,
    no_owner_key_is_made_where_an_issuer_makes_owners,
    who_has_the_database_and_the_master_key_makes_an_owner_key_and_is_named,
    the_way_back_in_revives_no_owner_key_that_was_stopped,
);

/// `keystead owner-key` on the home's database, with nothing but what it needs.
fn owner_key(home: &Home, master_key: &str, ttl: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keystead"))
        .args(["owner-key", "--ttl", ttl])
        .current_dir(home.dir())
        .env_clear()
        .env("KEYSTEAD__DATABASE__URL", &home.database_url)
        .env("KEYSTEAD__SECRETS__MASTER_KEY", master_key)
        .env("KEYSTEAD__LOG__LEVEL", "trace")
        .output()
        .expect("cargo built the binary")
}

async fn the_first_start_leaves_an_owner_key_that_is_its_owners_alone_and_in_no_log(home: Home) {
    let node = home.spawn(&[("LOG__LEVEL", "trace")]).await;
    let file = node.data_dir.join("owner.key");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(&file).unwrap();
    let owner = node.client().with_key(key.trim());
    let answer = owner.get("/v1/tenants").send().await;
    assert!(answer.headers.contains_key("x-keystead-caller-expires"));
    answer.expect(200);

    let kept = owner.get("/v1/keys?consumer=keystead-owner").send().await;
    let kept = kept.expect(200);
    assert_eq!(kept["items"].as_array().unwrap().len(), 1);
    let key_id = text(&kept, "/items/0/id");
    let secret = key.trim().rsplit('_').next().unwrap().to_owned();
    drop(owner);
    let log = node.log();
    assert!(log.contains("made the first owner key"), "{log}");
    assert!(!log.contains(&secret));
    // A second start finds that there is one.
    let second = home.spawn(&[]).await;
    assert!(!second.data_dir.join("owner.key").exists());
    let owner = second.client().with_key(key.trim());
    let kept = owner.get("/v1/keys?consumer=keystead-owner").send().await;
    assert_eq!(text(&kept.expect(200), "/items/0/id"), key_id);
}

async fn no_owner_key_is_made_where_an_issuer_makes_owners(home: Home) {
    let owners = "tenant = \"default\"\n\
                  roles = [{claim = \"groups\", value = \"sre\", role = \"owner\"}]";
    let server = serve(&home, &[issuer(A, owners)]).await;
    assert!(server.owner_key().is_none());
    let boss = bearer(&server, json!({"groups": ["sre"]}));
    boss.create("/v1/tenants", json!({"slug": "acme"})).await;
    let keys = boss.get("/v1/keys").send().await.expect(200);
    assert_eq!(keys["items"], json!([]));
    let starts = boss.get("/v1/audit/events?action=node.start").send().await;
    let role = &starts.expect(200)["items"][0]["after"]["roles"][0];
    assert_eq!(
        (&role["issuer"], &role["role"]),
        (&json!(A), &json!("owner"))
    );
}

async fn who_has_the_database_and_the_master_key_makes_an_owner_key_and_is_named(home: Home) {
    let owners = "tenant = \"default\"\n\
                  roles = [{claim = \"groups\", value = \"sre\", role = \"owner\"}]";
    let server = serve(&home, &[issuer(A, owners)]).await;
    let made = owner_key(&home, crate::support::MASTER_KEY, "24h");
    let stderr = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success(), "{stderr}");
    let key = String::from_utf8(made.stdout).unwrap();
    let key = key.strip_suffix('\n').unwrap();
    let secret = key.rsplit('_').next().unwrap();
    assert!(!stderr.contains(secret), "the log is no place for it");
    assert!(
        stderr.contains("recorded a change"),
        "the log is the command's: {stderr}"
    );

    let owner = server.client().with_key(key);
    owner.create("/v1/tenants", json!({"slug": "acme"})).await;
    let lines = owner
        .get("/v1/audit/events?action=key.create")
        .send()
        .await
        .expect(200);
    let line = &lines["items"][0];
    assert_eq!(line["actor"]["kind"], "cli", "{line}");
    assert!(!text(line, "/actor/user").is_empty());
    assert!(!text(line, "/actor/host").is_empty());
    let kept = owner.get(&format!("/v1/keys/{}", text(line, "/target/id")));
    let kept = kept.send().await.expect(200);
    assert_eq!(kept["created_by"], line["actor"]);
    assert_eq!(kept["grants"][0]["scopes"], json!(["*"]));
    let report = owner.post("/v1/audit/verify").json(json!({})).send().await;
    assert_eq!(report.expect(200)["valid"], true);
    server.clock.advance("25h".parse().unwrap());
    let ended = owner.get("/v1/tenants").send().await;
    assert_eq!((ended.status, ended.code()), (401, "expired"));

    // Another master key is no way in, and leaves nothing.
    let other = "ff".repeat(32);
    let refused = owner_key(&home, &other, "24h");
    assert_ne!(refused.status.code(), Some(0));
    assert!(refused.stdout.is_empty());
    let boss = bearer(&server, json!({"groups": ["sre"]}));
    let keys = boss.get("/v1/keys?consumer=keystead-owner").send().await;
    assert_eq!(keys.expect(200)["items"].as_array().unwrap().len(), 1);
}

async fn the_way_back_in_revives_no_owner_key_that_was_stopped(home: Home) {
    let server = home.serve().await;
    let first = server.owner();
    let disable = first.post("/v1/consumers/keystead-owner/disable");
    disable.send().await.expect(200);
    assert_eq!(first.get("/v1/keys").send().await.code(), "disabled");
    for holder in ["keystead-owner-2", "keystead-owner-3"] {
        let made = owner_key(&home, crate::support::MASTER_KEY, "24h");
        assert!(made.status.success());
        let key = String::from_utf8(made.stdout).unwrap();
        let owner = server.client().with_key(key.trim());
        let keys = owner
            .get(&format!("/v1/keys?consumer={holder}"))
            .send()
            .await;
        assert_eq!(keys.expect(200)["items"].as_array().unwrap().len(), 1);
        assert_eq!(first.get("/v1/keys").send().await.code(), "disabled");
        // Deleted with its key, which is revoked and stands so in the trail.
        let path = format!("/v1/consumers/{holder}?revoke_keys=true");
        let ended = owner.request("DELETE".parse().unwrap(), &path).send().await;
        assert_eq!(ended.status, 204, "{ended}");
        assert_eq!(owner.get("/v1/keys").send().await.code(), "revoked");
    }
    let made = owner_key(&home, crate::support::MASTER_KEY, "24h");
    let key = String::from_utf8(made.stdout).unwrap();
    let owner = server.client().with_key(key.trim());
    let path = "/v1/audit/events?action=key.revoke";
    let lines = owner.get(path).send().await.expect(200);
    assert_eq!(lines["items"].as_array().unwrap().len(), 2, "{lines}");
    let keys = owner
        .get("/v1/keys?status=revoked")
        .send()
        .await
        .expect(200);
    assert_eq!(keys["items"].as_array().unwrap().len(), 2, "{keys}");
    let report = owner.post("/v1/audit/verify").json(json!({})).send().await;
    assert_eq!(report.expect(200)["valid"], true);
}
