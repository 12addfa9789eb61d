//! The keys and their parents: from memory if that may be used, else from [`source`](super::source).
//!
//! A load is one task a key, whoever waits. The counter of changes is read before the rows, so what
//! a load brings is judged by the changes that became known meanwhile like everything else.

mod loads;
mod now;

use std::hash::{Hash, Hasher as StdHasher};
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::try_join3;
pub use now::Now;
use quick_cache::Equivalent;
use smallvec::SmallVec;
use tokio::runtime::Handle;

use self::loads::{AT_ONCE, Loaded, Loads, Way};
use super::Failure;
use super::failures::{Attempt, Failures, Presented};
use super::look_ups;
use super::snapshot::{ConsumerSnapshot, KeySnapshot, ServiceEntry, Subject, TenantSnapshot};
use super::source::{KeyFound, LoadError, Named, Source, UNKNOWN_US};
use crate::cache::Reach;
use crate::cache::changes::Entity;
use crate::cache::entries::Found;
use crate::cache::flights::NoLanding;
use crate::cache::{Changes, Entries, Entry, Shelf};
use crate::clock::Clock;
use crate::config::Cache as CacheSettings;
use crate::db::feed::Kind;
use crate::db::{self, Db};
use crate::id::{ConsumerId, KeyId, SecretId, TenantId, TokenId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::hash::Hasher;
use crate::keys::pepper::{COMPUTABLE_MAX, Peppers};
use crate::keys::secret::{ApiKey, LookupId};
use crate::keys::verifier_queue::VerifierQueue;
use crate::services::OnOutage;
use crate::text::Slug;

/// So many unknown keys are remembered.
const UNKNOWN_MAX: usize = 50_000;

/// So many of each kind of parent are remembered.
const PARENTS_MAX: usize = 200_000;

/// Of so many tokens it is remembered whether they were revoked.
const TOKENS_MAX: usize = 100_000;

/// A service as a request names it: by slug or id, within a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ServiceName(TenantId, Box<str>);

/// The same, not owned.
struct ServiceNameRef<'a>(&'a TenantId, &'a str);

impl Hash for ServiceName {
    fn hash<H: StdHasher>(&self, state: &mut H) {
        ServiceNameRef(&self.0, &self.1).hash(state);
    }
}

impl Hash for ServiceNameRef<'_> {
    fn hash<H: StdHasher>(&self, state: &mut H) {
        state.write(self.0.as_str().as_bytes());
        state.write(self.1.as_bytes());
    }
}

impl Equivalent<ServiceName> for ServiceNameRef<'_> {
    fn equivalent(&self, key: &ServiceName) -> bool {
        *self.0 == key.0 && *self.1 == *key.1
    }
}

/// What is remembered of one kind by id, and the loads of it.
struct Kept<K, T> {
    entries: Entries<K, T>,
    loads: Loads<K, T>,
}

impl<K, T> Kept<K, T>
where
    K: Hash + Eq + Clone + Send + 'static,
    T: Send + Sync + 'static,
{
    fn new(entries_max: usize, runtime: &Handle) -> Self {
        Self {
            entries: Entries::new(entries_max),
            loads: Loads::new(runtime, AT_ONCE),
        }
    }
}

/// What is remembered, and where the rest is. Cheap to clone.
#[derive(Clone)]
pub struct Records(Arc<Inner>);

struct Inner {
    source: Source,
    changes: Changes,
    reach: Reach,
    keys: Entries<Fingerprint, KeySnapshot>,
    consumers: Kept<ConsumerId, ConsumerSnapshot>,
    tenants: Kept<TenantId, TenantSnapshot>,
    /// The same, as people and callers name them.
    tenants_by_slug: Kept<Slug, TenantSnapshot>,
    services: Entries<ServiceName, Named>,
    unknown: Entries<Fingerprint, ()>,
    /// Keys by a secret that a token was made from.
    of_secrets: Kept<SecretId, KeySnapshot>,
    /// Whether a token was revoked by itself.
    tokens: Kept<TokenId, bool>,
    failures: Arc<Failures>,
    key_loads: Loads<Fingerprint, KeySnapshot>,
    service_loads: Loads<ServiceName, Named>,
}

impl Records {
    #[expect(
        clippy::too_many_arguments,
        reason = "what a load needs is handed on to the source"
    )]
    pub fn new(
        db: Db,
        clock: Clock,
        changes: Changes,
        reach: Reach,
        shelf: Shelf,
        peppers: Arc<Peppers>,
        hasher: Hasher,
        verifiers: VerifierQueue,
        settings: &CacheSettings,
    ) -> Self {
        let runtime = db.runtime();
        Self(Arc::new(Inner {
            source: Source::new(
                db,
                clock,
                changes.clone(),
                reach.clone(),
                shelf,
                peppers,
                hasher,
                verifiers,
                settings.refresh.duration(),
            ),
            changes,
            reach,
            keys: Entries::new(settings.entries_max),
            consumers: Kept::new(PARENTS_MAX, &runtime),
            tenants: Kept::new(PARENTS_MAX, &runtime),
            tenants_by_slug: Kept::new(PARENTS_MAX, &runtime),
            services: Entries::new(PARENTS_MAX),
            unknown: Entries::new(UNKNOWN_MAX),
            of_secrets: Kept::new(settings.entries_max, &runtime),
            tokens: Kept::new(TOKENS_MAX, &runtime),
            failures: Arc::new(Failures::new()),
            key_loads: Loads::new(&runtime, look_ups::AT_ONCE),
            service_loads: Loads::new(&runtime, AT_ONCE),
        }))
    }

    /// See [`Source::prepare`].
    pub async fn prepare(&self, tenant: TenantId) {
        self.0.source.prepare(tenant).await;
    }

    /// How many keys are remembered.
    pub fn keys_len(&self) -> usize {
        self.0.keys.len()
    }

    /// The key of a plaintext; `None` for one that is unknown. `client` is who presents it, if that is
    /// known.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn key(
        &self,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
        client: Option<IpAddr>,
    ) -> Result<Option<Arc<Entry<KeySnapshot>>>, Failure> {
        let (inner, now_us) = (&*self.0, Clock::uptime_us());
        if !inner.changes.may_use(now_us) {
            return Err(cut_off());
        }
        let ring = inner.source.ring();
        let mut due = None;
        let mut prints = SmallVec::<[Fingerprint; COMPUTABLE_MAX]>::new();
        for (version, print) in ring.prints(key) {
            match inner.keys.find(&print, &inner.changes, now_us) {
                Found::Fresh(entry) => {
                    if let Some(current) = prints.first() {
                        // A pepper was rotated: the entry, and the secret, move on.
                        inner.keys.keep(*current, Arc::clone(&entry));
                        inner.source.refresh(key, &entry, Some(version), false);
                    }
                    return Ok(Some(entry));
                }
                Found::Due(entry) => due = Some(entry),
                Found::Nothing => {}
            }
            prints.push(print);
        }
        let Some(&print) = prints.first() else {
            return Err(cut_off());
        };
        if due.is_none()
            && matches!(
                inner.unknown.find(&print, &inner.changes, now_us),
                Found::Fresh(_)
            )
        {
            return Ok(None);
        }
        let loads = &inner.key_loads;
        // What was there before is no guess, whatever changed of it.
        let is_no_guess = due.is_some() || inner.keys.has(&print);
        let presented = Presented {
            client,
            lookup_id,
            prints: &prints,
        };
        // Who waits for a look-up that is under way makes none; who may not look stands in nobody's way.
        let may_look = || inner.failures.has(presented, now_us);
        if !is_no_guess && !loads.is_under_way(&print) && !may_look() {
            return Err(self.refused(now_us));
        }
        let way = match loads.way(&print, due.is_some()).await {
            Ok(way) => way,
            Err(why) => return or_due(Err(inner.failure(why)), due, &inner.changes),
        };
        if way.was_waited_for()
            && let Some(landed) = inner.landed_before(&print)
        {
            return Ok(landed);
        }
        // Taken only now: of good keys that come together no more than have their
        // turn use any up.
        let attempt = match way {
            Way::Turn(_) if !is_no_guess => {
                let now_us = Clock::uptime_us();
                let attempt = inner.failures.take(presented, now_us);
                Some(attempt.ok_or_else(|| self.refused(now_us))?)
            }
            Way::Turn(_) | Way::Begun(_) => None,
        };
        self.load_key(way, print, key, lookup_id, due, attempt)
            .await
    }

    /// Learns which keys there are, so that the next good one is not refused.
    fn refused(&self, now_us: u64) -> Failure {
        let inner = &*self.0;
        let now = inner.source.clock().now();
        if let Some(lesson) = inner.failures.existing.learn(now_us, now) {
            let records = self.clone();
            inner.source.runtime().spawn(async move {
                match records.0.source.teach(lesson).await {
                    Ok(count) => tracing::debug!(count, "look-ups are refused: keys were learned"),
                    Err(error) => {
                        tracing::warn!(%error, "it could not be learned which keys there are");
                    }
                }
            });
        }
        Failure::Busy
    }

    async fn load_key(
        &self,
        way: Way<KeySnapshot>,
        print: Fingerprint,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
        due: Option<Arc<Entry<KeySnapshot>>>,
        attempt: Option<Attempt>,
    ) -> Result<Option<Arc<Entry<KeySnapshot>>>, Failure> {
        let inner = &*self.0;
        let is_due = due.is_some();
        let attempt = attempt.map(Arc::new);
        let loaded = inner
            .settle(&inner.key_loads, way, print, || {
                let (records, key, lookup_id) = (self.clone(), key.clone(), lookup_id.cloned());
                let attempt = attempt.clone();
                async move {
                    if let Some(landed) = records.0.landed_before(&print) {
                        return Ok(landed);
                    }
                    let source = &records.0.source;
                    let found = source.key(&key, lookup_id.as_ref(), is_due).await?;
                    Ok(match found {
                        KeyFound::Known(entry) => {
                            let entry = Arc::new(*entry);
                            records.0.keys.keep(print, Arc::clone(&entry));
                            Some(entry)
                        }
                        KeyFound::Unknown { as_of } => {
                            // From now on it is a guess.
                            records.0.keys.remove(&print);
                            if let Some(attempt) = attempt {
                                attempt.found_nothing(Clock::uptime_us());
                            }
                            if let Some(lookup_id) = lookup_id {
                                let entity = Entity::new(Kind::LookupId, lookup_id.as_str());
                                let entry = Entry::new((), as_of, entity, UNKNOWN_US);
                                records.0.unknown.keep(print, Arc::new(entry));
                            }
                            None
                        }
                    })
                }
            })
            .await;
        or_due(loaded, due, &inner.changes)
    }

    /// The key of a secret that something of ours proves; `None` for one that is not there.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn key_of_secret(
        &self,
        id: &SecretId,
    ) -> Result<Option<Arc<Entry<KeySnapshot>>>, Failure> {
        let (inner, now_us) = (&*self.0, Clock::uptime_us());
        if !inner.changes.may_use(now_us) {
            return Err(cut_off());
        }
        let load = |records: Self, id, is_due| async move {
            records.0.source.key_of_secret(id, is_due).await
        };
        self.remembered(|inner| &inner.of_secrets, id, now_us, load)
            .await
    }

    /// Whether a token was revoked by itself.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn token(&self, id: &TokenId) -> Result<Arc<Entry<bool>>, Failure> {
        let (inner, now_us) = (&*self.0, Clock::uptime_us());
        if !inner.changes.may_use(now_us) {
            return Err(cut_off());
        }
        let load =
            |records: Self, id, is_due| async move { records.0.source.token(id, is_due).await };
        let token = self
            .remembered(|inner| &inner.tokens, id, now_us, load)
            .await?;
        token.ok_or_else(cut_off)
    }

    /// Whether nothing of it was changed since it was loaded, as far as is known at this instant.
    pub fn holds_token(&self, entry: &Entry<bool>) -> bool {
        entry.is_fresh(&self.0.changes)
    }

    /// Whether nothing of it was changed since it was loaded, as far as is known at this instant.
    pub fn holds_service(&self, entry: &Entry<ServiceEntry>) -> bool {
        entry.is_fresh(&self.0.changes)
    }

    /// Whether nothing of it was changed since it was loaded, as far as is known at this instant.
    pub fn holds(&self, subject: &Subject) -> bool {
        let changes = &self.0.changes;
        changes.may_use(Clock::uptime_us())
            && subject.key.is_fresh(changes)
            && subject.consumer.is_fresh(changes)
            && subject.tenant.is_fresh(changes)
            && subject
                .service
                .as_ref()
                .is_none_or(|service| service.is_fresh(changes))
    }

    /// Joins a key with its parents and the service asked for.
    ///
    /// # Errors
    /// [`Failure`] when one of them cannot be found out just now.
    pub async fn join(
        &self,
        key: Arc<Entry<KeySnapshot>>,
        service: Option<&str>,
    ) -> Result<Subject, Failure> {
        let now_us = Clock::uptime_us();
        let gone = |what: &str| {
            db::Error::Corrupt(format!("the {what} of the key {} is gone", key.key_id))
        };
        let asks_service = service.is_some();
        let named = async {
            match service {
                Some(reference) => self.service(&key.owner.tenant_id, reference, now_us).await,
                None => Ok(None),
            }
        };
        // At the same time: the slowest of them is waited for, not each in turn.
        let (tenant, consumer, service) = try_join3(
            self.tenant(&key.owner.tenant_id, now_us),
            self.consumer(&key.owner.consumer_id, now_us),
            named,
        )
        .await?;
        let tenant = tenant.ok_or_else(|| gone("tenant"))?;
        let consumer = consumer.ok_or_else(|| gone("consumer"))?;
        if service
            .as_ref()
            .is_some_and(|entry| self.0.is_out_for(entry))
        {
            return Err(away());
        }
        Ok(Subject {
            key,
            consumer,
            tenant,
            service,
            asks_service,
            narrowed: None,
        })
    }

    async fn tenant(
        &self,
        id: &TenantId,
        now_us: u64,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, Failure> {
        let load = |records: Self, id, is_due| async move {
            let inner = &*records.0;
            let loaded = inner.source.tenant(id, is_due).await?;
            Ok(loaded.inspect(|entry| {
                let slugs = &inner.tenants_by_slug.entries;
                slugs.keep(entry.slug.clone(), Arc::clone(entry));
            }))
        };
        self.remembered(|inner| &inner.tenants, id, now_us, load)
            .await
    }

    /// A tenant by its slug, in whatever state; `None` where there is none, which is asked for each time.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn tenant_of_slug(
        &self,
        slug: &Slug,
    ) -> Result<Option<Arc<Entry<TenantSnapshot>>>, Failure> {
        let (inner, now_us) = (&*self.0, Clock::uptime_us());
        if !inner.changes.may_use(now_us) {
            return Err(cut_off());
        }
        let load = |records: Self, slug, is_due| async move {
            records.0.source.tenant_of_slug(slug, is_due).await
        };
        self.remembered(|inner| &inner.tenants_by_slug, slug, now_us, load)
            .await
    }

    async fn consumer(
        &self,
        id: &ConsumerId,
        now_us: u64,
    ) -> Result<Option<Arc<Entry<ConsumerSnapshot>>>, Failure> {
        let load =
            |records: Self, id, is_due| async move { records.0.source.consumer(id, is_due).await };
        self.remembered(|inner| &inner.consumers, id, now_us, load)
            .await
    }

    /// What is remembered, or else what `load` brings, which is remembered then.
    async fn remembered<K, T, F>(
        &self,
        kept: fn(&Inner) -> &Kept<K, T>,
        id: &K,
        now_us: u64,
        load: impl FnOnce(Self, K, bool) -> F + Clone + Send + 'static,
    ) -> Result<Option<Arc<Entry<T>>>, Failure>
    where
        K: Hash + Eq + Clone + Send + Sync + 'static,
        T: Send + Sync + 'static,
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let inner = &*self.0;
        let due = match kept(inner).entries.find(id, &inner.changes, now_us) {
            Found::Fresh(entry) => return Ok(Some(entry)),
            Found::Due(entry) => Some(entry),
            Found::Nothing => None,
        };
        let is_due = due.is_some();
        let loaded = inner
            .settle_in_turn(&kept(inner).loads, id.clone(), is_due, || {
                let (records, id) = (self.clone(), id.clone());
                async move {
                    let Inner { changes, .. } = &*records.0;
                    let entries = &kept(&records.0).entries;
                    if let Found::Fresh(entry) = entries.find(&id, changes, Clock::uptime_us()) {
                        return Ok(Some(entry));
                    }
                    let entry = load(records.clone(), id.clone(), is_due).await?;
                    Ok(entry.inspect(|entry| kept(&records.0).entries.keep(id, Arc::clone(entry))))
                }
            })
            .await;
        or_due(loaded, due, &inner.changes)
    }

    /// A service by slug or id; `None` where there is none. What is asked of it is asked afresh when a
    /// decision is made.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn service_of(
        &self,
        tenant: &TenantId,
        reference: &str,
    ) -> Result<Option<Arc<Entry<ServiceEntry>>>, Failure> {
        let now_us = Clock::uptime_us();
        if !self.0.changes.may_use(now_us) {
            return Err(cut_off());
        }
        self.service(tenant, reference, now_us).await
    }

    /// A service by slug or id; `None` where there is none.
    async fn service(
        &self,
        tenant: &TenantId,
        reference: &str,
        now_us: u64,
    ) -> Result<Option<Arc<Entry<ServiceEntry>>>, Failure> {
        let inner = &*self.0;
        let name = ServiceNameRef(tenant, reference);
        let due = match inner.services.find(&name, &inner.changes, now_us) {
            Found::Fresh(entry) => return Ok(entry.value.clone()),
            Found::Due(entry) if entry.value.is_some() => Some(entry),
            Found::Due(_) | Found::Nothing => None,
        };
        let name = ServiceName(tenant.clone(), reference.into());
        let is_due = due.is_some();
        let loaded = inner
            .settle_in_turn(&inner.service_loads, name.clone(), is_due, || {
                let records = self.clone();
                async move {
                    let Inner {
                        services,
                        changes,
                        source,
                        ..
                    } = &*records.0;
                    if let Found::Fresh(entry) = services.find(&name, changes, Clock::uptime_us()) {
                        return Ok(Some(entry));
                    }
                    let ServiceName(tenant, reference) = name.clone();
                    let entry = source.service(tenant, &reference, is_due).await?;
                    services.keep(name, Arc::clone(&entry));
                    Ok(Some(entry))
                }
            })
            .await;
        Ok(or_due(loaded, due, &inner.changes)?.and_then(|entry| entry.value.clone()))
    }

    /// A key by its id, straight from the database, as its newest secret would prove it.
    ///
    /// # Errors
    /// [`Failure::Store`]
    pub async fn key_by_id(
        &self,
        tenant: &TenantId,
        id: &KeyId,
    ) -> Result<Option<Arc<Entry<KeySnapshot>>>, Failure> {
        let found = self.0.source.key_by_id(tenant.clone(), id.clone()).await?;
        Ok(found.map(Arc::new))
    }
}

impl Inner {
    /// Whether the service is not to be served while the database is away, and it is.
    fn is_out_for(&self, entry: &ServiceEntry) -> bool {
        entry.service.settings.on_outage == OnOutage::Refuse && self.reach.is_database_away()
    }

    /// What an earlier load of the key has brought. Who found nothing just before that ended boards the
    /// next one, which has nothing to ask for.
    #[expect(
        clippy::option_option,
        reason = "that nobody knows a key is something to know"
    )]
    fn landed_before(&self, print: &Fingerprint) -> Option<Option<Arc<Entry<KeySnapshot>>>> {
        let now_us = Clock::uptime_us();
        if let Found::Fresh(entry) = self.keys.find(print, &self.changes, now_us) {
            return Some(Some(entry));
        }
        let unknown = self.unknown.find(print, &self.changes, now_us);
        matches!(unknown, Found::Fresh(_)).then_some(None)
    }

    async fn settle_in_turn<K, T, F>(
        &self,
        loads: &Loads<K, T>,
        key: K,
        is_due: bool,
        load: impl FnOnce() -> F + Clone,
    ) -> Result<Option<Arc<Entry<T>>>, Failure>
    where
        K: Hash + Eq + Clone + Send + 'static,
        T: Send + Sync + 'static,
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let way = loads.way(&key, is_due).await;
        let way = way.map_err(|why| self.failure(why))?;
        self.settle(loads, way, key, load).await
    }

    /// What a load brings, when no change has overtaken it.
    async fn settle<K, T, F>(
        &self,
        loads: &Loads<K, T>,
        way: Way<T>,
        key: K,
        load: impl FnOnce() -> F + Clone,
    ) -> Result<Option<Arc<Entry<T>>>, Failure>
    where
        K: Hash + Eq + Clone + Send + 'static,
        T: Send + Sync + 'static,
        F: Future<Output = Loaded<T>> + Send + 'static,
    {
        let settled = loads.settle(way, key, &self.changes, load).await;
        match settled.map_err(|why| self.failure(why))? {
            Ok(entry) => Ok(entry),
            Err(LoadError::Busy) => Err(Failure::Busy),
            Err(LoadError::Store(error)) => Err(error.repeated().into()),
        }
    }

    /// Why nothing was loaded, as far as anybody waited.
    fn failure(&self, why: NoLanding) -> Failure {
        match why {
            NoLanding::Full => Failure::Busy,
            NoLanding::Late if self.reach.is_database_away() => away(),
            NoLanding::Late => Failure::Late,
        }
    }
}

/// What was loaded, or what was there before if nothing could be loaded.
fn or_due<T>(
    loaded: Result<Option<Arc<Entry<T>>>, Failure>,
    due: Option<Arc<Entry<T>>>,
    changes: &Changes,
) -> Result<Option<Arc<Entry<T>>>, Failure> {
    match (loaded, due) {
        (Err(_), Some(due)) if due.is_fresh(changes) => {
            due.postpone();
            Ok(Some(due))
        }
        (loaded, _) => loaded,
    }
}

fn away() -> Failure {
    Failure::Store(db::Error::Unavailable(anyhow::anyhow!(
        "the database is away"
    )))
}

/// Nothing that is remembered may be used, because nobody could tell of changes for too long.
fn cut_off() -> Failure {
    Failure::Store(db::Error::Unavailable(anyhow::anyhow!(
        "cut off: it cannot be known what has changed"
    )))
}
