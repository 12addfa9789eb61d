//! Plaintexts are shown once. That they are random is `keys::secret`'s own test (A9), that they are not
//! at rest is `keys::rest` (A10).

use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::matrix::recipes::Needs;
use crate::matrix::{fresh, operations, send};

both!(no_answer_but_those_that_make_a_secret_holds_one);

/// A14, for every operation of the document, as an owner and as the holder.
async fn no_answer_but_those_that_make_a_secret_holds_one(home: Home) {
    const MAKE: [&str; 4] = ["issue_key", "issue_keys", "rotate_key", "rotate_self"];
    let server = home.serve().await;
    let owner = server.owner();
    let mut shown = BTreeMap::new();
    let mut known = HashSet::new();
    for (count, operation) in operations(&server).await.into_iter().enumerate() {
        if matches!(operation.recipe.needs, Needs::Gateway | Needs::Client) {
            continue;
        }
        let world = fresh(&owner, count).await;
        let holder = owner.with_key(&world.api_key);
        let caller = match operation.recipe.needs {
            Needs::Key => &holder,
            Needs::Nothing | Needs::Scope(_) | Needs::Gateway | Needs::Client => &owner,
        };
        if let Some(first) = operation.recipe.first {
            let first = operations(&server)
                .await
                .into_iter()
                .find(|other| other.id == first)
                .expect("it is an operation");
            send(&owner, &first.call(&world)).await.expect(200);
        }
        let once = format!("secrets-{count}");
        let mut told = Vec::new();
        // What is said again is not shown again.
        for _ in 0..2 {
            let call = operation.call(&world);
            let mut request = caller
                .request(call.method, &call.path)
                .header("idempotency-key", &once);
            if let Some(body) = call.body {
                request = request.json(body);
            }
            let answer = request.send().await;
            assert!(answer.status < 500, "{}: {answer}", operation.id);
            let headers = format!("{:?}", answer.headers);
            assert_eq!(keys_in(&headers), [""; 0], "{}", operation.id);
            told.push(answer);
        }
        assert_eq!(
            told[0].status, operation.recipe.status,
            "{}: {}",
            operation.id, told[0]
        );
        for answer in &told {
            assert!(
                !answer.text.contains(&world.api_key[20..]),
                "{}",
                operation.id
            );
        }
        let (first, again) = (keys_in(&told[0].text), keys_in(&told[1].text));
        if ["read_openapi", "read_docs"].contains(&operation.id.as_str()) {
            // Its examples are keys that nobody has.
            continue;
        }
        if MAKE.contains(&operation.id.as_str()) {
            assert!(!first.is_empty(), "{}", operation.id);
            assert_eq!(told[1].headers["idempotency-replayed"], "true");
            assert_eq!(told[0].headers["cache-control"], "no-store");
            known.extend(first.iter().map(|key| (*key).to_owned()));
            shown.insert(operation.id, first.len());
        } else {
            assert_eq!(first, [""; 0], "{}", operation.id);
        }
        assert_eq!(again, [""; 0]);
        known.insert(world.api_key);
    }
    assert_eq!(shown.len(), MAKE.len(), "{shown:?}");

    // Nor does the trail, to its last page.
    let mut path = "/v1/audit/events?limit=200".to_owned();
    let mut lines = 0;
    loop {
        let page = owner.get(&path).send().await;
        for key in &known {
            assert!(!page.text.contains(&key[20..]), "a line holds a key");
        }
        let page = page.expect(200);
        lines += page["items"].as_array().unwrap().len();
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/audit/events?limit=200&cursor={cursor}"),
            None => break,
        }
    }
    assert!(lines > 100, "{lines}");
}

/// Whatever has the shape of a key.
fn keys_in(text: &str) -> Vec<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| {
            let mut parts = word.rsplit('_').map(str::len);
            (parts.next(), parts.next()) == (Some(49), Some(12))
        })
        .collect()
}
