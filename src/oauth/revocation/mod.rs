//! Revocation (RFC 7009) of our own access tokens.
//!
//! A revoked token stands in the database for as long as any token may still live, and is a change of the feed
//! like any other: true at once on the node that answered, and on the others within the bounds of the
//! feed. Who verifies tokens by himself hears of it by introspection alone.
//!
//! Each is a line of the audit trail for good, and a client whose key has no limits makes tokens as fast as it
//! likes. So a client ends so many at once and then one a second: what is more is told as not done (RFC 7009
//! §2.2.1), and ends by itself within minutes.

mod store;

use std::sync::Arc;
use std::time::Duration;

use super::Oauth;
use super::client::Client;
use super::grant::Origin;
use super::own::{Bearer, OwnToken};
use super::refusal::{ErrorCode, Refusal, of_outcome};
use crate::audit::{Actor, Attribution, Audit, Change};
use crate::clock::Clock;
use crate::db::feed::Kind;
use crate::db::{self, Conn, Db};
use crate::keys::secret::Presented;
use crate::ratelimit::budget::NamedBudget;
use crate::services::tokens::TOKEN_TTL_MAX;
use crate::time::Span;
use crate::validation::snapshot::Subject;
use crate::validation::{Asked, AuthFailure};

/// How far the clocks of nodes may be apart.
const LEEWAY: Span = Span::minutes(1);

/// So many of its tokens a client ends at once, and one more each [`EVERY`].
const AT_ONCE: u32 = 600;
const EVERY: Duration = Duration::from_secs(1);

/// So many clients have a budget of their own.
const CLIENTS_MAX: usize = 4096;

/// Where revoked tokens stand.
#[derive(Clone)]
pub struct Revocations {
    db: Db,
    audit: Audit,
    clock: Clock,
    budget: Arc<NamedBudget>,
}

impl Revocations {
    pub fn new(db: Db, audit: Audit, clock: Clock) -> Self {
        Self {
            db,
            audit,
            clock,
            budget: Arc::new(NamedBudget::new(AT_ONCE, EVERY, CLIENTS_MAX)),
        }
    }

    /// Forgets tokens that have ended; answers how many.
    ///
    /// # Errors
    /// The database's.
    pub async fn sweep(&self) -> db::Result<usize> {
        let before = self.clock.now().minus(LEEWAY);
        self.db
            .write(async move |conn: &mut Conn| store::sweep(conn, before).await)
            .await
    }

    async fn revoke(&self, token: &OwnToken, at: Attribution) -> db::Result<()> {
        let row = store::Revoked {
            id: token.id.clone(),
            tenant_id: at.tenant.id.clone(),
            // Not only this one: a phantom of it has its id, and may end at another time.
            expires_at: self.clock.now().plus(TOKEN_TTL_MAX),
        };
        let service = token.service.to_string();
        self.audit
            .change(at, async move |change: &mut Change| -> db::Result<()> {
                if !store::insert(change.conn(), &row).await? {
                    // It is revoked already.
                    return Ok(());
                }
                change.record("token.revoke", ("token", row.id.as_str()), None, None);
                change.concerns([service]);
                change.touch(Kind::Token, row.id.as_str());
                Ok(())
            })
            .await
    }
}

impl Oauth {
    /// Ends a token of the client's own. What is no token any more, or never was one, is as good as
    /// ended (RFC 7009 §2.2).
    ///
    /// # Errors
    /// `invalid_client`; `unauthorized_client` for the token of another client, which stays as it is;
    /// `unsupported_token_type` for an API key, which its holder ends at `/v1/self/revoke`: no client
    /// library that tidies up after itself may end a key of years; `temporarily_unavailable` if it cannot be
    /// stored just now, or the client has ended too many.
    pub async fn revoke(
        &self,
        client: &Client,
        token: &str,
        origin: &Origin<'_>,
    ) -> Result<(), Refusal> {
        let holder = self.token_holder(client, origin).await?;
        let token = match self.own.read(token) {
            Bearer::Own(token) => token,
            Bearer::Forged(_) => return Ok(()),
            Bearer::NotOurs => {
                return match Presented::parse(token, &[]) {
                    Presented::Native { .. } => Err(Refusal::new(
                        ErrorCode::UnsupportedTokenType,
                        "an API key is ended by its holder: POST /v1/self/revoke",
                    )),
                    Presented::Foreign(_) | Presented::Malformed => Ok(()),
                };
            }
        };
        if token.client != holder.consumer.id {
            return Err(Refusal::new(
                ErrorCode::UnauthorizedClient,
                "the token was not issued to this client",
            ));
        }
        if token.expires_at.plus(LEEWAY) <= self.clock.now() {
            return Ok(());
        }
        let at = Attribution {
            tenant: holder.tenant.to_ref(),
            actor: Actor::Key {
                key_id: holder.key.key_id.to_string(),
            },
            via: None,
            home: None,
            reason: None,
            request_id: Some(origin.request_id.to_owned()),
            ip: Some(origin.ip),
        };
        let budget = &self.revocations.budget;
        if !budget.take(token.client.as_str(), Clock::uptime_us()) {
            return Err(Refusal::new(
                ErrorCode::TemporarilyUnavailable,
                "this client has ended too many tokens just now: the token still counts, try again",
            ));
        }
        self.revocations.revoke(&token, at).await?;
        Ok(())
    }

    /// The client, by any good key of the consumer.
    pub(super) async fn token_holder(
        &self,
        client: &Client,
        origin: &Origin<'_>,
    ) -> Result<Subject, Refusal> {
        let refused = |outcome| of_outcome(outcome).unwrap_or_else(Refusal::unknown_client);
        if client.is_missing() {
            return Err(refused(crate::validation::decide::Outcome::Missing));
        }
        let secret = client.secret.expose_secret();
        let held = self.validation.holder(secret, Some(origin.ip), Asked::None);
        match held.await {
            Ok((subject, _)) if client.is_named(&subject) => Ok(subject),
            Ok(_) | Err(AuthFailure::Invalid | AuthFailure::NoManagementKey(_)) => {
                Err(Refusal::unknown_client())
            }
            Err(AuthFailure::Refused(outcome) | AuthFailure::Limited(outcome, _)) => {
                Err(refused(outcome))
            }
            Err(AuthFailure::Failed(failure)) => Err(failure.into()),
        }
    }
}
