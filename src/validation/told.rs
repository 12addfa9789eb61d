//! What is told of a key and the secret that was presented, as the members of a JSON object.
//!
//! Written once, when a snapshot is made, as far as it is not the same for every key: that many keys may
//! have in common is a text of its own, which they share.

use std::sync::Arc;

use serde::Serialize;

use super::snapshot::SecretSnapshot;
use crate::metadata::Metadata;
use crate::text::{Environment, Name, Tag};
use crate::time::Timestamp;

/// The members of a key, see [`Told::write`].
#[derive(Clone, Debug)]
pub struct Told {
    /// [`Own`] without its braces, and behind it how `secret` begins if it has an end.
    own: Box<str>,
    /// [`Alike`] without its braces.
    alike: Arc<str>,
}

#[derive(Serialize)]
struct Own<'a> {
    name: &'a Name,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

/// What keys may have in common.
#[derive(Serialize)]
pub struct Alike<'a> {
    pub environment: &'a Environment,
    pub metadata: &'a Metadata,
    pub tags: &'a [Tag],
}

impl Alike<'_> {
    /// # Errors
    /// What has no JSON form: nothing is known that has none.
    pub fn members(&self) -> Result<String, serde_json::Error> {
        members(self)
    }
}

impl Told {
    /// `alike` is the text of [`Alike::members`].
    ///
    /// # Errors
    /// A name without a JSON form: there is none.
    pub fn new(
        name: &Name,
        expires_at: Option<Timestamp>,
        secret: &SecretSnapshot,
        alike: Arc<str>,
    ) -> Result<Self, serde_json::Error> {
        let mut own = members(&Own { name, expires_at })?;
        if let Some(until) = secret.valid_until {
            own.push_str(secret_begins(secret.superseded));
            // A time holds nothing that JSON would have to escape.
            own.push_str("\"valid_until\":\"");
            own.push_str(&until.to_string());
            own.push_str("\",");
        }
        Ok(Self {
            own: own.into(),
            alike,
        })
    }

    /// All members; `secret` is the one it was made with.
    pub fn write(&self, secret: &SecretSnapshot, out: &mut String) {
        out.push_str(&self.own);
        if secret.valid_until.is_none() {
            out.push_str(secret_begins(secret.superseded));
        }
        out.push_str("\"id\":\"");
        out.push_str(secret.id.as_str());
        out.push_str("\"},");
        out.push_str(&self.alike);
    }

    /// The bytes that no other key shares.
    #[cfg(test)]
    pub(super) fn own_bytes(&self) -> usize {
        self.own.len()
    }
}

fn secret_begins(superseded: bool) -> &'static str {
    if superseded {
        ",\"secret\":{\"superseded\":true,"
    } else {
        ",\"secret\":{\"superseded\":false,"
    }
}

/// Members of an object as JSON text, without the braces around them.
///
/// # Errors
/// What has no JSON form.
pub fn members<T: Serialize>(told: &T) -> Result<String, serde_json::Error> {
    let mut text = serde_json::to_string(told)?;
    text.pop();
    text.remove(0);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;
    use crate::id::SecretId;

    #[test]
    fn all_of_a_key_is_told_whatever_its_secret_is() {
        let at = Timestamp::from_millis(1_900_000_000_000);
        let id = SecretId::new(&Clock::System, &Entropy::seeded(1));
        let metadata: Metadata = serde_json::from_value(json!({"plan": ["a", 1]})).unwrap();
        let alike = Alike {
            environment: &Environment::parse("live").unwrap(),
            metadata: &metadata,
            tags: &[Tag::parse("blue").unwrap()],
        };
        let alike: Arc<str> = alike.members().unwrap().into();
        let name = Name::parse("a \"worker\" \u{1f511}").unwrap();
        for (expires_at, valid_until, superseded) in [
            (None, None, false),
            (Some(at), None, true),
            (None, Some(at), true),
            (Some(at), Some(at), false),
        ] {
            let secret = SecretSnapshot {
                id: id.clone(),
                valid_until,
                superseded,
                revoked: false,
            };
            let told = Told::new(&name, expires_at, &secret, Arc::clone(&alike)).unwrap();
            let mut text = "{".to_owned();
            told.write(&secret, &mut text);
            text.push('}');
            let mut expected = json!({
                "name": name, "environment": "live", "metadata": metadata, "tags": ["blue"],
                "secret": {"id": id, "superseded": superseded},
            });
            if let Some(at) = expires_at {
                expected["expires_at"] = json!(at);
            }
            if let Some(at) = valid_until {
                expected["secret"]["valid_until"] = json!(at);
            }
            assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected);
        }
    }
}
