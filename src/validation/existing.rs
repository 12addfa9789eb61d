//! Which fingerprints there are, as far as it takes to tell a good key that nobody remembers from a guess.
//!
//! A Bloom filter: it takes every fingerprint that it was told of, and one in thousands of others. A
//! fingerprint is an HMAC, so nobody can look for a text whose fingerprint is taken. It decides who looks
//! first, never what a key is. Nothing is read, and no room taken, before somebody was refused a look-up.
//!
//! While look-ups are refused it learns what is new every two seconds, and now and then all of it anew: then
//! it forgets what has ended, and has what was put under another pepper meanwhile.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use crate::id::SecretId;
use crate::keys::fingerprint::Fingerprint;
use crate::time::{Span, Timestamp};

/// 4 MiB: of a million fingerprints it takes one in 6,000 others, of four million one in 50.
const WORDS: usize = 1 << 19;

/// More are not learned.
const LEARNED_MAX: usize = 4_000_000;

/// Places of one fingerprint, each named by four of its bytes.
const PLACES: usize = 4;

/// What is new is learned so often.
const EVERY_US: u64 = 2_000_000;

/// All of it is learned anew so often, and again after so long if that failed.
const WHOLE_EVERY_US: u64 = 600_000_000;
const WHOLE_AGAIN_US: u64 = 10_000_000;

/// What is new begins so long before it was learned last: ids go by the clocks of several nodes, and what
/// takes long is committed behind others.
const OVERLAP: Span = Span::minutes(1);

#[derive(Debug, Default)]
pub(super) struct Existing {
    filter: ArcSwapOption<Filter>,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
struct Filter {
    words: Box<[AtomicU64]>,
    learned: AtomicUsize,
}

#[derive(Debug, Default)]
struct Progress {
    is_under_way: bool,
    /// When it may begin again, and when it is to begin with all of it.
    due_us: u64,
    whole_due_us: u64,
    /// When that began which was learned last.
    learned_at: Option<Timestamp>,
}

/// The right to tell of what is there, the newest first. Whoever drops it has given up.
#[derive(Debug)]
pub(super) struct Lesson {
    existing: Arc<Existing>,
    filter: Arc<Filter>,
    began_us: u64,
    began_at: Timestamp,
    /// Only what is newer is to be told of; `None` for all.
    behind: Option<SecretId>,
    /// All that is as new as this was told of.
    before: Option<SecretId>,
}

impl Existing {
    /// Whether anything has been learned: before that it takes nothing.
    pub(super) fn is_there(&self) -> bool {
        self.filter.load().is_some()
    }

    /// Whether one of these is there, as far as anybody can tell.
    pub(super) fn takes_any(&self, prints: &[Fingerprint]) -> bool {
        let filter = self.filter.load();
        filter
            .as_ref()
            .is_some_and(|filter| prints.iter().any(|print| filter.takes(print)))
    }

    /// `None` while another learns, or has just now. `now_us` is monotonic, `now` what ids go by.
    pub(super) fn learn(self: &Arc<Self>, now_us: u64, now: Timestamp) -> Option<Lesson> {
        let mut progress = self.progress();
        if progress.is_under_way || now_us < progress.due_us {
            return None;
        }
        let is_whole = now_us >= progress.whole_due_us;
        let known = self.filter.load_full().filter(|_| !is_whole);
        let after = if known.is_some() {
            EVERY_US
        } else {
            WHOLE_AGAIN_US
        };
        progress.is_under_way = true;
        progress.due_us = now_us.saturating_add(after);
        let learned_at = known.as_ref().and(progress.learned_at);
        Some(Lesson {
            existing: Arc::clone(self),
            began_us: now_us,
            began_at: now,
            behind: learned_at.map(|at| SecretId::made_of(at.minus(OVERLAP), &[0; 10])),
            before: None,
            filter: known.unwrap_or_default(),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lesson {
    /// Secrets are to be told of that are newer than the first and older than the second.
    pub(super) fn between(&self) -> (Option<SecretId>, Option<SecretId>) {
        (self.behind.clone(), self.before.clone())
    }

    /// Takes these, the newest first. False when there is no more room.
    pub(super) fn tell(&mut self, secrets: &[(SecretId, Fingerprint)]) -> bool {
        let new = secrets.iter().filter(|(_, print)| self.filter.add(print));
        let new = new.count();
        if let Some((id, _)) = secrets.last() {
            self.before = Some(id.clone());
        }
        let learned = &self.filter.learned;
        learned.fetch_add(new, Ordering::Relaxed) + new < LEARNED_MAX
    }

    /// There are no more. Answers how many there are in all.
    pub(super) fn end(self) -> usize {
        let mut progress = self.existing.progress();
        progress.learned_at = Some(self.began_at);
        if self.behind.is_none() {
            progress.due_us = self.began_us.saturating_add(EVERY_US);
            progress.whole_due_us = self.began_us.saturating_add(WHOLE_EVERY_US);
            let filter = Arc::clone(&self.filter);
            self.existing.filter.store(Some(filter));
        }
        drop(progress);
        self.filter.learned.load(Ordering::Relaxed)
    }
}

impl Drop for Lesson {
    fn drop(&mut self) {
        self.existing.progress().is_under_way = false;
    }
}

impl Default for Filter {
    fn default() -> Self {
        let words = std::iter::repeat_with(AtomicU64::default).take(WORDS);
        Self {
            words: words.collect(),
            learned: AtomicUsize::new(0),
        }
    }
}

impl Filter {
    fn takes(&self, print: &Fingerprint) -> bool {
        self.places(print)
            .all(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
    }

    /// Whether it would not have taken it before.
    fn add(&self, print: &Fingerprint) -> bool {
        self.places(print).fold(false, |is_new, (word, bit)| {
            word.fetch_or(bit, Ordering::Relaxed) & bit == 0 || is_new
        })
    }

    /// Which bits of which words stand for a fingerprint. Its bytes are as good as random.
    fn places(&self, print: &Fingerprint) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let (chunks, _rest) = print.as_bytes().as_chunks::<4>();
        chunks.iter().take(PLACES).filter_map(|chunk| {
            let at = u32::from_le_bytes(*chunk) as usize;
            let word = self.words.get((at >> 6) % WORDS)?;
            Some((word, 1 << (at & 63)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;

    const SECOND: u64 = 1_000_000;

    fn now() -> Timestamp {
        Timestamp::from_millis(1_900_000_000_000)
    }

    fn secrets(entropy: &Entropy, count: usize) -> Vec<(SecretId, Fingerprint)> {
        let one = || {
            (
                SecretId::made_of(now(), &entropy.bytes()),
                Fingerprint::from_bytes(entropy.bytes()),
            )
        };
        std::iter::repeat_with(one).take(count).collect()
    }

    fn taken(existing: &Existing, secrets: &[(SecretId, Fingerprint)]) -> usize {
        let is_taken = |(_, print): &&(_, Fingerprint)| existing.takes_any(&[*print]);
        secrets.iter().filter(is_taken).count()
    }

    #[test]
    fn what_it_was_told_of_it_takes_and_of_others_next_to_nothing() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let good = secrets(&entropy, 100_000);
        let mut lesson = existing.learn(SECOND, now()).unwrap();
        assert_eq!(lesson.between(), (None, None));
        assert!(lesson.tell(&good));
        assert_eq!(lesson.between(), (None, Some(good[99_999].0.clone())));
        assert!(!existing.is_there() && taken(&existing, &good) == 0);
        assert_eq!(lesson.end(), good.len());
        assert!(existing.is_there());
        assert_eq!(taken(&existing, &good), good.len());
        let others = secrets(&entropy, 100_000);
        let mistaken = taken(&existing, &others);
        assert!(mistaken < 10, "{mistaken}");
        let both = [others[0].1, good[0].1];
        assert!(existing.takes_any(&both), "under whichever pepper");
    }

    #[test]
    fn what_is_new_is_learned_now_and_then_from_a_minute_before_the_last_time() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let (first, second) = (secrets(&entropy, 10), secrets(&entropy, 10));
        let mut lesson = existing.learn(SECOND, now()).unwrap();
        assert!(
            existing.learn(SECOND + EVERY_US, now()).is_none(),
            "under way"
        );
        lesson.tell(&first);
        lesson.end();
        let just_now = SECOND + EVERY_US - 1;
        assert!(existing.learn(just_now, now()).is_none());
        let later = now().plus(Span::hours(1));
        let mut lesson = existing.learn(SECOND + EVERY_US, later).unwrap();
        // Whatever the newest id says: it may be of a clock that is ahead.
        let behind = SecretId::made_of(now().minus(OVERLAP), &[0; 10]);
        assert_eq!(lesson.between(), (Some(behind), None));
        lesson.tell(&second);
        assert_eq!(lesson.end(), 20);
        assert_eq!(taken(&existing, &first) + taken(&existing, &second), 20);
        let lesson = existing.learn(SECOND + 2 * EVERY_US, later).unwrap();
        let behind = SecretId::made_of(later.minus(OVERLAP), &[0; 10]);
        assert_eq!(lesson.between(), (Some(behind), None));
    }

    #[test]
    fn who_gives_up_has_changed_nothing_and_all_is_learned_anew_in_the_end() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let (first, second) = (secrets(&entropy, 10), secrets(&entropy, 10));
        let mut given_up = existing.learn(SECOND, now()).unwrap();
        given_up.tell(&first);
        drop(given_up);
        assert!(!existing.is_there());
        assert!(
            existing.learn(SECOND + EVERY_US, now()).is_none(),
            "so soon"
        );
        let again_us = SECOND + WHOLE_AGAIN_US;
        let mut lesson = existing.learn(again_us, now()).unwrap();
        assert_eq!(lesson.between(), (None, None));
        lesson.tell(&first);
        lesson.end();
        // The second ones took the place of the first.
        let mut lesson = existing.learn(again_us + WHOLE_EVERY_US, now()).unwrap();
        assert_eq!(lesson.between(), (None, None));
        lesson.tell(&second);
        assert_eq!(
            taken(&existing, &first),
            10,
            "until then it takes what it took"
        );
        assert_eq!(lesson.end(), 10);
        assert_eq!(taken(&existing, &second), 10);
        assert_eq!(taken(&existing, &first), 0);
    }
}
