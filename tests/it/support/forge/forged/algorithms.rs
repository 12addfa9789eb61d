//! Algorithms and keys: `none`, a public key as a shared secret, keys of others.

use keystead::auth::jwt::Refusal;
use keystead::clock::Clock;
use serde_json::json;

use super::{
    B, Case, H, HEADER, SECRET, Signers, case, encode, good_claims, header, with, with_claims,
    with_header,
};

#[expect(clippy::too_many_lines, reason = "one list, read from top to bottom")]
pub(super) fn cases(clock: &Clock) -> Vec<Case> {
    use Refusal::{Algorithm, Header, Issuer, Key, Malformed, Signature};
    let ours = Signers::shared();
    let body = good_claims(clock).to_string();
    let of_b = with(good_claims(clock), json!({ "iss": B }));
    let of_h = with(good_claims(clock), json!({ "iss": H }));
    let mut cases = Vec::new();
    for (name, alg) in [
        ("alg none", json!("none")),
        ("alg None", json!("None")),
        ("alg nOnE", json!("nOnE")),
        ("alg empty", json!("")),
        ("alg missing", json!(null)),
        ("alg in lower case", json!("es256")),
        ("alg with a space", json!("ES256 ")),
        ("alg unknown", json!("ES256K")),
        ("alg of encryption", json!("dir")),
    ] {
        cases.push(case(
            name,
            Algorithm,
            with_header(clock, json!({ "alg": alg })),
        ));
    }
    for (name, alg) in [
        ("alg as list", json!(["ES256"])),
        ("alg as number", json!(256)),
    ] {
        cases.push(case(
            name,
            Header,
            with_header(clock, json!({ "alg": alg })),
        ));
    }
    let none = with(header(), json!({"alg": "none"}));
    cases.push(case(
        "alg none without a signature",
        Malformed,
        format!("{}.{}.", encode(none), encode(&body)),
    ));
    cases.push(case(
        "no signature",
        Malformed,
        format!("{}.{}.", encode(HEADER), encode(&body)),
    ));
    // The public key of A as a shared secret, in every form it may have.
    let pem = ours.pem("RS256");
    let jwk = ours.jwk("RS256", "rsa").to_string();
    let forms: [(&str, Vec<u8>); 7] = [
        ("HMAC over the PEM", pem.trim_end().into()),
        ("HMAC over the PEM and a line feed", pem.clone().into()),
        ("HMAC over the PEM after a space", format!(" {pem}").into()),
        ("HMAC over the DER", ours.spki("RS256")),
        ("HMAC over the JWK", jwk.into()),
        ("HMAC over the modulus", ours.rsa_modulus()),
        ("HMAC over nothing", Vec::new()),
    ];
    for (name, secret) in forms {
        for hs in ["HS256", "HS384", "HS512"] {
            let header = json!({"alg": hs, "kid": "rsa"}).to_string();
            let token = ours.token_with(hs, &header, &body, &secret);
            cases.push(case(name, Algorithm, token));
        }
    }
    let b_pem = Signers::other().pem("ES256");
    let confused = json!({"alg": "HS256"}).to_string();
    cases.push(case(
        "HMAC over B's key in the configuration",
        Algorithm,
        ours.token_with("HS256", &confused, &of_b, b_pem.as_bytes()),
    ));
    cases.push(case(
        "HMAC of a wrong secret",
        Signature,
        ours.token_with(
            "HS256",
            &confused,
            &of_h,
            b"8f2c1d0b9a7e6f5d4c3b2a1908171615",
        ),
    ));
    cases.push(case(
        "another HMAC with the right secret",
        Algorithm,
        ours.token_with("HS512", r#"{"alg":"HS512"}"#, &of_h, SECRET.as_bytes()),
    ));
    cases.push(case(
        "H's secret for A",
        Algorithm,
        ours.token_with("HS256", &confused, &body, SECRET.as_bytes()),
    ));
    for alg in ["RS384", "RS512", "PS256"] {
        let header = json!({"alg": alg, "kid": "rsa"}).to_string();
        cases.push(case(
            "an RS256 key with another algorithm",
            Key,
            ours.token(alg, &header, &body),
        ));
    }
    for (name, alg, kid) in [
        ("an ES256 key as ES384", "ES384", "p256"),
        ("an RSA key as ES256", "ES256", "rsa"),
        ("an Ed25519 key as ES256", "ES256", "ed"),
        ("a P-256 key as EdDSA", "EdDSA", "p256"),
    ] {
        let header = json!({"alg": alg, "kid": kid}).to_string();
        cases.push(case(name, Key, ours.token(alg, &header, &body)));
    }
    for (alg, kid) in [
        ("RS256", "rsa"),
        ("ES256", "p256"),
        ("ES384", "p384"),
        ("EdDSA", "ed"),
    ] {
        let header = json!({"alg": alg, "kid": kid}).to_string();
        cases.push(case(
            "a stranger's key under our kid",
            Signature,
            Signers::other().token(alg, &header, &body),
        ));
    }
    cases.push(case(
        "A's key for B",
        Signature,
        ours.token("ES256", HEADER, &of_b),
    ));
    cases.push(case(
        "B's key for A",
        Signature,
        Signers::other().token("ES256", HEADER, &body),
    ));
    cases.push(case(
        "A's key for H",
        Algorithm,
        ours.token("ES256", HEADER, &of_h),
    ));
    cases.push(case(
        "an issuer nobody configured",
        Issuer,
        with_claims(clock, json!({"iss": "https://c.example"})),
    ));
    cases
}
