//! Events as a file: a chunk at a time, so that a million of them need no more memory than a few.

use actix_web::web::Bytes;
use actix_web::{HttpResponse, web};
use futures_util::stream;
use serde_json::{Value, json};

use super::wanted;
use crate::audit::{Audit, Change};
use crate::auth::http::{Caller, perm};
use crate::db;
use crate::http::extract::{AuditReason, Query};
use crate::http::problem::Problem;
use crate::page::Position;
use crate::text::spreadsheet_cell;
use crate::usage::Usage;
use crate::usage::event::UsageEventBody;
use crate::usage::query::{EventFilter, ExportQuery, Format};
use crate::usage::store::events::{StoredEvent, Wanted};
use crate::usage::store::walk::{Most, Walked};

/// How many events are read at once.
const CHUNK: i64 = 1_000;

/// How many bytes of them.
const CHUNK_BYTES_MAX: i64 = 4 * 1024 * 1024;

/// The parameter of an export alone.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is used")]
struct FormatParam {
    format: Option<Format>,
}

/// Exports usage events
///
/// All events that meet the filter of `list_usage_events`, newest first. In CSV a cell that a
/// spreadsheet would take for a formula begins with an apostrophe. An answer that breaks off is not
/// complete. The export stands in the audit trail.
#[utoipa::path(
    get, path = "/v1/usage/export", tag = "usage", operation_id = "export_usage_events",
    params(EventFilter, FormatParam, AuditReason),
    responses((
        status = 200,
        description = "The events, one a line",
        content(
            (String = "application/x-ndjson"),
            (String = "text/csv"),
        ),
    )),
)]
pub async fn export_usage_events(
    caller: Caller<perm::UsageRead>,
    query: Query<ExportQuery>,
    reason: AuditReason,
    usage: web::Data<Usage>,
    audit: web::Data<Audit>,
) -> Result<HttpResponse, Problem> {
    let ExportQuery { filter, format } = query.into_inner();
    let asked = json!({"format": format, "filter": shown(&filter)});
    let mut wanted = wanted(&caller, &usage, filter)?;
    // What comes after the export began is not in it.
    wanted.filter.to = Some(wanted.filter.to.map_or(wanted.now, |to| to.min(wanted.now)));
    audit
        .change(
            caller.attribution(reason.0),
            async move |change: &mut Change| {
                change.record("usage.export", ("usage", "events"), None, Some(asked));
                db::Result::Ok(())
            },
        )
        .await?;
    let (kind, name) = match format {
        Format::Ndjson => ("application/x-ndjson", "usage-events.ndjson"),
        Format::Csv => ("text/csv; charset=utf-8", "usage-events.csv"),
    };
    let disposition = format!("attachment; filename=\"{name}\"");
    Ok(HttpResponse::Ok()
        .content_type(kind)
        .insert_header(("Content-Disposition", disposition))
        .streaming(chunks(usage.get_ref().clone(), wanted, format)))
}

/// The filter without what was not asked.
fn shown(filter: &EventFilter) -> Value {
    let mut shown = serde_json::to_value(filter).unwrap_or_default();
    if let Some(members) = shown.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    shown
}

/// Where an export is.
enum At {
    Begin,
    Behind(Position),
    End,
}

fn chunks(
    usage: Usage,
    wanted: Wanted,
    format: Format,
) -> impl stream::Stream<Item = db::Result<Bytes>> {
    stream::unfold(
        (At::Begin, usage, wanted),
        move |(at, usage, wanted)| async move {
            let (after, is_first) = match at {
                At::Begin => (None, true),
                At::Behind(position) => (Some(position), false),
                At::End => return None,
            };
            let chunk = chunk(&usage, &wanted, after, format, is_first).await;
            let (bytes, next) = match chunk {
                Ok((bytes, next)) => (Ok(bytes), next.map_or(At::End, At::Behind)),
                Err(error) => {
                    tracing::error!(%error, "broke off an export of usage events");
                    (Err(error), At::End)
                }
            };
            Some((bytes, (next, usage, wanted)))
        },
    )
}

async fn chunk(
    usage: &Usage,
    wanted: &Wanted,
    after: Option<Position>,
    format: Format,
    is_first: bool,
) -> db::Result<(Bytes, Option<Position>)> {
    let most = Most {
        events: CHUNK,
        bytes: Some(CHUNK_BYTES_MAX),
    };
    let Walked { events, paused } = usage.some_events(wanted.clone(), after, most).await?;
    let is_full = i64::try_from(events.len()).unwrap_or(i64::MAX) >= CHUNK;
    let last = events.last().filter(|_| is_full).map(|event| Position {
        at: event.at,
        id: event.id.clone(),
    });
    let next = last.or(paused);
    let bytes = match format {
        Format::Ndjson => ndjson(events),
        Format::Csv => csv(events, is_first),
    };
    let bytes = bytes.map_err(|error| db::Error::Corrupt(format!("an export: {error:#}")))?;
    Ok((Bytes::from(bytes), next))
}

fn ndjson(events: Vec<StoredEvent>) -> anyhow::Result<Vec<u8>> {
    let mut out = Vec::new();
    for event in events {
        out.extend_from_slice(UsageEventBody::new(event)?.line()?.as_bytes());
    }
    Ok(out)
}

fn csv(events: Vec<StoredEvent>, has_header: bool) -> anyhow::Result<Vec<u8>> {
    let mut out = csv::WriterBuilder::new()
        .terminator(csv::Terminator::CRLF)
        .from_writer(Vec::new());
    if has_header {
        out.write_record(COLUMNS)?;
    }
    for event in events {
        let cells = cells(UsageEventBody::new(event)?)?;
        out.write_record(cells.iter().map(|cell| spreadsheet_cell(cell).into_owned()))?;
    }
    Ok(out.into_inner()?)
}

const COLUMNS: [&str; 25] = [
    "id",
    "at",
    "key_id",
    "secret_id",
    "superseded",
    "consumer_id",
    "service",
    "environment",
    "operation",
    "outcome",
    "required_scopes",
    "any_scopes",
    "cost",
    "ip",
    "method",
    "path",
    "user_agent",
    "context",
    "token_id",
    "subject",
    "actor",
    "caller",
    "request_id",
    "node",
    "latency_us",
];

fn cells(event: UsageEventBody) -> anyhow::Result<[String; COLUMNS.len()]> {
    let context = if event.context.is_empty() {
        String::new()
    } else {
        serde_json::to_string(&event.context)?
    };
    Ok([
        event.id,
        event.at.to_string(),
        event.key_id,
        event.secret_id,
        event.superseded.to_string(),
        event.consumer_id,
        event.service,
        event.environment,
        event.operation,
        event.outcome,
        event.required_scopes.join(" "),
        event.any_scopes.join(" "),
        event.cost.to_string(),
        event.ip.unwrap_or_default(),
        event.method.unwrap_or_default(),
        event.path.unwrap_or_default(),
        event.user_agent.unwrap_or_default(),
        context,
        event.token_id.unwrap_or_default(),
        event.subject.unwrap_or_default(),
        event.actor.unwrap_or_default(),
        event.caller,
        event.request_id,
        event.node,
        event.latency_us.to_string(),
    ])
}
