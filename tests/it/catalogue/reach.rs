//! Who reaches what: callers for one service, callers in another tenant.

use super::*;
use crate::support::both;

both!(
    a_caller_for_one_service_stays_within_it,
    a_caller_for_one_service_changes_no_consumer_of_another,
    another_tenant_is_not_there,
);

async fn a_caller_for_one_service_stays_within_it(home: Home) {
    let house = House::new(&home).await;
    let services = &house.services;
    house.service(json!({"slug": "billing"})).await.unwrap();
    house.service(json!({"slug": "orders"})).await.unwrap();
    let rights = || Rights::new(["services:write:billing"]);
    let patch = || parse(json!({"name": "x"}));

    let list = services
        .list(
            &house.default,
            &rights(),
            ServiceFilter::default(),
            first_page(),
        )
        .await
        .unwrap();
    let slugs: Vec<_> = list.items.iter().map(|s| s.slug.as_str()).collect();
    assert_eq!(slugs, ["billing"]);
    services
        .read(&house.default, &rights(), "billing".into())
        .await
        .unwrap();
    services
        .update(house.at(), rights(), "billing".into(), None, patch())
        .await
        .unwrap();

    let lines = house.lines().await.len();
    let orders = || "orders".to_owned();
    assert_forbidden(
        services.read(&house.default, &rights(), orders()).await,
        "services:read:orders",
    );
    let needed = "services:write:orders";
    let at = || house.at();
    assert_forbidden(
        services
            .update(at(), rights(), orders(), None, patch())
            .await,
        needed,
    );
    assert_forbidden(services.disable(at(), rights(), orders()).await, needed);
    assert_forbidden(services.enable(at(), rights(), orders()).await, needed);
    assert_forbidden(
        services.delete(at(), rights(), orders(), None, true).await,
        needed,
    );
    let put = services.replace(at(), rights(), "orders".into(), None, parse(json!({})));
    assert_forbidden(put.await, needed);
    let none = services.update(at(), rights(), "nothing".into(), None, patch());
    assert_not_found(none.await);
    let put = services.replace(at(), rights(), "new".into(), None, parse(json!({})));
    assert_forbidden(put.await, "services:write");
    let post = services.create(at(), rights(), None, parse(json!({"slug": "new"})));
    assert_forbidden(post.await.map(fresh), "services:write");
    assert_eq!(house.lines().await.len(), lines);
}

async fn a_caller_for_one_service_changes_no_consumer_of_another(home: Home) {
    let house = House::new(&home).await;
    let consumers = &house.consumers;
    let billing = house.service(json!({"slug": "billing"})).await.unwrap();
    let orders = house.service(json!({"slug": "orders"})).await.unwrap();
    for (slug, services) in [
        ("free", vec![]),
        ("mine", vec![&billing]),
        ("shared", vec![&billing, &orders]),
        ("theirs", vec![&orders]),
    ] {
        let consumer = house.consumer(json!({"slug": slug})).await.unwrap();
        if !services.is_empty() {
            house.key(&consumer, &services, None).await;
        }
        house.clock.advance(Span::seconds(1));
    }
    let rights = || Rights::new(["consumers:write:billing"]);
    let list = consumers
        .list(
            &house.default,
            &rights(),
            ConsumerFilter::default(),
            first_page(),
        )
        .await
        .unwrap();
    let slugs: Vec<_> = list.items.iter().map(|c| c.slug.as_str()).collect();
    assert_eq!(slugs, ["shared", "mine", "free"]);
    for (slug, readable, writable) in [
        ("free", true, true),
        ("mine", true, true),
        ("shared", true, false),
        ("theirs", false, false),
    ] {
        let id = || slug.to_owned();
        let read = consumers.read(&house.default, &rights(), id()).await;
        assert_eq!(read.is_ok(), readable, "{slug}: {read:?}");
        let patch = parse(json!({"name": "x"}));
        let written = [
            consumers
                .update(house.at(), rights(), id(), None, patch)
                .await
                .map(drop),
            consumers
                .disable(house.at(), rights(), id())
                .await
                .map(drop),
            consumers.enable(house.at(), rights(), id()).await.map(drop),
            consumers
                .replace(house.at(), rights(), id(), None, parse(json!({})))
                .await
                .map(drop),
            consumers
                .delete(house.at(), rights(), id(), None, true)
                .await,
        ];
        for result in written {
            assert_eq!(result.is_ok(), writable, "{slug}: {result:?}");
        }
    }
}

async fn another_tenant_is_not_there(home: Home) {
    let house = House::new(&home).await;
    let (services, consumers, tenants) = (&house.services, &house.consumers, &house.tenants);
    let acme = house.tenant("acme").await.to_ref();
    let rival = house.tenant("rival").await;
    let service = house.service(json!({"slug": "billing"})).await.unwrap();
    let consumer = house
        .consumer(json!({"slug": "team", "external_id": "crm-1"}))
        .await
        .unwrap();
    let all = Rights::all;
    for id in [service.id.to_string(), "billing".to_owned()] {
        assert_not_found(services.read(&acme, &all(), id.clone()).await);
        let patch = parse(json!({"name": "x"}));
        assert_not_found(
            services
                .update(at(&acme), all(), id.clone(), None, patch)
                .await,
        );
        assert_not_found(services.disable(at(&acme), all(), id.clone()).await);
        assert_not_found(services.enable(at(&acme), all(), id.clone()).await);
        assert_not_found(services.delete(at(&acme), all(), id, None, true).await);
    }
    for id in [
        consumer.id.to_string(),
        "team".to_owned(),
        "crm-1".to_owned(),
    ] {
        assert_not_found(consumers.read(&acme, &all(), id.clone()).await);
        let patch = parse(json!({"name": "x"}));
        assert_not_found(
            consumers
                .update(at(&acme), all(), id.clone(), None, patch)
                .await,
        );
        assert_not_found(consumers.disable(at(&acme), all(), id.clone()).await);
        assert_not_found(consumers.enable(at(&acme), all(), id.clone()).await);
        assert_not_found(consumers.delete(at(&acme), all(), id, None, true).await);
    }
    let same = parse(json!({"slug": "team", "external_id": "crm-1"}));
    fresh(
        consumers
            .create(at(&acme), all(), None, same)
            .await
            .unwrap(),
    );
    assert_eq!(
        services
            .read(&house.default, &all(), "billing".into())
            .await
            .unwrap(),
        service
    );
    assert_eq!(
        consumers
            .read(&house.default, &all(), "crm-1".into())
            .await
            .unwrap(),
        consumer
    );

    // Tenants are kept from `default`; who acts in another sees that one.
    for id in [
        rival.id.to_string(),
        "rival".to_owned(),
        "default".to_owned(),
    ] {
        assert_not_found(tenants.read(&acme, Sight::Own, id.clone()).await);
        let patch = parse(json!({"name": "x"}));
        assert_not_found(tenants.update(at(&acme), id.clone(), None, patch).await);
        assert_not_found(tenants.disable(at(&acme), id.clone()).await);
        assert_not_found(tenants.enable(at(&acme), id.clone()).await);
        assert_not_found(tenants.delete(at(&acme), id, None, true).await);
    }
    assert_eq!(
        tenants
            .read(&acme, Sight::Own, "acme".into())
            .await
            .unwrap()
            .id,
        acme.id
    );
    let refused = tenants.disable(at(&acme), "acme".into()).await;
    assert!(matches!(refused, Err(Error::Escalation(_))), "{refused:?}");
    let refused = tenants
        .create(at(&acme), None, parse(json!({"slug": "mine"})))
        .await
        .map(fresh);
    assert!(matches!(refused, Err(Error::Escalation(_))), "{refused:?}");
    let seen = tenants
        .list(&acme, Sight::Own, TenantFilter::default(), first_page())
        .await
        .unwrap();
    let slugs: Vec<_> = seen.items.iter().map(|t| t.slug.as_str()).collect();
    assert_eq!(slugs, ["acme"]);
}
