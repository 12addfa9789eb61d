//! Refused attempts of authenticated callers: the first of a kind at once, the rest summed.
//!
//! A kind is (tenant, actor, via, action, code). Its first attempt is a line of its own; what else
//! comes within [`WINDOW`] is counted, and becomes one line with the count when the window ends or
//! the node stops. So a flood costs a line a minute, and nothing is dropped silently: what does not
//! fit into the table is counted per tenant, what cannot be written now is tried again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::chain::Target;
use super::{Actor, Attribution, Audit, Change, TenantRef};
use crate::db;
use crate::id::TenantId;

/// How long attempts of one kind are counted into one line.
pub const WINDOW: Duration = Duration::from_mins(1);

/// Kinds that are told apart at a time.
const KINDS_MAX: usize = 10_000;

/// First attempts that wait to be written at a time; further ones are counted.
const FRESH_MAX: usize = 1000;

/// How often the ends of windows are looked for.
const TICK: Duration = Duration::from_millis(500);

/// The action of the line that sums what did not fit into the table.
const OVERFLOW: &str = "audit.overflow";

/// One refused attempt.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub by: Attribution,
    /// What was attempted, such as `key.revoke`.
    pub action: &'static str,
    /// As far as it is known.
    pub target: Target,
    /// The problem's code.
    pub code: &'static str,
}

/// Takes refused attempts, cheap to clone. Taking one never waits.
#[derive(Clone)]
pub struct Refusals(Arc<Inner>);

struct Inner {
    audit: Audit,
    table: Mutex<Table>,
    wake: Notify,
    stop: Notify,
    running: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Table {
    kinds: HashMap<Kind, Counted>,
    /// First attempts that are not written yet.
    fresh: VecDeque<Refusal>,
    overflow: HashMap<TenantId, Overflow>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Kind {
    tenant: TenantId,
    actor: Actor,
    via: Option<Actor>,
    action: &'static str,
    code: &'static str,
}

struct Counted {
    since: Instant,
    /// Beyond those that have a line or stand in `fresh`.
    further: i64,
    last: Refusal,
}

struct Overflow {
    since: Instant,
    tenant: TenantRef,
    count: i64,
}

/// A line to write.
struct Due {
    refusal: Refusal,
    count: i64,
}

impl Refusal {
    fn kind(&self) -> Kind {
        Kind {
            tenant: self.by.tenant.id.clone(),
            actor: self.by.actor.clone(),
            via: self.by.via.clone(),
            action: self.action,
            code: self.code,
        }
    }
}

impl Table {
    /// Counts attempts of one kind. Answers whether this is a first one, to be written `at_once`.
    fn add(&mut self, refusal: Refusal, count: i64, now: Instant, at_once: bool) -> bool {
        let kind = refusal.kind();
        if let Some(counted) = self.kinds.get_mut(&kind) {
            counted.further = counted.further.saturating_add(count);
            counted.last = refusal;
            return false;
        }
        if self.kinds.len() >= KINDS_MAX {
            let tenant = refusal.by.tenant;
            let overflow = self
                .overflow
                .entry(tenant.id.clone())
                .or_insert_with(|| Overflow {
                    since: now,
                    tenant,
                    count: 0,
                });
            overflow.count = overflow.count.saturating_add(count);
            return false;
        }
        let first = at_once && self.fresh.len() < FRESH_MAX;
        if first {
            self.fresh.push_back(refusal.clone());
        }
        self.kinds.insert(
            kind,
            Counted {
                since: now,
                further: if first { 0 } else { count },
                last: refusal,
            },
        );
        first
    }

    /// Takes what is to be written: first attempts, and the sums of windows that are over.
    fn due(&mut self, now: Instant, all: bool) -> Vec<Due> {
        let over = |since: Instant| all || now.saturating_duration_since(since) >= WINDOW;
        let mut due: Vec<Due> = self
            .fresh
            .drain(..)
            .map(|refusal| Due { refusal, count: 1 })
            .collect();
        due.extend(
            self.kinds
                .extract_if(|_, counted| over(counted.since))
                .filter(|(_, counted)| counted.further > 0)
                .map(|(_, counted)| Due {
                    refusal: counted.last,
                    count: counted.further,
                }),
        );
        due.extend(
            self.overflow
                .extract_if(|_, overflow| over(overflow.since))
                .map(|(_, overflow)| overflow.due()),
        );
        due
    }
}

impl Overflow {
    fn due(self) -> Due {
        Due {
            count: self.count,
            refusal: Refusal {
                action: OVERFLOW,
                target: Target {
                    kind: "tenant".to_owned(),
                    id: self.tenant.id.to_string(),
                },
                code: "several",
                by: Attribution {
                    tenant: self.tenant,
                    actor: Actor::System,
                    via: None,
                    home: None,
                    reason: None,
                    request_id: None,
                    ip: None,
                },
            },
        }
    }
}

impl Refusals {
    /// Starts to write on the current runtime, until [`Refusals::stop`].
    pub fn start(audit: Audit) -> Self {
        let this = Self(Arc::new(Inner {
            audit,
            table: Mutex::default(),
            wake: Notify::new(),
            stop: Notify::new(),
            running: Mutex::default(),
        }));
        let running = tokio::spawn(this.clone().run());
        *lock(&this.0.running) = Some(running);
        this
    }

    pub fn note(&self, refusal: Refusal) {
        if let Some(metrics) = &self.0.audit.metrics {
            metrics.audit_refused.inc();
        }
        let now = self.0.audit.clock.monotonic();
        if self.table().add(refusal, 1, now, true) {
            self.0.wake.notify_one();
        }
    }

    /// Writes what is still counted, and ends. Attempts noted later are not written.
    pub async fn stop(&self) {
        let running = lock(&self.0.running).take();
        if let Some(running) = running {
            self.0.stop.notify_one();
            if let Err(error) = running.await {
                tracing::error!(%error, "the writer of refused attempts ended early");
            }
        }
    }

    async fn run(self) {
        let inner = &self.0;
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let stopping = tokio::select! {
                () = inner.stop.notified() => true,
                () = inner.wake.notified() => false,
                _ = tick.tick() => false,
            };
            let due = self.table().due(inner.audit.clock.monotonic(), stopping);
            self.write(due, stopping).await;
            if stopping {
                return;
            }
        }
    }

    /// Writes one change for each line. When one fails, it and the rest are counted again, and
    /// tried when their window is over; at the end there is nobody left to try.
    async fn write(&self, due: Vec<Due>, last_chance: bool) {
        let mut due = due.into_iter();
        while let Some(Due { refusal, count }) = due.next() {
            let Err(error) = self.write_one(refusal.clone(), count).await else {
                continue;
            };
            let rest: Vec<Due> = std::iter::once(Due { refusal, count }).chain(due).collect();
            let attempts: i64 = rest.iter().map(|due| due.count).sum();
            if last_chance {
                tracing::error!(target: "security", %error, attempts, "lost refused attempts");
                return;
            }
            tracing::warn!(target: "security", %error, attempts, "could not write refused attempts");
            let now = self.0.audit.clock.monotonic();
            let mut table = self.table();
            for Due { refusal, count } in rest {
                table.add(refusal, count, now, false);
            }
            return;
        }
    }

    async fn write_one(&self, refusal: Refusal, count: i64) -> db::Result<()> {
        let Refusal {
            by,
            action,
            target,
            code,
        } = refusal;
        self.0
            .audit
            .change(by, async move |change: &mut Change| {
                change.record_refused(action, target, code, count);
                db::Result::Ok(())
            })
            .await
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.0.table)
    }
}

/// What is locked here is whole between any two statements.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::text::Slug;

    fn refusal(subject: usize) -> Refusal {
        Refusal {
            by: Attribution {
                tenant: TenantRef {
                    id: TenantId::parse("ten_01jd8k3v9we5m8t7q2x4z6y0ab").unwrap(),
                    slug: Slug::parse("default").unwrap(),
                },
                actor: Actor::Jwt {
                    issuer: "https://idp.example".to_owned(),
                    subject: subject.to_string(),
                },
                via: None,
                home: None,
                reason: None,
                request_id: None,
                ip: None,
            },
            action: "key.revoke",
            target: Target {
                kind: "key".to_owned(),
                id: "-".to_owned(),
            },
            code: "forbidden",
        }
    }

    fn counts(due: &[Due]) -> Vec<i64> {
        due.iter().map(|due| due.count).collect()
    }

    #[test]
    fn the_first_is_due_at_once_and_the_rest_when_the_window_ends() {
        let start = Clock::System.monotonic();
        let mut table = Table::default();
        for second in 0..5 {
            table.add(refusal(1), 1, start + Duration::from_secs(second), true);
        }
        assert_eq!(counts(&table.due(start, false)), [1]);
        assert!(table.due(start + Duration::from_secs(59), false).is_empty());
        assert_eq!(counts(&table.due(start + WINDOW, false)), [4]);
        assert!(table.due(start + 2 * WINDOW, true).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_counted_and_nothing_is_lost() {
        let start = Clock::System.monotonic();
        let mut table = Table::default();
        let attempts = KINDS_MAX + 70;
        for subject in 0..attempts {
            table.add(refusal(subject), 1, start, true);
        }
        assert!(table.kinds.len() <= KINDS_MAX && table.fresh.len() <= FRESH_MAX);
        let due = table.due(start + WINDOW, false);
        let total: i64 = counts(&due).iter().sum();
        assert_eq!(usize::try_from(total).unwrap(), attempts);
        let overflow: Vec<&Due> = due
            .iter()
            .filter(|due| due.refusal.action == OVERFLOW)
            .collect();
        assert_eq!(overflow.len(), 1);
        assert_eq!(overflow[0].count, 70);
    }

    #[test]
    fn what_could_not_be_written_waits_for_the_next_window() {
        let start = Clock::System.monotonic();
        let mut table = Table::default();
        table.add(refusal(1), 1, start, true);
        let due = table.due(start, false);
        for Due { refusal, count } in due {
            table.add(refusal, count, start, false);
        }
        assert!(table.due(start, false).is_empty());
        assert_eq!(counts(&table.due(start + WINDOW, false)), [1]);
    }
}
