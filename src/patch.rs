//! Parts of request bodies that every feature has: RFC 7396 members and the reason.

use serde::{Deserialize, Deserializer, de};

use crate::text;

/// For a member of a merge patch (RFC 7396): absent is `None`, `null` is `Some(None)`.
pub fn double_option<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// For a member of a merge patch that cannot be cleared, since there is nothing without it: `null` is
/// refused.
pub fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Why something is done, up to 500 characters; stands in the audit trail. Who ends a key that leaked may
/// well tell it here: it is taken out, and not refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.chars().count() > 500 || text::has_control(text) {
            return Err("must have at most 500 characters, none of them a control character");
        }
        Ok(Self(text::without_keys(text).into_owned()))
    }

    pub fn into_inner(self) -> String {
        self.0
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

crate::string_schema!(
    Reason,
    crate::schema::string(
        "^[^\\u0000-\\u001f\\u007f-\\u009f]*$",
        500,
        "contract ended"
    )
);
