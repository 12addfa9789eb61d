//! Which nodes may be validating, and whether all of them know of a change.
//!
//! A node has a row in the database while it runs, seen again every ten seconds, and says in Redis up
//! to which number it knows every change. While it or another loses Redis it says so in its row, each
//! second in which something changed. One that loses the database is known by what it says in Redis, and who reaches both
//! keeps its row for it; one that loses both stops deciding within thirty seconds, before its row counts
//! as old.
//!
//! Who asks without Redis has the rows alone. A node that only Redis reaches may be among them: it goes on for
//! its own `cache.stale_max`, which stands in its row, after anybody who reached both; so its row counts for so
//! much longer then.
//!
//! When the database is put back to an old copy, its rows are those of the copy: a node that lives has none
//! until it writes it again, and one that cannot has none at all. Whoever finds that out leaves a row that
//! stands for all of them, which knows of nothing, and counts for as long as any of theirs would. And nobody is
//! told that all know before this node has looked whether the database still has the history that it follows.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::Changes;
use super::reach::Reach;
use super::relay::{Ack, Relay};
use crate::clock::Clock;
use crate::db::nodes::STALE_MAX_LONGEST;
use crate::db::{self, Conn, Db, nodes};
use crate::time::Span;

/// How often a node's row is written.
const KEPT_EVERY_TICKS: u64 = 10;

/// A node that was not seen for so long, by the database's clock, decides nothing any more: its row may be
/// older by ten seconds, and by [`KEPT_FOR_AFTER`] where others keep it; then thirty without any proof, and some
/// for a write that takes long.
const LIVES: Span = Span::seconds(60);

/// A node whose row is older than this is forgotten: longer than any lives, the longest `cache.stale_max`
/// included.
const FORGOTTEN: Span = Span::hours(2);

/// A node that acknowledges in Redis and whose row is older than this does not reach the database. An
/// acknowledgement that is fresh is the younger of the two, so the position in the row goes back with the
/// history alone.
const KEPT_FOR_AFTER: Span = Span::seconds(15);

/// The same of what it said in Redis.
const ACK_FORGOTTEN_US: u64 = 3_600_000_000;

/// A node that reaches Redis says so this often at least.
const ACK_FRESH_US: u64 = 10_000_000;

/// Between two looks at what the others have acknowledged, at first; it doubles.
const ASK_FIRST: Duration = Duration::from_millis(3);
const ASK_MAX: Duration = Duration::from_millis(50);

impl Ack {
    /// Nor is one that is ahead of Redis's clock: that was set back.
    pub(super) fn is_fresh(&self, now_us: u64) -> bool {
        now_us.abs_diff(self.at_us) <= ACK_FRESH_US
    }

    /// Numbers of another history say nothing in this one.
    fn position_in(&self, history: u64) -> i64 {
        if self.history == history {
            self.position
        } else {
            0
        }
    }
}

/// This node among the others, cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    db: Db,
    clock: Clock,
    changes: Changes,
    reach: Reach,
    relay: Option<Relay>,
    /// How long this node may decide when Redis alone reaches it.
    stale_max: Span,
    /// The last epoch of [`Changes`] that the rows in the database take account of.
    epoch_told: Arc<AtomicU32>,
    id: String,
}

impl Nodes {
    /// `id` names this process, and no other that ever was. `stale_max` is nothing without Redis.
    pub fn new(
        db: Db,
        clock: Clock,
        changes: Changes,
        reach: Reach,
        relay: Option<Relay>,
        stale_max: Span,
        id: String,
    ) -> Self {
        Self {
            db,
            clock,
            changes,
            reach,
            relay,
            stale_max,
            epoch_told: Arc::default(),
            id,
        }
    }

    /// An embedded database has one node.
    fn is_alone(&self) -> bool {
        self.db.is_sqlite()
    }

    /// To be called before anything is remembered: from then on others wait for this node.
    pub async fn join(&self) -> db::Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let (id, position, now) = (self.id.clone(), self.changes.position(), self.clock.now());
        let stale_max = self.stale_max;
        self.db
            .write(async move |conn: &mut Conn| {
                nodes::keep(conn, &id, position, stale_max, now).await
            })
            .await
    }

    /// Keeps the row of this node; never ends.
    pub async fn stay(self) {
        if self.is_alone() {
            return;
        }
        let mut written = self.changes.position();
        let mut is_read = false;
        for tick in 1_u64.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let position = self.changes.position();
            let says_so_here = is_read || self.relay.as_ref().is_none_or(Relay::is_away);
            let is_another_history = !self.is_loss_told();
            if is_another_history && let Err(error) = self.note_loss().await {
                tracing::debug!(%error, "that rows of nodes were lost is written later");
            }
            let is_news = is_another_history || (says_so_here && position > written);
            if tick % KEPT_EVERY_TICKS != 0 && !is_news {
                continue;
            }
            match self.join().await {
                Ok(()) => written = position,
                Err(error) => tracing::debug!(%error, "the node's row is written later"),
            }
            if tick % KEPT_EVERY_TICKS == 0 {
                match self.keep_others().await {
                    Ok(read) => is_read = read,
                    Err(error) => tracing::debug!(%error, "the rows of others are written later"),
                }
            }
        }
    }

    /// Whether the rows take account of every history that was lost.
    fn is_loss_told(&self) -> bool {
        self.epoch_told.load(Ordering::SeqCst) == self.changes.epoch()
    }

    /// Leaves a row for those whose rows were lost with the history.
    async fn note_loss(&self) -> db::Result<()> {
        let (epoch, own) = (self.changes.epoch(), self.clock.now());
        // Who has no Redis takes it that the others have none.
        let stale_max = match &self.relay {
            Some(_) => STALE_MAX_LONGEST,
            None => self.stale_max,
        };
        self.db
            .write(async move |conn: &mut Conn| nodes::note_loss(conn, stale_max, own).await)
            .await?;
        self.epoch_told.store(epoch, Ordering::SeqCst);
        Ok(())
    }

    /// Keeps the rows of those that acknowledge in Redis and cannot write their own: who looks into the
    /// database alone, now or later, has to know of them. Answers whether somebody does: lives, and says
    /// nothing in Redis.
    async fn keep_others(&self) -> db::Result<bool> {
        let Some(relay) = &self.relay else {
            return Ok(false);
        };
        let asked_us = Clock::uptime_us();
        let Ok((now_us, acks)) = relay.acks().await else {
            return Ok(false);
        };
        let history = relay.history().name();
        // In one order on every node: who writes rows in another would wait for who waits for it.
        let living: BTreeMap<String, Ack> = acks
            .into_iter()
            .filter(|(node, ack)| *node != self.id && ack.is_fresh(now_us))
            .collect();
        let seen = self.living(false).await?;
        let is_read = seen.keys().any(|node| !living.contains_key(node));
        if !living.is_empty() {
            let own = self.clock.now();
            self.db
                .write(async move |conn: &mut Conn| -> db::Result<()> {
                    for (node, ack) in &living {
                        let since_us = Clock::uptime_us().saturating_sub(asked_us);
                        // Who waited so long for the rows before it knows nothing fresh any more.
                        if ack.is_fresh(now_us.saturating_add(since_us)) {
                            let position = ack.position_in(history);
                            nodes::keep_for(conn, node, position, KEPT_FOR_AFTER, own).await?;
                        }
                    }
                    Ok(())
                })
                .await?;
        }
        Ok(is_read)
    }

    /// Forgets nodes that ended without saying so.
    pub async fn sweep(&self) -> db::Result<()> {
        if let Some(relay) = &self.relay
            && let Ok((now_us, acks)) = relay.acks().await
        {
            let age_us = |ack: &Ack| now_us.saturating_sub(ack.at_us);
            let gone: Vec<&str> = acks
                .iter()
                .filter(|(_, ack)| age_us(ack) > ACK_FORGOTTEN_US)
                .map(|(node, _)| node.as_str())
                .collect();
            if !gone.is_empty() {
                // What is not forgotten now is an hour later.
                let _gone = relay.forget(&gone).await;
            }
        }
        let own = self.clock.now();
        self.db
            .write(async move |conn: &mut Conn| nodes::sweep(conn, FORGOTTEN, own).await.map(drop))
            .await
    }

    /// This node decides nothing any more.
    ///
    /// What it said in Redis goes first: of a node that is there without a row others write one. Who has read
    /// it before that may still do so, and so may a write of ours that nobody waited for; then this node is
    /// waited for as long as one that was killed, which says `false` where it might be `true`.
    pub async fn leave(&self) {
        if self.is_alone() {
            return;
        }
        if let Some(relay) = &self.relay {
            // It is old in ten seconds.
            let _gone = relay.forget(&[&self.id]).await;
        }
        let id = self.id.clone();
        let removed = self
            .db
            .write(async move |conn: &mut Conn| nodes::remove(conn, &id).await)
            .await;
        if let Err(error) = removed {
            tracing::debug!(%error, "the node's row stays until it is old");
        }
    }

    /// Whether every node knows every change that was committed before this was asked, whoever made it; waits
    /// for it as long as that.
    pub async fn all_know(&self, wait_max: Duration) -> bool {
        if self.is_alone() {
            return true;
        }
        tokio::time::timeout(wait_max, self.until_all_know())
            .await
            .unwrap_or(false)
    }

    /// `false` if the database turns out to have another history: what has this number there is another change.
    async fn until_all_know(&self) -> bool {
        let epoch = self.changes.epoch();
        let asked_us = Clock::uptime_us();
        self.reach.look_soon();
        // Another may have made the change that is asked about, and this node not have heard of it before.
        while self.reach.proved_us() < asked_us {
            tokio::time::sleep(ASK_FIRST).await;
        }
        // The number belongs to this epoch, or to one after it.
        let seq = self.changes.highest().max(self.changes.position());
        while self.changes.epoch() == epoch {
            // What they know they go on knowing.
            if self.is_loss_told() && self.these_and_those_know(seq).await {
                return self.changes.epoch() == epoch;
            }
            tokio::time::sleep(ASK_MAX).await;
        }
        false
    }

    async fn these_and_those_know(&self, seq: i64) -> bool {
        let Some(relay) = &self.relay else {
            return self.all_know_by_rows(seq).await;
        };
        match self.living(false).await {
            Ok(living) => self.until_these_know(relay, seq, living).await,
            Err(_away) => false,
        }
    }

    /// The positions of the others that live, by their rows; if `or_by_redis`, of those too that only Redis may
    /// reach.
    async fn living(&self, or_by_redis: bool) -> db::Result<HashMap<String, i64>> {
        let own = self.clock.now();
        let seen = self
            .db
            .read(async move |conn: &mut Conn| {
                nodes::seen_within(conn, LIVES, or_by_redis, own).await
            })
            .await?;
        Ok(seen.into_iter().filter(|(id, _)| *id != self.id).collect())
    }

    /// Whether all know by their rows alone, those included that only Redis may reach.
    async fn all_know_by_rows(&self, seq: i64) -> bool {
        let living = self.living(true).await;
        living.is_ok_and(|living| living.values().all(|position| *position >= seq))
    }

    /// `false` when the rows have to be read again.
    async fn until_these_know(
        &self,
        relay: &Relay,
        seq: i64,
        living: HashMap<String, i64>,
    ) -> bool {
        let mut positions = living;
        let asked_us = Clock::uptime_us();
        let mut pause = ASK_FIRST;
        while Clock::uptime_us().saturating_sub(asked_us) < 1_000_000 {
            let Ok((now_us, acks)) = relay.acks().await else {
                return self.all_know_by_rows(seq).await;
            };
            let history = relay.history().name();
            for (node, ack) in acks {
                let is_fresh = ack.is_fresh(now_us);
                if node == self.id || !(is_fresh || positions.contains_key(&node)) {
                    continue;
                }
                let position = positions.entry(node).or_default();
                if ack.history == history {
                    *position = ack.position.max(*position);
                } else if is_fresh {
                    // It follows another history, and what its row says is of that one too.
                    *position = 0;
                }
            }
            if positions.values().all(|position| *position >= seq) {
                return true;
            }
            tokio::time::sleep(pause).await;
            pause = ASK_MAX.min(pause * 2);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_redis_set_its_clock_back_is_not_fresh() {
        let ack = Ack {
            history: 1,
            position: 1,
            at_us: 3_600_000_000,
        };
        let is_fresh = |seconds: u64| ack.is_fresh(seconds * 1_000_000);
        assert!(is_fresh(3_600) && is_fresh(3_610) && is_fresh(3_599));
        assert!(!is_fresh(3_611) && !is_fresh(3_500) && !is_fresh(60));
    }
}
