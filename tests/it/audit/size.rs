//! A long chain is verified in bounded time, a page at a time.

use std::time::Duration;

use super::*;
use crate::support::{Home, both, setting};

both!(a_long_chain_is_verified_within_a_minute_and_in_turns);

async fn a_long_chain_is_verified_within_a_minute_and_in_turns(home: Home) {
    let thousands = if setting("KEYSTEAD_TEST_LONG").is_some() {
        200
    } else {
        5
    };
    let lines = thousands * 1000;
    let trail = Trail::new(&home).await;
    for _ in 0..thousands * 4 {
        trail.change(&trail.ours, 250).await.unwrap();
    }
    let started = trail.clock.monotonic();
    let report = trail.report().await;
    let took = trail.clock.monotonic() - started;
    assert!(report.valid && report.checked == lines, "{report}");
    assert!(took < Duration::from_mins(1), "{took:?}");

    // For a caller who waits, in turns.
    let (mut next, mut checked) = (Some(1), 0);
    while let Some(from) = next {
        let report = trail.audit.verify(&trail.ours.id, from).await.unwrap();
        assert!(report.valid, "{report}");
        checked += report.checked;
        next = report.next_seq;
    }
    assert_eq!(checked, lines);
}
