//! Every route, readable from top to bottom, and the document that describes them.
//!
//! A handler stands here and in [`Api`]; a test holds the two against each other.

use std::collections::HashMap;
use std::sync::LazyLock;

use actix_web::http::Method;
use actix_web::web::{self, ServiceConfig, delete, get, patch, post, put};
use utoipa::OpenApi;

use crate::audit::export::ExportFormat;
use crate::audit::http as audit;
use crate::consumers::http as consumers;
use crate::gateway::http as gateway;
use crate::http::download::RowFormat;
use crate::http::{docs, health, openapi, operations};
use crate::keys::http as keys;
use crate::oauth::http as oauth;
use crate::oauth::metadata;
use crate::reviews::http as reviews;
use crate::services::http as services;
use crate::tenants::http as tenants;
use crate::usage::http as usage;
use crate::usage::query::{Dimension, Format, Order};
use crate::usage::record::Operation;
use crate::validation::http as validation;

#[expect(
    clippy::too_many_lines,
    reason = "a table of contents is as long as what it lists"
)]
/// All but operations, which can have a listener of their own.
pub fn api(app: &mut ServiceConfig) {
    let mut at = |path: &str, routes: Vec<actix_web::Route>| {
        let resource = web::resource(path);
        app.service(
            routes
                .into_iter()
                .fold(resource, actix_web::Resource::route),
        );
    };
    // actix tries one resource after the other, those with parameters by a regular expression: so what
    // every request of a service asks stands first.
    at("/v1/verify", vec![post().to(validation::verify_key)]);
    at("/v1/verify/batch", vec![post().to(validation::verify_keys)]);
    at("/v1/explain", vec![post().to(validation::explain_key)]);
    at(
        "/gateway/authorize",
        vec![web::route().to(gateway::authorize_request)],
    );

    at(
        "/oauth/introspect",
        vec![post().to(oauth::introspect::introspect_token)],
    );
    at("/oauth/token", vec![post().to(oauth::issue_token)]);
    at(
        "/oauth/revoke",
        vec![post().to(oauth::revoke::revoke_token)],
    );
    at("/.well-known/jwks.json", vec![get().to(oauth::read_jwks)]);
    at(
        metadata::WELL_KNOWN,
        vec![get().to(oauth::read_authorization_server)],
    );
    // RFC 8414 §3.1: the issuer's own path stands behind it.
    at(
        "/.well-known/oauth-authorization-server/{path:.*}",
        vec![get().to(oauth::read_authorization_server)],
    );

    at(
        "/v1/tenants",
        vec![
            post().to(tenants::create_tenant),
            get().to(tenants::list_tenants),
        ],
    );
    at(
        "/v1/tenants/{id}",
        vec![
            get().to(tenants::read_tenant),
            patch().to(tenants::update_tenant),
            delete().to(tenants::delete_tenant),
        ],
    );
    at(
        "/v1/tenants/{id}/disable",
        vec![post().to(tenants::disable_tenant)],
    );
    at(
        "/v1/tenants/{id}/enable",
        vec![post().to(tenants::enable_tenant)],
    );

    at(
        "/v1/services",
        vec![
            post().to(services::create_service),
            get().to(services::list_services),
        ],
    );
    at(
        "/v1/services/{id}",
        vec![
            get().to(services::read_service),
            put().to(services::replace_service),
            patch().to(services::update_service),
            delete().to(services::delete_service),
        ],
    );
    at(
        "/v1/services/{id}/disable",
        vec![post().to(services::disable_service)],
    );
    at(
        "/v1/services/{id}/enable",
        vec![post().to(services::enable_service)],
    );

    at(
        "/v1/consumers",
        vec![
            post().to(consumers::create_consumer),
            get().to(consumers::list_consumers),
        ],
    );
    at(
        "/v1/consumers/{id}",
        vec![
            get().to(consumers::read_consumer),
            put().to(consumers::replace_consumer),
            patch().to(consumers::update_consumer),
            delete().to(consumers::delete_consumer),
        ],
    );
    at(
        "/v1/consumers/{id}/disable",
        vec![post().to(consumers::disable_consumer)],
    );
    at(
        "/v1/consumers/{id}/enable",
        vec![post().to(consumers::enable_consumer)],
    );

    at(
        "/v1/keys",
        vec![post().to(keys::issue_key), get().to(keys::list_keys)],
    );
    at("/v1/keys/batch", vec![post().to(keys::bulk::issue_keys)]);
    at("/v1/keys/export", vec![get().to(keys::export::export_keys)]);
    at("/v1/keys/find", vec![post().to(keys::bulk::find_keys)]);
    at("/v1/keys/revoke", vec![post().to(keys::bulk::revoke_keys)]);
    at(
        "/v1/keys/{id}",
        vec![get().to(keys::read_key), patch().to(keys::update_key)],
    );
    at("/v1/keys/{id}/rotate", vec![post().to(keys::rotate_key)]);
    at("/v1/keys/{id}/revoke", vec![post().to(keys::revoke_key)]);
    at("/v1/keys/{id}/disable", vec![post().to(keys::disable_key)]);
    at("/v1/keys/{id}/enable", vec![post().to(keys::enable_key)]);
    at(
        "/v1/keys/{id}/secrets/{secret}",
        vec![patch().to(keys::update_secret)],
    );
    at(
        "/v1/keys/{id}/secrets/{secret}/revoke",
        vec![post().to(keys::revoke_secret)],
    );
    at("/v1/key-patterns", vec![get().to(keys::list_key_patterns)]);

    at("/v1/self", vec![get().to(keys::holder::read_self)]);
    at(
        "/v1/self/revoke",
        vec![post().to(keys::holder::revoke_self)],
    );
    at(
        "/v1/self/rotate",
        vec![post().to(keys::holder::rotate_self)],
    );

    at("/v1/usage/events", vec![get().to(usage::list_usage_events)]);
    at("/v1/usage/summary", vec![get().to(usage::summarize_usage)]);
    at(
        "/v1/usage/export",
        vec![get().to(usage::export::export_usage_events)],
    );
    at(
        "/v1/usage/verify",
        vec![post().to(usage::verify::verify_usage)],
    );

    at("/v1/audit/events", vec![get().to(audit::list_audit_events)]);
    at(
        "/v1/audit/export",
        vec![get().to(audit::export::export_audit_events)],
    );
    at("/v1/audit/keys", vec![get().to(audit::list_audit_keys)]);
    at(
        "/v1/audit/checkpoints",
        vec![
            post().to(audit::checkpoints::create_audit_checkpoint),
            get().to(audit::checkpoints::list_audit_checkpoints),
        ],
    );
    at("/v1/audit/verify", vec![post().to(audit::verify_audit)]);

    at(
        "/v1/reviews/access",
        vec![
            post().to(reviews::create_access_review),
            get().to(reviews::list_access_reviews),
        ],
    );
    at(
        "/v1/reviews/access/{id}",
        vec![get().to(reviews::read_access_review)],
    );
    at(
        "/v1/reviews/access/{id}/items",
        vec![get().to(reviews::list_access_review_items)],
    );
    at(
        "/v1/reviews/access/{id}/items/{key}/decide",
        vec![post().to(reviews::decide_access_review)],
    );
    at(
        "/v1/reviews/access/{id}/close",
        vec![post().to(reviews::close_access_review)],
    );
    at(
        "/v1/reviews/access/{id}/export",
        vec![get().to(reviews::export::export_access_review)],
    );
}

#[derive(OpenApi)]
#[openapi(paths(
    tenants::create_tenant,
    tenants::list_tenants,
    tenants::read_tenant,
    tenants::update_tenant,
    tenants::delete_tenant,
    tenants::disable_tenant,
    tenants::enable_tenant,
    services::create_service,
    services::list_services,
    services::read_service,
    services::replace_service,
    services::update_service,
    services::delete_service,
    services::disable_service,
    services::enable_service,
    consumers::create_consumer,
    consumers::list_consumers,
    consumers::read_consumer,
    consumers::replace_consumer,
    consumers::update_consumer,
    consumers::delete_consumer,
    consumers::disable_consumer,
    consumers::enable_consumer,
    keys::issue_key,
    keys::list_keys,
    keys::bulk::issue_keys,
    keys::export::export_keys,
    keys::bulk::find_keys,
    keys::bulk::revoke_keys,
    keys::read_key,
    keys::update_key,
    keys::rotate_key,
    keys::revoke_key,
    keys::disable_key,
    keys::enable_key,
    keys::update_secret,
    keys::revoke_secret,
    keys::list_key_patterns,
    keys::holder::read_self,
    keys::holder::revoke_self,
    keys::holder::rotate_self,
    validation::verify_key,
    validation::verify_keys,
    validation::explain_key,
    gateway::authorize_request,
    oauth::issue_token,
    oauth::introspect::introspect_token,
    oauth::revoke::revoke_token,
    oauth::read_jwks,
    oauth::read_authorization_server,
    usage::list_usage_events,
    usage::summarize_usage,
    usage::export::export_usage_events,
    usage::verify::verify_usage,
    audit::list_audit_events,
    audit::export::export_audit_events,
    audit::list_audit_keys,
    audit::checkpoints::create_audit_checkpoint,
    audit::checkpoints::list_audit_checkpoints,
    audit::verify_audit,
    reviews::create_access_review,
    reviews::list_access_reviews,
    reviews::read_access_review,
    reviews::list_access_review_items,
    reviews::decide_access_review,
    reviews::close_access_review,
    reviews::export::export_access_review,
    health::check_liveness,
    health::check_readiness,
    health::read_metrics,
    docs::read_openapi,
), components(schemas(
    // Those that parameters alone refer to.
    Dimension,
    ExportFormat,
    Format,
    Operation,
    Order,
    RowFormat,
)))]
struct Api;

/// The complete document, as `openapi/keystead.json` holds it.
pub fn document() -> utoipa::openapi::OpenApi {
    openapi::finish(Api::openapi())
}

/// The audit trail's name of an operation, such as `key.revoke` for `revoke_key`.
pub fn action(method: &Method, pattern: &str) -> Option<&'static str> {
    static ACTIONS: LazyLock<HashMap<(Method, String), &'static str>> = LazyLock::new(|| {
        let document = document();
        let mut actions = HashMap::new();
        for (path, item) in &document.paths.paths {
            for (method, operation) in operations::operations(item) {
                let id = operation.operation_id.as_deref().unwrap_or_default();
                if let Some((verb, noun)) = id.split_once('_') {
                    // Once for each operation of the document: this is their home for good.
                    let name: &'static str = Box::leak(format!("{noun}.{verb}").into_boxed_str());
                    actions.insert((method, path.clone()), name);
                }
            }
        }
        actions
    });
    ACTIONS.get(&(method.clone(), pattern.to_owned())).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::action::is_action;
    use crate::http::openapi_bodies::dangling_references;

    #[test]
    fn the_trail_can_be_asked_for_each_operation_that_can_be_refused() {
        for (path, item) in &document().paths.paths {
            for (method, operation) in operations::operations(item) {
                let answers = &operation.responses.responses;
                if answers.contains_key("403") || answers.contains_key("404") {
                    let name = action(&method, path).unwrap();
                    assert!(is_action(name), "{name} is missing in audit/action.rs");
                }
            }
        }
    }

    #[test]
    fn every_reference_of_the_document_leads_somewhere() {
        assert_eq!(dangling_references(&document()), [""; 0]);
    }
}
