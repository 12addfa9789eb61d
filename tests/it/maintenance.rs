//! The maintenance commands as an operator runs them, beside a database that a server has used.

use std::process::{Command, Output};

use diesel_async::RunQueryDsl;
use keystead::audit::Audit;
use keystead::clock::Clock;
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::keys::pepper::store;
use keystead::master::{MasterKey, MasterKeys};
use keystead::tenants::Tenants;
use keystead::time::Span;

use crate::cli::{MASTER_KEY, complaint, keystead, stdout};
use crate::support::{Home, both};

const OTHER_KEY: &str = "00112233445566778899aabbccddeeff0f1e2d3c4b5a69788796a5b4c3d2e1f0";

both!(
    a_whole_trail_is_proved_and_a_broken_one_is_named,
    a_broken_trail_is_taken_back_with_a_reason,
    an_audit_key_of_a_lost_master_key_is_named_and_adopted_by_its_name,
    another_master_key_is_refused_before_anything_is_written,
    a_pepper_is_rotated_and_shown,
    a_lost_master_key_is_given_up_only_if_it_is_lost,
);

/// A database as the first start of a server leaves it.
struct Place {
    home: Home,
    dir: tempfile::TempDir,
    db: Db,
}

impl Place {
    async fn new(home: Home) -> Self {
        let db = home.db();
        let (clock, entropy) = (Clock::System, Entropy::System);
        let master = MasterKeys {
            first: MasterKey::parse(MASTER_KEY).unwrap(),
            others: Vec::new(),
        };
        let audit = Audit::new(db.clone(), clock.clone(), entropy.clone(), &master);
        let now = clock.now();
        db.write(async move |conn: &mut Conn| store::ensure_first(conn, &master, now).await)
            .await
            .unwrap();
        Tenants::new(db.clone(), audit)
            .ensure_default(&clock, &entropy)
            .await
            .unwrap();
        Self {
            home,
            dir: tempfile::tempdir().unwrap(),
            db,
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = keystead(self.dir.path(), arguments);
        command
            .env("KEYSTEAD__DATABASE__URL", &self.home.database_url)
            .env("KEYSTEAD__SECRETS__MASTER_KEY", MASTER_KEY);
        command
    }

    /// A command that does what it is for.
    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    async fn sql(&self, text: &str) {
        let text = text.to_owned();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<usize> {
                Ok(each!(conn, c => diesel::sql_query(text).execute(c).await)?)
            })
            .await
            .unwrap();
    }
}

async fn a_whole_trail_is_proved_and_a_broken_one_is_named(home: Home) {
    let place = Place::new(home).await;
    let output = place.done(&["audit", "verify"]);
    assert!(stdout(&output).starts_with("default: whole, 1 records checked, head 1 "));
    let output = place.done(&["audit", "verify", "--tenant", "default", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["valid"], true);

    place
        .sql("UPDATE audit_event SET actor = 'somebody else'")
        .await;
    let output = place.command(&["audit", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(complaint(&output), "a chain does not verify");
    let text = stdout(&output);
    assert!(
        text.contains("default: BROKEN") && text.contains("number 1"),
        "{text}"
    );

    let output = place
        .command(&["audit", "verify", "--tenant", "nobody"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(complaint(&output), "there is no tenant nobody");
}

async fn a_broken_trail_is_taken_back_with_a_reason(home: Home) {
    let place = Place::new(home).await;
    place
        .sql("UPDATE audit_event SET actor = 'somebody else'")
        .await;
    let output = place.command(&["audit", "reseal"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "without a reason");

    let output = place.done(&["audit", "reseal", "--reason", "a disk failed"]);
    assert!(stdout(&output).contains("BROKEN"), "{output:?}");
    let output = place.done(&["audit", "verify"]);
    assert!(
        stdout(&output).contains("1 faults accepted by a reseal"),
        "{output:?}"
    );
}

async fn an_audit_key_of_a_lost_master_key_is_named_and_adopted_by_its_name(home: Home) {
    let place = Place::new(home).await;
    let said = place.done(&["audit", "checkpoint"]);
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    let kid = said["kid"].as_str().unwrap();
    let under_another = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env("KEYSTEAD__SECRETS__MASTER_KEY", OTHER_KEY);
        command.output().unwrap()
    };
    let because = ["--reason", "the master key is lost"];
    let reseal = |more: &[&str]| under_another(&[&["audit", "reseal"], more, &because].concat());
    let output = reseal(&["--adopt-key", "nobody"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        complaint(&output).starts_with("--adopt-key nobody: "),
        "{output:?}"
    );
    let output = reseal(&[]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    assert!(
        text.contains("default: BROKEN") && text.contains(&format!("audit key {kid}, from ")),
        "{text}"
    );
    let output = under_another(&["audit", "verify"]);
    assert_eq!(
        output.status.code(),
        Some(1),
        "it proves nothing: {output:?}"
    );

    let output = reseal(&["--adopt-key", kid]);
    assert!(output.status.success(), "{output:?}");
    let text = stdout(&output);
    let adopted = format!("audit key {kid}: adopted");
    assert!(
        text.contains(&adopted) && !text.contains("no listed"),
        "{text}"
    );
    let output = under_another(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
}

async fn another_master_key_is_refused_before_anything_is_written(home: Home) {
    let place = Place::new(home).await;
    for arguments in [&["pepper", "rotate"][..], &["pepper", "retire", "1"]] {
        let output = place
            .command(arguments)
            .env("KEYSTEAD__SECRETS__MASTER_KEY", OTHER_KEY)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(
            complaint(&output).starts_with("secrets.master_key: "),
            "{output:?}"
        );
    }
    let output = place.done(&["audit", "verify"]);
    assert!(stdout(&output).starts_with("default: whole, 1 records checked"));
}

async fn a_pepper_is_rotated_and_shown(home: Home) {
    let place = Place::new(home).await;
    let output = place.done(&["pepper", "rotate", "--reason", "yearly"]);
    assert!(
        stdout(&output).starts_with("version 2 becomes current at 20"),
        "{output:?}"
    );
    let log = std::str::from_utf8(&output.stderr).unwrap();
    assert!(
        log.contains("recorded a change") && log.contains("pepper.rotate"),
        "{log}"
    );

    let output = place.command(&["pepper", "rotate"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        complaint(&output).starts_with("version 2 is already on its way"),
        "{output:?}"
    );

    let soon = Clock::System.now().plus(Span::minutes(2));
    let promoted = place
        .db
        .write(async move |conn: &mut Conn| store::promote_due(conn, soon).await)
        .await;
    assert_eq!(promoted.unwrap(), Some(2));
    let output = place.done(&["pepper", "status"]);
    let states: Vec<_> = stdout(&output)
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().take(2).collect::<Vec<_>>())
        .collect();
    assert_eq!(states, [["1", "old"], ["2", "current"]]);
    place.done(&["pepper", "retire", "1"]);
}

async fn a_lost_master_key_is_given_up_only_if_it_is_lost(home: Home) {
    let place = Place::new(home).await;
    let lost = &["pepper", "lost", "--reason", "the disk burnt"][..];
    place
        .sql("UPDATE audit_event SET actor = 'somebody else'")
        .await;
    let output = place.done(lost);
    assert_eq!(
        stdout(&output),
        "nothing is lost: every version can be computed\n"
    );
    let broken = place.command(&["audit", "verify"]).output().unwrap();
    assert_eq!(
        broken.status.code(),
        Some(1),
        "nothing was accepted on the way"
    );

    let anew = |arguments| {
        let mut command = place.command(arguments);
        command.env("KEYSTEAD__SECRETS__MASTER_KEY", OTHER_KEY);
        command.output().unwrap()
    };
    let output = anew(lost);
    assert!(output.status.success(), "{output:?}");
    assert!(
        stdout(&output).contains("gave up: 1; current: 2;"),
        "{output:?}"
    );
    let output = anew(&["audit", "verify"]);
    assert!(output.status.success(), "{output:?}");
    let output = anew(lost);
    assert_eq!(
        stdout(&output),
        "nothing is lost: every version can be computed\n"
    );
}

#[test]
fn a_maintenance_command_makes_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let output = keystead(dir.path(), &["audit", "verify"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        complaint(&output).contains("keystead-data/keystead.db, which is not there"),
        "{output:?}"
    );
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}
