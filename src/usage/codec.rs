//! How a use is written down on the spot: appended to a buffer of bytes, so that the request that it
//! is about is done with it in a microsecond. It is read again when it is stored.
//!
//! What is not to be kept is cut off before it is written: the bytes go to the disk as they are.
//!
//! The bytes are postcard's, one use behind the other, and live in the journal of a node, where the
//! next version of this program may find them: with a block goes the version of the form.
//!
//! What a use has in common with the one before it, as a service's uses have with each other, is not
//! written again, and a key that was used before is named by its place among those that were: that is
//! most of its bytes, and writing them to the disk is most of what a use costs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::pauses::Pauses;
use super::record::{Identified, Operation, Record};
use crate::text;
use crate::time::Timestamp;

/// The form of the blocks written now.
pub const FORM: u8 = 4;

/// What is longer is written again with each use, so that a short block is not read as a long one.
const COMMON_BYTES_MAX: usize = 256;

/// So many uses are read in some ten microseconds.
const USES_A_PAUSE: u32 = 16;

/// A path is kept so far.
const PATH_BYTES_MAX: usize = 256;

const USER_AGENT_BYTES_MAX: usize = 256;

const SUBJECT_BYTES_MAX: usize = 512;

/// A use as whoever validated it describes it. Borrowed: nothing is copied but into the buffer, and there
/// neither a query nor what has the shape of a key.
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

/// Of a use what those beside it may well have too: who asked for which service, and what came of it.
#[derive(Serialize)]
struct Common<'a, S: Serialize> {
    tenant_id: &'a str,
    service: &'a str,
    environment: &'a str,
    operation: Operation,
    outcome: &'a str,
    required_scopes: &'a [S],
    any_scopes: &'a [S],
    met: Option<&'a S>,
    cost: u64,
    caller: &'a str,
}

/// [`Common`] as it is read.
#[derive(Clone, Deserialize)]
struct ReadCommon {
    tenant_id: String,
    service: String,
    environment: String,
    operation: Operation,
    outcome: String,
    required_scopes: Vec<String>,
    any_scopes: Vec<String>,
    met: Option<String>,
    cost: u64,
    caller: String,
}

/// The rest: what the client did.
#[derive(Serialize)]
struct Own<'a> {
    at: i64,
    ip: Option<IpAddr>,
    method: Option<&'a str>,
    path: Option<&'a str>,
    user_agent: Option<&'a str>,
    context: Option<&'a BTreeMap<String, String>>,
    request_id: &'a str,
    latency_us: u64,
    token: UsedToken<'a>,
}

/// [`Own`] as it is read.
#[derive(Deserialize)]
struct ReadOwn {
    at: i64,
    ip: Option<IpAddr>,
    method: Option<String>,
    path: Option<String>,
    user_agent: Option<String>,
    context: Option<BTreeMap<String, String>>,
    request_id: String,
    latency_us: u64,
    token: ReadToken,
}

/// [`UsedToken`] as it is read.
#[derive(Deserialize)]
struct ReadToken {
    id: Option<String>,
    subject: Option<String>,
    actor: Option<String>,
}

/// [`UsedKey`] as it is read.
#[derive(Clone, Deserialize)]
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

/// What stands in front of a use: whether its [`Common`] follows, or is that of the use before it.
const FOLLOWS: u8 = 1;
const AS_BEFORE: u8 = 0;

/// What stands between [`Common`] and [`Own`], as a varint: that no key was identified; that a
/// [`UsedKey`] follows, and whether it is the first of its block, since two blocks one behind the other
/// are one; or else which one of the block it is, from [`KEYS_BEFORE`] on.
const NO_KEY: u32 = 0;
const FIRST_KEY: u32 = 1;
const NEW_KEY: u32 = 2;
const KEYS_BEFORE: u32 = 3;

/// Among so many keys one is found again; those that meet in one place take turns.
const PLACES: usize = 2048;

/// Uses one behind the other.
#[derive(Debug, Default)]
pub struct Block {
    bytes: Vec<u8>,
    /// Where the newest [`Common`] stands that the next use may have too.
    common: Range<usize>,
    keys: Keys,
}

/// The keys of a block, by their secrets.
#[derive(Debug, Default)]
struct Keys {
    count: u32,
    places: Vec<Place>,
}

/// Where a key stands in the bytes, and which one it is; empty at first.
#[derive(Clone, Debug, Default)]
struct Place {
    at: Range<usize>,
    number: u32,
}

impl Block {
    /// An empty one in the place of another, whose room it takes.
    pub fn within(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self {
            bytes,
            ..Self::default()
        }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    pub fn append<S: Serialize>(&mut self, used: &Use<'_, S>) {
        let whole = self.bytes.len();
        if let Err(error) = self.write(used) {
            // A vector takes all there is: this is a defect of ours, and costs this one use.
            self.bytes.truncate(whole);
            self.common = 0..0;
            self.keys = Keys::default();
            tracing::error!(%error, "a use could not be written down");
        }
    }

    fn write<S: Serialize>(&mut self, used: &Use<'_, S>) -> postcard::Result<()> {
        let common = Common {
            tenant_id: used.tenant_id,
            service: used.service,
            environment: used.environment,
            operation: used.operation,
            outcome: used.outcome,
            required_scopes: used.required_scopes,
            any_scopes: used.any_scopes,
            met: used.met,
            cost: used.cost,
            caller: used.caller,
        };
        let at = self.bytes.len();
        self.bytes.push(FOLLOWS);
        postcard::to_io(&common, &mut self.bytes)?;
        let written = at + 1..self.bytes.len();
        let (before, now) = (
            self.bytes.get(self.common.clone()),
            self.bytes.get(written.clone()),
        );
        if before == now {
            self.bytes.truncate(at);
            self.bytes.push(AS_BEFORE);
        } else if written.len() <= COMMON_BYTES_MAX {
            self.common = written;
        }
        match &used.key {
            Some(key) => self.keys.write(key, &mut self.bytes)?,
            None => postcard::to_io(&NO_KEY, &mut self.bytes).map(drop)?,
        }
        let path = used
            .path
            .map(|path| told(before_query(path), PATH_BYTES_MAX));
        let user_agent = used.user_agent;
        let user_agent = user_agent.map(|text| told(text, USER_AGENT_BYTES_MAX));
        let context = used.context.map(without_keys);
        let own = Own {
            at: used.at,
            ip: used.ip,
            method: used.method,
            path: path.as_deref(),
            user_agent: user_agent.as_deref(),
            context: context.as_deref(),
            request_id: used.request_id,
            latency_us: used.latency_us,
            token: UsedToken {
                id: used.token.id,
                subject: used.token.subject.map(|text| cut(text, SUBJECT_BYTES_MAX)),
                actor: used.token.actor.map(|text| cut(text, SUBJECT_BYTES_MAX)),
            },
        };
        postcard::to_io(&own, &mut self.bytes).map(drop)
    }
}

impl Keys {
    fn write(&mut self, key: &UsedKey<'_>, bytes: &mut Vec<u8>) -> postcard::Result<()> {
        self.places.resize(PLACES, Place::default());
        let place = self.places.get_mut(place_of(key.secret_id));
        if let Some(place) = &place
            && bytes.get(place.at.clone()).is_some_and(|it| key.is(it))
        {
            return postcard::to_io(&(KEYS_BEFORE + place.number), bytes).map(drop);
        }
        let mark = if self.count == 0 { FIRST_KEY } else { NEW_KEY };
        postcard::to_io(&mark, &mut *bytes)?;
        let at = bytes.len();
        postcard::to_io(key, &mut *bytes)?;
        if let Some(place) = place {
            *place = Place {
                at: at..bytes.len(),
                number: self.count,
            };
        }
        self.count += 1;
        Ok(())
    }
}

/// By the end of the id, which is random.
fn place_of(secret_id: &str) -> usize {
    let end = secret_id.as_bytes().last_chunk().copied();
    let end = u64::from_le_bytes(end.unwrap_or_default());
    let spread = end.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    usize::try_from(spread).unwrap_or_default() % PLACES
}

impl UsedKey<'_> {
    /// Whether this is what it is written as, without writing it.
    fn is(&self, bytes: &[u8]) -> bool {
        behind(bytes, self.key_id)
            .and_then(|rest| behind(rest, self.secret_id))
            .and_then(|rest| rest.strip_prefix(&[u8::from(self.superseded)]))
            .and_then(|rest| behind(rest, self.consumer_id))
            .is_some_and(<[u8]>::is_empty)
    }
}

/// What stands behind a text that the bytes begin with. One that is longer than any id is not seen.
fn behind<'b>(bytes: &'b [u8], text: &str) -> Option<&'b [u8]> {
    let length = u8::try_from(text.len())
        .ok()
        .filter(|length| *length < 128)?;
    bytes.strip_prefix(&[length])?.strip_prefix(text.as_bytes())
}

/// The uses of a block, in the order in which they were appended.
///
/// # Errors
/// [`Unreadable`] where it breaks off; what stands before that is lost with it.
pub fn read(form: u8, mut block: &[u8]) -> Result<Vec<Record>, Unreadable> {
    if form != FORM {
        return Err(Unreadable(format!(
            "it has the form {form}, known is {FORM}"
        )));
    }
    let unreadable = |error: postcard::Error| Unreadable(error.to_string());
    let mut records = Vec::new();
    let mut before: Option<ReadCommon> = None;
    let mut keys: Vec<ReadKey> = Vec::new();
    let mut pauses = Pauses::each(USES_A_PAUSE);
    while let Some((mark, rest)) = block.split_first() {
        let (common, rest) = match (*mark, &before) {
            (FOLLOWS, _) => {
                let (common, behind): (ReadCommon, _) =
                    postcard::take_from_bytes(rest).map_err(unreadable)?;
                if rest.len() - behind.len() <= COMMON_BYTES_MAX {
                    before = Some(common.clone());
                }
                (common, behind)
            }
            (AS_BEFORE, Some(common)) => (common.clone(), rest),
            (mark, _) => return Err(Unreadable(format!("a use begins with {mark}"))),
        };
        let (mark, rest) = postcard::take_from_bytes::<u32>(rest).map_err(unreadable)?;
        let (key, rest) = match mark {
            NO_KEY => (None, rest),
            FIRST_KEY | NEW_KEY => {
                let (key, rest): (ReadKey, _) =
                    postcard::take_from_bytes(rest).map_err(unreadable)?;
                if mark == FIRST_KEY {
                    keys.clear();
                }
                keys.push(key.clone());
                (Some(key), rest)
            }
            mark => {
                let place = usize::try_from(mark - KEYS_BEFORE).unwrap_or(usize::MAX);
                let key = keys.get(place);
                let none = || Unreadable(format!("there is no key {place} before a use"));
                (Some(key.ok_or_else(none)?.clone()), rest)
            }
        };
        let (own, rest) = postcard::take_from_bytes::<ReadOwn>(rest).map_err(unreadable)?;
        records.push(record(common, key, own));
        block = rest;
        pauses.next();
    }
    Ok(records)
}

fn record(read: ReadCommon, key: Option<ReadKey>, own: ReadOwn) -> Record {
    let mut used_scopes = Vec::new();
    if read.outcome == super::record::VALID {
        used_scopes.clone_from(&read.required_scopes);
        used_scopes.extend(read.met);
        used_scopes.sort_unstable();
        used_scopes.dedup();
    }
    Record {
        at: Timestamp::from_millis(own.at),
        tenant_id: read.tenant_id,
        key: key.map(|key| Identified {
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
        ip: own.ip.map(|ip| ip.to_string()),
        method: own.method,
        path: own.path,
        user_agent: own.user_agent,
        context: own.context.unwrap_or_default(),
        token_id: own.token.id,
        subject: own.token.subject,
        actor: own.token.actor,
        caller: read.caller,
        request_id: own.request_id,
        latency_us: own.latency_us,
    }
}

fn before_query(path: &str) -> &str {
    let end = path.bytes().position(|byte| matches!(byte, b'?' | b'#'));
    end.and_then(|end| path.get(..end)).unwrap_or(path)
}

/// What is kept of a text. It is cut last: half a key is none that could be told.
fn told(text: &str, bytes_max: usize) -> Cow<'_, str> {
    match text::without_keys(text) {
        Cow::Borrowed(text) => Cow::Borrowed(cut(text, bytes_max)),
        Cow::Owned(text) => Cow::Owned(cut(&text, bytes_max).to_owned()),
    }
}

fn without_keys(context: &BTreeMap<String, String>) -> Cow<'_, BTreeMap<String, String>> {
    let mut texts = context.iter().flat_map(|(name, value)| [name, value]);
    if !texts.any(|text| text::has_key(text)) {
        return Cow::Borrowed(context);
    }
    let without = |text: &String| text::without_keys(text).into_owned();
    let pairs = context.iter();
    Cow::Owned(
        pairs
            .map(|(name, value)| (without(name), without(value)))
            .collect(),
    )
}

/// At most so many bytes of a text, whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max))
        .unwrap_or(text)
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
        let mut block = Block::default();
        block.append(&used("/invoices/7?secret=x", "valid", &scopes));
        block.append(&used(&"é".repeat(200), "insufficient_scope", &scopes));
        let read = read(FORM, block.bytes()).unwrap();
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
    fn neither_a_query_nor_a_key_that_a_client_sent_is_written_down() {
        let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
        let context = BTreeMap::from([
            ("sent".to_owned(), key.clone()),
            (format!("x_{key}"), "y".to_owned()),
        ]);
        // The first is cut in the middle of it, the last before one.
        let paths = [
            format!("/{}/{key}", "x".repeat(200)),
            format!("/{key}/7"),
            format!("/cb/https%3A%2F%2Fhook%2F{key}?secret=CCCC"),
            "/#CCCC".to_owned(),
            format!("/{}CCCC", "x".repeat(255)),
        ];
        let mut block = Block::default();
        for path in &paths {
            let one = Use {
                user_agent: Some(&key),
                context: Some(&context),
                ..used(path, "valid", &[])
            };
            block.append(&one);
        }
        let bytes = String::from_utf8_lossy(block.bytes());
        assert!(!bytes.contains("BBBB") && !bytes.contains("CCCC"));
        let read = read(FORM, block.bytes()).unwrap();
        assert_eq!(read[1].path.as_deref(), Some("/[key]/7"));
        assert_eq!(
            read[2].path.as_deref(),
            Some("/cb/https%3A%2F%2Fhook%2F[key]")
        );
        assert_eq!(read[3].path.as_deref(), Some("/"));
        assert_eq!(read[1].user_agent.as_deref(), Some("[key]"));
        assert_eq!(read[1].context["sent"], "[key]");
        assert_eq!(read[1].context["x_[key]"], "y");
    }

    #[test]
    fn what_holds_nothing_to_cut_is_not_copied() {
        let long = format!("/{}", "a_b/".repeat(60));
        let path = told(before_query(&long), PATH_BYTES_MAX);
        assert!(matches!(path, Cow::Borrowed(path) if path == long));
        let context = BTreeMap::from([("region".to_owned(), "eu".to_owned())]);
        assert!(matches!(without_keys(&context), Cow::Borrowed(_)));
    }

    #[test]
    fn what_a_use_has_in_common_with_the_one_before_it_is_written_once() {
        let long = "x".repeat(2 * COMMON_BYTES_MAX);
        let services = ["a", "a", "b", "a", &long, &long, "a", "a"];
        let mut block = Block::default();
        let mut lengths = Vec::new();
        for service in services {
            let before = block.bytes().len();
            block.append(&Use {
                service,
                key: None,
                ..used("/", "valid", &[])
            });
            lengths.push(block.bytes().len() - before);
        }
        let whole = lengths[0];
        assert!(lengths[1] < whole, "{lengths:?}");
        assert_eq!(lengths[2..4], [whole; 2]);
        // A long one is written again, and those behind it have what they had.
        assert!(lengths[4..6].iter().all(|length| *length > long.len()));
        assert_eq!(lengths[6..], [lengths[1]; 2]);
        // Two blocks, one behind the other, are one.
        let twice = [block.bytes(), block.bytes()].concat();
        let read = read(FORM, &twice).unwrap();
        let told: Vec<_> = read.iter().map(|one| one.service.as_str()).collect();
        assert_eq!(told, [services, services].concat());
        assert!(read.iter().all(|one| one.path.as_deref() == Some("/")));
    }

    #[test]
    fn a_key_that_was_used_before_is_named_by_its_place() {
        // More than there are places, so that some meet in one; and one with ids that are too long.
        let ids: Vec<String> = (0..3 * PLACES).map(|n| format!("sec_{n:026}")).collect();
        let long = "s".repeat(200);
        let secrets = ids
            .iter()
            .chain([&long, &ids[7]])
            .chain(&ids)
            .chain([&long]);
        let uses: Vec<(&str, bool)> = secrets
            .enumerate()
            .map(|(at, secret)| (&**secret, at % 5 == 0))
            .collect();
        let mut block = Block::default();
        let append = |block: &mut Block, uses: &[(&str, bool)]| {
            let before = block.bytes().len();
            for &(secret_id, superseded) in uses {
                let key = UsedKey {
                    key_id: "key_a",
                    secret_id,
                    superseded,
                    consumer_id: "con_a",
                };
                block.append(&Use {
                    key: (secret_id != ids[9]).then_some(key),
                    ..used("/", "valid", &[])
                });
            }
            block.bytes().len() - before
        };
        let told = |block: &[u8]| -> Vec<(String, bool)> {
            let read = read(FORM, block).unwrap();
            let keys = read.into_iter().map(|one| one.key);
            keys.map(|key| {
                key.map_or((ids[9].clone(), false), |key| {
                    (key.secret_id, key.superseded)
                })
            })
            .collect()
        };
        append(&mut block, &uses);
        let expected: Vec<(String, bool)> = uses
            .iter()
            .map(|(secret, superseded)| ((*secret).to_owned(), *superseded && *secret != ids[9]))
            .collect();
        assert_eq!(told(block.bytes()), expected);
        // Few keys again and again are short; two blocks, one behind the other, are one.
        let mut other = Block::default();
        let first = append(&mut other, &[(&ids[1], false)]);
        let again = append(&mut other, &[(&ids[1], false)]);
        assert!(again + ids[1].len() < first, "{again} of {first}");
        append(
            &mut other,
            &[(&ids[1], true), (&ids[2], false), (&ids[1], true)],
        );
        let both = [other.bytes(), block.bytes(), other.bytes()].concat();
        let of_other = told(other.bytes());
        assert_eq!(told(&both), [&*of_other, &expected, &of_other].concat());
        // A place that no key stands at is no key.
        let mut none = Block::default();
        append(&mut none, &[(&ids[9], false)]);
        assert_eq!(told(none.bytes()).len(), 1);
        let named = [none.bytes(), &other.bytes()[first..first + again]].concat();
        let error = read(FORM, &named).unwrap_err().to_string();
        assert!(error.contains("no key 0"), "{error}");
    }

    #[test]
    fn a_block_that_breaks_off_or_has_another_form_is_not_guessed_at() {
        let mut block = Block::default();
        block.append(&used("/", "valid", &[]));
        assert!(read(FORM, &block.bytes()[..block.bytes().len() - 1]).is_err());
        assert!(read(FORM + 1, block.bytes()).is_err());
        assert!(read(FORM, &[]).unwrap().is_empty());
    }
}
