//! What tenants, services and consumers have in common.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use crate::error::{Conflict, Error, Result};
use crate::json;
use crate::limits::{Quota, QuotaPatch};
use crate::metadata::{Metadata, MetadataPatch};
use crate::patch::Reason;
use crate::text::Slug;
use crate::time::Timestamp;

/// Whether an object of the catalogue is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Active,
    Disabled,
}

impl Status {
    pub fn of(disabled_at: Option<Timestamp>) -> Self {
        match disabled_at {
            None => Self::Active,
            Some(_) => Self::Disabled,
        }
    }
}

/// Holds a change to the version that the caller saw, if it named one.
///
/// # Errors
/// [`Error::VersionMismatch`]
pub fn check_version(current: i64, expected: Option<i64>) -> Result<()> {
    match expected {
        Some(expected) if expected != current => Err(Error::VersionMismatch { current }),
        Some(_) | None => Ok(()),
    }
}

/// Holds the slug of a body to that of the object it is for: slugs do not change.
///
/// # Errors
/// [`Error::Invalid`]
pub fn check_slug(slug: &Slug, given: Option<&Slug>) -> Result<()> {
    if given.is_none_or(|given| given == slug) {
        return Ok(());
    }
    Err(Error::invalid(
        "/slug",
        "must be the slug of the path: slugs do not change",
    ))
}

/// Holds a creation to what the caller saw: a version it named is not there.
///
/// # Errors
/// [`Error::VersionMismatch`] with version 0.
pub fn check_absent(expected: Option<i64>) -> Result<()> {
    check_version(0, expected)
}

/// # Errors
/// [`Conflict::HasLiveKeys`] with the count.
pub fn check_no_live_keys(kind: &str, count: u64) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    Err(has_live_keys(
        count,
        format!("the {kind} has live keys: revoke them, or delete with ?revoke_keys=true"),
    ))
}

pub fn has_live_keys(count: u64, detail: String) -> Error {
    Error::Conflict {
        conflict: Conflict::HasLiveKeys,
        detail,
        existing_id: None,
        count: Some(count),
        errors: Vec::new(),
    }
}

/// Applies the member `metadata` of a merge patch (RFC 7396): `null` empties it.
///
/// # Errors
/// [`Error::Invalid`] when the result is too large or too deep.
pub fn patch_metadata(metadata: &mut Metadata, patch: Option<Option<MetadataPatch>>) -> Result<()> {
    match patch {
        None => {}
        Some(None) => *metadata = Metadata::default(),
        Some(Some(patch)) => {
            *metadata = metadata
                .patched(patch)
                .map_err(|detail| Error::invalid("/metadata", detail))?;
        }
    }
    Ok(())
}

/// What changed, for an audit line, which has the time already.
pub fn difference(before: Value, after: Value) -> (Value, Value) {
    let (mut before, mut after) = json::difference(before, after);
    for view in [&mut before, &mut after] {
        if let Value::Object(view) = view {
            view.shift_remove("updated_at");
        }
    }
    (before, after)
}

/// Applies the member `quota` of a merge patch (RFC 7396).
///
/// # Errors
/// [`Error::Invalid`] when the result is incomplete or out of range.
pub fn patch_quota(quota: &mut Option<Quota>, patch: Option<Option<QuotaPatch>>) -> Result<()> {
    match patch {
        None => {}
        Some(None) => *quota = None,
        Some(Some(patch)) => {
            let patched = patch.apply(*quota);
            *quota = Some(patched.map_err(|detail| Error::invalid("/quota", detail))?);
        }
    }
    Ok(())
}

/// The body of an action, which may be absent.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reason": "contract ended"}))]
pub struct Act {
    pub reason: Option<Reason>,
}

/// Why something is done: what the body says, else what the header says.
pub fn reason(body: Option<Reason>, header: Option<String>) -> Option<String> {
    body.map(Reason::into_inner).or(header)
}

/// The query of a deletion.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Deletion {
    /// Delete it although it has live keys: those of a consumer are revoked; a grant on a service, and
    /// a key of a tenant, that is gone is worth nothing.
    #[serde(default)]
    #[param(required = false)]
    pub revoke_keys: bool,
}
