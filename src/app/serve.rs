//! Serving: listeners first, then the start in the background, then requests, then the stop.
//!
//! A node answers `/health/live` from its first moment and 503 for the rest until it has started.
//! On SIGTERM or SIGINT it says that it is not ready, goes on answering for `server.drain_delay` so
//! that nobody is sent away, finishes what is under way, and writes what it still holds.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::{Condition, from_fn};
use actix_web::{App as ActixApp, HttpServer, web};
use tokio::signal::unix::{SignalKind, signal};

use super::{App, StartError, housekeeping};
use crate::audit::http::{RefusedRecorder, record_refused};
use crate::clock::Clock;
use crate::config::{Config, MAKE_MASTER_KEY};
use crate::db::{self, Target};
use crate::entropy::Entropy;
use crate::http::cors::cors;
use crate::http::health::{self, Phase};
use crate::http::{docs, health::read_metrics};
use crate::keys::pepper_store;
use crate::routes;
use crate::telemetry::LostLines;

/// How long requests under way may take at the stop.
const SHUTDOWN_SECONDS: u64 = 10;

/// How long each of what is written at the stop may take.
const STORE_AT_STOP_MAX: Duration = Duration::from_secs(3);

/// The first pause before the start is tried again; it doubles to [`RETRY_MAX`], so that the node is
/// ready within two seconds of its database.
const RETRY_FIRST: Duration = Duration::from_millis(125);
const RETRY_MAX: Duration = Duration::from_millis(500);

/// Bound, but nothing is accepted yet.
pub struct Listeners {
    pub main: TcpListener,
    pub operations: Option<TcpListener>,
}

/// So many connections wait to be accepted, or as many as the system lets (`net.core.somaxconn`): a client that
/// finds the line full tries again after a second.
const BACKLOG: i32 = 4096;

impl Listeners {
    /// # Errors
    /// One line that names the setting and the fix.
    pub fn bind(config: &Config) -> Result<Self, String> {
        let bind = |key: &str, address: SocketAddr| {
            let bound = TcpListener::bind(address).and_then(|listener| {
                // The standard library's line is too short for all clients of a node that died.
                rustix::net::listen(&listener, BACKLOG)?;
                Ok(listener)
            });
            bound.map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => {
                    format!(
                        "{key} {address} is in use; stop what listens there or set another port"
                    )
                }
                _ => format!(
                    "{key} {address} cannot be bound: {error}; set an address of this machine"
                ),
            })
        };
        Ok(Self {
            main: bind("server.listen", config.server.listen)?,
            operations: config
                .server
                .operations_listen
                .map(|address| bind("server.operations_listen", address))
                .transpose()?,
        })
    }
}

/// A server that runs; for commands and tests that run it beside something else.
pub struct Running {
    pub address: SocketAddr,
    handle: ServerHandle,
    app: App,
    tasks: housekeeping::Tasks,
}

impl Running {
    /// Stops as on SIGTERM, without the signal.
    pub async fn stop(self) {
        self.app.readiness.set_phase(Phase::Draining);
        let delay = self.app.config.server.drain_delay.duration();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.handle.stop(true).await;
        self.tasks.end().await;
        Box::pin(self.app.finish()).await;
    }
}

impl App {
    /// Accepts requests on the listeners. The server runs on the current actix system.
    ///
    /// # Errors
    /// A listener that cannot be used.
    pub fn listen(&self, listeners: Listeners) -> io::Result<Running> {
        let address = listeners.main.local_addr()?;
        self.oauth.issuer().bind(address);
        let on_main = self.config.server.operations_on_main();
        let app = self.clone();
        let mut server = HttpServer::new(move || {
            let app = app.clone();
            let origins = app.origins();
            ActixApp::new()
                .wrap(from_fn(record_refused))
                .wrap(Condition::new(!origins.is_empty(), cors(&origins)))
                .wrap(app.edge.clone())
                .configure(|config| app.data(config))
                .configure(health::routes)
                .configure(routes::api)
                .configure(operations(&app, on_main))
        })
        .workers(self.workers())
        .keep_alive(Duration::from_secs(75))
        .client_request_timeout(Duration::from_secs(5))
        .client_disconnect_timeout(Duration::from_secs(5))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals()
        .listen(listeners.main)?;
        if let Some(listener) = listeners.operations {
            // Its own server would need its own workers; one more listener serves the same routes,
            // so what the main one hides is shown by a second server of one worker.
            let app = self.clone();
            let operations_server = HttpServer::new(move || {
                let app = app.clone();
                ActixApp::new()
                    .wrap(app.edge.without_direct())
                    .configure(|config| app.data(config))
                    .configure(health::routes)
                    .configure(operations(&app, true))
            })
            .workers(1)
            .shutdown_timeout(SHUTDOWN_SECONDS)
            .disable_signals()
            .listen(listener)?
            .run();
            actix_web::rt::spawn(operations_server);
        }
        server = server.server_hostname("keystead");
        let server = server.run();
        let handle = server.handle();
        actix_web::rt::spawn(server);
        Ok(Running {
            address,
            handle,
            app: self.clone(),
            tasks: housekeeping::start(self),
        })
    }

    /// As many as cores, unless the settings say.
    fn workers(&self) -> usize {
        match usize::from(self.config.server.workers) {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            set => set,
        }
    }

    fn origins(&self) -> Vec<String> {
        self.config
            .server
            .cors_origins
            .iter()
            .map(|origin| origin.as_str().to_owned())
            .collect()
    }

    fn data(&self, config: &mut web::ServiceConfig) {
        config
            .app_data(web::Data::new(self.clock.clone()))
            .app_data(web::Data::new(self.cursors.clone()))
            .app_data(web::Data::new(self.tenants.clone()))
            .app_data(web::Data::new(self.services.clone()))
            .app_data(web::Data::new(self.consumers.clone()))
            .app_data(web::Data::new(self.keys.clone()))
            .app_data(web::Data::new(self.reviews.clone()))
            .app_data(web::Data::new(self.validation.clone()))
            .app_data(web::Data::new(self.oauth.clone()))
            .app_data(web::Data::new(self.people.clone()))
            .app_data(web::Data::new(self.audit.clone()))
            .app_data(web::Data::new(self.usage.clone()))
            .app_data(web::Data::new(self.seals.clone()))
            .app_data(web::Data::new(self.nodes.clone()))
            .app_data(web::Data::new(RefusedRecorder {
                refusals: self.refusals.clone(),
                action: routes::action,
            }))
            .app_data(web::Data::from(self.metrics.clone()))
            .app_data(web::Data::from(self.readiness.clone()));
    }

    /// Starts, waiting for what is unreachable, and then is ready.
    ///
    /// # Errors
    /// What is wrong and will not get better.
    pub async fn become_ready(&self) -> Result<(), String> {
        let mut pause = RETRY_FIRST;
        loop {
            match self.start().await {
                Ok(()) => break,
                Err(StartError::Wrong(line)) => return Err(line),
                Err(StartError::Away(cause)) => {
                    tracing::warn!(cause, "waiting for the database");
                    tokio::time::sleep(pause).await;
                    pause = RETRY_MAX.min(pause * 2);
                }
            }
        }
        self.readiness.set_phase(Phase::Ready);
        Ok(())
    }

    /// What was recorded is in the journal then, and in the ledger if that takes it in time: the rest goes
    /// there after the next start.
    async fn finish_uses(&self) {
        if let Err(error) = self.ledger.finish().await {
            tracing::error!(target: "security", %error, "the last uses could not be kept");
        }
        wait_at_the_stop("the last uses wait in the journal", self.store_uses()).await;
    }

    /// Writes what is still held in memory: counts of quotas before last uses, which the next start finds in
    /// the ledger.
    async fn finish(&self) {
        self.nodes.leave().await;
        self.refusals.stop().await;
        self.finish_uses().await;
        self.metrics.security.finish();
        if let Err(error) = self.limiter.write_back().await {
            tracing::warn!(%error, "the last counts of quotas could not be written");
        }
        let flush = self.validation.flush_last_used();
        wait_at_the_stop("not all of the last uses could be written", flush).await;
        // Bounded: a verifier that is not made now is made at the key's next use.
        let _not_all = tokio::time::timeout(Duration::from_secs(2), self.verifiers.drained()).await;
    }
}

/// Waits for what is written at the stop no longer than there is time, and says so if it was not.
async fn wait_at_the_stop(otherwise: &'static str, written: impl Future<Output = db::Result<()>>) {
    match tokio::time::timeout(STORE_AT_STOP_MAX, written).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "{otherwise}"),
        Err(_elapsed) => tracing::warn!("{otherwise}"),
    }
}

/// Metrics and documents, or 404.
fn operations(app: &App, served: bool) -> impl FnOnce(&mut web::ServiceConfig) {
    let docs = docs::routes(served, app.document.clone());
    move |config| {
        docs(config);
        if served {
            config.service(web::resource("/metrics").route(web::get().to(read_metrics)));
        }
    }
}

/// Runs the server to its end.
///
/// # Errors
/// One line that names the setting and the fix.
pub fn serve(config: Config, lost_lines: LostLines) -> Result<(), StartError> {
    // Told before anything is made.
    let given = if config.is_given_its_master_key() {
        Some(config.master_keys()?)
    } else {
        None
    };
    let lock = config.lock_data_dir()?;
    if config.makes_own_master_key() {
        refuse_if_it_had_one(&config)?;
    }
    let listeners = Listeners::bind(&config).map_err(StartError::Away)?;
    let entropy = Entropy::System;
    let master = match given {
        Some(master) => master,
        None => config.master_keys_or_new(&entropy)?,
    };
    let app = App::build(config, master, Clock::System, entropy).map_err(StartError::Wrong)?;
    app.metrics.register(
        "log_lines_lost",
        "Log lines that could not be written",
        lost_lines.into_counter(),
    );
    let done = actix_web::rt::System::new().block_on(run(app, listeners));
    drop(lock);
    done
}

/// Whoever lost sight of the master key must not be given another, which would be taken for it.
fn refuse_if_it_had_one(config: &Config) -> Result<(), StartError> {
    let Target::Sqlite { path } = config.database.url.target() else {
        return Ok(());
    };
    let had_one = pepper_store::is_any_in(path).map_err(|error| {
        StartError::Wrong(format!(
            "database.url: {} cannot be read: {error}; it must be a database of Keystead and belong to the user \
             that runs it",
            path.display()
        ))
    })?;
    if had_one {
        return Err(StartError::Wrong(format!(
            "data_dir: {} is missing, and the database is of no use without it; put its copy back, or, if it is \
             lost for ever, make another with {MAKE_MASTER_KEY} and run: keystead pepper lost",
            config.own_master_key().display()
        )));
    }
    Ok(())
}

async fn run(app: App, listeners: Listeners) -> Result<(), StartError> {
    let away = |error: io::Error| StartError::Away(format!("server.listen: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(away)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(away)?;
    let running = app.listen(listeners).map_err(away)?;
    tracing::info!(
        address = %running.address,
        version = env!("CARGO_PKG_VERSION"),
        database = if app.db.is_sqlite() { "sqlite" } else { "postgres" },
        "listening"
    );
    let started = tokio::select! {
        started = app.become_ready() => Some(started),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    if let Some(started) = started {
        if let Err(line) = started {
            running.handle.stop(false).await;
            return Err(StartError::Wrong(line));
        }
        tracing::info!("ready");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    tracing::info!("stopping");
    running.stop().await;
    tracing::info!("stopped");
    Ok(())
}
