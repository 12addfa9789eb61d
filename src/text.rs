//! Short texts that are right by construction: slugs, names, external ids, labels.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;
use serde::{Deserialize, Deserializer, Serialize, de};

/// Control characters end up in logs, terminals and headers; none is ever meant.
pub fn has_control(text: &str) -> bool {
    // Most are printable ASCII, which is seen many bytes at a time.
    let is_plain = text
        .bytes()
        .fold(true, |all, byte| all & matches!(byte, b' '..=b'~'));
    !is_plain && text.chars().any(char::is_control)
}

/// A text that no spreadsheet computes when it is a cell of CSV: what could begin a formula gets an
/// apostrophe before it (OWASP, CSV injection), full-width letters included, and whatever blank stands
/// before them. A semicolon begins a cell too, where the decimal sign is a comma.
pub fn without_formulas(text: &str) -> Cow<'_, str> {
    let is_blank = |c: char| {
        c.is_whitespace()
            || c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}')
    };
    let begins_formula = |cell: &str| {
        cell.starts_with(['\t', '\r', '\n'])
            || cell.trim_start_matches(is_blank).starts_with([
                '=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
            ])
    };
    if !text.split(';').any(begins_formula) {
        return Cow::Borrowed(text);
    }
    let cells = text.split(';').map(|cell| {
        let apostrophe = if begins_formula(cell) { "'" } else { "" };
        format!("{apostrophe}{cell}")
    });
    Cow::Owned(cells.collect::<Vec<_>>().join(";"))
}

/// A cell of CSV [`without_formulas`] that ends no line: breaks become spaces.
pub fn spreadsheet_cell(text: &str) -> Cow<'_, str> {
    let cell = without_formulas(text);
    let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
    if cell.contains(breaks) {
        Cow::Owned(cell.replace(breaks, " "))
    } else {
        cell
    }
}

/// How many letters and digits each of the last two parts of a key has.
const LOOKUP_LEN: usize = 12;
const SECRET_LEN: usize = 49;

/// The shortest key has two characters of a prefix, one of an environment, and three `_`.
const KEY_BYTES_MIN: usize = 2 + 1 + LOOKUP_LEN + SECRET_LEN + 3;

/// Three or five parts of base64url with dots between them, of which the first begins a JSON object: the
/// compact form of a JWT, signed or not (RFC 7515 §7.1) or encrypted (RFC 7516 §7.1).
pub fn has_jwt_shape(text: &str) -> bool {
    let text = text.trim();
    let is_base64url = |part: &str| {
        part.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    text.starts_with("eyJ")
        && matches!(text.split('.').count(), 3 | 5)
        && text.split('.').all(is_base64url)
}

/// A text in which nothing has the shape of a key: who puts one into a path shows it to everybody who reads
/// of it. What stands beside a key stays.
pub fn without_keys(text: &str) -> Cow<'_, str> {
    let mut rest = text;
    let mut kept = String::new();
    while let Some(key) = find_key(rest) {
        kept.push_str(rest.get(..key.start).unwrap_or_default());
        kept.push_str("[key]");
        rest = rest.get(key.end..).unwrap_or_default();
    }
    if kept.is_empty() {
        return Cow::Borrowed(text);
    }
    kept.push_str(rest);
    Cow::Owned(kept)
}

/// Whether something in a text has the shape of our keys, `<prefix>_<environment>_<12 base62>_<49 base62>`, whatever
/// the checksum.
pub fn has_key(text: &str) -> bool {
    find_key(text).is_some()
}

/// Where the first key stands, if there is one. Its secret has an end; before it may stand anything, also
/// letters and `_`: the `2F` of `%2Fks_live_…` and `token_` are no part of a key.
fn find_key(text: &str) -> Option<Range<usize>> {
    if text.len() < KEY_BYTES_MIN {
        return None;
    }
    // Each `_` may be the one before a secret.
    text.match_indices('_').find_map(|(at, _)| {
        let behind = text.get(at + 1..)?.bytes().take(SECRET_LEN + 1);
        if behind.take_while(u8::is_ascii_alphanumeric).count() != SECRET_LEN {
            return None;
        }
        let mut before = text.get(..at)?.rsplitn(3, '_');
        let (lookup, environment) = (before.next()?, before.next()?);
        let found = label_at_end(before.next()?);
        let is_lookup =
            lookup.len() == LOOKUP_LEN && lookup.bytes().all(|b| b.is_ascii_alphanumeric());
        if !is_lookup || label(environment).is_err() || prefix(found).is_err() {
            return None;
        }
        let start = at - LOOKUP_LEN - 1 - environment.len() - 1 - found.len();
        Some(start..at + 1 + SECRET_LEN)
    })
}

/// The longest label that a text ends in; empty if it ends in none.
fn label_at_end(text: &str) -> &str {
    let bytes = text.bytes().rev().take(LABEL_LEN_MAX);
    let run = bytes.take_while(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let end = text.get(text.len() - run.count()..).unwrap_or_default();
    end.trim_start_matches(|c: char| c.is_ascii_digit())
}

/// For what is kept, shown to others and told in the audit trail, which forgets nothing.
///
/// # Errors
/// That it must hold no key.
pub fn check_no_key(text: &str) -> Result<(), &'static str> {
    if has_key(text) {
        return Err("must not hold an API key: whoever reads it would have the key");
    }
    Ok(())
}

/// `[a-z0-9][a-z0-9-]{0,62}`
fn slug(text: &str) -> Result<(), &'static str> {
    let ok = (1..=63).contains(&text.len())
        && !text.starts_with('-')
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    ok.then_some(())
        .ok_or("must be 1 to 63 of a-z, 0-9 and '-', and must not start with '-'")
}

fn name(text: &str) -> Result<(), &'static str> {
    if text.chars().count() > 200 {
        return Err("must have at most 200 characters");
    }
    if has_control(text) {
        return Err("must not contain control characters");
    }
    check_no_key(text)
}

fn description(text: &str) -> Result<(), &'static str> {
    if text.chars().count() > 2000 {
        return Err("must have at most 2000 characters");
    }
    if text
        .chars()
        .any(|c| c.is_control() && c != '\n' && c != '\t')
    {
        return Err("must not contain control characters");
    }
    Ok(())
}

fn external_id(text: &str) -> Result<(), &'static str> {
    if !(1..=255).contains(&text.len()) {
        return Err("must have 1 to 255 bytes");
    }
    if has_control(text) {
        return Err("must not contain control characters");
    }
    check_no_key(text)
}

const LABEL_LEN_MAX: usize = 16;

/// `[a-z][a-z0-9]{0,15}`
fn label(text: &str) -> Result<(), &'static str> {
    let ok = (1..=LABEL_LEN_MAX).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    ok.then_some(())
        .ok_or("must be 1 to 16 of a-z and 0-9, and must start with a letter")
}

/// `[a-z][a-z0-9]{1,15}`
fn prefix(text: &str) -> Result<(), &'static str> {
    if text.len() < 2 {
        return Err("must be 2 to 16 of a-z and 0-9, and must start with a letter");
    }
    label(text)
}

/// `[a-z][a-z0-9_-]{0,31}`
fn limit_name(text: &str) -> Result<(), &'static str> {
    let ok = (1..=32).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    ok.then_some(())
        .ok_or("must be 1 to 32 of a-z, 0-9, '_' and '-', and must start with a letter")
}

/// `[A-Za-z0-9._:/-]{1,64}`
fn tag(text: &str) -> Result<(), &'static str> {
    let ok = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
    ok.then_some(())
        .ok_or("must be 1 to 64 of A-Z, a-z, 0-9 and ._:/-")
}

macro_rules! text {
    ($(#[$doc:meta])* $type:ident, $check:ident, $pattern:literal, $max:literal, $example:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, AsExpression, FromSqlRow,
        )]
        #[diesel(sql_type = Text)]
        #[serde(transparent)]
        pub struct $type(String);

        impl $type {
            /// # Errors
            /// What the text must be.
            pub fn parse(text: &str) -> Result<Self, &'static str> {
                $check(text).map(|()| Self(text.to_owned()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $check(&text).map_err(de::Error::custom)?;
                Ok(Self(text))
            }
        }

        $crate::string_schema!($type, $crate::schema::string($pattern, $max, $example));

        impl<DB: diesel::backend::Backend> FromSql<Text, DB> for $type
        where
            String: FromSql<Text, DB>,
        {
            fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
                String::from_sql(bytes).map(Self)
            }
        }

        impl<DB: diesel::backend::Backend> ToSql<Text, DB> for $type
        where
            str: ToSql<Text, DB>,
        {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
                self.0.as_str().to_sql(out)
            }
        }
    };
}

text!(
    /// Names a tenant, service or consumer; for a service it is the audience. Never reused.
    Slug, slug, "^[a-z0-9][a-z0-9-]{0,62}$", 63, "billing"
);
text!(
    /// A display name, up to 200 characters; may be empty.
    Name, name, "^[^\\u0000-\\u001f\\u007f-\\u009f]*$", 200, "Billing, production"
);
impl From<&Slug> for Name {
    /// Every slug is a name.
    fn from(slug: &Slug) -> Self {
        Self(slug.0.clone())
    }
}

text!(
    /// A longer text of a service, up to 2000 characters; may be empty and have lines.
    Description, description, "^[^\\u0000-\\u0008\\u000b-\\u001f\\u007f-\\u009f]*$", 2000, "Creates and sends invoices."
);
impl Default for Description {
    /// Nothing said.
    fn default() -> Self {
        Self(String::new())
    }
}

text!(
    /// The id that another system knows a consumer or key by.
    ExternalId, external_id, "^[^\\u0000-\\u001f\\u007f-\\u009f]+$", 255, "crm-4711"
);
text!(
    /// An environment, such as `live` or `test`.
    Environment, label, "^[a-z][a-z0-9]{0,15}$", 16, "live"
);
text!(
    /// The first part of a key, such as `ks`.
    Prefix, prefix, "^[a-z][a-z0-9]{1,15}$", 16, "ks"
);
text!(
    /// Tells the rate limits of one object apart.
    LimitName, limit_name, "^[a-z][a-z0-9_-]{0,31}$", 32, "per-minute"
);
text!(
    /// A word to find keys by.
    Tag, tag, "^[A-Za-z0-9._:/-]{1,64}$", 64, "team:payments"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_lowercase_and_short() {
        for good in ["a", "0", "billing", "a-b-", &"x".repeat(63)] {
            assert!(Slug::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a b", "é", &"x".repeat(64)] {
            assert!(Slug::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn no_text_holds_a_control_character() {
        for bad in ["a\0b", "a\nb", "\u{1b}[2J", "a\u{85}b"] {
            assert!(Name::parse(bad).is_err());
            assert!(ExternalId::parse(bad).is_err());
            assert!(Tag::parse(bad).is_err());
        }
        assert!(Name::parse("Zoë 🚀").is_ok());
    }

    #[test]
    fn no_text_that_is_kept_holds_a_key() {
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        for bad in [
            key.clone(),
            format!("of acme: {key}."),
            format!("é{key}"),
            format!("token_{key}"),
        ] {
            assert!(Name::parse(&bad).is_err(), "{bad}");
            assert!(ExternalId::parse(&bad).is_err(), "{bad}");
        }
        assert!(Name::parse(&format!("{key}B")).is_ok(), "too long for one");
    }

    #[test]
    fn a_text_without_keys_is_the_same_text() {
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        for (text, expected) in [
            (key.clone(), "[key]".to_owned()),
            (format!("/bot/{key}/x_y"), "/bot/[key]/x_y".to_owned()),
            (format!("é{key};{key}"), "é[key];[key]".to_owned()),
            (format!("/{key}B"), format!("/{key}B")),
            (
                format!("/cb/https%3A%2F%2Fhook%2F{key}%2Fx"),
                "/cb/https%3A%2F%2Fhook%2F[key]%2Fx".to_owned(),
            ),
            (format!("token_{key}_{key}"), "token_[key]_[key]".to_owned()),
            (format!("A1{key}_x"), "A1[key]_x".to_owned()),
            (format!("_{key}"), "_[key]".to_owned()),
            // A prefix is as long as it can be.
            (format!("%2f{key}"), "%2[key]".to_owned()),
            (
                format!("{}{key}", "x".repeat(20)),
                format!("{}[key]", "x".repeat(6)),
            ),
            (key.replace("ks", "é_k"), key.replace("ks", "é_k")),
            (key.replace("live", "Live"), key.replace("live", "Live")),
            (key.replace("aa_", "a_"), key.replace("aa_", "a_")),
            ("/a_b_c_d//".to_owned(), "/a_b_c_d//".to_owned()),
        ] {
            assert_eq!(without_keys(&text), expected);
        }
    }

    #[test]
    fn no_cell_is_a_formula_and_none_breaks_its_line() {
        for (cell, expected) in [
            ("=HYPERLINK(\"x\")", "'=HYPERLINK(\"x\")"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("\u{ff1d}1", "'\u{ff1d}1"),
            ("\t=1", "' =1"),
            ("\r=1", "' =1"),
            (" =1", "' =1"),
            ("\u{b}=1", "' =1"),
            ("\u{feff}\u{a0}@A1", "'\u{feff}\u{a0}@A1"),
            ("a;=1+1;b; +2", "a;'=1+1;b;' +2"),
            ("a; b;c=1", "a; b;c=1"),
            ("curl/8\n=1", "curl/8 =1"),
            ("a\u{2028}b\u{1b}[2J", "a b [2J"),
            ("plain, \"quoted\"", "plain, \"quoted\""),
            ("", ""),
        ] {
            assert_eq!(spreadsheet_cell(cell), expected);
        }
    }
}
