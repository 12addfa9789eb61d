//! The usage ledger: which key did what, when and from where, and what was refused.
//!
//! A validation leaves a [`Record`](record::Record). Records arrive here in batches, each of which is
//! stored once however often it is sent: as counts that are exact, and as events that a service may
//! keep, keep for refusals alone, or do without.

pub mod counts;
pub mod record;
pub mod rules;
pub mod store;

pub use record::{Batch, CountLine, Identified, Operation, Record};
pub use rules::{Events, Refusals, Rules};
