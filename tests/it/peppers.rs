//! The life of a pepper on both databases: first, next, current, old, lost, gone.

use std::sync::Arc;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use futures_util::future::join_all;
use keystead::audit::{Actor, Attribution, Audit, Chains, Change, TenantRef};
use keystead::clock::Clock;
use keystead::db::schema::{api_key, audit_event, change, consumer, secret};
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::error::{Conflict, Error};
use keystead::id::{ConsumerId, KeyId, SecretId};
use keystead::keys::fingerprint::Fingerprint;
use keystead::keys::pepper::store::{self, Lost, PepperProgress};
use keystead::keys::pepper::{PepperFault, PepperState, PepperVersion, Peppers, verify_checks};
use keystead::keys::secret::{ApiKey, LookupId};
use keystead::master::{MasterKey, MasterKeys};
use keystead::tenants::Tenants;
use keystead::text::{Environment, Prefix};
use keystead::time::Span;

use crate::support::{Backend, Home, both, run};

both!(
    nodes_that_start_together_make_one_first_version,
    a_wrong_master_key_is_noticed_at_start,
    a_rotation_moves_every_secret_and_loses_none,
    of_several_nodes_one_promotes_and_one_rewrites,
    a_rotation_waits_for_the_one_before,
    a_change_of_the_master_key_is_a_rotation,
    a_lost_master_key_is_given_up_deliberately,
    an_old_version_may_be_given_up_once_all_is_provable,
    progress_tells_who_still_carries_what,
);

/// One process: its master keys, and what it knows of the peppers.
struct Node {
    db: Db,
    clock: Clock,
    audit: Audit,
    peppers: Arc<Peppers>,
    at: Attribution,
}

fn masters(bytes: &[u8]) -> MasterKeys {
    let mut keys = bytes.iter().map(|byte| MasterKey::new([*byte; 32]));
    MasterKeys {
        first: keys.next().unwrap(),
        others: keys.collect(),
    }
}

impl Node {
    /// The first byte's master key seals, the others only open.
    async fn new(home: &Home, clock: &Clock, bytes: &[u8]) -> Self {
        let (db, master) = (home.db(), masters(bytes));
        let audit = Audit::new(db.clone(), clock.clone(), Entropy::System, &master);
        let tenants = Tenants::new(db.clone(), audit.clone());
        let tenant: TenantRef = tenants
            .ensure_default(clock, &Entropy::System)
            .await
            .unwrap()
            .to_ref();
        Self {
            db,
            clock: clock.clone(),
            audit,
            peppers: Arc::new(Peppers::new(master)),
            at: Attribution {
                tenant,
                actor: Actor::Cli {
                    user: "root".to_owned(),
                    host: "test".to_owned(),
                },
                via: None,
                home: None,
                reason: None,
                request_id: None,
                ip: None,
            },
        }
    }

    /// A node in service.
    async fn start(home: &Home, clock: &Clock, bytes: &[u8]) -> Self {
        let node = Self::new(home, clock, bytes).await;
        node.ensure_first().await.unwrap();
        assert_eq!(
            verify_checks(&node.rows().await, node.peppers.master()),
            Ok(())
        );
        node.reload().await;
        node
    }

    async fn ensure_first(&self) -> db::Result<()> {
        let (master, now) = (self.peppers.master().clone(), self.clock.now());
        self.db
            .write(async move |conn: &mut Conn| store::ensure_first(conn, &master, now).await)
            .await
    }

    async fn rows(&self) -> Vec<PepperVersion> {
        self.db
            .read(async |conn: &mut Conn| store::load(conn).await)
            .await
            .unwrap()
    }

    async fn states(&self) -> Vec<(i32, PepperState)> {
        let rows = self.rows().await;
        rows.into_iter()
            .map(|row| (row.version, row.state))
            .collect()
    }

    async fn reload(&self) {
        let peppers = Arc::clone(&self.peppers);
        self.db
            .read(async move |conn: &mut Conn| peppers.reload(conn).await)
            .await
            .unwrap();
    }

    async fn rotate(&self) -> Result<PepperVersion, Error> {
        let master = self.peppers.master().clone();
        self.audit
            .change(self.at.clone(), async move |change: &mut Change| {
                store::rotate_begin(change, &master).await
            })
            .await
    }

    async fn promote(&self) -> Option<i32> {
        let now = self.clock.now();
        self.db
            .write(async move |conn: &mut Conn| store::promote_due(conn, now).await)
            .await
            .unwrap()
    }

    async fn retire(&self) -> Vec<i32> {
        let now = self.clock.now();
        self.db
            .write(async move |conn: &mut Conn| store::retire(conn, now).await)
            .await
            .unwrap()
    }

    async fn lost(&self) -> Lost {
        let master = self.peppers.master().clone();
        self.audit
            .change(self.at.clone(), async move |change: &mut Change| {
                store::lost(change, &master).await
            })
            .await
            .unwrap()
    }

    async fn give_up(&self, version: i32) -> Result<u64, Error> {
        self.audit
            .change(self.at.clone(), async move |change: &mut Change| {
                store::give_up_old(change, version).await
            })
            .await
    }

    async fn progress(&self) -> Vec<PepperProgress> {
        let now = self.clock.now();
        self.db
            .read(async move |conn: &mut Conn| store::progress(conn, now).await)
            .await
            .unwrap()
    }

    /// Issues a key as the service does, in one transaction.
    async fn issue(&self) -> Issued {
        let issued = Issued::new(&self.clock);
        let (row, peppers) = (issued.clone(), Arc::clone(&self.peppers));
        let (tenant, now) = (self.at.tenant.id.to_string(), self.clock.now());
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                let (version, print) = peppers.current(conn).await?.fingerprint(&row.key)?;
                insert(conn, &tenant, &row, version, &print, now.millis()).await
            })
            .await
            .unwrap();
        issued
    }

    /// Finds a secret as validation does: by its fingerprint under each version we can compute.
    async fn look_up(&self, key: &ApiKey) -> Option<(SecretId, i32)> {
        let prints: Vec<Fingerprint> = self
            .peppers
            .ring()
            .fingerprints(key)
            .into_iter()
            .map(|(_, print)| print)
            .collect();
        self.db
            .read(async move |conn: &mut Conn| -> db::Result<_> {
                let found: Option<(SecretId, Option<i32>)> = each!(conn, c => secret::table
                    .filter(secret::fingerprint.eq_any(&prints))
                    .select((secret::id, secret::pepper_version))
                    .first(c)
                    .await
                    .optional())?;
                Ok(found.map(|(id, version)| (id, version.unwrap())))
            })
            .await
            .unwrap()
    }

    async fn rewrite(&self, issued: &Issued, from: i32, to: i32) -> bool {
        let print = self.peppers.ring().fingerprint_under(to, &issued.key);
        let (print, secret) = (print.unwrap(), issued.secret.clone());
        self.db
            .write(async move |conn: &mut Conn| {
                store::rewrite_fingerprint(conn, &secret, Some(from), to, &print).await
            })
            .await
            .unwrap()
    }

    /// The versions that the change feed told of, oldest first.
    async fn feed(&self) -> Vec<String> {
        self.db
            .read(async |conn: &mut Conn| -> db::Result<_> {
                Ok(each!(conn, c => change::table
                    .filter(change::kind.eq("pepper"))
                    .order(change::seq)
                    .select(change::id)
                    .load(c)
                    .await)?)
            })
            .await
            .unwrap()
    }

    async fn audited(&self) -> Vec<String> {
        self.db
            .read(async |conn: &mut Conn| -> db::Result<_> {
                Ok(each!(conn, c => audit_event::table
                    .filter(audit_event::target_kind.eq("pepper"))
                    .order(audit_event::seq)
                    .select(audit_event::action)
                    .load(c)
                    .await)?)
            })
            .await
            .unwrap()
    }

    /// Changes one column of one secret, as something else in the service would.
    async fn set_verifier(&self, issued: &Issued, verifier: Option<&'static str>) {
        let id = issued.secret.clone();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                each!(conn, c => diesel::update(secret::table.find(&id))
                    .set(secret::verifier.eq(verifier))
                    .execute(c)
                    .await)?;
                Ok(())
            })
            .await
            .unwrap();
    }
}

#[derive(Clone)]
struct Issued {
    key: ApiKey,
    secret: SecretId,
    lookup_id: LookupId,
}

impl Issued {
    fn new(clock: &Clock) -> Self {
        let lookup_id = LookupId::new(&Entropy::System);
        Self {
            key: ApiKey::generate(
                &Prefix::parse("ks").unwrap(),
                &Environment::parse("live").unwrap(),
                &lookup_id,
                &Entropy::System,
            ),
            secret: SecretId::new(clock, &Entropy::System),
            lookup_id,
        }
    }
}

/// The least that a secret hangs on: a consumer and a key of its own.
async fn insert(
    conn: &mut Conn,
    tenant: &str,
    row: &Issued,
    version: i32,
    print: &Fingerprint,
    now: i64,
) -> db::Result<()> {
    let clock = Clock::System;
    let of = ConsumerId::new(&clock, &Entropy::System);
    let key = KeyId::new(&clock, &Entropy::System);
    each!(conn, c => diesel::insert_into(consumer::table)
        .values((
            consumer::id.eq(&of),
            consumer::tenant_id.eq(tenant),
            consumer::slug.eq(of.as_str().replace('_', "-")),
            consumer::name.eq(""),
            consumer::rate_limits.eq("[]"),
            consumer::metadata.eq("{}"),
            consumer::version.eq(1_i64),
            consumer::created_at.eq(now),
            consumer::updated_at.eq(now),
        ))
        .execute(c)
        .await)?;
    each!(conn, c => diesel::insert_into(api_key::table)
        .values((
            api_key::id.eq(&key),
            api_key::tenant_id.eq(tenant),
            api_key::consumer_id.eq(&of),
            api_key::lookup_id.eq(&row.lookup_id),
            api_key::prefix.eq("ks"),
            api_key::environment.eq("live"),
            api_key::name.eq(""),
            api_key::rate_limits.eq("[]"),
            api_key::metadata.eq("{}"),
            api_key::tags.eq("[]"),
            api_key::version.eq(1_i64),
            api_key::created_at.eq(now),
            api_key::created_by.eq("{}"),
            api_key::created_by_name.eq("system"),
            api_key::updated_at.eq(now),
        ))
        .execute(c)
        .await)?;
    each!(conn, c => diesel::insert_into(secret::table)
        .values((
            secret::id.eq(&row.secret),
            secret::key_id.eq(&key),
            secret::fingerprint.eq(print),
            secret::pepper_version.eq(version),
            secret::created_at.eq(now),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

async fn nodes_that_start_together_make_one_first_version(home: Home) {
    let clock = Clock::shifted();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(Node::new(&home, &clock, &[1]).await);
    }
    for done in join_all(nodes.iter().map(Node::ensure_first)).await {
        done.unwrap();
    }
    assert_eq!(nodes[0].states().await, [(1, PepperState::Current)]);
    // A node that joins with another master key does not get another first version.
    let other = Node::new(&home, &clock, &[2]).await;
    other.ensure_first().await.unwrap();
    assert_eq!(nodes[0].rows().await, other.rows().await);
}

async fn a_wrong_master_key_is_noticed_at_start(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let rows = node.rows().await;
    assert!(matches!(
        verify_checks(&rows, &masters(&[2])),
        Err(PepperFault::MasterMissing { version: 1, .. })
    ));
    assert_eq!(verify_checks(&rows, &masters(&[2, 1])), Ok(()));
}

async fn a_rotation_moves_every_secret_and_loses_none(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let lagging = Node::start(&home, &clock, &[1]).await;
    let before = node.issue().await;
    assert_eq!(
        node.look_up(&before.key).await,
        Some((before.secret.clone(), 1))
    );

    // Known, but not used.
    assert_eq!(node.rotate().await.unwrap().version, 2);
    node.reload().await;
    let between = node.issue().await;
    assert_eq!(node.look_up(&between.key).await.unwrap().1, 1);
    assert_eq!(node.promote().await, None);
    clock.advance(Span::seconds(59));
    assert_eq!(node.promote().await, None);

    // Current: also for a node that has not heard of it.
    clock.advance(Span::seconds(2));
    assert_eq!(node.promote().await, Some(2));
    let states = [(1, PepperState::Old), (2, PepperState::Current)];
    assert_eq!(node.states().await, states);
    assert!(!lagging.peppers.ring().computes(2));
    let after = lagging.issue().await;
    assert!(lagging.peppers.ring().computes(2));

    // Both find all three, and what is used moves forward, never back.
    node.reload().await;
    for node in [&node, &lagging] {
        for (issued, version) in [(&before, 1), (&between, 1), (&after, 2)] {
            assert_eq!(
                node.look_up(&issued.key).await,
                Some((issued.secret.clone(), version))
            );
        }
    }
    assert!(node.rewrite(&before, 1, 2).await);
    assert_eq!(
        node.look_up(&before.key).await,
        Some((before.secret.clone(), 2))
    );
    assert!(!node.rewrite(&before, 1, 2).await);
    assert!(!node.rewrite(&before, 2, 1).await);
    assert_eq!(node.look_up(&before.key).await.unwrap().1, 2);

    // The old version ends with its last secret, and not before things have settled.
    assert_eq!(node.retire().await, Vec::<i32>::new());
    assert!(node.rewrite(&between, 1, 2).await);
    assert_eq!(node.retire().await, Vec::<i32>::new());
    clock.advance(Span::seconds(60));
    assert_eq!(node.retire().await, [1]);
    assert_eq!(node.states().await, [(2, PepperState::Current)]);
    node.reload().await;
    for issued in [&before, &between, &after] {
        assert_eq!(node.look_up(&issued.key).await.unwrap().1, 2);
    }
    assert_eq!(node.feed().await, ["2", "2", "1"]);
    assert_eq!(node.audited().await, ["pepper.rotate"]);
}

async fn of_several_nodes_one_promotes_and_one_rewrites(home: Home) {
    let clock = Clock::shifted();
    let mut nodes = Vec::new();
    for _ in 0..5 {
        nodes.push(Node::start(&home, &clock, &[1]).await);
    }
    let issued = nodes[0].issue().await;
    nodes[0].rotate().await.unwrap();
    clock.advance(Span::seconds(61));
    let promoted = join_all(nodes.iter().map(Node::promote)).await;
    assert_eq!(promoted.iter().flatten().collect::<Vec<_>>(), [&2]);
    for node in &nodes {
        node.reload().await;
    }
    let rewritten = join_all(nodes.iter().map(|node| node.rewrite(&issued, 1, 2))).await;
    assert_eq!(rewritten.iter().filter(|done| **done).count(), 1);
    clock.advance(Span::seconds(60));
    let retired = join_all(nodes.iter().map(Node::retire)).await;
    assert_eq!(retired.concat(), [1]);
    assert_eq!(nodes[0].feed().await, ["2", "2", "1"]);
}

/// In the order that `keystead pepper lost` moves them in.
#[test]
fn who_promotes_has_nothing_before_the_older_version() {
    run(Backend::Postgres, async |home| {
        let clock = Clock::shifted();
        let node = Node::start(&home, &clock, &[1]).await;
        node.rotate().await.unwrap();
        clock.advance(Span::seconds(61));
        let session = home.session().await;
        session
            .run("BEGIN; SELECT 1 FROM pepper WHERE version = 1 FOR UPDATE")
            .await;
        let promoting = tokio::spawn(async move { node.promote().await });
        session.until_waited_for().await;
        session
            .run("SELECT 1 FROM pepper WHERE version = 2 FOR UPDATE NOWAIT; COMMIT")
            .await;
        assert_eq!(promoting.await.unwrap(), Some(2));
    });
}

async fn a_rotation_waits_for_the_one_before(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let first = node.issue().await;
    let in_progress = |result: Result<PepperVersion, Error>| {
        matches!(
            result,
            Err(Error::Conflict {
                conflict: Conflict::InProgress,
                ..
            })
        )
    };
    let both = join_all([node.rotate(), node.rotate()]).await;
    assert_eq!(both.into_iter().flatten().count(), 1);
    assert!(in_progress(node.rotate().await));
    clock.advance(Span::seconds(61));
    node.promote().await.unwrap();
    node.reload().await;
    let second = node.issue().await;
    node.rotate().await.unwrap();
    clock.advance(Span::seconds(61));
    node.promote().await.unwrap();
    // Versions 1, 2 and 3 are looked up by; a fourth could not be.
    assert!(in_progress(node.rotate().await));
    node.reload().await;
    assert!(node.rewrite(&first, 1, 3).await);
    clock.advance(Span::seconds(60));
    assert_eq!(node.retire().await, [1]);
    assert_eq!(node.rotate().await.unwrap().version, 4);
    assert_eq!(node.look_up(&second.key).await.unwrap().1, 2);
}

async fn a_change_of_the_master_key_is_a_rotation(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let issued = node.issue().await;
    // The same node, started again with a new key before the old one.
    let node = Node::start(&home, &clock, &[2, 1]).await;
    assert_eq!(node.look_up(&issued.key).await.unwrap().1, 1);
    node.rotate().await.unwrap();
    clock.advance(Span::seconds(61));
    node.promote().await.unwrap();
    node.reload().await;
    assert!(node.rewrite(&issued, 1, 2).await);
    let rows = node.rows().await;
    assert!(verify_checks(&rows, &masters(&[2])).is_err());
    clock.advance(Span::seconds(60));
    node.retire().await;
    // Now the old one may be taken away.
    let node = Node::start(&home, &clock, &[2]).await;
    assert_eq!(node.look_up(&issued.key).await.unwrap().1, 2);
    assert_eq!(node.lost().await.versions, Vec::<i32>::new());
}

async fn a_lost_master_key_is_given_up_deliberately(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let (proved, unproved) = (node.issue().await, node.issue().await);
    node.set_verifier(&proved, Some("$argon2id$..")).await;
    node.rotate().await.unwrap();

    let node = Node::new(&home, &clock, &[9]).await;
    assert!(verify_checks(&node.rows().await, node.peppers.master()).is_err());
    node.audit.reseal(&Chains::All, &node.at).await.unwrap();
    let expected = Lost {
        versions: vec![1, 2],
        current: 3,
        unprovable: 1,
    };
    assert_eq!(node.lost().await, expected);
    let rows = node.rows().await;
    assert_eq!(verify_checks(&rows, node.peppers.master()), Ok(()));
    node.reload().await;
    let ring = node.peppers.ring();
    assert!(ring.has_lost());
    assert_eq!(ring.fingerprints(&proved.key).len(), 1);
    assert_eq!(node.look_up(&proved.key).await, None);
    assert_eq!(node.promote().await, None, "the next version is lost too");

    // Proved by its verifier, a secret comes back under the new pepper; a new one is under it.
    assert!(node.rewrite(&proved, 1, 3).await);
    assert_eq!(node.look_up(&proved.key).await.unwrap().1, 3);
    let new = node.issue().await;
    assert_eq!(node.look_up(&new.key).await.unwrap().1, 3);

    // Done twice it does nothing, and says nothing.
    let lines = node.audited().await;
    assert_eq!(
        lines,
        [
            "pepper.rotate",
            "pepper.lost",
            "pepper.lost",
            "pepper.create"
        ]
    );
    let again = node.lost().await;
    assert_eq!((again.versions, again.current), (vec![], 3));
    assert_eq!(node.audited().await, lines);

    clock.advance(Span::seconds(60));
    assert_eq!(node.retire().await, [2]);
    assert!(node.rewrite(&unproved, 1, 3).await);
    assert_eq!(node.retire().await, [1]);
    node.reload().await;
    assert!(!node.peppers.ring().has_lost());
}

async fn an_old_version_may_be_given_up_once_all_is_provable(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let dormant = node.issue().await;
    node.rotate().await.unwrap();
    clock.advance(Span::seconds(61));
    node.promote().await.unwrap();
    node.reload().await;
    assert!(matches!(node.give_up(2).await, Err(Error::NotFound(_))));
    assert!(matches!(
        node.give_up(1).await,
        Err(Error::Conflict {
            conflict: Conflict::InProgress,
            ..
        })
    ));
    node.set_verifier(&dormant, Some("$argon2id$..")).await;
    assert_eq!(node.give_up(1).await.unwrap(), 1);
    let states = [(1, PepperState::Lost), (2, PepperState::Current)];
    assert_eq!(node.states().await, states);
    assert_eq!(node.audited().await, ["pepper.rotate", "pepper.retire"]);
    node.reload().await;
    assert!(node.peppers.ring().has_lost());
    assert!(node.rewrite(&dormant, 1, 2).await);
}

async fn progress_tells_who_still_carries_what(home: Home) {
    let clock = Clock::shifted();
    let node = Node::start(&home, &clock, &[1]).await;
    let (live, revoked, ended, of_revoked, of_expired) = (
        node.issue().await,
        node.issue().await,
        node.issue().await,
        node.issue().await,
        node.issue().await,
    );
    node.set_verifier(&live, Some("$argon2id$..")).await;
    let now = clock.now().millis();
    let ids = [&revoked, &ended].map(|issued| issued.secret.clone());
    let lookup_ids = [&of_revoked, &of_expired].map(|issued| issued.lookup_id.clone());
    node.db
        .write(async move |conn: &mut Conn| -> db::Result<()> {
            each!(conn, c => diesel::update(secret::table.find(&ids[0]))
                .set(secret::revoked_at.eq(now))
                .execute(c)
                .await)?;
            each!(conn, c => diesel::update(secret::table.find(&ids[1]))
                .set(secret::valid_until.eq(now))
                .execute(c)
                .await)?;
            each!(conn, c => diesel::update(api_key::table)
                .filter(api_key::lookup_id.eq(&lookup_ids[0]))
                .set(api_key::revoked_at.eq(now))
                .execute(c)
                .await)?;
            each!(conn, c => diesel::update(api_key::table)
                .filter(api_key::lookup_id.eq(&lookup_ids[1]))
                .set(api_key::expires_at.eq(now))
                .execute(c)
                .await)?;
            Ok(())
        })
        .await
        .unwrap();
    let unproved = node.issue().await;
    node.rotate().await.unwrap();
    let counts = |progress: Vec<PepperProgress>| {
        progress
            .into_iter()
            .map(|p| {
                (
                    p.version,
                    p.state,
                    p.secrets,
                    p.live,
                    p.live_without_verifier,
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(
        counts(node.progress().await),
        [(1, "current", 6, 2, 1), (2, "next", 0, 0, 0)]
    );
    clock.advance(Span::seconds(61));
    node.promote().await.unwrap();
    node.reload().await;
    assert!(node.rewrite(&unproved, 1, 2).await);
    assert_eq!(
        counts(node.progress().await),
        [(1, "old", 5, 1, 0), (2, "current", 1, 1, 1)]
    );
}
