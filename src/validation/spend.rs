//! What a decision is charged to: the limits and quotas of the key, its grant and its consumer, and
//! the service's defaults where neither key nor grant names any.

use std::fmt::Write as _;

use smallvec::SmallVec;

use super::snapshot::{Counted, Subject};
use crate::limits::RateLimit;
use crate::ratelimit::{Charge, LimitState, QuotaCharge, QuotaState, Spending, Spent};

/// Everything one decision is charged to, in the order in which it is told.
#[derive(Clone, Debug)]
pub struct Charges<'a> {
    subject: &'a Subject,
    limits: SmallVec<[Charge<'a>; 4]>,
    owners: SmallVec<[&'static str; 4]>,
    quotas: SmallVec<[QuotaCharge; 2]>,
}

impl<'a> Charges<'a> {
    pub fn of(subject: &'a Subject) -> Self {
        let mut this = Self {
            subject,
            limits: SmallVec::new(),
            owners: SmallVec::new(),
            quotas: SmallVec::new(),
        };
        let (key, consumer) = (&subject.key, &subject.consumer);
        for counted in &key.limits {
            this.add("key", Charge::from(counted));
        }
        let grant = subject.grant();
        for counted in grant.map(|grant| &*grant.limits).unwrap_or_default() {
            this.add("grant", Charge::from(counted));
        }
        let names_none = this.limits.is_empty();
        for counted in &consumer.limits {
            this.add("consumer", Charge::from(counted));
        }
        this.quotas.extend(key.quota);
        this.quotas.extend(consumer.quota);
        if let (Some(grant), Some(service)) = (grant, &subject.service) {
            for counted in service.limits.iter().filter(|_| names_none) {
                let counter = grant.defaults.paired(counted.counter);
                let limit = &counted.limit;
                this.add("service", Charge { counter, limit });
            }
            if let (None, Some(default)) = (key.quota, service.quota) {
                this.quotas.push(QuotaCharge {
                    counter: grant.defaults.paired(default.counter),
                    quota: default.quota,
                });
            }
        }
        this
    }

    fn add(&mut self, of: &'static str, charge: Charge<'a>) {
        self.limits.push(charge);
        self.owners.push(of);
    }

    /// Whether anything limits the subject.
    pub fn has_any(subject: &Subject) -> bool {
        let (key, consumer) = (&subject.key, &subject.consumer);
        let is_limited =
            |limits: &[Counted], quota: Option<_>| !limits.is_empty() || quota.is_some();
        is_limited(&key.limits, key.quota)
            || is_limited(&consumer.limits, consumer.quota)
            || subject
                .grant()
                .is_some_and(|grant| !grant.limits.is_empty())
            || (subject.service.as_ref())
                .is_some_and(|service| is_limited(&service.limits, service.quota))
    }

    pub fn spending(&self, cost: u64) -> Spending<'_> {
        Spending {
            tag: &self.subject.consumer.tag,
            limits: &self.limits,
            quotas: &self.quotas,
            cost,
        }
    }

    /// What a limit is called in answers: `key:burst`.
    pub fn name(&self, index: usize) -> String {
        match (self.owners.get(index), self.limits.get(index)) {
            (Some(of), Some(charge)) => format!("{of}:{}", charge.limit.name),
            (_, _) => String::new(),
        }
    }

    /// Each limit with where it stands.
    pub fn told<'s>(
        &'s self,
        spent: &'s Spent,
    ) -> impl Iterator<Item = (&'static str, &'a RateLimit, &'s LimitState)> {
        self.owners
            .iter()
            .zip(&self.limits)
            .zip(&spent.limits)
            .map(|((of, charge), state)| (*of, charge.limit, state))
    }

    /// The quota that is nearest to its end.
    pub fn quota<'s>(&'s self, spent: &'s Spent) -> Option<(&'s QuotaCharge, &'s QuotaState)> {
        self.quotas
            .iter()
            .zip(&spent.quotas)
            .min_by_key(|(_, state)| (!state.exceeded, state.remaining))
    }
}

impl<'a> From<&'a Counted> for Charge<'a> {
    fn from(counted: &'a Counted) -> Self {
        Self {
            counter: counted.counter,
            limit: &counted.limit,
        }
    }
}

/// The headers `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers), and after
/// how many seconds to come again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LimitHeaders {
    pub policy: String,
    pub state: String,
    /// `None` unless it was refused.
    pub retry_after_seconds: Option<u64>,
}

impl LimitHeaders {
    /// `None` where there is nothing to say.
    pub fn of(subject: &Subject, spent: &Spent) -> Option<Self> {
        if spent.is_free() {
            return None;
        }
        let charges = Charges::of(subject);
        let mut this = Self::default();
        for (of, limit, state) in charges.told(spent) {
            let comma = if this.policy.is_empty() { "" } else { ", " };
            let seconds = limit.period.duration().as_secs();
            // Writing to a string cannot fail.
            let _infallible = write!(
                this.policy,
                "{comma}\"{of}:{}\";q={};w={seconds}",
                limit.name, limit.limit
            );
            let _infallible = write!(
                this.state,
                "{comma}\"{of}:{}\";r={};t={}",
                limit.name,
                state.remaining,
                state.reset_after_ms.div_ceil(1000)
            );
        }
        if spent.retry_after_ms > 0 {
            this.retry_after_seconds = Some(spent.retry_after_ms.div_ceil(1000));
        }
        (!this.policy.is_empty() || this.retry_after_seconds.is_some()).then_some(this)
    }
}
