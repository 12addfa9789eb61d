//! What an exchanged token dies with beside the key that it was made from: the key of the client that it was
//! exchanged for, and the secrets of those who exchanged it, or acted by a token of theirs, before.

use serde_json::{Map, Value};

use super::delegation::ACTORS_MAX;
use crate::id::{KeyId, SecretId};

/// So many others stand in one token: two for each who can have acted before, its own and that of the token
/// it acted by.
pub const OTHERS_MAX: usize = 2 * (ACTORS_MAX - 1);

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bonds {
    client: Option<(KeyId, SecretId)>,
    others: Box<[SecretId]>,
    /// The same by spaces, as it stands in a token.
    text: Box<str>,
}

impl Bonds {
    /// `None` for more than [`OTHERS_MAX`].
    pub(super) fn new<'a>(
        client: Option<(&KeyId, &SecretId)>,
        others: impl IntoIterator<Item = &'a SecretId>,
    ) -> Option<Self> {
        let mut each: Vec<SecretId> = Vec::new();
        for other in others {
            if !each.contains(other) {
                each.push(other.clone());
            }
            if each.len() > OTHERS_MAX {
                return None;
            }
        }
        let names: Vec<&str> = each.iter().map(SecretId::as_str).collect();
        Some(Self {
            client: client.map(|(key, secret)| (key.clone(), secret.clone())),
            text: names.join(" ").into(),
            others: each.into(),
        })
    }

    /// What a token of ours says it was made from. `None` for what none of ours says.
    pub(super) fn read(made_from: &Map<String, Value>) -> Option<Self> {
        let text = |name: &str| match made_from.get(name) {
            None => Some(None),
            Some(value) => value.as_str().map(Some),
        };
        let client = match (text("client_key_id")?, text("client_secret_id")?) {
            (None, None) => None,
            (Some(key), Some(secret)) => Some((KeyId::parse(key)?, SecretId::parse(secret)?)),
            (Some(_), None) | (None, Some(_)) => return None,
        };
        let others = match text("other_secret_ids")? {
            None => Vec::new(),
            Some(names) => names
                .split(' ')
                .map(SecretId::parse)
                .collect::<Option<_>>()?,
        };
        let client = client.as_ref().map(|(key, secret)| (key, secret));
        Self::new(client, &others)
    }

    /// The key and the secret of the client that it was exchanged for, if that is another than the one it was
    /// made from.
    pub(super) fn client(&self) -> Option<(&KeyId, &SecretId)> {
        self.client.as_ref().map(|(key, secret)| (key, secret))
    }

    pub(super) fn others(&self) -> &[SecretId] {
        &self.others
    }

    /// The others as they stand in a token, if there are any.
    pub(super) fn text(&self) -> Option<&str> {
        (!self.text.is_empty()).then_some(&*self.text)
    }

    /// All secrets.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &SecretId> {
        let client = self.client.iter().map(|(_, secret)| secret);
        client.chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;

    #[test]
    fn what_it_dies_with_is_read_as_it_was_written_each_once_and_bounded() {
        let (clock, entropy) = (Clock::System, Entropy::seeded(7));
        let key = KeyId::new(&clock, &entropy);
        let secrets: Vec<SecretId> = (0..=OTHERS_MAX)
            .map(|_| SecretId::new(&clock, &entropy))
            .collect();
        let most = &secrets[..OTHERS_MAX];
        let client = Some((&key, &secrets[OTHERS_MAX]));
        let bonds = Bonds::new(client, most.iter().chain(most)).unwrap();
        assert_eq!(bonds.others(), most);
        assert_eq!(bonds.secrets().count(), OTHERS_MAX + 1);
        assert_eq!(Bonds::new(client, &secrets), None);
        let good = json!({
            "client_key_id": key.as_str(), "client_secret_id": secrets[OTHERS_MAX].as_str(),
            "other_secret_ids": bonds.text(),
        });
        let read = |made_from: &Value| Bonds::read(made_from.as_object().unwrap());
        assert_eq!(read(&good), Some(bonds));
        assert_eq!(read(&json!({})), Some(Bonds::default()));
        assert_eq!(Bonds::default().text(), None);
        for (name, bad) in [
            ("client_key_id", json!(null)),
            ("client_secret_id", json!(key.as_str())),
            ("other_secret_ids", json!("")),
            ("other_secret_ids", json!([secrets[0].as_str()])),
            (
                "other_secret_ids",
                json!(format!("{}  {}", secrets[0], secrets[1])),
            ),
            ("other_secret_ids", json!(key.as_str())),
        ] {
            let mut made_from = good.clone();
            made_from[name] = bad.clone();
            assert_eq!(read(&made_from), None, "{name}: {bad}");
        }
        for missing in ["client_key_id", "client_secret_id"] {
            let mut made_from = good.clone();
            made_from.as_object_mut().unwrap().remove(missing);
            assert_eq!(read(&made_from), None, "{missing}");
        }
    }
}
