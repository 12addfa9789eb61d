//! The keys of a tenant as they stood at an instant, rebuilt from the audit trail.
//!
//! 1. The last line that is not younger than the instant says how far the trail is read.
//! 2. Of each key the newest line up to there has the key as it was after it. What depends on the time
//!    alone, its status, is worked out for the instant.
//! 3. Where the beginning of the trail was cut off, keys may have no line that tells of them in what is
//!    left up to there. Then the first line behind it has the key as it was before; and a key without
//!    that is as its row is. Neither is proved, and so it is said.
//!
//! When a key was last used is no change, and stands in no line.

use std::collections::VecDeque;

use serde_json::{Value, json};

use super::key::{Key, KeyStatus, KeyView};
use super::service::{By, Keys};
use super::store::{self, KeyFilter};
use crate::audit::chain::Event;
use crate::audit::history::{self, Lines};
use crate::audit::{Change, TenantRef, origin};
use crate::db::{self, Conn};
use crate::error::{Error, Result};
use crate::id::{KeyId, TenantId};
use crate::rights::{Permission, Reach};
use crate::time::Timestamp;

/// Keys that are held in memory at a time.
const PAGE: i64 = 500;

/// What changes a key, each with a line that has all of it.
const LINES: Lines = Lines {
    kind: "key",
    actions: &[
        "key.create",
        "key.update",
        "key.rotate",
        "key.revoke",
        "key.disable",
        "key.enable",
        "secret.revoke",
        "secret.update",
    ],
};

/// A key as it stood.
#[derive(Clone, Debug, PartialEq)]
pub struct Past {
    /// As [`KeyView`].
    pub key: Value,
    /// The number of the audit line that has it so; `None` if no line that is left proves it.
    pub audit_seq: Option<i64>,
}

/// An export under way.
pub struct History {
    keys: Keys,
    tenant: TenantRef,
    reach: Reach,
    pub as_of: Timestamp,
    /// The number of the last line that is read.
    pub audit_seq: i64,
    /// Number and time of the first line that is left, if the beginning was cut off.
    pub cut: Option<(i64, Timestamp)>,
    /// With what is known at present beside the trail.
    is_now: bool,
    at: At,
}

/// Where an export is.
enum At {
    /// Behind this target of lines.
    Lines(String),
    /// Behind this row.
    Rows(Option<KeyId>),
    End,
}

impl Keys {
    /// Records that somebody exports, and begins: with the keys as they stood at `as_of`, else now.
    ///
    /// # Errors
    /// A time that is not over yet, or of which the trail does not tell any more.
    pub async fn export(&self, by: By, as_of: Option<Timestamp>, format: Value) -> Result<History> {
        let (tenant, now) = (by.at.tenant.clone(), self.clock.now());
        if as_of.is_some_and(|at| at > now) {
            return Err(Error::invalid("as_of", "must not lie in the future"));
        }
        let id = tenant.id.clone();
        let first = async move |conn: &mut Conn| origin::first(conn, &id).await;
        let first: Option<(i64, Timestamp)> = self.db.read(first).await?;
        let cut = first.filter(|(seq, _)| *seq > 1);
        if let (Some(at), Some((_, from))) = (as_of, cut)
            && at < from
        {
            return Err(Error::invalid(
                "as_of",
                format!(
                    "must not be before {from}: the audit trail begins there, what was before is cut off"
                ),
            ));
        }
        let reach = by.rights.services_for(Permission::KeysRead);
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let id = change.attribution().tenant.id.clone();
                let what = json!({"as_of": as_of, "format": format});
                change.record("key.export", ("tenant", id.as_str()), None, Some(what));
                Ok::<_, Error>(())
            })
            .await?;
        let (id, as_of, is_now) = (
            tenant.id.clone(),
            as_of.unwrap_or_else(|| self.clock.now()),
            as_of.is_none(),
        );
        let number = async move |conn: &mut Conn| history::number_at(conn, &id, as_of).await;
        let audit_seq: i64 = self.db.read(number).await?;
        Ok(History {
            keys: self.clone(),
            tenant,
            reach,
            as_of,
            audit_seq,
            cut,
            is_now,
            at: At::Lines(String::new()),
        })
    }
}

impl History {
    /// The keys that come next; `None` at the end. A page may be empty.
    pub async fn next(&mut self) -> db::Result<Option<Vec<Past>>> {
        let mut page = match &self.at {
            At::Lines(after) => {
                let (page, at) = self.told_by_lines(after.clone()).await?;
                self.at = at;
                page
            }
            At::Rows(after) => {
                let (page, at) = self.told_by_rows(after.clone()).await?;
                self.at = at;
                page
            }
            At::End => return Ok(None),
        };
        if let Reach::Only(slugs) = &self.reach {
            page.retain(|past| {
                let grants = past.key.get("grants").and_then(Value::as_array);
                let grants = grants.into_iter().flatten();
                let mut services = grants.filter_map(|grant| text(grant, "service"));
                services.any(|service| slugs.iter().any(|slug| slug.as_str() == service))
            });
        }
        if self.is_now {
            self.add_last_use(&mut page).await?;
        }
        Ok(Some(page))
    }

    /// Step 2.
    async fn told_by_lines(&self, after: String) -> db::Result<(Vec<Past>, At)> {
        let (tenant, to, as_of) = (self.tenant.id.clone(), self.audit_seq, self.as_of);
        let whose = self.tenant.id.as_str();
        let (page, last) = self
            .keys
            .db
            .long(
                whose,
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    let events = history::states(conn, &tenant, LINES, to, &after, PAGE).await?;
                    let is_last = i64::try_from(events.len()).is_ok_and(|count| count < PAGE);
                    let last = events.last().map(|event| event.target.id.clone());
                    let mut page = Vec::with_capacity(events.len());
                    for event in events {
                        let seq = event.seq;
                        let after = after_line(conn, &tenant, event).await?;
                        page.extend(after.map(|key| Past {
                            key: at(key, as_of),
                            audit_seq: Some(seq),
                        }));
                    }
                    db::Result::Ok((page, last.filter(|_| !is_last)))
                },
            )
            .await?;
        let next = match (last, self.cut) {
            (Some(last), _) => At::Lines(last),
            (None, Some(_)) => At::Rows(None),
            (None, None) => At::End,
        };
        Ok((page, next))
    }

    /// Step 3.
    async fn told_by_rows(&self, after: Option<KeyId>) -> db::Result<(Vec<Past>, At)> {
        let (tenant, to, as_of) = (self.tenant.clone(), self.audit_seq, self.as_of);
        let whose = self.tenant.id.as_str();
        let (page, last) = self
            .keys
            .db
            .long(
                whose,
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    let all = KeyFilter::default();
                    let (id, after) = (&tenant.id, after.as_ref());
                    let keys = store::matching_after(conn, id, &all, after, PAGE, as_of).await?;
                    let is_last = i64::try_from(keys.len()).is_ok_and(|count| count < PAGE);
                    let last = keys.last().map(|key| key.id.clone());
                    let ids: Vec<String> = keys.iter().map(|key| key.id.to_string()).collect();
                    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                    let mut told = history::newest_to(conn, id, LINES, to, &ids).await?;
                    let mut behind = history::first_behind(conn, id, LINES, to, &ids).await?;
                    let mut page = Vec::new();
                    for key in keys {
                        let name = key.id.as_str();
                        // As step 2 has it: a line that says no more than that it ended does not tell of the key.
                        let is_told = match told.remove(name) {
                            Some(line) => after_line(conn, id, line).await?.is_some(),
                            None => false,
                        };
                        if is_told || key.created_at > as_of {
                            continue;
                        }
                        let before = match behind.remove(name) {
                            Some(line) => before_line(&key, &tenant, line),
                            None => Some(row(&key, &tenant, as_of)),
                        };
                        page.extend(before.map(|key| Past {
                            key: at(key, as_of),
                            audit_seq: None,
                        }));
                    }
                    db::Result::Ok((page, last.filter(|_| !is_last)))
                },
            )
            .await?;
        Ok((page, last.map_or(At::End, |last| At::Rows(Some(last)))))
    }

    /// When keys and secrets were last used, as it is known now.
    async fn add_last_use(&self, page: &mut [Past]) -> db::Result<()> {
        let ids = page.iter().filter_map(|past| text(&past.key, "id"));
        let filter = KeyFilter {
            ids: Some(ids.filter_map(KeyId::parse).collect()),
            ..KeyFilter::default()
        };
        let (tenant, now) = (self.tenant.id.clone(), self.as_of);
        let whose = self.tenant.id.as_str();
        let mut keys: VecDeque<Key> = self
            .keys
            .db
            .long(
                whose,
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    store::matching_after(conn, &tenant, &filter, None, PAGE, now).await
                },
            )
            .await?
            .into();
        for past in page {
            // Both are in the order of their ids.
            let id = text(&past.key, "id").unwrap_or_default().to_owned();
            while keys
                .front()
                .is_some_and(|key| key.id.as_str() < id.as_str())
            {
                keys.pop_front();
            }
            let Some(key) = keys.front().filter(|key| key.id.as_str() == id) else {
                continue;
            };
            set(&mut past.key, "last_used", json!(key.last_used_at));
            let secrets = past.key.get_mut("secrets").and_then(Value::as_array_mut);
            for shown in secrets.into_iter().flatten() {
                let id = text(shown, "id").unwrap_or_default();
                let secret = key.secrets.iter().find(|secret| secret.id.as_str() == id);
                let used = secret.and_then(|secret| secret.last_used_at);
                set(shown, "last_used_at", json!(used));
            }
        }
        Ok(())
    }
}

/// The key as it was after a line. The end of a consumer ends its keys with lines that say no more than
/// that: then the line before has the rest. `None` if that one was cut off.
async fn after_line(conn: &mut Conn, tenant: &TenantId, line: Event) -> db::Result<Option<Value>> {
    let after = line.after.clone().unwrap_or_default();
    if after.get("id").is_some() {
        return Ok(Some(after));
    }
    let target = line.target.id.as_str();
    let to = line.seq.saturating_sub(1);
    let mut before = history::newest_to(conn, tenant, LINES, to, &[target]).await?;
    let before = before.remove(target).and_then(|before| before.after);
    Ok(before
        .filter(|key| key.get("id").is_some())
        .map(|key| ended(key, &line)))
}

/// What the end of its consumer makes of a key.
fn ended(mut key: Value, line: &Event) -> Value {
    let version = key.get("version").and_then(Value::as_i64);
    for (name, value) in [
        ("revoked_at", json!(line.at)),
        ("revoked_by", json!(line.actor)),
        ("reason", json!(line.reason)),
        ("updated_at", json!(line.at)),
        ("version", json!(version.map(|one| one.saturating_add(1)))),
    ] {
        set(&mut key, name, value);
    }
    key
}

/// The key as it was before a line; `None` if that made it.
fn before_line(key: &Key, tenant: &TenantRef, line: Event) -> Option<Value> {
    let before = line.before?;
    if before.get("id").is_some() {
        return Some(before);
    }
    // Its consumer was deleted, and nothing happened to it afterwards.
    let mut was = key.clone();
    (was.revoked_at, was.revoked_by, was.reason) = (None, None, None);
    was.version -= 1;
    let mut was = row(&was, tenant, line.at);
    set(&mut was, "updated_at", Value::Null);
    Some(was)
}

fn row(key: &Key, tenant: &TenantRef, now: Timestamp) -> Value {
    json!(KeyView::new(key, &tenant.slug, now))
}

/// The key with what depends on the time alone as it was then.
fn at(mut key: Value, as_of: Timestamp) -> Value {
    let time = |name: &str| -> Option<Timestamp> { text(&key, name)?.parse().ok() };
    let status = if time("revoked_at").is_some() {
        KeyStatus::Revoked
    } else if key.get("status") == Some(&json!(KeyStatus::Disabled)) {
        KeyStatus::Disabled
    } else if time("expires_at").is_some_and(|end| end <= as_of) {
        KeyStatus::Expired
    } else if time("not_before").is_some_and(|start| as_of < start) {
        KeyStatus::NotYetValid
    } else {
        KeyStatus::Active
    };
    set(&mut key, "status", json!(status));
    set(&mut key, "last_used", Value::Null);
    let secrets = key.get_mut("secrets").and_then(Value::as_array_mut);
    for secret in secrets.into_iter().flatten() {
        set(secret, "last_used_at", Value::Null);
    }
    key
}

fn text<'v>(object: &'v Value, name: &str) -> Option<&'v str> {
    object.get(name)?.as_str()
}

fn set(object: &mut Value, name: &str, value: Value) {
    if let Some(members) = object.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
}
