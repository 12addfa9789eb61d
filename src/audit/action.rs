//! The names of all actions: who asks the trail for one that is none must not take the empty answer for a
//! proof.

/// What lines say was done, and what was attempted, which is named after the operation. A name stays here
/// as long as a trail may hold it.
const ACTIONS: &[&str] = &[
    "access_review.close",
    "access_review.create",
    "access_review.decide",
    "access_review.export",
    "access_review.read",
    "access_review_items.list",
    "access_reviews.list",
    "audit.cut",
    "audit.export",
    "audit.overflow",
    "audit.reseal",
    "audit.verify",
    "audit_checkpoint.create",
    "audit_checkpoints.list",
    "audit_events.export",
    "audit_events.list",
    "audit_key.adopt",
    "audit_key.begin",
    "audit_keys.list",
    "consumer.create",
    "consumer.delete",
    "consumer.disable",
    "consumer.enable",
    "consumer.read",
    "consumer.replace",
    "consumer.update",
    "consumers.list",
    "key.create",
    "key.disable",
    "key.enable",
    "key.explain",
    "key.export",
    "key.issue",
    "key.read",
    "key.revoke",
    "key.rotate",
    "key.update",
    "key.verify",
    "keys.export",
    "keys.find",
    "keys.issue",
    "keys.list",
    "keys.revoke",
    "keys.verify",
    "node.start",
    "pepper.create",
    "pepper.lost",
    "pepper.promote",
    "pepper.retire",
    "pepper.rotate",
    "request.authorize",
    "secret.revoke",
    "secret.update",
    "self.read",
    "self.revoke",
    "self.rotate",
    "service.create",
    "service.delete",
    "service.disable",
    "service.enable",
    "service.read",
    "service.replace",
    "service.update",
    "services.list",
    "signing_key.create",
    "signing_key.delete",
    "tenant.create",
    "tenant.delete",
    "tenant.disable",
    "tenant.enable",
    "tenant.read",
    "tenant.update",
    "tenants.list",
    "token.introspect",
    "token.revoke",
    "usage.counts_cut",
    "usage.cut",
    "usage.export",
    "usage.sealed",
    "usage.summarize",
    "usage.verify",
    "usage_events.export",
    "usage_events.list",
];

/// Of a target that no action is named after.
const USAGE_HOUR: &str = "usage_hour";

pub(crate) fn is_action(name: &str) -> bool {
    ACTIONS.contains(&name)
}

pub(super) fn is_kind(name: &str) -> bool {
    name == USAGE_HOUR || ACTIONS.iter().any(|action| noun_of(action) == name)
}

/// The actions on one kind.
pub(super) fn actions_on(noun: &str) -> Vec<&'static str> {
    let actions = ACTIONS.iter().copied();
    actions.filter(|action| noun_of(action) == noun).collect()
}

/// What a target can be.
pub(super) fn kinds() -> Vec<&'static str> {
    let mut kinds: Vec<_> = ACTIONS.iter().map(|action| noun_of(action)).collect();
    kinds.push(USAGE_HOUR);
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

fn noun_of(action: &'static str) -> &'static str {
    action.split_once('.').map_or(action, |(noun, _)| noun)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stands_once_and_in_order() {
        assert!(ACTIONS.is_sorted_by(|a, b| a < b));
    }
}
