//! Follows the feed of changes, so that what [`Changes`] knows is complete.
//!
//! The database is asked every second, always: that is what the promises stand on. Redis makes it
//! faster: whoever makes a change wakes the others, and they ask at once. What a message says is not
//! believed, so who can write to Redis can at most make nodes ask more often.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{Notify, watch};

use super::changes::{Changes, Lease};
use crate::clock::Clock;
use crate::db::feed::{self, Changed, Kind};
use crate::db::{self, Conn, Db};
use crate::redis_link::{RedisAway, RedisLink};

/// How often the database is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How often while it is away.
const EVERY_WHILE_AWAY: Duration = Duration::from_millis(250);

/// No look at the database takes longer.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The least time between two looks, however often they are asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// How long until a lost subscription is made anew.
const RESUBSCRIBE: Duration = Duration::from_millis(200);

/// Where nodes wake each other.
const CHANNEL: &str = "keystead:changes";

/// Wakes the nodes that share this Redis: the change of this number was committed.
pub async fn wake(redis: RedisLink, seq: i64) {
    let mut publish = redis::cmd("PUBLISH");
    publish.arg(CHANNEL).arg(seq);
    // Whoever does not hear of it asks the database within a second.
    let _told: Result<i64, RedisAway> = redis.query(&publish).await;
}

/// How long entries may be used by a node that reaches nobody who could tell it of changes.
const ALONE_US: u64 = 30_000_000;

/// So many changes are read at once.
const ROWS: i64 = 10_000;

/// So many changes are read at a start; entries that others keep from before are not used.
const CHANGES_AT_START: i64 = 20_000;

/// Whether the database answers, as the last look found it.
#[derive(Clone, Debug, Default)]
pub struct Reach(Arc<Reached>);

#[derive(Debug, Default)]
struct Reached {
    database_away: AtomicBool,
    proved_us: AtomicU64,
}

impl Reach {
    pub fn is_database_away(&self) -> bool {
        self.0.database_away.load(Ordering::Relaxed)
    }

    fn set_database_away(&self, away: bool) -> bool {
        self.0.database_away.swap(away, Ordering::Relaxed)
    }

    /// When the last look began that found the knowledge of changes complete, see
    /// [`Clock::uptime_us`]; 0 for never.
    pub fn proved_us(&self) -> u64 {
        self.0.proved_us.load(Ordering::Relaxed)
    }
}

/// Keeps [`Changes`] complete.
#[derive(Clone)]
pub struct Follower {
    db: Db,
    changes: Changes,
    reach: Reach,
    redis: Option<RedisLink>,
    /// Told whenever a pepper changed.
    peppers: Arc<watch::Sender<i64>>,
    /// The change at our position: if it is another one day, the database has another history.
    mark: Arc<Mutex<Vec<Changed>>>,
}

impl Follower {
    pub fn new(db: Db, changes: Changes, reach: Reach, redis: Option<RedisLink>) -> Self {
        Self {
            db,
            changes,
            reach,
            redis,
            peppers: Arc::new(watch::Sender::new(0)),
            mark: Arc::default(),
        }
    }

    /// Hears of every change of a pepper that is followed.
    pub fn pepper_changes(&self) -> watch::Receiver<i64> {
        self.peppers.subscribe()
    }

    /// Learns the recent changes. What somebody keeps from before them is not used.
    pub async fn begin(&self) -> db::Result<()> {
        let (head, oldest) = self
            .db
            .load(LOOK_MAX * 2, async |conn: &mut Conn| -> db::Result<_> {
                Ok((feed::head(conn).await?, feed::oldest(conn).await?))
            })
            .await?;
        let first = oldest.unwrap_or(head.saturating_add(1));
        let back = head.saturating_sub(CHANGES_AT_START);
        self.changes.forget(back.max(first.saturating_sub(1)));
        self.look().await?;
        self.renew();
        Ok(())
    }

    /// Follows until it is dropped.
    pub async fn follow(self) {
        let woken = Arc::new(Notify::new());
        tokio::join!(self.ask(&woken), self.listen(&woken));
    }

    /// Wakes who asks whenever a message comes, and whenever messages may have been missed.
    async fn listen(&self, woken: &Notify) {
        let Some(redis) = &self.redis else {
            return;
        };
        loop {
            if let Ok(mut messages) = redis.messages().await
                && messages.subscribe(CHANNEL).await.is_ok()
            {
                woken.notify_one();
                let mut stream = messages.into_on_message();
                while stream.next().await.is_some() {
                    woken.notify_one();
                }
            }
            tokio::time::sleep(RESUBSCRIBE).await;
        }
    }

    async fn ask(&self, woken: &Notify) {
        loop {
            let pause = match self.look().await {
                Ok(()) => EVERY,
                Err(error) => {
                    if !self.reach.set_database_away(true) {
                        tracing::warn!(%error, "the database is away: serving what is known");
                    }
                    EVERY_WHILE_AWAY
                }
            };
            self.renew();
            // However many messages come, there is a least time between two looks.
            tokio::time::sleep(LEAST_PAUSE).await;
            let _either = tokio::time::timeout(pause, woken.notified()).await;
        }
    }

    /// One look at the database.
    pub async fn look(&self) -> db::Result<()> {
        let began = Clock::uptime_us();
        loop {
            let (position, highest) = (self.changes.position(), self.changes.highest());
            let (head, changed) = self
                .db
                .load(LOOK_MAX, async move |conn: &mut Conn| -> db::Result<_> {
                    let head = feed::head(conn).await?;
                    // From the change that we know on, to see that it is still the same.
                    Ok((head, feed::since(conn, position - 1, ROWS).await?))
                })
                .await?;
            if self.advance(position, highest, head, &changed) {
                break;
            }
        }
        if self.reach.set_database_away(false) {
            tracing::info!("the database is back");
        }
        self.prove(began);
        Ok(())
    }

    /// Takes in what a look found; whether the position has come up to the counter.
    fn advance(&self, position: i64, highest: i64, head: i64, found: &[Changed]) -> bool {
        let known = found.partition_point(|change| change.seq <= position);
        let (known, changed) = found.split_at(known);
        let mut mark = self.mark.lock().unwrap_or_else(PoisonError::into_inner);
        // At the start nothing is known yet of the position that we begin from.
        let is_same = mark.is_empty() || *mark == known;
        let is_whole = match changed.first() {
            Some(first) => first.seq == position.saturating_add(1),
            None => head == position,
        };
        if !is_same || !is_whole || head < highest {
            // The feed was cut before our position, or the database has another history: it was put
            // back to an old copy, or lost its last changes.
            tracing::warn!(
                target: "security",
                position,
                head,
                "lost the feed of changes: loading everything anew"
            );
            mark.clear();
            self.changes.begin_anew(head);
            self.peppers.send_replace(head);
            return true;
        }
        let at = changed.last().map_or(position, |last| last.seq);
        *mark = found
            .iter()
            .filter(|change| change.seq == at)
            .cloned()
            .collect();
        drop(mark);
        self.apply(changed);
        self.changes.set_position(at);
        at >= head
    }

    fn apply(&self, changed: &[Changed]) {
        for Changed { seq, kind, id, .. } in changed {
            if let Some(kind) = kind {
                self.changes.note(*seq, *kind, id);
                if *kind == Kind::Pepper {
                    self.peppers.send_replace(*seq);
                }
            }
        }
    }

    fn prove(&self, began_us: u64) {
        self.reach
            .0
            .proved_us
            .fetch_max(began_us, Ordering::Relaxed);
    }

    fn renew(&self) {
        self.changes.renew(Lease {
            proved_us: self.reach.proved_us(),
            lasts_us: ALONE_US,
        });
    }
}
