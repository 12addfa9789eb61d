//! Is the node alive, and may it be asked? And what it counts.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::metrics::Metrics;

/// The mode of `decisions` of a node that nobody could tell of changes for too long.
pub const CUT_OFF: &str = "cut_off";

/// Where a node stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Waits for what it depends on.
    Starting,
    Ready,
    /// Answers what still comes and is about to stop.
    Draining,
}

/// The state behind `/health/ready`, shared by all workers.
#[derive(Debug, Default)]
pub struct Readiness {
    /// A [`Phase`] as a number, because every request looks at it.
    phase: AtomicU8,
    modes: Mutex<BTreeMap<&'static str, &'static str>>,
}

impl Readiness {
    /// Starting.
    pub fn new() -> Self {
        Self::default()
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Says how a part works at present: `set_mode("database", "reachable")`. Both are words of the
    /// code, so that no address or version gets out.
    pub fn set_mode(&self, part: &'static str, mode: &'static str) {
        self.modes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(part, mode);
    }

    fn body(&self) -> ReadinessBody {
        ReadinessBody {
            status: self.phase(),
            modes: self
                .modes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// Whether a node may be asked.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessBody {
    status: Phase,
    /// How each part works at present, such as `{"database": "reachable"}`.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    modes: BTreeMap<&'static str, &'static str>,
}

/// The process runs.
#[derive(Debug, Serialize, ToSchema)]
pub struct LivenessBody {
    #[schema(example = "live")]
    status: &'static str,
}

/// Whether the process runs
///
/// Answers 200 as long as the process can answer at all; restart it if it does not.
#[utoipa::path(
    get,
    path = "/health/live",
    operation_id = "check_liveness",
    tag = "operations",
    security(()),
    responses((status = 200, description = "The process runs", body = LivenessBody))
)]
pub async fn check_liveness() -> HttpResponse {
    HttpResponse::Ok().json(LivenessBody { status: "live" })
}

/// Whether requests may be sent to this node
///
/// 503 while it starts, while it is cut off from everything that could tell it of changes, and once it
/// is about to stop.
#[utoipa::path(
    get,
    path = "/health/ready",
    operation_id = "check_readiness",
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "The node takes requests", body = ReadinessBody),
        (status = 503, description = "The node starts, is cut off or is about to stop", body = ReadinessBody)
    )
)]
pub async fn check_readiness(readiness: web::Data<Readiness>) -> HttpResponse {
    let body = readiness.body();
    // A node that is cut off decides nothing: others should be asked.
    let decides = body.modes.get("decisions") != Some(&CUT_OFF);
    match body.status {
        Phase::Ready if decides => HttpResponse::Ok().json(body),
        Phase::Ready | Phase::Starting | Phase::Draining => HttpResponse::ServiceUnavailable()
            .insert_header((header::RETRY_AFTER, "2"))
            .json(body),
    }
}

/// Counters and gauges
///
/// `OpenMetrics` text. Answers 404 unless operations are switched on for this listener.
#[utoipa::path(
    get,
    path = "/metrics",
    operation_id = "read_metrics",
    tag = "operations",
    security(()),
    responses(
        (status = 200, description = "The metrics", body = String,
            content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8")
    )
)]
pub async fn read_metrics(
    metrics: web::Data<Metrics>,
    readiness: web::Data<Readiness>,
) -> HttpResponse {
    metrics
        .ready
        .set(i64::from(readiness.phase() == Phase::Ready));
    HttpResponse::Ok()
        .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
        .body(metrics.encode())
}

/// `/health/live` and `/health/ready`; also for `HEAD`, which some probes use.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        .service(
            web::resource("/health/live")
                .route(web::get().to(check_liveness))
                .route(web::head().to(check_liveness)),
        )
        .service(
            web::resource("/health/ready")
                .route(web::get().to(check_readiness))
                .route(web::head().to(check_readiness)),
        );
}
