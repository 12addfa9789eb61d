//! Follows the feed of changes, so that what [`Changes`] knows is complete.
//!
//! The database is asked every second, always: that is what the promises stand on. Redis makes it
//! faster: whoever makes a change tells the others what it touched, and they ask at once. What is told is
//! sealed, and takes away what was read before; so who can write to Redis can at most make nodes ask more
//! often.
//!
//! A node that reaches Redis but not the database follows through what the others relay: see
//! [`relay`](super::relay).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::watch;

use super::changes::{Changes, Lease};
use super::reach::Reach;
use super::relay::{Ack, Beat, Reading, Relay, mark};
use crate::clock::Clock;
use crate::db::feed::{self, Changed, Kind};
use crate::db::{self, Conn, Db};
use crate::entropy::Entropy;
use crate::redis_link::RedisAway;

/// How often the database is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How often while it is away.
const EVERY_WHILE_AWAY: Duration = Duration::from_millis(250);

/// No look at the database takes longer.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// The least time between two looks, however often they are asked for.
const LEAST_PAUSE: Duration = Duration::from_millis(5);

/// The least time between two beats that tell of no change.
const BEAT_EVERY_US: u64 = 500_000;

/// After so much silence a subscription is asked whether it lives, and given up if no answer comes.
const PING_AFTER: Duration = Duration::from_secs(1);
const PONG_MAX: Duration = Duration::from_secs(1);

/// How long until a lost subscription is made anew.
const RESUBSCRIBE: Duration = Duration::from_millis(200);

/// How long entries may be used by a node that reaches nobody who could tell it of changes.
const ALONE_US: u64 = 30_000_000;

/// So many rows are read at once, or as many as one change has.
const ROWS: i64 = 10_000;

/// A beat that is older was written by nodes which ended before this one began, or somebody put it back: only if
/// somebody else still follows its history it is asked for the name. Longer than a node takes to be started again, and
/// shorter than a database to be put back to an old copy.
const BEAT_LIVES_US: u64 = 60_000_000;

/// So many changes are read at a start; entries that others keep from before are not used.
const CHANGES_AT_START: i64 = 20_000;

/// So many changed entities wait to be relayed while Redis is away, and what the oldest change has beyond
/// them.
const UNTOLD_MAX: usize = 10_000;

/// Keeps [`Changes`] complete.
#[derive(Clone)]
pub struct Follower {
    db: Db,
    changes: Changes,
    reach: Reach,
    relay: Option<Relay>,
    entropy: Entropy,
    stale_max_us: u64,
    /// Told whenever a pepper changed.
    peppers: Arc<watch::Sender<i64>>,
    /// Told whenever a key that tokens are signed with changed.
    signing_keys: Arc<watch::Sender<i64>>,
    at: Arc<Mutex<At>>,
}

/// Where a follower stands.
#[derive(Debug, Default)]
struct At {
    /// [`mark`] of the change at our position: if it is another one day, the database has another
    /// history. Unknown until that change was read.
    mark: Option<String>,
    /// The name of a history that the database has no more.
    former: u64,
    /// What other nodes were not told yet.
    untold: Vec<Changed>,
    /// When they were last told.
    told_us: u64,
    /// The time of the last beat that proved something, by Redis's clock.
    beat_us: u64,
}

impl At {
    /// It is not known any more which change stands at our position: what came before it, and was not told, may be of
    /// another history than what comes.
    fn lose_place(&mut self) {
        self.mark = None;
        self.untold.clear();
    }

    /// Whether a beat of this time, by Redis's clock like `now_us`, proves something: one that was there before does
    /// not.
    fn is_news(&mut self, beat_us: u64, now_us: u64) -> bool {
        if now_us < self.beat_us {
            // That clock was set back, and the beat may be from before it was: the next one proves something.
            self.beat_us = beat_us;
        }
        let is_news = beat_us > self.beat_us && beat_us <= now_us;
        self.beat_us = self.beat_us.max(beat_us);
        is_news
    }
}

impl Follower {
    pub fn new(
        db: Db,
        changes: Changes,
        reach: Reach,
        relay: Option<Relay>,
        entropy: Entropy,
        stale_max: Duration,
    ) -> Self {
        Self {
            db,
            changes,
            reach,
            relay,
            entropy,
            stale_max_us: u64::try_from(stale_max.as_micros()).unwrap_or(u64::MAX),
            peppers: Arc::new(watch::Sender::new(0)),
            signing_keys: Arc::new(watch::Sender::new(0)),
            at: Arc::default(),
        }
    }

    /// Hears of every change of a pepper that is followed.
    pub fn pepper_changes(&self) -> watch::Receiver<i64> {
        self.peppers.subscribe()
    }

    /// Hears of every change of a key that tokens are signed with.
    pub fn signing_key_changes(&self) -> watch::Receiver<i64> {
        self.signing_keys.subscribe()
    }

    /// Learns the recent changes of the database of this name. What somebody keeps from before them is
    /// not used.
    pub async fn begin(&self, database: &str) -> db::Result<()> {
        if let Some(relay) = &self.relay {
            relay.history().begin(database);
        }
        let (head, oldest) = self
            .db
            .look(LOOK_MAX * 2, async |conn: &mut Conn| -> db::Result<_> {
                Ok((feed::head(conn).await?, feed::oldest(conn).await?))
            })
            .await?;
        let first = oldest.unwrap_or(head.saturating_add(1));
        let back = head.saturating_sub(CHANGES_AT_START);
        // A start that is tried again stands behind where it stood.
        self.at().lose_place();
        self.changes.forget(back.max(first.saturating_sub(1)));
        // Others were told of what was there before us.
        self.look_at_database(&mut Vec::new()).await?;
        self.look(false).await?;
        self.renew();
        Ok(())
    }

    /// Follows until it is dropped.
    pub async fn follow(self) {
        tokio::join!(self.ask(), self.listen());
    }

    /// Wakes who asks whenever a message comes, and whenever messages may have been missed.
    async fn listen(&self) {
        let Some(relay) = &self.relay else {
            return;
        };
        loop {
            if let Some(wakes) = relay.wakes().await {
                self.reach.look_as_told();
                self.listen_to(relay, wakes).await;
            }
            tokio::time::sleep(RESUBSCRIBE).await;
        }
    }

    /// Until the subscription ends, or is found to be dead: a peer that vanished never says so.
    async fn listen_to(&self, relay: &Relay, wakes: redis::aio::PubSub) {
        let (mut asking, mut messages) = wakes.split();
        loop {
            match tokio::time::timeout(PING_AFTER, messages.next()).await {
                Ok(Some(message)) => {
                    self.take_in(relay, &message);
                    self.reach.look_as_told();
                }
                Ok(None) => return,
                Err(_silent) => {
                    let pong = asking.ping::<redis::Value>();
                    let answered = tokio::time::timeout(PONG_MAX, pong).await;
                    if !matches!(answered, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    fn take_in(&self, relay: &Relay, message: &redis::Msg) {
        // So that the history does not become another between the look at its name and the note.
        let _at = self.at();
        if let Some(news) = relay.heard(message) {
            for (kind, id) in &news.touched {
                self.changes.note(news.seq, *kind, id);
            }
        }
    }

    async fn ask(&self) {
        let mut was_told = false;
        loop {
            let pause = match self.look(was_told).await {
                Ok(()) => EVERY,
                Err(error) => {
                    if !self.reach.set_database_away(true) {
                        tracing::warn!(%error, "the database is away: serving what is known");
                    }
                    if let Some(relay) = &self.relay {
                        self.look_through_redis(relay).await;
                    }
                    EVERY_WHILE_AWAY
                }
            };
            self.renew();
            // However many messages come, there is a least time between two looks.
            tokio::time::sleep(LEAST_PAUSE).await;
            was_told = self.reach.woken_as_told(pause).await;
        }
    }

    /// One look at the database; what it finds is relayed. Who was told by a message need not wake others.
    pub async fn look(&self, was_told: bool) -> db::Result<()> {
        let began = Clock::uptime_us();
        // Before the database: a beat must not be younger than what it speaks of.
        let reading = match &self.relay {
            Some(relay) => relay.read().await.ok(),
            None => None,
        };
        let mut learned = Vec::new();
        let looked = self.look_at_database(&mut learned).await;
        let wakes = !learned.is_empty() && !was_told;
        if self.relay.is_some() {
            // Also where the look failed: the next one begins behind it.
            self.keep_untold(learned);
        }
        looked?;
        if self.reach.set_database_away(false) {
            tracing::info!("the database is back");
        }
        self.reach.prove(began);
        if let Some(relay) = &self.relay
            && let Some(reading) = reading
        {
            self.reach.see_redis(began);
            self.relay_on(relay, &reading, wakes).await?;
        }
        Ok(())
    }

    /// What is learned is added, as far as it is not too much to be relayed.
    async fn look_at_database(&self, learned: &mut Vec<Changed>) -> db::Result<()> {
        let mut rows = ROWS;
        loop {
            let (position, highest) = (self.changes.position(), self.changes.highest());
            // From the change that we know on, to see that it is still the same.
            let read = self
                .db
                .look(LOOK_MAX, async move |conn: &mut Conn| {
                    feed::from(conn, position, rows).await
                })
                .await?;
            let Some((head, found)) = read else {
                rows = rows.saturating_mul(2);
                continue;
            };
            let known = found.partition_point(|change| change.seq <= position);
            let (known, changed) = found.split_at(known);
            if !self.continues(position, highest, head, known, changed) {
                self.begin_anew(position, head);
                learned.clear();
                return Ok(());
            }
            let at = self.advance(position, known, changed);
            learned.extend_from_slice(changed);
            leave_out_oldest(learned);
            if at >= head {
                return Ok(());
            }
        }
    }

    /// Whether what a look found goes on from where we stand. If not, the feed was cut before our
    /// position, or the database has another history: it was put back to an old copy, or lost its
    /// last changes.
    fn continues(
        &self,
        position: i64,
        highest: i64,
        head: i64,
        known: &[Changed],
        changed: &[Changed],
    ) -> bool {
        let at = self.at();
        // At the start nothing is known yet of the position that we begin from.
        let is_same = at.mark.as_ref().is_none_or(|ours| *ours == mark(known));
        let is_whole = match changed.first() {
            Some(first) => first.seq == position.saturating_add(1),
            None => head == position,
        };
        is_same && is_whole && head >= highest
    }

    fn begin_anew(&self, position: i64, head: i64) {
        tracing::warn!(
            target: "security",
            position,
            head,
            "lost the feed of changes: loading everything anew"
        );
        let mut at = self.at();
        at.lose_place();
        if let Some(relay) = &self.relay {
            at.former = relay.history().name();
            // First: who notes the new epoch, and then the name, never has the old name.
            relay.history().set(0);
        }
        self.changes.begin_anew(head);
        self.peppers.send_replace(head);
        self.signing_keys.send_replace(head);
    }

    /// Takes in what follows our position, which is answered as it is then.
    fn advance(&self, position: i64, known: &[Changed], changed: &[Changed]) -> i64 {
        let last = changed.last().map_or(position, |last| last.seq);
        let from = if changed.is_empty() { known } else { changed };
        let its_rows = from.partition_point(|change| change.seq < last);
        self.at().mark = Some(mark(from.get(its_rows..).unwrap_or_default()));
        for Changed { seq, kind, id, .. } in changed {
            if let Some(kind) = kind {
                self.changes.note(*seq, *kind, id);
                match kind {
                    Kind::Pepper => {
                        self.peppers.send_replace(*seq);
                    }
                    Kind::SigningKey => {
                        self.signing_keys.send_replace(*seq);
                    }
                    Kind::Tenant
                    | Kind::Service
                    | Kind::Consumer
                    | Kind::Key
                    | Kind::LookupId
                    | Kind::Token => {}
                }
            }
        }
        self.changes.set_position(last);
        last
    }

    fn keep_untold(&self, learned: Vec<Changed>) {
        let mut at = self.at();
        at.untold.extend(learned);
        leave_out_oldest(&mut at.untold);
    }

    /// Tells other nodes what this one knows from the database.
    async fn relay_on(&self, relay: &Relay, reading: &Reading, wakes: bool) -> db::Result<()> {
        let seq = self.changes.position();
        let Some(name) = self.agree(relay, reading, seq).await? else {
            return Ok(());
        };
        let now = Clock::uptime_us();
        let (beat, untold) = {
            let at = self.at();
            relay.history().set(name);
            let Some(mark) = at.mark.clone() else {
                // The next look reads the change that it is of.
                return Ok(());
            };
            if at.untold.is_empty() && now.saturating_sub(at.told_us) < BEAT_EVERY_US {
                return Ok(());
            }
            let beat = Beat {
                history: name,
                seq,
                mark,
                at_us: reading.now_us,
            };
            (beat, at.untold.clone())
        };
        if relay.tell(&beat, &untold, wakes).await.is_ok() {
            let mut at = self.at();
            at.told_us = now;
            at.untold.clear();
        }
        Ok(())
    }

    /// The name of the history that the database has: the one that the nodes know, if this is it. `None` if that cannot
    /// be said now.
    async fn agree(&self, relay: &Relay, reading: &Reading, seq: i64) -> db::Result<Option<u64>> {
        let (known, former) = (relay.history().name(), self.at().former);
        let new = || Some(u64::from_be_bytes(self.entropy.nonce()).max(1));
        let own = || Some(known).filter(|known| *known != 0).or_else(new);
        let Some(beat) = &reading.beat else {
            return Ok(own());
        };
        // It was written before we looked, so the database has lost what it had committed.
        if beat.seq > seq || beat.history == former {
            return Ok(new());
        }
        if beat.history == known {
            return Ok(Some(known));
        }
        match is_followed(relay, beat, reading.now_us).await {
            Err(RedisAway) => return Ok(None),
            Ok(false) => return Ok(own()),
            Ok(true) => {}
        }
        let number = beat.seq;
        let there = self
            .db
            .look(LOOK_MAX, async move |conn: &mut Conn| {
                feed::at(conn, number).await
            })
            .await?;
        Ok(if mark(&there) == beat.mark {
            Some(beat.history)
        } else {
            new()
        })
    }

    /// Learns from what other nodes relay, while the database is away.
    async fn look_through_redis(&self, relay: &Relay) {
        let began = Clock::uptime_us();
        let Ok(Reading { now_us, beat }) = relay.read().await else {
            return;
        };
        let known = relay.history().name();
        // Who follows no history is told nothing, and of another only the database itself can convince us.
        if known == 0 || beat.as_ref().is_some_and(|beat| beat.history != known) {
            return;
        }
        if let Some(beat) = &beat
            && !self.catch_up(relay, beat).await
        {
            return;
        }
        let ack = Ack {
            history: known,
            position: self.changes.position(),
            at_us: now_us,
        };
        // The others wait for who is heard: who is not goes on for no longer than they take it to.
        if relay.acknowledge(ack).await.is_err() {
            return;
        }
        self.reach.see_redis(began);
        if let Some(beat) = &beat
            && self.at().is_news(beat.at_us, now_us)
        {
            let age = now_us.saturating_sub(beat.at_us);
            self.reach.prove(began.saturating_sub(age));
        }
    }

    /// Learns the changes up to a beat of our history. Whether they could be read.
    async fn catch_up(&self, relay: &Relay, beat: &Beat) -> bool {
        while self.changes.position() < beat.seq {
            let position = self.changes.position();
            let Ok(changed) = relay.changes_after(beat.history, position).await else {
                return false;
            };
            if changed.is_empty() {
                tracing::warn!(
                    position,
                    seq = beat.seq,
                    "changes were relayed that are lost: giving up what is remembered"
                );
                self.at().lose_place();
                self.changes.see(beat.seq);
                self.changes.forget(beat.seq);
                break;
            }
            self.advance(position, &[], &changed);
        }
        true
    }

    fn renew(&self) {
        let may_be_told = self.relay.is_some() && self.reach.sees_redis();
        self.changes.renew(Lease {
            proved_us: self.reach.proved_us(),
            lasts_us: if may_be_told {
                self.stale_max_us
            } else {
                self.stale_max_us.min(ALONE_US)
            },
        });
    }

    fn at(&self) -> MutexGuard<'_, At> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there are nodes that follow the history of this beat. Those that Redis alone reaches write none.
async fn is_followed(relay: &Relay, beat: &Beat, now_us: u64) -> Result<bool, RedisAway> {
    if now_us.abs_diff(beat.at_us) <= BEAT_LIVES_US {
        return Ok(true);
    }
    let (now_us, acks) = relay.acks().await?;
    let follows = |ack: &Ack| ack.history == beat.history && ack.is_fresh(now_us);
    Ok(acks.values().any(follows))
}

/// Leaves out what is too much to wait, whole changes of it: a follower finds that a change is missing, but
/// not that rows of one are.
fn leave_out_oldest(untold: &mut Vec<Changed>) {
    let surplus = untold.len().saturating_sub(UNTOLD_MAX);
    if let Some(oldest) = untold.get(surplus).map(|changed| changed.seq) {
        untold.retain(|changed| changed.seq >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    /// A change of each number, of so many rows.
    fn changes(of: &[(i64, usize)]) -> Vec<Changed> {
        let rows = of.iter().flat_map(|(seq, rows)| {
            (0..*rows).map(|row| Changed {
                seq: *seq,
                kind: Some(Kind::Key),
                id: format!("key-{row}"),
                at: Timestamp::from_millis(*seq),
            })
        });
        rows.collect()
    }

    #[test]
    fn what_waits_to_be_relayed_is_whole_changes() {
        let left = |of: &[(i64, usize)]| {
            let mut untold = changes(of);
            leave_out_oldest(&mut untold);
            let numbers = untold.chunk_by(|one, other| one.seq == other.seq);
            let left = numbers.map(|rows| (rows[0].seq, rows.len()));
            left.collect::<Vec<_>>()
        };
        let many = UNTOLD_MAX;
        assert_eq!(left(&[]), []);
        assert_eq!(left(&[(1, 1), (2, many - 1)]), [(1, 1), (2, many - 1)]);
        assert_eq!(left(&[(1, 1), (2, many)]), [(2, many)]);
        // The bound falls into a change.
        assert_eq!(left(&[(1, 6_000), (2, 5_000)]), [(1, 6_000), (2, 5_000)]);
        assert_eq!(
            left(&[(1, 6_000), (2, 5_000), (3, 5_000)]),
            [(2, 5_000), (3, 5_000)]
        );
        // One is more than the bound by itself.
        assert_eq!(left(&[(1, many + 1)]), [(1, many + 1)]);
        assert_eq!(left(&[(1, 2), (2, many + 1)]), [(2, many + 1)]);
        assert_eq!(left(&[(1, many + 1), (2, many)]), [(2, many)]);
    }

    #[test]
    fn a_beat_proves_something_once_and_also_after_the_clock_was_set_back() {
        let mut at = At::default();
        let mut is_news = |beat_us, now_us| at.is_news(beat_us, now_us);
        assert!(is_news(7_000, 7_100));
        assert!(!is_news(7_000, 7_200));
        assert!(is_news(7_500, 7_600));
        // An hour, so to say. What stands there is from before.
        assert!(!is_news(7_500, 4_000));
        assert!(!is_news(7_500, 4_100));
        // Of an instant when nobody can say which clock it was.
        assert!(!is_news(4_150, 4_200));
        assert!(!is_news(4_150, 4_300));
        assert!(is_news(4_350, 4_400));
        assert!(!is_news(4_350, 7_600));
        // One that was never seen before, either.
        let mut at = At::default();
        let mut is_news = |beat_us, now_us| at.is_news(beat_us, now_us);
        assert!(!is_news(7_500, 4_000));
        assert!(!is_news(4_150, 4_200));
        assert!(is_news(4_350, 4_400));
    }
}
