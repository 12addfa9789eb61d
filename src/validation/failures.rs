//! How often a look-up may find nothing before none is made: for all together, for each address of a
//! client, and for each lookup id, whether it exists or not.
//!
//! Only what is not remembered is held to it, and what is found is given back. Strangers from many networks
//! can use up what all have together all the same. So, once a look-up was refused, it is
//! [learned](Existing) which fingerprints there are: what is among them is no guess. It is held to what all
//! have together alone, and some of that is kept for it. What is taken for one of them by mistake is bounded
//! by itself: a stranger may collect such.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::existing::Existing;
use crate::keys::fingerprint::Fingerprint;
use crate::keys::secret::LookupId;
use crate::ratelimit::budget::{Allowance, Budget};

/// So many look-ups a second may find nothing, on one node.
const ALL: u32 = 1_000;

/// Of these, what is kept for what is no guess: more than can have their turn at once.
const KEPT_OF_ALL: u32 = 100;

/// So many a second may be taken for none by mistake: beyond that all are guesses.
const MISTAKEN: u32 = 100;

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
    mistaken: Allowance,
    addresses: Budget,
    lookup_ids: Budget,
    hasher: RandomState,
    pub(super) existing: Arc<Existing>,
}

/// What is presented, and by whom.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presented<'a> {
    pub(super) client: Option<IpAddr>,
    pub(super) lookup_id: Option<&'a LookupId>,
    /// Under each pepper.
    pub(super) prints: &'a [Fingerprint],
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
    is_guess: bool,
    found_nothing: AtomicBool,
}

impl Attempt {
    /// Without this it is given back: it found something, or could not look. `now_us` is monotonic.
    pub(super) fn found_nothing(&self, now_us: u64) {
        self.found_nothing.store(true, Ordering::Relaxed);
        if !self.is_guess {
            // With none left there is no mistake to be made any more.
            let _taken = self.failures.mistaken.take(now_us);
        }
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
            mistaken: Allowance::new(MISTAKEN, MISTAKEN),
            addresses: Budget::new(ADDRESS_AT_ONCE, ADDRESS_PER_SECOND, KEPT),
            lookup_ids: Budget::new(LOOKUP_ID_AT_ONCE, LOOKUP_ID_PER_SECOND, KEPT),
            hasher: RandomState::new(),
            existing: Arc::default(),
        }
    }

    /// Nobody's, where it is no guess.
    fn whose(&self, presented: Presented<'_>, is_guess: bool) -> Whose {
        let client = presented.client.filter(|_| is_guess);
        let lookup_id = presented.lookup_id.filter(|_| is_guess);
        Whose {
            address: client.map(|ip| self.hasher.hash_one(network(ip))),
            lookup_id: lookup_id.map(|id| self.hasher.hash_one(id.as_str())),
        }
    }

    /// Whether it may be a guess, and how many of all such ones leave to what is none.
    fn odds(&self, presented: Presented<'_>, now_us: u64) -> (bool, u32) {
        let is_known = self.existing.takes_any(presented.prints) && self.mistaken.has(now_us);
        let is_guess = !is_known;
        let leaves = is_guess && self.existing.is_there();
        (is_guess, if leaves { KEPT_OF_ALL } else { 0 })
    }

    /// Whether there is one left for it at this instant; nothing is taken. `now_us` is monotonic.
    pub(super) fn has(&self, presented: Presented<'_>, now_us: u64) -> bool {
        let (is_guess, kept) = self.odds(presented, now_us);
        let whose = self.whose(presented, is_guess);
        let one_left =
            |budget: &Budget, key: Option<u64>| key.is_none_or(|key| budget.has(key, now_us));
        // Before anything was learned good ones may be among those that wait until others are found.
        let of_all = kept == 0 || self.all.has_leaving(kept, now_us);
        of_all
            && one_left(&self.addresses, whose.address)
            && one_left(&self.lookup_ids, whose.lookup_id)
    }

    /// `None` when too many found nothing. `now_us` is monotonic.
    pub(super) fn take(self: &Arc<Self>, presented: Presented<'_>, now_us: u64) -> Option<Attempt> {
        let (is_guess, kept) = self.odds(presented, now_us);
        let whose = self.whose(presented, is_guess);
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
        if !self.all.take_leaving(kept, now_us) {
            self.give_back_to_each(whose);
            return None;
        }
        Some(Attempt {
            failures: Arc::clone(self),
            whose,
            is_guess,
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
    use crate::clock::Clock;
    use crate::entropy::Entropy;
    use crate::id::SecretId;

    const SECOND: u64 = 1_000_000;

    /// Of these so many may find nothing.
    fn taken(failures: &Arc<Failures>, ip: &str, id: &str, times: u32) -> u32 {
        let print = Fingerprint::from_bytes([0xff; 32]);
        found_nothing(failures, (ip, id, print), times, SECOND)
    }

    fn found_nothing(
        failures: &Arc<Failures>,
        (ip, id, print): (&str, &str, Fingerprint),
        times: u32,
        now_us: u64,
    ) -> u32 {
        let presented = Presented {
            client: Some(ip.parse().unwrap()),
            lookup_id: Some(&LookupId::parse(id).unwrap()),
            prints: &[print],
        };
        (0..times)
            .map(|_| {
                let has = failures.has(presented, now_us);
                let attempt = failures.take(presented, now_us);
                assert!(has || attempt.is_none());
                u32::from(attempt.inspect(|it| it.found_nothing(now_us)).is_some())
            })
            .sum()
    }

    /// Strangers, each from a network of its own.
    fn strangers(failures: &Arc<Failures>, count: u32, now_us: u64) -> u32 {
        (0..count)
            .map(|at| {
                let ip = format!("10.{}.{}.{}", at / 62_500, at / 250 % 250, at % 250);
                let print = Fingerprint::from_bytes([0xff; 32]);
                let id = format!("{:012}", now_us + u64::from(at));
                found_nothing(failures, (&ip, &id, print), 1, now_us)
            })
            .sum()
    }

    fn learned(failures: &Failures, print: Fingerprint) {
        let mut lesson = failures
            .existing
            .learn(SECOND, Clock::System.now())
            .unwrap();
        let id = SecretId::new(&Clock::System, &Entropy::seeded(1));
        lesson.tell(&[(id, print)]);
        lesson.end();
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
        let good = Presented {
            client: Some("192.0.2.3".parse().unwrap()),
            lookup_id: Some(&LookupId::parse("0000000000zz").unwrap()),
            prints: &[],
        };
        for _ in 0..10_000 {
            // Found, or left half-way.
            drop(failures.take(good, SECOND).unwrap());
        }
    }

    #[test]
    fn whoever_has_none_left_is_known_before_anything_is_taken() {
        let failures = Arc::new(Failures::new());
        let has = |ip: &str, id: &str| {
            let presented = Presented {
                client: Some(ip.parse().unwrap()),
                lookup_id: Some(&LookupId::parse(id).unwrap()),
                prints: &[],
            };
            failures.has(presented, SECOND)
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
        assert_eq!(strangers(&failures, 3_000, SECOND), 1_000);
    }

    #[test]
    fn who_is_refused_for_his_own_takes_nothing_of_all_and_gives_nothing_back() {
        let failures = Arc::new(Failures::new());
        assert_eq!(taken(&failures, "192.0.2.1", "00000000000a", 200), 100);
        for at in 0..200 {
            let ip = format!("198.51.100.{at}");
            assert_eq!(taken(&failures, &ip, "00000000000a", 1), 0);
        }
        assert_eq!(strangers(&failures, 3_000, SECOND), 900);
    }

    #[test]
    fn for_what_is_no_guess_there_is_one_left_however_many_strangers_come() {
        let failures = Arc::new(Failures::new());
        let good = Fingerprint::from_bytes([1; 32]);
        // Whoever it comes from, and whatever others tried from there.
        let ask = |print, times, now_us| {
            let of = ("192.0.2.1", "00000000000a", print);
            found_nothing(&failures, of, times, now_us)
        };
        assert_eq!(ask(Fingerprint::from_bytes([2; 32]), 200, SECOND), 100);
        assert_eq!(strangers(&failures, 3_000, SECOND), 900);
        assert_eq!(ask(good, 1, SECOND), 0, "nobody can tell it from a guess");
        learned(&failures, good);
        let mut looked = 0;
        for ms in 1..=2_000 {
            let now_us = SECOND + ms * 1_000;
            // It finds nothing all the same, which is as rare as it is dear.
            let found = ask(good, u32::from(ms % 10 == 0), now_us);
            assert_eq!(found, u32::from(ms % 10 == 0), "after {ms} ms");
            looked += found + strangers(&failures, 5, now_us);
        }
        assert!((1_890..=2_000).contains(&looked), "{looked} in two seconds");
    }

    #[test]
    fn what_is_taken_for_no_guess_and_is_one_is_so_but_a_hundred_times_a_second() {
        let failures = Arc::new(Failures::new());
        let collected = Fingerprint::from_bytes([1; 32]);
        learned(&failures, collected);
        let ask = |times, now_us| {
            let of = ("192.0.2.1", "00000000000a", collected);
            found_nothing(&failures, of, times, now_us)
        };
        // A hundred for nothing, and then what a guess at this lookup id may cost.
        assert_eq!(ask(1_000, SECOND), 200);
        assert_eq!(ask(1_000, 2 * SECOND), 110);
    }
}
