//! Lists of events: newest first, by any filter, whole while lines are added.

use futures_util::future::join_all;
use keystead::audit::chain::AuditOutcome;
use keystead::audit::{Entry, EventFilter};
use keystead::page::{PageRequest, Position};
use keystead::time::{Span, Timestamp};

use super::*;
use crate::support::{Home, both};

both!(
    each_filter_finds_its_events_newest_first,
    another_tenants_events_are_not_there,
    pages_hold_every_line_once_while_lines_are_added,
    what_a_list_shows_hashes_to_the_hash_it_shows,
);

impl Trail {
    async fn list(&self, filter: &EventFilter, limit: u32) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut after: Option<Position> = None;
        loop {
            let request = PageRequest { limit, after };
            let page = self
                .audit
                .events(self.ours.id.clone(), filter.clone(), request)
                .await
                .unwrap();
            entries.extend(page.items);
            match page.next {
                None => return entries,
                next => after = next,
            }
        }
    }

    async fn seqs(&self, filter: EventFilter) -> Vec<i64> {
        let entries = self.list(&filter, 2).await;
        entries.iter().map(|entry| entry.event.seq).collect()
    }
}

async fn each_filter_finds_its_events_newest_first(home: Home) {
    let trail = Trail::of(&home, 4).await;
    let middle = trail.clock.now();
    trail.clock.advance(Span::hours(1));
    let by = Attribution {
        actor: Actor::Key {
            key_id: "key_admin".to_owned(),
        },
        via: None,
        request_id: Some("request-2".to_owned()),
        ip: Some("::ffff:198.51.100.7".parse().unwrap()),
        ..at(&trail.ours)
    };
    trail
        .audit
        .change(by, async |change: &mut Change| {
            change.record("service.create", ("service", "svc_1"), None, None);
            let target = chain::Target {
                kind: "key".to_owned(),
                id: "key_9".to_owned(),
            };
            change.record_refused("key.revoke", target, "forbidden", 3);
            db::Result::Ok(())
        })
        .await
        .unwrap();
    let all = EventFilter::default;
    for (filter, expected) in cases(middle.plus(Span::minutes(1))) {
        assert_eq!(trail.seqs(filter.clone()).await, expected, "{filter:?}");
    }
    let at_6 = trail.list(&all(), 1).await.remove(0).event.at;
    let before = EventFilter {
        to: Some(at_6),
        ..all()
    };
    assert_eq!(trail.seqs(before).await, [4, 3, 2, 1], "to is exclusive");
    let from = EventFilter {
        from: Some(at_6),
        ..all()
    };
    assert_eq!(trail.seqs(from).await, [6, 5], "from is inclusive");
}

/// Of four lines by alice before `middle`, and two by a key behind it.
fn cases(middle: Timestamp) -> Vec<(EventFilter, Vec<i64>)> {
    let all = EventFilter::default;
    let some = |text: &str| Some(text.to_owned());
    vec![
        (all(), vec![6, 5, 4, 3, 2, 1]),
        (
            EventFilter {
                actor: some("key_admin"),
                ..all()
            },
            vec![6, 5],
        ),
        (
            EventFilter {
                actor: some("https://idp.example#alice"),
                ..all()
            },
            vec![4, 3, 2, 1],
        ),
        (
            EventFilter {
                via: some("key_via"),
                ..all()
            },
            vec![4, 3, 2, 1],
        ),
        (
            EventFilter {
                action: some("service.create"),
                ..all()
            },
            vec![5],
        ),
        (
            EventFilter {
                target_kind: some("service"),
                ..all()
            },
            vec![5],
        ),
        (
            EventFilter {
                target: some("key_1"),
                ..all()
            },
            vec![4, 2],
        ),
        (
            EventFilter {
                outcome: Some(AuditOutcome::Refused),
                ..all()
            },
            vec![6],
        ),
        (
            EventFilter {
                ip: Some("198.51.100.7".parse().unwrap()),
                ..all()
            },
            vec![6, 5],
        ),
        (
            EventFilter {
                request_id: some("request-2"),
                ..all()
            },
            vec![6, 5],
        ),
        (
            EventFilter {
                from: Some(middle),
                ..all()
            },
            vec![6, 5],
        ),
        (
            EventFilter {
                to: Some(middle),
                ..all()
            },
            vec![4, 3, 2, 1],
        ),
        (
            EventFilter {
                target: some("key_1"),
                action: some("key.revoke"),
                ..all()
            },
            vec![],
        ),
    ]
}

async fn another_tenants_events_are_not_there(home: Home) {
    let trail = Trail::of(&home, 2).await;
    trail.change(&trail.other, 5).await.unwrap();
    assert_eq!(trail.seqs(EventFilter::default()).await, [2, 1]);
}

async fn pages_hold_every_line_once_while_lines_are_added(home: Home) {
    let trail = Trail::of(&home, 20).await;
    let writers = join_all((0..8).map(async |_| {
        for _ in 0..5 {
            trail.change(&trail.ours, 2).await.unwrap();
        }
    }));
    let reader = async {
        let mut lists = 0;
        loop {
            let entries = trail.list(&EventFilter::default(), 7).await;
            let newest = entries[0].event.seq;
            let seqs: Vec<i64> = entries.iter().map(|entry| entry.event.seq).collect();
            let expected: Vec<i64> = (1..=newest).rev().collect();
            assert_eq!(seqs, expected);
            lists += 1;
            if newest == 100 {
                return lists;
            }
        }
    };
    let (_, lists) = tokio::join!(writers, reader);
    assert!(lists > 1, "read while lines were added");
    assert!(trail.report().await.valid);
}

async fn what_a_list_shows_hashes_to_the_hash_it_shows(home: Home) {
    let trail = Trail::of(&home, 5).await;
    let mut entries = trail.list(&EventFilter::default(), 50).await;
    entries.reverse();
    let mut previous = chain::GENESIS.to_vec();
    for entry in entries {
        assert_eq!(entry.prev_hash, previous);
        let record = entry.event.canonical().unwrap();
        assert_eq!(chain::link(&previous, &record).to_vec(), entry.hash);
        previous = entry.hash;
    }
}
