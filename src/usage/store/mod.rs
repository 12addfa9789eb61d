//! The ledger in the database: batches are written whole and once, and read again by lists,
//! summaries and exports.

pub mod batch;
pub mod events;
pub mod journal;
pub mod partition;
pub mod retention;
mod rows;
pub mod scopes;
mod strangers;
pub mod summary;
