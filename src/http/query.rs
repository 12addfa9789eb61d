//! Query parameters into typed structs: unknown ones are refused, a list is a repeated parameter.

use std::borrow::Cow;
use std::ops::Deref;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest};
use percent_encoding::percent_decode_str;
use serde::de::value::{MapDeserializer, SeqDeserializer, StrDeserializer};
use serde::de::{self, DeserializeOwned, IntoDeserializer, Visitor};
use serde::{Deserializer, forward_to_deserialize_any};
use serde_path_to_error::Track;

use super::gate::{Gate, Gated};
use super::json_body;
use super::problem::Problem;
use crate::error::Violation;
use crate::time::Timestamp;

/// The parameters of a query as `T`, whose serde attributes must deny unknown fields. A member of
/// type `Vec` takes a repeated parameter, every other at most one.
pub struct Query<T>(pub T);

impl<T> Query<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Query<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: DeserializeOwned + Unpin + 'static> FromRequest for Query<T> {
    type Error = Problem;
    type Future = Gated<Self>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let parsed = Params::parse(req.query_string())
            .and_then(|params| params.deserialize())
            .map(Self)
            .map_err(|violation| Problem::invalid(vec![violation]));
        Gate::of(req).read_query();
        Gated::new(req, parsed)
    }
}

/// # Errors
/// 400 if the times are not in order: nothing is between them.
pub fn in_order(from: Option<Timestamp>, to: Option<Timestamp>) -> Result<(), Problem> {
    match (from, to) {
        (Some(from), Some(to)) if from >= to => {
            Err(Problem::invalid_at("from", "must be before to"))
        }
        _ => Ok(()),
    }
}

/// Decoded parameters in the order of the query.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Params<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Params<'a> {
    /// # Errors
    /// A parameter that is not UTF-8 or has control characters.
    pub fn parse(query: &'a str) -> Result<Self, Violation> {
        query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                let name = decode(name).ok_or_else(|| {
                    Violation::new("", "a parameter's name is not percent-encoded UTF-8")
                })?;
                let value = decode(value).ok_or_else(|| {
                    Violation::new(name.as_ref(), "must be percent-encoded UTF-8")
                })?;
                if crate::text::has_control(&value) {
                    return Err(Violation::new(
                        name.as_ref(),
                        "must not contain control characters",
                    ));
                }
                Ok((name, value))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Takes a parameter out.
    ///
    /// # Errors
    /// If it is given more than once.
    pub fn take(&mut self, name: &str) -> Result<Option<String>, Violation> {
        let mut found = None;
        let mut twice = false;
        self.0.retain(|(this, value)| {
            if this != name {
                return true;
            }
            twice |= found.replace(value.to_string()).is_some();
            false
        });
        if twice {
            return Err(Violation::new(name, "is given more than once"));
        }
        Ok(found)
    }

    pub fn into_pairs(self) -> Vec<(Cow<'a, str>, Cow<'a, str>)> {
        self.0
    }

    /// The parameters sorted, for a digest that does not depend on their order.
    pub fn sorted(&self) -> Vec<(&str, &str)> {
        let mut pairs: Vec<_> = self
            .0
            .iter()
            .map(|(n, v)| (n.as_ref(), v.as_ref()))
            .collect();
        pairs.sort_unstable();
        pairs
    }

    /// The value at `group_by/0`.
    fn of_list(&self, pointer: &str) -> Option<&str> {
        let (name, place) = pointer.split_once('/')?;
        let mut values = self.0.iter().filter(|(this, _)| this == name);
        values
            .nth(place.parse().ok()?)
            .map(|(_, value)| value.as_ref())
    }

    /// # Errors
    /// The first parameter that is unknown, missing or wrong.
    pub fn deserialize<T: DeserializeOwned>(&self) -> Result<T, Violation> {
        let mut grouped: Vec<(&str, Values<'_>)> = Vec::new();
        for (name, value) in &self.0 {
            match grouped.iter_mut().find(|(known, _)| known == name) {
                Some((_, values)) => values.0.push(value),
                None => grouped.push((name, Values(vec![value]))),
            }
        }
        let mut track = Track::new();
        let reader = MapDeserializer::new(grouped.into_iter());
        let reader = serde_path_to_error::Deserializer::new(reader, &mut track);
        T::deserialize(reader).map_err(|error: de::value::Error| {
            let mut violation = json_body::place(&track.path(), &error.to_string());
            violation.pointer = violation.pointer.trim_start_matches('/').to_owned();
            violation.detail = violation
                .detail
                .replace("a known field; known here", "a known parameter; known here")
                .replace("a known field; none is", "a known parameter; none is");
            if self
                .of_list(&violation.pointer)
                .is_some_and(|value| value.contains(','))
            {
                violation
                    .detail
                    .push_str("; several values are the parameter several times");
            }
            violation
        })
    }
}

fn decode(text: &str) -> Option<Cow<'_, str>> {
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
        return Some(Cow::Owned(decoded.into_owned()));
    }
    if !text.contains('%') {
        return Some(Cow::Borrowed(text));
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// All values of one parameter.
struct Values<'a>(Vec<&'a str>);

impl<'a> Values<'a> {
    fn one(&self) -> Result<&'a str, de::value::Error> {
        match self.0.as_slice() {
            [one] => Ok(one),
            _ => Err(de::Error::custom("is given more than once")),
        }
    }
}

impl IntoDeserializer<'_> for Values<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! number {
    ($($method:ident $visit:ident $type:ty;)+) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            let number: $type = self.one()?.parse().map_err(|_bad_number| {
                de::Error::invalid_value(de::Unexpected::Other("text"), &stringify!($type))
            })?;
            visitor.$visit(number)
        })+
    };
}

impl<'de> Deserializer<'de> for Values<'_> {
    type Error = de::value::Error;

    number! {
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_str(self.one()?)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.one()? {
            "true" => visitor.visit_bool(true),
            "false" => visitor.visit_bool(false),
            _ => Err(de::Error::custom("must be true or false")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_seq(SeqDeserializer::new(self.0.into_iter()))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        let reader: StrDeserializer<'_, Self::Error> = self.one()?.into_deserializer();
        reader.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        i8 i16 i128 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::text::{Environment, Tag};

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Filter {
        #[serde(default)]
        tag: Vec<Tag>,
        environment: Option<Environment>,
        state: Option<State>,
        #[serde(default)]
        group_by: Vec<State>,
        dry_run: Option<bool>,
        days: Option<u32>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "snake_case")]
    enum State {
        Active,
        NotYetValid,
    }

    fn read(query: &str) -> Result<Filter, Violation> {
        Params::parse(query)?.deserialize()
    }

    #[test]
    fn parameters_are_decoded_and_typed() {
        let filter =
            read("tag=a%3Ab&environment=live&tag=c&state=not_yet_valid&dry_run=true&days=30")
                .unwrap();
        let tags: Vec<_> = filter.tag.iter().map(Tag::as_str).collect();
        assert_eq!(tags, ["a:b", "c"]);
        assert_eq!(filter.state, Some(State::NotYetValid));
        assert_eq!(filter.dry_run, Some(true));
        assert_eq!(filter.days, Some(30));
        assert_eq!(read("").unwrap().tag, []);
    }

    #[test]
    fn a_wrong_parameter_is_refused_by_name() {
        for (query, pointer, detail) in [
            (
                "stat=active",
                "stat",
                "is not a known parameter; known here: tag, environment, state, group_by, dry_run, days",
            ),
            (
                "state=active&state=active",
                "state",
                "is given more than once",
            ),
            ("state=ACTIVE", "state", "must be active or not_yet_valid"),
            (
                "group_by=active,expired",
                "group_by/0",
                "must be active or not_yet_valid; several values are the parameter several times",
            ),
            (
                "group_by=expired&group_by=active,expired",
                "group_by/0",
                "must be active or not_yet_valid",
            ),
            (
                "group_by=active&group_by=expired",
                "group_by/1",
                "must be active or not_yet_valid",
            ),
            ("dry_run=1", "dry_run", "must be true or false"),
            ("days=-1", "days", "must be a whole number, not negative"),
            ("days=1e3", "days", "must be a whole number, not negative"),
            ("days=NaN", "days", "must be a whole number, not negative"),
            ("tag=%ff", "tag", "must be percent-encoded UTF-8"),
            ("tag=a%00", "tag", "must not contain control characters"),
        ] {
            let violation = read(query).unwrap_err();
            assert_eq!(
                (violation.pointer.as_str(), violation.detail.as_str()),
                (pointer, detail)
            );
        }
        assert!(
            read("environment=").is_err(),
            "an empty one is not an absent one"
        );
    }
}
