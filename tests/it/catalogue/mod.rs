//! Tenants, services and consumers on both databases: what is kept, what it leaves behind.

mod lists;
mod names;
mod parents;
mod reach;
mod trail;

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use keystead::audit::{Actor, Attribution, Audit, TenantRef};
use keystead::clock::Clock;
use keystead::consumers::{Consumer, ConsumerFilter, Consumers};
use keystead::db::schema::{api_key, audit_event, audit_head, change_head, key_grant};
use keystead::db::{self, Conn, Db};
use keystead::each;
use keystead::entropy::Entropy;
use keystead::error::{Conflict, Error};
use keystead::id::{ConsumerId, KeyId, ServiceId};
use keystead::idempotency::Idempotent;
use keystead::master::{MasterKey, MasterKeys};
use keystead::page::PageRequest;
use keystead::rights::Rights;
use keystead::services::{Service, ServiceFilter, Services};
use keystead::tenants::{Sight, Tenant, TenantFilter, Tenants};
use keystead::text::ExternalId;
use keystead::time::{Span, Timestamp};
use serde::de::DeserializeOwned;
use serde_json::{Value, from_value, json};

use crate::support::Home;

struct House {
    db: Db,
    clock: Clock,
    tenants: Tenants,
    services: Services,
    consumers: Consumers,
    default: TenantRef,
}

impl House {
    async fn new(home: &Home) -> Self {
        let (clock, entropy) = (Clock::shifted(), Entropy::System);
        let db = home.db();
        let master = MasterKeys {
            first: MasterKey::new([7; 32]),
            others: Vec::new(),
        };
        let audit = Audit::new(db.clone(), clock.clone(), entropy.clone(), &master);
        let tenants = Tenants::new(db.clone(), audit.clone());
        let default = tenants.ensure_default(&clock, &entropy).await.unwrap();
        Self {
            services: Services::new(db.clone(), audit.clone()),
            consumers: Consumers::new(db.clone(), audit.clone()),
            default: default.to_ref(),
            db,
            clock,
            tenants,
        }
    }

    /// The default tenant's admin.
    fn at(&self) -> Attribution {
        at(&self.default)
    }

    async fn service(&self, body: Value) -> Result<Service, Error> {
        let made = self
            .services
            .create(self.at(), Rights::all(), None, parse(body));
        made.await.map(fresh)
    }

    async fn consumer(&self, body: Value) -> Result<Consumer, Error> {
        let made = self
            .consumers
            .create(self.at(), Rights::all(), None, parse(body));
        made.await.map(fresh)
    }

    async fn tenant(&self, slug: &str) -> Tenant {
        let body = parse(json!({"slug": slug}));
        let made = self.tenants.create(self.at(), None, body).await;
        fresh(made.unwrap())
    }

    /// All audit lines of the default tenant's chain, as (action, before, after).
    async fn lines(&self) -> Vec<(String, Value, Value)> {
        let tenant = self.default.id.clone();
        let records: Vec<String> = self
            .db
            .read(async move |conn: &mut Conn| -> db::Result<Vec<String>> {
                Ok(each!(conn, c => audit_event::table
                    .filter(audit_event::tenant_id.eq(&tenant))
                    .order(audit_event::seq)
                    .select(audit_event::record)
                    .load(c)
                    .await)?)
            })
            .await
            .unwrap();
        records
            .iter()
            .map(|record| {
                let record: Value = serde_json::from_str(record).unwrap();
                (
                    record["action"].as_str().unwrap().to_owned(),
                    record["before"].clone(),
                    record["after"].clone(),
                )
            })
            .collect()
    }

    async fn actions(&self) -> Vec<String> {
        self.lines().await.into_iter().map(|line| line.0).collect()
    }

    async fn change_seq(&self) -> i64 {
        self.db
            .read(async move |conn: &mut Conn| -> db::Result<i64> {
                Ok(each!(conn, c => change_head::table.select(change_head::seq).first(c).await)?)
            })
            .await
            .unwrap()
    }

    /// A key of `consumer` with a grant on each service, straight into the tables.
    async fn key(
        &self,
        consumer: &Consumer,
        services: &[&Service],
        end: Option<Timestamp>,
    ) -> KeyId {
        let id = KeyId::new(&self.clock, &Entropy::System);
        let (key, tenant) = (id.clone(), consumer.tenant_id.clone());
        let (consumer, now) = (consumer.id.clone(), self.clock.now());
        let services: Vec<ServiceId> = services.iter().map(|service| service.id.clone()).collect();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                each!(conn, c => {
                    diesel::insert_into(api_key::table)
                        .values((
                            api_key::id.eq(&key),
                            api_key::tenant_id.eq(&tenant),
                            api_key::consumer_id.eq(&consumer),
                            api_key::lookup_id.eq(key.as_str()),
                            api_key::prefix.eq("ks"),
                            api_key::environment.eq("live"),
                            api_key::name.eq(""),
                            api_key::expires_at.eq(end),
                            api_key::rate_limits.eq("[]"),
                            api_key::metadata.eq("{}"),
                            api_key::tags.eq("[]"),
                            api_key::version.eq(1),
                            api_key::created_at.eq(now),
                            api_key::created_by.eq("{}"),
                            api_key::created_by_name.eq("system"),
                            api_key::updated_at.eq(now),
                        ))
                        .execute(c)
                        .await?;
                    for (position, service) in (0..).zip(&services) {
                        diesel::insert_into(key_grant::table)
                            .values((
                                key_grant::key_id.eq(&key),
                                key_grant::service_id.eq(service),
                                key_grant::position.eq(position),
                                key_grant::scopes.eq("[]"),
                            ))
                            .execute(c)
                            .await?;
                    }
                });
                Ok(())
            })
            .await
            .unwrap();
        id
    }

    async fn revoke(&self, key: KeyId) {
        let now = self.clock.now();
        self.db
            .write(async move |conn: &mut Conn| -> db::Result<()> {
                each!(conn, c => diesel::update(api_key::table.find(&key))
                    .set(api_key::revoked_at.eq(now))
                    .execute(c)
                    .await)?;
                Ok(())
            })
            .await
            .unwrap();
    }
}

fn at(tenant: &TenantRef) -> Attribution {
    Attribution {
        tenant: tenant.clone(),
        actor: Actor::System,
        via: None,
        home: None,
        reason: None,
        request_id: None,
        ip: None,
    }
}

fn fresh<T>(made: Idempotent<T, T>) -> T {
    match made {
        Idempotent::Fresh(object) => object,
        Idempotent::Replayed(_) => panic!("nothing was claimed"),
    }
}

fn parse<T: DeserializeOwned>(body: Value) -> T {
    from_value(body).unwrap()
}

fn first_page() -> PageRequest {
    PageRequest {
        limit: 50,
        after: None,
    }
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(
    result: Result<T, Error>,
    wanted: Conflict,
) -> (Option<String>, Option<u64>) {
    match result {
        Err(Error::Conflict {
            conflict,
            existing_id,
            count,
            ..
        }) if conflict == wanted => (existing_id, count),
        other => panic!("{other:?}, not {wanted:?}"),
    }
}

#[track_caller]
fn assert_not_found<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::NotFound(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_forbidden<T: std::fmt::Debug>(result: Result<T, Error>, scope: &str) {
    match result {
        Err(Error::Forbidden(named)) => assert_eq!(named, scope),
        other => panic!("{other:?}"),
    }
}
