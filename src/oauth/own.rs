//! Our own access tokens, presented: is it one of ours, and what does it say?
//!
//! 1. strict form, explicit type, issuer and times: as for any JWT, see [`crate::auth::jwt`];
//! 2. the signature, with the published key that the token names and no other;
//! 3. what it says, in types of ours.
//!
//! That a signature is good stays true, so it is [remembered](super::verified). Nothing else is: whether its
//! key is still published is asked at every use, and whether the token, or what it was made from, has ended is
//! judged by [`Validation`](crate::validation::Validation).

use std::sync::Arc;

use serde_json::{Map, Value};

use super::bonds::Bonds;
use super::delegation::Delegation;
use super::mint::ACCESS_TOKEN;
use super::verified::{Name, VerifiedTokens};
use super::{Issuer, Keyring};
use crate::auth::jwt::{Refusal, Token, Verified};
use crate::clock::Clock;
use crate::id::{ConsumerId, KeyId, SecretId, TokenId};
use crate::scope::Scope;
use crate::services::tokens::TOKEN_TTL_MAX;
use crate::text::Slug;
use crate::time::Timestamp;
use crate::validation::proof::{Credential, Proof};
use crate::validation::recorded::TokenNamed;

/// A token that we signed. Whether it counts is another question.
#[derive(Debug)]
pub struct OwnToken {
    pub id: TokenId,
    pub subject: Box<str>,
    pub client: ConsumerId,
    pub audience: Box<str>,
    /// The slug of the service that the audience is a name of.
    pub service: Slug,
    pub scopes: Box<[Scope]>,
    pub key: KeyId,
    pub secret: SecretId,
    pub(super) bonds: Bonds,
    pub delegation: Delegation,
    pub issued_at: Timestamp,
    pub expires_at: Timestamp,
    kid: Box<str>,
    /// The length of its text.
    pub(super) bytes: usize,
}

impl OwnToken {
    /// What it says, of a text of so many bytes; `None` for what no token of ours says.
    pub(super) fn read(kid: &str, bytes: usize, verified: &Verified) -> Option<Self> {
        let claims = &verified.claims;
        let made_from = claims.get("keystead")?.as_object()?;
        Some(Self {
            id: TokenId::parse(text(claims, "jti")?)?,
            subject: verified.subject.as_str().into(),
            client: ConsumerId::parse(text(claims, "client_id")?)?,
            audience: text(claims, "aud")?.into(),
            service: Slug::parse(text(made_from, "service")?).ok()?,
            scopes: match claims.get("scope") {
                None => "",
                Some(scope) => scope.as_str()?,
            }
            .split(' ')
            .filter(|scope| !scope.is_empty())
            .map(|scope| Scope::parse(scope).ok())
            .collect::<Option<_>>()?,
            key: KeyId::parse(text(made_from, "key_id")?)?,
            secret: SecretId::parse(text(made_from, "secret_id")?)?,
            bonds: Bonds::read(made_from)?,
            delegation: Delegation::read(claims)?,
            issued_at: Timestamp::from_millis(claims.get("iat")?.as_i64()?.checked_mul(1000)?),
            expires_at: verified.expires_at,
            kid: kid.into(),
            bytes,
        })
    }

    /// What it proves.
    pub fn proof(&self) -> Credential<'_> {
        Credential::Proof(self.as_proof())
    }

    /// What it proves where it is exchanged for a token of `service`, which was found to take it.
    pub(super) fn proof_for<'a>(&'a self, service: &'a Slug) -> Credential<'a> {
        Credential::Proof(Proof {
            service,
            audience: service.as_str(),
            ..self.as_proof()
        })
    }

    fn as_proof(&self) -> Proof<'_> {
        Proof {
            key: &self.key,
            secret: &self.secret,
            token: &self.id,
            client: self.bonds.client(),
            others: self.bonds.others(),
            service: &self.service,
            audience: &self.audience,
            scopes: &self.scopes,
            expires_at: self.expires_at,
        }
    }

    /// Whether its client got it for itself, by its key and for nobody else.
    pub(super) fn is_its_clients(&self) -> bool {
        self.bonds == Bonds::default() && self.delegation == *Delegation::NONE
    }

    /// How a use of it names it.
    pub fn named(&self) -> TokenNamed<'_> {
        TokenNamed {
            id: self.id.as_str(),
            subject: &self.subject,
            actor: self.delegation.actor(),
        }
    }
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    claims.get(name)?.as_str()
}

/// What a text is that may be a token of ours.
#[derive(Clone, Debug)]
pub enum Bearer {
    Own(Arc<OwnToken>),
    /// It says that we issued it, and is no access token of ours.
    Forged(Refusal),
    /// Not a JWT, or one of somebody else: no business of ours.
    NotOurs,
}

/// Tells our tokens from others.
pub(super) struct OwnTokens {
    keyring: Keyring,
    issuer: Issuer,
    clock: Clock,
    verified: VerifiedTokens,
}

impl OwnTokens {
    pub(super) fn new(keyring: Keyring, issuer: Issuer, clock: Clock) -> Self {
        Self {
            keyring,
            issuer,
            clock,
            verified: VerifiedTokens::new(),
        }
    }

    /// Forgets those that have ended.
    pub(super) fn forget_ended(&self, now: Timestamp) {
        self.verified.forget_ended(now);
    }

    /// How many are remembered.
    pub(super) fn remembered(&self) -> usize {
        self.verified.len()
    }

    pub(super) fn read(&self, token: &str) -> Bearer {
        if !token.contains('.') {
            return Bearer::NotOurs;
        }
        let now = self.clock.now();
        let name = Name::of(token);
        let ring = self.keyring.ring();
        if let Some(own) = self.verified.find(&name) {
            // A key that was given up takes its tokens with it.
            return match ring.find(&own.kid, now) {
                Some(_) => Bearer::Own(own),
                None => Bearer::Forged(Refusal::Key),
            };
        }
        let Ok(parsed) = Token::parse(token) else {
            return Bearer::NotOurs;
        };
        let issuer = self.issuer.as_str();
        if parsed.issuer() != Ok(issuer) {
            return Bearer::NotOurs;
        }
        let verified = parsed
            .judge_own(issuer, &[ACCESS_TOKEN], TOKEN_TTL_MAX, now)
            .and_then(|judged| {
                let kid = judged.kid().unwrap_or_default().to_owned();
                let key = ring.find(&kid, now).ok_or(Refusal::Key)?;
                let verified = judged.verify(std::slice::from_ref(key.verification()))?;
                OwnToken::read(&kid, token.len(), &verified).ok_or(Refusal::Kind)
            });
        match verified {
            Ok(own) => {
                let own = Arc::new(own);
                self.verified.keep(name, &own, now);
                Bearer::Own(own)
            }
            Err(refusal) => Bearer::Forged(refusal),
        }
    }
}
