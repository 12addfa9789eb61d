//! The usage ledger: which key did what, when and from where, and what was refused.
//!
//! A validation leaves a [`Record`](record::Record). Records arrive here in batches, each of which is
//! stored once however often it is sent: as counts that are exact, and as events that a service may
//! keep, keep for refusals alone, or do without.

pub mod codec;
pub mod counts;
mod drain;
pub mod event;
pub mod file;
mod flush;
pub mod fold;
pub mod http;
mod leave;
pub mod ledger;
mod pauses;
pub mod proof;
pub mod query;
pub mod record;
pub mod recorder;
pub mod retention;
pub mod rules;
pub mod seal;
pub mod store;
pub mod summary;
pub mod watch;

use std::time::Duration;

use crate::clock::Clock;
use crate::db::{self, Conn, Db};
use crate::id::{KeyId, SecretId};
use crate::page::{Page, PageRequest, Position};
use crate::time::{Span, Timestamp};

use query::{EventFilter, Order};
use store::events::{self, StoredEvent, Wanted};
use store::summary::{Sum, SumRow};
use store::walk::{self, Most, Walked};

pub use leave::Outlets;
pub use ledger::{Ledger, Room};
pub use record::{Batch, CountLine, Identified, Operation, Record};
pub use recorder::Recorder;
pub use rules::{Events, Refusals, Rules};
pub use seal::Seals;

/// How long events are kept, unless that is set.
pub const EVENTS_RETENTION: Span = Span::days(30);

/// Connections that are not open by then are opened by who needs them.
const PREPARED_MAX: Duration = Duration::from_millis(500);

/// The ledger as it is read, cheap to clone.
#[derive(Clone)]
pub struct Usage {
    db: Db,
    clock: Clock,
    /// How far back a list looks that names no beginning.
    events_kept: Span,
}

impl Usage {
    /// `db` is that of the ledger.
    pub fn new(db: Db, clock: Clock) -> Self {
        Self {
            db,
            clock,
            events_kept: EVENTS_RETENTION,
        }
    }

    /// Events are kept so long.
    #[must_use]
    pub fn keeping_events(self, events_kept: Span) -> Self {
        Self {
            events_kept,
            ..self
        }
    }

    pub fn events_kept(&self) -> Span {
        self.events_kept
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Has the connections open that pages are read on, and what reads those by key prepared there: the first page on
    /// each would wait for it.
    pub async fn prepare(&self) {
        let now = self.clock.now();
        let nobodys = Wanted {
            tenant_id: String::new(),
            services: None,
            filter: EventFilter {
                key: Some(String::new()),
                ..EventFilter::default()
            },
            oldest: now.minus(Span::hours(1)),
            now,
        };
        let page = PageRequest {
            limit: 1,
            after: None,
        };
        self.db
            .prepare_reads(PREPARED_MAX, async move |conn: &mut Conn| {
                walk::newest(conn, &nobodys, &page).await.map(drop)
            })
            .await;
    }

    pub async fn events(
        &self,
        wanted: Wanted,
        order: Order,
        page: PageRequest,
    ) -> db::Result<Page<StoredEvent>> {
        self.db
            .read(async move |conn: &mut Conn| match order {
                Order::Newest => walk::newest(conn, &wanted, &page).await,
                Order::Stored => events::stored(conn, &wanted, &page, walk::PAUSE_AFTER).await,
            })
            .await
    }

    /// Up to `most` of the events behind `after`, newest first, or fewer and where to go on.
    pub async fn some_events(
        &self,
        wanted: Wanted,
        after: Option<Position>,
        most: Most,
    ) -> db::Result<Walked> {
        let tenant = wanted.tenant_id.clone();
        self.db
            .long(
                &tenant,
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    let pause_after = walk::PAUSE_AFTER;
                    walk::walk(conn, &wanted, after.as_ref(), most, pause_after).await
                },
            )
            .await
    }

    /// The scopes that were required of these keys, and met, since then: key, slug of the service,
    /// scope, each once.
    pub async fn scopes_met(
        &self,
        tenant: String,
        keys: Vec<String>,
        since: Timestamp,
    ) -> db::Result<Vec<(String, String, String)>> {
        self.db
            .snapshot(async move |conn: &mut Conn| {
                let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                store::scopes::met_since(conn, &tenant, &keys, since).await
            })
            .await
    }

    /// Keys and secrets of the last minutes with uses, each with the minute of its last: the life before, or
    /// another node, may have ended without writing it to the keys.
    ///
    /// # Errors
    /// The database's.
    pub async fn last_uses(&self, tenant: String) -> db::Result<Vec<(KeyId, SecretId, Timestamp)>> {
        let uses = self
            .db
            .read(async move |conn: &mut Conn| store::last::last_uses(conn, &tenant).await)
            .await?;
        let uses = uses.into_iter().filter_map(|(key, secret, minute)| {
            let at = Timestamp::from_millis(minute?);
            Some((KeyId::parse(&key)?, SecretId::parse(&secret)?, at))
        });
        Ok(uses.collect())
    }

    /// # Errors
    /// [`db::Error::Busy`] while as much is summed up already.
    pub async fn sum(&self, what: Sum) -> db::Result<Vec<SumRow>> {
        let tenant = what.tenant_id.clone();
        self.db
            .long(&tenant, db::LONG_WAIT_MAX, async move |conn: &mut Conn| {
                store::summary::sum(conn, &what).await
            })
            .await
    }
}
