//! Which batches were stored whose rows are gone, for ever: a node may come back after years with a journal
//! whose blocks the ledger has.
//!
//! The blocks of a node have numbers without gaps, but for those that were given up or are not stored yet. So
//! what is kept are runs of numbers, about one for each life of a node, and one that is not in a run was not
//! stored.

use std::collections::{BTreeMap, BTreeSet};

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::db::schema::{usage_batch, usage_stored};
use crate::db::{self, Conn};
use crate::each;

/// Node and number of a batch.
pub(super) type Name = (String, i64);

/// The first and the last number.
type Run = (i64, i64);

/// Makes whoever else forgets batches wait until this transaction ends.
pub(super) async fn hold(conn: &mut Conn) -> db::Result<()> {
    match conn {
        // Who writes is alone.
        Conn::Sqlite(_) => Ok(()),
        Conn::Postgres(_) => {
            conn.batch("LOCK TABLE usage_stored IN EXCLUSIVE MODE")
                .await
        }
    }
}

/// Keeps the names of batches whose rows go in this transaction, which [holds](hold) the table.
pub(super) async fn remember(conn: &mut Conn, gone: &[Name]) -> db::Result<()> {
    let mut nodes: BTreeMap<&str, Vec<Run>> = BTreeMap::new();
    for (node, number) in gone {
        nodes.entry(node).or_default().push((*number, *number));
    }
    for (node, mut runs) in nodes {
        runs.extend(runs_of(conn, node, (i64::MIN, i64::MAX)).await?);
        each!(&mut *conn, c => diesel::delete(usage_stored::table)
            .filter(usage_stored::node.eq(node))
            .execute(c)
            .await)?;
        for (first, last) in merged(runs) {
            each!(&mut *conn, c => diesel::insert_into(usage_stored::table)
                .values((
                    usage_stored::node.eq(node),
                    usage_stored::from_number.eq(first),
                    usage_stored::to_number.eq(last),
                ))
                .execute(c)
                .await)?;
        }
    }
    Ok(())
}

/// Takes those out of `claimed` that were stored before, with the rows that were made for them. A claim waits
/// for whoever deletes the row it meets, so what that has remembered is seen here.
pub(super) async fn unclaim(conn: &mut Conn, claimed: &mut BTreeSet<Name>) -> db::Result<()> {
    let mut nodes: BTreeMap<&str, Run> = BTreeMap::new();
    for (node, number) in &*claimed {
        let (first, last) = nodes.entry(node).or_insert((*number, *number));
        (*first, *last) = ((*first).min(*number), (*last).max(*number));
    }
    let mut stored = BTreeSet::new();
    for (node, within) in nodes {
        let runs = runs_of(conn, node, within).await?;
        let is_in = |number: i64| {
            let mut runs = runs.iter();
            runs.any(|(first, last)| (*first..=*last).contains(&number))
        };
        let of_node = claimed.iter().filter(|(of, _)| of == node);
        stored.extend(of_node.filter(|(_, number)| is_in(*number)).cloned());
    }
    for name in &stored {
        each!(&mut *conn, c => diesel::delete(usage_batch::table.find((&name.0, name.1)))
            .execute(c)
            .await)?;
        claimed.remove(name);
    }
    Ok(())
}

/// The runs of a node that have a number from the first to the last.
async fn runs_of(conn: &mut Conn, node: &str, (first, last): Run) -> db::Result<Vec<Run>> {
    Ok(each!(conn, c => usage_stored::table
        .filter(usage_stored::node.eq(node))
        .filter(usage_stored::from_number.le(last))
        .filter(usage_stored::to_number.ge(first))
        .select((usage_stored::from_number, usage_stored::to_number))
        .load(c)
        .await)?)
}

/// The same numbers in as few runs as there can be.
fn merged(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    let mut merged: Vec<Run> = Vec::new();
    for (first, last) in runs {
        match merged.last_mut() {
            Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
            Some(_) | None => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_that_touch_are_one() {
        for (runs, expected) in [
            (vec![], vec![]),
            (vec![(3, 3), (1, 1)], vec![(1, 1), (3, 3)]),
            (vec![(3, 4), (1, 2), (6, 6)], vec![(1, 4), (6, 6)]),
            (vec![(1, 9), (2, 3), (9, 9)], vec![(1, 9)]),
            (
                vec![(i64::MAX, i64::MAX), (1, i64::MAX)],
                vec![(1, i64::MAX)],
            ),
        ] {
            assert_eq!(merged(runs), expected);
        }
    }

    proptest! {
        #[test]
        fn runs_hold_the_numbers_they_were_made_of_and_no_others(
            numbers in prop::collection::btree_set(0..60_i64, 0..40)
        ) {
            let runs = merged(numbers.iter().map(|n| (*n, *n)).collect());
            let held: BTreeSet<i64> = runs.iter().flat_map(|(a, b)| *a..=*b).collect();
            prop_assert_eq!(&held, &numbers);
            prop_assert!(runs.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
