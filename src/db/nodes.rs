//! Which nodes there are: a row each, kept while the node runs.

use diesel::prelude::*;
use diesel::query_dsl::methods;
use diesel_async::RunQueryDsl;

use super::schema::node;
use super::{Conn, Result};
use crate::each;
use crate::time::{Span, Timestamp};

/// The longest `cache.stale_max` that may be set, which is the default of the column too: for a node that
/// somebody tells of who does not know what it has.
pub const STALE_MAX_LONGEST: Span = Span::hours(1);

/// So many are told of at most.
const NODES_MAX: i64 = 10_000;

/// So many are forgotten at once.
const SWEPT_MAX: i64 = 1_000;

/// The row that stands for all nodes whose rows the database has lost with its history: who knows of nothing,
/// and is never heard of.
const LOST: &str = "lost";

/// The clock that all nodes go by here: the database's, where it has one. Who goes by another clock than
/// the rest would look gone while it lives.
async fn common_clock(conn: &mut Conn, own: Timestamp) -> Result<Timestamp> {
    Ok(super::clock(conn).await?.unwrap_or(own))
}

/// The node lives, knows every change up to `position`, and may go on deciding for `stale_max` when Redis
/// alone reaches it. It says so itself, so this is believed whatever stands there: with another history of
/// the database its position goes back.
pub async fn keep(
    conn: &mut Conn,
    id: &str,
    position: i64,
    stale_max: Span,
    own: Timestamp,
) -> Result<()> {
    let now = common_clock(conn, own).await?;
    let told = (
        node::position.eq(position),
        node::seen_at.eq(now),
        node::stale_max_ms.eq(stale_max.millis()),
    );
    each!(conn, c => diesel::insert_into(node::table)
        .values((node::id.eq(id), told))
        .on_conflict(node::id)
        .do_update()
        .set(told)
        .execute(c)
        .await)?;
    Ok(())
}

/// The same of a node that cannot say so itself, unless it did within `span`, or another did for it: told by
/// one that knows it to live. A row that is fresher, also one that is being written meanwhile, stays as it is.
pub async fn keep_for(
    conn: &mut Conn,
    id: &str,
    position: i64,
    span: Span,
    own: Timestamp,
) -> Result<()> {
    let now = common_clock(conn, own).await?;
    let told = (node::position.eq(position), node::seen_at.eq(now));
    each!(conn, c => {
        let upsert = diesel::insert_into(node::table)
            .values((node::id.eq(id), told))
            .on_conflict(node::id)
            .do_update()
            .set(told);
        methods::FilterDsl::filter(upsert, node::seen_at.lt(now.minus(span)))
            .execute(c)
            .await
    })?;
    Ok(())
}

/// The database has another history than before: until the nodes that live have told of themselves anew, and
/// those that cannot decide no more, nobody knows which they are.
pub async fn note_loss(conn: &mut Conn, stale_max: Span, own: Timestamp) -> Result<()> {
    keep(conn, LOST, -1, stale_max, own).await
}

/// The nodes that were seen within `span`, with their positions; if `or_by_redis`, those too that Redis alone
/// may have reached since, each for as long as it may go on by that.
pub async fn seen_within(
    conn: &mut Conn,
    span: Span,
    or_by_redis: bool,
    own: Timestamp,
) -> Result<Vec<(String, i64)>> {
    let at = common_clock(conn, own).await?.minus(span);
    Ok(each!(conn, c => {
        let nodes = node::table.into_boxed();
        let seen = if or_by_redis {
            nodes.filter((node::seen_at + node::stale_max_ms).ge(at))
        } else {
            nodes.filter(node::seen_at.ge(at))
        };
        seen.order(node::id)
            .limit(NODES_MAX)
            .select((node::id, node::position))
            .load(c)
            .await
    })?)
}

/// The node has ended.
pub async fn remove(conn: &mut Conn, id: &str) -> Result<()> {
    each!(conn, c => diesel::delete(node::table.find(id)).execute(c).await)?;
    Ok(())
}

/// Forgets nodes that ended without saying so: those not seen within `span`. One after the other, because rows
/// are kept for others in one transaction too, in this order.
pub async fn sweep(conn: &mut Conn, span: Span, own: Timestamp) -> Result<usize> {
    let before = common_clock(conn, own).await?.minus(span);
    let old: Vec<String> = each!(&mut *conn, c => node::table
        .filter(node::seen_at.lt(before))
        .order(node::id)
        .limit(SWEPT_MAX)
        .select(node::id)
        .load(c)
        .await)?;
    let mut swept = 0;
    for id in old {
        let row = node::table
            .filter(node::id.eq(id))
            .filter(node::seen_at.lt(before));
        swept += each!(&mut *conn, c => diesel::delete(row).execute(c).await)?;
    }
    Ok(swept)
}
