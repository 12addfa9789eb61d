//! What stands in the database, read past the server.

use diesel::QueryableByName;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use keystead::db::{self, Conn, Db};
use keystead::each;

use super::{Backend, Home};

#[derive(QueryableByName)]
struct Line {
    #[diesel(sql_type = Text)]
    line: String,
}

async fn lines(home: &Home, query: String) -> Vec<String> {
    lines_of(home.eyes(), query).await
}

pub async fn lines_of(db: &Db, query: String) -> Vec<String> {
    let rows: db::Result<Vec<Line>> = db
        .read(async move |conn: &mut Conn| {
            Ok(each!(conn, c => diesel::sql_query(&query).load(c).await)?)
        })
        .await;
    rows.expect("a query")
        .into_iter()
        .map(|row| row.line)
        .collect()
}

/// The changes that stand in the audit trails of all tenants, as action and id of the line, each trail in its
/// order.
pub async fn changes(home: &Home) -> Vec<String> {
    let query = "SELECT action || ' ' || id AS line FROM audit_event WHERE outcome = 'done' \
                 ORDER BY tenant_id, seq";
    lines(home, query.to_owned()).await
}

/// The actions of the changes since `before`.
pub async fn changes_since(home: &Home, before: &[String]) -> Vec<String> {
    let mut lines = changes(home).await;
    lines.retain(|line| !before.contains(line));
    lines
        .iter()
        .filter_map(|line| line.split_once(' '))
        .map(|(action, _)| action.to_owned())
        .collect()
}

/// Every row of a tenant's, in every table that knows tenants or keys.
pub async fn rows_of(home: &Home, tenant: &str) -> Vec<String> {
    let mut rows = Vec::new();
    for (table, columns) in crate::schema::tables() {
        let eyes = if table.starts_with("usage_") {
            home.usage_eyes()
        } else {
            home.eyes()
        };
        let has = |name: &str| columns.iter().any(|(column, _)| column == name);
        let whose = if table == "tenant" {
            format!("id = '{tenant}'")
        } else if has("tenant_id") {
            format!("tenant_id = '{tenant}'")
        } else if has("key_id") {
            format!("key_id IN (SELECT id FROM api_key WHERE tenant_id = '{tenant}')")
        } else {
            continue;
        };
        let values: Vec<String> = columns
            .iter()
            .map(|(column, kind)| {
                let text = match (kind.as_str(), home.backend) {
                    ("bytea", Backend::Sqlite) => format!("hex({column})"),
                    ("bytea", Backend::Postgres) => format!("encode({column}, 'hex')"),
                    _ => format!("CAST({column} AS TEXT)"),
                };
                format!("'{column}=' || coalesce({text}, '') || ' '")
            })
            .collect();
        let query = format!(
            "SELECT '{table} ' || {} AS line FROM {table} WHERE {whose}",
            values.join(" || ")
        );
        rows.extend(lines_of(eyes, query).await);
    }
    rows.sort();
    rows
}

/// Changes the database past every server.
pub async fn execute(home: &Home, statement: &str) {
    execute_on(&home.db(), statement).await;
}

pub async fn execute_on(db: &Db, statement: &str) {
    let statement = statement.to_owned();
    let done: db::Result<usize> = db
        .write(async move |conn: &mut Conn| {
            Ok(each!(conn, c => diesel::sql_query(statement).execute(c).await)?)
        })
        .await;
    done.expect("a statement");
}
