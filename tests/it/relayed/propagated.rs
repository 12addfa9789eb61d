//! A change says when everybody knows of it: by what nodes acknowledge in Redis, and by their rows in the
//! database.

use futures_util::future::join_all;
use keystead::cache;
use keystead::cache::Reach;
use keystead::cache::relay::Ack;
use keystead::db::{self, Conn, nodes};

use super::*;

#[test]
fn a_revocation_that_says_it_propagated_holds_everywhere() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        for _ in 0..20 {
            let (id, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            let path = format!("/v1/keys/{id}/revoke?wait=4s");
            let told = nodes.owner.post(&path).send().await.expect(200);
            assert_eq!(told["propagated"], true, "{told}");
            assert_ne!(code(&nodes.owner_b, &key).await, "valid");
        }
        // Without being asked nobody waits, and nothing is said.
        let (id, _) = nodes.issue().await;
        let path = format!("/v1/keys/{id}/disable");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told.get("propagated"), None);
        // A node that cannot be told may still let it pass.
        let (id, key) = nodes.issue().await;
        assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
        nodes.b_redis.set(Fault::Hang).await;
        nodes.b_database.set(Fault::Hang).await;
        let path = format!("/v1/keys/{id}/revoke?wait=1s");
        let began = Instant::now();
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told["propagated"], false, "{told}");
        assert!(began.elapsed() < Duration::from_secs(4));
        // One that lost the database alone is waited for, and tells.
        nodes.b_redis.set(Fault::None).await;
        until(SPREADS, "Redis is back", async || {
            code(&nodes.owner_b, &key).await != "valid"
        })
        .await;
        let (id, _) = nodes.issue().await;
        let path = format!("/v1/keys/{id}/revoke?wait=5s");
        let told = nodes.owner.post(&path).send().await.expect(200);
        assert_eq!(told["propagated"], true, "{told}");
        let path = "/v1/keys/x/revoke?wait=6s";
        let refused = nodes.owner.post(path).send().await;
        assert_eq!((refused.status, refused.code()), (400, "invalid_request"));
    });
}

#[test]
fn nodes_without_redis_tell_through_the_database() {
    run(Backend::Postgres, async |home| {
        let (a, b) = (home.serve().await, home.serve().await);
        let owner = a.owner();
        let gone = home.serve().await;
        drop(gone);
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        let told: Vec<Value> = join_all(["disable?wait=5s", "disable?wait=0s"].map(async |verb| {
            let path = format!("/v1/consumers/acme/{verb}");
            owner.post(&path).send().await.expect(200)
        }))
        .await;
        assert_eq!(told[0]["propagated"], true, "{told:?}");
        assert_eq!(told[1]["propagated"], false, "{told:?}");
        assert!(b.app.changes.position() > 0);
    });
}

/// A node that only the database knows, and that knows of nothing. It may decide for so long when Redis
/// alone reaches it.
fn another(home: &Home, stale_max: Span) -> cache::Nodes {
    another_that_knows(home, cache::Changes::new(), stale_max)
}

fn another_that_knows(home: &Home, changes: cache::Changes, stale_max: Span) -> cache::Nodes {
    cache::Nodes::new(
        home.db(),
        Clock::System,
        changes,
        Reach::default(),
        None,
        stale_max,
        "another".to_owned(),
    )
}

#[test]
fn all_know_also_of_a_change_that_another_node_made_just_before() {
    run(Backend::Postgres, async |home| {
        let (a, b) = (home.serve().await, home.serve().await);
        let owner = a.owner();
        let owner_b = owner.at(&b);
        owner_b.get("/v1/tenants").send().await.expect(200);
        let changes = cache::Changes::new();
        let other = another_that_knows(&home, changes.clone(), Span::seconds(0));
        let knows_all = async || {
            changes.set_position(a.app.changes.highest());
            other.join().await.unwrap();
        };
        for slug in ["acme", "umbrella"] {
            owner.create("/v1/consumers", json!({"slug": slug})).await;
            let head = a.app.changes.highest();
            until(SPREADS, "they know what was before", async || {
                a.app.changes.position() >= head && b.app.changes.position() >= head
            })
            .await;
            knows_all().await;
            let path = format!("/v1/consumers/{slug}/disable");
            owner.post(&path).send().await.expect(200);
            // There is nothing to do for this one any more, and it has not heard of it.
            let told = owner_b.post(&format!("{path}?wait=3s")).send().await;
            assert_eq!(told.expect(200)["propagated"], false);
            knows_all().await;
            let told = owner_b.post(&format!("{path}?wait=5s")).send().await;
            assert_eq!(told.expect(200)["propagated"], true);
        }
    });
}

#[test]
fn nodes_that_lose_redis_tell_through_the_database() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let revoke = async |id: &str, wait: &str| {
            let path = format!("/v1/keys/{id}/revoke?wait={wait}");
            let told = nodes.owner.post(&path).send().await.expect(200);
            told["propagated"] == true
        };
        // One that was killed five minutes ago is not waited for. It had more patience than the others.
        let patient = another(&home, Span::minutes(30));
        patient.join().await.unwrap();
        age(&home, "id = 'another'", Span::minutes(5)).await;
        assert!(revoke(&nodes.issue().await.0, "5s").await);
        signal(nodes.redis.process_id().await, "KILL");
        until(SPREADS, "both miss it", async || {
            let modes = async |client: Client| {
                let ready = client.get("/health/ready").send().await.expect(200);
                ready["modes"]["redis"] == "away"
            };
            modes(nodes.a.client()).await && modes(nodes.b.client()).await
        })
        .await;
        // Nobody can say that it does not go on, by what others tell it there.
        assert!(!revoke(&nodes.issue().await.0, "3s").await);
        age(&home, "id = 'another'", Span::minutes(15)).await;
        assert!(!revoke(&nodes.issue().await.0, "3s").await);
        age(&home, "id = 'another'", Span::minutes(12)).await;
        let mut told = Vec::new();
        for _ in 0..4 {
            let (id, key) = nodes.issue().await;
            assert_eq!(settled(&nodes.owner_b, &key).await, "valid");
            let is_told = revoke(&id, "5s").await;
            let is_in_force = code(&nodes.owner_b, &key).await != "valid";
            assert!(is_in_force || !is_told, "{told:?}");
            told.push(is_told);
        }
        // On a machine that is busy one may be late.
        assert!(told.iter().filter(|told| **told).count() >= 3, "{told:?}");
    });
}

#[test]
fn a_node_that_loses_redis_alone_is_told_through_the_database() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        nodes.b_redis.set(Fault::Refuse).await;
        // The others have to notice that somebody reads what they know in the database. One is told in time by
        // chance, when it falls to what every node writes there each ten seconds; two in turn are not.
        let mut in_turn = 0;
        until(Duration::from_secs(30), "it is told in time", async || {
            let (id, key) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=5s");
            let told = nodes.owner_b.post(&path).send().await.expect(200);
            let is_told = told["propagated"] == true;
            let is_in_force = code(&nodes.owner, &key).await != "valid";
            assert!(is_in_force || !is_told, "{told}");
            in_turn = if is_told { in_turn + 1 } else { 0 };
            in_turn == 2
        })
        .await;
        // And from then on.
        let mut told = 0;
        for _ in 0..3 {
            let (id, _) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=5s");
            let answer = nodes.owner_b.post(&path).send().await.expect(200);
            told += usize::from(answer["propagated"] == true);
        }
        assert!(told >= 2, "{told}");
    });
}

#[test]
fn a_node_that_only_redis_reaches_is_waited_for_by_who_does_not_reach_it() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        let (mut c_redis, url) = nodes.redis.behind_proxy().await;
        let c = home.serve_with(&[("REDIS__URL", &url)]).await;
        let owner = nodes.owner.at(&c);
        nodes.cut_database(Fault::Hang).await;
        // Hours ago, and nobody has looked after its row since: who reaches both does so now.
        age(&home, "TRUE", Span::minutes(90)).await;
        let living = "SELECT count(*) || '' AS line FROM node WHERE seen_at > \
                      (extract(epoch FROM now()) - 60) * 1000";
        until(
            Duration::from_secs(30),
            "its row is kept for it",
            async || tables::lines_of(home.eyes(), living.to_owned()).await == ["3"],
        )
        .await;
        age(&home, "TRUE", Span::minutes(10)).await;
        c_redis.set(Fault::Refuse).await;
        for _ in 0..2 {
            let (id, key) = nodes.issue().await;
            let path = format!("/v1/keys/{id}/revoke?wait=2s");
            let told = owner.post(&path).send().await.expect(200);
            assert_eq!(told["propagated"], false, "{told}");
            assert_ne!(code(&nodes.owner, &key).await, "valid");
        }
    });
}

#[test]
fn a_node_is_waited_for_whatever_the_clocks_of_others_say() {
    run(Backend::Postgres, async |home| {
        let a = home.serve().await;
        let owner = a.owner();
        owner.create("/v1/consumers", json!({"slug": "acme"})).await;
        // It lives, and knows of nothing yet.
        let other = another(&home, Span::seconds(0));
        other.join().await.unwrap();
        a.clock.advance(Span::hours(2));
        a.app.nodes.sweep().await.unwrap();
        let path = "/v1/consumers/acme/disable?wait=500ms";
        let told = owner.post(path).send().await.expect(200);
        assert_eq!(told["propagated"], false, "{told}");
        other.leave().await;
        owner
            .create("/v1/consumers", json!({"slug": "umbrella"}))
            .await;
        let path = "/v1/consumers/umbrella/disable?wait=5s";
        let told = owner.post(path).send().await.expect(200);
        assert_eq!(told["propagated"], true, "{told}");
    });
}

#[test]
fn after_the_database_was_put_back_all_know_only_once_each_could_have_told_anew() {
    run(Backend::Postgres, async |home| {
        let a = home.serve().await;
        let owner = a.owner();
        for slug in ["a", "b", "c", "d", "e"] {
            owner.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let ends = async |slug: &str| {
            let path = format!("/v1/consumers/{slug}/disable?wait=3s");
            let told = owner.post(&path).send().await.expect(200);
            told["propagated"] == true
        };
        assert!(ends("a").await);
        // It lives, and has not written its row again since the copy was put back, which has none.
        another(&home, Span::seconds(0)).join().await.unwrap();
        assert!(!ends("b").await);
        let epoch = a.app.changes.epoch();
        for statement in [
            "DELETE FROM node",
            "DELETE FROM change WHERE seq > (SELECT seq - 1 FROM change_head)",
            "UPDATE change_head SET seq = seq - 1",
        ] {
            tables::execute(&home, statement).await;
        }
        // Also where that was not found yet, and although the change has the number of the one that was lost.
        assert!(!ends("c").await);
        assert!(a.app.changes.epoch() > epoch);
        assert!(!ends("d").await);
        age(&home, "id = 'lost'", Span::minutes(1)).await;
        assert!(ends("e").await);
    });
}

#[test]
fn a_row_that_is_fresh_is_not_written_by_another() {
    run(Backend::Postgres, async |home| {
        let (span, now) = (Span::seconds(15), Clock::System.now());
        let keep = async |position: i64| -> db::Result<()> {
            let keep = async move |conn: &mut Conn| {
                nodes::keep(conn, "a", position, Span::minutes(15), now).await
            };
            home.eyes().write(keep).await
        };
        let keep_for = |id: &'static str, position: i64| {
            let db = home.db();
            async move {
                db.write(async move |conn: &mut Conn| {
                    nodes::keep_for(conn, id, position, span, now).await
                })
                .await
            }
        };
        let row = async |id: &str| {
            let row = format!(
                "SELECT position || ' ' || stale_max_ms AS line FROM node WHERE id = '{id}'"
            );
            tables::lines_of(home.eyes(), row).await
        };
        keep(5).await.unwrap();
        keep_for("a", 3).await.unwrap();
        assert_eq!(row("a").await, ["5 900000"]);
        age(&home, "id = 'a'", Span::seconds(20)).await;
        keep_for("a", 6).await.unwrap();
        assert_eq!(row("a").await, ["6 900000"]);
        // The node writes its row itself while another is at it.
        age(&home, "id = 'a'", Span::seconds(20)).await;
        let session = home.session().await;
        session
            .run(
                "BEGIN; UPDATE node SET position = 9, \
                 seen_at = extract(epoch FROM clock_timestamp()) * 1000 WHERE id = 'a'",
            )
            .await;
        let keeping = tokio::spawn(keep_for("a", 7));
        session.until_waited_for().await;
        session.run("COMMIT").await;
        keeping.await.unwrap().unwrap();
        assert_eq!(row("a").await, ["9 900000"]);
        // Of one that nothing is known of, the longest is.
        keep_for("b", 1).await.unwrap();
        assert_eq!(row("b").await, ["1 3600000"]);
    });
}

#[test]
fn a_node_that_leaves_takes_back_what_it_said_before_its_row_goes() {
    run(Backend::Postgres, async |home| {
        let redis = OwnRedis::start();
        let link = patient_link(&redis.url(), Duration::from_secs(2));
        let relay = relay(link, "a database", "leaving");
        let leaving = cache::Nodes::new(
            home.db(),
            Clock::System,
            cache::Changes::new(),
            Reach::default(),
            Some(relay.clone()),
            Span::minutes(15),
            "leaving".to_owned(),
        );
        leaving.join().await.unwrap();
        let ack = Ack {
            history: 1,
            position: 1,
            at_us: 1,
        };
        relay.acknowledge(ack).await.unwrap();
        assert_eq!(relay.acks().await.unwrap().1.len(), 1);
        let session = home.session().await;
        session.run("BEGIN; SELECT 1 FROM node FOR UPDATE").await;
        let left = tokio::spawn(async move { leaving.leave().await });
        session.until_waited_for().await;
        // Whoever looks now finds nobody to keep the row for.
        assert!(relay.acks().await.unwrap().1.is_empty());
        session.run("COMMIT").await;
        left.await.unwrap();
        let rows = "SELECT id AS line FROM node".to_owned();
        assert_eq!(
            tables::lines_of(home.eyes(), rows).await,
            Vec::<String>::new()
        );
    });
}
