//! A change is followed whole, however many entities it touched: what waits while Redis is away is left out
//! by whole changes, and who lacks one gives up what it remembers.

use keystead::cache::Changes;
use keystead::cache::Reach;
use keystead::cache::follow::Follower;
use keystead::db::feed::{self, Kind};
use keystead::db::{self, Conn};
use keystead::entropy::Entropy;
use keystead::time::Timestamp;

use super::*;
use crate::support::both;

both!(
    a_change_that_is_all_that_is_read_at_once_is_followed_and_so_is_the_next,
    a_start_that_is_tried_again_finds_the_history_as_it_was,
    a_change_after_a_long_time_is_followed_where_what_was_before_is_cut_at_once,
    what_a_look_learned_before_it_failed_is_told_by_the_next,
);

/// One that no node asks, and that tells nobody.
fn follower(home: &Home, changes: &Changes) -> Follower {
    telling_follower(home, changes, None)
}

fn telling_follower(home: &Home, changes: &Changes, relay: Option<Relay>) -> Follower {
    let changes = changes.clone();
    let stale_max = Duration::from_secs(900);
    Follower::new(
        home.db(),
        changes,
        Reach::default(),
        relay,
        Entropy::System,
        stale_max,
    )
}

async fn step(home: &Home, touched: Vec<(Kind, String)>, at: Timestamp) -> i64 {
    let stepped: db::Result<i64> = home
        .eyes()
        .write_to_end(async move |conn: &mut Conn| feed::step(conn, &touched, at).await)
        .await;
    stepped.unwrap()
}

/// A change of the first of these keys, if there is one, and of others that nobody knows; answers its number.
async fn change(home: &Home, key: Option<&str>, count: usize) -> i64 {
    // Behind those that there are, in the order of their ids.
    let others = (0..).map(|number| format!("zzz-{number:05}"));
    let ids = key.map(str::to_owned).into_iter().chain(others);
    let touched: Vec<_> = ids.take(count).map(|id| (Kind::Key, id)).collect();
    step(home, touched, Clock::System.now()).await
}

async fn until_known(server: &Server, number: i64) {
    until(SPREADS, "the change is followed", async || {
        server.app.changes.position() >= number
    })
    .await;
}

async fn a_change_that_is_all_that_is_read_at_once_is_followed_and_so_is_the_next(home: Home) {
    let server = home.serve().await;
    let epoch = server.app.changes.epoch();
    for count in [10_000, 10_001, 9_999, 1] {
        let number = change(&home, None, count).await;
        until_known(&server, number).await;
        assert_eq!(server.app.changes.epoch(), epoch, "{count}");
    }
}

async fn a_start_that_is_tried_again_finds_the_history_as_it_was(home: Home) {
    for _ in 0..3 {
        change(&home, None, 2).await;
    }
    let changes = Changes::new();
    let follower = follower(&home, &changes);
    for _ in 0..3 {
        follower.begin("a database").await.unwrap();
        let number = change(&home, None, 1).await;
        follower.look(false).await.unwrap();
        assert_eq!((changes.position(), changes.epoch()), (number, 0));
    }
}

async fn a_change_after_a_long_time_is_followed_where_what_was_before_is_cut_at_once(home: Home) {
    let now = Clock::System.now();
    let of_one = || vec![(Kind::Key, "a-key".to_owned())];
    for _ in 0..3 {
        step(&home, of_one(), now.minus(Span::hours(50))).await;
    }
    let changes = Changes::new();
    let follower = follower(&home, &changes);
    follower.begin("a database").await.unwrap();
    let cut = async || -> db::Result<usize> {
        let before = now.minus(Span::hours(48));
        let cut = async move |conn: &mut Conn| feed::cut(conn, before).await;
        home.eyes().write(cut).await
    };
    assert_eq!(cut().await.unwrap(), 2);
    for _ in 0..2 {
        let number = step(&home, of_one(), now).await;
        assert_eq!(cut().await.unwrap(), 0);
        follower.look(false).await.unwrap();
        assert_eq!((changes.position(), changes.epoch()), (number, 0));
    }
}

async fn what_a_look_learned_before_it_failed_is_told_by_the_next(home: Home) {
    let redis = OwnRedis::start();
    let link = patient_link(&redis.url(), Duration::from_secs(2));
    let relay = relay(link, "a database", "a test");
    let changes = Changes::new();
    let follower = telling_follower(&home, &changes, Some(relay.clone()));
    follower.begin("a database").await.unwrap();
    let before = changes.position();
    for _ in 0..2 {
        change(&home, None, 9_000).await;
    }
    // The last row is not readable: the first change is read by itself, and the second one not at all.
    let last = before + 2;
    tables::execute(&home, "ALTER TABLE change RENAME TO all_changes").await;
    let broken = format!(
        "CREATE VIEW change AS SELECT seq, kind, id, CASE WHEN seq = {last} AND id = 'zzz-08999' \
         THEN 1 / (seq - {last}) ELSE at END AS at FROM all_changes"
    );
    tables::execute(&home, &broken).await;
    until(SPREADS, "the first change is read", async || {
        follower.look(false).await.unwrap_err();
        changes.position() == last - 1
    })
    .await;

    tables::execute(&home, "DROP VIEW change").await;
    tables::execute(&home, "ALTER TABLE all_changes RENAME TO change").await;
    until(SPREADS, "the second change is read", async || {
        follower.look(false).await.is_ok()
    })
    .await;
    assert_eq!(changes.position(), last);
    let name = relay.history().name();
    let told = relay.changes_after(name, before).await.unwrap();
    let numbers = told.chunk_by(|one, other| one.seq == other.seq);
    let told: Vec<_> = numbers.map(|rows| (rows[0].seq, rows.len())).collect();
    assert_eq!(told, [(last - 1, 9_000), (last, 9_000)]);
}

#[test]
fn of_changes_that_waited_for_redis_none_is_followed_in_part() {
    run(Backend::Postgres, async |home| {
        let nodes = Nodes::new(&home, &[]).await;
        let (mut redis, url) = nodes.redis.behind_proxy().await;
        let teller = home.serve_with(&[("REDIS__URL", &url)]).await;
        let (id, key) = nodes.issue().await;
        let (_, other) = nodes.issue().await;
        let Nodes {
            a,
            b,
            owner_b,
            mut b_database,
            ..
        } = nodes;
        // Nobody else reaches both. What was changed before is not among what waits.
        let made = a.app.changes.highest();
        drop(a);
        for node in [&teller, &b] {
            until_known(node, made).await;
        }
        for (others, are_all_told) in [(5, true), (11, false)] {
            for key in [&key, &other] {
                assert_eq!(settled(&owner_b, key).await, "valid");
            }
            b_database.set(Fault::Refuse).await;
            until(SPREADS, "the node misses its database", async || {
                b.app.reach.is_database_away()
            })
            .await;
            redis.set(Fault::Refuse).await;
            let mut last = change(&home, Some(&id), 6_000).await;
            for _ in 0..others {
                last = change(&home, None, 1_000).await;
            }
            until_known(&teller, last).await;
            for key in [&key, &other] {
                assert_eq!(code(&owner_b, key).await, "valid", "nobody could tell it");
            }
            redis.set(Fault::None).await;
            until_known(&b, last).await;
            assert_ne!(code(&owner_b, &key).await, "valid", "it has changed");
            // It is still remembered if it is known what has changed. On a busy machine the node may be late to say so
            // to itself; what is forgotten nobody decides while the database is away.
            if are_all_told {
                assert_eq!(settled(&owner_b, &other).await, "valid");
            } else {
                assert_ne!(code(&owner_b, &other).await, "valid");
            }

            b_database.set(Fault::None).await;
            until(SPREADS, "the database is back", async || {
                !b.app.reach.is_database_away()
            })
            .await;
        }
    });
}
