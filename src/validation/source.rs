//! The keys and their parents from Redis, where another node may have put them, or from the database.
//!
//! The history and the counter of changes are read before the rows, or the counter at the same instant, so
//! what a load brings is judged by the changes that became known meanwhile like everything else.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::existing::Lesson;
use super::look_ups::LookUps;
use super::snapshot::{Common, ConsumerSnapshot, KeySnapshot, ServiceEntry, TenantSnapshot};
use super::store::{self, KeyRows};
use crate::cache::Reach;
use crate::cache::changes::Entity;
use crate::cache::shelf::{Taken, Ticket};
use crate::cache::{Changes, Entry, Shelf};
use crate::clock::Clock;
use crate::consumers::{self, Consumer};
use crate::db::feed::{self, Kind};
use crate::db::{self, Conn, Db};
use crate::id::{ConsumerId, KeyId, SecretId, TenantId, TokenId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::hash::{HashError, Hasher, Memory};
use crate::keys::pepper::{PepperRing, Peppers};
use crate::keys::pepper_store;
use crate::keys::secret::{ApiKey, LookupId};
use crate::keys::verifier::Verifier;
use crate::keys::verifier_queue::VerifierQueue;
use crate::services::{self, Service};
use crate::tenants::{self, Tenant};
use crate::text::Slug;

/// No load takes longer, whoever still waits.
pub(super) const LOAD_MAX: Duration = Duration::from_secs(2);

/// How long a key stays unknown without another look.
pub(super) const UNKNOWN_US: u64 = 5_000_000;

/// So many fingerprints are on their way under a newer pepper at once.
const REWRITES_MAX: usize = 256;

/// So many fingerprints are read at once.
const PRINTS_MAX: i64 = 5_000;

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
    clock: Clock,
    peppers: Arc<Peppers>,
    hasher: Hasher,
    verifiers: VerifierQueue,
    rewrites: Arc<Semaphore>,
    changes: Changes,
    reach: Reach,
    shelf: Shelf,
    refresh_us: u64,
    common: Arc<Common>,
    look_ups: LookUps,
}

/// What is noted before anything is read: in this order, see [`Shelf::ticket`].
#[derive(Clone, Copy)]
struct Noted {
    epoch: u32,
    ticket: Ticket,
}

/// A service by a name, or that there is none by that name.
pub(super) type Named = Option<Arc<Entry<ServiceEntry>>>;

/// What the database says of a plaintext.
pub(super) enum KeyFound {
    Known(Box<Entry<KeySnapshot>>),
    Unknown { as_of: (u32, i64) },
}

impl Source {
    #[expect(
        clippy::too_many_arguments,
        reason = "a load needs what it needs, and one place makes it"
    )]
    pub(super) fn new(
        db: Db,
        clock: Clock,
        changes: Changes,
        reach: Reach,
        shelf: Shelf,
        peppers: Arc<Peppers>,
        hasher: Hasher,
        verifiers: VerifierQueue,
        refresh: Duration,
    ) -> Self {
        let look_ups = LookUps::new(db.clone(), reach.clone());
        Self {
            db,
            clock,
            peppers,
            hasher,
            verifiers,
            rewrites: Arc::new(Semaphore::new(REWRITES_MAX)),
            changes,
            reach,
            shelf,
            refresh_us: u64::try_from(refresh.as_micros()).unwrap_or(u64::MAX),
            common: Arc::default(),
            look_ups,
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
        let seen = self
            .db
            .read(async move |conn: &mut Conn| -> db::Result<_> {
                let Some(secret) = store::newest_secret(conn, &tenant, &id).await? else {
                    return Ok(None);
                };
                Ok(Some(store::by_secret(conn, secret).await?))
            })
            .await?;
        let Some((head, Some(rows))) = seen else {
            return Ok(None);
        };
        Ok(Some(self.key_entry(rows, (epoch, head))?))
    }

    /// Tells of the fingerprints that there are, on connections that no load waits for. Answers how many those
    /// are.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn teach(&self, mut lesson: Lesson) -> db::Result<usize> {
        loop {
            let (between, now) = (lesson.between(), self.clock.now());
            let secrets = self
                .db
                .read(async move |conn: &mut Conn| {
                    store::fingerprints(conn, between, now, PRINTS_MAX).await
                })
                .await?;
            let is_last = i64::try_from(secrets.len()).is_ok_and(|len| len < PRINTS_MAX);
            if !lesson.tell(&secrets) || is_last {
                return Ok(lesson.end());
            }
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn runtime(&self) -> Handle {
        self.db.runtime()
    }

    fn key_entry(&self, rows: KeyRows, as_of: (u32, i64)) -> db::Result<Entry<KeySnapshot>> {
        let snapshot = KeySnapshot::new(rows, &self.common)?;
        let entity = Entity::new(Kind::Key, snapshot.key_id.as_str());
        Ok(Entry::new(snapshot, as_of, entity, self.refresh_us))
    }

    pub(super) async fn key_of_secret(
        &self,
        id: SecretId,
        is_due: bool,
    ) -> Result<Option<Arc<Entry<KeySnapshot>>>, LoadError> {
        let name = format!("secret:{id}");
        let read = self.db.load(LOAD_MAX, async move |conn: &mut Conn| {
            store::by_secret(conn, id).await
        });
        let entry = |rows, as_of| self.key_entry(rows, as_of);
        let (_, found) = self.load(&name, is_due, read, entry).await?;
        Ok(found.map(Arc::new))
    }

    /// Whether a token was revoked by itself: never `None`.
    pub(super) async fn token(
        &self,
        id: TokenId,
        is_due: bool,
    ) -> Result<Option<Arc<Entry<bool>>>, LoadError> {
        let name = format!("token:{id}");
        let entity = Entity::new(Kind::Token, id.as_str());
        let read = self.db.load(LOAD_MAX, async move |conn: &mut Conn| {
            let as_of = feed::head(conn).await?;
            Ok((as_of, Some(store::is_revoked(conn, &id).await?)))
        });
        let entry = |revoked, as_of| Ok(Entry::new(revoked, as_of, entity, self.refresh_us));
        let (_, found) = self.load(&name, is_due, read, entry).await?;
        Ok(found.map(Arc::new))
    }

    pub(super) async fn tenant(
        &self,
        id: TenantId,
        is_due: bool,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, LoadError> {
        let name = format!("tenant:{id}");
        let read = async move |conn: &mut Conn| tenants::store::load_by_id(conn, &id).await;
        self.tenant_named(&name, is_due, read).await
    }

    pub(super) async fn tenant_of_slug(
        &self,
        slug: Slug,
        is_due: bool,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, LoadError> {
        let name = format!("tenant_slug:{slug}");
        let read = async move |conn: &mut Conn| tenants::store::load_by_slug(conn, &slug).await;
        self.tenant_named(&name, is_due, read).await
    }

    /// Judged by the changes of the tenant, however it is named: no other ever has its slug.
    async fn tenant_named(
        &self,
        name: &str,
        is_due: bool,
        row: impl db::OnConn<db::Result<Option<Tenant>>>,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, LoadError> {
        let read = self.db.load(LOAD_MAX, async move |conn: &mut Conn| {
            let as_of = feed::head(conn).await?;
            Ok((as_of, row(conn).await?))
        });
        let entry = |tenant: Tenant, as_of| {
            let entity = Entity::new(Kind::Tenant, tenant.id.as_str());
            Ok(Entry::new(tenant.into(), as_of, entity, self.refresh_us))
        };
        let (_, found) = self.load(name, is_due, read, entry).await?;
        Ok(found.map(Arc::new))
    }

    pub(super) async fn consumer(
        &self,
        id: ConsumerId,
        is_due: bool,
    ) -> Result<Option<Arc<Entry<ConsumerSnapshot>>>, LoadError> {
        let name = format!("consumer:{id}");
        let read = self.db.load(LOAD_MAX, async move |conn: &mut Conn| {
            let as_of = feed::head(conn).await?;
            Ok((as_of, consumers::store::load_by_id(conn, &id).await?))
        });
        let entry = |consumer: Consumer, as_of| {
            let entity = Entity::new(Kind::Consumer, consumer.id.as_str());
            let snapshot = ConsumerSnapshot::new(consumer)
                .map_err(|error| db::Error::Corrupt(format!("a consumer: {error}")))?;
            Ok(Entry::new(snapshot, as_of, entity, self.refresh_us))
        };
        let (_, found) = self.load(&name, is_due, read, entry).await?;
        Ok(found.map(Arc::new))
    }

    /// Also that there is none by that name is something to remember.
    pub(super) async fn service(
        &self,
        tenant: TenantId,
        reference: &str,
        is_due: bool,
    ) -> Result<Arc<Entry<Named>>, LoadError> {
        let name = format!("service:{tenant}:{reference}");
        let asked = reference.to_owned();
        let read = self.db.load(LOAD_MAX, async move |conn: &mut Conn| {
            let as_of = feed::head(conn).await?;
            Ok((as_of, services::store::find(conn, &tenant, &asked).await?))
        });
        let entry = |service: Service, as_of| {
            let entity = Entity::new(Kind::Service, service.id.as_str());
            let service = ServiceEntry::new(service);
            let entry = Arc::new(Entry::new(service, as_of, entity, self.refresh_us));
            Ok(Entry::new(Some(entry), as_of, entity, self.refresh_us))
        };
        let (as_of, found) = self.load(&name, is_due, read, entry).await?;
        Ok(Arc::new(found.unwrap_or_else(|| {
            Entry::new(None, as_of, Entity::any(Kind::Service), UNKNOWN_US)
        })))
    }

    /// Has everything ready that the first validations would have to wait for.
    pub(super) async fn prepare(&self, tenant: TenantId) {
        let nobody = Fingerprint::from_bytes([0; 32]);
        self.db
            .prepare_loads(LOAD_MAX, async move |conn: &mut Conn| -> db::Result<()> {
                feed::head(conn).await?;
                store::by_fingerprint(conn, vec![nobody]).await?;
                tenants::store::load_by_id(conn, &tenant).await?;
                services::store::find(conn, &tenant, services::BUILT_IN).await?;
                Ok(())
            })
            .await;
    }

    fn note(&self) -> Noted {
        let epoch = self.changes.epoch();
        Noted {
            epoch,
            ticket: self.shelf.ticket(),
        }
    }

    /// What stands on the shelf by the name, unless something is known to have changed since, or it
    /// is due; else what `read` brings: the counter, and the rows that were read after it. What is due
    /// stands in for a database that does not answer.
    async fn load<R, T>(
        &self,
        name: &str,
        is_due: bool,
        read: impl Future<Output = db::Result<(i64, Option<R>)>>,
        entry: impl Fn(R, (u32, i64)) -> db::Result<Entry<T>>,
    ) -> Result<((u32, i64), Option<Entry<T>>), LoadError>
    where
        R: Serialize + DeserializeOwned,
    {
        let noted = self.note();
        let kept = if is_due {
            None
        } else {
            let names = [name.to_owned()];
            let taken = self.shelf.take::<R>(noted.ticket, &names).await;
            taken.and_then(|(_, taken)| self.kept(noted, taken, &entry))
        };
        let kept = match kept {
            Some(kept) if !kept.is_due(Clock::uptime_us()) => {
                return Ok(((noted.epoch, kept.as_of), Some(kept)));
            }
            kept => kept,
        };
        let found = match reachable(&self.reach) {
            Ok(()) => read.await,
            Err(away) => Err(away),
        };
        match (found, kept) {
            (Ok((as_of, rows)), _) => {
                let as_of = (noted.epoch, as_of);
                let Some(rows) = rows else {
                    return Ok((as_of, None));
                };
                self.shelf.put(noted.ticket, name, as_of.1, &rows);
                Ok((as_of, Some(entry(rows, as_of)?)))
            }
            (Err(_), Some(kept)) => {
                kept.postpone();
                Ok(((noted.epoch, kept.as_of), Some(kept)))
            }
            (Err(error), None) => Err(error.into()),
        }
    }

    /// An entry of rows from the shelf, if nothing is known to have changed since they were read.
    fn kept<R, T>(
        &self,
        noted: Noted,
        taken: Taken<R>,
        entry: impl Fn(R, (u32, i64)) -> db::Result<Entry<T>>,
    ) -> Option<Entry<T>> {
        let entry = entry(taken.rows, (noted.epoch, taken.as_of)).ok()?;
        let entry = entry.aged(taken.age_us);
        entry.is_fresh(&self.changes).then_some(entry)
    }

    /// The key of a plaintext, as [`Self::load`] finds things.
    pub(super) async fn key(
        &self,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
        is_due: bool,
    ) -> Result<KeyFound, LoadError> {
        let noted = self.note();
        let kept = if is_due {
            None
        } else {
            self.key_on_shelf(noted, key).await
        };
        let kept = match kept {
            Some(kept) if !kept.is_due(Clock::uptime_us()) => {
                return Ok(KeyFound::Known(Box::new(kept)));
            }
            kept => kept,
        };
        match (self.key_in_database(noted, key, lookup_id).await, kept) {
            (Err(_), Some(kept)) => {
                kept.postpone();
                Ok(KeyFound::Known(Box::new(kept)))
            }
            (found, _) => found,
        }
    }

    async fn key_on_shelf(&self, noted: Noted, key: &ApiKey) -> Option<Entry<KeySnapshot>> {
        let ring = self.peppers.ring();
        let (versions, names): (Vec<i32>, Vec<String>) = ring
            .prints(key)
            .map(|(version, print)| (version, key_name(&print)))
            .unzip();
        let (at, taken) = self.shelf.take(noted.ticket, &names).await?;
        let entry = self.kept(noted, taken, |rows, as_of| self.key_entry(rows, as_of))?;
        self.refresh(key, &entry, versions.get(at).copied(), false);
        Some(entry)
    }

    /// Looks a key up by its fingerprint under every pepper version we can compute.
    async fn key_in_database(
        &self,
        noted: Noted,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
    ) -> Result<KeyFound, LoadError> {
        let mut ring = self.peppers.ring();
        let as_of = loop {
            let prints: Vec<Fingerprint> = ring.prints(key).map(|(_, print)| print).collect();
            let name = prints.first().map(key_name);
            let seen = self.look_ups.key(prints).await?;
            let as_of = (noted.epoch, seen.head);
            if let Some(hit) = seen.found {
                if let Some(name) = name {
                    self.shelf.put(noted.ticket, &name, as_of.1, &hit.rows);
                }
                let entry = self.key_entry(hit.rows, as_of)?;
                self.refresh(key, &entry, hit.pepper_version, hit.verifier_missing);
                return Ok(KeyFound::Known(Box::new(entry)));
            }
            // A node that lags behind a rotation must never say unknown.
            let current = seen
                .current_pepper
                .ok_or_else(pepper_store::none_is_current)?;
            if ring.computes(current) || ring.current() == Some(current) {
                break as_of;
            }
            ring = self.newer_ring(current).await?;
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
            let (head, rows) = self
                .db
                .load(LOAD_MAX, async move |conn: &mut Conn| {
                    store::by_secret(conn, id).await
                })
                .await?;
            if let Some(rows) = rows {
                let entry = self.key_entry(rows, (epoch, head))?;
                return Ok(KeyFound::Known(Box::new(entry)));
            }
        }
        // Another request may have brought the secret under the current pepper meanwhile.
        let prints: Vec<Fingerprint> = ring.prints(key).map(|(_, print)| print).collect();
        let (head, hit) = self
            .db
            .load(LOAD_MAX, async move |conn: &mut Conn| {
                store::by_fingerprint(conn, prints).await
            })
            .await?;
        let as_of = (epoch, head);
        Ok(match hit {
            Some(hit) => KeyFound::Known(Box::new(self.key_entry(hit.rows, as_of)?)),
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
                    store::by_fingerprint(conn, vec![print]).await
                })
                .await;
            // Not to know costs a run, no more.
            matches!(hit, Ok((_, Some(hit))) if *hit.rows.secret_id() == secret)
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
                .push([(snapshot.secret_id.clone(), key.clone())]);
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
        let secret = snapshot.secret_id.clone();
        let rewritten = rewrite(self.db.clone(), secret, version, (current, print));
        self.db.runtime().spawn(async move {
            let _place = place;
            rewritten.await;
        });
    }
}

/// Nobody waits for a database that is known to be away.
pub(super) fn reachable(reach: &Reach) -> db::Result<()> {
    if reach.is_database_away() {
        return Err(db::Error::Unavailable(anyhow::anyhow!(
            "the database is away"
        )));
    }
    Ok(())
}

/// What a key is called on the shelf.
fn key_name(print: &Fingerprint) -> String {
    format!("key:{}", hex::encode(print.as_bytes()))
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
