//! Nobody waits for who waits for him: what nodes write in the background they write in one order, or leave to
//! whoever is at it. Where two wait for each other all the same, one is told to try again.

use std::sync::Arc;

use keystead::clock::Clock;
use keystead::db::{self, Conn, nodes};
use keystead::each;
use keystead::time::Span;
use tokio::sync::Barrier;

use crate::support::{Backend, run};

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
