//! Nobody waits for who waits for him: what nodes write in the background they write in one order, or leave to
//! whoever is at it. Where two wait for each other all the same, one is told to try again.

use std::sync::Arc;

use keystead::clock::Clock;
use keystead::db::{self, Conn, nodes};
use keystead::each;
use keystead::idempotency;
use keystead::time::Span;
use tokio::sync::Barrier;

use crate::support::{Backend, run, tables};

#[test]
fn who_is_given_up_so_that_another_may_go_on_may_try_again() {
    run(Backend::Postgres, async |home| {
        use diesel_async::RunQueryDsl as _;

        let db = home.db();
        for id in ["a", "b"] {
            db.write(async move |conn: &mut Conn| {
                nodes::keep(conn, id, 0, Span::seconds(0), Clock::System.now()).await
            })
            .await
            .unwrap();
        }
        let both_have_one = Arc::new(Barrier::new(2));
        let write = |first: &'static str, second: &'static str| {
            let (db, both_have_one) = (db.clone(), Arc::clone(&both_have_one));
            async move {
                let step =
                    |id| format!("UPDATE node SET position = position + 1 WHERE id = '{id}'");
                db.write_to_end(async move |conn: &mut Conn| -> db::Result<()> {
                    each!(&mut *conn, c => diesel::sql_query(step(first)).execute(c).await)?;
                    both_have_one.wait().await;
                    each!(conn, c => diesel::sql_query(step(second)).execute(c).await)?;
                    Ok(())
                })
                .await
            }
        };
        let (one, other) = tokio::join!(write("a", "b"), write("b", "a"));
        let failed = match (one, other) {
            (Ok(()), Err(error)) | (Err(error), Ok(())) => error,
            both => panic!("one of them goes on: {both:?}"),
        };
        assert!(matches!(failed, db::Error::Busy), "{failed:?}");
    });
}

#[test]
fn of_several_nodes_one_sweeps_and_the_others_do_not_wait() {
    run(Backend::Postgres, async |home| {
        for scope in ["a", "b", "c"] {
            let statement = format!(
                "INSERT INTO idempotency (scope, body_hash, status, outcome, created_at) \
                 VALUES ('{scope}', '\\x00', 201, '[]', 1)"
            );
            tables::execute_on(home.eyes(), &statement).await;
        }
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM idempotency WHERE scope = 'b' FOR UPDATE")
            .await;
        let now = Clock::System.now();
        let (one, other) = (home.db(), home.db());
        let sweeping = tokio::spawn(async move { idempotency::sweep(&one, now).await });
        session.until_waited_for().await;
        assert_eq!(idempotency::sweep(&other, now).await.unwrap(), 0);
        session.run("COMMIT").await;
        assert_eq!(sweeping.await.unwrap().unwrap(), 3);
    });
}

#[test]
fn rows_of_nodes_are_swept_in_the_order_that_they_are_kept_in() {
    run(Backend::Postgres, async |home| {
        // Not in the order of their names, as a scan finds them.
        let statement =
            "INSERT INTO node (id, position, seen_at) VALUES ('c', 0, 1), ('b', 0, 1), ('a', 0, 1)";
        tables::execute_on(home.eyes(), statement).await;
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM node WHERE id = 'a' FOR UPDATE")
            .await;
        let db = home.db();
        let sweeping = tokio::spawn(async move {
            db.write(async |conn: &mut Conn| {
                nodes::sweep(conn, Span::hours(2), Clock::System.now()).await
            })
            .await
        });
        session.until_waited_for().await;
        session
            .run("SELECT 1 FROM node WHERE id > 'a' FOR UPDATE NOWAIT; COMMIT")
            .await;
        assert_eq!(sweeping.await.unwrap().unwrap(), 3);
    });
}

/// A change that gives a version up, as an operator may, has its row and then steps the feed.
#[test]
fn whoever_waits_for_a_pepper_has_not_stepped_the_feed() {
    run(Backend::Postgres, async |home| {
        let server = home.serve().await;
        let rotate = || {
            let rotated = home.keystead(&["pepper", "rotate"]).output().unwrap();
            assert!(rotated.status.success(), "{rotated:?}");
        };
        rotate();
        server.clock.advance(Span::seconds(61));
        server.app.tend_peppers().await.unwrap();
        // No secret carries the first, and the second has been the current one for long.
        tables::execute(&home, "UPDATE secret SET pepper_version = 2").await;
        rotate();
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM pepper WHERE version = 1 FOR UPDATE")
            .await;
        server.clock.advance(Span::minutes(5));
        let app = server.app.clone();
        let tending = tokio::spawn(async move { app.tend_peppers().await });
        session.until_waited_for().await;
        session
            .run("SELECT 1 FROM change_head FOR UPDATE NOWAIT; COMMIT")
            .await;
        tending.await.unwrap().unwrap();
        let versions = "SELECT version || ' ' || state AS line FROM pepper ORDER BY version";
        let versions = tables::lines_of(home.eyes(), versions.to_owned()).await;
        assert_eq!(versions, ["2 old", "3 current"]);
    });
}

#[test]
fn a_compromised_signing_key_goes_whoever_else_is_deleting_some() {
    run(Backend::Postgres, async |home| {
        let server = home.serve().await;
        let generations = async || {
            let query = "SELECT CAST(generation AS TEXT) AS line FROM signing_key";
            tables::lines_of(home.eyes(), query.to_owned()).await
        };
        let before = generations().await;
        let session = home.session().await;
        session
            .run("BEGIN; SELECT pg_advisory_xact_lock(hashtext('keystead delete ended signing keys'))")
            .await;
        let rotated = home
            .keystead(&["signing-key", "rotate", "--compromised"])
            .output()
            .unwrap();
        assert!(rotated.status.success(), "{rotated:?}");
        session.run("COMMIT").await;
        let after = generations().await;
        assert_eq!(after.len(), 1, "{after:?}");
        assert!(
            !before.is_empty() && !before.contains(&after[0]),
            "{before:?}, {after:?}"
        );
        drop(server);
    });
}
