//! What nodes tell each other through Redis.
//!
//! - **A wake**: something was committed, and what it touched. Whoever hears it gives up what it has read
//!   of that before, and asks the database.
//! - **A beat**: a node that reaches database and Redis says how far the counter stood, at an instant
//!   of Redis's clock before it looked. It proves to a node without the database that nothing happened
//!   up to then but the changes up to that number.
//! - **The changes** themselves, the latest of them, for such a node: each whole or not at all.
//! - **Acknowledgements**: up to which number each node knows every change.
//!
//! All of them are sealed, but who wakes without a word is believed. Numbers belong to a history of the
//! database; a history has a random name that the nodes agree on through the beat.

use std::collections::HashMap;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::history::History;
use super::seal::Seal;
use crate::db::feed::{Changed, Kind};
use crate::redis_link::{RedisAway, RedisLink};

/// So many changes are kept for nodes without the database.
const KEPT: isize = 10_000;

/// So many entities are named in a message.
const TOLD_MAX: usize = 1_000;

/// So many are written at once.
const TOLD_AT_ONCE: usize = 500;

/// So many are read at once.
const READ_MAX: isize = 1_000;

/// How long they stand there when nothing changes any more.
const CHANGES_LIFE: Duration = Duration::from_hours(48);

/// The way to the other nodes, cheap to clone.
#[derive(Clone, Debug)]
pub struct Relay {
    redis: RedisLink,
    seal: Seal,
    history: History,
    node: String,
}

/// What things are called in Redis.
struct Names {
    /// Where nodes wake each other.
    channel: String,
    beat: String,
    changes: String,
    acks: String,
}

/// How far the counter stood.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Beat {
    /// The name of the history that the number belongs to.
    pub history: u64,
    pub seq: i64,
    /// [`mark`] of the change of that number.
    pub mark: String,
    /// Redis's clock, before the database was asked.
    pub at_us: u64,
}

/// What stands in Redis at an instant of its clock.
#[derive(Clone, Debug)]
pub struct Reading {
    pub now_us: u64,
    /// `None` where there is none that opens.
    pub beat: Option<Beat>,
}

/// What the change of one number touched, told by who made it. Whoever hears it need not wait for the
/// database to know that what it has read before is no more; a change that is told twice or late changes
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct News {
    history: u64,
    pub seq: i64,
    /// Empty where it is more than a message should hold.
    pub touched: Vec<(Kind, String)>,
}

/// A node knows every change up to `position`, and when it said so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ack {
    pub history: u64,
    pub position: i64,
    /// Redis's clock.
    pub at_us: u64,
}

/// What `TIME` answers: seconds, and microseconds besides.
type Time = (u64, u64);

fn in_us((seconds, micros): Time) -> u64 {
    seconds.saturating_mul(1_000_000).saturating_add(micros)
}

/// Tells the change of one number from any other change of that number.
pub fn mark(change: &[Changed]) -> String {
    // A change always has a JSON form.
    let text = serde_json::to_vec(change).unwrap_or_default();
    hex::encode(Sha256::digest(&text))
}

impl Names {
    /// Changes are of one history: what another has under the same number is another change.
    fn changes_of(&self, history: u64) -> String {
        format!("{}:{history:016x}", self.changes)
    }

    /// What an acknowledgement is sealed as.
    fn ack_of(&self, node: &str) -> String {
        format!("{}:{node}", self.acks)
    }
}

impl Relay {
    /// `node` names this process among those that share the Redis.
    pub fn new(redis: RedisLink, seal: Seal, history: History, node: String) -> Self {
        Self {
            redis,
            seal,
            history,
            node,
        }
    }

    /// Which database, and which of its histories, the numbers belong to.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Nothing has a name before the database was reached.
    fn names(&self) -> Result<Names, RedisAway> {
        let database = self.history.database().ok_or(RedisAway)?;
        // One hash tag: a cluster of Redis keeps them together.
        let name = |what: &str| format!("keystead:{{{database}}}:{what}:1");
        Ok(Names {
            channel: name("wake"),
            beat: name("beat"),
            changes: name("changes"),
            acks: name("acks"),
        })
    }

    /// Wakes the other nodes, and tells them what the change of this number touched.
    pub async fn wake(self, seq: i64, mut touched: Vec<(Kind, String)>) {
        let Ok(names) = self.names() else {
            return;
        };
        if touched.len() > TOLD_MAX {
            touched.clear();
        }
        let news = News {
            history: self.history.name(),
            seq,
            touched,
        };
        let mut publish = redis::cmd("PUBLISH");
        publish
            .arg(&names.channel)
            .arg(self.close(&names.channel, &news));
        // Whoever does not hear of it asks the database within a second.
        let _told: Result<i64, RedisAway> = self.redis.query(&publish).await;
    }

    /// Whether Redis is away.
    pub fn is_away(&self) -> bool {
        self.redis.is_away()
    }

    /// What a message says, if it was sealed by one of us and is of the history that we follow. Who was
    /// only woken is told nothing.
    pub fn heard(&self, message: &redis::Msg) -> Option<News> {
        let channel = self.names().ok()?.channel;
        let value = self.seal.open(&channel, message.get_payload_bytes())?;
        let news: News = serde_json::from_slice(value).ok()?;
        (news.history == self.history.name() && news.history != 0).then_some(news)
    }

    /// A subscription to wakes.
    pub async fn wakes(&self) -> Option<redis::aio::PubSub> {
        let names = self.names().ok()?;
        let mut messages = self.redis.messages().await.ok()?;
        messages.subscribe(&names.channel).await.ok()?;
        Some(messages)
    }

    pub async fn read(&self) -> Result<Reading, RedisAway> {
        let names = self.names()?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("GET").arg(&names.beat);
        let (time, beat): (Time, Option<Vec<u8>>) = self.redis.pipeline(&pipeline).await?;
        Ok(Reading {
            now_us: in_us(time),
            beat: beat.and_then(|sealed| self.open(&names.beat, &sealed)),
        })
    }

    /// The changes of a history after `position`, in order, as far as they are there without a gap.
    pub async fn changes_after(
        &self,
        history: u64,
        position: i64,
    ) -> Result<Vec<Changed>, RedisAway> {
        let list = self.names()?.changes_of(history);
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range
            .arg(&list)
            .arg(format!("({position}"))
            .arg("+inf")
            .arg("LIMIT")
            .arg(0)
            .arg(READ_MAX);
        let members: Vec<Vec<u8>> = self.redis.query(&range).await?;
        let mut changes: Vec<Changed> = Vec::new();
        let mut next = position.saturating_add(1);
        for member in members {
            let Some(change) = self.open::<Vec<Changed>>(&list, &member) else {
                continue;
            };
            if change.iter().all(|changed| changed.seq == next) && !change.is_empty() {
                changes.extend(change);
                next = next.saturating_add(1);
            }
        }
        Ok(changes)
    }

    /// Says how far the counter stood, what changed up to there, and that this node knows it; and
    /// wakes the others if `wakes`. Of each number all rows are among these: nobody could tell that one lacks.
    pub async fn tell(
        &self,
        beat: &Beat,
        changed: &[Changed],
        wakes: bool,
    ) -> Result<(), RedisAway> {
        let names = self.names()?;
        let list = names.changes_of(beat.history);
        let numbers: Vec<&[Changed]> = changed
            .chunk_by(|one, other| one.seq == other.seq)
            .collect();
        for some in numbers.chunks(TOLD_AT_ONCE) {
            let mut pipeline = redis::pipe();
            for change in some {
                let seq = change.first().map_or(0, |changed| changed.seq);
                pipeline
                    .cmd("ZADD")
                    .arg(&list)
                    .arg(seq)
                    .arg(self.close(&list, change))
                    .ignore();
            }
            pipeline
                .cmd("ZREMRANGEBYRANK")
                .arg(&list)
                .arg(0)
                .arg(-KEPT - 1)
                .ignore()
                .cmd("PEXPIRE")
                .arg(&list)
                .arg(CHANGES_LIFE.as_millis())
                .ignore();
            self.redis.pipeline::<()>(&pipeline).await?;
        }
        // Only now: who reads it finds the changes.
        let mut pipeline = redis::pipe();
        pipeline
            .cmd("SET")
            .arg(&names.beat)
            .arg(self.close(&names.beat, beat))
            .ignore();
        self.add_ack(
            &mut pipeline,
            &names,
            Ack {
                history: beat.history,
                position: beat.seq,
                at_us: beat.at_us,
            },
        );
        if wakes {
            pipeline
                .cmd("PUBLISH")
                .arg(&names.channel)
                .arg(beat.seq)
                .ignore();
        }
        self.redis.pipeline(&pipeline).await
    }

    /// Says up to where this node knows every change.
    pub async fn acknowledge(&self, ack: Ack) -> Result<(), RedisAway> {
        let mut pipeline = redis::pipe();
        self.add_ack(&mut pipeline, &self.names()?, ack);
        self.redis.pipeline(&pipeline).await
    }

    fn add_ack(&self, pipeline: &mut redis::Pipeline, names: &Names, ack: Ack) {
        pipeline
            .cmd("HSET")
            .arg(&names.acks)
            .arg(&self.node)
            .arg(self.close(&names.ack_of(&self.node), &ack))
            .ignore();
    }

    /// What each node has acknowledged, and the time by Redis's clock.
    pub async fn acks(&self) -> Result<(u64, HashMap<String, Ack>), RedisAway> {
        let names = self.names()?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("TIME").cmd("HGETALL").arg(&names.acks);
        let (time, acks): (Time, HashMap<String, Vec<u8>>) = self.redis.pipeline(&pipeline).await?;
        let acks = acks
            .into_iter()
            .filter_map(|(node, sealed)| {
                let ack = self.open(&names.ack_of(&node), &sealed)?;
                Some((node, ack))
            })
            .collect();
        Ok((in_us(time), acks))
    }

    /// Forgets what these nodes have acknowledged: they are gone.
    pub async fn forget(&self, nodes: &[&str]) -> Result<(), RedisAway> {
        let mut delete = redis::cmd("HDEL");
        delete.arg(self.names()?.acks).arg(nodes);
        self.redis.query::<i64>(&delete).await.map(drop)
    }

    fn close<T: Serialize>(&self, name: &str, value: &T) -> Vec<u8> {
        // Our own types always have a JSON form.
        let text = serde_json::to_vec(value).unwrap_or_default();
        self.seal.close(name, &text)
    }

    fn open<T: DeserializeOwned>(&self, name: &str, sealed: &[u8]) -> Option<T> {
        let value = self.seal.open(name, sealed);
        if value.is_none() {
            tracing::warn!(target: "security", name, "refused what stands in Redis: not sealed by us");
        }
        // A later version may say more than we understand: then it says nothing to us.
        serde_json::from_slice(value?).ok()
    }
}
