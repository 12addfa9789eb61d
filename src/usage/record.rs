//! What one validation leaves behind, and the batches in which it is stored.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::time::Timestamp;

/// The outcome of a use that was let through.
pub const VALID: &str = "valid";

/// What a key was presented for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Operation {
    /// A service or gateway asked about it.
    Verify,
    /// A gateway passed the request on.
    Authorize,
    /// A token was asked for with it.
    Token,
    Introspect,
    Exchange,
}

impl Operation {
    pub const ALL: [Self; 5] = [
        Self::Verify,
        Self::Authorize,
        Self::Token,
        Self::Introspect,
        Self::Exchange,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Verify => "verify",
            Self::Authorize => "authorize",
            Self::Token => "token",
            Self::Introspect => "introspect",
            Self::Exchange => "exchange",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// One validation: a decision, never an error. Holds no secret.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub at: Timestamp,
    pub tenant_id: String,
    /// `None` when no key was identified: missing, malformed or unknown.
    pub key: Option<Identified>,
    /// The slug; empty when there is no service of the name that was asked for.
    pub service: String,
    pub environment: String,
    pub operation: Operation,
    /// `valid`, or the code of the refusal.
    pub outcome: String,
    pub required_scopes: Vec<String>,
    pub any_scopes: Vec<String>,
    pub cost: u64,
    /// The granted scopes that met what was required, of a valid one alone.
    pub used_scopes: Vec<String>,
    pub ip: Option<String>,
    pub method: Option<String>,
    /// Without a query, at most 256 bytes.
    pub path: Option<String>,
    pub user_agent: Option<String>,
    pub context: BTreeMap<String, String>,
    pub token_id: Option<String>,
    pub subject: Option<String>,
    pub actor: Option<String>,
    /// The id of a management key, or `issuer#subject`.
    pub caller: String,
    pub request_id: String,
    pub latency_us: u64,
}

impl Record {
    pub fn is_valid(&self) -> bool {
        self.outcome == VALID
    }

    /// Replaces each NUL, which no text of `PostgreSQL` can hold, by U+FFFD: one must not keep a batch
    /// out for ever. Only in what somebody else has chosen.
    pub fn replace_nuls(&mut self) {
        let texts = [&mut self.service, &mut self.caller, &mut self.request_id];
        let scopes = self.required_scopes.iter_mut();
        let scopes = scopes
            .chain(&mut self.any_scopes)
            .chain(&mut self.used_scopes);
        let told = [
            &mut self.ip,
            &mut self.method,
            &mut self.path,
            &mut self.user_agent,
        ];
        let of_a_token = [&mut self.token_id, &mut self.subject, &mut self.actor];
        let told = told.into_iter().chain(of_a_token).flatten();
        for text in texts.into_iter().chain(scopes).chain(told) {
            replace_nuls(text);
        }
        if self
            .context
            .iter()
            .any(|(name, value)| has_nul(name) || has_nul(value))
        {
            let context = std::mem::take(&mut self.context).into_iter();
            self.context = context
                .map(|(mut name, mut value)| {
                    replace_nuls(&mut name);
                    replace_nuls(&mut value);
                    (name, value)
                })
                .collect();
        }
    }
}

fn has_nul(text: &str) -> bool {
    text.as_bytes().contains(&0)
}

fn replace_nuls(text: &mut String) {
    if has_nul(text) {
        *text = text.replace('\0', "\u{fffd}");
    }
}

/// Whose use it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identified {
    pub key_id: String,
    pub secret_id: String,
    /// Whether a newer secret of the key had replaced this one.
    pub superseded: bool,
    pub consumer_id: String,
}

/// What a node sends at once: stored whole, and once.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub node: String,
    /// Of this node's batches.
    pub number: i64,
    pub records: Vec<Record>,
    /// How many events were folded into counts because there was no room for them.
    pub shed: u64,
    pub counts_only: Vec<CountLine>,
}

impl Batch {
    /// Those of events and those that are counted only.
    pub fn all_records(&mut self) -> impl Iterator<Item = &mut Record> {
        let counted = self.counts_only.iter_mut().map(|line| &mut line.record);
        self.records.iter_mut().chain(counted)
    }
}

/// Uses that are counted and leave no event.
#[derive(Clone, Debug, PartialEq)]
pub struct CountLine {
    pub record: Record,
    pub uses: u64,
}
