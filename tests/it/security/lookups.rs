//! What reaches the database, and what a holder of nothing can learn from what does.

use super::*;

both!(
    a_typo_is_told_without_asking_the_database,
    a_query_in_the_place_of_a_key_reaches_no_query,
    what_is_too_long_for_a_key_is_refused_before_anything_is_computed,
    a_known_lookup_id_costs_what_an_unknown_one_costs,
    the_gateway_says_the_same_of_every_key_that_is_none,
);

/// A2.
async fn a_typo_is_told_without_asking_the_database(home: Home) {
    const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    // The callers are known from here on.
    for carrier in Carrier::ALL {
        world.judge(carrier, "letmein").await;
    }
    // Each place once; and all there is in the lookup id, in the secret part, in the checksum.
    let mut places = Vec::new();
    for place in 0..key.len() {
        let other = if &key[place..=place] == "a" { "b" } else { "a" };
        places.push((place, other));
    }
    let mut all = places.clone();
    for place in [12, 40, key.len() - 2] {
        all.extend((0..62).map(|digit| (place, &BASE62[digit..=digit])));
    }
    for carrier in Carrier::ALL {
        let everything = [Carrier::VerifyBody, Carrier::CallerHeader].contains(&carrier);
        let mut typos: Vec<String> = (if everything { &all } else { &places })
            .iter()
            .map(|(place, other)| {
                let mut typo = key.clone();
                typo.replace_range(*place..=*place, other);
                typo
            })
            .collect();
        typos.retain(|typo| *typo != key);
        assert!(typos.len() >= if everything { 250 } else { 70 });
        let (lookups, ()) = world
            .server
            .lookups(async {
                for typo in &typos {
                    let told = world.judge(carrier, typo).await;
                    assert_eq!(told, nobody(carrier, "malformed"), "{carrier:?} {typo}");
                }
            })
            .await;
        assert_eq!(lookups, 0, "{carrier:?}");
        // The same count finds what it is to find.
        let (_, fresh) = world.key().await;
        let (lookups, _) = world.server.lookups(world.judge(carrier, &fresh)).await;
        assert_eq!(lookups, 1, "{carrier:?}");
    }
}

/// A1.
async fn a_query_in_the_place_of_a_key_reaches_no_query(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    let texts = [
        "' OR '1'='1",
        "x' UNION SELECT 1--",
        "';SELECT pg_sleep(5)--",
        "%",
        "_",
        "ks_live_%_%",
        "ks_live_____________%",
        "\\",
        "$1",
        "?1",
        "${jndi:ldap://127.0.0.1/x}",
        "{{7*7}}",
        "../../../../etc/passwd",
        "*",
        "null",
    ];
    for carrier in Carrier::ALL {
        world.judge(carrier, "letmein").await;
        let (lookups, ()) = world
            .server
            .lookups(async {
                for text in texts {
                    let told = world.judge(carrier, text).await;
                    assert_eq!(told, nobody(carrier, "malformed"), "{carrier:?} {text}");
                }
            })
            .await;
        assert_eq!(lookups, 0, "{carrier:?}");
    }
    let find = |body: Value| world.owner.post("/v1/keys/find").json(body).send();
    let found = find(json!({"api_keys": texts})).await.expect(200);
    let items = found["items"].as_array().unwrap();
    assert_eq!(items.len(), texts.len());
    assert!(items.iter().all(Value::is_null), "{found}");
    for text in texts {
        let told = find(json!({"lookup_ids": [text]})).await;
        let nothing = told.status == 200 && told.body["items"] == json!([null]);
        assert!(nothing || told.status == 400, "{text}: {told}");
        for path in [
            "/v1/keys/",
            "/v1/consumers/",
            "/v1/services/",
            "/v1/tenants/",
        ] {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let told = world.owner.get(&format!("{path}{encoded}")).send().await;
            assert!([400, 404].contains(&told.status), "{path} {text}: {told}");
        }
        for name in [
            "consumer",
            "name",
            "external_id",
            "lookup_id",
            "created_by",
            "tag",
        ] {
            let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
            let path = format!("/v1/keys?{name}={encoded}");
            let told = world.owner.get(&path).send().await;
            let nothing = told.status == 200 && told.body["items"] == json!([]);
            assert!(
                nothing || [400, 404].contains(&told.status),
                "{name} {text}: {told}"
            );
        }
    }
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");
}

/// A7. The longest key has 96 characters, what is longer than 128 is not looked at.
async fn what_is_too_long_for_a_key_is_refused_before_anything_is_computed(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    let runs = world.server.app.hasher.runs();
    for length in [129, 257, 4_001, 60_000, 65_536, 1_048_576] {
        for start in ["", key.as_str()] {
            let long = format!("{start}{}", "a".repeat(length - start.len()));
            for carrier in Carrier::ALL {
                let request = world.present(carrier, long.as_bytes());
                let (lookups, answer) = world.server.lookups(request.try_send()).await;
                let what = format!("{length} {carrier:?}");
                let by_header = carrier != Carrier::VerifyBody;
                let Some(answer) = answer else {
                    // The connection was cut in the midst of a head that is too large.
                    assert!(by_header && length > 65_536, "{what}");
                    continue;
                };
                let fits = if by_header {
                    length < 60_000
                } else {
                    length < 65_000
                };
                if fits {
                    assert_eq!(code(&answer), nobody(carrier, "malformed"), "{what}");
                } else {
                    assert!((400..500).contains(&answer.status), "{what}: {answer}");
                }
                let own = !Carrier::CALLERS.contains(&carrier);
                assert!(lookups <= usize::from(own), "{what}");
            }
        }
    }
    assert_eq!(world.server.app.hasher.runs(), runs);
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");
}

/// A12: the same statements, so nobody learns by waiting which lookup ids there are.
async fn a_known_lookup_id_costs_what_an_unknown_one_costs(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    for carrier in Carrier::ALL {
        let mut told = Vec::new();
        for lookup_id in [lookup_id(&key), "000000000000"] {
            let mut fewest: Option<Vec<String>> = None;
            // What the node does by itself meanwhile can only add.
            for _ in 0..5 {
                // Another each time: one that is unknown is remembered.
                let stranger = stranger(lookup_id);
                let (statements, code) = world
                    .server
                    .statements(world.judge(carrier, &stranger))
                    .await;
                assert_eq!(code, nobody(carrier, "unknown"));
                if fewest
                    .as_ref()
                    .is_none_or(|few| statements.len() < few.len())
                {
                    fewest = Some(statements);
                }
            }
            told.push(fewest.unwrap());
        }
        assert!(!told[0].is_empty());
        assert_eq!(told[0], told[1], "{carrier:?}");
    }
}

/// A13.
async fn the_gateway_says_the_same_of_every_key_that_is_none(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    let host = &world.owner;
    host.create("/v1/tenants", json!({"slug": "other"})).await;
    let other = host.within("other");
    World::catalogue(&other).await;
    let (_, foreign) = World::issue(&other, &new_key()).await;
    let mut typo = key.clone();
    typo.replace_range(12..13, if &key[12..13] == "a" { "b" } else { "a" });
    let malformed = [typo, "letmein".to_owned()];
    let unknown = [
        stranger(lookup_id(&key)),
        stranger("000000000000"),
        stranger(lookup_id(&foreign)),
    ];
    for carrier in [
        Carrier::GatewayHeader,
        Carrier::CallerHeader,
        Carrier::CallerBearer,
    ] {
        // Another tenant's key; and, of a caller, a key that is good and manages nothing.
        let last = match carrier {
            Carrier::GatewayHeader => &foreign,
            _ => &key,
        };
        let mut told = std::collections::BTreeSet::new();
        for key in malformed.iter().chain(&unknown).chain([last]) {
            let answer = world.present(carrier, key.as_bytes()).send().await;
            assert_eq!((answer.status, answer.code()), (401, "invalid_credential"));
            told.insert(answer.redacted());
        }
        assert_eq!(told.len(), 1, "{carrier:?}: {told:#?}");
    }
    // A service that may ask is told which it was, and never that another tenant has it.
    for key in &malformed {
        assert_eq!(world.judge(Carrier::VerifyBody, key).await, "malformed");
    }
    for key in unknown.iter().chain([&foreign]) {
        assert_eq!(world.judge(Carrier::VerifyBody, key).await, "unknown");
    }
}
