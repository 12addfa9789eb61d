//! Exports: the lines of a chain in its order, a page at a time, as NDJSON or CSV.
//!
//! NDJSON holds what is stored, so that it can be verified by itself. CSV is for spreadsheets: one
//! line an event, whatever stands in it, and no cell that a spreadsheet takes for a formula.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::chain::Event;
use super::store::list::EventFilter;
use super::store::{self, Stored, export};
use super::{Actor, Attribution, Audit, Change};
use crate::db::{self, Conn, Db};
use crate::id::{AuditId, TenantId};
use crate::page::fitting;
use crate::telemetry::escape;
use crate::text::without_formulas;

/// Lines that are held in memory at a time.
const PAGE: i64 = 500;

/// Bytes of them, of which one line alone may take more.
const PAGE_BYTES_MAX: i64 = 4 * 1024 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    #[default]
    Ndjson,
    Csv,
}

/// One line of an export as NDJSON: as it is stored, so that its hash can be computed again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "AuditExportLine")]
pub struct ExportLine<'a> {
    pub seq: i64,
    /// The RFC 8785 canonical JSON of the event, as text: these bytes are what is hashed.
    pub record: Cow<'a, str>,
    /// In hexadecimal.
    pub prev_hash: Cow<'a, str>,
    /// SHA-256 over the bytes of `prev_hash` and `record`, in hexadecimal.
    pub hash: Cow<'a, str>,
}

/// An export under way.
pub struct Export {
    db: Db,
    tenant: TenantId,
    filter: EventFilter,
    format: ExportFormat,
    /// The number of the last line given out, and where it ends.
    after: Option<i64>,
    to: i64,
    begun: bool,
}

impl Audit {
    /// Records that somebody exports, and begins: up to that very line.
    ///
    /// # Errors
    /// What cannot be recorded is not exported.
    pub async fn export(
        &self,
        at: Attribution,
        filter: EventFilter,
        format: ExportFormat,
    ) -> db::Result<Export> {
        let tenant = at.tenant.id.clone();
        let own = AuditId::new(&self.clock, &self.entropy);
        let (id, called, wanted) = (tenant.clone(), own.clone(), narrowed(&filter));
        self.change(at, async move |change: &mut Change| {
            let what = json!({"format": format, "filter": wanted});
            change.record("audit.export", ("tenant", id.as_str()), None, Some(what));
            change.called(called);
            db::Result::Ok(())
        })
        .await?;
        let id = tenant.clone();
        // Not the head: others' lines may stand behind ours by now.
        let to = self
            .db
            .read(async move |conn: &mut Conn| store::seq_of(conn, &id, &own).await)
            .await?;
        let to = to.ok_or_else(|| {
            db::Error::Corrupt(format!("the audit event of an export of {tenant} is gone"))
        })?;
        Ok(Export {
            db: self.db.clone(),
            tenant,
            filter,
            format,
            after: None,
            to,
            begun: false,
        })
    }
}

/// The parts of a filter that are set.
fn narrowed(filter: &EventFilter) -> Value {
    let mut filter = json!(filter);
    if let Some(members) = filter.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    filter
}

impl Export {
    /// The text that comes next; `None` at the end.
    pub async fn next(&mut self) -> db::Result<Option<String>> {
        let (tenant, filter) = (self.tenant.clone(), self.filter.clone());
        let stretch = (self.after, self.to);
        let whose = tenant.to_string();
        let lines = self
            .db
            .long(
                &whose,
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    // Before they are read: a change of a large catalogue is as much as many others.
                    let sizes = export::sizes_of(conn, &tenant, &filter, stretch, PAGE).await?;
                    let fit = fitting(&sizes, PAGE_BYTES_MAX).max(1);
                    let fit = i64::try_from(fit).unwrap_or(PAGE);
                    export::stretch_of(conn, &tenant, &filter, stretch, fit).await
                },
            )
            .await?;
        let is_first = !std::mem::replace(&mut self.begun, true);
        let Some(last) = lines.last() else {
            let empty = is_first && self.format == ExportFormat::Csv;
            return if empty {
                csv(&[], true).map(Some)
            } else {
                Ok(None)
            };
        };
        self.after = Some(store::behind(self.after, last.seq));
        match self.format {
            ExportFormat::Ndjson => ndjson(&lines).map(Some),
            ExportFormat::Csv => csv(&lines, is_first).map(Some),
        }
    }
}

fn ndjson(lines: &[Stored]) -> db::Result<String> {
    let mut text = String::new();
    for line in lines {
        let line = ExportLine {
            seq: line.seq,
            record: Cow::Borrowed(&line.record),
            prev_hash: hex::encode(&line.prev_hash).into(),
            hash: hex::encode(&line.hash).into(),
        };
        let line = serde_json::to_string(&line)
            .map_err(|error| db::Error::Corrupt(format!("an audit event: {error}")))?;
        // Read as JSON it is the same text.
        text.push_str(&escape(&line));
        text.push('\n');
    }
    Ok(text)
}

/// The first line of the CSV.
pub(super) const COLUMNS: [&str; 20] = [
    "seq",
    "id",
    "at",
    "tenant",
    "actor",
    "via",
    "home_tenant",
    "action",
    "target_kind",
    "target_id",
    "outcome",
    "services",
    "before",
    "after",
    "reason",
    "request_id",
    "ip",
    "code",
    "count",
    "hash",
];

fn csv(lines: &[Stored], with_names: bool) -> db::Result<String> {
    let fault = |error: &dyn std::fmt::Display| db::Error::Corrupt(format!("a CSV line: {error}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    if with_names {
        writer
            .write_record(COLUMNS)
            .map_err(|error| fault(&error))?;
    }
    for line in lines {
        let cells = cells(line);
        let cells = cells.iter().map(|text| cell(text).into_owned());
        writer.write_record(cells).map_err(|error| fault(&error))?;
    }
    let bytes = writer.into_inner().map_err(|error| fault(&error))?;
    String::from_utf8(bytes).map_err(|error| fault(&error))
}

/// What the record says; of one that cannot be read, what the columns beside it say.
fn cells(line: &Stored) -> [String; COLUMNS.len()] {
    let event: Option<Event> = serde_json::from_str(&line.record).ok();
    let said = |of: fn(&Event) -> Option<String>| event.as_ref().and_then(of).unwrap_or_default();
    let json = |value: Option<&Value>| value.map(ToString::to_string);
    [
        line.seq.to_string(),
        line.id.clone(),
        line.at.to_string(),
        said(|event| Some(event.tenant.clone())),
        line.actor.clone(),
        said(|event| event.via.as_ref().map(Actor::name)),
        said(|event| event.home_tenant.clone()),
        line.action.clone(),
        line.target_kind.clone(),
        line.target_id.clone(),
        line.outcome.clone(),
        said(|event| event.services.as_ref().map(|services| services.join(" "))),
        json(event.as_ref().and_then(|event| event.before.as_ref())).unwrap_or_default(),
        json(event.as_ref().and_then(|event| event.after.as_ref())).unwrap_or_default(),
        said(|event| event.reason.clone()),
        line.request_id.clone().unwrap_or_default(),
        line.ip.clone().unwrap_or_default(),
        said(|event| event.code.clone()),
        said(|event| event.count.map(|count| count.to_string())),
        hex::encode(&line.hash),
    ]
}

/// A cell that ends no line, and that no spreadsheet computes.
fn cell(text: &str) -> Cow<'_, str> {
    match without_formulas(text) {
        Cow::Borrowed(text) => escape(text),
        Cow::Owned(text) => Cow::Owned(escape(&text).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_begins_a_formula_or_ends_a_line() {
        for (text, shown) in [
            ("plain", "plain"),
            ("", ""),
            ("=HYPERLINK(\"x\")", "'=HYPERLINK(\"x\")"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\t=1", "'\\u0009=1"),
            ("\r=1", "'\\u000d=1"),
            ("a\nb", "a\\u000ab"),
            ("a\u{2028}b", "a\\u2028b"),
            ("\u{ff1d}1", "'\u{ff1d}1"),
            (" =1", "' =1"),
            ("a;=1", "a;'=1"),
        ] {
            assert_eq!(cell(text), shown);
        }
    }
}
