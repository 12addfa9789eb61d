//! The keys as a file: as they stand, or as they stood.

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::{TryStreamExt as _, future, stream};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::by;
use crate::auth::http::{Caller, perm};
use crate::db;
use crate::http::download::{RowFormat, Table, download};
use crate::http::extract::{AuditReason, Query};
use crate::http::problem::Problem;
use crate::keys::history::{History, Past};
use crate::keys::key::KeyView;
use crate::keys::service::Keys;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// The keys as they stood then; now, unless given.
    as_of: Option<Timestamp>,
    /// NDJSON by default.
    format: Option<RowFormat>,
}

/// A key as it stood.
#[derive(Serialize, ToSchema)]
pub struct ExportedKey {
    /// The number of the audit event that has it so. `null` if no event that is left proves it: the
    /// beginning of the trail was cut off, and the key was not changed between there and the instant.
    #[schema(required = true)]
    audit_seq: Option<i64>,
    /// With `as_of`, `last_used` and the secrets' `last_used_at` are `null`: the trail does not tell.
    #[schema(value_type = KeyView)]
    key: Value,
}

/// Exports the keys as they stand, or as they stood at an instant
///
/// All keys that the caller may see, the ended ones too, in the order of their ids, rebuilt from the
/// audit trail: each line names the event that has the key so. If the beginning of the trail was cut
/// off, the header `X-Keystead-Audit-Cut` says where it begins now, and keys that no event proves are
/// told as their first later event, or else their row, has them, with `audit_seq` null; an instant
/// before that beginning is refused. In CSV a cell that a spreadsheet would take for a formula begins
/// with an apostrophe. An answer that breaks off is not complete. The export stands in the audit trail.
#[utoipa::path(
    get, path = "/v1/keys/export", tag = "keys", operation_id = "export_keys",
    params(ExportQuery, AuditReason),
    responses((
        status = 200, description = "The keys, one a line",
        headers(
            ("X-Keystead-As-Of" = String, description = "The instant"),
            ("X-Keystead-Audit-Seq" = i64, description = "The number of the last audit event before it"),
            ("X-Keystead-Audit-Cut" = String, description = "Only if the beginning of the trail was cut off: number and time of the first event there is, such as `4711; 2027-01-31T12:00:00.000Z`"),
        ),
        content((ExportedKey = "application/x-ndjson"), (String = "text/csv")),
    )),
)]
pub async fn export_keys(
    caller: Caller<perm::KeysRead>,
    Query(query): Query<ExportQuery>,
    reason: AuditReason,
    keys: web::Data<Keys>,
) -> Result<HttpResponse, Problem> {
    let format = query.format.unwrap_or_default();
    let by = by(&caller, None, reason);
    let history = keys.export(by, query.as_of, json!(format)).await?;
    let mut response = download(format, "keys");
    response
        .insert_header(("X-Keystead-As-Of", history.as_of.to_string()))
        .insert_header(("X-Keystead-Audit-Seq", history.audit_seq.to_string()));
    if let Some((seq, at)) = history.cut {
        response.insert_header(("X-Keystead-Audit-Cut", format!("{seq}; {at}")));
    }
    let mut table = Table::new(format, &COLUMNS);
    let pages = stream::try_unfold(history, page)
        .and_then(move |page| future::ready(text(&mut table, page)));
    Ok(response.streaming(Box::pin(pages)))
}

async fn page(mut history: History) -> db::Result<Option<(Vec<Past>, History)>> {
    match history.next().await {
        Ok(page) => Ok(page.map(|page| (page, history))),
        Err(error) => {
            tracing::error!(%error, "broke off an export of keys");
            Err(error)
        }
    }
}

fn text(table: &mut Table, page: Vec<Past>) -> db::Result<Bytes> {
    for past in page {
        let row = ExportedKey {
            audit_seq: past.audit_seq,
            key: past.key,
        };
        table.add(&row, cells)?;
    }
    table.take()
}

const COLUMNS: [&str; 26] = [
    "id",
    "lookup_id",
    "status",
    "name",
    "consumer",
    "environment",
    "grants",
    "not_before",
    "expires_at",
    "rate_limits",
    "quota",
    "allowed_ips",
    "metadata",
    "tags",
    "external_id",
    "secrets",
    "last_used",
    "version",
    "created_at",
    "created_by",
    "updated_at",
    "rotated_at",
    "revoked_at",
    "revoked_by",
    "reason",
    "audit_seq",
];

/// In the order of [`COLUMNS`]; what is not one value is JSON.
fn cells(row: &ExportedKey) -> Vec<String> {
    let cell = |name: &str| {
        let value = match name {
            "consumer" => row.key.pointer("/consumer/slug"),
            name => row.key.get(name),
        };
        match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        }
    };
    let seq = row
        .audit_seq
        .map_or_else(String::new, |seq| seq.to_string());
    let names = COLUMNS.iter().filter(|name| **name != "audit_seq");
    names.map(|name| cell(name)).chain([seq]).collect()
}
