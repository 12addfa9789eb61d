//! From which addresses keys were used, bounded in rows: who uses one key from ever other addresses fills
//! nothing.
//!
//! The first addresses of a key's day that are stored are told apart, and go on to be; of several nodes at
//! the same moment each may add as many as it sees room for. Uses from all others are counted too, together,
//! under [`OTHER`].

use std::collections::{BTreeMap, BTreeSet};

use diesel::dsl::count_star;
use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::usage_ip;
use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::{IpKey, OTHER, Seen};

/// How many addresses of a key's day are told apart: with [`OTHER`] no more than one summary shows.
pub(super) const ADDRESSES_MAX: usize = 500;

/// So many keys are asked for by one statement.
const KEYS_MAX: usize = 1_000;

type Rows = BTreeMap<IpKey, Seen>;

/// Folds what would be rows beyond [`ADDRESSES_MAX`] into one each key and day.
pub(super) async fn fold(conn: &mut Conn, added: Rows) -> db::Result<Rows> {
    let mut days: BTreeMap<(&str, i64), BTreeMap<&str, usize>> = BTreeMap::new();
    for row in added.keys().filter(|row| row.ip != OTHER) {
        let keys = days.entry((&row.tenant_id, row.day)).or_default();
        *keys.entry(&row.key_id).or_default() += 1;
    }
    let mut crowded: BTreeMap<(String, i64, String), BTreeSet<String>> = BTreeMap::new();
    for ((tenant, day), keys) in days {
        let names: Vec<&str> = keys.keys().copied().collect();
        let mut stored = BTreeMap::new();
        for names in names.chunks(KEYS_MAX) {
            stored.extend(count(conn, (tenant, day), names).await?);
        }
        for (key, new) in keys {
            let stored = stored.get(key).copied().unwrap_or_default();
            if usize::try_from(stored).unwrap_or(usize::MAX) + new > ADDRESSES_MAX {
                let known = known(conn, (tenant, day), key).await?;
                crowded.insert((tenant.to_owned(), day, key.to_owned()), known);
            }
        }
    }
    if crowded.is_empty() {
        return Ok(added);
    }
    Ok(folded(crowded, added))
}

/// How many addresses of these keys stand in the day.
async fn count(
    conn: &mut Conn,
    (tenant, day): (&str, i64),
    keys: &[&str],
) -> db::Result<Vec<(String, i64)>> {
    Ok(each!(conn, c => usage_ip::table
        .filter(usage_ip::tenant_id.eq(tenant))
        .filter(usage_ip::day.eq(day))
        .filter(usage_ip::key_id.eq_any(keys))
        .filter(usage_ip::ip.ne(OTHER))
        .group_by(usage_ip::key_id)
        .select((usage_ip::key_id, count_star()))
        .load(c)
        .await)?)
}

async fn known(
    conn: &mut Conn,
    (tenant, day): (&str, i64),
    key: &str,
) -> db::Result<BTreeSet<String>> {
    let addresses: Vec<String> = each!(conn, c => usage_ip::table
        .filter(usage_ip::tenant_id.eq(tenant))
        .filter(usage_ip::day.eq(day))
        .filter(usage_ip::key_id.eq(key))
        .filter(usage_ip::ip.ne(OTHER))
        .select(usage_ip::ip)
        .load(c)
        .await)?;
    Ok(addresses.into_iter().collect())
}

/// `crowded` has the known addresses of the keys, by tenant, day and key, that are near their bound.
fn folded(mut crowded: BTreeMap<(String, i64, String), BTreeSet<String>>, added: Rows) -> Rows {
    let mut folded = Rows::new();
    for (mut row, seen) in added {
        let name = (row.tenant_id.clone(), row.day, row.key_id.clone());
        if let Some(known) = crowded.get_mut(&name)
            && !known.contains(&row.ip)
        {
            if known.len() >= ADDRESSES_MAX {
                OTHER.clone_into(&mut row.ip);
            } else if row.ip != OTHER {
                known.insert(row.ip.clone());
            }
        }
        folded
            .entry(row)
            .and_modify(|known: &mut Seen| known.add(seen))
            .or_insert(seen);
    }
    folded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(key: &str, ip: &str) -> IpKey {
        IpKey {
            tenant_id: "ten_1".to_owned(),
            day: 0,
            key_id: key.to_owned(),
            ip: ip.to_owned(),
        }
    }

    fn seen(uses: u64, at: i64) -> Seen {
        Seen {
            uses,
            first_at: at,
            last_at: at,
        }
    }

    #[test]
    fn beyond_the_bound_addresses_are_one_and_nothing_is_lost() {
        let address = |n: usize| format!("2001:db8::{n:04x}");
        let known = (0..ADDRESSES_MAX - 10).map(address).collect();
        let crowded = BTreeMap::from([(("ten_1".to_owned(), 0, "key_1".to_owned()), known)]);
        let mut added: Rows = (ADDRESSES_MAX - 20..ADDRESSES_MAX + 100)
            .map(|n| (row("key_1", &address(n)), seen(2, 100)))
            .collect();
        added.insert(row("key_1", OTHER), seen(5, 50));
        added.insert(row("key_2", "192.0.2.1"), seen(1, 7));
        let folded = folded(crowded, added);
        let of_key_1 = folded.iter().filter(|(row, _)| row.key_id == "key_1");
        // Ten that were known, ten that there was room for, and all others.
        assert_eq!(of_key_1.clone().count(), 10 + 10 + 1);
        let uses: u64 = of_key_1.map(|(_, seen)| seen.uses).sum();
        assert_eq!(uses, 2 * 120 + 5);
        let other = Seen {
            uses: 2 * 100 + 5,
            first_at: 50,
            last_at: 100,
        };
        assert_eq!(folded.get(&row("key_1", OTHER)), Some(&other));
        assert_eq!(folded.get(&row("key_2", "192.0.2.1")), Some(&seen(1, 7)));
    }
}
