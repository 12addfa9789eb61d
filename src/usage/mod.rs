//! The usage ledger: which key did what, when and from where, and what was refused.
//!
//! A validation leaves a [`Record`](record::Record). Records arrive here in batches, each of which is
//! stored once however often it is sent: as counts that are exact, and as events that a service may
//! keep, keep for refusals alone, or do without.

pub mod codec;
pub mod counts;
pub mod fold;
pub mod ledger;
pub mod record;
pub mod recorder;
pub mod rules;
pub mod store;

pub use ledger::Ledger;
pub use record::{Batch, CountLine, Identified, Operation, Record};
pub use recorder::Recorder;
pub use rules::{Events, Refusals, Rules};
