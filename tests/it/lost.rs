//! A database that is gone without a word, as when its host dies and another takes its place: connections that
//! were open stay so and are silent for ever, new ones work. Here each byte is still acknowledged by the relay's
//! kernel, so nobody but the node itself can find them to be dead.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use keystead::audit::{Actor, Attribution, Audit, Change, TenantRef};
use keystead::cache::Changes;
use keystead::cache::changes::Entity;
use keystead::clock::Clock;
use keystead::db::feed::Kind;
use keystead::db::{self, Conn, Db, Target, feed};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::id::TenantId;
use keystead::keys::pepper::Peppers;
use keystead::keys::pepper::store::ensure_first;
use keystead::master::{MasterKey, MasterKeys};
use keystead::text::Slug;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Backend, Client, Fault, Home, MASTER_KEY, Proxy, run, tables, until};

/// What a look has.
const LOOK_MAX: Duration = Duration::from_secs(1);

/// Of all that waits two seconds for the database: what reads is given up after twice as long, and a bit.
const GIVEN_UP: Duration = Duration::from_secs(6);

/// When all is as before.
const SOON: Duration = Duration::from_secs(10);

/// What somebody asks within the limit of a look, or of whatever else.
async fn head(conn: &mut Conn) -> db::Result<i64> {
    feed::head(conn).await
}

async fn asleep(conn: &mut Conn) -> db::Result<()> {
    use diesel_async::RunQueryDsl as _;

    each!(conn, c => diesel::sql_query("SELECT pg_sleep(0.5)").execute(c).await)?;
    Ok(())
}

async fn behind_proxy(home: &Home) -> (Proxy, Db) {
    let proxy = Proxy::before(home.database_address()).await;
    let target = Target::parse(&home.database_url_at(proxy.address)).unwrap();
    (proxy, Db::open(&target).unwrap())
}

/// Everything is answered, and at once.
async fn all_is_well(db: &Db) {
    let asked = async {
        db.look(LOOK_MAX, head).await?;
        db.load(LOOK_MAX, head).await?;
        db.read(head).await?;
        db.write(head).await?;
        db.snapshot(head).await?;
        db.long("a tenant", LOOK_MAX, head).await
    };
    timeout(2 * LOOK_MAX, asked).await.expect("soon").unwrap();
}

#[test]
fn one_look_in_vain_frees_all_connections_that_nobody_uses() {
    run(Backend::Postgres, async |home| {
        let (proxy, db) = behind_proxy(&home).await;
        let prepare = async |conn: &mut Conn| head(conn).await.map(drop);
        db.prepare_loads(SOON, prepare).await;
        db.prepare_reads(SOON, prepare).await;
        for _ in 0..2 {
            all_is_well(&db).await;
            proxy.lose_open();
            let looked = db.look(LOOK_MAX, head).await;
            assert!(matches!(looked, Err(db::Error::Busy)), "{looked:?}");
            until(2 * LOOK_MAX, "none is left", async || proxy.lost() == 0).await;
        }
        all_is_well(&db).await;
    });
}

#[test]
fn so_does_a_transaction_that_cannot_begin() {
    run(Backend::Postgres, async |home| {
        let (proxy, db) = behind_proxy(&home).await;
        db.prepare_reads(SOON, async |conn: &mut Conn| head(conn).await.map(drop))
            .await;
        for reads in [false, true] {
            all_is_well(&db).await;
            proxy.lose_open();
            let begun = async {
                if reads {
                    db.snapshot(head).await
                } else {
                    db.write_to_end(head).await
                }
            };
            let begun = timeout(GIVEN_UP, begun).await.expect("in time");
            assert!(matches!(begun, Err(db::Error::Busy)), "{begun:?}");
            until(LOOK_MAX, "none is left", async || proxy.lost() == 0).await;
        }
        all_is_well(&db).await;
    });
}

#[test]
fn what_reads_gives_its_connection_up_when_nobody_waits_any_more() {
    run(Backend::Postgres, async |home| {
        let (mut proxy, db) = behind_proxy(&home).await;
        // More than there are connections for it.
        let loads = (0..20).map(|_| db.load(LOOK_MAX, asleep));
        let reads = (0..20).map(|_| db.read(asleep));
        let lose = async {
            sleep(Duration::from_millis(250)).await;
            proxy.lose_open();
        };
        let began = Instant::now();
        let (_loads, _reads, ()) = tokio::join!(join_all(loads), join_all(reads), lose);
        until(GIVEN_UP, "none is left", async || proxy.lost() == 0).await;
        all_is_well(&db).await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());

        // While no new one works either, nothing piles up.
        proxy.set(Fault::Hang).await;
        proxy.lose_open();
        for _ in 0..10 {
            let looked = db.look(LOOK_MAX / 10, head).await;
            assert!(matches!(looked, Err(db::Error::Busy)), "{looked:?}");
        }
        // Those that hang are lost as well.
        proxy.lose_open();
        proxy.set(Fault::None).await;
        until(GIVEN_UP, "the database is back", async || {
            db.look(LOOK_MAX, head).await.is_ok()
        })
        .await;
        until(GIVEN_UP, "none is left", async || proxy.lost() == 0).await;
        all_is_well(&db).await;
    });
}

#[test]
fn a_change_is_not_given_up_once_it_has_begun() {
    run(Backend::Postgres, async |home| {
        let (proxy, db) = behind_proxy(&home).await;
        proxy.hold_answer("a change that takes long");
        let change = async |conn: &mut Conn| -> db::Result<()> {
            use diesel_async::RunQueryDsl as _;

            let statement = "SELECT set_config('keystead.test', 'a change that takes long', true)";
            each!(conn, c => diesel::sql_query(statement).execute(c).await)?;
            Ok(())
        };
        let made = {
            let db = db.clone();
            tokio::spawn(async move { db.write_to_end(change).await })
        };
        proxy.holds().await;
        let told = timeout(GIVEN_UP, db.write(head)).await.expect("in time");
        told.expect("there are other connections");
        sleep(GIVEN_UP).await;
        assert!(!made.is_finished(), "who waits to the end does");
        proxy.release();
        made.await.unwrap().unwrap();
    });
}

/// A tenant that a change can be made of.
async fn tenant(home: &Home, audit: &Audit) -> Attribution {
    let tenant = TenantRef {
        id: TenantId::new(&Clock::System, &Entropy::System),
        slug: Slug::parse("default").unwrap(),
    };
    let statement = format!(
        "INSERT INTO tenant (id, slug, name, metadata, version, created_at, updated_at) \
         VALUES ('{}', 'default', '', '{{}}', 1, 0, 0)",
        tenant.id
    );
    tables::execute_on(home.eyes(), &statement).await;
    let (audit, id) = (audit.clone(), tenant.id.clone());
    let begin = async move |conn: &mut Conn| audit.create_head(conn, &id).await;
    home.eyes().write(begin).await.unwrap();
    Attribution {
        tenant,
        actor: Actor::Key {
            key_id: "key_admin".to_owned(),
        },
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    }
}

#[test]
fn what_a_change_touched_is_asked_for_until_it_is_heard_whether_it_was_committed() {
    run(Backend::Postgres, async |home| {
        let (mut proxy, db) = behind_proxy(&home).await;
        let master = MasterKeys {
            first: MasterKey::parse(MASTER_KEY).unwrap(),
            others: Vec::new(),
        };
        let changes = Changes::new();
        let audit = Audit::new(db, Clock::System, Entropy::System, &master)
            .noted_in(changes.clone(), None)
            .to_end();
        let at = tenant(&home, &audit).await;
        let before = home.eyes().read(head).await.unwrap();
        proxy.hold_answer("COMMIT");
        let maker = audit.clone();
        let made = tokio::spawn(async move {
            let touch = async |change: &mut Change| -> db::Result<()> {
                change.record("key.revoke", ("key", "key_1"), None, None);
                change.touch(Kind::Key, "key_1");
                Ok(())
            };
            maker.change(at, touch).await
        });
        proxy.holds().await;
        assert_eq!(home.eyes().read(head).await.unwrap(), before + 1);
        // The answer is lost with its connection.
        proxy.set(Fault::Reset).await;
        let told = made.await.unwrap();
        assert!(told.is_err(), "{told:?}");
        let is_asked_for = || changes.is_being_committed(Entity::new(Kind::Key, "key_1"));
        assert!(is_asked_for());
        assert_eq!(changes.highest(), 0, "it may be another's number");
        sleep(LOOK_MAX * 2).await;
        assert!(is_asked_for());
        changes.set_position(before + 1);
        until(SOON, "it was heard of", async || !is_asked_for()).await;
    });
}

#[test]
fn a_reading_of_the_peppers_that_is_not_answered_stands_in_nobodys_way() {
    run(Backend::Postgres, async |home| {
        let master = MasterKey::parse(MASTER_KEY).unwrap();
        let masters = MasterKeys {
            first: master.clone(),
            others: Vec::new(),
        };
        let peppers = Arc::new(Peppers::new(masters.clone()));
        let now = Clock::System.now();
        home.eyes()
            .write(async move |conn: &mut Conn| ensure_first(conn, &masters, now).await)
            .await
            .unwrap();
        let (proxy, db) = behind_proxy(&home).await;
        let reload = |peppers: &Arc<Peppers>| {
            let peppers = Arc::clone(peppers);
            async move |conn: &mut Conn| peppers.reload(conn).await.map(drop)
        };
        proxy.hold_answer(&master.id());
        let inside_a_change = reload(&peppers);
        let held = tokio::spawn(async move { db.write_to_end(inside_a_change).await });
        proxy.holds().await;
        let other = home.eyes().read(reload(&peppers));
        timeout(SOON, other).await.expect("soon").unwrap();
        assert_eq!(peppers.ring().current(), Some(1));
        assert!(!held.is_finished());
        proxy.release();
        held.await.unwrap().unwrap();
    });
}

/// The outcome, or why there is none.
async fn code(client: &Client, key: &str) -> String {
    let body = json!({"api_key": key, "service": "invoicing"});
    let answer = client.post("/v1/verify").json(body).send().await;
    answer.code().to_owned()
}

#[test]
fn a_node_goes_on_with_the_database_that_took_the_place_of_one_that_is_gone() {
    run(Backend::Postgres, async |home| {
        let a = home.serve().await;
        let owner = a.owner();
        owner.create_world().await;
        let proxy = Proxy::before(home.database_address()).await;
        let url = home.database_url_at(proxy.address);
        let b = home.serve_with(&[("DATABASE__URL", &url)]).await;
        let (_, manager) = owner.issue("managers", "keystead").await;
        let owner_b = b.client().with_key(&manager);
        let (id, warm) = owner.issue("acme", "invoicing").await;
        until(SOON, "it is known", async || {
            code(&owner_b, &warm).await == "valid"
        })
        .await;
        let mut cold = Vec::new();
        for _ in 0..5 {
            cold.push(owner.issue("acme", "invoicing").await.1);
        }

        proxy.lose_open();
        let lost = Instant::now();
        let change = format!("/v1/keys/{id}/revoke");
        owner.post(&change).send().await.expect(200);
        until(SOON / 2, "the change is heard of", async || {
            code(&owner_b, &warm).await == "revoked"
        })
        .await;
        until(SOON / 2, "others are loaded", async || {
            let told = join_all(cold.iter().map(|key| code(&owner_b, key))).await;
            told.iter().all(|code| code == "valid")
        })
        .await;
        assert!(!b.app.reach.is_database_away());
        let ready = b.client().get("/health/ready").send().await.expect(200);
        assert_eq!(ready["modes"]["database"], "reachable", "{ready}");
        assert_eq!(ready["modes"]["changes"], "database", "{ready}");
        until(SOON / 2, "a change can be made", async || {
            let new = json!({"slug": "made-on-b"});
            let made = owner_b.post("/v1/consumers").json(new).send().await;
            made.status == 201 || made.status == 409
        })
        .await;
        // So are those to the ledger, where uses are written all the time.
        until(SOON, "none is left", async || proxy.lost() == 0).await;
        assert!(lost.elapsed() < 2 * SOON, "{:?}", lost.elapsed());
    });
}
