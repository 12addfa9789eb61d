//! The table of signing keys.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::signing_key;
use crate::db::{self, Conn};
use crate::each;
use crate::time::Timestamp;

/// A row as it is stored, whoever wrote it.
#[derive(Clone, Queryable, Selectable, Insertable)]
#[diesel(table_name = signing_key)]
pub struct KeyRow {
    pub generation: i64,
    pub kid: String,
    pub algorithm: String,
    pub master_id: String,
    /// Sealed.
    pub private_key: Vec<u8>,
    pub active_from: Timestamp,
    pub created_at: Timestamp,
}

/// More are not looked at: each lives for some minutes beyond its successor.
const ROWS_MAX: i64 = 200;

/// All, the newest first.
pub(super) async fn all(conn: &mut Conn) -> db::Result<Vec<KeyRow>> {
    Ok(each!(conn, c => signing_key::table
        .order(signing_key::generation.desc())
        .limit(ROWS_MAX)
        .select(KeyRow::as_select())
        .load(c)
        .await)?)
}

pub(super) async fn insert(conn: &mut Conn, row: &KeyRow) -> db::Result<()> {
    each!(conn, c => diesel::insert_into(signing_key::table).values(row).execute(c).await)?;
    Ok(())
}

/// Deletes them in one order, whoever does it: so nobody waits for who waits for him.
pub(super) async fn delete(conn: &mut Conn, mut generations: Vec<i64>) -> db::Result<()> {
    generations.sort_unstable();
    for generation in generations {
        let row = signing_key::table.filter(signing_key::generation.eq(generation));
        each!(&mut *conn, c => diesel::delete(row).execute(c).await)?;
    }
    Ok(())
}
