//! Uses of which only the counts are kept: what does not matter for a count is gone, and what is then
//! the same is one line with a number.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::counts::{MINUTE_MS, OTHER};
use super::record::{CountLine, Identified, Operation, Record};
use crate::time::Timestamp;

/// Beyond so many lines addresses are no longer told apart, so that what there is to count takes fewer.
const LINES_MAX: usize = 100_000;

/// Beyond so many there is none for what would be another one.
const LINES_WITHOUT_IP_MAX: usize = 2 * LINES_MAX;

/// Counted uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    lines: HashMap<Line, u64>,
    /// For which there was no line.
    lost: u64,
}

/// All that counts are kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Line {
    minute: i64,
    tenant_id: String,
    key: Option<(String, String, bool, String)>,
    service: String,
    environment: String,
    operation: Operation,
    outcome: String,
    cost: u64,
    used_scopes: Vec<String>,
    ip: Option<String>,
    caller: String,
}

impl Folded {
    pub fn add(&mut self, record: Record) {
        self.count(record.into(), 1);
    }

    pub fn merge(&mut self, other: Self) {
        for (line, uses) in other.lines {
            self.count(line, uses);
        }
        self.lost = self.lost.saturating_add(other.lost);
    }

    fn count(&mut self, mut line: Line, uses: u64) {
        if self.lines.len() >= LINES_MAX && !self.lines.contains_key(&line) {
            // A use of a key from an address stays one: only which it was is gone.
            let is_from_one = line.key.is_some() && line.ip.is_some();
            line.ip = is_from_one.then(|| OTHER.to_owned());
        }
        if self.lines.len() >= LINES_WITHOUT_IP_MAX && !self.lines.contains_key(&line) {
            self.lost = self.lost.saturating_add(uses);
            return;
        }
        let counted = self.lines.entry(line).or_default();
        *counted = counted.saturating_add(uses);
    }

    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Whether it has so many lines that further ones lose their address.
    pub fn is_full(&self) -> bool {
        self.lines.len() >= LINES_MAX
    }

    /// Whether both together are not [full](Self::is_full).
    pub fn has_room_for(&self, other: &Self) -> bool {
        self.lines.len() + other.lines.len() < LINES_MAX
    }

    /// How many uses it stands for.
    pub fn uses(&self) -> u64 {
        self.lines.values().sum()
    }

    /// How many uses it does not stand for, since this was last asked.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    pub fn lines(self) -> Vec<CountLine> {
        let lines = self.lines.into_iter();
        lines
            .map(|(line, uses)| CountLine {
                record: line.into(),
                uses,
            })
            .collect()
    }

    /// # Errors
    /// None that a vector could give.
    pub fn to_bytes(&self) -> Result<Vec<u8>, postcard::Error> {
        let lines: Vec<(&Line, &u64)> = self.lines.iter().collect();
        postcard::to_extend(&lines, Vec::new())
    }

    /// # Errors
    /// What [`Self::to_bytes`] has not written.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        let lines: Vec<(Line, u64)> = postcard::from_bytes(bytes)?;
        Ok(Self {
            lines: lines.into_iter().collect(),
            lost: 0,
        })
    }
}

impl From<Record> for Line {
    fn from(record: Record) -> Self {
        Self {
            minute: record.at.millis().div_euclid(MINUTE_MS),
            tenant_id: record.tenant_id,
            key: record
                .key
                .map(|key| (key.key_id, key.secret_id, key.superseded, key.consumer_id)),
            service: record.service,
            environment: record.environment,
            operation: record.operation,
            outcome: record.outcome,
            cost: record.cost,
            used_scopes: record.used_scopes,
            ip: record.ip,
            caller: record.caller,
        }
    }
}

impl From<Line> for Record {
    fn from(line: Line) -> Self {
        Self {
            at: Timestamp::from_millis(line.minute.saturating_mul(MINUTE_MS)),
            tenant_id: line.tenant_id,
            key: line
                .key
                .map(|(key_id, secret_id, superseded, consumer_id)| Identified {
                    key_id,
                    secret_id,
                    superseded,
                    consumer_id,
                }),
            service: line.service,
            environment: line.environment,
            operation: line.operation,
            outcome: line.outcome,
            required_scopes: Vec::new(),
            any_scopes: Vec::new(),
            cost: line.cost,
            used_scopes: line.used_scopes,
            ip: line.ip,
            method: None,
            path: None,
            user_agent: None,
            context: BTreeMap::new(),
            token_id: None,
            subject: None,
            actor: None,
            caller: line.caller,
            request_id: String::new(),
            latency_us: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::counts::tests::record;
    use crate::usage::counts::{Counts, DAY_MS};
    use crate::usage::record::Batch;

    #[test]
    fn a_full_journal_tells_addresses_apart_no_more_and_counts_each_use_from_one() {
        let from = |n: usize| Record {
            ip: Some(format!("2001:db8::{n:x}")),
            ..record(DAY_MS)
        };
        let mut folded = Folded::default();
        for n in 0..LINES_MAX + 50 {
            folded.add(from(n));
        }
        folded.add(Record {
            key: None,
            ..from(LINES_MAX + 50)
        });
        // A line that is there stays what it is.
        folded.add(from(7));
        let uses = folded.uses();
        let batch = Batch {
            node: "a".to_owned(),
            number: 1,
            records: Vec::new(),
            shed: uses,
            counts_only: folded.lines(),
        };
        let counts = Counts::of(&[batch]);
        let of_keys: u64 = counts.ips.values().map(|seen| seen.uses).sum();
        assert_eq!(of_keys + 1, uses);
        let other = counts.ips.iter().find(|(row, _)| row.ip == OTHER);
        assert_eq!(other.map(|(_, seen)| seen.uses), Some(50));
        assert!(counts.strangers.keys().all(|row| row.ip.is_empty()));
    }
}
