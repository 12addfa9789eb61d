//! `?wait=`: a change that ends something may wait until every node knows of it.

use std::time::Duration;

use actix_web::dev::Payload;
use actix_web::{FromRequest, HttpRequest, HttpResponse};
use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::{IntoParams, ToSchema};

use super::extract::{etag, wired};
use super::gate::{Gate, Gated};
use super::problem::Problem;
use super::query::Params;
use crate::cache::Nodes;
use crate::time::Span;

/// The longest wait.
const WAIT_MAX: Span = Span::seconds(5);

/// What the query asks for, with those to wait for.
pub struct Waiting {
    wait: Option<Duration>,
    nodes: Nodes,
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wait {
    /// Wait so long, at most `5s`, until every node knows of the change, and say in `propagated`
    /// whether all do.
    #[serde(default, deserialize_with = "at_most_max")]
    #[param(value_type = Option<String>, example = "200ms")]
    wait: Option<Duration>,
}

/// What was ended, and who knows of it.
#[derive(Serialize, ToSchema)]
pub struct Ended<T> {
    #[serde(flatten)]
    what: T,
    /// Only with `wait`: whether every node knows of the change. If `false`, some node may still let
    /// it pass for as long as the documentation says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    propagated: Option<bool>,
}

impl Waiting {
    /// Waits, if that was asked for, until every node knows what this one knows.
    pub async fn until_known<T>(&self, what: T) -> Ended<T> {
        let propagated = match self.wait {
            Some(wait) => Some(self.nodes.all_know(wait).await),
            None => None,
        };
        Ended { what, propagated }
    }
}

impl Waiting {
    /// The answer of what ended one object, of which this is the version now.
    pub async fn answer<T: Serialize>(&self, version: i64, what: T) -> HttpResponse {
        let ended = self.until_known(what).await;
        HttpResponse::Ok().insert_header(etag(version)).json(ended)
    }
}

impl Waiting {
    /// # Errors
    /// What is wrong with the query.
    pub fn of(req: &HttpRequest) -> Result<Self, Problem> {
        let asked = Params::parse(req.query_string())
            .and_then(|params| params.deserialize::<Wait>())
            .map_err(|violation| Problem::invalid(vec![violation]))?;
        Ok(Self {
            wait: asked.wait,
            nodes: wired::<Nodes>(req)?.clone(),
        })
    }
}

impl FromRequest for Waiting {
    type Error = Problem;
    type Future = Gated<Self>;

    fn from_request(req: &HttpRequest, _: &mut Payload) -> Self::Future {
        let waiting = Self::of(req);
        Gate::of(req).read_query();
        Gated::new(req, waiting)
    }
}

/// Milliseconds too: `200ms`.
fn at_most_max<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    const SHAPE: &str = "must be a time of at most 5s, such as \"200ms\"";
    let text = String::deserialize(deserializer)?;
    let wait = match text.strip_suffix("ms") {
        Some(millis) => millis.parse().ok().map(Duration::from_millis),
        None => text.parse::<Span>().ok().map(Span::duration),
    };
    wait.filter(|wait| *wait <= WAIT_MAX.duration())
        .map(Some)
        .ok_or_else(|| de::Error::custom(SHAPE))
}
