//! JSON in, with the place and a sentence for whatever is wrong, and no value repeated.
//!
//! A body may hold a key, so a message never shows what was sent, only what is expected.

use std::borrow::Cow;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed};
use serde_json::error::Category;
use serde_path_to_error::{Path, Segment, Track};

use super::json_unique::Unique;
use crate::error::Violation;

/// A member name in a pointer is cut here: nobody's field is longer.
const NAME_CHARS_MAX: usize = 64;

/// Reads `bytes` as JSON: unknown and repeated members are refused.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Violation> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    if Unique
        .deserialize(&mut reader)
        .and_then(|_members| reader.end())
        .is_err()
    {
        return Err(explain(bytes, Unique, false));
    }
    // The place of a fault is found in a second reading, so that good bodies do not pay for it.
    serde_json::from_slice(bytes).map_err(|_found_again| explain(bytes, PhantomData::<T>, true))
}

/// A type that by itself refuses a member given twice, wherever it may stand: a struct with serde's
/// derived `Deserialize`, whose fields hold no maps but such as refuse it too.
pub trait RefusesRepeats: DeserializeOwned {}

/// As [`parse`], with one reading of a good body.
///
/// # Errors
/// The first thing that is wrong.
pub fn parse_once<T: RefusesRepeats>(bytes: &[u8]) -> Result<T, Violation> {
    serde_json::from_slice(bytes).or_else(|_found_again| parse(bytes))
}

/// `is_json` that has been read once: `serde_json` calls it bad syntax too when a value is of a kind
/// that an enum has no name for.
fn explain<'de, S: DeserializeSeed<'de>>(bytes: &'de [u8], seed: S, is_json: bool) -> Violation {
    let mut track = Track::new();
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let result = seed
        .deserialize(serde_path_to_error::Deserializer::new(
            &mut reader,
            &mut track,
        ))
        .and_then(|_value| reader.end());
    match result {
        Err(error) => match error.classify() {
            Category::Data => place(&track.path(), strip_position(&error.to_string())),
            Category::Syntax if is_json => {
                place(&track.path(), "has a value that is not possible here")
            }
            Category::Syntax | Category::Eof | Category::Io => {
                Violation::new("", format!("the body is not JSON: {error}"))
            }
        },
        Ok(()) => Violation::new("", "the body is not valid"),
    }
}

/// `serde_json` ends its messages with where in the text it stood.
fn strip_position(message: &str) -> &str {
    message
        .rfind(" at line ")
        .and_then(|end| message.get(..end))
        .unwrap_or(message)
}

/// Turns serde's message into a place and a sentence that repeats no value.
pub(crate) fn place(path: &Path, message: &str) -> Violation {
    let parent = pointer(path);
    if let Some(name) = quoted(message, "missing field `") {
        return Violation::new(child(&parent, name), "is required");
    }
    if let Some(name) = quoted(message, "duplicate field `") {
        return Violation::new(child(&parent, name), "is given twice");
    }
    Violation::new(parent, sentence(message))
}

/// What serde says of a type or a variant, without what was given.
pub(crate) fn sentence(message: &str) -> String {
    if message.starts_with("unknown field `") {
        return match message.rsplit_once(", expected ") {
            Some((_, names)) => format!("is not a known field; known here: {}", plain(names)),
            None => "is not a known field; none is known here".to_owned(),
        };
    }
    // What the standard library says of an address.
    if message == "invalid IP address syntax" {
        return "must be an IPv4 or IPv6 address, such as 203.0.113.9; networks are not taken"
            .to_owned();
    }
    for start in [
        "invalid type: ",
        "invalid value: ",
        "invalid length ",
        "unknown variant `",
    ] {
        if message.starts_with(start) {
            return match message.rsplit_once(", expected ") {
                Some((_, expected)) => format!("must be {}", expectation(expected)),
                None => "has a value that is not possible here".to_owned(),
            };
        }
    }
    message.to_owned()
}

/// serde names Rust's types; JSON has others.
fn expectation(expected: &str) -> Cow<'_, str> {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number, not negative".into(),
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number".into(),
        "f32" | "f64" => "a number".into(),
        "a sequence" => "a list".into(),
        "a map" => "an object".into(),
        "a borrowed string" => "a string".into(),
        "unit" => "null".into(),
        _ if expected.starts_with("struct ") => "an object".into(),
        _ if expected.contains('`') => plain(expected).into(),
        _ => expected.into(),
    }
}

/// "one of `a`, `b`" without the marks.
fn plain(names: &str) -> String {
    names.trim_start_matches("one of ").replace('`', "")
}

fn quoted<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.strip_suffix('`')
}

/// RFC 6901: `~` and `/` in a name are `~0` and `~1`.
fn pointer(path: &Path) -> String {
    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => pointer = child(&pointer, &index.to_string()),
            Segment::Map { key } => pointer = child(&pointer, key),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

fn child(parent: &str, name: &str) -> String {
    let name: String = name
        .chars()
        .take(NAME_CHARS_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    format!("{parent}/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::time::Span;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read, to see what is refused")]
    struct Order {
        name: String,
        #[serde(default)]
        ttl: Option<Span>,
        #[serde(default)]
        lines: Vec<Line>,
        #[serde(default)]
        extra: serde_json::Map<String, serde_json::Value>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only read, to see what is refused")]
    struct Line {
        count: u32,
        #[serde(default)]
        kind: Kind,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        #[default]
        Day,
        Month,
    }

    fn fault(body: &str) -> (String, String) {
        let violation = parse::<Order>(body.as_bytes()).unwrap_err();
        (violation.pointer, violation.detail)
    }

    #[test]
    fn a_fault_has_its_place_and_a_sentence() {
        for (body, pointer, detail) in [
            ("{}", "/name", "is required"),
            (
                r#"{"name":"a","nmae":1}"#,
                "/nmae",
                "is not a known field; known here: name, ttl, lines, extra",
            ),
            (
                r#"{"name":"a","lines":[{"count":1,"a/b~":2}]}"#,
                "/lines/0/a~1b~0",
                "is not a known field; known here: count or kind",
            ),
            (r#"{"name":7}"#, "/name", "must be a string"),
            (r#"{"name":"a","lines":{}}"#, "/lines", "must be a list"),
            (
                r#"{"name":"a","lines":[{"count":-1}]}"#,
                "/lines/0/count",
                "must be a whole number, not negative",
            ),
            (
                r#"{"name":"a","lines":[{"count":1e19}]}"#,
                "/lines/0/count",
                "must be a whole number, not negative",
            ),
            (
                r#"{"name":"a","lines":[{"count":1},{"count":2,"kind":"year"}]}"#,
                "/lines/1/kind",
                "must be day or month",
            ),
            (
                r#"{"name":"a","ttl":"1y"}"#,
                "/ttl",
                "must be a whole number with a unit s, m, h, d or w, such as \"90d\"",
            ),
            ("[]", "", "must be an object"),
            (r#""x""#, "", "must be an object"),
        ] {
            assert_eq!(
                fault(body),
                (pointer.to_owned(), detail.to_owned()),
                "{body}"
            );
        }
    }

    #[test]
    fn a_member_given_twice_is_refused_wherever_it_stands() {
        for (body, pointer) in [
            (r#"{"name":"a","name":"b"}"#, "/name"),
            (r#"{"name":"a","n\u0061me":"b"}"#, "/name"),
            (r#"{"name":"a","extra":{"x":1,"x":1}}"#, "/extra/x"),
            (
                r#"{"name":"a","extra":{"y":[0,{"x":1,"x":[]}]}}"#,
                "/extra/y/1/x",
            ),
        ] {
            assert_eq!(
                fault(body),
                (pointer.to_owned(), "is given twice".to_owned()),
                "{body}"
            );
        }
        let many: Vec<String> = (0..40).map(|n| format!("\"m{n}\":0")).collect();
        let body = format!(r#"{{"name":"a","extra":{{{},"m3":0}}}}"#, many.join(","));
        assert_eq!(fault(&body).0, "/extra/m3");
        let body = format!(r#"{{"name":"a","extra":{{{}}}}}"#, many.join(","));
        assert!(parse::<Order>(body.as_bytes()).is_ok());
    }

    #[test]
    fn no_message_repeats_a_value() {
        let secret = "ks_live_4hT0aZq81xPd_SECRET, expected `SECRET";
        for body in [
            format!(r#"{{"name":"a","ttl":"{secret}"}}"#),
            format!(r#"{{"name":"a","lines":"{secret}"}}"#),
            format!(r#"{{"name":"a","lines":[{{"count":"{secret}"}}]}}"#),
            format!(r#"{{"name":"a","lines":[{{"count":1,"kind":"{secret}"}}]}}"#),
            format!(r#""{secret}""#),
            format!(r#"{{"name":"{secret}" oops"#),
        ] {
            let (pointer, detail) = fault(&body);
            assert!(!detail.contains("SECRET"), "{detail}");
            assert!(!pointer.contains("SECRET"), "{pointer}");
        }
    }

    #[test]
    fn what_is_not_json_is_told_with_its_place() {
        for body in [
            "",
            "{",
            "nope",
            "{\"name\":\"a\"} {}",
            "{\"name\":\"\\ud800\"}",
            "\u{feff}{}",
        ] {
            let (pointer, detail) = fault(body);
            assert_eq!(pointer, "", "{body}");
            assert!(detail.starts_with("the body is not JSON: "), "{detail}");
        }
        let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
        assert!(fault(&deep).1.contains("recursion limit"));
    }
}
