//! Points and spans of time as they stand in JSON, SQL and configuration.

use std::fmt;
use std::num::NonZero;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeZone as _, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::expression::AsExpression;
use diesel::pg::Pg;
use diesel::serialize::{self, Output, ToSql};
use diesel::sql_types::BigInt;
use diesel::sqlite::Sqlite;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The last representable instant: 9999-12-31T23:59:59.999Z, the end of RFC 3339.
const MILLIS_MAX: i64 = 253_402_300_799_999;

/// A UTC instant to the millisecond: RFC 3339 with `Z` in JSON, Unix milliseconds in SQL.
///
/// Kept as one more than the milliseconds, so that an `Option` of it takes no more room: there are several
/// in each remembered key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, AsExpression, FromSqlRow)]
#[diesel(sql_type = BigInt)]
pub struct Timestamp(NonZero<i64>);

impl Timestamp {
    pub const MAX: Self = Self(match NonZero::new(MILLIS_MAX + 1) {
        Some(millis) => millis,
        None => NonZero::<i64>::MIN,
    });

    /// Clamps to the years 1970 to 9999.
    pub fn from_millis(millis: i64) -> Self {
        let millis = millis.clamp(0, MILLIS_MAX);
        Self(NonZero::new(millis + 1).unwrap_or(Self::MAX.0))
    }

    pub fn millis(self) -> i64 {
        self.0.get() - 1
    }

    /// Whole seconds, rounded down, as in JWT claims (RFC 7519 §2 `NumericDate`).
    pub fn unix_seconds(self) -> i64 {
        self.millis().div_euclid(1000)
    }

    /// Saturates at the end of the year 9999.
    #[must_use]
    pub fn plus(self, span: Span) -> Self {
        Self::from_millis(self.millis().saturating_add(span.millis()))
    }

    #[must_use]
    pub fn minus(self, span: Span) -> Self {
        Self::from_millis(self.millis().saturating_sub(span.millis()))
    }

    /// Zero when `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> Span {
        Span::from_millis(
            self.millis()
                .saturating_sub(earlier.millis())
                .max(0)
                .unsigned_abs(),
        )
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Utc.timestamp_millis_opt(self.millis()).single() {
            Some(at) => f.write_str(&at.to_rfc3339_opts(SecondsFormat::Millis, true)),
            None => Err(fmt::Error),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Timestamp").field(&self.millis()).finish()
    }
}

impl FromStr for Timestamp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "must be an RFC 3339 time, such as 2027-01-31T12:00:00Z";
        // A query's `+` stands for a space.
        const SPACE: &str =
            "must be an RFC 3339 time, such as 2027-01-31T12:00:00Z; in a query write %2B for +";
        if text.len() > 40 {
            return Err(SHAPE);
        }
        let at = DateTime::parse_from_rfc3339(text).map_err(|_bad_shape| {
            let is_time =
                |(at, offset)| DateTime::parse_from_rfc3339(&format!("{at}+{offset}")).is_ok();
            if text.rsplit_once(' ').is_some_and(is_time) {
                SPACE
            } else {
                SHAPE
            }
        })?;
        let millis = at.timestamp_millis();
        if !(0..=MILLIS_MAX).contains(&millis) {
            return Err("must lie between the years 1970 and 9999");
        }
        Ok(Self::from_millis(millis))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

impl<DB: diesel::backend::Backend> FromSql<BigInt, DB> for Timestamp
where
    i64: FromSql<BigInt, DB>,
{
    fn from_sql(bytes: DB::RawValue<'_>) -> deserialize::Result<Self> {
        i64::from_sql(bytes).map(Self::from_millis)
    }
}

impl ToSql<BigInt, Sqlite> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Sqlite>) -> serialize::Result {
        out.set_value(self.millis());
        Ok(serialize::IsNull::No)
    }
}

impl ToSql<BigInt, Pg> for Timestamp {
    fn to_sql<'b>(&'b self, out: &mut Output<'b, '_, Pg>) -> serialize::Result {
        ToSql::<BigInt, Pg>::to_sql(&self.millis(), &mut out.reborrow())
    }
}

/// A length of time, written `"90d"`: a whole number and one of `ms`, `s`, `m`, `h`, `d`, `w`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(u64);

/// Milliseconds a unit, largest first: a span is shown in the largest that divides it.
const UNITS: [(&str, u64); 6] = [
    ("w", 604_800_000),
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1000),
    ("ms", 1),
];

impl Span {
    pub const ZERO: Self = Self(0);

    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    pub const fn seconds(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1000))
    }

    pub const fn minutes(minutes: u64) -> Self {
        Self::seconds(minutes.saturating_mul(60))
    }

    pub const fn hours(hours: u64) -> Self {
        Self::minutes(hours.saturating_mul(60))
    }

    pub const fn days(days: u64) -> Self {
        Self::hours(days.saturating_mul(24))
    }

    /// Saturates at `i64::MAX`, so that it may be added to a [`Timestamp`].
    pub fn millis(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    pub fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        for (unit, millis) in UNITS {
            // Weeks are read but shown as days: "90d" stays "90d", "28d" does not become "4w".
            if unit != "w" && self.0.is_multiple_of(millis) {
                return write!(f, "{}{unit}", self.0 / millis);
            }
        }
        Ok(())
    }
}

impl FromStr for Span {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const SHAPE: &str = "must be a whole number with a unit s, m, h, d or w, such as \"90d\"";
        let split = text.find(|c: char| !c.is_ascii_digit()).ok_or(SHAPE)?;
        let (digits, unit) = text.split_at_checked(split).ok_or(SHAPE)?;
        if digits.is_empty() || digits.len() > 15 {
            return Err(SHAPE);
        }
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(SHAPE)?;
        let count: u64 = digits.parse().map_err(|_not_a_number| SHAPE)?;
        let millis = count.checked_mul(*millis).ok_or("is too long a time")?;
        if millis > Self::days(36_525).0 {
            return Err("must be at most 36525d (100 years)");
        }
        Ok(Self(millis))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

crate::string_schema!(Timestamp, crate::schema::time());
crate::string_schema!(
    Span,
    crate::schema::string("^[0-9]{1,15}(ms|s|m|h|d|w)$", 17, "90d")
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_reads_what_it_shows() {
        for text in ["0s", "500ms", "1s", "90s", "15m", "24h", "90d", "36525d"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string().parse::<Span>().unwrap(), span, "{text}");
        }
        assert_eq!("1w".parse::<Span>().unwrap(), Span::days(7));
        assert_eq!(Span::days(90).to_string(), "90d");
    }

    #[test]
    fn a_span_out_of_shape_or_range_is_refused() {
        for text in [
            "",
            "d",
            "90",
            "-1d",
            "1.5h",
            "1h30m",
            "1y",
            " 1d",
            "1 d",
            "99999999w",
        ] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        assert!("18446744073709551615s".parse::<Span>().is_err());
    }

    #[test]
    fn a_time_is_rfc_3339_in_utc_to_the_millisecond() {
        let at: Timestamp = "2026-11-22T06:00:00.123456+01:00".parse().unwrap();
        assert_eq!(at.to_string(), "2026-11-22T05:00:00.123Z");
        for text in [
            "0000-01-01T00:00:00Z",
            "300000-01-01T00:00:00Z",
            "tomorrow",
            "2026-11-22 06:00",
            "1969-12-31T23:59:59Z",
        ] {
            let refused = text.parse::<Timestamp>().unwrap_err();
            assert!(!refused.contains("%2B"), "{text}");
        }
        let spaced = "2026-11-22T06:00:00 01:00".parse::<Timestamp>();
        assert!(spaced.unwrap_err().ends_with("write %2B for +"));
        assert_eq!(Timestamp::MAX.plus(Span::days(36_525)), Timestamp::MAX);
    }
}
