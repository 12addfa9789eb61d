//! A stored line by itself: its hash, its record, and the columns beside it that repeat what that says.

use std::borrow::Cow;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Actor;
use super::chain::link;
use super::store::{self, Stored};
use crate::time::Timestamp;

/// What a record says of itself, as far as a column repeats it.
#[derive(Deserialize)]
struct Said<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    seq: i64,
    at: Timestamp,
    #[serde(borrow)]
    tenant: Cow<'a, str>,
    actor: Actor,
    via: Option<Actor>,
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    target: SaidTarget<'a>,
    #[serde(borrow)]
    outcome: Cow<'a, str>,
    request_id: Option<Cow<'a, str>>,
    ip: Option<Cow<'a, str>>,
    services: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct SaidTarget<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    id: Cow<'a, str>,
}

impl Stored {
    fn said(&self) -> Option<Said<'_>> {
        serde_json::from_str(&self.record).ok()
    }

    pub(super) fn said_seq(&self) -> Option<i64> {
        self.said().map(|said| said.seq)
    }

    /// The hash is that of the record and of what it claims to follow.
    pub(super) fn is_sound(&self) -> bool {
        link(&self.prev_hash, &self.record)[..] == self.hash[..]
    }

    /// The value of the column is of another type than ours.
    pub(super) fn is_mistyped(&self, column: &str) -> bool {
        self.mistyped.split_whitespace().any(|one| one == column)
    }

    /// The first column that says something else than the record.
    pub(super) fn disagreement(&self, slug: Option<&str>) -> Option<&'static str> {
        let Some(said) = self.said() else {
            return Some("record");
        };
        [
            ("seq", said.seq == self.seq),
            ("id", said.id == self.id),
            ("at", said.at == self.at),
            ("tenant", slug.is_none_or(|slug| said.tenant == slug)),
            ("actor", said.actor.name() == self.actor),
            ("via", said.via.map(|via| via.name()) == self.via),
            ("action", said.action == self.action),
            ("target_kind", said.target.kind == self.target_kind),
            ("target_id", said.target.id == self.target_id),
            ("outcome", said.outcome == self.outcome),
            (
                "request_id",
                said.request_id.as_deref() == self.request_id.as_deref(),
            ),
            ("ip", said.ip.as_deref() == self.ip.as_deref()),
            (
                "services",
                said.services.as_deref().map(store::listed) == self.services,
            ),
        ]
        .into_iter()
        .find_map(|(column, agrees)| (!agrees).then_some(column))
    }

    /// All that is stored, for the digest of a line that does not hold.
    pub(super) fn digest(&self, digest: &mut Sha256) {
        for text in [
            Some(&self.id),
            Some(&self.actor),
            self.via.as_ref(),
            Some(&self.action),
            Some(&self.target_kind),
            Some(&self.target_id),
            Some(&self.outcome),
            self.request_id.as_ref(),
            self.ip.as_ref(),
            Some(&self.record),
        ] {
            let bytes = text.map_or(&[][..], |text| text.as_bytes());
            digest.update(bytes.len().to_be_bytes());
            digest.update(bytes);
        }
        if let Some(services) = &self.services {
            digest.update(services.as_bytes());
        }
        digest.update(self.seq.to_be_bytes());
        digest.update(self.at.millis().to_be_bytes());
        for hash in [&self.prev_hash, &self.hash] {
            digest.update(hash.len().to_be_bytes());
            digest.update(hash);
        }
        digest.update(&self.mistyped);
    }
}
