//! What memory alone says, without waiting for anybody: what the edge answers from.

use std::sync::Arc;

use super::{Records, ServiceNameRef};
use crate::cache::Entry;
use crate::cache::entries::Found;
use crate::keys::fingerprint::Fingerprint;
use crate::validation::snapshot::{KeySnapshot, ServiceEntry, Subject, TenantSnapshot};

/// What memory alone says.
#[derive(Debug)]
pub enum Now<T> {
    Known(T),
    Unknown,
    /// It may not be used, is due, or is not there.
    ToBeAsked,
}

impl Records {
    /// The fingerprint of a plaintext under the current pepper.
    pub fn print(&self, key: &str) -> Option<Fingerprint> {
        let ring = self.0.source.ring();
        let mut prints = ring.prints_of_text(key);
        prints.next().map(|(_, print)| print)
    }

    /// What is remembered of a key by [`Self::print`]: a rotation of peppers under way is for
    /// [`Self::key`].
    pub fn key_now(&self, print: &Fingerprint, now_us: u64) -> Now<Arc<Entry<KeySnapshot>>> {
        let inner = &*self.0;
        if !inner.changes.may_use(now_us) {
            return Now::ToBeAsked;
        }
        match inner.keys.find(print, &inner.changes, now_us) {
            Found::Fresh(entry) => Now::Known(entry),
            Found::Due(_) => Now::ToBeAsked,
            Found::Nothing => match inner.unknown.find(print, &inner.changes, now_us) {
                Found::Fresh(_) if inner.source.ring().is_alone() => Now::Unknown,
                Found::Fresh(_) | Found::Due(_) | Found::Nothing => Now::ToBeAsked,
            },
        }
    }

    /// Whether what was found before would be found again at this instant.
    pub fn may_use_now(&self, subject: &Subject, now_us: u64) -> bool {
        let (inner, changes) = (&*self.0, &self.0.changes);
        let service = subject.service.as_ref();
        changes.may_use(now_us)
            && subject.key.may_use(changes, now_us)
            && subject.consumer.may_use(changes, now_us)
            && subject.tenant.may_use(changes, now_us)
            && service
                .is_some_and(|entry| entry.may_use(changes, now_us) && !inner.is_out_for(entry))
    }

    /// As [`Self::join`], from what is remembered; `None` if something is to be asked for. `tenant` is
    /// the key's, if it was found at this instant already.
    pub fn join_now(
        &self,
        key: Arc<Entry<KeySnapshot>>,
        tenant: Option<&Arc<Entry<TenantSnapshot>>>,
        service: Option<&str>,
        now_us: u64,
    ) -> Option<Subject> {
        let inner = &*self.0;
        let tenant = match tenant {
            Some(tenant) => Arc::clone(tenant),
            None => fresh(inner.tenants.entries.find(
                &key.owner.tenant_id,
                &inner.changes,
                now_us,
            ))?,
        };
        let consumer = fresh(inner.consumers.entries.find(
            &key.owner.consumer_id,
            &inner.changes,
            now_us,
        ))?;
        let asks_service = service.is_some();
        let service = match service {
            Some(reference) => {
                let name = ServiceNameRef(&key.owner.tenant_id, reference);
                fresh(inner.services.find(&name, &inner.changes, now_us))?
                    .value
                    .clone()
            }
            None => None,
        };
        let refuses = |entry: &Arc<Entry<ServiceEntry>>| inner.is_out_for(entry);
        if service.as_ref().is_some_and(refuses) {
            return None;
        }
        Some(Subject {
            key,
            consumer,
            tenant,
            service,
            asks_service,
            narrowed: None,
        })
    }
}

fn fresh<T>(found: Found<T>) -> Option<Arc<Entry<T>>> {
    match found {
        Found::Fresh(entry) => Some(entry),
        Found::Due(_) | Found::Nothing => None,
    }
}
