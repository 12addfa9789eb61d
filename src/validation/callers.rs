//! The callers that a worker has met: services ask with the same few keys again and again, and who was
//! met before is found without a lock. Judged at each use like every other entry.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::records::Records;
use super::snapshot::Subject;
use crate::keys::fingerprint::Fingerprint;

/// So many are remembered by each worker; those whose fingerprints begin alike take turns.
const MET_MAX: usize = 64;

/// Tells the callers of this node from those of others in the same process, as in tests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Callers(u64);

struct Met {
    of: u64,
    print: Fingerprint,
    subject: Rc<Subject>,
}

thread_local! {
    static MET: RefCell<Vec<Option<Met>>> = const { RefCell::new(Vec::new()) };
}

impl Callers {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Who was met with this fingerprint, if all of it may still be used at this instant.
    pub(super) fn find(
        self,
        print: &Fingerprint,
        records: &Records,
        now_us: u64,
    ) -> Option<Rc<Subject>> {
        MET.with_borrow(|met| {
            let met = met.get(slot(print))?.as_ref()?;
            let is_it = met.of == self.0
                && met.print == *print
                && records.may_use_now(&met.subject, now_us);
            is_it.then(|| Rc::clone(&met.subject))
        })
    }

    pub(super) fn keep(self, print: Fingerprint, subject: &Rc<Subject>) {
        let one = Met {
            of: self.0,
            print,
            subject: Rc::clone(subject),
        };
        MET.with_borrow_mut(|met| {
            met.resize_with(MET_MAX, || None);
            if let Some(place) = met.get_mut(slot(&print)) {
                *place = Some(one);
            }
        });
    }
}

fn slot(print: &Fingerprint) -> usize {
    let [first, ..] = *print.as_bytes();
    usize::from(first) % MET_MAX
}
