//! Who a subject or actor token speaks for: read, and held to what its kind is held to anywhere else.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::Value;

use super::asked::{TokenType, Typed};
use crate::auth::jwt;
use crate::id::{ConsumerId, SecretId};
use crate::oauth::Oauth;
use crate::oauth::bonds::Bonds;
use crate::oauth::delegation::{Actor, Delegation, MayAct, SubjectId};
use crate::oauth::foreign::{self, scopes};
use crate::oauth::own::{Bearer, OwnToken};
use crate::oauth::refusal::{ErrorCode, Refusal, of_outcome};
use crate::scope::Scope;
use crate::services::Service;
use crate::text::has_control;
use crate::time::Timestamp;
use crate::validation::decide::{AskedEnvironment, Outcome, Request};
use crate::validation::proof::Credential;
use crate::validation::snapshot::{ServiceEntry, Subject};
use crate::validation::{Answer, Asked};

/// A longer name of another issuer's token is not recorded.
const ID_BYTES_MAX: usize = 128;

/// Which of the two tokens of an exchange it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Subject,
    Actor,
}

/// What a token turned out to be.
pub(super) enum Party<'a> {
    Key(&'a str),
    Own(Arc<OwnToken>),
    Other(Box<Foreign>),
}

/// What a good token of a configured issuer says.
pub(super) struct Foreign {
    id: Option<String>,
    pub(super) issuer: String,
    pub(super) subject: String,
    pub(super) scopes: Vec<Scope>,
    pub(super) act: Option<Actor>,
    pub(super) may_act: Option<MayAct>,
    expires_at: Timestamp,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Subject => "subject_token",
            Self::Actor => "actor_token",
        }
    }

    /// What is unknown, of another tenant, or nobody's, is told in the same words.
    pub(super) fn no_good(self) -> Refusal {
        Refusal::invalid_request(&self.not_good())
    }

    fn not_good(self) -> String {
        format!("the {} is not good, or not of its type", self.name())
    }

    /// RFC 8693 §2.2.2: whatever is wrong with a token is `invalid_request`.
    pub(super) fn refused(self, outcome: Outcome) -> Refusal {
        let ended = |what: &str| Refusal::invalid_request(&format!("the {} {what}", self.name()));
        match outcome {
            Outcome::Revoked => ended("was revoked"),
            Outcome::Disabled => ended("is disabled"),
            Outcome::Expired => ended("has expired"),
            Outcome::NotYetValid => ended("is not valid yet"),
            Outcome::WrongEnvironment | Outcome::IpNotAllowed => {
                ended("may not be used from this address or for this environment")
            }
            Outcome::WrongService
            | Outcome::InsufficientScope
            | Outcome::RateLimited
            | Outcome::QuotaExceeded => of_outcome(outcome).unwrap_or_else(|| self.no_good()),
            Outcome::Valid | Outcome::Missing | Outcome::Malformed | Outcome::Unknown => {
                self.no_good()
            }
        }
    }
}

impl Party<'_> {
    /// When it ends by itself; a key ends with what it is judged by.
    pub(super) fn end(&self) -> Option<Timestamp> {
        match self {
            Self::Key(_) => None,
            Self::Own(token) => Some(token.expires_at),
            Self::Other(foreign) => Some(foreign.expires_at),
        }
    }

    /// What it dies with beside the key that it was made from.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &SecretId> {
        let bonds = match self {
            Self::Key(_) | Self::Other(_) => None,
            Self::Own(token) => Some(&token.bonds),
        };
        bonds.into_iter().flat_map(Bonds::secrets)
    }

    /// Its `jti`.
    pub(super) fn id(&self) -> Option<&str> {
        match self {
            Self::Key(_) => None,
            Self::Own(token) => Some(token.id.as_str()),
            Self::Other(foreign) => foreign.id.as_deref(),
        }
    }

    /// Whom it speaks for, as an actor is named; `consumer` is that of a key.
    pub(super) fn identity(&self, consumer: Option<&ConsumerId>) -> Actor {
        match self {
            Self::Key(_) => Actor::new(consumer.map_or("", ConsumerId::as_str), None),
            Self::Own(token) => {
                let sub_id = token.delegation.sub_id.as_ref();
                Actor::new(&token.subject, sub_id.map(|sub_id| &*sub_id.iss))
            }
            Self::Other(foreign) => Actor::new(&foreign.subject, Some(&foreign.issuer)),
        }
    }

    pub(super) fn sub_id(&self) -> Option<SubjectId> {
        match self {
            Self::Key(_) => None,
            Self::Own(token) => token.delegation.sub_id.clone(),
            Self::Other(foreign) => Some(SubjectId::new(&foreign.issuer, &foreign.subject)),
        }
    }

    /// Who acts already.
    pub(super) fn act(&self) -> Option<&Actor> {
        match self {
            Self::Key(_) => None,
            Self::Own(token) => token.delegation.act.as_ref(),
            Self::Other(foreign) => foreign.act.as_ref(),
        }
    }

    pub(super) fn may_act(&self) -> Option<&MayAct> {
        match self {
            Self::Key(_) => None,
            Self::Own(token) => token.delegation.may_act.as_ref(),
            Self::Other(foreign) => foreign.may_act.as_ref(),
        }
    }
}

impl Oauth {
    /// What a token is, with its signature verified. Whether it still counts is another question.
    pub(super) async fn party<'a>(
        &self,
        role: Role,
        typed: &'a Typed,
        tenant: &str,
    ) -> Result<Party<'a>, Refusal> {
        let text = typed.text.expose_secret();
        let forged = |refusal| Refusal::forged(&role.not_good(), refusal);
        if typed.kind == TokenType::ApiKey {
            return Ok(Party::Key(text));
        }
        match (self.own.read(text), typed.kind) {
            (Bearer::Own(token), _) => Ok(Party::Own(token)),
            (Bearer::Forged(refusal), _) => Err(forged(refusal)),
            (Bearer::NotOurs, TokenType::AccessToken | TokenType::ApiKey) => Err(role.no_good()),
            (Bearer::NotOurs, TokenType::Jwt) => {
                let vouched = match self.vouched(text).await? {
                    foreign::Foreign::Vouched(vouched) => *vouched,
                    foreign::Foreign::Forged(refusal) => return Err(forged(refusal)),
                };
                if vouched.tenant.as_str() != tenant {
                    return Err(forged(jwt::Refusal::Tenant));
                }
                // The names of consumers are ours to give.
                if ConsumerId::parse(&vouched.subject).is_some() {
                    return Err(forged(jwt::Refusal::Subject));
                }
                let actors = Delegation::actors(&vouched.claims, Some(&vouched.issuer));
                let Some((act, may_act)) = actors else {
                    return Err(Refusal::invalid_request(&format!(
                        "act or may_act of the {} is not understood, or too long",
                        role.name()
                    )));
                };
                let id = vouched.claims.get("jti").and_then(Value::as_str);
                let id = id.filter(|id| id.len() <= ID_BYTES_MAX && !has_control(id));
                Ok(Party::Other(Box::new(Foreign {
                    id: id.map(str::to_owned),
                    scopes: scopes(&vouched.claims),
                    issuer: vouched.issuer,
                    subject: vouched.subject,
                    act,
                    may_act,
                    expires_at: vouched.expires_at,
                })))
            }
        }
    }

    /// Judges a token by itself, wherever it is to be used: a token of ours for its own service. `None` for
    /// what no key stands behind.
    pub(super) async fn by_itself(
        &self,
        party: &Party<'_>,
        client: &Subject,
        ip: Option<IpAddr>,
    ) -> Result<Option<Answer>, Refusal> {
        let tenant = &client.tenant.id;
        let request = Request {
            environment: AskedEnvironment::Is(Cow::Borrowed(&client.key.owner.environment)),
            ip,
            ..Request::default()
        };
        match party {
            Party::Other(_) => Ok(None),
            Party::Own(token) => {
                let service = token.service.as_str();
                let told = self
                    .validation
                    .tell(token.proof(), tenant, service, &request);
                Ok(Some(told.await?.0))
            }
            Party::Key(text) => {
                let (decision, _, subject) = self
                    .validation
                    .explain(text, tenant, Asked::None, &request)
                    .await?;
                Ok(Some(Answer {
                    decision,
                    subject,
                    spent: None,
                }))
            }
        }
    }

    /// Whether tokens like this one may become tokens of the service.
    pub(super) async fn is_taken(
        &self,
        party: &Party<'_>,
        service: &Service,
    ) -> Result<bool, Refusal> {
        let exchange = &service.settings.exchange;
        Ok(match party {
            // It is for whatever it grants on.
            Party::Key(_) => true,
            Party::Other(foreign) => exchange.from.has_issuer(&foreign.issuer),
            Party::Own(token) if token.service == service.slug => true,
            Party::Own(token) => {
                let slug = token.service.as_str();
                let source = self.validation.service(&service.tenant_id, slug).await?;
                source.is_some_and(|source| {
                    let source: &ServiceEntry = &source;
                    exchange.takes_service(&token.service, &source.service.settings.exchange)
                })
            }
        })
    }
}

impl Party<'_> {
    /// What is judged at the service that a token is asked for; nothing of ours stands behind a token of
    /// another issuer but the key of the client.
    pub(super) fn credential<'b>(
        &'b self,
        service: &'b Service,
        client: &'b str,
    ) -> Credential<'b> {
        match self {
            Self::Key(text) => Credential::Key(text),
            Self::Own(token) => token.proof_for(&service.slug),
            Self::Other(_) => Credential::Key(client),
        }
    }
}

/// # Errors
/// `invalid_target`
pub(super) fn not_taken() -> Refusal {
    Refusal::new(
        ErrorCode::InvalidTarget,
        "the service takes no tokens of that service or issuer in exchange",
    )
}
