//! The OAuth bridge: a small, strict authorization server for machines. A key becomes a short-lived
//! token where a token is the better credential.
//!
//! Read [`grant`] for how, [`mint`] for what a token says, [`keyring`] for what it is signed with, and
//! docs/architecture.md, "The path of a token", for the whole way.

pub mod bonds;
pub mod client;
pub mod delegation;
mod embedded;
mod exchange;
mod foreign;
pub mod form;
pub mod grant;
pub mod http;
pub mod introspection;
pub mod keyring;
pub mod metadata;
pub mod mint;
pub mod own;
mod phantom;
pub mod refusal;
pub mod revocation;
pub mod told;
pub mod upstream;
mod verified;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use url::Url;

pub use self::keyring::Keyring;
pub use self::mint::Mint;
use self::own::{Bearer, OwnTokens};
use self::phantom::Phantoms;
pub use self::refusal::Refusal;
pub use self::revocation::Revocations;
pub use self::upstream::Upstreams;
use crate::auth::Issuers;
use crate::clock::Clock;
use crate::config::PublicUrl;
use crate::metrics::Metrics;
use crate::validation::Validation;

/// Who issues our tokens: `server.public_url`, never what a request says of itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Issuer(Arc<Names>);

#[derive(Debug)]
struct Names {
    configured: String,
    /// When the port that was asked for is any.
    bound: OnceLock<String>,
}

impl Issuer {
    pub fn new(url: &PublicUrl) -> Self {
        Self(Arc::new(Names {
            configured: url.as_str().to_owned(),
            bound: OnceLock::new(),
        }))
    }

    /// Learns the address that is listened on: only that of a server told to take any port counts.
    pub fn bind(&self, address: SocketAddr) {
        let Ok(mut url) = Url::parse(&self.0.configured) else {
            return;
        };
        if url.port() == Some(0) && url.set_port(Some(address.port())).is_ok() {
            let url = url.as_str().trim_end_matches('/').to_owned();
            let _the_first_counts = self.0.bound.set(url);
        }
    }

    /// Without a slash at the end.
    pub fn as_str(&self) -> &str {
        self.0.bound.get().unwrap_or(&self.0.configured)
    }

    /// The path of the URL, such as `/keys`; empty without one.
    pub fn path(&self) -> String {
        Url::parse(self.as_str())
            .map(|url| url.path().trim_end_matches('/').to_owned())
            .unwrap_or_default()
    }
}

/// The authorization server, cheap to clone.
#[derive(Clone)]
pub struct Oauth {
    validation: Validation,
    keyring: Keyring,
    mint: Mint,
    issuer: Issuer,
    upstreams: Upstreams,
    own: Arc<OwnTokens>,
    phantoms: Arc<Phantoms>,
    revocations: Revocations,
    /// Those of others whose tokens are believed.
    issuers: Arc<Issuers>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

impl Oauth {
    #[expect(clippy::too_many_arguments, reason = "each is a part of its own")]
    pub fn new(
        validation: Validation,
        keyring: Keyring,
        mint: Mint,
        upstreams: Upstreams,
        revocations: Revocations,
        issuers: Arc<Issuers>,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        let issuer = mint.names().clone();
        Self {
            own: Arc::new(OwnTokens::new(
                keyring.clone(),
                issuer.clone(),
                clock.clone(),
            )),
            phantoms: Arc::new(Phantoms::new(mint.clone())),
            validation,
            keyring,
            mint,
            issuer,
            upstreams,
            revocations,
            issuers,
            clock,
            metrics,
        }
    }

    pub fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    pub fn revocations(&self) -> &Revocations {
        &self.revocations
    }

    /// Forgets tokens that have ended, of those that are remembered: on a timer.
    pub fn forget_ended(&self) {
        let now = self.clock.now();
        self.own.forget_ended(now);
        self.phantoms.forget_ended(now);
    }

    /// Of how many tokens it is remembered that their signature is good.
    pub fn remembered(&self) -> usize {
        self.own.remembered()
    }

    /// What a text is that may be an access token of ours. Whether one counts is for
    /// [`Validation`] to say, by its [`proof`](own::OwnToken::proof).
    pub fn read(&self, token: &str) -> Bearer {
        self.own.read(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_is_what_is_configured_and_any_port_becomes_the_one_there_is() {
        let issuer = |url: &str| {
            let issuer = Issuer::new(&PublicUrl::try_from(url.to_owned()).unwrap());
            issuer.bind("127.0.0.1:4711".parse().unwrap());
            issuer
        };
        assert_eq!(
            issuer("https://keys.example.com/").as_str(),
            "https://keys.example.com"
        );
        assert_eq!(
            issuer("http://127.0.0.1:0").as_str(),
            "http://127.0.0.1:4711"
        );
        assert_eq!(
            issuer("http://127.0.0.1:8080").as_str(),
            "http://127.0.0.1:8080"
        );
        assert_eq!(issuer("https://example.com/keys/").path(), "/keys");
        assert_eq!(issuer("https://example.com").path(), "");
    }
}
