//! What takes long is bounded, and what is short does not stand behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use keystead::clock::Clock;
use keystead::db::{self, Conn};
use keystead::page::PageRequest;
use keystead::time::Span;
use keystead::usage::Usage;
use keystead::usage::query::{EventFilter, Order, SummaryQuery};
use keystead::usage::store::events::Wanted;
use keystead::usage::summary::plan;
use tokio::sync::watch;

use crate::support::{Home, both};

both!(summaries_leave_connections_to_lists_and_validations);

const WAIT: Duration = Duration::from_mins(1);

/// Far more than may run, of as many tenants.
const SUMMARIES: usize = 12;

async fn summaries_leave_connections_to_lists_and_validations(home: Home) {
    let db = home.usage_db();
    let usage = Usage::new(db.clone(), Clock::System);
    let (end, ends) = watch::channel(false);
    let running = Arc::new(AtomicUsize::new(0));
    let summaries: Vec<_> = (0..SUMMARIES)
        .map(|tenant| {
            let (db, running, mut ends) = (db.clone(), Arc::clone(&running), ends.clone());
            tokio::spawn(async move {
                let work = async move |_: &mut Conn| -> db::Result<()> {
                    running.fetch_add(1, Ordering::SeqCst);
                    ends.wait_for(|is_over| *is_over).await.expect("it is told");
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok(())
                };
                // Of this tenant two.
                db.long(&format!("ten_{}", tenant / 2), WAIT, work).await
            })
        })
        .collect();
    while running.load(Ordering::SeqCst) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let now = Clock::System.now();
    let what = plan(&SummaryQuery::default(), "ten_mine", None, now).unwrap();
    let mine = tokio::spawn({
        let usage = usage.clone();
        async move { usage.sum(what).await }
    });
    // More of each at once than there are connections in all.
    for _ in 0..10 {
        let page = PageRequest {
            limit: 5,
            after: None,
        };
        let wanted = Wanted {
            tenant_id: "ten_mine".to_owned(),
            services: None,
            filter: EventFilter::default(),
            oldest: now.minus(Span::days(1)),
            now,
        };
        let events = usage.events(wanted, Order::Newest, page).await.unwrap();
        assert!(events.items.is_empty());
        let nothing = async |_: &mut Conn| db::Result::Ok(());
        db.read(nothing).await.unwrap();
        db.load(Duration::from_millis(500), nothing).await.unwrap();
        db.write(nothing).await.unwrap();
        db.snapshot(nothing).await.unwrap();
    }
    let held = running.load(Ordering::SeqCst);
    assert!(held < 5, "{held} summaries run at once");
    assert!(!mine.is_finished(), "one more runs beside {held}");
    end.send(true).unwrap();
    // Each in its turn, of which none took long.
    let rows = mine.await.unwrap().unwrap();
    assert_eq!((rows.len(), rows[0].uses), (1, 0));
    for summary in summaries {
        let _some_waited_as_long_as_an_answer_may = summary.await.unwrap();
    }
    assert_eq!(running.load(Ordering::SeqCst), 0);
}
