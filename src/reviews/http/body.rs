//! Reviews as JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::audit::Actor;
use crate::id::ReviewId;
use crate::patch::Reason;
use crate::reviews::finding::{Finding, FrozenKey, Thresholds};
use crate::reviews::{Decision, Item, Review, ReviewFilter, ReviewStatus};
use crate::text::{Name, Slug};
use crate::time::Timestamp;

/// What a reviewer can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReviewDecision {
    /// It may stay as it is.
    Keep,
    /// It may stay, but not as it is.
    Change,
    /// It must go.
    Revoke,
}

impl From<ReviewDecision> for Decision {
    fn from(decision: ReviewDecision) -> Self {
        match decision {
            ReviewDecision::Keep => Self::Keep,
            ReviewDecision::Change => Self::Change,
            ReviewDecision::Revoke => Self::Revoke,
        }
    }
}

/// A decision about a key.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"decision": "keep", "note": "asked team payments"}))]
pub struct DecideAccessReview {
    pub decision: ReviewDecision,
    /// What led to it; stays with the key in the review.
    pub note: Option<Reason>,
    /// With `revoke`: revokes the key in the same step.
    #[serde(default)]
    pub revoke_now: bool,
    pub reason: Option<Reason>,
}

/// How to close a review.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "all teams have answered"}))]
pub struct CloseAccessReview {
    /// Closes also while keys are undecided, and leaves them so.
    #[serde(default)]
    pub leave_undecided: bool,
    pub reason: Option<Reason>,
}

/// A review of access.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "AccessReview")]
pub struct AccessReviewBody {
    pub id: ReviewId,
    /// The tenant's slug.
    pub tenant: Slug,
    pub name: Name,
    pub status: ReviewStatus,
    pub filter: ReviewFilter,
    pub thresholds: Thresholds,
    pub created_at: Timestamp,
    #[schema(value_type = Object)]
    pub created_by: Actor,
    #[schema(required = true)]
    pub reason: Option<String>,
    /// The instant at which its keys stood so; `null` while it is freezing.
    #[schema(required = true)]
    pub as_of: Option<Timestamp>,
    /// How many keys are in it.
    pub keys: i64,
    /// How many of them each finding has.
    #[schema(value_type = Object, example = json!({"no_expiry": 3, "idle": 12}))]
    pub findings: BTreeMap<Finding, i64>,
    /// How many of them were decided how.
    #[schema(value_type = Object, example = json!({"undecided": 2, "keep": 9, "change": 0, "revoke": 1}))]
    pub decisions: BTreeMap<Decision, i64>,
    /// SHA-256 in hexadecimal over its keys by their ids, each as the RFC 8785 canonical JSON of an
    /// object with its `findings` and `key`, with a line feed behind. The audit line of the review has
    /// it too.
    #[schema(required = true)]
    pub digest: Option<String>,
    #[schema(required = true)]
    pub closed_at: Option<Timestamp>,
    #[schema(required = true, value_type = Option<Object>)]
    pub closed_by: Option<Actor>,
    #[schema(required = true)]
    pub close_reason: Option<String>,
}

impl AccessReviewBody {
    pub fn new(review: Review, tenant: Slug) -> Self {
        Self {
            status: review.status(),
            id: review.id,
            tenant,
            name: review.name,
            filter: review.filter,
            thresholds: review.thresholds,
            created_at: review.created_at,
            created_by: review.created_by,
            reason: review.reason,
            as_of: review.as_of,
            keys: review.keys,
            findings: review.findings,
            decisions: review.decisions,
            digest: review.digest,
            closed_at: review.closed_at,
            closed_by: review.closed_by,
            close_reason: review.close_reason,
        }
    }
}

/// A key of a review.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "AccessReviewItem")]
pub struct ReviewItemBody {
    /// As it stood when the review began.
    #[schema(value_type = FrozenKey)]
    pub key: Value,
    #[schema(value_type = Vec<Finding>)]
    pub findings: Value,
    pub decision: Decision,
    #[schema(required = true)]
    pub note: Option<String>,
    /// Whether who decided made the key, or rotated it last.
    pub own: bool,
    /// Whether the key was revoked with the decision.
    pub carried_out: bool,
    #[schema(required = true)]
    pub decided_at: Option<Timestamp>,
    #[schema(required = true, value_type = Option<Object>)]
    pub decided_by: Option<Actor>,
}

impl ReviewItemBody {
    pub fn new(item: Item) -> Self {
        let mut frozen: Value = serde_json::from_str(&item.record).unwrap_or_default();
        let mut member = |name: &str| {
            let member = frozen.get_mut(name).map(Value::take);
            member.unwrap_or_default()
        };
        Self {
            key: member("key"),
            findings: member("findings"),
            decision: item.verdict.decision,
            note: item.verdict.note,
            own: item.verdict.own,
            carried_out: item.verdict.carried_out,
            decided_at: item.verdict.decided_at,
            decided_by: item.verdict.decided_by,
        }
    }
}
