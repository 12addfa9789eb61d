//! The table of revoked tokens. What a validation asks of it is in `validation/store.rs`.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::revoked_token;
use crate::db::{self, Conn};
use crate::each;
use crate::id::{TenantId, TokenId};
use crate::time::Timestamp;

#[derive(Insertable)]
#[diesel(table_name = revoked_token)]
pub(super) struct Revoked {
    pub(super) id: TokenId,
    pub(super) tenant_id: TenantId,
    pub(super) expires_at: Timestamp,
}

/// Whether it was not there yet.
pub(super) async fn insert(conn: &mut Conn, row: &Revoked) -> db::Result<bool> {
    let count = each!(conn, c => diesel::insert_into(revoked_token::table)
        .values(row)
        .on_conflict_do_nothing()
        .execute(c)
        .await)?;
    Ok(count > 0)
}

pub(super) async fn sweep(conn: &mut Conn, before: Timestamp) -> db::Result<usize> {
    if !db::alone(conn, "sweep revoked tokens").await? {
        return Ok(0);
    }
    Ok(each!(conn, c => diesel::delete(revoked_token::table
            .filter(revoked_token::expires_at.lt(before)))
        .execute(c)
        .await)?)
}
