//! Client credentials (RFC 6749 §4.4): an API key becomes a short-lived access token.
//!
//! 1. what is asked for is parsed: scopes, and the audience or resource (RFC 8707);
//! 2. the presented key is identified, and must be that of the client that is named;
//! 3. the service is settled: named, or the only one that the key grants on;
//! 4. the key is validated for it like any other use, with the scopes asked for as required ones:
//!    decided, charged and recorded under the operation `token`;
//! 5. the token is signed. It never lives longer than the key, or the secret, itself. Where the service
//!    names an upstream, its token is given in place of ours.
//!
//! Nothing is granted that the key does not hold: a scope that it does not cover refuses the request.

use std::borrow::Cow;
use std::net::IpAddr;

use super::Oauth;
use super::client::Client;
use super::delegation::Delegation;
use super::embedded;
use super::form::Form;
use super::mint::{ACCESS_TOKEN, Claims, Life, MintError, Provenance, SignedToken, asked_for};
use super::refusal::{ErrorCode, Refusal, of_outcome};
use crate::clock::Reading;
use crate::id::TokenId;
use crate::scope::{RequiredScope, Scope};
use crate::services::tokens::is_resource;
use crate::usage::record::Operation;
use crate::validation::decide::{AskedEnvironment, Outcome, Request};
use crate::validation::proof::Credential;
use crate::validation::recorded::{Asking, TokenNamed};
use crate::validation::snapshot::Subject;
use crate::validation::spend::LimitHeaders;

/// The name of no service.
pub(super) const NO_SERVICE: &str = "-";

const SCOPES_MAX: usize = 200;

/// Whence a request comes.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    pub ip: IpAddr,
    pub request_id: &'a str,
    pub user_agent: Option<&'a str>,
    /// When all of it was there.
    pub at: Reading,
}

/// What a client asks a token for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// In the order in which they were asked for, each once; `None` for all that the key holds.
    pub scopes: Option<Vec<Scope>>,
    pub audience: Option<String>,
    pub resource: Option<String>,
}

impl Wanted {
    /// # Errors
    /// `invalid_scope`, or `invalid_target`.
    pub fn of(form: &mut Form<'_>) -> Result<Self, Refusal> {
        let scopes = form
            .take("scope")
            .map(|text| parse_scopes(&text))
            .transpose()?;
        let one = |name: &str, mut values: Vec<Cow<'_, str>>| {
            values.dedup();
            if values.len() > 1 {
                let detail = format!("a token has one audience: give one {name}");
                return Err(Refusal::invalid_target(&detail));
            }
            Ok(values.pop().map(Cow::into_owned))
        };
        let audience = one("audience", form.take_all("audience"))?;
        let resource = one("resource", form.take_all("resource"))?;
        if resource.as_deref().is_some_and(|uri| !is_resource(uri)) {
            return Err(Refusal::invalid_target(
                "resource must be an absolute URI without a fragment",
            ));
        }
        Ok(Self {
            scopes,
            audience,
            resource,
        })
    }

    /// Each of the scopes that are asked for. Exactly: a token for `a:*` is for all of `a`, so holding some
    /// of it is not enough.
    pub(super) fn required(&self) -> Vec<RequiredScope> {
        let scopes = self.scopes.iter().flatten().cloned();
        scopes.map(RequiredScope::Exact).collect()
    }
}

pub(super) fn parse_scopes(text: &str) -> Result<Vec<Scope>, Refusal> {
    let mut scopes: Vec<Scope> = Vec::new();
    for name in text.split(' ').filter(|name| !name.is_empty()) {
        let scope = Scope::parse(name).map_err(|_shape| {
            Refusal::invalid_scope("scope must be a list of scopes, separated by spaces")
        })?;
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
        if scopes.len() > SCOPES_MAX {
            return Err(Refusal::invalid_scope("scope must name at most 200 scopes"));
        }
    }
    Ok(scopes)
}

/// A token and what its holder is told of it (RFC 6749 §5.1).
#[derive(Clone, Debug)]
pub struct Granted {
    pub token: SignedToken,
    pub expires_in_seconds: i64,
    /// What the token may do, by spaces: always told.
    pub scope: String,
    /// What kind of token an exchange gave (RFC 8693 §2.2.1).
    pub issued_token_type: Option<&'static str>,
    /// Where the key's limits stand.
    pub limits: Option<LimitHeaders>,
}

/// The service a token is for, and the name it was asked for by.
pub(super) struct Target {
    pub(super) service: String,
    pub(super) audience: String,
    /// Whether tokens for it are ours, and have ids.
    pub(super) is_ours: bool,
}

impl Oauth {
    /// The grant `client_credentials`.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn client_credentials(
        &self,
        client: &Client,
        form: &mut Form<'_>,
        origin: &Origin<'_>,
    ) -> Result<Granted, Refusal> {
        let wanted = Wanted::of(form)?;
        let secret = client.secret.expose_secret();
        let subject = match self.validation.identify(secret, Some(origin.ip)).await? {
            Ok(subject) if client.is_named(&subject) => subject,
            Ok(_) => return Err(Refusal::unknown_client()),
            Err(outcome) => return Err(of_outcome(outcome).unwrap_or_else(Refusal::unknown_client)),
        };
        let (target, unsettled) = match self.target(&subject, &wanted).await? {
            Ok(target) => (target, None),
            // What is wrong with the key is told first.
            Err(refusal) => (
                Target {
                    service: NO_SERVICE.to_owned(),
                    audience: String::new(),
                    is_ours: true,
                },
                Some(refusal),
            ),
        };
        let request = Request {
            // A token of ours says which one its key is of; an upstream's cannot.
            environment: if target.is_ours {
                AskedEnvironment::Any
            } else {
                AskedEnvironment::ServiceDefault
            },
            required_scopes: wanted.required().into(),
            any_scopes: None,
            ip: Some(origin.ip),
            cost: 1,
        };
        let id = self.mint.next_id();
        let asking = Asking {
            operation: Operation::Token,
            caller: subject.key.key_id.as_str(),
            request_id: origin.request_id,
            method: None,
            path: None,
            user_agent: origin.user_agent,
            context: None,
            began_us: origin.at.uptime_us,
            // That of an upstream is shared by many uses, and names none of them.
            token: target.is_ours.then_some(TokenNamed {
                id: id.as_str(),
                subject: subject.consumer.id.as_str(),
                actor: None,
            }),
        };
        let answer = self
            .validation
            .validate(
                Credential::Identified(secret, &subject),
                &subject.tenant.id,
                &target.service,
                &request,
                &asking,
            )
            .await
            .inspect_err(|_undecided| self.validation.note_undecided())?;
        let limits = match (&answer.subject, &answer.spent) {
            (Some(subject), Some(spent)) => LimitHeaders::of(subject, spent),
            (_, _) => None,
        };
        let outcome = answer.decision.outcome;
        if let Some(refusal) = of_outcome(outcome) {
            return Err(match unsettled {
                Some(unsettled) if outcome == Outcome::WrongService => unsettled,
                Some(_) | None => refusal.limited(limits),
            });
        }
        let Some(subject) = answer.subject else {
            return Err(Refusal::unknown_client());
        };
        let upstream = subject.service.as_ref();
        let upstream = upstream.and_then(|entry| entry.service.settings.upstream.as_ref());
        if let Some(settings) = upstream {
            return self
                .upstream_token(&subject, &wanted, settings, limits)
                .await;
        }
        self.access_token(&subject, &wanted, &target.audience, &id, limits)
            .await
    }

    /// Steps 5.
    async fn access_token(
        &self,
        subject: &Subject,
        wanted: &Wanted,
        audience: &str,
        jti: &TokenId,
        limits: Option<LimitHeaders>,
    ) -> Result<Granted, Refusal> {
        let (Some(service), Some(grant)) = (&subject.service, subject.grant()) else {
            return Err(Refusal::invalid_target("there is no such service"));
        };
        let settings = &service.service.settings.tokens;
        let life = Life::new(self.clock.now(), settings.ttl, subject.end())
            .ok_or_else(|| Refusal::new(ErrorCode::InvalidClient, "the key has expired"))?;
        let scopes = wanted.scopes.as_deref().unwrap_or(&grant.scopes);
        let scope = scopes
            .iter()
            .map(Scope::as_str)
            .collect::<Vec<_>>()
            .join(" ");
        let consumer = subject.consumer.id.as_str();
        let inner = self.inner(subject, wanted.scopes.as_deref()).await?;
        let claims = Claims {
            iss: self.mint.issuer(),
            sub: consumer,
            aud: audience,
            client_id: consumer,
            scope: &scope,
            iat: life.iat,
            exp: life.exp,
            jti: jti.as_str(),
            delegation: Delegation::NONE,
            keystead: Provenance::of(subject),
            embedded: embedded::signed(&self.mint, &inner, consumer, jti, life)?,
            more: asked_for(&settings.claims, subject),
        };
        let token = self.signed(&claims)?;
        Ok(Granted {
            token,
            expires_in_seconds: life.seconds(),
            scope,
            issued_token_type: None,
            limits,
        })
    }

    /// An access token that is given out.
    pub(super) fn signed(&self, claims: &Claims<'_>) -> Result<SignedToken, Refusal> {
        let token = self
            .mint
            .sign(ACCESS_TOKEN, claims)
            .map_err(|error| match error {
                MintError::TooLong => {
                    Refusal::invalid_scope("the token would be too long: ask for fewer scopes")
                }
                MintError::NoKey | MintError::Key(_) => Refusal::unavailable(error),
            })?;
        self.metrics.tokens_issued.inc();
        Ok(token)
    }

    /// Step 3. The inner error is for a key that is good otherwise.
    pub(super) async fn target(
        &self,
        subject: &Subject,
        wanted: &Wanted,
    ) -> Result<Result<Target, Refusal>, Refusal> {
        let tenant = &subject.tenant.id;
        let mut found = match (
            &wanted.audience,
            &wanted.resource,
            &*subject.key.terms.grants,
        ) {
            (Some(reference), _, _) => self.validation.service(tenant, reference).await?,
            (None, Some(_), _) => None,
            (None, None, [only]) => {
                let id = only.service_id.as_str();
                self.validation.service(tenant, id).await?
            }
            (None, None, _) => {
                return Ok(Err(Refusal::invalid_target(
                    "the key does not grant on exactly one service: name one as audience",
                )));
            }
        };
        if let Some(uri) = &wanted.resource {
            let audience = found.take();
            for grant in &*subject.key.terms.grants {
                let id = grant.service_id.as_str();
                let Some(entry) = self.validation.service(tenant, id).await? else {
                    continue;
                };
                let is_meant = audience
                    .as_ref()
                    .is_none_or(|named| named.service.id == entry.service.id);
                if is_meant && entry.service.settings.tokens.resources.contains(uri) {
                    if found.is_some() {
                        return Ok(Err(Refusal::invalid_target(
                            "more than one service has this resource: name one as audience",
                        )));
                    }
                    found = Some(entry);
                }
            }
            if wanted.audience.is_some() && audience.is_none() {
                found = None;
            }
        }
        Ok(match found {
            // Keystead itself takes keys, and no tokens of its own.
            Some(entry) if !entry.service.is_built_in() => Ok(Target {
                service: entry.service.id.to_string(),
                is_ours: entry.service.settings.upstream.is_none(),
                audience: match &wanted.resource {
                    Some(uri) => uri.clone(),
                    None => entry.service.slug.to_string(),
                },
            }),
            Some(_) | None => Err(Refusal::invalid_target(
                "the key grants nothing on this service, or there is none",
            )),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<Wanted, ErrorCode> {
        let pairs = pairs.iter();
        let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        let mut form = Form::new(pairs.collect()).unwrap();
        Wanted::of(&mut form).map_err(|refusal| refusal.code)
    }

    #[test]
    fn what_is_asked_for_is_read_in_its_order_and_once() {
        let read = wanted(&[("scope", "b a  b"), ("audience", "billing")]).unwrap();
        let scopes: Vec<String> = read
            .scopes
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(scopes, ["b", "a"]);
        assert_eq!(read.audience.as_deref(), Some("billing"));
        assert_eq!(wanted(&[("scope", "")]).unwrap(), Wanted::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let many: Vec<String> = (0..201).map(|i| format!("s{i}")).collect();
        let many = many.join(" ");
        for (pairs, code) in [
            (&[("scope", "a\"b")][..], ErrorCode::InvalidScope),
            (&[("scope", "a\\b")], ErrorCode::InvalidScope),
            (&[("scope", "é")], ErrorCode::InvalidScope),
            (&[("scope", &many)], ErrorCode::InvalidScope),
            (
                &[("audience", "a"), ("audience", "b")],
                ErrorCode::InvalidTarget,
            ),
            (&[("resource", "billing")], ErrorCode::InvalidTarget),
            (
                &[("resource", "https://a.example/#f")],
                ErrorCode::InvalidTarget,
            ),
        ] {
            assert_eq!(wanted(pairs), Err(code), "{pairs:?}");
        }
    }
}
