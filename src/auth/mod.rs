//! Who calls us, and what they may do: management keys, admin JWTs, roles and rights.
//!
//! Read [`caller`] for what a handler is given, [`http`] for how a caller becomes known, [`jwt`] for
//! what makes a token good, and [`crate::rights`] for what a scope allows.

pub mod caller;
pub mod claims;
#[cfg(test)]
mod fetched_keys;
#[cfg(test)]
#[path = "../../tests/it/support/forge/mod.rs"]
mod forge;
#[cfg(test)]
mod hostile_tokens;
pub mod http;
pub mod issuers;
mod jwks;
pub mod jwt;
pub mod key;
pub mod people;
pub(crate) mod strict;

pub use crate::rights;

pub use caller::CallerIdentity;
pub use issuers::Issuers;
pub use people::People;
pub use rights::{Permission, Rights, Role};
