//! A database that is slow with everything: what a request has to ask for adds up, and the answer comes in
//! time all the same. One that is far away is followed all the same, and reached again after every connection
//! to it was lost.

use std::time::Duration;

use keystead::cache::Changes;
use keystead::cache::Reach;
use keystead::cache::follow::Follower;
use keystead::db::{Db, Target};
use keystead::entropy::Entropy;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::support::load::percentile;
use crate::support::{
    Backend, Client, Fault, Home, Proxy, Request, figure, run, setting, text, until,
};

/// What is asked of it takes this much longer, each time: a load is a question for the counter of changes
/// and one for the rows.
const ROUND_TRIP: Duration = Duration::from_millis(60);

/// Of any answer, whatever there is to be asked for.
const ANSWERED_WITHIN: Duration = Duration::from_millis(200);

/// On a machine that has other things to do, a request itself may stand in line that long now and then. That
/// is nothing the fault does, so it is asked often enough to see what is usual.
const BUSY: Duration = Duration::from_millis(800);

/// How often it is asked until everything is known.
const ASKED_MAX: usize = 100;

#[test]
fn a_validation_that_has_much_to_ask_of_a_slow_database_is_answered_in_time() {
    run(Backend::Postgres, async |home: Home| {
        let trials = if setting("KEYSTEAD_TEST_LONG").is_some() {
            30
        } else {
            2
        };
        let a = home.serve().await;
        let owner = a.owner();
        let scopes = json!([{"name": "invoice:read"}]);
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let slow = home.serve_with(&[("DATABASE__URL", &url)]).await;
        let issue = async |number: usize, service: &str, scopes: &[&str]| {
            let consumer = format!("consumer-{service}-{number}");
            owner
                .create("/v1/consumers", json!({"slug": consumer}))
                .await;
            let new = json!({
                "name": "worker", "consumer": consumer,
                "grants": [{"service": service, "scopes": scopes}],
            });
            text(&owner.create("/v1/keys", new).await, "/api_key")
        };
        // Nothing of it is known to the node: neither the callers nor whatever the keys belong to.
        let mut unknown = Vec::new();
        for number in 0..3 * trials {
            let service = format!("service-{number}");
            let new = json!({"slug": service, "scopes": scopes});
            owner.create("/v1/services", new).await;
            let caller = issue(number, "keystead", &["*"]).await;
            let key = issue(number, &service, &["invoice:read"]).await;
            unknown.push((caller, service, key));
        }
        proxy.set(Fault::Delay(ROUND_TRIP / 2)).await;

        let (mut firsts, mut all, mut refused) = (Vec::new(), Vec::new(), 0);
        for (number, (caller, service, key)) in unknown.iter().enumerate() {
            let ask = || -> Request {
                let nobody = slow.client();
                match number % 3 {
                    0 => nobody
                        .with_key(caller)
                        .post("/v1/verify")
                        .json(json!({"api_key": key, "service": service})),
                    1 => nobody
                        .get(&format!("/gateway/authorize?service={service}"))
                        .header("x-keystead-caller", caller)
                        .header("x-api-key", key),
                    _ => nobody
                        .with_key(caller)
                        .post("/oauth/introspect")
                        .form(&[("token", key), ("audience", service)]),
                }
            };
            for turn in 0.. {
                assert!(turn < ASKED_MAX, "it is never known");
                let began = Instant::now();
                let answer = ask().try_send().await.expect("an answer");
                let took = began.elapsed();
                all.push(took);
                if turn == 0 {
                    firsts.push(took);
                }
                match answer.status {
                    200 if number % 3 == 1 => break,
                    200 => {
                        let body = answer.expect(200);
                        let is_good = body["valid"] == true || body["active"] == true;
                        assert!(is_good, "{body}");
                        break;
                    }
                    503 => refused += 1,
                    _ => panic!("{answer}"),
                }
            }
        }
        let (p50, max) = (percentile(firsts, 50), percentile(all, 100));
        figure(format_args!(
            "first answers in p50 {p50:.1?}, all in max {max:.1?}, {refused} refused"
        ));
        assert!(refused > 0, "there was too little to ask for");
        assert!(p50 <= ANSWERED_WITHIN, "{p50:?}");
        assert!(max <= ANSWERED_WITHIN + BUSY, "{max:?}");
    });
}

/// Each way to a database that is far away: there and back it is most of the second that a look at it has, and to
/// make a connection takes several times as long.
const FAR: Duration = Duration::from_millis(300);

/// How long a node without Redis decides that hears nothing from its database; the least there is.
const STALE_MAX: Duration = Duration::from_secs(5);

/// To make a connection, and to ask whatever has to be asked, some of it twice.
const REACHED_WITHIN: Duration = Duration::from_secs(20);

async fn code(client: &Client, key: &str) -> String {
    let body = json!({"api_key": key, "service": "invoicing"});
    let answer = client.post("/v1/verify").json(body).send().await;
    answer.code().to_owned()
}

#[test]
fn a_node_goes_on_that_is_far_from_its_database() {
    run(Backend::Postgres, async |home: Home| {
        let a = home.serve().await;
        let owner = a.owner();
        owner.create_world().await;
        let mut proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let settings = [("DATABASE__URL", url.as_str()), ("CACHE__STALE_MAX", "5s")];
        let far = home.serve_with(&settings).await;
        let (_, manager) = owner.issue("managers", "keystead").await;
        let caller = far.client().with_key(&manager);
        for is_cut in [false, true] {
            let (id, warm) = owner.issue("acme", "invoicing").await;
            let (_, cold) = owner.issue("acme", "invoicing").await;
            until(REACHED_WITHIN, "it is known", async || {
                code(&caller, &warm).await == "valid"
            })
            .await;
            if is_cut {
                proxy.set(Fault::Reset).await;
                until(STALE_MAX, "the database is missed", async || {
                    far.app.reach.is_database_away()
                })
                .await;
            }
            proxy.set(Fault::Delay(FAR)).await;
            let is_reached = async || !far.app.reach.is_database_away();
            until(REACHED_WITHIN, "the database is reached", is_reached).await;
            until(REACHED_WITHIN, "it is known again", async || {
                code(&caller, &warm).await == "valid"
            })
            .await;
            let began = Instant::now();
            while began.elapsed() < 2 * STALE_MAX {
                assert_eq!(code(&caller, &warm).await, "valid", "{is_cut}");
                sleep(Duration::from_millis(100)).await;
            }
            until(REACHED_WITHIN, "another is loaded", async || {
                code(&caller, &cold).await == "valid"
            })
            .await;
            let change = format!("/v1/keys/{id}/revoke");
            owner.post(&change).send().await.expect(200);
            until(STALE_MAX, "the change is heard of", async || {
                code(&caller, &warm).await == "revoked"
            })
            .await;
        }
    });
}

#[test]
fn changes_are_followed_from_far_away_from_the_beginning() {
    run(Backend::Postgres, async |home: Home| {
        let a = home.serve().await;
        let mut proxy = Proxy::before(home.database_address()).await;
        proxy.set(Fault::Delay(FAR)).await;
        let target = Target::parse(&home.database_url_at(proxy.address)).unwrap();
        let changes = Changes::new();
        let follower = Follower::new(
            Db::open(&target).unwrap(),
            changes.clone(),
            Reach::default(),
            None,
            Entropy::System,
            STALE_MAX,
        );
        until(REACHED_WITHIN, "it has begun", async || {
            follower.begin("a database").await.is_ok()
        })
        .await;
        let head = a.app.changes.position();
        assert_eq!((changes.position(), changes.epoch()), (head, 0));
    });
}
