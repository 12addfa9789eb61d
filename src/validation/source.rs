//! The keys and their parents from the database.
//!
//! The history and the counter of changes are read before the rows, so what a load brings is judged by
//! the changes that became known meanwhile like everything else.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::snapshot::{ConsumerSnapshot, KeySnapshot, ServiceEntry, TenantSnapshot};
use super::store;
use crate::cache::changes::Entity;
use crate::cache::{Changes, Entry};
use crate::consumers;
use crate::db::feed::{self, Kind};
use crate::db::{self, Conn, Db};
use crate::id::{ConsumerId, KeyId, SecretId, TenantId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::hash::{HashError, Hasher, Memory};
use crate::keys::pepper::{PepperRing, Peppers};
use crate::keys::pepper_store;
use crate::keys::secret::{ApiKey, LookupId};
use crate::keys::verifier::Verifier;
use crate::keys::verifier_queue::VerifierQueue;
use crate::services;
use crate::tenants;

/// No load takes longer, whoever still waits.
const LOAD_MAX: Duration = Duration::from_secs(2);

/// How long a key stays unknown without another look.
pub(super) const UNKNOWN_US: u64 = 5_000_000;

/// So many fingerprints are on their way under a newer pepper at once.
const REWRITES_MAX: usize = 256;

/// Why a load has nothing.
#[derive(Clone, Debug)]
pub(super) enum LoadError {
    Store(Arc<db::Error>),
    Busy,
}

impl From<db::Error> for LoadError {
    fn from(error: db::Error) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// What a load needs.
#[derive(Clone)]
pub(super) struct Source {
    db: Db,
    peppers: Arc<Peppers>,
    hasher: Hasher,
    verifiers: VerifierQueue,
    rewrites: Arc<Semaphore>,
    changes: Changes,
    refresh_us: u64,
}

/// What the database says of a plaintext.
pub(super) enum KeyFound {
    Known(Box<Entry<KeySnapshot>>),
    Unknown { as_of: (u64, i64) },
}

impl Source {
    pub(super) fn new(
        db: Db,
        changes: Changes,
        peppers: Arc<Peppers>,
        hasher: Hasher,
        verifiers: VerifierQueue,
        refresh: Duration,
    ) -> Self {
        Self {
            db,
            peppers,
            hasher,
            verifiers,
            rewrites: Arc::new(Semaphore::new(REWRITES_MAX)),
            changes,
            refresh_us: u64::try_from(refresh.as_micros()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn ring(&self) -> Arc<PepperRing> {
        self.peppers.ring()
    }

    /// A key by its id, as its newest secret would prove it.
    pub(super) async fn key_by_id(
        &self,
        tenant: TenantId,
        id: KeyId,
    ) -> db::Result<Option<Entry<KeySnapshot>>> {
        let epoch = self.changes.epoch();
        let (as_of, snapshot) = self
            .db
            .read(async move |conn: &mut Conn| -> db::Result<_> {
                let as_of = (epoch, feed::head(conn).await?);
                Ok((as_of, store::by_key(conn, &tenant, &id).await?))
            })
            .await?;
        Ok(snapshot.map(|snapshot| self.entry_of(snapshot, as_of)))
    }

    pub(super) fn entry_of(&self, snapshot: KeySnapshot, as_of: (u64, i64)) -> Entry<KeySnapshot> {
        let entity = Entity::new(Kind::Key, snapshot.key_id.as_str());
        Entry::new(snapshot, as_of, entity, self.refresh_us)
    }

    pub(super) async fn tenant(
        &self,
        id: TenantId,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, LoadError> {
        let epoch = self.changes.epoch();
        let found = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                let as_of = (epoch, feed::head(conn).await?);
                Ok((as_of, tenants::store::load_by_id(conn, &id).await?))
            })
            .await?;
        let (as_of, tenant) = found;
        Ok(tenant.map(|tenant| {
            let entity = Entity::new(Kind::Tenant, tenant.id.as_str());
            Arc::new(Entry::new(tenant.into(), as_of, entity, self.refresh_us))
        }))
    }

    pub(super) async fn consumer(
        &self,
        id: ConsumerId,
    ) -> Result<Option<Arc<Entry<ConsumerSnapshot>>>, LoadError> {
        let epoch = self.changes.epoch();
        let found = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                let as_of = (epoch, feed::head(conn).await?);
                Ok((as_of, consumers::store::load_by_id(conn, &id).await?))
            })
            .await?;
        let (as_of, Some(consumer)) = found else {
            return Ok(None);
        };
        let entity = Entity::new(Kind::Consumer, consumer.id.as_str());
        let snapshot = ConsumerSnapshot::new(consumer)
            .map_err(|error| db::Error::Corrupt(format!("a consumer: {error}")))?;
        Ok(Some(Arc::new(Entry::new(
            snapshot,
            as_of,
            entity,
            self.refresh_us,
        ))))
    }

    /// Also that there is none by that name is something to remember.
    pub(super) async fn service(
        &self,
        tenant: TenantId,
        reference: &str,
    ) -> Result<Arc<Entry<Option<Arc<Entry<ServiceEntry>>>>>, LoadError> {
        let epoch = self.changes.epoch();
        let reference = reference.to_owned();
        let (as_of, service) = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                let as_of = (epoch, feed::head(conn).await?);
                let service = services::store::find(conn, &tenant, &reference).await?;
                Ok((as_of, service))
            })
            .await?;
        let Some(service) = service else {
            let any = Entity::any(Kind::Service);
            return Ok(Arc::new(Entry::new(None, as_of, any, UNKNOWN_US)));
        };
        let entity = Entity::new(Kind::Service, service.id.as_str());
        let entry = Arc::new(Entry::new(
            ServiceEntry::new(service),
            as_of,
            entity,
            self.refresh_us,
        ));
        Ok(Arc::new(Entry::new(
            Some(entry),
            as_of,
            entity,
            self.refresh_us,
        )))
    }

    /// Looks a key up by its fingerprint under every pepper version we can compute.
    pub(super) async fn key(
        &self,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
    ) -> Result<KeyFound, LoadError> {
        let epoch = self.changes.epoch();
        let mut ring = self.peppers.ring();
        let as_of = loop {
            let prints: Vec<Fingerprint> = ring.prints(key).map(|(_, print)| print).collect();
            let (as_of, hit, current) = self
                .db
                .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                    let as_of = (epoch, feed::head(conn).await?);
                    match store::by_fingerprint(conn, &prints).await? {
                        Some(hit) => Ok((as_of, Some(hit), None)),
                        None => Ok((as_of, None, Some(pepper_store::current_in(conn).await?))),
                    }
                })
                .await?;
            if let Some(hit) = hit {
                self.refresh(key, &hit.snapshot, hit.pepper_version, hit.verifier_missing);
                let entry = self.entry_of(hit.snapshot, as_of);
                return Ok(KeyFound::Known(Box::new(entry)));
            }
            match current {
                // A node that lags behind a rotation must never say unknown.
                Some(current) if !ring.computes(current) && ring.current() != Some(current) => {
                    ring = self.newer_ring(current).await?;
                }
                Some(_) | None => break as_of,
            }
        };
        match lookup_id {
            Some(lookup_id) if ring.has_lost() => self.by_verifier(key, lookup_id, &ring).await,
            Some(_) | None => Ok(KeyFound::Unknown { as_of }),
        }
    }

    async fn newer_ring(&self, current: i32) -> Result<Arc<PepperRing>, LoadError> {
        let peppers = Arc::clone(&self.peppers);
        let newer = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| {
                peppers.reload(conn).await
            })
            .await?;
        if newer.computes(current) {
            return Ok(newer);
        }
        Err(db::Error::Corrupt(format!(
            "the pepper version {current} cannot be computed by this node"
        ))
        .into())
    }

    /// The slow way: secrets of this lookup id under a lost pepper, proven by argon2id.
    async fn by_verifier(
        &self,
        key: &ApiKey,
        lookup_id: &LookupId,
        ring: &PepperRing,
    ) -> Result<KeyFound, LoadError> {
        let epoch = self.changes.epoch();
        let (lookup_id, computable) = (lookup_id.clone(), ring.computable());
        let candidates = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| {
                store::unproven(conn, &lookup_id, &computable).await
            })
            .await?;
        for candidate in candidates {
            let Ok(verifier) = Verifier::parse(&candidate.verifier) else {
                continue;
            };
            let memory = self.memory(ring, key, &candidate);
            let proved = self
                .hasher
                .verify(&candidate.secret, &verifier, key, memory);
            match proved.await {
                Ok(true) => {}
                Ok(false) | Err(HashError::Failed) => continue,
                Err(HashError::Busy) => return Err(LoadError::Busy),
            }
            let id = candidate.secret;
            let (as_of, snapshot) = self
                .db
                .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                    let as_of = (epoch, feed::head(conn).await?);
                    Ok((as_of, store::by_secret(conn, &id).await?))
                })
                .await?;
            if let Some(snapshot) = snapshot {
                return Ok(KeyFound::Known(Box::new(self.entry_of(snapshot, as_of))));
            }
        }
        // Another request may have brought the secret under the current pepper meanwhile.
        let prints: Vec<Fingerprint> = ring.prints(key).map(|(_, print)| print).collect();
        let (as_of, hit) = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                let as_of = (epoch, feed::head(conn).await?);
                Ok((as_of, store::by_fingerprint(conn, &prints).await?))
            })
            .await?;
        Ok(match hit {
            Some(hit) => KeyFound::Known(Box::new(self.entry_of(hit.snapshot, as_of))),
            None => KeyFound::Unknown { as_of },
        })
    }

    /// A secret that its verifier proves is brought under the current pepper before anybody is told,
    /// so it need not be proved again.
    fn memory(&self, ring: &PepperRing, key: &ApiKey, candidate: &store::Unproven) -> Memory {
        let under_current = ring
            .current()
            .and_then(|current| Some((current, ring.fingerprint_under(current, key)?)));
        let Some((current, print)) = under_current else {
            return Memory::none();
        };
        let (db, secret) = (self.db.clone(), candidate.secret.clone());
        let proved = async move {
            let hit = db
                .load(LOAD_MAX, async move |conn: &mut Conn| {
                    store::by_fingerprint(conn, &[print]).await
                })
                .await;
            // Not to know costs a run, no more.
            matches!(hit, Ok(Some(hit)) if hit.snapshot.secret.id == secret)
        };
        let (secret, version) = (candidate.secret.clone(), candidate.pepper_version);
        Memory {
            proved: Box::pin(proved),
            keep: Box::pin(rewrite(self.db.clone(), secret, version, (current, print))),
        }
    }

    /// In the background: brings a fingerprint under the current pepper, from the plaintext in
    /// hand, and computes a verifier that is still missing.
    pub(super) fn refresh(
        &self,
        key: &ApiKey,
        snapshot: &KeySnapshot,
        version: Option<i32>,
        verifier_missing: bool,
    ) {
        if verifier_missing {
            self.verifiers
                .push([(snapshot.secret.id.clone(), key.clone())]);
        }
        let ring = self.peppers.ring();
        let Some(current) = ring.current() else {
            return;
        };
        if version.is_some_and(|version| version >= current) {
            return;
        }
        let Some(print) = ring.fingerprint_under(current, key) else {
            return;
        };
        let Ok(place) = Arc::clone(&self.rewrites).try_acquire_owned() else {
            // There are enough on the way; this one moves at a later load.
            return;
        };
        let secret = snapshot.secret.id.clone();
        let rewritten = rewrite(self.db.clone(), secret, version, (current, print));
        self.db.runtime().spawn(async move {
            let _place = place;
            rewritten.await;
        });
    }
}

/// Brings a secret's fingerprint from version `from` under the current pepper.
async fn rewrite(db: Db, secret: SecretId, from: Option<i32>, (to, print): (i32, Fingerprint)) {
    let rewritten = db
        .write(async move |conn: &mut Conn| {
            pepper_store::rewrite_fingerprint(conn, &secret, from, to, &print).await
        })
        .await;
    if let Err(error) = rewritten {
        tracing::warn!(%error, "a fingerprint could not be rewritten; a later load tries again");
    }
}
