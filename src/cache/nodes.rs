//! Which nodes may be validating, and whether all of them know of a change.
//!
//! A node has a row in the database while it runs, seen again every ten seconds, and says in Redis up
//! to which number it knows every change. One that loses the database is known by what it says in
//! Redis; one that loses both stops deciding within thirty seconds, before its row counts as old.

use std::collections::HashMap;
use std::time::Duration;

use super::Changes;
use super::relay::{Ack, Relay};
use crate::clock::Clock;
use crate::db::{self, Conn, Db, nodes};
use crate::time::Span;

/// How often a node's row is written.
const KEPT_EVERY_TICKS: u64 = 10;

/// A node that was not seen for so long, by the database's clock, decides nothing any more: written every
/// ten seconds, thirty without any proof, and some for a write that takes long.
const LIVES: Span = Span::seconds(60);

/// A node whose row is older than this is forgotten.
const FORGOTTEN: Span = Span::hours(1);

/// The same of what it said in Redis.
const ACK_FORGOTTEN_US: u64 = 3_600_000_000;

/// A node that reaches Redis says so this often at least.
const ACK_FRESH_US: u64 = 10_000_000;

/// Between two looks at what the others have acknowledged, at first; it doubles.
const ASK_FIRST: Duration = Duration::from_millis(3);
const ASK_MAX: Duration = Duration::from_millis(50);

/// This node among the others, cheap to clone.
#[derive(Clone)]
pub struct Nodes {
    db: Db,
    clock: Clock,
    changes: Changes,
    relay: Option<Relay>,
    id: String,
}

impl Nodes {
    /// `id` names this process, and no other that ever was.
    pub fn new(db: Db, clock: Clock, changes: Changes, relay: Option<Relay>, id: String) -> Self {
        Self {
            db,
            clock,
            changes,
            relay,
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
        self.db
            .write(async move |conn: &mut Conn| nodes::keep(conn, &id, position, now).await)
            .await
    }

    /// Keeps the row of this node; never ends.
    pub async fn stay(self) {
        if self.is_alone() {
            return;
        }
        let mut written = self.changes.position();
        for tick in 1_u64.. {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let position = self.changes.position();
            let says_so_here = self.relay.as_ref().is_none_or(Relay::is_away);
            if tick % KEPT_EVERY_TICKS != 0 && !(says_so_here && position > written) {
                continue;
            }
            match self.join().await {
                Ok(()) => written = position,
                Err(error) => tracing::debug!(%error, "the node's row is written later"),
            }
        }
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
    pub async fn leave(&self) {
        if self.is_alone() {
            return;
        }
        let id = self.id.clone();
        let removed = self
            .db
            .write(async move |conn: &mut Conn| nodes::remove(conn, &id).await)
            .await;
        if let Err(error) = removed {
            tracing::debug!(%error, "the node's row stays until it is old");
        }
        if let Some(relay) = &self.relay {
            // It is old in ten seconds.
            let _gone = relay.forget(&[&self.id]).await;
        }
    }

    /// Whether every node knows every change that this one knows now; waits for it as long as that.
    pub async fn all_know(&self, wait_max: Duration) -> bool {
        let seq = self.changes.highest();
        if self.is_alone() {
            return true;
        }
        tokio::time::timeout(wait_max, self.until_all_know(seq))
            .await
            .is_ok()
    }

    async fn until_all_know(&self, seq: i64) {
        loop {
            let own = self.clock.now();
            let living = self
                .db
                .read(async move |conn: &mut Conn| -> db::Result<_> {
                    nodes::seen_within(conn, LIVES, own).await
                })
                .await;
            if let Ok(living) = living
                && self.until_these_know(seq, living).await
            {
                return;
            }
            tokio::time::sleep(ASK_MAX).await;
        }
    }

    /// `false` when the rows have to be read again.
    async fn until_these_know(&self, seq: i64, living: Vec<(String, i64)>) -> bool {
        let mut positions: HashMap<String, i64> = living.into_iter().collect();
        positions.remove(&self.id);
        let Some(relay) = &self.relay else {
            return positions.values().all(|position| *position >= seq);
        };
        let asked_us = Clock::uptime_us();
        let mut pause = ASK_FIRST;
        while Clock::uptime_us().saturating_sub(asked_us) < 1_000_000 {
            let Ok((now_us, acks)) = relay.acks().await else {
                // Nobody can say what a node knows that reaches Redis alone.
                return false;
            };
            let history = relay.history().name();
            for (node, ack) in acks {
                let is_fresh = now_us.saturating_sub(ack.at_us) <= ACK_FRESH_US;
                if node == self.id || !(is_fresh || positions.contains_key(&node)) {
                    continue;
                }
                let acked = if ack.history == history {
                    ack.position
                } else {
                    0
                };
                let position = positions.entry(node).or_default();
                *position = acked.max(*position);
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
