//! The audit trail on both databases: changes, proof, lists, refused attempts.

mod changes;
mod clocks;
mod exports;
mod lists;
mod noted;
mod offline;
mod refused;
mod reseal;
mod retention;
mod served;
mod signed;
mod size;
mod tamper;
mod turns;
mod types;

use std::sync::Arc;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use keystead::audit::chain::{self, HEAD_PURPOSE, Head};
use keystead::audit::{Actor, Attribution, Audit, Chains, Change, Report, TenantRef, verify};
use keystead::clock::Clock;
use keystead::db::feed::Kind;
use keystead::db::schema::{audit_event, audit_head};
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::id::TenantId;
use keystead::master::{MasterKey, MasterKeys};
use keystead::metrics::Metrics;
use keystead::text::Slug;
use serde_json::{Value, json};

use crate::support::Home;

/// Two tenants and what writes their trails.
struct Trail {
    db: Db,
    clock: Clock,
    master: MasterKeys,
    metrics: Arc<Metrics>,
    audit: Audit,
    ours: TenantRef,
    other: TenantRef,
}

fn master(byte: u8, others: &[u8]) -> MasterKeys {
    MasterKeys {
        first: MasterKey::new([byte; 32]),
        others: others
            .iter()
            .map(|byte| MasterKey::new([*byte; 32]))
            .collect(),
    }
}

impl Trail {
    async fn new(home: &Home) -> Self {
        Self::under(home, master(7, &[])).await
    }

    async fn under(home: &Home, master: MasterKeys) -> Self {
        let (clock, db) = (Clock::shifted(), home.db());
        let metrics = Arc::new(Metrics::new(&[]));
        let audit = Audit::new(db.clone(), clock.clone(), Entropy::System, &master)
            .counted(Arc::clone(&metrics));
        let tenant = |slug| TenantRef {
            id: TenantId::new(&clock, &Entropy::System),
            slug: Slug::parse(slug).unwrap(),
        };
        let this = Self {
            ours: tenant("default"),
            other: tenant("other"),
            db,
            clock,
            master,
            metrics,
            audit,
        };
        for tenant in [&this.ours, &this.other] {
            let (id, slug) = (tenant.id.as_str(), tenant.slug.as_str());
            this.sql(&format!(
                "INSERT INTO tenant (id, slug, name, metadata, version, created_at, updated_at) \
                 VALUES ('{id}', '{slug}', '', '{{}}', 1, 0, 0)"
            ))
            .await;
            let (audit, id) = (this.audit.clone(), tenant.id.clone());
            this.db
                .write(async move |conn: &mut Conn| audit.create_head(conn, &id).await)
                .await
                .unwrap();
        }
        this
    }

    /// A trail of `count` lines, two a change.
    async fn of(home: &Home, count: usize) -> Self {
        let this = Self::new(home).await;
        for pair in 0..count.div_ceil(2) {
            let lines = (count - 2 * pair).min(2);
            this.change(&this.ours, lines).await.unwrap();
        }
        this
    }

    /// The same database, by a node with other master keys.
    fn with_master(&self, master: MasterKeys) -> Self {
        let audit = Audit::new(
            self.db.clone(),
            self.clock.clone(),
            Entropy::System,
            &master,
        );
        Self {
            db: self.db.clone(),
            clock: self.clock.clone(),
            metrics: Arc::clone(&self.metrics),
            ours: self.ours.clone(),
            other: self.other.clone(),
            master,
            audit,
        }
    }

    async fn change(&self, tenant: &TenantRef, lines: usize) -> db::Result<()> {
        self.audit
            .change(at(tenant), async move |change: &mut Change| {
                for line in 0..lines {
                    let id = format!("key_{line}");
                    let (before, after) = (json!({"name": "a"}), json!({"name": "b"}));
                    change.record("key.update", ("key", &id), Some(before), Some(after));
                    change.touch(Kind::Key, &id);
                }
                db::Result::Ok(())
            })
            .await
    }

    async fn sql(&self, text: &str) {
        let text = text.to_owned();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<usize> {
                Ok(each!(conn, c => diesel::sql_query(text).execute(c).await)?)
            })
            .await
            .unwrap();
    }

    async fn report(&self) -> Report {
        self.report_of(&self.ours).await
    }

    async fn report_of(&self, tenant: &TenantRef) -> Report {
        let chains = Chains::Of(tenant.id.clone());
        let mut reports = verify::verify(&self.db, &self.master, &chains)
            .await
            .unwrap();
        assert_eq!(reports.len(), 1);
        reports.remove(0)
    }

    /// Number, record, previous hash and hash of all our lines.
    async fn lines(&self) -> Vec<(i64, String, Vec<u8>, Vec<u8>)> {
        let tenant = self.ours.id.clone();
        self.db
            .read(async move |conn: &mut Conn| -> db::Result<_> {
                Ok(each!(conn, c => audit_event::table
                    .filter(audit_event::tenant_id.eq(&tenant))
                    .order(audit_event::seq)
                    .select((
                        audit_event::seq,
                        audit_event::record,
                        audit_event::prev_hash,
                        audit_event::hash,
                    ))
                    .load(c)
                    .await)?)
            })
            .await
            .unwrap()
    }

    async fn records(&self) -> Vec<Value> {
        self.lines()
            .await
            .iter()
            .map(|(_, record, _, _)| serde_json::from_str(record).unwrap())
            .collect()
    }

    /// Writes the record and the hashes of one of our lines.
    async fn put(&self, seq: i64, record: &str, prev_hash: &[u8], hash: &[u8]) {
        let tenant = self.ours.id.clone();
        let (record, prev_hash, hash) = (record.to_owned(), prev_hash.to_vec(), hash.to_vec());
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<usize> {
                Ok(
                    each!(conn, c => diesel::update(audit_event::table.find((&tenant, seq)))
                    .set((
                        audit_event::record.eq(&record),
                        audit_event::prev_hash.eq(&prev_hash),
                        audit_event::hash.eq(&hash),
                    ))
                    .execute(c)
                    .await)?,
                )
            })
            .await
            .unwrap();
    }

    /// Makes all hashes from the line `seq` on anew, as one who lacks the master key can.
    async fn rehash_from(&self, seq: i64) -> Head {
        let mut head = Head::genesis();
        for (number, record, prev_hash, hash) in self.lines().await {
            if number < seq {
                head.hash = hash;
            } else {
                let prev_hash = if number == seq { prev_hash } else { head.hash };
                head.hash = chain::link(&prev_hash, &record).to_vec();
                self.put(number, &record, &prev_hash, &head.hash).await;
            }
            head.seq = number;
        }
        head
    }

    /// Writes our head under a MAC made with another master key.
    async fn forge_head(&self, head: Head) {
        let key = MasterKey::new([66; 32]).derive(HEAD_PURPOSE);
        let tenant = self.ours.id.clone();
        let mac = head.mac(&key, &tenant).to_vec();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<usize> {
                Ok(
                    each!(conn, c => diesel::update(audit_head::table.find(&tenant))
                    .set((
                        audit_head::seq.eq(head.seq),
                        audit_head::hash.eq(&head.hash),
                        audit_head::mac.eq(&mac),
                    ))
                    .execute(c)
                    .await)?,
                )
            })
            .await
            .unwrap();
    }
}

fn at(tenant: &TenantRef) -> Attribution {
    Attribution {
        tenant: tenant.clone(),
        actor: Actor::Jwt {
            issuer: "https://idp.example".to_owned(),
            subject: "alice".to_owned(),
        },
        via: Some(Actor::Key {
            key_id: "key_via".to_owned(),
        }),
        home: None,
        reason: Some("spring cleaning".to_owned()),
        request_id: Some("request-1".to_owned()),
        ip: Some("192.0.2.1".parse().unwrap()),
    }
}
