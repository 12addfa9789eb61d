//! The HTTP toolkit: what every handler is built from. It knows no feature.

pub mod client_ip;
pub mod code;
pub mod context;
pub mod cors;
pub mod direct;
pub mod docs;
pub mod download;
pub mod extract;
pub mod form;
pub mod gate;
pub mod headers;
pub mod health;
pub mod json_body;
mod json_unique;
pub mod middleware;
pub mod openapi;
pub mod openapi_bodies;
pub mod operations;
pub mod page;
pub mod problem;
pub mod query;
pub mod query_credential;
#[cfg(test)]
mod tests;
pub mod wait;

pub use crate::patch::double_option;
