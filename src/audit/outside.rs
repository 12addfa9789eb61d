//! What is known of a chain from outside of it: the statements that were signed about it.
//!
//! A chain that is whole in itself may still not be the one there was. What it is held against is
//! taken from the database, where it may have been removed, and from files, where it was not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::fault::{BadRecord, Fault};
use super::signing::key::KeySpan;
use super::signing::{Statement, StatementKind};

/// A statement, or what is wrong with its text, and where it was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub origin: String,
    pub statement: Result<Statement, String>,
}

/// Reads statements as the server writes them, one a line, or as pages of `/v1/audit/checkpoints`. A line
/// that breaks off is what a full disk or a power cut leaves of one, which was made again then.
pub fn read(origin: &str, text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let mut add = |statement: serde_json::Result<Statement>| {
            found.push(Found {
                origin: format!("line {number} of {origin}"),
                statement: statement.map_err(|error| format!("it is no checkpoint: {error}")),
            });
        };
        match serde_json::from_str(line) {
            Ok(Value::Object(mut page)) if page.contains_key("items") => {
                if let Some(Value::Array(items)) = page.remove("items") {
                    items
                        .into_iter()
                        .map(serde_json::from_value)
                        .for_each(&mut add);
                }
            }
            Ok(value) => add(serde_json::from_value(value)),
            Err(error) if error.is_eof() => {}
            Err(error) => add(Err(error)),
        }
    }
    found
}

/// What one chain is held against while it is walked.
#[derive(Clone, Debug, Default)]
pub(super) struct Checks {
    /// The hashes that were signed, by number, with when.
    by_seq: BTreeMap<i64, Vec<Statement>>,
    /// What was cut off last.
    pub(super) cut: Option<Statement>,
    /// Up to here the chain is known to be the one that was signed.
    good: i64,
    /// The last one did not fit, and was named.
    differs: bool,
    /// How many fit.
    pub(super) fitting: i64,
}

impl Checks {
    /// Those of `found` that are about `tenant` and hold; and what is wrong with others.
    pub(super) fn of<'a>(
        tenant: Option<&str>,
        found: impl IntoIterator<Item = &'a Found>,
        keys: &[KeySpan],
    ) -> (Self, Vec<BadRecord>) {
        let (mut this, mut strange) = (Self::default(), Vec::new());
        for Found { origin, statement } in found {
            let mut forged = |seq, why: &str| {
                let detail = format!("the checkpoint in {origin}: {why}");
                strange.push(BadRecord::new(seq, None, Fault::CheckpointForged, detail));
            };
            match statement {
                Err(why) => forged(0, why),
                Ok(said) if tenant.is_some_and(|tenant| said.tenant != tenant) => {}
                Ok(said) => match said.verify(keys) {
                    Err(why) => forged(said.seq, why),
                    Ok(()) => this.add(said),
                },
            }
        }
        if let Some(cut) = this.cut.clone() {
            this.good = cut.seq;
            this.by_seq = this.by_seq.split_off(&cut.seq);
            if let Some(bad) = this.at(cut.seq, &cut.hash) {
                strange.push(bad);
            }
        }
        (this, strange)
    }

    fn add(&mut self, said: &Statement) {
        let same = self.by_seq.entry(said.seq).or_default();
        if same.iter().all(|other| other.hash != said.hash) {
            same.push(said.clone());
        }
        let further = self.cut.as_ref().is_none_or(|cut| cut.seq < said.seq);
        if said.kind == StatementKind::Cut && further {
            self.cut = Some(said.clone());
        }
    }

    /// Holds the line `seq` with its hash against what was signed. Answers the first that does not
    /// fit, until one fits again.
    pub(super) fn at(&mut self, seq: i64, hash: &str) -> Option<BadRecord> {
        // What lies before it was not there to be compared: that is named already.
        while self
            .by_seq
            .first_key_value()
            .is_some_and(|(at, _)| *at < seq)
        {
            self.by_seq.pop_first();
        }
        let signed = self.by_seq.remove(&seq)?;
        let Some(other) = signed.iter().find(|said| said.hash != hash) else {
            self.fitting += 1;
            self.good = seq;
            self.differs = false;
            return None;
        };
        if std::mem::replace(&mut self.differs, true) {
            return None;
        }
        let first = self.good.saturating_add(1).min(seq);
        let since = if self.good > 0 {
            format!("after number {}, which its checkpoint proves,", self.good)
        } else {
            "from the beginning on".to_owned()
        };
        let detail = format!(
            "it or one up to number {seq} is not the one that was signed on {}: the chain was made \
             anew or rolled back somewhere {since} and before that",
            other.at
        );
        Some(BadRecord::new(
            first,
            None,
            Fault::CheckpointDiffers,
            detail,
        ))
    }

    /// What was signed of a chain that ends at `last`, but lies beyond it.
    pub(super) fn beyond(&self, last: i64) -> Option<BadRecord> {
        let (seq, said) = self.by_seq.last_key_value()?;
        let (seq, at) = (*seq, said.first()?.at);
        (seq > last).then(|| {
            let detail = format!(
                "the chain ends at {last}, but had reached number {seq} on {at}: it was rolled back \
                 or cut"
            );
            BadRecord::new(last.saturating_add(1), None, Fault::RolledBack, detail)
        })
    }

    /// The lines up to here were cut off; 0 if none was.
    pub(super) fn cut_to(&self) -> i64 {
        self.cut.as_ref().map_or(0, |cut| cut.seq)
    }

    /// Up to here the chain is known to be the one that was signed.
    pub(super) fn good(&self) -> i64 {
        self.good
    }

    /// Those that a chain ending at `last` cannot fit any more.
    pub(super) fn lost(&self, last: i64) -> Vec<(i64, String)> {
        self.by_seq
            .range(last.saturating_add(1)..)
            .flat_map(|(seq, said)| said.iter().map(|said| (*seq, said.hash.clone())))
            .collect()
    }

    /// An operator has said that this one is of a chain that is no more.
    pub(super) fn give_up(&mut self, seq: i64, hash: &str) {
        if let Some(signed) = self.by_seq.get_mut(&seq) {
            signed.retain(|said| said.hash != hash);
            if signed.is_empty() {
                self.by_seq.remove(&seq);
            }
        }
        self.differs = false;
    }
}
