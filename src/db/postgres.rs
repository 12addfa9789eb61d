//! `PostgreSQL`: a pool of connections, TLS by rustls, and a limit on every statement.
//!
//! `sslmode` is `disable`, `prefer` (the default), `require` or `verify-full`. Whenever TLS is used
//! the server's certificate and name are verified: a stricter reading of `require` than libpq's,
//! because an unverified channel protects from nobody who can reach it. `sslrootcert` names a PEM
//! file of authorities to trust instead of the system's.

use std::fmt;
use std::io;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use diesel::dsl::sql;
use diesel::sql_types::{BigInt, Bool, Text};
use diesel::{ConnectionError, ConnectionResult};
use diesel_async::pooled_connection::deadpool::Pool;
use diesel_async::pooled_connection::{
    AsyncDieselConnectionManager, ManagerConfig, RecyclingMethod,
};
use diesel_async::{AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use futures_util::FutureExt as _;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use super::content::Content;
use super::pools::note_connecting;
use crate::time::Timestamp;

/// Two seconds for a statement or a lock; a transaction whose client went away holds nothing long.
/// For summaries: no statement is compiled, which takes longer than to run it; what an index leads to is
/// read from there and not with the whole table, as is right for disks without heads; and the groups of a
/// month fit into memory.
const SETUP: &str = "SET statement_timeout = '2s'; SET lock_timeout = '2s'; \
                     SET idle_in_transaction_session_timeout = '10s'; SET TIME ZONE 'UTC'; \
                     SET synchronous_commit = on; \
                     SET jit = off; SET random_page_cost = 1.1; SET work_mem = '16MB';";

/// For what validations wait for, which are few rows by an index, whatever is asked: one plan serves them all, and
/// making one each time takes longer than to run it. Nor does it read a table as a whole if it was made while
/// that was small and nobody has counted its rows since.
pub(super) const LOAD_SETUP: &str =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;";

/// How the database must be encoded; `SQL_ASCII` takes every byte as it comes.
const ENCODINGS: [&str; 2] = ["UTF8", "SQL_ASCII"];

/// For lists and changes, and of them for the usage ledger.
const CONNECTIONS: usize = 16;
const USAGE_CONNECTIONS: usize = 6;

pub(super) fn connections(content: Content) -> usize {
    match content {
        Content::Main | Content::Journal => CONNECTIONS - USAGE_CONNECTIONS,
        Content::Usage => USAGE_CONNECTIONS,
    }
}

/// For what takes long: summaries, exports, reviews.
pub(super) const LONG_CONNECTIONS: usize = 3;

/// For what validations wait for.
pub(super) const LOAD_CONNECTIONS: usize = 8;

/// How long what was sent may stay without a sign that it arrived: then the kernel ends the connection, which it
/// does after a quarter of an hour otherwise. Longer than what a network heals by itself, and than anybody waits
/// for an answer; no longer than the server holds a transaction whose client it does not hear from; and over
/// before another host can have taken the place of one that died. It also bounds how long a connection with
/// nothing on its way is silent: from [`KEEPALIVE_IDLE`] on it is tried each [`KEEPALIVE_EVERY`].
const SILENT_MAX: Duration = Duration::from_secs(10);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(4);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_TRIES: u32 = 3;

/// A parsed `postgres://` URL. `Debug` shows host and database, never the password.
#[derive(Clone)]
pub struct PgUrl {
    config: tokio_postgres::Config,
    root_cert: Option<String>,
}

impl PgUrl {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut url = url::Url::parse(text)
            .map_err(|error| format!("is not a URL: {error}; write postgres://user@host/name"))?;
        let mut ssl_mode = SslMode::Prefer;
        let mut root_cert = None;
        let mut kept = Vec::new();
        for (name, value) in url.query_pairs() {
            match (name.as_ref(), value.as_ref()) {
                ("sslmode", "disable") => ssl_mode = SslMode::Disable,
                ("sslmode", "prefer") => ssl_mode = SslMode::Prefer,
                ("sslmode", "require" | "verify-full") => ssl_mode = SslMode::Require,
                ("sslmode", other) => {
                    return Err(format!(
                        "has sslmode={other}; use disable, prefer, require or verify-full"
                    ));
                }
                ("sslrootcert", path) => root_cert = Some(path.to_owned()),
                (name, value) => kept.push((name.to_owned(), value.to_owned())),
            }
        }
        if kept.is_empty() {
            url.set_query(None);
        } else {
            url.query_pairs_mut().clear().extend_pairs(&kept);
        }
        let mut config = tokio_postgres::Config::from_str(url.as_str())
            .map_err(|error| format!("cannot be read: {error}"))?;
        config.ssl_mode(ssl_mode);
        config.connect_timeout(Duration::from_secs(2));
        // A 0 of the operator's stands too, and leaves it to the kernel.
        let is_said = |name| kept.iter().any(|(said, _)| said == name);
        if !is_said("tcp_user_timeout") {
            config.tcp_user_timeout(SILENT_MAX);
        }
        if !is_said("keepalives_idle") {
            config.keepalives_idle(KEEPALIVE_IDLE);
        }
        if !is_said("keepalives_interval") {
            config.keepalives_interval(KEEPALIVE_EVERY);
        }
        if !is_said("keepalives_retries") {
            config.keepalives_retries(KEEPALIVE_TRIES);
        }
        if config.get_application_name().is_none() {
            config.application_name("keystead");
        }
        Ok(Self { config, root_cert })
    }
}

impl fmt::Debug for PgUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgUrl")
            .field("hosts", &self.config.get_hosts())
            .field("database", &self.config.get_dbname())
            .finish_non_exhaustive()
    }
}

/// Connections that begin with [`SETUP`] and `more`.
pub(super) fn pool(
    url: &PgUrl,
    connections: usize,
    more: &'static str,
) -> io::Result<Pool<AsyncPgConnection>> {
    let tls = tls(url)?;
    let pg = url.config.clone();
    let mut config = ManagerConfig::<AsyncPgConnection>::default();
    // A broken connection is noticed by its driver; a round trip before each query is not worth it.
    config.recycling_method = RecyclingMethod::Fast;
    config.custom_setup = Box::new(move |_url| {
        note_connecting();
        let (pg, tls) = (pg.clone(), tls.clone());
        async move { connect(&pg, tls, more).await }.boxed()
    });
    let manager = AsyncDieselConnectionManager::new_with_config("", config);
    #[expect(
        clippy::expect_used,
        reason = "building fails only for timeouts without a runtime"
    )]
    Ok(Pool::builder(manager)
        .max_size(connections)
        .build()
        .expect("a pool without timeouts builds"))
}

async fn connect(
    pg: &tokio_postgres::Config,
    tls: MakeRustlsConnect,
    more: &str,
) -> ConnectionResult<AsyncPgConnection> {
    let bad = |error: tokio_postgres::Error| {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        // SQLSTATE class 28: who we are is refused; 3D000: there is no such database.
        let refused = error
            .code()
            .is_some_and(|c| c.code().starts_with("28") || c.code() == "3D000");
        if refused {
            ConnectionError::InvalidConnectionUrl(text)
        } else {
            ConnectionError::BadConnection(text)
        }
    };
    let (client, connection) = pg.connect(tls).await.map_err(bad)?;
    let mut conn = AsyncPgConnection::try_from_client_and_connection(client, connection).await?;
    conn.batch_execute(&format!("{SETUP} {more}"))
        .await
        .map_err(ConnectionError::CouldntSetupConfiguration)?;
    Ok(conn)
}

/// The time by the clock of the server's machine.
pub(super) async fn clock(conn: &mut AsyncPgConnection) -> super::Result<Timestamp> {
    const NOW: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";
    let millis: i64 = diesel::select(sql::<BigInt>(NOW)).get_result(conn).await?;
    Ok(Timestamp::from_millis(millis))
}

/// # Errors
/// [`super::Error::Refused`] if the database cannot hold every text: whatever has another character in it, as
/// anybody may in a path, would not be stored.
pub(super) async fn require_encoding(conn: &mut AsyncPgConnection) -> super::Result<()> {
    let asked = sql::<Text>("current_setting('server_encoding')");
    let encoding: String = diesel::select(asked).get_result(conn).await?;
    if ENCODINGS.contains(&&*encoding) {
        return Ok(());
    }
    Err(super::Error::Refused(format!(
        "the database is encoded in {encoding}; make one with ENCODING 'UTF8' TEMPLATE template0"
    )))
}

/// Takes an advisory lock to the end of the transaction, unless somebody has it.
pub(super) async fn alone(conn: &mut AsyncPgConnection, what: &str) -> super::Result<bool> {
    let lock = sql::<Bool>("pg_try_advisory_xact_lock(hashtext('keystead ' || ")
        .bind::<Text, _>(what)
        .sql("))");
    Ok(diesel::select(lock).get_result(conn).await?)
}

fn tls(url: &PgUrl) -> io::Result<MakeRustlsConnect> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = &url.root_cert {
        let bad = |error: &dyn fmt::Display| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("sslrootcert {path}: {error}"),
            )
        };
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad(&error))? {
            let certificate = certificate.map_err(|error| bad(&error))?;
            roots.add(certificate).map_err(|error| bad(&error))?;
        }
        if roots.is_empty() {
            return Err(bad(&"holds no certificate"));
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(MakeRustlsConnect::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a URL with this query.
    fn bounds(query: &str) -> (Option<Duration>, bool, [Duration; 2], Option<u32>) {
        let url = PgUrl::parse(&format!(
            "postgres://keystead@db.example.com/keystead{query}"
        ));
        let config = url.unwrap().config;
        let every = config.get_keepalives_interval().unwrap();
        (
            config.get_tcp_user_timeout().copied(),
            config.get_keepalives(),
            [config.get_keepalives_idle(), every],
            config.get_keepalives_retries(),
        )
    }

    #[test]
    fn a_connection_whose_server_is_silent_is_bounded_unless_the_url_says_otherwise() {
        let secs = Duration::from_secs;
        let ours = (Some(secs(10)), true, [secs(4), secs(2)], Some(3));
        for query in [
            "",
            "?sslmode=disable",
            "?application_name=k&sslmode=require",
        ] {
            assert_eq!(bounds(query), ours, "{query}");
        }
        let said =
            "?tcp_user_timeout=60&keepalives_idle=30&keepalives_interval=5&keepalives_retries=9";
        let theirs = (Some(secs(60)), true, [secs(30), secs(5)], Some(9));
        assert_eq!(bounds(said), theirs);
        let none = bounds("?tcp_user_timeout=0&keepalives=0");
        assert_eq!((none.0, none.1), (None, false));
    }
}
