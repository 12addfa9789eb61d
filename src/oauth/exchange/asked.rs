//! What a client asks an exchange for (RFC 8693 §2.1), beside what any token is asked for.

use std::net::IpAddr;

use crate::keys::secret::UnparsedKey;
use crate::oauth::form::Form;
use crate::oauth::refusal::Refusal;

const API_KEY: &str = "urn:keystead:token-type:api_key";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// What a token is said to be (RFC 8693 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenType {
    /// Our own: a key of Keystead's.
    ApiKey,
    /// An access token of ours.
    AccessToken,
    /// An access token of ours, or a JWT of a configured issuer.
    Jwt,
}

/// A token that is presented.
#[derive(Debug)]
pub(super) struct Typed {
    pub(super) text: UnparsedKey,
    pub(super) kind: TokenType,
}

/// What a client asks for.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) subject: Typed,
    pub(super) actor: Option<Typed>,
    /// The type that the answer names.
    pub(super) issued: &'static str,
    /// Who presented the subject token to the client, as far as it says.
    pub(super) ip: Option<IpAddr>,
}

impl Exchange {
    /// # Errors
    /// `invalid_request`: nothing is ever taken in the place of what is missing.
    pub(super) fn of(form: &mut Form<'_>) -> Result<Self, Refusal> {
        let subject = Typed {
            text: UnparsedKey::new(form.require("subject_token")?.into_owned()),
            kind: token_type(&form.require("subject_token_type")?)?,
        };
        let actor = form.take("actor_token");
        let actor = actor.map(|text| UnparsedKey::new(text.into_owned()));
        let actor = match (actor, form.take("actor_token_type")) {
            (None, None) => None,
            (Some(text), Some(kind)) => Some(Typed {
                text,
                kind: token_type(&kind)?,
            }),
            (Some(_), None) | (None, Some(_)) => {
                return Err(Refusal::invalid_request(
                    "actor_token and actor_token_type are given together or not at all",
                ));
            }
        };
        let issued = match form.take("requested_token_type").as_deref() {
            None | Some(ACCESS_TOKEN) => ACCESS_TOKEN,
            Some(JWT) => JWT,
            Some(_) => {
                return Err(Refusal::invalid_request(
                    "requested_token_type must be that of an access token or of a JWT",
                ));
            }
        };
        Ok(Self {
            subject,
            actor,
            issued,
            ip: form.take_ip()?,
        })
    }
}

fn token_type(text: &str) -> Result<TokenType, Refusal> {
    match text {
        API_KEY => Ok(TokenType::ApiKey),
        ACCESS_TOKEN => Ok(TokenType::AccessToken),
        JWT => Ok(TokenType::Jwt),
        _ => Err(Refusal::invalid_request(
            "tokens of this type are not exchanged here: an API key, an access token or a JWT is",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oauth::refusal::ErrorCode;

    const SUBJECT: [(&str, &str); 2] = [("subject_token", "x"), ("subject_token_type", JWT)];

    fn asked(more: &[(&str, &str)]) -> Result<Exchange, ErrorCode> {
        let pairs = SUBJECT.iter().chain(more);
        let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        let mut form = Form::new(pairs.collect()).map_err(|refusal| refusal.code)?;
        Exchange::of(&mut form).map_err(|refusal| refusal.code)
    }

    #[test]
    fn a_token_and_its_type_are_given_together() {
        assert_eq!(asked(&[]).unwrap().issued, ACCESS_TOKEN);
        let both = [("actor_token", "y"), ("actor_token_type", API_KEY)];
        assert!(asked(&both).unwrap().actor.is_some());
        assert_eq!(asked(&[("requested_token_type", JWT)]).unwrap().issued, JWT);
        for bad in [
            &both[..1],
            &both[1..],
            &[("actor_token", ""), ("actor_token_type", JWT)],
            &[("actor_token", "y"), ("actor_token_type", "")],
            &[("actor_token", "y"), ("actor_token_type", "jwt")],
            &[("subject_token", "y")],
            &[("requested_token_type", API_KEY)],
            &[("ip", "nowhere")],
        ] {
            assert_eq!(
                asked(bad).unwrap_err(),
                ErrorCode::InvalidRequest,
                "{bad:?}"
            );
        }
        for missing in SUBJECT {
            let mut form = Form::new(vec![(missing.0.into(), missing.1.into())]).unwrap();
            assert!(Exchange::of(&mut form).is_err());
        }
    }
}
