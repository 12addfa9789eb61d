//! Peppers: the keys under which secrets are fingerprinted, outside the database.
//!
//! A pepper comes from a master key by HKDF; the database holds its number, which master key it
//! comes from, and a check value, so that a wrong master key is noticed before it does harm.
//!
//! ```text
//!            60 s                  next rotation        no secret carries it
//! next ------------------> current -------------> old ---------------------> (deleted)
//!   \                         |                    |                             |
//!    `------------------------+--------------------+----> lost -----------------'
//!                       its master key is gone
//! ```

pub mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::db::{self, Conn};
use crate::keys::fingerprint::{Fingerprint, Pepper};
use crate::keys::secret::ApiKey;
use crate::master::{DerivedKey, MasterKey, MasterKeys};
use crate::time::Timestamp;

/// The most fingerprints that one lookup asks for, and the most versions that are not lost.
pub const COMPUTABLE_MAX: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PepperState {
    /// Made known, so that every node can look up by it before any secret carries it.
    Next,
    /// What new secrets use. There is exactly one.
    Current,
    /// Still looked up by; its secrets move to the current one as they are used.
    Old,
    /// Given up: its secrets are found by their lookup id and proved by their verifier.
    Lost,
}

impl PepperState {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Current => "current",
            Self::Old => "old",
            Self::Lost => "lost",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Next, Self::Current, Self::Old, Self::Lost]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// One version as the database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PepperVersion {
    pub version: i32,
    /// [`MasterKey::id`] of the master key it comes from.
    pub master_id: String,
    pub check_value: Vec<u8>,
    pub state: PepperState,
    pub created_at: Timestamp,
    /// From when on it is, was or shall be the current one.
    pub current_from: Timestamp,
}

/// The key of version `version`.
pub(super) fn derive(master: &MasterKey, version: i32) -> DerivedKey {
    master.derive(&format!("keystead pepper {version}"))
}

/// Cannot be the fingerprint of a key: it is framed, and a key's is not.
pub(super) fn check_value(pepper: &DerivedKey) -> [u8; 32] {
    pepper.mac(&[CHECK])
}

const CHECK: &[u8] = b"keystead pepper check";

impl PepperVersion {
    /// The key of this version, if we hold its master key and it passes the check.
    fn open(&self, master: &MasterKeys) -> Result<DerivedKey, PepperFault> {
        let version = self.version;
        let Some(master) = master.by_id(&self.master_id) else {
            let master_id = self.master_id.clone();
            return Err(PepperFault::MasterMissing { version, master_id });
        };
        let pepper = derive(master, version);
        if pepper.verify(&[CHECK], &self.check_value) {
            Ok(pepper)
        } else {
            Err(PepperFault::CheckFails { version })
        }
    }

    pub(super) fn is_computable(&self, master: &MasterKeys) -> bool {
        self.state != PepperState::Lost && self.open(master).is_ok()
    }
}

/// Why this node must not start. Waiting does not help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PepperFault {
    #[error(
        "secrets.master_key: none of the configured master keys is {master_id}, from which pepper \
         version {version} of this database comes; configure that one (it may be a further file of \
         secrets.master_key_files), or, if it is lost for ever, run: keystead pepper lost"
    )]
    MasterMissing { version: i32, master_id: String },
    #[error(
        "secrets.master_key: the check value of pepper version {version} does not fit the master \
         key it names, so the database was altered; restore it, or run: keystead pepper lost"
    )]
    CheckFails { version: i32 },
    #[error("the database has no current pepper version; run: keystead pepper lost")]
    NoCurrent,
}

/// Holds the master keys against the database: every version that is not given up must be
/// computable, or keys would be refused as unknown.
pub fn verify_checks(rows: &[PepperVersion], master: &MasterKeys) -> Result<(), PepperFault> {
    for row in rows.iter().filter(|row| row.state != PepperState::Lost) {
        row.open(master)?;
    }
    if !rows.iter().any(|row| row.state == PepperState::Current) {
        return Err(PepperFault::NoCurrent);
    }
    Ok(())
}

/// The peppers at one moment. Never changes.
#[derive(Debug, Default)]
pub struct PepperRing {
    /// The current one, the next one, then the old ones from the newest on.
    versions: Vec<(i32, Pepper)>,
    current: Option<i32>,
    has_lost: bool,
}

impl PepperRing {
    pub fn new(rows: &[PepperVersion], master: &MasterKeys) -> Self {
        let mut rows: Vec<&PepperVersion> = rows.iter().collect();
        rows.sort_by_key(|row| {
            let place = match row.state {
                PepperState::Current => 0,
                PepperState::Next => 1,
                PepperState::Old => 2,
                PepperState::Lost => 3,
            };
            (place, -row.version)
        });
        let mut ring = Self::default();
        for row in rows {
            if row.state == PepperState::Lost {
                ring.has_lost = true;
                continue;
            }
            if row.state == PepperState::Current {
                ring.current = Some(row.version);
            }
            match row.open(master) {
                Ok(pepper) => ring.versions.push((row.version, Pepper::new(&pepper))),
                Err(fault) => {
                    tracing::error!(pepper.version = row.version, %fault, "cannot compute a pepper");
                    ring.has_lost = true;
                }
            }
        }
        ring
    }

    /// What to look up: the fingerprint under each version we can compute, likeliest first; each is
    /// computed when it is asked for.
    pub fn prints<'a>(&'a self, key: &'a ApiKey) -> impl Iterator<Item = (i32, Fingerprint)> + 'a {
        self.prints_of_text(key.expose_secret())
    }

    /// The same of a plaintext that is not copied.
    pub fn prints_of_text<'a>(
        &'a self,
        key: &'a str,
    ) -> impl Iterator<Item = (i32, Fingerprint)> + 'a {
        self.versions
            .iter()
            .take(COMPUTABLE_MAX)
            .map(move |(version, pepper)| (*version, Fingerprint::of_text(key, pepper)))
    }

    /// Whether a key has one fingerprint at most.
    pub fn is_alone(&self) -> bool {
        self.versions.len().min(COMPUTABLE_MAX) <= 1
    }

    pub fn fingerprints(&self, key: &ApiKey) -> Vec<(i32, Fingerprint)> {
        self.prints(key).collect()
    }

    /// `None` when this ring cannot compute that version: reload, and ask again.
    pub fn fingerprint_under(&self, version: i32, key: &ApiKey) -> Option<Fingerprint> {
        self.versions
            .iter()
            .find(|(known, _)| *known == version)
            .map(|(_, pepper)| Fingerprint::of(key, pepper))
    }

    /// The version the database called current when this ring was made.
    pub fn current(&self) -> Option<i32> {
        self.current
    }

    /// Whether a secret may exist whose fingerprint we cannot compute: only then a miss has to go
    /// on to the verifier.
    pub fn has_lost(&self) -> bool {
        self.has_lost
    }

    /// The versions that [`Self::fingerprints`] looks under.
    pub fn computable(&self) -> Vec<i32> {
        self.versions
            .iter()
            .take(COMPUTABLE_MAX)
            .map(|(version, _)| *version)
            .collect()
    }

    pub fn computes(&self, version: i32) -> bool {
        self.versions.iter().any(|(known, _)| *known == version)
    }
}

/// The version that new secrets are fingerprinted under.
pub struct CurrentPepper {
    version: i32,
    ring: Arc<PepperRing>,
}

impl CurrentPepper {
    /// # Errors
    /// [`db::Error::Corrupt`] when no listed master key opens the version.
    pub fn fingerprint(&self, key: &ApiKey) -> db::Result<(i32, Fingerprint)> {
        let version = self.version;
        let fingerprint = self.ring.fingerprint_under(version, key).ok_or_else(|| {
            db::Error::Corrupt(format!("the pepper version {version} cannot be computed"))
        })?;
        Ok((version, fingerprint))
    }
}

/// The ring of this node, exchanged when the database tells of another.
#[derive(Debug)]
pub struct Peppers {
    master: MasterKeys,
    ring: ArcSwap<PepperRing>,
    readings: Mutex<Readings>,
}

/// They are numbered as they begin, so that an older one never replaces a newer one though none waits for another:
/// its connection may be dead.
#[derive(Debug, Default)]
struct Readings {
    begun: u64,
    /// The one that the ring is of.
    kept: u64,
}

impl Peppers {
    /// Knows nothing until [`Self::reload`].
    pub fn new(master: MasterKeys) -> Self {
        Self {
            master,
            ring: ArcSwap::default(),
            readings: Mutex::default(),
        }
    }

    pub fn ring(&self) -> Arc<PepperRing> {
        self.ring.load_full()
    }

    /// What fingerprints new secrets: the version that the database calls current in the caller's
    /// own transaction.
    pub async fn current(&self, conn: &mut Conn) -> db::Result<CurrentPepper> {
        let version = store::current_in(conn).await?;
        let mut ring = self.ring();
        if !ring.computes(version) {
            ring = self.reload(conn).await?;
        }
        Ok(CurrentPepper { version, ring })
    }

    /// Learns of a rotation that this node has not heard of yet, for who must not miss a secret.
    pub async fn catch_up(&self, conn: &mut Conn) -> db::Result<()> {
        let current = store::current_in(conn).await?;
        if self.ring().computes(current) {
            return Ok(());
        }
        self.reload(conn).await.map(drop)
    }

    pub fn master(&self) -> &MasterKeys {
        &self.master
    }

    /// Reads the versions again. At start [`verify_checks`] comes first; here a version that cannot
    /// be computed is logged and counts as lost, for a node in service must go on.
    pub async fn reload(&self, conn: &mut Conn) -> db::Result<Arc<PepperRing>> {
        let number = self.begin_reading();
        let rows = store::load(conn).await?;
        let ring = Arc::new(PepperRing::new(&rows, &self.master));
        self.keep(number, &ring);
        Ok(ring)
    }

    fn begin_reading(&self) -> u64 {
        let mut readings = self.readings();
        readings.begun += 1;
        readings.begun
    }

    /// Unless one that began later is kept already: that knows all that whoever began this one knew of.
    fn keep(&self, number: u64, ring: &Arc<PepperRing>) {
        let mut readings = self.readings();
        if number > readings.kept {
            readings.kept = number;
            self.ring.store(Arc::clone(ring));
        }
    }

    fn readings(&self) -> MutexGuard<'_, Readings> {
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn master(byte: u8) -> MasterKey {
        MasterKey::new([byte; 32])
    }

    fn masters(first: u8, others: &[u8]) -> MasterKeys {
        MasterKeys {
            first: master(first),
            others: others.iter().map(|byte| master(*byte)).collect(),
        }
    }

    fn row(version: i32, of: u8, state: PepperState) -> PepperVersion {
        let at = Timestamp::from_millis(0);
        PepperVersion {
            version,
            master_id: master(of).id(),
            check_value: check_value(&derive(&master(of), version)).to_vec(),
            state,
            created_at: at,
            current_from: at,
        }
    }

    fn versions(ring: &PepperRing) -> Vec<i32> {
        let prints = ring.fingerprints(&ApiKey::of_test("a plaintext"));
        prints.into_iter().map(|(version, _)| version).collect()
    }

    #[test]
    fn the_likeliest_version_is_looked_up_first_and_three_at_most() {
        let rows = [
            row(1, 1, PepperState::Lost),
            row(2, 1, PepperState::Old),
            row(3, 1, PepperState::Old),
            row(4, 1, PepperState::Current),
            row(5, 1, PepperState::Next),
        ];
        let ring = PepperRing::new(&rows, &masters(1, &[]));
        assert_eq!(versions(&ring), [4, 5, 3]);
        assert_eq!(ring.current(), Some(4));
        assert!(ring.has_lost());
        assert!(ring.computes(2) && !ring.computes(1) && !ring.computes(6));
        let ring = PepperRing::new(&rows[1..], &masters(1, &[]));
        assert!(!ring.has_lost());
    }

    #[test]
    fn each_version_and_each_master_key_is_a_pepper_of_its_own() {
        let key = ApiKey::of_test("a plaintext");
        let print = |of, version| {
            let rows = [row(version, of, PepperState::Current)];
            let ring = PepperRing::new(&rows, &masters(of, &[]));
            ring.fingerprint_under(version, &key).unwrap()
        };
        assert_eq!(print(1, 1), print(1, 1));
        assert_ne!(print(1, 1), print(1, 2));
        assert_ne!(print(1, 1), print(2, 1));
    }

    #[test]
    fn an_old_master_key_still_opens_what_came_from_it() {
        let rows = [row(1, 1, PepperState::Old), row(2, 2, PepperState::Current)];
        assert_eq!(verify_checks(&rows, &masters(2, &[1])), Ok(()));
        let ring = PepperRing::new(&rows, &masters(2, &[1]));
        assert_eq!(versions(&ring), [2, 1]);
        assert!(!ring.has_lost());
        // Taken away too early, it is missed, also by a node that is running.
        assert!(verify_checks(&rows, &masters(2, &[])).is_err());
        let ring = PepperRing::new(&rows, &masters(2, &[]));
        assert_eq!(versions(&ring), [2]);
        assert!(ring.has_lost());
    }

    #[test]
    fn a_fault_names_the_setting_and_the_way_out() {
        let rows = [row(1, 1, PepperState::Current)];
        let missing = verify_checks(&rows, &masters(2, &[3])).unwrap_err();
        assert_eq!(
            missing,
            PepperFault::MasterMissing {
                version: 1,
                master_id: master(1).id(),
            }
        );
        let mut altered = rows.clone();
        altered[0].check_value = vec![0; 32];
        let fails = verify_checks(&altered, &masters(1, &[])).unwrap_err();
        assert_eq!(fails, PepperFault::CheckFails { version: 1 });
        for fault in [missing, fails] {
            let text = fault.to_string();
            assert!(text.contains("secrets.master_key"), "{text}");
            assert!(text.contains("keystead pepper lost"), "{text}");
            assert!(!text.contains(&*master(1).to_hex()));
        }
        let lost = [row(1, 1, PepperState::Lost)];
        assert_eq!(
            verify_checks(&lost, &masters(1, &[])),
            Err(PepperFault::NoCurrent)
        );
    }

    #[test]
    fn a_check_value_of_another_version_does_not_pass() {
        let mut swapped = row(2, 1, PepperState::Current);
        swapped.check_value = row(1, 1, PepperState::Current).check_value;
        assert!(verify_checks(&[swapped], &masters(1, &[])).is_err());
    }

    #[test]
    fn a_reading_that_began_earlier_never_replaces_one_that_began_later() {
        let peppers = Peppers::new(masters(1, &[]));
        let of = |version| {
            let rows = [row(version, 1, PepperState::Current)];
            Arc::new(PepperRing::new(&rows, &masters(1, &[])))
        };
        let (earlier, later) = (peppers.begin_reading(), peppers.begin_reading());
        peppers.keep(later, &of(2));
        peppers.keep(earlier, &of(1));
        assert_eq!(peppers.ring().current(), Some(2));
        peppers.keep(peppers.begin_reading(), &of(3));
        assert_eq!(peppers.ring().current(), Some(3));
    }

    #[test]
    fn a_ring_shows_no_key() {
        let ring = PepperRing::new(&[row(1, 1, PepperState::Current)], &masters(1, &[]));
        assert!(format!("{ring:?}").contains("Pepper(..)"));
    }
}
