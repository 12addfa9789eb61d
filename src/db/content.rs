//! What a database is opened for.

/// What is kept there. In `SQLite` each has a file of its own with its tables; in `PostgreSQL` the first two are one
/// database, which each has its own connections to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Main,
    Usage,
    Journal,
}

impl Content {
    /// Linux shows 15 characters of it.
    pub(super) const fn thread_name(self) -> &'static str {
        match self {
            Self::Main => "database",
            Self::Usage => "usage ledger",
            Self::Journal => "usage journal",
        }
    }

    /// What a thread that works for it does as it starts: it gives way to those that answer. What is remembered
    /// does not wait while thousands of other keys are looked up, nor while uses are written down.
    pub(super) fn give_way(self) {
        #[cfg(target_os = "linux")]
        {
            use rustix::process::{getpid, getpriority_process, setpriority_process};
            // On Linux of this thread alone. Counted from the first thread of the process: this one began with what
            // the thread had that made it, which may have given way itself.
            if let Ok(first) = getpriority_process(Some(getpid())) {
                // A system that refuses serves as it did before.
                let _refused = setpriority_process(None, first + self.niceness());
            }
        }
    }

    /// See `nice(2)`. On a core that does nothing but answer, 5 still is a quarter of it and 10 a tenth: a
    /// hundred milliseconds a second, of which journaling 20,000 uses takes ten. So what a kill loses is a little
    /// more than what has not been written down yet: beside four threads that do nothing but answer a flush takes
    /// some 60 ms.
    #[cfg(target_os = "linux")]
    const fn niceness(self) -> i32 {
        match self {
            Self::Main => 5,
            Self::Usage | Self::Journal => 10,
        }
    }
}
