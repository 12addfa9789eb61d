//! Verifies an export without database or master key: the file, the checkpoints, the public keys.
//!
//! 1. the file is read once for the numbers that its records say they have;
//! 2. it is read again line by line; each must hold the number that is due, follow the line before, and
//!    hash to its hash. One that does not is named by what stands around it;
//! 3. on the way it is held against the checkpoints, and at its end it must have reached the last one.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::chain::{GENESIS, link};
use super::export::{COLUMNS, ExportLine};
use super::fault::{BadRecord, Fault};
use super::outside::{Checks, Found};
use super::signing::Statement;
use super::signing::key::{AuditKeyBody, KeySpan};

/// Faults that are kept; the rest is counted.
const NAMED_MAX: usize = 1000;

/// What was found in an export.
#[derive(Debug)]
pub struct OfflineReport {
    /// Whose trail it is, by its first record.
    pub tenant: Option<String>,
    pub checked: i64,
    pub faults: Vec<BadRecord>,
    pub bad: u64,
    /// How many checkpoints fit.
    pub checkpoints: i64,
    /// Records behind the last checkpoint: they hold together, but whoever has the file may have made them anew.
    pub unproved: i64,
    /// The number that the export begins with.
    pub from_seq: i64,
}

/// The public keys as `/v1/audit/keys` answers them.
///
/// # Errors
/// What is wrong with the text.
pub fn read_keys(text: &str) -> Result<Vec<KeySpan>, String> {
    #[derive(Deserialize)]
    struct Keys {
        keys: Vec<AuditKeyBody>,
    }
    let keys: Keys = serde_json::from_str(text).map_err(|error| error.to_string())?;
    keys.keys.iter().map(AuditKeyBody::to_key).collect()
}

/// Verifies the export at `path`.
///
/// # Errors
/// The file cannot be read.
pub fn verify(path: &Path, found: &[Found], keys: &[KeySpan]) -> io::Result<OfflineReport> {
    let (mut tenant, mut numbers, mut first) = (None, Vec::new(), None);
    for line in lines(path)? {
        let bytes = line?;
        let line = Line::parse(&bytes);
        if tenant.is_none() {
            tenant.clone_from(&line.tenant);
        }
        numbers.extend(line.said);
        first.get_or_insert(bytes);
    }
    numbers.sort_unstable();
    let (checks, strange) = Checks::of(tenant.as_deref(), found, keys);
    let is_export = first.is_none() || !numbers.is_empty();
    let mut walk = OfflineWalk::new(tenant, checks, numbers);
    match first {
        // Said once, and not of each line.
        Some(first) if !is_export => walk.note_no_export(&first),
        Some(_) | None => walk.over(lines(path)?)?,
    }
    for bad in strange {
        walk.note(bad);
    }
    let end = walk.next - 1;
    Ok(OfflineReport {
        unproved: end - walk.checks.good().clamp(walk.from_seq - 1, end),
        tenant: walk.tenant,
        checked: walk.checked,
        faults: walk.faults,
        bad: walk.bad,
        checkpoints: walk.checks.fitting,
        from_seq: walk.from_seq,
    })
}

/// Without blank ones. As bytes: one that is no text is no record either, but the others are.
fn lines(path: &Path) -> io::Result<impl Iterator<Item = io::Result<Vec<u8>>>> {
    let file = BufReader::with_capacity(1 << 18, File::open(path)?);
    let is_blank = |line: &Vec<u8>| line.trim_ascii().is_empty();
    let lines = file.split(b'\n');
    Ok(lines.filter(move |line| !line.as_ref().is_ok_and(is_blank)))
}

/// One line of an export, as far as it can be read.
#[derive(Default)]
struct Line {
    id: Option<String>,
    tenant: Option<String>,
    /// The number that its record says it has.
    said: Option<i64>,
    prev_hash: Vec<u8>,
    hash: Vec<u8>,
    /// The hash is that of the record and of what it claims to follow.
    is_sound: bool,
}

impl Line {
    fn parse(bytes: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Said {
            id: String,
            seq: i64,
            tenant: String,
        }
        let text = String::from_utf8_lossy(bytes);
        let Ok(line) = serde_json::from_str::<ExportLine<'_>>(&text) else {
            return Self::default();
        };
        let said: Option<Said> = serde_json::from_str(&line.record).ok();
        let hex = |text: &str| hex::decode(text).unwrap_or_default();
        let (prev_hash, hash) = (hex(&line.prev_hash), hex(&line.hash));
        // The number beside the record is a copy. A byte that is no text stands for another one.
        let agrees = said.as_ref().is_some_and(|said| said.seq == line.seq);
        let is_text = matches!(text, Cow::Borrowed(_));
        Self {
            is_sound: is_text && agrees && link(&prev_hash, &line.record)[..] == hash[..],
            prev_hash,
            hash,
            said: said.as_ref().map(|said| said.seq),
            tenant: said.as_ref().map(|said| said.tenant.clone()),
            id: said.map(|said| said.id),
        }
    }
}

struct OfflineWalk {
    tenant: Option<String>,
    checks: Checks,
    /// The numbers that the records say they have, sorted.
    numbers: Vec<i64>,
    /// Numbers whose records stood before their place, and whose places others took.
    early: BTreeSet<i64>,
    late: BTreeSet<i64>,
    from_seq: i64,
    next: i64,
    /// What the next line must follow; unknown behind one that does not hold.
    prev_hash: Option<Vec<u8>>,
    last_id: Option<String>,
    checked: i64,
    faults: Vec<BadRecord>,
    bad: u64,
}

impl OfflineWalk {
    fn new(tenant: Option<String>, checks: Checks, numbers: Vec<i64>) -> Self {
        let cut = checks.cut.as_ref().and_then(Statement::head);
        let next = cut.as_ref().map_or(1, |cut| cut.seq.saturating_add(1));
        Self {
            tenant,
            checks,
            numbers,
            early: BTreeSet::new(),
            late: BTreeSet::new(),
            from_seq: next,
            next,
            prev_hash: Some(cut.map_or_else(|| GENESIS.to_vec(), |cut| cut.hash)),
            last_id: None,
            checked: 0,
            faults: Vec::new(),
            bad: 0,
        }
    }

    /// Steps 2 and 3.
    fn over(&mut self, mut rest: impl Iterator<Item = io::Result<Vec<u8>>>) -> io::Result<()> {
        let mut ahead: VecDeque<Line> = VecDeque::new();
        loop {
            while ahead.len() < 3 {
                let Some(line) = rest.next() else { break };
                ahead.push_back(Line::parse(&line?));
            }
            let Some(line) = ahead.pop_front() else { break };
            self.take(&line, ahead.front(), ahead.get(1));
        }
        if let Some(mut bad) = self.checks.beyond(self.next - 1) {
            bad.detail.push_str(
                "; an export from before that checkpoint ends like this too: take a new one",
            );
            self.note(bad);
        } else if self.checked == 0 {
            let detail = "the export holds no record".to_owned();
            self.note(BadRecord::new(self.next, None, Fault::Removed, detail));
        }
        Ok(())
    }

    /// For a file without any record, which begins with the line `first`.
    fn note_no_export(&mut self, first: &[u8]) {
        let what = if first.trim_ascii() == COLUMNS.join(",").as_bytes() {
            "it looks like CSV, which is for reading"
        } else {
            "none of its lines is a record"
        };
        let detail = format!("the file is no NDJSON export: {what}");
        self.note(BadRecord::new(self.next, None, Fault::Altered, detail));
    }

    /// How many records say that they have this number.
    fn copies(&self, number: i64) -> usize {
        let below = self.numbers.partition_point(|other| *other < number);
        let up_to = self.numbers.partition_point(|other| *other <= number);
        up_to - below
    }

    fn note(&mut self, bad: BadRecord) {
        self.bad += 1;
        if self.faults.len() < NAMED_MAX {
            self.faults.push(bad);
        }
    }

    fn fault(&mut self, seq: i64, line: &Line, fault: Fault, detail: String) {
        self.note(BadRecord::new(seq, line.id.as_deref(), fault, detail));
    }

    /// Step 2, with the two lines behind it.
    fn take(&mut self, line: &Line, then: Option<&Line>, after: Option<&Line>) {
        self.checked += 1;
        if line.is_sound && self.passes_early(line) {
            return;
        }
        let due = self.next;
        if line.tenant.is_some() && line.tenant != self.tenant {
            let detail = "it is of another tenant's trail".to_owned();
            return self.fault(due, line, Fault::Inserted, detail);
        }
        let Some(said) = line.said else {
            let detail = "it is no record of an export".to_owned();
            // It may have been the one that is due only if no other line says so.
            if self.copies(due) > 0 {
                return self.fault(due, line, Fault::Inserted, detail);
            }
            self.fault(due, line, Fault::Altered, detail);
            return self.step(due, line, false);
        };
        if !line.is_sound {
            // An altered record in its place; a strange one elsewhere.
            let is_there = then.is_some_and(|then| then.said == Some(due) && then.is_sound);
            if !is_there && (said == due || self.copies(due) == 0) {
                let detail = "the record does not give its hash".to_owned();
                self.fault(due, line, Fault::Altered, detail);
                return self.step(due, line, true);
            }
            let detail = "the record is none of this chain".to_owned();
            return self.fault(due, line, Fault::Inserted, detail);
        }
        match said.cmp(&due) {
            std::cmp::Ordering::Equal => self.take_due(line, then, after),
            std::cmp::Ordering::Greater => self.take_later(line, said, then),
            std::cmp::Ordering::Less => self.take_earlier(line, said),
        }
    }

    /// It says that it is the one that is due, and hashes to its hash.
    fn take_due(&mut self, line: &Line, then: Option<&Line>, after: Option<&Line>) {
        let due = self.next;
        let twin = then.filter(|then| then.said == Some(due) && then.is_sound);
        // Of two for one number it is the one that the line behind them follows.
        let follows = after.map(|after| &after.prev_hash);
        if twin.is_some_and(|twin| follows != Some(&line.hash) || twin.hash == line.hash) {
            let detail = "there are two for this number".to_owned();
            return self.fault(due, line, Fault::Inserted, detail);
        }
        if self
            .prev_hash
            .as_ref()
            .is_some_and(|prev| *prev != line.prev_hash)
        {
            let (seq, id) = match self.last_id.clone() {
                Some(id) => (due - 1, Some(id)),
                None => (due, line.id.clone()),
            };
            let detail = format!(
                "its record and its hash were made anew: number {due} follows another hash"
            );
            self.note(BadRecord::new(seq, id.as_deref(), Fault::Altered, detail));
        }
        self.step(due, line, true);
    }

    /// A later one stands where `next` is due: it was swapped with that, or what is between is gone.
    fn take_later(&mut self, line: &Line, said: i64, then: Option<&Line>) {
        let due = self.next;
        if self.copies(due) > 0 {
            let detail = format!("it holds the record of number {said}");
            self.fault(due, line, Fault::Swapped, detail);
            self.early.insert(said);
            self.prev_hash = None;
            // One that was only moved up leaves the others in order.
            if then.is_none_or(|then| then.said != Some(due)) {
                self.late.insert(due);
                self.next = due.saturating_add(1);
            }
            return;
        }
        let last = said - 1;
        let missing = if last == due {
            format!("number {due} is")
        } else {
            format!("numbers {due} to {last} are")
        };
        let id = line.id.as_deref().unwrap_or("-");
        let detail = format!("{missing} missing before {id}");
        self.note(BadRecord::new(due, None, Fault::Removed, detail));
        self.step(said, line, true);
    }

    /// An earlier one: one that was moved down, a copy, or one that lies before the cut.
    fn take_earlier(&mut self, line: &Line, said: i64) {
        if self.late.remove(&said) {
            // Where it is missing was named.
            return;
        }
        let detail = if said < self.from_seq {
            format!("the chain starts at {}", self.from_seq)
        } else {
            format!("it is one more for number {said}")
        };
        self.fault(said, line, Fault::Inserted, detail);
    }

    /// Steps over numbers whose records stood before. Answers whether this line is the other half of
    /// a swap, and is done with.
    fn passes_early(&mut self, line: &Line) -> bool {
        while self.early.contains(&self.next) && line.said != Some(self.next) {
            let place = self.next;
            self.early.remove(&place);
            self.next = place.saturating_add(1);
            self.prev_hash = None;
            if let Some(said) = line.said.filter(|said| self.late.remove(said)) {
                let detail = format!("it holds the record of number {said}");
                self.fault(place, line, Fault::Swapped, detail);
                return true;
            }
        }
        false
    }

    /// Goes on behind the line with number `seq`.
    fn step(&mut self, seq: i64, line: &Line, is_known: bool) {
        self.next = seq.saturating_add(1);
        self.prev_hash = is_known.then(|| line.hash.clone());
        self.last_id.clone_from(&line.id);
        if is_known && let Some(bad) = self.checks.at(seq, &hex::encode(&line.hash)) {
            self.note(bad);
        }
    }
}

impl OfflineReport {
    /// Whether what was signed vouches for any of the records.
    pub fn is_proved(&self) -> bool {
        self.unproved < self.checked
    }
}

impl fmt::Display for OfflineReport {
    /// A line for the whole, and one for each fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = self.tenant.as_deref().unwrap_or("-");
        let state = match self.bad {
            0 if self.is_proved() => "whole",
            0 => "NOT PROVED",
            _ => "BROKEN",
        };
        write!(
            f,
            "{tenant}: {state}, {} records checked from number {} on, {} checkpoints fit",
            self.checked, self.from_seq, self.checkpoints
        )?;
        if self.unproved > 0 {
            write!(
                f,
                ", {} records behind the last checkpoint hold together, but a checkpoint has yet to prove that \
                 none of them was made anew and none is missing",
                self.unproved
            )?;
        }
        for (index, bad) in self.faults.iter().enumerate() {
            let what = if index == 0 { "first bad" } else { "bad" };
            write!(f, "\n  {what} record: {bad}")?;
        }
        let named = u64::try_from(self.faults.len()).unwrap_or(u64::MAX);
        if self.bad > named {
            write!(f, "\n  faults in all: {}", self.bad)?;
        }
        Ok(())
    }
}
