//! The forms that the endpoints read, as the `OpenAPI` document describes them. How each is read stands with
//! what is done with it.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

/// The parameters of a token request: described only, see grant.rs and exchange for how they are read.
pub(super) struct TokenRequest;

impl PartialSchema for TokenRequest {
    fn schema() -> RefOr<Schema> {
        with_client(parameters()
            .property("grant_type", text("The grant.", "client_credentials"))
            .required("grant_type")
            .property(
                "scope",
                text(
                    "What the token may do, by spaces; all that the key holds on the service, \
                     unless given.",
                    "invoice:read",
                ),
            )
            .property(
                "audience",
                text(
                    "Slug or id of the service; the only one that the key grants on, unless given.",
                    "billing",
                ),
            )
            .property(
                "resource",
                text(
                    "One of the service's `tokens.resources`, in place of its name or beside it.",
                    "https://billing.example.com/",
                ),
            )
            .property(
                "subject_token",
                text(
                    "Of an exchange: what was presented to the client.",
                    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIs...",
                ),
            )
            .property(
                "subject_token_type",
                text(
                    "Of an exchange: `urn:ietf:params:oauth:token-type:access_token` for an access \
                     token of Keystead's, `urn:ietf:params:oauth:token-type:jwt` for that or a JWT of \
                     a configured issuer, `urn:keystead:token-type:api_key` for an API key.",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
            )
            .property(
                "actor_token",
                text(
                    "Who acts, if it is not the client itself: then `may_act` of the subject token \
                     must name it.",
                    "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIs...",
                ),
            )
            .property(
                "actor_token_type",
                text(
                    "As `subject_token_type`; given with `actor_token` or not at all.",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
            )
            .property(
                "requested_token_type",
                text(
                    "`urn:ietf:params:oauth:token-type:access_token`, unless given, or \
                     `urn:ietf:params:oauth:token-type:jwt`, which is the same token.",
                    "urn:ietf:params:oauth:token-type:access_token",
                ),
            )
            .property(
                "ip",
                text(
                    "Of an exchange: who presented the subject token. Without it none that is bound \
                     to addresses is exchanged for another.",
                    "203.0.113.9",
                ),
            ))
            .into()
    }
}

impl ToSchema for TokenRequest {}

/// The parameters of an introspection: described only.
pub(super) struct IntrospectionRequest;

impl PartialSchema for IntrospectionRequest {
    fn schema() -> RefOr<Schema> {
        parameters()
            .property(
                "token",
                text(
                    "An API key, or an access token.",
                    "ks_live_4hT0aZq81xPd_...",
                ),
            )
            .required("token")
            .property("token_type_hint", text("Not looked at.", "access_token"))
            .property(
                "audience",
                text(
                    "Slug or id of the service that is asked for: needed by who may introspect for \
                     several, of a key that grants on more than one of them.",
                    "billing",
                ),
            )
            .property(
                "ip",
                text(
                    "Who presented it. Without it nothing that is bound to addresses is active.",
                    "203.0.113.9",
                ),
            )
            .into()
    }
}

impl ToSchema for IntrospectionRequest {}

/// The parameters of a revocation: described only.
pub(super) struct RevocationRequest;

impl PartialSchema for RevocationRequest {
    fn schema() -> RefOr<Schema> {
        with_client(
            parameters()
                .property(
                    "token",
                    text(
                        "An access token.",
                        "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFUzI1NiIs...",
                    ),
                )
                .required("token")
                .property("token_type_hint", text("Not looked at.", "access_token")),
        )
        .into()
    }
}

impl ToSchema for RevocationRequest {}

fn parameters() -> ObjectBuilder {
    ObjectBuilder::new()
        .description(Some(
            "Each parameter may be given once; unknown ones are ignored (RFC 6749, 3.2).",
        ))
        .additional_properties(Some(AdditionalProperties::<Schema>::FreeForm(true)))
}

/// How a client says who it is in the form (RFC 6749 §2.3.1).
fn with_client(parameters: ObjectBuilder) -> ObjectBuilder {
    parameters
        .property(
            "client_id",
            text(
                "Id, slug or external id of the consumer, or id or lookup id of the key; \
                 needed beside `client_secret`.",
                "acme",
            ),
        )
        .property(
            "client_secret",
            text(
                "The API key, unless it is in `Authorization: Basic` or `x-api-key`.",
                "ks_live_4hT0aZq81xPd_...",
            ),
        )
}

fn text(description: &str, example: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(description))
        .examples([example])
}
