//! What is old goes: events by whole hours, counts by their beginnings.

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Text};
use diesel_async::RunQueryDsl;

use crate::db::schema::{usage_batch, usage_day};
use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::HOUR_MS;

use super::{partition, stored};

/// So many rows go in one transaction at most, so that no batch waits long, and none runs into a time limit.
pub const ROWS_MAX: i64 = 5_000;

/// One part of what goes.
#[derive(Clone, Debug)]
pub struct Part {
    /// The tenant to begin with: those before it had nothing left. Empty for the first of all.
    pub from: String,
    /// At most so many.
    pub rows: i64,
}

#[derive(diesel::QueryableByName)]
struct Number {
    #[diesel(sql_type = BigInt)]
    number: i64,
}

#[derive(diesel::QueryableByName)]
struct Deleted {
    #[diesel(sql_type = Text)]
    tenant_id: String,
}

#[derive(diesel::QueryableByName)]
struct Batch {
    #[diesel(sql_type = Text)]
    node: String,
    #[diesel(sql_type = BigInt)]
    number: i64,
}

/// `tenant(id)`: those from `$1` on that have rows in a table, each found by one look into its index. There is
/// none by time alone.
fn tenants_in(table: &str) -> String {
    format!(
        "WITH RECURSIVE tenant(id) AS ( \
         SELECT MIN(tenant_id) FROM {table} WHERE tenant_id >= $1 UNION ALL \
         SELECT (SELECT MIN(tenant_id) FROM {table} WHERE tenant_id > tenant.id) \
         FROM tenant WHERE tenant.id IS NOT NULL)"
    )
}

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

/// The beginning of the newest day before `before` with uses, of any tenant.
pub async fn newest_day_before(conn: &mut Conn, before: i64) -> db::Result<Option<i64>> {
    use diesel::dsl::max;
    Ok(each!(conn, c => usage_day::table
        .filter(usage_day::start.lt(before))
        .select(max(usage_day::start))
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
                "{} SELECT MIN((SELECT MIN(at) FROM usage_event \
                 WHERE tenant_id = tenant.id)) AS at FROM tenant",
                tenants_in("usage_event")
            );
            let oldest: Oldest = diesel::sql_query(query)
                .bind::<Text, _>("")
                .get_result(&mut **c)
                .await?;
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

/// Deletes the events of an hour, in `SQLite` a part of them; answers whom to go on from if there may be more.
pub async fn drop_hour(conn: &mut Conn, hour: i64, part: Part) -> db::Result<Option<String>> {
    if matches!(conn, Conn::Postgres(_)) {
        partition::drop(conn, hour).await?;
        return Ok(None);
    }
    let end = (hour + 1).saturating_mul(HOUR_MS);
    let query = format!(
        "{} DELETE FROM usage_event WHERE rowid IN \
         (SELECT usage_event.rowid FROM tenant CROSS JOIN usage_event \
          WHERE tenant_id = tenant.id AND at < $2 LIMIT $3)",
        tenants_in("usage_event")
    );
    delete(conn, query, end, part).await
}

/// Tables of counts, each with the column of its time and with its primary key.
pub const COUNTS: [Counted; 7] = [
    Counted {
        table: "usage_minute",
        time: "start",
        key: USE_KEY,
        is_by_minute: true,
    },
    Counted {
        table: "usage_hour",
        time: "start",
        key: USE_KEY,
        is_by_minute: false,
    },
    Counted {
        table: "usage_late",
        time: "start",
        key: "tenant_id, start, seq, key_id, secret_id, superseded, service, outcome, operation, caller",
        is_by_minute: false,
    },
    Counted {
        table: "usage_day",
        time: "start",
        key: "tenant_id, start, service, outcome, operation",
        is_by_minute: false,
    },
    Counted {
        table: "usage_ip",
        time: "day",
        key: "tenant_id, day, key_id, ip",
        is_by_minute: false,
    },
    Counted {
        table: "usage_scope",
        time: "day",
        key: "tenant_id, day, key_id, service, scope",
        is_by_minute: false,
    },
    Counted {
        table: "usage_stranger",
        time: "hour",
        key: "tenant_id, hour, caller, service, outcome, operation, ip",
        is_by_minute: false,
    },
];

const USE_KEY: &str =
    "tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller";

/// A table of counts as it is cut.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    table: &'static str,
    time: &'static str,
    key: &'static str,
    pub is_by_minute: bool,
}

/// Deletes a part of the counts that begin before `before`; answers whom to go on from if there may be more.
pub async fn cut_counts(
    conn: &mut Conn,
    what: Counted,
    before: i64,
    part: Part,
) -> db::Result<Option<String>> {
    let Counted {
        table, time, key, ..
    } = what;
    let tenants = tenants_in(table);
    let old = |key: &str| {
        format!(
            "{tenants} SELECT {key} FROM tenant CROSS JOIN {table} \
             WHERE tenant_id = tenant.id AND {time} < $2 LIMIT $3"
        )
    };
    let query = match conn {
        // Most of these tables have no other key there.
        Conn::Sqlite(_) => format!("DELETE FROM {table} WHERE ({key}) IN ({})", old(key)),
        // A row that another node deletes, or a batch of old uses adds to, is left to the next time: whoever
        // waited for it with others in hand could be waited for.
        Conn::Postgres(_) => {
            let old = old(&format!("{table}.ctid"));
            format!(
                "DELETE FROM {table} WHERE ctid = ANY(ARRAY({old} FOR UPDATE OF {table} SKIP LOCKED))"
            )
        }
    };
    delete(conn, query, before, part).await
}

/// Deletes at most `rows` batches whose events ended before `before`, of those that were stored first, and
/// remembers that they were stored; answers as for counts.
pub async fn cut_batches(conn: &mut Conn, before: i64, rows: i64) -> db::Result<Option<String>> {
    // They were stored about in the order of their events: the first that are left are read, not all. Some of
    // them may be of a time that has not come.
    let query = "DELETE FROM usage_batch WHERE seq IN (SELECT seq FROM ( \
                 SELECT seq, last_at FROM usage_batch WHERE seq IS NOT NULL ORDER BY seq LIMIT $1) first \
                 WHERE last_at < $2 LIMIT $3) RETURNING node, number";
    stored::hold(conn).await?;
    let gone: Vec<Batch> = each!(&mut *conn, c => diesel::sql_query(query)
        .bind::<BigInt, _>(ROWS_MAX)
        .bind::<BigInt, _>(before)
        .bind::<BigInt, _>(rows)
        .load(c)
        .await)?;
    let gone: Vec<stored::Name> = gone
        .into_iter()
        .map(|batch| (batch.node, batch.number))
        .collect();
    stored::remember(conn, &gone).await?;
    Ok((!gone.is_empty()).then(String::new))
}

/// `$1` is whom the part begins with, `$2` is `before` and `$3` the rows, and the text has them in this order: to
/// `SQLite` they are the names of the first, the second and the third that it meets.
async fn delete(
    conn: &mut Conn,
    query: String,
    before: i64,
    part: Part,
) -> db::Result<Option<String>> {
    let rows = part.rows;
    let deleted: Vec<Deleted> = each!(&mut *conn, c => diesel::sql_query(query + " RETURNING tenant_id")
        .bind::<Text, _>(part.from)
        .bind::<BigInt, _>(before)
        .bind::<BigInt, _>(rows)
        .load(c)
        .await)?;
    if i64::try_from(deleted.len()).unwrap_or(i64::MAX) < rows {
        return Ok(None);
    }
    // PostgreSQL orders by rules of its own, and begins anew with each part.
    let last =
        matches!(conn, Conn::Sqlite(_)).then(|| deleted.into_iter().map(|one| one.tenant_id).max());
    Ok(Some(last.flatten().unwrap_or_default()))
}
