//! Tokens and introspections are answered at the edge, to the byte as their routes answer.

use super::*;
use crate::support::both;

both!(
    a_form_is_answered_at_the_edge_as_by_its_route,
    what_is_remembered_is_swapped_and_told_without_the_database,
);

/// A page of somebody's is judged by a middleware, so what names one is routed.
const ROUTED: (&str, &str) = ("origin", "https://page.example");

impl World {
    async fn answered_directly(&self) -> u64 {
        let metrics = self.server.client().get("/metrics").send().await;
        let line = metrics
            .text
            .lines()
            .find_map(|line| line.strip_prefix("keystead_answered_directly_total "))
            .expect("the metric")
            .to_owned();
        line.parse().expect("a number")
    }
}

/// Each token is another one, signed anew.
fn still(answer: &Answer) -> String {
    let mut body = answer.body.clone();
    if let Some(token) = body.get_mut("access_token") {
        *token = json!(token.as_str().expect("a text").len());
    }
    let body = match body {
        // Of a JWT what it says of whom, and not when.
        Value::Null if answer.text.starts_with("ey") => {
            let claims = part(&answer.text, 1);
            json!([part(&answer.text, 0), claims["sub"], claims["aud"]])
        }
        body => body,
    };
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        // Clocks go on.
        .filter(|(name, _)| !["date", "ratelimit", "retry-after"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("a text")))
        .collect();
    headers.sort();
    format!("{} {body} {headers:?}", answer.status)
}

async fn a_form_is_answered_at_the_edge_as_by_its_route(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let verifier = world.asker(&["verify"]).await;
    let key = text(&world.issue(&["invoice:read"], json!({})).await, "/api_key");
    let limits = json!({"rate_limits": [{"name": "few", "limit": 2, "period": "1h"}]});
    let used_up = text(&world.issue(&["invoice:read"], limits).await, "/api_key");
    for _ in 0..2 {
        world.token(&used_up, &[]).await;
    }
    let token = world.token(&key, &[]).await;
    let (wrong, good) = (basic("acme", "wrong"), basic("acme", &key));
    let grant = "grant_type=client_credentials";
    let by_key = ("x-api-key", &*key);
    let by_asker = ("x-api-key", &*asker);
    let (issue, tell) = ("/oauth/token", "/oauth/introspect");
    let of = |what: &str| format!("token={what}");
    for (path, headers, form, status) in [
        (issue, &[by_key][..], grant.to_owned(), 200),
        (issue, &[("authorization", &*good)], grant.to_owned(), 200),
        (
            issue,
            &[],
            format!("{grant}&client_id=acme&client_secret={key}"),
            200,
        ),
        (
            issue,
            &[by_key],
            format!("{grant}&scope=invoice%3Aread&x=y"),
            200,
        ),
        (issue, &[by_key], format!("{grant}&scope=report:read"), 400),
        (issue, &[by_key], format!("{grant}&scope=a&scope=b"), 400),
        (issue, &[by_key], "grant_type=password".to_owned(), 400),
        (issue, &[by_key], "%zz%ff".to_owned(), 400),
        (
            issue,
            &[by_key, ("authorization", &*good)],
            grant.to_owned(),
            400,
        ),
        (issue, &[("authorization", &*wrong)], grant.to_owned(), 401),
        (issue, &[], grant.to_owned(), 401),
        (issue, &[("x-api-key", &*used_up)], grant.to_owned(), 429),
        (tell, &[by_asker], of(&key), 200),
        (tell, &[by_asker], of(&token), 200),
        (tell, &[by_asker], of("nonsense"), 200),
        (tell, &[by_asker], of(&format!("{token}x")), 200),
        (
            tell,
            &[by_asker, ("accept", "application/jwt")],
            of(&key),
            200,
        ),
        (
            tell,
            &[by_asker, ("accept", "application/jwt")],
            of("x"),
            200,
        ),
        (
            tell,
            &[by_asker, ("accept", "application/token-introspection+jwt")],
            of(&key),
            200,
        ),
        (tell, &[by_asker], "tokens=x".to_owned(), 400),
        (tell, &[], of(&key), 400),
        (tell, &[by_key], of(&key), 401),
        (tell, &[("x-api-key", &*verifier)], of(&key), 403),
        (tell, &[("authorization", &*wrong)], of(&key), 401),
    ] {
        let request = || {
            let post = world.server.client().post(path);
            let post = post.header("x-request-id", "the-same");
            let all = headers.iter();
            let post = all.fold(post, |post, (name, value)| post.header(name, value));
            post.form_text(form.clone())
        };
        let before = world.answered_directly().await;
        let edge = request().send().await;
        let between = world.answered_directly().await;
        let routed = request().header(ROUTED.0, ROUTED.1).send().await;
        let after = world.answered_directly().await;
        assert_eq!((between - before, after - between), (1, 0), "{path} {form}");
        assert_eq!(edge.status, status, "{path} {form}: {edge}");
        assert_eq!(still(&edge), still(&routed), "{path} {form}");
    }
    // What is no form in order is told by the route.
    let before = world.answered_directly().await;
    let post = || world.server.client().with_key(&key).post(issue);
    post().json_text("{}").send().await.expect(400);
    let long = format!("{grant}&x={}", "y".repeat(9_000));
    post().form_text(long).send().await.expect(200);
    let twice = post().header("content-encoding", "gzip").form_text(grant);
    twice.send().await.expect(400);
    let query = world
        .server
        .client()
        .with_key(&key)
        .post("/oauth/token?x=y");
    query.form_text(grant).send().await.expect(400);
    assert_eq!(world.answered_directly().await, before);
}

async fn what_is_remembered_is_swapped_and_told_without_the_database(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let key = world.key().await;
    let token = world.token(&key, &[]).await;
    let phantom = async |token: &str| {
        let request = world.asks(&asker, token, &[]);
        let answer = request.header("accept", "application/jwt").send().await;
        assert_eq!(answer.headers["content-type"], "application/jwt");
    };
    for token in [&key, &token] {
        phantom(token).await;
    }
    let ask = async || {
        for _ in 0..20 {
            world.token(&key, &[]).await;
            for token in [&key, &token] {
                phantom(token).await;
                let told = world.introspect(&asker, token, &[]).await.expect(200);
                assert_eq!(told["active"], true);
            }
        }
    };
    let (statements, ()) = world.server.statements(ask()).await;
    let asked: Vec<_> = statements
        .iter()
        .filter(|text| {
            ["api_key", "\"consumer\"", "revoked_token"]
                .iter()
                .any(|table| text.contains(table))
        })
        .collect();
    assert!(asked.is_empty(), "{asked:#?}");
}
