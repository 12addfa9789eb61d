//! The rules of docs/architecture.md, kept: who may import whom, and what every file has.

use std::path::{Path, PathBuf};

/// Foundations: everybody may use them, they use only each other.
const FOUNDATIONS: &[&str] = &[
    "cache",
    "catalogue",
    "clock",
    "config",
    "db",
    "each",
    "entropy",
    "error",
    "id",
    "insert_all",
    "json",
    "limits",
    "master",
    "metadata",
    "metrics",
    "outbound",
    "page",
    "patch",
    "patience",
    "process",
    "ratelimit",
    "redis_link",
    "rights",
    "schema",
    "scope",
    "string_schema",
    "telemetry",
    "text",
    "time",
];

/// The files that put everything together.
const ROOTS: &[&str] = &["app", "cli", "lib", "main", "routes"];

/// Each feature, and the features it points at. Arrows add up: what my neighbour may use, I may.
const ARROWS: &[(&str, &[&str])] = &[
    ("audit", &[]),
    ("usage", &["audit"]),
    ("idempotency", &["audit"]),
    ("services", &["usage", "idempotency", "audit"]),
    ("consumers", &["idempotency", "audit"]),
    ("tenants", &["services", "idempotency", "audit"]),
    ("keys", &["services", "consumers", "tenants"]),
    ("reviews", &["keys", "usage"]),
    ("validation", &["keys", "usage"]),
    ("auth", &["validation"]),
    ("oauth", &["auth"]),
    ("gateway", &["validation", "oauth"]),
    ("http", &[]),
];

/// What queries beside `store.rs` and `db/`: the claims that are looked up and stored inside a change.
const QUERYING: &[&str] = &["idempotency.rs"];

fn reaches(from: &str, to: &str) -> bool {
    ARROWS
        .iter()
        .filter(|(name, _)| *name == from)
        .any(|(_, next)| next.iter().any(|step| *step == to || reaches(step, to)))
}

/// Everything that is wrong with one file of `src`, named by its path below `src`.
fn faults(path: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !source.starts_with("//! ") {
        faults.push(format!("{path}: does not say what it is (//!)"));
    }
    let module = path.split(['/', '.']).next().unwrap_or_default();
    let file = path.rsplit('/').next().unwrap_or_default();
    let is_root = ROOTS.contains(&module);
    let is_known = FOUNDATIONS.contains(&module) || ARROWS.iter().any(|(name, _)| *name == module);
    if !is_root && !is_known {
        faults.push(format!("{path}: {module} has no place among the arrows"));
    }
    // A layer is a file, or a folder when it is large.
    let layer = |name: &str| {
        let mut parts = path.split(['/', '.']).skip(1);
        parts.any(|part| part == name)
    };
    let is_handler = layer("http");
    let speaks_http = is_root || module == "http" || is_handler;
    let speaks_sql = module == "db" || layer("store") || QUERYING.contains(&path);
    // `super` this many times, and one is at the root of the crate.
    let depth = path.split('/').count() - usize::from(file == "mod.rs");

    for (number, line) in code(source) {
        let mut fault = |what: String| faults.push(format!("{path}:{number}: {what}"));
        if line.contains("unsafe ") {
            fault("unsafe".to_owned());
        }
        if line.contains("crate::{") || line.contains(&"super::".repeat(depth)) {
            fault("write one path a line, from crate::".to_owned());
            continue;
        }
        if line.contains("actix_") && !speaks_http {
            fault("only http.rs speaks actix".to_owned());
        }
        let queries = ["diesel::prelude", "diesel_async", "db::schema", "each!("];
        if queries.iter().any(|word| line.contains(word)) && !speaks_sql {
            fault("only store.rs speaks diesel".to_owned());
        }
        for used in imports(line) {
            let allowed = is_root
                || used == module
                || FOUNDATIONS.contains(&used)
                || reaches(module, used)
                || (is_handler && ["auth", "http"].contains(&used));
            if !allowed {
                fault(format!("{module} may not use {used}"));
            }
        }
    }
    faults
}

/// The lines that are neither comments nor unit tests, numbered from 1.
fn code(source: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..)
        .zip(source.lines())
        .take_while(|(_, line)| *line != "#[cfg(test)]")
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// The modules that a line names by `crate::`.
fn imports(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

fn source_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(source_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

#[test]
fn every_import_follows_an_arrow() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = source_files(&src);
    assert!(files.len() > 20, "{files:?}");
    let mut all = Vec::new();
    for file in files {
        let path = file
            .strip_prefix(&src)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        // Unit tests that are a file of their own stand where they like.
        if path.ends_with("tests.rs") {
            continue;
        }
        all.extend(faults(&path, &std::fs::read_to_string(&file).unwrap()));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn every_test_file_says_what_it_is() {
    for file in source_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")) {
        let source = std::fs::read_to_string(&file).unwrap();
        assert!(source.starts_with("//! "), "{}", file.display());
    }
}

#[test]
fn a_file_that_breaks_the_rules_is_found() {
    let good = "//! Keys.\nuse crate::services::Service;\nuse crate::db::Db;\n";
    assert_eq!(faults("keys/issue.rs", good), Vec::<String>::new());
    for (path, bad) in [
        ("keys/issue.rs", "use crate::db::Db;"),
        ("keys/issue.rs", "//! K.\nuse crate::gateway::authorize;"),
        (
            "keys/issue.rs",
            "//! K.\nlet p = crate::http::problem::Problem::new();",
        ),
        ("keys/issue.rs", "//! K.\nuse actix_web::web;"),
        ("keys/issue.rs", "//! K.\nuse diesel::prelude::*;"),
        ("keys/issue.rs", "//! K.\nuse super::super::gateway;"),
        ("keys/mod.rs", "//! K.\nuse super::gateway;"),
        ("keys/http.rs", "//! K.\nuse crate::gateway::authorize;"),
        ("keys/http.rs", "//! K.\neach!(conn, c => c)"),
        ("services/service.rs", "//! S.\nuse crate::{keys, tenants};"),
        ("services/store.rs", "//! S.\nuse crate::keys::store;"),
        ("audit/query.rs", "//! A.\nuse crate::auth::rights::Rights;"),
        ("clock.rs", "//! C.\nuse crate::keys::Key;"),
        ("http/problem.rs", "//! H.\nuse crate::keys::Key;"),
        ("billing/mod.rs", "//! Nobody knows this feature."),
        ("keys/issue.rs", "//! K.\nunsafe { boom() }"),
    ] {
        assert_eq!(faults(path, bad).len(), 1, "{path}: {bad}");
    }
    assert!(reaches("auth", "consumers") && !reaches("consumers", "auth"));
}
