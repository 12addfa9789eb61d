//! The trail a change leaves: one audit line each, and none for what changes nothing.

use std::sync::Arc;

use keystead::idempotency::Claim;

use super::*;
use crate::support::both;

both!(
    every_change_leaves_one_line_and_no_change_leaves_none,
    a_line_says_what_changed,
    of_parallel_changes_of_one_version_one_succeeds,
    a_repeated_request_makes_one_object,
    a_claim_that_was_refused_is_not_remembered,
);

async fn every_change_leaves_one_line_and_no_change_leaves_none(home: Home) {
    let house = House::new(&home).await;
    let (services, consumers, tenants) = (&house.services, &house.consumers, &house.tenants);
    let all = Rights::all;
    let at = || house.at();
    let mut lines = house.actions().await.len();
    let mut seq = house.change_seq().await;
    macro_rules! one_line {
        ($action:literal, $change:expr) => {{
            let changed = $change.await.unwrap();
            let actions = house.actions().await;
            assert_eq!(actions.len(), lines + 1, "{}: {actions:?}", $action);
            assert_eq!(actions.last().unwrap(), $action);
            assert_eq!(house.change_seq().await, seq + 1, $action);
            (lines, seq) = (lines + 1, seq + 1);
            changed
        }};
    }
    macro_rules! no_line {
        ($change:expr) => {{
            let same = $change.await.unwrap();
            assert_eq!(house.actions().await.len(), lines);
            assert_eq!(house.change_seq().await, seq);
            same
        }};
    }
    let id = || "billing".to_owned();

    let made = one_line!("service.create", house.service(json!({"slug": "billing"})));
    assert_eq!(made.version, 1);
    let patch = json!({"name": "Billing", "key_policy": {"max_ttl": "30d"}});
    let changed = one_line!(
        "service.update",
        services.update(at(), all(), id(), Some(1), parse(patch.clone()))
    );
    assert_eq!(changed.version, 2);
    assert_eq!(changed.id, made.id);
    assert_eq!(
        no_line!(services.update(at(), all(), id(), None, parse(patch))),
        changed
    );
    no_line!(services.enable(at(), all(), id()));
    one_line!("service.disable", services.disable(at(), all(), id()));
    let disabled = no_line!(services.disable(at(), all(), id()));
    assert_eq!(disabled.version, 3);
    one_line!("service.enable", services.enable(at(), all(), id()));
    one_line!(
        "service.delete",
        services.delete(at(), all(), id(), None, false)
    );
    assert_not_found(services.delete(at(), all(), id(), None, false).await);
    assert_not_found(services.read(&house.default, &all(), id()).await);

    one_line!(
        "consumer.create",
        house.consumer(json!({"slug": "billing"}))
    );
    let patch = json!({"external_id": "crm/1", "quota": {"limit": 5, "period": "day"}});
    one_line!(
        "consumer.update",
        consumers.update(at(), all(), id(), None, parse(patch.clone()))
    );
    no_line!(consumers.update(at(), all(), id(), None, parse(patch)));
    one_line!("consumer.disable", consumers.disable(at(), all(), id()));
    no_line!(consumers.disable(at(), all(), "crm/1".to_owned()));
    one_line!("consumer.enable", consumers.enable(at(), all(), id()));
    one_line!(
        "consumer.delete",
        consumers.delete(at(), all(), id(), None, false)
    );

    let body = parse(json!({"slug": "billing"}));
    one_line!("tenant.create", tenants.create(at(), None, body));
    let patch = json!({"metadata": {"plan": "gold"}});
    one_line!(
        "tenant.update",
        tenants.update(at(), id(), None, parse(patch.clone()))
    );
    no_line!(tenants.update(at(), id(), None, parse(patch)));
    one_line!("tenant.disable", tenants.disable(at(), id()));
    no_line!(tenants.disable(at(), id()));
    one_line!("tenant.enable", tenants.enable(at(), id()));
    one_line!("tenant.delete", tenants.delete(at(), id(), None, false));
    no_line!(tenants.list(
        &house.default,
        Sight::All,
        TenantFilter::default(),
        first_page()
    ));
}

async fn a_line_says_what_changed(home: Home) {
    let house = House::new(&home).await;
    house
        .consumer(json!({"slug": "team", "metadata": {"a": 1}}))
        .await
        .unwrap();
    let patch = json!({"metadata": {"a": null, "b": "2"}, "name": null});
    house
        .consumers
        .update(house.at(), Rights::all(), "team".into(), None, parse(patch))
        .await
        .unwrap();
    let (action, before, after) = house.lines().await.pop().unwrap();
    assert_eq!(action, "consumer.update");
    assert_eq!(before, json!({"metadata": {"a": 1}, "version": 1}));
    assert_eq!(after, json!({"metadata": {"b": "2"}, "version": 2}));
}

async fn of_parallel_changes_of_one_version_one_succeeds(home: Home) {
    let house = House::new(&home).await;
    house.service(json!({"slug": "billing"})).await.unwrap();
    let mut changing = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (services, at) = (house.services.clone(), house.at());
        changing.spawn(async move {
            let patch = parse(json!({"name": number.to_string()}));
            services
                .update(at, Rights::all(), "billing".into(), Some(1), patch)
                .await
        });
    }
    let results = changing.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results {
        assert!(
            matches!(result, Ok(_) | Err(Error::VersionMismatch { current: 2 })),
            "{result:?}"
        );
    }
    let mut creating = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (consumers, at) = (house.consumers.clone(), house.at());
        creating.spawn(async move {
            let body = json!({"slug": format!("c{number}"), "external_id": "crm-1"});
            consumers
                .create(at, Rights::all(), None, parse(body))
                .await
                .map(fresh)
        });
    }
    let results = creating.join_all().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        assert_conflict(result, Conflict::ExternalIdTaken);
    }
}

fn claim(house: &House, key: &str, body: &Value) -> Option<Claim> {
    let mut hash = [0; 32];
    let text = body.to_string();
    hash[..text.len().min(32)].copy_from_slice(&text.as_bytes()[..text.len().min(32)]);
    Claim::of(&house.at(), ("POST", "/v1/x"), Some(key), hash)
}

async fn a_repeated_request_makes_one_object(home: Home) {
    let house = Arc::new(House::new(&home).await);
    let body = json!({"slug": "billing"});
    let mut creating = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (house, body) = (Arc::clone(&house), body.clone());
        creating.spawn(async move {
            let key = claim(&house, "service", &body);
            let (at, all) = (house.at(), Rights::all());
            let made = house.services.create(at, all, key, parse(body.clone()));
            let service = match made.await.unwrap() {
                Idempotent::Fresh(service) => (service.id.to_string(), true),
                Idempotent::Replayed(service) => (service.id.to_string(), false),
            };
            let key = claim(&house, "consumer", &body);
            let (at, all) = (house.at(), Rights::all());
            let made = house.consumers.create(at, all, key, parse(body.clone()));
            let consumer = match made.await.unwrap() {
                Idempotent::Fresh(consumer) => (consumer.id.to_string(), true),
                Idempotent::Replayed(consumer) => (consumer.id.to_string(), false),
            };
            let key = claim(&house, "tenant", &body);
            let made = house.tenants.create(house.at(), key, parse(body));
            let tenant = match made.await.unwrap() {
                Idempotent::Fresh(tenant) => (tenant.id.to_string(), true),
                Idempotent::Replayed(tenant) => (tenant.id.to_string(), false),
            };
            [service, consumer, tenant]
        });
    }
    let made = creating.join_all().await;
    for kind in 0..3 {
        assert!(made.iter().all(|one| one[kind].0 == made[0][kind].0));
        assert_eq!(made.iter().filter(|one| one[kind].1).count(), 1);
    }
    let mut actions = house.actions().await;
    actions.sort_unstable();
    assert_eq!(
        actions,
        [
            "consumer.create",
            "service.create",
            "tenant.create",
            "tenant.create"
        ]
    );

    let other = json!({"slug": "other"});
    let key = claim(&house, "service", &other);
    let made = house
        .services
        .create(house.at(), Rights::all(), key, parse(other));
    assert!(matches!(made.await, Err(Error::IdempotencyMismatch)));
}

async fn a_claim_that_was_refused_is_not_remembered(home: Home) {
    let house = House::new(&home).await;
    house
        .consumer(json!({"slug": "a", "external_id": "x"}))
        .await
        .unwrap();
    let body = json!({"slug": "b", "external_id": "x"});
    let create = || {
        let key = claim(&house, "k", &body);
        let (at, all) = (house.at(), Rights::all());
        house.consumers.create(at, all, key, parse(body.clone()))
    };
    assert_conflict(create().await.map(fresh), Conflict::ExternalIdTaken);
    house
        .consumers
        .delete(house.at(), Rights::all(), "a".into(), None, false)
        .await
        .unwrap();
    let made = fresh(create().await.unwrap());
    let again = create().await.unwrap();
    assert!(matches!(again, Idempotent::Replayed(same) if same == made));
}
