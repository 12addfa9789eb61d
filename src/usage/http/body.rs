//! Summaries as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::time::Timestamp;
use crate::usage::query::{Bucket, Dimension};
use crate::usage::store::summary::Sum;
use crate::usage::summary::Series;

/// What was counted.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "UsageSummary")]
pub struct SummaryBody {
    /// The beginning of the first bucket.
    pub from: Timestamp,
    /// The end of the last bucket.
    pub to: Timestamp,
    #[schema(required = true)]
    pub bucket: Option<Bucket>,
    /// Those with the most uses first.
    pub groups: Vec<GroupBody>,
    /// Whether there are groups that are not told.
    pub truncated: bool,
}

/// A group of uses.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "UsageGroup")]
pub struct GroupBody {
    /// By the names of `group_by`. An empty text where there was none: no key was identified. As `ip`,
    /// `other` stands for all addresses of a key beyond the 500 that are told apart in a day (UTC); their
    /// uses are counted exactly, together. Uses for which no address was given are in no group then.
    #[schema(value_type = Object, example = json!({"outcome": "valid"}))]
    pub group: BTreeMap<Dimension, String>,
    pub uses: i64,
    /// Of what was let through; `null` by `ip` and by `scope`, by which it is not counted.
    #[schema(required = true)]
    pub cost: Option<i64>,
    /// Empty without `bucket`.
    pub points: Vec<PointBody>,
}

/// What was counted in a bucket.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "UsagePoint")]
pub struct PointBody {
    /// The beginning of the bucket.
    pub start: Timestamp,
    pub uses: i64,
    /// `null` by `ip` and by `scope`.
    #[schema(required = true)]
    pub cost: Option<i64>,
}

impl SummaryBody {
    pub fn new(what: &Sum, series: Vec<Series>, is_cut: bool) -> Self {
        let known = |cost: i64| what.table.has_cost().then_some(cost);
        let groups = series.into_iter().map(|one| GroupBody {
            group: what.group_by.iter().copied().zip(one.group).collect(),
            uses: one.uses,
            cost: known(one.cost),
            points: one
                .points
                .into_iter()
                .map(|point| PointBody {
                    start: Timestamp::from_millis(point.start),
                    uses: point.uses,
                    cost: known(point.cost),
                })
                .collect(),
        });
        Self {
            from: Timestamp::from_millis(what.from),
            to: Timestamp::from_millis(what.to),
            bucket: what.bucket,
            groups: groups.collect(),
            truncated: is_cut,
        }
    }
}
