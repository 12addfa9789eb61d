//! What is never exchanged: what is missing, forged, ended, of another kind or of another tenant.

use keystead::time::Span;

use super::exchange::{ACCESS_TOKEN, API_KEY, GRANT, Hop, JWT};
use super::*;
use crate::support::forge::IdentityProvider;
use crate::support::forge::forged::{A, B, Case, H, cases};
use crate::support::{both, tables};

both!(
    what_is_missing_oversized_or_of_another_type_never_falls_back_to_the_client,
    a_subject_or_actor_that_has_ended_is_refused,
    nothing_is_exchanged_across_tenants_environments_or_addresses,
    no_forged_token_of_an_issuer_is_exchanged,
    no_forged_token_of_our_own_is_exchanged,
);

fn error(answer: &Answer) -> &str {
    answer.body["error"].as_str().unwrap_or_default()
}

fn token(token: &str) -> (&str, &str) {
    ("subject_token", token)
}

fn kind(kind: &str) -> (&str, &str) {
    ("subject_token_type", kind)
}

/// 41, 42, 47, 48, 51; G1, G4, G12.
async fn what_is_missing_oversized_or_of_another_type_never_falls_back_to_the_client(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let subject = hop.at_the_shop().await;
    let asker = hop.asker().await;
    let mine = hop.backend_key();
    let of_shop = world.asker(&["introspect:shop"]).await;
    let mut request = world.asks(&of_shop, &subject, &[]);
    request = request.header("accept", "application/token-introspection+jwt");
    let introspection = request.send().await.text;
    let person = hop.vouched(json!({}));
    let key = hop.customer_key();
    let audience = ("audience", "invoicing");
    let long: Vec<String> = [3_999, 4_001, 16 * 1024, 1024 * 1024]
        .iter()
        .map(|length| "k".repeat(*length))
        .collect();
    let jwt_like: Vec<String> = long[..3]
        .iter()
        .map(|long| format!("{long}.{long}.x"))
        .collect();
    let mut wrong: Vec<Vec<(&str, &str)>> = vec![
        vec![audience],
        vec![audience, token(&subject)],
        vec![audience, kind(ACCESS_TOKEN)],
        vec![audience, token(""), kind(ACCESS_TOKEN)],
        vec![
            audience,
            token(&subject),
            token(&subject),
            kind(ACCESS_TOKEN),
        ],
        vec![
            audience,
            token(&subject),
            kind(ACCESS_TOKEN),
            kind(ACCESS_TOKEN),
        ],
        vec![audience, token(&subject), kind("access_token")],
        // The type that is declared is the one that it must have.
        vec![audience, token(&subject), kind(API_KEY)],
        vec![audience, token(&key), kind(ACCESS_TOKEN)],
        vec![audience, token(&key), kind(JWT)],
        vec![audience, token(&person), kind(ACCESS_TOKEN)],
        vec![audience, token(&person), kind(API_KEY)],
        vec![audience, token(&introspection), kind(JWT)],
        vec![audience, token(&introspection), kind(ACCESS_TOKEN)],
    ];
    for other in [
        "urn:ietf:params:oauth:token-type:id_token",
        "urn:ietf:params:oauth:token-type:refresh_token",
        "urn:ietf:params:oauth:token-type:saml2",
        "urn:ietf:params:oauth:token-type:ACCESS_TOKEN",
    ] {
        wrong.push(vec![audience, token(&subject), kind(other)]);
        let requested = ("requested_token_type", other);
        wrong.push(vec![
            audience,
            token(&subject),
            kind(ACCESS_TOKEN),
            requested,
        ]);
    }
    for actor in [
        &[("actor_token", &*mine)][..],
        &[("actor_token_type", API_KEY)],
        &[("actor_token", ""), ("actor_token_type", API_KEY)],
        &[("actor_token", &mine), ("actor_token_type", ACCESS_TOKEN)],
        &[("actor_token", &mine), ("actor_token_type", "api_key")],
        &[("actor_token", "x"), ("actor_token_type", API_KEY)],
    ] {
        let mut pairs = vec![audience, token(&subject), kind(ACCESS_TOKEN)];
        pairs.extend_from_slice(actor);
        wrong.push(pairs);
    }
    for long in long.iter().chain(&jwt_like) {
        for kinds in [API_KEY, ACCESS_TOKEN, JWT] {
            wrong.push(vec![audience, token(long), kind(kinds)]);
        }
    }
    for pairs in &wrong {
        let answer = hop.send(&mine, pairs).await;
        let shown: Vec<String> = pairs.iter().map(|(n, v)| format!("{n}={v:.40}")).collect();
        assert_eq!(
            (answer.status, error(&answer)),
            (400, "invalid_request"),
            "{shown:?}: {answer}"
        );
        assert!(answer.body.get("access_token").is_none(), "{shown:?}");
    }
    // 51: a client that is not known learns nothing of the token.
    for client in [
        world.server.client(),
        world.server.client().with_key(&typo(&mine)),
    ] {
        let form = [
            ("grant_type", GRANT),
            token(&subject),
            kind(ACCESS_TOKEN),
            audience,
        ];
        let answer = client.post("/oauth/token").form(&form).send().await;
        assert_eq!((answer.status, error(&answer)), (401, "invalid_client"));
    }
    // A management key has nothing to exchange for, and is nothing to exchange.
    let answer = hop
        .send(&asker, &[token(&subject), kind(JWT), audience])
        .await;
    assert_eq!(error(&answer), "invalid_target", "{answer}");
    let answer = hop.swap((&asker, API_KEY), &[]).await;
    assert_eq!(answer.status, 400, "{answer}");
    // G3: a service that says nothing takes nothing, and one that is another's has nothing to give.
    let none = json!({"exchange": null});
    world.change("/v1/services/invoicing", none).await;
    let answer = hop.swap((&subject, JWT), &[]).await;
    assert_eq!(error(&answer), "invalid_target", "{answer}");
    let answer = hop.swap((&person, JWT), &[]).await;
    assert_eq!(error(&answer), "invalid_target", "{answer}");
    let answer = hop.swap((&key, API_KEY), &[]).await;
    assert_eq!(error(&answer), "unauthorized_client", "{answer}");
    hop.swap((&mine, API_KEY), &[]).await.expect(200);
}

/// 44, 47; G10, G11: each state, of each kind, as subject and as actor.
async fn a_subject_or_actor_that_has_ended_is_refused(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let owner = &world.owner;
    let swap = async |subject: (&str, &str)| hop.swap(subject, &[]).await;
    let grants = json!([
        {"service": "shop", "scopes": ["invoice:read"]},
        {"service": "invoicing", "scopes": ["invoice:read"]},
    ]);
    let issue = async |more: Value| {
        let mut all = json!({ "grants": grants });
        for (name, value) in more.as_object().unwrap() {
            all[name] = value.clone();
        }
        world.issue(&[], all).await
    };
    let good = hop.at_the_shop().await;
    for verb in ["revoke", "disable"] {
        let of_customer = issue(json!({})).await;
        let of_backend = issue(json!({"consumer": "backend"})).await;
        let key = text(&of_customer, "/api_key");
        let token = world.token(&key, &[("audience", "shop")]).await;
        let actor_key = text(&of_backend, "/api_key");
        let actor = world.token(&actor_key, &[("audience", "shop")]).await;
        let with_actor = async |token: &str, kind: &str| {
            let pairs = [("actor_token", token), ("actor_token_type", kind)];
            hop.swap((&good, JWT), &pairs).await
        };
        swap((&key, API_KEY)).await.expect(200);
        swap((&token, JWT)).await.expect(200);
        with_actor(&actor, JWT).await.expect(200);
        with_actor(&actor_key, API_KEY).await.expect(200);
        for issued in [&of_customer, &of_backend] {
            let path = format!("/v1/keys/{}/{verb}", text(issued, "/key/id"));
            owner.post(&path).send().await.expect(200);
        }
        for answer in [
            swap((&key, API_KEY)).await,
            swap((&token, JWT)).await,
            swap((&token, ACCESS_TOKEN)).await,
            with_actor(&actor, JWT).await,
            with_actor(&actor_key, API_KEY).await,
        ] {
            assert_eq!(
                (answer.status, error(&answer)),
                (400, "invalid_request"),
                "{verb}: {answer}"
            );
        }
    }
    // A token that was revoked by itself, however young.
    let client = world.server.client().with_key(&hop.customer_key());
    for _ in 0..20 {
        let token = hop.at_the_shop().await;
        swap((&token, JWT)).await.expect(200);
        let request = client.post("/oauth/revoke").form(&[("token", &*token)]);
        request.send().await.expect(200);
        assert_eq!(error(&swap((&token, JWT)).await), "invalid_request");
    }
    // A secret that was replaced, a key of later, a consumer, the service that a token was made for.
    let replaced = issue(json!({})).await;
    let old = text(&replaced, "/api_key");
    let token = world.token(&old, &[("audience", "shop")]).await;
    let path = format!("/v1/keys/{}/rotate", text(&replaced, "/key/id"));
    let at_once = json!({"overlap": "0s"});
    owner.post(&path).json(at_once).send().await.expect(200);
    assert_eq!(error(&swap((&old, API_KEY)).await), "invalid_request");
    assert_eq!(error(&swap((&token, JWT)).await), "invalid_request");
    let tomorrow = world.server.clock.now().plus(Span::hours(24));
    let later = issue(json!({"not_before": tomorrow})).await;
    let later = text(&later, "/api_key");
    assert_eq!(error(&swap((&later, API_KEY)).await), "invalid_request");
    let token = hop.at_the_shop().await;
    for path in ["/v1/services/shop", "/v1/consumers/acme"] {
        owner
            .post(&format!("{path}/disable"))
            .send()
            .await
            .expect(200);
        let answer = swap((&token, JWT)).await;
        assert_eq!(answer.status, 400, "{path}: {answer}");
        owner
            .post(&format!("{path}/enable"))
            .send()
            .await
            .expect(200);
        swap((&token, JWT)).await.expect(200);
    }
    // By the clock.
    world.server.clock.advance("300s".parse().unwrap());
    assert_eq!(error(&swap((&token, JWT)).await), "invalid_request");
    let person = hop.vouched(json!({"nbf": world.server.clock.now().unix_seconds() + 60}));
    assert_eq!(error(&swap((&person, JWT)).await), "invalid_request");
}

/// G2, G10.
async fn nothing_is_exchanged_across_tenants_environments_or_addresses(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let owner = &world.owner;
    owner.create("/v1/tenants", json!({"slug": "other"})).await;
    let within = owner.within("other");
    for slug in ["shop", "invoicing"] {
        within.create("/v1/services", json!({"slug": slug})).await;
    }
    within
        .create("/v1/consumers", json!({"slug": "acme"}))
        .await;
    let new = json!({"name": "w", "consumer": "acme", "grants": [
        {"service": "shop", "scopes": ["*"]}, {"service": "invoicing", "scopes": ["*"]},
    ]});
    let theirs = text(&within.create("/v1/keys", new).await, "/api_key");
    let token = world.token(&theirs, &[("audience", "shop")]).await;
    let nobody = typo(&hop.customer_key());
    let unknown = hop.swap((&nobody, API_KEY), &[]).await;
    assert_eq!((unknown.status, error(&unknown)), (400, "invalid_request"));
    let mine = world
        .token(&hop.customer_key(), &[("audience", "shop")])
        .await;
    for (subject, kind) in [(&theirs, API_KEY), (&token, JWT), (&token, ACCESS_TOKEN)] {
        let answer = hop.swap((subject, kind), &[]).await;
        assert_eq!(
            answer.redacted(),
            unknown.redacted(),
            "as if there were none"
        );
        let pairs = [("actor_token", &**subject), ("actor_token_type", kind)];
        let answer = hop.swap((&mine, JWT), &pairs).await;
        assert_eq!((answer.status, error(&answer)), (400, "invalid_request"));
    }
    // Nor the other way round.
    let pairs = [
        ("subject_token", &*mine),
        ("subject_token_type", JWT),
        ("audience", "invoicing"),
    ];
    let answer = hop.send(&theirs, &pairs).await;
    assert_eq!((answer.status, error(&answer)), (400, "invalid_request"));
    // A person of another tenant, by an issuer whose tenant is fixed, has none to name.
    let grants = hop.customer["key"]["grants"].clone();
    let grants: Vec<Value> = grants
        .as_array()
        .unwrap()
        .iter()
        .map(|grant| json!({"service": grant["service"], "scopes": grant["scopes"]}))
        .collect();
    let test = json!({"environment": "test", "grants": grants});
    let test = text(&world.issue(&[], test).await, "/api_key");
    let of_test = world.token(&test, &[("audience", "shop")]).await;
    for subject in [(&*test, API_KEY), (&*of_test, JWT)] {
        let answer = hop.swap(subject, &[]).await;
        assert_eq!(
            (answer.status, error(&answer)),
            (400, "invalid_request"),
            "environment"
        );
    }
    // What is bound to addresses is exchanged only if the client says who presented it.
    let bound = json!({"allowed_ips": ["203.0.113.0/24", "127.0.0.1"], "grants": grants});
    let bound = text(&world.issue(&[], bound).await, "/api_key");
    let token = world.token(&bound, &[("audience", "shop")]).await;
    for subject in [(&*bound, API_KEY), (&*token, JWT)] {
        for (ip, status) in [
            (&[][..], 400),
            (&[("ip", "198.51.100.1")], 400),
            (&[("ip", "203.0.113.9")], 200),
        ] {
            let answer = hop.swap(subject, ip).await;
            assert_eq!(answer.status, status, "{ip:?}: {answer}");
        }
    }
    // Whoever exchanges his own is where he is, whatever he says.
    let elsewhere = json!({"allowed_ips": ["203.0.113.0/24"], "grants": grants});
    let elsewhere = text(&world.issue(&[], elsewhere).await, "/api_key");
    let key = hop.customer_key();
    let pairs = [
        ("subject_token", &*elsewhere),
        ("subject_token_type", API_KEY),
        ("audience", "invoicing"),
        ("ip", "203.0.113.9"),
    ];
    let answer = hop.send(&key, &pairs).await;
    assert_eq!((answer.status, error(&answer)), (400, "invalid_request"));
    let own = [("subject_token", &*bound), pairs[1], pairs[2]];
    hop.send(&key, &own).await.expect(200);
}

/// G4, D1 to D10, D16 to D19: as subject and as actor token, with a good one before and after.
async fn no_forged_token_of_an_issuer_is_exchanged(home: Home) {
    let hop = Hop::new(&home).await;
    let sources = json!({"exchange": {"from": ["shop", A, B, H], "actors": ["backend"]}});
    hop.world.change("/v1/services/invoicing", sources).await;
    let subject = hop.at_the_shop().await;
    let good = hop.vouched(json!({}));
    hop.swap((&good, JWT), &[]).await.expect(200);
    assert_eq!(hop.provider.asked("/jwks"), 1);
    let before = tables::changes(&home).await;
    let mut told = HashSet::new();
    let mut sent = 0;
    for case in cases(&hop.world.server.clock, &hop.provider.url("/trap")) {
        let Case { name, token, .. } = case;
        let as_actor = [("actor_token", &*token), ("actor_token_type", JWT)];
        for (answer, which) in [
            (hop.swap((&token, JWT), &[]).await, "subject"),
            (hop.swap((&token, ACCESS_TOKEN), &[]).await, "subject"),
            (hop.swap((&token, API_KEY), &[]).await, "subject"),
            (hop.swap((&subject, JWT), &as_actor).await, "actor"),
        ] {
            sent += 1;
            assert_eq!(
                (answer.status, error(&answer)),
                (400, "invalid_request"),
                "{name} as {which}: {answer}"
            );
            // What is not even text is told as that, and an empty one as missing.
            if !token.is_empty() && !token.contains(char::is_control) {
                told.insert((which, answer.text));
            }
        }
    }
    assert!(sent > 600, "{sent}");
    assert_eq!(told.len(), 2, "one answer for each of the two: {told:#?}");
    hop.swap((&good, JWT), &[]).await.expect(200);
    assert_eq!(tables::changes(&home).await, before);
    assert_eq!(
        hop.provider.asked("/jwks"),
        1,
        "no token made us fetch again"
    );
    assert_eq!(hop.provider.asked("/trap"), 0, "no token sent us anywhere");
    // The names of consumers are ours to give, and a person of an issuer that is not listed is nobody.
    let consumer = hop.vouched(json!({"sub": hop.customer["key"]["consumer"]["id"]}));
    let answer = hop.swap((&consumer, JWT), &[]).await;
    assert_eq!(error(&answer), "invalid_request", "{answer}");
    let sources = json!({"exchange": {"from": ["shop", B]}});
    hop.world.change("/v1/services/invoicing", sources).await;
    let answer = hop.swap((&good, JWT), &[]).await;
    assert_eq!(error(&answer), "invalid_target", "{answer}");
}

/// 72, 73; F4, F6: tokens that say to be ours.
async fn no_forged_token_of_our_own_is_exchanged(home: Home) {
    let provider = IdentityProvider::start().await;
    let world = World::with(&home, &[("SERVER__PUBLIC_URL", A)]).await;
    world
        .owner
        .create("/v1/consumers", json!({"slug": "backend"}))
        .await;
    let actors = json!({"exchange": {"actors": ["backend"]}});
    world.change("/v1/services/invoicing", actors).await;
    let key = world.key().await;
    let backend = json!({"consumer": "backend"});
    let backend = text(&world.issue(&["invoice:read"], backend).await, "/api_key");
    let good = world.token(&key, &[]).await;
    let (forged, again) = super::at_gateway::forged(&world, &home, &provider, &good).await;
    let swap = async |subject: &str, kind: &str, actor: Option<&str>| {
        let mut form = vec![
            ("grant_type", GRANT),
            ("audience", "invoicing"),
            ("subject_token", subject),
            ("subject_token_type", kind),
        ];
        if let Some(actor) = actor {
            form.extend([("actor_token", actor), ("actor_token_type", kind)]);
        }
        let client = world.server.client().with_key(&backend);
        client.post("/oauth/token").form(&form).send().await
    };
    let actor = world.token(&backend, &[]).await;
    for good in [&good, &again] {
        swap(good, JWT, None).await.expect(200);
        swap(good, ACCESS_TOKEN, Some(&actor)).await.expect(200);
    }
    for (name, token) in &forged {
        for answer in [
            swap(token, JWT, None).await,
            swap(token, ACCESS_TOKEN, None).await,
            swap(&good, JWT, Some(token)).await,
        ] {
            let is_refused = error(&answer) == "invalid_request"
                || (error(&answer) == "invalid_target" && name.starts_with("aud"));
            assert!(answer.status == 400 && is_refused, "{name}: {answer}");
        }
    }
    swap(&good, JWT, None).await.expect(200);
    assert_eq!(provider.asked("/trap"), 0, "no token sent us anywhere");
}
