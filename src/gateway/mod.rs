//! For gateways: the `x-api-key` header of the client's own request is judged.

pub mod http;
