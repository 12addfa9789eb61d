//! Refused attempts of authenticated callers: the first of a kind at once, the rest summed.
//!
//! A kind is (tenant, actor, via, action, code). Its first attempt is a line of its own; what else
//! comes within [`WINDOW`] is counted, and becomes one line with the count when the window ends or
//! the node stops. So a flood costs a line a minute, and nothing is dropped silently: what does not
//! fit into the table is counted per tenant, what cannot be written now is tried again.
//!
//! Nothing is written twice either. Nobody waits for a line, so its end is waited for; where that is not
//! seen, because the connection broke or hangs, the line is tried again under the id that it had, which
//! a change that finds it in the trail leaves alone.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::chain::Target;
use super::{Actor, Attribution, Audit, Change, TenantRef, store};
use crate::db;
use crate::id::{AuditId, TenantId};

/// How long attempts of one kind are counted into one line.
pub const WINDOW: Duration = Duration::from_mins(1);

/// Kinds that are told apart at a time.
const KINDS_MAX: usize = 10_000;

/// First attempts that wait to be written at a time; further ones are counted.
const FRESH_MAX: usize = 1000;

/// How often the ends of windows are looked for.
const TICK: Duration = Duration::from_millis(500);

/// How long the end of a line is waited for: many round trips, however slow.
const WRITE_MAX: Duration = Duration::from_secs(30);

/// How long when the node stops.
const WRITE_AT_STOP_MAX: Duration = db::WAIT_MAX;

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
    stop: watch::Sender<bool>,
    running: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Table {
    kinds: HashMap<Kind, Counted>,
    /// First attempts that are not written yet.
    fresh: VecDeque<Refusal>,
    overflow: HashMap<TenantId, Overflow>,
    /// Lines that may have been written, and when they were last tried. As a rule one: what comes behind it
    /// is not tried when the database is away.
    unsure: Vec<(Instant, Due)>,
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
    /// Of one that may have been written: the id under which it was.
    id: Option<AuditId>,
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

    /// Counts a line again that could not be written, or keeps it as it is if it may have been.
    fn give_back(&mut self, line: Due, now: Instant) {
        if line.id.is_some() {
            self.unsure.push((now, line));
        } else {
            self.add(line.refusal, line.count, now, false);
        }
    }

    /// Takes what is to be written: first attempts, the sums of windows that are over, and what may have been
    /// written.
    fn due(&mut self, now: Instant, all: bool) -> VecDeque<Due> {
        let over = |since: Instant| all || now.saturating_duration_since(since) >= WINDOW;
        let mut due: VecDeque<Due> = self
            .fresh
            .drain(..)
            .map(|refusal| Due {
                refusal,
                count: 1,
                id: None,
            })
            .collect();
        due.extend(
            self.kinds
                .extract_if(|_, counted| over(counted.since))
                .filter(|(_, counted)| counted.further > 0)
                .map(|(_, counted)| Due {
                    refusal: counted.last,
                    count: counted.further,
                    id: None,
                }),
        );
        due.extend(
            self.overflow
                .extract_if(|_, overflow| over(overflow.since))
                .map(|(_, overflow)| overflow.due()),
        );
        if !due.is_empty() || self.unsure.iter().any(|(since, _)| over(*since)) {
            // Behind the rest, which does not wait for a chain that somebody holds.
            due.extend(self.unsure.drain(..).map(|(_, line)| line));
        }
        due
    }
}

impl Overflow {
    fn due(self) -> Due {
        Due {
            count: self.count,
            id: None,
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
            stop: watch::Sender::new(false),
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
            self.0.stop.send_replace(true);
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
                () = self.stopping() => true,
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

    async fn stopping(&self) {
        // The sender lives as long as this.
        let _told = self.0.stop.subscribe().wait_for(|stop| *stop).await.is_ok();
    }

    /// Writes one change for each line. When one fails, it and the others of its chain are given back, and
    /// tried when their window is over, and so are all if it is the database that fails; at the end there is
    /// nobody left to try.
    async fn write(&self, mut due: VecDeque<Due>, last_chance: bool) {
        while let Some(mut line) = due.pop_front() {
            let was_tried = line.id.is_some();
            let Err(error) = self.write_one(&mut line).await else {
                continue;
            };
            // Otherwise it was undone.
            let is_unsure = matches!(error, db::Error::Busy | db::Error::Unavailable(_));
            let is_away = is_unsure || matches!(error, db::Error::Refused(_));
            line.id = line.id.filter(|_| was_tried || is_unsure);
            let tenant = line.refusal.by.tenant.id.clone();
            let with_it = |other: &Due| is_away || other.refusal.by.tenant.id == tenant;
            let (mut failed, others): (VecDeque<Due>, VecDeque<Due>) =
                due.into_iter().partition(with_it);
            due = others;
            failed.push_front(line);
            self.give_back(failed, &error, last_chance);
        }
    }

    fn give_back(&self, failed: VecDeque<Due>, error: &db::Error, last_chance: bool) {
        let attempts: i64 = failed.iter().map(|line| line.count).sum();
        let unsure = failed.iter().filter(|line| line.id.is_some());
        let perhaps_written: i64 = unsure.map(|line| line.count).sum();
        if last_chance {
            tracing::error!(
                target: "security", %error, attempts, perhaps_written, "lost refused attempts"
            );
            return;
        }
        tracing::warn!(
            target: "security", %error, attempts, perhaps_written, "could not write refused attempts"
        );
        let now = self.0.audit.clock.monotonic();
        let mut table = self.table();
        for line in failed {
            table.give_back(line, now);
        }
    }

    /// Once under the id that it gets, however often it is tried.
    ///
    /// # Errors
    /// [`db::Error::Busy`] and [`db::Error::Unavailable`] when it may be written all the same.
    async fn write_one(&self, line: &mut Due) -> db::Result<()> {
        let audit = &self.0.audit;
        let new = || AuditId::new(&audit.clock, &audit.entropy);
        let id = line.id.get_or_insert_with(new).clone();
        let Refusal {
            by,
            action,
            target,
            code,
        } = line.refusal.clone();
        let count = line.count;
        let patient = audit.to_end();
        let written = patient.change(by, async move |change: &mut Change| {
            let tenant = change.attribution().tenant.id.clone();
            if store::seq_of(change.conn(), &tenant, &id).await?.is_some() {
                return Ok(false);
            }
            change.record_refused(action, target, code, count);
            change.called(id);
            db::Result::Ok(true)
        });
        let is_new = tokio::select! {
            written = written => written?,
            () = self.out_of_time() => return Err(db::Error::Busy),
        };
        if !is_new {
            let attempts = count;
            tracing::info!(target: "security", attempts, "refused attempts had been written");
        }
        Ok(())
    }

    /// The end of the time that a line has.
    async fn out_of_time(&self) {
        let at_stop = async {
            self.stopping().await;
            tokio::time::sleep(WRITE_AT_STOP_MAX).await;
        };
        tokio::select! {
            () = at_stop => {}
            () = tokio::time::sleep(WRITE_MAX) => {}
        }
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

    fn counts<'d>(due: impl IntoIterator<Item = &'d Due>) -> Vec<i64> {
        due.into_iter().map(|due| due.count).collect()
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
        for line in table.due(start, false) {
            table.give_back(line, start);
        }
        assert!(table.due(start, false).is_empty());
        assert_eq!(counts(&table.due(start + WINDOW, false)), [1]);
    }

    #[test]
    fn what_may_have_been_written_keeps_its_count_and_comes_behind_the_rest() {
        let start = Clock::System.monotonic();
        let id = AuditId::new(&Clock::System, &crate::entropy::Entropy::System);
        let mut table = Table::default();
        table.add(refusal(1), 1, start, true);
        for mut line in table.due(start, false) {
            line.id = Some(id.clone());
            table.give_back(line, start);
        }
        table.add(refusal(1), 7, start, true);
        assert!(table.due(start, false).is_empty());
        table.add(refusal(2), 1, start, true);
        let due = table.due(start, false);
        assert_eq!(counts(&due), [1, 1]);
        assert_eq!((&due[0].id, &due[1].id), (&None, &Some(id)));
        for line in due {
            table.give_back(line, start);
        }
        let due = table.due(start + WINDOW, false);
        assert_eq!(due.back().map(|line| line.count), Some(1));
    }
}
