//! Both databases have the same tables, and they are the ones the queries are compiled for.
//!
//! What is compared is read from the live databases, one line a fact, such as
//! `column tenant.slug text not null` or `index secret_key on secret (key_id)`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diesel::prelude::*;
use diesel::sql_types::Text;
use diesel_async::RunQueryDsl;
use keystead::db::{self, Conn, Db};
use keystead::each;

use crate::support::{Backend, Home, both};

#[test]
fn both_databases_end_in_the_same_tables() {
    let (sqlite, postgres) = (facts(Backend::Sqlite), facts(Backend::Postgres));
    assert!(sqlite.len() > 100, "{sqlite:#?}");
    let differing: Vec<_> = sqlite.symmetric_difference(&postgres).collect();
    assert!(differing.is_empty(), "only in one database: {differing:#?}");
}

both!(the_queries_are_compiled_for_the_tables_there_are);
async fn the_queries_are_compiled_for_the_tables_there_are(home: Home) {
    let compiled = compiled(SOURCE);
    let live: BTreeSet<String> = live(&home)
        .await
        .into_iter()
        .filter(|fact| fact.starts_with("column ") || fact.starts_with("primary key "))
        .collect();
    let differing: Vec<_> = compiled.symmetric_difference(&live).collect();
    assert!(
        differing.is_empty(),
        "only in one of the two: {differing:#?}"
    );
}

both!(nodes_that_start_together_migrate_once);
async fn nodes_that_start_together_migrate_once(home: Home) {
    let empty = home.empty().await;
    let nodes: Vec<(Db, Db)> = (0..5).map(|_| (empty.db(), empty.usage_db())).collect();
    let starts = nodes.iter().map(|(db, usage)| db::migrate_all(db, usage));
    let applied = futures_util::future::join_all(starts).await;
    let mut versions: Vec<String> = Vec::new();
    for node in applied {
        versions.extend(node.expect("every node starts"));
    }
    let folders: &[&str] = match empty.backend {
        Backend::Sqlite => &["sqlite", "sqlite_usage"],
        Backend::Postgres => &["postgres"],
    };
    let migrations = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let known = |folder| std::fs::read_dir(migrations.join(folder)).unwrap().count();
    let known: usize = folders.iter().map(known).sum();
    assert_eq!(versions.len(), known, "{versions:?}");
    assert_eq!(live(&empty).await, live(&home).await);
    assert!(empty.db().migrate().await.unwrap().is_empty());
}

fn facts(backend: Backend) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    crate::support::run(backend, async |home| facts = live(&home).await);
    facts
}

#[derive(QueryableByName)]
struct Fact {
    #[diesel(sql_type = Text)]
    fact: String,
}

async fn live(home: &Home) -> BTreeSet<String> {
    let queries = match home.backend {
        Backend::Sqlite => SQLITE,
        Backend::Postgres => POSTGRES,
    };
    let mut facts = BTreeSet::new();
    for query in queries {
        for eyes in [home.eyes(), home.usage_eyes()] {
            let rows = eyes
                .read(async move |conn: &mut Conn| -> db::Result<Vec<Fact>> {
                    Ok(each!(conn, c => diesel::sql_query(query).load(c).await)?)
                })
                .await
                .unwrap_or_else(|error| panic!("{error:?}: {query}"));
            facts.extend(rows.into_iter().map(|row| row.fact));
        }
    }
    facts
}

const SQLITE: [&str; 3] = [
    r#"SELECT 'column ' || t.name || '.' || c.name || ' '
           || CASE lower(c.type) WHEN 'blob' THEN 'bytea' ELSE lower(c.type) END
           || iif(c."notnull", ' not null', '') AS fact
       FROM sqlite_master t JOIN pragma_table_info(t.name) c
       WHERE t.type = 'table' AND t.name NOT LIKE '\_\_%' ESCAPE '\'"#,
    r#"SELECT CASE WHEN i.origin = 'pk' THEN 'primary key'
                   WHEN i.origin = 'u' THEN 'unique'
                   ELSE iif(i."unique", 'unique ', '') || 'index ' || i.name END
           || ' on ' || t.name || ' ('
           || (SELECT group_concat(name, ', ') FROM
               (SELECT c.name FROM pragma_index_info(i.name) c ORDER BY c.seqno))
           || ')' || iif(i.partial, ' partial', '') AS fact
       FROM sqlite_master t JOIN pragma_index_list(t.name) i
       WHERE t.type = 'table' AND t.name NOT LIKE '\_\_%' ESCAPE '\'
       UNION SELECT 'primary key on ' || t.name || ' (' || c.name || ')'
       FROM sqlite_master t JOIN pragma_table_info(t.name) c
       WHERE t.type = 'table' AND t.name NOT LIKE '\_\_%' ESCAPE '\'
         AND c.pk = 1 AND c.type = 'INTEGER'
         AND (SELECT count(*) FROM pragma_table_info(t.name) k WHERE k.pk > 0) = 1"#,
    r#"SELECT 'foreign key ' || t.name || '.' || k."from" || ' to ' || k."table" || '.' || k."to"
           AS fact
       FROM sqlite_master t JOIN pragma_foreign_key_list(t.name) k WHERE t.type = 'table'"#,
];

const POSTGRES: [&str; 3] = [
    r"SELECT 'column ' || t.relname || '.' || c.attname || ' ' || format_type(c.atttypid, c.atttypmod)
           || CASE WHEN c.attnotnull THEN ' not null' ELSE '' END AS fact
       FROM pg_class t JOIN pg_attribute c ON c.attrelid = t.oid
       WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p')
         AND c.attnum > 0 AND NOT c.attisdropped AND NOT t.relispartition AND t.relname NOT LIKE '\_\_%'",
    r"SELECT CASE WHEN i.indisprimary THEN 'primary key'
                   WHEN k.oid IS NOT NULL THEN 'unique'
                   ELSE CASE WHEN i.indisunique THEN 'unique ' ELSE '' END || 'index ' || n.relname
              END
           || ' on ' || t.relname || ' ('
           || (SELECT string_agg(pg_get_indexdef(i.indexrelid, c, true), ', ' ORDER BY c)
               FROM generate_series(1, i.indnkeyatts::int) c)
           || ')' || CASE WHEN i.indpred IS NULL THEN '' ELSE ' partial' END AS fact
       FROM pg_index i
       JOIN pg_class t ON t.oid = i.indrelid JOIN pg_class n ON n.oid = i.indexrelid
       LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.contype = 'u'
       WHERE t.relnamespace = 'public'::regnamespace AND NOT t.relispartition
         AND t.relname NOT LIKE '\_\_%'",
    r"SELECT 'foreign key ' || t.relname || '.' || c.attname || ' to ' || f.relname || '.' || g.attname
           AS fact
       FROM pg_constraint k
       JOIN pg_class t ON t.oid = k.conrelid JOIN pg_class f ON f.oid = k.confrelid
       CROSS JOIN LATERAL unnest(k.conkey, k.confkey) AS pair (near, far)
       JOIN pg_attribute c ON c.attrelid = t.oid AND c.attnum = pair.near
       JOIN pg_attribute g ON g.attrelid = f.oid AND g.attnum = pair.far
       WHERE k.contype = 'f'",
];

/// The tables of `diesel::table!`, each with its columns and their types in SQL.
pub fn tables() -> BTreeMap<String, Vec<(String, String)>> {
    let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for fact in compiled(SOURCE) {
        if let Some(column) = fact.strip_prefix("column ")
            && let Some((name, kind)) = column.split_once(' ')
            && let Some((table, column)) = name.split_once('.')
        {
            let kind = kind.trim_end_matches(" not null").to_owned();
            let columns = tables.entry(table.to_owned()).or_default();
            columns.push((column.to_owned(), kind));
        }
    }
    tables
}

const SOURCE: &str = include_str!("../../src/db/schema.rs");

/// The columns and primary keys of `diesel::table!`, as facts.
fn compiled(source: &str) -> BTreeSet<String> {
    let mut facts = BTreeSet::new();
    let mut table = String::new();
    for line in source.lines().map(str::trim) {
        if let Some((name, rest)) = line.split_once(" (")
            && let Some(key) = rest.strip_suffix(") {")
        {
            name.clone_into(&mut table);
            facts.insert(format!("primary key on {table} ({key})"));
        } else if let Some((column, kind)) = line.split_once(" -> ") {
            let kind = kind.trim_end_matches(',');
            let (kind, null) = match kind.strip_prefix("Nullable<") {
                Some(kind) => (kind.trim_end_matches('>'), ""),
                None => (kind, " not null"),
            };
            let kind = match kind {
                "Text" => "text",
                "BigInt" => "bigint",
                "Integer" => "integer",
                "Binary" => "bytea",
                other => panic!("{table}.{column}: what is {other} in SQL?"),
            };
            facts.insert(format!("column {table}.{column} {kind}{null}"));
        }
    }
    facts
}
