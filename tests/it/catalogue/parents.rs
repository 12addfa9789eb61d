//! What is built in, and what has live keys, stays.

use super::*;
use crate::support::both;

both!(
    several_nodes_make_one_default_tenant,
    the_built_in_things_stay,
    live_keys_keep_their_parents,
);

async fn several_nodes_make_one_default_tenant(home: Home) {
    let mut starting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let home = home.clone();
        starting.spawn(async move { House::new(&home).await.default });
    }
    let made = starting.join_all().await;
    assert!(made.iter().all(|tenant| *tenant == made[0]), "{made:?}");

    let house = House::new(&home).await;
    assert_eq!(house.actions().await, ["tenant.create"]);
    let heads: i64 = house
        .db
        .read(async move |conn: &mut Conn| -> db::Result<i64> {
            Ok(each!(conn, c => audit_head::table.count().get_result(c).await)?)
        })
        .await
        .unwrap();
    assert_eq!(heads, 1);
    let list = house
        .services
        .list(
            &house.default,
            &Rights::all(),
            ServiceFilter::default(),
            first_page(),
        )
        .await
        .unwrap();
    let slugs: Vec<_> = list.items.iter().map(|s| s.slug.as_str()).collect();
    assert_eq!(slugs, ["keystead"]);
}

async fn the_built_in_things_stay(home: Home) {
    let house = House::new(&home).await;
    let (services, tenants, all) = (&house.services, &house.tenants, Rights::all);
    let keystead = || "keystead".to_owned();
    let at = || house.at();
    let lines = house.lines().await.len();

    let patch = parse(json!({"name": "Mine"}));
    let refused = services.update(at(), all(), keystead(), None, patch).await;
    assert_conflict(refused, Conflict::BuiltIn);
    let refused = services.replace(at(), all(), "keystead".into(), None, parse(json!({})));
    assert_conflict(refused.await, Conflict::BuiltIn);
    assert_conflict(
        services.disable(at(), all(), keystead()).await,
        Conflict::BuiltIn,
    );
    assert_conflict(
        services.enable(at(), all(), keystead()).await,
        Conflict::BuiltIn,
    );
    let refused = services.delete(at(), all(), keystead(), None, true).await;
    assert_conflict(refused, Conflict::BuiltIn);
    let refused = house.service(json!({"slug": "keystead"})).await;
    assert_conflict(refused, Conflict::SlugTaken);

    let default = || "default".to_owned();
    assert_conflict(tenants.disable(at(), default()).await, Conflict::BuiltIn);
    let refused = tenants.delete(at(), default(), None, true).await;
    assert_conflict(refused, Conflict::BuiltIn);
    assert_eq!(house.lines().await.len(), lines);
    let patch = parse(json!({"name": "Example Ltd"}));
    tenants.update(at(), default(), None, patch).await.unwrap();
}

async fn live_keys_keep_their_parents(home: Home) {
    let house = House::new(&home).await;
    let (services, consumers, all) = (&house.services, &house.consumers, Rights::all);
    let billing = house.service(json!({"slug": "billing"})).await.unwrap();
    let team = house.consumer(json!({"slug": "team"})).await.unwrap();
    let soon = house.clock.now().plus(Span::minutes(1));
    let key = house.key(&team, &[&billing], None).await;
    house.key(&team, &[&billing], Some(soon)).await;
    house.key(&team, &[], Some(soon)).await;

    let delete_service =
        |revoke| services.delete(house.at(), all(), "billing".into(), None, revoke);
    let delete_consumer = |revoke| consumers.delete(house.at(), all(), "team".into(), None, revoke);
    let (_, count) = assert_conflict(delete_service(false).await, Conflict::HasLiveKeys);
    assert_eq!(count, Some(2));
    let (_, count) = assert_conflict(delete_consumer(false).await, Conflict::HasLiveKeys);
    assert_eq!(count, Some(3));

    house.clock.advance(Span::minutes(2));
    let (_, count) = assert_conflict(delete_service(false).await, Conflict::HasLiveKeys);
    assert_eq!(count, Some(1), "an expired key is not alive");
    house.revoke(key).await;
    delete_service(false).await.unwrap();

    house.key(&team, &[], None).await;
    assert_conflict(delete_consumer(false).await, Conflict::HasLiveKeys);
    delete_consumer(true).await.unwrap();
    assert_not_found(consumers.read(&house.default, &all(), "team".into()).await);

    let acme = house.tenant("acme").await;
    let theirs = consumers
        .create(
            at(&acme.to_ref()),
            all(),
            None,
            parse(json!({"slug": "team"})),
        )
        .await
        .map(fresh)
        .unwrap();
    house.key(&theirs, &[], None).await;
    let delete = |revoke| {
        house
            .tenants
            .delete(house.at(), "acme".into(), None, revoke)
    };
    let (_, count) = assert_conflict(delete(false).await, Conflict::HasLiveKeys);
    assert_eq!(count, Some(1));
    delete(true).await.unwrap();
}
