//! Reviews of access: who may still do what, and who said that it may stay.
//!
//! 1. A review begins with the keys of a tenant, or of some of its services, as they stood at one
//!    instant, each with what there is to look at ([`finding`]). They do not change any more.
//! 2. Reviewers decide about each key; whoever made it, or put its last secret in place, is marked.
//! 3. Closed, it stays as it is.
//!
//! Each step is a line of the audit trail; the first of them holds a digest of the keys.
//!
//! Who may do what: a review is about the services that it names, or about all. To read it takes
//! `keys:read` for each of them, to make it, decide and close `keys:write`; so an auditor reads and
//! does not decide.

pub mod finding;
mod freeze;
pub mod http;
pub mod service;
mod store;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::audit::Actor;
use crate::id::{KeyId, ReviewId};
use crate::patch::Reason;
use crate::text::{Environment, Name, Slug, Tag};
use crate::time::Timestamp;

use finding::{Finding, Thresholds};
pub use service::Reviews;

/// The most keys that one review may be about.
pub const KEYS_MAX: i64 = 100_000;

/// The most names that one part of a filter may have.
const NAMES_MAX: usize = 100;

/// A review to begin.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Billing, fourth quarter",
    "filter": {"services": ["billing"], "environments": ["live"]},
    "thresholds": {"idle_for": "60d"},
    "reason": "quarterly review"
}))]
pub struct NewReview {
    pub name: Name,
    /// Which keys; without it, all of the tenant that are live.
    pub filter: Option<AskedFilter>,
    /// From when on something is a finding.
    pub thresholds: Option<Thresholds>,
    pub reason: Option<Reason>,
}

/// Which of the keys that are neither revoked nor past their end: those that meet every part.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AskedFilter {
    /// Ids or slugs: keys that grant on any of them.
    #[schema(min_items = 1, max_items = 100)]
    pub services: Option<Vec<String>>,
    /// Ids, slugs or external ids: keys of any of them.
    #[schema(min_items = 1, max_items = 100)]
    pub consumers: Option<Vec<String>>,
    #[schema(min_items = 1, max_items = 100)]
    pub environments: Option<Vec<Environment>>,
    /// All must be there.
    #[schema(min_items = 1, max_items = 100)]
    pub tags: Option<Vec<Tag>>,
    /// `issuer#subject`, or a key id.
    #[schema(min_length = 1, max_length = 1000)]
    pub created_by: Option<String>,
}

/// The same with the slugs of what was named.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(title = "ReviewFilter")]
pub struct ReviewFilter {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<Slug>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumers: Option<Vec<Slug>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environments: Option<Vec<Environment>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Tag>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
}

/// Where a review stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReviewStatus {
    /// Its keys are still being put into it.
    Freezing,
    Open,
    Closed,
}

/// What was decided about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// Nothing yet.
    Undecided,
    /// It may stay as it is.
    Keep,
    /// It may stay, but not as it is.
    Change,
    /// It must go.
    Revoke,
}

impl Decision {
    pub const ALL: [Self; 4] = [Self::Undecided, Self::Keep, Self::Change, Self::Revoke];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Keep => "keep",
            Self::Change => "change",
            Self::Revoke => "revoke",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// A review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Review {
    pub id: ReviewId,
    pub name: Name,
    pub filter: ReviewFilter,
    pub thresholds: Thresholds,
    pub created_at: Timestamp,
    pub created_by: Actor,
    pub reason: Option<String>,
    /// The instant of its keys; `None` until all of them are in it.
    pub as_of: Option<Timestamp>,
    pub keys: i64,
    pub findings: BTreeMap<Finding, i64>,
    /// SHA-256 in hexadecimal over the canonical JSON of its keys.
    pub digest: Option<String>,
    pub closed_at: Option<Timestamp>,
    pub closed_by: Option<Actor>,
    pub close_reason: Option<String>,
    /// How many keys were decided how.
    pub decisions: BTreeMap<Decision, i64>,
}

impl Review {
    pub fn status(&self) -> ReviewStatus {
        match (self.as_of, self.closed_at) {
            (None, _) => ReviewStatus::Freezing,
            (Some(_), None) => ReviewStatus::Open,
            (Some(_), Some(_)) => ReviewStatus::Closed,
        }
    }

    /// How many keys nothing was decided about.
    pub fn undecided(&self) -> i64 {
        self.decisions
            .get(&Decision::Undecided)
            .copied()
            .unwrap_or_default()
    }
}

/// Which reviews.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListFilter {
    pub status: Option<ReviewStatus>,
}

/// Which keys of a review: those that meet every part.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ItemFilter {
    pub finding: Option<Finding>,
    pub decision: Option<Decision>,
    /// Who decided: `issuer#subject`, or a key id.
    pub reviewer: Option<String>,
    /// Whether the reviewer made the key, or put its last secret in place.
    pub own: Option<bool>,
}

/// A key in a review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub key_id: KeyId,
    /// RFC 8785 canonical JSON of a [`finding::Frozen`].
    pub record: String,
    pub findings: Vec<Finding>,
    pub verdict: Verdict,
}

/// What was decided, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub note: Option<String>,
    /// The reviewer made the key, or put its last secret in place.
    pub own: bool,
    /// The key was revoked with the decision.
    pub carried_out: bool,
    pub decided_at: Option<Timestamp>,
    pub decided_by: Option<Actor>,
}
