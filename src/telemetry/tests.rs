//! What the log promises, on the real subscriber.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use super::*;
use crate::config::{LogFormat, LogLevel};

/// Everything that `work` logs at `level`.
fn logged(level: &str, format: LogFormat, work: impl FnOnce()) -> String {
    let mut file = tempfile::tempfile().unwrap();
    let writer = LogWriter::start(Sink::File(file.try_clone().unwrap()));
    let level = LogLevel::try_from(level.to_owned()).unwrap();
    let pretty = format == LogFormat::Pretty;
    let subscriber = subscriber(level.filter(), pretty, writer.clone());
    tracing::subscriber::with_default(subscriber, work);
    writer.flush(Duration::from_secs(10));
    assert_eq!(writer.lost_lines().count(), 0);
    std::io::Seek::rewind(&mut file).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    text
}

const FORGED: &str =
    "curl\n{\"level\":\"INFO\",\"message\":\"granted\"}\u{1b}[2J\u{9b}2J\u{2028}\"end";

#[test]
fn a_value_cannot_forge_a_json_record() {
    let text = logged("info", LogFormat::Json, || {
        let span = tracing::info_span!("request", path = FORGED, name = %FORGED);
        let _inside = span.enter();
        tracing::info!(user_agent = FORGED, reason = ?FORGED, "refused {FORGED}");
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.trim_end().contains(char::is_control), "{text}");
    assert!(!text.contains('\u{2028}'), "{text}");
    let record: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(record["user_agent"], FORGED);
    assert_eq!(record["span"]["path"], FORGED);
    assert_eq!(record["level"], "INFO");
    assert_eq!(record["message"], format!("refused {FORGED}"));
    let at = record["timestamp"].as_str().unwrap();
    at.parse::<crate::time::Timestamp>().unwrap();
}

#[test]
fn a_value_cannot_forge_a_line_for_people() {
    let text = logged("info", LogFormat::Pretty, || {
        let span = tracing::info_span!("request", path = FORGED, name = %FORGED);
        let _inside = span.enter();
        tracing::info!(user_agent = %FORGED, "refused {FORGED}");
    });
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(!text.trim_end().contains(char::is_control), "{text}");
    assert!(!text.contains('\u{2028}'), "{text}");
}

#[test]
fn libraries_say_nothing_below_info_whatever_the_level() {
    let text = logged("trace,tokio_postgres=trace", LogFormat::Json, || {
        tracing::debug!(target: "tokio_postgres::query", "executing with parameters hush");
        tracing::trace!(target: "hyper::proto", "header hush");
        tracing::info!(target: "actix_server", "starting");
        tracing::trace!(target: "keystead::validation", "looked up");
    });
    assert!(!text.contains("hush"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn audit_and_security_are_logged_at_every_level() {
    let text = logged("off", LogFormat::Json, || {
        tracing::info!(target: "audit", seq = 7, "recorded a change");
        tracing::warn!(target: "security", "refused");
        tracing::debug!(target: "security", "detail");
        tracing::error!(target: "keystead::keys", "failed");
    });
    assert_eq!(text.lines().count(), 2, "{text}");
}

#[test]
fn a_full_disk_costs_lines_and_they_are_counted() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let writer = LogWriter::start(Sink::File(full));
    let mut out = &writer;
    for _ in 0..3 {
        out.write_all(b"line\n").unwrap();
    }
    writer.flush(Duration::from_secs(10));
    assert_eq!(writer.lost_lines().count(), 3);
}

#[test]
fn a_closed_pipe_costs_lines_and_they_are_counted() {
    let (reader, pipe) = std::io::pipe().unwrap();
    drop(reader);
    for sink in [
        Sink::File(File::from(std::os::fd::OwnedFd::from(pipe))),
        Sink::Closed,
    ] {
        let writer = LogWriter::start(sink);
        (&writer).write_all(b"line\n").unwrap();
        writer.flush(Duration::from_secs(10));
        assert_eq!(writer.lost_lines().count(), 1);
    }
}

/// The pipe takes 64 KiB and the queue 8192 lines; what is more is lost, and nobody waits.
#[test]
fn a_reader_that_sleeps_holds_nobody_up() {
    let (reader, pipe) = std::io::pipe().unwrap();
    let writer = LogWriter::start(Sink::File(File::from(std::os::fd::OwnedFd::from(pipe))));
    let line = [b"x".repeat(200), b"\n".to_vec()].concat();
    for _ in 0..20_000 {
        (&writer).write_all(&line).unwrap();
    }
    assert!(writer.lost_lines().count() > 10_000);
    writer.flush(Duration::from_millis(10));
    drop(reader);
}

fn security_lines(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect()
}

#[test]
fn a_flood_is_a_line_at_once_and_one_with_a_count() {
    let metrics = crate::metrics::Metrics::new(&[]);
    let log = &metrics.security;
    let seen = |whom: &str| Sighting {
        reason: Some(FORGED.to_owned()),
        ip: Some(whom.to_owned()),
        ..Sighting::new(SecurityEvent::UnknownKey, whom)
    };
    let text = logged("off", LogFormat::Json, || {
        for _ in 0..5_000 {
            log.note(seen("192.0.2.1"));
        }
        log.note(seen("192.0.2.2"));
        log.tend();
        log.finish();
        log.note(seen("192.0.2.1"));
    });
    let lines = security_lines(&text);
    let told: Vec<(&str, u64)> = lines
        .iter()
        .map(|line| {
            (
                line["ip"].as_str().unwrap(),
                line["count"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            ("192.0.2.1", 1),
            ("192.0.2.2", 1),
            ("192.0.2.1", 4_999),
            ("192.0.2.1", 1)
        ]
    );
    for line in &lines {
        assert_eq!(line["event"], "unknown_key");
        assert_eq!(line["target"], "security");
        assert_eq!(line["reason"], FORGED);
    }
    assert_eq!(metrics.security_events.value("unknown_key"), 5_002);
}

/// Whoever has a million addresses.
#[test]
fn a_flood_from_everywhere_is_bounded_in_lines() {
    let metrics = crate::metrics::Metrics::new(&[]);
    let log = &metrics.security;
    let text = logged("off", LogFormat::Json, || {
        for n in 0..20_000 {
            log.note(Sighting::new(SecurityEvent::UnknownKey, format!("a{n}")));
        }
        log.note(Sighting::new(SecurityEvent::Panic, "me"));
        log.finish();
    });
    let lines = security_lines(&text);
    assert!(lines.len() < 1_010, "{}", lines.len());
    let counted: u64 = lines
        .iter()
        .map(|line| line["count"].as_u64().unwrap())
        .sum();
    assert_eq!(counted, 20_001);
    assert!(lines.iter().any(|line| line["event"] == "panic"));
}

#[test]
fn every_security_event_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = SecurityEvent::ALL
        .iter()
        .map(|event| event.as_str())
        .collect();
    assert_eq!(names.len(), SecurityEvent::ALL.len());
    let guide = include_str!("../../docs/operating.md");
    for name in names {
        assert!(
            guide.contains(&format!("| `{name}` |")),
            "{name} is not in docs/operating.md"
        );
    }
}
