//! From records to rows of counts: pure, exact, and the same whatever the order of the records.

use std::collections::BTreeMap;

use serde::Serialize;

use super::record::{Batch, Operation, Record};
use crate::time::Timestamp;

pub const MINUTE_MS: i64 = 60_000;
pub const HOUR_MS: i64 = 60 * MINUTE_MS;
pub const DAY_MS: i64 = 24 * HOUR_MS;

/// A row of uses by minute or hour. The order of the members is the order in which rows are locked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DayKey {
    pub tenant_id: String,
    pub start: i64,
    pub service: String,
    pub outcome: String,
    pub operation: Operation,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct IpKey {
    pub tenant_id: String,
    pub day: i64,
    pub key_id: String,
    pub ip: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ScopeKey {
    pub tenant_id: String,
    pub day: i64,
    pub key_id: String,
    pub service: String,
    pub scope: String,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Uses {
    pub uses: u64,
    pub cost: u64,
}

/// How often, from when to when.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    pub uses: u64,
    pub first_at: i64,
    pub last_at: i64,
}

/// All that a batch adds to the tables, each row once.
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
    pub fn of(batch: &Batch) -> Self {
        let mut counts = Self::default();
        for record in &batch.records {
            counts.add(record, 1);
        }
        for line in &batch.counts_only {
            counts.add(&line.record, line.uses);
        }
        counts
    }

    /// Adds `uses` uses that were all like `record`.
    pub fn add(&mut self, record: &Record, uses: u64) {
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
        let minute = use_key(record, start(record.at, MINUTE_MS));
        let hour = UseKey {
            start: start(record.at, HOUR_MS),
            ..minute.clone()
        };
        let day = DayKey {
            tenant_id: record.tenant_id.clone(),
            start: start(record.at, DAY_MS),
            service: record.service.clone(),
            outcome: record.outcome.clone(),
            operation: record.operation,
        };
        self.minutes.entry(minute).or_default().add(added);
        self.hours.entry(hour).or_default().add(added);
        self.days.entry(day).or_default().add(added);
        if let Some(key) = &record.key {
            self.add_whereabouts(record, &key.key_id, uses);
        } else {
            let stranger = self.strangers.entry(StrangerKey {
                tenant_id: record.tenant_id.clone(),
                hour: start(record.at, HOUR_MS),
                caller: record.caller.clone(),
                service: record.service.clone(),
                outcome: record.outcome.clone(),
                operation: record.operation,
                ip: record.ip.clone().unwrap_or_default(),
            });
            let known = stranger.or_default();
            *known = known.saturating_add(uses);
        }
    }

    fn add_whereabouts(&mut self, record: &Record, key_id: &str, uses: u64) {
        let (day, at) = (start(record.at, DAY_MS), record.at.millis());
        let seen = Seen {
            uses,
            first_at: at,
            last_at: at,
        };
        if let Some(ip) = &record.ip {
            let row = self.ips.entry(IpKey {
                tenant_id: record.tenant_id.clone(),
                day,
                key_id: key_id.to_owned(),
                ip: ip.clone(),
            });
            row.and_modify(|known| known.add(seen)).or_insert(seen);
        }
        for scope in &record.used_scopes {
            let row = self.scopes.entry(ScopeKey {
                tenant_id: record.tenant_id.clone(),
                day,
                key_id: key_id.to_owned(),
                service: record.service.clone(),
                scope: scope.clone(),
            });
            row.and_modify(|known| known.add(seen)).or_insert(seen);
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
    fn add(&mut self, other: Self) {
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

fn use_key(record: &Record, start: i64) -> UseKey {
    let key = record.key.as_ref();
    UseKey {
        tenant_id: record.tenant_id.clone(),
        start,
        key_id: key.map_or_else(String::new, |key| key.key_id.clone()),
        secret_id: key.map_or_else(String::new, |key| key.secret_id.clone()),
        superseded: key.map_or(0, |key| i32::from(key.superseded)),
        service: record.service.clone(),
        outcome: record.outcome.clone(),
        operation: record.operation,
        caller: record.caller.clone(),
        consumer_id: key.map_or_else(String::new, |key| key.consumer_id.clone()),
    }
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

    fn total<K>(rows: &BTreeMap<K, Uses>) -> (u64, u64) {
        let uses = rows.values().map(|row| row.uses).sum();
        (uses, rows.values().map(|row| row.cost).sum())
    }

    proptest! {
        #[test]
        fn every_table_counts_every_use_once_in_any_order(
            records in prop::collection::vec(any_record(), 0..60)
        ) {
            let (mut forward, mut backward) = (Counts::default(), Counts::default());
            for (record, uses) in &records {
                forward.add(record, *uses);
            }
            for (record, uses) in records.iter().rev() {
                for _ in 0..*uses {
                    backward.add(record, 1);
                }
            }
            prop_assert_eq!(&forward, &backward);
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
        let mut counts = Counts::default();
        counts.add(&record(DAY_MS - 1), 1);
        counts.add(&record(DAY_MS), 1);
        let starts: Vec<i64> = counts.minutes.keys().map(|row| row.start).collect();
        assert_eq!(starts, [DAY_MS - MINUTE_MS, DAY_MS]);
        let starts: Vec<i64> = counts.hours.keys().map(|row| row.start).collect();
        assert_eq!(starts, [DAY_MS - HOUR_MS, DAY_MS]);
        let starts: Vec<i64> = counts.days.keys().map(|row| row.start).collect();
        assert_eq!(starts, [0, DAY_MS]);
    }

    #[test]
    fn an_address_and_a_scope_remember_their_first_and_last_use() {
        let mut counts = Counts::default();
        for at in [500, 100, 900] {
            counts.add(&record(at), 2);
        }
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
        let mut counts = Counts::default();
        counts.add(
            &Record {
                cost: u64::MAX,
                ..record(0)
            },
            3,
        );
        assert_eq!(total(&counts.days), (3, u64::MAX));
    }
}
