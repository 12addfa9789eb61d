//! What is asked for when a key is issued or changed, and what the services' policies make of it.
//!
//! Everything here is pure: it is handed the services and the time, and answers either the rules of
//! the key or every violation at once.

use ipnet::IpNet;
use serde::Deserialize;
use utoipa::ToSchema;

use super::key::Grant;

use crate::error::Violation;
use crate::limits::{Quota, QuotaPatch, RateLimits};
use crate::metadata::{Metadata, MetadataPatch};
use crate::patch::Reason;
use crate::rights;
use crate::scope::{Catalogue, Scope};
use crate::services::Service;
use crate::text::{Environment, ExternalId, Name, Prefix, Tag};
use crate::time::{Span, Timestamp};

/// How long a key lives when neither it nor its service says.
pub const DEFAULT_TTL: Span = Span::days(90);

const GRANTS_MAX: usize = 50;
const SCOPES_MAX: usize = 200;
const ALLOWED_IPS_MAX: usize = 100;
const TAGS_MAX: usize = 50;

/// A key to create.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "billing worker",
    "consumer": "acme",
    "environment": "live",
    "grants": [{"service": "invoicing", "scopes": ["invoice:read", "invoice:send"]}],
    "ttl": "90d",
    "tags": ["team:payments"]
}))]
pub struct NewKey {
    pub name: Name,
    /// Id, slug or external id of the consumer.
    #[schema(min_length = 1, max_length = 255)]
    pub consumer: String,
    /// Default: the first of the service's list.
    pub environment: Option<Environment>,
    #[schema(min_items = 1, max_items = 50)]
    pub grants: Vec<NewGrant>,
    pub not_before: Option<Timestamp>,
    /// Life from now; not together with `expires_at`. Default: the service's `default_ttl`, else `90d`.
    pub ttl: Option<Span>,
    /// `null` is a key without an end, where the policy allows it.
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<Timestamp>)]
    pub expires_at: Option<Option<Timestamp>>,
    #[serde(default)]
    pub rate_limits: RateLimits,
    pub quota: Option<Quota>,
    /// Addresses or networks that the key may be used from; omitted means from anywhere.
    #[schema(value_type = Option<Vec<String>>, min_items = 1, max_items = 100)]
    pub allowed_ips: Option<Vec<IpNetText>>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    #[schema(max_items = 50)]
    pub tags: Vec<Tag>,
    pub external_id: Option<ExternalId>,
    pub reason: Option<Reason>,
}

/// A grant to create.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGrant {
    /// Id or slug of the service.
    #[schema(min_length = 1, max_length = 63)]
    pub service: String,
    /// May be empty: then it satisfies only what needs no scope.
    #[schema(max_items = 200)]
    pub scopes: Vec<Scope>,
    pub rate_limits: Option<RateLimits>,
}

/// A change of a key by RFC 7396: absent stays, `null` clears, lists are replaced whole.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"tags": ["team:payments", "tier:gold"], "reason": "moved to gold"}))]
pub struct KeyPatch {
    pub name: Option<Name>,
    #[schema(min_items = 1, max_items = 50)]
    pub grants: Option<Vec<NewGrant>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<Timestamp>)]
    pub not_before: Option<Option<Timestamp>>,
    /// A new life from now; not together with `expires_at`.
    pub ttl: Option<Span>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<Timestamp>)]
    pub expires_at: Option<Option<Timestamp>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<RateLimits>)]
    pub rate_limits: Option<Option<RateLimits>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<QuotaPatch>)]
    pub quota: Option<Option<QuotaPatch>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<Vec<String>>)]
    pub allowed_ips: Option<Option<Vec<IpNetText>>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<MetadataPatch>)]
    pub metadata: Option<Option<MetadataPatch>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<Vec<Tag>>)]
    pub tags: Option<Option<Vec<Tag>>>,
    #[serde(default, deserialize_with = "crate::patch::double_option")]
    #[schema(value_type = Option<ExternalId>)]
    pub external_id: Option<Option<ExternalId>>,
    pub reason: Option<Reason>,
}

/// An address or network in CIDR notation; IPv4-mapped IPv6 is IPv4, host bits are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpNetText(pub IpNet);

impl<'de> Deserialize<'de> for IpNetText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_net(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom("must be an address or a network, such as 203.0.113.0/24")
        })
    }
}

fn parse_net(text: &str) -> Option<IpNet> {
    if text.len() > 64 {
        return None;
    }
    let net = match text.parse::<IpNet>() {
        Ok(net) => net.trunc(),
        Err(_not_a_network) => IpNet::from(text.parse::<std::net::IpAddr>().ok()?.to_canonical()),
    };
    if let IpNet::V6(v6) = net
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.addr().to_ipv4_mapped()
    {
        return ipnet::Ipv4Net::new(v4, v6.prefix_len() - 96)
            .ok()
            .map(IpNet::V4);
    }
    Some(net)
}

/// The policies of all services that a key grants, taken together: the strictest of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub prefix: Prefix,
    pub environment_default: Environment,
    pub environments: Vec<Environment>,
    pub ttl_default: Span,
    pub ttl_max: Option<Span>,
    pub allow_no_expiry: bool,
    pub rotation_overlap: Span,
    pub self_rotate: bool,
}

impl Policy {
    /// `None` without services.
    pub fn of(services: &[&Service]) -> Option<Self> {
        let (first, _) = services.split_first()?;
        let policies = || services.iter().map(|service| &service.settings.key_policy);
        let first = &first.settings.key_policy;
        let environments: Vec<Environment> = first
            .environments
            .as_slice()
            .iter()
            .filter(|environment| policies().all(|p| p.environments.contains(environment)))
            .cloned()
            .collect();
        let ttl_max = policies().filter_map(|policy| policy.max_ttl).min();
        let ttl_default = policies().filter_map(|policy| policy.default_ttl).min();
        let ttl_default = ttl_default.unwrap_or(DEFAULT_TTL);
        Some(Self {
            prefix: first.prefix.clone(),
            environment_default: environments
                .first()
                .unwrap_or(first.environments.first())
                .clone(),
            environments,
            ttl_default: ttl_max.map_or(ttl_default, |max| ttl_default.min(max)),
            ttl_max,
            allow_no_expiry: policies().all(|policy| policy.allow_no_expiry),
            rotation_overlap: policies()
                .filter_map(|policy| policy.rotation_overlap)
                .min()
                .unwrap_or(Span::hours(24)),
            self_rotate: policies().all(|policy| policy.self_rotate),
        })
    }

    /// The end of a key. `ttl` and an `expires_at` count from `from`: the creation, or a rotation.
    pub fn end(
        &self,
        ttl: Option<Span>,
        expires_at: Option<Option<Timestamp>>,
        from: Timestamp,
        errors: &mut Vec<Violation>,
    ) -> Option<Timestamp> {
        let (pointer, end) = match (ttl, expires_at) {
            (Some(_), Some(_)) => {
                errors.push(Violation::new("/ttl", "give ttl or expires_at, not both"));
                return None;
            }
            (Some(ttl), None) => {
                if ttl == Span::ZERO {
                    errors.push(Violation::new("/ttl", "must be longer than 0s"));
                }
                ("/ttl", from.plus(ttl))
            }
            (None, Some(Some(end))) => {
                if end <= from {
                    errors.push(Violation::new("/expires_at", "must lie in the future"));
                }
                ("/expires_at", end)
            }
            (None, Some(None)) => {
                if !self.allow_no_expiry {
                    errors.push(Violation::new(
                        "/expires_at",
                        "must not be null: a service of this key has no allow_no_expiry",
                    ));
                }
                return None;
            }
            (None, None) => ("/ttl", from.plus(self.ttl_default)),
        };
        if let Some(max) = self.ttl_max
            && end > from.plus(max)
        {
            errors.push(Violation::new(
                pointer,
                format!("must end within max_ttl, {max}"),
            ));
        }
        Some(end)
    }

    pub fn environment(
        &self,
        asked: Option<&Environment>,
        errors: &mut Vec<Violation>,
    ) -> Environment {
        let environment = asked.unwrap_or(&self.environment_default);
        if !self.environments.contains(environment) {
            let allowed: Vec<&str> = self.environments.iter().map(Environment::as_str).collect();
            let detail = if allowed.is_empty() {
                "the services of this key share no environment".to_owned()
            } else {
                format!("must be one of {}", allowed.join(", "))
            };
            errors.push(Violation::new("/environment", detail));
        }
        environment.clone()
    }
}

/// Checks the bounds of what both creating and changing take.
pub fn check_rules(
    allowed_ips: Option<&[IpNetText]>,
    tags: Option<&[Tag]>,
    errors: &mut Vec<Violation>,
) {
    if let Some(ips) = allowed_ips {
        if ips.is_empty() {
            errors.push(Violation::new(
                "/allowed_ips",
                "must not be empty: leave it out to allow every address",
            ));
        }
        if ips.len() > ALLOWED_IPS_MAX {
            errors.push(Violation::new(
                "/allowed_ips",
                "must have at most 100 items",
            ));
        }
    }
    if let Some(tags) = tags
        && tags.len() > TAGS_MAX
    {
        errors.push(Violation::new("/tags", "must have at most 50 items"));
    }
}

pub fn check_span(
    not_before: Option<Timestamp>,
    end: Option<Timestamp>,
    errors: &mut Vec<Violation>,
) {
    if let (Some(start), Some(end)) = (not_before, end)
        && start >= end
    {
        errors.push(Violation::new(
            "/not_before",
            "must lie before the key's end",
        ));
    }
}

/// A scope that the service knows: of its catalogue if it has one, or a management scope.
fn grantable(service: &Service, scope: &Scope) -> Result<(), &'static str> {
    if service.slug.as_str() == rights::SERVICE {
        return rights::is_management_scope(scope.as_str())
            .then_some(())
            .ok_or("is not a management scope, such as keys:read or verify:billing");
    }
    let catalogue = Catalogue::new(&service.settings.scopes, "").unwrap_or_default();
    (catalogue.is_empty() || catalogue.knows(scope))
        .then_some(())
        .ok_or("is not in the service's catalogue")
}

/// Judges grants against their services. `services` are in the order of `grants`, `None` where
/// there is no such service.
pub fn check_grants(
    grants: &[NewGrant],
    services: &[Option<Service>],
    errors: &mut Vec<Violation>,
) -> Vec<Grant> {
    if grants.is_empty() {
        errors.push(Violation::new("/grants", "must have at least one item"));
    }
    if grants.len() > GRANTS_MAX {
        errors.push(Violation::new("/grants", "must have at most 50 items"));
        return Vec::new();
    }
    let mut checked: Vec<Grant> = Vec::with_capacity(grants.len());
    for (index, (grant, service)) in grants.iter().zip(services).enumerate() {
        let at = format!("/grants/{index}");
        let Some(service) = service else {
            errors.push(Violation::new(
                format!("{at}/service"),
                "there is no such service",
            ));
            continue;
        };
        if checked.iter().any(|other| other.service_id == service.id) {
            errors.push(Violation::new(format!("{at}/service"), "has a grant above"));
        }
        if grant.scopes.len() > SCOPES_MAX {
            errors.push(Violation::new(
                format!("{at}/scopes"),
                "must have at most 200 items",
            ));
            continue;
        }
        for (position, scope) in grant.scopes.iter().enumerate() {
            if let Err(detail) = grantable(service, scope) {
                errors.push(Violation::new(format!("{at}/scopes/{position}"), detail));
            }
        }
        let mut scopes = grant.scopes.clone();
        scopes.sort();
        scopes.dedup();
        checked.push(Grant {
            service_id: service.id.clone(),
            service: service.slug.clone(),
            scopes,
            rate_limits: grant.rate_limits.clone(),
        });
    }
    let keystead = |grant: &&Grant| grant.service.as_str() == rights::SERVICE;
    if checked.len() > 1 && checked.iter().any(|grant| keystead(&grant)) {
        errors.push(Violation::new(
            "/grants",
            "a key with a grant on keystead can have no other grant",
        ));
    }
    checked
}
