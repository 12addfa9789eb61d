//! Hostile tokens and what each is refused for, three issuers to send them to, and good tokens of
//! theirs to change.

mod algorithms;
mod claims;
mod form;
mod headers;
mod times;

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::{Value, json};

use super::{IdentityProvider, Signers, encode};

pub(crate) const A: &str = "https://a.example";
pub(crate) const B: &str = "https://b.example";
pub(crate) const H: &str = "https://h.example";
pub(crate) const AUDIENCE: &str = "https://keys.example";
pub(crate) const SECRET: &str = "8f2c1d0b9a7e6f5d4c3b2a190817161514131211";

/// Three issuers as TOML: A publishes keys at `provider`, B has one in the configuration, H shares
/// a secret.
pub(crate) fn issuers(provider: &IdentityProvider) -> [String; 3] {
    let ours = Signers::shared();
    let published = |algorithm: &str, kid: &str| {
        let mut jwk = ours.jwk(algorithm, kid);
        jwk["alg"] = json!(algorithm);
        jwk
    };
    provider.publish(&[
        published("RS256", "rsa"),
        published("ES256", "p256"),
        published("ES384", "p384"),
        published("EdDSA", "ed"),
    ]);
    let rest = format!(
        "audience = \"{AUDIENCE}\"\ntenant = \"default\"\n\
         roles = [{{claim = \"roles\", value = \"admin\", role = \"admin\"}}]\n"
    );
    [
        format!(
            "{rest}issuer = \"{A}\"\njwks_url = \"{}\"\n\
             algorithms = [\"RS256\", \"RS384\", \"RS512\", \"PS256\", \"ES256\", \"ES384\", \"EdDSA\"]\n\
             allow_private_addresses = true\ndangerous_allow_http = true\n",
            provider.url("/jwks")
        ),
        format!(
            "{rest}issuer = \"{B}\"\nalgorithms = [\"ES256\"]\npublic_key = '''{}'''\n",
            Signers::other().pem("ES256")
        ),
        format!("{rest}issuer = \"{H}\"\nalgorithms = [\"HS256\"]\nhmac_secret = \"{SECRET}\"\n"),
    ]
}

pub(crate) fn good_claims(clock: &Clock) -> Value {
    let now = clock.now().unix_seconds();
    json!({
        "iss": A,
        "sub": "alice",
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 300,
        "roles": ["admin"],
    })
}

/// The value with some members set; `null` takes one away.
#[expect(
    clippy::needless_pass_by_value,
    reason = "is called with json! in place"
)]
pub(crate) fn with(mut value: Value, changes: Value) -> String {
    for (name, change) in changes.as_object().unwrap() {
        let members = value.as_object_mut().unwrap();
        if change.is_null() {
            members.shift_remove(name);
        } else {
            members.insert(name.clone(), change.clone());
        }
    }
    value.to_string()
}

/// A token that is no good.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) token: String,
    pub(crate) refusal: Refusal,
}

fn case(name: &'static str, refusal: Refusal, token: String) -> Case {
    Case {
        name,
        token,
        refusal,
    }
}

/// All of them; `trap` is an address that nobody may ever ask.
pub(crate) fn cases(clock: &Clock, trap: &str) -> Vec<Case> {
    let mut cases = algorithms::cases(clock);
    cases.extend(form::cases(clock));
    cases.extend(headers::cases(clock, trap));
    cases.extend(times::cases(clock));
    cases.extend(claims::cases(clock));
    assert!(cases.len() >= 150, "{}", cases.len());
    cases
}

pub(crate) const HEADER: &str = r#"{"alg":"ES256","kid":"p256","typ":"at+jwt"}"#;

fn header() -> Value {
    serde_json::from_str(HEADER).unwrap()
}

/// Signed by A's own key, with another header.
pub(crate) fn with_header(clock: &Clock, changes: Value) -> String {
    Signers::shared().token(
        "ES256",
        &with(header(), changes),
        &good_claims(clock).to_string(),
    )
}

/// Signed by A's own key, with other claims.
pub(crate) fn with_claims(clock: &Clock, changes: Value) -> String {
    Signers::shared().token("ES256", HEADER, &with(good_claims(clock), changes))
}
