//! The pepper versions in the database, and how they move on.
//!
//! Several nodes and a CLI work on these rows at once, so each move is one conditional update that
//! happens once however many try it, and steps the change feed.

use std::path::Path;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde_json::json;

use super::{COMPUTABLE_MAX, PepperState, PepperVersion};
use crate::audit::Change;
use crate::db::feed::{self, Kind};
use crate::db::schema::{api_key, pepper as table, secret};
use crate::db::{self, Conn};
use crate::each;
use crate::error::{Conflict, Error};
use crate::id::SecretId;
use crate::keys::fingerprint::Fingerprint;
use crate::master::{MasterKey, MasterKeys};
use crate::time::{Span, Timestamp};

/// How long a version is known before it becomes the current one.
pub const NEXT_FOR: Span = Span::seconds(60);

/// How long a version must have been old before it may be deleted: no transaction that took it for
/// the current one is still open then.
const SETTLED_AFTER: Span = Span::seconds(60);

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = table)]
struct Row {
    version: i32,
    master_id: String,
    check_value: Vec<u8>,
    state: String,
    created_at: Timestamp,
    current_from: Timestamp,
}

impl Row {
    fn new(
        version: i32,
        master: &MasterKey,
        state: PepperState,
        now: Timestamp,
        current_from: Timestamp,
    ) -> Self {
        Self {
            version,
            master_id: master.id(),
            check_value: super::check_value(&super::derive(master, version)).to_vec(),
            state: state.as_str().to_owned(),
            created_at: now,
            current_from,
        }
    }
}

/// Whether the `SQLite` database at this place holds a pepper version: then there is a master key that it comes
/// from. Nothing is written.
///
/// # Errors
/// There is something that cannot be read.
pub fn is_any_in(path: &Path) -> anyhow::Result<bool> {
    use diesel::connection::SimpleConnection as _;
    if !path.try_exists()? {
        return Ok(false);
    }
    let mut conn = SqliteConnection::establish(&path.to_string_lossy())?;
    conn.batch_execute("PRAGMA busy_timeout=1500; PRAGMA query_only=ON;")?;
    let first = table::table.select(table::version);
    match diesel::RunQueryDsl::first::<i32>(first, &mut conn) {
        Ok(_) => Ok(true),
        Err(diesel::result::Error::NotFound) => Ok(false),
        Err(diesel::result::Error::DatabaseError(_, what))
            if what.message().starts_with("no such table") =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

impl TryFrom<Row> for PepperVersion {
    type Error = db::Error;

    fn try_from(row: Row) -> db::Result<Self> {
        let state = PepperState::parse(&row.state)
            .ok_or_else(|| db::Error::Corrupt(format!("the pepper state {:?}", row.state)))?;
        Ok(Self {
            version: row.version,
            master_id: row.master_id,
            check_value: row.check_value,
            state,
            created_at: row.created_at,
            current_from: row.current_from,
        })
    }
}

/// All versions, the oldest first.
pub async fn load(conn: &mut Conn) -> db::Result<Vec<PepperVersion>> {
    let rows: Vec<Row> = each!(conn, c => table::table
        .order(table::version)
        .select(Row::as_select())
        .load(c)
        .await)?;
    rows.into_iter().map(PepperVersion::try_from).collect()
}

/// Makes version 1 if there is none. Of several nodes that start together one does it; if they have
/// different master keys, the check stops the others.
pub async fn ensure_first(conn: &mut Conn, master: &MasterKeys, now: Timestamp) -> db::Result<()> {
    let any: Option<i32> = each!(conn, c => table::table
        .select(table::version)
        .first(c)
        .await
        .optional())?;
    if any.is_none() {
        let row = Row::new(1, &master.first, PepperState::Current, now, now);
        each!(conn, c => diesel::insert_into(table::table)
            .values(&row)
            .on_conflict_do_nothing()
            .execute(c)
            .await)?;
    }
    Ok(())
}

/// The version a new secret uses, read in the transaction that inserts it.
pub async fn current_in(conn: &mut Conn) -> db::Result<i32> {
    let current: Option<i32> = each!(conn, c => table::table
        .filter(table::state.eq(PepperState::Current.as_str()))
        .select(table::version)
        .first(c)
        .await
        .optional())?;
    current.ok_or_else(none_is_current)
}

/// What it means that there is none.
pub fn none_is_current() -> db::Error {
    db::Error::Corrupt("no pepper version is current".to_owned())
}

/// Begins a rotation: the next version, which becomes the current one after [`NEXT_FOR`].
///
/// # Errors
/// [`Conflict::InProgress`] while another is under way, or while so many old versions still carry
/// secrets that one more could not be looked up by.
pub async fn rotate_begin(
    change: &mut Change,
    master: &MasterKeys,
) -> Result<PepperVersion, Error> {
    let now = change.now();
    let versions = load(change.conn()).await?;
    if let Some(next) = versions.iter().find(|v| v.state == PepperState::Next) {
        return Err(Error::conflict(
            Conflict::InProgress,
            format!(
                "version {} is already on its way and becomes current at {}",
                next.version, next.current_from
            ),
        ));
    }
    let live = versions.iter().filter(|v| v.state != PepperState::Lost);
    if live.count() >= COMPUTABLE_MAX {
        return Err(Error::conflict(
            Conflict::InProgress,
            "secrets still carry two older versions; wait until the oldest has ended, or end it \
             with: keystead pepper retire",
        ));
    }
    let version = versions.last().map_or(1, |newest| newest.version + 1);
    let row = Row::new(
        version,
        &master.first,
        PepperState::Next,
        now,
        now.plus(NEXT_FOR),
    );
    insert(change.conn(), &row).await?;
    let next = PepperVersion::try_from(row)?;
    change.record(
        "pepper.rotate",
        ("pepper", &version.to_string()),
        None,
        Some(json!({
            "state": next.state.as_str(),
            "master_id": next.master_id,
            "current_from": next.current_from,
        })),
    );
    change.touch(Kind::Pepper, &version.to_string());
    Ok(next)
}

/// Makes the next version the current one when its time has come. Every node tries it, inside a
/// write transaction of its own; one succeeds and is told the version.
///
/// Rows are written in the order of their versions, and then the change feed is stepped, as by everybody who
/// moves versions: so nobody waits for who waits for him.
///
/// # Errors
/// [`db::Error::Busy`] if another moved the next version meanwhile.
pub async fn promote_due(conn: &mut Conn, now: Timestamp) -> db::Result<Option<i32>> {
    let versions = load(conn).await?;
    let is_due = |row: &&PepperVersion| row.state == PepperState::Next && row.current_from <= now;
    let Some(due) = versions.iter().find(is_due).map(|row| row.version) else {
        return Ok(None);
    };
    let mut moved = 0;
    for row in &versions {
        let to = match row.state {
            PepperState::Current => PepperState::Old,
            PepperState::Next if row.version == due => PepperState::Current,
            PepperState::Next | PepperState::Old | PepperState::Lost => continue,
        };
        let count = each!(&mut *conn, c => diesel::update(table::table.find(row.version))
            .filter(table::state.eq(row.state.as_str()))
            .set(table::state.eq(to.as_str()))
            .execute(c)
            .await)?;
        match (count, moved) {
            (0, 0) => return Ok(None),
            (0, _) => return Err(db::Error::Busy),
            _ => moved += count,
        }
    }
    feed::step(conn, &[(Kind::Pepper, due.to_string())], now).await?;
    Ok(Some(due))
}

/// Deletes the old and lost versions that no secret carries, and says which. Inside a write
/// transaction of its own, as [`promote_due`], once the current version has settled.
pub async fn retire(conn: &mut Conn, now: Timestamp) -> db::Result<Vec<i32>> {
    let versions = load(conn).await?;
    let settled = versions
        .iter()
        .any(|v| v.state == PepperState::Current && v.current_from.plus(SETTLED_AFTER) <= now);
    if !settled {
        return Ok(Vec::new());
    }
    let mut retired = Vec::new();
    for version in versions.iter().map(|v| v.version) {
        let deleted = each!(conn, c => diesel::delete(table::table)
            .filter(table::version.eq(version))
            .filter(table::state.eq_any([PepperState::Old.as_str(), PepperState::Lost.as_str()]))
            .filter(diesel::dsl::not(diesel::dsl::exists(
                secret::table.filter(secret::pepper_version.eq(version)),
            )))
            .execute(c)
            .await)?;
        if deleted > 0 {
            retired.push(version);
        }
    }
    if !retired.is_empty() {
        let touched: Vec<_> = retired
            .iter()
            .map(|version| (Kind::Pepper, version.to_string()))
            .collect();
        feed::step(conn, &touched, now).await?;
    }
    Ok(retired)
}

/// Gives up an old version whose last secrets nobody uses: they stay valid, but are proved by their
/// verifier at their next use. Answers how many secrets carry it.
///
/// # Errors
/// [`Error::NotFound`] unless the version is an old one; [`Conflict::InProgress`] while one of its
/// secrets in use has no verifier yet, for it could never be proved again.
pub async fn give_up_old(change: &mut Change, version: i32) -> Result<u64, Error> {
    let now = change.now();
    let versions = load(change.conn()).await?;
    if !versions
        .iter()
        .any(|row| row.version == version && row.state == PepperState::Old)
    {
        return Err(Error::NotFound("old pepper version"));
    }
    let unprovable = count_of(&live_without_verifier(change.conn(), now).await?, version);
    if unprovable > 0 {
        return Err(Error::conflict(
            Conflict::InProgress,
            format!("{unprovable} secrets of version {version} have no verifier yet; try later"),
        ));
    }
    mark(change, version, "pepper.retire", PepperState::Old.as_str()).await?;
    let carried: i64 = each!(change.conn(), c => secret::table
        .filter(secret::pepper_version.eq(version))
        .count()
        .get_result(c)
        .await)?;
    Ok(carried.unsigned_abs())
}

/// What `keystead pepper lost` did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// The versions given up.
    pub versions: Vec<i32>,
    /// What new secrets use from now on.
    pub current: i32,
    /// Secrets in use that had no verifier yet, so nothing proves them any more: rotate their keys.
    pub unprovable: u64,
}

/// Gives up the versions whose master key is not among ours or does not fit, and sees that there is
/// a current version. Their secrets are proved by their verifier at their next use.
///
/// The heads of the audit chains were MACed under the lost master key too: the command seals them
/// anew before this.
pub async fn lost(change: &mut Change, master: &MasterKeys) -> Result<Lost, Error> {
    let now = change.now();
    let unproved = live_without_verifier(change.conn(), now).await?;
    let versions = load(change.conn()).await?;
    let (kept, gone): (Vec<_>, Vec<_>) = versions
        .iter()
        .filter(|row| row.state != PepperState::Lost)
        .partition(|row| row.is_computable(master));
    for row in &gone {
        mark(change, row.version, "pepper.lost", row.state.as_str()).await?;
    }
    let in_state = |state| kept.iter().find(|row| row.state == state);
    let current = if let Some(row) = in_state(PepperState::Current) {
        row.version
    } else if let Some(next) = in_state(PepperState::Next) {
        each!(change.conn(), c => diesel::update(table::table.find(next.version))
            .set((
                table::state.eq(PepperState::Current.as_str()),
                table::current_from.eq(now),
            ))
            .execute(c)
            .await)?;
        change.record(
            "pepper.promote",
            ("pepper", &next.version.to_string()),
            Some(json!({"state": next.state.as_str()})),
            Some(json!({"state": PepperState::Current.as_str()})),
        );
        change.touch(Kind::Pepper, &next.version.to_string());
        next.version
    } else {
        let version = versions.last().map_or(1, |newest| newest.version + 1);
        let row = Row::new(version, &master.first, PepperState::Current, now, now);
        insert(change.conn(), &row).await?;
        change.record(
            "pepper.create",
            ("pepper", &version.to_string()),
            None,
            Some(json!({"state": row.state, "master_id": row.master_id})),
        );
        change.touch(Kind::Pepper, &version.to_string());
        version
    };
    let versions: Vec<i32> = gone.iter().map(|row| row.version).collect();
    let unprovable = versions
        .iter()
        .map(|version| count_of(&unproved, *version))
        .sum();
    Ok(Lost {
        versions,
        current,
        unprovable,
    })
}

async fn mark(
    change: &mut Change,
    version: i32,
    action: &'static str,
    before: &str,
) -> Result<(), Error> {
    let lost = PepperState::Lost.as_str();
    each!(change.conn(), c => diesel::update(table::table.find(version))
        .set(table::state.eq(lost))
        .execute(c)
        .await)?;
    change.record(
        action,
        ("pepper", &version.to_string()),
        Some(json!({"state": before})),
        Some(json!({"state": lost})),
    );
    change.touch(Kind::Pepper, &version.to_string());
    Ok(())
}

/// The secrets that still admit somebody.
macro_rules! live_secrets {
    ($now:expr) => {
        secret::table
            .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
            .filter(secret::pepper_version.is_not_null())
            .filter(secret::revoked_at.is_null())
            .filter(
                secret::valid_until
                    .is_null()
                    .or(secret::valid_until.gt($now)),
            )
            .filter(api_key::revoked_at.is_null())
            .filter(
                api_key::expires_at
                    .is_null()
                    .or(api_key::expires_at.gt($now)),
            )
    };
}

/// How far a rotation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PepperProgress {
    pub version: i32,
    pub state: &'static str,
    pub current_from: Timestamp,
    /// Secrets that carry this version.
    pub secrets: u64,
    /// Those of them that are not revoked, nor past their end, nor is their key.
    pub live: u64,
    /// Those live ones whose verifier is not made yet.
    pub live_without_verifier: u64,
}

/// Counts the secrets of each version; a scan of all secrets, for the CLI and the odd metric.
pub async fn progress(conn: &mut Conn, now: Timestamp) -> db::Result<Vec<PepperProgress>> {
    let all: Counts = each!(conn, c => secret::table
        .filter(secret::pepper_version.is_not_null())
        .group_by(secret::pepper_version)
        .select((secret::pepper_version, diesel::dsl::count_star()))
        .load(c)
        .await)?;
    let live: Counts = each!(conn, c => live_secrets!(now)
        .group_by(secret::pepper_version)
        .select((secret::pepper_version, diesel::dsl::count_star()))
        .load(c)
        .await)?;
    let unproved = live_without_verifier(conn, now).await?;
    let versions = load(conn).await?;
    Ok(versions
        .into_iter()
        .map(|row| PepperProgress {
            version: row.version,
            state: row.state.as_str(),
            current_from: row.current_from,
            secrets: count_of(&all, row.version),
            live: count_of(&live, row.version),
            live_without_verifier: count_of(&unproved, row.version),
        })
        .collect())
}

/// How many secrets carry a version that is old or lost, from an index alone.
pub async fn count_behind(conn: &mut Conn) -> db::Result<i64> {
    let versions = load(conn).await?;
    let behind: Vec<i32> = versions
        .iter()
        .filter(|row| matches!(row.state, PepperState::Old | PepperState::Lost))
        .map(|row| row.version)
        .collect();
    if behind.is_empty() {
        return Ok(0);
    }
    Ok(each!(conn, c => secret::table
        .filter(secret::pepper_version.eq_any(&behind))
        .count()
        .get_result(c)
        .await)?)
}

/// Moves a secret's fingerprint forward to the current version, from the plaintext just judged.
/// `false` if another node did it, or the current version is another by now; then nothing is lost.
///
/// Neither a version of the key nor an audit line nor a step of the feed: nothing that is decided
/// depends on it.
pub async fn rewrite_fingerprint(
    conn: &mut Conn,
    secret_id: &SecretId,
    from_version: Option<i32>,
    to_version: i32,
    fingerprint: &Fingerprint,
) -> db::Result<bool> {
    if from_version.is_some_and(|from| from >= to_version) {
        return Ok(false);
    }
    let to = (
        secret::fingerprint.eq(fingerprint),
        secret::pepper_version.eq(to_version),
    );
    let is_current = diesel::dsl::exists(
        table::table
            .filter(table::version.eq(to_version))
            .filter(table::state.eq(PepperState::Current.as_str())),
    );
    let updated = match from_version {
        Some(from) => each!(conn, c => diesel::update(secret::table.find(secret_id))
            .filter(secret::pepper_version.eq(from))
            .filter(is_current)
            .set(to)
            .execute(c)
            .await)?,
        None => each!(conn, c => diesel::update(secret::table.find(secret_id))
            .filter(secret::pepper_version.is_null())
            .filter(is_current)
            .set(to)
            .execute(c)
            .await)?,
    };
    Ok(updated > 0)
}

/// There are few of these, so it is quick where [`progress`] is not.
async fn live_without_verifier(conn: &mut Conn, now: Timestamp) -> db::Result<Counts> {
    Ok(each!(conn, c => live_secrets!(now)
        .filter(secret::verifier.is_null())
        .group_by(secret::pepper_version)
        .select((secret::pepper_version, diesel::dsl::count_star()))
        .load(c)
        .await)?)
}

type Counts = Vec<(Option<i32>, i64)>;

fn count_of(counts: &Counts, version: i32) -> u64 {
    counts
        .iter()
        .find(|(of, _)| *of == Some(version))
        .map_or(0, |(_, count)| count.unsigned_abs())
}

async fn insert(conn: &mut Conn, row: &Row) -> db::Result<()> {
    each!(conn, c => diesel::insert_into(table::table)
        .values(row)
        .execute(c)
        .await)?;
    Ok(())
}
