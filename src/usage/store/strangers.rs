//! What no key was found for, bounded in rows: who tries keys from ever other addresses fills nothing.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::usage_stranger;
use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::StrangerKey;

/// How many rows a tenant's hour has, beyond which addresses are no longer told apart.
pub(super) const ROWS_MAX: usize = 1_000;

type Rows = BTreeMap<StrangerKey, u64>;

/// Folds what would be rows beyond [`ROWS_MAX`] into rows without an address.
pub(super) async fn fold(conn: &mut Conn, added: &Rows) -> db::Result<Rows> {
    let mut hours: BTreeMap<(&str, i64), Rows> = BTreeMap::new();
    for (row, uses) in added {
        let hour = hours.entry((&row.tenant_id, row.hour)).or_default();
        hour.insert(row.clone(), *uses);
    }
    let mut folded = Rows::new();
    for ((tenant, hour), rows) in hours {
        let known = known(conn, tenant, hour).await?;
        fold_hour(&known, rows, &mut folded);
    }
    Ok(folded)
}

/// A stored row of the hour: caller, service, outcome, operation, address.
type Known = (String, String, String, String, String);

async fn known(conn: &mut Conn, tenant: &str, hour: i64) -> db::Result<BTreeSet<Known>> {
    let rows: Vec<Known> = each!(conn, c => usage_stranger::table
        .filter(usage_stranger::tenant_id.eq(tenant))
        .filter(usage_stranger::hour.eq(hour))
        .select((
            usage_stranger::caller,
            usage_stranger::service,
            usage_stranger::outcome,
            usage_stranger::operation,
            usage_stranger::ip,
        ))
        .load(c)
        .await)?;
    Ok(rows.into_iter().collect())
}

fn fold_hour(known: &BTreeSet<Known>, rows: Rows, folded: &mut Rows) {
    let mut room = ROWS_MAX.saturating_sub(known.len());
    for (mut row, uses) in rows {
        let name = (
            row.caller.clone(),
            row.service.clone(),
            row.outcome.clone(),
            row.operation.as_str().to_owned(),
            row.ip.clone(),
        );
        if !known.contains(&name) {
            if room == 0 {
                row.ip.clear();
            } else {
                room -= 1;
            }
        }
        let sum = folded.entry(row).or_default();
        *sum = sum.saturating_add(uses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::record::Operation;

    fn row(ip: usize) -> StrangerKey {
        StrangerKey {
            tenant_id: "ten_1".to_owned(),
            hour: 0,
            caller: "key_1".to_owned(),
            service: "billing".to_owned(),
            outcome: "unknown".to_owned(),
            operation: Operation::Verify,
            ip: format!("2001:db8::{ip:x}"),
        }
    }

    fn name(row: &StrangerKey) -> Known {
        (
            row.caller.clone(),
            row.service.clone(),
            row.outcome.clone(),
            row.operation.as_str().to_owned(),
            row.ip.clone(),
        )
    }

    #[test]
    fn beyond_a_thousand_rows_addresses_are_not_told_apart_and_nothing_is_lost() {
        let known: BTreeSet<Known> = (0..990).map(|ip| name(&row(ip))).collect();
        let rows: Rows = (900..2_000).map(|ip| (row(ip), 2)).collect();
        let mut folded = Rows::new();
        fold_hour(&known, rows, &mut folded);
        let new = folded.keys().filter(|row| !known.contains(&name(row)));
        assert_eq!(new.count(), 10 + 1);
        assert_eq!(folded.values().sum::<u64>(), 2 * 1_100);
        assert_eq!(folded.get(&row(950)), Some(&2));
        let rest = StrangerKey {
            ip: String::new(),
            ..row(0)
        };
        assert_eq!(folded.get(&rest), Some(&(2 * (1_100 - 90 - 10))));
    }
}
