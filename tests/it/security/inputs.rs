//! Bodies and queries that ask for more than they may: members that nobody sets, filters of nothing,
//! numbers out of range, too much of everything, pages of other people.

use super::*;
use crate::matrix::recipes::Needs;
use crate::matrix::{fresh, operations};
use crate::support::{tables, until};

both!(
    what_only_the_server_sets_is_refused_in_every_body,
    a_parameter_that_an_operation_does_not_know_is_refused_and_nothing_done,
    a_filter_of_nothing_ends_no_key,
    numbers_and_times_out_of_range_are_refused,
    more_than_the_bounds_is_refused_with_the_place_named,
    a_cursor_is_good_for_its_own_list_alone,
);

/// J4, for every operation of the document.
async fn what_only_the_server_sets_is_refused_in_every_body(home: Home) {
    let members = json!({
        "id": "key_01jd8k3v9we5m8t7q2x4z6y0ab",
        "hash": "x",
        "verifier": "x",
        "fingerprint": "x",
        "created_by": {"kind": "system"},
        "created_at": "2020-01-01T00:00:00Z",
        "revoked_at": null,
        "last_used_at": "2020-01-01T00:00:00Z",
        "tenant": "other",
        "tenant_id": "ten_01jd8k3v9we5m8t7q2x4z6y0ab",
        "version": 1,
        "lookup_id": "000000000000",
        "status": "active",
        "is_admin": true,
        "user_id": "eve",
        "owner": "eve",
        "__proto__": {"is_admin": true},
        "constructor": 1,
    });
    let server = home.serve().await;
    let owner = server.owner();
    let world = fresh(&owner, 0).await;
    let before = tables::changes(&home).await;
    let mut bodies = 0;
    for operation in operations(&server).await {
        if !matches!(operation.recipe.needs, Needs::Scope(_) | Needs::Key) {
            continue;
        }
        let holder = owner.with_key(&world.api_key);
        let caller = if operation.recipe.needs == Needs::Key {
            &holder
        } else {
            &owner
        };
        let call = operation.call(&world);
        for (name, value) in members.as_object().unwrap() {
            if call.method != "GET" && call.method != "DELETE" {
                let mut body = call.body.clone().unwrap_or_else(|| json!({}));
                // In a batch the items are the objects.
                match body.get_mut("items") {
                    Some(items) => items[0][name] = value.clone(),
                    None => body[name] = value.clone(),
                }
                let request = caller.request(call.method.clone(), &call.path);
                let told = request.json(body).send().await;
                bodies += 1;
                let what = format!("{} {name}: {told}", operation.id);
                if operation.id == "verify_keys" {
                    assert_eq!(
                        told.body["items"][0]["problem"]["code"], "invalid_request",
                        "{what}"
                    );
                } else {
                    assert_eq!(
                        (told.status, told.code()),
                        (400, "invalid_request"),
                        "{what}"
                    );
                }
            }
        }
    }
    assert!(bodies > 400, "{bodies}");
    assert_eq!(tables::changes(&home).await, before);
}

/// J4: `?dry_run=true` where the body is asked for it must not pass for a trial.
async fn a_parameter_that_an_operation_does_not_know_is_refused_and_nothing_done(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    let world = fresh(&owner, 0).await;
    let holder = owner.with_key(&world.api_key);
    let before = tables::changes(&home).await;
    for operation in operations(&server).await {
        let caller = match operation.recipe.needs {
            Needs::Scope(_) => &owner,
            Needs::Key => &holder,
            Needs::Nothing | Needs::Gateway | Needs::Client => continue,
        };
        let call = operation.call(&world);
        let mark = if call.path.contains('?') { '&' } else { '?' };
        for parameter in ["is_admin", "dry_run", "tenant_id", "sort", "x", "=", "%00"] {
            let path = format!("{}{mark}{parameter}=true", call.path);
            let mut request = caller.request(call.method.clone(), &path);
            if let Some(body) = &call.body {
                request = request.json(body.clone());
            }
            let told = request.send().await;
            let what = format!("{} ?{parameter}: {told}", operation.id);
            assert_eq!(
                (told.status, told.code()),
                (400, "invalid_request"),
                "{what}"
            );
        }
        // Who may not call at all is told that first.
        let path = format!("{}{mark}x=1", call.path);
        let request = server.client().request(call.method, &path);
        let told = request.json(json!({})).send().await;
        assert_eq!(
            (told.status, told.code()),
            (401, "unauthenticated"),
            "{}",
            operation.id
        );
    }
    assert_eq!(tables::changes(&home).await, before);
}

/// J6.
async fn a_filter_of_nothing_ends_no_key(home: Home) {
    let world = World::new(&home).await;
    let (_, key) = world.key().await;
    let end = |body: Value| world.owner.post("/v1/keys/revoke").json(body).send();
    for filter in [
        json!({}),
        json!({"ids": []}),
        json!({"lookup_ids": []}),
        json!({"api_keys": []}),
        json!({"ids": [], "lookup_ids": [], "api_keys": []}),
        json!({"ids": [], "consumer": "acme"}),
        json!({"consumer": ""}),
        json!({"consumer": null}),
        json!({"service": ""}),
        json!({"tag": ""}),
        json!({"environment": ""}),
        json!({"created_by": ""}),
        json!({"consumer": "*"}),
        json!({"consumer": "%"}),
        json!({"service": "%"}),
        json!({"tag": "%"}),
        json!({"ids": "*"}),
        json!({"ids": [""]}),
        json!({"ids": [null]}),
        json!({"filter": ""}),
        json!([]),
        json!(null),
    ] {
        for (member, value) in [("dry_run", json!(true)), ("expected", json!(2))] {
            let mut body = filter.clone();
            if let Some(object) = body.as_object_mut() {
                object.insert(member.to_owned(), value);
            }
            let told = end(body).await;
            let none = [404, 409].contains(&told.status)
                || told.status == 200 && told.body["matched"] == 0;
            assert!(told.status == 400 || none, "{filter} {member}: {told}");
        }
    }
    for body in [
        json!({}),
        json!({"api_keys": []}),
        json!({"lookup_ids": []}),
    ] {
        let told = world.owner.post("/v1/keys/find").json(body).send().await;
        assert_eq!((told.status, told.code()), (400, "invalid_request"));
    }
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");
    assert_eq!(world.judge(Carrier::GatewayHeader, &key).await, "valid");
}

/// J7.
async fn numbers_and_times_out_of_range_are_refused(home: Home) {
    let world = World::new(&home).await;
    let (id, key) = world.key().await;
    let send = async |method: &str, path: &str, member: &str, value: &str| {
        let body = match path {
            "/v1/keys" => format!(
                r#"{{"name": "k", "consumer": "acme", "grants": [{{"service": "invoicing",
                "scopes": []}}], {member}: {value}}}"#
            ),
            "/v1/services" => format!(r#"{{"slug": "odd", {member}: {value}}}"#),
            "/v1/verify" => {
                format!(r#"{{"api_key": "{key}", "service": "invoicing", {member}: {value}}}"#)
            }
            _ => format!(r#"{{{member}: {value}}}"#),
        };
        let request = world.owner.request(method.parse().unwrap(), path);
        let told = request.json_text(body).send().await;
        let what = format!("{method} {path} {member}: {value}: {told}");
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{what}"
        );
    };
    let own = format!("/v1/keys/{id}");
    let rotate = format!("{own}/rotate");
    let spans = [
        "\"-1s\"",
        "\"9223372036854775807s\"",
        "\"9223372036854775807w\"",
        "\"18446744073709551616s\"",
        "\"99999999999999999999999d\"",
        "\"1e9s\"",
        "\"1.5h\"",
        "\"NaNs\"",
        "\"s\"",
        "\"\"",
        "\"1 d\"",
        "\"1y\"",
        "60",
        "-1",
        "1e400",
        "true",
        "[]",
    ];
    for span in spans {
        send("POST", "/v1/keys", "\"ttl\"", span).await;
        send("PATCH", &own, "\"ttl\"", span).await;
        send("POST", &rotate, "\"ttl\"", span).await;
        send("POST", &rotate, "\"overlap\"", span).await;
        for member in ["default_ttl", "max_ttl", "rotation_overlap"] {
            let policy = format!("{{\"{member}\": {span}}}");
            send("POST", "/v1/services", "\"key_policy\"", &policy).await;
        }
        let limit = format!("[{{\"name\": \"l\", \"limit\": 1, \"period\": {span}}}]");
        send("POST", "/v1/keys", "\"rate_limits\"", &limit).await;
    }
    for time in [
        "\"0000-00-00T00:00:00Z\"",
        "\"0000-01-01T00:00:00Z\"",
        "\"+300000-01-01T00:00:00Z\"",
        "\"300000-01-01T00:00:00Z\"",
        "\"-0001-01-01T00:00:00Z\"",
        "\"2027-02-30T00:00:00Z\"",
        "\"2027-01-01T25:00:00Z\"",
        "\"2027-01-01\"",
        "\"2027-01-01T00:00:00\"",
        "\"2027-01-01T00:00:00+99:99\"",
        "\"9223372036854775807\"",
        "\"now\"",
        "\"\"",
        "9223372036854775807",
        "1e19",
        "-1",
        "true",
        "{}",
    ] {
        for member in ["\"expires_at\"", "\"not_before\""] {
            // A beginning in the past is none at all.
            let past = member == "\"not_before\"" && time.starts_with("\"0000-01");
            if !past {
                send("POST", "/v1/keys", member, time).await;
                send("PATCH", &own, member, time).await;
            }
        }
        send("POST", &rotate, "\"expires_at\"", time).await;
    }
    for number in [
        "-1",
        "0.5",
        "1e19",
        "1e400",
        "9223372036854775808",
        "18446744073709551616",
        "\"1\"",
        "[]",
    ] {
        send("POST", "/v1/verify", "\"cost\"", number).await;
        let limit = format!("[{{\"name\": \"l\", \"limit\": {number}, \"period\": \"1s\"}}]");
        send("POST", "/v1/keys", "\"rate_limits\"", &limit).await;
        let burst =
            format!("[{{\"name\": \"l\", \"limit\": 1, \"period\": \"1s\", \"burst\": {number}}}]");
        send("POST", "/v1/keys", "\"rate_limits\"", &burst).await;
        let quota = format!("{{\"limit\": {number}, \"period\": \"day\"}}");
        send("POST", "/v1/keys", "\"quota\"", &quota).await;
        // It is a count of 64 bits, and none of that many.
        if number != "9223372036854775808" {
            let filter = "\"consumer\": \"acme\", \"expected\"";
            send("POST", "/v1/keys/revoke", filter, number).await;
        }
    }
    for limit in [
        "-1",
        "0",
        "201",
        "1000000000",
        "NaN",
        "1e3",
        "",
        "1;--",
        "0x10",
        "+1",
    ] {
        for path in ["/v1/keys", "/v1/services", "/v1/audit/events"] {
            let told = world
                .owner
                .get(&format!("{path}?limit={limit}"))
                .send()
                .await;
            assert_eq!(
                (told.status, told.code()),
                (400, "invalid_request"),
                "{limit}: {told}"
            );
        }
    }
    // And it goes on.
    assert_eq!(world.judge(Carrier::VerifyBody, &key).await, "valid");
    world.server.app.validation.flush_last_used().await.unwrap();
    let ready = world.server.client().get("/health/ready").send().await;
    assert_eq!(ready.status, 200, "{ready}");
}

/// J13.
async fn more_than_the_bounds_is_refused_with_the_place_named(home: Home) {
    let world = World::new(&home).await;
    let many =
        |count: usize, item: &dyn Fn(usize) -> Value| -> Value { (0..count).map(item).collect() };
    let deep = (0..5).fold(json!(1), |inner, _| json!({"a": inner}));
    let grant = |_| json!({"service": "invoicing", "scopes": []});
    let scopes = many(201, &|n| json!(format!("s{n}")));
    for (path, member, value, pointer) in [
        ("/v1/keys", "name", json!("n".repeat(201)), "/name"),
        ("/v1/keys", "name", json!("n".repeat(10_240)), "/name"),
        (
            "/v1/keys",
            "metadata",
            json!({"a": "x".repeat(4_096)}),
            "/metadata",
        ),
        ("/v1/keys", "metadata", deep.clone(), "/metadata"),
        (
            "/v1/keys",
            "tags",
            many(51, &|n| json!(format!("t{n}"))),
            "/tags",
        ),
        (
            "/v1/keys",
            "tags",
            many(1_000, &|n| json!(format!("t{n}"))),
            "/tags",
        ),
        ("/v1/keys", "tags", json!(["t".repeat(65)]), "/tags/0"),
        ("/v1/keys", "grants", many(51, &grant), "/grants"),
        (
            "/v1/keys",
            "grants",
            json!([{"service": "invoicing", "scopes": scopes}]),
            "/grants/0/scopes",
        ),
        (
            "/v1/keys",
            "allowed_ips",
            many(101, &|n| json!(format!("10.0.0.{n}"))),
            "/allowed_ips",
        ),
        (
            "/v1/keys",
            "rate_limits",
            many(
                11,
                &|n| json!({"name": format!("l{n}"), "limit": 1, "period": "1s"}),
            ),
            "/rate_limits",
        ),
        (
            "/v1/keys",
            "external_id",
            json!("x".repeat(256)),
            "/external_id",
        ),
        ("/v1/consumers", "name", json!("n".repeat(201)), "/name"),
        ("/v1/consumers", "slug", json!("s".repeat(64)), "/slug"),
        (
            "/v1/consumers",
            "external_id",
            json!("\u{e9}".repeat(128)),
            "/external_id",
        ),
        (
            "/v1/consumers",
            "metadata",
            json!({"a": "x".repeat(4_096)}),
            "/metadata",
        ),
        (
            "/v1/services",
            "description",
            json!("d".repeat(2_001)),
            "/description",
        ),
        (
            "/v1/services",
            "scopes",
            many(1_001, &|n| json!({"name": format!("s{n}")})),
            "/scopes",
        ),
        ("/v1/services", "metadata", deep, "/metadata"),
        ("/v1/tenants", "name", json!("n".repeat(201)), "/name"),
        ("/v1/tenants", "reason", json!("r".repeat(2_000)), "/reason"),
    ] {
        let mut body = match path {
            "/v1/keys" => new_key(),
            _ => json!({"slug": "big"}),
        };
        body[member] = value;
        let told = world.owner.post(path).json(body).send().await;
        let what = format!("{path} {pointer}: {told}");
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{what}"
        );
        assert_eq!(told.body["errors"][0]["pointer"], pointer, "{what}");
    }
    let items = |count: usize, item: Value| json!({"items": vec![item; count]});
    let (_, key) = world.key().await;
    let verify = json!({"api_key": key, "service": "invoicing"});
    for (path, body, status) in [
        ("/v1/keys/batch", items(1_001, json!({})), 400),
        ("/v1/keys/batch", items(0, json!({})), 400),
        ("/v1/verify/batch", items(101, verify), 400),
        ("/v1/verify/batch", items(0, json!({})), 400),
        (
            "/v1/keys/find",
            json!({"lookup_ids": vec!["000000000000"; 1_001]}),
            400,
        ),
        ("/v1/keys", json!({"name": "x".repeat(70_000)}), 413),
        ("/v1/verify", json!({"api_key": "x".repeat(70_000)}), 413),
    ] {
        let told = world.owner.post(path).json(body).send().await;
        assert_eq!(told.status, status, "{path}: {told}");
    }
}

/// J5, for every list of the document.
async fn a_cursor_is_good_for_its_own_list_alone(home: Home) {
    let server = home.serve().await;
    let owner = server.owner();
    for count in 0..3 {
        fresh(&owner, count).await;
        owner.post("/v1/audit/checkpoints").send().await.expect(201);
        let used = json!({"api_key": server.owner_key().unwrap(), "service": "keystead"});
        owner.post("/v1/verify").json(used).send().await.expect(200);
    }
    let bound = std::time::Duration::from_secs(20);
    until(bound, "the uses are stored", async || {
        let events = owner.get("/v1/usage/events").send().await.expect(200);
        events["items"].as_array().unwrap().len() == 3
    })
    .await;
    let manager = json!({"slug": "other-tenant"});
    owner.create("/v1/tenants", manager).await;
    let mut lists: Vec<String> = operations(&server)
        .await
        .into_iter()
        .filter(|operation| operation.id.starts_with("list_") && !operation.open)
        .map(|operation| operation.route)
        .collect();
    // Of what is listed below another object the path is the binding: see the tests of reviews.
    lists.retain(|route| route != "/v1/audit/keys" && !route.contains('{'));
    assert!(lists.len() >= 5, "{lists:?}");
    let mut cursors = Vec::new();
    for list in &lists {
        let page = owner.get(&format!("{list}?limit=1")).send().await;
        cursors.push(text(&page.expect(200), "/next_cursor"));
    }
    let refused = async |client: &Client, path: &str| {
        let told = client.get(path).send().await;
        assert_eq!(
            (told.status, told.code()),
            (400, "invalid_request"),
            "{path}: {told}"
        );
        assert_eq!(
            told.body["errors"][0]["pointer"], "cursor",
            "{path}: {told}"
        );
    };
    for (list, cursor) in lists.iter().zip(&cursors) {
        owner
            .get(&format!("{list}?limit=1&cursor={cursor}"))
            .send()
            .await
            .expect(200);
        for place in 0..cursor.len() {
            let mut forged = cursor.clone().into_bytes();
            forged[place] = if forged[place] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).unwrap();
            refused(&owner, &format!("{list}?limit=1&cursor={forged}")).await;
        }
        for forged in ["", "x", "null", "0", "1;--", "' OR '1'='1", "AAAA", "%00"] {
            let encoded: String = forged.bytes().map(|byte| format!("%{byte:02X}")).collect();
            refused(&owner, &format!("{list}?cursor={encoded}")).await;
        }
        refused(&owner, &format!("{list}?cursor={cursor}%3D")).await;
        refused(&owner, &format!("{list}?cursor={cursor}{cursor}")).await;
        refused(&owner, &format!("{list}?cursor={cursor}&cursor={cursor}")).await;
        // Another filter, another list, another tenant.
        let filter = match list.as_str() {
            "/v1/audit/events" => "action=key.create",
            "/v1/audit/checkpoints" => "kind=checkpoint",
            "/v1/usage/events" => "outcome=valid",
            "/v1/reviews/access" => "status=open",
            _ => "status=active",
        };
        refused(&owner, &format!("{list}?{filter}&cursor={cursor}")).await;
        for (other, theirs) in lists.iter().zip(&cursors) {
            if other != list {
                refused(&owner, &format!("{list}?cursor={theirs}")).await;
            }
        }
        if list != "/v1/tenants" {
            let there = owner.within("other-tenant");
            refused(&there, &format!("{list}?cursor={cursor}")).await;
        }
        for sort in [
            "sort=id",
            "sort=id;--",
            "order=sideways",
            "offset=1",
            "page=2",
        ] {
            let told = owner.get(&format!("{list}?{sort}")).send().await;
            assert_eq!(
                (told.status, told.code()),
                (400, "invalid_request"),
                "{list} {sort}"
            );
        }
    }
}
