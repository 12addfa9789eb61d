//! Typed, sortable ids: a prefix, `_`, and a `UUIDv7` (RFC 9562 §5.7) in lowercase Crockford base32.

use std::fmt;

use arrayvec::ArrayString;
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::Text;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::clock::Clock;
use crate::entropy::Entropy;
use crate::time::Timestamp;

/// 26 base32 characters: 130 bits for the 128 of a UUID, so the first is 0 to 7.
const ENCODED_LEN: usize = 26;

/// A prefix of three letters, `_` and the UUID.
const LEN: usize = 4 + ENCODED_LEN;

/// An id lies where it is used: a validation names a dozen of them.
type Inline = ArrayString<LEN>;

fn generate(prefix: &str, at: Timestamp, random: &[u8; 10]) -> Inline {
    let text = sortable(at, random);
    // A prefix of three letters and 26 characters: it fits.
    Inline::from(&format!("{prefix}_{text}")).unwrap_or_default()
}

/// 48 bits of time and 74 random ones in 26 characters: what is made later sorts later, so an index of
/// them grows at its end.
pub fn sortable(at: Timestamp, random: &[u8; 10]) -> ArrayString<ENCODED_LEN> {
    let millis = at.millis().unsigned_abs();
    let uuid = uuid::Builder::from_unix_timestamp_millis(millis, random).into_uuid();
    let mut text = [0; ENCODED_LEN];
    let text = ulid::Ulid::from_bytes(uuid.into_bytes()).array_to_str(&mut text);
    text.make_ascii_lowercase();
    ArrayString::from(text).unwrap_or_default()
}

fn is_well_formed(prefix: &str, text: &str) -> bool {
    let Some(encoded) = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
    else {
        return false;
    };
    encoded.len() == ENCODED_LEN
        && encoded.starts_with(|c: char| ('0'..='7').contains(&c))
        && encoded
            .bytes()
            .all(|b| b"0123456789abcdefghjkmnpqrstvwxyz".contains(&b))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Clone, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow,
        )]
        #[diesel(sql_type = Text)]
        pub struct $name(Inline);

        impl $name {
            pub const PREFIX: &'static str = $prefix;

            pub fn new(clock: &Clock, entropy: &Entropy) -> Self {
                Self::made_of(clock.now(), &entropy.bytes())
            }

            /// The id of this time and these bytes, the same each time.
            pub fn made_of(at: Timestamp, random: &[u8; 10]) -> Self {
                Self(generate($prefix, at, random))
            }

            /// `None` unless `text` is an id of this very kind.
            pub fn parse(text: &str) -> Option<Self> {
                is_well_formed($prefix, text)
                    .then(|| Inline::from(text).ok())
                    .flatten()
                    .map(Self)
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).ok_or_else(|| {
                    de::Error::custom(concat!("must be an id that starts with ", $prefix, "_"))
                })
            }
        }

        $crate::string_schema!(
            $name,
            $crate::schema::string(
                concat!("^", $prefix, "_[0-7][0-9a-hjkmnp-tv-z]{25}$"),
                30,
                concat!($prefix, "_01jd8k3v9we5m8t7q2x4z6y0ab")
            )
        );

        impl<DB: diesel::backend::Backend> FromSql<Text, DB> for $name
        where
            String: FromSql<Text, DB>,
        {
            fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
                let text = String::from_sql(bytes)?;
                Self::parse(&text)
                    .ok_or_else(|| concat!("an id must start with ", $prefix, "_").into())
            }
        }

        impl<DB: diesel::backend::Backend> ToSql<Text, DB> for $name
        where
            str: ToSql<Text, DB>,
        {
            fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, DB>) -> serialize::Result {
                self.as_str().to_sql(out)
            }
        }
    };
}

id!(
    /// An isolated world.
    TenantId, "ten"
);
id!(
    /// An API that is protected.
    ServiceId, "svc"
);
id!(
    /// Who holds keys.
    ConsumerId, "con"
);
id!(
    /// One credential of one consumer.
    KeyId, "key"
);
id!(
    /// A record of one plaintext of a key.
    SecretId, "sec"
);
id!(
    /// An audit line.
    AuditId, "aud"
);
id!(
    /// A use of a key, or an attempt at one.
    EventId, "evt"
);
id!(
    /// A review of who has access.
    ReviewId, "rev"
);
id!(
    /// A token that was issued: its `jti`.
    TokenId, "tok"
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Span;

    #[test]
    fn ids_sort_by_the_time_they_were_made() {
        let (clock, entropy) = (Clock::shifted(), Entropy::seeded(1));
        let first = KeyId::new(&clock, &entropy);
        clock.advance(Span::seconds(1));
        let second = KeyId::new(&clock, &entropy);
        assert!(first < second, "{first} {second}");
        assert_eq!(KeyId::parse(first.as_str()), Some(first));
    }

    #[test]
    fn an_id_of_another_kind_or_spelling_is_refused() {
        let id = KeyId::new(&Clock::System, &Entropy::System);
        assert!(SecretId::parse(id.as_str()).is_none());
        assert!(KeyId::parse(&id.as_str().to_ascii_uppercase()).is_none());
        assert!(KeyId::parse("key_zzzzzzzzzzzzzzzzzzzzzzzzzz").is_none());
        assert!(KeyId::parse("key_").is_none());
    }
}
