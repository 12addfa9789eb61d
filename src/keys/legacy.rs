//! Formats of keys that were made by another system and brought here.
//!
//! A format is anchored at both ends and needs no regular expressions: a fixed beginning, a range
//! of lengths, an alphabet. What matches is looked up like a key of ours, without its checksum.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::secret::KEY_LEN_MAX;

/// Shorter strings could be guessed, and would make noise of every other header.
const LEN_MIN: usize = 16;
const PREFIX_LEN_MAX: usize = 32;

/// What the part after the prefix is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Alphabet {
    /// `0-9a-f`
    LowerHex,
    /// `0-9A-Fa-f`
    Hex,
    /// `0-9A-Za-z`
    Alphanumeric,
    /// `0-9A-Za-z_-`, the one of base64url and of UUIDs in their usual form.
    UrlSafe,
    /// `0-9A-Za-z_-`, `.`, `~`, `+`, `/` and `=`: what a bearer token may hold (RFC 6750 §2.1).
    Token68,
}

impl Alphabet {
    fn holds(self, byte: u8) -> bool {
        match self {
            Self::LowerHex => byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte),
            Self::Hex => byte.is_ascii_hexdigit(),
            Self::Alphanumeric => byte.is_ascii_alphanumeric(),
            Self::UrlSafe => byte.is_ascii_alphanumeric() || b"_-".contains(&byte),
            Self::Token68 => byte.is_ascii_alphanumeric() || b"_-.~+/=".contains(&byte),
        }
    }
}

/// One format. Its lengths are of the whole key, in characters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
#[schema(as = LegacyFormat)]
pub struct LegacyFormat(Unchecked);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    /// What each key begins with; may be empty.
    #[serde(default)]
    prefix: String,
    length_min: usize,
    length_max: usize,
    alphabet: Alphabet,
}

impl LegacyFormat {
    /// # Errors
    /// What is wrong with it.
    pub fn new(
        prefix: &str,
        length_min: usize,
        length_max: usize,
        alphabet: Alphabet,
    ) -> Result<Self, &'static str> {
        if prefix.len() > PREFIX_LEN_MAX || !prefix.bytes().all(|b| Alphabet::Token68.holds(b)) {
            return Err("prefix must be at most 32 of A-Z, a-z, 0-9 and _-.~+/=");
        }
        if length_min < LEN_MIN + prefix.len() {
            return Err("length_min must leave at least 16 characters after the prefix");
        }
        if length_max < length_min || length_max > KEY_LEN_MAX {
            return Err("length_max must lie between length_min and 128");
        }
        Ok(Self(Unchecked {
            prefix: prefix.to_owned(),
            length_min,
            length_max,
            alphabet,
        }))
    }

    pub fn matches(&self, text: &str) -> bool {
        let Unchecked {
            prefix,
            length_min,
            length_max,
            alphabet,
        } = &self.0;
        (*length_min..=*length_max).contains(&text.len())
            && text
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.bytes().all(|byte| alphabet.holds(byte)))
    }
}

impl TryFrom<Unchecked> for LegacyFormat {
    type Error = &'static str;

    fn try_from(format: Unchecked) -> Result<Self, Self::Error> {
        Self::new(
            &format.prefix,
            format.length_min,
            format.length_max,
            format.alphabet,
        )
    }
}

impl From<LegacyFormat> for Unchecked {
    fn from(format: LegacyFormat) -> Self {
        format.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_anchored_at_both_ends() {
        let format = LegacyFormat::new("sk_", 19, 20, Alphabet::LowerHex).unwrap();
        for good in ["sk_0123456789abcdef", "sk_0123456789abcdef0"] {
            assert!(format.matches(good), "{good}");
        }
        for bad in [
            "",
            "sk_",
            "sk_0123456789abcde",
            "sk_0123456789abcdef01",
            "sk_0123456789abcdeF",
            "sk_0123456789abcdef ",
            " sk_0123456789abcde",
            "SK_0123456789abcdef",
            "xsk_0123456789abcde",
            "sk_0123456789abcde\0",
        ] {
            assert!(!format.matches(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_format_that_matches_too_much_is_refused() {
        assert!(LegacyFormat::new("", 15, 40, Alphabet::Hex).is_err());
        assert!(LegacyFormat::new("sk_", 18, 40, Alphabet::Hex).is_err());
        assert!(LegacyFormat::new("", 16, 129, Alphabet::Hex).is_err());
        assert!(LegacyFormat::new("", 40, 39, Alphabet::Hex).is_err());
        assert!(LegacyFormat::new("a b", 40, 40, Alphabet::Hex).is_err());
    }

    #[test]
    fn a_format_reads_what_it_writes_and_nothing_wrong() {
        let format = LegacyFormat::new("sk_", 19, 64, Alphabet::UrlSafe).unwrap();
        let json = serde_json::to_string(&format).unwrap();
        assert_eq!(
            json,
            r#"{"prefix":"sk_","length_min":19,"length_max":64,"alphabet":"url_safe"}"#
        );
        assert_eq!(serde_json::from_str::<LegacyFormat>(&json).unwrap(), format);
        let short = json.replace("19", "3");
        assert!(serde_json::from_str::<LegacyFormat>(&short).is_err());
    }
}
