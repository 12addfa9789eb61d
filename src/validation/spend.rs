//! What a decision is charged to: the limits and quotas of the key, its grant and its consumer, and
//! the service's defaults where neither key nor grant names any.

use std::fmt::Write as _;

use smallvec::SmallVec;

use super::decide::{Check, Outcome};
use super::snapshot::{Counted, Subject};
use crate::limits::RateLimit;
use crate::ratelimit::{
    Charge, CostExceedsLimit, CounterId, LimitState, QuotaCharge, QuotaState, Spending, Spent,
};

/// Everything one decision is charged to, in the order in which it is told.
#[derive(Clone, Debug)]
pub struct Charges<'a> {
    subject: &'a Subject,
    limits: SmallVec<[Charge<'a>; 4]>,
    quotas: SmallVec<[QuotaCharge; 2]>,
}

impl<'a> Charges<'a> {
    pub fn of(subject: &'a Subject) -> Self {
        let (mut limits, mut quotas) = (SmallVec::new(), SmallVec::new());
        // Walked from inside: a chain that is asked for one after the other costs twice that.
        each_limit(subject).for_each(|(_, charge)| limits.push(charge));
        each_quota(subject).for_each(|(_, charge)| quotas.push(charge));
        Self {
            subject,
            limits,
            quotas,
        }
    }

    /// Whether anything limits the subject.
    pub fn has_any(subject: &Subject) -> bool {
        let (key, consumer) = (&subject.key.terms, &subject.consumer);
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
            only_looks: false,
        }
    }

    /// What a cost is more than: `the burst of key:calls`, or `the quota of the key`.
    pub fn name(&self, exceeded: CostExceedsLimit) -> String {
        let name = match exceeded {
            CostExceedsLimit::Burst(index) => each_limit(self.subject)
                .nth(index)
                .map(|(of, charge)| format!("the burst of {of}:{}", charge.limit.name)),
            CostExceedsLimit::Quota(index) => each_quota(self.subject)
                .nth(index)
                .map(|(of, _)| format!("the quota of the {of}")),
        };
        name.unwrap_or_default()
    }
}

/// Each limit with whose it is.
fn each_limit(subject: &Subject) -> impl Iterator<Item = (&'static str, Charge<'_>)> {
    let (key, grant) = (&subject.key.terms, subject.grant());
    let own = subject.key.counter;
    let grants = grant.map(|grant| &*grant.limits).unwrap_or_default();
    let names_none = key.limits.is_empty() && grants.is_empty();
    let defaults = grant.zip(subject.service.as_ref()).filter(|_| names_none);
    let defaults = defaults.into_iter().flat_map(move |(grant, service)| {
        let own = own.paired(grant.defaults);
        (service.limits.iter()).map(move |counted| paired(own, counted))
    });
    (key.limits.iter().map(move |one| ("key", paired(own, one))))
        .chain(grants.iter().map(move |one| ("grant", paired(own, one))))
        .chain((subject.consumer.limits.iter()).map(|one| ("consumer", one.into())))
        .chain(defaults.map(|charge| ("service", charge)))
}

/// A limit that many keys share, by the counter of one of them.
fn paired(own: CounterId, counted: &Counted) -> Charge<'_> {
    Charge {
        counter: own.paired(counted.counter),
        limit: &counted.limit,
    }
}

/// Each quota with whose it is.
fn each_quota(subject: &Subject) -> impl Iterator<Item = (&'static str, QuotaCharge)> {
    let (own, key) = (subject.key.counter, &subject.key.terms);
    let service = subject.service.as_ref();
    let default = subject.grant().zip(service.and_then(|entry| entry.quota));
    let default = default.filter(|_| key.quota.is_none());
    let paired = |own: CounterId, charge: QuotaCharge| QuotaCharge {
        counter: own.paired(charge.counter),
        ..charge
    };
    let default = default.map(|(grant, default)| paired(own.paired(grant.defaults), default));
    let of = |of: &'static str| move |charge: QuotaCharge| (of, charge);
    [
        key.quota.map(|quota| ("key", paired(own, quota))),
        subject.consumer.quota.map(of("consumer")),
        default.map(of("service")),
    ]
    .into_iter()
    .flatten()
}

/// Each limit with where it stands.
pub fn told<'a>(
    subject: &'a Subject,
    spent: &'a Spent,
) -> impl Iterator<Item = (&'static str, &'a RateLimit, &'a LimitState)> {
    each_limit(subject)
        .zip(&spent.limits)
        .map(|((of, charge), state)| (of, charge.limit, state))
}

/// The quota that is nearest to its end.
pub fn nearest_quota<'a>(
    subject: &Subject,
    spent: &'a Spent,
) -> Option<(QuotaCharge, &'a QuotaState)> {
    each_quota(subject)
        .map(|(_, charge)| charge)
        .zip(&spent.quotas)
        .min_by_key(|(_, state)| (!state.exceeded, state.remaining))
}

/// Each limit and quota as a check, by a look at all of them.
pub fn checks(subject: &Subject, looked: &Spent) -> Vec<Check> {
    let limits = told(subject, looked).map(|(of, limit, state)| Check {
        fails_with: Outcome::RateLimited,
        passed: !state.limited,
        detail: format!(
            "{of}:{} has {} left and is whole in {} ms{}",
            limit.name,
            state.remaining,
            state.reset_after_ms,
            if state.is_degraded {
                "; its fail_mode decides, because Redis does not answer"
            } else {
                ""
            }
        ),
    });
    let quotas = each_quota(subject)
        .zip(&looked.quotas)
        .map(|((of, charge), state)| Check {
            fails_with: Outcome::QuotaExceeded,
            passed: !state.exceeded,
            detail: format!(
                "the quota of the {of} has {} of {} left until {}",
                state.remaining, charge.quota.limit, state.resets_at
            ),
        });
    limits.chain(quotas).collect()
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
        let mut this = Self::default();
        for (of, limit, state) in told(subject, spent) {
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
