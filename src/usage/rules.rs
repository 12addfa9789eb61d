//! Which uses leave an event beside their count.

use std::collections::HashMap;
use std::mem;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::record::{Batch, CountLine, Record};

/// How many refusals of one key leave an event in one second.
const REFUSALS_MAX: u32 = 100;

/// Blocks of several workers are less than this apart, in seconds: what is further back was recorded by a clock
/// that was set back since, or left the journal late.
const BACK_MAX: i64 = 5;

/// Which of a service's uses leave an event. All of them are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Events {
    #[default]
    All,
    /// Only what was refused.
    Refused,
    None,
}

/// What the services keep, and everything of services that are not named here.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// By tenant, then by slug.
    services: HashMap<String, HashMap<String, Events>>,
}

impl Rules {
    pub fn set(&mut self, tenant_id: &str, service: &str, events: Events) {
        let services = self.services.entry(tenant_id.to_owned()).or_default();
        services.insert(service.to_owned(), events);
    }

    /// Whether this use leaves an event. What no key was identified for never does.
    pub fn keep(&self, record: &Record) -> bool {
        let service = self
            .services
            .get(&record.tenant_id)
            .and_then(|services| services.get(&record.service))
            .copied()
            .unwrap_or_default();
        record.key.is_some()
            && match service {
                Events::All => true,
                Events::Refused => !record.is_valid(),
                Events::None => false,
            }
    }
}

/// How many refusals each key has had in the second at hand. Kept by who sends batches, from one
/// to the next.
#[derive(Clone, Debug, Default)]
pub struct Refusals {
    second: i64,
    seen: HashMap<String, u32>,
}

impl Refusals {
    /// Moves refusals over the limit from the events of `batch` to its counts; answers how many.
    pub fn fold(&mut self, batch: &mut Batch) -> usize {
        let before = batch.counts_only.len();
        for record in mem::take(&mut batch.records) {
            if self.admit(&record) {
                batch.records.push(record);
            } else {
                batch.counts_only.push(CountLine { record, uses: 1 });
            }
        }
        batch.counts_only.len() - before
    }

    fn admit(&mut self, record: &Record) -> bool {
        let Some(key) = record.key.as_ref().filter(|_| !record.is_valid()) else {
            return true;
        };
        let second = record.at.unix_seconds();
        // Records come nearly in the order of time; one that is a little late counts in the second at hand.
        if second > self.second || second < self.second.saturating_sub(BACK_MAX) {
            self.second = second;
            self.seen.clear();
        }
        let seen = self.seen.entry(key.key_id.clone()).or_default();
        *seen = seen.saturating_add(1);
        *seen <= REFUSALS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::counts::tests::record;
    use crate::usage::record::VALID;

    #[test]
    fn a_service_keeps_all_events_or_refusals_or_none() {
        let mut rules = Rules::default();
        rules.set("ten_1", "some", Events::Refused);
        rules.set("ten_1", "silent", Events::None);
        let keeps = |service: &str, outcome: &str| {
            rules.keep(&Record {
                service: service.to_owned(),
                outcome: outcome.to_owned(),
                ..record(0)
            })
        };
        assert!(keeps("other", VALID) && keeps("other", "expired"));
        assert!(!keeps("some", VALID) && keeps("some", "expired"));
        assert!(!keeps("silent", VALID) && !keeps("silent", "expired"));
        let stranger = Record {
            key: None,
            ..record(0)
        };
        assert!(!rules.keep(&stranger));
    }

    fn refused(at: i64) -> Record {
        Record {
            outcome: "expired".to_owned(),
            ..record(at)
        }
    }

    fn batch(records: Vec<Record>) -> Batch {
        Batch {
            node: "n".to_owned(),
            number: 1,
            records,
            shed: 0,
            counts_only: Vec::new(),
        }
    }

    #[test]
    fn of_one_keys_refusals_a_hundred_a_second_are_events() {
        let mut refusals = Refusals::default();
        let mut first = batch(vec![refused(5_000); 90]);
        first.records.push(record(5_000));
        assert_eq!(refusals.fold(&mut first), 0);
        let mut second = batch(vec![refused(5_900); 30]);
        assert_eq!(refusals.fold(&mut second), 20);
        assert_eq!((second.records.len(), second.counts_only.len()), (10, 20));
        assert_eq!(refusals.fold(&mut batch(vec![refused(6_000); 5])), 0);
        assert_eq!(refusals.fold(&mut batch(vec![record(6_000); 500])), 0);
        // One worker is a little behind another.
        assert_eq!(refusals.fold(&mut batch(vec![refused(5_000); 100])), 5);
    }

    #[test]
    fn a_clock_that_is_set_back_takes_no_events() {
        let mut refusals = Refusals::default();
        for (at, folded) in [
            (90_000, 50),
            (30_000, 50),
            (29_500, 150),
            (30_500, 150),
            (31_000, 50),
        ] {
            let mut batch = batch(vec![refused(at); 150]);
            assert_eq!(refusals.fold(&mut batch), folded, "{at}");
        }
    }
}
