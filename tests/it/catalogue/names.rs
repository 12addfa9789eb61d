//! Names and texts: what is unique, what is never used again, what comes back as it was.

use super::*;
use crate::support::both;

both!(
    a_slug_is_never_used_again,
    an_external_id_is_unique_until_its_consumer_is_deleted,
    to_put_the_same_again_changes_nothing,
    a_put_by_id_creates_nothing,
    a_deleted_consumer_hides_another_of_that_name,
    every_text_comes_back_as_it_was,
);

async fn a_slug_is_never_used_again(home: Home) {
    let house = House::new(&home).await;
    let service = house.service(json!({"slug": "a"})).await.unwrap();
    let consumer = house.consumer(json!({"slug": "a"})).await.unwrap();
    let tenant = house.tenant("a").await;
    for delete in [false, true] {
        let (existing, _) = assert_conflict(
            house.service(json!({"slug": "a"})).await,
            Conflict::SlugTaken,
        );
        assert_eq!(existing.unwrap(), service.id.as_str());
        let (existing, _) = assert_conflict(
            house.consumer(json!({"slug": "a"})).await,
            Conflict::SlugTaken,
        );
        assert_eq!(existing.unwrap(), consumer.id.as_str());
        let again = house
            .tenants
            .create(house.at(), None, parse(json!({"slug": "a"})));
        let (existing, _) = assert_conflict(again.await.map(fresh), Conflict::SlugTaken);
        assert_eq!(existing.unwrap(), tenant.id.as_str());
        if !delete {
            let (at, all) = (house.at(), Rights::all());
            let deleted = house.services.delete(at, all, "a".into(), None, false);
            deleted.await.unwrap();
            let (at, all) = (house.at(), Rights::all());
            let deleted = house.consumers.delete(at, all, "a".into(), None, false);
            deleted.await.unwrap();
            let deleted = house.tenants.delete(house.at(), "a".into(), None, false);
            deleted.await.unwrap();
        }
    }
    let put = house
        .services
        .replace(
            house.at(),
            Rights::all(),
            "a".into(),
            None,
            parse(json!({})),
        )
        .await;
    assert_conflict(put, Conflict::SlugTaken);
    let put = house
        .consumers
        .replace(
            house.at(),
            Rights::all(),
            "a".into(),
            None,
            parse(json!({})),
        )
        .await;
    assert_conflict(put, Conflict::SlugTaken);
}

async fn an_external_id_is_unique_until_its_consumer_is_deleted(home: Home) {
    let house = House::new(&home).await;
    let (consumers, all) = (&house.consumers, Rights::all);
    let first = house
        .consumer(json!({"slug": "a", "external_id": "crm-1"}))
        .await
        .unwrap();
    house.consumer(json!({"slug": "b"})).await.unwrap();

    let taken = [
        house
            .consumer(json!({"slug": "c", "external_id": "crm-1"}))
            .await,
        consumers
            .update(
                house.at(),
                all(),
                "b".into(),
                None,
                parse(json!({"external_id": "crm-1"})),
            )
            .await,
        consumers
            .replace(
                house.at(),
                all(),
                "b".into(),
                None,
                parse(json!({"external_id": "crm-1"})),
            )
            .await
            .map(|(consumer, _)| consumer),
    ];
    for refused in taken {
        let (existing, _) = assert_conflict(refused, Conflict::ExternalIdTaken);
        assert_eq!(existing.unwrap(), first.id.as_str());
    }
    consumers
        .delete(house.at(), all(), "crm-1".into(), None, false)
        .await
        .unwrap();
    assert_not_found(consumers.read(&house.default, &all(), "crm-1".into()).await);
    let second = consumers
        .update(
            house.at(),
            all(),
            "b".into(),
            None,
            parse(json!({"external_id": "crm-1"})),
        )
        .await
        .unwrap();
    let found = consumers.read(&house.default, &all(), "crm-1".into()).await;
    assert_eq!(found.unwrap(), second);
}

async fn to_put_the_same_again_changes_nothing(home: Home) {
    let house = House::new(&home).await;
    let all = Rights::all;
    let body = json!({
        "name": "Billing",
        "scopes": [{"name": "invoice:read"}, {"name": "invoice:write", "implies": ["invoice:read"]}],
        "key_policy": {"default_ttl": "30d", "environments": ["live"]},
        "rate_limits": [{"name": "burst", "limit": 5, "period": "1s"}],
        "quota": {"limit": 1000, "period": "month"},
        "on_outage": "refuse",
        "metadata": {"z": 1, "a": [true, null]},
    });
    let put = |body: &Value, expected| {
        let body = parse(body.clone());
        house
            .services
            .replace(house.at(), all(), "billing".into(), expected, body)
    };
    let (made, created) = put(&body, None).await.unwrap();
    assert!(created);
    let lines = house.lines().await.len();
    house.clock.advance(Span::hours(1));
    let (same, created) = put(&body, None).await.unwrap();
    assert!(!created);
    assert_eq!(same, made);
    assert_eq!(house.lines().await.len(), lines);

    let (less, _) = put(&json!({"slug": "billing"}), Some(1)).await.unwrap();
    assert_eq!((less.id.clone(), less.version), (made.id, 2));
    assert_eq!(less.name.as_str(), "billing");
    assert!(less.settings.scopes.is_empty() && less.settings.quota.is_none());
    assert!(matches!(
        put(&body, Some(1)).await,
        Err(Error::VersionMismatch { current: 2 })
    ));
    assert!(matches!(
        put(&json!({"slug": "other"}), None).await,
        Err(Error::Invalid(_))
    ));
    let absent = house
        .services
        .replace(house.at(), all(), "new".into(), Some(1), parse(json!({})));
    assert!(matches!(
        absent.await,
        Err(Error::VersionMismatch { current: 0 })
    ));

    let body = json!({"external_id": "crm-1", "metadata": {"team": "a"}});
    let put = || {
        let body = parse(body.clone());
        house
            .consumers
            .replace(house.at(), all(), "team".into(), None, body)
    };
    let (made, created) = put().await.unwrap();
    assert!(created);
    let lines = house.lines().await.len();
    assert_eq!(put().await.unwrap(), (made, false));
    assert_eq!(house.lines().await.len(), lines);
}

async fn a_deleted_consumer_hides_another_of_that_name(home: Home) {
    let house = House::new(&home).await;
    let (consumers, all) = (&house.consumers, Rights::all);
    let first = house.consumer(json!({"slug": "acme"})).await.unwrap();
    let other = json!({"slug": "other", "external_id": "acme"});
    let other = house.consumer(other).await.unwrap();
    let id = ConsumerId::new(&house.clock, &Entropy::System);
    let third = json!({"slug": "third", "external_id": id});
    let third = house.consumer(third).await.unwrap();

    let read = async |id: &str| {
        consumers
            .read(&house.default, &Rights::all(), id.to_owned())
            .await
    };
    assert_eq!(read("acme").await.unwrap().id, first.id);
    assert_eq!(read(id.as_str()).await.unwrap().id, third.id);
    consumers
        .delete(house.at(), all(), "acme".into(), None, false)
        .await
        .unwrap();
    let again = consumers.delete(house.at(), all(), "acme".into(), None, false);
    assert_not_found(again.await);
    assert_eq!(read("other").await.unwrap(), other);
}

async fn every_text_comes_back_as_it_was(home: Home) {
    let house = House::new(&home).await;
    let odd = "a\u{202e}b\u{feff} \u{1f680}\u{10ffff} e\u{301}\u{e9} ''\"\\%_ ʼ NUL:\\u0000";
    let body = json!({
        "slug": "odd",
        "external_id": odd,
        "name": odd,
        "metadata": {odd: [odd, 1.5, -0.0, 1e-9, 9_007_199_254_740_991_i64, null, {}]},
    });
    let made = house.consumer(body.clone()).await.unwrap();
    let read = house
        .consumers
        .read(&house.default, &Rights::all(), odd.to_owned())
        .await
        .unwrap();
    assert_eq!(read, made);
    assert_eq!(read.name.as_str(), odd);
    assert_eq!(read.external_id, Some(ExternalId::parse(odd).unwrap()));
    assert_eq!(json!(read.metadata), body["metadata"]);

    let lines = "a\tb\nc\u{202e}";
    let body = json!({"slug": "odd", "description": lines, "metadata": {"a": odd}});
    house.service(body).await.unwrap();
    let read = house
        .services
        .read(&house.default, &Rights::all(), "odd".into())
        .await
        .unwrap();
    assert_eq!(read.description.as_str(), lines);
}

async fn a_put_by_id_creates_nothing(home: Home) {
    let house = House::new(&home).await;
    let acme = house.tenant("acme").await.to_ref();
    let service = house.service(json!({"slug": "billing"})).await.unwrap();
    let consumer = json!({"slug": "team", "external_id": "other"});
    let consumer = house.consumer(consumer).await.unwrap();
    let put_service = |at, id: &str| {
        let body = parse(json!({"name": "x"}));
        house
            .services
            .replace(at, Rights::all(), id.to_owned(), None, body)
    };
    let put_consumer = |at, id: &str| {
        let body = parse(json!({"name": "x"}));
        house
            .consumers
            .replace(at, Rights::all(), id.to_owned(), None, body)
    };
    let (replaced, created) = put_service(house.at(), service.id.as_str()).await.unwrap();
    assert_eq!((&replaced.slug, created), (&service.slug, false));
    let (other, created) = put_consumer(house.at(), "other").await.unwrap();
    assert!(
        created && other.id != consumer.id,
        "an external id names nothing to put"
    );
    let (replaced, created) = put_consumer(house.at(), consumer.id.as_str())
        .await
        .unwrap();
    assert_eq!((&replaced.slug, created), (&consumer.slug, false));

    assert_not_found(put_service(at(&acme), service.id.as_str()).await);
    assert_not_found(put_consumer(at(&acme), consumer.id.as_str()).await);
    let (theirs, created) = put_service(at(&acme), "billing").await.unwrap();
    assert!(created && theirs.id != service.id);
}
