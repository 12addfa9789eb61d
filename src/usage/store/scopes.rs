//! Which scopes the uses of keys required.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::usage_scope;
use crate::db::{self, Conn};
use crate::each;
use crate::time::Timestamp;
use crate::usage::counts::{DAY_MS, start};

/// The scopes that were required of these keys, and met, at `since` or later: key, slug of the
/// service, scope, each once.
pub async fn met_since(
    conn: &mut Conn,
    tenant: &str,
    keys: &[&str],
    since: Timestamp,
) -> db::Result<Vec<(String, String, String)>> {
    Ok(each!(conn, c => usage_scope::table
        .filter(usage_scope::tenant_id.eq(tenant))
        .filter(usage_scope::key_id.eq_any(keys))
        .filter(usage_scope::day.ge(start(since, DAY_MS)))
        .filter(usage_scope::last_at.ge(since))
        .select((usage_scope::key_id, usage_scope::service, usage_scope::scope))
        .distinct()
        .load(c)
        .await)?)
}
