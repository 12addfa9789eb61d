//! Token exchange (RFC 8693): what becomes of what was presented, and that nothing ever widens. A number in
//! a comment names the line of the conformance list, or the threat.

use super::*;
use crate::callers::variable;
use crate::support::forge::IdentityProvider;
use crate::support::forge::Signers;
use crate::support::forge::forged::{A, HEADER, good_claims, issuers, with};
use crate::support::{Backend, both};

both!(
    what_was_presented_becomes_a_token_for_the_next_service,
    every_kind_of_subject_token_is_exchanged_for_what_it_is_worth,
    no_exchange_widens_scope_audience_life_or_tenant,
    an_exchange_is_charged_to_both_and_recorded_with_both_sides,
    who_acts_is_nested_and_bounded_and_only_the_last_one_counts,
    only_who_is_let_acts_for_another,
);

pub const GRANT: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
pub const API_KEY: &str = "urn:keystead:token-type:api_key";
pub const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
pub const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";

/// A shop whose backend asks invoicing on behalf of the shop's customers.
pub struct Hop {
    pub world: World,
    pub provider: IdentityProvider,
    /// What a create answers, of the customer's key and of the backend's.
    pub customer: Value,
    pub backend: Value,
}

impl Hop {
    pub async fn new(home: &Home) -> Self {
        Self::with(home, json!({}), json!({})).await
    }

    /// With more said about the key of the customer, and that of the backend.
    pub async fn with(home: &Home, customer: Value, backend: Value) -> Self {
        let provider = IdentityProvider::start().await;
        let issuers = variable(&issuers(&provider));
        let world = World::with(home, &[("ISSUERS", &issuers)]).await;
        let owner = &world.owner;
        owner.create("/v1/services", json!({"slug": "shop"})).await;
        for slug in ["backend", "eve"] {
            owner.create("/v1/consumers", json!({"slug": slug})).await;
        }
        let policy = json!({"exchange": {"from": ["shop", A], "actors": ["backend"]}});
        world.change("/v1/services/invoicing", policy).await;
        let grants = |of_shop: Value, of_invoicing: Value| {
            json!([
                {"service": "shop", "scopes": of_shop},
                {"service": "invoicing", "scopes": of_invoicing},
            ])
        };
        let mut of_customer = json!({
            "grants": grants(
                json!(["cart", "invoice:read", "report:read"]),
                json!(["invoice:read", "report:read"]),
            ),
        });
        let mut of_backend = json!({
            "consumer": "backend",
            "grants": grants(json!(["*"]), json!(["invoice:write"])),
        });
        for (all, more) in [(&mut of_customer, customer), (&mut of_backend, backend)] {
            for (name, value) in more.as_object().expect("an object") {
                all[name] = value.clone();
            }
        }
        let customer = world.issue(&[], of_customer).await;
        let backend = world.issue(&[], of_backend).await;
        Self {
            world,
            provider,
            customer,
            backend,
        }
    }

    pub fn customer_key(&self) -> String {
        text(&self.customer, "/api_key")
    }

    pub fn backend_key(&self) -> String {
        text(&self.backend, "/api_key")
    }

    /// The customer's token for the shop.
    pub async fn at_the_shop(&self) -> String {
        let audience = [("audience", "shop")];
        self.world.token(&self.customer_key(), &audience).await
    }

    /// An exchange with exactly these parameters beside the grant.
    pub async fn send(&self, key: &str, pairs: &[(&str, &str)]) -> Answer {
        let mut form = vec![("grant_type", GRANT)];
        form.extend_from_slice(pairs);
        let client = self.world.server.client().with_key(key);
        client.post("/oauth/token").form(&form).send().await
    }

    /// What the backend is answered for this subject, at invoicing.
    pub async fn swap(&self, subject: (&str, &str), pairs: &[(&str, &str)]) -> Answer {
        let mut form = vec![
            ("subject_token", subject.0),
            ("subject_token_type", subject.1),
        ];
        if !pairs.iter().any(|(name, _)| *name == "audience") {
            form.push(("audience", "invoicing"));
        }
        form.extend_from_slice(pairs);
        self.send(&self.backend_key(), &form).await
    }

    /// A token of the identity provider A.
    pub fn vouched(&self, changes: Value) -> String {
        let claims = with(good_claims(&self.world.server.clock), changes);
        Signers::shared().token("ES256", HEADER, &claims)
    }

    pub async fn asker(&self) -> String {
        self.world.asker(&["introspect:invoicing"]).await
    }
}

pub fn id(issued: &Value) -> Value {
    issued["key"]["consumer"]["id"].clone()
}

/// 43, 45, 46, 49, 69, 70.
async fn what_was_presented_becomes_a_token_for_the_next_service(home: Home) {
    let hop = Hop::new(&home).await;
    let subject = hop.at_the_shop().await;
    let answer = hop.swap((&subject, ACCESS_TOKEN), &[]).await;
    for (name, value) in [("cache-control", "no-store"), ("pragma", "no-cache")] {
        assert_eq!(answer.headers[name], value);
    }
    let told = answer.expect(200);
    let token = text(&told, "/access_token");
    let mut members: Vec<_> = told.as_object().unwrap().keys().cloned().collect();
    members.sort();
    assert_eq!(
        members,
        [
            "access_token",
            "expires_in",
            "issued_token_type",
            "scope",
            "token_type"
        ]
    );
    assert_eq!(told["issued_token_type"], ACCESS_TOKEN);
    assert_eq!(told["token_type"], "Bearer");
    let claims = hop.world.verified(&token, "invoicing").await;
    assert_eq!(claims["sub"], id(&hop.customer));
    assert_eq!(claims["client_id"], id(&hop.backend));
    assert_eq!(claims["act"], json!({"sub": id(&hop.backend)}));
    assert_eq!(claims["scope"], told["scope"]);
    // What the backend may write it may read; reports are not for it.
    assert_eq!(claims["scope"], "invoice:read");
    assert_eq!(
        claims["keystead"],
        json!({
            "tenant": "default", "environment": "live", "service": "invoicing",
            "key_id": hop.customer["key"]["id"],
            "secret_id": hop.customer["key"]["secrets"][0]["id"],
            "client_key_id": hop.backend["key"]["id"],
            "client_secret_id": hop.backend["key"]["secrets"][0]["id"],
        })
    );
    assert_ne!(claims["jti"], part(&subject, 1)["jti"]);
    // Introspection says the same, and so does the phantom of it.
    let asker = hop.asker().await;
    let told = hop.world.introspect(&asker, &token, &[]).await.expect(200);
    for name in [
        "sub",
        "client_id",
        "act",
        "scope",
        "aud",
        "jti",
        "exp",
        "keystead",
    ] {
        assert_eq!(told[name], claims[name], "{name}");
    }
    let request = hop.world.asks(&asker, &token, &[]);
    let phantom = request.header("accept", "application/jwt").send().await;
    let phantom = hop.world.verified(&phantom.text, "invoicing").await;
    for name in ["sub", "client_id", "act", "scope", "aud", "jti", "keystead"] {
        assert_eq!(phantom[name], claims[name], "{name}");
    }
    // The subject token stays what it was.
    let of_shop = hop.world.asker(&["introspect:shop"]).await;
    let told = hop.world.introspect(&of_shop, &subject, &[]).await;
    assert_eq!(told.expect(200)["active"], true);
    // By a resource in the place of the name, and never for two at once.
    let resources = json!({"tokens": {"resources": ["https://pay.example/"]}});
    hop.world.change("/v1/services/invoicing", resources).await;
    let resource = ("resource", "https://pay.example/");
    let form = [
        ("subject_token", &*subject),
        ("subject_token_type", ACCESS_TOKEN),
        resource,
    ];
    let told = hop.send(&hop.backend_key(), &form).await.expect(200);
    let claims = part(&text(&told, "/access_token"), 1);
    assert_eq!(claims["aud"], "https://pay.example/");
    for wrong in [
        &[("audience", "invoicing"), ("audience", "shop")][..],
        &[("resource", "https://pay.example/#f")],
        &[("resource", "pay")],
        &[("resource", "https://nowhere.example/")],
        &[("audience", "nowhere")],
        &[("audience", "keystead")],
    ] {
        let answer = hop.swap((&subject, ACCESS_TOKEN), wrong).await;
        assert_eq!(answer.expect(400)["error"], "invalid_target", "{wrong:?}");
    }
}

/// 44, 46, 48; G10.
async fn every_kind_of_subject_token_is_exchanged_for_what_it_is_worth(home: Home) {
    let hop = Hop::new(&home).await;
    let own = hop.at_the_shop().await;
    let key = hop.customer_key();
    let person = hop.vouched(json!({"scope": "openid invoice:read report:read"}));
    let nothing = hop.vouched(json!({}));
    let (customer, backend) = (id(&hop.customer), id(&hop.backend));
    for (subject, sub, scope, made_from) in [
        ((&*key, API_KEY), &customer, "invoice:read", &hop.customer),
        (
            (&*own, ACCESS_TOKEN),
            &customer,
            "invoice:read",
            &hop.customer,
        ),
        ((&*own, JWT), &customer, "invoice:read", &hop.customer),
        (
            (&*person, JWT),
            &json!("alice"),
            "invoice:read",
            &hop.backend,
        ),
        ((&*nothing, JWT), &json!("alice"), "", &hop.backend),
    ] {
        for (requested, issued) in [
            (None, ACCESS_TOKEN),
            (Some(ACCESS_TOKEN), ACCESS_TOKEN),
            (Some(JWT), JWT),
        ] {
            let pairs: Vec<_> = requested
                .map(|kind| ("requested_token_type", kind))
                .into_iter()
                .collect();
            let told = hop.swap(subject, &pairs).await.expect(200);
            assert_eq!(told["issued_token_type"], issued, "{subject:?}");
            let token = text(&told, "/access_token");
            let claims = hop.world.verified(&token, "invoicing").await;
            assert_eq!(claims["sub"], *sub, "{subject:?}");
            assert_eq!(words(&claims["scope"]), words(&json!(scope)), "{subject:?}");
            assert_eq!(claims["client_id"], backend, "{subject:?}");
            assert_eq!(claims["act"], json!({"sub": backend}), "{subject:?}");
            assert_eq!(claims["keystead"]["key_id"], made_from["key"]["id"]);
            let is_person = sub == "alice";
            // D21: whose alice it is.
            let sub_id = json!({"format": "iss_sub", "iss": A, "sub": "alice"});
            assert_eq!(claims.get("sub_id"), is_person.then_some(&sub_id));
            let asker = hop.asker().await;
            let told = hop.world.introspect(&asker, &token, &[]).await.expect(200);
            assert_eq!(told["active"], true, "{told}");
            assert_eq!(
                (&told["sub"], told.get("sub_id")),
                (sub, claims.get("sub_id"))
            );
        }
    }
    // Its own key and token a client exchanges for less, and nobody acts.
    let mine = hop.backend_key();
    let token = hop.world.token(&mine, &[("audience", "invoicing")]).await;
    for subject in [(&*mine, API_KEY), (&*token, ACCESS_TOKEN)] {
        let told = hop
            .swap(subject, &[("scope", "invoice:read")])
            .await
            .expect(200);
        let claims = part(&text(&told, "/access_token"), 1);
        assert_eq!(claims["scope"], "invoice:read");
        assert_eq!((claims.get("act"), &claims["sub"]), (None, &backend));
        assert_eq!(claims["keystead"].get("client_key_id"), None);
    }
    // Without a name the token is for the service of the subject token.
    let form = [("subject_token", &*token), ("subject_token_type", JWT)];
    let told = hop.send(&mine, &form).await.expect(200);
    assert_eq!(part(&text(&told, "/access_token"), 1)["aud"], "invoicing");
}

/// G3, G5, G9. Over what the subject token has, what its key holds now, what the client's key holds, and
/// what is asked for.
async fn no_exchange_widens_scope_audience_life_or_tenant(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let path = |issued: &Value| format!("/v1/keys/{}", text(issued, "/key/id"));
    let grants = |of_invoicing: &[&str]| {
        json!({"grants": [
            {"service": "shop", "scopes": ["*"]},
            {"service": "invoicing", "scopes": of_invoicing},
        ]})
    };
    // What each of them covers, by the catalogue.
    let covered = |scopes: &[&str]| -> HashSet<&str> {
        let of = |scope: &str| match scope {
            "invoice:write" | "invoice:*" => vec!["invoice:write", "invoice:read"],
            "invoice:read" => vec!["invoice:read"],
            "report:read" => vec!["report:read"],
            "*" => vec!["invoice:write", "invoice:read", "report:read"],
            _ => vec![],
        };
        scopes.iter().flat_map(|scope| of(scope)).collect()
    };
    let sets: [&[&str]; 4] = [
        &["invoice:read"],
        &["invoice:write"],
        &["report:read", "invoice:*"],
        &[],
    ];
    let mut given = 0;
    for of_key in sets {
        for of_client in sets {
            world.change(&path(&hop.customer), grants(of_key)).await;
            world.change(&path(&hop.backend), grants(of_client)).await;
            for of_token in sets {
                let scope = of_token.join(" ");
                let own = world
                    .token(
                        &hop.customer_key(),
                        &[("audience", "shop"), ("scope", &scope)],
                    )
                    .await;
                // A token without a scope asks for all that the key holds.
                let of_own: &[&str] = if of_token.is_empty() {
                    &["*"]
                } else {
                    of_token
                };
                let person = hop.vouched(json!({"scope": scope}));
                let key = hop.customer_key();
                for (subject, bound) in [
                    ((&*own, JWT), vec![of_own, of_key, of_client]),
                    ((&*person, JWT), vec![of_token, of_client]),
                    ((&*key, API_KEY), vec![of_key, of_client]),
                ] {
                    let is_person = subject.0 == person;
                    let mut most = covered(&["*"]);
                    for set in bound {
                        // A wildcard of another issuer means nothing.
                        let set: Vec<&str> = set
                            .iter()
                            .copied()
                            .filter(|scope| !(is_person && set == of_token && scope.ends_with('*')))
                            .collect();
                        most.retain(|scope| covered(&set).contains(scope));
                    }
                    let told = hop.swap(subject, &[]).await.expect(200);
                    let token = text(&told, "/access_token");
                    let scope = words(&part(&token, 1)["scope"]);
                    let scope: Vec<&str> = scope.iter().map(String::as_str).collect();
                    assert_eq!(
                        covered(&scope),
                        most,
                        "{of_key:?} {of_client:?} {subject:?}"
                    );
                    given += 1;
                    for asked in [
                        "invoice:read",
                        "invoice:write",
                        "report:read",
                        "invoice:*",
                        "*",
                    ] {
                        let answer = hop.swap(subject, &[("scope", asked)]).await;
                        let whole = covered(&[asked]);
                        if answer.status == 200 {
                            assert!(whole.is_subset(&most), "{asked} {subject:?}: {answer}");
                            assert_eq!(answer.body["scope"], asked);
                        } else {
                            assert_eq!(answer.expect(400)["error"], "invalid_scope", "{asked}");
                            let is_plain = !asked.ends_with('*');
                            assert!(!(is_plain && whole.is_subset(&most)), "{asked} {subject:?}");
                        }
                    }
                }
            }
        }
    }
    assert_eq!(given, 4 * 4 * 4 * 3);
    // Where one of the keys grants nothing nobody gets anything.
    let shop_alone = json!({"grants": [{"service": "shop", "scopes": ["*"]}]});
    let all = grants(&["*"]);
    let own = hop.at_the_shop().await;
    for (customer, backend) in [(&shop_alone, &all), (&all, &shop_alone)] {
        world.change(&path(&hop.customer), customer.clone()).await;
        world.change(&path(&hop.backend), backend.clone()).await;
        for subject in [(&*own, JWT), (&hop.customer_key(), API_KEY)] {
            let answer = hop.swap(subject, &[]).await;
            assert_eq!(answer.expect(400)["error"], "invalid_target", "{subject:?}");
        }
    }
}

/// G10: once each, and none of the subject's where the client has used up its own.
async fn an_exchange_is_charged_to_both_and_recorded_with_both_sides(home: Home) {
    let few =
        |limit: i64| json!({"rate_limits": [{"name": "few", "limit": limit, "period": "1h"}]});
    let hop = Hop::with(&home, few(5), few(3)).await;
    let key = hop.customer_key();
    let subject = hop.at_the_shop().await;
    let presented = part(&subject, 1)["jti"].clone();
    let mut tokens = Vec::new();
    for (subject, from) in [
        ((&*subject, JWT), Some(&presented)),
        ((&*key, API_KEY), None),
        ((&*subject, ACCESS_TOKEN), Some(&presented)),
    ] {
        let told = hop.swap(subject, &[]).await.expect(200);
        tokens.push((part(&text(&told, "/access_token"), 1)["jti"].clone(), from));
    }
    let answer = hop.swap((&subject, JWT), &[]).await;
    assert!(answer.headers.contains_key("retry-after"), "{answer}");
    assert_eq!(answer.expect(429)["error"], "rate_limited", "the client's");
    // The subject has one left.
    hop.world
        .ask(&key, &[("audience", "invoicing")])
        .await
        .expect(200);
    let answer = hop.world.ask(&key, &[("audience", "invoicing")]).await;
    assert_eq!(answer.expect(429)["error"], "rate_limited", "the subject's");

    let query = "SELECT outcome || ' ' || key_id || ' ' || caller || ' ' || coalesce(token_id, '-') \
                 || ' ' || coalesce(subject, '-') || ' ' || coalesce(actor, '-') \
                 || ' ' || coalesce(DETAIL -> 'context' ->> 'subject_token', '-') AS line \
                 FROM usage_event WHERE operation = 'exchange'";
    let detail = match home.backend {
        Backend::Sqlite => "detail",
        Backend::Postgres => "detail::json",
    };
    let query = query.replace("DETAIL", detail);
    let mut events = Vec::new();
    until(Duration::from_secs(20), "all uses are stored", async || {
        events = lines(&home, &query).await;
        events.len() == 3
    })
    .await;
    for (token, from) in tokens {
        let context = from.map_or("-".to_owned(), |from| from.as_str().unwrap().to_owned());
        let expected = format!(
            "valid {} {} {} {} {} {context}",
            text(&hop.customer, "/key/id"),
            text(&hop.backend, "/key/id"),
            token.as_str().unwrap(),
            id(&hop.customer).as_str().unwrap(),
            id(&hop.backend).as_str().unwrap(),
        );
        assert!(events.contains(&expected), "{expected}: {events:#?}");
    }
}

/// 49; G7.
async fn who_acts_is_nested_and_bounded_and_only_the_last_one_counts(home: Home) {
    let hop = Hop::new(&home).await;
    let backend = id(&hop.backend);
    let act = |length: usize| {
        (1..length).fold(
            json!({"sub": "a0", "exp": 1, "aud": "x"}),
            |before, n| json!({"sub": format!("a{n}"), "act": before, "jti": "y"}),
        )
    };
    for length in 1..=20 {
        let subject = hop.vouched(json!({"act": act(length), "scope": "invoice:read"}));
        let answer = hop.swap((&subject, JWT), &[]).await;
        if length > 4 {
            assert_eq!(answer.expect(400)["error"], "invalid_request", "{length}");
            continue;
        }
        let token = text(&answer.expect(200), "/access_token");
        assert!(token.len() <= 8 * 1024);
        let claims = part(&token, 1);
        // Whom another issuer names is nested, never promoted, and by its names alone.
        assert_eq!(claims["act"]["sub"], backend, "{length}");
        let mut inner = &claims["act"];
        for n in (0..length).rev() {
            inner = &inner["act"];
            let mut expected = json!({"sub": format!("a{n}"), "iss": A});
            if n > 0 {
                expected["act"] = inner["act"].clone();
            }
            assert_eq!(*inner, expected, "{length}");
        }
        let asker = hop.asker().await;
        let told = hop.world.introspect(&asker, &token, &[]).await.expect(200);
        assert_eq!(told["act"], claims["act"], "{length}");
    }
    for bad in [
        json!("alice"),
        json!([]),
        json!({}),
        json!({"sub": 1}),
        json!({"sub": "a", "act": null}),
        json!({"iss": A}),
    ] {
        let subject = hop.vouched(json!({ "act": bad }));
        let answer = hop.swap((&subject, JWT), &[]).await;
        assert_eq!(answer.expect(400)["error"], "invalid_request");
    }
}

/// 42, 50, E9; G6.
async fn only_who_is_let_acts_for_another(home: Home) {
    let hop = Hop::new(&home).await;
    let world = &hop.world;
    let (backend, ours) = (id(&hop.backend), world.issuer());
    let invoicing = json!([{"service": "invoicing", "scopes": ["invoice:read"]}]);
    let eve = json!({"consumer": "eve", "grants": invoicing});
    let eve = text(&world.issue(&[], eve).await, "/api_key");
    let subject = hop.at_the_shop().await;
    let of_customer = [
        ("subject_token", &*subject),
        ("subject_token_type", ACCESS_TOKEN),
        ("audience", "invoicing"),
    ];
    // E9: whom the service does not list acts for nobody, whatever the subject says.
    let answer = hop.send(&eve, &of_customer).await;
    assert_eq!(answer.expect(400)["error"], "unauthorized_client");
    let key = hop.customer_key();
    let by_key = [
        ("subject_token", &*key),
        ("subject_token_type", API_KEY),
        of_customer[2],
    ];
    let answer = hop.send(&eve, &by_key).await;
    assert_eq!(answer.expect(400)["error"], "unauthorized_client");

    // The subject of a token that another acts with does not take its place.
    let told = hop.swap((&subject, JWT), &[]).await.expect(200);
    let with_backend = text(&told, "/access_token");
    let taken = [
        ("subject_token", &*with_backend),
        ("subject_token_type", JWT),
    ];
    let answer = hop.send(&key, &taken).await;
    assert_eq!(answer.expect(400)["error"], "unauthorized_client");
    hop.send(&hop.backend_key(), &taken).await.expect(200);

    // may_act limits whom the service lets.
    let may_act = |claim: Value| hop.vouched(json!({"may_act": claim, "scope": "invoice:read"}));
    for (claim, is_let) in [
        (json!({"sub": backend}), true),
        (json!({"sub": backend, "iss": ours}), true),
        (json!({"sub": backend, "iss": A}), false),
        (json!({"sub": "backend"}), false),
        (json!({"sub": "eve"}), false),
        (json!({"sub": "alice"}), false),
        (json!({"sub": [backend]}), false),
        (json!({"client_id": backend}), false),
        (json!({"sub": backend, "client_id": "x"}), false),
        (json!([]), false),
        (json!("backend"), false),
    ] {
        let answer = hop.swap((&may_act(claim.clone()), JWT), &[]).await;
        if is_let {
            let token = text(&answer.expect(200), "/access_token");
            let claims = part(&token, 1);
            assert_eq!(
                claims["may_act"]["sub"], backend,
                "it limits the next one too"
            );
        } else {
            assert_eq!(answer.expect(400)["error"], "invalid_request", "{claim}");
        }
    }

    // An actor token: the client's own says nothing new, another's needs to be named by the subject.
    let mine = world
        .token(&hop.backend_key(), &[("audience", "shop")])
        .await;
    let mine_too = hop.backend_key();
    let helpdesk = hop.vouched(json!({"sub": "helpdesk"}));
    let of_eve = world.token(&eve, &[]).await;
    let with_actor = async |subject: &str, (actor, kind): (&str, &str)| {
        let pairs = [("actor_token", actor), ("actor_token_type", kind)];
        hop.swap((subject, JWT), &pairs).await
    };
    for own in [(&*mine, ACCESS_TOKEN), (&*mine, JWT), (&*mine_too, API_KEY)] {
        let told = with_actor(&subject, own).await.expect(200);
        let claims = part(&text(&told, "/access_token"), 1);
        assert_eq!(claims["act"], json!({"sub": backend}));
    }
    for other in [
        (&*helpdesk, JWT),
        (&*of_eve, JWT),
        (&*eve, API_KEY),
        (&*key, API_KEY),
    ] {
        let answer = with_actor(&subject, other).await;
        let error = answer.body["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(answer.status, 400, "{answer}");
        assert!(
            ["invalid_request", "unauthorized_client"].contains(&&*error),
            "{answer}"
        );
    }
    let named = may_act(json!({"sub": "helpdesk"}));
    let told = with_actor(&named, (&helpdesk, JWT)).await.expect(200);
    let claims = part(&text(&told, "/access_token"), 1);
    assert_eq!(claims["act"], json!({"sub": "helpdesk", "iss": A}));
    assert_eq!(
        (&claims["sub"], &claims["client_id"]),
        (&json!("alice"), &backend)
    );
    // And then not the client by itself, nor the subject for itself.
    let answer = hop.swap((&named, JWT), &[]).await;
    assert_eq!(answer.expect(400)["error"], "invalid_request");
    let alice = may_act(json!({"sub": "alice"}));
    let answer = with_actor(&alice, (&alice, JWT)).await;
    assert_eq!(answer.expect(400)["error"], "invalid_request");
}
