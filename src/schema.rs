//! How the foundation's text types stand in the OpenAPI document.

use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{KnownFormat, RefOr, SchemaFormat};

/// A string with a pattern (ECMA-262, anchored; empty for none) and an example.
pub fn string(pattern: &str, length_max: usize, example: &str) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .pattern((!pattern.is_empty()).then_some(pattern))
        .max_length(Some(length_max))
        .examples([example])
        .into()
}

/// An RFC 3339 time.
pub fn time() -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .examples(["2027-01-31T12:00:00.000Z"])
        .into()
}

/// Gives a type that serializes as a string its schema, inlined wherever it is used.
#[macro_export]
macro_rules! string_schema {
    ($type:ty, $schema:expr) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                $schema
            }
        }

        impl utoipa::ToSchema for $type {}
    };
}
