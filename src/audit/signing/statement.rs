//! A statement about a chain that holds outside of the database: that it had reached a number and a
//! hash, or that its records up to there were cut off.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::key::{KeySpan, PublicKey, Signer};
use crate::audit::chain::Head;
use crate::db;
use crate::time::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StatementKind {
    /// The chain had reached `seq`.
    Checkpoint,
    /// The records up to `seq` were cut off.
    Cut,
}

impl StatementKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint",
            Self::Cut => "cut",
        }
    }
}

/// A signed statement about the audit trail of a tenant
///
/// The signature is Ed25519 over the RFC 8785 canonical JSON of all other members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(title = "AuditCheckpoint")]
pub struct Statement {
    pub kind: StatementKind,
    /// The tenant's slug.
    #[schema(example = "default")]
    pub tenant: String,
    /// The number of the last event that it covers.
    #[schema(minimum = 0)]
    pub seq: i64,
    /// The hash of that event, in hexadecimal.
    pub hash: String,
    /// Of a cut: the number of the first event that was cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<i64>,
    /// Of a cut: how many events were cut off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<i64>,
    pub at: Timestamp,
    /// Which of the audit keys signed it.
    pub kid: String,
    /// Base64url.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub signature: String,
}

impl Statement {
    /// Signs that the chain of `tenant` had reached `head`.
    pub fn checkpoint(
        signer: &Signer,
        tenant: &str,
        head: &Head,
        at: Timestamp,
    ) -> db::Result<Self> {
        Self::signed(signer, StatementKind::Checkpoint, tenant, head, None, at)
    }

    /// Signs that the records from `from_seq` to `last` were cut off.
    pub fn cut(
        signer: &Signer,
        tenant: &str,
        from_seq: i64,
        last: &Head,
        at: Timestamp,
    ) -> db::Result<Self> {
        let from = Some(from_seq);
        Self::signed(signer, StatementKind::Cut, tenant, last, from, at)
    }

    fn signed(
        signer: &Signer,
        kind: StatementKind,
        tenant: &str,
        last: &Head,
        from_seq: Option<i64>,
        at: Timestamp,
    ) -> db::Result<Self> {
        let mut statement = Self {
            kind,
            tenant: tenant.to_owned(),
            seq: last.seq,
            hash: hex::encode(&last.hash),
            from_seq,
            count: from_seq.map(|from| last.seq.saturating_sub(from).saturating_add(1)),
            at,
            kid: signer.public().kid(),
            signature: String::new(),
        };
        let signature = signer.sign(statement.signed_text()?.as_bytes());
        statement.signature = URL_SAFE_NO_PAD.encode(signature);
        Ok(statement)
    }

    /// Whether one of `keys` signed it, at a time when it did sign.
    ///
    /// # Errors
    /// Why it proves nothing.
    pub fn verify(&self, keys: &[KeySpan]) -> Result<(), &'static str> {
        let Some(key) = keys.iter().find(|key| key.public.kid() == self.kid) else {
            return Err("it is signed with a key that is not among the audit keys");
        };
        if !self.is_signed_by(&key.public) {
            return Err("its signature does not verify");
        }
        if !key.covers(self.at) {
            return Err("its key did not sign at that time");
        }
        Ok(())
    }

    /// Whether this key signed it, whenever that was.
    pub(super) fn is_signed_by(&self, key: &PublicKey) -> bool {
        let signature = URL_SAFE_NO_PAD.decode(&self.signature).ok();
        let text = self.signed_text().ok();
        match (&text, &signature) {
            (Some(text), Some(signature)) => key.verify(text.as_bytes(), signature),
            (None, _) | (_, None) => false,
        }
    }

    /// RFC 8785 canonical JSON of all of it, on one line.
    pub fn canonical(&self) -> db::Result<String> {
        serde_json_canonicalizer::to_string(self)
            .map_err(|error| db::Error::Corrupt(format!("an audit checkpoint: {error}")))
    }

    /// Where the chain was, as far as the hash can be read.
    pub fn head(&self) -> Option<Head> {
        let hash = hex::decode(&self.hash).ok()?;
        Some(Head {
            seq: self.seq,
            hash,
        })
    }

    fn signed_text(&self) -> db::Result<String> {
        Self {
            signature: String::new(),
            ..self.clone()
        }
        .canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::MasterKey;
    use crate::time::Span;

    fn signed() -> (Statement, KeySpan) {
        let signer = Signer::new(&MasterKey::new([5; 32]));
        let at = Timestamp::from_millis(1_800_000_000_123);
        let head = Head {
            seq: 7,
            hash: vec![9; 32],
        };
        let statement = Statement::checkpoint(&signer, "default", &head, at).unwrap();
        let key = KeySpan {
            public: signer.public().clone(),
            from: at,
            until: None,
        };
        (statement, key)
    }

    #[test]
    fn a_statement_is_one_line_of_canonical_json() {
        let (mut statement, _) = signed();
        statement.kid = "kid".to_owned();
        statement.signature = "signature".to_owned();
        insta::assert_snapshot!(statement.canonical().unwrap(), @r#"{"at":"2027-01-15T08:00:00.123Z","hash":"0909090909090909090909090909090909090909090909090909090909090909","kid":"kid","kind":"checkpoint","seq":7,"signature":"signature","tenant":"default"}"#);
    }

    #[test]
    fn a_statement_in_which_anything_was_changed_proves_nothing() {
        let (good, key) = signed();
        assert_eq!(good.verify(std::slice::from_ref(&key)), Ok(()));
        let changes: [fn(&mut Statement); 6] = [
            |s| s.seq = 8,
            |s| s.tenant = "other".to_owned(),
            |s| s.hash = hex::encode([8; 32]),
            |s| s.kind = StatementKind::Cut,
            |s| s.from_seq = Some(1),
            |s| s.at = s.at.plus(Span::seconds(1)),
        ];
        for change in changes {
            let mut other = good.clone();
            change(&mut other);
            assert!(other.verify(std::slice::from_ref(&key)).is_err());
        }
        assert!(good.verify(&[]).is_err());
        let ended = KeySpan {
            from: Timestamp::from_millis(0),
            until: Some(good.at.minus(Span::hours(1))),
            ..key
        };
        assert!(good.verify(&[ended]).is_err());
    }
}
