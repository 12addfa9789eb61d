//! What is put in Redis is sealed: bound to its name and made by nobody without the master key.
//!
//! Redis is trusted with nothing but being there. Who can write to it can take things away, and can put
//! back what once was there; both are met where sealed things are used.

use std::sync::Arc;

use crate::master::{DerivedKey, MasterKeys};

const PURPOSE: &str = "keystead redis 1";
const MAC_BYTES: usize = 32;

/// Seals under the first master key and opens under any that is listed. Cheap to clone.
#[derive(Clone)]
pub struct Seal(Arc<[DerivedKey]>);

impl Seal {
    pub fn new(master: &MasterKeys) -> Self {
        Self(master.iter().map(|key| key.derive(PURPOSE)).collect())
    }

    /// The value behind its MAC (HMAC-SHA-256 over name and value).
    pub fn close(&self, name: &str, value: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(MAC_BYTES + value.len());
        if let Some(key) = self.0.first() {
            sealed.extend_from_slice(&key.mac(&[name.as_bytes(), value]));
        }
        sealed.extend_from_slice(value);
        sealed
    }

    /// The value, if it was sealed under this name.
    pub fn open<'a>(&self, name: &str, sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (mac, value) = sealed.split_at_checked(MAC_BYTES)?;
        let parts = [name.as_bytes(), value];
        self.0
            .iter()
            .any(|key| key.verify(&parts, mac))
            .then_some(value)
    }
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::MasterKey;

    fn master(bytes: &[u8]) -> MasterKeys {
        let mut keys = bytes.iter().map(|byte| MasterKey::new([*byte; 32]));
        MasterKeys {
            first: keys.next().unwrap(),
            others: keys.collect(),
        }
    }

    #[test]
    fn what_was_altered_moved_or_made_by_another_does_not_open() {
        let seal = Seal::new(&master(&[7]));
        let sealed = seal.close("k:a", b"a key");
        assert_eq!(seal.open("k:a", &sealed), Some(&b"a key"[..]));
        assert_eq!(seal.open("k:b", &sealed), None);
        assert_eq!(Seal::new(&master(&[8])).open("k:a", &sealed), None);
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert_eq!(seal.open("k:a", &altered), None, "{at}");
            assert_eq!(seal.open("k:a", &sealed[..at]), None, "{at}");
        }
    }

    #[test]
    fn nodes_that_change_their_master_key_one_after_the_other_open_each_others() {
        let (old, both) = (Seal::new(&master(&[7])), Seal::new(&master(&[8, 7])));
        assert!(both.open("k:a", &old.close("k:a", b"a key")).is_some());
        assert!(old.open("k:a", &both.close("k:a", b"a key")).is_none());
    }
}
