//! Are the counts of uses what was sealed?

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use utoipa::ToSchema;

use crate::auth::http::{Caller, perm};
use crate::http::extract::OptionalBody;
use crate::http::problem::Problem;
use crate::rights::Permission;
use crate::time::Timestamp;
use crate::usage::Seals;
use crate::usage::proof::HoursReport;

/// Where to begin.
#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub struct VerifyUsage {
    /// The first hour to check: the oldest unless given, or the `next_hour` of the answer before.
    from: Option<Timestamp>,
}

/// Verifies the counts of uses
///
/// Holds the counts of each hour against what was sealed of them in the audit trail of the caller's
/// tenant, and names hours that were altered, removed or inserted since. It takes the trail as it is:
/// verify that first. A check of many hours answers after some seconds how far it came: then `next_hour`
/// says where to go on, and all else holds for what was checked. One check of a tenant
/// runs at a time, and few on a node: who waits for others in vain is told `busy`.
#[utoipa::path(
    post, path = "/v1/usage/verify", tag = "usage", operation_id = "verify_usage",
    request_body(content = Option<VerifyUsage>),
    responses((status = 200, description = "What was found", body = HoursReport)),
)]
pub async fn verify_usage(
    caller: Caller<perm::AuditRead>,
    body: OptionalBody<VerifyUsage>,
    seals: web::Data<Seals>,
) -> Result<HttpResponse, Problem> {
    caller.require(Permission::AuditRead, None)?;
    let from = body.from.unwrap_or(Timestamp::from_millis(0));
    let report = seals.verify(&caller.tenant, from).await?;
    Ok(HttpResponse::Ok().json(report))
}
