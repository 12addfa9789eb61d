//! Introspection (RFC 7662) of API keys, of our own access tokens and of JWTs of configured issuers
//! ([`foreign`](super::foreign)), also as a JWT (RFC 9701) and as a
//! token for the service that asks.
//!
//! 1. the caller is authenticated: a management key that holds `introspect`;
//! 2. the service is settled: that of the token, or the one that the caller may introspect for, within
//!    what the key grants;
//! 3. what was presented is judged like in a verification, with no scope asked for. It is not charged:
//!    to tell is no use of what the key gives, so a key at its limit is still active;
//! 4. the answer is put together, with a token in it if one is asked for;
//! 5. the use is recorded under the operation `introspect`.
//!
//! Whatever is not active for this caller is told as that and nothing else: what expired, was revoked, is
//! of another tenant or for another service, and what was never a token, are one answer.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Map;
use serde_json::value::RawValue;

use super::Oauth;
use super::client::Client;
use super::delegation::Delegation;
use super::foreign::Foreign;
use super::form::Form;
use super::grant::{NO_SERVICE, Origin};
use super::mint::{Provenance, SignedToken, asked_for};
use super::own::{Bearer, OwnToken};
use super::phantom::Phantom;
use super::refusal::{ErrorCode, Refusal, of_outcome};
use super::told::{Active, INACTIVE};
use crate::auth::jwt;
use crate::keys::secret::UnparsedKey;
use crate::rights::Permission;
use crate::text::Slug;
use crate::time::Timestamp;
use crate::usage::record::Operation;
use crate::validation::decide::{AskedEnvironment, Outcome, Request};
use crate::validation::proof::Credential;
use crate::validation::recorded::{Asking, TokenNamed};
use crate::validation::snapshot::Subject;
use crate::validation::spend::LimitHeaders;
use crate::validation::{Asked, AuthFailure};

/// The header `typ` of an answer that is a JWT (RFC 9701 §5).
pub const INTROSPECTION: &str = "token-introspection+jwt";

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Json,
    /// `application/token-introspection+jwt` (RFC 9701).
    IntrospectionJwt,
    /// `application/jwt`: a token for the service that asks.
    Phantom,
}

/// What a caller asks about.
#[derive(Debug)]
pub struct Question {
    token: UnparsedKey,
    /// The service that the caller asks for, if it may for several.
    audience: Option<String>,
    /// Who presented it, as far as the caller says.
    ip: Option<IpAddr>,
}

impl Question {
    /// # Errors
    /// `invalid_request`. The hint is not looked at: what a token is shows when it is looked at.
    pub fn of(form: &mut Form<'_>) -> Result<Self, Refusal> {
        let token = UnparsedKey::new(form.require("token")?.into_owned());
        let _hint = form.take("token_type_hint");
        let mut audiences = form.take_all("audience");
        audiences.dedup();
        if audiences.len() > 1 {
            return Err(Refusal::invalid_request("give one audience"));
        }
        Ok(Self {
            token,
            audience: audiences.pop().map(Cow::into_owned),
            ip: form.take_ip()?,
        })
    }
}

/// RFC 9701 §5. Neither `sub` nor `exp` stand beside these, so that nobody takes it for a token.
#[derive(Serialize)]
struct IntrospectionClaims<'a> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    token_introspection: Box<RawValue>,
}

/// An answer, ready to send.
#[derive(Debug)]
pub enum Told {
    Json(String),
    IntrospectionJwt(SignedToken),
    Phantom(SignedToken),
}

/// Who asks.
#[derive(Debug)]
pub struct Asker<'a> {
    client: &'a Client,
    pub(super) subject: Rc<Subject>,
    /// Where its own limits stand.
    pub limits: Option<LimitHeaders>,
}

/// What was asked about, told apart.
enum Presented<'a> {
    Key(&'a str),
    Own(Arc<OwnToken>),
    Nonsense,
}

impl Asker<'_> {
    /// What is asked of a key or token: whether it is good here. Nothing is charged.
    fn request<'a>(&'a self, question: &Question) -> Request<'a> {
        Request {
            environment: AskedEnvironment::Is(Cow::Borrowed(&self.subject.key.owner.environment)),
            ip: question.ip,
            cost: 0,
            ..Request::default()
        }
    }
}

impl Oauth {
    /// Step 1.
    ///
    /// # Errors
    /// [`Refusal`]: `invalid_request` if nothing was presented (RFC 9701 §5), `invalid_client`, or
    /// `insufficient_scope`.
    pub async fn asker<'a>(
        &self,
        client: &'a Client,
        origin: &Origin<'_>,
    ) -> Result<Asker<'a>, Refusal> {
        if client.is_missing() {
            return Err(Refusal::invalid_request(
                "authenticate with a management key: HTTP Basic, Bearer, or the header x-api-key",
            ));
        }
        let secret = client.secret.expose_secret();
        let known = self.validation.holder_now(secret, origin.ip, &origin.at);
        let held = if let Some(subject) = known {
            Ok((subject, None))
        } else {
            let ip = Some(origin.ip);
            let held = self.validation.holder(secret, ip, Asked::Management);
            held.await
                .map(|(subject, limits)| (Rc::new(subject), limits))
        };
        let (subject, limits) = match held {
            Ok(held) => held,
            Err(AuthFailure::Invalid | AuthFailure::NoManagementKey(_)) => {
                return Err(Refusal::unknown_client());
            }
            Err(AuthFailure::Refused(outcome)) => {
                return Err(of_outcome(outcome).unwrap_or_else(Refusal::unknown_client));
            }
            Err(AuthFailure::Limited(outcome, limits)) => {
                let refusal = of_outcome(outcome).unwrap_or_else(Refusal::unknown_client);
                return Err(refusal.limited(Some(limits)));
            }
            Err(AuthFailure::Failed(failure)) => return Err(failure.into()),
        };
        if !client.is_named(&subject) {
            return Err(Refusal::unknown_client());
        }
        if !subject.rights().allows_any(Permission::Introspect) {
            return Err(Refusal::new(
                ErrorCode::InsufficientScope,
                "introspect is needed, or its form for one service",
            ));
        }
        Ok(Asker {
            client,
            subject,
            limits,
        })
    }

    /// Steps 2 to 5. Of a token that is forged it is also told why, for whoever looks after that.
    ///
    /// # Errors
    /// [`Refusal`]
    pub async fn introspect(
        &self,
        asker: &Asker<'_>,
        question: &Question,
        written: Written,
        origin: &Origin<'_>,
    ) -> Result<(Told, Option<jwt::Refusal>), Refusal> {
        let text = question.token.expose_secret();
        let (presented, forged) = match self.own.read(text) {
            Bearer::Own(token) => (Presented::Own(token), None),
            Bearer::Forged(refusal) => (Presented::Nonsense, Some(refusal)),
            Bearer::NotOurs => match self.foreign(text).await? {
                None => (Presented::Key(text), None),
                Some(Foreign::Forged(refusal)) => (Presented::Nonsense, Some(refusal)),
                Some(Foreign::Vouched(vouched)) => {
                    let service = self.named_service(asker, question).await?;
                    let service = service.or_else(|| only_service(asker).cloned());
                    let service = service.as_ref().map(Slug::as_str);
                    let told = self.tell_foreign(asker, &vouched, service, written).await?;
                    return Ok((told, None));
                }
            },
        };
        let service = self.asked_service(asker, question, &presented).await?;
        let credential = match &presented {
            Presented::Key(text) => Credential::Key(text),
            Presented::Own(token) => token.proof(),
            Presented::Nonsense => Credential::Malformed,
        };
        let tenant = &asker.subject.tenant.id;
        let request = asker.request(question);
        let (answer, now) = self
            .validation
            .tell(credential, tenant, &service, &request)
            .await?;
        let own = match &presented {
            Presented::Own(token) => Some(&**token),
            Presented::Key(_) | Presented::Nonsense => None,
        };
        let active = answer
            .subject
            .as_ref()
            .filter(|_| answer.decision.outcome == Outcome::Valid);
        let phantom = match active {
            Some(subject) if wants_token(subject, written) => {
                let inner = match own {
                    // Whoever exchanged it may exchange it again.
                    Some(token) if !token.is_its_clients() => Vec::new(),
                    Some(token) => self.inner(subject, Some(&token.scopes)).await?,
                    None => self.inner(subject, None).await?,
                };
                self.phantoms.of(subject, own, inner, now)?
            }
            Some(_) | None => None,
        };
        let named = match (own, &phantom, active) {
            (Some(token), _, _) => Some(token.named()),
            (None, Some(phantom), Some(subject)) => Some(TokenNamed {
                id: phantom.id.as_str(),
                subject: subject.consumer.id.as_str(),
                actor: None,
            }),
            (None, _, _) => None,
        };
        let asking = Asking {
            operation: Operation::Introspect,
            caller: asker.subject.key.key_id.as_str(),
            request_id: origin.request_id,
            method: None,
            path: None,
            user_agent: origin.user_agent,
            context: None,
            began_us: origin.at.uptime_us,
            token: named,
        };
        self.validation
            .note((tenant, &service), &request, &answer, &asking, now);
        let told = self.written(asker, active, own, phantom.as_deref(), written, now)?;
        Ok((told, forged))
    }

    /// Step 2: [`NO_SERVICE`] if the caller may not ask about it.
    async fn asked_service<'a>(
        &self,
        asker: &'a Asker<'_>,
        question: &Question,
        presented: &Presented<'_>,
    ) -> Result<Cow<'a, str>, Refusal> {
        let (tenant, rights) = (&asker.subject.tenant.id, asker.subject.rights());
        let named = self.named_service(asker, question).await?;
        let key = match presented {
            // Its own, or one that it may be shared with: that is judged with it.
            Presented::Own(token) => {
                let its_own = Some(&token.service);
                let service = named
                    .or_else(|| {
                        let may_ask = rights.allows(Permission::Introspect, its_own);
                        its_own.filter(|_| may_ask).cloned()
                    })
                    .or_else(|| only_service(asker).cloned());
                return Ok(service.map_or(NO_SERVICE.into(), |slug| slug.to_string().into()));
            }
            Presented::Nonsense => return Ok(NO_SERVICE.into()),
            Presented::Key(key) => key,
        };
        if let Some(named) = named {
            return Ok(named.to_string().into());
        }
        if let Some(one) = only_service(asker) {
            return Ok(one.as_str().into());
        }
        // One that may ask for several: the key tells which of them it is for.
        let request = asker.request(question);
        let (decision, _, subject) = self
            .validation
            .explain(key, tenant, Asked::None, &request)
            .await?;
        // What is not active is told as what is unknown, however many services it was for.
        if !decision.outcome.is_valid() {
            return Ok(NO_SERVICE.into());
        }
        let mut found = None;
        for grant in subject
            .iter()
            .flat_map(|subject| &*subject.key.terms.grants)
        {
            let id = grant.service_id.as_str();
            let Some(entry) = self.validation.service(tenant, id).await? else {
                continue;
            };
            let slug = &entry.service.slug;
            if entry.service.is_built_in() || !rights.allows(Permission::Introspect, Some(slug)) {
                continue;
            }
            if found.is_some() {
                return Err(Refusal::invalid_request(
                    "the key grants on several services: name one as audience",
                ));
            }
            found = Some(slug.to_string());
        }
        Ok(found.map_or(NO_SERVICE.into(), Cow::Owned))
    }

    /// The service that the caller names.
    async fn named_service(
        &self,
        asker: &Asker<'_>,
        question: &Question,
    ) -> Result<Option<Slug>, Refusal> {
        let Some(reference) = &question.audience else {
            return Ok(None);
        };
        let (tenant, rights) = (&asker.subject.tenant.id, asker.subject.rights());
        let entry = self.validation.service(tenant, reference).await?;
        let slug = entry
            .filter(|entry| !entry.service.is_built_in())
            .map(|entry| entry.service.slug.clone())
            .filter(|slug| rights.allows(Permission::Introspect, Some(slug)));
        slug.map(Some).ok_or_else(|| {
            Refusal::invalid_target("there is no such service, or none that you may introspect for")
        })
    }

    /// What is told, as JSON, where there is no token to stand in for it.
    pub(super) fn tell(
        &self,
        asker: &Asker<'_>,
        told: String,
        written: Written,
        now: Timestamp,
    ) -> Result<Told, Refusal> {
        match written {
            Written::IntrospectionJwt => {
                let aud = asker.client.name(&asker.subject);
                Ok(Told::IntrospectionJwt(self.sign_told(aud, told, now)?))
            }
            Written::Json | Written::Phantom => Ok(Told::Json(told)),
        }
    }

    /// That it is not active, and nothing else.
    pub(super) fn tell_inactive(
        &self,
        asker: &Asker<'_>,
        written: Written,
        now: Timestamp,
    ) -> Result<Told, Refusal> {
        self.tell(asker, INACTIVE.to_owned(), written, now)
    }

    /// Step 4.
    fn written(
        &self,
        asker: &Asker<'_>,
        active: Option<&Subject>,
        own: Option<&OwnToken>,
        phantom: Option<&Phantom>,
        written: Written,
        now: Timestamp,
    ) -> Result<Told, Refusal> {
        let Some(subject) = active else {
            return self.tell_inactive(asker, written, now);
        };
        let token = phantom.map(|phantom| &phantom.token);
        let jwt = match (written, token) {
            (Written::Phantom, Some(token)) => return Ok(Told::Phantom(token.clone())),
            // A token cannot say that there is none.
            (Written::Phantom, None) => return self.tell_inactive(asker, written, now),
            (Written::Json, token) => token.map(SignedToken::expose_secret),
            (Written::IntrospectionJwt, _) => None,
        };
        let told = Active {
            jwt,
            ..self.told(subject, own)
        };
        let told = told.write().map_err(Refusal::unavailable)?;
        self.tell(asker, told, written, now)
    }

    fn told<'a>(&'a self, subject: &'a Subject, own: Option<&'a OwnToken>) -> Active<'a> {
        let consumer = subject.consumer.id.as_str();
        let seconds = |at: Option<Timestamp>| at.map(Timestamp::unix_seconds);
        let service = subject.service.as_ref();
        Active {
            active: true,
            scope: subject.scopes(),
            client_id: own.map_or(consumer, |token| token.client.as_str()),
            token_type: if own.is_some() { "Bearer" } else { "api_key" },
            exp: seconds(own.map_or_else(|| subject.end(), |token| Some(token.expires_at))),
            iat: seconds(own.map(|token| token.issued_at)),
            nbf: seconds(subject.key.not_before),
            sub: own.map_or(consumer, |token| &token.subject),
            aud: own.map_or_else(
                || service.map_or("", |entry| entry.service.slug.as_str()),
                |token| &token.audience,
            ),
            iss: self.mint.issuer(),
            jti: own.map(|token| token.id.as_str()),
            delegation: own.map_or(Delegation::NONE, |token| &token.delegation),
            keystead: Provenance::of(subject).bound(own.map(|token| &token.bonds)),
            more: service.map_or_else(Map::new, |entry| {
                asked_for(&entry.service.settings.tokens.claims, subject)
            }),
            jwt: None,
        }
    }

    fn sign_told(&self, aud: &str, told: String, now: Timestamp) -> Result<SignedToken, Refusal> {
        let claims = IntrospectionClaims {
            iss: self.mint.issuer(),
            aud,
            iat: now.unix_seconds(),
            token_introspection: RawValue::from_string(told).map_err(Refusal::unavailable)?,
        };
        self.mint
            .sign(INTROSPECTION, &claims)
            .map_err(Refusal::unavailable)
    }
}

/// The only service that the caller may introspect for.
fn only_service<'a>(asker: &'a Asker<'_>) -> Option<&'a Slug> {
    asker.subject.rights().only_service(Permission::Introspect)
}

fn wants_token(subject: &Subject, written: Written) -> bool {
    match written {
        Written::Phantom => true,
        Written::IntrospectionJwt => false,
        Written::Json => subject
            .service
            .as_ref()
            .is_some_and(|entry| entry.service.settings.tokens.introspection_jwt_member),
    }
}
