//! What is signed lies in the span of its key, and goes on, whatever the clock showed when the key began or
//! signed.

use std::path::Path;
use std::sync::atomic::Ordering;

use keystead::audit::Outlet;
use keystead::audit::signing::Statement;
use keystead::time::Span;

use super::*;
use crate::support::{Home, both};

both!(
    a_key_that_began_by_a_clock_ahead_signs_when_the_clock_is_right,
    a_key_that_began_by_a_clock_ahead_signs_what_is_cut,
    a_key_that_signed_by_a_clock_ahead_ends_behind_that,
    a_lost_key_that_signed_by_a_clock_ahead_is_adopted_with_that,
    a_key_that_lost_its_row_begins_with_what_it_signed,
    a_checkpoint_of_a_clock_ahead_keeps_no_next_one_from_being_due,
);

impl Trail {
    /// Sets the clock: so many days ahead of the right one, or behind it.
    fn set_days(&self, days: i64) {
        let Clock::Shifted(moved_ms) = &self.clock else {
            panic!("a clock of a test");
        };
        moved_ms.store(days * Span::days(1).millis(), Ordering::SeqCst);
    }

    fn jumps(&self) -> u64 {
        self.metrics.security_events.value("clock_jumped")
    }

    /// All that was signed holds, in the database and in the file.
    async fn assert_whole(&self, file: &Path, checkpoints: i64) {
        let report = self.against(file).await;
        assert!(report.valid, "{report}");
        assert_eq!(report.checkpoints, checkpoints, "{report}");
    }

    async fn assert_covered(&self, said: &[&Statement]) {
        let keys = self.keys().await;
        for said in said {
            assert_eq!(said.verify(&keys), Ok(()), "{said:?} {keys:?}");
        }
    }
}

async fn a_key_that_began_by_a_clock_ahead_signs_when_the_clock_is_right(home: Home) {
    // The clock by which the key begins is years ahead of the one that is right.
    let (trail, file) = Trail::signing(&home, 3).await;
    let began = trail.keys().await.remove(0).from;
    trail.set_days(-4000);
    let first = trail.sign().await;
    assert!(first.at < began && first.at <= trail.clock.now());
    trail.assert_covered(&[&first]).await;
    assert_eq!(trail.jumps(), 1);
    trail.assert_whole(&file, 1).await;
    // It goes on.
    trail.change(&trail.ours, 2).await.unwrap();
    trail.clock.advance(Span::hours(1));
    let due = trail.audit.checkpoint_due(Span::hours(1)).await;
    assert_eq!(due.unwrap(), 1);
    assert_eq!(trail.jumps(), 1, "it is told once");
    trail.assert_whole(&file, 2).await;
    trail.audit.begin_key(at(&trail.ours)).await.unwrap();
    let keys = trail.keys().await;
    assert_eq!((keys.len(), keys[0].until), (1, None));
}

async fn a_key_that_began_by_a_clock_ahead_signs_what_is_cut(home: Home) {
    let (trail, file) = Trail::signing(&home, 4).await;
    let signed = trail.sign().await;
    trail.set_days(-2);
    let (later, by) = (trail.clock.now().plus(Span::days(3)), at(&trail.ours));
    let cut = trail.audit.cut(&Chains::All, later, &by).await.unwrap();
    assert_eq!(cut.len(), 1);
    trail.assert_covered(&[&signed, &cut[0]]).await;
    let report = trail.against(&file).await;
    assert!(report.valid && report.checked == 1, "{report}");
}

async fn a_key_that_signed_by_a_clock_ahead_ends_behind_that(home: Home) {
    let (old, file) = Trail::signing(&home, 3).await;
    old.set_days(2);
    let ahead = old.sign().await;
    old.change(&old.ours, 1).await.unwrap();
    old.set_days(0);
    let right = old.sign().await;
    let new = old.with_master(master(8, &[7]));
    new.audit.begin_key(at(&new.ours)).await.unwrap();
    new.assert_covered(&[&ahead, &right]).await;
    let keys = new.keys().await;
    assert_eq!(keys[0].until, Some(ahead.at));
    assert!(
        keys[1].from <= new.clock.now(),
        "the next one signs at once"
    );
    // The file is told by the node that signs.
    let told = new.audit.clone().telling(Outlet {
        files: vec![file.clone()],
    });
    told.checkpoint(&new.ours).await.unwrap();
    new.with_master(master(8, &[])).assert_whole(&file, 3).await;
}

async fn a_lost_key_that_signed_by_a_clock_ahead_is_adopted_with_that(home: Home) {
    let (lost, file) = Trail::signing(&home, 3).await;
    lost.set_days(2);
    lost.sign().await;
    lost.set_days(0);
    let kid = lost.keys().await.remove(0).public.kid();
    let new = lost.with_master(master(8, &[]));
    let by = at(&new.ours);
    new.audit.reseal(&Chains::All, &by).await.unwrap();
    new.audit.begin_key(by.clone()).await.unwrap();
    new.audit.adopt_keys(by, &[kid]).await.unwrap();
    new.assert_whole(&file, 1).await;
}

async fn a_key_that_lost_its_row_begins_with_what_it_signed(home: Home) {
    let (trail, file) = Trail::signing(&home, 3).await;
    let first = trail.sign().await;
    trail.set_days(2);
    trail.change(&trail.ours, 1).await.unwrap();
    trail.sign().await;
    for lose in ["UPDATE audit_key SET \"from\" = 0", "DELETE FROM audit_key"] {
        trail.sql(lose).await;
        trail.assert_whole(&file, 2).await;
        trail.audit.begin_key(at(&trail.ours)).await.unwrap();
        assert_eq!(trail.keys().await.remove(0).from, first.at, "{lose}");
        trail.assert_whole(&file, 2).await;
    }
}

async fn a_checkpoint_of_a_clock_ahead_keeps_no_next_one_from_being_due(home: Home) {
    let (trail, file) = Trail::signing(&home, 3).await;
    let due = async || trail.audit.checkpoint_due(Span::hours(1)).await.unwrap();
    trail.set_days(10);
    assert_eq!((due().await, trail.jumps()), (1, 0));
    trail.set_days(0);
    assert_eq!(due().await, 0, "nothing grew");
    trail.change(&trail.ours, 1).await.unwrap();
    assert_eq!((due().await, trail.jumps()), (1, 1));
    trail.change(&trail.ours, 1).await.unwrap();
    assert_eq!(
        (due().await, trail.jumps()),
        (0, 1),
        "the last one is not an hour old"
    );
    // As nodes' clocks are apart, none is ahead.
    trail.clock.advance(Span::hours(1));
    assert_eq!(due().await, 1);
    trail.change(&trail.ours, 1).await.unwrap();
    let Clock::Shifted(moved_ms) = &trail.clock else {
        panic!("a clock of a test");
    };
    moved_ms.fetch_sub(Span::minutes(4).millis(), Ordering::SeqCst);
    assert_eq!((due().await, trail.jumps()), (0, 1));
    trail.assert_whole(&file, 3).await;
}
