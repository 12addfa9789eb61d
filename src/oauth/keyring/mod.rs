//! The keys that tokens are signed with, the same for all nodes.
//!
//! They stand in the database with their private halves sealed ([`key`]), and in the memory of each
//! node ([`Ring`]). Which state a key is in follows from the clock alone: it is published from when it
//! was made (*next*), signs from its `active_from` until that of its successor (*active*), and stays
//! published for as long as a token may live (*retired*). So every node changes over at the same
//! instant, one without the database too, and no verifier meets a token whose key it could not have
//! fetched.
//!
//! On a timer each node asks whether a key is due ([`Keyring::tend`]); one of them makes it, in one
//! audited change. `keystead signing-key rotate` makes one at any time.

pub mod key;
mod store;

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde_json::{Value, json};

pub use self::key::{KeyError, SigningKey};
pub use self::store::KeyRow;
use crate::audit::{Attribution, Audit, Change};
use crate::clock::Clock;
use crate::config::{Oauth as Settings, SigningAlgorithm};
use crate::db::feed::Kind;
use crate::db::{self, Conn, Db};
use crate::entropy::Entropy;
use crate::error::{Conflict, Error};
use crate::master::MasterKeys;
use crate::services::tokens::TOKEN_TTL_MAX;
use crate::time::{Span, Timestamp};

/// How long a key is published before it signs: twice as long as verifiers may keep the key set.
pub const ANNOUNCED_FOR: Span = Span::minutes(10);

/// For how long the published key set may be kept, in seconds.
pub const JWKS_MAX_AGE_SECONDS: u32 = 300;

/// How far the clocks of a node and of a verifier may be apart.
const LEEWAY: Span = Span::minutes(1);

/// Where a key stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyState {
    /// Published, so that everybody knows it when it signs.
    Next,
    Active,
    /// Published for as long as its last token lives.
    Retired,
    Ended,
}

impl KeyState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Next => "next",
            Self::Active => "active",
            Self::Retired => "retired",
            Self::Ended => "ended",
        }
    }

    /// Of a key that signs from `active_from` until `successor`'s time.
    fn of(active_from: Timestamp, successor: Option<Timestamp>, now: Timestamp) -> Self {
        if now < active_from {
            return Self::Next;
        }
        match successor {
            Some(successor) if successor <= now => {
                if now < successor.plus(TOKEN_TTL_MAX).plus(LEEWAY) {
                    Self::Retired
                } else {
                    Self::Ended
                }
            }
            Some(_) | None => Self::Active,
        }
    }
}

/// How a key is made at somebody's command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    /// It signs after [`ANNOUNCED_FOR`].
    Announced,
    /// It signs at once, so some verifiers must fetch the key set again to know it. One that was on its
    /// way is given up.
    Now,
    /// It signs at once and all others are given up: their tokens are refused from now on.
    Compromised,
}

/// A key and its place.
#[derive(Clone, Debug)]
pub struct Held {
    pub generation: i64,
    pub active_from: Timestamp,
    pub created_at: Timestamp,
    pub kid: String,
    pub algorithm: String,
    /// When the next one signs, if that is known.
    successor: Option<Timestamp>,
    /// `None` if it is sealed under a master key that is not listed here, or not by us.
    pub key: Option<Arc<SigningKey>>,
}

impl Held {
    pub fn state(&self, now: Timestamp) -> KeyState {
        KeyState::of(self.active_from, self.successor, now)
    }
}

/// All keys of one moment, the newest first.
#[derive(Clone, Debug, Default)]
pub struct Ring(Vec<Held>);

impl Ring {
    fn open(rows: Vec<KeyRow>, master: &MasterKeys, known: &Self) -> Self {
        let mut held: Vec<Held> = Vec::with_capacity(rows.len());
        for row in rows {
            // What comes later in the order of generations and signs no later takes over.
            let successor = held.iter().map(|later| later.active_from).min();
            let again = known.0.iter().find(|held| {
                held.generation == row.generation && held.kid == row.kid && held.key.is_some()
            });
            let key = match again {
                Some(held) => held.key.clone(),
                None => opened(&row, master),
            };
            held.push(Held {
                generation: row.generation,
                active_from: row.active_from,
                created_at: row.created_at,
                kid: row.kid,
                algorithm: row.algorithm,
                successor,
                key,
            });
        }
        Self(held)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Held> {
        self.0.iter()
    }

    /// The key to sign with. `None` if none can be used: then nothing is signed.
    pub fn signer(&self, now: Timestamp) -> Option<&Arc<SigningKey>> {
        let usable = |held: &&Held| {
            matches!(held.state(now), KeyState::Active | KeyState::Retired) && held.key.is_some()
        };
        self.0.iter().find(usable)?.key.as_ref()
    }

    /// The keys that verifiers may know, the newest first.
    pub fn published(&self, now: Timestamp) -> impl Iterator<Item = &Arc<SigningKey>> {
        self.0
            .iter()
            .filter(move |held| held.state(now) != KeyState::Ended)
            .filter_map(|held| held.key.as_ref())
    }

    /// A key that a good token may name. One that is not active yet by this node's clock may be so by
    /// another's.
    pub fn find(&self, kid: &str, now: Timestamp) -> Option<&Arc<SigningKey>> {
        self.published(now).find(|key| key.kid() == kid)
    }

    /// The key set (RFC 7517 §5).
    pub fn jwks(&self, now: Timestamp) -> Value {
        let keys: Vec<Value> = self
            .published(now)
            .map(|key| Value::Object(key.jwk().clone()))
            .collect();
        json!({ "keys": keys })
    }

    /// When the next key is to sign, if one is to be made now.
    fn due(&self, settings: &Settings, now: Timestamp) -> Option<Timestamp> {
        let usable = |held: &&Held| held.key.is_some() && held.state(now) != KeyState::Ended;
        let Some(newest) = self.0.iter().find(usable) else {
            return Some(now);
        };
        if newest.state(now) == KeyState::Next {
            return None;
        }
        let announced = now.plus(ANNOUNCED_FOR);
        if newest.algorithm != settings.signing_algorithm.as_str() {
            return Some(announced);
        }
        let end = newest.active_from.plus(settings.signing_rotation);
        (end <= announced).then_some(announced)
    }

    fn next_generation(&self) -> i64 {
        self.0
            .first()
            .map_or(1, |newest| newest.generation.saturating_add(1))
    }
}

fn opened(row: &KeyRow, master: &MasterKeys) -> Option<Arc<SigningKey>> {
    let Some(master) = master.by_id(&row.master_id) else {
        tracing::warn!(
            target: "security",
            kid = row.kid,
            master_id = row.master_id,
            "a signing key is sealed under a master key that is not listed"
        );
        return None;
    };
    let opened = SigningAlgorithm::parse(&row.algorithm)
        .ok_or(KeyError::Open)
        .and_then(|algorithm| SigningKey::open(&row.kid, algorithm, master, &row.private_key));
    match opened {
        Ok(key) => Some(Arc::new(key)),
        Err(error) => {
            tracing::error!(target: "security", kid = row.kid, %error, "left out a signing key");
            None
        }
    }
}

/// Keeps the keys, cheap to clone.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    db: Db,
    audit: Audit,
    clock: Clock,
    entropy: Entropy,
    master: MasterKeys,
    settings: Settings,
    ring: ArcSwap<Ring>,
}

impl Keyring {
    pub fn new(
        db: Db,
        audit: Audit,
        clock: Clock,
        entropy: Entropy,
        master: MasterKeys,
        settings: Settings,
    ) -> Self {
        Self(Arc::new(Inner {
            db,
            audit,
            clock,
            entropy,
            master,
            settings,
            ring: ArcSwap::default(),
        }))
    }

    /// The keys as this node knows them.
    pub fn ring(&self) -> Arc<Ring> {
        self.0.ring.load_full()
    }

    /// Reads the keys again.
    ///
    /// # Errors
    /// The database's; the keys stay as they were.
    pub async fn reload(&self) -> db::Result<Arc<Ring>> {
        let inner = &self.0;
        let rows = inner
            .db
            .read(async move |conn: &mut Conn| store::all(conn).await)
            .await?;
        let ring = Arc::new(Ring::open(rows, &inner.master, &inner.ring.load()));
        inner.ring.store(Arc::clone(&ring));
        Ok(ring)
    }

    /// Makes the next key if it is due, deletes those that have ended, and learns what other nodes did.
    /// On a timer, and once before the node is ready; `at` is the system in the tenant `default`.
    ///
    /// # Errors
    /// The database's.
    pub async fn tend(&self, at: Attribution) -> db::Result<()> {
        let inner = &self.0;
        let ring = self.reload().await?;
        let now = inner.clock.now();
        if ring.due(&inner.settings, now).is_some() {
            let made = self.make().await?;
            let this = self.clone();
            inner
                .audit
                .change(at, async move |change: &mut Change| -> db::Result<()> {
                    // Another node may have been faster.
                    let rows = store::all(change.conn()).await?;
                    let ring = Ring::open(rows, &this.0.master, &this.0.ring.load());
                    match ring.due(&this.0.settings, change.now()) {
                        Some(active_from) => this.add(change, &ring, &made, active_from).await,
                        None => Ok(()),
                    }
                })
                .await?;
        }
        let ended: Vec<i64> = ring
            .iter()
            .filter(|held| held.state(now) == KeyState::Ended)
            .map(|held| held.generation)
            .collect();
        if !ended.is_empty() {
            inner
                .db
                .write(async move |conn: &mut Conn| -> db::Result<()> {
                    if db::alone(conn, "delete ended signing keys").await? {
                        store::delete(conn, ended).await?;
                    }
                    Ok(())
                })
                .await?;
        }
        self.reload().await.map(drop)
    }

    /// Makes a new key.
    ///
    /// # Errors
    /// [`Conflict::InProgress`] while another is on its way, unless that one is given up.
    pub async fn rotate(&self, at: Attribution, how: Rotation) -> Result<Held, Error> {
        let made = self.make().await?;
        let this = self.clone();
        self.0
            .audit
            .change(at, async move |change: &mut Change| -> Result<(), Error> {
                let rows = store::all(change.conn()).await?;
                let ring = Ring::open(rows, &this.0.master, &this.0.ring.load());
                let at = change.now();
                let next = ring.iter().find(|held| held.state(at) == KeyState::Next);
                if let (Some(next), Rotation::Announced) = (next, how) {
                    return Err(Error::conflict(
                        Conflict::InProgress,
                        format!(
                            "the key {} is already on its way and signs from {}",
                            next.kid, next.active_from
                        ),
                    ));
                }
                let given_up: Vec<&Held> = ring
                    .iter()
                    .filter(|held| match how {
                        Rotation::Announced => false,
                        Rotation::Now => held.state(at) == KeyState::Next,
                        Rotation::Compromised => true,
                    })
                    .collect();
                let generations = given_up.iter().map(|held| held.generation).collect();
                store::delete(change.conn(), generations).await?;
                let active_from = match how {
                    Rotation::Announced => at.plus(ANNOUNCED_FOR),
                    Rotation::Now | Rotation::Compromised => at,
                };
                this.add(change, &ring, &made, active_from).await?;
                for held in given_up {
                    let before = json!({
                        "generation": held.generation,
                        "algorithm": held.algorithm,
                        "active_from": held.active_from,
                    });
                    let target = ("signing_key", &*held.kid);
                    change.record("signing_key.delete", target, Some(before), None);
                }
                Ok(())
            })
            .await?;
        let ring = self.reload().await?;
        let newest = ring.iter().next().cloned();
        newest.ok_or_else(|| db::Error::Corrupt("the new signing key is gone".to_owned()).into())
    }

    async fn add(
        &self,
        change: &mut Change,
        ring: &Ring,
        made: &Made,
        active_from: Timestamp,
    ) -> db::Result<()> {
        let row = KeyRow {
            generation: ring.next_generation(),
            kid: made.key.kid().to_owned(),
            algorithm: made.key.algorithm().as_str().to_owned(),
            master_id: self.0.master.first.id(),
            private_key: made.sealed.clone(),
            active_from,
            created_at: change.now(),
        };
        store::insert(change.conn(), &row).await?;
        change.record(
            "signing_key.create",
            ("signing_key", &row.kid),
            None,
            Some(json!({
                "generation": row.generation,
                "algorithm": row.algorithm,
                "master_id": row.master_id,
                "active_from": row.active_from,
            })),
        );
        change.touch(Kind::SigningKey, &row.kid);
        Ok(())
    }

    async fn make(&self) -> db::Result<Made> {
        let this = self.clone();
        let making = self.0.db.runtime().spawn_blocking(move || {
            let inner = &this.0;
            let key = SigningKey::generate(inner.settings.signing_algorithm)?;
            let sealed = key.seal(&inner.master.first, &inner.entropy)?;
            Ok::<_, KeyError>(Made { key, sealed })
        });
        match making.await {
            Ok(Ok(made)) => Ok(made),
            Ok(Err(error)) => Err(db::Error::Corrupt(error.to_string())),
            Err(stopped) => Err(db::Error::Unavailable(stopped.into())),
        }
    }
}

/// A new key and its sealed form.
struct Made {
    key: SigningKey,
    sealed: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::MasterKey;

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_millis(1_800_000_000_000 + minutes * 60_000)
    }

    fn masters() -> MasterKeys {
        MasterKeys {
            first: MasterKey::new([1; 32]),
            others: Vec::new(),
        }
    }

    fn row(generation: i64, active_from: Timestamp) -> KeyRow {
        let key = SigningKey::generate(SigningAlgorithm::Es256).unwrap();
        KeyRow {
            generation,
            kid: key.kid().to_owned(),
            algorithm: "ES256".to_owned(),
            master_id: masters().first.id(),
            private_key: key.seal(&masters().first, &Entropy::System).unwrap(),
            active_from,
            created_at: active_from,
        }
    }

    fn ring(rows: Vec<KeyRow>) -> Ring {
        Ring::open(rows, &masters(), &Ring::default())
    }

    fn states(ring: &Ring, now: Timestamp) -> Vec<KeyState> {
        ring.iter().map(|held| held.state(now)).collect()
    }

    #[test]
    fn keys_follow_each_other_by_the_clock_alone_and_overlap() {
        let ring = ring(vec![row(2, at(100)), row(1, at(0))]);
        let kid = |now| ring.signer(now).map(|key| key.kid().to_owned());
        let (new, old) = (ring.0[0].kid.clone(), ring.0[1].kid.clone());
        assert_eq!(states(&ring, at(99)), [KeyState::Next, KeyState::Active]);
        assert_eq!(kid(at(99)), Some(old.clone()));
        assert_eq!(ring.published(at(99)).count(), 2);
        // At the very instant, on every node.
        assert_eq!(
            states(&ring, at(100)),
            [KeyState::Active, KeyState::Retired]
        );
        assert_eq!(kid(at(100)), Some(new.clone()));
        // A token of the last moment lives 15 minutes.
        assert!(ring.find(&old, at(115)).is_some());
        assert_eq!(states(&ring, at(116)), [KeyState::Active, KeyState::Ended]);
        assert!(ring.find(&old, at(116)).is_none());
        assert_eq!(ring.published(at(116)).count(), 1);
        assert_eq!(kid(at(10_000)), Some(new));
    }

    #[test]
    fn a_key_that_signs_at_once_takes_over_from_one_that_was_on_its_way() {
        // The one on its way was not given up, as by two who rotate at the same time.
        let ring = ring(vec![row(3, at(50)), row(2, at(55)), row(1, at(0))]);
        let newest = ring.0[0].kid.clone();
        assert_eq!(ring.signer(at(51)).unwrap().kid(), newest);
        assert_eq!(ring.signer(at(56)).unwrap().kid(), newest);
        assert_eq!(
            states(&ring, at(52)),
            [KeyState::Active, KeyState::Next, KeyState::Retired]
        );
    }

    #[test]
    fn what_was_not_sealed_by_us_signs_and_publishes_nothing() {
        let mut planted = row(2, at(10));
        planted.kid = "planted".to_owned();
        let mut foreign = row(3, at(20));
        foreign.master_id = "0123456789abcdef".to_owned();
        let ring = ring(vec![foreign, planted, row(1, at(0))]);
        let own = ring.0[2].kid.clone();
        let kids = |now| {
            ring.published(now)
                .map(|key| key.kid().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(kids(at(15)), [&*own]);
        assert_eq!(ring.signer(at(15)).unwrap().kid(), own);
        // When everybody else has given it up, nothing is signed until a new one is made.
        assert!(ring.signer(at(27)).is_none());
        assert_eq!(ring.due(&Settings::default(), at(27)), Some(at(27)));
    }

    #[test]
    fn a_key_is_due_when_there_is_none_when_one_is_old_and_when_the_algorithm_changed() {
        let settings = Settings {
            signing_rotation: Span::hours(1),
            ..Settings::default()
        };
        assert_eq!(Ring::default().due(&settings, at(0)), Some(at(0)));
        let one = ring(vec![row(1, at(0))]);
        assert_eq!(one.due(&settings, at(49)), None);
        assert_eq!(one.due(&settings, at(50)), Some(at(60)));
        // Nobody looked for a while: it is announced all the same.
        assert_eq!(one.due(&settings, at(500)), Some(at(510)));
        let two = ring(vec![row(2, at(60)), row(1, at(0))]);
        assert_eq!(two.due(&settings, at(55)), None);
        let other = Settings {
            signing_algorithm: SigningAlgorithm::EdDsa,
            ..settings
        };
        assert_eq!(one.due(&other, at(1)), Some(at(11)));
        assert_eq!(two.due(&other, at(55)), None);
    }
}
