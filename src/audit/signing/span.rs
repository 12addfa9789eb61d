//! Which audit key signs when: the one of the first master key begins where the former ends.
//!
//! What a key signed lies in its span, or it would be called forged for ever. So a key whose beginning a
//! clock that was ahead has written down begins earlier before it signs, and one that has signed by such a
//! clock ends later, though the next signs already.
//!
//! The rows are sealed under the master key as the heads are, so that nobody who writes to the
//! database alone can make his key one of ours. What another listed master key sealed is sealed anew
//! under the first one.

use std::sync::Arc;

use serde_json::json;

use super::key::{KeySpan, PublicKey, Signer};
use crate::audit::store::checkpoint;
use crate::audit::store::key::{self, KeyRow};
use crate::audit::{Attribution, Audit, Change};
use crate::db::{self, Conn};
use crate::id::TenantId;
use crate::master::{DerivedKey, MasterKeys};
use crate::telemetry::SecurityEvent;
use crate::time::Timestamp;

/// The purpose for which the key of the rows' MACs is derived from the master key.
const ROW_PURPOSE: &str = "keystead audit key row 1";

/// What a node signs with, and what it knows the rows of the audit keys by.
#[derive(Clone)]
pub struct SigningKeys {
    pub signer: Arc<Signer>,
    /// The first seals, each may have sealed before.
    rows: Arc<[DerivedKey]>,
    /// The public halves that follow from the listed master keys, whatever the rows say.
    derived: Arc<[PublicKey]>,
}

impl SigningKeys {
    pub fn new(master: &MasterKeys) -> Self {
        Self {
            signer: Arc::new(Signer::new(&master.first)),
            rows: master.iter().map(|key| key.derive(ROW_PURPOSE)).collect(),
            derived: master
                .iter()
                .map(|key| Signer::new(key).public().clone())
                .collect(),
        }
    }

    #[expect(clippy::indexing_slicing, reason = "MasterKeys always has a first key")]
    fn seal(&self, row: &KeyRow) -> Vec<u8> {
        self.rows[0].mac(&parts(row, &bounds(row))).to_vec()
    }

    fn opens(&self, row: &KeyRow) -> bool {
        let bounds = bounds(row);
        let parts = parts(row, &bounds);
        self.rows.iter().any(|key| key.verify(&parts, &row.mac))
    }

    /// The keys that we vouch for, oldest first: the rows that we sealed, and those that follow from
    /// the master keys and have lost theirs.
    pub(in crate::audit) fn trusted(&self, rows: &[KeyRow]) -> Vec<KeySpan> {
        let mut keys: Vec<KeySpan> = rows
            .iter()
            .filter(|row| self.opens(row))
            .filter_map(KeyRow::span)
            .collect();
        for public in self.derived.iter() {
            if keys.iter().all(|key| key.public != *public) {
                keys.push(KeySpan {
                    public: public.clone(),
                    from: Timestamp::from_millis(0),
                    until: None,
                });
            }
        }
        keys
    }
}

fn bounds(row: &KeyRow) -> [u8; 16] {
    let until = row.until.map_or(-1, Timestamp::millis);
    let mut bounds = [0; 16];
    bounds[..8].copy_from_slice(&row.from.millis().to_be_bytes());
    bounds[8..].copy_from_slice(&until.to_be_bytes());
    bounds
}

fn parts<'a>(row: &'a KeyRow, bounds: &'a [u8; 16]) -> [&'a [u8]; 3] {
    [row.kid.as_bytes(), &row.public_key, bounds]
}

impl Audit {
    /// Begins the span of our key and ends that of the one before, if that was not done yet. Of
    /// several nodes one does.
    pub async fn begin_key(&self, at: Attribution) -> db::Result<()> {
        let rows = self
            .db
            .read(async move |conn: &mut Conn| key::all(conn).await)
            .await?;
        let (kid, keys) = (self.signing.signer.public().kid(), self.signing.clone());
        let is_ours = |row: &KeyRow| row.kid == kid && row.until.is_none();
        let is_sealed = |row: &KeyRow| !keys.opens(row) || row.mac == keys.seal(row);
        if rows.iter().any(|row| is_ours(row) && keys.opens(row)) && rows.iter().all(is_sealed) {
            return Ok(());
        }
        self.change(at, async move |change: &mut Change| {
            begin(change, &keys).await
        })
        .await
    }

    /// Lets our key begin no later than `now`, if it is to sign then: in a transaction of its own, for what is
    /// signed leaves before that is committed. As a rule there is nothing to do.
    pub(in crate::audit) async fn cover(
        &self,
        tenant: &TenantId,
        now: Timestamp,
    ) -> db::Result<()> {
        let (kid, keys) = (self.signing.signer.public().kid(), self.signing.clone());
        let is_late = move |row: &KeyRow| {
            let signs = row.kid == kid && row.until.is_none() && keys.opens(row);
            signs && row.span().is_some_and(|span| !span.covers(now))
        };
        let all = async move |conn: &mut Conn| key::all(conn).await;
        if !self.db.read(all).await?.iter().any(&is_late) {
            return Ok(());
        }
        let keys = self.signing.clone();
        let began = self
            .db
            .write(async move |conn: &mut Conn| -> db::Result<_> {
                let rows = key::all(conn).await?;
                let Some(row) = rows.into_iter().find(is_late) else {
                    return Ok(None);
                };
                let mut earlier = KeyRow {
                    from: now,
                    ..row.clone()
                };
                earlier.mac = keys.seal(&earlier);
                key::put(conn, &earlier).await?;
                Ok(Some(row.from))
            })
            .await?;
        if let Some(began) = began {
            let told = format!(
                "the audit key began at {began}, which has not come yet by the clock that shows {now}: it \
                 begins then"
            );
            self.security_event(SecurityEvent::ClockJumped, tenant, told);
        }
        Ok(())
    }

    /// The public keys with their spans, oldest first.
    pub async fn audit_keys(&self) -> db::Result<Vec<KeySpan>> {
        let rows = self
            .db
            .read(async move |conn: &mut Conn| key::all(conn).await)
            .await?;
        let stored: Vec<KeySpan> = rows
            .iter()
            .filter(|row| self.signing.opens(row))
            .filter_map(KeyRow::span)
            .collect();
        if stored.len() < rows.len() {
            tracing::error!(
                target: "security",
                strange = rows.len() - stored.len(),
                "the table of audit keys has rows that were not sealed under a listed master key"
            );
        }
        Ok(stored)
    }
}

impl Audit {
    /// The keys that no listed master key sealed: of a master key that is lost, or of somebody who writes to
    /// the database. What they signed proves nothing.
    ///
    /// # Errors
    /// The database's.
    pub async fn unknown_keys(&self) -> db::Result<Vec<KeySpan>> {
        let rows = self
            .db
            .read(async move |conn: &mut Conn| key::all(conn).await)
            .await?;
        let unknown = rows.iter().filter(|row| !self.signing.opens(row));
        Ok(unknown.filter_map(named).collect())
    }

    /// Takes those of [`Self::unknown_keys`] that are called `kids` for ours: their master key is lost, and
    /// an operator knows them. Each leaves a line that tells which key it was. Answers which those were.
    ///
    /// # Errors
    /// The database's.
    pub async fn adopt_keys(&self, at: Attribution, kids: &[String]) -> db::Result<Vec<String>> {
        let (keys, kids) = (self.signing.clone(), kids.to_vec());
        self.change(at, async move |change: &mut Change| {
            let own = keys.signer.public().kid();
            let mut adopted = Vec::new();
            for mut row in key::all(change.conn()).await? {
                let is_meant = kids.contains(&row.kid) && named(&row).is_some();
                if keys.opens(&row) || !is_meant {
                    continue;
                }
                if row.kid != own && row.until.is_none() {
                    row.until = Some(end(change, &row).await?);
                }
                row.mac = keys.seal(&row);
                key::put(change.conn(), &row).await?;
                let public_key = hex::encode(&row.public_key);
                let after = json!({"kid": row.kid, "public_key": public_key});
                change.record(
                    "audit_key.adopt",
                    ("audit_key", &row.kid),
                    None,
                    Some(after),
                );
                adopted.push(row.kid);
            }
            db::Result::Ok(adopted)
        })
        .await
    }
}

/// The key of a row, if its name is that of the key.
fn named(row: &KeyRow) -> Option<KeySpan> {
    row.span().filter(|span| span.public.kid() == row.kid)
}

async fn begin(change: &mut Change, keys: &SigningKeys) -> db::Result<()> {
    let public = keys.signer.public();
    let (kid, now) = (public.kid(), change.now());
    let mut ended = Vec::new();
    let mut ours = None;
    for mut row in key::all(change.conn()).await? {
        if !keys.opens(&row) {
            continue;
        }
        if row.kid == kid {
            ours = Some(row);
            continue;
        }
        if row.until.is_none() {
            row.until = Some(end(change, &row).await?);
            ended.push(row.kid.clone());
        }
        row.mac = keys.seal(&row);
        key::put(change.conn(), &row).await?;
    }
    let begins = ours.as_ref().is_none_or(|row| row.until.is_some());
    let mut row = match ours {
        Some(row) => row,
        None => KeyRow {
            kid: kid.clone(),
            public_key: public.as_bytes().to_vec(),
            // It may have signed before, and lost its row.
            from: furthest(change, public, true).await?.unwrap_or(now),
            until: None,
            mac: Vec::new(),
        },
    };
    row.until = None;
    row.mac = keys.seal(&row);
    key::put(change.conn(), &row).await?;
    if begins {
        change.record(
            "audit_key.begin",
            ("audit_key", &kid),
            Some(json!({"ended": ended})),
            Some(json!({"kid": kid, "public_key": hex::encode(public.as_bytes())})),
        );
    }
    Ok(())
}

/// When a key ends that has signed until now: by whatever clock it began and signed.
async fn end(change: &mut Change, row: &KeyRow) -> db::Result<Timestamp> {
    let last = match PublicKey::parse(&row.public_key) {
        Some(public) => furthest(change, &public, false).await?,
        None => None,
    };
    Ok(change.now().max(row.from).max(last.unwrap_or(row.from)))
}

/// When this key signed first, if that was before now, or last, if it was after now; as far as the database
/// has what it signed.
async fn furthest(
    change: &mut Change,
    public: &PublicKey,
    is_before: bool,
) -> db::Result<Option<Timestamp>> {
    let now = change.now();
    let said = checkpoint::beyond(change.conn(), &public.kid(), now, is_before).await?;
    let signed = said.iter().find(|said| said.is_signed_by(public));
    Ok(signed.map(|said| said.at))
}
