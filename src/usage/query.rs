//! What may be asked of the ledger, as it stands in a query.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::de::{self, DeserializeSeed, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::record::Operation;
use crate::id::{ConsumerId, KeyId, SecretId};
use crate::metrics::OUTCOMES;
use crate::text::{Environment, Slug};
use crate::time::Timestamp;

/// Pairs of context that a validation may have, and so a filter.
const CONTEXT_MAX: usize = 8;

/// The order of a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// By time.
    #[default]
    Newest,
    /// As they were stored, oldest first: nothing that is stored later stands before.
    Stored,
}

/// How an export is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// A JSON object a line.
    #[default]
    Ndjson,
    /// RFC 4180, with a line of names first.
    Csv,
}

/// Which events: those that meet all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, IntoParams)]
#[serde(default)]
#[into_params(parameter_in = Query)]
pub struct EventFilter {
    /// The id of a key.
    #[param(example = "key_01jd8k3v9we5m8t7q2x4z6y0ab")]
    pub key: Option<String>,
    /// The id of a secret.
    pub secret: Option<String>,
    /// Whether the secret had been replaced by a newer one.
    pub superseded: Option<bool>,
    /// The id of a consumer.
    pub consumer: Option<String>,
    /// The slug of a service.
    #[param(example = "billing")]
    pub service: Option<String>,
    pub environment: Option<String>,
    pub operation: Option<Operation>,
    /// `valid`, or the code of a refusal.
    #[param(example = "insufficient_scope")]
    pub outcome: Option<String>,
    #[param(value_type = Option<String>, example = "192.0.2.1")]
    pub ip: Option<IpAddr>,
    /// The id of the management key that asked, or `<issuer>#<subject>`, its `#` written as `%23`.
    pub caller: Option<String>,
    pub request_id: Option<String>,
    pub token_id: Option<String>,
    pub subject: Option<String>,
    /// Inclusive; as far back as events are kept, unless given.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
    /// Of `context.<name>`, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[param(ignore)]
    pub context: BTreeMap<String, String>,
}

const NAMES: &[&str] = &[
    "key",
    "secret",
    "superseded",
    "consumer",
    "service",
    "environment",
    "operation",
    "outcome",
    "ip",
    "caller",
    "request_id",
    "token_id",
    "subject",
    "context.<name>",
    "from",
    "to",
];

impl EventFilter {
    /// Reads the value of the parameter `name`; `false` if it is none of these.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "key" => self.key = Some(map.next_value::<KeyId>()?.to_string()),
            "secret" => self.secret = Some(map.next_value::<SecretId>()?.to_string()),
            "superseded" => self.superseded = Some(map.next_value()?),
            "consumer" => self.consumer = Some(map.next_value::<ConsumerId>()?.to_string()),
            "service" => self.service = Some(map.next_value::<Slug>()?.to_string()),
            "environment" => self.environment = Some(map.next_value::<Environment>()?.to_string()),
            "operation" => self.operation = Some(map.next_value()?),
            "outcome" => self.outcome = Some(map.next_value::<Outcome>()?.to_string()),
            "ip" => self.ip = Some(map.next_value()?),
            "caller" => self.caller = Some(map.next_value()?),
            "request_id" => self.request_id = Some(map.next_value()?),
            "token_id" => self.token_id = Some(map.next_value()?),
            "subject" => self.subject = Some(map.next_value()?),
            "from" => self.from = Some(map.next_value()?),
            "to" => self.to = Some(map.next_value()?),
            other => {
                let Some(name) = other.strip_prefix("context.") else {
                    return Ok(false);
                };
                if name.is_empty() || name.contains('"') {
                    let wanted = "must be asked as context.<name>, with a name without quotes";
                    map.next_value_seed(Refused(Because::Wrong(wanted)))?;
                } else if self.context.len() >= CONTEXT_MAX {
                    let wanted = "is one too many: at most 8 pairs of context can be asked for";
                    map.next_value_seed(Refused(Because::Wrong(wanted)))?;
                }
                self.context.insert(name.to_owned(), map.next_value()?);
            }
        }
        Ok(true)
    }
}

/// The query of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    pub filter: EventFilter,
    pub order: Order,
}

/// The query of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportQuery {
    pub filter: EventFilter,
    pub format: Format,
}

impl<'de> Deserialize<'de> for EventQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut query = Self::default();
        let order = &mut query.order;
        query.filter = deserializer.deserialize_map(FilterAnd {
            name: "order",
            read: |value: Order| *order = value,
            names: const { &with("order") },
            value: std::marker::PhantomData,
        })?;
        Ok(query)
    }
}

impl<'de> Deserialize<'de> for ExportQuery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut query = Self::default();
        let format = &mut query.format;
        query.filter = deserializer.deserialize_map(FilterAnd {
            name: "format",
            read: |value: Format| *format = value,
            names: const { &with("format") },
            value: std::marker::PhantomData,
        })?;
        Ok(query)
    }
}

#[expect(clippy::indexing_slicing, reason = "evaluated at compile time")]
const fn with(name: &'static str) -> [&'static str; NAMES.len() + 1] {
    let mut names = [name; NAMES.len() + 1];
    let mut at = 0;
    while at < NAMES.len() {
        names[at] = NAMES[at];
        at += 1;
    }
    names
}

/// Reads a filter and one parameter more. By hand, because the names of a context are not known.
struct FilterAnd<T, F> {
    name: &'static str,
    read: F,
    names: &'static [&'static str],
    value: std::marker::PhantomData<T>,
}

impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for FilterAnd<T, F> {
    type Value = EventFilter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a filter of events")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<EventFilter, A::Error> {
        let mut filter = EventFilter::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == self.name {
                (self.read)(map.next_value()?);
            } else if !filter.read(&name, &mut map)? {
                map.next_value_seed(Refused(Because::Unknown(&name, self.names)))?;
            }
        }
        Ok(filter)
    }
}

/// Refuses a parameter where its value is read, so that the error is told by its name.
struct Refused<'a>(Because<'a>);

enum Because<'a> {
    /// There is none of this name, but of these.
    Unknown(&'a str, &'static [&'static str]),
    Wrong(&'static str),
}

impl<'de> DeserializeSeed<'de> for Refused<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(match self.0 {
            Because::Unknown(name, names) => de::Error::unknown_field(name, names),
            Because::Wrong(wanted) => de::Error::custom(wanted),
        })
    }
}

/// One of [`OUTCOMES`]: who misspells one must not take the empty answer for a proof.
struct Outcome(&'static str);

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut known = OUTCOMES.iter();
        match known.find(|outcome| **outcome == text) {
            Some(outcome) => Ok(Self(outcome)),
            None => Err(de::Error::unknown_variant(&text, OUTCOMES)),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The text of a parameter that must be a `T`.
fn text_of<'de, T, D>(deserializer: D) -> Result<Option<String>, D::Error>
where
    T: Deserialize<'de> + fmt::Display,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(|value| Some(value.to_string()))
}

/// What uses are counted by.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Dimension {
    Key,
    Secret,
    Consumer,
    Service,
    Outcome,
    Operation,
    Caller,
    Ip,
    Scope,
}

/// How long the spans are that a summary counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bucket {
    Minute,
    Hour,
    Day,
}

/// What to count, by what, in which spans.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct SummaryQuery {
    /// May be repeated. `ip` goes with `key` alone, `scope` with `key` and `service`. Of a key's day (UTC) at
    /// most 500 addresses are told apart: `other` stands for the rest.
    #[serde(default)]
    #[param(required = false)]
    pub group_by: Vec<Dimension>,
    /// One total for the whole time, unless given. `ip` and `scope` are counted by the day. Minutes are kept for
    /// 7 days: with `minute` a `from` that is further back is refused.
    pub bucket: Option<Bucket>,
    /// The id of a key.
    #[serde(default, deserialize_with = "text_of::<KeyId, _>")]
    pub key: Option<String>,
    /// The id of a secret.
    #[serde(default, deserialize_with = "text_of::<SecretId, _>")]
    pub secret: Option<String>,
    pub superseded: Option<bool>,
    /// The id of a consumer.
    #[serde(default, deserialize_with = "text_of::<ConsumerId, _>")]
    pub consumer: Option<String>,
    /// The slug of a service.
    #[serde(default, deserialize_with = "text_of::<Slug, _>")]
    pub service: Option<String>,
    pub operation: Option<Operation>,
    /// `valid`, or the code of a refusal.
    #[serde(default, deserialize_with = "text_of::<Outcome, _>")]
    pub outcome: Option<String>,
    pub caller: Option<String>,
    /// Inclusive, moved back to the beginning of its bucket. Unless given: an hour before `to` in
    /// minutes, a day before in hours, else 30 days.
    pub from: Option<Timestamp>,
    /// Exclusive, moved forward to the end of its bucket; now, unless given.
    pub to: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::query::Params;

    /// The place and the detail of the first thing that is wrong.
    fn fault<T: de::DeserializeOwned>(query: &str) -> Option<(String, String)> {
        let read = Params::parse(query).and_then(|params| params.deserialize::<T>());
        read.err().map(|fault| (fault.pointer, fault.detail))
    }

    #[test]
    fn a_value_that_no_event_can_have_is_refused_and_what_it_must_be_is_said() {
        let outcomes = format!("must be {}", OUTCOMES.join(", "));
        let key = "must be an id that starts with key_";
        let consumer = "must be an id that starts with con_";
        let slug = Slug::parse("").unwrap_err();
        for (query, name, detail) in [
            ("outcome=vaild", "outcome", outcomes.as_str()),
            ("outcome=", "outcome", &outcomes),
            ("outcome=Valid", "outcome", &outcomes),
            ("key=worker", "key", key),
            ("key=sec_01jd8k3v9we5m8t7q2x4z6y0ab", "key", key),
            ("key=", "key", key),
            ("secret=x", "secret", "must be an id that starts with sec_"),
            ("consumer=acme", "consumer", consumer),
            ("service=Billing", "service", slug),
            ("service=", "service", slug),
        ] {
            let expected = Some((name.to_owned(), detail.to_owned()));
            assert_eq!(fault::<EventQuery>(query), expected, "{query}");
            assert_eq!(fault::<ExportQuery>(query), expected, "{query}");
            assert_eq!(fault::<SummaryQuery>(query), expected, "{query}");
        }
        let ip = "must be an IPv4 or IPv6 address, such as 203.0.113.9; networks are not taken";
        let context = "must be asked as context.<name>, with a name without quotes";
        let many: Vec<String> = (0..9).map(|n| format!("context.n{n}=x")).collect();
        for (query, name, detail) in [
            (
                "environment=Live",
                "environment",
                Environment::parse("").unwrap_err(),
            ),
            ("ip=203.0.113.0/24", "ip", ip),
            ("ip=", "ip", ip),
            ("context.=17", "context.", context),
            ("context.%22=17", "context.\"", context),
            (
                &many.join("&"),
                "context.n8",
                "is one too many: at most 8 pairs of context can be asked for",
            ),
        ] {
            let expected = Some((name.to_owned(), detail.to_owned()));
            assert_eq!(fault::<EventQuery>(query), expected, "{query}");
            assert_eq!(fault::<ExportQuery>(query), expected, "{query}");
        }
    }

    #[test]
    fn what_an_event_can_have_may_be_asked_for() {
        let ids = "key=key_01jd8k3v9we5m8t7q2x4z6y0ab&secret=sec_01jd8k3v9we5m8t7q2x4z6y0ab\
                   &consumer=con_01jd8k3v9we5m8t7q2x4z6y0ab&service=a-b";
        for outcome in OUTCOMES {
            let query = format!("{ids}&outcome={outcome}");
            let read: SummaryQuery = Params::parse(&query).unwrap().deserialize().unwrap();
            assert_eq!(read.outcome.as_deref(), Some(*outcome));
            assert_eq!(read.service.as_deref(), Some("a-b"));
            let query = format!("{query}&environment=live&ip=::1&context.a=b");
            let read: EventQuery = Params::parse(&query).unwrap().deserialize().unwrap();
            assert_eq!(read.filter.outcome.as_deref(), Some(*outcome));
            assert!(read.filter.consumer.unwrap().starts_with("con_"));
            assert_eq!(read.filter.environment.as_deref(), Some("live"));
        }
    }
}
