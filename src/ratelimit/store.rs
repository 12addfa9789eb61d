//! The counts of quotas in the database: what counters in memory and in Redis begin from.

use diesel::prelude::*;
use diesel::query_dsl::methods;
use diesel::upsert::excluded;
use diesel_async::RunQueryDsl;

use super::counter::CounterId;
use crate::db::schema::quota_count;
use crate::db::{self, Conn, Error, Result};
use crate::each;
use crate::time::Timestamp;

/// What is stored of one count; 0 if nothing is.
pub(super) async fn load(
    conn: &mut Conn,
    counter: CounterId,
    period_start: Timestamp,
) -> Result<u64> {
    let used: Option<i64> = each!(conn, c => quota_count::table
        .find((counter.bytes(), period_start))
        .select(quota_count::used)
        .first(c)
        .await
        .optional())?;
    u64::try_from(used.unwrap_or(0))
        .map_err(|_negative| Error::Corrupt(format!("quota_count.used of {counter}")))
}

/// Stores counts, each unless more is stored already: a count never goes back.
pub(super) async fn write(conn: &mut Conn, counts: &[(CounterId, Timestamp, u64)]) -> Result<()> {
    for (counter, period_start, used) in counts {
        let used = i64::try_from(*used).unwrap_or(i64::MAX);
        each!(conn, c => {
            let upsert = diesel::insert_into(quota_count::table)
                .values((
                    quota_count::counter.eq(counter.bytes()),
                    quota_count::period_start.eq(period_start),
                    quota_count::used.eq(used),
                ))
                .on_conflict((quota_count::counter, quota_count::period_start))
                .do_update()
                .set(quota_count::used.eq(excluded(quota_count::used)));
            methods::FilterDsl::filter(upsert, quota_count::used.lt(excluded(quota_count::used)))
                .execute(c)
                .await
        })?;
    }
    Ok(())
}

/// Deletes the counts of periods that began before `before`; answers how many.
pub(super) async fn sweep(conn: &mut Conn, before: Timestamp) -> Result<usize> {
    if !db::alone(conn, "sweep quota counts").await? {
        return Ok(0);
    }
    Ok(each!(conn, c => diesel::delete(
        quota_count::table.filter(quota_count::period_start.lt(before))
    )
    .execute(c)
    .await)?)
}
