//! Tokens that one node got, for the others: in Redis, encrypted under the master key for this purpose
//! alone, and bound to their names. Without Redis, or while it is away, every node is on its own.
//!
//! Who can write to Redis can take tokens away, or put back one that we put there: that is judged by its
//! end like any other.

use std::time::Duration;

use redis::cmd;
use tokio::time::sleep;

use super::UpstreamToken;
use crate::cache::History;
use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::master::{DerivedKey, MasterKeys};
use crate::redis_link::{RedisAway, RedisLink};

/// The purpose for which the key is derived from the master key.
const PURPOSE: &str = "keystead upstream tokens 1";

/// How long who is about to ask a provider keeps the other nodes from asking for the same: as long as
/// that takes, and a moment for the token to be put here.
const CLAIM_MS: u64 = 2500;

/// Between two looks for the token of another node, and how many: together less than anybody waits.
const LOOK_EVERY: Duration = Duration::from_millis(50);
const LOOKS: u32 = 34;

/// Longer than any token that is taken.
const SEALED_BYTES_MAX: usize = 64 * 1024;

/// Empty without Redis.
pub struct Shared(Option<Inner>);

struct Inner {
    redis: RedisLink,
    history: History,
    /// The first encrypts, any decrypts.
    keys: Vec<DerivedKey>,
    clock: Clock,
    entropy: Entropy,
}

impl Shared {
    pub fn none() -> Self {
        Self(None)
    }

    pub fn new(
        redis: RedisLink,
        history: History,
        master: &MasterKeys,
        clock: Clock,
        entropy: Entropy,
    ) -> Self {
        Self(Some(Inner {
            redis,
            history,
            keys: master.iter().map(|key| key.derive(PURPOSE)).collect(),
            clock,
            entropy,
        }))
    }

    pub(super) async fn take(&self, name: &str) -> Option<UpstreamToken> {
        let inner = self.0.as_ref()?;
        let key = inner.key(name)?;
        let found: Result<Option<Vec<u8>>, RedisAway> =
            inner.redis.query(cmd("GET").arg(&key)).await;
        let sealed = found.ok()??;
        if sealed.len() > SEALED_BYTES_MAX {
            return None;
        }
        let opened = inner.keys.iter().find_map(|one| one.decrypt(&key, &sealed));
        let Some(text) = opened else {
            tracing::warn!(target: "security", "refused a token in Redis: not encrypted by us");
            return None;
        };
        // One of another version of the program means nothing to us.
        serde_json::from_slice(&text).ok()
    }

    pub(super) async fn put(&self, name: &str, token: &UpstreamToken) {
        let Some(inner) = &self.0 else {
            return;
        };
        let life = token.expires_at.millis() - inner.clock.now().millis();
        let text = serde_json::to_vec(token).map(zeroize::Zeroizing::new);
        let (Some(key), Ok(text)) = (inner.key(name), text) else {
            return;
        };
        let first = inner.keys.first();
        let Some(sealed) = first.and_then(|one| one.encrypt(&key, &text, &inner.entropy)) else {
            return;
        };
        if life > 0 {
            let mut set = cmd("SET");
            set.arg(&key).arg(sealed).arg("PX").arg(life);
            // What is not there is fetched by whoever needs it.
            let _kept: Result<(), RedisAway> = inner.redis.query(&set).await;
        }
    }

    /// Whether this node is the one to ask: true also if nobody can be asked who else does.
    pub(super) async fn claim(&self, name: &str) -> bool {
        let Some((inner, key)) = self.0.as_ref().and_then(|it| Some((it, it.key(name)?))) else {
            return true;
        };
        let mut set = cmd("SET");
        set.arg(format!("{key}:asked")).arg(1);
        set.arg("NX").arg("PX").arg(CLAIM_MS);
        let was_free: Result<Option<String>, RedisAway> = inner.redis.query(&set).await;
        was_free.map_or(true, |done| done.is_some())
    }

    /// The token that another node is fetching, if it comes in time.
    pub(super) async fn wait(
        &self,
        name: &str,
        is_wanted: impl Fn(&UpstreamToken) -> bool,
    ) -> Option<UpstreamToken> {
        for _ in 0..LOOKS {
            sleep(LOOK_EVERY).await;
            if let Some(token) = self.take(name).await.filter(&is_wanted) {
                return Some(token);
            }
        }
        None
    }
}

impl Inner {
    /// `None` until the database has a name: several may share a Redis.
    fn key(&self, name: &str) -> Option<String> {
        let database = self.history.database()?;
        Some(format!("keystead:{database}:upstream:1:{name}"))
    }
}
