//! The form: other serializations, other spellings, repeated members.

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::json;

use super::{Case, HEADER, Signers, case, encode, good_claims};

#[expect(clippy::too_many_lines, reason = "one list, read from top to bottom")]
pub(super) fn cases(clock: &Clock) -> Vec<Case> {
    use Refusal::Malformed;
    let ours = Signers::shared();
    let body = good_claims(clock).to_string();
    let good = ours.token("ES256", HEADER, &body);
    let parts: Vec<&str> = good.split('.').collect();
    let (message, signature) = good.rsplit_once('.').unwrap();
    // The last character of 64 bytes in base64url holds 2 bits and 4 that say nothing.
    let last = signature.chars().last().unwrap();
    let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let twin = alphabet
        .chars()
        .nth(alphabet.find(last).unwrap() + 1)
        .unwrap();
    let twin = format!("{message}.{}{twin}", &signature[..signature.len() - 1]);
    let json_form = json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]});
    let doubled = |from: &str, to: &str| body.replacen(from, to, 1);
    let signed = |claims: &str| ours.token("ES256", HEADER, claims);
    let bytes = |claims: &[u8]| {
        let message = format!("{}.{}", encode(HEADER), encode(claims));
        let signature = ours.sign("ES256", message.as_bytes(), b"");
        format!("{message}.{}", encode(signature))
    };
    let mut cases = Vec::new();
    for (name, token) in [
        ("empty", String::new()),
        ("one part", parts[0].to_owned()),
        ("two parts", message.to_owned()),
        ("four parts", format!("{good}.{}", parts[2])),
        ("five parts", format!("{good}..{}", parts[2])),
        ("only dots", "..".to_owned()),
        ("no header", format!(".{}.{}", parts[1], parts[2])),
        ("no claims", format!("{}..{}", parts[0], parts[2])),
        ("JSON form", json_form.to_string()),
        ("padding", format!("{good}=")),
        (
            "padding inside",
            format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        ),
        ("line feed at the end", format!("{good}\n")),
        (
            "line feed inside",
            format!("{}\n.{}.{}", parts[0], parts[1], parts[2]),
        ),
        ("space at the start", format!(" {good}")),
        ("NUL at the end", format!("{good}\0")),
        (
            "base64 of the other alphabet",
            format!("{message}.{}+/", &signature[2..]),
        ),
        ("another spelling of the last character", twin),
        ("full-width letters", good.replacen('e', "\u{ff45}", 1)),
        ("a scheme inside", format!("Bearer {good}")),
        ("too long", signed(&doubled("alice", &"a".repeat(9000)))),
        (
            "roles twice",
            signed(&doubled("\"roles\"", "\"roles\":[\"viewer\"],\"roles\"")),
        ),
        (
            "roles twice, once escaped",
            signed(&doubled("\"roles\"", "\"roles\":[],\"r\\u006fles\"")),
        ),
        (
            "sub twice",
            signed(&doubled("\"sub\"", "\"sub\":\"bob\",\"sub\"")),
        ),
        (
            "a member twice inside",
            signed(&doubled("\"sub\"", "\"x\":{\"a\":1,\"a\":2},\"sub\"")),
        ),
        (
            "alg twice",
            ours.token(
                "ES256",
                &HEADER.replacen('{', "{\"alg\":\"none\",", 1),
                &body,
            ),
        ),
        ("claims as list", signed("[]")),
        ("claims as text", signed("\"alice\"")),
        ("claims that end early", signed(&body[..body.len() - 1])),
        (
            "something behind the claims",
            signed(&format!("{body}{{}}")),
        ),
        ("claims that are not UTF-8", bytes(b"{\"sub\":\"\xff\"}")),
        (
            "a byte order mark",
            bytes(format!("\u{feff}{body}").as_bytes()),
        ),
        (
            "exp out of range",
            signed(&doubled("\"sub\"", "\"exp2\":1e400,\"sub\"")),
        ),
        ("endless nesting", signed(&"[".repeat(4000))),
        ("header as list", ours.token("ES256", "[\"ES256\"]", &body)),
    ] {
        cases.push(case(name, Malformed, token));
    }
    cases.push(case(
        "a signature too long",
        Refusal::Signature,
        format!("{good}A"),
    ));
    cases.push(case(
        "a signature too short",
        Refusal::Signature,
        format!("{message}.AAAA"),
    ));
    cases
}
