//! Who may wield a key, who may end it, and for whom it is there.

use super::key::{Grant, Key};
use crate::error::{Error, Result};
use crate::rights::{self, Permission, Rights};

/// To issue, change, enable or rotate a key one must hold the right for every service it grants;
/// for a key with a grant on `keystead`, all that it holds.
pub(super) fn may_wield(rights: &Rights, grants: &[Grant]) -> Result<()> {
    for grant in grants {
        if grant.service.as_str() == rights::SERVICE
            && let Some(scope) = grant.scopes.iter().find(|scope| !rights.covers(scope))
        {
            return Err(Error::Escalation(format!(
                "you do not hold {scope} yourself, so you cannot hand it out"
            )));
        }
        if !rights.allows(Permission::KeysWrite, Some(&grant.service)) {
            return Err(Error::Escalation(format!(
                "keys:write for the service {} is needed, for every service that the key grants",
                grant.service
            )));
        }
    }
    Ok(())
}

/// To revoke or disable a key the right for one of its services is enough, unless it is a
/// management key.
pub(super) fn may_end(rights: &Rights, grants: &[Grant]) -> Result<()> {
    for grant in grants {
        if grant.service.as_str() == rights::SERVICE
            && let Some(scope) = grant.scopes.iter().find(|scope| !rights.covers(scope))
        {
            return Err(Error::Escalation(format!(
                "a management key may be ended only by who holds all it holds; \
                     you lack {scope}"
            )));
        }
    }
    if grants
        .iter()
        .any(|grant| rights.allows(Permission::KeysRevoke, Some(&grant.service)))
    {
        return Ok(());
    }
    Err(Error::Escalation(
        "keys:revoke for a service that the key grants is needed".to_owned(),
    ))
}

/// A key is there for who may read it, or do what is asked, for one of its services; for others not.
pub(super) fn there(rights: &Rights, permission: Permission, key: Option<Key>) -> Result<Key> {
    key.filter(|key| {
        key.services().any(|service| {
            rights.allows(Permission::KeysRead, Some(service))
                || rights.allows(permission, Some(service))
        })
    })
    .ok_or(Error::NotFound("key"))
}
