//! May this key do this, now?
//!
//! The path of a validation, top to bottom; nothing steps back:
//! 1. **parse**: the text becomes [`Presented`], before anything is hashed;
//! 2. **load**: its fingerprints find the key; consumer, tenant and service are joined;
//! 3. **decide**: [`decide::decide`], pure, in the order of the codes;
//! 4. **record**: the use is noted in memory.
//!
//! Wrong keys never reach argon2 while fingerprints are computable. Only where a key's lookup id
//! has secrets under a pepper that is lost is its verifier run, in a bounded pool.

pub mod decide;
pub mod http;
pub mod last_used;
pub mod snapshot;
pub mod store;

use std::net::IpAddr;
use std::sync::Arc;

use decide::{Check, Decision, Outcome, Request};
use last_used::LastUsed;
use snapshot::{KeySnapshot, ServiceEntry, Subject};

use crate::audit::TenantRef;
use crate::clock::Clock;
use crate::consumers;
use crate::db::{self, Conn, Db};
use crate::id::{KeyId, SecretId, TenantId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::hash::{HashError, Hasher, Memory};
use crate::keys::pepper::{PepperRing, Peppers};
use crate::keys::pepper_store;
use crate::keys::secret::{ApiKey, LookupId, Presented};
use crate::keys::verifier::Verifier;
use crate::keys::verifier_queue::VerifierQueue;
use crate::metrics::Metrics;
use crate::rights;
use crate::scope::Scope;
use crate::services;
use crate::tenants;
use crate::text::Environment;
use crate::time::Timestamp;

/// Why there is no decision. Never told as a refusal of the key.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Store(#[from] db::Error),
    /// Too many keys wait for their verifier.
    #[error("too many keys are being verified just now")]
    Busy,
}

/// A decision with what it was made from.
#[derive(Clone, Debug)]
pub struct Answer {
    pub decision: Decision,
    /// `None` before the key is identified.
    pub subject: Option<Subject>,
}

/// A management key, authenticated.
#[derive(Clone, Debug)]
pub struct Identified {
    pub key_id: KeyId,
    pub tenant: TenantRef,
    /// On the built-in service `keystead`; empty for a key without a grant there.
    pub scopes: Vec<Scope>,
    pub environment: Environment,
    pub expires_at: Option<Timestamp>,
}

/// Why a presented key authenticates nobody.
#[derive(Debug)]
pub enum AuthFailure {
    /// Malformed, unknown, or no management key: one answer for all.
    Invalid,
    /// A known management key that is refused; the holder may be told.
    Refused(Outcome),
    Failed(Failure),
}

/// Which service a validation asks for.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// By slug or id, within the tenant of the caller.
    Service(&'a str),
    /// The key's own tenant's `keystead`.
    Management,
    /// Any: the key's own validity alone.
    None,
}

/// Decides about keys, cheap to clone.
#[derive(Clone)]
pub struct Validation {
    db: Db,
    clock: Clock,
    peppers: Arc<Peppers>,
    hasher: Hasher,
    verifiers: VerifierQueue,
    used: Arc<LastUsed>,
    metrics: Arc<Metrics>,
}

/// What loading found.
enum Loaded {
    Unknown,
    Found(Box<Subject>),
}

impl Validation {
    pub fn new(
        db: Db,
        clock: Clock,
        peppers: Arc<Peppers>,
        hasher: Hasher,
        verifiers: VerifierQueue,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            db,
            clock,
            peppers,
            hasher,
            verifiers,
            used: Arc::default(),
            metrics,
        }
    }

    /// Decides about a presented text for a service of `tenant`, and notes the use.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be decided: never to be told as a refusal.
    pub async fn validate(
        &self,
        presented: &str,
        tenant: &TenantId,
        asked: Asked<'_>,
        request: &Request,
    ) -> Result<Answer, Failure> {
        let answer = match self.load(presented, Some(tenant), asked).await? {
            Err(outcome) => Answer {
                decision: Decision {
                    outcome,
                    missing_scopes: Vec::new(),
                },
                subject: None,
            },
            Ok(subject) => {
                let now = self.clock.now();
                let decision = decide::decide(&subject, request, now);
                if decision.outcome.is_valid() {
                    self.used
                        .note(&subject.key.key_id, &subject.key.secret.id, now);
                }
                Answer {
                    decision,
                    subject: Some(subject),
                }
            }
        };
        self.metrics.decisions.inc(answer.decision.outcome.code());
        Ok(answer)
    }

    /// Every check and its result; nothing is charged or noted as a use.
    pub async fn explain(
        &self,
        presented: &str,
        tenant: &TenantId,
        asked: Asked<'_>,
        request: &Request,
    ) -> Result<(Decision, Vec<Check>, Option<Subject>), Failure> {
        let now = self.clock.now();
        Ok(match self.load(presented, Some(tenant), asked).await? {
            Err(outcome) => (
                Decision {
                    outcome,
                    missing_scopes: Vec::new(),
                },
                Vec::new(),
                None,
            ),
            Ok(subject) => (
                decide::decide(&subject, request, now),
                decide::explain(&subject, request, now),
                Some(subject),
            ),
        })
    }

    /// As [`Self::explain`], for a key by its id, as its newest secret would prove it.
    pub async fn explain_key(
        &self,
        key: &KeyId,
        tenant: &TenantId,
        asked: Asked<'_>,
        request: &Request,
    ) -> Result<Option<(Decision, Vec<Check>, Subject)>, Failure> {
        let (id, owner, asked) = (key.clone(), tenant.clone(), OwnedAsked::from(asked));
        let subject = self
            .db
            .read(
                async move |conn: &mut Conn| match store::by_key(conn, &owner, &id).await? {
                    Some(key) => join(conn, key, &asked).await.map(Some),
                    None => Ok(None),
                },
            )
            .await?;
        let now = self.clock.now();
        Ok(subject.map(|subject| {
            let decision = decide::decide(&subject, request, now);
            let checks = decide::explain(&subject, request, now);
            (decision, checks, subject)
        }))
    }

    /// Authenticates a management key by itself: its tenant is its own.
    pub async fn authenticate(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
    ) -> Result<Identified, AuthFailure> {
        let subject = self.holder(presented, ip, Asked::Management).await?;
        let scopes = subject
            .grant()
            .map(|grant| grant.scopes.clone())
            .unwrap_or_default();
        Ok(Identified {
            key_id: subject.key.key_id.clone(),
            tenant: subject.tenant.to_ref(),
            scopes,
            environment: subject.key.environment.clone(),
            expires_at: subject.end(),
        })
    }

    /// Authenticates the holder of any key, for its own affairs.
    pub async fn authenticate_holder(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
    ) -> Result<Identified, AuthFailure> {
        let subject = self.holder(presented, ip, Asked::None).await?;
        Ok(Identified {
            key_id: subject.key.key_id.clone(),
            tenant: subject.tenant.to_ref(),
            scopes: Vec::new(),
            environment: subject.key.environment.clone(),
            expires_at: subject.end(),
        })
    }

    async fn holder(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
        asked: Asked<'_>,
    ) -> Result<Subject, AuthFailure> {
        let subject = match self.load(presented, None, asked).await {
            Err(failure) => return Err(AuthFailure::Failed(failure)),
            Ok(Err(_not_identified)) => return Err(AuthFailure::Invalid),
            Ok(Ok(subject)) => subject,
        };
        let request = Request {
            ip,
            ..Request::default()
        };
        let now = self.clock.now();
        match decide::decide(&subject, &request, now).outcome {
            Outcome::Valid => {
                self.used
                    .note(&subject.key.key_id, &subject.key.secret.id, now);
                Ok(subject)
            }
            // A good key that is no management key says as little as an unknown one.
            Outcome::WrongService => Err(AuthFailure::Invalid),
            refused => Err(AuthFailure::Refused(refused)),
        }
    }

    /// Parses and loads; the inner error is the outcome of what is not identified.
    async fn load(
        &self,
        presented: &str,
        tenant: Option<&TenantId>,
        asked: Asked<'_>,
    ) -> Result<Result<Subject, Outcome>, Failure> {
        if presented.is_empty() {
            return Ok(Err(Outcome::Missing));
        }
        let (key, lookup_id) = match Presented::parse(presented, &[]) {
            Presented::Native { key, lookup_id } => (key, Some(lookup_id)),
            Presented::Foreign(key) => (key, None),
            Presented::Malformed => return Ok(Err(Outcome::Malformed)),
        };
        match self
            .find(&key, lookup_id.as_ref(), &OwnedAsked::from(asked))
            .await?
        {
            Loaded::Unknown => Ok(Err(Outcome::Unknown)),
            // Another tenant's key is not there.
            Loaded::Found(subject)
                if tenant.is_some_and(|tenant| *tenant != subject.key.tenant_id) =>
            {
                Ok(Err(Outcome::Unknown))
            }
            Loaded::Found(subject) => Ok(Ok(*subject)),
        }
    }

    /// Looks a key up by its fingerprint under every pepper version we can compute.
    async fn find(
        &self,
        key: &ApiKey,
        lookup_id: Option<&LookupId>,
        asked: &OwnedAsked,
    ) -> Result<Loaded, Failure> {
        let mut ring = self.peppers.ring();
        loop {
            let prints: Vec<Fingerprint> = ring
                .fingerprints(key)
                .into_iter()
                .map(|(_, print)| print)
                .collect();
            let asked = asked.clone();
            let (found, current) = self
                .db
                .read(async move |conn: &mut Conn| {
                    match store::by_fingerprint(conn, &prints).await? {
                        Some(hit) => {
                            let subject = join(conn, hit.snapshot, &asked).await?;
                            Ok((
                                Some((subject, hit.pepper_version, hit.verifier_missing)),
                                None,
                            ))
                        }
                        None => {
                            Ok::<_, db::Error>((None, Some(pepper_store::current_in(conn).await?)))
                        }
                    }
                })
                .await?;
            match (found, current) {
                (Some((subject, version, verifier_missing)), _) => {
                    self.refresh(key, &subject.key, version, verifier_missing);
                    return Ok(Loaded::Found(Box::new(subject)));
                }
                // A node that lags behind a rotation must never say unknown.
                (None, Some(current))
                    if !ring.computes(current) && ring.current() != Some(current) =>
                {
                    let peppers = Arc::clone(&self.peppers);
                    let newer = self
                        .db
                        .read(async move |conn: &mut Conn| peppers.reload(conn).await)
                        .await?;
                    if !newer.computes(current) {
                        return Err(Failure::Store(db::Error::Corrupt(format!(
                            "the pepper version {current} cannot be computed by this node"
                        ))));
                    }
                    ring = newer;
                }
                (None, _) => break,
            }
        }
        match lookup_id {
            Some(lookup_id) if ring.has_lost() => {
                self.find_by_verifier(key, lookup_id, asked).await
            }
            Some(_) | None => Ok(Loaded::Unknown),
        }
    }

    /// The slow way: secrets of this lookup id under a lost pepper, proven by argon2id.
    async fn find_by_verifier(
        &self,
        key: &ApiKey,
        lookup_id: &LookupId,
        asked: &OwnedAsked,
    ) -> Result<Loaded, Failure> {
        let ring = self.peppers.ring();
        let (lookup_id, computable) = (lookup_id.clone(), ring.computable());
        let candidates = self
            .db
            .read(async move |conn: &mut Conn| store::unproven(conn, &lookup_id, &computable).await)
            .await?;
        for candidate in candidates {
            let Ok(verifier) = Verifier::parse(&candidate.verifier) else {
                continue;
            };
            let memory = self.memory(&ring, key, &candidate);
            let proved = self
                .hasher
                .verify(&candidate.secret, &verifier, key, memory);
            match proved.await {
                Ok(true) => {}
                Ok(false) | Err(HashError::Failed) => continue,
                Err(HashError::Busy) => return Err(Failure::Busy),
            }
            let (id, asked) = (candidate.secret, asked.clone());
            let subject = self
                .db
                .read(
                    async move |conn: &mut Conn| match store::by_secret(conn, &id).await? {
                        Some(key) => join(conn, key, &asked).await.map(Some),
                        None => Ok::<_, db::Error>(None),
                    },
                )
                .await?;
            if let Some(subject) = subject {
                return Ok(Loaded::Found(Box::new(subject)));
            }
        }
        // Another request may have brought the secret under the current pepper meanwhile.
        let prints: Vec<Fingerprint> = ring
            .fingerprints(key)
            .into_iter()
            .map(|(_, print)| print)
            .collect();
        let asked = asked.clone();
        let subject = self
            .db
            .read(
                async move |conn: &mut Conn| match store::by_fingerprint(conn, &prints).await? {
                    Some(hit) => join(conn, hit.snapshot, &asked).await.map(Some),
                    None => Ok::<_, db::Error>(None),
                },
            )
            .await?;
        Ok(subject.map_or(Loaded::Unknown, |subject| Loaded::Found(Box::new(subject))))
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
                .read(async move |conn: &mut Conn| store::by_fingerprint(conn, &[print]).await)
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
    fn refresh(
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
        let secret = snapshot.secret.id.clone();
        tokio::spawn(rewrite(self.db.clone(), secret, version, (current, print)));
    }

    /// Writes what was used since the last time; called on a timer and at the stop.
    pub async fn flush_last_used(&self) -> db::Result<()> {
        let used = self.used.take();
        if used.is_empty() {
            return Ok(());
        }
        let rows = used.clone();
        let written = self
            .db
            .write(async move |conn: &mut Conn| {
                crate::keys::store::store_last_used(conn, &rows).await
            })
            .await;
        if written.is_err() {
            self.used.put_back(used);
        }
        written
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
        tracing::warn!(%error, "a fingerprint could not be rewritten; its next use tries again");
    }
}

/// An [`Asked`] that a task can own.
#[derive(Clone, Debug)]
enum OwnedAsked {
    Service(String),
    Management,
    None,
}

impl AuthFailure {
    /// For log and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Refused(outcome) => outcome.code(),
            Self::Failed(_) => "failed",
        }
    }
}

impl From<Asked<'_>> for OwnedAsked {
    fn from(asked: Asked<'_>) -> Self {
        match asked {
            Asked::Service(reference) => Self::Service(reference.to_owned()),
            Asked::Management => Self::Management,
            Asked::None => Self::None,
        }
    }
}

/// Joins a key with its consumer, its tenant and the service asked for.
async fn join(conn: &mut Conn, key: KeySnapshot, asked: &OwnedAsked) -> db::Result<Subject> {
    let gone =
        |what: &str| db::Error::Corrupt(format!("the {what} of the key {} is gone", key.key_id));
    let tenant = tenants::store::load_by_id(conn, &key.tenant_id)
        .await?
        .ok_or_else(|| gone("tenant"))?;
    let consumer = consumers::store::load_by_id(conn, &key.consumer_id)
        .await?
        .ok_or_else(|| gone("consumer"))?;
    let service = match asked {
        OwnedAsked::Service(reference) => {
            services::store::find(conn, &key.tenant_id, reference).await?
        }
        OwnedAsked::Management => {
            services::store::find(conn, &key.tenant_id, rights::SERVICE).await?
        }
        OwnedAsked::None => None,
    };
    let asks_service = !matches!(asked, OwnedAsked::None);
    Ok(Subject {
        service: service.map(|service| Arc::new(ServiceEntry::new(service))),
        asks_service,
        key: Arc::new(key),
        consumer: Arc::new(consumer),
        tenant: Arc::new(tenant),
    })
}
