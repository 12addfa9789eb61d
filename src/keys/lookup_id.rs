//! The public part of a key: what logs and lists call it by.

use std::fmt;

use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::base62;
use crate::entropy::Entropy;

pub(super) const LOOKUP_ID_LEN: usize = 12;

/// 12 base62 characters without a secret in them. It belongs to the key and outlives its secrets.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = Text)]
pub struct LookupId([u8; LOOKUP_ID_LEN]);

impl LookupId {
    /// Each of the 62^12 (71 bits) is equally likely.
    pub fn new(entropy: &Entropy) -> Self {
        let mut id = [b'0'; LOOKUP_ID_LEN];
        let mut places = id.iter_mut();
        while places.len() > 0 {
            // 248 = 4 * 62: the bytes above would favour the first characters.
            let bytes = entropy.bytes::<16>().into_iter().filter(|byte| *byte < 248);
            for (byte, place) in bytes.zip(places.by_ref()) {
                if let Some(digit) = base62::ALPHABET.get(usize::from(byte % 62)) {
                    *place = *digit;
                }
            }
        }
        Self(id)
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::from_bytes(text.as_bytes().try_into().ok()?)
    }

    pub fn from_bytes(id: &[u8; LOOKUP_ID_LEN]) -> Option<Self> {
        base62::is_number(id).then_some(Self(*id))
    }

    pub fn as_str(&self) -> &str {
        // ASCII, as every way to make one checks.
        str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for LookupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LookupId({})", self.as_str())
    }
}

impl fmt::Display for LookupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for LookupId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
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
        let text = String::from_sql(bytes)?;
        Self::parse(&text).ok_or_else(|| "a lookup id must have 12 characters of base62".into())
    }
}

impl<DB: diesel::backend::Backend> ToSql<Text, DB> for LookupId
where
    str: ToSql<Text, DB>,
{
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
        self.as_str().to_sql(out)
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
