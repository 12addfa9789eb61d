//! The composition root: what the server is made of, how it starts, serves and stops.

pub mod demo;
mod housekeeping;
pub mod owner;
mod serve;
mod start;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

use crate::audit::{Audit, Outlet, Refusals};
use crate::auth::issuers::Issuers;
use crate::auth::people::People;
use crate::cache::Reach;
use crate::cache::follow::Follower;
use crate::cache::relay::Relay;
use crate::cache::seal::Seal;
use crate::cache::{Changes, History, Nodes, Shelf};
use crate::clock::Clock;
use crate::config::{Config, issuers, upstreams};
use crate::consumers::Consumers;
use crate::db::{self, Db};
use crate::entropy::Entropy;
use crate::http::docs::Document;
use crate::http::health::{CUT_OFF, Modes, Readiness};
use crate::http::middleware::{Edge, EdgeSettings, TIME_LIMIT};
use crate::http::operations::Operations;
use crate::http::page::CursorKey;
use crate::http::problem::Code;
use crate::keys::hash::Hasher;
use crate::keys::pepper::Peppers;
use crate::keys::service::Keys;
use crate::keys::verifier::{Argon2Settings, Verifier};
use crate::keys::verifier_queue::{CAPACITY, VerifierQueue};
use crate::master::MasterKeys;
use crate::metrics::Metrics;
use crate::oauth::http::direct::answer_directly;
use crate::oauth::upstream::Shared;
use crate::oauth::{Issuer, Keyring, Mint, Oauth, Revocations, Upstreams};
use crate::ratelimit::Limiter;
use crate::redis_link::RedisLink;
use crate::reviews::Reviews;
use crate::routes;
use crate::services::Services;
use crate::tenants::Tenants;
use crate::time::Span;
use crate::usage::file::{EventFile, FileSettings};
use crate::usage::watch::Watch;
use crate::usage::{Ledger, Outlets, Recorder, Rules, Seals, Usage};
use crate::validation::Validation;
use crate::validation::http::direct::verify_directly;
use crate::validation::records::Records;

pub use serve::{Listeners, Running, serve};
pub use start::StartError;

/// Everything that handlers and commands work with, cheap to clone.
#[derive(Clone)]
pub struct App {
    pub config: Arc<Config>,
    pub clock: Clock,
    pub entropy: Entropy,
    pub db: Db,
    /// Where the usage ledger is: `db` itself, or a file beside it.
    pub usage_db: Db,
    pub ledger: Ledger,
    /// What services keep of their uses, and at which position of the changes that was.
    usage_rules: Arc<ArcSwap<(i64, Rules)>>,
    pub usage: Usage,
    pub seals: Seals,
    pub audit: Audit,
    pub master: Arc<MasterKeys>,
    pub peppers: Arc<Peppers>,
    pub hasher: Hasher,
    pub verifiers: VerifierQueue,
    pub tenants: Tenants,
    pub services: Services,
    pub consumers: Consumers,
    pub keys: Keys,
    pub reviews: Reviews,
    pub validation: Validation,
    pub keyring: Keyring,
    pub oauth: Oauth,
    pub people: People,
    pub changes: Changes,
    pub reach: Reach,
    follower: Follower,
    pub nodes: Nodes,
    redis: Option<RedisLink>,
    limiter: Limiter,
    issuers: Arc<Issuers>,
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    refusals: Refusals,
    cursors: CursorKey,
    document: Document,
    edge: Edge,
}

impl App {
    #[expect(
        clippy::too_many_lines,
        reason = "a composition root is as long as what it puts together"
    )]
    /// Wires the parts. Connects to nothing yet: see [`App::start`].
    ///
    /// # Errors
    /// One line that names the setting: an issuer whose keys cannot be used, a database that
    /// cannot even be opened.
    pub fn build(
        config: Config,
        master: MasterKeys,
        clock: Clock,
        entropy: Entropy,
    ) -> Result<Self, String> {
        let issuers = issuers::resolve(&config.issuers)
            .and_then(|issuers| Issuers::new(issuers, clock.clone()))
            .map_err(|faults| {
                faults
                    .first()
                    .map_or_else(String::new, std::string::ToString::to_string)
            })?;
        let issuers = Arc::new(issuers);
        let upstreams: Arc<[_]> = upstreams::resolve(&config.upstreams)
            .map_err(|faults| faults.first().map_or_else(String::new, ToString::to_string))?
            .into();
        let db = Db::open(config.database.url.target())
            .map_err(|error| format!("database.url cannot be opened: {error}"))?;
        let usage_db = Db::open_usage(config.database.url.target())
            .map_err(|error| format!("the usage ledger cannot be opened: {error}"))?;
        let recorder = Arc::new(Recorder::new(config.usage.recording));
        let codes: Vec<&'static str> = Code::ALL.iter().map(|code| code.slug()).collect();
        let metrics = Arc::new(Metrics::new(&codes));
        let redis = match &config.redis.url {
            Some(url) => Some(
                RedisLink::open(url, clock.clone())
                    .map_err(|error| format!("redis.url {error}"))?,
            ),
            None => None,
        };
        let limiter = Limiter::new(db.clone(), redis.clone(), clock.clone());
        limiter.register(&metrics);
        let changes = Changes::new();
        let reach = Reach::default();
        let (history, seal) = (History::default(), Seal::new(&master));
        let node = hex::encode(entropy.bytes::<16>());
        let relay = redis
            .as_ref()
            .map(|redis| Relay::new(redis.clone(), seal.clone(), history.clone(), node.clone()));
        let ledger = Ledger::new(
            Arc::clone(&recorder),
            config.data_dir.join("usage-journal.db"),
            usage_db.clone(),
            clock.clone(),
            hex::encode(entropy.bytes::<8>()),
        )
        .telling(Outlets {
            file: config.usage_file().map(|path| {
                EventFile::new(FileSettings {
                    path,
                    bytes_max: config.usage.file_bytes_max,
                    files_kept: config.usage.files_kept,
                })
            }),
            watch: Watch::new(metrics.security.clone()),
        });
        let audit = Audit::new(db.clone(), clock.clone(), entropy.clone(), &master)
            .counted(Arc::clone(&metrics))
            .telling(Outlet {
                files: config.statement_files(),
            })
            .noted_in(changes.clone(), relay.clone());
        let shelf = redis.as_ref().map_or_else(Shelf::none, |redis| {
            let (redis, runtime) = (redis.clone(), db.runtime());
            Shelf::new(redis, seal, clock.clone(), runtime, history.clone())
        });
        let nodes = Nodes::new(
            db.clone(),
            clock.clone(),
            changes.clone(),
            reach.clone(),
            relay.clone(),
            redis
                .as_ref()
                .map_or(Span::seconds(0), |_| config.cache.stale_max),
            node,
        );
        let follower = Follower::new(
            db.clone(),
            changes.clone(),
            reach.clone(),
            relay,
            entropy.clone(),
            config.cache.stale_max.duration(),
        );
        let peppers = Arc::new(Peppers::new(master.clone()));
        let argon2 = &config.argon2;
        let settings = Argon2Settings {
            memory_kib: argon2.memory_kib,
            passes: argon2.passes,
            lanes: argon2.lanes,
        };
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let hasher = Hasher::new(settings, cpus, db.runtime(), entropy.clone());
        let verifiers = VerifierQueue::start(&hasher, CAPACITY, store_verifiers(db.clone()));
        let keys = Keys::new(
            db.clone(),
            audit.clone(),
            clock.clone(),
            entropy.clone(),
            Arc::clone(&peppers),
            hasher.clone(),
            verifiers.clone(),
        );
        let records = Records::new(
            db.clone(),
            clock.clone(),
            changes.clone(),
            reach.clone(),
            shelf,
            Arc::clone(&peppers),
            hasher.clone(),
            verifiers.clone(),
            &config.cache,
        );
        let validation = Validation::new(
            db.clone(),
            clock.clone(),
            records,
            limiter.clone(),
            Arc::clone(&recorder),
            Arc::clone(&metrics),
        );
        let keyring = Keyring::new(
            db.clone(),
            audit.clone(),
            clock.clone(),
            entropy.clone(),
            master.clone(),
            config.oauth.clone(),
        );
        let shared = redis.as_ref().map_or_else(Shared::none, |redis| {
            let (redis, clock) = (redis.clone(), clock.clone());
            Shared::new(redis, history, &master, clock, entropy.clone())
        });
        let swapped = Upstreams::new(
            &upstreams,
            shared,
            db.runtime(),
            clock.clone(),
            entropy.clone(),
            Arc::clone(&metrics),
        )
        .map_err(|error| format!("upstreams cannot be asked: {error}"))?;
        let oauth = Oauth::new(
            validation.clone(),
            keyring.clone(),
            Mint::new(
                keyring.clone(),
                Issuer::new(&config.server.public_url),
                clock.clone(),
                entropy.clone(),
            ),
            swapped,
            Revocations::new(db.clone(), audit.clone(), clock.clone()),
            Arc::clone(&issuers),
            clock.clone(),
            Arc::clone(&metrics),
        );
        let readiness = Arc::new(Readiness::telling({
            let (reach, redis, changes) = (reach.clone(), redis.clone(), changes.clone());
            move || modes(&reach, redis.as_ref(), &changes)
        }));
        let document = routes::document();
        let edge = Edge::new(EdgeSettings {
            clock: clock.clone(),
            entropy: entropy.clone(),
            metrics: Arc::clone(&metrics),
            readiness: Arc::clone(&readiness),
            operations: Operations::new(&document, &metrics),
            trusted_proxies: config
                .server
                .trusted_proxies
                .iter()
                .map(|net| net.0)
                .collect(),
            time_limit: TIME_LIMIT,
            direct: {
                let verify = verify_directly(validation.clone());
                let forms = answer_directly(&oauth);
                std::iter::once(verify).chain(forms).collect()
            },
        });
        Ok(Self {
            tenants: Tenants::new(db.clone(), audit.clone()),
            services: Services::new(db.clone(), audit.clone()).with_upstreams(upstreams),
            consumers: Consumers::new(db.clone(), audit.clone()),
            people: People::new(Arc::clone(&issuers), validation.clone()),
            issuers,
            refusals: {
                let _on_its_runtime = db.runtime().enter();
                Refusals::start(audit.clone())
            },
            reviews: Reviews::new(
                db.clone(),
                audit.clone(),
                Usage::new(usage_db.clone(), clock.clone()),
                clock.clone(),
                entropy.clone(),
            ),
            usage: Usage::new(usage_db.clone(), clock.clone())
                .keeping_events(config.usage.events_retention),
            seals: Seals::new(db.clone(), usage_db.clone(), audit.clone(), clock.clone()),
            cursors: CursorKey::new(&master.first),
            document: Document::new(&document),
            config: Arc::new(config),
            master: Arc::new(master),
            clock,
            entropy,
            db,
            usage_db,
            ledger,
            usage_rules: Arc::new(ArcSwap::from_pointee((-1, Rules::default()))),
            audit,
            peppers,
            hasher,
            verifiers,
            keys,
            validation,
            keyring,
            oauth,
            changes,
            reach,
            follower,
            nodes,
            redis,
            limiter,
            metrics,
            readiness,
            edge,
        })
    }

    /// Brings the schema of both databases up to date; answers the versions applied now.
    pub(crate) async fn migrate(&self) -> db::Result<Vec<String>> {
        db::migrate_all(&self.db, &self.usage_db).await
    }

    /// Gives every answer this long to begin. For tests of what happens at the limit.
    #[must_use]
    pub fn with_time_limit(self, time_limit: Duration) -> Self {
        Self {
            edge: self.edge.with_time_limit(time_limit),
            ..self
        }
    }
}

/// How the parts work at this moment, for readiness.
fn modes(reach: &Reach, redis: Option<&RedisLink>, changes: &Changes) -> Modes {
    let word = |is_there: bool| if is_there { "reachable" } else { "away" };
    let decides = changes.may_use(Clock::uptime_us());
    Modes::from([
        ("database", word(reach.reaches_database())),
        (
            "redis",
            redis.map_or("none", |redis| word(!redis.is_away())),
        ),
        ("decisions", if decides { "made" } else { CUT_OFF }),
        ("changes", reach.teller()),
    ])
}

/// What the queue hands its verifiers to. One that cannot be stored is made again at a next use.
fn store_verifiers(
    db: Db,
) -> impl Fn(crate::id::SecretId, Verifier) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>
+ Send
+ 'static {
    move |secret, verifier| {
        let db = db.clone();
        Box::pin(async move {
            let stored = db
                .write(async move |conn| -> db::Result<()> {
                    crate::keys::store::store_verifier(conn, &secret, verifier.as_str()).await
                })
                .await;
            if let Err(error) = stored {
                tracing::warn!(%error, "a verifier could not be stored; the next use makes it again");
            }
        })
    }
}
