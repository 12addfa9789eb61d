//! The integration suite: one binary, real servers.
#![allow(
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::missing_panics_doc,
    unreachable_pub,
    reason = "a test fails by panicking, and nothing is outside a test binary"
)]

mod audit;
mod auditors;
mod cached;
mod callers;
mod catalogue;
mod circles;
mod cli;
mod cluster;
mod direct;
mod disk;
mod house;
mod keys;
mod limited;
mod limits;
mod lost;
mod maintenance;
mod matrix;
mod metrics;
mod oauth;
mod openapi;
mod overtaken;
mod peppers;
mod redis_link;
mod relayed;
mod reviews;
mod schema;
mod security;
mod slow;
mod starting;
mod support;
mod usage;
