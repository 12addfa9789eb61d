//! What a server does by itself, on timers: each task ends with the server and survives an error.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::{App, start};
use crate::audit::verify::tenants_of;
use crate::audit::{Actor, Chains, Change};
use crate::db::{self, Conn, feed};
use crate::http::health::Phase;
use crate::idempotency;
use crate::keys::pepper_store;
use crate::telemetry::SecurityEvent;
use crate::time::{Span, Timestamp};
use crate::usage::ledger::{FLUSH_EVERY, STORE_EVERY};
use crate::usage::retention::{Cut, EndedEarly, Keep};

/// `last_used` is true to the minute.
const LAST_USED_EVERY: Duration = Duration::from_secs(10);

/// How often a node looks for what others that were killed have not written of it: twice within the time that
/// the ledger is asked about, so that one failure loses nothing.
const RECALL_EVERY: Duration = Duration::from_mins(4);

/// A next pepper is known for 60 s before it is current, so every node knows it by then.
const PEPPERS_EVERY: Duration = Duration::from_secs(10);

/// How often it is asked whether a checkpoint is due.
const TRAIL_LOOK_EVERY: Duration = Duration::from_mins(1);

/// How often it is asked whether a signing key is due, and what other nodes did: often enough that each
/// node knows a key long before it signs.
const SIGNING_KEYS_EVERY: Duration = Duration::from_secs(30);

const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// A node that has just started has other things to do than to tidy up.
const FIRST_SWEEP_AFTER: Duration = Duration::from_secs(10);

/// Uses that are cut go slowly, and what is left then as fast as it can: the next sweep comes soon.
const CUT_GENTLY: Duration = Duration::from_mins(35);

/// So the trail has a line of the hours that went before a stop.
const CUT_TOLD_AFTER: Duration = Duration::from_mins(1);

/// How often it is looked whether an hour of uses can be sealed.
const SEAL_LOOK_EVERY: Duration = Duration::from_mins(1);

/// How far back the feed of changes reaches: longer than anything lives that was read before them.
const CHANGES_KEPT: Span = Span::hours(48);

/// A kill loses at most so much of the counts of quotas.
const COUNTS_EVERY: Duration = Duration::from_secs(1);

const METRICS_EVERY: Duration = Duration::from_secs(1);

/// Starts the tasks, which wait until the node has started; they end when what is answered is
/// dropped.
pub(super) fn start(app: &App) -> Tasks {
    let runtime = app.db.runtime();
    let mut tasks = Vec::new();
    tasks.push(runtime.spawn(keep_last_used(app.clone())));
    let this = app.clone();
    tasks.push(runtime.spawn(async move {
        let mut timer = every(PEPPERS_EVERY);
        loop {
            timer.tick().await;
            if this.is_starting() {
                continue;
            }
            report("peppers are looked at later", this.tend_peppers().await);
        }
    }));
    tasks.push(runtime.spawn(sweep(app.clone())));
    tasks.push(runtime.spawn(seal_hours(app.clone())));
    tasks.push(runtime.spawn(keep_trail(app.clone())));
    tasks.push(runtime.spawn(keep_signing_keys(app.clone())));
    let this = app.clone();
    tasks.push(runtime.spawn(async move {
        let mut timer = every(METRICS_EVERY);
        let mut runs = 0;
        loop {
            timer.tick().await;
            let now = this.hasher.runs();
            this.metrics.argon2_runs.inc_by(now.saturating_sub(runs));
            runs = now;
            let pending = i64::try_from(this.verifiers.pending()).unwrap_or(i64::MAX);
            this.metrics.verifiers_pending.set(pending);
            this.metrics.security.tend();
        }
    }));
    tasks.push(runtime.spawn(Arc::clone(&app.issuers).keep_fresh()));
    if let Some(redis) = &app.redis {
        tasks.push(runtime.spawn(redis.clone().keep_probing()));
    }
    let this = app.clone();
    tasks.push(runtime.spawn(async move {
        let mut timer = every(COUNTS_EVERY);
        loop {
            timer.tick().await;
            this.limiter.tend();
            this.tell_modes();
            if this.is_starting() {
                continue;
            }
            let written = this.limiter.write_back().await;
            report("counts of quotas are written later", written.map(drop));
        }
    }));
    let this = app.clone();
    tasks.push(runtime.spawn(async move {
        // What is followed begins at the start of the node.
        this.started().await;
        this.follower.clone().follow().await;
    }));
    tasks.push(runtime.spawn(app.nodes.clone().stay()));
    tasks.extend(keep_uses(app));
    let this = app.clone();
    tasks.push(runtime.spawn(async move {
        let mut changed = this.follower.pepper_changes();
        while changed.changed().await.is_ok() {
            report("peppers are looked at later", this.tend_peppers().await);
        }
    }));
    Tasks(tasks)
}

/// Writes when keys were last used.
async fn keep_last_used(app: App) {
    app.started().await;
    report(
        "of some keys the last use before the start is not known",
        app.recall_last_used().await,
    );
    let mut recalled = app.clock.monotonic();
    app.usage.prepare().await;
    let mut timer = every(LAST_USED_EVERY);
    loop {
        timer.tick().await;
        let now = app.clock.monotonic();
        // An embedded database has one node, which looks when it starts.
        if !app.db.is_sqlite() && now.saturating_duration_since(recalled) >= RECALL_EVERY {
            recalled = now;
            report(
                "of some keys the last use by a node that was killed is found later",
                app.recall_last_used().await,
            );
        }
        let written = app.validation.flush_last_used().await;
        report("last use is written later", written);
    }
}

/// Removes what is old, and makes room for what comes.
async fn sweep(app: App) {
    app.started().await;
    tokio::time::sleep(FIRST_SWEEP_AFTER).await;
    let mut timer = every(SWEEP_EVERY);
    loop {
        timer.tick().await;
        let cut = app.cut_changes().await;
        report("old changes are cut later", cut.map(drop));
        let swept = app.limiter.sweep_stored().await;
        report("old counts of quotas are swept later", swept.map(drop));
        let swept = idempotency::sweep(&app.db, app.clock.now()).await;
        report("old idempotency keys are swept later", swept.map(drop));
        let swept = app.oauth.revocations().sweep().await;
        report("revoked tokens that ended are swept later", swept.map(drop));
        report("nodes that ended are swept later", app.nodes.sweep().await);
        let swept = app.reviews.sweep().await;
        report("reviews without their keys are swept later", swept);
        if let Some(retention) = app.config.audit.retention {
            let cut = app.audit.cut_due(retention).await;
            report("old audit lines are cut later", cut.map(drop));
        }
        // It may take long.
        report("old uses are cut later", app.cut_uses().await);
        // After that: what is no longer kept is not sealed.
        let taken = app.seals.take_in_late().await;
        report("what came late is sealed later", taken.map(drop));
    }
}

async fn seal_hours(app: App) {
    app.started().await;
    tokio::time::sleep(FIRST_SWEEP_AFTER).await;
    let mut timer = every(SEAL_LOOK_EVERY);
    loop {
        timer.tick().await;
        let sealed = app.seals.seal_due().await;
        report("hours of uses are sealed later", sealed.map(drop));
    }
}

/// Signs the audit trail when that is due.
async fn keep_trail(app: App) {
    let settings = &app.config.audit;
    app.started().await;
    let mut timer = every(settings.checkpoint_every.duration().min(TRAIL_LOOK_EVERY));
    // A node that has just started has other things to do.
    timer.tick().await;
    loop {
        timer.tick().await;
        let signed = app.audit.checkpoint_due(settings.checkpoint_every).await;
        report("the audit trail is signed later", signed.map(drop));
    }
}

/// On a timer, and whenever one changed anywhere.
async fn keep_signing_keys(app: App) {
    let mut timer = every(SIGNING_KEYS_EVERY);
    let mut changed = app.follower.signing_key_changes();
    loop {
        tokio::select! {
            _ = timer.tick() => {
                app.oauth.forget_ended();
                if app.is_starting() {
                    continue;
                }
                report("signing keys are looked at later", app.tend_signing_keys().await);
            }
            told = changed.changed() => {
                if told.is_err() {
                    return;
                }
                let read = app.keyring.reload().await;
                report("signing keys are read later", read.map(drop));
            }
        }
    }
}

/// From the buffers into the journal, and from there into the ledger.
fn keep_uses(app: &App) -> [JoinHandle<()>; 2] {
    let runtime = app.db.runtime();
    let this = app.clone();
    let keep = runtime.spawn(async move {
        this.started().await;
        // One end goes with this task, and tells the other.
        let (_here, gone) = oneshot::channel::<()>();
        let ledger = this.ledger.clone();
        let keep = async move {
            let mut timer = every(FLUSH_EVERY);
            let keep = async {
                loop {
                    timer.tick().await;
                    report("uses are kept later", ledger.flush().await);
                }
            };
            tokio::select! {
                _ = gone => {}
                () = keep => {}
            }
            Ok(())
        };
        report("uses are kept no more", this.ledger.by_journal(keep).await);
    });
    let this = app.clone();
    let store = runtime.spawn(async move {
        let mut timer = every(STORE_EVERY);
        loop {
            timer.tick().await;
            if this.is_starting() {
                continue;
            }
            report("uses are stored later", this.store_uses().await);
        }
    });
    [keep, store]
}

fn every(period: Duration) -> Interval {
    let mut timer = tokio::time::interval(period);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Running tasks, ended when this is dropped.
pub(super) struct Tasks(Vec<JoinHandle<()>>);

/// A task ends where it waits for something the next time.
const END_MAX: Duration = Duration::from_secs(1);

impl Tasks {
    /// Ends them, and waits until they have left what they held to those that come after.
    pub(super) async fn end(mut self) {
        let tasks = std::mem::take(&mut self.0);
        tasks.iter().for_each(JoinHandle::abort);
        let _not_all = tokio::time::timeout(END_MAX, join_all(tasks)).await;
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

fn report(consequence: &'static str, done: db::Result<()>) {
    if let Err(error) = done {
        tracing::warn!(%error, consequence, "a task could not do its work");
    }
}

impl App {
    fn is_starting(&self) -> bool {
        self.readiness.phase() == Phase::Starting
    }

    /// Waits until the node has started.
    async fn started(&self) {
        while self.is_starting() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How the parts work at present, for the metrics.
    fn tell_modes(&self) {
        self.metrics.change_position.set(self.changes.position());
        let age = self.reach.proof_age();
        self.metrics.change_proof_age.set(age.as_secs_f64());
        let usage = &self.metrics.usage;
        usage.journal_bytes.set(self.ledger.waiting_bytes());
        usage.shed.set(self.ledger.shed());
        usage.uses_lost.set(self.ledger.uses_lost());
        usage.aside.set(self.ledger.aside());
        usage.lost.set(self.ledger.lost());
        usage.file_lost.set(self.ledger.file_lost());
        let keys = i64::try_from(self.validation.remembered()).unwrap_or(i64::MAX);
        self.metrics.cached_keys.set(keys);
    }

    /// Nobody follows from so far back.
    async fn cut_changes(&self) -> db::Result<usize> {
        let before = self.clock.now().minus(CHANGES_KEPT);
        self.db
            .write(async move |conn: &mut Conn| feed::cut(conn, before).await)
            .await
    }

    /// Who was killed, here or elsewhere, did not write when keys were last used, but the ledger has it.
    async fn recall_last_used(&self) -> db::Result<()> {
        for tenant in tenants_of(&self.db, &Chains::All).await? {
            let used = self.usage.last_uses(tenant.id.to_string()).await?;
            self.validation.note_used(used);
        }
        Ok(())
    }

    /// Brings what is in the journal into the ledger, by what the services keep now.
    pub async fn store_uses(&self) -> db::Result<()> {
        if !self.ledger.is_waiting() {
            return Ok(());
        }
        let position = self.changes.position();
        let known = self.usage_rules.load_full();
        let rules = if known.0 == position {
            known
        } else {
            let rules = Arc::new((position, self.services.usage_rules().await?));
            self.usage_rules.store(Arc::clone(&rules));
            rules
        };
        let stored = self.ledger.store(rules.1.clone()).await;
        self.validation.note_used(self.ledger.take_inherited());
        stored.map(drop)
    }

    /// Makes room for the events to come and deletes those that are old; what was deleted is in the
    /// audit trail. Events go whatever else fails, or there would be no room one day.
    ///
    /// # Errors
    /// What ended the cut early; what it took is told all the same.
    pub async fn cut_uses(&self) -> db::Result<()> {
        report("events have room later", self.usage.prepare_hours().await);
        let said = self.seals.announce_cut(&self.usage).await;
        let counts_since = *said.as_ref().unwrap_or(&Timestamp::from_millis(0));
        report("all counts of uses are kept", said.map(drop));
        let settings = &self.config.usage;
        let keep = Keep {
            events: settings.events_retention,
            bytes_max: settings.events_bytes_max,
            counts_since,
            gently_until: Instant::now() + CUT_GENTLY,
            told_after: CUT_TOLD_AFTER,
        };
        let mut is_more = true;
        while is_more {
            let (cut, ended) = match self.usage.cut_events(keep).await {
                Ok(cut) => (cut, Ok(())),
                Err(EndedEarly { cut, error }) => (cut, Err(error)),
            };
            let told = self.tell_cut(cut).await;
            report("the audit trail does not say which uses were cut", told);
            ended?;
            is_more = cut.is_part;
        }
        self.usage.cut_counts(keep).await
    }

    async fn tell_cut(&self, cut: Cut) -> db::Result<()> {
        if let Some(until) = cut.until {
            self.metrics.usage.hours_cut.inc_by(cut.hours);
            tracing::info!(
                hours = cut.hours,
                hours_for_room = cut.hours_for_room,
                %until,
                "cut old events of uses"
            );
        }
        let tenant = self.tenants.default().await?;
        if cut.is_held {
            let told = "kept events and counts that seem to be old: nothing was counted for weeks before the \
                        time that the clocks show";
            let event = SecurityEvent::ClockJumped;
            self.audit
                .security_event(event, &tenant.id, told.to_owned());
        }
        let Some(until) = cut.until else {
            return Ok(());
        };
        // It cuts for all tenants, so its line stands in the tenant of those who run the server.
        let at = start::system(tenant, Actor::System);
        self.audit
            .to_end()
            .change(at, async move |change: &mut Change| -> db::Result<()> {
                let after = serde_json::json!({
                    "hours": cut.hours, "hours_for_room": cut.hours_for_room, "until": until,
                });
                change.record("usage.cut", ("usage", "events"), None, Some(after));
                Ok(())
            })
            .await
    }

    /// Makes the next signing key if it is due, and learns what other nodes did.
    pub async fn tend_signing_keys(&self) -> db::Result<()> {
        let tenant = self.tenants.default().await?;
        self.keyring
            .tend(start::system(tenant, Actor::System))
            .await
    }

    /// Makes a next pepper current when it is due, ends old ones that no secret carries, learns what
    /// other nodes did and counts what is still to be done. On a timer; a test need not wait for it.
    pub async fn tend_peppers(&self) -> db::Result<()> {
        let now = self.clock.now();
        // Each by itself: the feed of changes, which the first steps, is nothing to wait for a version with.
        let promote = async move |conn: &mut Conn| pepper_store::promote_due(conn, now).await;
        let promoted = self.db.write(promote).await?;
        let retire = async move |conn: &mut Conn| pepper_store::retire(conn, now).await;
        let retired = self.db.write(retire).await?;
        if let Some(version) = promoted {
            tracing::info!(pepper.version = version, "a pepper became current");
        }
        for version in retired {
            tracing::info!(
                pepper.version = version,
                "an old pepper is carried by no secret: ended"
            );
        }
        let peppers = self.peppers.clone();
        let behind = self
            .db
            .read(async move |conn: &mut Conn| -> db::Result<i64> {
                peppers.reload(conn).await?;
                pepper_store::count_behind(conn).await
            })
            .await?;
        self.metrics.secrets_under_old_peppers.set(behind);
        Ok(())
    }
}
