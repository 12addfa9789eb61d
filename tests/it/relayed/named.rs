//! The name of a history is taken from who follows it, and not from what was left in Redis, or put back there.

use keystead::cache::relay::{Ack, Beat};

use super::*;

#[test]
fn a_history_keeps_its_name_when_a_node_is_started_again_and_takes_none_from_an_old_beat() {
    run(Backend::Postgres, async |home| {
        let redis = OwnRedis::start();
        let url = redis.url();
        let serve = async || home.serve_with(&[("REDIS__URL", &url)]).await;
        let link = patient_link(&url, Duration::from_secs(2));
        let a = serve().await;
        let mut beats = Vec::new();
        until(SPREADS, "there is a beat", async || {
            beats = names(&link, "keystead:*:beat:1").await;
            !beats.is_empty()
        })
        .await;
        let database = beats[0].split(['{', '}']).nth(1).unwrap();
        let relay = relay(link, database, "a test");
        let beat = async || relay.read().await.unwrap().beat.unwrap();
        let beat_after = async |at_us: u64| -> Beat {
            until(SPREADS, "there is a new beat", async || {
                beat().await.at_us > at_us
            })
            .await;
            beat().await
        };
        let first = beat().await;
        drop(a);

        let b = serve().await;
        let second = beat_after(first.at_us).await;
        assert_eq!(second.history, first.history);
        drop(b);

        // What it says is true of the database, and it may have been put back to that.
        let minutes_ago = |beat: &Beat, at_us: u64| Beat {
            at_us: at_us - 120_000_000,
            ..beat.clone()
        };
        let old = minutes_ago(&first, second.at_us);
        relay.tell(&old, &[], false).await.unwrap();
        let c = serve().await;
        let third = beat_after(old.at_us).await;
        assert_ne!(third.history, first.history);

        // Nor does a node that has a name follow it.
        let old = minutes_ago(&first, third.at_us);
        relay.tell(&old, &[], false).await.unwrap();
        assert_eq!(beat_after(old.at_us).await.history, third.history);
        drop(c);

        // Nobody beats any more, but somebody who only reads in Redis follows it all the same.
        let beat_us = beat().await.at_us;
        let old = minutes_ago(&third, beat_us);
        relay.tell(&old, &[], false).await.unwrap();
        let follows = Ack {
            history: third.history,
            position: third.seq,
            at_us: beat_us,
        };
        relay.acknowledge(follows).await.unwrap();
        let _d = serve().await;
        assert_eq!(beat_after(old.at_us).await.history, third.history);
    });
}
