//! The number of the last change of each entity, and until when that knowledge may be relied on.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::clock::Clock;
use crate::db::feed::Kind;

/// So many entities have a cell of their own; those that share one are loaded again when one of them
/// changes, which costs a lookup and is never wrong. 8 MiB of address space, touched where used.
const CELLS: usize = 1 << 20;

/// Whoever looks after the lease must renew it this often, or nothing cached is used any more.
const LEASE_US: u64 = 5_000_000;

/// What one node knows of the changes in the database. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Changes(Arc<Known>);

#[derive(Debug)]
struct Known {
    /// By hash of the entity: the number of its last change. Only ever raised.
    last: Box<[AtomicI64]>,
    /// An entry from before this number is not used, whatever it is of.
    floor: AtomicI64,
    /// Every change up to this number is known.
    position: AtomicI64,
    /// The highest number that anybody here has seen: the counter never stands below it.
    highest: AtomicI64,
    /// Raised when the database turns out to have another history: numbers of the one before mean
    /// nothing then.
    epoch: AtomicU32,
    /// Entries may be used until then, see [`Clock::uptime_us`].
    lease_until_us: AtomicU64,
    /// What changes of this node touch that are being committed, and how many those are.
    commits: RwLock<Vec<Arc<HashSet<Entity>>>>,
    commit_count: AtomicUsize,
}

/// A change of this node between its last statement and [`Changes::note`]: whoever uses what it touches
/// asks the database meanwhile, which knows before us whether it is committed. Ends when dropped.
#[derive(Debug)]
pub struct Committing {
    changes: Changes,
    touched: Arc<HashSet<Entity>>,
}

/// How long what is known may be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When the last look began that proved the knowledge complete.
    pub proved_us: u64,
    /// How long after it entries may be used.
    pub lasts_us: u64,
}

/// An entity by the hash of its name, worked out once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Entity(u32);

impl Entity {
    pub fn new(kind: Kind, id: &str) -> Self {
        // Without keys, so that it is the same in every part of a process; whom a collision is
        // forced upon loads an entry once more than needed.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((kind, id));
        let cell = hash % CELLS as u64;
        Self(u32::try_from(cell).unwrap_or_default())
    }

    fn cell(self) -> usize {
        self.0 as usize
    }

    /// What a change of an entity makes stale.
    fn all_of(kind: Kind, id: &str) -> [Self; 2] {
        [Self::new(kind, id), Self::any(kind)]
    }

    /// All entities of a kind: what was not found may be any that was made since.
    pub fn any(kind: Kind) -> Self {
        Self::new(kind, "")
    }
}

impl Default for Changes {
    fn default() -> Self {
        Self::new()
    }
}

impl Changes {
    /// Knows nothing: no entry may be used until the first lease.
    pub fn new() -> Self {
        Self(Arc::new(Known {
            last: std::iter::repeat_with(AtomicI64::default)
                .take(CELLS)
                .collect(),
            floor: AtomicI64::new(0),
            position: AtomicI64::new(0),
            highest: AtomicI64::new(0),
            epoch: AtomicU32::new(0),
            lease_until_us: AtomicU64::new(0),
            commits: RwLock::default(),
            commit_count: AtomicUsize::new(0),
        }))
    }

    /// Learns of a change, in whatever order and however often.
    pub fn note(&self, seq: i64, kind: Kind, id: &str) {
        self.see(seq);
        for entity in Entity::all_of(kind, id) {
            if let Some(last) = self.0.last.get(entity.cell()) {
                last.fetch_max(seq, Ordering::SeqCst);
            }
        }
    }

    /// A change of this node that touches these is about to be committed.
    pub fn commit(&self, touched: &[(Kind, String)]) -> Committing {
        let touched = touched
            .iter()
            .flat_map(|(kind, id)| Entity::all_of(*kind, id));
        let touched = Arc::new(touched.collect());
        let mut commits = self
            .0
            .commits
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        commits.push(Arc::clone(&touched));
        self.0.commit_count.store(commits.len(), Ordering::SeqCst);
        drop(commits);
        Committing {
            changes: self.clone(),
            touched,
        }
    }

    /// Whether the database may know of a change of this entity that we will know of in a moment.
    pub fn is_being_committed(&self, entity: Entity) -> bool {
        if self.0.commit_count.load(Ordering::SeqCst) == 0 {
            return false;
        }
        let commits = self
            .0
            .commits
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        commits.iter().any(|touched| touched.contains(&entity))
    }

    /// The counter stood at this number.
    pub fn see(&self, seq: i64) {
        self.0.highest.fetch_max(seq, Ordering::SeqCst);
    }

    /// The counter stands at least there, or the database has another history.
    pub fn highest(&self) -> i64 {
        self.0.highest.load(Ordering::SeqCst)
    }

    /// What is to be noted *before* something is read: the history that its numbers belong to.
    pub fn epoch(&self) -> u32 {
        self.0.epoch.load(Ordering::SeqCst)
    }

    /// The database has another history than the one that was followed: it was put back to an old
    /// copy, or lost its last changes. Whatever was read before is given up, and what was known of
    /// changes with it.
    pub fn begin_anew(&self, position: i64) {
        self.0.epoch.fetch_add(1, Ordering::SeqCst);
        for last in &self.0.last {
            last.store(0, Ordering::SeqCst);
        }
        self.0.highest.store(position, Ordering::SeqCst);
        self.forget(position);
    }

    /// Whether what was read after the counter stood at `as_of` is what its entity is now.
    pub fn is_fresh(&self, as_of: i64, entity: Entity) -> bool {
        let last = self.0.last.get(entity.cell());
        as_of >= last.map_or(i64::MAX, |last| last.load(Ordering::SeqCst))
            && as_of >= self.0.floor.load(Ordering::SeqCst)
    }

    /// Every change up to this number is known.
    pub fn position(&self) -> i64 {
        self.0.position.load(Ordering::SeqCst)
    }

    /// To be called by one task alone, with numbers that only rise.
    pub fn set_position(&self, position: i64) {
        self.0.position.store(position, Ordering::SeqCst);
    }

    /// Gives up everything that was read before the counter stood at `position`.
    pub fn forget(&self, position: i64) {
        self.0.floor.store(position, Ordering::SeqCst);
        self.set_position(position);
    }

    /// Says until when entries may be used: as long as the lease lasts, and not longer than whoever
    /// looks after it is seen to.
    pub fn renew(&self, lease: Lease) {
        let until = lease.proved_us.saturating_add(lease.lasts_us);
        let seen = Clock::uptime_us().saturating_add(LEASE_US);
        self.0
            .lease_until_us
            .store(until.min(seen), Ordering::SeqCst);
    }

    /// Whether cached entries may be used at this instant of [`Clock::uptime_us`].
    pub fn may_use(&self, now_us: u64) -> bool {
        now_us < self.0.lease_until_us.load(Ordering::Relaxed)
    }
}

impl Drop for Committing {
    fn drop(&mut self) {
        let known = &self.changes.0;
        let mut commits = known
            .commits
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        commits.retain(|touched| !Arc::ptr_eq(touched, &self.touched));
        known.commit_count.store(commits.len(), Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_fresh_until_its_entity_changes() {
        let changes = Changes::new();
        let (a, b) = (Entity::new(Kind::Key, "a"), Entity::new(Kind::Key, "b"));
        assert!(changes.is_fresh(0, a));
        changes.note(5, Kind::Key, "a");
        assert!(!changes.is_fresh(4, a) && changes.is_fresh(5, a));
        assert!(changes.is_fresh(0, b));
        // Told late or twice, it stays what it is.
        changes.note(3, Kind::Key, "a");
        assert!(!changes.is_fresh(4, a));
        assert!(changes.is_fresh(0, Entity::new(Kind::Consumer, "a")));
    }

    #[test]
    fn what_is_forgotten_is_loaded_again() {
        let changes = Changes::new();
        let a = Entity::new(Kind::Key, "a");
        changes.forget(7);
        assert_eq!(changes.position(), 7);
        assert!(!changes.is_fresh(6, a) && changes.is_fresh(7, a));
    }

    #[test]
    fn what_is_being_committed_is_asked_for_until_it_is_noted_or_given_up() {
        let changes = Changes::new();
        let (a, b) = (Entity::new(Kind::Key, "a"), Entity::new(Kind::Key, "b"));
        let one = changes.commit(&[(Kind::Key, "a".to_owned())]);
        let two = changes.commit(&[(Kind::Key, "a".to_owned()), (Kind::Key, "b".to_owned())]);
        assert!(changes.is_being_committed(a) && changes.is_being_committed(b));
        assert!(changes.is_being_committed(Entity::any(Kind::Key)));
        assert!(!changes.is_being_committed(Entity::any(Kind::Service)));
        drop(two);
        assert!(changes.is_being_committed(a) && !changes.is_being_committed(b));
        drop(one);
        assert!(!changes.is_being_committed(a));
    }

    #[test]
    fn with_another_history_numbers_begin_anew() {
        let changes = Changes::new();
        let a = Entity::new(Kind::Key, "a");
        changes.note(52, Kind::Key, "a");
        let before = changes.epoch();
        changes.begin_anew(22);
        assert_ne!(changes.epoch(), before);
        assert!(changes.is_fresh(22, a) && !changes.is_fresh(21, a));
        changes.note(23, Kind::Key, "a");
        assert!(!changes.is_fresh(22, a) && changes.is_fresh(23, a));
    }

    #[test]
    fn what_was_missing_may_be_there_after_any_change_of_its_kind() {
        let changes = Changes::new();
        let missing = Entity::any(Kind::Service);
        changes.note(5, Kind::Key, "a");
        assert!(changes.is_fresh(4, missing));
        changes.note(6, Kind::Service, "s");
        assert!(!changes.is_fresh(5, missing) && changes.is_fresh(6, missing));
    }

    #[test]
    fn nothing_is_used_before_the_first_lease_or_after_the_last() {
        let changes = Changes::new();
        let now = Clock::uptime_us();
        assert!(!changes.may_use(now));
        changes.renew(Lease {
            proved_us: now,
            lasts_us: 1_000_000,
        });
        assert!(changes.may_use(now + 999_999) && !changes.may_use(now + 1_000_000));
        // However long it lasts, somebody must be seen to look after it.
        changes.renew(Lease {
            proved_us: now,
            lasts_us: 900_000_000,
        });
        assert!(changes.may_use(now + 4_000_000) && !changes.may_use(now + 60_000_000));
        changes.renew(Lease {
            proved_us: now,
            lasts_us: 0,
        });
        assert!(!changes.may_use(now));
    }
}
