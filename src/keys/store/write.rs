//! What is written of keys. Many rows go together: over a network each statement is a round trip,
//! and the tenant's turn is held meanwhile.

use std::collections::HashSet;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use super::{KeyRow, to_json};
use crate::audit::Actor;
use crate::db::schema::{api_key, key_grant, key_tag, secret};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{KeyId, SecretId, ServiceId};
use crate::insert_all;
use crate::keys::fingerprint::Fingerprint;
use crate::keys::key::{Key, Secret};
use crate::text::Tag;
use crate::time::Timestamp;

/// When a secret of a key was used.
pub type Used = (KeyId, SecretId, Timestamp);

/// Far fewer than the variables that a statement may have.
const TOGETHER: usize = 500;

#[derive(Insertable)]
#[diesel(table_name = key_grant)]
struct NewGrant<'a> {
    key_id: &'a KeyId,
    service_id: &'a ServiceId,
    position: i32,
    scopes: String,
    rate_limits: Option<String>,
}

#[derive(Insertable)]
#[diesel(table_name = key_tag)]
struct NewTag<'a> {
    key_id: &'a KeyId,
    tag: &'a Tag,
}

/// A secret to insert: what proves it, never the plaintext.
#[derive(Insertable)]
#[diesel(table_name = secret)]
pub struct NewSecret {
    pub id: SecretId,
    pub key_id: KeyId,
    pub fingerprint: Fingerprint,
    pub pepper_version: i32,
    /// `None` while it waits to be computed.
    pub verifier: Option<String>,
    pub created_at: Timestamp,
    pub valid_until: Option<Timestamp>,
}

/// Inserts keys with their grants and tags; secrets go by [`insert_secrets`].
pub async fn insert(conn: &mut Conn, keys: &[Key]) -> db::Result<()> {
    let rows = keys.iter().map(KeyRow::from_key);
    let rows = rows.collect::<db::Result<Vec<_>>>()?;
    insert_all!(conn, api_key::table, rows);
    insert_rules(conn, keys).await
}

async fn insert_rules(conn: &mut Conn, keys: &[Key]) -> db::Result<()> {
    let mut grants = Vec::with_capacity(keys.len());
    let mut tags = Vec::new();
    for key in keys {
        for (position, grant) in (0_i32..).zip(&key.grants) {
            grants.push(NewGrant {
                key_id: &key.id,
                service_id: &grant.service_id,
                position,
                scopes: to_json(&grant.scopes)?,
                rate_limits: grant.rate_limits.as_ref().map(to_json).transpose()?,
            });
        }
        let key_id = &key.id;
        tags.extend(key.tags.iter().map(|tag| NewTag { key_id, tag }));
    }
    insert_all!(conn, key_grant::table, grants);
    insert_all!(conn, key_tag::table, tags);
    Ok(())
}

pub async fn insert_secrets(conn: &mut Conn, secrets: &[NewSecret]) -> db::Result<()> {
    insert_all!(conn, secret::table, secrets);
    Ok(())
}

/// Writes every column of a changed key; with `rules`, its grants and tags too.
pub async fn update(conn: &mut Conn, key: &Key, rules: bool) -> db::Result<()> {
    let row = KeyRow::from_key(key)?;
    each!(conn, c => diesel::update(api_key::table.find(&key.id)).set(&row).execute(c).await)?;
    if rules {
        each!(conn, c => diesel::delete(key_grant::table.filter(key_grant::key_id.eq(&key.id)))
            .execute(c)
            .await)?;
        each!(conn, c => diesel::delete(key_tag::table.filter(key_tag::key_id.eq(&key.id)))
            .execute(c)
            .await)?;
        insert_rules(conn, std::slice::from_ref(key)).await?;
    }
    Ok(())
}

/// Writes that keys were revoked, each a version further; `by` and `reason` say by whom and why.
pub async fn revoke(
    conn: &mut Conn,
    ids: &[&KeyId],
    by: &Actor,
    reason: Option<&str>,
    now: Timestamp,
) -> db::Result<()> {
    let by = to_json(by)?;
    for ids in ids.chunks(TOGETHER) {
        each!(&mut *conn, c => diesel::update(api_key::table.filter(api_key::id.eq_any(ids)))
            .set((
                api_key::revoked_at.eq(now),
                api_key::revoked_by.eq(&by),
                api_key::reason.eq(reason),
                api_key::version.eq(api_key::version + 1),
                api_key::updated_at.eq(now),
            ))
            .execute(c)
            .await)?;
    }
    Ok(())
}

/// Writes that keys were disabled, each a version further.
pub async fn disable(
    conn: &mut Conn,
    ids: &[&KeyId],
    reason: Option<&str>,
    now: Timestamp,
) -> db::Result<()> {
    for ids in ids.chunks(TOGETHER) {
        each!(&mut *conn, c => diesel::update(api_key::table.filter(api_key::id.eq_any(ids)))
            .set((
                api_key::disabled_at.eq(now),
                api_key::reason.eq(reason),
                api_key::version.eq(api_key::version + 1),
                api_key::updated_at.eq(now),
            ))
            .execute(c)
            .await)?;
    }
    Ok(())
}

/// Writes when a secret ends and why it does.
pub async fn update_secret(conn: &mut Conn, changed: &Secret) -> db::Result<()> {
    each!(conn, c => diesel::update(secret::table.find(&changed.id))
        .set((
            secret::valid_until.eq(changed.valid_until),
            secret::superseded_at.eq(changed.superseded_at),
            secret::revoked_at.eq(changed.revoked_at),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

/// Stores a verifier that was computed after its secret; one that is there stays.
pub async fn store_verifier(conn: &mut Conn, id: &SecretId, verifier: &str) -> db::Result<()> {
    each!(conn, c => diesel::update(
            secret::table.filter(secret::id.eq(id)).filter(secret::verifier.is_null()))
        .set(secret::verifier.eq(verifier))
        .execute(c)
        .await)?;
    Ok(())
}

macro_rules! is_older {
    ($table:ident, $at:expr) => {
        $table::last_used_at
            .is_null()
            .or($table::last_used_at.lt($at))
    };
}

/// Moves `last_used_at` of those rows of a table forward that are older.
///
/// In `PostgreSQL` a row that is just being changed is left out: this holds locks on many rows, so that if
/// it waited for one, whoever holds that one may wait for another of these, and the database would have to
/// refuse one of the two.
macro_rules! move_forward {
    ($conn:expr, $table:ident, $ids:expr, $at:expr) => {{
        let older = $table::table
            .filter($table::id.eq_any($ids))
            .filter(is_older!($table, $at));
        match &mut *$conn {
            Conn::Sqlite(c) => {
                diesel::update(older)
                    .set($table::last_used_at.eq($at))
                    .execute(&mut **c)
                    .await?;
            }
            Conn::Postgres(c) => {
                let free: Vec<String> = older
                    .select($table::id)
                    .for_no_key_update()
                    .skip_locked()
                    .load(&mut **c)
                    .await?;
                diesel::update($table::table.filter($table::id.eq_any(free)))
                    .set($table::last_used_at.eq($at))
                    .execute(&mut **c)
                    .await?;
            }
        }
    }};
}

/// Moves `last_used_at` of keys and secrets forward, true to the second: what was used in one second
/// is written together, since a statement for each takes longer to prepare than to run. Answers of which
/// it could not be written, because somebody is changing the key.
pub async fn store_last_used(conn: &mut Conn, mut used: Vec<Used>) -> db::Result<Vec<Used>> {
    used.sort_unstable_by_key(|(_, _, at)| *at);
    let mut missed = Vec::new();
    let seconds = used.chunk_by(|(_, _, a), (_, _, b)| a.unix_seconds() == b.unix_seconds());
    for some in seconds.flat_map(|second| second.chunks(TOGETHER)) {
        let Some((_, _, at)) = some.last() else {
            continue;
        };
        let keys: Vec<&KeyId> = some.iter().map(|(key, _, _)| key).collect();
        let secrets: Vec<&SecretId> = some.iter().map(|(_, secret, _)| secret).collect();
        move_forward!(conn, api_key, &keys, at);
        move_forward!(conn, secret, &secrets, at);
        let left: HashSet<SecretId> = each!(&mut *conn, c => secret::table
            .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
            .filter(secret::id.eq_any(&secrets))
            .filter(is_older!(secret, at).or(is_older!(api_key, at)))
            .select(secret::id)
            .load(c)
            .await)?
        .into_iter()
        .collect();
        let is_left = |(_, secret, _): &&Used| left.contains(secret);
        missed.extend(some.iter().filter(is_left).cloned());
    }
    Ok(missed)
}
