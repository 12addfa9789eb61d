//! The public part of a key: what logs and lists call it by.

use std::fmt;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;
use serde::{Deserialize, Deserializer, Serialize, de};

use super::base62;
use crate::entropy::Entropy;

pub(super) const LOOKUP_ID_LEN: usize = 12;

/// 12 base62 characters without a secret in them. It belongs to the key and outlives its secrets.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, AsExpression, FromSqlRow,
)]
#[diesel(sql_type = Text)]
#[serde(transparent)]
pub struct LookupId(String);

impl LookupId {
    /// Each of the 62^12 (71 bits) is equally likely.
    pub fn new(entropy: &Entropy) -> Self {
        let mut text = String::with_capacity(LOOKUP_ID_LEN);
        while text.len() < LOOKUP_ID_LEN {
            for byte in entropy.bytes::<16>() {
                // 248 = 4 * 62: the bytes above would favour the first characters.
                if byte < 248 && text.len() < LOOKUP_ID_LEN {
                    let digit = base62::ALPHABET.get(usize::from(byte % 62));
                    text.extend(digit.map(|digit| char::from(*digit)));
                }
            }
        }
        Self(text)
    }

    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == LOOKUP_ID_LEN && text.bytes().all(base62::is_digit))
            .then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LookupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LookupId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("must be 12 of 0-9, A-Z and a-z"))
    }
}

crate::string_schema!(
    LookupId,
    crate::schema::string("^[0-9A-Za-z]{12}$", LOOKUP_ID_LEN, "4hT0aZq81xPd")
);

impl<DB: diesel::backend::Backend> FromSql<Text, DB> for LookupId
where
    String: FromSql<Text, DB>,
{
    fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
        String::from_sql(bytes).map(Self)
    }
}

impl<DB: diesel::backend::Backend> ToSql<Text, DB> for LookupId
where
    str: ToSql<Text, DB>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
        self.0.as_str().to_sql(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_id_has_twelve_characters_and_one_spelling() {
        let id = LookupId::new(&Entropy::seeded(1));
        assert_eq!(LookupId::parse(id.as_str()), Some(id));
        for bad in [
            "",
            "4hT0aZq81xP",
            "4hT0aZq81xPdd",
            "4hT0aZq81xP_",
            "4hT0aZq81xP\u{e9}",
        ] {
            assert_eq!(LookupId::parse(bad), None, "{bad}");
        }
    }
}
