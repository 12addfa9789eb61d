//! A bounded map of entries, each with what it takes to judge it at its use.

use std::hash::Hash;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quick_cache::Equivalent;
use quick_cache::sync::Cache;

use super::changes::{Changes, Entity};
use crate::clock::Clock;

/// How long an entry that could not be read again is used before the next try.
const RETRY_US: u64 = 1_000_000;

/// What was read, and after which number of the counter.
#[derive(Debug)]
pub struct Entry<T> {
    pub value: T,
    /// The counter as it stood before the value was read.
    pub as_of: i64,
    /// The history that the counter belongs to, noted before the value was read.
    epoch: u32,
    /// Whose change makes it stale.
    pub entity: Entity,
    /// When it is due to be read again, see [`Clock::uptime_us`].
    due_us: AtomicU64,
}

impl<T> Deref for Entry<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// What there is of an entity, judged at the use.
#[derive(Debug)]
pub enum Found<T> {
    Fresh(Arc<Entry<T>>),
    /// Still true as far as is known here, and to be read again: it is due, or a change of it is being
    /// committed.
    Due(Arc<Entry<T>>),
    Nothing,
}

impl<T> Entry<T> {
    /// `refresh_us` is how long until it is due; entries made together are not due together.
    pub fn new(value: T, (epoch, as_of): (u32, i64), entity: Entity, refresh_us: u64) -> Self {
        let now = Clock::uptime_us();
        // ± 10 %, spread by the clock's last digits.
        let spread = refresh_us / 5;
        let jitter = now.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let due = (refresh_us - spread / 2).saturating_add(jitter % spread.max(1));
        Self {
            value,
            as_of,
            epoch,
            entity,
            due_us: AtomicU64::new(now.saturating_add(due)),
        }
    }

    /// The same, of something that was read so long ago.
    #[must_use]
    pub fn aged(self, age_us: u64) -> Self {
        let due = self.due_us.load(Ordering::Relaxed);
        self.due_us
            .store(due.saturating_sub(age_us), Ordering::Relaxed);
        self
    }

    /// Whether it is to be read again.
    pub fn is_due(&self, now_us: u64) -> bool {
        now_us >= self.due_us.load(Ordering::Relaxed)
    }

    /// It could not be read again: the next try is due a second later.
    pub fn postpone(&self) {
        let later = Clock::uptime_us().saturating_add(RETRY_US);
        self.due_us.store(later, Ordering::Relaxed);
    }

    pub fn is_fresh(&self, changes: &Changes) -> bool {
        self.epoch == changes.epoch() && changes.is_fresh(self.as_of, self.entity)
    }

    /// Whether it may be used at this instant without being read again: it is not due, and no change of
    /// it is known or being committed.
    pub fn may_use(&self, changes: &Changes, now_us: u64) -> bool {
        self.is_fresh(changes) && !self.is_due(now_us) && !changes.is_being_committed(self.entity)
    }

    /// Lets `changes` know what the counter was when this was read.
    pub fn tell(&self, changes: &Changes) {
        if self.epoch == changes.epoch() {
            changes.see(self.as_of);
        }
    }
}

/// Entries by key; the least used go when there are too many.
#[derive(Debug)]
pub struct Entries<K, T> {
    map: Cache<K, Arc<Entry<T>>>,
}

impl<K: Hash + Eq + Clone, T> Entries<K, T> {
    pub fn new(entries_max: usize) -> Self {
        Self {
            map: Cache::new(entries_max),
        }
    }

    /// What may be used at this instant: nothing that a known change made stale.
    pub fn find<Q>(&self, key: &Q, changes: &Changes, now_us: u64) -> Found<T>
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        match self.map.get(key) {
            Some(entry) if entry.may_use(changes, now_us) => Found::Fresh(entry),
            Some(entry) if entry.is_fresh(changes) => Found::Due(entry),
            Some(_) | None => Found::Nothing,
        }
    }

    /// Keeps an entry, unless a later reading is there already.
    pub fn keep(&self, key: K, entry: Arc<Entry<T>>) {
        if let Some(there) = self.map.peek(&key)
            && (there.epoch, there.as_of) > (entry.epoch, entry.as_of)
        {
            return;
        }
        self.map.insert(key, entry);
    }

    /// Whether there is an entry, in whatever state.
    pub fn has<Q>(&self, key: &Q) -> bool
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.map.contains_key(key)
    }

    /// Whatever it was, it is no more.
    pub fn remove<Q>(&self, key: &Q)
    where
        Q: Hash + Equivalent<K> + ?Sized,
    {
        self.map.remove(key);
    }

    pub fn len(&self) -> usize {
        self.map.len()
    }

    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::feed::Kind;

    fn entry(value: u8, as_of: i64) -> Arc<Entry<u8>> {
        let entity = Entity::new(Kind::Key, "a");
        Arc::new(Entry::new(value, (0, as_of), entity, 1_000_000))
    }

    fn value(found: Found<u8>) -> Option<u8> {
        match found {
            Found::Fresh(entry) | Found::Due(entry) => Some(entry.value),
            Found::Nothing => None,
        }
    }

    #[test]
    fn an_entry_set_after_the_change_that_ended_it_is_not_used() {
        let (changes, entries) = (Changes::new(), Entries::<u8, u8>::new(10));
        let find = || value(entries.find(&1, &changes, Clock::uptime_us()));
        // Read before the change, put there after it.
        changes.note(4, Kind::Key, "a");
        entries.keep(1, entry(7, 3));
        assert_eq!(find(), None);
        entries.keep(1, entry(8, 4));
        assert_eq!(find(), Some(8));
        // A slow writer does not replace what was read later.
        entries.keep(1, entry(7, 3));
        assert_eq!(find(), Some(8));
        changes.note(5, Kind::Key, "a");
        assert_eq!(find(), None);
    }

    #[test]
    fn an_entry_of_another_history_is_not_used_whatever_its_number() {
        let (changes, entries) = (Changes::new(), Entries::<u8, u8>::new(10));
        let find = || value(entries.find(&1, &changes, Clock::uptime_us()));
        entries.keep(1, entry(7, 52));
        assert_eq!(find(), Some(7));
        changes.begin_anew(22);
        assert_eq!(find(), None);
        let entity = Entity::new(Kind::Key, "a");
        entries.keep(1, Arc::new(Entry::new(8, (1, 23), entity, 1_000_000)));
        assert_eq!(find(), Some(8));
        // One that was read from the history before does not take its place.
        entries.keep(1, entry(7, 52));
        assert_eq!(find(), Some(8));
    }

    #[test]
    fn an_entry_is_due_within_a_tenth_of_its_time() {
        let (changes, entries) = (Changes::new(), Entries::<u8, u8>::new(10));
        entries.keep(1, entry(7, 0));
        let now = Clock::uptime_us();
        assert!(matches!(
            entries.find(&1, &changes, now + 800_000),
            Found::Fresh(_)
        ));
        assert!(matches!(
            entries.find(&1, &changes, now + 1_110_000),
            Found::Due(_)
        ));
    }

    #[test]
    fn an_entry_whose_change_is_being_committed_is_read_again() {
        let (changes, entries) = (Changes::new(), Entries::<u8, u8>::new(10));
        entries.keep(1, entry(7, 3));
        let find = || entries.find(&1, &changes, Clock::uptime_us());
        let commit = changes.commit(&[(Kind::Key, "a".to_owned())]);
        assert!(matches!(find(), Found::Due(_)));
        drop(commit);
        assert!(matches!(find(), Found::Fresh(_)));
    }

    #[test]
    fn there_are_never_more_than_were_allowed() {
        let entries = Entries::<u32, u8>::new(100);
        for key in 0..10_000 {
            entries.keep(key, entry(1, 0));
        }
        assert!(entries.len() <= 110, "{}", entries.len());
    }
}
