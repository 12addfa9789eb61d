//! Which database nodes speak of when they tell each other numbers, and which of its histories.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// Cheap to clone: all parts of a node share one.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    database: OnceLock<String>,
    name: AtomicU64,
}

impl History {
    /// Names the database, once: several may share a Redis.
    pub fn begin(&self, database: &str) {
        // A start that is tried again has the same database.
        let _once = self.0.database.set(database.to_owned());
    }

    /// `None` until the database was reached for the first time.
    pub fn database(&self) -> Option<&str> {
        self.0.database.get().map(String::as_str)
    }

    /// The name that the nodes have agreed on; 0 is none.
    pub fn name(&self) -> u64 {
        self.0.name.load(Ordering::SeqCst)
    }

    pub fn set(&self, name: u64) {
        self.0.name.store(name, Ordering::SeqCst);
    }
}
