//! What is done to a key inside a change: read, written, recorded.

use serde_json::{Value, json};

use super::bulk::{EndAction, by_id};
use super::issue::{self, KeyPatch, NewKey, Policy};
use super::key::{Key, KeyView, LIVE_SECRETS_MAX, Secret};
use super::may::may_wield;
use super::pepper::{CurrentPepper, Peppers};
use super::plan::{Parents, plan};
use super::secret::{ApiKey, LookupId};
use super::service::{Issued, OVERLAP_MAX, Rotation};
use super::store::{self, KeyFilter, NewSecret};
use super::verifier::Verifier;
use crate::audit::Change;
use crate::db::feed::Kind;
use crate::error::{Conflict, Error, Result, Violation};
use crate::id::{KeyId, SecretId};
use crate::metadata::Metadata;
use crate::rights::Rights;
use crate::services::{self, Service};
use crate::text::{Environment, ExternalId, Prefix};

/// A plaintext made before the change that stores it, with what it was made for.
pub(super) struct Minted {
    pub(super) lookup_id: LookupId,
    pub(super) prefix: Prefix,
    pub(super) environment: Environment,
    pub(super) api_key: ApiKey,
    pub(super) verifier: Option<Verifier>,
}

pub(super) async fn find(change: &mut Change, reference: &str) -> Result<Option<Key>> {
    let tenant = change.attribution().tenant.id.clone();
    Ok(store::find(change.conn(), &tenant, reference).await?)
}

pub(super) async fn load(change: &mut Change, id: &str) -> Result<Key> {
    find(change, id).await?.ok_or(Error::NotFound("key"))
}

pub(super) async fn replayed(change: &mut Change, ids: &[String]) -> Result<Key> {
    match ids.first() {
        Some(id) => load(change, id).await,
        None => Err(Error::NotFound("key")),
    }
}

/// The keys of a batch, as they were asked for.
pub(super) async fn replayed_batch(change: &mut Change, ids: &[String]) -> Result<Vec<Key>> {
    let tenant = change.attribution().tenant.clone();
    let filter = KeyFilter {
        ids: Some(ids.iter().filter_map(|id| KeyId::parse(id)).collect()),
        ..KeyFilter::default()
    };
    let now = change.now();
    let mut keys = by_id(change.conn(), &tenant, &filter, now).await?;
    let keys = ids.iter().map(|id| keys.remove(&KeyId::parse(id)?));
    keys.collect::<Option<_>>().ok_or(Error::NotFound("key"))
}

pub(super) fn check_version(key: &Key, if_match: Option<i64>) -> Result<()> {
    match if_match {
        Some(version) if version != key.version => Err(Error::VersionMismatch {
            current: key.version,
        }),
        _ => Ok(()),
    }
}

pub(super) fn refuse_revoked(key: &Key) -> Result<()> {
    if key.revoked_at.is_some() {
        return Err(Error::conflict(
            Conflict::KeyRevoked,
            "the key is revoked, and that is final; issue another",
        ));
    }
    Ok(())
}

pub(super) fn too_many_secrets() -> Error {
    Error::conflict(
        Conflict::TooManySecrets,
        "three secrets of the key are live; end one, or rotate with a shorter overlap",
    )
}

pub(super) fn secret_of<'k>(key: &'k mut Key, id: &str) -> Result<&'k mut Secret> {
    key.secrets
        .iter_mut()
        .find(|secret| secret.id.as_str() == id)
        .ok_or(Error::NotFound("secret"))
}

/// So many external ids that are taken are told one by one.
const TAKEN_TOLD_MAX: usize = 100;

/// Inserts keys, by plans that are made again inside the change: what was read before may have
/// changed since. Rows of many keys are written together. `place` is the pointer to one of them in the
/// input, by its index.
pub(super) async fn insert(
    change: &mut Change,
    rights: &Rights,
    peppers: &Peppers,
    new: &[NewKey],
    minted: Vec<Minted>,
    place: fn(usize) -> String,
) -> Result<Vec<Issued>> {
    let external_ids = (0..).map(place).zip(new.iter().map(|new| &new.external_id));
    let external_ids: Vec<(String, &ExternalId)> = external_ids
        .filter_map(|(place, external_id)| Some((place, external_id.as_ref()?)))
        .collect();
    refuse_taken(change, &external_ids, None).await?;
    let pepper = peppers.current(change.conn()).await?;
    let mut parents = Parents::default();
    let mut keys = Vec::with_capacity(new.len());
    let mut secrets = Vec::with_capacity(new.len());
    let mut plaintexts = Vec::with_capacity(new.len());
    for (index, (new, minted)) in new.iter().zip(minted).enumerate() {
        let mut key = planned(change, &mut parents, rights, new, &minted)
            .await
            .map_err(|error| error.under(&place(index)))?;
        let (secret, row) = secret_for(change, &pepper, &key.id, &minted)?;
        key.secrets.push(secret);
        keys.push(key);
        secrets.push(row);
        plaintexts.push(minted.api_key);
    }
    store::insert(change.conn(), &keys).await?;
    store::insert_secrets(change.conn(), &secrets).await?;
    for key in &keys {
        record(change, "key.create", None, key);
    }
    let issued = keys.into_iter().zip(plaintexts);
    Ok(issued
        .map(|(key, api_key)| Issued { key, api_key })
        .collect())
}

/// One key as it is to be stored, without its secret.
async fn planned(
    change: &mut Change,
    parents: &mut Parents,
    rights: &Rights,
    new: &NewKey,
    minted: &Minted,
) -> Result<Key> {
    let tenant = change.attribution().tenant.clone();
    let now = change.now();
    let plan = plan(change.conn(), parents, &tenant, new, now)
        .await?
        .map_err(Error::Invalid)?;
    may_wield(rights, &plan.grants)?;
    if plan.policy.prefix != minted.prefix || plan.environment != minted.environment {
        // The policy changed between the two looks: a repetition meets the new one.
        return Err(Error::Busy);
    }
    Ok(Key {
        id: KeyId::new(change.clock(), change.entropy()),
        tenant_id: tenant.id,
        consumer: plan.consumer,
        lookup_id: minted.lookup_id.clone(),
        prefix: minted.prefix.clone(),
        environment: minted.environment.clone(),
        name: new.name.clone(),
        external_id: new.external_id.clone(),
        not_before: new.not_before,
        expires_at: plan.expires_at,
        rate_limits: new.rate_limits.clone(),
        quota: new.quota,
        allowed_ips: new
            .allowed_ips
            .as_ref()
            .map(|ips| ips.iter().map(|ip| ip.0).collect()),
        metadata: new.metadata.clone(),
        tags: sorted(new.tags.clone()),
        disabled_at: None,
        revoked_at: None,
        revoked_by: None,
        reason: None,
        rotated_at: None,
        last_used_at: None,
        version: 1,
        created_at: now,
        created_by: change.attribution().actor.clone(),
        updated_at: now,
        grants: plan.grants,
        secrets: Vec::new(),
    })
}

pub(super) fn sorted(mut tags: Vec<crate::text::Tag>) -> Vec<crate::text::Tag> {
    tags.sort();
    tags.dedup();
    tags
}

/// Refuses external ids that keys beside `own` have, each with the pointer to the key that it is for.
async fn refuse_taken(
    change: &mut Change,
    external_ids: &[(String, &ExternalId)],
    own: Option<&KeyId>,
) -> Result<()> {
    const TAKEN: &str = "another key has this external_id";
    let tenant = change.attribution().tenant.id.clone();
    let asked: Vec<&ExternalId> = external_ids.iter().map(|(_, id)| *id).collect();
    let held = store::by_external_ids(change.conn(), &tenant, &asked).await?;
    let mut taken = external_ids.iter().filter_map(|(place, external_id)| {
        let id = held.get(*external_id)?;
        (Some(id) != own).then_some((place, id))
    });
    let Some((place, id)) = taken.next() else {
        return Ok(());
    };
    let places = std::iter::once(place).chain(taken.map(|(place, _)| place));
    let violations = places.map(|place| Violation::new("/external_id", TAKEN).under(place));
    Err(Error::Conflict {
        conflict: Conflict::ExternalIdTaken,
        detail: TAKEN.to_owned(),
        existing_id: Some(id.to_string()),
        count: None,
        errors: violations.take(TAKEN_TOLD_MAX).collect(),
    })
}

/// What is stored to prove a plaintext, and how its key shows it.
fn secret_for(
    change: &mut Change,
    pepper: &CurrentPepper,
    key: &KeyId,
    minted: &Minted,
) -> Result<(Secret, NewSecret)> {
    let (pepper_version, fingerprint) = pepper.fingerprint(&minted.api_key)?;
    let secret = Secret {
        id: SecretId::new(change.clock(), change.entropy()),
        created_at: change.now(),
        valid_until: None,
        superseded_at: None,
        revoked_at: None,
        last_used_at: None,
    };
    let row = NewSecret {
        id: secret.id.clone(),
        key_id: key.clone(),
        fingerprint,
        pepper_version,
        verifier: minted
            .verifier
            .as_ref()
            .map(|verifier| verifier.as_str().to_owned()),
        created_at: secret.created_at,
        valid_until: None,
    };
    // What a node remembers as unknown may be this key now.
    change.touch(Kind::LookupId, minted.lookup_id.as_str());
    Ok((secret, row))
}

pub(super) async fn rotate(
    change: &mut Change,
    peppers: &Peppers,
    before: Key,
    rotation: &Rotation,
    minted: Minted,
    own: bool,
) -> Result<Issued> {
    let now = change.now();
    refuse_revoked(&before)?;
    if before.expires_at.is_some_and(|end| end <= now) {
        return Err(Error::conflict(
            Conflict::KeyExpired,
            "the key has expired; give it a new end first, or issue another",
        ));
    }
    let mut services = Vec::with_capacity(before.grants.len());
    for grant in &before.grants {
        if let Some(service) = services::store::load_by_id(change.conn(), &grant.service_id).await?
        {
            services.push(service);
        }
    }
    let services: Vec<&Service> = services.iter().collect();
    let policy = Policy::of(&services).ok_or(Error::NotFound("service"))?;
    if own && !policy.self_rotate {
        return Err(Error::NotAllowed(
            "a service of this key does not let it rotate itself: its key_policy.self_rotate is off",
        ));
    }
    let overlap = rotation.overlap.unwrap_or(policy.rotation_overlap);
    if overlap > OVERLAP_MAX {
        return Err(Error::invalid("/overlap", "must be at most 30d"));
    }
    let mut after = before.clone();
    if rotation.ttl.is_some() || rotation.expires_at.is_some() {
        let mut errors = Vec::new();
        after.expires_at = policy.end(rotation.ttl, rotation.expires_at, now, &mut errors);
        issue::check_span(after.not_before, after.expires_at, &mut errors);
        if !errors.is_empty() {
            return Err(Error::Invalid(errors));
        }
    }
    let mut until = now.plus(overlap);
    if let Some(end) = after.expires_at {
        until = until.min(end);
    }
    let mut ended = Vec::new();
    for secret in &mut after.secrets {
        if secret.is_live(now) && secret.superseded_at.is_none() {
            secret.superseded_at = Some(now);
            secret.valid_until = Some(secret.valid_until.map_or(until, |end| end.min(until)));
            ended.push(secret.clone());
        }
    }
    if after.live_secrets(now).count() >= LIVE_SECRETS_MAX {
        return Err(too_many_secrets());
    }
    for secret in &ended {
        store::update_secret(change.conn(), secret).await?;
    }
    let pepper = peppers.current(change.conn()).await?;
    let (secret, row) = secret_for(change, &pepper, &before.id, &minted)?;
    store::insert_secrets(change.conn(), &[row]).await?;
    after.secrets.insert(0, secret);
    after.rotated_at = Some(now);
    let key = finish(change, "key.rotate", &before, after, false).await?;
    let api_key = minted.api_key;
    Ok(Issued { key, api_key })
}

pub(super) async fn apply(
    change: &mut Change,
    rights: &Rights,
    key: &mut Key,
    patch: KeyPatch,
) -> Result<()> {
    let tenant = change.attribution().tenant.clone();
    let now = change.now();
    let mut errors = Vec::new();
    issue::check_rules(
        patch.allowed_ips.as_ref().and_then(|ips| ips.as_deref()),
        patch.tags.as_ref().and_then(|tags| tags.as_deref()),
        &mut errors,
    );
    if let Some(grants) = &patch.grants {
        let services = Parents::default()
            .services(change.conn(), &tenant, grants)
            .await?;
        key.grants = issue::check_grants(grants, &services, &mut errors);
        if let Some(policy) = Policy::of(&services.iter().flatten().collect::<Vec<_>>()) {
            policy.environment(Some(&key.environment), &mut errors);
        }
    }
    if let Some(not_before) = patch.not_before {
        key.not_before = not_before;
    }
    let new_end = patch.ttl.is_some() || patch.expires_at.is_some();
    if new_end || patch.grants.is_some() {
        let mut services = Vec::with_capacity(key.grants.len());
        for grant in &key.grants {
            services.extend(services::store::load_by_id(change.conn(), &grant.service_id).await?);
        }
        if let Some(policy) = Policy::of(&services.iter().collect::<Vec<_>>()) {
            // max_ttl counts from the creation, or from the rotation that came last.
            let from = key.rotated_at.unwrap_or(key.created_at);
            // The end that the key has is judged by the services that it grants from now on.
            let end = if new_end {
                policy.end(patch.ttl, patch.expires_at, now, &mut errors)
            } else {
                if key.expires_at.is_none() && !policy.allow_no_expiry {
                    errors.push(Violation::new(
                        "/expires_at",
                        "must be given: a service of the new grants has no allow_no_expiry",
                    ));
                }
                key.expires_at
            };
            if let (Some(max), Some(end)) = (policy.ttl_max, end)
                && end > from.plus(max)
                && errors.is_empty()
            {
                errors.push(Violation::new(
                    "/expires_at",
                    format!("must lie within max_ttl, {max}, of the creation or last rotation"),
                ));
            }
            key.expires_at = end;
        }
    }
    if let Some(metadata) = patch.metadata {
        match metadata {
            None => key.metadata = Metadata::default(),
            Some(metadata) => match key.metadata.patched(metadata) {
                Ok(patched) => key.metadata = patched,
                Err(detail) => errors.push(Violation::new("/metadata", detail)),
            },
        }
    }
    match patch.quota {
        None => {}
        Some(None) => key.quota = None,
        Some(Some(quota)) => match quota.apply(key.quota) {
            Ok(quota) => key.quota = Some(quota),
            Err(detail) => errors.push(Violation::new("/quota", detail)),
        },
    }
    issue::check_span(key.not_before, key.expires_at, &mut errors);
    if !errors.is_empty() {
        return Err(Error::Invalid(errors));
    }
    may_wield(rights, &key.grants)?;
    if let Some(name) = patch.name {
        key.name = name;
    }
    if let Some(limits) = patch.rate_limits {
        key.rate_limits = limits.unwrap_or_default();
    }
    if let Some(ips) = patch.allowed_ips {
        key.allowed_ips = ips.map(|ips| ips.into_iter().map(|ip| ip.0).collect());
    }
    if let Some(tags) = patch.tags {
        key.tags = sorted(tags.unwrap_or_default());
    }
    if let Some(external_id) = patch.external_id {
        if let Some(external_id) = &external_id {
            refuse_taken(change, &[(String::new(), external_id)], Some(&key.id)).await?;
        }
        key.external_id = external_id;
    }
    Ok(())
}

pub(super) fn revoked(change: &Change, before: &Key) -> Key {
    let mut after = before.clone();
    after.revoked_at = Some(change.now());
    after.revoked_by = Some(change.attribution().actor.clone());
    after.reason.clone_from(&change.attribution().reason);
    after
}

pub(super) fn disabled(change: &Change, before: &Key) -> Key {
    let mut after = before.clone();
    after.disabled_at = Some(change.now());
    after.reason.clone_from(&change.attribution().reason);
    after
}

/// Ends keys that are not ended so yet, together: the writing half of [`revoked`] or [`disabled`].
pub(super) async fn end_all(change: &mut Change, action: EndAction, keys: &[Key]) -> Result<()> {
    let (now, at) = (change.now(), change.attribution().clone());
    let ids: Vec<&KeyId> = keys.iter().map(|key| &key.id).collect();
    let reason = at.reason.as_deref();
    let (name, after): (_, fn(&Change, &Key) -> Key) = match action {
        EndAction::Revoke => {
            store::revoke(change.conn(), &ids, &at.actor, reason, now).await?;
            ("key.revoke", revoked)
        }
        EndAction::Disable => {
            store::disable(change.conn(), &ids, reason, now).await?;
            ("key.disable", disabled)
        }
    };
    for before in keys {
        let mut after = after(change, before);
        stamp(change, before, &mut after);
        record(change, name, Some(before), &after);
        change.touch(Kind::Key, after.id.as_str());
    }
    Ok(())
}

fn stamp(change: &Change, before: &Key, after: &mut Key) {
    after.version = before.version + 1;
    after.updated_at = change.now();
}

/// Writes a changed key, raises its version, leaves its line and makes decisions look again.
///
/// A change that changes nothing is answered without a version, a line or a step of the feed.
pub(super) async fn finish(
    change: &mut Change,
    action: &'static str,
    before: &Key,
    mut after: Key,
    rules: bool,
) -> Result<Key> {
    if action == "key.update" && shown(change, before) == shown(change, &after) {
        return Ok(before.clone());
    }
    stamp(change, before, &mut after);
    store::update(change.conn(), &after, rules).await?;
    record(change, action, Some(before), &after);
    change.touch(Kind::Key, after.id.as_str());
    Ok(after)
}

pub(super) fn shown(change: &Change, key: &Key) -> Value {
    let tenant = &change.attribution().tenant.slug;
    serde_json::to_value(KeyView::new(key, tenant, change.now())).unwrap_or_else(|_| json!(null))
}

pub(super) fn record(change: &mut Change, action: &'static str, before: Option<&Key>, after: &Key) {
    let before_grants = before.map_or(&[][..], |key| &key.grants);
    let before = before.map(|key| shown(change, key));
    let after_shown = shown(change, after);
    change.record(
        action,
        ("key", after.id.as_str()),
        before,
        Some(after_shown),
    );
    let grants = before_grants.iter().chain(&after.grants);
    change.concerns(grants.map(|grant| grant.service.to_string()));
}
