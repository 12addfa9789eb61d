//! Long work that leaves the core to whoever waits for it.
//!
//! Uses are stored beside the validations, on the same cores. A thread that is about to answer one waits
//! until the thread that has its core rests, or has had its share of a millisecond or more, however low
//! the priority of that one. So work that takes longer rests after every few items.

/// Counts the items of some work.
#[derive(Debug)]
pub(super) struct Pauses {
    every: u32,
    done: u32,
}

impl Pauses {
    /// Rests after every so many items: as many as take some ten microseconds.
    pub(super) fn each(every: u32) -> Self {
        Self { every, done: 0 }
    }

    /// An item was done. To rest costs less than a microsecond when nobody waits.
    pub(super) fn next(&mut self) {
        self.done += 1;
        if self.done >= self.every {
            self.done = 0;
            std::thread::yield_now();
        }
    }
}

/// The items, with a rest after every so many.
pub(super) fn with_pauses<T>(
    every: u32,
    items: impl IntoIterator<Item = T>,
) -> impl Iterator<Item = T> {
    let mut pauses = Pauses::each(every);
    items.into_iter().inspect(move |_| pauses.next())
}
