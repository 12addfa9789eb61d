//! Keystead: a centralized API key management service.

// What unit and integration tests share names the library as the latter do.
#[cfg(test)]
extern crate self as keystead;

pub mod app;
pub mod audit;
pub mod auth;
pub mod cache;
pub mod catalogue;
pub mod cli;
pub mod clock;
pub mod config;
pub mod consumers;
pub mod db;
pub mod entropy;
pub mod error;
pub mod gateway;
pub mod http;
pub mod id;
pub mod idempotency;
pub mod json;
pub mod keys;
pub mod limits;
pub mod master;
pub mod metadata;
pub mod metrics;
pub mod oauth;
pub mod outbound;
pub mod page;
pub mod patch;
pub mod patience;
pub mod process;
pub mod ratelimit;
pub mod redis_link;
pub mod reviews;
pub mod rights;
pub mod routes;
pub mod schema;
pub mod scope;
pub mod services;
pub mod telemetry;
pub mod tenants;
pub mod text;
pub mod time;
pub mod usage;
pub mod validation;
