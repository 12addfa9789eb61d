//! The keys that tokens are signed with: one set for all nodes, rotated without a gap, of no use to who
//! has the database alone.

use keystead::oauth::keyring::ANNOUNCED_FOR;
use keystead::time::Span;

use super::*;
use crate::support::{both, tables, until};

both!(
    all_nodes_sign_with_the_same_keys,
    keys_follow_each_other_on_schedule_with_an_overlap,
    a_key_is_made_by_command_and_stands_in_the_audit_trail,
    nodes_that_find_a_key_due_together_make_one,
    the_database_alone_signs_nothing_and_publishes_nothing,
    a_lost_master_key_is_survived,
);

async fn kids(server: &Server) -> Vec<String> {
    let set = server
        .client()
        .get("/.well-known/jwks.json")
        .send()
        .await
        .expect(200);
    let keys = set["keys"].as_array().unwrap().iter();
    keys.map(|key| text(key, "/kid")).collect()
}

fn kid(token: &str) -> String {
    text(&part(token, 0), "/kid")
}

async fn token_of(server: &Server, key: &str) -> String {
    let request = server.client().with_key(key).post("/oauth/token");
    let answer = request
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await;
    text(&answer.expect(200), "/access_token")
}

async fn all_nodes_sign_with_the_same_keys(home: Home) {
    let one = World::new(&home).await;
    let two = home.serve().await;
    let key = one.key().await;
    let (mine, other) = (
        token_of(&one.server, &key).await,
        token_of(&two, &key).await,
    );
    assert_eq!(kid(&mine), kid(&other));
    assert_eq!(kids(&one.server).await, kids(&two).await);
}

/// Each verifier that keeps the set for as long as it may knows each key it meets.
async fn keys_follow_each_other_on_schedule_with_an_overlap(home: Home) {
    let world = World::with(&home, &[("OAUTH__SIGNING_ROTATION", "1h")]).await;
    let (server, key) = (&world.server, world.key().await);
    let tend = async || server.app.tend_signing_keys().await.unwrap();
    let first = kid(&token_of(server, &key).await);
    assert_eq!(kids(server).await, [&*first]);
    server.clock.advance(Span::minutes(49));
    tend().await;
    assert_eq!(kids(server).await, [&*first]);
    // Ten minutes before: published, and nothing is signed with it yet.
    server.clock.advance(Span::minutes(2));
    tend().await;
    let set = kids(server).await;
    assert_eq!((set.len(), &set[1]), (2, &first));
    let second = set[0].clone();
    tend().await;
    assert_eq!(kids(server).await, set);
    assert_eq!(kid(&token_of(server, &key).await), first);
    // Its time comes by the clock alone.
    server.clock.advance(ANNOUNCED_FOR);
    let last_of_first = token_of(server, &key).await;
    assert_eq!(kid(&last_of_first), second);
    assert_eq!(kids(server).await, set);
    // The longest token of the old key has 15 minutes, and a clock may be a minute behind.
    server.clock.advance(Span::minutes(15));
    assert_eq!(kids(server).await, set);
    server.clock.advance(Span::minutes(1));
    assert_eq!(kids(server).await, [&*second]);
    tend().await;
    assert_eq!(kids(server).await, [second]);
    let rows = tables::lines_of(
        home.eyes(),
        "SELECT kid AS line FROM signing_key".to_owned(),
    );
    assert_eq!(rows.await.len(), 1);
}

async fn a_key_is_made_by_command_and_stands_in_the_audit_trail(home: Home) {
    let world = World::new(&home).await;
    let (server, key) = (&world.server, world.key().await);
    let first = kid(&token_of(server, &key).await);
    let run = |arguments: &[&str]| {
        let output = home.keystead(arguments).output().unwrap();
        let both = [&output.stdout[..], &output.stderr].concat();
        (output.status.success(), String::from_utf8(both).unwrap())
    };
    let (done, told) = run(&["signing-key", "rotate", "--reason", "somebody left"]);
    assert!(done, "{told}");
    // The node hears of it.
    until(
        std::time::Duration::from_secs(5),
        "it is published",
        async || kids(server).await.len() == 2,
    )
    .await;
    let second = kids(server).await[0].clone();
    assert!(told.contains(&second), "{told}");
    assert_eq!(kid(&token_of(server, &key).await), first);
    let (done, told) = run(&["signing-key", "rotate"]);
    assert!(!done && told.contains(&second), "{told}");
    let (done, status) = run(&["signing-key", "status"]);
    assert!(done, "{status}");
    let lines: Vec<&str> = status.lines().skip(1).collect();
    assert!(
        lines[0].starts_with("next") && lines[0].ends_with(&second),
        "{status}"
    );
    assert!(
        lines[1].starts_with("active") && lines[1].ends_with(&first),
        "{status}"
    );

    // At once, for a key that somebody has seen: the one on its way is given up.
    let (done, told) = run(&["signing-key", "rotate", "--now"]);
    assert!(done, "{told}");
    until(std::time::Duration::from_secs(5), "it signs", async || {
        ![first.clone(), second.clone()].contains(&kid(&token_of(server, &key).await))
    })
    .await;
    let set = kids(server).await;
    assert!(set.contains(&first) && !set.contains(&second), "{set:?}");

    // And of one that somebody has, not a token is taken any more.
    let (done, told) = run(&["signing-key", "rotate", "--compromised"]);
    assert!(done, "{told}");
    until(
        std::time::Duration::from_secs(5),
        "the others are gone",
        async || kids(server).await.len() == 1,
    )
    .await;
    assert!(told.contains(&kids(server).await[0]), "{told}");

    let deleted = "/v1/audit/events?action=signing_key.delete";
    let deleted = world.owner.get(deleted).send().await.expect(200);
    assert_eq!(deleted["items"].as_array().unwrap().len(), 3, "{deleted}");
    let events = "/v1/audit/events?action=signing_key.create";
    let events = world.owner.get(events).send().await.expect(200);
    let items = events["items"].as_array().unwrap();
    assert_eq!(items.len(), 4, "{events}");
    assert_eq!(items[2]["reason"], "somebody left");
    assert_eq!(items[2]["actor"]["kind"], "cli");
    assert_eq!(items[3]["actor"]["kind"], "system");
    assert_eq!(items[2]["after"]["algorithm"], "ES256");
    assert!(!events.to_string().contains("private"));
}

async fn nodes_that_find_a_key_due_together_make_one(home: Home) {
    let rotation = [("OAUTH__SIGNING_ROTATION", "1h")];
    let one = home.serve_with(&rotation).await;
    let two = home.serve_with(&rotation).await;
    for node in [&one, &two] {
        node.clock.advance(Span::minutes(51));
    }
    let (a, b) = tokio::join!(one.app.tend_signing_keys(), two.app.tend_signing_keys());
    a.and(b).unwrap();
    one.app.tend_signing_keys().await.unwrap();
    let set = kids(&one).await;
    assert_eq!(set.len(), 2);
    assert_eq!(kids(&two).await, set);
}

/// "A stolen database signs nothing", and who writes to it plants no key.
async fn the_database_alone_signs_nothing_and_publishes_nothing(home: Home) {
    let world = World::new(&home).await;
    let key = world.key().await;
    let own = kids(&world.server).await;
    let token = token_of(&world.server, &key).await;
    // What stands there is no private key in any form that could be read.
    let rows = "SELECT kid || ' ' || algorithm || ' ' || master_id AS line FROM signing_key";
    let rows = tables::lines_of(home.eyes(), rows.to_owned()).await;
    assert_eq!(rows.len(), 1);
    // Somebody's own row, and ours under another name.
    tables::execute(
        &home,
        "INSERT INTO signing_key SELECT generation + 1, 'planted', algorithm, master_id, \
         private_key, active_from, created_at FROM signing_key",
    )
    .await;
    tables::execute(
        &home,
        "INSERT INTO signing_key SELECT generation + 1, 'foreign', algorithm, '0123456789abcdef', \
         private_key, active_from, created_at FROM signing_key WHERE kid = 'planted'",
    )
    .await;
    world.server.app.keyring.reload().await.unwrap();
    assert_eq!(kids(&world.server).await, own);
    assert_eq!(kid(&token_of(&world.server, &key).await), kid(&token));
}

/// The peppers are given up by `keystead pepper lost`; new tokens are signed under the new master key.
async fn a_lost_master_key_is_survived(home: Home) {
    let other = (
        "SECRETS__MASTER_KEY",
        "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f",
    );
    let first = {
        let node = home.serve().await;
        kids(&node).await
    };
    let mut lost = home.keystead(&["pepper", "lost", "--reason", "the disk burnt"]);
    lost.env("KEYSTEAD__SECRETS__MASTER_KEY", other.1);
    let output = lost.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let node = home.serve_with(&[other]).await;
    let set = kids(&node).await;
    assert_eq!(set.len(), 1);
    assert_ne!(set, first);
}
