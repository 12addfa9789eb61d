//! Sums of counts, by what and in which spans is asked.
//!
//! One text for both databases: `$1` is the first parameter in `PostgreSQL`, and in `SQLite` the name
//! of the one that is met first.

use std::fmt::Write as _;

use diesel::sql_types::{BigInt, Text};
use diesel_async::RunQueryDsl;

use crate::db::{self, Conn};
use crate::each;
use crate::usage::counts::{DAY_MS, HOUR_MS};
use crate::usage::query::{Bucket, Dimension};

/// A table of counts: what it can be asked by, and how finely it knows the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Minute,
    Hour,
    Day,
    Ip,
    Scope,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Minute => "usage_minute",
            Self::Hour => "usage_hour",
            Self::Day => "usage_day",
            Self::Ip => "usage_ip",
            Self::Scope => "usage_scope",
        }
    }

    fn time(self) -> &'static str {
        match self {
            Self::Minute | Self::Hour | Self::Day => "start",
            Self::Ip | Self::Scope => "day",
        }
    }

    /// Whether it knows what uses cost.
    pub fn has_cost(self) -> bool {
        match self {
            Self::Minute | Self::Hour | Self::Day => true,
            Self::Ip | Self::Scope => false,
        }
    }

    fn cost(self) -> &'static str {
        if self.has_cost() { "cost" } else { "0" }
    }

    /// How long the spans of its rows are.
    pub fn span_ms(self) -> i64 {
        match self {
            Self::Minute => Bucket::Minute.ms(),
            Self::Hour => HOUR_MS,
            Self::Day | Self::Ip | Self::Scope => DAY_MS,
        }
    }
}

impl Bucket {
    pub fn ms(self) -> i64 {
        match self {
            Self::Minute => 60_000,
            Self::Hour => HOUR_MS,
            Self::Day => DAY_MS,
        }
    }
}

impl Dimension {
    fn column(self) -> &'static str {
        match self {
            Self::Key => "key_id",
            Self::Secret => "secret_id",
            Self::Consumer => "consumer_id",
            Self::Service => "service",
            Self::Outcome => "outcome",
            Self::Operation => "operation",
            Self::Caller => "caller",
            Self::Ip => "ip",
            Self::Scope => "scope",
        }
    }
}

/// What is summed up.
#[derive(Clone, Debug)]
pub struct Sum {
    pub table: Table,
    pub tenant_id: String,
    /// The slugs of the services that the caller may read of; `None` for all.
    pub services: Option<Vec<String>>,
    /// Each with the only value that counts.
    pub only: Vec<(Dimension, String)>,
    pub superseded: Option<bool>,
    /// Sorted, each once.
    pub group_by: Vec<Dimension>,
    pub bucket: Option<Bucket>,
    pub from: i64,
    pub to: i64,
    /// How many groups are told at most: those with the most uses.
    pub groups_max: usize,
}

/// A group in one bucket, or in all of the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SumRow {
    /// In the order of `group_by`.
    pub group: Vec<String>,
    pub start: i64,
    pub uses: i64,
    pub cost: i64,
}

#[derive(diesel::QueryableByName)]
struct Row {
    /// The values of the group as a JSON list.
    #[diesel(sql_type = Text)]
    name: String,
    #[diesel(sql_type = BigInt)]
    start: i64,
    #[diesel(sql_type = BigInt)]
    uses: i64,
    #[diesel(sql_type = BigInt)]
    cost: i64,
}

enum Bind {
    Text(String),
    Int(i64),
}

/// The sums, those of the group with the most uses first, each group's by time.
pub async fn sum(conn: &mut Conn, what: &Sum) -> db::Result<Vec<SumRow>> {
    let (statement, binds) = statement(what, conn);
    let rows: Vec<Row> = each!(conn, c => {
        let mut query = diesel::sql_query(statement).into_boxed();
        for bind in binds {
            query = match bind {
                Bind::Text(text) => query.bind::<Text, _>(text),
                Bind::Int(number) => query.bind::<BigInt, _>(number),
            };
        }
        query.load(c).await
    })?;
    rows.into_iter()
        .map(|row| {
            let group = serde_json::from_str(&row.name)
                .map_err(|error| db::Error::Corrupt(format!("the name of a group: {error}")))?;
            Ok(SumRow {
                group,
                start: row.start,
                uses: row.uses,
                cost: row.cost,
            })
        })
        .collect()
}

/// The condition on the rows, and what is bound in it.
fn condition(what: &Sum) -> (String, Vec<Bind>) {
    let mut binds = Vec::new();
    let mut bind = |value: Bind| {
        binds.push(value);
        format!("${}", binds.len())
    };
    let time = what.table.time();
    let tenant = bind(Bind::Text(what.tenant_id.clone()));
    // Hours have an index for the counts of one key, which no planner shall pass by for the tenant's.
    let is_narrow =
        what.table == Table::Hour && what.only.iter().any(|(one, _)| *one == Dimension::Key);
    let column = if is_narrow {
        "tenant_id || ''"
    } else {
        "tenant_id"
    };
    let mut filter = format!("{column} = {tenant}");
    let _infallible = write!(filter, " AND {time} >= {}", bind(Bind::Int(what.from)));
    let _infallible = write!(filter, " AND {time} < {}", bind(Bind::Int(what.to)));
    for (dimension, value) in &what.only {
        let value = bind(Bind::Text(value.clone()));
        let _infallible = write!(filter, " AND {} = {value}", dimension.column());
    }
    if let Some(superseded) = what.superseded {
        let _infallible = write!(filter, " AND superseded = {}", i32::from(superseded));
    }
    if let Some(services) = &what.services {
        let services: Vec<String> = services
            .iter()
            .map(|service| bind(Bind::Text(service.clone())))
            .collect();
        // An empty list is no SQL; nothing equals NULL.
        let services = if services.is_empty() {
            "NULL".to_owned()
        } else {
            services.join(", ")
        };
        let _infallible = write!(filter, " AND service IN ({services})");
    }
    (filter, binds)
}

/// `groups_max + 1` groups tell whether there are more.
fn statement(what: &Sum, conn: &Conn) -> (String, Vec<Bind>) {
    let (filter, binds) = condition(what);
    let columns: Vec<&str> = what.group_by.iter().map(|one| one.column()).collect();
    // The columns of the group, each behind `prefix`, the whole between `before` and `after`.
    let group = |before: &str, prefix: &str, after: &str| {
        if columns.is_empty() {
            return String::new();
        }
        let named: Vec<String> = columns
            .iter()
            .map(|name| format!("{prefix}{name}"))
            .collect();
        format!("{before}{}{after}", named.join(", "))
    };
    let name = match conn {
        Conn::Sqlite(_) => format!("json_array({})", group("", "s.", "")),
        Conn::Postgres(_) => format!("CAST(json_build_array({}) AS TEXT)", group("", "s.", "")),
    };
    let (table, time, cost) = (what.table.name(), what.table.time(), what.table.cost());
    let sums = format!(
        "CAST(COALESCE(SUM(uses), 0) AS BIGINT) AS uses, \
         CAST(COALESCE(SUM({cost}), 0) AS BIGINT) AS cost"
    );
    let limit = what.groups_max.saturating_add(1);
    let (by, also_by) = (group(" GROUP BY ", "", ""), group(", ", "", ""));
    let text = match what.bucket {
        None => format!(
            "SELECT {name} AS name, CAST({} AS BIGINT) AS start, s.uses, s.cost FROM (\
             SELECT {}{sums} FROM {table} WHERE {filter}{by} ORDER BY uses DESC{also_by} \
             LIMIT {limit}) AS s ORDER BY s.uses DESC{}",
            what.from,
            group("", "", ", "),
            group(", ", "s.", "")
        ),
        Some(bucket) => {
            let start = format!("{time} - {time} % {}", bucket.ms());
            let same = columns
                .iter()
                .map(|name| format!(" AND s.{name} = top.{name}"));
            // The table is read once: both databases keep what is asked of twice.
            format!(
                "WITH bucket AS (SELECT {}{start} AS start_of, {sums} FROM {table} WHERE {filter} \
                 GROUP BY {}{start}), \
                 top AS (SELECT {}SUM(uses) AS total FROM bucket{by} \
                 ORDER BY total DESC{also_by} LIMIT {limit}) \
                 SELECT {name} AS name, CAST(s.start_of AS BIGINT) AS start, s.uses, s.cost \
                 FROM bucket AS s JOIN top ON 1 = 1{} ORDER BY top.total DESC{}, s.start_of",
                group("", "", ", "),
                group("", "", ", "),
                group("", "", ", "),
                same.collect::<String>(),
                group(", ", "s.", "")
            )
        }
    };
    (text, binds)
}
