//! What can be proved outside of the database: statements about a chain, signed with a key that is
//! derived from the master key and stored nowhere.

pub mod key;
pub mod outlet;
pub mod span;
pub mod statement;

pub use key::{PublicKey, Signer};
pub use outlet::Outlet;
pub use statement::{Statement, StatementKind};
