//! Events and summaries as JSON.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::db;
use crate::time::Timestamp;
use crate::usage::query::{Bucket, Dimension};
use crate::usage::store::batch::Detail;
use crate::usage::store::events::StoredEvent;
use crate::usage::store::summary::Sum;
use crate::usage::summary::Series;

/// A use of a key, or a refused attempt at one.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(title = "UsageEvent")]
pub struct UsageEventBody {
    #[schema(example = "evt_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub id: String,
    pub at: Timestamp,
    #[schema(example = "key_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub key_id: String,
    #[schema(example = "sec_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub secret_id: String,
    /// Whether the secret had been replaced by a newer one.
    pub superseded: bool,
    #[schema(example = "con_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub consumer_id: String,
    /// The slug; empty if there was no service of the name that was asked for.
    #[schema(example = "billing")]
    pub service: String,
    #[schema(example = "live")]
    pub environment: String,
    #[schema(example = "verify")]
    pub operation: String,
    /// `valid`, or the code of the refusal.
    #[schema(example = "valid")]
    pub outcome: String,
    pub required_scopes: Vec<String>,
    pub any_scopes: Vec<String>,
    pub cost: u64,
    #[schema(required = true, example = "192.0.2.1")]
    pub ip: Option<String>,
    #[schema(required = true, example = "GET")]
    pub method: Option<String>,
    /// Without its query.
    #[schema(required = true, example = "/invoices/7")]
    pub path: Option<String>,
    #[schema(required = true)]
    pub user_agent: Option<String>,
    pub context: BTreeMap<String, String>,
    #[schema(required = true)]
    pub token_id: Option<String>,
    #[schema(required = true)]
    pub subject: Option<String>,
    #[schema(required = true)]
    pub actor: Option<String>,
    /// The id of the management key that asked, or `<issuer>|<subject>`.
    pub caller: String,
    pub request_id: String,
    /// Which life of which node decided.
    pub node: String,
    /// How long the decision took, in microseconds.
    pub latency_us: u64,
}

impl UsageEventBody {
    /// # Errors
    /// [`db::Error::Corrupt`] names the event whose detail cannot be read.
    pub fn new(event: StoredEvent) -> db::Result<Self> {
        let detail: Detail = serde_json::from_str(&event.detail).map_err(|error| {
            db::Error::Corrupt(format!("the detail of usage event {}: {error}", event.id))
        })?;
        Ok(Self {
            id: event.id,
            at: event.at,
            key_id: event.key_id,
            secret_id: event.secret_id,
            superseded: event.superseded != 0,
            consumer_id: event.consumer_id,
            service: event.service,
            environment: event.environment,
            operation: event.operation,
            outcome: event.outcome,
            required_scopes: detail.required_scopes,
            any_scopes: detail.any_scopes,
            cost: detail.cost,
            ip: event.ip,
            method: detail.method,
            path: detail.path,
            user_agent: detail.user_agent,
            context: detail.context,
            token_id: event.token_id,
            subject: event.subject,
            actor: event.actor,
            caller: event.caller,
            request_id: event.request_id,
            node: event.node,
            latency_us: detail.latency_us,
        })
    }
}

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
    /// By the names of `group_by`. An empty text where there was none: no key was identified, or no
    /// address was given.
    #[schema(value_type = Object, example = json!({"outcome": "valid"}))]
    pub group: BTreeMap<Dimension, String>,
    pub uses: i64,
    /// Of what was let through. Addresses and scopes have no cost.
    pub cost: i64,
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
    pub cost: i64,
}

impl SummaryBody {
    pub fn new(what: &Sum, series: Vec<Series>, is_cut: bool) -> Self {
        let groups = series.into_iter().map(|one| GroupBody {
            group: what.group_by.iter().copied().zip(one.group).collect(),
            uses: one.uses,
            cost: one.cost,
            points: one
                .points
                .into_iter()
                .map(|point| PointBody {
                    start: Timestamp::from_millis(point.start),
                    uses: point.uses,
                    cost: point.cost,
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
