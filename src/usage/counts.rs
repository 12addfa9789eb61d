//! From records to rows of counts: pure, exact, and the same whatever the order of the records.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::pauses::with_pauses;
use super::record::{Batch, Operation, Record};
use crate::time::Timestamp;

pub const MINUTE_MS: i64 = 60_000;
pub const HOUR_MS: i64 = 60 * MINUTE_MS;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// So many uses, or rows, are added up in some ten microseconds.
const USES_A_PAUSE: u32 = 16;

/// In the place of an address: those of a key beyond as many as are told apart.
pub const OTHER: &str = "other";

/// A row of uses by minute or hour. The order of the members is the order in which rows are locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UseKey {
    pub tenant_id: String,
    pub start: i64,
    /// Empty with `secret_id` and `consumer_id` when no key was identified.
    pub key_id: String,
    pub secret_id: String,
    pub superseded: i32,
    pub service: String,
    pub outcome: String,
    pub operation: Operation,
    pub caller: String,
    pub consumer_id: String,
}

/// A row of uses by day.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DayKey {
    pub tenant_id: String,
    pub start: i64,
    pub service: String,
    pub outcome: String,
    pub operation: Operation,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpKey {
    pub tenant_id: String,
    pub day: i64,
    pub key_id: String,
    /// Or [`OTHER`].
    pub ip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ScopeKey {
    pub tenant_id: String,
    pub day: i64,
    pub key_id: String,
    pub service: String,
    pub scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StrangerKey {
    pub tenant_id: String,
    pub hour: i64,
    pub caller: String,
    pub service: String,
    pub outcome: String,
    pub operation: Operation,
    pub ip: String,
}

/// How often, and what it cost. Only what was let through costs anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uses {
    pub uses: u64,
    pub cost: u64,
}

/// How often, from when to when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub uses: u64,
    pub first_at: i64,
    pub last_at: i64,
}

/// All that batches add to the tables, each row once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub minutes: BTreeMap<UseKey, Uses>,
    pub hours: BTreeMap<UseKey, Uses>,
    pub days: BTreeMap<DayKey, Uses>,
    pub ips: BTreeMap<IpKey, Seen>,
    pub scopes: BTreeMap<ScopeKey, Seen>,
    pub strangers: BTreeMap<StrangerKey, u64>,
}

impl Counts {
    pub fn of(batches: &[Batch]) -> Self {
        let mut tally = Tally::default();
        for batch in batches {
            for record in with_pauses(USES_A_PAUSE, &batch.records) {
                tally.add(record, 1);
            }
            for line in with_pauses(USES_A_PAUSE, &batch.counts_only) {
                tally.add(&line.record, line.uses);
            }
        }
        tally.counts()
    }
}

/// Who used what of whom: all that a row of uses is told by but its time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Who<'a> {
    tenant_id: &'a str,
    key_id: &'a str,
    secret_id: &'a str,
    superseded: bool,
    service: &'a str,
    outcome: &'a str,
    operation: Operation,
    caller: &'a str,
    consumer_id: &'a str,
}

/// Adds up without a copy of any text: there are many records and few rows.
#[derive(Default)]
struct Tally<'a> {
    minutes: HashMap<(i64, Who<'a>), Uses>,
    /// By tenant, day, key and address.
    ips: HashMap<(&'a str, i64, &'a str, &'a str), Seen>,
    /// By tenant, day, key, service and scope.
    scopes: HashMap<(&'a str, i64, &'a str, &'a str, &'a str), Seen>,
    /// By the minute, and the address.
    strangers: HashMap<(i64, Who<'a>, &'a str), u64>,
}

impl<'a> Tally<'a> {
    /// Adds `uses` uses that were all like `record`.
    fn add(&mut self, record: &'a Record, uses: u64) {
        if uses == 0 {
            return;
        }
        let added = Uses {
            uses,
            cost: if record.is_valid() {
                record.cost.saturating_mul(uses)
            } else {
                0
            },
        };
        let (minute, who) = (start(record.at, MINUTE_MS), Who::of(record));
        self.minutes.entry((minute, who)).or_default().add(added);
        let ip = record.ip.as_deref();
        if record.key.is_none() {
            let row = self.strangers.entry((minute, who, ip.unwrap_or_default()));
            let known = row.or_default();
            *known = known.saturating_add(uses);
            return;
        }
        let (day, at) = (start(record.at, DAY_MS), record.at.millis());
        let seen = Seen {
            uses,
            first_at: at,
            last_at: at,
        };
        if let Some(ip) = ip {
            let row = (who.tenant_id, day, who.key_id, ip);
            put(&mut self.ips, row, seen);
        }
        for scope in &record.used_scopes {
            let row = (who.tenant_id, day, who.key_id, who.service, &**scope);
            put(&mut self.scopes, row, seen);
        }
    }

    fn counts(self) -> Counts {
        let mut counts = Counts::default();
        for ((minute, who), uses) in with_pauses(USES_A_PAUSE, self.minutes) {
            let at = Timestamp::from_millis(minute);
            let hours = counts.hours.entry(who.row(start(at, HOUR_MS)));
            hours.or_default().add(uses);
            let days = counts.days.entry(who.day(start(at, DAY_MS)));
            days.or_default().add(uses);
            counts.minutes.insert(who.row(minute), uses);
        }
        let ips = with_pauses(USES_A_PAUSE, self.ips);
        counts.ips = ips
            .map(|((tenant_id, day, key_id, ip), seen)| {
                let row = IpKey {
                    tenant_id: tenant_id.to_owned(),
                    day,
                    key_id: key_id.to_owned(),
                    ip: ip.to_owned(),
                };
                (row, seen)
            })
            .collect();
        let scopes = with_pauses(USES_A_PAUSE, self.scopes);
        counts.scopes = scopes
            .map(|((tenant_id, day, key_id, service, scope), seen)| {
                let row = ScopeKey {
                    tenant_id: tenant_id.to_owned(),
                    day,
                    key_id: key_id.to_owned(),
                    service: service.to_owned(),
                    scope: scope.to_owned(),
                };
                (row, seen)
            })
            .collect();
        for ((minute, who, ip), uses) in self.strangers {
            let hour = start(Timestamp::from_millis(minute), HOUR_MS);
            let known = counts.strangers.entry(who.stranger(hour, ip)).or_default();
            *known = known.saturating_add(uses);
        }
        counts
    }
}

fn put<K: Eq + Hash>(rows: &mut HashMap<K, Seen>, row: K, seen: Seen) {
    let known = rows.entry(row);
    known.and_modify(|known| known.add(seen)).or_insert(seen);
}

impl<'a> Who<'a> {
    fn of(record: &'a Record) -> Self {
        let key = record.key.as_ref();
        Self {
            tenant_id: &record.tenant_id,
            key_id: key.map_or("", |key| &key.key_id),
            secret_id: key.map_or("", |key| &key.secret_id),
            superseded: key.is_some_and(|key| key.superseded),
            service: &record.service,
            outcome: &record.outcome,
            operation: record.operation,
            caller: &record.caller,
            consumer_id: key.map_or("", |key| &key.consumer_id),
        }
    }

    fn row(&self, start: i64) -> UseKey {
        UseKey {
            tenant_id: self.tenant_id.to_owned(),
            start,
            key_id: self.key_id.to_owned(),
            secret_id: self.secret_id.to_owned(),
            superseded: i32::from(self.superseded),
            service: self.service.to_owned(),
            outcome: self.outcome.to_owned(),
            operation: self.operation,
            caller: self.caller.to_owned(),
            consumer_id: self.consumer_id.to_owned(),
        }
    }

    fn day(&self, start: i64) -> DayKey {
        DayKey {
            tenant_id: self.tenant_id.to_owned(),
            start,
            service: self.service.to_owned(),
            outcome: self.outcome.to_owned(),
            operation: self.operation,
        }
    }

    fn stranger(&self, hour: i64, ip: &str) -> StrangerKey {
        StrangerKey {
            tenant_id: self.tenant_id.to_owned(),
            hour,
            caller: self.caller.to_owned(),
            service: self.service.to_owned(),
            outcome: self.outcome.to_owned(),
            operation: self.operation,
            ip: ip.to_owned(),
        }
    }
}

impl Uses {
    fn add(&mut self, other: Self) {
        self.uses = self.uses.saturating_add(other.uses);
        self.cost = self.cost.saturating_add(other.cost);
    }
}

impl Seen {
    pub(super) fn add(&mut self, other: Self) {
        self.uses = self.uses.saturating_add(other.uses);
        self.first_at = self.first_at.min(other.first_at);
        self.last_at = self.last_at.max(other.last_at);
    }
}

/// The beginning of the span of `length_ms` that `at` lies in.
pub fn start(at: Timestamp, length_ms: i64) -> i64 {
    let at = at.millis();
    at - at.rem_euclid(length_ms)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::super::record::Identified;
    use super::*;

    /// A valid use of `key_1` at this Unix millisecond.
    pub(crate) fn record(at: i64) -> Record {
        Record {
            at: Timestamp::from_millis(at),
            tenant_id: "ten_1".to_owned(),
            key: Some(Identified {
                key_id: "key_1".to_owned(),
                secret_id: "sec_1".to_owned(),
                superseded: false,
                consumer_id: "con_1".to_owned(),
            }),
            service: "billing".to_owned(),
            environment: "live".to_owned(),
            operation: Operation::Verify,
            outcome: "valid".to_owned(),
            required_scopes: vec!["invoice:read".to_owned()],
            any_scopes: Vec::new(),
            cost: 1,
            used_scopes: vec!["invoice:*".to_owned()],
            ip: Some("192.0.2.1".to_owned()),
            method: None,
            path: None,
            user_agent: None,
            context: BTreeMap::new(),
            token_id: None,
            subject: None,
            actor: None,
            caller: "key_caller".to_owned(),
            request_id: "request".to_owned(),
            latency_us: 50,
        }
    }

    fn any_record() -> impl Strategy<Value = (Record, u64)> {
        (0..3 * DAY_MS, 0..3_u8, any::<bool>(), 0..5_u64, 1..4_u64).prop_map(
            |(at, who, valid, cost, uses)| {
                let mut record = record(at);
                record.cost = cost;
                record.ip = Some(format!("192.0.2.{who}"));
                if who == 0 {
                    record.key = None;
                    record.used_scopes.clear();
                }
                if !valid || who == 0 {
                    "unknown".clone_into(&mut record.outcome);
                }
                (record, uses)
            },
        )
    }

    fn counted<'a>(uses: impl IntoIterator<Item = (&'a Record, u64)>) -> Counts {
        let mut tally = Tally::default();
        for (record, uses) in uses {
            tally.add(record, uses);
        }
        tally.counts()
    }

    fn total<K>(rows: &BTreeMap<K, Uses>) -> (u64, u64) {
        let uses = rows.values().map(|row| row.uses).sum();
        (uses, rows.values().map(|row| row.cost).sum())
    }

    proptest! {
        #[test]
        fn every_table_counts_every_use_once_in_any_order(
            records in prop::collection::vec(any_record(), 0..60)
        ) {
            let forward = counted(records.iter().map(|(record, uses)| (record, *uses)));
            let singly = records.iter().rev().flat_map(|(record, uses)| {
                (0..*uses).map(move |_| (record, 1))
            });
            prop_assert_eq!(&forward, &counted(singly));
            let all: u64 = records.iter().map(|(_, uses)| uses).sum();
            let cost: u64 = records
                .iter()
                .filter(|(record, _)| record.is_valid())
                .map(|(record, uses)| record.cost * uses)
                .sum();
            prop_assert_eq!(total(&forward.minutes), (all, cost));
            prop_assert_eq!(total(&forward.hours), (all, cost));
            prop_assert_eq!(total(&forward.days), (all, cost));
            let known: u64 = forward.ips.values().map(|row| row.uses).sum();
            let strangers: u64 = forward.strangers.values().sum();
            prop_assert_eq!(known + strangers, all);
        }
    }

    #[test]
    fn a_use_stands_in_the_minute_hour_and_day_it_began_in() {
        let records = [record(DAY_MS - 1), record(DAY_MS)];
        let counts = counted(records.iter().map(|record| (record, 1)));
        let starts: Vec<i64> = counts.minutes.keys().map(|row| row.start).collect();
        assert_eq!(starts, [DAY_MS - MINUTE_MS, DAY_MS]);
        let starts: Vec<i64> = counts.hours.keys().map(|row| row.start).collect();
        assert_eq!(starts, [DAY_MS - HOUR_MS, DAY_MS]);
        let starts: Vec<i64> = counts.days.keys().map(|row| row.start).collect();
        assert_eq!(starts, [0, DAY_MS]);
    }

    #[test]
    fn an_address_and_a_scope_remember_their_first_and_last_use() {
        let records = [500, 100, 900].map(record);
        let counts = counted(records.iter().map(|record| (record, 2)));
        let seen = Seen {
            uses: 6,
            first_at: 100,
            last_at: 900,
        };
        assert_eq!(counts.ips.into_values().collect::<Vec<_>>(), [seen]);
        assert_eq!(counts.scopes.into_values().collect::<Vec<_>>(), [seen]);
    }

    #[test]
    fn counts_that_cannot_be_stay_at_the_largest() {
        let dear = Record {
            cost: u64::MAX,
            ..record(0)
        };
        let counts = counted([(&dear, 3)]);
        assert_eq!(total(&counts.days), (3, u64::MAX));
    }
}
