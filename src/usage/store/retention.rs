//! What is old goes: events by whole hours, counts by their beginnings.
//!
//! What is old is judged by the newest event that is stored, if that is before the clock: a clock that
//! jumped ahead deletes nothing.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable};
use diesel_async::RunQueryDsl;

use crate::db::schema::{
    usage_batch, usage_day, usage_hour, usage_ip, usage_late, usage_minute, usage_scope,
    usage_stranger,
};
use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::HOUR_MS;

use super::partition;

/// So many rows go in one transaction of `SQLite`, so that no batch waits long.
pub const CHUNK: i64 = 5_000;

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// The tenants that have events, each found by one look into the index: there is none by time alone.
const TENANTS: &str = "WITH RECURSIVE tenant(id) AS ( \
                       SELECT MIN(tenant_id) FROM usage_event UNION ALL \
                       SELECT (SELECT MIN(tenant_id) FROM usage_event WHERE tenant_id > tenant.id) \
                       FROM tenant WHERE tenant.id IS NOT NULL)";

#[derive(diesel::QueryableByName)]
struct Oldest {
    #[diesel(sql_type = Nullable<BigInt>)]
    at: Option<i64>,
}

/// The Unix millisecond of the newest use that is stored; `None` if there is none.
pub async fn newest(conn: &mut Conn) -> db::Result<Option<i64>> {
    use diesel::dsl::max;
    Ok(each!(conn, c => usage_batch::table
        .select(max(usage_batch::last_at))
        .first(c)
        .await)?)
}

/// Bytes that events take, with their indexes; in `SQLite` all that is in the file, counts too.
pub async fn bytes(conn: &mut Conn) -> db::Result<i64> {
    let query = match conn {
        Conn::Sqlite(_) => {
            "SELECT (p.page_count - f.freelist_count) * s.page_size AS number \
             FROM pragma_page_count() p, pragma_freelist_count() f, pragma_page_size() s"
        }
        Conn::Postgres(_) => {
            "SELECT CAST(COALESCE(SUM(pg_total_relation_size(inhrelid)), 0) AS BIGINT) AS number \
             FROM pg_inherits WHERE inhparent = 'usage_event'::regclass"
        }
    };
    let row: Number = each!(conn, c => diesel::sql_query(query).get_result(c).await)?;
    Ok(row.number)
}

/// The hours, since 1970, that have a place of their own and end at or before `before_ms`, oldest
/// first. In `SQLite` only the first that has events.
pub async fn hours_before(conn: &mut Conn, before_ms: i64) -> db::Result<Vec<i64>> {
    let limit = before_ms.div_euclid(HOUR_MS);
    match conn {
        Conn::Sqlite(c) => {
            let query = format!(
                "{TENANTS} SELECT MIN((SELECT MIN(at) FROM usage_event \
                 WHERE tenant_id = tenant.id)) AS at FROM tenant"
            );
            let oldest: Oldest = diesel::sql_query(query).get_result(&mut **c).await?;
            let hour = oldest.at.map(|at| at.div_euclid(HOUR_MS));
            Ok(hour.into_iter().filter(|hour| *hour < limit).collect())
        }
        Conn::Postgres(c) => {
            let query = "SELECT CAST(SUBSTRING(relname FROM 14) AS BIGINT) AS number \
                         FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid \
                         WHERE inhparent = 'usage_event'::regclass AND relname ~ '^usage_event_h[0-9]+$'";
            let rows: Vec<Number> = diesel::sql_query(query).load(&mut **c).await?;
            let hours = rows.into_iter().map(|row| row.number);
            let mut hours: Vec<i64> = hours.filter(|hour| *hour < limit).collect();
            hours.sort_unstable();
            Ok(hours)
        }
    }
}

/// Deletes the events of an hour, in `SQLite` at most [`CHUNK`] of them; answers whether there may be
/// more.
pub async fn drop_hour(conn: &mut Conn, hour: i64) -> db::Result<bool> {
    if matches!(conn, Conn::Postgres(_)) {
        partition::drop(conn, hour).await?;
        return Ok(false);
    }
    let end = (hour + 1).saturating_mul(HOUR_MS);
    let query = format!(
        "{TENANTS} DELETE FROM usage_event WHERE rowid IN \
         (SELECT usage_event.rowid FROM tenant CROSS JOIN usage_event \
          WHERE tenant_id = tenant.id AND at < $1 LIMIT $2)"
    );
    let deleted = each!(conn, c => diesel::sql_query(query)
        .bind::<BigInt, _>(end)
        .bind::<BigInt, _>(CHUNK)
        .execute(c)
        .await)?;
    Ok(i64::try_from(deleted).unwrap_or(i64::MAX) >= CHUNK)
}

/// Deletes counts by minutes that begin before the first, other counts that begin before the second, and
/// batches whose events ended before the third.
pub async fn cut_counts(
    conn: &mut Conn,
    minutes: i64,
    counts: i64,
    batches: i64,
) -> db::Result<usize> {
    let mut cut = 0;
    macro_rules! before {
        ($table:ident, $column:ident, $limit:expr) => {
            cut += each!(&mut *conn, c => diesel::delete(
                $table::table.filter($table::$column.lt($limit))
            ).execute(c).await)?;
        };
    }
    before!(usage_minute, start, minutes);
    before!(usage_hour, start, counts);
    before!(usage_late, start, counts);
    before!(usage_day, start, counts);
    before!(usage_ip, day, counts);
    before!(usage_scope, day, counts);
    before!(usage_stranger, hour, counts);
    before!(usage_batch, last_at, batches);
    Ok(cut)
}
