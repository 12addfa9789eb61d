//! Many rows of one table at once.
//!
//! Rows are gathered in one piece of memory, which goes to the thread of a `SQLite` connection, where a
//! statement that stays prepared is run for each, or to `PostgreSQL` as an array for each column, by one
//! statement. Rows come sorted by their primary key, so that two nodes never wait for each other in a
//! circle.

use std::fmt::Write as _;

use diesel::query_builder::{AstPass, QueryFragment, QueryId};
use diesel::sql_types::{Array, BigInt, Integer, Nullable, Text};
use diesel::sqlite::{Sqlite, SqliteConnection};
use diesel::{QueryResult, RunQueryDsl as _};
use tracing::Instrument as _;

use crate::db::{self, Conn};
use crate::usage::pauses::{Pauses, with_pauses};

/// So many rows by one statement of `PostgreSQL`: it is put together in a fraction of a millisecond, in which
/// whoever answers a validation has to wait.
const ROWS_MAX: usize = 250;

/// So many cells go into their columns in some ten microseconds.
const CELLS_A_PAUSE: u32 = 1_000;

/// A table as rows are added to it.
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: &'static [(&'static str, Kind)],
    /// What is done with a row that is there: `ON CONFLICT ..`, or nothing.
    pub(super) conflict: &'static str,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Or null.
    Text,
    Big,
    Integer,
}

/// Rows, value by value.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// All texts, one behind the other.
    text: String,
    values: Vec<Value>,
}

#[derive(Clone, Copy, Debug)]
enum Value {
    /// Ends here in the texts, and begins where the one before it ended.
    Text(usize),
    Null,
    Number(i64),
}

/// A value as it is bound.
#[derive(Clone, Copy, Debug)]
enum Cell<'a> {
    Text(&'a str),
    Null,
    Number(i64),
}

impl Rows {
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self.values.push(Value::Text(self.text.len()));
        self
    }

    pub(super) fn text_or_null(&mut self, text: Option<&str>) -> &mut Self {
        if let Some(text) = text {
            return self.text(text);
        }
        self.values.push(Value::Null);
        self
    }

    pub(super) fn number(&mut self, number: i64) -> &mut Self {
        self.values.push(Value::Number(number));
        self
    }

    fn cells(&self) -> impl Iterator<Item = Cell<'_>> {
        let mut begin = 0;
        self.values.iter().map(move |value| match value {
            Value::Text(end) => {
                let text = self.text.get(begin..*end).unwrap_or_default();
                begin = *end;
                Cell::Text(text)
            }
            Value::Null => Cell::Null,
            Value::Number(number) => Cell::Number(*number),
        })
    }
}

impl Table {
    fn into(&self) -> String {
        let names: Vec<&str> = self.columns.iter().map(|(name, _)| *name).collect();
        format!("INSERT INTO {} ({})", self.name, names.join(", "))
    }

    /// Adds `rows`, whose values are those of the columns, row by row.
    pub(super) async fn put(&'static self, conn: &mut Conn, rows: Rows) -> db::Result<()> {
        let span = tracing::trace_span!("put", table = self.name);
        match conn {
            Conn::Sqlite(c) => {
                let put = (**c).spawn_blocking(move |conn| self.put_each(conn, &rows));
                Ok(put.instrument(span).await?)
            }
            Conn::Postgres(c) => Ok(self.put_arrays(c, &rows).instrument(span).await?),
        }
    }

    fn put_each(&self, conn: &mut SqliteConnection, rows: &Rows) -> QueryResult<()> {
        let before = format!("{} VALUES (", self.into());
        let behind = format!(") {}", self.conflict);
        let mut cells = rows.cells();
        let mut row = Vec::with_capacity(self.columns.len());
        // A row takes some ten microseconds.
        let mut pauses = Pauses::each(1);
        loop {
            row.clear();
            row.extend(cells.by_ref().take(self.columns.len()));
            if row.is_empty() {
                return Ok(());
            }
            Insert {
                before: &before,
                row: &row,
                behind: &behind,
            }
            .execute(conn)?;
            pauses.next();
        }
    }

    async fn put_arrays(
        &self,
        conn: &mut diesel_async::AsyncPgConnection,
        rows: &Rows,
    ) -> QueryResult<()> {
        let mut sql = format!("{} SELECT * FROM UNNEST(", self.into());
        for (place, (_, kind)) in (1..).zip(self.columns) {
            let comma = if place == 1 { "" } else { ", " };
            let kind = match kind {
                Kind::Text => "text",
                Kind::Big => "bigint",
                Kind::Integer => "integer",
            };
            let _infallible = write!(sql, "{comma}${place}::{kind}[]");
        }
        let _infallible = write!(sql, ") {}", self.conflict);
        let mut cells = rows.cells().peekable();
        while cells.peek().is_some() {
            let mut columns: Vec<Column<'_>> = self.columns.iter().map(Column::new).collect();
            let some = cells.by_ref().take(ROWS_MAX * self.columns.len());
            for cell in with_pauses(CELLS_A_PAUSE, some).enumerate() {
                if let Some(column) = columns.get_mut(cell.0 % self.columns.len()) {
                    column.push(cell.1);
                }
            }
            let mut query = diesel::sql_query(sql.as_str()).into_boxed();
            for column in columns {
                query = match column {
                    Column::Text(texts) => query.bind::<Array<Nullable<Text>>, _>(texts),
                    Column::Big(numbers) => query.bind::<Array<BigInt>, _>(numbers),
                    Column::Integer(numbers) => query.bind::<Array<Integer>, _>(numbers),
                };
            }
            diesel_async::RunQueryDsl::execute(query, conn).await?;
        }
        Ok(())
    }
}

/// A column of some rows.
enum Column<'a> {
    Text(Vec<Option<&'a str>>),
    Big(Vec<i64>),
    Integer(Vec<i32>),
}

impl<'a> Column<'a> {
    fn new((_, kind): &(&'static str, Kind)) -> Self {
        match kind {
            Kind::Text => Self::Text(Vec::new()),
            Kind::Big => Self::Big(Vec::new()),
            Kind::Integer => Self::Integer(Vec::new()),
        }
    }

    /// A value of another kind is the one that stands for nothing.
    fn push(&mut self, cell: Cell<'a>) {
        match (self, cell) {
            (Self::Text(texts), Cell::Text(text)) => texts.push(Some(text)),
            (Self::Text(texts), Cell::Null | Cell::Number(_)) => texts.push(None),
            (Self::Big(numbers), Cell::Number(number)) => numbers.push(number),
            (Self::Big(numbers), Cell::Null | Cell::Text(_)) => numbers.push(0),
            (Self::Integer(numbers), Cell::Number(number)) => {
                numbers.push(i32::try_from(number).unwrap_or(i32::MAX));
            }
            (Self::Integer(numbers), Cell::Null | Cell::Text(_)) => numbers.push(0),
        }
    }
}

/// One row by one statement. Its text is the same for each row of a table, so that it is prepared once.
struct Insert<'a> {
    before: &'a str,
    row: &'a [Cell<'a>],
    behind: &'a str,
}

static NULL: Option<String> = None;

impl QueryFragment<Sqlite> for Insert<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Sqlite>) -> QueryResult<()> {
        out.push_sql(self.before);
        for (place, cell) in self.row.iter().enumerate() {
            if place > 0 {
                out.push_sql(", ");
            }
            match cell {
                Cell::Text(text) => out.push_bind_param::<Text, str>(text)?,
                Cell::Null => out.push_bind_param::<Nullable<Text>, Option<String>>(&NULL)?,
                Cell::Number(number) => out.push_bind_param::<BigInt, i64>(number)?,
            }
        }
        out.push_sql(self.behind);
        Ok(())
    }
}

impl QueryId for Insert<'_> {
    type QueryId = ();

    const HAS_STATIC_QUERY_ID: bool = false;
}

impl diesel::RunQueryDsl<SqliteConnection> for Insert<'_> {}

/// As a database holds it: a count beyond that is one that cannot be, and it would end all adding.
pub(super) fn bounded(count: u64) -> i64 {
    const MAX: i64 = 1 << 53;
    i64::try_from(count).map_or(MAX, |count| count.min(MAX))
}
