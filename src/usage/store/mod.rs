//! The ledger in the database: batches are written whole and once, and read again by lists,
//! summaries and exports.

mod addresses;
pub mod batch;
pub mod events;
pub mod journal;
pub mod last;
pub mod partition;
pub mod retention;
mod rows;
pub mod scopes;
pub mod seal;
mod stored;
mod strangers;
pub mod summary;
pub mod walk;
