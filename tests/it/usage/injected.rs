//! Every free text of the API, filled with what forges lines, steers terminals and is computed by
//! spreadsheets: a line an event in the log and in every file, and no formula in any table.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::number;
use super::recorded::{Asker, BOUND, stop};
use crate::support::{Client, Home, both, text, until};

both!(every_free_text_is_one_line_and_no_formula);

/// The last two may stand in a header.
const HOSTILE: [&str; 12] = [
    "a\n{\"level\":\"INFO\",\"message\":\"granted\"}",
    "a\r\n=1+1",
    "\t=1+1",
    "\u{1b}[2J\u{9b}31m",
    "a\u{2028}b\u{2029}{\"message\":\"granted\"}\u{85}\u{202e}",
    "a\u{2028}b\u{2029}{\"message\":\"granted\"}\u{202e}",
    "\u{a0}=1+1",
    "a;=1+1",
    "\u{ff1d}1+1",
    "-1+1",
    "=HYPERLINK(\"http://evil.example\",\"x\")",
    "@SUM(A1)",
];

/// What a name must not be is refused; whatever is taken is held against the promise.
#[derive(Debug, Default)]
struct Taken {
    fields: BTreeMap<&'static str, usize>,
    /// Uses of a key that was identified: each leaves an event.
    uses: i64,
}

impl Taken {
    async fn create(&mut self, client: &Client, field: &'static str, path: &str, body: Value) {
        let answer = client.post(path).json(body).send().await;
        assert!(
            [200, 201, 400].contains(&answer.status),
            "{field}: {answer}"
        );
        *self.fields.entry(field).or_default() += usize::from(answer.status != 400);
    }
}

fn with(mut body: Value, pointer: &str, value: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    body.pointer_mut(parent).expect("it is there")[name] = value;
    body
}

async fn fill(owner: &Client, asker: &Asker) -> Taken {
    let mut taken = Taken::default();
    for (n, text) in HOSTILE.iter().enumerate() {
        let service = |field: &str| json!({"slug": format!("s{n}-{field}"), "scopes": [{"name": "thing:read"}]});
        for (field, pointer, value) in [
            ("service name", "/name", json!(text)),
            ("service description", "/description", json!(text)),
            ("service metadata", "/metadata", json!({*text: text})),
            ("service reason", "/reason", json!(text)),
            (
                "scope description",
                "/scopes",
                json!([{"name": "thing:read", "description": text}]),
            ),
        ] {
            let body = with(service(&field.replace(' ', "-")), pointer, value);
            taken.create(owner, field, "/v1/services", body).await;
        }
        for (field, pointer, value) in [
            ("consumer name", "/name", json!(text)),
            ("consumer external_id", "/external_id", json!(text)),
            ("consumer metadata", "/metadata", json!({*text: text})),
            ("consumer reason", "/reason", json!(text)),
        ] {
            let body = json!({"slug": format!("c{n}-{}", field.replace([' ', '_'], "-"))});
            let body = with(body, pointer, value);
            taken.create(owner, field, "/v1/consumers", body).await;
        }
        for (field, pointer, value) in [
            ("key name", "/name", json!(text)),
            ("key external_id", "/external_id", json!(text)),
            ("key metadata", "/metadata", json!({"a": text})),
            ("key tags", "/tags", json!([text])),
            ("key reason", "/reason", json!(text)),
        ] {
            let body = json!({
                "name": "plain", "consumer": "acme",
                "grants": [{"service": "invoicing", "scopes": ["invoice:read"]}],
            });
            taken
                .create(owner, field, "/v1/keys", with(body, pointer, value))
                .await;
        }
        for (field, pointer, value) in [
            ("context value", "/context", json!({"a": text})),
            ("context name", "/context", json!({*text: "a"})),
            ("path", "/path", json!(format!("/{text}"))),
            ("bare path", "/path", json!(text)),
            ("method", "/method", json!(text)),
            ("key that is judged", "/api_key", json!(text)),
            ("service that is asked for", "/service", json!(text)),
            ("scope that is asked for", "/required_scopes", json!([text])),
        ] {
            let body = json!({"api_key": asker.key, "service": "invoicing"});
            let body = with(body, pointer, value);
            let answer = asker.caller.post("/v1/verify").json(body).send().await;
            assert!(answer.status < 500, "{field}: {answer}");
            taken.uses += i64::from(answer.text.contains("\"key_id\":"));
            *taken.fields.entry(field).or_default() += usize::from(answer.status == 200);
        }
        for name in [
            "user-agent",
            "x-request-id",
            "audit-reason",
            "x-forwarded-for",
        ] {
            // Of a header the client itself refuses what ends it.
            let bytes: Vec<u8> = text.bytes().filter(|b| *b >= 32 && *b != 127).collect();
            let body = json!({"api_key": asker.key, "service": "invoicing"});
            let verify = asker.caller.post("/v1/verify").json(body);
            let answer = verify.header_bytes(name, &bytes).send().await;
            assert!(answer.status < 500, "{name}: {answer}");
            taken.uses += i64::from(answer.text.contains("\"key_id\":"));
            let anonymous = owner.anonymous().get("/v1/keys").header_bytes(name, &bytes);
            assert_eq!(anonymous.send().await.status, 401, "{name}");
            let refused = asker.caller.get("/v1/keys").header_bytes(name, &bytes);
            assert_eq!(refused.send().await.status, 403, "{name}");
        }
    }
    taken
}

/// A review of all keys, with what may be written into it; answers the path of its export.
async fn review(owner: &Client, taken: &mut Taken) -> String {
    for text in HOSTILE {
        for (field, body) in [
            ("review name", json!({"name": text})),
            ("review reason", json!({"name": "plain", "reason": text})),
        ] {
            taken.create(owner, field, "/v1/reviews/access", body).await;
        }
    }
    let review = owner
        .create("/v1/reviews/access", json!({"name": "of all keys"}))
        .await;
    let path = format!("/v1/reviews/access/{}", text(&review, "/id"));
    let items = owner.get(&format!("{path}/items?limit=200")).send().await;
    let items = items.expect(200);
    let keys = items["items"].as_array().expect("a page").iter();
    for (note, item) in HOSTILE.iter().zip(keys) {
        let decision = json!({"decision": "keep", "note": note});
        let path = format!("{path}/items/{}/decide", text(item, "/key/id"));
        taken
            .create(owner, "note of a decision", &path, decision)
            .await;
    }
    format!("{path}/export")
}

/// Each line is JSON by itself, for a reader that takes more for the end of a line than we do, too.
fn lines(what: &str, text: &str) -> Vec<Value> {
    let ends = |c: char| {
        (c.is_control() && c != '\n') || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}')
    };
    assert!(
        !text.contains(ends),
        "{what} holds what ends a line or steers a terminal"
    );
    text.lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{what}: {error}: {line}"));
            assert_ne!(line["message"], "granted", "{what}");
            line
        })
        .collect()
}

/// The rows below the line of names.
fn rows(what: &str, text: &str) -> usize {
    let breaks = |c: char| (c.is_control() && c != '\n' && c != '\r') || c == '\u{2028}';
    assert!(!text.contains(breaks), "{what}");
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut rows = 0;
    for row in reader.records() {
        rows += 1;
        // A semicolon begins a cell where the decimal sign is a comma.
        for cell in row.expect("CSV").iter().flat_map(|cell| cell.split(';')) {
            let first = cell.trim_start().chars().next().unwrap_or(' ');
            assert!(
                !"=+-@\t\r\n\u{ff1d}\u{ff0b}\u{ff0d}\u{ff20}".contains(first),
                "{what}: {cell}"
            );
        }
    }
    // One line a row: no cell holds an end of a line, quoted or not.
    assert_eq!(text.lines().count(), rows + 1, "{what}");
    rows
}

async fn every_free_text_is_one_line_and_no_formula(home: Home) {
    let path = home.dir().join("siem.ndjson");
    let file = path.display().to_string();
    let node = home
        .spawn(&[
            ("USAGE__SINK", "database,file"),
            ("USAGE__FILE", &file),
            ("LOG__LEVEL", "trace"),
            ("LOG__FORMAT", "json"),
        ])
        .await;
    let owner = node.owner();
    let asker = Asker::new(&owner).await;
    let mut taken = fill(&owner, &asker).await;
    // A formula is a text like others: where none was taken, nothing was tried.
    for field in [
        "service name",
        "service description",
        "service metadata",
        "service reason",
        "scope description",
        "consumer name",
        "consumer metadata",
        "consumer reason",
        "key name",
        "key metadata",
        "key reason",
        "context value",
        "path",
    ] {
        assert!(taken.fields[field] >= 2, "{field}: {:?}", taken.fields);
    }
    let stored = "SELECT COUNT(*) FROM usage_event";
    until(BOUND, "all uses are stored", async || {
        number(&home, stored).await == taken.uses
    })
    .await;

    let export = async |path: &str| {
        let answer = owner.get(path).send().await;
        assert_eq!(answer.status, 200, "{path}: {answer}");
        answer.text
    };
    let uses = export("/v1/usage/export").await;
    let uses = lines("the export of uses", &uses).len();
    assert_eq!(i64::try_from(uses).unwrap(), taken.uses);
    assert!(uses > 40, "{uses}");
    let table = export("/v1/usage/export?format=csv").await;
    assert_eq!(rows("the table of uses", &table), uses);
    let trail = lines("the audit trail", &export("/v1/audit/export").await).len();
    assert!(trail > 40, "{trail}");
    let table = export("/v1/audit/export?format=csv").await;
    assert!(rows("the table of the audit trail", &table) > trail);

    let keys = lines("the keys", &export("/v1/keys/export").await).len();
    assert!(keys > 10, "{keys}");
    let table = export("/v1/keys/export?format=csv").await;
    assert_eq!(rows("the table of keys", &table), keys);
    let review = review(&owner, &mut taken).await;
    assert!(taken.fields["note of a decision"] >= 2, "{taken:?}");
    let items = lines("the review", &export(&review).await).len();
    assert!(items > 10, "{items}");
    let table = export(&format!("{review}?format=csv")).await;
    assert_eq!(rows("the table of the review", &table), items);
    // It stands in the trail, too.
    lines("the audit trail", &export("/v1/audit/export").await);
    rows(
        "the table of the audit trail",
        &export("/v1/audit/export?format=csv").await,
    );

    let log = node.log();
    stop(node).await;
    assert!(lines("the log", &log).len() > 100);
    let siem = std::fs::read_to_string(&path).unwrap();
    assert_eq!(lines("the file of events", &siem).len(), uses);
}
