//! When keys were last used, as the ledger knows it.

use diesel::dsl::max;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::usage_minute;
use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::MINUTE_MS;
use crate::usage::record::VALID;

/// So far before a tenant's newest use is looked: longer than any node keeps to itself what was used,
/// long enough for one to start again while others go on, and for those to look twice.
const BACK_MS: i64 = 10 * MINUTE_MS;

/// The keys and secrets of the tenant's last minutes with uses, each with the beginning of its last.
pub async fn last_uses(
    conn: &mut Conn,
    tenant: &str,
) -> db::Result<Vec<(String, String, Option<i64>)>> {
    let newest: Option<i64> = each!(&mut *conn, c => usage_minute::table
        .filter(usage_minute::tenant_id.eq(tenant))
        .order(usage_minute::start.desc())
        .select(usage_minute::start)
        .first(c)
        .await
        .optional())?;
    let Some(newest) = newest else {
        return Ok(Vec::new());
    };
    Ok(each!(conn, c => usage_minute::table
        .filter(usage_minute::tenant_id.eq(tenant))
        .filter(usage_minute::start.ge(newest.saturating_sub(BACK_MS)))
        .filter(usage_minute::outcome.eq(VALID))
        .group_by((usage_minute::key_id, usage_minute::secret_id))
        .select((
            usage_minute::key_id,
            usage_minute::secret_id,
            max(usage_minute::start),
        ))
        .load(c)
        .await)?)
}
