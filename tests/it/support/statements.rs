//! What a node asks its database, statement by statement: seen where diesel sends them, the same on
//! both databases, and told from other nodes' by the runtime that each node's database has.

use std::collections::HashMap;
use std::sync::{Mutex, Once, PoisonError};

use diesel::connection::{InstrumentationEvent, set_default_instrumentation};
use tokio::runtime::{Handle, Id};

use super::Server;

/// Of the nodes that are watched.
static SENT: Mutex<Option<HashMap<Id, Vec<String>>>> = Mutex::new(None);

/// Connections that are made from now on can be watched.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        set_default_instrumentation(|| Some(Box::new(note))).expect("nobody panics with its lock");
    });
}

fn note(event: InstrumentationEvent<'_>) {
    let InstrumentationEvent::StartQuery { query, .. } = event else {
        return;
    };
    let Ok(runtime) = Handle::try_current() else {
        return;
    };
    with(|sent| {
        if let Some(statements) = sent.get_mut(&runtime.id()) {
            statements.push(query.to_string());
        }
    });
}

fn with<R>(act: impl FnOnce(&mut HashMap<Id, Vec<String>>) -> R) -> R {
    let mut sent = SENT.lock().unwrap_or_else(PoisonError::into_inner);
    act(sent.get_or_insert_with(HashMap::new))
}

/// What was recorded goes into the ledger in the background, and every ten seconds when keys were last
/// used, whoever is watched meanwhile.
fn is_of_the_ledger(statement: &str) -> bool {
    // SQLite's quotes are others.
    let statement = statement.replace('`', "\"");
    let is_about = [
        "usage_",
        "\"service\".\"settings\" LIKE",
        // Set, or compared with what is to be set.
        "SET \"last_used_at\"",
        "\"last_used_at\" < ",
    ];
    is_about.iter().any(|what| statement.contains(what))
}

impl Server {
    /// The statements that the node sends while `work` runs, without their values, and without those that
    /// bring uses into the ledger or say when keys were last used.
    pub async fn statements<R>(&self, work: impl Future<Output = R>) -> (Vec<String>, R) {
        let node = self.app.db.runtime().id();
        with(|sent| sent.insert(node, Vec::new()));
        let done = work.await;
        let sent = with(|sent| sent.remove(&node)).unwrap_or_default();
        let bare = sent.into_iter().map(|text| {
            text.split(" -- binds:")
                .next()
                .unwrap_or_default()
                .to_owned()
        });
        (bare.filter(|text| !is_of_the_ledger(text)).collect(), done)
    }

    /// How often the node looks for a presented key while `work` runs.
    pub async fn lookups<R>(&self, work: impl Future<Output = R>) -> (usize, R) {
        let (statements, done) = self.statements(work).await;
        let lookups = statements
            .iter()
            .filter(|text| text.contains("fingerprint"))
            .count();
        (lookups, done)
    }
}
