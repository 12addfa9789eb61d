//! Many rows by one statement: they are sent as one JSON text, which both databases take apart.
//!
//! A statement of ten thousand rows has one parameter then, and is the same text each time. Rows come
//! sorted by their primary key, so that two nodes never wait for each other in a circle.

use std::fmt::Write as _;

use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use serde::Serialize;

use crate::db::{self, Conn};

/// So many rows at once, which bounds the text of a statement to some megabytes.
const ROWS_MAX: usize = 5_000;

/// A table as rows are added to it.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// With their types in `PostgreSQL`. A row's JSON has members of these names.
    pub(super) columns: &'static [(&'static str, &'static str)],
    /// What is done with a row that is there: `ON CONFLICT ..`, or nothing.
    pub(super) conflict: &'static str,
}

impl Table {
    fn statement(&self, conn: &Conn) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        let mut sql = format!("INSERT INTO {} ({}) SELECT ", self.name, names.join(", "));
        // `WHERE true` tells SQLite that ON CONFLICT does not belong to a join.
        match conn {
            Conn::Sqlite(_) => {
                let values: Vec<String> = names
                    .iter()
                    .map(|name| format!("value ->> '$.{name}'"))
                    .collect();
                let _infallible = write!(
                    sql,
                    "{} FROM json_each(?) WHERE true {}",
                    values.join(", "),
                    self.conflict
                );
            }
            Conn::Postgres(_) => {
                let types: Vec<String> = self
                    .columns
                    .iter()
                    .map(|(name, kind)| format!("{name} {kind}"))
                    .collect();
                let _infallible = write!(
                    sql,
                    "{} FROM json_to_recordset($1::json) AS r ({}) WHERE true {}",
                    names.join(", "),
                    types.join(", "),
                    self.conflict
                );
            }
        }
        sql
    }

    /// Adds `rows`.
    pub(super) async fn put<R: Serialize>(&self, conn: &mut Conn, rows: &[R]) -> db::Result<()> {
        let statement = self.statement(conn);
        for rows in rows.chunks(ROWS_MAX) {
            let json = serde_json::to_string(rows)
                .map_err(|error| db::Error::Corrupt(format!("a row of uses: {error}")))?;
            // PostgreSQL has no text with a NUL, and one must not keep a batch out for ever.
            let json = json.replace("\\u0000", "\\ufffd");
            crate::each!(&mut *conn, c => diesel::sql_query(statement.as_str())
                .bind::<Text, _>(json)
                .execute(c)
                .await)?;
        }
        Ok(())
    }
}

/// As a database holds it: a count beyond that is one that cannot be, and it would end all adding.
pub(super) fn bounded(count: u64) -> i64 {
    const MAX: i64 = 1 << 53;
    i64::try_from(count).map_or(MAX, |count| count.min(MAX))
}
