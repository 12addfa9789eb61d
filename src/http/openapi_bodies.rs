//! Checks of the `OpenAPI` document: its request bodies, and what it refers to.

use std::collections::BTreeSet;

use serde_json::Value;
use utoipa::openapi::OpenApi;

use super::operations;

/// Schemas of request bodies that would take members they do not know, by name: there must be none.
///
/// A schema that is a map by its nature has `additionalProperties` and is not meant.
pub fn open_request_schemas(openapi: &OpenApi) -> Vec<String> {
    let document = serde_json::to_value(openapi).unwrap_or_default();
    let mut open = BTreeSet::new();
    for item in openapi.paths.paths.values() {
        for (_, operation) in operations::operations(item) {
            let body = serde_json::to_value(&operation.request_body).unwrap_or_default();
            let id = operation.operation_id.clone().unwrap_or_default();
            find_open(&document, &body, &id, &mut open, 0);
        }
    }
    open.into_iter().collect()
}

/// References of the document to what is not in it: there must be none.
pub fn dangling_references(openapi: &OpenApi) -> Vec<String> {
    let document = serde_json::to_value(openapi).unwrap_or_default();
    let mut dangling = BTreeSet::new();
    find_dangling(&document, &document, &mut dangling);
    dangling.into_iter().collect()
}

fn find_dangling(document: &Value, value: &Value, dangling: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                let place = target.strip_prefix('#');
                if place.and_then(|place| document.pointer(place)).is_none() {
                    dangling.insert(target.clone());
                }
            }
            for member in members.values() {
                find_dangling(document, member, dangling);
            }
        }
        Value::Array(items) => {
            for item in items {
                find_dangling(document, item, dangling);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn find_open(
    document: &Value,
    value: &Value,
    place: &str,
    open: &mut BTreeSet<String>,
    depth: usize,
) {
    // Deeper than any body of ours: a schema that refers to itself ends here.
    if depth > 24 {
        return;
    }
    match value {
        Value::Object(members) => {
            if let Some(Value::String(target)) = members.get("$ref") {
                let name = target.rsplit('/').next().unwrap_or_default();
                if let Some(schema) = document.pointer(target.trim_start_matches('#')) {
                    find_open(document, schema, name, open, depth + 1);
                }
            }
            let is_object = members.get("type").is_some_and(|kind| kind == "object");
            if is_object
                && members.contains_key("properties")
                && !members.contains_key("additionalProperties")
            {
                open.insert(place.to_owned());
            }
            for (name, member) in members {
                if name != "example" && name != "examples" {
                    find_open(document, member, place, open, depth + 1);
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                find_open(document, item, place, open, depth + 1);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
