//! A node without the database goes on by what stands in Redis only while it is heard there: the others do not
//! wait for who is not.

use super::*;

/// From what the first command does to Redis until the second undoes it.
async fn counts_on_nobody(home: Home, refuse: [&str; 4], allow: [&str; 4]) {
    let mut nodes = Nodes::new(&home, &[]).await;
    nodes.cut_database(Fault::Refuse).await;
    let reach = &nodes.b.app.reach;
    until(SPREADS, "Redis alone reaches it", async || {
        reach.teller() == "redis"
    })
    .await;
    nodes.redis.command(&refuse).await;
    until(SPREADS, "it is heard no more", async || {
        reach.teller() == "nobody"
    })
    .await;
    let proved_us = reach.proved_us();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        assert_eq!(reach.teller(), "nobody");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(reach.proved_us(), proved_us);
    nodes.redis.command(&allow).await;
    until(SPREADS, "it goes on", async || {
        reach.teller() == "redis" && reach.proved_us() > proved_us
    })
    .await;
}

#[test]
fn a_node_that_can_only_read_from_redis_counts_as_one_that_does_not_reach_it() {
    run(Backend::Postgres, async |home| {
        let refuse = ["CONFIG", "SET", "maxmemory", "1"];
        counts_on_nobody(home, refuse, ["CONFIG", "SET", "maxmemory", "0"]).await;
    });
}

#[test]
fn so_does_one_that_reads_there_what_others_go_on_telling() {
    run(Backend::Postgres, async |home| {
        let refuse = ["ACL", "SETUSER", "default", "-hset"];
        counts_on_nobody(home, refuse, ["ACL", "SETUSER", "default", "+hset"]).await;
    });
}

#[test]
fn a_node_says_what_it_knows_also_where_nobody_else_says_anything() {
    run(Backend::Postgres, async |home| {
        let mut nodes = Nodes::new(&home, &[]).await;
        let link = nodes.link();
        until(SPREADS, "it knows the name of the history", async || {
            names(&link, "keystead:*:beat:1").await.len() == 1
                && nodes.b.app.reach.teller() == "database"
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        nodes.cut_database(Fault::Refuse).await;
        let Nodes { a, b, redis, .. } = nodes;
        // Nobody else is left.
        drop(a);
        redis.command(&["FLUSHALL"]).await;
        until(SPREADS, "it says so", async || {
            names(&link, "keystead:*:acks:1").await.len() == 1
        })
        .await;
        assert!(names(&link, "keystead:*:beat:1").await.is_empty());
        assert_eq!(b.app.reach.teller(), "redis");
    });
}
