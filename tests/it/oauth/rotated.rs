//! Signing keys are rotated, by command and on schedule, while tokens are issued and presented: nobody who
//! does what the standards say is refused. And what is remembered of a token is never more than that its
//! signature was good.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use keystead::time::{Span, Timestamp};
use tokio::sync::RwLock;

use super::*;
use crate::support::both;

both!(
    no_good_token_is_refused_while_signing_keys_are_rotated,
    a_token_whose_signature_was_verified_is_judged_anew_each_time,
);

const INACTIVE: &str = r#"{"active":false}"#;

/// So far the clock moves at once: less than verifiers keep the key set.
const STEP: Span = Span::minutes(2);

/// A resource server with a stock library: it keeps the key set for as long as it may, finds a key by its
/// `kid`, and never asks again for one that it does not know. Each must be published long enough before.
struct Verifier {
    set: Value,
    until: Timestamp,
}

impl Verifier {
    async fn set(&mut self, world: &World) -> Value {
        let now = world.server.clock.now();
        if now >= self.until {
            let answer = published(&world.server).await;
            let kept = answer.headers["cache-control"].to_str().expect("a text");
            let seconds = kept.strip_prefix("public, max-age=").expect("how long");
            self.until = now.plus(Span::seconds(seconds.parse().expect("seconds")));
            self.set = answer.expect(200);
        }
        self.set.clone()
    }
}

/// A machine with too much to do says so, which refuses nothing: asked again.
async fn patiently(ask: impl AsyncFn() -> Answer) -> Answer {
    let mut answer = ask().await;
    for _ in 0..100 {
        if answer.status != 503 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        answer = ask().await;
    }
    answer
}

async fn published(server: &Server) -> Answer {
    server.client().get("/.well-known/jwks.json").send().await
}

async fn kids(server: &Server) -> Vec<String> {
    let set = published(server).await.expect(200);
    let keys = set["keys"].as_array().expect("a list").iter();
    keys.map(|key| text(key, "/kid")).collect()
}

/// What goes on while keys are rotated.
struct Load<'a> {
    world: &'a World,
    /// One of the clients, the service, and its gateway.
    key: String,
    asker: String,
    gateway: String,
    verifier: tokio::sync::Mutex<Verifier>,
    /// The clock stands still while a token is on its way.
    clock: RwLock<()>,
    live: RefCell<Vec<(String, i64)>>,
    /// The end of the last token of each key.
    ends: RefCell<BTreeMap<String, i64>>,
    rounds: Cell<usize>,
    is_over: Cell<bool>,
}

impl Load<'_> {
    fn now(&self) -> i64 {
        self.world.server.clock.now().unix_seconds()
    }

    /// Issues a token, and presents one that is still good everywhere.
    async fn round(&self) {
        let _still = self.clock.read().await;
        let world = self.world;
        let issued = patiently(async || world.ask(&self.key, &[]).await).await;
        let issued = text(&issued.expect(200), "/access_token");
        let (kid, end) = (
            text(&part(&issued, 0), "/kid"),
            part(&issued, 1)["exp"].as_i64().expect("an end"),
        );
        let last = self.ends.borrow().get(&kid).copied().unwrap_or_default();
        self.ends.borrow_mut().insert(kid, last.max(end));
        let number = self.rounds.get();
        let token = {
            let mut live = self.live.borrow_mut();
            live.push((issued, end));
            // What ends while it is on its way says nothing.
            live.retain(|(_, end)| *end > self.now() + 5);
            let index = if number.is_multiple_of(3) {
                0
            } else {
                number * 7 % live.len()
            };
            live[index].0.clone()
        };
        let set = self.verifier.lock().await.set(world).await;
        verify(&token, &set, &world.issuer(), "invoicing");
        let told = patiently(async || world.introspect(&self.asker, &token, &[]).await).await;
        assert_eq!(told.body["active"], true, "{number}: {told}");
        let bearer = format!("Bearer {token}");
        let header = [("authorization", &*bearer)];
        let let_in = patiently(async || world.authorize(&self.gateway, "", &header).await).await;
        assert_eq!(let_in.status, 200, "{number}: {let_in}");
        self.rounds.set(number + 1);
    }

    async fn run(&self) {
        while !self.is_over.get() {
            self.round().await;
        }
    }

    /// The clock goes on, and some tokens go by. No key leaves the set before its last token has ended.
    async fn step(&self) -> Vec<String> {
        {
            let _moving = self.clock.write().await;
            self.world.server.clock.advance(STEP);
        }
        self.some_rounds().await;
        let _still = self.clock.write().await;
        let set = kids(&self.world.server).await;
        for (kid, end) in &*self.ends.borrow() {
            let is_over = *end <= self.now();
            assert!(
                is_over || set.contains(kid),
                "{kid} left {end} - {}",
                self.now()
            );
        }
        set
    }

    async fn some_rounds(&self) {
        let until = self.rounds.get() + 6;
        while self.rounds.get() < until {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Steps until a key has left the set: soon after its last token.
    async fn until_gone(&self, kid: &str) {
        for _ in 0..20 {
            if !self.step().await.iter().any(|one| one == kid) {
                let late = self.now() - self.ends.borrow()[kid];
                // A minute for clocks that differ, and the steps of this one.
                let late_max = 60 + 3 * STEP.millis() / 1000;
                assert!((0..=late_max).contains(&late), "{late}");
                return;
            }
        }
        panic!("{kid} is there still");
    }

    fn signs(&self, kid: &str) -> bool {
        self.ends.borrow().contains_key(kid)
    }
}

async fn no_good_token_is_refused_while_signing_keys_are_rotated(home: Home) {
    let world = World::with(&home, &[("OAUTH__SIGNING_ROTATION", "1h")]).await;
    let longest = json!({"tokens": {"ttl": "15m", "accepts": ["jwt"]}});
    world.change("/v1/services/invoicing", longest).await;
    let load = Load {
        key: world.key().await,
        asker: world.asker(&["introspect:invoicing"]).await,
        gateway: world.asker(&["verify"]).await,
        verifier: tokio::sync::Mutex::new(Verifier {
            set: Value::Null,
            until: Timestamp::from_millis(0),
        }),
        clock: RwLock::new(()),
        live: RefCell::default(),
        ends: RefCell::default(),
        rounds: Cell::new(0),
        is_over: Cell::new(false),
        world: &world,
    };
    let rotate = async {
        load.some_rounds().await;
        let first = kids(&world.server).await[0].clone();
        // By command, while this node and the command have the same time.
        let mut command = home.keystead(&["signing-key", "rotate"]);
        let output = tokio::task::spawn_blocking(move || command.output());
        let output = output.await.unwrap().unwrap();
        assert!(output.status.success(), "{output:?}");
        until(Duration::from_secs(5), "it is published", async || {
            kids(&world.server).await.len() == 2
        })
        .await;
        let second = kids(&world.server).await[0].clone();
        load.some_rounds().await;
        assert!(!load.signs(&second), "it was not known long enough");
        load.until_gone(&first).await;
        assert!(load.signs(&second));

        // And on schedule.
        let mut set = vec![second.clone()];
        for _ in 0..60 {
            world.server.app.tend_signing_keys().await.unwrap();
            set = load.step().await;
            if set.len() == 2 {
                break;
            }
        }
        let third = set[0].clone();
        assert_eq!(set[1], second, "{set:?}");
        for _ in 0..4 {
            assert!(!load.signs(&third), "it was not known long enough");
            load.step().await;
        }
        load.until_gone(&second).await;
        assert!(load.signs(&third));
        world.server.app.tend_signing_keys().await.unwrap();
        load.some_rounds().await;
        load.is_over.set(true);
    };
    tokio::join!(load.run(), load.run(), load.run(), rotate);
    assert!(load.rounds.get() > 100, "{}", load.rounds.get());
}

async fn a_token_whose_signature_was_verified_is_judged_anew_each_time(home: Home) {
    let world = World::new(&home).await;
    let asker = world.asker(&["introspect:invoicing"]).await;
    let gateway = world.accepting_tokens(json!(["key", "jwt"])).await;
    let issued = world.issue(&["invoice:read"], json!({})).await;
    let (id, key) = (text(&issued, "/key/id"), text(&issued, "/api_key"));
    let remembered = || world.server.app.oauth.remembered();
    let is_active = async |token: &str| {
        let told = world.introspect(&asker, token, &[]).await;
        let bearer = format!("Bearer {token}");
        let let_in = world
            .authorize(&gateway, "", &[("authorization", &bearer)])
            .await;
        assert_eq!(
            told.text != INACTIVE,
            let_in.status == 200,
            "{told} {let_in}"
        );
        told.text != INACTIVE
    };
    let act = async |action: &str| {
        let path = format!("/v1/keys/{id}/{action}");
        world.owner.post(&path).send().await.expect(200);
    };
    let before = remembered();
    let token = world.token(&key, &[]).await;
    assert!(is_active(&token).await);
    assert_eq!(remembered(), before + 1);

    // One with another character is another one, and none that was refused is remembered.
    for index in (0..token.len()).step_by(7) {
        let other = if &token[index..=index] == "A" {
            "B"
        } else {
            "A"
        };
        let mut changed = token.clone();
        changed.replace_range(index..=index, other);
        let told = world.introspect(&asker, &changed, &[]).await;
        assert_eq!(told.text, INACTIVE, "{index}");
    }
    assert_eq!(remembered(), before + 1);
    assert!(is_active(&token).await);

    // What it was made from.
    act("disable").await;
    assert!(!is_active(&token).await);
    act("enable").await;
    assert!(is_active(&token).await);
    // The service that it is for.
    let accepts = json!({"tokens": {"accepts": ["key"]}});
    world.change("/v1/services/invoicing", accepts).await;
    let bearer = format!("Bearer {token}");
    let answer = world
        .authorize(&gateway, "", &[("authorization", &bearer)])
        .await;
    assert_eq!(answer.status, 401, "{answer}");
    world.accepting_tokens(json!(["key", "jwt"])).await;
    assert!(is_active(&token).await);
    // By itself.
    let second = world.token(&key, &[]).await;
    assert!(is_active(&second).await);
    let end = world.server.client().with_key(&key).post("/oauth/revoke");
    end.form(&[("token", &*second)]).send().await.expect(200);
    assert!(!is_active(&second).await && is_active(&token).await);

    // The key that it was signed with.
    let phantom = async || {
        let asked = world.asks(&asker, &key, &[]);
        let told = asked.header("accept", "application/jwt").send().await;
        assert_eq!(told.status, 200, "{told}");
        told.text
    };
    let given_out = phantom().await;
    assert_eq!(phantom().await, given_out);
    let output = home
        .keystead(&["signing-key", "rotate", "--compromised"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    until(Duration::from_secs(5), "its key is given up", async || {
        world.introspect(&asker, &token, &[]).await.text == INACTIVE
    })
    .await;
    let third = world.token(&key, &[]).await;
    assert!(is_active(&third).await && !is_active(&token).await);
    let next = phantom().await;
    assert_ne!(part(&next, 0)["kid"], part(&given_out, 0)["kid"]);

    // Its end; then it is forgotten.
    world.server.clock.advance(Span::minutes(5));
    assert!(!is_active(&third).await);
    world.server.app.oauth.forget_ended();
    assert_eq!(remembered(), 0);
    assert!(!is_active(&third).await);
    assert_eq!(remembered(), 0);
}
