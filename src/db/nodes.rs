//! Which nodes there are: a row each, kept while the node runs.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::schema::node;
use super::{Conn, Result};
use crate::each;
use crate::time::{Span, Timestamp};

/// So many are told of at most.
const NODES_MAX: i64 = 10_000;

/// The clock that all nodes go by here: the database's, where it has one. Who goes by another clock than
/// the rest would look gone while it lives.
async fn common_clock(conn: &mut Conn, own: Timestamp) -> Result<Timestamp> {
    Ok(super::clock(conn).await?.unwrap_or(own))
}

/// The node lives, and knows every change up to `position`.
pub async fn keep(conn: &mut Conn, id: &str, position: i64, own: Timestamp) -> Result<()> {
    let now = common_clock(conn, own).await?;
    let row = (
        node::id.eq(id),
        node::position.eq(position),
        node::seen_at.eq(now),
    );
    each!(conn, c => diesel::insert_into(node::table)
        .values(row)
        .on_conflict(node::id)
        .do_update()
        .set((node::position.eq(position), node::seen_at.eq(now)))
        .execute(c)
        .await)?;
    Ok(())
}

/// The same of a node that cannot say so itself, unless it did within `span`, or another did for it: told by
/// one that knows it to live.
pub async fn keep_for(
    conn: &mut Conn,
    id: &str,
    position: i64,
    span: Span,
    own: Timestamp,
) -> Result<()> {
    let now = common_clock(conn, own).await?;
    let seen = each!(conn, c => node::table
        .find(id)
        .select(node::seen_at)
        .first::<Timestamp>(c)
        .await
        .optional())?;
    if seen.is_some_and(|seen| seen >= now.minus(span)) {
        return Ok(());
    }
    keep(conn, id, position, own).await
}

/// The nodes that were seen within `span`, with their positions.
pub async fn seen_within(
    conn: &mut Conn,
    span: Span,
    own: Timestamp,
) -> Result<Vec<(String, i64)>> {
    let at = common_clock(conn, own).await?.minus(span);
    Ok(each!(conn, c => node::table
        .filter(node::seen_at.ge(at))
        .order(node::id)
        .limit(NODES_MAX)
        .select((node::id, node::position))
        .load(c)
        .await)?)
}

/// The node has ended.
pub async fn remove(conn: &mut Conn, id: &str) -> Result<()> {
    each!(conn, c => diesel::delete(node::table.find(id)).execute(c).await)?;
    Ok(())
}

/// Forgets nodes that ended without saying so: those not seen within `span`.
pub async fn sweep(conn: &mut Conn, span: Span, own: Timestamp) -> Result<usize> {
    let before = common_clock(conn, own).await?.minus(span);
    Ok(
        each!(conn, c => diesel::delete(node::table.filter(node::seen_at.lt(before)))
        .execute(c)
        .await)?,
    )
}
