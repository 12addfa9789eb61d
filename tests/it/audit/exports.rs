//! Exports: whole, in order, as stored; one line an event and no formula, whatever stands in it.

use futures_util::future::join_all;
use keystead::audit::EventFilter;
use keystead::audit::chain::AuditOutcome;
use keystead::audit::export::{ExportFormat, ExportLine};

use super::*;
use crate::support::{Home, both};

both!(
    an_export_holds_every_line_as_it_is_stored_and_itself,
    an_export_ends_with_itself_whoever_else_exports,
    an_export_is_narrowed_by_a_filter_and_says_so,
    a_page_of_an_export_is_bounded_by_bytes,
    what_stands_in_an_event_is_no_line_and_no_formula,
    a_service_finds_its_events,
);

impl Trail {
    pub async fn export(&self, filter: EventFilter, format: ExportFormat) -> String {
        let mut export = self
            .audit
            .export(at(&self.ours), filter, format)
            .await
            .unwrap();
        let mut text = String::new();
        while let Some(page) = export.next().await.unwrap() {
            text.push_str(&page);
        }
        text
    }
}

async fn an_export_holds_every_line_as_it_is_stored_and_itself(home: Home) {
    let trail = Trail::of(&home, 1100).await;
    let text = trail
        .export(EventFilter::default(), ExportFormat::Ndjson)
        .await;
    let lines: Vec<ExportLine<'_>> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stored = trail.lines().await;
    assert_eq!(lines.len(), stored.len());
    for (line, (seq, record, prev_hash, hash)) in lines.iter().zip(&stored) {
        assert_eq!((line.seq, &*line.record), (*seq, record.as_str()));
        assert_eq!(*line.prev_hash, hex::encode(prev_hash));
        assert_eq!(*line.hash, hex::encode(hash));
    }
    let last: Value = serde_json::from_str(&lines[1100].record).unwrap();
    assert_eq!(last["action"], "audit.export");
    assert_eq!(last["after"], json!({"format": "ndjson", "filter": {}}));
}

async fn an_export_ends_with_itself_whoever_else_exports(home: Home) {
    let trail = Trail::of(&home, 3).await;
    let exports = (0..20).map(|number| {
        let by = Attribution {
            request_id: Some(format!("export-{number}")),
            ..at(&trail.ours)
        };
        let (filter, format) = (EventFilter::default(), ExportFormat::Ndjson);
        let export = trail.audit.export(by, filter, format);
        async move {
            let text = export.await.unwrap().next().await.unwrap().unwrap();
            let last: ExportLine<'_> = serde_json::from_str(text.lines().last().unwrap()).unwrap();
            let last: Value = serde_json::from_str(&last.record).unwrap();
            assert_eq!(last["request_id"], format!("export-{number}"));
        }
    });
    join_all(exports).await;
    assert_eq!(trail.lines().await.len(), 3 + 20);
}

async fn a_page_of_an_export_is_bounded_by_bytes(home: Home) {
    const LARGE: usize = 1_500_000;
    let trail = Trail::of(&home, 3).await;
    for _ in 0..7 {
        let large = async |change: &mut Change| {
            let after = json!({"scopes": "a".repeat(LARGE)});
            change.record("service.update", ("service", "svc_1"), None, Some(after));
            db::Result::Ok(())
        };
        trail.audit.change(at(&trail.ours), large).await.unwrap();
    }
    trail.change(&trail.ours, 2).await.unwrap();
    let export = trail.audit.export(
        at(&trail.ours),
        EventFilter::default(),
        ExportFormat::Ndjson,
    );
    let (mut export, mut lines) = (export.await.unwrap(), 0);
    while let Some(page) = export.next().await.unwrap() {
        assert!(page.len() < 3 * LARGE, "{}", page.len());
        lines += page.lines().count();
    }
    assert_eq!(lines, 3 + 7 + 2 + 1);
}

async fn an_export_is_narrowed_by_a_filter_and_says_so(home: Home) {
    let trail = Trail::of(&home, 6).await;
    let filter = EventFilter {
        target: Some("key_1".to_owned()),
        outcome: Some(AuditOutcome::Done),
        ..EventFilter::default()
    };
    let text = trail.export(filter, ExportFormat::Csv).await;
    let seqs: Vec<&str> = text
        .lines()
        .skip(1)
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(seqs, ["2", "4", "6"]);
    let line = trail.records().await.pop().unwrap();
    assert_eq!(
        line["after"],
        json!({"format": "csv", "filter": {"target": "key_1", "outcome": "done"}})
    );
    let none = EventFilter {
        action: Some("nothing".to_owned()),
        ..EventFilter::default()
    };
    let text = trail.export(none, ExportFormat::Csv).await;
    assert!(
        text.starts_with("seq,id,at,") && text.lines().count() == 1,
        "{text}"
    );
}

async fn what_stands_in_an_event_is_no_line_and_no_formula(home: Home) {
    let trail = Trail::new(&home).await;
    let hostile = [
        "=HYPERLINK(\"http://x\",\"y\")",
        "+1\n=2",
        "-1\r\n=2",
        "@SUM(A1)",
        "\t=1",
        "\r=1",
        "a\n{\"level\":\"info\"}",
        "\u{1b}[2J",
        "a\u{2028}b\u{2029}c\u{85}d",
        "\",\n=1,\"",
        "';--",
    ];
    for text in hostile {
        let by = Attribution {
            actor: Actor::Jwt {
                issuer: text.to_owned(),
                subject: text.to_owned(),
            },
            reason: Some(text.to_owned()),
            request_id: Some(text.to_owned()),
            ..at(&trail.ours)
        };
        let text = text.to_owned();
        trail
            .audit
            .change(by, async move |change: &mut Change| {
                let after = json!(text);
                change.record("key.create", ("key", &text), None, Some(after));
                db::Result::Ok(())
            })
            .await
            .unwrap();
    }
    let text = trail
        .export(EventFilter::default(), ExportFormat::Csv)
        .await;
    assert_eq!(text.lines().count(), 1 + hostile.len() + 1, "{text}");
    assert!(
        !text.contains(|c: char| c.is_control() && c != '\n'),
        "{text:?}"
    );
    assert!(!text.contains(['\u{2028}', '\u{2029}']));
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut rows = 0;
    for row in reader.records() {
        rows += 1;
        for cell in &row.unwrap() {
            assert!(
                !cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n']),
                "{cell}"
            );
        }
    }
    assert_eq!(rows, hostile.len() + 1);

    let text = trail
        .export(EventFilter::default(), ExportFormat::Ndjson)
        .await;
    assert_eq!(text.lines().count(), hostile.len() + 2);
    for (line, hostile) in text.lines().zip(hostile) {
        let line: ExportLine<'_> = serde_json::from_str(line).unwrap();
        let record: Value = serde_json::from_str(&line.record).unwrap();
        assert_eq!(record["reason"], hostile, "nothing is lost");
    }
}

async fn a_service_finds_its_events(home: Home) {
    let trail = Trail::of(&home, 2).await;
    trail
        .audit
        .change(at(&trail.ours), async |change: &mut Change| {
            change.record("service.create", ("service", "svc_1"), None, None);
            change.concerns(["billing".to_owned()]);
            change.record("key.create", ("key", "key_1"), None, None);
            change.concerns(["shipping".to_owned(), "billing".to_owned()]);
            change.record("key.create", ("key", "key_2"), None, None);
            change.concerns(["bill".to_owned()]);
            db::Result::Ok(())
        })
        .await
        .unwrap();
    for (service, expected) in [
        ("billing", vec!["3", "4"]),
        ("bill", vec!["5"]),
        ("ing", vec![]),
    ] {
        let filter = EventFilter {
            service: Some(Slug::parse(service).unwrap()),
            ..EventFilter::default()
        };
        let text = trail.export(filter, ExportFormat::Csv).await;
        let seqs: Vec<&str> = text
            .lines()
            .skip(1)
            .map(|line| line.split(',').next().unwrap())
            .collect();
        assert_eq!(seqs, expected, "{service}");
    }
    assert!(trail.report().await.valid);
    trail
        .sql("UPDATE audit_event SET services = ',billing,' WHERE seq = 4")
        .await;
    let bad = trail.report().await.first_bad.unwrap();
    assert!(
        bad.seq == 4 && bad.detail.contains("column services "),
        "{bad:?}"
    );
}
