//! Walks a chain from its first line and names what does not hold.
//!
//! A line holds if its number is the next one, it follows the hash of the line before, its own hash
//! is that of its record, and the columns beside the record say the same. What does not hold is
//! named by looking at its neighbours, and the walk goes on behind it.

use sha2::{Digest as _, Sha256};

use super::chain::{GENESIS, link};
use super::fault::{BadRecord, Fault};
use super::outside::Checks;
use super::reseal;
use super::signing::Statement;
use super::store::{self, Stored};
use crate::db::{self, Conn};
use crate::id::TenantId;

/// Faults that are named; of a chain with more, the rest is counted.
const NAMED_MAX: usize = 20;

/// How far a chain has been walked, and what was found.
pub(super) struct Walk {
    tenant: TenantId,
    /// What the records must call the tenant, if its row is there.
    slug: Option<String>,
    /// The number of the next line.
    pub(super) next: i64,
    /// The hash that the next line must follow.
    pub(super) prev_hash: Vec<u8>,
    pub(super) last_id: Option<String>,
    pub(super) checked: i64,
    /// The first that do not hold, and how many there are in all.
    pub(super) named: Vec<BadRecord>,
    pub(super) bad: u64,
    /// How many faults an operator has accepted, see [`reseal`].
    pub(super) accepted: u64,
    /// How many of the faults a reseal may accept that this walk cannot judge: it has not come to it, or begins
    /// behind some of what it is about.
    pub(super) undecided: u64,
    /// What was signed of this chain.
    pub(super) checks: Checks,
    /// The lines up to here were cut off.
    pub(super) cut_to: i64,
    /// Lines with numbers above this are walked; all there are, if it is `None`.
    pub(super) begins_after: Option<i64>,
    /// Changes if any line walked so far is changed, whether it holds or not.
    digest: Sha256,
}

impl Walk {
    /// A walk from the first line on, or from the one behind `before`, which is taken as it is.
    /// A chain whose beginning was cut off begins with what was signed about that.
    pub(super) fn from(
        tenant: TenantId,
        slug: Option<String>,
        before: Option<Stored>,
        checks: Checks,
    ) -> Self {
        let cut = checks.cut.as_ref().and_then(Statement::head);
        let cut_to = checks.cut_to();
        let (begins_after, prev_hash, last_id) = match (before, cut) {
            (Some(line), _) if line.seq > cut_to => (Some(line.seq), line.hash, Some(line.id)),
            (Some(_) | None, Some(cut)) => (None, cut.hash, None),
            (Some(_) | None, None) => (None, GENESIS.to_vec(), None),
        };
        let next = begins_after.unwrap_or(cut_to).saturating_add(1);
        Self {
            tenant,
            slug,
            next,
            prev_hash,
            last_id,
            checked: 0,
            named: Vec::new(),
            bad: 0,
            accepted: 0,
            undecided: 0,
            checks,
            cut_to,
            begins_after,
            digest: Sha256::new(),
        }
    }

    /// The number of the last line walked.
    pub(super) fn last(&self) -> i64 {
        self.next - 1
    }

    pub(super) fn note(&mut self, bad: BadRecord) {
        self.bad += 1;
        if self.named.len() < NAMED_MAX {
            self.named.push(bad);
        }
    }

    pub(super) fn note_beyond_head(&mut self, line: &Stored) {
        let detail = if line.is_mistyped("seq") {
            "its number is stored as no whole number, so it lies beyond the head: delete its row"
        } else {
            "it lies beyond the head"
        };
        let detail = detail.to_owned();
        self.note(BadRecord::new(
            line.seq,
            Some(&line.id),
            Fault::Inserted,
            detail,
        ));
    }

    /// The digest of all lines walked so far.
    pub(super) fn state(&self) -> String {
        hex::encode(self.digest.clone().finalize())
    }

    /// Walks over the lines that come next. `conn` is asked for the neighbours of a bad one.
    pub(super) async fn over(&mut self, conn: &mut Conn, lines: &[Stored]) -> db::Result<()> {
        for line in lines {
            self.checked += 1;
            let mut holds = self.holds(line);
            if !holds {
                self.find_fault(conn, line).await?;
                // Behind a gap, or a forged predecessor, it may well hold by itself.
                holds = self.holds(line);
            }
            if holds {
                if line.action == reseal::ACTION {
                    self.judge_by(line);
                }
                self.digest.update([1]);
                self.digest.update(&line.hash);
            } else {
                self.digest.update([0]);
                line.digest(&mut self.digest);
            }
            if line.seq >= self.next {
                self.next = line.seq.saturating_add(1);
                self.prev_hash.clone_from(&line.hash);
                self.last_id = Some(line.id.clone());
                if let Some(bad) = self.checks.at(line.seq, &hex::encode(&line.hash)) {
                    self.note(bad);
                }
            }
        }
        Ok(())
    }

    /// What was found before this reseal is accepted, if it is what was there then.
    fn judge_by(&mut self, reseal: &Stored) {
        if reseal::accepts(&reseal.record, &self.state()) {
            self.accepted += std::mem::take(&mut self.bad);
            self.undecided = 0;
            self.named.clear();
            for (seq, hash) in reseal::given_up(&reseal.record) {
                self.checks.give_up(seq, &hash);
            }
        } else if self.begins_after.is_some() {
            self.undecided = self.bad;
        }
    }

    fn holds(&self, line: &Stored) -> bool {
        line.seq == self.next
            && line.mistyped.is_empty()
            && line.prev_hash == self.prev_hash
            && line.is_sound()
            && line.disagreement(self.slug.as_deref()).is_none()
    }

    /// Notes what is wrong at `line`. If that is something before it, steps up to it, so that it is
    /// judged by itself.
    async fn find_fault(&mut self, conn: &mut Conn, line: &Stored) -> db::Result<()> {
        let id = Some(line.id.as_str());
        if line.seq <= self.cut_to {
            let detail = format!("the chain starts at {}", self.cut_to.saturating_add(1));
            self.note(BadRecord::new(line.seq, id, Fault::Inserted, detail));
            return Ok(());
        }
        if line.seq > self.next {
            self.note(BadRecord::new(
                self.next,
                None,
                Fault::Removed,
                format!(
                    "{} missing before {}",
                    numbers(self.next, line.seq - 1),
                    line.id
                ),
            ));
            self.next = line.seq;
            self.prev_hash.clone_from(&line.prev_hash);
            if !self.holds(line) {
                let bad = self.altered(line, None);
                self.note(bad);
            }
            return Ok(());
        }
        if self.named.len() >= NAMED_MAX {
            self.bad += 1;
            return Ok(());
        }
        let neighbours = Neighbours::load(conn, &self.tenant, line).await?;
        if let Some(bad) = self.misplaced(line, &neighbours) {
            self.note(bad);
            return Ok(());
        }
        let follows = neighbours.next.as_ref().map(|next| &next.prev_hash);
        let forged_before = line.prev_hash != self.prev_hash
            && line.is_sound()
            && self.next > 1
            && follows.is_none_or(|follows| *follows == line.hash);
        if forged_before {
            self.note(BadRecord::new(
                self.next - 1,
                self.last_id.as_deref(),
                Fault::Altered,
                format!(
                    "its record and its hash were made anew: {} follows another hash",
                    line.id
                ),
            ));
            self.prev_hash.clone_from(&line.prev_hash);
            if !self.holds(line) {
                let bad = self.altered(line, follows);
                self.note(bad);
            }
            return Ok(());
        }
        let bad = self.altered(line, follows);
        self.note(bad);
        Ok(())
    }

    /// Whether a line that has the next number is not the one that got it.
    fn misplaced(&self, line: &Stored, neighbours: &Neighbours) -> Option<BadRecord> {
        let id = Some(line.id.as_str());
        let said = line.said_seq().filter(|said| *said != line.seq);
        let elsewhere = neighbours.said.as_ref();
        if let Some(said) = said
            && elsewhere.is_some_and(|other| other.said_seq() == Some(line.seq))
        {
            let detail = format!("it holds the record of number {said}, which holds its own");
            return Some(BadRecord::new(line.seq, id, Fault::Swapped, detail));
        }
        let displaced = neighbours.next.as_ref().is_some_and(|next| {
            next.said_seq() == Some(line.seq) && next.prev_hash == self.prev_hash
        });
        if displaced {
            let detail = format!("the line that got number {} stands behind it", line.seq);
            return Some(BadRecord::new(line.seq, id, Fault::Inserted, detail));
        }
        let said = said?;
        if !line.is_sound() {
            return None;
        }
        if said > line.seq {
            let detail = format!(
                "{} missing: number {said} stands here now",
                numbers(line.seq, said - 1)
            );
            return Some(BadRecord::new(line.seq, None, Fault::Removed, detail));
        }
        // It got an earlier number and follows what stands before that: what is between is not ours.
        let shifted = neighbours
            .before_said
            .as_ref()
            .map_or(&GENESIS[..], |before| &before.hash)
            == line.prev_hash;
        shifted.then(|| {
            BadRecord::new(
                said,
                elsewhere.map(|other| other.id.as_str()),
                Fault::Inserted,
                format!(
                    "{} between a line and {}, which follows it",
                    numbers(said, line.seq - 1),
                    line.id
                ),
            )
        })
    }

    /// A line that is the right one, or at least no other one. `follows`: the hash that the line
    /// behind it claims to follow.
    fn altered(&self, line: &Stored, follows: Option<&Vec<u8>>) -> BadRecord {
        if let Some(column) = line.mistyped.split_whitespace().next() {
            let detail = format!(
                "the value of the column {column} is of another type than what was written, so queries pass \
                 it by"
            );
            return BadRecord::new(line.seq, Some(&line.id), Fault::Altered, detail);
        }
        let expected = link(&self.prev_hash, &line.record);
        let what = if line.is_sound() && line.prev_hash == self.prev_hash {
            line.disagreement(self.slug.as_deref()).unwrap_or("record")
        } else if expected[..] == line.hash[..] {
            "prev_hash"
        } else if follows.is_some_and(|follows| expected[..] == follows[..]) {
            "hash"
        } else {
            "record"
        };
        let detail = if what == "record" {
            "the record does not give its hash".to_owned()
        } else {
            format!("the column {what} is not what was written")
        };
        BadRecord::new(line.seq, Some(&line.id), Fault::Altered, detail)
    }
}

/// `number 5 is`, `numbers 5 to 7 are`
fn numbers(from: i64, to: i64) -> String {
    if from == to {
        format!("number {from} is")
    } else {
        format!("numbers {from} to {to} are")
    }
}

/// The lines that help to name what happened to one that does not hold.
struct Neighbours {
    /// With the next number.
    next: Option<Stored>,
    /// With the number that the line's record says it has.
    said: Option<Stored>,
    /// The one before that.
    before_said: Option<Stored>,
}

impl Neighbours {
    async fn load(conn: &mut Conn, tenant: &TenantId, line: &Stored) -> db::Result<Self> {
        let said = line.said_seq().filter(|said| (1..i64::MAX).contains(said));
        Ok(Self {
            next: store::line(conn, tenant, line.seq.saturating_add(1)).await?,
            said: match said {
                Some(seq) => store::line(conn, tenant, seq).await?,
                None => None,
            },
            before_said: match said {
                Some(seq) => store::line(conn, tenant, seq - 1).await?,
                None => None,
            },
        })
    }
}
