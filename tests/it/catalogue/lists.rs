//! Lists: pages and filters.

use super::*;
use crate::support::both;

both!(
    pages_show_everything_once_newest_first,
    a_filter_narrows_the_consumers,
    a_filter_narrows_services_and_tenants,
);

async fn pages_show_everything_once_newest_first(home: Home) {
    let house = House::new(&home).await;
    for number in 0..7 {
        let body = json!({"slug": format!("c{number}")});
        house.consumer(body).await.unwrap();
        if number % 2 == 0 {
            house.clock.advance(Span::from_millis(1));
        }
    }
    let mut seen = Vec::new();
    let mut request = PageRequest {
        limit: 3,
        after: None,
    };
    loop {
        let page = house
            .consumers
            .list(
                &house.default,
                &Rights::all(),
                ConsumerFilter::default(),
                request.clone(),
            )
            .await
            .unwrap();
        // What is added while somebody pages does not move the pages.
        let body = json!({"slug": format!("late{}", seen.len())});
        house.consumer(body).await.unwrap();
        seen.extend(page.items);
        match page.next {
            Some(next) => request.after = Some(next),
            None => break,
        }
    }
    let mut sorted = seen.clone();
    sorted.sort_by_key(|consumer| std::cmp::Reverse((consumer.created_at, consumer.id.clone())));
    assert_eq!(seen, sorted);
    let mut slugs: Vec<_> = seen.iter().map(|c| c.slug.as_str()).collect();
    slugs.sort_unstable();
    assert_eq!(slugs, ["c0", "c1", "c2", "c3", "c4", "c5", "c6"]);
}

/// Three of each kind, `b` disabled, the consumer `c` deleted.
async fn three_of_each(house: &House) {
    for (slug, external_id, name) in [("a", "x", "One"), ("b", "y", "One"), ("c", "z", "one")] {
        let body = json!({"slug": slug, "external_id": external_id, "name": name});
        house.consumer(body).await.unwrap();
        house.service(json!({"slug": slug})).await.unwrap();
        house.tenant(slug).await;
        house.clock.advance(Span::seconds(1));
    }
    let (at, all, b) = (|| house.at(), Rights::all, || "b".to_owned());
    house.consumers.disable(at(), all(), b()).await.unwrap();
    house.services.disable(at(), all(), b()).await.unwrap();
    house.tenants.disable(at(), b()).await.unwrap();
    let deleted = house.consumers.delete(at(), all(), "c".into(), None, false);
    deleted.await.unwrap();
}

async fn a_filter_narrows_the_consumers(home: Home) {
    let house = House::new(&home).await;
    three_of_each(&house).await;
    for (filter, expected) in [
        (json!({}), vec!["b", "a"]),
        (json!({"slug": "a"}), vec!["a"]),
        (json!({"external_id": "y"}), vec!["b"]),
        (json!({"external_id": "z"}), vec![]),
        (json!({"name": "One"}), vec!["b", "a"]),
        (json!({"name": "one"}), vec![]),
        (json!({"name": "One", "slug": "c"}), vec![]),
        (json!({"status": "active"}), vec!["a"]),
        (json!({"status": "disabled"}), vec!["b"]),
    ] {
        let shown = filter.to_string();
        let page = house
            .consumers
            .list(&house.default, &Rights::all(), parse(filter), first_page())
            .await
            .unwrap();
        let slugs: Vec<_> = page.items.iter().map(|c| c.slug.as_str()).collect();
        assert_eq!(slugs, expected, "{shown}");
    }
}

async fn a_filter_narrows_services_and_tenants(home: Home) {
    let house = House::new(&home).await;
    three_of_each(&house).await;
    for (filter, services, tenants) in [
        (json!({"slug": "b"}), vec!["b"], vec!["b"]),
        (json!({"status": "disabled"}), vec!["b"], vec!["b"]),
        (
            json!({"status": "active"}),
            vec!["c", "a", "keystead"],
            vec!["c", "a", "default"],
        ),
        (json!({"status": "active", "slug": "b"}), vec![], vec![]),
    ] {
        let rights = Rights::all();
        let page = house
            .services
            .list(&house.default, &rights, parse(filter.clone()), first_page())
            .await
            .unwrap();
        let slugs: Vec<_> = page.items.iter().map(|s| s.slug.as_str()).collect();
        assert_eq!(slugs, services, "{filter}");
        let page = house
            .tenants
            .list(&house.default, Sight::All, parse(filter), first_page())
            .await
            .unwrap();
        let slugs: Vec<_> = page.items.iter().map(|t| t.slug.as_str()).collect();
        assert_eq!(slugs, tenants);
    }
}
