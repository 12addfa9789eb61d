//! Many keys at once: found by what leaked, ended by a filter.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::fingerprint::Fingerprint;
use super::key::{Key, KeyStatus};
use super::may::may_end;
use super::secret::{LookupId, Presented, UnparsedKey};
use super::service::{BATCH_MAX, By, Keys, restrict};
use super::store::{self, KeyFilter};
use super::work::end_all;
use crate::audit::{Change, TenantRef};
use crate::consumers;
use crate::db::Conn;
use crate::error::{Conflict, Error, Result, Violation};
use crate::id::{KeyId, SecretId};
use crate::patch::Reason;
use crate::rights::Permission;
use crate::services;
use crate::text::{Environment, Tag};

/// What a plaintext or lookup id belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct Found {
    pub key_id: KeyId,
    /// `None` when a lookup id was asked for, which names the key alone.
    pub secret_id: Option<SecretId>,
    pub status: KeyStatus,
    /// Whether a rotation has put another secret in its place.
    pub superseded: bool,
}

/// What is to be done with the keys that match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndAction {
    #[default]
    Revoke,
    Disable,
}

impl EndAction {
    /// Of the keys that match, those that it changes.
    fn changing(self, matching: &KeyFilter) -> KeyFilter {
        KeyFilter {
            is_unrevoked: true,
            is_enabled: self == Self::Disable,
            ..matching.clone()
        }
    }

    /// Whether it changes this key.
    fn changes(self, key: &Key) -> bool {
        key.revoked_at.is_none() && (self == Self::Revoke || key.disabled_at.is_none())
    }
}

/// Which keys to end; at least one filter, and all must match.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"consumer": "acme", "environment": "live", "dry_run": true}))]
pub struct EndKeys {
    #[schema(min_items = 1, max_items = 1000)]
    pub ids: Option<Vec<KeyId>>,
    #[schema(min_items = 1, max_items = 1000)]
    pub lookup_ids: Option<Vec<LookupId>>,
    /// Plaintexts, as they were found.
    #[schema(min_items = 1, max_items = 1000)]
    pub api_keys: Option<Vec<UnparsedKey>>,
    /// Id, slug or external id.
    #[schema(min_length = 1, max_length = 255)]
    pub consumer: Option<String>,
    /// Id or slug.
    #[schema(min_length = 1, max_length = 63)]
    pub service: Option<String>,
    pub tag: Option<Tag>,
    /// The issuer's and subject's `issuer#subject`, or a key id.
    #[schema(min_length = 1, max_length = 600)]
    pub created_by: Option<String>,
    pub environment: Option<Environment>,
    #[serde(default)]
    pub action: EndAction,
    /// Answers how many match, and of those that would change how many there are and the first 200;
    /// changes nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// What the dry run told as `matched`; without it nothing is changed.
    pub expected: Option<u64>,
    /// Ends management keys too: else they are left out.
    #[serde(default)]
    pub include_management: bool,
    pub reason: Option<Reason>,
}

/// At most so many keys end in one change: others wait for it.
const ENDED_MAX: i64 = 10_000;

/// What ended, or would.
pub struct Ended {
    pub matched: u64,
    /// Those that were not ended before.
    pub changed: u64,
    /// Of a dry run, the first 200 that would change.
    pub sample: Vec<Key>,
}

impl Keys {
    /// Tells for each plaintext or lookup id which key it is, in order; `None` for what is none of
    /// the caller's tenant's or none the caller may see.
    pub async fn find(
        &self,
        by: &By,
        api_keys: Option<Vec<UnparsedKey>>,
        lookup_ids: Option<Vec<LookupId>>,
    ) -> Result<Vec<Option<Found>>> {
        match (api_keys, lookup_ids) {
            (Some(api_keys), None) => self.find_plain(by, api_keys).await,
            (None, Some(lookup_ids)) => self.find_lookup(by, lookup_ids).await,
            _ => Err(Error::invalid(
                "/api_keys",
                "give api_keys or lookup_ids, one of them",
            )),
        }
    }

    /// The fingerprints of each plaintext under every pepper there is.
    async fn fingerprints(&self, api_keys: &[UnparsedKey]) -> Result<Vec<Vec<Fingerprint>>> {
        let peppers = Arc::clone(&self.peppers);
        self.db
            .read(async move |conn: &mut Conn| peppers.catch_up(conn).await)
            .await?;
        let ring = self.peppers.ring();
        Ok(api_keys
            .iter()
            .map(|text| match text.parse(&[]) {
                Presented::Native { key, .. } | Presented::Foreign(key) => ring
                    .fingerprints(&key)
                    .into_iter()
                    .map(|(_, print)| print)
                    .collect(),
                Presented::Malformed => Vec::new(),
            })
            .collect())
    }

    async fn find_plain(&self, by: &By, api_keys: Vec<UnparsedKey>) -> Result<Vec<Option<Found>>> {
        bounded(api_keys.len(), "/api_keys")?;
        let prints = self.fingerprints(&api_keys).await?;
        drop(api_keys);
        let (tenant, now) = (by.at.tenant.clone(), self.clock.now());
        let reach = by.rights.services_for(Permission::KeysRead);
        self.db
            .read(async move |conn: &mut Conn| {
                let all: Vec<Fingerprint> = prints.iter().flatten().copied().collect();
                let owners = store::by_fingerprints(conn, &tenant.id, &all).await?;
                let mut filter = KeyFilter {
                    ids: Some(owners.values().map(|(key, _)| key.clone()).collect()),
                    ..KeyFilter::default()
                };
                restrict(conn, &tenant, reach, &mut filter).await?;
                let keys = by_id(conn, &tenant, &filter, now).await?;
                Ok(prints
                    .iter()
                    .map(|prints| {
                        let (key, secret) = prints.iter().find_map(|print| owners.get(print))?;
                        let key = keys.get(key)?;
                        let secret = key.secrets.iter().find(|s| s.id == *secret)?;
                        Some(Found {
                            key_id: key.id.clone(),
                            secret_id: Some(secret.id.clone()),
                            status: if secret.is_live(now) {
                                key.status(now)
                            } else if secret.revoked_at.is_some() {
                                KeyStatus::Revoked
                            } else {
                                key.status(now).max_with_expired()
                            },
                            superseded: secret.superseded_at.is_some(),
                        })
                    })
                    .collect())
            })
            .await
    }

    async fn find_lookup(&self, by: &By, ids: Vec<LookupId>) -> Result<Vec<Option<Found>>> {
        bounded(ids.len(), "/lookup_ids")?;
        let (tenant, now) = (by.at.tenant.clone(), self.clock.now());
        let reach = by.rights.services_for(Permission::KeysRead);
        self.db
            .read(async move |conn: &mut Conn| {
                let mut filter = KeyFilter {
                    lookup_ids: Some(ids.clone()),
                    ..KeyFilter::default()
                };
                restrict(conn, &tenant, reach, &mut filter).await?;
                let keys = by_id(conn, &tenant, &filter, now).await?;
                let by_lookup: HashMap<_, _> =
                    keys.values().map(|key| (&key.lookup_id, key)).collect();
                Ok(ids
                    .iter()
                    .map(|id| {
                        by_lookup.get(id).map(|key| Found {
                            key_id: key.id.clone(),
                            secret_id: None,
                            status: key.status(now),
                            superseded: false,
                        })
                    })
                    .collect())
            })
            .await
    }

    /// Revokes or disables every key that matches; as one change.
    ///
    /// # Errors
    /// `count_changed` when `expected` is not what matches now; nothing is changed then.
    pub async fn end_matching(&self, by: By, asked: EndKeys) -> Result<Ended> {
        check(&asked)?;
        let prints: Option<Vec<Fingerprint>> = match asked.api_keys.as_deref() {
            Some(keys) => Some(self.fingerprints(keys).await?.concat()),
            None => None,
        };
        let reach = by.rights.services_for(Permission::KeysRevoke);
        let now = self.clock.now();
        if asked.dry_run {
            let tenant = by.at.tenant.clone();
            return self
                .db
                .read(async move |conn: &mut Conn| {
                    let mut filter = filter(conn, &tenant, &asked, prints).await?;
                    restrict(conn, &tenant, reach, &mut filter).await?;
                    let matched = store::count(conn, &tenant.id, &filter, now).await?;
                    let changing = asked.action.changing(&filter);
                    let changed = store::count(conn, &tenant.id, &changing, now).await?;
                    let sample = store::matching(conn, &tenant.id, &changing, 200, now).await?;
                    Ok(Ended {
                        matched: matched.unsigned_abs(),
                        changed: changed.unsigned_abs(),
                        sample,
                    })
                })
                .await;
        }
        let Some(expected) = asked.expected else {
            return Err(Error::invalid(
                "/expected",
                "is needed: the count that a dry_run answered for the same filter",
            ));
        };
        self.audit
            .patient()
            .change(by.at.clone(), async move |change: &mut Change| {
                let tenant = change.attribution().tenant.clone();
                let mut filter = filter(change.conn(), &tenant, &asked, prints).await?;
                restrict(change.conn(), &tenant, reach, &mut filter).await?;
                let matched = store::count(change.conn(), &tenant.id, &filter, now).await?;
                if matched.unsigned_abs() != expected {
                    return Err(Error::Conflict {
                        conflict: Conflict::CountChanged,
                        detail: format!("{matched} keys match now, not {expected}"),
                        existing_id: None,
                        count: Some(matched.unsigned_abs()),
                        errors: Vec::new(),
                    });
                }
                if matched > ENDED_MAX {
                    return Err(Error::invalid(
                        "",
                        format!("{matched} keys match; narrow the filter to at most {ENDED_MAX}"),
                    ));
                }
                let mut keys =
                    store::matching(change.conn(), &tenant.id, &filter, matched, now).await?;
                for key in &keys {
                    may_end(&by.rights, &key.grants)?;
                }
                keys.retain(|key| asked.action.changes(key));
                end_all(change, asked.action, &keys).await?;
                Ok(Ended {
                    matched: matched.unsigned_abs(),
                    changed: u64::try_from(keys.len()).unwrap_or(u64::MAX),
                    sample: Vec::new(),
                })
            })
            .await
    }
}

impl KeyStatus {
    /// A secret past its end makes an otherwise active key's plaintext expired.
    fn max_with_expired(self) -> Self {
        match self {
            Self::Active | Self::NotYetValid | Self::Expired => Self::Expired,
            Self::Disabled => Self::Disabled,
            Self::Revoked => Self::Revoked,
        }
    }
}

fn bounded(len: usize, pointer: &str) -> Result<()> {
    super::service::check_batch(len, pointer)
}

fn check(asked: &EndKeys) -> Result<()> {
    let mut errors = Vec::new();
    for (pointer, len) in [
        ("/ids", asked.ids.as_ref().map(Vec::len)),
        ("/lookup_ids", asked.lookup_ids.as_ref().map(Vec::len)),
        ("/api_keys", asked.api_keys.as_ref().map(Vec::len)),
    ] {
        match len {
            Some(0) => errors.push(Violation::new(pointer, "must have at least one item")),
            Some(len) if len > BATCH_MAX => {
                errors.push(Violation::new(pointer, "must have at most 1000 items"));
            }
            Some(_) | None => {}
        }
    }
    let any = asked.ids.is_some()
        || asked.lookup_ids.is_some()
        || asked.api_keys.is_some()
        || asked.consumer.is_some()
        || asked.service.is_some()
        || asked.tag.is_some()
        || asked.created_by.is_some()
        || asked.environment.is_some();
    if !any {
        errors.push(Violation::new(
            "",
            "at least one of ids, lookup_ids, api_keys, consumer, service, tag, created_by, \
             environment is needed",
        ));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Error::Invalid(errors))
    }
}

/// The filter as SQL understands it: names resolved, plaintexts as the keys they belong to.
async fn filter(
    conn: &mut Conn,
    tenant: &TenantRef,
    asked: &EndKeys,
    prints: Option<Vec<Fingerprint>>,
) -> Result<KeyFilter> {
    let mut filter = KeyFilter {
        ids: asked.ids.clone(),
        lookup_ids: asked.lookup_ids.clone(),
        tags: asked.tag.iter().cloned().collect(),
        environment: asked.environment.clone(),
        created_by: asked.created_by.clone(),
        ..KeyFilter::default()
    };
    if let Some(prints) = prints {
        let owners = store::by_fingerprints(conn, &tenant.id, &prints).await?;
        let mut found: Vec<KeyId> = owners.into_values().map(|(key, _)| key).collect();
        if let Some(ids) = &filter.ids {
            found.retain(|id| ids.contains(id));
        }
        filter.ids = Some(found);
    }
    if let Some(reference) = &asked.consumer {
        let consumer = consumers::store::find(conn, &tenant.id, reference).await?;
        filter.consumer = Some(consumer.ok_or(Error::NotFound("consumer"))?.id);
    }
    if let Some(reference) = &asked.service {
        let service = services::store::find(conn, &tenant.id, reference).await?;
        filter.service = Some(service.ok_or(Error::NotFound("service"))?.id);
    }
    if !asked.include_management {
        let keystead = services::store::find(conn, &tenant.id, crate::rights::SERVICE).await?;
        filter.without_service = keystead.map(|service| service.id);
    }
    Ok(filter)
}

pub(super) async fn by_id(
    conn: &mut Conn,
    tenant: &TenantRef,
    filter: &KeyFilter,
    now: crate::time::Timestamp,
) -> Result<HashMap<KeyId, Key>> {
    let limit = i64::try_from(BATCH_MAX).unwrap_or(i64::MAX);
    let keys = store::matching(conn, &tenant.id, filter, limit, now).await?;
    Ok(keys.into_iter().map(|key| (key.id.clone(), key)).collect())
}
