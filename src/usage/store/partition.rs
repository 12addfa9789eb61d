//! The hours that events are kept in. In `PostgreSQL` each is a partition, in `SQLite` there are none.

use diesel::sql_types::{BigInt, Bool};
use diesel_async::RunQueryDsl;

use crate::db::{self, Conn};
use crate::usage::counts::HOUR_MS;

/// The number of the hour, since 1970, that this Unix millisecond lies in.
pub fn hour_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(HOUR_MS)
}

#[derive(diesel::QueryableByName)]
struct Made {
    #[diesel(sql_type = Bool)]
    made: bool,
}

/// Makes the partition of an hour, if there is none; answers whether one was made.
///
/// # Errors
/// The lock of another who makes one did not come in time.
pub async fn ensure(conn: &mut Conn, hour: i64) -> db::Result<bool> {
    match conn {
        Conn::Sqlite(_) => Ok(false),
        Conn::Postgres(c) => {
            let made: Made = diesel::sql_query("SELECT usage_event_hour($1) AS made")
                .bind::<BigInt, _>(hour)
                .get_result(&mut **c)
                .await?;
            Ok(made.made)
        }
    }
}

/// Drops the partition of an hour, with its events.
///
/// # Errors
/// The lock did not come in time: somebody reads or writes there.
pub async fn drop(conn: &mut Conn, hour: i64) -> db::Result<()> {
    if let Conn::Postgres(c) = conn {
        diesel::sql_query("SELECT usage_event_drop_hour($1)")
            .bind::<BigInt, _>(hour)
            .execute(&mut **c)
            .await?;
    }
    Ok(())
}
