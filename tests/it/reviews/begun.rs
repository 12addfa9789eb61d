//! A review is there if and only if the trail says that it was made, whatever happens while its keys are put
//! into it. Who writes in SQLite is alone, so what comes in between is PostgreSQL's.

use std::time::Duration;

use keystead::time::Span;
use serde_json::json;
use tokio::time::sleep;

use super::{BOUND, issue, items, key, read, world};
use crate::support::{Answer, Backend, Client, Fault, Home, Proxy, run, tables, text, until};

/// The longest that a caller waits for a change, and a statement for a lock.
const WAIT_MAX: Duration = Duration::from_secs(2);

async fn create(owner: &Client) -> Answer {
    let about = json!({"name": "r", "filter": {"services": ["billing"]}});
    let create = owner.post("/v1/reviews/access");
    let create = create.header("idempotency-key", "once");
    create.json(about).send().await
}

async fn count(home: &Home, rows: &str) -> usize {
    let query = format!("SELECT CAST(COUNT(*) AS TEXT) AS line FROM {rows}");
    let lines = tables::lines_of(home.eyes(), query).await;
    lines[0].parse().expect("a number")
}

/// How many reviews the trail says were made.
async fn told(home: &Home) -> usize {
    count(home, "audit_event WHERE action = 'access_review.create'").await
}

async fn until_wait(home: &Home, sessions: usize) {
    let waiting =
        "pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until(BOUND, "they wait for locks", async || {
        count(home, waiting).await >= sessions
    })
    .await;
}

/// As the trail has it, with all its keys.
async fn assert_whole(home: &Home, owner: &Client, made: &Answer, keys: usize) {
    let review = read(owner, &made.body).await;
    assert_eq!(
        (&review["status"], &review["keys"]),
        (&json!("open"), &json!(keys))
    );
    assert_eq!(items(owner, &review).await.len(), keys);
    let path = format!("/v1/audit/events?target={}", text(&review, "/id"));
    let lines = owner.get(&path).send().await.expect(200);
    assert_eq!(lines["items"][0]["after"]["digest"], review["digest"]);
    assert_eq!((told(home).await, count(home, "review").await), (1, 1));
    let again = create(owner).await;
    assert_eq!(again.headers["idempotency-replayed"], "true");
    assert_eq!(again.expect(201)["id"], review["id"]);
}

async fn assert_nothing_is_left(home: &Home) {
    let left = async || count(home, "review").await + count(home, "review_item").await;
    until(BOUND, "nothing is left", async || left().await == 0).await;
    assert_eq!(told(home).await, 0);
}

/// Two keys to review.
async fn keys(owner: &Client) {
    world(owner).await;
    for name in ["one", "two"] {
        issue(owner, key(name, "acme", "billing", &[])).await;
    }
}

/// Makes a review whose last step finds the head of the trail held for so long.
async fn create_meanwhile_held(home: &Home, owner: &Client, held: Duration) -> Answer {
    let [items, head] = [home.session().await, home.session().await];
    items
        .run("BEGIN; LOCK TABLE review_item IN SHARE MODE")
        .await;
    let hold = async {
        items.until_waited_for().await;
        head.run("BEGIN; SELECT 1 FROM audit_head FOR UPDATE").await;
        items.run("COMMIT").await;
        sleep(held).await;
        head.run("COMMIT").await;
    };
    tokio::join!(create(owner), hold).0
}

#[test]
fn a_review_whose_change_takes_longer_than_a_caller_waits_is_made() {
    run(Backend::Postgres, async |home: Home| {
        let server = home.serve().await;
        let owner = server.owner();
        keys(&owner).await;
        // No statement takes too long; all of them together do.
        let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(1); RETURN NEW; END $$;
                    CREATE TRIGGER slow BEFORE INSERT ON audit_event
                    FOR EACH ROW EXECUTE FUNCTION slow()";
        home.session().await.run(slow).await;
        let made = create_meanwhile_held(&home, &owner, WAIT_MAX.mul_f64(0.75)).await;
        assert_eq!(made.status, 201, "{made}");
        assert_whole(&home, &owner, &made, 2).await;
    });
}

#[test]
fn a_review_whose_change_finds_the_trail_held_leaves_nothing_behind() {
    run(Backend::Postgres, async |home: Home| {
        let server = home.serve().await;
        let owner = server.owner();
        keys(&owner).await;
        let refused = create_meanwhile_held(&home, &owner, WAIT_MAX.mul_f64(1.5)).await;
        assert_eq!((refused.status, refused.code()), (503, "busy"), "{refused}");
        assert_nothing_is_left(&home).await;
        let made = create(&owner).await;
        assert_eq!(made.status, 201, "{made}");
        assert_whole(&home, &owner, &made, 2).await;
    });
}

#[test]
fn a_review_that_opens_while_a_node_whose_clock_is_ahead_sweeps_stays() {
    run(Backend::Postgres, async |home: Home| {
        let [server, ahead] = [home.serve().await, home.serve().await];
        ahead.clock.advance(Span::hours(2));
        let owner = server.owner();
        keys(&owner).await;
        let trail = home.session().await;
        trail
            .run("BEGIN; LOCK TABLE audit_event IN SHARE MODE")
            .await;
        let sweep = async {
            // It has its instant, for whoever waits.
            until_wait(&home, 1).await;
            let go_on = async {
                until_wait(&home, 2).await;
                trail.run("COMMIT").await;
            };
            tokio::join!(ahead.app.reviews.sweep(), go_on).0.unwrap();
        };
        let made = tokio::join!(create(&owner), sweep).0;
        assert_eq!(made.status, 201, "{made}");
        assert_whole(&home, &owner, &made, 2).await;
    });
}

#[test]
fn a_review_that_has_lost_keys_to_a_sweep_is_not_opened() {
    run(Backend::Postgres, async |home: Home| {
        let [server, ahead] = [home.serve().await, home.serve().await];
        ahead.clock.advance(Span::hours(2));
        let owner = server.owner();
        world(&owner).await;
        // More than are removed at a time.
        let batch = json!({"items": vec![key("k", "acme", "billing", &[]); 600]});
        owner.create("/v1/keys/batch", batch).await;
        let [head, item] = [home.session().await, home.session().await];
        let sweep = async {
            head.until_waited_for().await;
            let last = "BEGIN; SELECT 1 FROM review_item ORDER BY key_id DESC LIMIT 1 FOR UPDATE";
            item.run(last).await;
            let go_on = async {
                until(BOUND, "some are gone", async || {
                    count(&home, "review_item").await <= 100
                })
                .await;
                head.run("COMMIT").await;
                until(BOUND, "its change has ended", async || {
                    head.try_run("SELECT 1 FROM audit_head FOR UPDATE NOWAIT")
                        .await
                        .is_ok()
                })
                .await;
                item.run("COMMIT").await;
            };
            tokio::join!(ahead.app.reviews.sweep(), go_on).0.unwrap();
        };
        let create = async {
            head.run("BEGIN; SELECT 1 FROM audit_head FOR UPDATE").await;
            let about = json!({"name": "r", "filter": {"services": ["billing"]}});
            let create = owner.post("/v1/reviews/access").json(about);
            create.send().await
        };
        let refused = tokio::join!(create, sweep).0;
        assert_eq!((refused.status, refused.code()), (503, "busy"), "{refused}");
        assert_nothing_is_left(&home).await;
    });
}

#[test]
fn a_review_whose_node_does_not_hear_that_it_is_open_stays() {
    run(Backend::Postgres, async |home: Home| {
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let server = home.serve_with(&[("DATABASE__URL", &url)]).await;
        let owner = server.owner();
        keys(&owner).await;
        // The commit waits for the test.
        let held = home.session().await;
        let slow = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
                    CREATE CONSTRAINT TRIGGER wait AFTER UPDATE ON review
                    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
                    WHEN (NEW.as_of IS NOT NULL) EXECUTE FUNCTION wait()";
        held.run(slow).await;
        held.run("BEGIN; SELECT pg_advisory_xact_lock(1)").await;
        let lose = async {
            held.until_waited_for().await;
            proxy.set(Fault::Reset).await;
            proxy.set(Fault::None).await;
            held.run("COMMIT").await;
        };
        let lost = tokio::join!(create(&owner), lose).0;
        assert_eq!(lost.status, 503, "{lost}");
        let mut again = None;
        until(BOUND, "it answers again", async || {
            again = Some(create(&owner).await);
            again.as_ref().is_some_and(|answer| answer.status != 503)
        })
        .await;
        assert_whole(&home, &owner, &again.unwrap(), 2).await;
    });
}
