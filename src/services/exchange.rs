//! Who may have which tokens exchanged for tokens of the service (RFC 8693), and the services it shares
//! tokens with. Where it says nothing, nobody acts for anybody.

use std::collections::BTreeSet;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use utoipa::ToSchema;

use crate::patch::double_option;
use crate::text::{Slug, has_control};

const SOURCES_MAX: usize = 50;

const ACTORS_MAX: usize = 200;

const ISSUER_BYTES_MAX: usize = 255;

/// What may be exchanged for tokens of the service, and by whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ExchangeSettings {
    /// The security domain of the service. Within one a token of any service is taken for the others as
    /// far as its key grants on them, and may be exchanged for one of theirs.
    #[schema(required = true, example = "payments")]
    pub domain: Option<Slug>,
    #[schema(required = true)]
    pub from: Sources,
    #[schema(required = true)]
    pub actors: Actors,
}

/// The same where a member that is left out stays as it is, and null is its default.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "domain": "payments",
    "from": ["shop", "https://login.example.com"],
    "actors": ["shop-backend"]
}))]
pub struct ExchangePatch {
    /// None, unless given. To set or change it takes `services:write` for all services: it is about
    /// the others of the domain too.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Slug>)]
    pub domain: Option<Option<Slug>>,
    /// Replaced as a whole; none, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Sources>)]
    pub from: Option<Option<Sources>>,
    /// Replaced as a whole; none, unless given.
    #[serde(default, deserialize_with = "double_option")]
    #[schema(value_type = Option<Actors>)]
    pub actors: Option<Option<Actors>>,
}

impl ExchangePatch {
    pub fn apply(self, settings: &mut ExchangeSettings) {
        let Self {
            domain,
            from,
            actors,
        } = self;
        if let Some(domain) = domain {
            settings.domain = domain;
        }
        if let Some(from) = from {
            settings.from = from.unwrap_or_default();
        }
        if let Some(actors) = actors {
            settings.actors = actors.unwrap_or_default();
        }
    }
}

impl ExchangeSettings {
    /// Whether tokens of one service are taken for the other without any exchange.
    pub fn shares_with(&self, other: &Self) -> bool {
        self.domain.is_some() && self.domain == other.domain
    }

    /// Whether tokens of another service may become tokens of this one.
    pub fn takes_service(&self, slug: &Slug, other: &Self) -> bool {
        self.shares_with(other) || self.from.has_service(slug)
    }
}

/// Whose tokens may be exchanged: those of a service, by its slug, or those of an issuer of the
/// configuration, by its very `iss`. What has the form of a slug is a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Service(Slug),
    Issuer(String),
}

impl Source {
    /// # Errors
    /// What the text must be.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if let Ok(slug) = Slug::parse(text) {
            return Ok(Self::Service(slug));
        }
        let is_issuer = (1..=ISSUER_BYTES_MAX).contains(&text.len())
            && !has_control(text)
            && text.trim() == text;
        if !is_issuer {
            return Err(
                "must be slugs of services, or issuers as they stand in their tokens, such as \
                 https://login.example.com",
            );
        }
        Ok(Self::Issuer(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        match self {
            Self::Service(slug) => slug.as_str(),
            Self::Issuer(issuer) => issuer,
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Source {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Up to 50 services by their slugs, and configured issuers by their `iss`, whose tokens may be exchanged
/// for tokens of the service. An API key needs none: it is for the services that it grants on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(
    value_type = Vec<String>, max_items = 50,
    example = json!(["shop", "https://login.example.com"])
)]
pub struct Sources(Vec<Source>);

impl Sources {
    /// # Errors
    /// What the list must be.
    pub fn new(sources: Vec<Source>) -> Result<Self, &'static str> {
        if sources.len() > SOURCES_MAX {
            return Err("must have at most 50 services and issuers");
        }
        if sources.iter().collect::<BTreeSet<_>>().len() < sources.len() {
            return Err("must name each service or issuer once");
        }
        Ok(Self(sources))
    }

    pub fn has_service(&self, slug: &Slug) -> bool {
        self.0
            .iter()
            .any(|source| matches!(source, Source::Service(one) if one == slug))
    }

    pub fn has_issuer(&self, issuer: &str) -> bool {
        self.0
            .iter()
            .any(|source| matches!(source, Source::Issuer(one) if one == issuer))
    }
}

impl<'de> Deserialize<'de> for Sources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

/// Up to 200 consumers, by their slugs, that may act for others at the service: exchange what was
/// presented to them. Whoever exchanges what is his own acts for nobody and needs not be one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
#[serde(transparent)]
#[schema(value_type = Vec<Slug>, max_items = 200, example = json!(["shop-backend"]))]
pub struct Actors(Vec<Slug>);

impl Actors {
    /// # Errors
    /// What the list must be.
    pub fn new(actors: Vec<Slug>) -> Result<Self, &'static str> {
        if actors.len() > ACTORS_MAX {
            return Err("must have at most 200 consumers");
        }
        if actors.iter().collect::<BTreeSet<_>>().len() < actors.len() {
            return Err("must name each consumer once");
        }
        Ok(Self(actors))
    }

    pub fn has(&self, slug: &Slug) -> bool {
        self.0.contains(slug)
    }
}

impl<'de> Deserialize<'de> for Actors {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn patched(mut settings: ExchangeSettings, value: Value) -> ExchangeSettings {
        from_value::<ExchangePatch>(value)
            .unwrap()
            .apply(&mut settings);
        settings
    }

    fn slug(text: &str) -> Slug {
        Slug::parse(text).unwrap()
    }

    #[test]
    fn members_are_patched_one_by_one_and_null_is_nobody() {
        let whole = json!({
            "domain": "payments", "from": ["shop", "https://login.example.com"],
            "actors": ["shop-backend"],
        });
        let settings = patched(ExchangeSettings::default(), whole.clone());
        assert_eq!(json!(settings), whole);
        let other = patched(settings.clone(), json!({"domain": null}));
        assert_eq!(
            other,
            ExchangeSettings {
                domain: None,
                ..settings.clone()
            }
        );
        let nulls = json!({"domain": null, "from": null, "actors": null});
        assert_eq!(patched(settings, nulls), ExchangeSettings::default());
    }

    #[test]
    fn what_names_nothing_is_refused() {
        let many = |count: usize| (0..count).map(|n| format!("s{n}")).collect::<Vec<_>>();
        for bad in [
            json!({"from": [""]}),
            json!({"from": [" shop"]}),
            json!({"from": ["a\nb"]}),
            json!({"from": ["x".repeat(256)]}),
            json!({"from": ["shop", "shop"]}),
            json!({"from": many(51)}),
            json!({"from": [1]}),
            json!({"from": "shop"}),
            json!({"actors": ["Shop"]}),
            json!({"actors": ["shop", "shop"]}),
            json!({"actors": many(201)}),
            json!({"domain": "Payments"}),
            json!({"domain": ""}),
            json!({"form": []}),
        ] {
            assert!(from_value::<ExchangePatch>(bad.clone()).is_err(), "{bad}");
        }
        patched(ExchangeSettings::default(), json!({"from": many(50)}));
    }

    #[test]
    fn a_token_is_taken_within_one_domain_and_from_who_is_named() {
        let settings = |value| patched(ExchangeSettings::default(), value);
        let none = settings(json!({}));
        let one = settings(json!({"domain": "a", "from": ["shop", "https://idp.example"]}));
        let same = settings(json!({"domain": "a"}));
        let other = settings(json!({"domain": "b"}));
        assert!(one.shares_with(&same) && same.shares_with(&one));
        for (left, right) in [(&one, &other), (&one, &none), (&none, &none)] {
            assert!(!left.shares_with(right));
        }
        assert!(one.takes_service(&slug("shop"), &none));
        assert!(one.takes_service(&slug("any"), &same));
        assert!(!one.takes_service(&slug("any"), &none));
        assert!(!none.takes_service(&slug("shop"), &none));
        // What one lists the other need not.
        assert!(!none.takes_service(&slug("any"), &one));
        assert!(one.from.has_issuer("https://idp.example"));
        assert!(!one.from.has_issuer("https://idp.example/"));
        assert!(!one.from.has_issuer("shop"));
    }
}
