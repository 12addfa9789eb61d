//! JSON values: merge patches, what differs between two views of an object, members by their path.

use serde_json::{Map, Value};

/// Applies a merge patch (RFC 7396 §2) to an object.
pub fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.shift_remove(&name);
            }
            Value::Object(patch) => {
                let inner = target.entry(name).or_insert(Value::Null);
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge(inner, patch);
                }
            }
            value @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
                target.insert(name, value);
            }
        }
    }
}

/// The members in which two views of one object differ, as they were and as they are: what an audit
/// line says about a change.
pub fn difference(before: Value, after: Value) -> (Value, Value) {
    match (before, after) {
        (Value::Object(mut before), Value::Object(mut after)) => {
            before.retain(|name, old| match after.get(name) {
                Some(new) if new == old => {
                    after.shift_remove(name);
                    false
                }
                Some(_) | None => true,
            });
            (Value::Object(before), Value::Object(after))
        }
        (before, after) => (before, after),
    }
}

/// The member of that very name, which may hold dots (`https://idp.example/roles`); else the name
/// is a path into objects.
pub fn find<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = object.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.').try_fold(object.get(first)?, |value, part| {
        value.as_object()?.get(part)
    })
}

/// Appends the name of a member, which holds nothing that JSON would have to escape, behind what separates it
/// from what stands before.
pub fn member(out: &mut String, separator: &str, name: &str) {
    for part in [separator, "\"", name, "\":"] {
        out.push_str(part);
    }
}

/// Appends any text.
pub fn text(out: &mut String, text: &str) {
    let is_special = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
    // All of it, without a way out: that is done many bytes at a time.
    if text.bytes().fold(false, |any, byte| any | is_special(byte)) {
        out.push_str(&Value::from(text).to_string());
        return;
    }
    for part in ["\"", text, "\""] {
        out.push_str(part);
    }
}

/// What `write!` does, without the machinery of formats, which costs more than the rest.
pub fn number(out: &mut String, number: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(number));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        let Value::Object(map) = value else {
            panic!("an object");
        };
        map
    }

    /// The cases of RFC 7396, appendix A, whose target and patch are objects.
    #[test]
    fn a_merge_patch_does_what_the_rfc_says() {
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (
                json!({"a": "b", "b": "c"}),
                json!({"a": null}),
                json!({"b": "c"}),
            ),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({"a": [{"b": "c"}]}),
                json!({"a": [1]}),
                json!({"a": [1]}),
            ),
            (
                json!({"e": null}),
                json!({"a": 1}),
                json!({"e": null, "a": 1}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
            (
                json!({"a": 1}),
                json!({"a": {"b": {"c": null}, "d": 2}}),
                json!({"a": {"b": {}, "d": 2}}),
            ),
        ] {
            let mut merged = object(target.clone());
            merge(&mut merged, object(patch.clone()));
            assert_eq!(Value::Object(merged), result, "{target} {patch}");
        }
    }

    #[test]
    fn a_difference_holds_only_what_changed() {
        let (before, after) = difference(
            json!({"id": 1, "name": "a", "quota": {"limit": 1}, "gone": true}),
            json!({"id": 1, "name": "b", "quota": {"limit": 1}, "new": null}),
        );
        assert_eq!(before, json!({"name": "a", "gone": true}));
        assert_eq!(after, json!({"name": "b", "new": null}));
    }
}
