//! `Idempotency-Key`: a repeated POST answers the object that the first one made.
//!
//! The claim is looked up and stored inside the change itself, under the lock of the tenant's audit
//! head. So of twenty parallel requests one makes the object and the others find its claim, and a
//! crash leaves either both or neither. Refused requests are not remembered.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use sha2::{Digest as _, Sha256};

use crate::audit::{Attribution, Change, TenantRef};
use crate::db::schema::idempotency;
use crate::db::{self, Db};
use crate::each;
use crate::error::{Error, Result};
use crate::time::{Span, Timestamp};

/// How long a claim is remembered.
pub const REMEMBERED: Span = Span::hours(24);

/// One request's `Idempotency-Key`, bound to tenant, caller, method and path, with its body.
#[derive(Clone, Debug)]
pub struct Claim {
    scope: String,
    body_hash: [u8; 32],
}

/// What a repeatable request answered: made now, or found as an earlier one left it.
pub enum Idempotent<F, R> {
    Fresh(F),
    Replayed(R),
}

impl Claim {
    /// `caller` is the name of the credential presented, `key` what the client chose.
    pub fn new(
        tenant: &TenantRef,
        caller: &str,
        (method, path): (&str, &str),
        key: &str,
        body_hash: [u8; 32],
    ) -> Self {
        let mut hash = Sha256::new();
        for part in [tenant.id.as_str(), caller, method, path, key] {
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        Self {
            scope: hex::encode(hash.finalize()),
            body_hash,
        }
    }
}

impl Claim {
    /// The claim of a request with an `Idempotency-Key`. Who acts through another's credential is
    /// another caller than who acts with its own.
    pub fn of(
        at: &Attribution,
        target: (&str, &str),
        key: Option<&str>,
        body_hash: [u8; 32],
    ) -> Option<Self> {
        let caller = match &at.via {
            None => at.actor.name(),
            Some(via) => format!("{} by {}", at.actor.name(), via.name()),
        };
        Some(Self::new(&at.tenant, &caller, target, key?, body_hash))
    }
}

/// The id of the one object that an earlier request with this claim made, if there was one.
///
/// # Errors
/// As [`replay`].
pub async fn replayed_id(change: &mut Change, claim: Option<&Claim>) -> Result<Option<String>> {
    let Some(claim) = claim else {
        return Ok(None);
    };
    Ok(replay(change, claim)
        .await?
        .and_then(|ids| ids.into_iter().next()))
}

/// Remembers the one object that this change creates.
pub async fn remember_id(change: &mut Change, claim: Option<&Claim>, id: &str) -> db::Result<()> {
    match claim {
        None => Ok(()),
        Some(claim) => remember(change, claim, 201, &[id]).await,
    }
}

/// The ids that an earlier request with this claim made, if there was one.
///
/// # Errors
/// [`Error::IdempotencyMismatch`] when that one had another body.
pub async fn replay(change: &mut Change, claim: &Claim) -> Result<Option<Vec<String>>> {
    let since = change.now().minus(REMEMBERED);
    let found: Option<(Vec<u8>, String)> = each!(change.conn(), c => idempotency::table
        .filter(idempotency::scope.eq(&claim.scope))
        .filter(idempotency::created_at.gt(since))
        .select((idempotency::body_hash, idempotency::outcome))
        .first(c)
        .await
        .optional())
    .map_err(db::Error::from)?;
    let Some((body_hash, outcome)) = found else {
        return Ok(None);
    };
    if body_hash != claim.body_hash {
        return Err(Error::IdempotencyMismatch);
    }
    let ids = serde_json::from_str(&outcome)
        .map_err(|error| db::Error::Corrupt(format!("idempotency: {error}")))?;
    Ok(Some(ids))
}

/// Remembers what this change makes.
pub async fn remember(
    change: &mut Change,
    claim: &Claim,
    status: i32,
    ids: &[&str],
) -> db::Result<()> {
    let now = change.now();
    let outcome =
        serde_json::to_string(ids).map_err(|error| db::Error::Corrupt(error.to_string()))?;
    each!(change.conn(), c => diesel::delete(idempotency::table.find(&claim.scope))
        .execute(c)
        .await)?;
    each!(change.conn(), c => diesel::insert_into(idempotency::table)
        .values((
            idempotency::scope.eq(&claim.scope),
            idempotency::body_hash.eq(&claim.body_hash[..]),
            idempotency::status.eq(status),
            idempotency::outcome.eq(&outcome),
            idempotency::created_at.eq(now),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

/// Forgets the claims that are past their time.
pub async fn sweep(db: &Db, now: Timestamp) -> db::Result<usize> {
    let before = now.minus(REMEMBERED);
    db.write(async move |conn: &mut db::Conn| {
        if !db::alone(conn, "sweep idempotency keys").await? {
            return Ok(0);
        }
        Ok(each!(conn, c => diesel::delete(
                idempotency::table.filter(idempotency::created_at.le(before)))
            .execute(c)
            .await)?)
    })
    .await
}
