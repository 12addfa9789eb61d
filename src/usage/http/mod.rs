//! The usage API: what was done with which key, and how often.

pub mod body;
pub mod export;
pub mod verify;

use actix_web::{HttpResponse, web};

use self::body::SummaryBody;
use super::event::UsageEventBody;
use super::query::{EventFilter, EventQuery, Order, SummaryQuery};
use super::store::events::Wanted;
use super::{Usage, summary};
use crate::auth::http::{Caller, perm};
use crate::db;
use crate::http::code::Code;
use crate::http::extract::Query;
use crate::http::page::{CursorKey, List, PageBody, PageParams};
use crate::http::problem::Problem;
use crate::http::query::in_order;
use crate::rights::{Permission, Reach};
use crate::text::Slug;

/// The parameter of a list of events alone.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "only its description is used")]
struct OrderParam {
    order: Option<Order>,
}

/// The services that the caller may read of; `None` for all.
fn services(
    caller: &Caller<perm::UsageRead>,
    service: Option<&String>,
) -> Result<Option<Vec<String>>, Problem> {
    if let Some(service) = service.and_then(|service| Slug::parse(service).ok()) {
        caller.require(Permission::UsageRead, Some(&service))?;
    }
    Ok(match caller.rights.services_for(Permission::UsageRead) {
        Reach::All => None,
        Reach::Only(services) => Some(services.iter().map(ToString::to_string).collect()),
    })
}

fn wanted(
    caller: &Caller<perm::UsageRead>,
    usage: &Usage,
    filter: EventFilter,
) -> Result<Wanted, Problem> {
    in_order(filter.from, filter.to)?;
    let now = usage.clock().now();
    Ok(Wanted {
        tenant_id: caller.tenant.id.to_string(),
        services: services(caller, filter.service.as_ref())?,
        oldest: filter
            .from
            .unwrap_or_else(|| now.minus(usage.events_kept())),
        filter,
        now,
    })
}

/// Lists usage events, newest first
///
/// One for each validation that left an event, by time. Also filtered by `context.<name>`, the value
/// that a validation was given in its context under this name. Where few events meet a filter, a page may
/// have fewer than `limit`, or none: it is over when `next_cursor` is null. With `order=stored` in the order in
/// which they were stored, oldest first: who goes on from the last `next_cursor` misses none and
/// sees none twice, whatever is stored meanwhile. Then `next_cursor` is never null: one that is the `cursor` of the
/// request says that there is nothing new, and is asked with again later. After any other, also that of a page
/// without items, there may be more at once. A caller with `usage:read` for some services sees the events of those.
#[utoipa::path(
    get, path = "/v1/usage/events", tag = "usage", operation_id = "list_usage_events",
    params(EventFilter, OrderParam, PageParams),
    responses((status = 200, description = "A page of events", body = PageBody<UsageEventBody>)),
)]
pub async fn list_usage_events(
    caller: Caller<perm::UsageRead>,
    list: List<EventQuery>,
    usage: web::Data<Usage>,
    cursors: web::Data<CursorKey>,
) -> Result<HttpResponse, Problem> {
    let EventQuery { filter, order } = list.filter;
    let wanted = wanted(&caller, &usage, filter)?;
    let name = match order {
        Order::Newest => "usage events newest first",
        Order::Stored => "usage events as stored",
    };
    let tenant = &caller.tenant.id;
    let request = list.page.request(&cursors, tenant, name)?;
    let page = usage.events(wanted, order, request).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for event in page.items {
        items.push(UsageEventBody::new(event)?);
    }
    let page = crate::page::Page {
        items,
        next: page.next,
    };
    let body = list.page.body(&cursors, tenant, name, page, |item| item);
    Ok(HttpResponse::Ok().json(body))
}

/// To try again is of no use to who asks for more than is summed up in time.
fn too_much(error: db::Error) -> Problem {
    match error {
        db::Error::Busy => Problem::new(
            Code::Busy,
            "it takes too long to sum up as much, or too much is summed up just now: ask for a shorter time, or \
             for one key or service alone, or try again",
        )
        .cause(error),
        error => error.into(),
    }
}

/// Summarizes usage
///
/// Counts are exact, whatever events a service keeps. In each group, `group` has what `group_by`
/// names; `points` has every bucket from `from` to `to`, also those in which nothing was counted. Counts by the
/// minute are kept for 7 days: further back there are hours and days, and minutes are refused.
/// At most 1,500 buckets and 50,000 points: then those with the most uses, and `truncated` is true.
#[utoipa::path(
    get, path = "/v1/usage/summary", tag = "usage", operation_id = "summarize_usage",
    params(SummaryQuery),
    responses((status = 200, description = "The counts", body = SummaryBody)),
)]
pub async fn summarize_usage(
    caller: Caller<perm::UsageRead>,
    query: Query<SummaryQuery>,
    usage: web::Data<Usage>,
) -> Result<HttpResponse, Problem> {
    let query = query.into_inner();
    let services = services(&caller, query.service.as_ref())?;
    let tenant = caller.tenant.id.as_str();
    let what = summary::plan(&query, tenant, services, usage.clock().now())?;
    let rows = usage.sum(what.clone()).await.map_err(too_much)?;
    let (series, is_cut) = summary::fill(&what, rows);
    Ok(HttpResponse::Ok().json(SummaryBody::new(&what, series, is_cut)))
}
