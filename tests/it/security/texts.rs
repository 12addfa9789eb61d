//! A8: texts that databases, terminals and JSON readers treat each in their own way. Either refused,
//! or kept to the byte, and both databases agree.

use super::*;

both!(odd_text_is_refused_or_kept_to_the_byte_in_every_field);

/// As they stand in JSON.
const TEXTS: [(&str, &str); 8] = [
    ("NUL", r"a\u0000b"),
    ("lone surrogate", r"a\ud83db"),
    ("escape", r"a\u001b[2Jb"),
    ("delete", r"a\u007fb"),
    ("right to left", r"a\u202eb"),
    ("emoji", "a\u{1f511}b"),
    ("combining", r"e\u0301\u200d\ufeff"),
    ("quotes", r#"a'b\"c\\d%_;--"#),
];

/// What is made, with `$` in the place of the text, and where it stands in the answer.
const FIELDS: [(&str, &str, &str); 14] = [
    ("/v1/tenants", r#"{"slug": "~", "name": "$"}"#, "/name"),
    (
        "/v1/tenants",
        r#"{"slug": "~", "metadata": {"note": "$"}}"#,
        "/metadata/note",
    ),
    ("/v1/services", r#"{"slug": "~", "name": "$"}"#, "/name"),
    (
        "/v1/services",
        r#"{"slug": "~", "description": "$"}"#,
        "/description",
    ),
    (
        "/v1/services",
        r#"{"slug": "~", "scopes": [{"name": "a", "description": "$"}]}"#,
        "/scopes/0/description",
    ),
    (
        "/v1/services",
        r#"{"slug": "~", "metadata": {"note": ["$"]}}"#,
        "/metadata/note/0",
    ),
    ("/v1/consumers", r#"{"slug": "~", "name": "$"}"#, "/name"),
    (
        "/v1/consumers",
        r#"{"slug": "~", "external_id": "$"}"#,
        "/external_id",
    ),
    (
        "/v1/consumers",
        r#"{"slug": "~", "metadata": {"note": "$"}}"#,
        "/metadata/note",
    ),
    ("/v1/consumers", r#"{"slug": "$"}"#, "/slug"),
    ("/v1/keys", r#"{"name": "$", @}"#, "/key/name"),
    (
        "/v1/keys",
        r#"{"name": "k", "external_id": "$", @}"#,
        "/key/external_id",
    ),
    (
        "/v1/keys",
        r#"{"name": "k", "tags": ["$"], @}"#,
        "/key/tags/0",
    ),
    (
        "/v1/keys",
        r#"{"name": "k", "metadata": {"note": "$"}, @}"#,
        "/key/metadata/note",
    ),
];

async fn odd_text_is_refused_or_kept_to_the_byte_in_every_field(home: Home) {
    let world = World::new(&home).await;
    let owner = &world.owner;
    let holder = r#""consumer": "acme", "grants": [{"service": "invoicing", "scopes": ["a"]}]"#;
    let mut table = String::new();
    let mut count = 0;
    for (path, body, pointer) in FIELDS {
        let mut kept = Vec::new();
        for (name, text) in TEXTS {
            count += 1;
            let body = body
                .replace('~', &format!("text-{count}"))
                .replace('@', holder)
                .replace('$', text);
            let made = owner.post(path).json_text(body).send().await;
            match made.status {
                201 => {
                    let sent: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
                    assert_eq!(super::text(&made.body, pointer), sent, "{path}{pointer}");
                    let place = made.headers["location"].to_str().unwrap();
                    let read = owner.get(place).send().await.expect(200);
                    let read_at = pointer.strip_prefix("/key").unwrap_or(pointer);
                    assert_eq!(super::text(&read, read_at), sent, "{path}{pointer}");
                    kept.push(name);
                }
                400 => {}
                _ => panic!("{path}{pointer} {name}: {made}"),
            }
        }
        table.push_str(&format!("{path}{pointer}: {}\n", kept.join(", ")).replace(": \n", ":\n"));
    }
    insta::allow_duplicates! {
        insta::assert_snapshot!(table, @"
        /v1/tenants/name: right to left, emoji, combining, quotes
        /v1/tenants/metadata/note: right to left, emoji, combining, quotes
        /v1/services/name: right to left, emoji, combining, quotes
        /v1/services/description: right to left, emoji, combining, quotes
        /v1/services/scopes/0/description: right to left, emoji, combining, quotes
        /v1/services/metadata/note/0: right to left, emoji, combining, quotes
        /v1/consumers/name: right to left, emoji, combining, quotes
        /v1/consumers/external_id: right to left, emoji, combining, quotes
        /v1/consumers/metadata/note: right to left, emoji, combining, quotes
        /v1/consumers/slug:
        /v1/keys/key/name: right to left, emoji, combining, quotes
        /v1/keys/key/external_id: right to left, emoji, combining, quotes
        /v1/keys/key/tags/0:
        /v1/keys/key/metadata/note: right to left, emoji, combining, quotes
        ");
    }

    // A reason stands in the trail, or is refused.
    for (name, text) in TEXTS {
        let slug = format!("reason-{}", name.replace(' ', "-").to_lowercase());
        let body = format!(r#"{{"slug": "{slug}", "reason": "{text}"}}"#);
        let made = owner.post("/v1/consumers").json_text(body).send().await;
        if made.status == 400 {
            continue;
        }
        let id = super::text(&made.expect(201), "/id");
        let lines = owner.get(&format!("/v1/audit/events?target={id}"));
        let lines = lines.send().await.expect(200);
        let sent: String = serde_json::from_str(&format!("\"{text}\"")).unwrap();
        assert_eq!(lines["items"][0]["reason"], sent, "{name}");
    }
    let report = owner.post("/v1/audit/verify").json(json!({})).send().await;
    assert_eq!(report.expect(200)["valid"], true);

    // What is only asked is never a failure.
    let (_, key) = world.key().await;
    for (name, text) in TEXTS {
        for member in [
            format!(r#""api_key": "{text}""#),
            format!(r#""api_key": "{key}", "service": "{text}""#),
            format!(r#""api_key": "{key}", "required_scopes": ["{text}"]"#),
            format!(r#""api_key": "{key}", "path": "/{text}""#),
            format!(r#""api_key": "{key}", "method": "{text}""#),
            format!(r#""api_key": "{key}", "environment": "{text}""#),
            format!(r#""api_key": "{key}", "context": {{"{text}": "{text}"}}"#),
        ] {
            let asked = owner.post("/v1/verify").json_text(format!("{{{member}}}"));
            let asked = asked.send().await;
            assert!(
                [200, 400, 403].contains(&asked.status),
                "{name} {member}: {asked}"
            );
        }
    }
    // A header and a query have no escapes of JSON's, but bytes.
    for (name, bytes) in [
        ("not UTF-8", &b"a\xffb"[..]),
        ("overlong", b"a\xc0\x80b"),
        ("surrogate", b"a\xed\xa0\xbdb"),
        ("latin", "caf\u{e9}".as_bytes()),
    ] {
        for header in [
            "audit-reason",
            "idempotency-key",
            "x-request-id",
            "if-match",
        ] {
            let slug = format!("{header}-{}", name.replace(' ', "-").to_lowercase());
            let made = owner
                .post("/v1/consumers")
                .header_bytes(header, bytes)
                .json(json!({"slug": slug}))
                .send()
                .await;
            assert!([201, 400].contains(&made.status), "{name} {header}: {made}");
        }
        let encoded: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
        for path in [
            "/v1/consumers?name=",
            "/v1/consumers/",
            "/v1/audit/events?actor=",
        ] {
            let asked = owner.get(&format!("{path}{encoded}")).send().await;
            assert!(
                [200, 400, 404].contains(&asked.status),
                "{name} {path}: {asked}"
            );
        }
    }
}
