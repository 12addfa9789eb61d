//! What a validation reads, as snapshots.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::last_used::LastNoted;
use super::snapshot::{
    Common, Counted, GrantSnapshot, GrantedRights, KeySnapshot, Owner, Terms, counted_quota,
};
use super::told::{Alike, Told, ToldSecret};
use crate::db::schema::{api_key, change_head, key_grant, pepper, revoked_token, secret};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{ConsumerId, KeyId, SecretId, ServiceId, TenantId, TokenId};
use crate::keys::fingerprint::Fingerprint;
use crate::keys::pepper::PepperState;
use crate::keys::secret::LookupId;
use crate::limits::RateLimits;
use crate::metadata::Metadata;
use crate::ratelimit::CounterId;
use crate::text::{Environment, Name, Tag};
use crate::time::Timestamp;

#[derive(Clone, Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = api_key)]
struct KeyRow {
    id: KeyId,
    tenant_id: TenantId,
    consumer_id: ConsumerId,
    environment: Environment,
    name: Name,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    disabled_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    allowed_ips: Option<String>,
    rate_limits: String,
    quota: Option<String>,
    metadata: String,
    tags: String,
}

#[derive(Clone, Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = secret)]
struct SecretRow {
    id: SecretId,
    valid_until: Option<Timestamp>,
    superseded_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
}

#[derive(Clone, Queryable, Selectable, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[diesel(table_name = key_grant)]
struct GrantRow {
    service_id: ServiceId,
    scopes: String,
    rate_limits: Option<String>,
}

/// The rows of a key and of one of its secrets.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRows {
    key: KeyRow,
    secret: SecretRow,
    grants: Vec<GrantRow>,
}

impl KeyRows {
    pub fn secret_id(&self) -> &SecretId {
        &self.secret.id
    }
}

/// A secret whose proof is its verifier alone.
pub struct Unproven {
    pub secret: SecretId,
    /// The version its fingerprint is under, if it has one.
    pub pepper_version: Option<i32>,
    pub verifier: String,
}

/// A key found by its fingerprint, and how it was found.
#[derive(Clone)]
pub struct Hit {
    pub rows: KeyRows,
    /// The pepper version of the fingerprint that is stored.
    pub pepper_version: Option<i32>,
    /// Whether the secret still waits for its verifier.
    pub verifier_missing: bool,
}

fn parse<T: DeserializeOwned>(column: &str, text: &str) -> db::Result<T> {
    serde_json::from_str(text).map_err(|error| db::Error::Corrupt(format!("{column}: {error}")))
}

fn parse_some<T: DeserializeOwned>(column: &str, text: Option<&str>) -> db::Result<Option<T>> {
    text.map(|text| parse(column, text)).transpose()
}

/// A row of [`seen!`]: the counter of changes, the current pepper version, and with them a secret, its key and one
/// of its grants.
type SeenRow = (
    i64,
    Option<i32>,
    Option<SecretRow>,
    Option<Fingerprint>,
    Option<i32>,
    Option<String>,
    Option<KeyRow>,
    Option<GrantRow>,
);

/// What the database has, at one instant.
pub struct Seen<T> {
    /// The counter of changes.
    pub head: i64,
    /// The version that new secrets are under.
    pub current_pepper: Option<i32>,
    pub found: T,
}

impl<T> Seen<T> {
    fn map<U>(self, found: impl FnOnce(T) -> U) -> Seen<U> {
        Seen {
            head: self.head,
            current_pepper: self.current_pepper,
            found: found(self.found),
        }
    }
}

/// A secret with its fingerprint, if it has one.
type Printed = (Option<Fingerprint>, Hit);

/// The secrets of this condition with their keys and grants: by one statement, which sees the database at one
/// instant, so what it brings is as old as the counter says.
macro_rules! seen {
    ($conn:expr, $secret:expr) => {{
        // Apart from the joins: it has no index, and a planner that is told to use one everywhere weighs nothing
        // else where it cannot.
        let current_pepper = pepper::table
            .filter(pepper::state.eq(PepperState::Current.as_str()))
            .select(pepper::version)
            .single_value();
        let rows: Vec<SeenRow> = each!($conn, c => change_head::table
            .left_join(secret::table.on($secret))
            .left_join(api_key::table.on(api_key::id.nullable().eq(secret::key_id.nullable())))
            .left_join(
                key_grant::table.on(key_grant::key_id.nullable().eq(api_key::id.nullable())),
            )
            // Its only row, as whoever plans this may know.
            .filter(change_head::id.eq(1))
            .order(key_grant::position)
            .select((
                change_head::seq,
                current_pepper,
                Option::<SecretRow>::as_select(),
                secret::fingerprint.nullable(),
                secret::pepper_version.nullable(),
                secret::verifier.nullable(),
                Option::<KeyRow>::as_select(),
                Option::<GrantRow>::as_select(),
            ))
            .load(c)
            .await)?;
        seen_in(rows)
    }};
}

/// What [`seen!`] saw.
fn seen_in(rows: Vec<SeenRow>) -> db::Result<Seen<Vec<Printed>>> {
    let (mut seen, mut found) = (None, Vec::<Printed>::new());
    for (head, current_pepper, secret, print, pepper_version, verifier, key, grant) in rows {
        seen = Some((head, current_pepper));
        let (Some(secret), Some(key)) = (secret, key) else {
            continue;
        };
        let known = found
            .iter_mut()
            .find(|(_, hit)| hit.rows.secret.id == secret.id);
        if let Some((_, hit)) = known {
            hit.rows.grants.extend(grant);
            continue;
        }
        let hit = Hit {
            pepper_version,
            verifier_missing: verifier.is_none(),
            rows: KeyRows {
                key,
                secret,
                grants: grant.into_iter().collect(),
            },
        };
        found.push((print, hit));
    }
    let (head, current_pepper) =
        seen.ok_or_else(|| db::Error::Corrupt("there is no counter of changes".to_owned()))?;
    Ok(Seen {
        head,
        current_pepper,
        found,
    })
}

/// The only one there may be.
fn only(hits: impl IntoIterator<Item = Printed>) -> db::Result<Option<Hit>> {
    let mut hits = hits.into_iter();
    let hit = hits.next().map(|(_, hit)| hit);
    if let (Some(hit), Some(_)) = (&hit, hits.next()) {
        return Err(db::Error::Corrupt(format!(
            "the secrets {} and another are of one plaintext",
            hit.rows.secret.id
        )));
    }
    Ok(hit)
}

/// Finds the key of a plaintext by its fingerprints, with the counter of changes as it was then.
pub async fn by_fingerprint(
    conn: &mut Conn,
    fingerprints: Vec<Fingerprint>,
) -> db::Result<(i64, Option<Hit>)> {
    let seen = seen!(conn, secret::fingerprint.eq_any(fingerprints))?;
    Ok((seen.head, only(seen.found)?))
}

/// Finds the keys of several plaintexts, of which two may be the same, by their fingerprints: each in its place.
pub async fn by_fingerprints(
    conn: &mut Conn,
    plaintexts: &[Vec<Fingerprint>],
) -> db::Result<Seen<Vec<db::Result<Option<Hit>>>>> {
    let all: Vec<Fingerprint> = plaintexts.iter().flatten().copied().collect();
    let seen = seen!(conn, secret::fingerprint.eq_any(all))?;
    Ok(seen.map(|hits| told_apart(plaintexts, &hits)))
}

/// What was found of each plaintext.
fn told_apart(plaintexts: &[Vec<Fingerprint>], hits: &[Printed]) -> Vec<db::Result<Option<Hit>>> {
    let found = plaintexts.iter().map(|prints| {
        let is_its = |(print, _): &&Printed| print.is_some_and(|print| prints.contains(&print));
        only(hits.iter().filter(is_its).cloned())
    });
    found.collect()
}

/// Fingerprints of secrets that have not ended, by themselves, the newest first and at most `limit`: of those
/// that are newer than the first id and older than the second.
pub async fn fingerprints(
    conn: &mut Conn,
    (behind, before): (Option<SecretId>, Option<SecretId>),
    now: Timestamp,
    limit: i64,
) -> db::Result<Vec<(SecretId, Fingerprint)>> {
    let behind = behind.as_ref().map_or("", SecretId::as_str);
    Ok(each!(conn, c => {
        let mut query = secret::table
            .filter(secret::id.gt(behind))
            .filter(secret::fingerprint.is_not_null())
            .filter(secret::revoked_at.is_null())
            .filter(secret::valid_until.is_null().or(secret::valid_until.gt(now)))
            .into_boxed();
        if let Some(before) = &before {
            query = query.filter(secret::id.lt(before));
        }
        query
            .order(secret::id.desc())
            .limit(limit)
            .select((secret::id, secret::fingerprint.assume_not_null()))
            .load(c)
            .await
    })?)
}

/// Whether a token was revoked by itself.
pub async fn is_revoked(conn: &mut Conn, id: &TokenId) -> db::Result<bool> {
    Ok(each!(conn, c => diesel::select(diesel::dsl::exists(
            revoked_token::table.filter(revoked_token::id.eq(id)),
        ))
        .get_result(c)
        .await)?)
}

/// Finds the key of a secret that was proven otherwise, by its verifier or by a token, with the counter of
/// changes as it was then.
pub async fn by_secret(conn: &mut Conn, id: SecretId) -> db::Result<(i64, Option<KeyRows>)> {
    let seen = seen!(conn, secret::id.eq(id))?;
    Ok((seen.head, only(seen.found)?.map(|hit| hit.rows)))
}

/// The secrets of a lookup id whose fingerprint we cannot compute: under a lost pepper, or none.
pub async fn unproven(
    conn: &mut Conn,
    lookup_id: &LookupId,
    computable: &[i32],
) -> db::Result<Vec<Unproven>> {
    let rows: Vec<(SecretId, Option<i32>, Option<String>)> = each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(api_key::lookup_id.eq(lookup_id))
        .filter(
            secret::pepper_version.is_null().or(secret::pepper_version.ne_all(computable)),
        )
        .order(secret::created_at.desc())
        .limit(8)
        .select((secret::id, secret::pepper_version, secret::verifier))
        .load(c)
        .await)?;
    Ok(rows
        .into_iter()
        .filter_map(|(secret, pepper_version, verifier)| {
            verifier.map(|verifier| Unproven {
                secret,
                pepper_version,
                verifier,
            })
        })
        .collect())
}

/// The newest secret of a key.
pub async fn newest_secret(
    conn: &mut Conn,
    tenant: &TenantId,
    id: &KeyId,
) -> db::Result<Option<SecretId>> {
    Ok(each!(conn, c => secret::table
        .inner_join(api_key::table.on(api_key::id.eq(secret::key_id)))
        .filter(api_key::tenant_id.eq(tenant))
        .filter(api_key::id.eq(id))
        .order((secret::created_at.desc(), secret::id.desc()))
        .select(secret::id)
        .first(c)
        .await
        .optional())?)
}

impl KeySnapshot {
    /// # Errors
    /// [`db::Error::Corrupt`] for rows that were not written by us.
    pub fn new(rows: KeyRows, common: &Common) -> db::Result<Self> {
        let KeyRows {
            key,
            secret,
            grants,
        } = rows;
        let terms = Terms {
            grants: common.grants.one(
                grants
                    .into_iter()
                    .map(GrantSnapshot::try_from)
                    .collect::<db::Result<Vec<_>>>()?,
            ),
            limits: common.limits.one(Counted::all(
                "",
                "limit",
                parse("rate_limits", &key.rate_limits)?,
            )),
            quota: counted_quota("", parse_some("quota", key.quota.as_deref())?),
            allowed_ips: parse_some("allowed_ips", key.allowed_ips.as_deref())?,
        };
        let tags: Vec<Tag> = parse("tags", &key.tags)?;
        let no_json = |error| db::Error::Corrupt(format!("the key {}: {error}", key.id));
        let alike = Alike {
            environment: &key.environment,
            metadata: &Metadata::from_stored(&key.metadata)?,
            tags: &tags,
        };
        let alike = alike.members().map_err(no_json)?;
        let superseded = secret.superseded_at.is_some();
        let told = ToldSecret {
            id: &secret.id,
            valid_until: secret.valid_until,
            superseded,
        };
        let told = Told::new(&key.name, key.expires_at, &told).map_err(no_json)?;
        Ok(Self {
            counter: CounterId::new(key.id.as_str(), "key", ""),
            key_id: key.id,
            owner: common.owners.one(Owner {
                tenant_id: key.tenant_id,
                consumer_id: key.consumer_id,
                environment: key.environment,
                told: alike.into(),
            }),
            terms: common.terms.one(terms),
            not_before: key.not_before,
            expires_at: key.expires_at,
            disabled: key.disabled_at.is_some(),
            revoked: key.revoked_at.is_some(),
            secret_id: secret.id,
            secret_until: secret.valid_until,
            superseded,
            secret_revoked: secret.revoked_at.is_some(),
            told,
            last_noted: LastNoted::default(),
        })
    }
}

impl TryFrom<GrantRow> for GrantSnapshot {
    type Error = db::Error;

    fn try_from(row: GrantRow) -> db::Result<Self> {
        let limits: Option<RateLimits> = parse_some("rate_limits", row.rate_limits.as_deref())?;
        let service = row.service_id.as_str();
        Ok(Self {
            scopes: parse("scopes", &row.scopes)?,
            limits: Counted::all("", service, limits.unwrap_or_default()),
            defaults: CounterId::new("", "service", service),
            rights: GrantedRights::default(),
            service_id: row.service_id,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cache::Entry;
    use crate::clock::Clock;
    use crate::entropy::Entropy;

    /// So much one remembered key may take apart from what it shares with others, its place in the map and
    /// the text of its name: a size that allocators hand out.
    const BYTES_MAX: usize = 192;

    /// What makes keys of one kind.
    struct Kind {
        ids: Entropy,
        tenant: TenantId,
        consumer: ConsumerId,
        service: ServiceId,
        common: Common,
    }

    impl Kind {
        fn new() -> Self {
            let (clock, ids) = (Clock::System, Entropy::seeded(1));
            Self {
                tenant: TenantId::new(&clock, &ids),
                consumer: ConsumerId::new(&clock, &ids),
                service: ServiceId::new(&clock, &ids),
                common: Common::default(),
                ids,
            }
        }

        fn rows(&self) -> KeyRows {
            let clock = Clock::System;
            KeyRows {
                key: KeyRow {
                    id: KeyId::new(&clock, &self.ids),
                    tenant_id: self.tenant.clone(),
                    consumer_id: self.consumer.clone(),
                    environment: Environment::parse("live").unwrap(),
                    name: Name::parse("a worker of acme").unwrap(),
                    not_before: None,
                    expires_at: None,
                    disabled_at: None,
                    revoked_at: None,
                    allowed_ips: None,
                    rate_limits: r#"[{"name":"burst","limit":100,"period":"1m"}]"#.to_owned(),
                    quota: Some(r#"{"limit":1000,"period":"day"}"#.to_owned()),
                    metadata: "{}".to_owned(),
                    tags: "[]".to_owned(),
                },
                secret: SecretRow {
                    id: SecretId::new(&clock, &self.ids),
                    valid_until: None,
                    superseded_at: None,
                    revoked_at: None,
                },
                grants: vec![GrantRow {
                    service_id: self.service.clone(),
                    scopes: r#"["invoice:read","invoice:send"]"#.to_owned(),
                    rate_limits: None,
                }],
            }
        }

        fn key(&self, change: fn(&mut KeyRows)) -> KeySnapshot {
            let mut rows = self.rows();
            change(&mut rows);
            KeySnapshot::new(rows, &self.common).unwrap()
        }
    }

    #[test]
    fn what_was_looked_up_together_is_told_apart() {
        let kind = Kind::new();
        let print = |number| Fingerprint::from_bytes([number; 32]);
        let hit = |rows| Hit {
            rows,
            pepper_version: Some(1),
            verifier_missing: false,
        };
        let hits: Vec<Printed> = (1..=4)
            .map(|number| (Some(print(number)), hit(kind.rows())))
            .collect();
        let id_of = |at: usize| hits[at].1.rows.secret_id().clone();
        let plaintexts = [
            vec![print(1)],
            // Under two peppers, of which the former is still in use.
            vec![print(9), print(2)],
            // The same once more: a node learned of a new pepper while another request asked.
            vec![print(2), print(9)],
            vec![print(8)],
            vec![print(3), print(4)],
        ];
        let found: Vec<_> = told_apart(&plaintexts, &hits)
            .into_iter()
            .map(|hit| hit.map(|hit| hit.map(|hit| hit.rows.secret_id().clone())))
            .collect();
        let of = |at: usize| found[at].as_ref().unwrap().clone();
        assert_eq!([of(0), of(1), of(2)], [0, 1, 1].map(|at| Some(id_of(at))));
        assert_eq!(of(3), None);
        assert!(matches!(found[4], Err(db::Error::Corrupt(_))), "{found:?}");
    }

    #[test]
    fn what_keys_have_in_common_is_kept_once_and_counted_apart() {
        let kind = Kind::new();
        let (one, same) = (kind.key(|_| ()), kind.key(|_| ()));
        assert!(Arc::ptr_eq(&one.owner, &same.owner));
        assert!(Arc::ptr_eq(&one.terms, &same.terms));
        let counter = |key: &KeySnapshot| key.counter.paired(key.terms.limits[0].counter);
        assert_ne!(counter(&one), counter(&same));
        assert_eq!(one.terms.limits[0].limit.limit, 100);
    }

    #[test]
    fn what_differs_in_anything_is_not_shared() {
        let kind = Kind::new();
        let one = kind.key(|_| ());
        let changes: [fn(&mut KeyRows); 6] = [
            |rows| rows.key.rate_limits = rows.key.rate_limits.replace("100", "101"),
            |rows| rows.key.quota = None,
            |rows| rows.key.allowed_ips = Some(r#"["203.0.113.0/24"]"#.to_owned()),
            |rows| rows.grants.clear(),
            |rows| rows.grants[0].scopes = r#"["invoice:read"]"#.to_owned(),
            |rows| {
                let limits = r#"[{"name":"burst","limit":5,"period":"1m"}]"#;
                rows.grants[0].rate_limits = Some(limits.to_owned());
            },
        ];
        for change in changes {
            let other = kind.key(change);
            assert_ne!(*one.terms, *other.terms);
            assert!(Arc::ptr_eq(&one.owner, &other.owner));
        }
        let other = kind.key(|rows| rows.key.environment = Environment::parse("test").unwrap());
        assert!(!Arc::ptr_eq(&one.owner, &other.owner) && Arc::ptr_eq(&one.terms, &other.terms));
        assert_eq!(other.owner.environment.as_str(), "test");
    }

    #[test]
    fn a_remembered_key_is_small() {
        // Each member is named, so that who adds one finds this: all but the text lie in the entry.
        let KeySnapshot {
            key_id: _,
            owner: _,
            terms: _,
            not_before: _,
            expires_at: _,
            disabled: _,
            revoked: _,
            secret_id: _,
            secret_until: _,
            superseded: _,
            secret_revoked: _,
            counter: _,
            told,
            last_noted: _,
        } = Kind::new().key(|_| ());
        // Two counts of an Arc stand before what it holds.
        let bytes = 2 * size_of::<usize>() + size_of::<Entry<KeySnapshot>>();
        assert!(bytes <= BYTES_MAX, "{bytes}");
        assert_eq!(told.own_bytes(), r#""name":"a worker of acme""#.len());
    }
}
