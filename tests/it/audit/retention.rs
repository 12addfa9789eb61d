//! What is old is cut by itself, and no clock that jumps cuts what is not.

use std::sync::atomic::Ordering;

use keystead::time::Span;

use super::*;
use crate::support::{Backend, Home, both};

both!(retention_follows_no_clock_that_jumps);

async fn retention_follows_no_clock_that_jumps(home: Home) {
    let trail = Trail::new(&home).await;
    let Clock::Shifted(moved_ms) = &trail.clock else {
        panic!("a clock of a test");
    };
    let day_ms = Span::days(1).millis();
    let years = 5 * 365 * day_ms;
    // A line each ten days of three months, up to now.
    moved_ms.store(-90 * day_ms, Ordering::SeqCst);
    trail.audit.begin_key(at(&trail.ours)).await.unwrap();
    for days_ago in (0..=8).rev().map(|ten| ten * 10) {
        moved_ms.store(-days_ago * day_ms, Ordering::SeqCst);
        trail.change(&trail.ours, 1).await.unwrap();
    }
    trail.sign().await;
    let told = || trail.metrics.security_events.value("clock_jumped");
    let due = async || trail.audit.cut_due(Span::days(45)).await.unwrap();
    let is_right = async || {
        moved_ms.store(0, Ordering::SeqCst);
        trail.lines().await.len()
    };
    let knows = home.backend == Backend::Postgres;

    moved_ms.store(years, Ordering::SeqCst);
    // Also after a start by that clock, which is a line, and when it goes on like that for days.
    for _ in 0..3 {
        let lines = trail.lines().await.len();
        if knows {
            // What is old by the clock of the database goes, and no more.
            assert_eq!(due().await, usize::from(lines == 10));
        } else {
            assert_eq!(due().await, 0);
        }
        trail.change(&trail.other, 1).await.unwrap();
        trail.clock.advance(Span::days(1));
    }
    assert_eq!(told() > 0, !knows);
    let kept = is_right().await;
    // The last forty days, and what says that the others were cut.
    assert_eq!(kept, if knows { 5 + 1 } else { 10 });
    if !knows {
        assert_eq!(due().await, 1);
        assert_eq!(is_right().await, 5 + 1);
    }
    let first = trail.records().await.remove(0);
    assert_eq!(first["seq"], 6);
    assert!(trail.report().await.valid);
    assert_eq!(due().await, 0);
}
