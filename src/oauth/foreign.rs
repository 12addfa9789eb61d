//! JWTs of configured issuers, presented: what they are good for, and what a service that takes them is
//! told of one.
//!
//! A service takes those of the issuers that its `exchange.from` names. They are judged by what is
//! configured for the issuer alone: no key of ours stands behind them, so none is charged and no use is
//! recorded.

use serde::Serialize;
use serde_json::{Map, Value};

use super::Oauth;
use super::delegation::{Actor, Delegation, MayAct};
use super::introspection::{Asker, Told, Written};
use super::refusal::Refusal;
use crate::auth::issuers::{TokenError, Vouched};
use crate::auth::jwt;
use crate::scope::Scope;

/// More of what another issuer granted are not looked at.
const SCOPES_MAX: usize = 200;

/// What an issuer says of its token that is active (RFC 7662 §2.2).
#[derive(Serialize)]
#[expect(clippy::struct_field_names, reason = "`active` is the word of the RFC")]
struct Active<'a> {
    active: bool,
    scope: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_id: Option<&'a str>,
    token_type: &'static str,
    exp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    iat: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nbf: Option<i64>,
    sub: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    aud: Option<&'a Value>,
    iss: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    act: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    may_act: Option<MayAct>,
}

/// What is said to be a JWT of a configured issuer.
pub(super) enum Foreign {
    Vouched(Box<Vouched>),
    Forged(jwt::Refusal),
}

impl Oauth {
    /// `None` for what is no JWT of a configured issuer.
    ///
    /// # Errors
    /// As [`Self::vouched`].
    pub(super) async fn foreign(&self, text: &str) -> Result<Option<Foreign>, Refusal> {
        if !self.issuers.claims_to_be_known(text) {
            return Ok(None);
        }
        self.vouched(text).await.map(Some)
    }

    /// What is said to be a JWT of a configured issuer.
    ///
    /// # Errors
    /// `temporarily_unavailable` while its keys cannot be fetched.
    pub(super) async fn vouched(&self, text: &str) -> Result<Foreign, Refusal> {
        match self.issuers.verify(text).await {
            Ok(vouched) => Ok(Foreign::Vouched(Box::new(vouched))),
            Err(TokenError::Refused(refusal)) => Ok(Foreign::Forged(refusal)),
            Err(TokenError::Unavailable) => Err(Refusal::unavailable(anyhow::anyhow!(
                "the keys of the issuer of a token cannot be fetched"
            ))),
        }
    }

    /// What the caller is told of it for a service, `None` for none that it may ask for.
    pub(super) async fn tell_foreign(
        &self,
        asker: &Asker<'_>,
        vouched: &Vouched,
        service: Option<&str>,
        written: Written,
    ) -> Result<Told, Refusal> {
        let tenant = &asker.subject.tenant;
        let entry = match service {
            Some(service) => self.validation.service(&tenant.id, service).await?,
            None => None,
        };
        let now = self.clock.now();
        let is_taken = entry.is_some_and(|entry| {
            let sources = &entry.service.settings.exchange.from;
            entry.is_active && sources.has_issuer(&vouched.issuer)
        });
        // Whoever is believed some seconds longer elsewhere is told to be over here.
        let is_active = is_taken && vouched.tenant == tenant.slug && vouched.expires_at > now;
        let actors = Delegation::actors(&vouched.claims, Some(&vouched.issuer));
        match actors {
            Some((act, may_act)) if is_active => {
                let told = told(vouched, act, may_act);
                let told = serde_json::to_string(&told).map_err(Refusal::unavailable)?;
                self.tell(asker, told, written, now)
            }
            Some(_) | None => self.tell_inactive(asker, written, now),
        }
    }
}

fn told(vouched: &Vouched, act: Option<Actor>, may_act: Option<MayAct>) -> Active<'_> {
    let claims = &vouched.claims;
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let seconds = |name: &str| claims.get(name).and_then(Value::as_i64);
    let scopes = scopes(claims);
    let scopes: Vec<&str> = scopes.iter().map(Scope::as_str).collect();
    Active {
        active: true,
        scope: scopes.join(" "),
        client_id: text("client_id").or_else(|| text("azp")),
        token_type: "Bearer",
        exp: vouched.expires_at.unix_seconds(),
        iat: seconds("iat"),
        nbf: seconds("nbf"),
        sub: &vouched.subject,
        aud: claims.get("aud"),
        iss: &vouched.issuer,
        jti: text("jti"),
        act,
        may_act,
    }
}

/// What another issuer says that a token is good for: `scope` (RFC 8693 §4.2), or `scp` in its place. Names
/// that are none of ours mean nothing here, and neither does a wildcard: what is all of something is ours
/// to say.
pub(super) fn scopes(claims: &Map<String, Value>) -> Vec<Scope> {
    let names: Vec<&str> = match claims.get("scope").or_else(|| claims.get("scp")) {
        Some(Value::String(names)) => names.split(' ').collect(),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_)) | None => {
            Vec::new()
        }
    };
    names
        .into_iter()
        .take(SCOPES_MAX)
        .filter(|name| !name.ends_with('*'))
        .filter_map(|name| Scope::parse(name).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn of_the_scopes_of_another_issuer_those_count_that_are_ours_and_whole() {
        for (claims, expected) in [
            (
                json!({"scope": "a:b openid c"}),
                &["a:b", "openid", "c"][..],
            ),
            (json!({"scp": ["a:b", 1, "c d"]}), &["a:b"]),
            (json!({"scp": "a:b"}), &["a:b"]),
            (json!({"scope": "", "scp": "a:b"}), &[]),
            (json!({"scope": "* a:* b"}), &["b"]),
            (json!({"scope": {"a": true}}), &[]),
            (json!({}), &[]),
        ] {
            let read = scopes(claims.as_object().unwrap());
            let read: Vec<&str> = read.iter().map(Scope::as_str).collect();
            assert_eq!(read, expected, "{claims}");
        }
    }
}
