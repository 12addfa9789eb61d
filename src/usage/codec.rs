//! How a use is written down on the spot: appended to a buffer of bytes, so that the request that it
//! is about is done with it in a microsecond. It is read again when it is stored.
//!
//! The bytes are postcard's, one use behind the other, and live in the journal of a node, where the
//! next version of this program may find them: a block begins with the version of the form.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::record::{Identified, Operation, Record};
use crate::text;
use crate::time::Timestamp;

/// The form of the blocks written now.
pub const FORM: u8 = 2;

/// As [`FORM`], without what is said of tokens.
const FORM_WITHOUT_TOKENS: u8 = 1;

/// A path is kept so far.
const PATH_BYTES_MAX: usize = 256;

const USER_AGENT_BYTES_MAX: usize = 256;

const SUBJECT_BYTES_MAX: usize = 512;

/// A use as whoever validated it describes it. Borrowed: nothing is copied but into the buffer.
#[derive(Debug, Serialize)]
pub struct Use<'a, S: Serialize> {
    pub at: i64,
    pub tenant_id: &'a str,
    pub key: Option<UsedKey<'a>>,
    /// The slug; empty when there is no such service.
    pub service: &'a str,
    pub environment: &'a str,
    pub operation: Operation,
    pub outcome: &'a str,
    pub required_scopes: &'a [S],
    pub any_scopes: &'a [S],
    /// Which of `any_scopes` was met.
    pub met: Option<&'a S>,
    pub cost: u64,
    pub ip: Option<IpAddr>,
    pub method: Option<&'a str>,
    pub path: Option<&'a str>,
    pub user_agent: Option<&'a str>,
    pub context: Option<&'a BTreeMap<String, String>>,
    pub caller: &'a str,
    pub request_id: &'a str,
    pub latency_us: u64,
    pub token: UsedToken<'a>,
}

/// The token that was issued or presented.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct UsedToken<'a> {
    pub id: Option<&'a str>,
    pub subject: Option<&'a str>,
    pub actor: Option<&'a str>,
}

/// Whose use it was.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct UsedKey<'a> {
    pub key_id: &'a str,
    pub secret_id: &'a str,
    pub superseded: bool,
    pub consumer_id: &'a str,
}

/// [`Use`] as it is read, but for its token, which stands behind it.
#[derive(Deserialize)]
struct Read {
    at: i64,
    tenant_id: String,
    key: Option<ReadKey>,
    service: String,
    environment: String,
    operation: Operation,
    outcome: String,
    required_scopes: Vec<String>,
    any_scopes: Vec<String>,
    met: Option<String>,
    cost: u64,
    ip: Option<IpAddr>,
    method: Option<String>,
    path: Option<String>,
    user_agent: Option<String>,
    context: Option<BTreeMap<String, String>>,
    caller: String,
    request_id: String,
    latency_us: u64,
}

/// [`UsedToken`] as it is read.
#[derive(Default, Deserialize)]
struct ReadToken {
    id: Option<String>,
    subject: Option<String>,
    actor: Option<String>,
}

#[derive(Deserialize)]
struct ReadKey {
    key_id: String,
    secret_id: String,
    superseded: bool,
    consumer_id: String,
}

/// What was not written by us, or is not whole.
#[derive(Debug, thiserror::Error)]
#[error("a block of uses cannot be read: {0}")]
pub struct Unreadable(String);

/// Appends a use to a block.
pub fn append<S: Serialize>(block: &mut Vec<u8>, used: &Use<'_, S>) {
    let whole = block.len();
    if let Err(error) = postcard::to_io(used, &mut *block) {
        // A vector takes all there is: this is a defect of ours, and costs this one use.
        block.truncate(whole);
        tracing::error!(%error, "a use could not be written down");
    }
}

/// The uses of a block, in the order in which they were appended.
///
/// # Errors
/// [`Unreadable`] where it breaks off; what stands before that is lost with it.
pub fn read(form: u8, mut block: &[u8]) -> Result<Vec<Record>, Unreadable> {
    if ![FORM, FORM_WITHOUT_TOKENS].contains(&form) {
        return Err(Unreadable(format!(
            "it has the form {form}, known is {FORM}"
        )));
    }
    let unreadable = |error: postcard::Error| Unreadable(error.to_string());
    let mut records = Vec::new();
    while !block.is_empty() {
        let (one, rest) = postcard::take_from_bytes::<Read>(block).map_err(unreadable)?;
        let (token, rest) = if form == FORM_WITHOUT_TOKENS {
            (ReadToken::default(), rest)
        } else {
            postcard::take_from_bytes(rest).map_err(unreadable)?
        };
        records.push((one, token).into());
        block = rest;
    }
    Ok(records)
}

impl From<(Read, ReadToken)> for Record {
    fn from((read, token): (Read, ReadToken)) -> Self {
        let mut used_scopes = Vec::new();
        if read.outcome == super::record::VALID {
            used_scopes.clone_from(&read.required_scopes);
            used_scopes.extend(read.met);
            used_scopes.sort_unstable();
            used_scopes.dedup();
        }
        Self {
            at: Timestamp::from_millis(read.at),
            tenant_id: read.tenant_id,
            key: read.key.map(|key| Identified {
                key_id: key.key_id,
                secret_id: key.secret_id,
                superseded: key.superseded,
                consumer_id: key.consumer_id,
            }),
            service: read.service,
            environment: read.environment,
            operation: read.operation,
            outcome: read.outcome,
            required_scopes: read.required_scopes,
            any_scopes: read.any_scopes,
            cost: read.cost,
            used_scopes,
            ip: read.ip.map(|ip| ip.to_string()),
            method: read.method,
            path: read.path.map(without_query),
            user_agent: read
                .user_agent
                .map(|text| cut(without_keys(text), USER_AGENT_BYTES_MAX)),
            context: read
                .context
                .unwrap_or_default()
                .into_iter()
                .map(|(name, value)| (without_keys(name), without_keys(value)))
                .collect(),
            token_id: token.id,
            subject: token.subject.map(|text| cut(text, SUBJECT_BYTES_MAX)),
            actor: token.actor.map(|text| cut(text, SUBJECT_BYTES_MAX)),
            caller: read.caller,
            request_id: read.request_id,
            latency_us: read.latency_us,
        }
    }
}

fn without_query(mut path: String) -> String {
    path.truncate(path.find(['?', '#']).unwrap_or(path.len()));
    cut(without_keys(path), PATH_BYTES_MAX)
}

/// Before a text is cut: half a key is none that could be told.
fn without_keys(text: String) -> String {
    match text::without_keys(&text) {
        Cow::Borrowed(_) => text,
        Cow::Owned(other) => other,
    }
}

/// At most so many bytes of a text, whole characters.
fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used<'a>(path: &'a str, outcome: &'a str, scopes: &'a [String]) -> Use<'a, String> {
        Use {
            at: 1_764_000_000_123,
            tenant_id: "ten_a",
            key: Some(UsedKey {
                key_id: "key_a",
                secret_id: "sec_a",
                superseded: true,
                consumer_id: "con_a",
            }),
            service: "invoicing",
            environment: "live",
            operation: Operation::Verify,
            outcome,
            required_scopes: scopes,
            any_scopes: &[],
            met: scopes.first(),
            cost: 3,
            ip: Some("2001:db8::1".parse().unwrap()),
            method: Some("GET"),
            path: Some(path),
            user_agent: None,
            context: None,
            caller: "key_b",
            request_id: "abc",
            latency_us: 17,
            token: UsedToken {
                id: Some("tok_a"),
                subject: Some("con_a"),
                actor: None,
            },
        }
    }

    #[test]
    fn what_is_written_down_is_read_again_in_its_order() {
        let scopes = ["a:read".to_owned(), "b:read".to_owned()];
        let mut block = Vec::new();
        append(&mut block, &used("/invoices/7?secret=x", "valid", &scopes));
        append(
            &mut block,
            &used(&"é".repeat(200), "insufficient_scope", &scopes),
        );
        let read = read(FORM, &block).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].path.as_deref(), Some("/invoices/7"));
        assert_eq!(read[0].used_scopes, scopes);
        assert_eq!(read[0].ip.as_deref(), Some("2001:db8::1"));
        assert_eq!(read[0].at.millis(), 1_764_000_000_123);
        assert_eq!(read[1].path.as_ref().unwrap().len(), 256);
        assert_eq!(read[0].token_id.as_deref(), Some("tok_a"));
        assert_eq!(read[0].subject.as_deref(), Some("con_a"));
        assert_eq!(read[0].actor, None);
        // What was refused used nothing.
        assert!(read[1].used_scopes.is_empty());
    }

    #[test]
    fn a_key_in_what_a_client_says_is_not_kept() {
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        let context = BTreeMap::from([("sent".to_owned(), key.clone())]);
        // The first is cut in the middle of it.
        let paths = [format!("/{}/{key}", "x".repeat(200)), format!("/{key}/7")];
        let mut block = Vec::new();
        for path in &paths {
            let one = Use {
                user_agent: Some(&key),
                context: Some(&context),
                ..used(path, "valid", &[])
            };
            append(&mut block, &one);
        }
        let read = read(FORM, &block).unwrap();
        assert!(!format!("{read:?}").contains("BBBB"), "{read:?}");
        assert_eq!(read[1].path.as_deref(), Some("/[key]/7"));
        assert_eq!(read[1].user_agent.as_deref(), Some("[key]"));
        assert_eq!(read[1].context["sent"], "[key]");
    }

    #[test]
    fn a_block_that_the_version_before_left_is_read() {
        let mut block = Vec::new();
        append(&mut block, &used("/", "valid", &[]));
        let mut token = Vec::new();
        postcard::to_io(&used("/", "valid", &[]).token, &mut token).unwrap();
        let before = block.strip_suffix(&*token).unwrap();
        let read = read(FORM_WITHOUT_TOKENS, &[before, before].concat()).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].key.as_ref().unwrap().key_id, "key_a");
        assert_eq!(read[1].token_id, None);
    }

    #[test]
    fn a_block_that_breaks_off_or_has_another_form_is_not_guessed_at() {
        let mut block = Vec::new();
        append(&mut block, &used("/", "valid", &[]));
        assert!(read(FORM, &block[..block.len() - 1]).is_err());
        assert!(read(FORM + 1, &block).is_err());
        assert!(read(FORM, &[]).unwrap().is_empty());
    }
}
