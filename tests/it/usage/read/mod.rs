//! What is asked of the ledger over HTTP: lists, summaries, exports, and who may ask.

mod pages;

use keystead::time::{Span, Timestamp};
use keystead::usage::{Batch, CountLine, Operation, Record, Rules};
use serde_json::{Value, json};

use super::recorded::{Asker, BOUND};
use super::{HOUR, batch, record, store};
use crate::callers::variable;
use crate::support::forge::Signers;
use crate::support::forge::forged::{A, AUDIENCE, with_claims};
use crate::support::{Backend, Client, Home, Server, both, run, text, until};

both!(
    each_filter_finds_its_events,
    who_asked_is_found_by_the_name_that_the_trail_has,
    a_summary_counts_by_what_is_asked_and_fills_gaps,
    who_may_read_of_one_service_reads_of_no_other,
    another_tenants_usage_is_not_there,
    an_export_is_a_line_an_event_and_holds_no_formula,
    why_an_export_was_asked_for_stands_in_the_trail,
    a_wrong_parameter_is_named,
);

/// A node and a ledger of its tenant.
struct Ledger {
    server: Server,
    owner: Client,
    tenant: String,
    home: Home,
}

impl Ledger {
    async fn new(home: &Home) -> Self {
        Self::with(home, &[]).await
    }

    async fn with(home: &Home, settings: &[(&str, &str)]) -> Self {
        let server = home.serve_with(settings).await;
        let owner = server.owner();
        let made = owner
            .create("/v1/consumers", json!({"slug": "a-team"}))
            .await;
        assert_eq!(made["slug"], "a-team");
        let tenant = super::lines_of(
            home.eyes(),
            "SELECT id AS line FROM tenant WHERE slug = 'default'".to_owned(),
        )
        .await;
        Self {
            server,
            owner,
            tenant: tenant[0].clone(),
            home: home.clone(),
        }
    }

    /// Milliseconds before now, which `at` counts back from.
    fn ago(&self, ms: i64) -> i64 {
        self.server.clock.now().millis() - ms
    }

    fn record(&self, ago_ms: i64, key: &str) -> Record {
        Record {
            tenant_id: self.tenant.clone(),
            ..record(self.ago(ago_ms), key)
        }
    }

    async fn store(&self, batch: &Batch) {
        store(&self.home.usage_db(), batch, &Rules::default()).await;
    }

    async fn items(&self, query: &str) -> Vec<Value> {
        let answer = self
            .owner
            .get(&format!("/v1/usage/events?{query}"))
            .send()
            .await
            .expect(200);
        answer["items"].as_array().expect("items").clone()
    }

    async fn found(&self, query: &str) -> Vec<String> {
        let items = self.items(query).await;
        items.iter().map(|item| text(item, "/request_id")).collect()
    }
}

const KEY: &str = "key_01jd8k3v9we5m8t7q2x4z6y0ab";

const SECRET: &str = "sec_01jd8k3v9we5m8t7q2x4z6y0ab";

const CONSUMER: &str = "con_01jd8k3v9we5m8t7q2x4z6y0ab";

async fn each_filter_finds_its_events(home: Home) {
    let ledger = Ledger::new(&home).await;
    let plain = || ledger.record(1_000, "key_other");
    let mut records = vec![Record {
        request_id: "plain".to_owned(),
        ..plain()
    }];
    let mut mine = ledger.record(3 * 3_600_000, KEY);
    let key = mine.key.as_mut().unwrap();
    key.secret_id = SECRET.to_owned();
    key.consumer_id = CONSUMER.to_owned();
    key.superseded = true;
    mine.service = "shipping".to_owned();
    mine.environment = "test".to_owned();
    mine.operation = Operation::Token;
    mine.outcome = "insufficient_scope".to_owned();
    mine.ip = Some("2001:db8::1".to_owned());
    mine.caller = "https://idp.example#me".to_owned();
    mine.request_id = "mine".to_owned();
    mine.token_id = Some("jti-1".to_owned());
    mine.subject = Some("ann".to_owned());
    mine.context.insert("region".to_owned(), "us".to_owned());
    for name in ["a b.c", "$", "$.x", "[0]", "\\", "é"] {
        mine.context.insert(name.to_owned(), "x".to_owned());
    }
    let at = mine.at;
    records.push(mine);
    ledger.store(&batch("a", 1, records)).await;
    for query in [
        &format!("key={KEY}"),
        &format!("secret={SECRET}"),
        &format!("consumer={CONSUMER}"),
        "superseded=true",
        "service=shipping",
        "environment=test",
        "operation=token",
        "outcome=insufficient_scope",
        "ip=2001:db8::1",
        "caller=https://idp.example%23me",
        "request_id=mine",
        "token_id=jti-1",
        "subject=ann",
        "context.region=us",
        "context.a%20b.c=x",
        "context.%24=x",
        "context.%24.x=x",
        "context.%5B0%5D=x",
        "context.%5C=x",
        "context.%C3%A9=x",
        &format!("from={at}&to={}", at.plus(Span::seconds(1))),
        &format!("key={KEY}&outcome=insufficient_scope&context.region=us&order=stored"),
    ] {
        assert_eq!(ledger.found(query).await, ["mine"], "{query}");
    }
    for query in ["context.region=xx", "context.nothing=us", "subject=bob"] {
        assert!(ledger.found(query).await.is_empty(), "{query}");
    }
    assert_eq!(ledger.found("").await, ["plain", "mine"]);
    assert_eq!(ledger.found("superseded=false").await, ["plain"]);
    let event = &ledger.items("request_id=mine").await[0];
    assert_eq!(event["path"], "/invoices/1");
    assert_eq!(event["required_scopes"], json!(["invoice:read"]));
    let context = event["context"].as_object().unwrap();
    assert_eq!((context.len(), &context["region"]), (7, &json!("us")));
}

/// A person of an identity provider asks for a key, and a management key does.
async fn who_asked_is_found_by_the_name_that_the_trail_has(home: Home) {
    let issuer = format!(
        "issuer = \"{A}\"\naudience = \"{AUDIENCE}\"\nalgorithms = [\"ES256\"]\n\
         public_key = '''{}'''\ntenant = \"default\"\n\
         roles = [{{claim = \"roles\", value = \"admin\", role = \"admin\"}}]",
        Signers::shared().pem("ES256")
    );
    let issuers = variable(&[issuer]);
    let ledger = Ledger::with(&home, &[("ISSUERS", &issuers)]).await;
    let asker = Asker::new(&ledger.owner).await;
    let token = with_claims(&ledger.server.clock, json!({}));
    let person = ledger.server.client().with_bearer(&token);
    let body = json!({"api_key": asker.key, "service": "invoicing"});
    let asked = person.post("/v1/verify").header("x-request-id", "person");
    let asked = asked.json(body).send().await;
    assert_eq!(asked.code(), "valid", "{asked}");
    let code = asker.ask(&asker.key, "service").await;
    assert_eq!(code.as_deref(), Some("valid"));
    let name = format!("{A}#alice");
    let by_person = format!("caller={}", name.replace('#', "%23"));
    until(BOUND, "both uses are stored", async || {
        ledger.found("").await.len() == 2
    })
    .await;
    let events = ledger.items(&by_person).await;
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["request_id"], "person");
    assert_eq!(events[0]["caller"], *name);
    let sums = format!("/v1/usage/summary?{by_person}&group_by=caller");
    let sums = ledger.owner.get(&sums).send().await.expect(200);
    assert_eq!(sums["groups"][0]["group"], json!({"caller": name}));
    assert_eq!(sums["groups"][0]["uses"], 1);
    // The audit trail calls the same one so.
    let made = person
        .create("/v1/consumers", json!({"slug": "made"}))
        .await;
    assert_eq!(made["slug"], "made");
    let trail = by_person.replace("caller=", "actor=");
    let trail = format!("/v1/audit/events?{trail}");
    let trail = ledger.owner.get(&trail).send().await.expect(200);
    assert_eq!(trail["items"][0]["target"]["id"], made["id"]);
}

async fn a_summary_counts_by_what_is_asked_and_fills_gaps(home: Home) {
    let ledger = Ledger::new(&home).await;
    let mut records = vec![ledger.record(0, KEY), ledger.record(1, KEY)];
    records.push(Record {
        outcome: "rate_limited".to_owned(),
        ip: Some("192.0.2.9".to_owned()),
        used_scopes: Vec::new(),
        ..ledger.record(2 * 86_400_000, "key_other")
    });
    ledger.store(&batch("a", 1, records)).await;
    let ask = async |query: &str| {
        let path = format!("/v1/usage/summary?{query}");
        ledger.owner.get(&path).send().await.expect(200).clone()
    };
    let days = ask("group_by=outcome&bucket=day").await;
    let groups = days["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{days}");
    assert_eq!(groups[0]["group"], json!({"outcome": "valid"}));
    assert_eq!(
        (&groups[0]["uses"], &groups[0]["cost"]),
        (&json!(2), &json!(4))
    );
    let points = groups[1]["points"].as_array().unwrap();
    assert!((30..=32).contains(&points.len()), "{}", points.len());
    let uses: i64 = points
        .iter()
        .map(|point| point["uses"].as_i64().unwrap())
        .sum();
    assert_eq!(uses, 1);

    let total = ask("").await;
    assert_eq!(total["groups"][0]["uses"], 3);
    assert_eq!(total["groups"][0]["group"], json!({}));
    let by_key = ask(&format!("group_by=key&group_by=outcome&key={KEY}")).await;
    assert_eq!(
        by_key["groups"][0]["group"],
        json!({"key": KEY, "outcome": "valid"})
    );
    for (query, count, has_cost) in [
        ("group_by=ip", 2, false),
        ("group_by=scope&bucket=day", 1, false),
        ("group_by=caller&bucket=hour", 1, true),
        ("group_by=secret&group_by=consumer&bucket=minute", 1, true),
        ("group_by=service", 1, true),
        ("outcome=revoked&group_by=service", 0, true),
    ] {
        let found = ask(query).await;
        let groups = found["groups"].as_array().unwrap();
        assert_eq!(groups.len(), count, "{query}: {found}");
        // What is not counted is not nothing.
        let points = groups
            .iter()
            .flat_map(|one| one["points"].as_array().unwrap());
        for one in groups.iter().chain(points) {
            assert!(one["uses"].is_i64(), "{query}: {one}");
            let cost = one.get("cost").expect("a member");
            assert_eq!(
                (cost.is_i64(), cost.is_null()),
                (has_cost, !has_cost),
                "{query}: {one}"
            );
        }
    }
}

async fn who_may_read_of_one_service_reads_of_no_other(home: Home) {
    let ledger = Ledger::new(&home).await;
    let shipping = Record {
        service: "shipping".to_owned(),
        ..ledger.record(0, KEY)
    };
    ledger
        .store(&batch("a", 1, vec![ledger.record(0, KEY), shipping]))
        .await;
    let issued = ledger
        .owner
        .create(
            "/v1/keys",
            json!({
                "name": "reader", "consumer": "a-team",
                "grants": [{"service": "keystead", "scopes": ["usage:read:billing"]}],
            }),
        )
        .await;
    let reader = ledger.server.client().with_key(&text(&issued, "/api_key"));
    let page = reader.get("/v1/usage/events").send().await.expect(200);
    let items = page["items"].as_array().unwrap().clone();
    assert_eq!(items.len(), 1);
    assert_eq!(items[0]["service"], "billing");
    let sums = reader
        .get("/v1/usage/summary?group_by=service")
        .send()
        .await;
    let sums = sums.expect(200);
    assert_eq!(sums["groups"].as_array().unwrap().len(), 1);
    assert_eq!(sums["groups"][0]["uses"], 1);
    for refused in [
        "/v1/usage/events?service=shipping",
        "/v1/usage/summary?service=shipping",
        "/v1/usage/export?service=shipping",
    ] {
        reader.get(refused).send().await.expect(403);
    }
    let ips = reader.get("/v1/usage/summary?group_by=ip").send().await;
    ips.expect(400);
}

async fn another_tenants_usage_is_not_there(home: Home) {
    let ledger = Ledger::new(&home).await;
    ledger
        .store(&batch("a", 1, vec![record(ledger.ago(0), KEY)]))
        .await;
    for query in ["", &format!("key={KEY}"), "order=stored"] {
        assert!(ledger.found(query).await.is_empty(), "{query}");
    }
    let sum = ledger
        .owner
        .get("/v1/usage/summary")
        .send()
        .await
        .expect(200);
    assert_eq!(sum["groups"][0]["uses"], 0);
}

async fn an_export_is_a_line_an_event_and_holds_no_formula(home: Home) {
    let ledger = Ledger::new(&home).await;
    let records = (0..4_500_i64).map(|i| Record {
        user_agent: Some("=HYPERLINK(\"http://evil\")\n{\"level\":\"info\"}\u{2028}".to_owned()),
        path: Some("@SUM(A1)".to_owned()),
        ..ledger.record(i * 1_000 + 1, KEY)
    });
    ledger.store(&batch("a", 1, records.collect())).await;
    let get = async |format: &str| {
        let path = format!("/v1/usage/export?format={format}&key={KEY}");
        let answer = ledger.owner.get(&path).send().await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.text
    };
    let lines = get("ndjson").await;
    let ids: std::collections::BTreeSet<String> = lines
        .lines()
        .map(|line| text(&serde_json::from_str(line).expect("JSON"), "/id"))
        .collect();
    assert_eq!((lines.lines().count(), ids.len()), (4_500, 4_500));

    let table = get("csv").await;
    assert_eq!(table.lines().count(), 4_501);
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let mut rows = 0;
    for row in reader.records() {
        rows += 1;
        for cell in &row.expect("CSV") {
            assert!(
                !cell.starts_with(['=', '+', '-', '@', '\t', '\r']),
                "{cell}"
            );
        }
    }
    assert_eq!(rows, 4_500);
}

async fn why_an_export_was_asked_for_stands_in_the_trail(home: Home) {
    let ledger = Ledger::new(&home).await;
    let export = ledger.owner.get("/v1/usage/export?service=billing");
    let export = export.header("audit-reason", "yearly audit").send().await;
    assert_eq!(export.status, 200, "{export}");
    let path = "/v1/audit/events?action=usage.export";
    let trail = ledger.owner.get(path).send().await.expect(200);
    assert_eq!(trail["items"][0]["reason"], "yearly audit", "{trail}");
    assert_eq!(trail["items"][0]["after"]["filter"]["service"], "billing");
    let export = ledger.owner.get("/v1/usage/export");
    let refused = export.header("audit-reason", &"x".repeat(10_000));
    refused.send().await.expect(400);
    let trail = ledger.owner.get(path).send().await.expect(200);
    assert_eq!(trail["items"].as_array().unwrap().len(), 1, "{trail}");
}

#[test]
fn a_summary_that_takes_too_long_says_what_to_ask_for() {
    run(Backend::Postgres, async |home: Home| {
        let ledger = Ledger::new(&home).await;
        let session = home.session().await;
        let lock = "BEGIN; LOCK TABLE usage_minute, usage_hour, usage_day IN ACCESS EXCLUSIVE MODE";
        session.run(lock).await;
        let sums = ledger.owner.get("/v1/usage/summary").try_send().await;
        let problem = sums.expect("the server answers").expect(503);
        assert_eq!(problem["code"], "busy");
        assert!(text(&problem, "/detail").contains("ask for a shorter time"));
        session.run("COMMIT").await;
        let sums = ledger.owner.get("/v1/usage/summary").send().await;
        sums.expect(200);
    });
}

async fn a_wrong_parameter_is_named(home: Home) {
    let ledger = Ledger::new(&home).await;
    for (query, pointer) in [
        ("events?from=yesterday", "from"),
        ("events?operation=fly", "operation"),
        ("events?superseded=1", "superseded"),
        ("events?ip=1.2.3", "ip"),
        ("events?order=up", "order"),
        (
            "events?from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
            "from",
        ),
        ("export?format=xml", "format"),
        ("summary?bucket=week", "bucket"),
        ("summary?group_by=colour", "group_by/0"),
        ("summary?bucket=minute&from=2020-01-01T00:00:00Z", "from"),
        ("summary?bucket=minute&to=2020-01-01T00:00:00Z", "from"),
        ("summary?group_by=ip&bucket=hour", "bucket"),
        ("events?colour=red", "colour"),
        ("events?outcome=vaild", "outcome"),
        ("export?outcome=", "outcome"),
        ("summary?outcome=vaild", "outcome"),
        ("events?service=Billing", "service"),
        ("summary?service=", "service"),
        ("export?environment=Live", "environment"),
        ("events?key=worker", "key"),
        ("summary?key=worker", "key"),
        ("export?key=worker", "key"),
        ("summary?secret=x", "secret"),
        ("events?consumer=a-team", "consumer"),
        ("events?context.=17", "context."),
    ] {
        let path = format!("/v1/usage/{query}");
        let problem = ledger.owner.get(&path).send().await.expect(400);
        assert_eq!(
            problem["errors"][0]["pointer"], pointer,
            "{query}: {problem}"
        );
    }
    let key = format!("ks_live_{}_{}", "a".repeat(12), "B".repeat(49));
    for query in [
        format!("events?key={key}"),
        "events?key=eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln".to_owned(),
        "events?api_key=worker".to_owned(),
    ] {
        let path = format!("/v1/usage/{query}");
        let told = ledger.owner.get(&path).send().await;
        assert_eq!(told.expect(400)["code"], "credential_in_query", "{query}");
    }
}
