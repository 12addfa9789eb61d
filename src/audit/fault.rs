//! What can be wrong with a chain, and where.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The record, its hash or a column beside it is not what was written.
    Altered,
    /// One or several records are gone from the middle.
    Removed,
    /// The record is not ours.
    Inserted,
    /// The record stands where another belongs.
    Swapped,
    /// The last records are gone.
    TailCut,
    /// The chain is whole in itself but ends in another hash than its head: a record was altered
    /// and every hash from there on made anew.
    Rehashed,
    /// The head's MAC does not verify: somebody without the master key wrote it.
    HeadForged,
    /// The head is gone.
    HeadMissing,
    /// A record up to here is not the one of which a checkpoint was signed.
    CheckpointDiffers,
    /// The chain has not got as far as a checkpoint says that it had.
    RolledBack,
    /// A checkpoint was not signed by us.
    CheckpointForged,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Altered => "altered",
            Self::Removed => "removed",
            Self::Inserted => "inserted",
            Self::Swapped => "swapped",
            Self::TailCut => "tail_cut",
            Self::Rehashed => "rehashed",
            Self::HeadForged => "head_forged",
            Self::HeadMissing => "head_missing",
            Self::CheckpointDiffers => "checkpoint_differs",
            Self::RolledBack => "rolled_back",
            Self::CheckpointForged => "checkpoint_forged",
        }
    }
}

/// A record that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BadRecord {
    /// Its number; of removed records the first that is missing.
    pub seq: i64,
    /// Its id, as far as it is known.
    pub id: Option<String>,
    pub fault: Fault,
    /// What was expected and what is there, in words.
    pub detail: String,
}

impl BadRecord {
    pub(super) fn new(seq: i64, id: Option<&str>, fault: Fault, detail: String) -> Self {
        Self {
            seq,
            id: id.map(ToOwned::to_owned),
            fault,
            detail,
        }
    }
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, fault) = (self.id.as_deref().unwrap_or("-"), self.fault.as_str());
        write!(f, "number {} ({id}): {fault}: {}", self.seq, self.detail)
    }
}
