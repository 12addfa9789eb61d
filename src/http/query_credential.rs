//! No credential in a query.

use percent_encoding::percent_decode_str;

use super::problem::{Code, Problem};
use crate::id::KeyId;
use crate::text::{has_jwt_shape, has_key};

/// Parameters that carry a credential wherever an operation has none of the name, in lowercase.
const CREDENTIAL_NAMES: [&str; 11] = [
    "key",
    "api_key",
    "apikey",
    "x-api-key",
    "access_token",
    "token",
    "client_secret",
    "client_assertion",
    "subject_token",
    "actor_token",
    "refresh_token",
];

/// Refuses a credential in the query (RFC 6750 §2.3, RFC 9700): queries end up in logs, histories and
/// `Referer` headers. It is not repeated in the answer. Of a parameter that is `declared` by the operation
/// only the value tells.
///
/// # Errors
/// 400 `credential_in_query`.
pub fn refuse_credentials(query: &str, declared: &[String]) -> Result<(), Problem> {
    // A blank may be written as a plus, and a scheme may stand before the credential.
    let has_shape = |text: &str| {
        let mut words = text.split(|c: char| c.is_whitespace() || c == '+');
        has_key(text) || words.any(has_jwt_shape)
    };
    let found = query.split('&').any(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // What is not UTF-8 is looked at as far as it is.
        let name = percent_decode_str(name).decode_utf8_lossy();
        let value = percent_decode_str(value).decode_utf8_lossy();
        let is_credential = CREDENTIAL_NAMES
            .iter()
            .any(|credential| name.eq_ignore_ascii_case(credential));
        // The filter of a list: an id tells nothing and opens nothing.
        let is_id = name == "key" && KeyId::parse(&value).is_some();
        let is_other = is_id || declared.iter().any(|known| *known == name);
        (is_credential && !is_other) || has_shape(&value) || has_shape(&name)
    });
    if found {
        return Err(Problem::new(
            Code::CredentialInQuery,
            "a credential in the query ends up in logs: present it in a header or in the body, \
             and replace the one that was sent",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_in_the_query_is_refused() {
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        for query in [
            "api_key=x",
            "API_KEY=x",
            "a=b&Access_Token=x",
            "%61pi_key=x",
            "x-api-key",
            "token=",
            "key=x",
            "client_secret=x",
            "Subject_Token=x",
            "KEY=key_01jd8k3v9we5m8t7q2x4z6y0ab",
            "token=key_01jd8k3v9we5m8t7q2x4z6y0ab",
            "key=eyJhbGciOiJub25lIn0.e30.",
            "name=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln%5F",
            "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
            &format!("name={key}"),
            &format!("name={}", key.replace('_', "%5F")),
            &format!("url=https%3A%2F%2Fhook%2F{key}"),
            &format!("q=token_{key}"),
            &key,
        ] {
            let problem = refuse_credentials(query, &[]).unwrap_err();
            assert_eq!(problem.code(), Code::CredentialInQuery, "{query}");
            assert!(!problem.detail().contains("BBB"));
        }
        for query in [
            "",
            "name=x",
            "keys=1",
            "key=key_01jd8k3v9we5m8t7q2x4z6y0ab",
            "lookup_id=aaaaaaaaaaaa",
            "q=ks_live_a_b",
            "q=eyJhbGciOiJFUzI1NiJ9",
            "host=eye.example.com",
        ] {
            assert!(refuse_credentials(query, &[]).is_ok(), "{query}");
        }
    }

    #[test]
    fn of_a_declared_parameter_the_value_tells() {
        let declared = ["key".to_owned(), "to".to_owned()];
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        for query in ["key=worker", "key=", "key=worker&to=x"] {
            assert!(refuse_credentials(query, &declared).is_ok(), "{query}");
        }
        for query in [
            &format!("key={key}"),
            &format!("key=%20{key}"),
            &format!("key=+{key}"),
            &format!("key=Bearer+{key}"),
            &format!("to=ApiKey%20{key}"),
            "key=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln",
            "KEY=worker",
            "api_key=worker",
            "key=worker&token=x",
        ] {
            assert!(refuse_credentials(query, &declared).is_err(), "{query}");
        }
    }
}
