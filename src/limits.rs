//! Rate limits and quotas as they are given, stored and told. What enforces them works in whole
//! microseconds; every value that passes here stays in range there.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::ToSchema;

use crate::patch::given;
use crate::text::LimitName;
use crate::time::Span;

/// The most rate limits an object has.
pub const RATE_LIMITS_MAX: usize = 10;

const LIMIT_MAX: u64 = 1_000_000_000;

const PERIOD_MIN: Span = Span::seconds(1);
const PERIOD_MAX: Span = Span::days(31);

/// The longest time after which a full burst is available again.
const REFILL_MAX: Span = Span::days(366);

/// What happens to requests while the shared counters, in Redis, cannot be reached. `local`: each node
/// counts alone, from where it last saw the shared counter. `open`: they pass, and are not counted.
/// `closed`: they are refused, for a second at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailMode {
    /// Each node counts alone.
    #[default]
    Local,
    /// They pass.
    Open,
    /// They are refused.
    Closed,
}

/// A named rate limit (GCRA): `limit` requests a `period`, up to `burst` of them at once. A request
/// counts as often as its `cost` says.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "RateLimitInput", deny_unknown_fields)]
pub struct RateLimit {
    pub name: LimitName,
    #[schema(minimum = 1, maximum = 1_000_000_000, example = 100)]
    pub limit: u64,
    /// 1 s to 31 d.
    #[schema(example = "1m")]
    pub period: Span,
    /// As much as `limit`, unless given.
    #[schema(minimum = 1, maximum = 1_000_000_000, example = 100, required = false)]
    pub burst: u64,
    #[serde(default)]
    #[schema(required = false)]
    pub fail_mode: FailMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RateLimitInput {
    name: LimitName,
    limit: u64,
    period: Span,
    burst: Option<u64>,
    #[serde(default)]
    fail_mode: FailMode,
}

impl RateLimit {
    /// The time that one request uses up, in whole microseconds, rounded up: never more is allowed
    /// than the limit says.
    pub fn interval_us(&self) -> u64 {
        micros(self.period).div_ceil(self.limit)
    }

    /// The time after which a full burst is available again, in microseconds.
    pub fn refill_us(&self) -> u64 {
        self.interval_us().saturating_mul(self.burst)
    }
}

fn micros(span: Span) -> u64 {
    span.millis().unsigned_abs().saturating_mul(1000)
}

impl TryFrom<RateLimitInput> for RateLimit {
    type Error = &'static str;

    fn try_from(input: RateLimitInput) -> Result<Self, Self::Error> {
        let RateLimitInput {
            name,
            limit,
            period,
            burst,
            fail_mode,
        } = input;
        let burst = burst.unwrap_or(limit);
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err("limit must be 1 to 1000000000");
        }
        if !(1..=LIMIT_MAX).contains(&burst) {
            return Err("burst must be 1 to 1000000000");
        }
        if !(PERIOD_MIN..=PERIOD_MAX).contains(&period) {
            return Err("period must be 1s to 31d");
        }
        // The interval would be rounded up to a microsecond, and the limit mean less than it says.
        if limit > micros(period) {
            return Err("limit must be at most one a microsecond");
        }
        let limit = Self {
            name,
            limit,
            period,
            burst,
            fail_mode,
        };
        if limit.refill_us() > micros(REFILL_MAX) {
            return Err("burst must be available again within 366d");
        }
        Ok(limit)
    }
}

/// The rate limits of one object, at most 10, each with a name of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(max_items = 10)]
pub struct RateLimits(Vec<RateLimit>);

impl RateLimits {
    /// # Errors
    /// What the list must be.
    pub fn new(limits: Vec<RateLimit>) -> Result<Self, &'static str> {
        if limits.len() > RATE_LIMITS_MAX {
            return Err("must have at most 10 rate limits");
        }
        let names: BTreeSet<&LimitName> = limits.iter().map(|limit| &limit.name).collect();
        if names.len() < limits.len() {
            return Err("must give each rate limit a name of its own");
        }
        Ok(Self(limits))
    }

    pub fn iter(&self) -> std::slice::Iter<'_, RateLimit> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl IntoIterator for RateLimits {
    type Item = RateLimit;
    type IntoIter = std::vec::IntoIter<RateLimit>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<'a> IntoIterator for &'a RateLimits {
    type Item = &'a RateLimit;
    type IntoIter = std::slice::Iter<'a, RateLimit>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<'de> Deserialize<'de> for RateLimits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// The calendar period (UTC) after which a quota is full again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuotaPeriod {
    Day,
    Month,
}

/// A counter per calendar day or month (UTC).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "QuotaInput", deny_unknown_fields)]
pub struct Quota {
    #[schema(minimum = 1, maximum = 1_000_000_000, example = 100_000)]
    pub limit: u64,
    pub period: QuotaPeriod,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuotaInput {
    limit: u64,
    period: QuotaPeriod,
}

impl TryFrom<QuotaInput> for Quota {
    type Error = &'static str;

    fn try_from(QuotaInput { limit, period }: QuotaInput) -> Result<Self, Self::Error> {
        if !(1..=LIMIT_MAX).contains(&limit) {
            return Err("limit must be 1 to 1000000000");
        }
        Ok(Self { limit, period })
    }
}

/// A merge patch for a quota.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct QuotaPatch {
    #[serde(default, deserialize_with = "given")]
    #[schema(
        minimum = 1,
        maximum = 1_000_000_000,
        example = 100_000,
        nullable = false
    )]
    pub limit: Option<u64>,
    #[serde(default, deserialize_with = "given")]
    #[schema(nullable = false)]
    pub period: Option<QuotaPeriod>,
}

impl QuotaPatch {
    /// # Errors
    /// What the quota must be after the patch.
    pub fn apply(self, quota: Option<Quota>) -> Result<Quota, &'static str> {
        Quota::try_from(QuotaInput {
            limit: self
                .limit
                .or(quota.map(|quota| quota.limit))
                .ok_or("must have a limit")?,
            period: self
                .period
                .or(quota.map(|quota| quota.period))
                .ok_or("must have a period")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{from_str, from_value, json};

    use super::*;

    #[test]
    fn burst_and_fail_mode_have_defaults() {
        let limit: RateLimit =
            from_value(json!({"name": "per-minute", "limit": 100, "period": "1m"})).unwrap();
        assert_eq!(limit.burst, 100);
        assert_eq!(limit.fail_mode, FailMode::Local);
        assert_eq!(limit.interval_us(), 600_000);
        assert_eq!(
            serde_json::to_value(&limit).unwrap(),
            json!({"name": "per-minute", "limit": 100, "period": "1m", "burst": 100, "fail_mode": "local"})
        );
    }

    #[test]
    fn a_limit_out_of_range_is_refused() {
        let limit = |limit: &str, period: &str, burst: &str| {
            from_str::<RateLimit>(&format!(
                r#"{{"name": "a", "limit": {limit}, "period": {period}, "burst": {burst}}}"#
            ))
        };
        limit("1", "\"31d\"", "1").unwrap();
        limit("1000000000", "\"1h\"", "1000000000").unwrap();
        let huge = [
            "0",
            "-1",
            "1.5",
            "9223372036854775807",
            "18446744073709551616",
            "1e308",
            "\"1\"",
            "[]",
        ];
        for bad in huge {
            assert!(limit(bad, "\"1m\"", "1").is_err(), "limit {bad}");
            assert!(limit("1", "\"1m\"", bad).is_err(), "burst {bad}");
            assert!(from_str::<Quota>(&format!(r#"{{"limit": {bad}, "period": "day"}}"#)).is_err());
        }
        for bad in ["\"0s\"", "\"999ms\"", "\"32d\"", "\"-1s\"", "1", "null"] {
            assert!(limit("1", bad, "1").is_err(), "period {bad}");
        }
        assert!(limit("1000001", "\"1s\"", "1").is_err());
        assert!(limit("1", "\"31d\"", "1000000000").is_err());
    }

    #[test]
    fn names_are_unique_and_few() {
        let limit = |name: String| json!({"name": name, "limit": 1, "period": "1s"});
        let many: Vec<_> = (0..10).map(|i| limit(format!("a{i}"))).collect();
        assert!(from_value::<RateLimits>(json!(many)).is_ok());
        let more: Vec<_> = (0..11).map(|i| limit(format!("a{i}"))).collect();
        assert!(from_value::<RateLimits>(json!(more)).is_err());
        assert!(from_value::<RateLimits>(json!([limit("a".into()), limit("a".into())])).is_err());
        let unknown = json!([{"name": "a", "limit": 1, "period": "1s", "brust": 2}]);
        assert!(from_value::<RateLimits>(unknown).is_err());
    }

    #[test]
    fn a_patch_of_a_quota_keeps_what_it_does_not_name() {
        let patch: QuotaPatch = from_value(json!({"limit": 5})).unwrap();
        let day = Quota {
            limit: 9,
            period: QuotaPeriod::Day,
        };
        assert_eq!(patch.clone().apply(Some(day)).unwrap().limit, 5);
        assert!(patch.apply(None).is_err());
        for bad in [
            json!({"limits": 5}),
            json!({"limit": null}),
            json!({"period": null}),
        ] {
            assert!(from_value::<QuotaPatch>(bad.clone()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_stays_in_range(
            limit in 0..2_000_000_000_u64,
            burst in proptest::option::of(0..2_000_000_000_u64),
            millis in 0..4_000_000_000_u64,
        ) {
            let made = RateLimit::try_from(RateLimitInput {
                name: LimitName::parse("a").unwrap(),
                limit,
                period: Span::from_millis(millis),
                burst,
                fail_mode: FailMode::Local,
            });
            if let Ok(made) = made {
                prop_assert!(made.interval_us() >= 1);
                let refill = made.interval_us().checked_mul(made.burst);
                prop_assert!(refill.is_some_and(|us| i64::try_from(us).is_ok()));
            }
        }
    }
}
