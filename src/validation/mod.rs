//! May this key do this, now?
//!
//! The path of a validation, top to bottom; nothing steps back:
//! 1. **parse**: the text becomes [`Presented`], before anything is hashed;
//! 2. **load**: its fingerprints find the key; consumer, tenant and service are joined: all of them
//!    from memory as a rule, see [`records`];
//! 3. **decide**: [`decide::decide`], pure, in the order of the codes;
//! 4. **spend**: what passed is charged to all its limits, or to none;
//! 5. **record**: the use is noted in memory, see [`recorded`].
//!
//! Wrong keys never reach argon2 while fingerprints are computable. Only where a key's lookup id
//! has secrets under a pepper that is lost is its verifier run, in a bounded pool.

pub mod answer;
mod authentication;
pub mod body;
mod callers;
pub mod decide;
mod existing;
mod failures;
pub mod http;
pub mod last_used;
mod look_ups;
pub mod proof;
pub mod recorded;
pub mod records;
pub mod snapshot;
mod source;
pub mod spend;
pub mod store;
#[cfg(test)]
mod tests;
pub mod told;

use std::net::IpAddr;
use std::sync::Arc;

pub use authentication::{AuthFailure, Identified};
use callers::Callers;
use decide::{Check, Decision, Outcome, Request};
use last_used::LastUsed;
use proof::Credential;
use recorded::Asking;
use records::{Now, Records};
use snapshot::{ServiceEntry, Subject, TenantSnapshot};
use spend::Charges;

use crate::cache::Entry;
use crate::clock::{Clock, Reading};
use crate::db::{self, Conn, Db};
use crate::id::{KeyId, TenantId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::secret::{ApiKey, LookupId, Shape};
use crate::keys::store::{Used, store_last_used};
use crate::metrics::{Metrics, UNDECIDED};
use crate::ratelimit::{Limiter, Spending, Spent, Verdict};
use crate::rights;
use crate::text::Slug;
use crate::time::Timestamp;
use crate::usage::Recorder;

/// What a change overtakes is loaded again so often.
const TRIES: usize = 4;

/// Last uses that are written in one transaction: some ten milliseconds, where keys are many in each second.
const USES_AT_ONCE: usize = 1000;

/// Why there is no decision. Never told as a refusal of the key.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Store(#[from] db::Error),
    /// Too much is being looked up, or verified, just now.
    #[error("too many keys are being looked up just now")]
    Busy,
    /// The database takes longer than a validation waits.
    #[error("the database takes too long")]
    Late,
    /// The cost can never be granted: it is more than this, the burst of a limit or a quota.
    #[error("the cost is more than {0}")]
    CostExceedsLimit(String),
}

/// A decision with what it was made from.
#[derive(Clone, Debug)]
pub struct Answer {
    pub decision: Decision,
    /// `None` before the key is identified.
    pub subject: Option<Subject>,
    /// What it was charged to; `None` for what no limit was asked about.
    pub spent: Option<Spent>,
}

impl Answer {
    /// Whose key has passed so far: before it is charged, all that asks no counter.
    fn passed(&self) -> Option<&Subject> {
        let subject = self.subject.as_ref();
        subject.filter(|_| self.decision.outcome.is_valid())
    }

    /// What it was charged decides.
    fn take(&mut self, spent: Spent) {
        self.decision.outcome = outcome(spent.verdict);
        self.spent = Some(spent);
    }
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
    records: Records,
    callers: Callers,
    limiter: Limiter,
    used: Arc<LastUsed>,
    recorder: Arc<Recorder>,
    metrics: Arc<Metrics>,
}

impl Validation {
    pub fn new(
        db: Db,
        clock: Clock,
        records: Records,
        limiter: Limiter,
        recorder: Arc<Recorder>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            db,
            clock,
            records,
            callers: Callers::new(),
            limiter,
            used: Arc::default(),
            recorder,
            metrics,
        }
    }

    /// Decides about what is presented for a service of `tenant`, and notes the use.
    ///
    /// # Errors
    /// [`Failure`] when it cannot be decided: never to be told as a refusal. The edge counts those of its
    /// own requests, whatever they fail for; what is part of another answer is counted by
    /// [`Self::note_undecided`].
    pub async fn validate(
        &self,
        presented: impl Into<Credential<'_>>,
        tenant: &TenantId,
        service: &str,
        request: &Request<'_>,
        asking: &Asking<'_>,
    ) -> Result<Answer, Failure> {
        let decided = self.decide(presented.into(), tenant, service, request);
        let (answer, now) = decided.await?;
        self.note((tenant, service), request, &answer, asking, now);
        Ok(answer)
    }

    /// Counts a problem that is part of another answer.
    pub fn note_problem(&self, code: &str) {
        self.metrics.problems.inc(code);
    }

    /// Counts what could not be decided.
    pub fn note_undecided(&self) {
        self.metrics.decisions.inc(UNDECIDED);
    }

    /// The decision, with what it is charged.
    async fn decide(
        &self,
        presented: Credential<'_>,
        tenant: &TenantId,
        service: &str,
        request: &Request<'_>,
    ) -> Result<(Answer, Timestamp), Failure> {
        let (mut answer, now) = self.tell(presented, tenant, service, request).await?;
        if let Some(subject) = answer.passed() {
            let spent = self.spend(subject, request.cost).await?;
            answer.take(spent);
        }
        Ok((answer, now))
    }

    /// What [`Self::validate`] decides for such a caller, in the tenant of its key, before anything is
    /// charged, if memory has all that is needed; else `None`.
    pub fn judge_now(
        &self,
        caller: &Subject,
        presented: &str,
        service: &str,
        request: &Request<'_>,
        at: &Reading,
    ) -> Option<Answer> {
        let tenant = &caller.tenant;
        let asked = Asked::Service(service);
        let loaded = match lookup_id(presented) {
            Ok(_may_be_a_key) => {
                let print = self.records.print(presented)?;
                self.load_now(&print, Some(&tenant.id), Some(tenant), asked, at.uptime_us)?
            }
            Err(outcome) => Err(outcome),
        };
        Some(judge(loaded, request, at.wall))
    }

    /// Charges what [`Self::judge_now`] let pass, if that can be done at once; else `None`: nothing was
    /// charged then, and [`Self::charge_waiting`] is to be awaited.
    pub fn charge_now(
        &self,
        answer: &mut Answer,
        cost: u64,
        at: &Reading,
    ) -> Option<Result<(), Failure>> {
        let Some(subject) = answer.passed() else {
            return Some(Ok(()));
        };
        let spent = {
            let charges = Charges::of(subject);
            let (spending, now) = (charges.spending(cost), self.limiter.at(at));
            let spent = self.limiter.spend_local(&spending, now)?;
            spent.map_err(|exceeded| Failure::CostExceedsLimit(charges.name(exceeded)))
        };
        Some(spent.map(|spent| answer.take(spent)))
    }

    /// Charges what [`Self::charge_now`] left to counters that are waited for.
    pub async fn charge_waiting(&self, answer: &mut Answer, cost: u64) {
        let Some(subject) = answer.passed() else {
            return;
        };
        let spent = {
            let charges = Charges::of(subject);
            let (spending, now) = (charges.spending(cost), self.limiter.now());
            self.limiter.spend_waiting(&spending, now).await
        };
        answer.take(spent);
    }

    /// As [`Self::note`], and that such a caller was used.
    pub fn note_for(
        &self,
        caller: &Subject,
        service: &str,
        request: &Request<'_>,
        answer: &Answer,
        asking: Asking<'_>,
        now: Timestamp,
    ) {
        self.used.note(&caller.key, now);
        let asking = Asking {
            caller: caller.key.key_id.as_str(),
            ..asking
        };
        self.note((&caller.tenant.id, service), request, answer, &asking, now);
    }

    /// Counts a decision, notes the last use and records it; `place` is the tenant, and the service by
    /// the name that it was asked for.
    pub fn note(
        &self,
        place: (&TenantId, &str),
        request: &Request<'_>,
        answer: &Answer,
        asking: &Asking<'_>,
        now: Timestamp,
    ) {
        if let Some(subject) = answer.passed() {
            self.used.note(&subject.key, now);
        }
        self.metrics.decisions.inc(answer.decision.outcome.code());
        recorded::record(&self.recorder, asking, place, request, answer, now);
    }

    /// Whose key this is, in whatever state it is and for no service: nothing is charged or noted. The
    /// inner error is the outcome of what is no known key.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn identify(
        &self,
        presented: &str,
        ip: Option<IpAddr>,
    ) -> Result<Result<Subject, Outcome>, Failure> {
        let loaded = self.load(presented, None, Asked::None, ip).await?;
        if let Err(outcome) = &loaded {
            // Nobody knows in whose tenant it would be recorded.
            self.metrics.decisions.inc(outcome.code());
        }
        Ok(loaded)
    }

    /// A service of a tenant, by slug or id.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn service(
        &self,
        tenant: &TenantId,
        reference: &str,
    ) -> Result<Option<Arc<Entry<ServiceEntry>>>, Failure> {
        self.records.service_of(tenant, reference).await
    }

    /// A tenant by its slug, in whatever state.
    ///
    /// # Errors
    /// [`Failure`] when that cannot be found out just now.
    pub async fn tenant(&self, slug: &Slug) -> Result<Option<Arc<Entry<TenantSnapshot>>>, Failure> {
        self.records.tenant_of_slug(slug).await
    }

    /// Every check and its result; nothing is charged or noted as a use.
    pub async fn explain(
        &self,
        presented: &str,
        tenant: &TenantId,
        asked: Asked<'_>,
        request: &Request<'_>,
    ) -> Result<(Decision, Vec<Check>, Option<Subject>), Failure> {
        let loaded = self
            .load(presented, Some(tenant), asked, request.ip)
            .await?;
        // Only now: a load may have been waited for.
        let now = self.clock.now();
        Ok(match loaded {
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
        request: &Request<'_>,
    ) -> Result<Option<(Decision, Vec<Check>, Subject)>, Failure> {
        let Some(key) = self.records.key_by_id(tenant, key).await? else {
            return Ok(None);
        };
        let subject = self.records.join(key, asked.service()).await?;
        let now = self.clock.now();
        let decision = decide::decide(&subject, request, now);
        let checks = decide::explain(&subject, request, now);
        Ok(Some((decision, checks, subject)))
    }

    /// What its limits and quotas say of a key that is good otherwise, each as a check; nothing is charged.
    ///
    /// # Errors
    /// [`Failure::CostExceedsLimit`].
    pub async fn explain_limits(
        &self,
        subject: &Subject,
        cost: u64,
    ) -> Result<(Outcome, Vec<Check>), Failure> {
        let charges = Charges::of(subject);
        let looking = Spending {
            only_looks: true,
            ..charges.spending(cost)
        };
        let looked = self.decide_on(&charges, looking).await?;
        Ok((outcome(looked.verdict), spend::checks(subject, &looked)))
    }

    /// Charges everything that limits the subject, or nothing; at once where the counters are this
    /// node's.
    async fn spend(&self, subject: &Subject, cost: u64) -> Result<Spent, Failure> {
        let charges = Charges::of(subject);
        self.decide_on(&charges, charges.spending(cost)).await
    }

    async fn decide_on(
        &self,
        charges: &Charges<'_>,
        spending: Spending<'_>,
    ) -> Result<Spent, Failure> {
        let spent = self.limiter.spend(&spending, self.limiter.now()).await;
        spent.map_err(|exceeded| Failure::CostExceedsLimit(charges.name(exceeded)))
    }

    /// What [`Self::load`] loads, from memory alone; `None` if something is to be asked for. `known` is the
    /// entry of the tenant, if that was found at the same instant.
    fn load_now(
        &self,
        print: &Fingerprint,
        tenant: Option<&TenantId>,
        known: Option<&Arc<Entry<TenantSnapshot>>>,
        asked: Asked<'_>,
        now_us: u64,
    ) -> Option<Result<Subject, Outcome>> {
        match self.records.key_now(print, now_us) {
            Now::Known(key) if tenant.is_none_or(|tenant| *tenant == key.owner.tenant_id) => {
                let subject = self.records.join_now(key, known, asked.service(), now_us)?;
                Some(Ok(subject))
            }
            Now::Known(_) | Now::Unknown => Some(Err(Outcome::Unknown)),
            Now::ToBeAsked => None,
        }
    }

    /// Parses and loads; the inner error is the outcome of what is not identified.
    async fn load(
        &self,
        presented: &str,
        tenant: Option<&TenantId>,
        asked: Asked<'_>,
        client: Option<IpAddr>,
    ) -> Result<Result<Subject, Outcome>, Failure> {
        let lookup_id = match lookup_id(presented) {
            Ok(lookup_id) => lookup_id,
            Err(outcome) => return Ok(Err(outcome)),
        };
        // As a rule memory has all of it.
        if let Some(print) = self.records.print(presented)
            && let Some(loaded) = self.load_now(&print, tenant, None, asked, Clock::uptime_us())
        {
            return Ok(loaded);
        }
        let key = ApiKey::copy_of(presented);
        for _ in 0..TRIES {
            let subject = match self.records.key(&key, lookup_id.as_ref(), client).await? {
                // Another tenant's key is not there.
                Some(key) if tenant.is_none_or(|tenant| *tenant == key.owner.tenant_id) => {
                    self.records.join(key, asked.service()).await?
                }
                Some(_) | None => return Ok(Err(Outcome::Unknown)),
            };
            // One of them may have changed while another was waited for.
            if self.records.holds(&subject) {
                return Ok(Ok(subject));
            }
        }
        Err(Failure::Busy)
    }

    /// Opens connections and prepares statements, before the node says that it is ready.
    pub async fn prepare(&self, tenant: TenantId) {
        self.records.prepare(tenant).await;
    }

    /// How many keys are remembered.
    pub fn remembered(&self) -> usize {
        self.records.keys_len()
    }

    /// Notes uses that this node did not judge in this life of its own.
    pub fn note_used(&self, used: Vec<Used>) {
        self.used.put_back(used);
    }

    /// Writes what was used since the last time; called on a timer and at the stop. So many at a time that
    /// who changes something has a turn in between, however many keys were used.
    pub async fn flush_last_used(&self) -> db::Result<()> {
        let mut taken = self.used.take();
        loop {
            let some = taken.next(USES_AT_ONCE);
            if some.is_empty() {
                return Ok(());
            }
            let rows = some.clone();
            let write = async move |conn: &mut Conn| store_last_used(conn, rows).await;
            match self.db.write(write).await {
                Ok(missed) => self.used.put_back(missed),
                Err(error) => {
                    self.used.put_back(some);
                    return Err(error);
                }
            }
        }
    }
}

/// The lookup id of what may be a key; keys brought from elsewhere have none. What cannot be a key is
/// told before anything is hashed.
fn lookup_id(presented: &str) -> Result<Option<LookupId>, Outcome> {
    if presented.is_empty() {
        return Err(Outcome::Missing);
    }
    match Shape::of(presented, &[]) {
        Shape::Native(lookup_id) => Ok(Some(lookup_id)),
        Shape::Foreign => Ok(None),
        Shape::Malformed => Err(Outcome::Malformed),
    }
}

/// The decision before anything is charged.
fn judge(loaded: Result<Subject, Outcome>, request: &Request<'_>, now: Timestamp) -> Answer {
    match loaded {
        Err(outcome) => Answer {
            decision: Decision {
                outcome,
                missing_scopes: Vec::new(),
            },
            subject: None,
            spent: None,
        },
        Ok(subject) => Answer {
            decision: decide::decide(&subject, request, now),
            subject: Some(subject),
            spent: None,
        },
    }
}

fn outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Admitted => Outcome::Valid,
        Verdict::RateLimited => Outcome::RateLimited,
        Verdict::QuotaExceeded => Outcome::QuotaExceeded,
    }
}

impl<'a> Asked<'a> {
    fn service(self) -> Option<&'a str> {
        match self {
            Self::Service(reference) => Some(reference),
            Self::Management => Some(rights::SERVICE),
            Self::None => None,
        }
    }
}
