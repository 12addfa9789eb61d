//! What a node has recorded and the ledger does not have yet: a file of its own, so that neither a
//! database that is away nor the end of this process loses it.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::{self, Conn};
use crate::each;

diesel::table! {
    /// In a file of its own on each node.
    usage_journal (number) {
        number -> BigInt,
        node -> Text,
        /// `uses` or `folded`.
        kind -> Text,
        form -> Integer,
        block -> Binary,
    }
}

/// A block of uses, as it was collected.
#[derive(Clone, Debug, PartialEq, Eq, Queryable, Selectable)]
#[diesel(table_name = usage_journal)]
pub struct Block {
    pub number: i64,
    /// Whose number it is.
    pub node: String,
    pub kind: String,
    pub form: i32,
    pub block: Vec<u8>,
}

/// A block to be kept.
#[derive(Clone, Copy, Debug, Insertable)]
#[diesel(table_name = usage_journal)]
pub struct NewBlock<'a> {
    pub node: &'a str,
    pub kind: &'a str,
    pub form: i32,
    pub block: &'a [u8],
}

/// Answers the number that it was given.
pub async fn append(conn: &mut Conn, block: &NewBlock<'_>) -> db::Result<i64> {
    Ok(each!(conn, c => diesel::insert_into(usage_journal::table)
        .values(block)
        .returning(usage_journal::number)
        .get_result(c)
        .await)?)
}

/// Writes, and leaves nothing behind. The first write into a log that begins anew, as after a start, waits
/// for the disk, which may take longer than a kill shall lose: then it is this one.
pub async fn touch(conn: &mut Conn) -> db::Result<()> {
    let none = NewBlock {
        node: "",
        kind: "",
        form: 0,
        block: &[],
    };
    // The number of no block: those begin with 1, and none is used up.
    each!(&mut *conn, c => diesel::insert_into(usage_journal::table)
        .values((&none, usage_journal::number.eq(0)))
        .execute(c)
        .await)?;
    remove(conn, &[0]).await
}

/// The oldest block behind the number `after` and up to `to`. One of a form later than `form_max` waits for
/// the version that has left it.
pub async fn next(conn: &mut Conn, after: i64, to: i64, form_max: u8) -> db::Result<Option<Block>> {
    Ok(each!(conn, c => usage_journal::table
        .filter(usage_journal::number.gt(after))
        .filter(usage_journal::number.le(to))
        .filter(usage_journal::form.le(i32::from(form_max)))
        .order(usage_journal::number)
        .select(Block::as_select())
        .first(c)
        .await
        .optional())?)
}

/// The number of the newest block, 0 without one.
pub async fn newest(conn: &mut Conn) -> db::Result<i64> {
    let newest: Option<i64> = each!(conn, c => usage_journal::table
        .select(diesel::dsl::max(usage_journal::number))
        .first(c)
        .await)?;
    Ok(newest.unwrap_or_default())
}

pub async fn remove(conn: &mut Conn, numbers: &[i64]) -> db::Result<()> {
    each!(conn, c => diesel::delete(
        usage_journal::table.filter(usage_journal::number.eq_any(numbers))
    )
    .execute(c)
    .await)?;
    Ok(())
}

/// Removes the block `first` and all behind it.
pub async fn remove_from(conn: &mut Conn, first: i64) -> db::Result<()> {
    each!(conn, c => diesel::delete(
        usage_journal::table.filter(usage_journal::number.ge(first))
    )
    .execute(c)
    .await)?;
    Ok(())
}

/// Brings what was appended from the write-ahead log into the file, as far as nobody reads there. On a
/// connection that reads: it waits for the disk, and no flush shall wait for it.
pub async fn checkpoint(conn: &mut Conn) -> db::Result<()> {
    conn.batch("PRAGMA wal_checkpoint(PASSIVE)").await
}

/// How many bytes of blocks are waiting.
pub async fn bytes(conn: &mut Conn) -> db::Result<i64> {
    use diesel::dsl::sql;
    use diesel::sql_types::BigInt;
    Ok(each!(conn, c => usage_journal::table
        .select(sql::<BigInt>("COALESCE(SUM(LENGTH(block)), 0)"))
        .first(c)
        .await)?)
}
