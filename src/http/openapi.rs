//! The `OpenAPI` document: what every operation has in common is added here, by rule.
//!
//! A handler describes what is its own: parameters, body, success, and those refusals whose meaning
//! needs a sentence, such as `(status = 409, description = "…")`. [`finish`] adds the rest: security,
//! the refusals that follow from its shape, problem bodies with examples, common headers, tags.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use utoipa::PartialSchema as _;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, ParameterBuilder, ParameterIn, PathItem};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::server::ServerBuilder;
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    ContentBuilder, InfoBuilder, LicenseBuilder, OpenApi, Ref, RefOr, Required, Response,
    ResponseBuilder,
};

use super::problem::{Code, MEDIA_TYPE, ProblemBody, ViolationBody};

/// Tags in the order of the document, each with its sentence.
const TAGS: [(&str, &str); 12] = [
    ("keys", "Issue, change, rotate and end keys."),
    ("validation", "May this key do this, now?"),
    (
        "gateway",
        "The same question, asked by a gateway about the request it holds.",
    ),
    ("self", "What the holder of a key may do with it."),
    ("consumers", "Who holds keys."),
    ("services", "The APIs that are protected."),
    ("tenants", "Isolated worlds."),
    ("oauth", "Keys become short-lived tokens."),
    ("usage", "Which key was used where."),
    ("audit", "Who did what, provably unaltered."),
    ("reviews", "Who has access, and who said that it may stay."),
    ("operations", "Health, metrics and this document."),
];

const DESCRIPTION: &str = "\
Issues hashed, scoped, expiring API keys and answers whether a key may do something now.

**Callers** present a management key as `x-api-key` or an admin JWT as `Authorization: Bearer`; two \
credentials are a 400, a credential in the query too. Management scopes are `<resource>:<right>`, \
optionally `:<service>`.

**Bodies** are JSON; unknown and repeated members are a 400. Times are RFC 3339 UTC with \
milliseconds, durations are texts such as `90d` (`s`, `m`, `h`, `d`, `w`). `PATCH` is a merge patch \
(RFC 7396): `null` clears, lists are replaced whole.

**Refusals** are problems (RFC 9457) with a `code`; they come in the order 404 for the route, 405, \
413, 415, 401, 429 for the caller's own limits, 403 for the operation, 400, 404 for the object, 403 \
for the object, 409, 412, 422, 503.

**Lists** are newest first, `limit` items a page; `next_cursor` leads on and holds for the same \
tenant, filter and order. Every answer carries `X-Request-Id`.";

const RETRY_AFTER: &str = "Seconds after which another try makes sense.";

/// The headers of draft-ietf-httpapi-ratelimit-headers, as they are told; a quota has none.
const RATE_LIMIT_POLICY: &str = "\
Each limit by whose it is and its name, such as `\"key:burst\";q=100;w=60`: `q` requests every `w` \
seconds. Left out where there is no limit.";
const RATE_LIMIT: &str = "\
Each limit, such as `\"key:burst\";r=7;t=56`: `r` could be spent now, all of it in `t` seconds.";

/// Completes the document that the handlers' descriptions make.
pub fn finish(mut openapi: OpenApi) -> OpenApi {
    openapi.info = InfoBuilder::new()
        .title("Keystead")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(DESCRIPTION))
        .license(Some(
            LicenseBuilder::new()
                .name("Apache-2.0")
                .identifier(Some("Apache-2.0"))
                .build(),
        ))
        .build();
    openapi.servers = Some(vec![
        ServerBuilder::new()
            .url("/")
            .description(Some("This installation"))
            .build(),
    ]);
    openapi.security = Some(vec![
        requirement(&["api_key"]),
        requirement(&["bearer"]),
        requirement(&["api_key", "on_behalf_of"]),
    ]);
    let mut used_tags = BTreeSet::new();
    for (path, item) in &mut openapi.paths.paths {
        for operation in operations_mut(item) {
            complete(path, operation);
            used_tags.extend(operation.tags.iter().flatten().cloned());
        }
    }
    openapi.tags = Some(
        TAGS.iter()
            .filter(|(name, _)| used_tags.contains(*name))
            .map(|(name, description)| {
                TagBuilder::new()
                    .name(*name)
                    .description(Some(*description))
                    .build()
            })
            .collect(),
    );
    let components = openapi.components.get_or_insert_default();
    components
        .schemas
        .insert("Problem".to_owned(), ProblemBody::schema());
    components
        .schemas
        .insert("Violation".to_owned(), ViolationBody::schema());
    for (name, scheme) in security_schemes() {
        components
            .security_schemes
            .insert(name.to_owned(), scheme.into());
    }
    openapi
}

/// The document as it is served and committed: the same text for the same operations.
pub fn to_json(openapi: &OpenApi) -> String {
    // The document holds only strings, numbers and maps: serialization cannot fail.
    let mut text = openapi.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
}

fn requirement(schemes: &[&str]) -> SecurityRequirement {
    schemes
        .iter()
        .fold(SecurityRequirement::default(), |requirement, scheme| {
            requirement.add::<_, [&str; 0], &str>(*scheme, [])
        })
}

fn security_schemes() -> [(&'static str, SecurityScheme); 3] {
    [
        (
            "api_key",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "x-api-key",
                "A management key: a key that grants on the service `keystead`.",
            ))),
        ),
        (
            "bearer",
            SecurityScheme::Http(
                HttpBuilder::new()
                    .scheme(HttpAuthScheme::Bearer)
                    .bearer_format("JWT")
                    .description(Some(
                        "A JWT of a configured issuer, or a management key (RFC 6750).",
                    ))
                    .build(),
            ),
        ),
        (
            "on_behalf_of",
            SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(
                "X-Keystead-On-Behalf-Of",
                "A person's JWT, beside the management key of the service that acts for the \
                 person; the rights are the intersection.",
            ))),
        ),
    ]
}

fn operations_mut(item: &mut PathItem) -> impl Iterator<Item = &mut Operation> {
    [
        &mut item.get,
        &mut item.put,
        &mut item.post,
        &mut item.delete,
        &mut item.patch,
        &mut item.head,
        &mut item.options,
    ]
    .into_iter()
    .flatten()
}

/// Open to everybody, by `security(())`.
pub fn is_public(operation: &Operation) -> bool {
    operation
        .security
        .as_ref()
        .is_some_and(|any_of| any_of.contains(&SecurityRequirement::default()))
}

fn complete(path: &str, operation: &mut Operation) {
    let public = is_public(operation);
    if !public {
        operation
            .parameters
            .get_or_insert_default()
            .push(RefOr::T(tenant_parameter()));
    }
    for (status, description) in refusals(path, operation, public) {
        operation
            .responses
            .responses
            .entry(status.to_owned())
            .or_insert_with(|| ResponseBuilder::new().description(description).into());
    }
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response {
            dress(status, response);
        }
    }
}

fn tenant_parameter() -> utoipa::openapi::path::Parameter {
    ParameterBuilder::new()
        .name("X-Keystead-Tenant")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "The slug of another tenant to act in, for callers of `default` with `tenants:write`.",
        ))
        .schema(Some(string_schema()))
        .build()
}

fn string_schema() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// The refusals that follow from the shape of an operation.
fn refusals(path: &str, operation: &Operation, public: bool) -> Vec<(&'static str, &'static str)> {
    let mut refusals = Vec::new();
    let has_header = |name: &str| {
        operation.parameters.iter().flatten().any(|parameter| {
            matches!(parameter, RefOr::T(p)
                if p.parameter_in == ParameterIn::Header && p.name == name)
        })
    };
    let has_tag = |name: &str| operation.tags.iter().flatten().any(|tag| tag == name);
    if !has_tag("operations") {
        refusals.push((
            "400",
            "`invalid_request` names what is wrong; `credential_in_query`; \
                               `two_credentials`",
        ));
        refusals.push((
            "503",
            if public || has_tag("validation") {
                "`store_unavailable`, `busy` or `starting`: try again after `Retry-After`"
            } else {
                "`store_unavailable`, `busy` or `starting`: try again after `Retry-After`; \
                 `audit_broken`: what cannot be recorded is not done"
            },
        ));
    }
    if !public {
        refusals.push((
            "401",
            "`unauthenticated`, `invalid_credential`, or why a known key does \
                               not count",
        ));
        refusals.push(("403", "`forbidden` names the missing scope; `escalation`"));
        refusals.push((
            "429",
            "`rate_limited` or `quota_exceeded`: the caller's own limits",
        ));
    }
    if path.contains('{') {
        refusals.push(("404", "`not_found`: there is no such object in this tenant"));
    } else if !public {
        refusals.push((
            "404",
            "`not_found`: there is no such tenant to act in, or nothing of the name that the \
             request filters by or asks about",
        ));
    }
    if operation.request_body.is_some() {
        refusals.push(("408", "`request_timeout`: the body did not arrive in time"));
        refusals.push(("413", "`payload_too_large`"));
        refusals.push(("415", "`unsupported_media_type`: not JSON, or compressed"));
    }
    if has_header("If-Match") {
        refusals.push(("412", "`version_mismatch`: the object has changed since"));
    }
    if has_header("Idempotency-Key") {
        refusals.push((
            "409",
            "`in_progress`: the first request with this key still runs",
        ));
        refusals.push((
            "422",
            "`idempotency_mismatch`: the key was used with another body",
        ));
    }
    refusals
}

/// Gives a refusal its problem body, and every answer its common headers.
fn dress(status: &str, response: &mut Response) {
    let refused = status.starts_with('4') || status.starts_with('5');
    if refused && response.content.is_empty() {
        let content = ContentBuilder::new()
            .schema(Some(Ref::from_schema_name("Problem")))
            .example(Some(example(status, &response.description)))
            .build();
        response
            .content
            .insert(MEDIA_TYPE.to_owned(), RefOr::T(content));
    }
    let mut header = |name: &str, description: &str| {
        response.headers.entry(name.to_owned()).or_insert_with(|| {
            RefOr::T(
                HeaderBuilder::new()
                    .schema(Some(string_schema()))
                    .description(Some(description))
                    .build(),
            )
        });
    };
    header(
        "X-Request-Id",
        "The request's own id if it was sane, else a new one; stands in logs and audit trail too.",
    );
    match status {
        "401" => header("WWW-Authenticate", "How to authenticate (RFC 6750)."),
        "503" => header("Retry-After", RETRY_AFTER),
        "429" => {
            header("Retry-After", RETRY_AFTER);
            header("RateLimit-Policy", RATE_LIMIT_POLICY);
            header("RateLimit", RATE_LIMIT);
        }
        _ => {}
    }
}

/// A problem of the first code that the description names, or the first of the status.
fn example(status: &str, description: &str) -> Value {
    let of_status = |code: &&Code| code.status().as_str() == status;
    let code = description
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(Code::parse)
        .find(|code| of_status(&code))
        .or_else(|| Code::ALL.iter().find(of_status).copied());
    let Some(code) = code else {
        return Value::Null;
    };
    let mut example = Map::new();
    example.insert("type".to_owned(), code.type_uri().into());
    example.insert("title".to_owned(), code.title().into());
    example.insert("status".to_owned(), code.status().as_u16().into());
    let detail = match code {
        Code::InvalidRequest => "/name is required".to_owned(),
        _ => code.title().to_lowercase(),
    };
    example.insert("detail".to_owned(), detail.into());
    example.insert("code".to_owned(), code.slug().into());
    example.insert("request_id".to_owned(), "5f0c2f4b9d1e4a7786c01b2a".into());
    if code == Code::InvalidRequest {
        let errors = json!([{"pointer": "/name", "detail": "is required"}]);
        example.insert("errors".to_owned(), errors);
    }
    Value::Object(example)
}

#[cfg(test)]
mod tests {
    #![expect(dead_code, reason = "the types are only described")]

    use serde::Deserialize;
    use utoipa::{OpenApi as _, ToSchema};

    use super::*;
    use crate::http::extract::{IdempotencyKey, IfMatch};
    use crate::http::openapi_bodies::{dangling_references, open_request_schemas};

    #[derive(Deserialize, ToSchema)]
    #[serde(deny_unknown_fields)]
    struct Closed {
        inner: Inner,
        labels: serde_json::Map<String, Value>,
    }

    #[derive(Deserialize, ToSchema)]
    struct Inner {
        name: String,
    }

    #[derive(Deserialize, ToSchema)]
    enum Sort {
        Up,
    }

    #[derive(utoipa::IntoParams)]
    #[into_params(parameter_in = Query)]
    struct Sorted {
        sort: Option<Sort>,
    }

    /// Parameters alone name no schema of the document
    #[utoipa::path(get, path = "/sorted", tag = "keys", params(Sorted), responses((status = 200, description = "Seen")))]
    fn sorted() {}

    #[derive(utoipa::OpenApi)]
    #[openapi(paths(sorted))]
    struct Dangling;

    /// Make a thing
    #[utoipa::path(
        post,
        path = "/things/{id}",
        tag = "keys",
        operation_id = "make_thing",
        params(("id" = String, Path), IfMatch, IdempotencyKey),
        request_body = Closed,
        responses(
            (status = 201, description = "Made"),
            (status = 409, description = "`key_revoked`: it is over"),
        )
    )]
    fn make_thing() {}

    /// Look
    #[utoipa::path(get, path = "/look", tag = "operations", security(()), responses((status = 200, description = "Seen")))]
    fn look() {}

    #[derive(utoipa::OpenApi)]
    #[openapi(paths(make_thing, look))]
    struct Document;

    fn document() -> Value {
        serde_json::to_value(finish(Document::openapi())).unwrap()
    }

    #[test]
    fn an_operation_gets_the_refusals_that_follow_from_its_shape() {
        let document = document();
        let make = &document["paths"]["/things/{id}"]["post"];
        let responses = make["responses"].as_object().unwrap();
        let statuses: BTreeSet<_> = responses.keys().map(String::as_str).collect();
        let expected = [
            "201", "400", "401", "403", "404", "408", "409", "412", "413", "415", "422", "429",
            "503",
        ];
        assert_eq!(statuses, expected.into());
        for (status, response) in responses {
            assert!(response["headers"]["X-Request-Id"].is_object(), "{status}");
            if status != "201" {
                let content = &response["content"][MEDIA_TYPE];
                assert_eq!(content["schema"]["$ref"], "#/components/schemas/Problem");
                assert_eq!(content["example"]["status"].to_string(), *status);
            }
        }
        let said = &responses["409"]["description"];
        assert_eq!(
            said, "`key_revoked`: it is over",
            "what the handler says stays"
        );
        let example = &responses["409"]["content"][MEDIA_TYPE]["example"];
        assert_eq!(example["code"], "key_revoked");
        assert_eq!(
            document["paths"]["/look"]["get"]["responses"]
                .as_object()
                .unwrap()
                .len(),
            1
        );
        let tags: Vec<_> = document["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|t| &t["name"])
            .collect();
        assert_eq!(tags, ["keys", "operations"]);
        assert!(document["components"]["schemas"]["Problem"]["properties"]["errors"].is_object());
    }

    #[test]
    fn a_request_schema_that_takes_anything_is_found() {
        let openapi = finish(Document::openapi());
        assert_eq!(open_request_schemas(&openapi), ["Inner"]);
        assert_eq!(
            document()["components"]["schemas"]["Closed"]["additionalProperties"],
            false
        );
    }

    #[test]
    fn a_reference_to_nothing_is_found() {
        assert!(dangling_references(&finish(Document::openapi())).is_empty());
        assert_eq!(
            dangling_references(&finish(Dangling::openapi())),
            ["#/components/schemas/Sort"]
        );
    }

    #[test]
    fn the_document_is_the_same_each_time() {
        let first = to_json(&finish(Document::openapi()));
        assert_eq!(first, to_json(&finish(Document::openapi())));
        assert!(first.ends_with("}\n"));
    }
}
