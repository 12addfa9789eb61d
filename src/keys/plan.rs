//! A key to be, from the names that a request gives its parents.

use std::collections::HashMap;

use super::issue::{self, NewGrant, NewKey, Policy};
use super::key::{ConsumerRef, Grant};
use crate::audit::TenantRef;
use crate::consumers;
use crate::db::Conn;
use crate::error::{Result, Violation};
use crate::services::{self, Service};
use crate::text::Environment;
use crate::time::Timestamp;

/// Parents by the names that requests give them, each looked up once. Only for one change, or one
/// look before it: in a change of its tenant nothing else changes them.
#[derive(Default)]
pub(super) struct Parents {
    consumers: HashMap<String, Option<ConsumerRef>>,
    services: HashMap<String, Option<Service>>,
}

impl Parents {
    async fn consumer(
        &mut self,
        conn: &mut Conn,
        tenant: &TenantRef,
        reference: &str,
    ) -> Result<Option<ConsumerRef>> {
        if let Some(known) = self.consumers.get(reference) {
            return Ok(known.clone());
        }
        let found = consumers::store::find(conn, &tenant.id, reference).await?;
        let found = found
            .filter(|consumer| consumer.deleted_at.is_none())
            .map(|consumer| ConsumerRef {
                id: consumer.id,
                slug: consumer.slug,
            });
        self.consumers.insert(reference.to_owned(), found.clone());
        Ok(found)
    }

    /// The services of grants, each there or not.
    pub(super) async fn services(
        &mut self,
        conn: &mut Conn,
        tenant: &TenantRef,
        grants: &[NewGrant],
    ) -> Result<Vec<Option<Service>>> {
        let mut services = Vec::with_capacity(grants.len().min(51));
        // One more than is allowed is enough to refuse.
        for grant in grants.iter().take(51) {
            if let Some(known) = self.services.get(&grant.service) {
                services.push(known.clone());
                continue;
            }
            let found = services::store::find(conn, &tenant.id, &grant.service).await?;
            let found = found.filter(|service| service.deleted_at.is_none());
            self.services.insert(grant.service.clone(), found.clone());
            services.push(found);
        }
        Ok(services)
    }
}

/// A key to be: everything but its secret.
pub(super) struct Plan {
    pub(super) consumer: ConsumerRef,
    pub(super) policy: Policy,
    pub(super) environment: Environment,
    pub(super) expires_at: Option<Timestamp>,
    pub(super) grants: Vec<Grant>,
}

pub(super) async fn plan(
    conn: &mut Conn,
    parents: &mut Parents,
    tenant: &TenantRef,
    new: &NewKey,
    now: Timestamp,
) -> Result<std::result::Result<Plan, Vec<Violation>>> {
    let mut errors = Vec::new();
    let consumer = parents.consumer(conn, tenant, &new.consumer).await?;
    if consumer.is_none() {
        errors.push(Violation::new("/consumer", "there is no such consumer"));
    }
    let services = parents.services(conn, tenant, &new.grants).await?;
    let grants = issue::check_grants(&new.grants, &services, &mut errors);
    let known: Vec<&Service> = services.iter().flatten().collect();
    issue::check_rules(new.allowed_ips.as_deref(), Some(&new.tags), &mut errors);
    let (Some(consumer), Some(policy)) = (consumer, Policy::of(&known)) else {
        return Ok(Err(errors));
    };
    let environment = policy.environment(new.environment.as_ref(), &mut errors);
    let expires_at = policy.end(new.ttl, new.expires_at, now, &mut errors);
    issue::check_span(new.not_before, expires_at, &mut errors);
    if !errors.is_empty() {
        return Ok(Err(errors));
    }
    Ok(Ok(Plan {
        consumer,
        policy,
        environment,
        expires_at,
        grants,
    }))
}
