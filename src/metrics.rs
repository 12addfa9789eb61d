//! What is counted, for `/metrics` (`OpenMetrics` text).
//!
//! Labels are bounded by construction: every label value is a constant of the code or an operation
//! of the `OpenAPI` document, never something a client sent. Handles are resolved when they are made,
//! so that counting is one atomic addition.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Metric, Registry};

use crate::telemetry::{SecurityEvent, SecurityLog};

/// What validation decides, which is every outcome that a use can have.
pub const OUTCOMES: &[&str] = &[
    "valid",
    "missing",
    "malformed",
    "unknown",
    "revoked",
    "disabled",
    "expired",
    "not_yet_valid",
    "wrong_environment",
    "wrong_service",
    "ip_not_allowed",
    "insufficient_scope",
    "rate_limited",
    "quota_exceeded",
];

/// What is counted in the place of an outcome where there is no decision.
pub const UNDECIDED: &str = "unavailable";

/// Why a caller was not let in, beside the outcomes of its key.
pub const AUTH_FAILURES: &[&str] = &[
    "no_credential",
    "two_credentials",
    "key",
    "jwt",
    "forbidden",
    "caller_not_allowed",
];

/// How the database failed us.
pub const DATABASE_ERRORS: &[&str] = &[
    "unavailable",
    "busy",
    "taken",
    "query",
    "corrupt",
    "refused",
];

/// The error codes of the OAuth endpoints.
const OAUTH_ERRORS: &[&str] = &[
    "invalid_request",
    "invalid_client",
    "invalid_scope",
    "invalid_target",
    "unauthorized_client",
    "unsupported_grant_type",
    "rate_limited",
    "quota_exceeded",
    "temporarily_unavailable",
];

/// What came of asking an upstream for a token.
const UPSTREAM_RESULTS: &[&str] = &["good", "refused", "failed"];

/// Everything that is counted.
pub struct Metrics {
    registry: Mutex<Registry>,
    requests: Family<[(&'static str, String); 2], Counter>,
    durations: Family<[(&'static str, String); 1], LatencyHistogram>,
    /// Decisions of validation by outcome.
    pub decisions: Labelled,
    /// Callers of our own API that were not let in.
    pub auth_failures: Labelled,
    /// Problems answered, by code.
    pub problems: Labelled,
    pub database_errors: Labelled,
    /// What was noted in `security`, by event.
    pub security_events: Labelled,
    /// What may be an attack: lines and counters.
    pub security: SecurityLog,
    /// Argon2id computations, whatever for.
    pub argon2_runs: Counter,
    /// Secrets whose argon2id verifier is still to be computed.
    pub verifiers_pending: Gauge,
    /// Secrets that still carry another pepper than the current one.
    pub secrets_under_old_peppers: Gauge,
    /// Refused attempts of authenticated callers, as the audit trail counts them.
    pub audit_refused: Counter,
    /// Administrative changes committed.
    pub changes: Counter,
    /// 1 while the node is ready.
    pub ready: Gauge,
    /// Every change up to this number is known to the node.
    pub change_position: Gauge,
    /// How long ago the node's knowledge of changes was proved complete.
    pub change_proof_age: Gauge<f64, AtomicU64>,
    /// Keys that the node remembers.
    pub cached_keys: Gauge,
    /// Requests answered at the edge.
    pub answered_directly: Counter,
    pub usage: UsageMetrics,
    /// Tokens signed, of whatever kind.
    pub tokens_issued: Counter,
    /// Refusals and failures of the OAuth endpoints, by their error code.
    pub oauth_errors: Labelled,
    /// Requests for tokens to other authorization servers, by what came of them.
    pub upstream_fetches: Labelled,
}

/// What becomes of the uses that a node records.
#[derive(Clone, Debug, Default)]
pub struct UsageMetrics {
    /// Waiting in the journal.
    pub journal_bytes: Gauge,
    /// Uses that left a count and no event, for lack of room.
    pub shed: Gauge<u64, AtomicU64>,
    /// Uses that left nothing at all.
    pub uses_lost: Gauge<u64, AtomicU64>,
    /// Hours of events that were deleted for their age or for room.
    pub hours_cut: Counter,
    /// Blocks of uses that the ledger does not take: they wait, and are tried again.
    pub aside: Gauge<u64, AtomicU64>,
    /// Blocks of uses that could not be read.
    pub lost: Gauge<u64, AtomicU64>,
    /// Events that the file for a SIEM did not take.
    pub file_lost: Gauge<u64, AtomicU64>,
}

/// The counters of one operation.
#[derive(Clone, Debug)]
pub struct OperationMetrics {
    /// By first digit of the status, 1 to 5.
    classes: [Counter; 5],
    duration: LatencyHistogram,
}

/// One counter for each of a fixed list of labels.
#[derive(Clone, Debug)]
pub struct Labelled(Arc<[(&'static str, Counter)]>);

impl Metrics {
    #[expect(
        clippy::too_many_lines,
        reason = "a list of metrics is as long as what it lists"
    )]
    /// `problem_codes` are the slugs of `http/code.rs`, which this foundation does not know.
    pub fn new(problem_codes: &[&'static str]) -> Self {
        let mut registry = Registry::with_prefix("keystead");
        let requests = Family::default();
        let durations = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "From the head of the request to the head of the answer",
            durations.clone(),
        );
        let decisions = labelled(
            &mut registry,
            "decisions",
            "Decisions of validation",
            "outcome",
            &[OUTCOMES, &[UNDECIDED]].concat(),
        );
        let auth_failures = labelled(
            &mut registry,
            "auth_failures",
            "Callers of the API that were not let in",
            "kind",
            AUTH_FAILURES,
        );
        let problems = labelled(
            &mut registry,
            "problems",
            "Problems answered",
            "code",
            problem_codes,
        );
        let database_errors = labelled(
            &mut registry,
            "database_errors",
            "Failures of the database",
            "kind",
            DATABASE_ERRORS,
        );
        let security_events = labelled(
            &mut registry,
            "security_events",
            "Events that may mean an attack",
            "kind",
            &SecurityEvent::ALL.map(SecurityEvent::as_str),
        );
        let tokens_issued = Counter::default();
        registry.register("tokens_issued", "Tokens signed", tokens_issued.clone());
        let oauth_errors = labelled(
            &mut registry,
            "oauth_errors",
            "Refusals and failures of the OAuth endpoints",
            "error",
            OAUTH_ERRORS,
        );
        let upstream_fetches = labelled(
            &mut registry,
            "upstream_fetches",
            "Requests for tokens to other authorization servers",
            "result",
            UPSTREAM_RESULTS,
        );
        let argon2_runs = Counter::default();
        registry.register("argon2_runs", "Argon2id computations", argon2_runs.clone());
        let verifiers_pending = Gauge::default();
        registry.register(
            "verifiers_pending",
            "Secrets whose argon2id verifier is still to be computed",
            verifiers_pending.clone(),
        );
        let secrets_under_old_peppers = Gauge::default();
        registry.register(
            "secrets_under_old_peppers",
            "Secrets that a rotation of the pepper, or its loss, has not reached yet",
            secrets_under_old_peppers.clone(),
        );
        let audit_refused = Counter::default();
        registry.register(
            "audit_refused",
            "Refused attempts of authenticated callers",
            audit_refused.clone(),
        );
        let changes = Counter::default();
        registry.register(
            "changes",
            "Administrative changes committed",
            changes.clone(),
        );
        let ready = Gauge::default();
        registry.register("ready", "1 while the node is ready", ready.clone());
        let change_position = Gauge::default();
        registry.register(
            "change_position",
            "Every change up to this number is known to the node",
            change_position.clone(),
        );
        let change_proof_age = Gauge::default();
        registry.register(
            "change_proof_age_seconds",
            "How long ago the knowledge of changes was proved complete",
            change_proof_age.clone(),
        );
        let cached_keys = Gauge::default();
        registry.register(
            "cached_keys",
            "Keys that the node remembers",
            cached_keys.clone(),
        );
        let answered_directly = Counter::default();
        registry.register(
            "answered_directly",
            "Requests answered at the edge, without routing",
            answered_directly.clone(),
        );
        let usage = UsageMetrics::default();
        registry.register(
            "usage_journal_bytes",
            "Bytes of recorded uses that wait for the ledger",
            usage.journal_bytes.clone(),
        );
        registry.register(
            "usage_events_shed",
            "Uses that left a count and no event, for lack of room, since the start",
            usage.shed.clone(),
        );
        registry.register(
            "usage_uses_lost",
            "Uses that left neither an event nor a count, for lack of room, since the start",
            usage.uses_lost.clone(),
        );
        registry.register(
            "usage_blocks_aside",
            "Blocks of uses that the ledger does not take and that are tried again each minute",
            usage.aside.clone(),
        );
        registry.register(
            "usage_blocks_lost",
            "Blocks of uses that could not be read, since the start",
            usage.lost.clone(),
        );
        registry.register(
            "usage_file_events_lost",
            "Events that the file of events did not take, since the start",
            usage.file_lost.clone(),
        );
        registry.register(
            "usage_hours_cut",
            "Hours of events that were deleted for their age or for room",
            usage.hours_cut.clone(),
        );
        Self {
            registry: Mutex::new(registry),
            requests,
            durations,
            decisions,
            auth_failures,
            problems,
            database_errors,
            security: SecurityLog::new(security_events.clone()),
            security_events,
            tokens_issued,
            oauth_errors,
            upstream_fetches,
            argon2_runs,
            verifiers_pending,
            secrets_under_old_peppers,
            audit_refused,
            changes,
            ready,
            change_position,
            change_proof_age,
            cached_keys,
            answered_directly,
            usage,
        }
    }

    /// Adds a metric of a part that makes its own; the name gets the prefix `keystead_`.
    pub fn register(&self, name: &'static str, help: &'static str, metric: impl Metric) {
        self.registry
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .register(name, help, metric);
    }

    /// The counters of an operation; call it once for each operation id, at start.
    pub fn operation(&self, operation: &str) -> OperationMetrics {
        let class = |class: &str| {
            self.requests.get_or_create_owned(&[
                ("operation", operation.to_owned()),
                ("status", class.to_owned()),
            ])
        };
        OperationMetrics {
            classes: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(class),
            duration: self
                .durations
                .get_or_create_owned(&[("operation", operation.to_owned())]),
        }
    }

    /// `OpenMetrics` text, version 1.0.0.
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a string fails only if a metric says so, and ours do not.
        if text::encode(&mut out, &registry).is_err() {
            tracing::error!("the metrics could not be encoded");
        }
        out
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics(..)")
    }
}

impl OperationMetrics {
    pub fn answered(&self, status: u16, duration: Duration) {
        let class = usize::from((status / 100).clamp(1, 5)) - 1;
        if let Some(counter) = self.classes.get(class) {
            counter.inc();
        }
        self.duration.observe(duration);
    }
}

impl Labelled {
    /// Counts `label`; one that is not in the list is counted as `other`.
    pub fn inc(&self, label: &str) {
        self.add(label, 1);
    }

    pub fn add(&self, label: &str, count: u64) {
        let counter = self
            .0
            .iter()
            .find(|(known, _)| *known == label)
            .or_else(|| self.0.last());
        if let Some((_, counter)) = counter {
            counter.inc_by(count);
        }
    }

    /// How often `label` was counted, for tests and readiness.
    pub fn value(&self, label: &str) -> u64 {
        self.0
            .iter()
            .find(|(known, _)| *known == label)
            .map_or(0, |(_, counter)| counter.get())
    }
}

fn labelled(
    registry: &mut Registry,
    name: &'static str,
    help: &'static str,
    label: &'static str,
    values: &[&'static str],
) -> Labelled {
    let family = Family::<[(&'static str, &'static str); 1], Counter>::default();
    registry.register(name, help, family.clone());
    Labelled(
        values
            .iter()
            .chain(&["other"])
            .map(|value| (*value, family.get_or_create_owned(&[(label, *value)])))
            .collect(),
    )
}

/// Upper bounds in seconds.
const BOUNDS: [f64; 13] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0,
];

/// A histogram without a lock: every request of every worker counts in one.
#[derive(Clone, Debug, Default)]
pub struct LatencyHistogram(Arc<Latencies>);

#[derive(Debug, Default)]
struct Latencies {
    buckets: [AtomicU64; BOUNDS.len()],
    above: AtomicU64,
    micros: AtomicU64,
}

impl LatencyHistogram {
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = BOUNDS
            .iter()
            .zip(&self.0.buckets)
            .find(|(bound, _)| seconds <= **bound)
            .map_or(&self.0.above, |(_, bucket)| bucket);
        bucket.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.0.micros.fetch_add(micros, Ordering::Relaxed);
    }
}

impl EncodeMetric for LatencyHistogram {
    #[expect(
        clippy::cast_precision_loss,
        reason = "2^53 microseconds are 285 years"
    )]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut buckets: Vec<(f64, u64)> = BOUNDS
            .iter()
            .zip(&self.0.buckets)
            .map(|(bound, bucket)| (*bound, load(bucket)))
            .collect();
        buckets.push((f64::INFINITY, load(&self.0.above)));
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = load(&self.0.micros) as f64 / 1e6;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for LatencyHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told() {
        let metrics = Metrics::new(&["not_found"]);
        let operation = metrics.operation("verify_key");
        operation.answered(200, Duration::from_micros(700));
        operation.answered(503, Duration::from_mins(1));
        metrics.decisions.inc("valid");
        metrics.problems.inc("not_found");
        let text = metrics.encode();
        for line in [
            "keystead_http_requests_total{operation=\"verify_key\",status=\"2xx\"} 1",
            "keystead_http_requests_total{operation=\"verify_key\",status=\"5xx\"} 1",
            "keystead_http_request_duration_seconds_bucket{le=\"0.0005\",operation=\"verify_key\"} 0",
            "keystead_http_request_duration_seconds_bucket{le=\"0.001\",operation=\"verify_key\"} 1",
            "keystead_http_request_duration_seconds_bucket{le=\"10.0\",operation=\"verify_key\"} 1",
            "keystead_http_request_duration_seconds_bucket{le=\"+Inf\",operation=\"verify_key\"} 2",
            "keystead_http_request_duration_seconds_count{operation=\"verify_key\"} 2",
            "keystead_http_request_duration_seconds_sum{operation=\"verify_key\"} 60.0007",
            "keystead_decisions_total{outcome=\"valid\"} 1",
            "keystead_problems_total{code=\"not_found\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn a_label_that_nobody_foresaw_makes_no_series() {
        let metrics = Metrics::new(&[]);
        let before = metrics.encode().lines().count();
        for n in 0..1000 {
            metrics.decisions.inc(&format!("{n}"));
        }
        assert_eq!(metrics.encode().lines().count(), before);
        assert_eq!(metrics.decisions.value("other"), 1000);
    }
}
