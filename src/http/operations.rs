//! Which operation a request was for, as access log and metrics name it.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::http::Method;
use utoipa::openapi::path::{Operation, ParameterIn, PathItem};
use utoipa::openapi::{OpenApi, RefOr};

use crate::metrics::{Metrics, OperationMetrics};

/// What requests are called that met no route.
const UNMATCHED: &str = "unmatched";

/// The tag of the operations that services ask with every request of theirs.
const QUIET: &str = "validation";

/// As quiet, by their ids: a validation with something before and behind it.
const ALSO_QUIET: [&str; 2] = ["issue_token", "introspect_token"];

/// Those that decide about a key: one that ends in a failure of ours is counted as not decided.
const DECIDING: [&str; 3] = ["verify_key", "verify_keys", "authorize_request"];

/// The operations of the `OpenAPI` document with their counters.
#[derive(Clone, Debug)]
pub struct Operations {
    paths: HashMap<String, Vec<(Method, Arc<Known>)>>,
    unmatched: Arc<Known>,
}

/// One operation.
#[derive(Debug)]
pub struct Known {
    /// The operation id.
    pub id: String,
    /// The path with its parameters' names.
    pub route: String,
    /// Asked so often that only failures are worth a line in the access log: what was decided stands
    /// in the counters.
    pub is_quiet: bool,
    /// It decides about a key.
    pub decides: bool,
    /// The names of the parameters that its query may have.
    pub parameters: Vec<String>,
    pub metrics: OperationMetrics,
}

impl Operations {
    pub fn new(openapi: &OpenApi, metrics: &Metrics) -> Self {
        let known = |id: &str, route: &str, is_quiet: bool, parameters: Vec<String>| {
            Arc::new(Known {
                id: id.to_owned(),
                route: route.to_owned(),
                is_quiet,
                decides: DECIDING.contains(&id),
                parameters,
                metrics: metrics.operation(id),
            })
        };
        let paths = openapi
            .paths
            .paths
            .iter()
            .map(|(route, item)| {
                let methods = operations(item)
                    .map(|(method, operation)| {
                        let id = operation.operation_id.as_deref().unwrap_or(route);
                        let tags = operation.tags.as_deref().unwrap_or_default();
                        let is_quiet =
                            tags.iter().any(|tag| tag == QUIET) || ALSO_QUIET.contains(&id);
                        let parameters = parameters(operation);
                        (method, known(id, route, is_quiet, parameters))
                    })
                    .collect();
                (route.clone(), methods)
            })
            .collect();
        Self {
            paths,
            unmatched: known(UNMATCHED, "", false, Vec::new()),
        }
    }

    /// Called after routing. Most requests are for paths without parameters, which are found at
    /// once; the pattern of another is asked of the router.
    pub(crate) fn of(&self, req: &HttpRequest) -> &Arc<Known> {
        self.by_path(req.method(), req.path())
            .or_else(|| {
                let pattern = req.match_pattern()?;
                self.by_path(req.method(), &pattern)
            })
            .unwrap_or(&self.unmatched)
    }

    /// Also where the request is gone, by a panic or because it took too long.
    pub(crate) fn by_path(&self, method: &Method, path: &str) -> Option<&Arc<Known>> {
        let methods = self.paths.get(path)?;
        methods
            .iter()
            .find(|(known, _)| known == method)
            .or_else(|| methods.first())
            .map(|(_, operation)| operation)
    }

    pub(crate) fn unmatched(&self) -> &Arc<Known> {
        &self.unmatched
    }
}

fn parameters(operation: &Operation) -> Vec<String> {
    let all = operation.parameters.iter().flatten();
    all.filter_map(|parameter| match parameter {
        RefOr::T(one) if one.parameter_in == ParameterIn::Query => Some(one.name.clone()),
        RefOr::T(_) | RefOr::Ref(_) => None,
    })
    .collect()
}

/// The operations of a path by method.
pub fn operations(item: &PathItem) -> impl Iterator<Item = (Method, &Operation)> {
    [
        (Method::GET, &item.get),
        (Method::PUT, &item.put),
        (Method::POST, &item.post),
        (Method::DELETE, &item.delete),
        (Method::PATCH, &item.patch),
        (Method::HEAD, &item.head),
        (Method::OPTIONS, &item.options),
    ]
    .into_iter()
    .filter_map(|(method, operation)| operation.as_ref().map(|operation| (method, operation)))
}
