//! What is sealed: the rows of an hour, how far sealing has come, and what came later.
//!
//! A batch and whoever seals meet at one row, so that a batch either stands in an hour when it is
//! sealed, or knows that it is late. One text for both databases, as in [`summary`](super::summary).

use diesel::prelude::*;
use diesel::sql_types::{BigInt, Integer, Text};
use diesel_async::RunQueryDsl;

use crate::db::schema::{usage_hour, usage_late, usage_seal};
use crate::db::{self, Conn};
use crate::each;

/// A row of an hour's counts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, QueryableByName)]
pub struct HourRow {
    #[diesel(sql_type = Text)]
    pub key_id: String,
    #[diesel(sql_type = Text)]
    pub secret_id: String,
    #[diesel(sql_type = Integer)]
    pub superseded: i32,
    #[diesel(sql_type = Text)]
    pub service: String,
    #[diesel(sql_type = Text)]
    pub outcome: String,
    #[diesel(sql_type = Text)]
    pub operation: String,
    #[diesel(sql_type = Text)]
    pub caller: String,
    #[diesel(sql_type = Text)]
    pub consumer_id: String,
    #[diesel(sql_type = BigInt)]
    pub uses: i64,
    #[diesel(sql_type = BigInt)]
    pub cost: i64,
}

/// What batches added to a row of a sealed hour.
#[derive(Clone, Debug, PartialEq, Eq, QueryableByName)]
pub struct LateRow {
    /// The number of the last of them.
    #[diesel(sql_type = BigInt)]
    pub seq: i64,
    #[diesel(sql_type = Text)]
    pub key_id: String,
    #[diesel(sql_type = Text)]
    pub secret_id: String,
    #[diesel(sql_type = Integer)]
    pub superseded: i32,
    #[diesel(sql_type = Text)]
    pub service: String,
    #[diesel(sql_type = Text)]
    pub outcome: String,
    #[diesel(sql_type = Text)]
    pub operation: String,
    #[diesel(sql_type = Text)]
    pub caller: String,
    #[diesel(sql_type = BigInt)]
    pub uses: i64,
    #[diesel(sql_type = BigInt)]
    pub cost: i64,
}

/// Hours that begin before the answer are sealed. Inside the transaction of a batch, whose end
/// whoever seals then waits for.
pub(super) async fn held_sealed_to(conn: &mut Conn) -> db::Result<i64> {
    if matches!(conn, Conn::Postgres(_)) {
        // A lock of the table, because those of rows let newcomers pass who waits for all of them.
        conn.batch("LOCK TABLE usage_seal IN ROW SHARE MODE")
            .await?;
    }
    sealed_to(conn).await
}

pub async fn sealed_to(conn: &mut Conn) -> db::Result<i64> {
    Ok(each!(conn, c => usage_seal::table
        .find(1)
        .select(usage_seal::sealed_to)
        .first(c)
        .await)?)
}

/// Moves it forward, when no batch is under way; answers where it is now.
pub async fn move_to(conn: &mut Conn, to: i64) -> db::Result<i64> {
    let known = sealed_to(conn).await?;
    if known >= to {
        return Ok(known);
    }
    if matches!(conn, Conn::Postgres(_)) {
        conn.batch("LOCK TABLE usage_seal IN EXCLUSIVE MODE")
            .await?;
    }
    each!(&mut *conn, c => diesel::update(usage_seal::table.find(1))
        .filter(usage_seal::sealed_to.lt(to))
        .set(usage_seal::sealed_to.eq(to))
        .execute(c)
        .await)?;
    sealed_to(conn).await
}

/// The first hour of a tenant, from `from` on and before `to`, that has counts.
pub async fn next_hour(
    conn: &mut Conn,
    tenant: &str,
    from: i64,
    to: i64,
) -> db::Result<Option<i64>> {
    Ok(each!(conn, c => usage_hour::table
        .filter(usage_hour::tenant_id.eq(tenant))
        .filter(usage_hour::start.ge(from))
        .filter(usage_hour::start.lt(to))
        .order(usage_hour::start)
        .select(usage_hour::start)
        .first(c)
        .await
        .optional())?)
}

/// At most `limit` rows of an hour behind `after`, in the order of the database.
pub async fn rows_after(
    conn: &mut Conn,
    (tenant, start): (&str, i64),
    after: Option<&HourRow>,
    limit: i64,
) -> db::Result<Vec<HourRow>> {
    const QUERY: &str = "SELECT key_id, secret_id, superseded, service, outcome, operation, caller, \
         consumer_id, uses, cost FROM usage_hour WHERE tenant_id = $1 AND start = $2 AND \
         (key_id, secret_id, superseded, service, outcome, operation, caller) > \
         ($3, $4, $5, $6, $7, $8, $9) \
         ORDER BY key_id, secret_id, superseded, service, outcome, operation, caller LIMIT $10";
    let text = |part: fn(&HourRow) -> &String| after.map_or("", |row| part(row).as_str());
    Ok(each!(conn, c => diesel::sql_query(QUERY)
        .bind::<Text, _>(tenant)
        .bind::<BigInt, _>(start)
        .bind::<Text, _>(text(|row| &row.key_id))
        .bind::<Text, _>(text(|row| &row.secret_id))
        // Before all others at the first page.
        .bind::<Integer, _>(after.map_or(-1, |row| row.superseded))
        .bind::<Text, _>(text(|row| &row.service))
        .bind::<Text, _>(text(|row| &row.outcome))
        .bind::<Text, _>(text(|row| &row.operation))
        .bind::<Text, _>(text(|row| &row.caller))
        .bind::<BigInt, _>(limit)
        .load(c)
        .await)?)
}

/// What was late for an hour, by batches behind the number `after`: a line for each row that they added
/// to, however many batches there were. Nothing comes late that takes uses away: a row that does is none of
/// ours, and would explain why some are missing. `SQLite` keeps any value in a column: what is compared is what is
/// summed, a whole number.
pub async fn late_rows(
    conn: &mut Conn,
    tenant: &str,
    start: i64,
    after: i64,
) -> db::Result<Vec<LateRow>> {
    const QUERY: &str = "SELECT MAX(seq) AS seq, key_id, secret_id, superseded, service, outcome, \
         operation, caller, CAST(SUM(CAST(uses AS BIGINT)) AS BIGINT) AS uses, \
         CAST(SUM(CAST(cost AS BIGINT)) AS BIGINT) AS cost \
         FROM usage_late WHERE tenant_id = $1 AND start = $2 AND seq > $3 \
         AND CAST(uses AS BIGINT) >= 0 AND CAST(cost AS BIGINT) >= 0 \
         GROUP BY key_id, secret_id, superseded, service, outcome, operation, caller";
    Ok(each!(conn, c => diesel::sql_query(QUERY)
        .bind::<Text, _>(tenant)
        .bind::<BigInt, _>(start)
        .bind::<BigInt, _>(after)
        .load(c)
        .await)?)
}

/// The key of the first row, of an hour from `from` on and before `to` or late for one, that has a value of
/// another type than ours: `SQLite` keeps it, reads it like ours, and sums and finds it otherwise. `PostgreSQL` keeps
/// none.
pub async fn mistyped(
    conn: &mut Conn,
    tenant: &str,
    (from, to): (i64, i64),
) -> db::Result<Option<String>> {
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        key_id: String,
    }
    const QUERY: &str = "WITH typed AS (\
         SELECT tenant_id, start, key_id, secret_id, service, outcome, operation, caller, consumer_id, \
         superseded, uses, cost, 0 AS seq FROM usage_hour UNION ALL \
         SELECT tenant_id, start, key_id, secret_id, service, outcome, operation, caller, consumer_id, \
         superseded, uses, cost, seq FROM usage_late) \
         SELECT key_id FROM typed WHERE tenant_id = $1 AND start >= $2 AND start < $3 AND (\
         (typeof(start), typeof(superseded), typeof(uses), typeof(cost), typeof(seq)) <> \
         ('integer', 'integer', 'integer', 'integer', 'integer') OR \
         (typeof(key_id), typeof(secret_id), typeof(service), typeof(outcome), typeof(operation), \
         typeof(caller), typeof(consumer_id)) <> \
         ('text', 'text', 'text', 'text', 'text', 'text', 'text')) LIMIT 1";
    let Conn::Sqlite(c) = conn else {
        return Ok(None);
    };
    let row: Option<Row> = diesel::sql_query(QUERY)
        .bind::<Text, _>(tenant)
        .bind::<BigInt, _>(from)
        .bind::<BigInt, _>(to)
        .get_result(&mut **c)
        .await
        .optional()?;
    Ok(row.map(|row| row.key_id))
}

/// The hours of a tenant that something was late for.
pub async fn late_hours(conn: &mut Conn, tenant: &str) -> db::Result<Vec<i64>> {
    Ok(each!(conn, c => usage_late::table
        .filter(usage_late::tenant_id.eq(tenant))
        .select(usage_late::start)
        .distinct()
        .order(usage_late::start)
        .load(c)
        .await)?)
}

/// A further seal has taken in what was late, up to this batch.
pub async fn forget_late(
    conn: &mut Conn,
    tenant: &str,
    start: i64,
    to_seq: i64,
) -> db::Result<usize> {
    Ok(each!(conn, c => diesel::delete(
        usage_late::table
            .filter(usage_late::tenant_id.eq(tenant))
            .filter(usage_late::start.eq(start))
            .filter(usage_late::seq.le(to_seq)),
    )
    .execute(c)
    .await)?)
}
