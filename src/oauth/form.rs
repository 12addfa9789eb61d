//! The parameters of a request to an OAuth endpoint (RFC 6749 §3.2): one without a value counts as left
//! out, unknown ones are ignored, and none may be given twice but those that may be.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::refusal::Refusal;

/// RFC 8693 §2.1, RFC 8707 §2.
const REPEATABLE: [&str; 2] = ["audience", "resource"];

/// The most values of one that may be repeated.
const VALUES_MAX: usize = 10;

/// Parameters by name. Some are secrets, so it shows none.
pub struct Form(BTreeMap<String, Vec<String>>);

impl Form {
    /// # Errors
    /// `invalid_request` for a parameter that is repeated.
    pub fn new(pairs: impl IntoIterator<Item = (String, String)>) -> Result<Self, Refusal> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, value) in pairs {
            all.entry(name).or_default().push(value);
        }
        for (name, values) in &all {
            if values.len() > 1 && !REPEATABLE.contains(&name.as_str()) {
                // The name is somebody's text: it is not repeated.
                return Err(Refusal::invalid_request(
                    "a parameter is given more than once",
                ));
            }
            if values.len() > VALUES_MAX {
                return Err(Refusal::invalid_request("a parameter is given too often"));
            }
        }
        Ok(Self(all))
    }

    /// Takes a parameter out; `None` also for one without a value.
    pub fn take(&mut self, name: &str) -> Option<String> {
        self.take_all(name).pop()
    }

    /// Takes out all values of one that may be repeated.
    pub fn take_all(&mut self, name: &str) -> Vec<String> {
        let mut values = self.0.remove(name).unwrap_or_default();
        values.retain(|value| !value.is_empty());
        values
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
    pub fn require(&mut self, name: &'static str) -> Result<String, Refusal> {
        self.take(name)
            .ok_or_else(|| Refusal::invalid_request(&format!("{name} is required")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(pairs: &[(&str, &str)]) -> Result<Form, Refusal> {
        Form::new(
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
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
