//! Counters in Redis, shared by all nodes: one script decides and charges, by the server's clock.

use smallvec::SmallVec;

use super::counter::CounterId;
use super::gcra::Gcra;
use super::period::Period;
use super::{Now, QuotaState, Spending, Spent};
use crate::redis_link::{RedisAway, RedisLink, Script};
use crate::time::Span;

/// A count is kept for so long after its period, for nodes whose clocks are behind.
const KEPT_AFTER: Span = Span::days(1);

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) link: RedisLink,
    script: Script,
}

/// What is known of a count before the shared one is asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// The least that has been used.
    pub(super) used: u64,
    /// The stored count has been looked for: a count that is not there begins from `used`.
    pub(super) is_seeded: bool,
}

pub(super) type Knowns = SmallVec<[Known; 2]>;

/// What the shared counters decided, and where they stand.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) spent: Spent,
    /// For each limit, in how many microseconds its bucket is full again.
    pub(super) ahead_us: SmallVec<[u64; 4]>,
    /// For each quota, what is used.
    pub(super) used: SmallVec<[u64; 2]>,
    /// The server's clock in microseconds.
    pub(super) now_us: u64,
}

#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is taken apart where it is made"
)]
pub(super) enum Answer {
    Decided(Decided),
    /// A count is not there: the stored one is to be loaded.
    Unseeded,
}

impl Shared {
    pub(super) fn new(link: RedisLink) -> Self {
        Self {
            link,
            script: Script::new(include_str!("spend.lua")),
        }
    }

    pub(super) async fn spend(
        &self,
        spending: &Spending<'_>,
        knowns: &[Known],
        now: Now,
    ) -> Result<Answer, RedisAway> {
        let (keys, args) = call(spending, knowns, now);
        let answer: Vec<i64> = self.link.script(&self.script, &keys, &[args]).await?;
        understand(spending, &answer, now).ok_or_else(|| {
            tracing::error!("the script for limits answered something else");
            RedisAway
        })
    }
}

/// Keys hold ids and hashes, nothing that is secret.
fn call(spending: &Spending<'_>, knowns: &[Known], now: Now) -> (Vec<String>, Vec<u8>) {
    let tag = spending.tag.as_str();
    let mut keys = Vec::with_capacity(spending.limits.len() + spending.quotas.len());
    let mut numbers = SmallVec::<[u64; 16]>::new();
    numbers.extend([
        u64::try_from(spending.limits.len()).unwrap_or(u64::MAX),
        spending.judged_cost(),
        u64::from(spending.charges()),
    ]);
    for charge in spending.limits {
        keys.push(limit_key(tag, charge.counter));
        let gcra = Gcra::of(charge.limit);
        numbers.extend([gcra.interval_us, gcra.burst]);
    }
    for (charge, known) in spending.quotas.iter().zip(knowns) {
        let period = Period::containing(charge.quota.period, now.wall);
        keys.push(quota_key(tag, charge.counter, period));
        let kept = period.end.plus(KEPT_AFTER).since(now.wall);
        numbers.extend([
            charge.quota.limit,
            known.used,
            u64::from(known.is_seeded),
            kept.millis().unsigned_abs().max(1),
        ]);
    }
    (keys, as_doubles(&numbers))
}

/// As the script takes its numbers.
#[expect(clippy::cast_precision_loss, reason = "they are below 2^53")]
fn as_doubles(numbers: &[u64]) -> Vec<u8> {
    let doubles = numbers.iter().map(|n| (*n as f64).to_le_bytes());
    doubles.flatten().collect()
}

/// Who keeps counters in another form gives them another name: nodes of both serve side by side at an upgrade.
pub(super) fn limit_key(tag: &str, counter: CounterId) -> String {
    format!("keystead:{{{tag}}}:l2:{counter}")
}

pub(super) fn quota_key(tag: &str, counter: CounterId, period: Period) -> String {
    format!("keystead:{{{tag}}}:q:{counter}:{}", period.day_number())
}

/// `None` if it is not what the script answers.
fn understand(spending: &Spending<'_>, answer: &[i64], now: Now) -> Option<Answer> {
    let mut numbers = answer.iter().map_while(|n| u64::try_from(*n).ok());
    if numbers.next()? == 1 {
        return Some(Answer::Unseeded);
    }
    let mut decided = Decided {
        spent: Spent::admitted(),
        ahead_us: SmallVec::new(),
        used: SmallVec::new(),
        now_us: numbers.next()?,
    };
    for charge in spending.limits {
        let (tat_us, wait_us) = (numbers.next()?, numbers.next()?);
        let state = Gcra::of(charge.limit).state(tat_us, decided.now_us, wait_us > 0);
        decided.spent.add_limit(state, wait_us);
        decided.ahead_us.push(tat_us.saturating_sub(decided.now_us));
    }
    for charge in spending.quotas {
        let (used, exceeded) = (numbers.next()?, numbers.next()? == 1);
        let end = Period::containing(charge.quota.period, now.wall).end;
        let state = QuotaState::of(charge.quota, used, exceeded, end);
        decided.spent.add_quota(state, now.wall);
        decided.used.push(used);
    }
    Some(Answer::Decided(decided))
}
