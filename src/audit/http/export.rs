//! The export of the audit trail, streamed.

use std::net::IpAddr;

use actix_web::http::header;
use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::audit::chain::AuditOutcome;
use crate::audit::export::{Export, ExportFormat, ExportLine};
use crate::audit::{Audit, EventFilter, asked};
use crate::auth::http::{Caller, perm};
use crate::http::extract::{AuditReason, Query};
use crate::http::problem::Problem;
use crate::http::query::in_order;
use crate::rights::Permission;
use crate::text::Slug;
use crate::time::Timestamp;

/// What is exported, and how: the filter of the list, and a format.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ExportQuery {
    /// NDJSON by default: that one can be verified.
    format: Option<ExportFormat>,
    /// Who acted: a key's id, `<issuer>#<subject>`, `cli:<user>@<host>` or `system`.
    actor: Option<String>,
    /// Through whose credential, written in the same way.
    via: Option<String>,
    #[serde(default, deserialize_with = "asked::action")]
    #[param(example = "key.revoke")]
    action: Option<String>,
    #[serde(default, deserialize_with = "asked::target_kind")]
    #[param(example = "key")]
    target_kind: Option<String>,
    /// The id of what was acted upon.
    target: Option<String>,
    /// The slug of a service: events about it, and about keys that grant on it.
    #[param(value_type = Option<String>, example = "billing")]
    service: Option<Slug>,
    outcome: Option<AuditOutcome>,
    #[param(value_type = Option<String>, example = "192.0.2.1")]
    ip: Option<IpAddr>,
    request_id: Option<String>,
    /// Inclusive.
    from: Option<Timestamp>,
    /// Exclusive.
    to: Option<Timestamp>,
}

impl ExportQuery {
    fn filter(self) -> EventFilter {
        EventFilter {
            actor: self.actor,
            via: self.via,
            action: self.action,
            target_kind: self.target_kind,
            target: self.target,
            service: self.service,
            outcome: self.outcome,
            ip: self.ip,
            request_id: self.request_id,
            from: self.from,
            to: self.to,
        }
    }
}

/// Exports audit events, oldest first
///
/// All events that meet the filter, in the order of the chain, as a stream of lines. NDJSON (the
/// default) holds the records and hashes as they are stored: an export without a filter is verified by
/// `keystead audit verify --export` without the server. CSV is for reading: one line an event, with
/// what could end a line escaped as `\u000a` and an apostrophe before what a spreadsheet could take for
/// a formula. The export itself is the last event of it.
#[utoipa::path(
    get, path = "/v1/audit/export", tag = "audit", operation_id = "export_audit_events",
    params(ExportQuery, AuditReason),
    responses((
        status = 200, description = "The events, a line each",
        content((ExportLine<'static> = "application/x-ndjson"), (String = "text/csv")),
    )),
)]
pub async fn export_audit_events(
    caller: Caller<perm::AuditRead>,
    Query(query): Query<ExportQuery>,
    reason: AuditReason,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    in_order(query.from, query.to)?;
    let at = caller.attribution(reason.0);
    let format = query.format.unwrap_or_default();
    let export = audit.export(at, query.filter(), format).await?;
    let (media_type, name) = match format {
        ExportFormat::Ndjson => ("application/x-ndjson", "audit.ndjson"),
        ExportFormat::Csv => ("text/csv; charset=utf-8", "audit.csv"),
    };
    Ok(HttpResponse::Ok()
        .content_type(media_type)
        .insert_header((
            header::CONTENT_DISPOSITION,
            format!("attachment; filename=\"{name}\""),
        ))
        .streaming(Box::pin(stream::try_unfold(export, page))))
}

/// An export that cannot go on ends without its end, which the client sees.
async fn page(mut export: Export) -> Result<Option<(Bytes, Export)>, actix_web::Error> {
    match export.next().await {
        Ok(text) => Ok(text.map(|text| (Bytes::from(text), export))),
        Err(error) => {
            tracing::error!(%error, "an export of the audit trail ended early");
            Err(Problem::from(error).into())
        }
    }
}
