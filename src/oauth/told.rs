//! What an introspection tells of what is active (RFC 7662 §2.2), as JSON text: put together from its parts,
//! since services ask with every request of theirs. A signed answer holds the very same text.

use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::delegation::Delegation;
use super::mint::Provenance;
use crate::json;
use crate::scope::Scope;
use crate::validation::told::members;

/// So long is an answer as a rule; a longer one grows.
const LENGTH: usize = 768;

/// All that is told of what is not active.
pub(super) const INACTIVE: &str = r#"{"active":false}"#;

/// What is active (RFC 7662 §2.2).
#[derive(Debug, ToSchema)]
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
    pub(super) active: bool,
    /// What holds now: never more than the key does, whatever a token says.
    #[schema(value_type = String)]
    pub(super) scope: &'a [Scope],
    pub(super) client_id: &'a str,
    /// `api_key`, or `Bearer` for an access token.
    #[schema(example = "api_key")]
    pub(super) token_type: &'static str,
    /// In seconds since 1970, as the others; left out for a key without an end.
    #[schema(required = false, nullable = false)]
    pub(super) exp: Option<i64>,
    /// Of a token.
    #[schema(required = false, nullable = false)]
    pub(super) iat: Option<i64>,
    #[schema(required = false, nullable = false)]
    pub(super) nbf: Option<i64>,
    pub(super) sub: &'a str,
    /// The service by its slug, or by the resource that the token was asked for by.
    pub(super) aud: &'a str,
    pub(super) iss: &'a str,
    /// Of a token.
    #[schema(required = false, nullable = false)]
    pub(super) jti: Option<&'a str>,
    #[serde(flatten)]
    pub(super) delegation: &'a Delegation,
    #[schema(value_type = BTreeMap<String, String>)]
    pub(super) keystead: Provenance<'a>,
    /// What the service asks for in `tokens.claims`.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    pub(super) more: Map<String, Value>,
    /// If the service asks for it: a token for it that says the same.
    #[schema(required = false, nullable = false)]
    pub(super) jwt: Option<&'a str>,
}

impl Active<'_> {
    /// The text.
    ///
    /// # Errors
    /// An actor or a claim without a JSON form: there is none.
    pub(super) fn write(&self) -> Result<String, serde_json::Error> {
        let mut out = String::with_capacity(LENGTH + self.jwt.map_or(0, str::len));
        out.push_str(if self.active {
            "{\"active\":true,\"scope\":\""
        } else {
            "{\"active\":false,\"scope\":\""
        });
        // A scope holds nothing that JSON would have to escape.
        for (index, scope) in self.scope.iter().enumerate() {
            if index > 0 {
                out.push(' ');
            }
            out.push_str(scope.as_str());
        }
        out.push('"');
        text(&mut out, "client_id", self.client_id);
        text(&mut out, "token_type", self.token_type);
        seconds(&mut out, "exp", self.exp);
        seconds(&mut out, "iat", self.iat);
        seconds(&mut out, "nbf", self.nbf);
        text(&mut out, "sub", self.sub);
        text(&mut out, "aud", self.aud);
        text(&mut out, "iss", self.iss);
        if let Some(jti) = self.jti {
            text(&mut out, "jti", jti);
        }
        if self.delegation != Delegation::NONE {
            out.push(',');
            out.push_str(&members(self.delegation)?);
        }
        out.push_str(",\"keystead\":{");
        for (index, (name, value)) in self.keystead.members().enumerate() {
            json::member(&mut out, if index > 0 { "," } else { "" }, name);
            json::text(&mut out, value);
        }
        out.push('}');
        if !self.more.is_empty() {
            out.push(',');
            out.push_str(&members(&self.more)?);
        }
        if let Some(jwt) = self.jwt {
            text(&mut out, "jwt", jwt);
        }
        out.push('}');
        Ok(out)
    }
}

fn text(out: &mut String, name: &str, value: &str) {
    json::member(out, ",", name);
    json::text(out, value);
}

fn seconds(out: &mut String, name: &str, value: Option<i64>) {
    if let Some(value) = value {
        json::member(out, ",", name);
        json::number(out, value);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_told_is_json_whatever_others_wrote() {
        let odd = "a \"b\" \\ \u{8}\r\n\t\0 é \u{202e}\u{7f}";
        let scopes = ["a:read", "b:*"].map(|scope| Scope::parse(scope).unwrap());
        let acting = json!({"act": {"sub": "\"é\"", "iss": "https://idp.example"}});
        let delegation = Delegation::read(acting.as_object().unwrap()).unwrap();
        let more = json!({"plan": odd});
        let told = Active {
            active: true,
            scope: &scopes,
            client_id: "con_1",
            token_type: "Bearer",
            exp: Some(1_800_000_000),
            iat: Some(-1),
            nbf: None,
            sub: odd,
            aud: "https://a.example/?\"",
            iss: "https://keys.example",
            jti: Some("tok_1"),
            delegation: &delegation,
            keystead: Provenance {
                tenant: "default",
                environment: "live",
                service: "billing",
                key_id: "key_1",
                secret_id: "sec_1",
                client_key_id: None,
                client_secret_id: None,
                other_secret_ids: None,
            },
            more: more.as_object().unwrap().clone(),
            jwt: Some("ey"),
        };
        let read: Value = serde_json::from_str(&told.write().unwrap()).unwrap();
        assert_eq!(
            read,
            json!({
                "active": true, "scope": "a:read b:*", "client_id": "con_1", "token_type": "Bearer",
                "exp": 1_800_000_000, "iat": -1, "sub": odd, "aud": "https://a.example/?\"",
                "iss": "https://keys.example", "jti": "tok_1", "act": acting["act"],
                "keystead": {
                    "tenant": "default", "environment": "live", "service": "billing",
                    "key_id": "key_1", "secret_id": "sec_1",
                },
                "plan": odd, "jwt": "ey",
            })
        );
        let least = Active {
            scope: &[],
            exp: None,
            iat: None,
            sub: "con_1",
            aud: "billing",
            jti: None,
            delegation: Delegation::NONE,
            more: Map::new(),
            jwt: None,
            ..told
        };
        assert_eq!(
            least.write().unwrap(),
            r#"{"active":true,"scope":"","client_id":"con_1","token_type":"Bearer","sub":"con_1","#
                .to_owned()
                + r#""aud":"billing","iss":"https://keys.example","keystead":{"tenant":"default","#
                + r#""environment":"live","service":"billing","key_id":"key_1","secret_id":"sec_1"}}"#
        );
    }
}
