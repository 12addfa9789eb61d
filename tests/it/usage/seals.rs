//! Hours of counts are sealed in the chain, and what is changed in them afterwards is named.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use keystead::audit::{Actor, Attribution, Audit, Chains, TenantRef};
use keystead::clock::Clock;
use keystead::db::Conn;
use keystead::entropy::Entropy;
use keystead::id::TenantId;
use keystead::master::{MasterKey, MasterKeys};
use keystead::metrics::Metrics;
use keystead::text::Slug;
use keystead::time::{Span, Timestamp};
use keystead::usage::proof::{self, HourFault, HoursReport};
use keystead::usage::retention::Keep;
use keystead::usage::{Record, Rules, Seals, Usage};

use super::{batch, cut_old, number, record, speak_for, store};
use crate::support::tables::{execute_on, lines_of};
use crate::support::{Backend, Home, both, run};

both!(
    an_hour_is_sealed_once_when_it_is_over,
    nodes_that_seal_together_leave_one_seal,
    what_is_changed_in_a_sealed_hour_is_named,
    what_comes_late_is_taken_in_by_a_further_seal,
    what_was_changed_is_not_sealed_with_what_comes_late,
    what_is_said_to_take_uses_away_explains_nothing,
    a_mark_that_lies_far_ahead_keeps_no_hour_from_its_seal,
    a_clock_that_jumps_ahead_moves_the_mark_no_further_than_uses_go,
    what_comes_late_for_an_hour_whose_seal_was_cut_is_no_fault,
    counts_that_are_no_longer_kept_leave_a_line_that_says_so,
    a_node_that_ended_between_the_databases_seals_once,
    a_sealed_ledger_is_verified_by_the_command,
    a_check_of_many_hours_goes_on_where_its_time_was_up,
);

const HOUR_MS: i64 = 3_600_000;

/// The clock of a test is so far behind that it is never ahead of that of the database.
const BEHIND_HOURS: i64 = 6;

struct Sealing {
    home: Home,
    metrics: Arc<Metrics>,
    clock: Clock,
    audit: Audit,
    tenant: TenantRef,
    seals: Seals,
    batches: i64,
}

impl Sealing {
    async fn new(home: &Home) -> Self {
        let moved_ms = Arc::new(AtomicI64::new(-BEHIND_HOURS * HOUR_MS));
        let (clock, db) = (Clock::Shifted(moved_ms), home.eyes().clone());
        let metrics = Arc::new(Metrics::new(&[]));
        let master = MasterKeys {
            first: MasterKey::new([7; 32]),
            others: Vec::new(),
        };
        let audit = Audit::new(db.clone(), clock.clone(), Entropy::System, &master)
            .counted(Arc::clone(&metrics));
        let tenant = TenantRef {
            id: TenantId::new(&clock, &Entropy::System),
            slug: Slug::parse("default").unwrap(),
        };
        let sql = format!(
            "INSERT INTO tenant (id, slug, name, metadata, version, created_at, updated_at) \
             VALUES ('{}', 'default', '', '{{}}', 1, 0, 0)",
            tenant.id
        );
        execute_on(&db, &sql).await;
        let (writer, id) = (audit.clone(), tenant.id.clone());
        db.write(async move |conn: &mut Conn| writer.create_head(conn, &id).await)
            .await
            .unwrap();
        let seals = Seals::new(db, home.usage_eyes().clone(), audit.clone(), clock.clone());
        Self {
            home: home.clone(),
            metrics,
            clock,
            audit,
            tenant,
            seals,
            batches: 0,
        }
    }

    /// The same chain and ledger, by another node.
    fn node(&self) -> Seals {
        Seals::new(
            self.home.db(),
            self.home.usage_db(),
            self.audit.clone(),
            self.clock.clone(),
        )
    }

    /// The beginning of the hour that was so many hours ago.
    fn hour(&self, ago: i64) -> i64 {
        let now = self.clock.now().millis();
        now - now.rem_euclid(HOUR_MS) - ago * HOUR_MS
    }

    fn used(&self, at: i64, key: &str) -> Record {
        Record {
            tenant_id: self.tenant.id.to_string(),
            ..record(at, key)
        }
    }

    /// So many uses of each of these keys in the hour.
    async fn uses(&mut self, hour: i64, keys: &[&str], each: i64) {
        self.batches += 1;
        let records = keys
            .iter()
            .flat_map(|key| (0..each).map(|n| self.used(hour + n, key)))
            .collect();
        let batch = batch("a", self.batches, records);
        store(self.home.usage_eyes(), &batch, &Rules::default()).await;
    }

    /// What the lines say: hour, uses, and how many of them came late.
    async fn sealed(&self) -> Vec<(i64, i64, i64)> {
        let query =
            "SELECT record AS line FROM audit_event WHERE action = 'usage.sealed' ORDER BY seq";
        let lines = lines_of(self.home.eyes(), query.to_owned()).await;
        lines
            .iter()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let hour: Timestamp = line["target"]["id"].as_str().unwrap().parse().unwrap();
                let number = |name: &str| line["after"][name].as_i64().unwrap();
                (hour.millis(), number("uses"), number("late_uses"))
            })
            .collect()
    }

    async fn report(&self) -> HoursReport {
        let ledger = self.home.usage_eyes();
        let mut reports = proof::verify(self.home.eyes(), Some(ledger), &Chains::All)
            .await
            .unwrap();
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    async fn assert_bad(&self, hour: i64, fault: HourFault) {
        let report = self.report().await;
        assert!(!report.valid);
        assert_eq!(report.bad, 1, "{report}");
        let bad = &report.faults[0];
        assert_eq!((bad.hour.millis(), bad.fault), (hour, fault), "{report}");
    }
}

fn system(tenant: &TenantRef) -> Attribution {
    Attribution {
        tenant: tenant.clone(),
        actor: Actor::System,
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    }
}

async fn an_hour_is_sealed_once_when_it_is_over(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let (now, last, before) = (sealing.hour(0), sealing.hour(1), sealing.hour(4));
    sealing.uses(before, &["key_1", "key_2"], 3).await;
    sealing.uses(last, &["key_1"], 2).await;
    sealing.uses(now, &["key_1"], 1).await;
    // The hour before may have ended less than some minutes ago.
    sealing.clock.advance(Span::minutes(5));
    let now = sealing.hour(0).max(now);
    sealing.seals.seal_due().await.unwrap();
    let mut expected = vec![(before, 6, 0), (last, 2, 0)];
    assert_eq!(sealing.sealed().await[..2], expected);
    assert_eq!(sealing.seals.seal_due().await.unwrap(), 0);
    assert_eq!(sealing.node().seal_due().await.unwrap(), 0);
    assert!(sealing.report().await.valid);
    // Over, but what is still on its way may come.
    let ends = now + HOUR_MS - sealing.clock.now().millis();
    sealing
        .clock
        .advance(Span::from_millis(ends.unsigned_abs() + 60_000));
    sealing.seals.seal_due().await.unwrap();
    let sealed = sealing.sealed().await.len();
    sealing.clock.advance(Span::minutes(5));
    sealing.seals.seal_due().await.unwrap();
    expected.push((sealing.hour(1), 1, 0));
    if sealed == 2 {
        assert_eq!(sealing.sealed().await, expected);
    }
    let report = sealing.report().await;
    assert!(report.valid && report.sealed_hours == 3, "{report}");
    let chain = sealing.audit.verify(&sealing.tenant.id, 1).await.unwrap();
    assert!(chain.valid);
}

async fn nodes_that_seal_together_leave_one_seal(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    for ago in 2..6 {
        let hour = sealing.hour(ago);
        sealing.uses(hour, &["key_1"], ago).await;
    }
    let nodes: Vec<Seals> = (0..4).map(|_| sealing.node()).collect();
    let counts = futures_util::future::join_all(nodes.iter().map(Seals::seal_due)).await;
    let made: usize = counts.into_iter().map(Result::unwrap).sum();
    assert_eq!(made, 4);
    assert_eq!(sealing.sealed().await.len(), 4);
    let late = sealing.hour(3);
    sealing.uses(late, &["key_2"], 5).await;
    let counts = futures_util::future::join_all(nodes.iter().map(Seals::take_in_late)).await;
    let made: usize = counts.into_iter().map(Result::unwrap).sum();
    assert_eq!(made, 1);
    assert_eq!(sealing.sealed().await[4..], [(late, 8, 5)]);
    assert!(sealing.report().await.valid);
}

async fn what_is_changed_in_a_sealed_hour_is_named(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let (one, other, empty) = (sealing.hour(5), sealing.hour(3), sealing.hour(4));
    sealing.uses(one, &["key_1", "key_2"], 3).await;
    sealing.uses(other, &["key_1"], 2).await;
    sealing.seals.seal_due().await.unwrap();
    for (change, undo, fault) in [
        (
            "UPDATE usage_hour SET uses = uses - 1 WHERE key_id = 'key_2'",
            "UPDATE usage_hour SET uses = uses + 1 WHERE key_id = 'key_2'",
            HourFault::Altered,
        ),
        (
            "UPDATE usage_hour SET outcome = 'expired' WHERE key_id = 'key_2'",
            "UPDATE usage_hour SET outcome = 'valid' WHERE key_id = 'key_2'",
            HourFault::Altered,
        ),
        (
            "UPDATE usage_hour SET key_id = 'key_3' WHERE key_id = 'key_2'",
            "UPDATE usage_hour SET key_id = 'key_2' WHERE key_id = 'key_3'",
            HourFault::Altered,
        ),
        (
            "UPDATE usage_hour SET consumer_id = 'con_2' WHERE key_id = 'key_2'",
            "UPDATE usage_hour SET consumer_id = 'con_1' WHERE key_id = 'key_2'",
            HourFault::Altered,
        ),
    ] {
        assert!(sealing.report().await.valid);
        execute_on(home.usage_eyes(), change).await;
        sealing.assert_bad(one, fault).await;
        // Nor does a look at what came late make it good.
        sealing.seals.take_in_late().await.unwrap();
        sealing.assert_bad(one, fault).await;
        execute_on(home.usage_eyes(), undo).await;
    }
    let moved =
        |from: i64, to: i64| format!("UPDATE usage_hour SET start = {to} WHERE start = {from}");
    execute_on(home.usage_eyes(), &moved(other, empty)).await;
    let report = sealing.report().await;
    let faults: Vec<_> = report.faults.iter().map(|bad| bad.fault).collect();
    assert_eq!(faults, [HourFault::Inserted, HourFault::Removed]);
    execute_on(home.usage_eyes(), &moved(empty, other)).await;
    assert!(sealing.report().await.valid);
    execute_on(home.usage_eyes(), "DELETE FROM usage_hour").await;
    let report = sealing.report().await;
    assert_eq!((report.bad, report.sealed_hours), (2, 0));
    let none = proof::verify(home.eyes(), None, &Chains::All)
        .await
        .unwrap();
    assert_eq!(none[0].bad, 2);
}

async fn what_comes_late_is_taken_in_by_a_further_seal(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let (hour, quiet) = (sealing.hour(5), sealing.hour(4));
    sealing.uses(hour, &["key_1"], 3).await;
    let last = sealing.hour(2);
    sealing.uses(last, &["key_1"], 1).await;
    sealing.seals.seal_due().await.unwrap();
    // To a row that is there, to a new one, and to an hour that had none.
    sealing.uses(hour, &["key_1", "key_2"], 2).await;
    sealing.uses(quiet, &["key_1"], 4).await;
    // Until it is taken in, what was sealed is judged by itself.
    assert!(sealing.report().await.valid);
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 2);
    assert_eq!(sealing.sealed().await[2..], [(hour, 7, 4), (quiet, 4, 4)]);
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_late").await, 0);
    assert!(sealing.report().await.valid);
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 0);
    sealing.uses(hour, &["key_2"], 1).await;
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 1);
    assert_eq!(sealing.sealed().await[4..], [(hour, 8, 1)]);
    let report = sealing.report().await;
    assert!(report.valid && report.sealed_hours == 3, "{report}");
    // An hour that is not over is nobody's late one.
    let now = sealing.hour(0);
    sealing.uses(now, &["key_1"], 1).await;
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_late").await, 0);
}

async fn what_was_changed_is_not_sealed_with_what_comes_late(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let hour = sealing.hour(5);
    sealing.uses(hour, &["key_1", "key_2"], 3).await;
    sealing.seals.seal_due().await.unwrap();
    let steal = "UPDATE usage_hour SET uses = uses - 1 WHERE key_id = 'key_1'";
    execute_on(home.usage_eyes(), steal).await;
    sealing.uses(hour, &["key_2"], 2).await;
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 0);
    assert_eq!(sealing.sealed().await.len(), 1);
    sealing.assert_bad(hour, HourFault::Altered).await;
    // What is said to be late and is not there is taken away from the rest.
    let invented = format!(
        "INSERT INTO usage_late SELECT 99, tenant_id, start, 'key_9', secret_id, superseded, \
         service, outcome, operation, caller, consumer_id, 1, 1 FROM usage_hour \
         WHERE start = {hour} AND key_id = 'key_2'"
    );
    let give_back = "UPDATE usage_hour SET uses = uses + 1 WHERE key_id = 'key_1'";
    execute_on(home.usage_eyes(), give_back).await;
    assert!(sealing.report().await.valid);
    execute_on(home.usage_eyes(), &invented).await;
    sealing.assert_bad(hour, HourFault::Altered).await;
}

async fn what_is_said_to_take_uses_away_explains_nothing(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let hour = sealing.hour(5);
    sealing.uses(hour, &["key_1", "key_2"], 3).await;
    sealing.seals.seal_due().await.unwrap();
    for (column, less) in [("uses", "-1, 0"), ("cost", "0, -1")] {
        let steal = format!("UPDATE usage_hour SET {column} = {column} - 1 WHERE key_id = 'key_1'");
        execute_on(home.usage_eyes(), &steal).await;
        let explained = format!(
            "INSERT INTO usage_late SELECT 99, tenant_id, start, key_id, secret_id, superseded, \
             service, outcome, operation, caller, consumer_id, {less} FROM usage_hour \
             WHERE start = {hour} AND key_id = 'key_1'"
        );
        execute_on(home.usage_eyes(), &explained).await;
        sealing.assert_bad(hour, HourFault::Altered).await;
        assert_eq!(sealing.seals.take_in_late().await.unwrap(), 0);
        assert_eq!(sealing.sealed().await.len(), 1);
        sealing.assert_bad(hour, HourFault::Altered).await;
        let give_back =
            format!("UPDATE usage_hour SET {column} = {column} + 1 WHERE key_id = 'key_1'");
        execute_on(home.usage_eyes(), &give_back).await;
        execute_on(home.usage_eyes(), "DELETE FROM usage_late").await;
        assert!(sealing.report().await.valid);
    }
}

async fn a_mark_that_lies_far_ahead_keeps_no_hour_from_its_seal(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let ahead = sealing.hour(0) + 1_000_000 * HOUR_MS;
    let mark = format!("UPDATE usage_seal SET sealed_to = {ahead}");
    execute_on(home.usage_eyes(), &mark).await;
    let (first, current) = (sealing.hour(3), sealing.hour(0));
    sealing.uses(first, &["key_1"], 3).await;
    sealing.uses(current, &["key_1"], 1).await;
    sealing.seals.seal_due().await.unwrap();
    // The hour at hand is not over, whatever the mark says; what it calls late is sealed all the same.
    assert_eq!(sealing.sealed().await, [(first, 3, 3)]);
    sealing.clock.advance(Span::hours(2));
    sealing.seals.seal_due().await.unwrap();
    assert_eq!(sealing.sealed().await, [(first, 3, 3), (current, 1, 1)]);
    assert!(sealing.report().await.valid);
}

async fn a_clock_that_jumps_ahead_moves_the_mark_no_further_than_uses_go(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let (first, current) = (sealing.hour(3), sealing.hour(0));
    sealing.uses(first, &["key_1"], 3).await;
    sealing.uses(current, &["key_1"], 1).await;
    let Clock::Shifted(moved_ms) = sealing.clock.clone() else {
        panic!("a clock of a test");
    };
    let right = moved_ms.load(Ordering::SeqCst);
    moved_ms.store(right + 1000 * 24 * HOUR_MS, Ordering::SeqCst);
    sealing.seals.seal_due().await.unwrap();
    moved_ms.store(right, Ordering::SeqCst);
    let mark = number(&home, "SELECT sealed_to FROM usage_seal").await;
    assert!(mark <= current + 2 * HOUR_MS, "{mark} {current}");
    // What comes after that is not late, and the same node seals it.
    let next = current + 2 * HOUR_MS;
    sealing.clock.advance(Span::hours(4));
    sealing.uses(next, &["key_1"], 2).await;
    let late = format!("SELECT COUNT(*) FROM usage_late WHERE start = {next}");
    assert_eq!(number(&home, &late).await, 0);
    assert_eq!(sealing.seals.seal_due().await.unwrap(), 1);
    assert_eq!(sealing.sealed().await.pop(), Some((next, 2, 0)));
    assert_eq!(sealing.seals.seal_due().await.unwrap(), 0);
    assert!(sealing.report().await.valid);
}

async fn what_comes_late_for_an_hour_whose_seal_was_cut_is_no_fault(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let hour = sealing.hour(5);
    sealing.uses(hour, &["key_1"], 3).await;
    sealing.seals.seal_due().await.unwrap();
    let (by, later) = (
        system(&sealing.tenant),
        sealing.clock.now().plus(Span::days(1)),
    );
    sealing.audit.begin_key(by.clone()).await.unwrap();
    sealing.audit.checkpoint_all(&Chains::All).await.unwrap();
    sealing.audit.cut(&Chains::All, later, &by).await.unwrap();
    assert!(sealing.sealed().await.is_empty());
    // Some are late for it, and all that there are for the hour before.
    sealing.uses(hour, &["key_2"], 2).await;
    let before = hour - HOUR_MS;
    sealing.uses(before, &["key_1"], 1).await;
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 1);
    assert_eq!(sealing.sealed().await, [(before, 1, 1)]);
    let told = || sealing.metrics.security_events.value("usage_broken");
    assert_eq!(
        (sealing.seals.take_in_late().await.unwrap(), told()),
        (0, 0)
    );
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_late").await, 0);
    let report = sealing.report().await;
    assert!(report.valid && report.unproved_hours == 1, "{report}");
}

async fn counts_that_are_no_longer_kept_leave_a_line_that_says_so(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let usage = Usage::new(home.usage_eyes().clone(), sealing.clock.clone());
    let (old, recent) = (sealing.hour(401 * 24 + 24), sealing.hour(6));
    sealing.uses(old, &["key_1"], 3).await;
    sealing.uses(recent, &["key_1"], 2).await;
    sealing.seals.seal_due().await.unwrap();
    assert_eq!(sealing.sealed().await.len(), 2);
    speak_for(&home, sealing.clock.now()).await;
    let counts_since = sealing.seals.announce_cut(&usage).await.unwrap();
    let keep = Keep {
        events: Span::days(30),
        bytes_max: u64::MAX,
        counts_since,
        gently_until: tokio::time::Instant::now(),
        told_after: std::time::Duration::MAX,
    };
    cut_old(&usage, keep).await;
    let report = sealing.report().await;
    assert!(report.valid, "{report}");
    assert_eq!((report.sealed_hours, report.dropped_hours), (1, 1));
    let cuts = "SELECT COUNT(*) FROM audit_event WHERE action = 'usage.counts_cut'";
    let count = async || {
        let query = format!("SELECT CAST(({cuts}) AS TEXT) AS line");
        lines_of(home.eyes(), query).await[0].clone()
    };
    assert_eq!(count().await, "1");
    // There is nothing more to be said about.
    sealing.seals.announce_cut(&usage).await.unwrap();
    assert_eq!(count().await, "1");
    // What nobody announced is missed.
    execute_on(home.usage_eyes(), "DELETE FROM usage_hour").await;
    sealing.assert_bad(recent, HourFault::Removed).await;
}

async fn a_node_that_ended_between_the_databases_seals_once(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    let hour = sealing.hour(5);
    sealing.uses(hour, &["key_1"], 3).await;
    sealing.seals.seal_due().await.unwrap();
    sealing.uses(hour, &["key_1"], 2).await;
    let kept = "CREATE TABLE kept AS SELECT * FROM usage_late";
    execute_on(home.usage_eyes(), kept).await;
    assert_eq!(sealing.seals.take_in_late().await.unwrap(), 1);
    // The line is there, and what it is about was not removed.
    let again = "INSERT INTO usage_late SELECT * FROM kept";
    execute_on(home.usage_eyes(), again).await;
    assert!(sealing.report().await.valid);
    assert_eq!(sealing.node().take_in_late().await.unwrap(), 0);
    assert_eq!(sealing.sealed().await.len(), 2);
    assert_eq!(number(&home, "SELECT COUNT(*) FROM usage_late").await, 0);
    execute_on(home.usage_eyes(), "DROP TABLE kept").await;
}

async fn a_sealed_ledger_is_verified_by_the_command(home: Home) {
    let server = home.serve().await;
    let tenant = "SELECT id AS line FROM tenant WHERE slug = 'default'";
    let tenant = lines_of(home.eyes(), tenant.to_owned()).await.remove(0);
    let now = server.clock.now().millis();
    let hour = now - now.rem_euclid(HOUR_MS) - 3 * HOUR_MS;
    let used = Record {
        tenant_id: tenant,
        ..record(hour, "key_1")
    };
    store(
        home.usage_eyes(),
        &batch("b", 1, vec![used]),
        &Rules::default(),
    )
    .await;
    server.app.seals.seal_due().await.unwrap();
    let listed = server
        .owner()
        .get("/v1/audit/events?action=usage.sealed")
        .send()
        .await
        .expect(200);
    assert_eq!(listed["items"][0]["after"]["uses"], 1);
    let verify = |arguments: &[&str]| {
        let output = home.keystead(arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.success(), text)
    };
    let asked = async |body: serde_json::Value| {
        let request = server.owner().post("/v1/usage/verify").json(body);
        request.send().await.expect(200)
    };
    let expected = serde_json::json!({
        "tenant": "default", "valid": true, "sealed_hours": 1, "dropped_hours": 0,
        "unproved_hours": 0, "faults": [], "bad": 0, "next_hour": null,
    });
    assert_eq!(asked(serde_json::json!({})).await, expected);
    let (is_good, text) = verify(&["audit", "verify"]);
    assert!(is_good, "{text}");
    assert!(
        text.contains("default: uses whole, 1 sealed hours hold\n"),
        "{text}"
    );
    execute_on(home.usage_eyes(), "UPDATE usage_hour SET uses = 7").await;
    let (is_good, text) = verify(&["audit", "verify"]);
    assert!(!is_good, "{text}");
    let hour = Timestamp::from_millis(hour);
    let named = format!(
        "  bad hour: {hour}: altered: 1 uses in 1 rows were sealed, 7 uses in 1 rows are there\n"
    );
    assert!(text.contains(&named), "{text}");
    let (_, text) = verify(&["audit", "verify", "--json"]);
    let report: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["faults"][0]["fault"], "altered");
    let told = asked(serde_json::json!({})).await;
    assert_eq!(told, report);
    let metrics = server.owner().anonymous().get("/metrics").send().await;
    let counted = "keystead_security_events_total{kind=\"usage_broken\"} 1\n";
    assert!(metrics.text.contains(counted), "{}", metrics.text);
    // From the next hour on there is nothing wrong.
    let later = hour.plus(Span::hours(1)).to_string();
    let told = asked(serde_json::json!({"from": later})).await;
    assert_eq!(
        (&told["valid"], &told["sealed_hours"]),
        (&true.into(), &0.into())
    );
}

async fn a_check_of_many_hours_goes_on_where_its_time_was_up(home: Home) {
    let mut sealing = Sealing::new(&home).await;
    for ago in 2..12 {
        sealing.uses(sealing.hour(ago), &["key_1"], 1).await;
    }
    sealing.clock.advance(Span::minutes(5));
    assert_eq!(sealing.seals.seal_due().await.unwrap(), 10);
    let bad = sealing.hour(7);
    let change = format!("UPDATE usage_hour SET uses = 7 WHERE start = {bad}");
    execute_on(home.usage_eyes(), &change).await;
    // To whoever checks, all the time of a turn is over at once.
    let (clock, runs) = (sealing.clock.clone(), Arc::new(AtomicBool::new(true)));
    let still = Arc::clone(&runs);
    let hurry = tokio::spawn(async move {
        while still.load(Ordering::Relaxed) {
            clock.advance(Span::seconds(10));
            tokio::task::yield_now().await;
        }
    });
    let (mut turns, mut held, mut faults) = (0, 0, Vec::new());
    let mut next = Some(Timestamp::from_millis(0));
    while let Some(from) = next {
        let report = sealing.seals.verify(&sealing.tenant, from).await.unwrap();
        assert_eq!(report.valid, report.faults.is_empty());
        held += report.sealed_hours;
        faults.extend(report.faults.iter().map(|bad| bad.hour.millis()));
        next = report.next_hour;
        turns += 1;
        assert!(turns <= 11, "{report}");
    }
    runs.store(false, Ordering::Relaxed);
    hurry.await.unwrap();
    assert!(turns > 1, "{turns}");
    assert_eq!((held, faults), (9, vec![bad]));
}

/// While batches come without a pause, whoever seals gets his turn, and no use is in no hour.
#[test]
fn sealing_waits_for_batches_and_they_for_it() {
    run(Backend::Postgres, |home: Home| async move {
        let sealing = Sealing::new(&home).await;
        let hour = sealing.hour(2);
        let writers = (0..6).map(|writer| {
            let (db, used) = (home.usage_db(), sealing.used(hour, "key_1"));
            async move {
                for number in 0..40 {
                    let batch = batch(&format!("w{writer}"), number, vec![used.clone(); 20]);
                    store(&db, &batch, &Rules::default()).await;
                }
            }
        });
        let seals = async {
            // From the first batch on there is something to seal.
            let mut sealed = 0;
            for _ in 0..200 {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                sealed = sealing.seals.seal_due().await.unwrap();
                if sealed > 0 {
                    break;
                }
            }
            sealed
        };
        let (_, sealed) = tokio::join!(futures_util::future::join_all(writers), seals);
        assert_eq!(sealed, 1);
        sealing.seals.take_in_late().await.unwrap();
        let told = sealing.sealed().await;
        assert_eq!(told.last().unwrap().1, 6 * 40 * 20, "{told:?}");
        assert!(sealing.report().await.valid);
    });
}

/// In SQLite a value may be of any type, and counts for something else than it reads as.
#[test]
fn a_count_of_another_type_is_named() {
    run(Backend::Sqlite, |home: Home| async move {
        let mut sealing = Sealing::new(&home).await;
        let hour = sealing.hour(5);
        sealing.uses(hour, &["key_1", "key_2"], 3).await;
        sealing.seals.seal_due().await.unwrap();
        let row = "tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller, \
                   consumer_id";
        let late = |seq: i64, uses: &str| {
            format!(
                "INSERT INTO usage_late SELECT {seq}, {row}, {uses}, 0 FROM usage_hour \
                 WHERE key_id = 'key_1'"
            )
        };
        let steal = "UPDATE usage_hour SET uses = uses - 2 WHERE key_id = 'key_1'".to_owned();
        let parts = (99..103).map(|seq| late(seq, "-0.5"));
        let change = |what: &str| {
            vec![format!(
                "UPDATE usage_hour SET {what} WHERE key_id = 'key_1'"
            )]
        };
        for changes in [
            vec![steal.clone(), late(99, "CAST('-2' AS BLOB)")],
            [steal].into_iter().chain(parts).collect(),
            change("uses = CAST('3e-1' AS BLOB)"),
            change("cost = cost + 0.5"),
            change("outcome = CAST(outcome AS BLOB)"),
            vec![format!(
                "INSERT INTO usage_hour SELECT {}, 7, 7 FROM usage_hour WHERE key_id = 'key_1'",
                row.replace("start", "start + 0.5")
            )],
        ] {
            execute_on(
                home.usage_eyes(),
                "CREATE TABLE kept AS SELECT * FROM usage_hour",
            )
            .await;
            assert!(sealing.report().await.valid, "{changes:?}");
            for change in &changes {
                execute_on(home.usage_eyes(), change).await;
            }
            sealing.assert_bad(hour, HourFault::Altered).await;
            sealing.seals.take_in_late().await.unwrap();
            assert_eq!(sealing.sealed().await.len(), 1, "{changes:?}");
            sealing.assert_bad(hour, HourFault::Altered).await;
            for undo in [
                "DELETE FROM usage_hour",
                "INSERT INTO usage_hour SELECT * FROM kept",
                "DROP TABLE kept",
                "DELETE FROM usage_late",
            ] {
                execute_on(home.usage_eyes(), undo).await;
            }
        }
        assert!(sealing.report().await.valid);
    });
}
