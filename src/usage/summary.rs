//! What a summary asks becomes one sum over one table; what comes back is filled where nothing was.

use std::collections::BTreeMap;

use super::query::{Bucket, Dimension, SummaryQuery};
use super::retention::{MINUTES_KEPT, minutes_from};
use super::store::summary::{Sum, SumRow, Table};
use crate::error::{Error, Result};
use crate::time::{Span, Timestamp};

/// How many points an answer has at most.
const POINTS_MAX: usize = 50_000;

/// How many buckets: the hours of 62 days, the minutes of a day, the days of four years.
const BUCKETS_MAX: i64 = 1_500;

const GROUPS_MAX: usize = 1_000;

/// One sum over one table.
///
/// # Errors
/// [`Error::Invalid`] names the parameter.
pub fn plan(
    query: &SummaryQuery,
    tenant_id: &str,
    services: Option<Vec<String>>,
    now: Timestamp,
) -> Result<Sum> {
    let mut group_by = query.group_by.clone();
    group_by.sort_unstable();
    group_by.dedup();
    let only = only(query);
    let table = table(query, &group_by, &only, services.is_some())?;
    let (from, to) = window(query, table, now)?;
    let buckets = query.bucket.map_or(1, |bucket| (to - from) / bucket.ms());
    if buckets > BUCKETS_MAX {
        return Err(Error::invalid(
            "from",
            format!("must be at most {BUCKETS_MAX} buckets before to"),
        ));
    }
    let buckets = usize::try_from(buckets).unwrap_or(usize::MAX).max(1);
    Ok(Sum {
        table,
        tenant_id: tenant_id.to_owned(),
        services,
        only,
        superseded: query.superseded,
        group_by,
        bucket: query.bucket,
        from,
        to,
        groups_max: (POINTS_MAX / buckets).clamp(1, GROUPS_MAX),
    })
}

fn only(query: &SummaryQuery) -> Vec<(Dimension, String)> {
    let operation = query
        .operation
        .map(|operation| operation.as_str().to_owned());
    [
        (Dimension::Key, query.key.clone()),
        (Dimension::Secret, query.secret.clone()),
        (Dimension::Consumer, query.consumer.clone()),
        (Dimension::Service, query.service.clone()),
        (Dimension::Operation, operation),
        (Dimension::Outcome, query.outcome.clone()),
        (Dimension::Caller, query.caller.clone()),
    ]
    .into_iter()
    .filter_map(|(dimension, value)| value.map(|value| (dimension, value)))
    .collect()
}

fn table(
    query: &SummaryQuery,
    group_by: &[Dimension],
    only: &[(Dimension, String)],
    is_limited: bool,
) -> Result<Table> {
    use Dimension::{Ip, Key, Operation, Outcome, Scope, Service};
    let asked = || group_by.iter().chain(only.iter().map(|(one, _)| one));
    let within = |known: &[Dimension]| asked().all(|one| known.contains(one));
    let by_day = |table: Table, known: &[Dimension], detail: &str| {
        if !within(known) || query.superseded.is_some() {
            return Err(Error::invalid("group_by", detail));
        }
        match query.bucket {
            None | Some(Bucket::Day) => Ok(table),
            Some(Bucket::Minute | Bucket::Hour) => {
                Err(Error::invalid("bucket", "must be day with ip and scope"))
            }
        }
    };
    if group_by.contains(&Ip) {
        if is_limited {
            return Err(Error::invalid(
                "group_by",
                "ip is counted for all services together, of which the caller may read some",
            ));
        }
        return by_day(Table::Ip, &[Ip, Key], "ip can be asked with key alone");
    }
    if group_by.contains(&Scope) {
        let known = [Scope, Key, Service];
        return by_day(
            Table::Scope,
            &known,
            "scope can be asked with key and service alone",
        );
    }
    match query.bucket {
        Some(Bucket::Minute) => Ok(Table::Minute),
        Some(Bucket::Hour) => Ok(Table::Hour),
        None | Some(Bucket::Day) => {
            let is_coarse = within(&[Service, Outcome, Operation]) && query.superseded.is_none();
            Ok(if is_coarse && query.bucket.is_some() {
                Table::Day
            } else {
                Table::Hour
            })
        }
    }
}

/// From the beginning of a bucket to the end of one.
fn window(query: &SummaryQuery, table: Table, now: Timestamp) -> Result<(i64, i64)> {
    let span = query
        .bucket
        .map_or_else(|| table.span_ms(), Bucket::ms)
        .max(table.span_ms());
    let to = query.to.unwrap_or(now);
    let usual = match query.bucket {
        Some(Bucket::Minute) => Span::hours(1),
        Some(Bucket::Hour) => Span::hours(24),
        Some(Bucket::Day) | None => Span::days(30),
    };
    let from = query.from.unwrap_or_else(|| to.minus(usual));
    if from >= to {
        return Err(Error::invalid("from", "must be before to"));
    }
    // What is no longer kept would seem not to have been.
    if table == Table::Minute && from.millis() < minutes_from(now) {
        return Err(Error::invalid(
            "from",
            format!(
                "must be at most {MINUTES_KEPT} ago with minutes, which are not kept for longer: ask for \
                 bucket=hour or bucket=day"
            ),
        ));
    }
    let (from, to) = (from.millis(), to.millis());
    let ends = to + (span - to.rem_euclid(span)) % span;
    Ok((from - from.rem_euclid(span), ends))
}

/// A group and what was counted of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// In the order of `group_by`.
    pub group: Vec<String>,
    pub uses: i64,
    pub cost: i64,
    /// One for each bucket, whether anything was counted in it or not; empty without buckets.
    pub points: Vec<Point>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub start: i64,
    pub uses: i64,
    pub cost: i64,
}

/// The series of the groups with the most uses, and whether there are others.
pub fn fill(what: &Sum, rows: Vec<SumRow>) -> (Vec<Series>, bool) {
    let mut order: Vec<Vec<String>> = Vec::new();
    let mut counted: BTreeMap<Vec<String>, BTreeMap<i64, (i64, i64)>> = BTreeMap::new();
    for row in rows {
        if order.last() != Some(&row.group) {
            order.push(row.group.clone());
        }
        let group = counted.entry(row.group).or_default();
        group.insert(row.start, (row.uses, row.cost));
    }
    let is_cut = order.len() > what.groups_max;
    order.truncate(what.groups_max);
    let series = order.into_iter().map(|group| {
        let counted = counted.remove(&group).unwrap_or_default();
        let sum = |part: fn(&(i64, i64)) -> i64| counted.values().map(part).sum();
        let (uses, cost) = (sum(|both| both.0), sum(|both| both.1));
        let points = match what.bucket {
            None => Vec::new(),
            Some(bucket) => starts(what.from, what.to, bucket.ms())
                .map(|start| {
                    let (uses, cost) = counted.get(&start).copied().unwrap_or_default();
                    Point { start, uses, cost }
                })
                .collect(),
        };
        Series {
            group,
            uses,
            cost,
            points,
        }
    });
    (series.collect(), is_cut)
}

fn starts(from: i64, to: i64, span: i64) -> impl Iterator<Item = i64> {
    let mut start = from;
    std::iter::from_fn(move || {
        let this = start;
        start = start.saturating_add(span);
        (this < to).then_some(this)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::counts::{DAY_MS, HOUR_MS, MINUTE_MS};

    fn query() -> SummaryQuery {
        SummaryQuery {
            from: Some(Timestamp::from_millis(DAY_MS + 1)),
            to: Some(Timestamp::from_millis(3 * DAY_MS + 1)),
            ..SummaryQuery::default()
        }
    }

    fn planned(query: &SummaryQuery) -> Result<Sum> {
        plan(query, "ten_1", None, Timestamp::from_millis(10 * DAY_MS))
    }

    #[test]
    fn a_long_summary_reads_the_smallest_table_that_knows_what_is_asked() {
        use Dimension::{Ip, Key, Outcome, Scope, Service};
        for (group_by, bucket, table) in [
            (vec![Outcome, Service], Some(Bucket::Day), Table::Day),
            (vec![Outcome, Key], Some(Bucket::Day), Table::Hour),
            (vec![Outcome], None, Table::Hour),
            (vec![Outcome], Some(Bucket::Hour), Table::Hour),
            (vec![Ip], Some(Bucket::Day), Table::Ip),
            (vec![Scope, Key], None, Table::Scope),
        ] {
            let query = SummaryQuery {
                group_by,
                bucket,
                ..query()
            };
            assert_eq!(planned(&query).unwrap().table, table, "{query:?}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_refused_by_the_name_of_its_parameter() {
        use Dimension::{Ip, Outcome};
        for (query, pointer) in [
            (
                SummaryQuery {
                    group_by: vec![Ip, Outcome],
                    ..query()
                },
                "group_by",
            ),
            (
                SummaryQuery {
                    group_by: vec![Ip],
                    bucket: Some(Bucket::Hour),
                    ..query()
                },
                "bucket",
            ),
            (
                SummaryQuery {
                    bucket: Some(Bucket::Minute),
                    from: Some(Timestamp::from_millis(4 * DAY_MS)),
                    to: Some(Timestamp::from_millis(6 * DAY_MS)),
                    ..query()
                },
                "from",
            ),
            (
                SummaryQuery {
                    from: query().to,
                    ..query()
                },
                "from",
            ),
        ] {
            let Err(Error::Invalid(violations)) = planned(&query) else {
                panic!("{query:?}");
            };
            assert_eq!(violations[0].pointer, pointer, "{query:?}");
        }
    }

    #[test]
    fn minutes_are_told_as_far_back_as_they_are_kept() {
        let now = 10 * DAY_MS + 1;
        let asked = |bucket, from: Option<i64>, to: i64| {
            let query = SummaryQuery {
                bucket,
                from: from.map(Timestamp::from_millis),
                to: Some(Timestamp::from_millis(to)),
                ..SummaryQuery::default()
            };
            plan(&query, "ten_1", None, Timestamp::from_millis(now))
        };
        let week_ago = now - 7 * DAY_MS;
        let told = asked(Some(Bucket::Minute), Some(week_ago), week_ago + HOUR_MS).unwrap();
        assert_eq!(told.from, week_ago - 1);
        let oldest = week_ago - 1 - MINUTE_MS;
        let told = asked(Some(Bucket::Minute), Some(oldest), week_ago).unwrap();
        assert_eq!(told.from, oldest);
        for from in [Some(oldest - 1), Some(0), None] {
            let refused = asked(Some(Bucket::Minute), from, week_ago + 1);
            let Err(Error::Invalid(violations)) = refused else {
                panic!("{from:?}");
            };
            assert_eq!(violations[0].pointer, "from");
            assert!(
                violations[0].detail.contains("at most 7d ago")
                    && violations[0].detail.contains("bucket=hour"),
                "{violations:?}"
            );
            // Hours know nothing of minutes, also at the edges.
            for bucket in [None, Some(Bucket::Hour), Some(Bucket::Day)] {
                let told = asked(bucket, from, week_ago + 1).unwrap();
                assert_ne!(told.table, Table::Minute);
            }
        }
    }

    #[test]
    fn a_bucket_in_which_nothing_was_counted_is_there_with_nothing() {
        let query = SummaryQuery {
            group_by: vec![Dimension::Outcome],
            bucket: Some(Bucket::Day),
            ..query()
        };
        let what = planned(&query).unwrap();
        assert_eq!((what.from, what.to), (DAY_MS, 4 * DAY_MS));
        let row = |group: &str, start, uses| SumRow {
            group: vec![group.to_owned()],
            start,
            uses,
            cost: 0,
        };
        let rows = vec![
            row("valid", DAY_MS, 5),
            row("valid", 3 * DAY_MS, 7),
            row("expired", 2 * DAY_MS, 1),
        ];
        let (series, is_cut) = fill(&what, rows);
        assert!(!is_cut);
        let uses: Vec<Vec<i64>> = series
            .iter()
            .map(|one| one.points.iter().map(|point| point.uses).collect())
            .collect();
        assert_eq!(uses, [[5, 0, 7], [0, 1, 0]]);
        assert_eq!(series[0].uses, 12);
    }

    #[test]
    fn times_at_the_ends_of_all_time_are_no_trouble() {
        let query = SummaryQuery {
            from: Some(Timestamp::from_millis(0)),
            to: Some(Timestamp::MAX),
            ..SummaryQuery::default()
        };
        let what = planned(&query).unwrap();
        assert!(what.from == 0 && what.to % HOUR_MS == 0);
    }
}
