//! Who verifies keeps nobody else from it, and no turn says more than it can know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use keystead::time::Span;

use super::*;
use crate::support::{Home, both};

both!(
    verifications_of_tenants_wait_for_each_other,
    what_a_reseal_further_on_may_accept_is_no_alarm,
);

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

async fn what_a_reseal_further_on_may_accept_is_no_alarm(home: Home) {
    let trail = Trail::of(&home, 6).await;
    trail.change(&trail.ours, 1_200).await.unwrap();
    trail
        .sql("UPDATE audit_event SET actor = 'nobody' WHERE seq = 3")
        .await;
    let told = || trail.metrics.security_events.value("audit_broken");
    let verify = async |from: i64| {
        let report = trail.audit.verify(&trail.ours.id, from).await.unwrap();
        trail.audit.note_fault(&report);
        (report.valid, report.bad, report.undecided, report.next_seq)
    };
    // To whoever checks, all the time of a turn is over at once.
    let in_a_hurry = async |from: i64| {
        let (clock, runs) = (trail.clock.clone(), Arc::new(AtomicBool::new(true)));
        let still = Arc::clone(&runs);
        let hurry = tokio::spawn(async move {
            while AtomicBool::load(&still, Ordering::Relaxed) {
                clock.advance(Span::seconds(10));
                tokio::task::yield_now().await;
            }
        });
        let found = verify(from).await;
        runs.store(false, Ordering::Relaxed);
        hurry.await.unwrap();
        found
    };
    assert_eq!(in_a_hurry(1).await, (false, 1, 0, Some(1_001)));
    assert_eq!(told(), 1, "nobody has resealed yet");
    trail.reseal().await;
    assert_eq!(verify(1).await, (true, 0, 0, None));
    assert_eq!(in_a_hurry(1).await, (false, 1, 1, Some(1_001)));
    assert_eq!(verify(2).await, (false, 1, 1, None));
    assert_eq!(
        told(),
        1,
        "only a check from the first record to the reseal knows"
    );
    // What lies behind it is another matter.
    trail.change(&trail.ours, 3).await.unwrap();
    trail
        .sql("UPDATE audit_event SET actor = 'nobody' WHERE seq = 1209")
        .await;
    assert_eq!(verify(2).await, (false, 2, 1, None));
    assert_eq!(told(), 2);
}
