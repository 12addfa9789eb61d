//! What is told of a key and the secret that was presented, as the members of a JSON object.
//!
//! Written once, when a snapshot is made, as far as it is not the same for every key: that many keys may
//! have in common is a text of its own, which they share.

use serde::Serialize;

use super::snapshot::Owner;
use crate::id::SecretId;
use crate::metadata::Metadata;
use crate::text::{Environment, Name, Tag};
use crate::time::Timestamp;

/// [`Own`] without its braces, and behind it how `secret` begins if it has an end. The rest stands with the
/// [`Owner`].
#[derive(Clone, Debug)]
pub struct Told(Box<str>);

/// The secret that was presented.
#[derive(Clone, Copy, Debug)]
pub struct ToldSecret<'a> {
    pub id: &'a SecretId,
    pub valid_until: Option<Timestamp>,
    pub superseded: bool,
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
    /// # Errors
    /// A name without a JSON form: there is none.
    pub fn new(
        name: &Name,
        expires_at: Option<Timestamp>,
        secret: &ToldSecret<'_>,
    ) -> Result<Self, serde_json::Error> {
        let mut own = members(&Own { name, expires_at })?;
        if let Some(until) = secret.valid_until {
            own.push_str(secret_begins(secret.superseded));
            // A time holds nothing that JSON would have to escape.
            own.push_str("\"valid_until\":\"");
            own.push_str(&until.to_string());
            own.push_str("\",");
        }
        Ok(Self(own.into()))
    }

    /// All members; `secret` is the one it was made with.
    pub fn write(&self, owner: &Owner, secret: &ToldSecret<'_>, out: &mut String) {
        out.push_str(&self.0);
        if secret.valid_until.is_none() {
            out.push_str(secret_begins(secret.superseded));
        }
        out.push_str("\"id\":\"");
        out.push_str(secret.id.as_str());
        out.push_str("\"},");
        out.push_str(&owner.told);
    }

    /// The bytes that no other key shares.
    #[cfg(test)]
    pub(super) fn own_bytes(&self) -> usize {
        self.0.len()
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
    use crate::id::{ConsumerId, TenantId};

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
        let (clock, ids) = (Clock::System, Entropy::seeded(2));
        let owner = Owner {
            tenant_id: TenantId::new(&clock, &ids),
            consumer_id: ConsumerId::new(&clock, &ids),
            environment: alike.environment.clone(),
            told: alike.members().unwrap().into(),
        };
        let name = Name::parse("a \"worker\" \u{1f511}").unwrap();
        for (expires_at, valid_until, superseded) in [
            (None, None, false),
            (Some(at), None, true),
            (None, Some(at), true),
            (Some(at), Some(at), false),
        ] {
            let secret = ToldSecret {
                id: &id,
                valid_until,
                superseded,
            };
            let told = Told::new(&name, expires_at, &secret).unwrap();
            let mut text = "{".to_owned();
            told.write(&owner, &secret, &mut text);
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
