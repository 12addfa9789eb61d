//! What a database is opened for.

/// What is kept there. In `SQLite` each has a file of its own with its tables; in `PostgreSQL` the first two are one
/// database, which each has its own connections to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Main,
    Usage,
    Journal,
}

/// How far the threads that store uses stand behind those that answer and journal (see `nice(2)`).
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

impl Content {
    /// What a thread that works for it does as it starts. What is journaled can wait, and what is to be
    /// journaled cannot: until then a kill loses it.
    pub(super) fn give_way(self) {
        match self {
            Self::Main | Self::Journal => {}
            Self::Usage => {
                // On Linux of this thread alone; a system that refuses serves as it did before.
                #[cfg(target_os = "linux")]
                let _refused = rustix::process::nice(NICENESS);
            }
        }
    }
}
