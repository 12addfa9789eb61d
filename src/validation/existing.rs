//! Which fingerprints there are, as far as it takes to tell a good key that nobody remembers from a guess.
//!
//! A Bloom filter: it takes every fingerprint that it was told of, and one in thousands of others. A
//! fingerprint is an HMAC, so nobody can look for a text whose fingerprint is taken. It decides who looks
//! first, never what a key is. Nothing is read, and no room taken, before somebody was refused a look-up.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::id::SecretId;
use crate::keys::fingerprint::Fingerprint;

/// 4 MiB: of a million fingerprints it takes one in 6,000 others, of four million one in 50.
const WORDS: usize = 1 << 19;

/// More are not learned.
const LEARNED_MAX: usize = 4_000_000;

/// Places of one fingerprint, each named by four of its bytes.
const PLACES: usize = 4;

/// While look-ups are refused, what is new is learned so often.
const EVERY_US: u64 = 2_000_000;

/// Each time begins where this many before ended, a minute ago or more: ids go by the clocks of several
/// nodes, and what takes long is committed behind others.
const ENDS_KEPT: usize = 30;

#[derive(Debug, Default)]
pub(super) struct Existing {
    words: OnceLock<Box<[AtomicU64]>>,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    is_under_way: bool,
    /// When it may begin again.
    due_us: u64,
    /// Up to where it came, the times before: the oldest first.
    ends: VecDeque<SecretId>,
    /// The last time to the end of all.
    is_whole: bool,
    learned: usize,
}

/// The right to tell of more. Whoever drops it has given up.
#[derive(Debug)]
pub(super) struct Lesson {
    existing: Arc<Existing>,
    /// The last secret told of.
    after: Option<SecretId>,
    is_whole: bool,
}

impl Existing {
    /// Whether anything has been learned: before that it takes nothing.
    pub(super) fn is_there(&self) -> bool {
        self.words.get().is_some()
    }

    /// Whether one of these is there, as far as anybody can tell.
    pub(super) fn takes_any(&self, prints: &[Fingerprint]) -> bool {
        let Some(words) = self.words.get() else {
            return false;
        };
        let is_set = |(word, bit): (usize, u64)| {
            words
                .get(word)
                .is_some_and(|word| word.load(Ordering::Relaxed) & bit != 0)
        };
        prints.iter().any(|print| places(print).all(is_set))
    }

    /// `None` while another learns, or has just now. `now_us` is monotonic.
    pub(super) fn learn(self: &Arc<Self>, now_us: u64) -> Option<Lesson> {
        let mut progress = self.progress();
        if progress.is_under_way || now_us < progress.due_us || progress.learned >= LEARNED_MAX {
            return None;
        }
        progress.is_under_way = true;
        progress.due_us = now_us.saturating_add(EVERY_US);
        Some(Lesson {
            existing: Arc::clone(self),
            after: progress.ends.front().cloned(),
            is_whole: false,
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lesson {
    /// Secrets after this one are still to be told of.
    pub(super) fn after(&self) -> Option<&SecretId> {
        self.after.as_ref()
    }

    /// Takes these, in the order of their ids. False when there is no more room.
    pub(super) fn tell(&mut self, secrets: Vec<(SecretId, Fingerprint)>) -> bool {
        let words = self.existing.words.get_or_init(|| {
            std::iter::repeat_with(AtomicU64::default)
                .take(WORDS)
                .collect()
        });
        let mut new = 0;
        for (id, print) in secrets {
            let mut is_new = false;
            for (word, bit) in places(&print) {
                if let Some(word) = words.get(word) {
                    is_new |= word.fetch_or(bit, Ordering::Relaxed) & bit == 0;
                }
            }
            new += usize::from(is_new);
            self.after = Some(id);
        }
        let mut progress = self.existing.progress();
        progress.learned += new;
        progress.learned < LEARNED_MAX
    }

    /// There are no more. Answers how many it was told of in all.
    pub(super) fn end(mut self) -> usize {
        self.is_whole = true;
        let progress = self.existing.progress();
        progress.learned
    }
}

impl Drop for Lesson {
    fn drop(&mut self) {
        let mut progress = self.existing.progress();
        progress.is_under_way = false;
        if !progress.is_whole {
            // It goes on from where it came to, and not from before that.
            progress.ends.clear();
        }
        progress.is_whole = self.is_whole;
        if let Some(after) = self.after.take() {
            if progress.ends.len() >= ENDS_KEPT {
                progress.ends.pop_front();
            }
            progress.ends.push_back(after);
        }
    }
}

/// Which bits of which words stand for a fingerprint. Its bytes are as good as random.
fn places(print: &Fingerprint) -> impl Iterator<Item = (usize, u64)> + '_ {
    let (chunks, _rest) = print.as_bytes().as_chunks::<4>();
    chunks.iter().take(PLACES).map(|chunk| {
        let at = u32::from_le_bytes(*chunk) as usize;
        ((at >> 6) % WORDS, 1 << (at & 63))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::Entropy;
    use crate::time::Timestamp;

    const SECOND: u64 = 1_000_000;

    fn secrets(entropy: &Entropy, from: i64, count: i64) -> Vec<(SecretId, Fingerprint)> {
        (from..from + count)
            .map(|at| {
                let id = SecretId::made_of(Timestamp::from_millis(at), &entropy.bytes());
                (id, Fingerprint::from_bytes(entropy.bytes()))
            })
            .collect()
    }

    #[test]
    fn what_it_was_told_of_it_takes_and_of_others_next_to_nothing() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let good = secrets(&entropy, 1, 100_000);
        let is_there = |print: &Fingerprint| existing.takes_any(&[*print]);
        assert!(!existing.is_there() && good.iter().all(|(_, print)| !is_there(print)));
        let mut lesson = existing.learn(SECOND).unwrap();
        assert!(lesson.tell(good.clone()));
        assert_eq!(lesson.end(), good.len());
        assert!(existing.is_there() && good.iter().all(|(_, print)| is_there(print)));
        let others = secrets(&entropy, 1, 100_000);
        let taken = others.iter().filter(|(_, print)| is_there(print)).count();
        assert!(taken < 10, "{taken}");
        let both = [others[0].1, good[0].1];
        assert!(existing.takes_any(&both), "under whichever pepper");
    }

    #[test]
    fn one_learns_at_a_time_now_and_then_from_where_it_was_a_minute_ago() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let mut all = secrets(&entropy, 1, 100).into_iter();
        let mut ends = Vec::new();
        for round in 0..40 {
            let now_us = 1 + round * EVERY_US;
            let mut lesson = existing.learn(now_us).unwrap();
            assert!(existing.learn(now_us + EVERY_US).is_none(), "under way");
            let from = ends.len().saturating_sub(ENDS_KEPT);
            assert_eq!(lesson.after(), ends.get(from), "{round}");
            let secret = all.next().unwrap();
            ends.push(secret.0.clone());
            assert!(lesson.tell(vec![secret]));
            lesson.end();
            assert!(existing.learn(now_us + EVERY_US - 1).is_none(), "just now");
        }
    }

    #[test]
    fn who_gave_up_half_way_goes_on_from_there_once() {
        let (existing, entropy) = (Arc::new(Existing::default()), Entropy::seeded(1));
        let all = secrets(&entropy, 1, 3);
        for (round, (told, expected)) in (0..).zip(all.iter().zip([None, Some(0), Some(1)])) {
            let mut lesson = existing.learn(1 + round * EVERY_US).unwrap();
            assert_eq!(lesson.after(), expected.map(|at: usize| &all[at].0));
            lesson.tell(vec![told.clone()]);
            if round > 0 {
                lesson.end();
            }
        }
    }
}
