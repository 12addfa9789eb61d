//! Issuer, audience, subject, and tokens of another kind.

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::json;

use super::{A, AUDIENCE, Case, case, with_claims, with_header};

pub(super) fn cases(clock: &Clock) -> Vec<Case> {
    use Refusal::{Audience, Issuer, Kind, Subject};
    let mut cases = Vec::new();
    for (name, iss) in [
        ("iss missing", json!(null)),
        ("iss with a slash", json!("https://a.example/")),
        ("iss in another case", json!("https://A.example")),
        ("iss with a suffix", json!("https://a.example.evil")),
        ("iss cut short", json!("https://a.exampl")),
        ("iss as http", json!("http://a.example")),
        ("iss as list", json!([A])),
        ("iss as empty list", json!([])),
        ("iss as object", json!({"a": 1})),
        ("iss as number", json!(1)),
        ("iss empty", json!("")),
    ] {
        cases.push(case(
            name,
            Issuer,
            with_claims(clock, json!({ "iss": iss })),
        ));
    }
    for (name, aud) in [
        ("aud missing", json!(null)),
        ("aud of another", json!("https://other.example")),
        ("aud with a slash", json!("https://keys.example/")),
        ("aud in another case", json!("https://KEYS.example")),
        ("aud with a suffix", json!("https://keys.example.evil")),
        ("aud as number", json!(123)),
        ("aud as object", json!({"aud": AUDIENCE})),
        ("aud as empty list", json!([])),
        ("aud as list of others", json!(["x", "y"])),
        ("aud as list with a number", json!([AUDIENCE, 1])),
        ("aud as nested list", json!([[AUDIENCE]])),
        ("aud as text of several", json!(format!("{AUDIENCE} x"))),
        ("aud of a service", json!("billing")),
        ("aud empty", json!("")),
    ] {
        cases.push(case(
            name,
            Audience,
            with_claims(clock, json!({ "aud": aud })),
        ));
    }
    for (name, sub) in [
        ("sub missing", json!(null)),
        ("sub empty", json!("")),
        ("sub as number", json!(1)),
        ("sub as list", json!(["alice"])),
        ("sub too long", json!("a".repeat(256))),
        ("sub with NUL", json!("alice\u{0}")),
        ("sub with a line feed", json!("alice\nbob")),
        ("sub with an escape", json!("\u{1b}[2Jalice")),
        ("sub is the issuer, as in an assertion", json!(A)),
    ] {
        cases.push(case(
            name,
            Subject,
            with_claims(clock, json!({ "sub": sub })),
        ));
    }
    for (name, typ) in [
        ("a logout token by typ", "logout+jwt"),
        ("a security event by typ", "secevent+jwt"),
        ("an introspection answer by typ", "token-introspection+jwt"),
        ("a client assertion by typ", "client-authentication+jwt"),
        ("a proof by typ", "dpop+jwt"),
        ("an encrypted token by typ", "JOSE"),
        ("an empty typ", ""),
        ("a media type of another kind", "application/logout+jwt"),
    ] {
        cases.push(case(name, Kind, with_header(clock, json!({ "typ": typ }))));
    }
    for (name, changes) in [
        ("an ID token by nonce", json!({"nonce": "n"})),
        ("an ID token by at_hash", json!({"at_hash": "h"})),
        ("an ID token by c_hash", json!({"c_hash": "h"})),
        ("an ID token by typ claim", json!({"typ": "ID"})),
        ("a refresh token by typ claim", json!({"typ": "Refresh"})),
        ("a logout token by typ claim", json!({"typ": "logout"})),
        ("a typ claim of a wrong type", json!({"typ": ["Bearer"]})),
        (
            "a logout token by events",
            json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}}),
        ),
        (
            "an introspection answer by claim",
            json!({"token_introspection": {"active": true}}),
        ),
        ("a token bound to a key", json!({"cnf": {"jkt": "x"}})),
        (
            "a token bound to a certificate",
            json!({"cnf": {"x5t#S256": "x"}}),
        ),
    ] {
        cases.push(case(name, Kind, with_claims(clock, changes)));
    }
    cases
}
