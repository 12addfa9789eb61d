//! A change and its lines are one: both are there or neither is, one change after the other.

use std::future::Future as _;
use std::task::{Context, Waker};

use futures_util::future::join_all;
use keystead::db::schema::{change_head, tenant};

use super::*;
use crate::support::{Backend, Home, both};

both!(
    changes_of_one_tenant_happen_one_after_the_other,
    changes_of_two_tenants_do_not_wait_for_each_other_for_ever,
    a_change_that_fails_leaves_nothing,
    a_change_without_an_audit_line_is_refused,
    a_change_whose_lines_cannot_be_written_is_undone,
    a_change_goes_on_when_nobody_waits,
    a_head_under_another_listed_master_key_is_sealed_under_the_first,
    many_lines_are_one_change,
    a_node_start_is_a_line,
);

/// Reads the tenant's version and writes it plus one, as a change that must not lose an update.
async fn raise_version(audit: &Audit, tenant: &TenantRef) -> db::Result<()> {
    let id = tenant.id.clone();
    audit
        .change(at(tenant), async move |change: &mut Change| {
            let version: i64 = each!(change.conn(), c => tenant::table
                .find(&id)
                .select(tenant::version)
                .first(c)
                .await)?;
            tokio::task::yield_now().await;
            each!(change.conn(), c => diesel::update(tenant::table.find(&id))
                .set(tenant::version.eq(version + 1))
                .execute(c)
                .await)?;
            change.record("tenant.update", ("tenant", id.as_str()), None, None);
            change.touch(Kind::Tenant, id.as_str());
            db::Result::Ok(())
        })
        .await
}

impl Trail {
    async fn version(&self, tenant: &TenantRef) -> i64 {
        let id = tenant.id.clone();
        self.db
            .read(async move |conn: &mut Conn| -> db::Result<i64> {
                Ok(each!(conn, c => tenant::table
                    .find(&id)
                    .select(tenant::version)
                    .first(c)
                    .await)?)
            })
            .await
            .unwrap()
    }

    async fn change_seq(&self) -> i64 {
        self.db
            .read(async move |conn: &mut Conn| -> db::Result<i64> {
                Ok(each!(conn, c => change_head::table.select(change_head::seq).first(c).await)?)
            })
            .await
            .unwrap()
    }
}

async fn changes_of_one_tenant_happen_one_after_the_other(home: Home) {
    let trail = Trail::new(&home).await;
    // Two nodes, each with its own connections.
    let second = Audit::new(
        home.db(),
        trail.clock.clone(),
        Entropy::System,
        &trail.master,
    );
    let changes = (0..10).map(|change| {
        let audit = if change % 2 == 0 {
            &trail.audit
        } else {
            &second
        };
        raise_version(audit, &trail.ours)
    });
    for done in join_all(changes).await {
        done.unwrap();
    }
    assert_eq!(trail.version(&trail.ours).await, 11);
    assert_eq!(trail.report().await.checked, 10);
    assert!(trail.report().await.valid);
}

async fn changes_of_two_tenants_do_not_wait_for_each_other_for_ever(home: Home) {
    let trail = Trail::new(&home).await;
    let changes = (0..20).map(|change| {
        let tenant = if change % 2 == 0 {
            &trail.ours
        } else {
            &trail.other
        };
        raise_version(&trail.audit, tenant)
    });
    for done in join_all(changes).await {
        done.unwrap();
    }
    assert_eq!(trail.change_seq().await, 20);
    for tenant in [&trail.ours, &trail.other] {
        assert_eq!(trail.version(tenant).await, 11);
        let report = trail.report_of(tenant).await;
        assert!(report.valid && report.checked == 10, "{report}");
    }
}

async fn a_change_that_fails_leaves_nothing(home: Home) {
    let trail = Trail::new(&home).await;
    let (id, before) = (trail.ours.id.clone(), trail.change_seq().await);
    let failed: db::Result<()> = trail
        .audit
        .change(at(&trail.ours), async move |change: &mut Change| {
            each!(change.conn(), c => diesel::update(tenant::table.find(&id))
                .set(tenant::version.eq(99))
                .execute(c)
                .await)?;
            change.record("tenant.update", ("tenant", id.as_str()), None, None);
            change.touch(Kind::Tenant, id.as_str());
            Err(db::Error::Busy)
        })
        .await;
    assert!(matches!(failed, Err(db::Error::Busy)), "{failed:?}");
    assert_eq!(trail.version(&trail.ours).await, 1);
    assert_eq!(trail.change_seq().await, before);
    assert!(trail.lines().await.is_empty());
}

async fn a_change_without_an_audit_line_is_refused(home: Home) {
    let trail = Trail::new(&home).await;
    let id = trail.ours.id.clone();
    let refused: db::Result<()> = trail
        .audit
        .change(at(&trail.ours), async move |change: &mut Change| {
            each!(change.conn(), c => diesel::update(tenant::table.find(&id))
                .set(tenant::version.eq(99))
                .execute(c)
                .await)?;
            change.touch(Kind::Tenant, id.as_str());
            Ok(())
        })
        .await;
    assert!(matches!(refused, Err(db::Error::Corrupt(_))), "{refused:?}");
    assert_eq!(trail.version(&trail.ours).await, 1);
    assert_eq!(trail.change_seq().await, 0);
}

/// As on a full disk: the state is unchanged, the rest goes on, the alarm is raised.
async fn a_change_whose_lines_cannot_be_written_is_undone(home: Home) {
    let trail = Trail::new(&home).await;
    let (full, free): (&[&str], &str) = match home.backend {
        Backend::Sqlite => (
            &[
                "CREATE TRIGGER full_disk BEFORE INSERT ON audit_event BEGIN \
               SELECT RAISE(ABORT, 'database or disk is full'); END",
            ],
            "DROP TRIGGER full_disk",
        ),
        Backend::Postgres => (
            &[
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS \
                 $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' \
                 USING ERRCODE = '53100'; END $$",
                "CREATE TRIGGER full_disk BEFORE INSERT ON audit_event \
                 FOR EACH ROW EXECUTE FUNCTION full_disk()",
            ],
            "DROP TRIGGER full_disk ON audit_event",
        ),
    };
    for statement in full {
        trail.sql(statement).await;
    }
    let refused = raise_version(&trail.audit, &trail.ours).await;
    assert!(
        matches!(refused, Err(db::Error::Unavailable(_))),
        "{refused:?}"
    );
    assert_eq!(trail.version(&trail.ours).await, 1);
    assert_eq!(trail.change_seq().await, 0);
    assert_eq!(trail.metrics.security_events.value("audit_not_written"), 1);
    trail.sql(free).await;
    raise_version(&trail.audit, &trail.ours).await.unwrap();
    assert!(trail.report().await.valid);
}

async fn a_change_goes_on_when_nobody_waits(home: Home) {
    let trail = Trail::new(&home).await;
    let mut change = Box::pin(raise_version(&trail.audit, &trail.ours));
    // Begun, and dropped at its first pause.
    let _pending = change
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    drop(change);
    for _ in 0..200 {
        if trail.version(&trail.ours).await == 2 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(trail.version(&trail.ours).await, 2);
    assert_eq!(trail.lines().await.len(), 1);
}

async fn a_head_under_another_listed_master_key_is_sealed_under_the_first(home: Home) {
    let old = Trail::of(&home, 2).await;
    let both = old.with_master(master(8, &[7]));
    assert!(both.report().await.valid);
    both.change(&both.ours, 1).await.unwrap();
    let new = old.with_master(master(8, &[]));
    assert!(new.report().await.valid);
    new.change(&new.ours, 1).await.unwrap();
    let refused = old.change(&old.ours, 1).await;
    assert!(
        matches!(refused, Err(db::Error::AuditBroken(_))),
        "{refused:?}"
    );
}

async fn many_lines_are_one_change(home: Home) {
    let trail = Trail::new(&home).await;
    trail.change(&trail.ours, 450).await.unwrap();
    assert_eq!(trail.change_seq().await, 1);
    let report = trail.report().await;
    assert!(report.valid && report.checked == 450, "{report}");
}

async fn a_node_start_is_a_line(home: Home) {
    let trail = Trail::new(&home).await;
    let start = keystead::audit::NodeStart {
        node: "node-1".to_owned(),
        version: "0.1.0".to_owned(),
        config_digest: "00ff".to_owned(),
        roles: json!([{"issuer": "https://idp.example", "role": "owner"}]),
    };
    trail
        .audit
        .record_node_start(at(&trail.ours), start)
        .await
        .unwrap();
    let line = trail.records().await.remove(0);
    assert_eq!(line["action"], "node.start");
    assert_eq!(line["after"]["config_digest"], "00ff");
    assert_eq!(line["after"]["roles"][0]["role"], "owner");
    assert_eq!(trail.change_seq().await, 0, "no decision depends on it");
}
