//! Introspection (RFC 7662) of API keys and of our own access tokens, also as a JWT (RFC 9701) and as a
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
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::Oauth;
use super::client::Client;
use super::form::Form;
use super::grant::Origin;
use super::mint::{Provenance, SignedToken, asked_for};
use super::own::{Bearer, OwnToken};
use super::phantom::{Phantom, scope_of};
use super::refusal::{ErrorCode, Refusal, of_outcome};
use crate::auth::jwt;
use crate::keys::secret::UnparsedKey;
use crate::rights::{Permission, Reach};
use crate::time::Timestamp;
use crate::usage::record::Operation;
use crate::validation::decide::{AskedEnvironment, Outcome, Request};
use crate::validation::proof::Credential;
use crate::validation::recorded::{Asking, TokenNamed};
use crate::validation::snapshot::Subject;
use crate::validation::spend::LimitHeaders;
use crate::validation::{Asked, AuthFailure};

/// The name of no service.
const NO_SERVICE: &str = "-";

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
    pub fn of(form: &mut Form) -> Result<Self, Refusal> {
        let token = UnparsedKey::new(form.require("token")?);
        let _hint = form.take("token_type_hint");
        let mut audiences = form.take_all("audience");
        audiences.dedup();
        if audiences.len() > 1 {
            return Err(Refusal::invalid_request("give one audience"));
        }
        let ip = match form.take("ip").map(|text| text.parse::<IpAddr>()) {
            None => None,
            Some(Ok(ip)) => Some(ip.to_canonical()),
            Some(Err(_not_an_address)) => {
                return Err(Refusal::invalid_request(
                    "ip must be an IPv4 or IPv6 address",
                ));
            }
        };
        Ok(Self {
            token,
            audience: audiences.pop(),
            ip,
        })
    }
}

/// What is active (RFC 7662 §2.2).
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "active": true,
    "scope": "invoice:read",
    "client_id": "con_01jd8k3v9we5m8t7q2x4z6y0ab",
    "token_type": "api_key",
    "exp": 1_800_000_000,
    "sub": "con_01jd8k3v9we5m8t7q2x4z6y0ab",
    "aud": "billing",
    "iss": "https://keys.example.com",
    "keystead": {
        "tenant": "default", "environment": "live", "service": "billing",
        "key_id": "key_01jd8k3v9we5m8t7q2x4z6y0ab", "secret_id": "sec_01jd8k3v9we5m8t7q2x4z6y0ab"
    }
}))]
#[expect(clippy::struct_field_names, reason = "`active` is the word of the RFC")]
pub struct Active<'a> {
    #[schema(example = true)]
    active: bool,
    /// What holds now: never more than the key does, whatever a token says.
    scope: &'a str,
    client_id: &'a str,
    /// `api_key`, or `Bearer` for an access token.
    #[schema(example = "api_key")]
    token_type: &'static str,
    /// In seconds since 1970, as the others; left out for a key without an end.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    exp: Option<i64>,
    /// Of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    nbf: Option<i64>,
    sub: &'a str,
    /// The service by its slug, or by the resource that the token was asked for by.
    aud: &'a str,
    iss: &'a str,
    /// Of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jti: Option<&'a str>,
    #[schema(value_type = BTreeMap<String, String>)]
    keystead: Provenance<'a>,
    /// What the service asks for in `tokens.claims`.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    more: Map<String, Value>,
    /// If the service asks for it: a token for it that says the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    jwt: Option<&'a str>,
}

/// All that is told of what is not active.
#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[schema(example = json!({"active": false}))]
pub struct Inactive {
    #[schema(example = false)]
    active: bool,
}

const INACTIVE: Inactive = Inactive { active: false };

/// RFC 9701 §5. Neither `sub` nor `exp` stand beside these, so that nobody takes it for a token.
#[derive(Serialize)]
struct IntrospectionClaims<'a, T> {
    iss: &'a str,
    aud: &'a str,
    iat: i64,
    token_introspection: T,
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
    subject: Subject,
    /// Where its own limits stand.
    pub limits: Option<LimitHeaders>,
}

/// What was asked about, told apart.
enum Presented<'a> {
    Key(&'a str),
    Own(Arc<OwnToken>),
    Nonsense,
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
        let held = self
            .validation
            .holder(secret, Some(origin.ip), Asked::Management);
        let (subject, limits) = match held.await {
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
        let (presented, forged) = match self.own.read(text, self.clock.now()) {
            Bearer::Own(token) => (Presented::Own(token), None),
            Bearer::Forged(refusal) => (Presented::Nonsense, Some(refusal)),
            Bearer::NotOurs => (Presented::Key(text), None),
        };
        let service = self.asked_service(asker, question, &presented).await?;
        let credential = match &presented {
            Presented::Key(text) => Credential::Key(text),
            Presented::Own(token) => token.proof(),
            Presented::Nonsense => Credential::Malformed,
        };
        let tenant = &asker.subject.tenant.id;
        let request = Request {
            environment: AskedEnvironment::Is(Cow::Borrowed(&asker.subject.key.environment)),
            ip: question.ip,
            // Nothing is charged.
            cost: 0,
            ..Request::default()
        };
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
                self.phantoms.of(subject, own, now)?
            }
            Some(_) | None => None,
        };
        let named = match (own, &phantom, active) {
            (Some(token), _, _) => Some((&token.id, &*token.subject)),
            (None, Some(phantom), Some(subject)) => {
                Some((&phantom.id, subject.consumer.id.as_str()))
            }
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
            began_us: origin.began_us,
            token: named.map(|(id, subject)| TokenNamed {
                id: id.as_str(),
                subject,
                actor: None,
            }),
        };
        self.validation
            .note((tenant, &service), &request, &answer, &asking, now);
        let told = self.written(asker, active, own, phantom.as_deref(), written, now)?;
        Ok((told, forged))
    }

    /// Step 2: [`NO_SERVICE`] if the caller may not ask about it.
    async fn asked_service(
        &self,
        asker: &Asker<'_>,
        question: &Question,
        presented: &Presented<'_>,
    ) -> Result<String, Refusal> {
        let (tenant, rights) = (&asker.subject.tenant.id, asker.subject.rights());
        let named = match &question.audience {
            None => None,
            Some(reference) => {
                let entry = self.validation.service(tenant, reference).await?;
                let slug = entry
                    .filter(|entry| !entry.service.is_built_in())
                    .map(|entry| entry.service.slug.clone())
                    .filter(|slug| rights.allows(Permission::Introspect, Some(slug)));
                Some(slug.ok_or_else(|| {
                    Refusal::invalid_target(
                        "there is no such service, or none that you may introspect for",
                    )
                })?)
            }
        };
        let key = match presented {
            Presented::Own(token) => {
                let is_meant = named.is_none_or(|named| named == token.service)
                    && rights.allows(Permission::Introspect, Some(&token.service));
                let service = if is_meant {
                    token.service.as_str()
                } else {
                    NO_SERVICE
                };
                return Ok(service.to_owned());
            }
            Presented::Nonsense => return Ok(NO_SERVICE.to_owned()),
            Presented::Key(key) => key,
        };
        if let Some(named) = named {
            return Ok(named.to_string());
        }
        if let Reach::Only(services) = rights.services_for(Permission::Introspect)
            && let [one] = &*services
        {
            return Ok(one.to_string());
        }
        // One that may ask for several: the key tells which of them it is for.
        let request = Request::default();
        let (_, _, subject) = self
            .validation
            .explain(key, tenant, Asked::None, &request)
            .await?;
        let mut found = None;
        for grant in subject.iter().flat_map(|subject| &subject.key.grants) {
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
        Ok(found.unwrap_or_else(|| NO_SERVICE.to_owned()))
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
        let defect = |error: serde_json::Error| Refusal::unavailable(error);
        let scope = active.map(scope_of).unwrap_or_default();
        let told = active.map(|subject| self.told(subject, own, &scope));
        match (written, told, phantom) {
            (Written::IntrospectionJwt, told, _) => {
                let aud = asker.client.name(&asker.subject);
                let signed = match told {
                    Some(told) => self.sign_told(aud, told, now),
                    None => self.sign_told(aud, INACTIVE, now),
                };
                Ok(Told::IntrospectionJwt(signed?))
            }
            (Written::Phantom, Some(_), Some(phantom)) => Ok(Told::Phantom(phantom.token.clone())),
            // A token cannot say that there is none.
            (Written::Phantom, _, _) | (Written::Json, None, _) => {
                let told = serde_json::to_string(&INACTIVE).map_err(defect)?;
                Ok(Told::Json(told))
            }
            (Written::Json, Some(told), phantom) => {
                let told = Active {
                    jwt: phantom.map(|phantom| phantom.token.expose_secret()),
                    ..told
                };
                Ok(Told::Json(serde_json::to_string(&told).map_err(defect)?))
            }
        }
    }

    fn told<'a>(
        &'a self,
        subject: &'a Subject,
        own: Option<&'a OwnToken>,
        scope: &'a str,
    ) -> Active<'a> {
        let consumer = subject.consumer.id.as_str();
        let seconds = |at: Option<Timestamp>| at.map(Timestamp::unix_seconds);
        let service = subject.service.as_ref();
        Active {
            active: true,
            scope,
            client_id: consumer,
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
            keystead: Provenance::of(subject),
            more: service.map_or_else(Map::new, |entry| {
                asked_for(&entry.service.settings.tokens.claims, subject)
            }),
            jwt: None,
        }
    }

    fn sign_told<T: Serialize>(
        &self,
        aud: &str,
        token_introspection: T,
        now: Timestamp,
    ) -> Result<SignedToken, Refusal> {
        let claims = IntrospectionClaims {
            iss: self.mint.issuer(),
            aud,
            iat: now.unix_seconds(),
            token_introspection,
        };
        self.mint
            .sign(INTROSPECTION, &claims)
            .map_err(Refusal::unavailable)
    }
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
