//! How often a look-up may find nothing before none is made: for all together, for each address of a
//! client, and for each lookup id, whether it exists or not.
//!
//! Only what is not remembered is held to it. What is found is given back, so good keys find room.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::keys::secret::LookupId;
use crate::ratelimit::budget::{Allowance, Budget};

/// So many look-ups a second may find nothing, on one node.
const ALL: u32 = 1_000;

/// So many at once, and again each second, for one address: a network may stand behind it.
const ADDRESS_AT_ONCE: u32 = 500;
const ADDRESS_PER_SECOND: u32 = 50;

/// The same for one lookup id: a client with an old secret tries again, a guesser does not get far.
const LOOKUP_ID_AT_ONCE: u32 = 100;
const LOOKUP_ID_PER_SECOND: u32 = 10;

/// So many of each have a budget of their own.
const KEPT: usize = 65_536;

#[derive(Debug)]
pub(super) struct Failures {
    all: Allowance,
    addresses: Budget,
    lookup_ids: Budget,
    hasher: RandomState,
}

/// Whose one look-up is.
#[derive(Clone, Copy, Debug)]
struct Whose {
    address: Option<u64>,
    lookup_id: Option<u64>,
}

/// One look-up that may find nothing. It goes with the look-up and not with who waits for that, so that to
/// leave neither costs anybody anything nor makes a guess free.
#[derive(Debug)]
pub(super) struct Attempt {
    failures: Arc<Failures>,
    whose: Whose,
    found_nothing: AtomicBool,
}

impl Attempt {
    /// Without this it is given back: it found something, or could not look.
    pub(super) fn found_nothing(&self) {
        self.found_nothing.store(true, Ordering::Relaxed);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !*self.found_nothing.get_mut() {
            self.failures.give_back(self.whose);
        }
    }
}

impl Failures {
    pub(super) fn new() -> Self {
        Self {
            all: Allowance::new(ALL, ALL),
            addresses: Budget::new(ADDRESS_AT_ONCE, ADDRESS_PER_SECOND, KEPT),
            lookup_ids: Budget::new(LOOKUP_ID_AT_ONCE, LOOKUP_ID_PER_SECOND, KEPT),
            hasher: RandomState::new(),
        }
    }

    fn whose(&self, client: Option<IpAddr>, lookup_id: Option<&LookupId>) -> Whose {
        Whose {
            address: client.map(|ip| self.hasher.hash_one(network(ip))),
            lookup_id: lookup_id.map(|id| self.hasher.hash_one(id.as_str())),
        }
    }

    /// Whether address and lookup id have one left, each of their own; nothing is taken. `now_us` is
    /// monotonic.
    pub(super) fn has(
        &self,
        client: Option<IpAddr>,
        lookup_id: Option<&LookupId>,
        now_us: u64,
    ) -> bool {
        let whose = self.whose(client, lookup_id);
        let one_left =
            |budget: &Budget, key: Option<u64>| key.is_none_or(|key| budget.has(key, now_us));
        one_left(&self.addresses, whose.address) && one_left(&self.lookup_ids, whose.lookup_id)
    }

    /// `None` when too many found nothing. `now_us` is monotonic.
    pub(super) fn take(
        self: &Arc<Self>,
        client: Option<IpAddr>,
        lookup_id: Option<&LookupId>,
        now_us: u64,
    ) -> Option<Attempt> {
        let whose = self.whose(client, lookup_id);
        let none_left =
            |budget: &Budget, key: Option<u64>| key.is_some_and(|key| !budget.take(key, now_us));
        if none_left(&self.addresses, whose.address) {
            return None;
        }
        if none_left(&self.lookup_ids, whose.lookup_id) {
            self.give_back_to_each(Whose {
                lookup_id: None,
                ..whose
            });
            return None;
        }
        if !self.all.take(now_us) {
            self.give_back_to_each(whose);
            return None;
        }
        Some(Attempt {
            failures: Arc::clone(self),
            whose,
            found_nothing: AtomicBool::new(false),
        })
    }

    fn give_back(&self, whose: Whose) {
        self.all.give_back();
        self.give_back_to_each(whose);
    }

    fn give_back_to_each(&self, whose: Whose) {
        if let Some(address) = whose.address {
            self.addresses.give_back(address);
        }
        if let Some(lookup_id) = whose.lookup_id {
            self.lookup_ids.give_back(lookup_id);
        }
    }
}

/// Who has an IPv6 address has a /64 of them.
fn network(ip: IpAddr) -> u128 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn taken(failures: &Arc<Failures>, ip: &str, id: &str, times: u32) -> u32 {
        let (ip, id) = (ip.parse().unwrap(), LookupId::parse(id).unwrap());
        (0..times)
            .map(|_| {
                let attempt = failures.take(Some(ip), Some(&id), SECOND);
                u32::from(attempt.inspect(Attempt::found_nothing).is_some())
            })
            .sum()
    }

    #[test]
    fn an_address_and_a_lookup_id_have_their_own_and_what_is_found_costs_nothing() {
        let failures = Arc::new(Failures::new());
        assert_eq!(taken(&failures, "192.0.2.1", "000000000000", 1_000), 100);
        // The address has what the lookup id did not use.
        for at in 1..=4 {
            assert_eq!(
                taken(&failures, "192.0.2.1", &format!("00000000000{at}"), 100),
                100
            );
        }
        assert_eq!(taken(&failures, "192.0.2.1", "000000000009", 10), 0);
        assert_eq!(taken(&failures, "192.0.2.2", "000000000009", 10), 10);
        let good = LookupId::parse("0000000000zz").unwrap();
        for _ in 0..10_000 {
            let ip = Some("192.0.2.3".parse().unwrap());
            // Found, or left half-way.
            drop(failures.take(ip, Some(&good), SECOND).unwrap());
        }
    }

    #[test]
    fn whoever_has_none_left_is_known_before_anything_is_taken() {
        let failures = Arc::new(Failures::new());
        let has = |ip: &str, id: &str| {
            let id = LookupId::parse(id).unwrap();
            failures.has(Some(ip.parse().unwrap()), Some(&id), SECOND)
        };
        for _ in 0..1_000 {
            assert!(has("192.0.2.1", "000000000000"));
        }
        assert_eq!(taken(&failures, "192.0.2.1", "000000000000", 1_000), 100);
        assert!(!has("192.0.2.1", "000000000000"));
        assert!(!has("192.0.2.2", "000000000000"), "of the lookup id");
        assert!(has("192.0.2.1", "000000000001"));
        for at in 1..=4 {
            taken(&failures, "192.0.2.1", &format!("00000000000{at}"), 100);
        }
        assert!(!has("192.0.2.1", "000000000009"), "of the address");
        assert!(has("192.0.2.2", "000000000009"));
    }

    #[test]
    fn addresses_of_one_network_share_theirs() {
        let failures = Arc::new(Failures::new());
        let mut passed = 0;
        for at in 0..1_000 {
            let (ip, id) = (format!("2001:db8::{at:x}"), format!("{at:012}"));
            passed += taken(&failures, &ip, &id, 1);
        }
        assert_eq!(passed, 500);
        assert_eq!(taken(&failures, "2001:db8:0:1::1", "00000000000a", 1), 1);
    }

    #[test]
    fn all_together_have_a_thousand_a_second() {
        let failures = Arc::new(Failures::new());
        let passed: u32 = (0..3_000)
            .map(|at| {
                let ip = format!("10.0.{}.{}", at / 250, at % 250);
                taken(&failures, &ip, &format!("{at:012}"), 1)
            })
            .sum();
        assert_eq!(passed, 1_000);
    }
}
