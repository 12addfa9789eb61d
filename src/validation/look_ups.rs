//! Keys by the fingerprints of their plaintexts: several by one statement where they are asked for at the same
//! time.

use std::time::Duration;

use futures_util::FutureExt as _;

use super::source::{LOAD_MAX, LoadError, reachable};
use super::store::{self, Hit, Seen};
use crate::cache::Reach;
use crate::cache::{Asking, Together};
use crate::db::{self, Conn, Db};
use crate::keys::fingerprint::Fingerprint;

/// So many go with one statement, while it is quick.
const TOGETHER_MAX: usize = 32;

/// So many of those statements run at once while they are quick: more would have a cold start take the machine
/// from the database and from who asks for keys that are known.
const STATEMENTS_MAX: usize = 2;

/// So many are asked for at once.
pub(super) const AT_ONCE: usize = STATEMENTS_MAX * TOGETHER_MAX;

/// A statement that takes longer waits for a disk or for a fault, and not for the processors that others wait for.
const QUICK: Duration = Duration::from_millis(50);

/// Of one plaintext.
type Found = Result<Seen<Option<Hit>>, LoadError>;

/// Look-ups in the database. Cheap to clone.
#[derive(Clone)]
pub(super) struct LookUps {
    reach: Reach,
    together: Together<Vec<Fingerprint>, Found>,
}

impl LookUps {
    pub(super) fn new(db: Db, reach: Reach) -> Self {
        let together = Together::new(Asking {
            runtime: db.runtime(),
            askings_max: STATEMENTS_MAX,
            questions_max: TOGETHER_MAX,
            quick: QUICK,
            ask: {
                let reach = reach.clone();
                Box::new(move |plaintexts| look_up(db.clone(), reach.clone(), plaintexts).boxed())
            },
        });
        Self { reach, together }
    }

    /// The key that one of these fingerprints is of, under whichever pepper.
    pub(super) async fn key(&self, prints: Vec<Fingerprint>) -> Found {
        reachable(&self.reach)?;
        let found = self.together.answer(prints).await;
        found.unwrap_or(Err(LoadError::Busy))
    }
}

/// The keys of these plaintexts, each in its place. If that fails for something about one of them, that one is
/// found by halves.
async fn look_up(db: Db, reach: Reach, plaintexts: Vec<Vec<Fingerprint>>) -> Vec<Found> {
    let mut found = Vec::with_capacity(plaintexts.len());
    let mut parts = vec![plaintexts];
    while let Some(mut part) = parts.pop() {
        let asked = part.clone();
        // It may have gone away since they came.
        let looked = match reachable(&reach) {
            Ok(()) => {
                let look = async move |conn: &mut Conn| store::by_fingerprints(conn, &asked).await;
                db.load(LOAD_MAX, look).await
            }
            Err(away) => Err(away),
        };
        match looked {
            Ok(seen) => found.extend(seen.each()),
            Err(db::Error::Query(_) | db::Error::Corrupt(_)) if part.len() > 1 => {
                let behind = part.split_off(part.len() / 2);
                parts.extend([behind, part]);
            }
            Err(error @ (db::Error::Query(_) | db::Error::Corrupt(_))) => {
                found.push(Err(error.into()));
            }
            Err(error) => {
                let error = LoadError::from(error);
                let left = part.len() + parts.iter().map(Vec::len).sum::<usize>();
                found.extend((0..left).map(|_| Err(error.clone())));
                break;
            }
        }
    }
    found
}

impl Seen<Vec<db::Result<Option<Hit>>>> {
    /// What was seen of each, in its place.
    fn each(self) -> impl Iterator<Item = Found> {
        let (head, current_pepper) = (self.head, self.current_pepper);
        self.found.into_iter().map(move |hit| {
            Ok(Seen {
                head,
                current_pepper,
                found: hit?,
            })
        })
    }
}
