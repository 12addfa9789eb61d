//! Which audit key signs when: the one of the first master key begins where the former ends.
//!
//! The rows are sealed under the master key as the heads are, so that nobody who writes to the
//! database alone can make his key one of ours. What another listed master key sealed is sealed anew
//! under the first one.

use std::sync::Arc;

use serde_json::json;

use super::key::{KeySpan, PublicKey, Signer};
use crate::audit::store::key::{self, KeyRow};
use crate::audit::{Attribution, Audit, Change};
use crate::db::{self, Conn};
use crate::master::{DerivedKey, MasterKeys};
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
                if row.kid != own {
                    row.until = row.until.or(Some(change.now()));
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
            row.until = Some(now);
            ended.push(row.kid.clone());
        }
        row.mac = keys.seal(&row);
        key::put(change.conn(), &row).await?;
    }
    let begins = ours.as_ref().is_none_or(|row| row.until.is_some());
    let mut row = ours.unwrap_or_else(|| KeyRow {
        kid: kid.clone(),
        public_key: public.as_bytes().to_vec(),
        from: now,
        until: None,
        mac: Vec::new(),
    });
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
