//! What the uses of a batch say about an attack: a revoked key that is still used, a superseded secret
//! after its end, a scope that a key has not, and many refusals in one minute.
//!
//! It looks at what was recorded, on its way into the ledger, so that no validation waits for it. While
//! the ledger is away it sees nothing; what was missed it sees later. After a crash it may see a batch
//! twice.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::record::{Batch, Record};
use crate::clock::Clock;
use crate::telemetry::{SecurityEvent, SecurityLog, Sighting};

/// So many refusals in a minute are a burst.
const BURST: u64 = 100;

const MINUTE_US: u64 = 60_000_000;

/// How many callers and addresses are counted at a time.
const COUNTED_MAX: usize = 10_000;

/// What a client that works as it should meets too.
const ORDINARY: [&str; 3] = ["valid", "rate_limited", "quota_exceeded"];

/// Sees batches, in their order.
#[derive(Debug)]
pub struct Watch {
    log: SecurityLog,
    minute: Mutex<Minute>,
}

/// Refusals since the minute began.
#[derive(Debug, Default)]
struct Minute {
    began_us: u64,
    refused: HashMap<Whom, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Whom {
    /// Who asked.
    Caller(String),
    /// The client of who asked.
    Address(String),
}

impl Watch {
    pub fn new(log: SecurityLog) -> Self {
        Self {
            log,
            minute: Mutex::default(),
        }
    }

    /// What [`refused`] found in a batch.
    pub(super) fn see(&self, refused: &[(Record, u64)]) {
        self.see_at(refused, Clock::uptime_us());
    }

    fn see_at(&self, refused: &[(Record, u64)], now_us: u64) {
        for (record, uses) in refused {
            self.refused(record, *uses, now_us);
        }
    }

    fn refused(&self, record: &Record, uses: u64, now_us: u64) {
        if let Some(key) = &record.key {
            let of_key = match record.outcome.as_str() {
                "revoked" => Some((SecurityEvent::RevokedKeyUsed, &key.key_id)),
                "expired" if key.superseded => {
                    Some((SecurityEvent::SupersededSecretUsed, &key.secret_id))
                }
                "insufficient_scope" => Some((SecurityEvent::ScopeDenied, &key.key_id)),
                _ => None,
            };
            if let Some((event, whom)) = of_key {
                self.log.note(sighting(event, whom.clone(), record, uses));
            }
        }
        self.count(&Whom::Caller(record.caller.clone()), record, uses, now_us);
        if let Some(ip) = &record.ip {
            self.count(&Whom::Address(ip.clone()), record, uses, now_us);
        }
    }

    fn count(&self, whom: &Whom, record: &Record, uses: u64, now_us: u64) {
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        if now_us.saturating_sub(minute.began_us) >= MINUTE_US {
            minute.began_us = now_us;
            minute.refused.clear();
        }
        if minute.refused.len() >= COUNTED_MAX && !minute.refused.contains_key(whom) {
            return;
        }
        let refused = minute.refused.entry(whom.clone()).or_default();
        let before = *refused;
        *refused = before.saturating_add(uses);
        let all = *refused;
        drop(minute);
        // The one that makes it a burst stands for those before it.
        let told = if before >= BURST { uses } else { all };
        if all >= BURST {
            let name = match whom {
                Whom::Caller(name) | Whom::Address(name) => name.clone(),
            };
            let mut seen = sighting(SecurityEvent::FailureBurst, name, record, told);
            match whom {
                Whom::Caller(_) => seen.ip = None,
                Whom::Address(_) => seen.caller = None,
            }
            // Of many keys, of which the last is no more than one.
            seen.key = None;
            seen.secret = None;
            self.log.note(seen);
        }
    }
}

/// What is looked at of a batch, and how often it happened.
pub(super) fn refused(batch: &Batch) -> Vec<(Record, u64)> {
    let one = batch.records.iter().map(|record| (record, 1));
    let counted = batch.counts_only.iter();
    let counted = counted.map(|line| (&line.record, line.uses));
    one.chain(counted)
        .filter(|(record, _)| !ORDINARY.contains(&record.outcome.as_str()))
        .map(|(record, uses)| (record.clone(), uses))
        .collect()
}

fn sighting(event: SecurityEvent, whom: String, record: &Record, uses: u64) -> Sighting {
    let key = record.key.as_ref();
    Sighting {
        count: uses,
        reason: Some(record.outcome.clone()),
        tenant: Some(record.tenant_id.clone()),
        service: Some(record.service.clone()),
        key: key.map(|key| key.key_id.clone()),
        secret: key.map(|key| key.secret_id.clone()),
        caller: Some(record.caller.clone()),
        ip: record.ip.clone(),
        request_id: Some(record.request_id.clone()),
        ..Sighting::new(event, whom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::usage::CountLine;
    use crate::usage::counts::tests::record;

    fn batch(records: Vec<Record>) -> Batch {
        Batch {
            node: "n".to_owned(),
            number: 1,
            records,
            shed: 0,
            counts_only: Vec::new(),
        }
    }

    fn of(outcome: &str, superseded: bool) -> Record {
        let mut record = record(0);
        record.outcome = outcome.to_owned();
        record.ip = Some("192.0.2.1".to_owned());
        if let Some(key) = &mut record.key {
            key.superseded = superseded;
        }
        record
    }

    #[test]
    fn what_is_refused_for_a_reason_is_counted_by_it() {
        let metrics = Metrics::new(&[]);
        let watch = Watch::new(metrics.security.clone());
        let mut seen = batch(vec![
            of("valid", true),
            of("rate_limited", false),
            of("revoked", false),
            of("expired", false),
            of("expired", true),
            of("insufficient_scope", false),
        ]);
        seen.counts_only.push(CountLine {
            record: of("revoked", false),
            uses: 4,
        });
        watch.see_at(&refused(&seen), 1);
        let value = |event: SecurityEvent| metrics.security_events.value(event.as_str());
        assert_eq!(value(SecurityEvent::RevokedKeyUsed), 5);
        assert_eq!(value(SecurityEvent::SupersededSecretUsed), 1);
        assert_eq!(value(SecurityEvent::ScopeDenied), 1);
        assert_eq!(value(SecurityEvent::FailureBurst), 0);
    }

    #[test]
    fn a_hundred_refusals_in_a_minute_are_a_burst_of_the_caller_and_of_the_address() {
        let metrics = Metrics::new(&[]);
        let watch = Watch::new(metrics.security.clone());
        let value = || metrics.security_events.value("failure_burst");
        let stranger = |n: u64| Record {
            key: None,
            ip: Some(format!("192.0.2.{}", n % 2)),
            ..of("unknown", false)
        };
        watch.see_at(&refused(&batch((0..99).map(stranger).collect())), 1);
        assert_eq!(value(), 0);
        watch.see_at(&refused(&batch((0..5).map(stranger).collect())), 2);
        // All of the caller, and of neither address.
        assert_eq!(value(), 104);
        watch.see_at(
            &refused(&batch((0..99).map(stranger).collect())),
            MINUTE_US + 1,
        );
        assert_eq!(value(), 104);
        watch.see_at(&refused(&batch(vec![stranger(0); 300])), MINUTE_US + 2);
        // The caller's 99 and 300, the address's 50 and 300.
        assert_eq!(value(), 104 + 399 + 350);
    }
}
