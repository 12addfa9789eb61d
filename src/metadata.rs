//! Metadata: what the users of Keystead note on an object, a small JSON object we only keep.

use serde::{Deserialize, Deserializer, Serialize, de};
use serde_json::{Map, Value};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};

use crate::db;
use crate::json;
use crate::text::{check_no_key, has_control};

/// As compact JSON.
const BYTES_MAX: usize = 4096;

/// The object itself is the first level.
const DEPTH_MAX: usize = 4;

/// Beyond it a JSON number is not the same integer everywhere (RFC 7493 §2.2), in the canonical
/// JSON of the audit trail neither.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// A JSON object of at most 4 KiB and four levels, without control characters and keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Metadata(Map<String, Value>);

/// A merge patch for [`Metadata`]; what comes out of it is checked when it is applied.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct MetadataPatch(Map<String, Value>);

impl Metadata {
    /// # Errors
    /// What the object must be.
    pub fn new(map: Map<String, Value>) -> Result<Self, &'static str> {
        check_object(&map, DEPTH_MAX)?;
        let this = Self(map);
        if this.to_text().len() > BYTES_MAX {
            return Err("must have at most 4096 bytes as JSON");
        }
        Ok(this)
    }

    /// # Errors
    /// What the object must be after the patch.
    pub fn patched(&self, patch: MetadataPatch) -> Result<Self, &'static str> {
        let mut map = self.0.clone();
        json::merge(&mut map, patch.0);
        Self::new(map)
    }

    /// Compact JSON, as it is stored.
    pub fn to_text(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }

    /// Reads what [`Metadata::to_text`] wrote, at whatever time: what may be stored today is asked of the
    /// new alone.
    pub fn from_stored(text: &str) -> db::Result<Self> {
        let map = serde_json::from_str(text);
        map.map(Self)
            .map_err(|error| db::Error::Corrupt(format!("metadata: {error}")))
    }

    pub fn as_map(&self) -> &Map<String, Value> {
        &self.0
    }
}

fn check_object(map: &Map<String, Value>, levels: usize) -> Result<(), &'static str> {
    if levels == 0 {
        return Err("must have at most 4 levels");
    }
    for (name, value) in map {
        check_text(name)?;
        check(value, levels - 1)?;
    }
    Ok(())
}

fn check_text(text: &str) -> Result<(), &'static str> {
    if has_control(text) {
        return Err("must not contain control characters");
    }
    check_no_key(text)
}

/// `levels` that `value` may still have.
fn check(value: &Value, levels: usize) -> Result<(), &'static str> {
    match value {
        Value::Number(number) => {
            let integer = number
                .as_u64()
                .or_else(|| number.as_i64().map(i64::unsigned_abs));
            if integer.is_some_and(|integer| integer > INTEGER_MAX) {
                return Err("must not contain integers beyond 2^53 - 1: write them as strings");
            }
            Ok(())
        }
        Value::String(text) => check_text(text),
        Value::Null | Value::Bool(_) => Ok(()),
        Value::Array(_) if levels == 0 => Err("must have at most 4 levels"),
        Value::Array(items) => items.iter().try_for_each(|item| check(item, levels - 1)),
        Value::Object(map) => check_object(map, levels),
    }
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Map::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

fn object_schema() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::Object)
        .description(Some(
            "At most 4096 bytes and four levels; no control characters, no API keys, no integers beyond 2^53 - 1.",
        ))
        .additional_properties(Some(AdditionalProperties::FreeForm(true)))
        .examples([serde_json::json!({"team": "payments"})])
        .into()
}

impl utoipa::PartialSchema for Metadata {
    fn schema() -> RefOr<Schema> {
        object_schema()
    }
}

impl utoipa::ToSchema for Metadata {}

impl utoipa::PartialSchema for MetadataPatch {
    fn schema() -> RefOr<Schema> {
        object_schema()
    }
}

impl utoipa::ToSchema for MetadataPatch {}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json};

    use super::*;

    #[test]
    fn metadata_is_a_small_flat_object() {
        for good in [
            "{}",
            r#"{"team": "payments", "n": 9007199254740991, "f": 1.5, "none": null, "e": "🚀\u202e"}"#,
            r#"{"a": {"b": {"c": {"d": 1}}}}"#,
            r#"{"a": [[[1]]]}"#,
        ] {
            from_str::<Metadata>(good).unwrap();
        }
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        let large = json!({"a": "x".repeat(BYTES_MAX)}).to_string();
        for bad in [
            "[]",
            "null",
            "\"a\"",
            r#"{"a": "b\u0000"}"#,
            r#"{"a\n": "b"}"#,
            r#"{"a": "\ud800"}"#,
            r#"{"a": {"b": {"c": {"d": {}}}}}"#,
            r#"{"a": [[[[]]]]}"#,
            r#"{"a": 9007199254740992}"#,
            r#"{"a": [-9223372036854775808]}"#,
            r#"{"a": 1e999}"#,
            &format!(r#"{{"a": ["of {key}"]}}"#),
            &format!(r#"{{"{key}": 1}}"#),
            &large,
        ] {
            assert!(from_str::<Metadata>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_stored_before_a_rule_was_there_is_read() {
        let text = format!(r#"{{"a":"ks_live_{}_{}"}}"#, "a".repeat(12), "B".repeat(49));
        assert!(from_str::<Metadata>(&text).is_err());
        assert_eq!(Metadata::from_stored(&text).unwrap().to_text(), text);
        assert!(Metadata::from_stored("[]").is_err());
    }

    #[test]
    fn what_a_patch_makes_of_it_is_checked_too() {
        let metadata: Metadata = from_str(r#"{"a": {"b": {"c": 1}}, "d": 2}"#).unwrap();
        let patch = from_str(r#"{"a": {"b": {"c": null}}, "e": "f"}"#).unwrap();
        let patched = metadata.patched(patch).unwrap();
        assert_eq!(patched.to_text(), r#"{"a":{"b":{}},"d":2,"e":"f"}"#);
        let deeper = from_str(r#"{"a": {"b": {"c": {"d": {}}}}}"#).unwrap();
        assert!(metadata.patched(deeper).is_err());
        let larger = MetadataPatch(
            json!({"x": "x".repeat(BYTES_MAX - 20)})
                .as_object()
                .unwrap()
                .clone(),
        );
        assert!(metadata.patched(larger).is_err());
    }
}
