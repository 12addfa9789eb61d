//! Is the node alive, and may it be asked? And what it counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

use actix_web::http::header;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::metrics::Metrics;

/// The mode of `decisions` of a node that nobody could tell of changes for too long.
pub const CUT_OFF: &str = "cut_off";

/// How each part works at present: `("database", "reachable")`. Both are words of the code, so that no
/// address or version gets out.
pub type Modes = BTreeMap<&'static str, &'static str>;

/// Where a node stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waits for what it depends on.
    Starting,
    Ready,
    /// Answers what still comes and is about to stop.
    Draining,
}

/// Whether requests may be sent to a node, and if not, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadinessStatus {
    /// Waits for what it depends on.
    Starting,
    Ready,
    /// Runs and decides nothing: it is cut off from everything that could tell it of changes.
    NotReady,
    /// Answers what still comes and is about to stop.
    Draining,
}

/// The state behind `/health/ready`, shared by all workers.
pub struct Readiness {
    /// A [`Phase`] as a number, because every request looks at it.
    phase: AtomicU8,
    modes: Box<dyn Fn() -> Modes + Send + Sync>,
}

impl Readiness {
    /// Of a node that starts; `modes` tells how its parts work, whenever somebody asks.
    pub fn telling(modes: impl Fn() -> Modes + Send + Sync + 'static) -> Self {
        Self {
            phase: AtomicU8::new(Phase::Starting as u8),
            modes: Box::new(modes),
        }
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

    fn body(&self) -> ReadinessBody {
        let modes = (self.modes)();
        // A node that is cut off decides nothing: others should be asked.
        let decides = modes.get("decisions") != Some(&CUT_OFF);
        let status = match self.phase() {
            Phase::Starting => ReadinessStatus::Starting,
            Phase::Ready if decides => ReadinessStatus::Ready,
            Phase::Ready => ReadinessStatus::NotReady,
            Phase::Draining => ReadinessStatus::Draining,
        };
        ReadinessBody { status, modes }
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

/// Whether a node may be asked.
#[derive(Debug, Serialize, ToSchema)]
pub struct ReadinessBody {
    status: ReadinessStatus,
    /// How each part works at present, such as `{"database": "reachable"}`: `database` is `reachable` or
    /// `away`, `redis` those or `none`, `changes` who tells the node of them (`database`, `redis` or
    /// `nobody`), `decisions` are `made` or `cut_off`. A Redis that ended is told as `away` within some two
    /// seconds, or with the third request that it fails.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    modes: Modes,
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
    match body.status {
        ReadinessStatus::Ready => HttpResponse::Ok().json(body),
        ReadinessStatus::Starting | ReadinessStatus::NotReady | ReadinessStatus::Draining => {
            HttpResponse::ServiceUnavailable()
                .insert_header((header::RETRY_AFTER, "2"))
                .json(body)
        }
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
    let is_ready = readiness.body().status == ReadinessStatus::Ready;
    metrics.ready.set(i64::from(is_ready));
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
