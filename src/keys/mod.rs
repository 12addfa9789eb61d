//! Keys and their secrets: the credential itself, its scopes and what is kept of it.

pub mod base62;
pub mod bulk;
pub mod fingerprint;
pub mod hash;
pub mod history;
pub mod http;
pub mod issue;
pub mod key;
pub mod legacy;
pub mod lookup_id;
mod may;
pub mod pepper;
mod plan;
pub mod secret;
pub mod service;
pub mod store;
pub mod verifier;
pub mod verifier_queue;
mod work;

pub use crate::scope;
pub use crate::scope::catalogue;
pub use pepper::store as pepper_store;
