//! A connection to Redis: TCP, TLS by rustls, and who we are.
//!
//! The stream is made here and not by the client library, which would read the system's certificates
//! again for each connection, on a thread that serves requests.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, ServerErrorKind};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{RedisTls, RedisUrl};

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It can be reached and says no: a wrong password, no such database.
    #[error(
        "Redis refuses us: {0}; set the user, the password and the database that it has in redis.url"
    )]
    Refused(String),
    /// It can be reached and shows a certificate that we do not trust.
    #[error(
        "the certificate of Redis is not trusted: {0}; name the file of the authority that signed it in \
         redis.url, as ?sslrootcert=<file>"
    )]
    Certificate(String),
    /// It cannot be reached, or does not answer.
    #[error("Redis does not answer: {0}")]
    Away(String),
}

/// What is needed to connect, made once.
pub(super) struct Connector {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    login: RedisConnectionInfo,
}

/// An open connection, cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) redis: MultiplexedConnection,
    ended: Arc<AtomicBool>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Connector {
    /// # Errors
    /// What is wrong with the certificates that `url` names.
    pub(super) fn new(url: &RedisUrl) -> Result<Self, String> {
        let mut login = RedisConnectionInfo::default()
            .set_db(url.db.into())
            .set_lib_name("keystead", env!("CARGO_PKG_VERSION"));
        if let Some(username) = &url.username {
            login = login.set_username(username);
        }
        if let Some(password) = &url.password {
            login = login.set_password(password.as_str());
        }
        let tls = url.tls.as_ref().map(|tls| {
            let name = ServerName::try_from(url.host.clone())
                .map_err(|_no_name| "has a host that no certificate can name".to_owned())?;
            Ok::<_, String>((TlsConnector::from(Arc::new(config(tls)?)), name))
        });
        Ok(Self {
            host: url.host.clone(),
            port: url.port,
            tls: tls.transpose()?,
            login,
        })
    }

    /// Its driver lives on the runtime of the thread that asks.
    pub(super) async fn connect(&self) -> Result<Connection, Fault> {
        let stream = self.stream().await?;
        // Who calls limits the time of a whole call; a second limit in the library costs a timer.
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_connection_timeout(None);
        let (redis, driver) = MultiplexedConnection::new_with_config(&self.login, stream, config)
            .await
            .map_err(|error| fault(&error))?;
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        tokio::spawn(async move {
            driver.await;
            end.store(true, Ordering::Release);
        });
        Ok(Connection { redis, ended })
    }

    /// A connection of its own for messages.
    pub(super) async fn connect_for_messages(&self) -> Result<PubSub, Fault> {
        let stream = self.stream().await?;
        PubSub::new(&self.login, stream)
            .await
            .map_err(|error| fault(&error))
    }

    async fn stream(&self) -> Result<Box<dyn Stream>, Fault> {
        let tcp = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
            .map_err(|error| Fault::Away(error.to_string()))?;
        let Some((connector, name)) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        match connector.connect(name.clone(), tcp).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(tls_fault(&error)),
        }
    }
}

impl Connection {
    /// Whether the other side closed it, or it broke: nothing sent on it would arrive.
    pub(super) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

/// What an error means for whoever waits for Redis at the start.
pub(super) fn fault(error: &RedisError) -> Fault {
    let text = error.to_string();
    let is_refusal = match error.kind() {
        ErrorKind::AuthenticationFailed
        | ErrorKind::InvalidClientConfig
        | ErrorKind::Server(ServerErrorKind::NoPerm) => true,
        _ => {
            ["NOAUTH", "WRONGPASS"].contains(&error.code().unwrap_or_default())
                || text.contains("refused to switch database")
        }
    };
    if is_refusal {
        Fault::Refused(text)
    } else {
        Fault::Away(text)
    }
}

/// A certificate that is not trusted does not get better by waiting.
fn tls_fault(error: &io::Error) -> Fault {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
    match cause {
        Some(rustls::Error::InvalidCertificate(_)) => Fault::Certificate(error.to_string()),
        Some(_) | None => Fault::Away(error.to_string()),
    }
}

fn config(tls: &RedisTls) -> Result<rustls::ClientConfig, String> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(path) = &tls.root_cert {
        add_file(&mut roots, path).map_err(|problem| {
            format!(
                "names {} as sslrootcert, which {problem}; name the PEM file of the authority that signed \
                 the certificate of Redis",
                path.display()
            )
        })?;
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    // Named, because the process has no default provider.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn add_file(roots: &mut rustls::RootCertStore, path: &Path) -> Result<(), String> {
    // The parser's own words for a file that is not there hide why.
    let text = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        let certificate = certificate.map_err(|error| format!("is no PEM file: {error}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("holds a certificate that cannot be used: {error}"))?;
    }
    if roots.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(())
}
