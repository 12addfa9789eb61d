//! The parameters of a request to an OAuth endpoint (RFC 6749 §3.2): one without a value counts as left
//! out, unknown ones are ignored, and none may be given twice but those that may be.

use std::borrow::Cow;
use std::net::IpAddr;

use super::refusal::Refusal;

/// RFC 8693 §2.1, RFC 8707 §2.
const REPEATABLE: [&str; 2] = ["audience", "resource"];

/// The most values of one that may be repeated.
const VALUES_MAX: usize = 10;

/// Parameters, sorted by name and value. Some are secrets, so it shows none.
pub struct Form<'a>(Vec<(Cow<'a, str>, Cow<'a, str>)>);

impl<'a> Form<'a> {
    /// # Errors
    /// `invalid_request` for a parameter that is repeated.
    pub fn new(mut pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>) -> Result<Self, Refusal> {
        pairs.sort_unstable();
        for same in pairs.chunk_by(|(one, _), (other, _)| one == other) {
            let is_repeatable = same
                .first()
                .is_some_and(|(name, _)| REPEATABLE.contains(&name.as_ref()));
            if same.len() > 1 && !is_repeatable {
                // The name is somebody's text: it is not repeated.
                return Err(Refusal::invalid_request(
                    "a parameter is given more than once",
                ));
            }
            if same.len() > VALUES_MAX {
                return Err(Refusal::invalid_request("a parameter is given too often"));
            }
        }
        Ok(Self(pairs))
    }

    /// Takes a parameter out; `None` also for one without a value.
    pub fn take(&mut self, name: &str) -> Option<Cow<'a, str>> {
        self.taken(name).next()
    }

    /// Takes out all values of one that may be repeated.
    pub fn take_all(&mut self, name: &str) -> Vec<Cow<'a, str>> {
        self.taken(name).collect()
    }

    fn taken(&mut self, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
        let begin = self.0.partition_point(|(this, _)| &**this < name);
        let end = self.0.partition_point(|(this, _)| &**this <= name);
        let values = self.0.drain(begin..end).map(|(_, value)| value);
        values.filter(|value| !value.is_empty())
    }

    /// Takes out who presented something, as far as the caller says.
    ///
    /// # Errors
    /// `invalid_request` for what is no address.
    pub fn take_ip(&mut self) -> Result<Option<IpAddr>, Refusal> {
        match self.take("ip").map(|text| text.parse::<IpAddr>()) {
            None => Ok(None),
            Some(Ok(ip)) => Ok(Some(ip.to_canonical())),
            Some(Err(_not_an_address)) => Err(Refusal::invalid_request(
                "ip must be an IPv4 or IPv6 address",
            )),
        }
    }

    /// # Errors
    /// `invalid_request` for one that is missing.
    pub fn require(&mut self, name: &'static str) -> Result<Cow<'a, str>, Refusal> {
        self.take(name)
            .ok_or_else(|| Refusal::invalid_request(&format!("{name} is required")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form<'a>(pairs: &[(&'a str, &'a str)]) -> Result<Form<'a>, Refusal> {
        let pairs = pairs.iter();
        Form::new(
            pairs
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        )
    }

    #[test]
    fn a_parameter_is_given_once_and_one_without_a_value_not_at_all() {
        let mut good =
            form(&[("a", ""), ("b", "x"), ("audience", "m"), ("audience", "n")]).unwrap();
        assert_eq!(good.take("a"), None);
        assert_eq!(good.take("b").as_deref(), Some("x"));
        assert_eq!(good.take("b"), None);
        assert_eq!(good.take_all("audience"), ["m", "n"]);
        assert_eq!(good.take_all("audience"), [""; 0]);
        for bad in [
            &[("scope", "a"), ("scope", "a")][..],
            &[("scope", ""), ("scope", "a")],
            &[("unknown", "1"), ("unknown", "2")],
            &[("audience", "x"); 11],
        ] {
            assert!(form(bad).is_err(), "{bad:?}");
        }
    }
}
