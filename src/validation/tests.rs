//! The decision as a table, and the answer that is written of it.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::json;

use super::Answer;
use super::answer::write;
use super::body::VerifyAnswer;
use super::decide::{AskedEnvironment, Outcome, Request, decide, explain};
use super::last_used::LastNoted;
use super::snapshot::{
    ConsumerSnapshot, GrantSnapshot, GrantedRights, KeySnapshot, Owner, ServiceEntry, Subject,
    TenantSnapshot, Terms,
};
use super::told::{Alike, Told, ToldSecret};
use crate::cache::Entry;
use crate::cache::changes::Entity;
use crate::clock::Clock;
use crate::db::feed::Kind;
use crate::entropy::Entropy;
use crate::id::{ConsumerId, KeyId, SecretId, TenantId};
use crate::metadata::Metadata;
use crate::ratelimit::{CounterId, HashTag};
use crate::scope::{RequiredScope, Scope};
use crate::services;
use crate::text::{Environment, Name, Slug, Tag};
use crate::time::{Span, Timestamp};

const NOW: i64 = 1_900_000_000_000;

fn now() -> Timestamp {
    Timestamp::from_millis(NOW)
}

fn entry<T>(value: T) -> Arc<Entry<T>> {
    Arc::new(Entry::new(value, (0, 0), Entity::new(Kind::Key, ""), 1))
}

/// What a subject is made from; each test spoils some of it.
struct Made {
    key: KeySnapshot,
    consumer: ConsumerSnapshot,
    tenant: TenantSnapshot,
    service: Option<ServiceEntry>,
    asks_service: bool,
}

impl Made {
    fn allow(&mut self, net: &str) {
        let nets = Box::new([net.parse().unwrap()]);
        Arc::make_mut(&mut self.key.terms).allowed_ips = Some(nets);
    }

    /// A good key of `acme` with `invoice:read` on `invoicing`.
    fn good() -> Self {
        let (clock, entropy) = (Clock::System, Entropy::seeded(1));
        let tenant_id = TenantId::new(&clock, &entropy);
        let mut service = services::built_in(&tenant_id, &clock, &entropy);
        service.slug = Slug::parse("invoicing").unwrap();
        let consumer_id = ConsumerId::new(&clock, &entropy);
        let name = Name::parse("a \"worker\" \u{1f511}").unwrap();
        let environment = Environment::parse("live").unwrap();
        let metadata: Metadata = serde_json::from_value(json!({"plan": ["a", 1]})).unwrap();
        let tags = [Tag::parse("blue").unwrap()];
        let expires_at = Some(now().plus(Span::hours(1)));
        let secret_id = SecretId::new(&clock, &entropy);
        let alike = Alike {
            environment: &environment,
            metadata: &metadata,
            tags: &tags,
        };
        let alike = alike.members().unwrap().into();
        let told = ToldSecret {
            id: &secret_id,
            valid_until: None,
            superseded: false,
        };
        let told = Told::new(&name, expires_at, &told).unwrap();
        Self {
            key: KeySnapshot {
                key_id: KeyId::new(&clock, &entropy),
                owner: Arc::new(Owner {
                    tenant_id: tenant_id.clone(),
                    consumer_id: consumer_id.clone(),
                    environment,
                    told: alike,
                }),
                terms: Arc::new(Terms {
                    grants: Arc::new([GrantSnapshot {
                        service_id: service.id.clone(),
                        scopes: Box::new([Scope::parse("invoice:read").unwrap()]),
                        limits: Box::new([]),
                        defaults: CounterId::new("", "service", "service"),
                        rights: GrantedRights::default(),
                    }]),
                    limits: Arc::new([]),
                    quota: None,
                    allowed_ips: None,
                }),
                not_before: Some(now()),
                expires_at,
                disabled: false,
                revoked: false,
                counter: CounterId::new("key", "key", ""),
                secret_id,
                secret_until: None,
                superseded: false,
                secret_revoked: false,
                told,
                last_noted: LastNoted::default(),
            },
            consumer: ConsumerSnapshot {
                external_id: None,
                slug: Slug::parse("acme").unwrap(),
                is_active: true,
                limits: Box::new([]),
                quota: None,
                tag: HashTag::new(&tenant_id, &consumer_id),
                told: json!({"id": consumer_id, "slug": "acme", "name": "", "metadata": {}})
                    .to_string()
                    .into(),
                id: consumer_id,
            },
            tenant: TenantSnapshot {
                id: tenant_id,
                slug: Slug::parse("default").unwrap(),
                is_active: true,
                is_deleted: false,
            },
            service: Some(ServiceEntry::new(service)),
            asks_service: true,
        }
    }

    fn subject(self) -> Subject {
        Subject {
            narrowed: None,
            key: entry(self.key),
            consumer: entry(self.consumer),
            tenant: entry(self.tenant),
            service: self.service.map(entry),
            asks_service: self.asks_service,
        }
    }
}

fn scopes(texts: &[&str]) -> Vec<RequiredScope> {
    let parse = |text: &&str| RequiredScope::parse(text).unwrap();
    texts.iter().map(parse).collect()
}

fn asking(required: &[&str]) -> Request<'static> {
    Request {
        required_scopes: scopes(required).into(),
        ..Request::default()
    }
}

fn outcome(made: Made, request: &Request<'_>) -> Outcome {
    decide(&made.subject(), request, now()).outcome
}

/// What spoils a key, in the order of the checks.
type Spoil = fn(&mut Made, &mut Request<'_>);

const SPOILED: [(&str, Outcome, Spoil); 17] = [
    ("revoked", Outcome::Revoked, |made, _| {
        made.key.revoked = true;
    }),
    ("secret revoked", Outcome::Revoked, |made, _| {
        made.key.secret_revoked = true;
    }),
    ("disabled", Outcome::Disabled, |made, _| {
        made.key.disabled = true;
    }),
    ("consumer disabled", Outcome::Disabled, |made, _| {
        made.consumer.is_active = false;
    }),
    ("tenant disabled", Outcome::Disabled, |made, _| {
        made.tenant.is_active = false;
    }),
    ("ends now", Outcome::Expired, |made, _| {
        made.key.expires_at = Some(now());
    }),
    ("secret ends now", Outcome::Expired, |made, _| {
        made.key.secret_until = Some(now());
    }),
    ("begins in a moment", Outcome::NotYetValid, |made, _| {
        made.key.not_before = Some(Timestamp::from_millis(NOW + 1));
    }),
    (
        "another environment",
        Outcome::WrongEnvironment,
        |_, request| {
            request.environment =
                AskedEnvironment::Is(Cow::Owned(Environment::parse("test").unwrap()));
        },
    ),
    (
        "the service's first environment",
        Outcome::WrongEnvironment,
        |made, request| {
            Arc::make_mut(&mut made.key.owner).environment = Environment::parse("test").unwrap();
            request.environment = AskedEnvironment::ServiceDefault;
        },
    ),
    ("no grant", Outcome::WrongService, |made, _| {
        Arc::make_mut(&mut made.key.terms).grants = Arc::new([]);
    }),
    ("service disabled", Outcome::WrongService, |made, _| {
        made.service.as_mut().unwrap().is_active = false;
    }),
    ("no such service", Outcome::WrongService, |made, _| {
        made.service = None;
    }),
    ("no address given", Outcome::IpNotAllowed, |made, _| {
        made.allow("203.0.113.0/24");
    }),
    ("another address", Outcome::IpNotAllowed, |made, request| {
        made.allow("203.0.113.0/24");
        request.ip = Some("203.0.114.1".parse().unwrap());
    }),
    (
        "a scope too many",
        Outcome::InsufficientScope,
        |_, request| {
            request.required_scopes = scopes(&["invoice:read", "invoice:send"]).into();
        },
    ),
    ("none of any", Outcome::InsufficientScope, |_, request| {
        request.any_scopes = Some(scopes(&["invoice:send", "domain:order"]).into());
    }),
];

#[test]
fn a_good_key_is_valid() {
    assert_eq!(outcome(Made::good(), &asking(&[])), Outcome::Valid);
    assert_eq!(
        outcome(Made::good(), &asking(&["invoice:read"])),
        Outcome::Valid
    );
    let mut holder = Made::good();
    (holder.asks_service, holder.service) = (false, None);
    assert_eq!(outcome(holder, &asking(&[])), Outcome::Valid);
}

#[test]
fn each_fault_has_its_code_and_the_first_of_two_is_told() {
    for (at, (name, code, spoil)) in SPOILED.iter().enumerate() {
        let (mut made, mut request) = (Made::good(), asking(&["invoice:read"]));
        spoil(&mut made, &mut request);
        let subject = made.subject();
        assert_eq!(decide(&subject, &request, now()).outcome, *code, "{name}");
        let failed: Vec<Outcome> = explain(&subject, &request, now())
            .into_iter()
            .filter(|check| !check.passed)
            .map(|check| check.fails_with)
            .collect();
        assert_eq!(failed.first(), Some(code), "{name}: {failed:?}");
        for (later_name, later_code, later) in &SPOILED[at + 1..] {
            // Two ways to the same code may undo each other, and a service that is not there has no
            // first environment.
            if later_code == code
                || (*name, *later_name) == ("the service's first environment", "no such service")
            {
                continue;
            }
            let (mut made, mut request) = (Made::good(), asking(&["invoice:read"]));
            later(&mut made, &mut request);
            spoil(&mut made, &mut request);
            assert_eq!(outcome(made, &request), *code, "{name} and {later_name}");
        }
    }
}

#[test]
fn an_end_is_refused_from_its_very_instant() {
    for (end, code) in [
        (NOW - 1, Outcome::Expired),
        (NOW, Outcome::Expired),
        (NOW + 1, Outcome::Valid),
    ] {
        let end = Some(Timestamp::from_millis(end));
        let mut made = Made::good();
        made.key.expires_at = end;
        assert_eq!(outcome(made, &asking(&[])), code);
        let mut made = Made::good();
        made.key.secret_until = end;
        assert_eq!(outcome(made, &asking(&[])), code);
    }
}

#[test]
fn what_is_written_is_what_the_document_says() {
    let written = |made: Made, request: &Request<'_>| -> VerifyAnswer {
        let subject = made.subject();
        let answer = Answer {
            decision: decide(&subject, request, now()),
            subject: Some(subject),
            spent: None,
        };
        let text = write(&answer, "5f0c2f4b9d1e4a7786c01b2a");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    };
    let told = written(Made::good(), &asking(&[]));
    assert!(told.valid && told.code == Outcome::Valid && told.status == 200);
    assert_eq!(told.name.unwrap().as_str(), "a \"worker\" \u{1f511}");
    assert_eq!(told.consumer.unwrap().slug.as_str(), "acme");
    assert_eq!(told.service.unwrap().as_str(), "invoicing");
    assert_eq!(told.scopes.unwrap().len(), 1);
    assert_eq!(told.metadata.unwrap().to_text(), r#"{"plan":["a",1]}"#);
    assert!(told.missing_scopes.is_none() && told.secret.is_some());
    let told = written(Made::good(), &asking(&["a", "b"]));
    assert_eq!((told.code, told.status), (Outcome::InsufficientScope, 403));
    assert_eq!(told.missing_scopes.unwrap(), scopes(&["a", "b"]));
    let mut made = Made::good();
    made.service = None;
    let told = written(made, &asking(&[]));
    assert_eq!(told.code, Outcome::WrongService);
    assert!(told.key_id.is_some() && told.name.is_none() && told.consumer.is_none());
    let text = write(
        &Answer {
            decision: super::decide::Decision {
                outcome: Outcome::Unknown,
                missing_scopes: Vec::new(),
            },
            subject: None,
            spent: None,
        },
        "r",
    );
    assert_eq!(
        text,
        r#"{"valid":false,"code":"unknown","status":401,"request_id":"r"}"#
    );
}

#[test]
fn metrics_and_ledger_know_every_outcome() {
    let outcomes = Outcome::ALL.map(Outcome::code);
    assert_eq!(crate::metrics::OUTCOMES, outcomes);
}
