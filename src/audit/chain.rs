//! The hash chain: SHA-256 over the previous hash and the RFC 8785 canonical JSON of the event.
//!
//! The head row holds the last number and hash under a MAC of the master key, so that a writer to
//! the database alone can neither cut the tail nor re-hash from a point on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::actor::Actor;
use crate::db;
use crate::id::TenantId;
use crate::master::{DerivedKey, MasterKeys};
use crate::time::Timestamp;

/// What the first event of a chain follows.
pub const GENESIS: [u8; 32] = [0; 32];

/// The purpose for which the key of the head's MAC is derived from the master key.
pub const HEAD_PURPOSE: &str = "keystead audit head 1";

/// What was acted upon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(title = "AuditTarget")]
pub struct Target {
    #[schema(example = "key")]
    pub kind: String,
    #[schema(example = "key_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    Done,
    Refused,
}

impl AuditOutcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
        }
    }
}

/// One line as it is hashed; `prev_hash` and `hash` stand beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: String,
    pub seq: i64,
    pub at: Timestamp,
    /// The tenant's slug.
    pub tenant: String,
    pub actor: Actor,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<Actor>,
    /// The slug of the tenant that the actor belongs to, if it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub home_tenant: Option<String>,
    /// `<kind>.<verb>`, such as `key.revoke`.
    pub action: String,
    pub target: Target,
    pub outcome: AuditOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<String>,
    /// The slugs of the services that it concerns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Vec<String>>,
    /// Of a refused attempt: the problem code, and how many like it this line stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
}

/// Integers beyond this are not exact in RFC 8785, whose numbers are IEEE 754 doubles.
const INTEGER_MAX: u64 = (1 << 53) - 1;

/// What an event may hold: large integers become text, so that the record does not round them
/// (RFC 8785 §3.2.2.3), and a bare `null` is nothing.
pub(super) fn recordable(value: Value) -> Option<Value> {
    fn exact(value: Value) -> Value {
        match value {
            Value::Number(number) => {
                let magnitude = number
                    .as_u64()
                    .or_else(|| number.as_i64().map(i64::unsigned_abs));
                if magnitude.is_some_and(|magnitude| magnitude > INTEGER_MAX) {
                    Value::String(number.to_string())
                } else {
                    Value::Number(number)
                }
            }
            Value::Array(items) => items.into_iter().map(exact).collect(),
            Value::Object(members) => members
                .into_iter()
                .map(|(name, value)| (name, exact(value)))
                .collect(),
            value @ (Value::Null | Value::Bool(_) | Value::String(_)) => value,
        }
    }
    (!value.is_null()).then(|| exact(value))
}

impl Event {
    /// RFC 8785 canonical JSON, the text that is stored and hashed.
    pub fn canonical(&self) -> db::Result<String> {
        serde_json_canonicalizer::to_string(self)
            .map_err(|error| db::Error::Corrupt(format!("an audit event: {error}")))
    }
}

pub fn link(prev_hash: &[u8], record: &str) -> [u8; 32] {
    Sha256::new()
        .chain_update(prev_hash)
        .chain_update(record.as_bytes())
        .finalize()
        .into()
}

/// The end of a tenant's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub seq: i64,
    pub hash: Vec<u8>,
}

impl Head {
    pub fn genesis() -> Self {
        Self {
            seq: 0,
            hash: GENESIS.to_vec(),
        }
    }

    pub fn mac(&self, key: &DerivedKey, tenant: &TenantId) -> [u8; 32] {
        key.mac(&[
            tenant.as_str().as_bytes(),
            &self.seq.to_be_bytes(),
            &self.hash,
        ])
    }

    fn verify(&self, key: &DerivedKey, tenant: &TenantId, mac: &[u8]) -> bool {
        key.verify(
            &[
                tenant.as_str().as_bytes(),
                &self.seq.to_be_bytes(),
                &self.hash,
            ],
            mac,
        )
    }
}

/// The keys of the heads' MACs: the first seals, each may have sealed before.
#[derive(Clone)]
pub struct HeadKeys(Arc<[DerivedKey]>);

impl HeadKeys {
    pub fn new(master: &MasterKeys) -> Self {
        Self(master.iter().map(|key| key.derive(HEAD_PURPOSE)).collect())
    }

    /// The MAC under the first master key.
    #[expect(clippy::indexing_slicing, reason = "MasterKeys always has a first key")]
    pub fn seal(&self, tenant: &TenantId, head: &Head) -> [u8; 32] {
        head.mac(&self.0[0], tenant)
    }

    /// Whether a node with one of the listed master keys left the head so.
    pub fn opens(&self, tenant: &TenantId, head: &Head, mac: &[u8]) -> bool {
        self.0.iter().any(|key| head.verify(key, tenant, mac))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn event(before: Option<Value>, after: Option<Value>, reason: Option<String>) -> Event {
        Event {
            id: "aud_01jd8k3v9we5m8t7q2x4z6y0ab".to_owned(),
            seq: 7,
            at: Timestamp::from_millis(1_800_000_000_123),
            tenant: "default".to_owned(),
            actor: Actor::Jwt {
                issuer: "https://idp.example".to_owned(),
                subject: "alice".to_owned(),
            },
            via: None,
            home_tenant: None,
            action: "key.revoke".to_owned(),
            target: Target {
                kind: "key".to_owned(),
                id: "key_01jd8k3v9we5m8t7q2x4z6y0ab".to_owned(),
            },
            outcome: AuditOutcome::Done,
            before: before.and_then(recordable),
            after: after.and_then(recordable),
            reason,
            request_id: None,
            ip: Some("2001:db8::1".to_owned()),
            services: None,
            code: None,
            count: None,
        }
    }

    #[test]
    fn the_record_is_canonical_json_without_what_is_absent() {
        let record = event(
            Some(json!({"b": 1.0, "a": "\u{1b}[2J\n\""})),
            Some(Value::Null),
            None,
        )
        .canonical()
        .unwrap();
        insta::assert_snapshot!(record, @r#"{"action":"key.revoke","actor":{"issuer":"https://idp.example","kind":"jwt","subject":"alice"},"at":"2027-01-15T08:00:00.123Z","before":{"a":"\u001b[2J\n\"","b":1},"id":"aud_01jd8k3v9we5m8t7q2x4z6y0ab","ip":"2001:db8::1","outcome":"done","seq":7,"target":{"id":"key_01jd8k3v9we5m8t7q2x4z6y0ab","kind":"key"},"tenant":"default"}"#);
    }

    #[test]
    fn an_integer_that_a_double_cannot_hold_is_kept_as_text() {
        let record = event(
            None,
            Some(json!({"n": [9_007_199_254_740_993_i64, i64::MIN, 5]})),
            None,
        )
        .canonical()
        .unwrap();
        assert!(
            record.contains(r#"["9007199254740993","-9223372036854775808",5]"#),
            "{record}"
        );
    }

    #[test]
    fn a_head_opens_under_each_listed_master_key_and_no_other() {
        use crate::master::MasterKey;
        let key = |byte: u8| MasterKey::new([byte; 32]);
        let tenant = TenantId::new(
            &crate::clock::Clock::System,
            &crate::entropy::Entropy::seeded(1),
        );
        let head = Head {
            seq: 3,
            hash: vec![9; 32],
        };
        let old = HeadKeys::new(&MasterKeys {
            first: key(1),
            others: vec![],
        });
        let both = HeadKeys::new(&MasterKeys {
            first: key(2),
            others: vec![key(1)],
        });
        let other = HeadKeys::new(&MasterKeys {
            first: key(3),
            others: vec![],
        });
        let mac = old.seal(&tenant, &head);
        assert!(both.opens(&tenant, &head, &mac));
        assert!(!other.opens(&tenant, &head, &mac));
        assert!(!old.opens(&tenant, &head, &both.seal(&tenant, &head)));
        let cut = Head { seq: 2, ..head };
        assert!(!both.opens(&tenant, &cut, &mac));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        /// Whoever reads a record and canonicalizes it again gets the same bytes, so the hash can
        /// be checked from the event alone.
        #[test]
        fn a_record_read_and_canonicalized_again_is_the_same(
            before in proptest::option::of(json()),
            after in proptest::option::of(json()),
            reason in proptest::option::of(any::<String>()),
        ) {
            let event = event(before, after, reason);
            let record = event.canonical().unwrap();
            let read: Event = serde_json::from_str(&record).unwrap();
            prop_assert_eq!(read.canonical().unwrap(), record);
        }

        #[test]
        fn a_record_is_one_line(reason in any::<String>()) {
            let record = event(None, None, Some(reason)).canonical().unwrap();
            prop_assert!(!record.bytes().any(|byte| byte < 0x20));
        }
    }
}
