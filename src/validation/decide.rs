//! The decision: one pure function, in the order of the codes.

use std::borrow::Cow;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::snapshot::Subject;
use crate::scope::RequiredScope;
use crate::text::Environment;
use crate::time::Timestamp;

/// What validation decided: `valid`, or the first check that failed.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Valid,
    Missing,
    Malformed,
    Unknown,
    Revoked,
    Disabled,
    Expired,
    NotYetValid,
    WrongEnvironment,
    WrongService,
    IpNotAllowed,
    InsufficientScope,
    RateLimited,
    QuotaExceeded,
}

impl Outcome {
    pub const ALL: [Self; 14] = [
        Self::Valid,
        Self::Missing,
        Self::Malformed,
        Self::Unknown,
        Self::Revoked,
        Self::Disabled,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongEnvironment,
        Self::WrongService,
        Self::IpNotAllowed,
        Self::InsufficientScope,
        Self::RateLimited,
        Self::QuotaExceeded,
    ];

    pub fn code(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Revoked => "revoked",
            Self::Disabled => "disabled",
            Self::Expired => "expired",
            Self::NotYetValid => "not_yet_valid",
            Self::WrongEnvironment => "wrong_environment",
            Self::WrongService => "wrong_service",
            Self::IpNotAllowed => "ip_not_allowed",
            Self::InsufficientScope => "insufficient_scope",
            Self::RateLimited => "rate_limited",
            Self::QuotaExceeded => "quota_exceeded",
        }
    }

    /// The HTTP status to tell the client who presented the key.
    pub fn status(self) -> u16 {
        match self {
            Self::Valid => 200,
            Self::Missing
            | Self::Malformed
            | Self::Unknown
            | Self::Revoked
            | Self::Disabled
            | Self::Expired
            | Self::NotYetValid => 401,
            Self::WrongEnvironment
            | Self::WrongService
            | Self::IpNotAllowed
            | Self::InsufficientScope => 403,
            Self::RateLimited | Self::QuotaExceeded => 429,
        }
    }

    pub fn is_valid(self) -> bool {
        self == Self::Valid
    }
}

/// Which environment the key must be of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AskedEnvironment<'a> {
    #[default]
    Any,
    Is(Cow<'a, Environment>),
    /// The first of the service's list.
    ServiceDefault,
}

/// What is asked of the key, parsed.
#[derive(Clone, Debug, Default)]
pub struct Request<'a> {
    pub environment: AskedEnvironment<'a>,
    pub required_scopes: Cow<'a, [RequiredScope]>,
    /// `None` asks for none; never empty.
    pub any_scopes: Option<Cow<'a, [RequiredScope]>>,
    pub ip: Option<IpAddr>,
    /// What is charged to limits and quotas; 0 decides without charging.
    pub cost: u64,
}

/// One check of a decision, for `explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The code that a failure gives.
    pub fails_with: Outcome,
    pub passed: bool,
    pub detail: String,
}

/// The outcome, and the scopes that were missed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub outcome: Outcome,
    /// Of `required_scopes` those not met; of `any_scopes` all of them.
    pub missing_scopes: Vec<RequiredScope>,
}

/// A check: the outcome it fails with, or `None`.
type Rule = fn(&Subject, &Request<'_>, Timestamp) -> Option<Outcome>;

/// The checks in their order; the first that fails is the outcome.
const ORDER: [Rule; 7] = [
    revoked,
    disabled,
    expired,
    not_yet_valid,
    environment,
    service,
    ip,
];

/// Decides afresh from the request's own inputs.
pub fn decide(subject: &Subject, request: &Request<'_>, now: Timestamp) -> Decision {
    for check in ORDER {
        if let Some(outcome) = check(subject, request, now) {
            return Decision {
                outcome,
                missing_scopes: Vec::new(),
            };
        }
    }
    let missing_scopes = missing(subject, request);
    let outcome = if missing_scopes.is_empty() {
        Outcome::Valid
    } else {
        Outcome::InsufficientScope
    };
    Decision {
        outcome,
        missing_scopes,
    }
}

/// What is wrong with a key by itself and with its grant on the service asked for, whoever presents it and
/// whatever for.
pub fn fault(subject: &Subject, now: Timestamp) -> Option<Outcome> {
    let request = Request::default();
    [revoked, disabled, expired, not_yet_valid, service]
        .into_iter()
        .find_map(|check: Rule| check(subject, &request, now))
}

/// Every check with its result, whatever the ones before it said.
pub fn explain(subject: &Subject, request: &Request<'_>, now: Timestamp) -> Vec<Check> {
    let key = &subject.key;
    let named = |at: Option<Timestamp>| at.map_or("never".to_owned(), |at| at.to_string());
    let mut checks = Vec::with_capacity(8);
    let mut add = |fails_with, failed: Option<Outcome>, detail: String| {
        checks.push(Check {
            fails_with,
            passed: failed.is_none(),
            detail,
        });
    };
    add(
        Outcome::Revoked,
        revoked(subject, request, now),
        match (key.revoked, key.secret_revoked) {
            (true, _) => "the key is revoked".to_owned(),
            (false, true) => "the secret is revoked".to_owned(),
            (false, false) => "neither the key nor the secret is revoked".to_owned(),
        },
    );
    add(
        Outcome::Disabled,
        disabled(subject, request, now),
        if key.disabled {
            "the key is disabled".to_owned()
        } else if !subject.consumer.is_active {
            format!(
                "the consumer {} is disabled or deleted",
                subject.consumer.slug
            )
        } else if !subject.tenant.is_active {
            "the tenant is disabled or deleted".to_owned()
        } else {
            "key, consumer and tenant are enabled".to_owned()
        },
    );
    add(
        Outcome::Expired,
        expired(subject, request, now),
        format!(
            "the key ends {}, the secret {}",
            named(key.expires_at),
            named(key.secret_until)
        ),
    );
    add(
        Outcome::NotYetValid,
        not_yet_valid(subject, request, now),
        key.not_before
            .map_or("there is no not_before".to_owned(), |at| {
                format!("the key begins {at}")
            }),
    );
    add(
        Outcome::WrongEnvironment,
        environment(subject, request, now),
        match asked_environment(subject, request) {
            Some(asked) => format!("asked for {asked}, the key is of {}", key.owner.environment),
            None => format!("none asked for, the key is of {}", key.owner.environment),
        },
    );
    add(
        Outcome::WrongService,
        service(subject, request, now),
        match &subject.service {
            None => "there is no such service".to_owned(),
            Some(entry) if !entry.is_active => {
                format!("the service {} is disabled or deleted", entry.service.slug)
            }
            Some(entry) if subject.grant().is_none() => {
                format!("the key has no grant on {}", entry.service.slug)
            }
            Some(entry) => format!("the key has a grant on {}", entry.service.slug),
        },
    );
    add(
        Outcome::IpNotAllowed,
        ip(subject, request, now),
        match (&key.terms.allowed_ips, request.ip) {
            (None, _) => "every address is allowed".to_owned(),
            (Some(_), None) => "the key has allowed_ips and no ip was given".to_owned(),
            (Some(nets), Some(ip)) => format!("{ip} against {} networks", nets.len()),
        },
    );
    let missing = missing(subject, request);
    let list: Vec<String> = missing.iter().map(ToString::to_string).collect();
    add(
        Outcome::InsufficientScope,
        (!missing.is_empty()).then_some(Outcome::InsufficientScope),
        if missing.is_empty() {
            "the scopes asked for are granted".to_owned()
        } else {
            format!("missing: {}", list.join(" "))
        },
    );
    checks
}

fn revoked(subject: &Subject, _: &Request<'_>, _: Timestamp) -> Option<Outcome> {
    (subject.key.revoked || subject.key.secret_revoked).then_some(Outcome::Revoked)
}

fn disabled(subject: &Subject, _: &Request<'_>, _: Timestamp) -> Option<Outcome> {
    let enabled = !subject.key.disabled && subject.consumer.is_active && subject.tenant.is_active;
    (!enabled).then_some(Outcome::Disabled)
}

/// From its very instant: a key that ends at noon is refused at noon.
fn expired(subject: &Subject, _: &Request<'_>, now: Timestamp) -> Option<Outcome> {
    let ended = |end: Option<Timestamp>| end.is_some_and(|end| end <= now);
    (ended(subject.key.expires_at) || ended(subject.key.secret_until)).then_some(Outcome::Expired)
}

fn not_yet_valid(subject: &Subject, _: &Request<'_>, now: Timestamp) -> Option<Outcome> {
    subject
        .key
        .not_before
        .is_some_and(|start| now < start)
        .then_some(Outcome::NotYetValid)
}

fn environment(subject: &Subject, request: &Request<'_>, _: Timestamp) -> Option<Outcome> {
    asked_environment(subject, request)
        .is_some_and(|asked| *asked != subject.key.owner.environment)
        .then_some(Outcome::WrongEnvironment)
}

/// Of a service that is not there nothing is asked: the next check refuses.
fn asked_environment<'a>(
    subject: &'a Subject,
    request: &'a Request<'_>,
) -> Option<&'a Environment> {
    match &request.environment {
        AskedEnvironment::Any => None,
        AskedEnvironment::Is(environment) => Some(environment),
        AskedEnvironment::ServiceDefault => Some(
            subject
                .service
                .as_ref()?
                .service
                .settings
                .key_policy
                .environments
                .first(),
        ),
    }
}

fn service(subject: &Subject, _: &Request<'_>, _: Timestamp) -> Option<Outcome> {
    let serves = subject
        .service
        .as_ref()
        .is_some_and(|entry| entry.is_active);
    (subject.asks_service && (!serves || subject.grant().is_none()))
        .then_some(Outcome::WrongService)
}

fn ip(subject: &Subject, request: &Request<'_>, _: Timestamp) -> Option<Outcome> {
    let nets = subject.key.terms.allowed_ips.as_ref()?;
    let allowed = request.ip.is_some_and(|ip| {
        let ip = ip.to_canonical();
        nets.iter().any(|net| net.contains(&ip))
    });
    (!allowed).then_some(Outcome::IpNotAllowed)
}

fn missing(subject: &Subject, request: &Request<'_>) -> Vec<RequiredScope> {
    let Some(entry) = &subject.service else {
        return request.required_scopes.to_vec();
    };
    let (catalogue, scopes) = (&entry.catalogue, subject.scopes());
    let mut missing: Vec<RequiredScope> = request
        .required_scopes
        .iter()
        .filter(|required| !catalogue.satisfied(scopes, required))
        .cloned()
        .collect();
    if let Some(any) = &request.any_scopes
        && !any
            .iter()
            .any(|required| catalogue.satisfied(scopes, required))
    {
        missing.extend(any.iter().cloned());
    }
    missing
}
