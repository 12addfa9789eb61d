//! What an authorization server answers to a request for a token (RFC 6749 §5), held to what makes sense.

use super::{LIFE_MAX_SECONDS, LIFE_MIN_SECONDS, Secret, UpstreamError};
use crate::auth::strict;
use serde_json::Value;

/// Longer than any token that fits in a header.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

const SCOPE_BYTES_MAX: usize = 4096;

/// The error codes that are repeated in the log (RFC 6749 §5.2, RFC 8707 §2). Another may be any text, and
/// is told as [`OTHER_CODE`].
const CODES: [&str; 7] = [
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
];

const OTHER_CODE: &str = "another error code";

/// What says that the server has too much to do, whatever code goes with it.
const BUSY: [u16; 2] = [408, 429];

/// A good answer.
pub(super) struct Answer {
    pub(super) token: Secret,
    pub(super) life_seconds: u64,
    pub(super) scope: Option<String>,
}

/// # Errors
/// [`UpstreamError::Refused`] for an error code, which says something of what was asked for and nothing of
/// the server; [`UpstreamError::Answer`] for what is no answer to us. Neither repeats anything of it.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Answer, UpstreamError> {
    let object = strict::object(body);
    if status != 200 {
        let code = object
            .as_ref()
            .and_then(|object| object.get("error")?.as_str());
        let is_refusal = (400..500).contains(&status) && !BUSY.contains(&status);
        return Err(match code {
            Some(code) if is_refusal => {
                let known = CODES.into_iter().find(|known| code == *known);
                UpstreamError::Refused(known.unwrap_or(OTHER_CODE))
            }
            Some(_) | None => UpstreamError::Status(status),
        });
    }
    let object = object.ok_or(UpstreamError::Answer("is no JSON object"))?;
    let text = |name: &str| object.get(name).and_then(Value::as_str);
    // RFC 6749 §7.1: a token of a type that is not understood is not used.
    if !text("token_type").is_some_and(|typ| typ.eq_ignore_ascii_case("bearer")) {
        return Err(UpstreamError::Answer("has another token_type than Bearer"));
    }
    // RFC 6749 appendix A.12; and what a header may hold.
    let token = text("access_token")
        .filter(|token| {
            (1..=TOKEN_BYTES_MAX).contains(&token.len())
                && token.bytes().all(|b| b.is_ascii_graphic())
        })
        .ok_or(UpstreamError::Answer(
            "has no access_token that can be used",
        ))?;
    let life_seconds = object
        .get("expires_in")
        .and_then(Value::as_u64)
        .ok_or(UpstreamError::Answer("has no expires_in"))?;
    if life_seconds < LIFE_MIN_SECONDS {
        return Err(UpstreamError::Answer("is a token of less than a minute"));
    }
    let scope = match object.get("scope") {
        None | Some(Value::Null) => None,
        Some(scope) => Some(
            scope
                .as_str()
                .filter(|scope| {
                    scope.len() <= SCOPE_BYTES_MAX
                        && scope
                            .bytes()
                            .all(|b| (b' '..=b'~').contains(&b) && !b"\"\\".contains(&b))
                })
                .ok_or(UpstreamError::Answer("has a scope that is none"))?
                .to_owned(),
        ),
    };
    Ok(Answer {
        token: Secret(token.to_owned()),
        life_seconds: life_seconds.min(LIFE_MAX_SECONDS),
        scope,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_good_answer_is_taken_and_everything_else_refused_without_being_repeated() {
        let good = json!({"access_token": "hush", "token_type": "bearer", "expires_in": 3600});
        let with = |member: &str, value: Value| {
            let mut answer = good.clone();
            answer[member] = value;
            answer.to_string()
        };
        let answer = read(200, good.to_string().as_bytes()).unwrap();
        assert_eq!(
            (answer.token.0.as_str(), answer.life_seconds),
            ("hush", 3600)
        );
        assert_eq!(answer.scope, None);
        let told = read(200, with("scope", json!("a b")).as_bytes()).unwrap();
        assert_eq!(told.scope.as_deref(), Some("a b"));
        let long = read(200, with("expires_in", json!(i64::MAX)).as_bytes()).unwrap();
        assert_eq!(long.life_seconds, LIFE_MAX_SECONDS);
        for bad in [
            "<html>hush</html>".to_owned(),
            "[\"hush\"]".to_owned(),
            String::new(),
            with("token_type", json!("mac")),
            with("token_type", json!("DPoP")),
            with("token_type", Value::Null),
            with("access_token", json!("")),
            with("access_token", json!("hu\r\nsh")),
            with("access_token", json!("hush ")),
            with("access_token", json!("x".repeat(16 * 1024 + 1))),
            with("access_token", json!(["hush"])),
            with("expires_in", Value::Null),
            with("expires_in", json!("3600")),
            with("expires_in", json!(59)),
            with("expires_in", json!(-1)),
            with("expires_in", json!(1e300)),
            with("scope", json!("a\nb")),
            with("scope", json!(["a"])),
            format!(
                "{},\"access_token\":\"b\"}}",
                good.to_string().trim_end_matches('}')
            ),
        ] {
            let Err(error) = read(200, bad.as_bytes()) else {
                panic!("accepted: {bad}");
            };
            assert!(!format!("{error} {error:?}").contains("hush"), "{bad}");
        }
    }

    #[test]
    fn a_refusal_is_told_from_a_failure_by_its_code() {
        let read = |status, body: &str| read(status, body.as_bytes()).err().unwrap();
        assert_eq!(
            read(401, "{\"error\":\"invalid_client\"}"),
            UpstreamError::Refused("invalid_client")
        );
        assert_eq!(
            read(403, "{\"error\":\"hush\"}"),
            UpstreamError::Refused(OTHER_CODE)
        );
        for (status, body) in [
            (429, "{\"error\":\"invalid_request\"}"),
            (400, "{}"),
            (400, "hush"),
            (500, "{\"error\":\"invalid_client\"}"),
            (302, ""),
            (201, "{\"access_token\":\"hush\"}"),
        ] {
            assert_eq!(read(status, body), UpstreamError::Status(status), "{body}");
        }
    }
}
