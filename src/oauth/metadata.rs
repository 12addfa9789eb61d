//! Authorization server metadata (RFC 8414): what is offered here, and nothing that is not.

use serde::Serialize;
use utoipa::ToSchema;

/// The well-known path (RFC 8414 §3); a path of the issuer's stands behind it.
pub const WELL_KNOWN: &str = "/.well-known/oauth-authorization-server";

/// RFC 6749 §4.4.
pub const GRANT_CLIENT_CREDENTIALS: &str = "client_credentials";

/// RFC 8693 §2.1.
pub const GRANT_TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";

/// How clients may authenticate, as far as there are registered names: `x-api-key` has none.
const AUTH_METHODS: [&str; 2] = ["client_secret_basic", "client_secret_post"];

/// How callers of the introspection may: `Bearer` has no registered name either.
const INTROSPECTION_AUTH_METHODS: [&str; 2] = AUTH_METHODS;

/// What the authorization server offers.
#[derive(Debug, Serialize, ToSchema)]
#[schema(title = "AuthorizationServer", example = json!({
    "issuer": "https://keys.example.com",
    "token_endpoint": "https://keys.example.com/oauth/token",
    "jwks_uri": "https://keys.example.com/.well-known/jwks.json",
    "response_types_supported": ["none"],
    "grant_types_supported": [
        "client_credentials", "urn:ietf:params:oauth:grant-type:token-exchange"
    ],
    "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    "introspection_endpoint": "https://keys.example.com/oauth/introspect",
    "introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"],
    "introspection_signing_alg_values_supported": ["ES256"],
    "revocation_endpoint": "https://keys.example.com/oauth/revoke",
    "revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post"]
}))]
pub struct AuthorizationServer {
    /// The very text of the claim `iss`.
    pub issuer: String,
    pub token_endpoint: String,
    pub jwks_uri: String,
    /// Required, and must not be empty (RFC 8414 §2, §3.2): there is no authorization endpoint, so it
    /// is `none`, a registered response type.
    pub response_types_supported: [&'static str; 1],
    pub grant_types_supported: [&'static str; 2],
    pub token_endpoint_auth_methods_supported: [&'static str; 2],
    pub introspection_endpoint: String,
    pub introspection_endpoint_auth_methods_supported: [&'static str; 2],
    /// RFC 9701 §7: those of the keys that sign or are about to; left out while there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub introspection_signing_alg_values_supported: Vec<&'static str>,
    pub revocation_endpoint: String,
    pub revocation_endpoint_auth_methods_supported: [&'static str; 2],
}

impl AuthorizationServer {
    /// `algorithms` are those of the published keys.
    pub fn new(issuer: &str, algorithms: Vec<&'static str>) -> Self {
        Self {
            issuer: issuer.to_owned(),
            token_endpoint: format!("{issuer}/oauth/token"),
            jwks_uri: format!("{issuer}/.well-known/jwks.json"),
            response_types_supported: ["none"],
            grant_types_supported: [GRANT_CLIENT_CREDENTIALS, GRANT_TOKEN_EXCHANGE],
            token_endpoint_auth_methods_supported: AUTH_METHODS,
            introspection_endpoint: format!("{issuer}/oauth/introspect"),
            introspection_endpoint_auth_methods_supported: INTROSPECTION_AUTH_METHODS,
            introspection_signing_alg_values_supported: algorithms,
            revocation_endpoint: format!("{issuer}/oauth/revoke"),
            revocation_endpoint_auth_methods_supported: AUTH_METHODS,
        }
    }
}
