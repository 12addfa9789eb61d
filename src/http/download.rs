//! Answers that are files of many rows, NDJSON or CSV, written a page at a time.

use actix_web::web::Bytes;
use actix_web::{HttpResponse, HttpResponseBuilder};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::db;
use crate::telemetry::escape;
use crate::text::spreadsheet_cell;

/// In which form rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowFormat {
    #[default]
    Ndjson,
    Csv,
}

/// The answer to a download that is called `name`.
pub fn download(format: RowFormat, name: &str) -> HttpResponseBuilder {
    let (media_type, ending) = match format {
        RowFormat::Ndjson => ("application/x-ndjson", "ndjson"),
        RowFormat::Csv => ("text/csv; charset=utf-8", "csv"),
    };
    let mut response = HttpResponse::Ok();
    response.content_type(media_type).insert_header((
        "Content-Disposition",
        format!("attachment; filename=\"{name}.{ending}\""),
    ));
    response
}

/// Rows of one kind, as they are written.
#[derive(Debug)]
pub struct Table {
    format: RowFormat,
    /// The names of the columns, until they are written.
    names: Option<&'static [&'static str]>,
    written: Vec<u8>,
}

impl Table {
    pub fn new(format: RowFormat, columns: &'static [&'static str]) -> Self {
        Self {
            format,
            names: Some(columns),
            written: Vec::new(),
        }
    }

    /// Adds a row: itself as JSON on one line, whatever a reader takes for the end of one, or its cells, of
    /// which none is a formula and none breaks its line.
    pub fn add<R: Serialize>(
        &mut self,
        row: &R,
        cells: impl FnOnce(&R) -> Vec<String>,
    ) -> db::Result<()> {
        match self.format {
            RowFormat::Ndjson => {
                let json = serde_json::to_string(row).map_err(|error| fault(&error))?;
                // Read as JSON it is the same text.
                self.written.extend_from_slice(escape(&json).as_bytes());
                self.written.push(b'\n');
                Ok(())
            }
            RowFormat::Csv => {
                self.begin()?;
                let cells = cells(row);
                self.line(cells.iter().map(|cell| spreadsheet_cell(cell).into_owned()))
            }
        }
    }

    /// What was written since it was last taken.
    pub fn take(&mut self) -> db::Result<Bytes> {
        if self.format == RowFormat::Csv {
            self.begin()?;
        }
        Ok(Bytes::from(std::mem::take(&mut self.written)))
    }

    fn begin(&mut self) -> db::Result<()> {
        match self.names.take() {
            Some(names) => self.line(names.iter().copied()),
            None => Ok(()),
        }
    }

    fn line(&mut self, cells: impl Iterator<Item: AsRef<[u8]>>) -> db::Result<()> {
        let mut writer = csv::WriterBuilder::new()
            .terminator(csv::Terminator::CRLF)
            .from_writer(&mut self.written);
        writer.write_record(cells).map_err(|error| fault(&error))?;
        writer.flush().map_err(|error| fault(&error))
    }
}

fn fault(error: &dyn std::fmt::Display) -> db::Error {
    db::Error::Corrupt(format!("a row of a download: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(format: RowFormat) -> Vec<String> {
        let mut table = Table::new(format, &["name", "note"]);
        let mut taken = Vec::new();
        for page in [
            &[("a", "=1+1")][..],
            &[],
            &[("b", "x\ny"), ("c", "\"")],
            &[("d", "x\u{2028}\u{85}y\u{202e}")],
        ] {
            for row in page {
                table
                    .add(row, |(name, note)| {
                        vec![(*name).to_owned(), (*note).to_owned()]
                    })
                    .unwrap();
            }
            let bytes = table.take().unwrap();
            taken.push(String::from_utf8(bytes.to_vec()).unwrap());
        }
        taken
    }

    #[test]
    fn a_table_has_its_names_once_and_a_line_for_each_row() {
        assert_eq!(
            rows(RowFormat::Csv),
            [
                "name,note\r\na,'=1+1\r\n",
                "",
                "b,x y\r\nc,\"\"\"\"\r\n",
                "d,x  y\u{202e}\r\n"
            ]
        );
        assert_eq!(
            rows(RowFormat::Ndjson),
            [
                "[\"a\",\"=1+1\"]\n",
                "",
                "[\"b\",\"x\\ny\"]\n[\"c\",\"\\\"\"]\n",
                "[\"d\",\"x\\u2028\\u0085y\\u202e\"]\n"
            ]
        );
        let mut empty = Table::new(RowFormat::Csv, &["name"]);
        assert_eq!(empty.take().unwrap(), "name\r\n");
    }
}
