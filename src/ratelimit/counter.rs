//! What counters are called: by whom they belong to and their name, apart from what defines them.

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};

use sha2::{Digest as _, Sha256};

use crate::id::{ConsumerId, TenantId};

/// Names one counter. A change of its limit and a new secret of its key leave it as it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CounterId([u8; 16]);

impl CounterId {
    /// `owner` is the id of a key or consumer; `kind` tells its limits, its grants' and its quota
    /// apart; `name` is unique among those. None of them holds a NUL. Computed once, when a snapshot
    /// is made.
    pub fn new(owner: &str, kind: &str, name: &str) -> Self {
        let mut hash = Sha256::new();
        for part in [owner, "\0", kind, "\0", name] {
            hash.update(part);
        }
        let [short @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = hash.finalize().0;
        Self(short)
    }

    /// A counter for each pair of two names, without hashing again: a default of a service, counted
    /// for each key.
    #[must_use]
    pub fn paired(self, other: Self) -> Self {
        let mut bytes = self.0;
        for (byte, with) in bytes.iter_mut().zip(other.0) {
            *byte ^= with;
        }
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Spreads counters over the parts of a table.
    pub(super) fn spread(self) -> usize {
        usize::from(self.0[15])
    }
}

impl fmt::Display for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CounterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CounterId({self})")
    }
}

/// Names a consumer, whose counters and whose keys' counters are decided together: in one part of
/// this node's memory, and in one hash slot of Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashTag {
    text: String,
    spread: usize,
}

impl HashTag {
    /// Made once, when a snapshot is made.
    pub fn new(tenant: &TenantId, consumer: &ConsumerId) -> Self {
        Self::from_text(format!("{tenant}:{consumer}"))
    }

    pub(super) fn from_text(text: String) -> Self {
        let hash = Sha256::digest(&text).0;
        let spread = usize::from(u16::from_le_bytes([hash[0], hash[1]]));
        Self { text, spread }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn spread(&self) -> usize {
        self.spread
    }
}

/// Counters are hashes already: their first bytes will do.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FirstBytes(u64);

pub(super) type Hashed = BuildHasherDefault<FirstBytes>;

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = self.0.rotate_left(5) ^ word;
    }

    fn write_i64(&mut self, word: i64) {
        self.write_u64(word.cast_unsigned());
    }

    /// The length of an id is always the same.
    fn write_usize(&mut self, _length: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_counters_name_counts() {
        let counter = CounterId::new("key_1", "limit", "a");
        assert_eq!(counter, CounterId::new("key_1", "limit", "a"));
        for other in [
            CounterId::new("key_2", "limit", "a"),
            CounterId::new("key_1", "quota", "a"),
            CounterId::new("key_1", "limit", "b"),
            CounterId::new("key_1", "limita", ""),
        ] {
            assert_ne!(counter, other);
        }
        assert_eq!(counter.to_string().len(), 32);
    }
}
