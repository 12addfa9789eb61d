//! Headers: critical ones, keys of the sender's own, hostile `kid`s.

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::json;

use super::{Case, Signers, case, good_claims, header, with, with_header};

pub(super) fn cases(clock: &Clock, trap: &str) -> Vec<Case> {
    use Refusal::{Header, Key, Signature};
    let mut cases = Vec::new();
    let stranger = Signers::other();
    let jwk = stranger.jwk("ES256", "p256");
    for (name, changes) in [
        ("crit b64", json!({"crit": ["b64"], "b64": false})),
        ("crit unknown", json!({"crit": ["x"], "x": 1})),
        ("crit empty", json!({"crit": []})),
        ("crit naming alg", json!({"crit": ["alg"]})),
        ("crit null-like", json!({"crit": false})),
        ("b64 alone", json!({"b64": false})),
        ("compressed", json!({"zip": "DEF"})),
        ("encrypted", json!({"enc": "A256GCM"})),
        ("nested", json!({"cty": "JWT"})),
        ("x5c", json!({"x5c": ["MIIB"]})),
        ("kid as number", json!({"kid": 1})),
        ("kid as list", json!({"kid": ["p256"]})),
        ("kid empty", json!({"kid": ""})),
        ("kid with NUL", json!({"kid": "p256\u{0}"})),
        ("kid with a line feed", json!({"kid": "p256\n"})),
        ("kid beyond ASCII", json!({"kid": "p\u{2075}256"})),
        ("kid too long", json!({"kid": "k".repeat(257)})),
        ("typ as number", json!({"typ": 1})),
    ] {
        cases.push(case(name, Header, with_header(clock, changes)));
    }
    // Keys of the sender's own, in the header or where it points.
    for (name, changes) in [
        ("jwk of the sender", json!({"jwk": jwk})),
        ("jku of the sender", json!({"jku": trap})),
        ("x5u of the sender", json!({"x5u": trap})),
    ] {
        let token = stranger.token(
            "ES256",
            &with(header(), changes),
            &good_claims(clock).to_string(),
        );
        cases.push(case(name, Header, token));
    }
    for (name, kid) in [
        ("kid as path", "../../../../dev/null"),
        ("kid as SQL", "' UNION SELECT 'k'--"),
        ("kid as URL", trap),
        ("kid in another case", "P256"),
        ("kid with a space", "p256 "),
    ] {
        cases.push(case(name, Key, with_header(clock, json!({ "kid": kid }))));
    }
    cases.push(case(
        "no kid, a stranger's key",
        Signature,
        stranger.token(
            "ES256",
            &with(header(), json!({"kid": null})),
            &good_claims(clock).to_string(),
        ),
    ));
    cases
}
