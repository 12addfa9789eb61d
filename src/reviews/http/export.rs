//! The keys of a review as a file, a page at a time.

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::IntoParams;

use super::body::ReviewItemBody;
use super::by;
use crate::auth::http::{Caller, perm};
use crate::db;
use crate::http::download::{RowFormat, Table, download};
use crate::http::extract::{AuditReason, Query};
use crate::http::problem::Problem;
use crate::reviews::Reviews;
use crate::reviews::service::Export;

#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// NDJSON by default: its lines give the digest of the review.
    format: Option<RowFormat>,
}

/// Exports the keys of a review of access
///
/// All of them, in the order of their ids, with what was decided. In CSV a cell that a spreadsheet
/// would take for a formula begins with an apostrophe. An answer that breaks off is not complete. The
/// export stands in the audit trail.
#[utoipa::path(
    get, path = "/v1/reviews/access/{id}/export", tag = "reviews",
    operation_id = "export_access_review",
    params(("id" = String, Path, description = "Id"), ExportQuery, AuditReason),
    responses(
        (
            status = 200, description = "The keys, one a line",
            content((ReviewItemBody = "application/x-ndjson"), (String = "text/csv")),
        ),
        (status = 409, description = "`in_progress`: the keys are still being put into the review"),
    ),
)]
pub async fn export_access_review(
    caller: Caller<perm::KeysRead>,
    id: web::Path<String>,
    Query(query): Query<ExportQuery>,
    reason: AuditReason,
    reviews: web::Data<Reviews>,
) -> Result<HttpResponse, Problem> {
    let format = query.format.unwrap_or_default();
    let by = by(&caller, None, reason);
    let export = reviews.export(by, id.into_inner(), json!(format)).await?;
    let mut table = Table::new(format, &COLUMNS);
    let pages = stream::try_unfold(export, page);
    let pages = futures_util::TryStreamExt::and_then(pages, move |items| {
        futures_util::future::ready(text(&mut table, items))
    });
    Ok(download(format, "access-review").streaming(Box::pin(pages)))
}

async fn page(mut export: Export) -> db::Result<Option<(Vec<ReviewItemBody>, Export)>> {
    match export.next().await {
        Ok(items) => Ok(items.map(|items| {
            let items = items.into_iter().map(ReviewItemBody::new);
            (items.collect(), export)
        })),
        Err(error) => {
            tracing::error!(%error, "broke off an export of a review");
            Err(error)
        }
    }
}

fn text(table: &mut Table, items: Vec<ReviewItemBody>) -> db::Result<Bytes> {
    for item in items {
        table.add(&item, cells)?;
    }
    table.take()
}

const COLUMNS: [&str; 25] = [
    "key_id",
    "lookup_id",
    "name",
    "status",
    "consumer",
    "consumer_disabled",
    "environment",
    "grants",
    "unused_scopes",
    "created_at",
    "created_by",
    "reason",
    "rotated_at",
    "rotated_by",
    "last_used",
    "not_before",
    "expires_at",
    "tags",
    "external_id",
    "findings",
    "decision",
    "note",
    "own",
    "decided_at",
    "decided_by",
];

/// In the order of [`COLUMNS`].
fn cells(item: &ReviewItemBody) -> Vec<String> {
    let key = |pointer: &str| word(item.key.pointer(pointer));
    let actor = |pointer: &str| {
        let actor = item.key.pointer(pointer).cloned().unwrap_or_default();
        serde_json::from_value(actor).map_or_else(|_none| String::new(), |actor| name(&actor))
    };
    let grants = |member: &str| {
        let grants = item.key.get("grants").and_then(Value::as_array);
        let grants = grants.into_iter().flatten().filter_map(|grant| {
            let scopes = words(grant.get(member)?);
            let service = word(grant.get("service"));
            (member == "scopes" || !scopes.is_empty()).then(|| format!("{service}: {scopes}"))
        });
        grants.collect::<Vec<_>>().join("; ")
    };
    vec![
        key("/id"),
        key("/lookup_id"),
        key("/name"),
        key("/status"),
        key("/consumer/slug"),
        key("/consumer/disabled"),
        key("/environment"),
        grants("scopes"),
        grants("unused_scopes"),
        key("/created_at"),
        actor("/created_by"),
        key("/reason"),
        key("/rotated_at"),
        actor("/rotated_by"),
        key("/last_used"),
        key("/not_before"),
        key("/expires_at"),
        item.key.get("tags").map(words).unwrap_or_default(),
        key("/external_id"),
        words(&item.findings),
        item.decision.as_str().to_owned(),
        item.note.clone().unwrap_or_default(),
        item.own.to_string(),
        item.decided_at
            .map_or_else(String::new, |at| at.to_string()),
        item.decided_by.as_ref().map_or_else(String::new, name),
    ]
}

fn name(actor: &crate::audit::Actor) -> String {
    actor.name()
}

fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

fn words(value: &Value) -> String {
    let words = value.as_array().into_iter().flatten();
    words
        .map(|one| word(Some(one)))
        .collect::<Vec<_>>()
        .join(" ")
}
