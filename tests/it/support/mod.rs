//! What the tests stand on: a home per test, the servers, a client, a proxy that fails on purpose.
//!
//! A test is an async function that takes a [`Home`]; `both!(name)` runs it on both databases:
//!
//! ```ignore
//! both!(an_expired_key_is_refused);
//! async fn an_expired_key_is_refused(home: Home) { .. }
//! ```

mod client;
pub(crate) mod forge;
mod home;
pub mod load;
mod postgres;
mod process;
pub mod programs;
mod proxy;
mod raw;
pub mod redis;
mod server;
mod statements;
pub mod tables;
mod throwaway;

use std::time::Duration;

use keystead::db::{Db, Target, migrate_all};

pub use client::{Answer, Client, Request};
pub use home::{Backend, Home, MASTER_KEY, run};
pub use process::{BINARY, Frozen, Process, free_address, signal};
pub use proxy::{Fault, Proxy};
pub use server::Server;

/// What `/metrics` says of a counter or gauge, named with its labels.
pub async fn metric(client: &Client, name: &str) -> u64 {
    let metrics = client.get("/metrics").send().await.text;
    let value = metrics
        .lines()
        .find_map(|row| row.strip_prefix(name)?.strip_prefix(' '));
    value.expect(name).parse().expect("a whole number")
}

/// Makes `name::sqlite` and `name::postgres` of each async function that takes a [`Home`].
macro_rules! both {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            #[test]
            fn sqlite() {
                $crate::support::run($crate::support::Backend::Sqlite, super::$name);
            }

            #[test]
            fn postgres() {
                $crate::support::run($crate::support::Backend::Postgres, super::$name);
            }
        }
    )+};
}
pub(crate) use both;

/// What a test that asks the validation itself has recorded.
pub fn asking() -> keystead::validation::recorded::Asking<'static> {
    keystead::validation::recorded::Asking {
        operation: keystead::usage::Operation::Verify,
        caller: "a test",
        request_id: "of-a-test",
        method: None,
        path: None,
        user_agent: None,
        context: None,
        began_us: 0,
        token: None,
    }
}

/// An environment variable, if it is set to something.
#[expect(
    clippy::disallowed_methods,
    reason = "what scripts/test tells the tests is no setting of the server"
)]
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// What was measured; `scripts/test --long` shows it.
#[expect(clippy::print_stdout, reason = "figures are for who runs the tests")]
pub fn figure(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Brings the database at `url` up to date, as a starting node does.
pub async fn migrate(url: &str) -> Vec<String> {
    let target = Target::parse(url).expect("the support made the URL");
    let db = Db::open(&target).expect("it opens");
    let usage = Db::open_usage(&target).expect("it opens");
    migrate_all(&db, &usage).await.expect("the migrations run")
}

/// Asks until the answer is yes. For what happens in real time in another process.
pub async fn until(bound: Duration, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(bound, waiting).await.is_err() {
        panic!("after {bound:?} it was not so that {what}");
    }
}

/// The text at a JSON pointer.
#[track_caller]
pub fn text(value: &serde_json::Value, pointer: &str) -> String {
    let found = value.pointer(pointer).and_then(serde_json::Value::as_str);
    found
        .unwrap_or_else(|| panic!("no {pointer} in {value}"))
        .to_owned()
}
