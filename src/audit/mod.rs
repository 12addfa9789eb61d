//! The audit trail: every administrative change and every refused attempt, hash-chained per tenant.
//!
//! Read [`change`] first: it is the only way an administrative change reaches the database.

pub(crate) mod action;
pub mod actor;
pub mod age;
mod asked;
pub mod chain;
pub mod change;
pub mod checkpoint;
pub mod cut;
pub mod export;
pub mod fault;
pub mod http;
pub mod node;
pub mod offline;
pub mod outside;
pub mod refused;
mod reseal;
mod said;
pub mod signing;
mod store;
pub mod verify;
mod walk;

pub use actor::{Actor, Attribution, TenantRef};
pub use change::{Audit, Change};
pub use node::NodeStart;
pub use refused::{Refusal, Refusals};
pub use signing::Outlet;
pub use store::checkpoint::StatementFilter;
pub use store::history;
pub use store::list::{Entry, EventFilter};
pub use store::origin;
pub use store::origin::newest_done;
pub use verify::{Chains, Report};
