//! Calendar days and months (UTC), which quotas are counted over.

use chrono::{DateTime, Datelike as _, Months, NaiveDate, NaiveTime, Utc};

use crate::limits::QuotaPeriod;
use crate::time::{Span, Timestamp};

/// One day or month: from `start`, up to but not including `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) start: Timestamp,
    pub(super) end: Timestamp,
}

const DAY_MS: i64 = 86_400_000;

impl Period {
    pub(super) fn containing(kind: QuotaPeriod, at: Timestamp) -> Self {
        let day = Timestamp::from_millis(at.millis().div_euclid(DAY_MS).saturating_mul(DAY_MS));
        match kind {
            QuotaPeriod::Day => Self {
                start: day,
                end: day.plus(Span::days(1)),
            },
            QuotaPeriod::Month => {
                let date = DateTime::<Utc>::from_timestamp_millis(at.millis()).unwrap_or_default();
                let first = date.date_naive().with_day(1).unwrap_or_default();
                let next = first.checked_add_months(Months::new(1)).unwrap_or(first);
                Self {
                    start: midnight(first),
                    end: midnight(next),
                }
            }
        }
    }

    /// Names the period in the key of a counter.
    pub(super) fn day_number(self) -> i64 {
        self.start.millis() / DAY_MS
    }
}

fn midnight(date: NaiveDate) -> Timestamp {
    Timestamp::from_millis(date.and_time(NaiveTime::MIN).and_utc().timestamp_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_months_end_at_midnight_utc() {
        let bounds = |kind, at: &str| {
            let period = Period::containing(kind, at.parse().unwrap());
            format!("{} {}", period.start, period.end)
        };
        assert_eq!(
            bounds(QuotaPeriod::Day, "2028-02-28T23:59:59.999Z"),
            "2028-02-28T00:00:00.000Z 2028-02-29T00:00:00.000Z"
        );
        assert_eq!(
            bounds(QuotaPeriod::Day, "2028-02-29T00:00:00Z"),
            "2028-02-29T00:00:00.000Z 2028-03-01T00:00:00.000Z"
        );
        assert_eq!(
            bounds(QuotaPeriod::Month, "2028-02-29T23:59:59.999Z"),
            "2028-02-01T00:00:00.000Z 2028-03-01T00:00:00.000Z"
        );
        assert_eq!(
            bounds(QuotaPeriod::Month, "2027-12-31T00:00:00Z"),
            "2027-12-01T00:00:00.000Z 2028-01-01T00:00:00.000Z"
        );
        // The ends of what a timestamp can be.
        for at in [Timestamp::from_millis(0), Timestamp::MAX] {
            for kind in [QuotaPeriod::Day, QuotaPeriod::Month] {
                let period = Period::containing(kind, at);
                assert!(period.start <= at && at <= period.end);
            }
        }
    }
}
