//! What there is to look at about a key. Pure: it is handed the key, what its uses were, and the time.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::audit::Actor;
use crate::error::Violation;
use crate::id::{ConsumerId, KeyId, SecretId};
use crate::keys::key::{Key, KeyStatus};
use crate::keys::lookup_id::LookupId;
use crate::rights;
use crate::scope::{Catalogue, RequiredScope, Scope};
use crate::text::{Environment, ExternalId, Name, Slug, Tag};
use crate::time::{Span, Timestamp};

/// Why a key wants to be looked at.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It has no end.
    NoExpiry,
    /// Its newest secret is older than `not_rotated_for`.
    NotRotated,
    /// It was used, but not for `idle_for`.
    Idle,
    NeverUsed,
    /// It grants a scope that no use needed for `scopes_unused_for`.
    UnusedScopes,
    /// Its consumer is disabled, and would have it back when enabled.
    ConsumerDisabled,
    /// A secret was used after a rotation had put another in its place, and is still valid.
    SupersededInUse,
}

impl Finding {
    pub const ALL: [Self; 7] = [
        Self::NoExpiry,
        Self::NotRotated,
        Self::Idle,
        Self::NeverUsed,
        Self::UnusedScopes,
        Self::ConsumerDisabled,
        Self::SupersededInUse,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoExpiry => "no_expiry",
            Self::NotRotated => "not_rotated",
            Self::Idle => "idle",
            Self::NeverUsed => "never_used",
            Self::UnusedScopes => "unused_scopes",
            Self::ConsumerDisabled => "consumer_disabled",
            Self::SupersededInUse => "superseded_in_use",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// From when on something is a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
#[schema(title = "ReviewThresholds")]
pub struct Thresholds {
    /// `1d` to `3650d`.
    #[schema(default = "90d", required = false)]
    pub not_rotated_for: Span,
    /// `1d` to `3650d`.
    #[schema(default = "90d", required = false)]
    pub idle_for: Span,
    /// `1d` to `400d`: so long the scopes of uses are kept.
    #[schema(default = "90d", required = false)]
    pub scopes_unused_for: Span,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            not_rotated_for: Span::days(90),
            idle_for: Span::days(90),
            scopes_unused_for: Span::days(90),
        }
    }
}

impl Thresholds {
    /// What is out of range, below `pointer`.
    pub fn check(&self, pointer: &str) -> Vec<Violation> {
        let parts = [
            ("not_rotated_for", self.not_rotated_for, 3650),
            ("idle_for", self.idle_for, 3650),
            ("scopes_unused_for", self.scopes_unused_for, 400),
        ];
        let wrong = parts
            .into_iter()
            .filter(|(_, span, days)| *span < Span::days(1) || *span > Span::days(*days));
        wrong
            .map(|(name, _, days)| {
                Violation::new(
                    format!("{pointer}/{name}"),
                    format!("must be from 1d to {days}d"),
                )
            })
            .collect()
    }
}

/// What is known of a key beside itself.
#[derive(Debug, Default)]
pub struct Known<'a> {
    pub consumer_disabled: bool,
    /// For each of its grants the catalogue of the service, and what its uses there required.
    pub uses: Vec<(Option<&'a Catalogue>, Vec<RequiredScope>)>,
    /// Why it was made.
    pub reason: Option<String>,
    /// Who rotated it last.
    pub rotated_by: Option<Actor>,
}

/// What a review holds of a key for good.
#[derive(Clone, Debug, Serialize)]
pub struct Frozen {
    pub findings: BTreeSet<Finding>,
    pub key: FrozenKey,
}

/// A key as it stood when the review began.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FrozenKey {
    pub id: KeyId,
    pub lookup_id: LookupId,
    pub name: Name,
    pub status: KeyStatus,
    pub consumer: FrozenConsumer,
    pub environment: Environment,
    pub grants: Vec<FrozenGrant>,
    pub not_before: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub tags: Vec<Tag>,
    pub external_id: Option<ExternalId>,
    pub created_at: Timestamp,
    #[schema(value_type = Object)]
    pub created_by: Actor,
    /// Why it was made, unless that part of the audit trail was cut off.
    pub reason: Option<String>,
    pub rotated_at: Option<Timestamp>,
    /// `null` also when that part of the audit trail was cut off.
    #[schema(value_type = Option<Object>)]
    pub rotated_by: Option<Actor>,
    pub last_used: Option<Timestamp>,
    pub secrets: Vec<FrozenSecret>,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FrozenConsumer {
    pub id: ConsumerId,
    pub slug: Slug,
    pub disabled: bool,
}

#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FrozenGrant {
    pub service: Slug,
    pub scopes: Vec<Scope>,
    /// Those that no use needed for `scopes_unused_for`. None of Keystead's own service: what was done with them is in
    /// the audit trail, and no use of a key.
    pub unused_scopes: Vec<Scope>,
}

/// A secret that could be used.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FrozenSecret {
    pub id: SecretId,
    pub created_at: Timestamp,
    pub valid_until: Option<Timestamp>,
    pub superseded: bool,
    pub last_used_at: Option<Timestamp>,
}

/// The key as it stands, and what there is to look at.
pub fn freeze(key: &Key, known: Known<'_>, thresholds: &Thresholds, now: Timestamp) -> Frozen {
    let none = (None, Vec::new());
    let grants: Vec<FrozenGrant> = key
        .grants
        .iter()
        .enumerate()
        .map(|(index, grant)| {
            let (catalogue, required) = known.uses.get(index).unwrap_or(&none);
            FrozenGrant {
                service: grant.service.clone(),
                scopes: grant.scopes.clone(),
                unused_scopes: if grant.service.as_str() == rights::SERVICE {
                    Vec::new()
                } else {
                    unused(&grant.scopes, *catalogue, required)
                },
            }
        })
        .collect();
    let newest = key.secrets.iter().map(|secret| secret.created_at).max();
    let is_before = |at: Timestamp, span: Span| at < now.minus(span);
    let superseded_in_use = key.live_secrets(now).any(|secret| {
        matches!((secret.superseded_at, secret.last_used_at), (Some(ended), Some(used)) if used > ended)
    });
    let holds = |finding: Finding| match finding {
        Finding::NoExpiry => key.expires_at.is_none(),
        Finding::NotRotated => {
            is_before(newest.unwrap_or(key.created_at), thresholds.not_rotated_for)
        }
        Finding::Idle => key
            .last_used_at
            .is_some_and(|at| is_before(at, thresholds.idle_for)),
        Finding::NeverUsed => key.last_used_at.is_none(),
        Finding::UnusedScopes => grants.iter().any(|grant| !grant.unused_scopes.is_empty()),
        Finding::ConsumerDisabled => known.consumer_disabled,
        Finding::SupersededInUse => superseded_in_use,
    };
    let findings = Finding::ALL.into_iter().filter(|one| holds(*one)).collect();
    let secrets = key.live_secrets(now).map(|secret| FrozenSecret {
        id: secret.id.clone(),
        created_at: secret.created_at,
        valid_until: secret.valid_until,
        superseded: secret.superseded_at.is_some(),
        last_used_at: secret.last_used_at,
    });
    let key = FrozenKey {
        id: key.id.clone(),
        lookup_id: key.lookup_id.clone(),
        name: key.name.clone(),
        status: key.status(now),
        consumer: FrozenConsumer {
            id: key.consumer.id.clone(),
            slug: key.consumer.slug.clone(),
            disabled: known.consumer_disabled,
        },
        environment: key.environment.clone(),
        not_before: key.not_before,
        expires_at: key.expires_at,
        tags: key.tags.clone(),
        external_id: key.external_id.clone(),
        created_at: key.created_at,
        created_by: key.created_by.clone(),
        reason: known.reason,
        rotated_at: key.rotated_at,
        rotated_by: known.rotated_by,
        last_used: key.last_used_at,
        secrets: secrets.collect(),
        grants,
    };
    Frozen { findings, key }
}

/// A scope is used if it alone meets something that was required.
fn unused(
    scopes: &[Scope],
    catalogue: Option<&Catalogue>,
    required: &[RequiredScope],
) -> Vec<Scope> {
    let none = Catalogue::default();
    let catalogue = catalogue.unwrap_or(&none);
    let is_used = |scope: &Scope| {
        required
            .iter()
            .any(|required| catalogue.satisfied(std::slice::from_ref(scope), required))
    };
    scopes.iter().filter(|one| !is_used(one)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::entropy::Entropy;
    use crate::id::{ServiceId, TenantId};
    use crate::keys::key::{ConsumerRef, Grant, Secret};
    use crate::limits::RateLimits;
    use crate::metadata::Metadata;
    use crate::text::Prefix;

    const NOW: Timestamp = Timestamp::MAX;

    fn days_ago(days: u64) -> Timestamp {
        NOW.minus(Span::days(days))
    }

    fn secret(created: u64) -> Secret {
        Secret {
            id: SecretId::new(&Clock::System, &Entropy::System),
            created_at: days_ago(created),
            valid_until: None,
            superseded_at: None,
            revoked_at: None,
            last_used_at: None,
        }
    }

    /// Made ten days ago, used yesterday, with an end.
    fn key() -> Key {
        let (clock, entropy) = (Clock::System, Entropy::System);
        Key {
            id: KeyId::new(&clock, &entropy),
            tenant_id: TenantId::new(&clock, &entropy),
            consumer: ConsumerRef {
                id: ConsumerId::new(&clock, &entropy),
                slug: Slug::parse("acme").unwrap(),
            },
            lookup_id: LookupId::parse("000000000000").unwrap(),
            prefix: Prefix::parse("ks").unwrap(),
            environment: Environment::parse("live").unwrap(),
            name: Name::parse("k").unwrap(),
            external_id: None,
            not_before: None,
            expires_at: Some(NOW),
            rate_limits: RateLimits::default(),
            quota: None,
            allowed_ips: None,
            metadata: Metadata::default(),
            tags: Vec::new(),
            disabled_at: None,
            revoked_at: None,
            revoked_by: None,
            reason: None,
            rotated_at: None,
            last_used_at: Some(days_ago(1)),
            version: 1,
            created_at: days_ago(10),
            created_by: Actor::System,
            updated_at: days_ago(10),
            grants: vec![Grant {
                service_id: ServiceId::new(&clock, &entropy),
                service: Slug::parse("billing").unwrap(),
                scopes: vec![Scope::parse("invoice:*").unwrap()],
                rate_limits: None,
            }],
            secrets: vec![secret(10)],
        }
    }

    fn used(scopes: &[&str]) -> Known<'static> {
        let required = scopes.iter().map(|one| RequiredScope::parse(one).unwrap());
        Known {
            uses: vec![(None, required.collect())],
            ..Known::default()
        }
    }

    fn findings(key: &Key, known: Known<'_>) -> Vec<Finding> {
        let frozen = freeze(key, known, &Thresholds::default(), NOW);
        frozen.findings.into_iter().collect()
    }

    #[test]
    fn each_finding_has_its_cause_and_no_other() {
        let used = || used(&["invoice:read"]);
        assert_eq!(findings(&key(), used()), []);
        let with = |change: &dyn Fn(&mut Key)| {
            let mut key = key();
            change(&mut key);
            findings(&key, used())
        };
        assert_eq!(with(&|key| key.expires_at = None), [Finding::NoExpiry]);
        assert_eq!(
            with(&|key| key.secrets = vec![secret(91)]),
            [Finding::NotRotated]
        );
        assert_eq!(with(&|key| key.secrets.push(secret(91))), []);
        assert_eq!(
            with(&|key| key.last_used_at = Some(days_ago(91))),
            [Finding::Idle]
        );
        assert_eq!(with(&|key| key.last_used_at = None), [Finding::NeverUsed]);
        assert_eq!(findings(&key(), Known::default()), [Finding::UnusedScopes]);
        let disabled = Known {
            consumer_disabled: true,
            ..used()
        };
        assert_eq!(findings(&key(), disabled), [Finding::ConsumerDisabled]);
    }

    #[test]
    fn a_superseded_secret_in_use_is_one_that_is_valid_and_was_used_since() {
        let now = days_ago(0).minus(Span::days(1));
        let find = |last_used: Timestamp, valid_until: Timestamp| {
            let mut key = key();
            key.secrets.push(Secret {
                superseded_at: Some(days_ago(5)),
                valid_until: Some(valid_until),
                last_used_at: Some(last_used),
                ..secret(10)
            });
            let known = used(&["invoice:read"]);
            let frozen = freeze(&key, known, &Thresholds::default(), now);
            frozen.findings.contains(&Finding::SupersededInUse)
        };
        assert!(find(days_ago(2), NOW));
        assert!(!find(days_ago(6), NOW), "used before the rotation");
        assert!(!find(days_ago(2), days_ago(2)), "ended");
    }

    #[test]
    fn what_administers_is_not_said_to_be_unused() {
        let mut key = key();
        let unused_of = |key: &Key| {
            let frozen = freeze(key, Known::default(), &Thresholds::default(), NOW);
            frozen.key.grants[0].unused_scopes.len()
        };
        assert_eq!(unused_of(&key), 1);
        key.grants[0].service = Slug::parse(rights::SERVICE).unwrap();
        assert_eq!(unused_of(&key), 0);
    }

    #[test]
    fn a_scope_is_used_when_it_alone_met_what_was_required() {
        let scope = |text: &str| Scope::parse(text).unwrap();
        let granted = [
            scope("invoice:*"),
            scope("invoice:read"),
            scope("order:write"),
        ];
        let unused = |required: &[&str]| {
            let required: Vec<RequiredScope> = required
                .iter()
                .map(|text| RequiredScope::parse(text).unwrap())
                .collect();
            let unused = super::unused(&granted, None, &required);
            unused.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(unused(&["invoice:read"]), ["order:write"]);
        assert_eq!(unused(&["invoice:send"]), ["invoice:read", "order:write"]);
        assert_eq!(unused(&["order:*", "domain:invoice"]), Vec::<String>::new());
        assert_eq!(unused(&[]).len(), 3);
    }

    #[test]
    fn thresholds_are_days() {
        assert!(Thresholds::default().check("").is_empty());
        let wrong = Thresholds {
            not_rotated_for: Span::hours(1),
            idle_for: Span::days(3651),
            scopes_unused_for: Span::days(401),
        };
        let pointers: Vec<String> = wrong
            .check("/thresholds")
            .into_iter()
            .map(|violation| violation.pointer)
            .collect();
        assert_eq!(
            pointers,
            [
                "/thresholds/not_rotated_for",
                "/thresholds/idle_for",
                "/thresholds/scopes_unused_for"
            ]
        );
    }
}
