//! Who verifies keeps nobody else from it.

use futures_util::future::join_all;

use super::*;
use crate::support::{Home, both};

both!(verifications_of_tenants_wait_for_each_other);

async fn verifications_of_tenants_wait_for_each_other(home: Home) {
    let trail = Trail::of(&home, 40).await;
    trail.change(&trail.other, 30).await.unwrap();
    // One tenant asks again and again, and the other once behind all of it.
    let asked = std::iter::repeat_n(&trail.ours, 8).chain([&trail.other]);
    let reports = asked.map(|tenant| trail.audit.verify(&tenant.id, 1));
    let reports = join_all(reports).await;
    let checked: Vec<i64> = reports
        .into_iter()
        .map(|report| report.expect("its turn comes").checked)
        .collect();
    assert_eq!(checked, [[40; 8].as_slice(), &[30]].concat());
}
