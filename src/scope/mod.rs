//! Scopes: what a key may do on a service, and what a request asks for.
//!
//! | granted | covers | does not cover |
//! | --- | --- | --- |
//! | `a:b` | `a:b` | `a`, `a:b:c`, `a:bc`, `A:b` |
//! | `a:*` | `a:b`, `a:b:c`, `a:b:*`, `a:*` | `a`, `ab:c`, `*` |
//! | `*` | everything | |
//!
//! What a scope of a catalogue implies, and which domain it belongs to, is in [`catalogue`].

pub mod catalogue;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub use catalogue::{Catalogue, ScopeEntry};

/// The longest name, without a trailing `:*`.
const NAME_LEN_MAX: usize = 128;

const SHAPE: &str = "must be 1 to 128 of A-Z, a-z, 0-9 and ._:/-, optionally followed by :*, or *";

/// A scope as it is granted: a name, `a:*` or `*`. Case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Scope(String);

impl Scope {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let ok = text == "*" || is_name(text.strip_suffix(":*").unwrap_or(text));
        ok.then(|| Self(text.to_owned())).ok_or(SHAPE)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `*`, which covers every scope there is or will be.
    pub fn is_all(&self) -> bool {
        self.0 == "*"
    }

    /// Of `a:*` the part that every covered scope starts with, `a:`; `None` for the others.
    pub fn under(&self) -> Option<&str> {
        if self.is_all() {
            return None;
        }
        self.0.strip_suffix('*')
    }

    /// Whether who holds `self` holds `other` too, by the names alone.
    pub fn covers(&self, other: &Self) -> bool {
        self.covers_name(&other.0)
    }

    pub(super) fn covers_name(&self, name: &str) -> bool {
        match self.under() {
            Some(under) => name.len() > under.len() && name.starts_with(under),
            None => self.is_all() || self.0 == name,
        }
    }
}

/// `[A-Za-z0-9._:/-]{1,128}`
fn is_name(text: &str) -> bool {
    (1..=NAME_LEN_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b))
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

crate::string_schema!(
    Scope,
    crate::schema::string(
        "^(\\*|[A-Za-z0-9._:/-]{1,128}(:\\*)?)$",
        130,
        "invoice:read"
    )
);

/// What groups scopes whatever their names look like: `[A-Za-z0-9._/-]{1,128}`, without a colon.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Domain(String);

impl Domain {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let ok = is_name(text) && !text.contains(':');
        ok.then(|| Self(text.to_owned()))
            .ok_or("must be 1 to 128 of A-Z, a-z, 0-9 and ._/-")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Domain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(de::Error::custom)
    }
}

crate::string_schema!(
    Domain,
    crate::schema::string("^[A-Za-z0-9._/-]{1,128}$", 128, "invoice")
);

/// What a request needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RequiredScope {
    /// This very scope, or one that covers or implies it. A required `*` is met by `*` alone.
    Exact(Scope),
    /// `a:*`: any scope below `a:`.
    AnyUnder(Scope),
    /// `domain:a`: any scope of that domain.
    AnyOf(Domain),
}

const DOMAIN: &str = "domain:";

impl RequiredScope {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(domain) = text.strip_prefix(DOMAIN) {
            return Domain::parse(domain).map(Self::AnyOf);
        }
        let scope = Scope::parse(text)?;
        Ok(match scope.under() {
            Some(_) => Self::AnyUnder(scope),
            None => Self::Exact(scope),
        })
    }
}

impl fmt::Display for RequiredScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(scope) | Self::AnyUnder(scope) => f.write_str(scope.as_str()),
            Self::AnyOf(domain) => write!(f, "{DOMAIN}{}", domain.as_str()),
        }
    }
}

impl Serialize for RequiredScope {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RequiredScope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Read where it stands: every verification has some.
        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = RequiredScope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<RequiredScope, E> {
                RequiredScope::parse(text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Text)
    }
}

crate::string_schema!(
    RequiredScope,
    crate::schema::string(
        "^(\\*|domain:[A-Za-z0-9._/-]{1,128}|[A-Za-z0-9._:/-]{1,128}(:\\*)?)$",
        135,
        "invoice:read"
    )
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scope(text: &str) -> Scope {
        Scope::parse(text).unwrap()
    }

    #[test]
    fn a_scope_covers_by_whole_segments_and_case() {
        for (granted, asked, covers) in [
            ("read", "read", true),
            ("read", "read_all", false),
            ("read", "READ", false),
            ("read", "rea", false),
            ("invoice:*", "invoice:read", true),
            ("invoice:*", "invoice:read:own", true),
            ("invoice:*", "invoice:read:*", true),
            ("invoice:*", "invoice:*", true),
            ("invoice:*", "invoice", false),
            ("invoice:*", "invoicex:read", false),
            ("invoice:*", "Invoice:read", false),
            ("invoice:*", "*", false),
            ("invoice:*", "invoice:", false),
            ("invoice:read", "invoice:*", false),
            ("invoice:read:*", "invoice:read", false),
            ("access:*", "accessory:x", false),
            ("*", "invoice:read", true),
            ("*", "invoice:*", true),
            ("*", "*", true),
        ] {
            let asked_scope = scope(asked);
            assert_eq!(
                scope(granted).covers(&asked_scope),
                covers,
                "{granted} {asked}"
            );
        }
    }

    #[test]
    fn a_scope_has_one_spelling() {
        for good in ["a", "a:b", "a:*", "*", "A.b_/-:c", &"x".repeat(128)] {
            assert_eq!(scope(good).as_str(), good);
        }
        let long = "x".repeat(129);
        for bad in [
            "", " ", "read ", " read", "a b", "a*", "**", ":*", "*:a", "a:*:b", "a:**", "a,b", "é",
            "a\0", "a\n", "ａ", &long,
        ] {
            assert!(Scope::parse(bad).is_err(), "{bad:?}");
            assert!(RequiredScope::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Scope::parse(&format!("{}:*", "x".repeat(128))).is_ok());
    }

    #[test]
    fn what_is_required_says_itself_again() {
        for text in ["a", "a:b", "a:*", "*", "domain:invoice"] {
            assert_eq!(RequiredScope::parse(text).unwrap().to_string(), text);
        }
        assert!(RequiredScope::parse("domain:").is_err());
        assert!(RequiredScope::parse("domain:a:b").is_err());
        assert!(RequiredScope::parse("domain:*").is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in ".{0,140}") {
            let _ = Scope::parse(&text);
            let _ = RequiredScope::parse(&text);
        }

        #[test]
        fn covering_is_reflexive_and_transitive(
            a in "(\\*|[ab](:[ab]){0,2}(:\\*)?)",
            b in "(\\*|[ab](:[ab]){0,2}(:\\*)?)",
            c in "(\\*|[ab](:[ab]){0,2}(:\\*)?)",
        ) {
            let (a, b, c) = (scope(&a), scope(&b), scope(&c));
            prop_assert!(a.covers(&a));
            if a.covers(&b) && b.covers(&c) {
                prop_assert!(a.covers(&c));
            }
            if a.covers(&b) && b.covers(&a) {
                prop_assert_eq!(a, b);
            }
        }
    }
}
