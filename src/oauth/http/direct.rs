//! Tokens and introspections at the edge: services ask for them with every request of theirs, and what each
//! route does stands in one function.

use std::sync::Arc;

use super::introspect::introspect;
use super::token;
use crate::http::direct::Direct;
use crate::oauth::Oauth;

/// Answers forms for the edge.
pub fn answer_directly(oauth: &Oauth) -> [Direct; 2] {
    let (issues, tells) = (Arc::new(oauth.clone()), Arc::new(oauth.clone()));
    [
        Direct::form("/oauth/token", move |posted| {
            let oauth = Arc::clone(&issues);
            Box::pin(async move { token(posted, &oauth).await })
        }),
        Direct::form("/oauth/introspect", move |posted| {
            let oauth = Arc::clone(&tells);
            Box::pin(async move { introspect(posted, &oauth).await })
        }),
    ]
}
