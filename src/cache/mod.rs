//! What validations remember, and why it can be trusted.
//!
//! 1. The database has one counter, `change_head`; every change that a decision depends on has its
//!    number. [`Changes`] knows for each entity the number of its last change, and how recently that
//!    knowledge was proved complete.
//! 2. [`Entries`] are read from the database after the counter was read: that number is their
//!    `as_of`. An entry is used only if it is not older than the last change of its entity, judged at
//!    the use, and only while the knowledge of changes is recent enough.
//! 3. [`follow`] keeps the knowledge complete: it asks the database every second, always.
//!
//! 4. [`relay`] tells the other nodes, so that one without the database can follow too; [`shelf`] holds
//!    in Redis what any node read, judged by the same rule. What stands there is [sealed](seal).
//! 5. [`nodes`] knows whether all nodes know of a change.
//!
//! So nothing need be deleted anywhere to be safe: neither a lost message, nor a slow writer, nor a
//! restart brings an old entry back.

pub mod changes;
pub mod entries;
pub mod flights;
pub mod follow;
pub mod history;
pub mod line;
pub mod nodes;
pub mod reach;
pub mod relay;
pub mod seal;
pub mod shared;
pub mod shelf;
pub mod together;

pub use changes::{Changes, Lease};
pub use entries::{Entries, Entry};
pub use flights::Flights;
pub use history::History;
pub use line::Line;
pub use nodes::Nodes;
pub use reach::Reach;
pub use shared::Shared;
pub use shelf::Shelf;
pub use together::{Asking, Together};
