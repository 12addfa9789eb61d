//! How a review gets its keys.
//!
//! 1. The row of the review is there first, without an instant: what it is to be about.
//! 2. All keys are read in one picture of the database, a page at a time, and put into the review in
//!    transactions of their own. Nothing is locked meanwhile, so nobody who revokes a key waits.
//! 3. One change gives the review its instant and leaves the line in the audit trail, with a digest of
//!    the keys. Without it there is no review, and what is there is removed. Where it cannot be known
//!    whether it was made, the row tells: what has its instant stays.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::finding::{Finding, Frozen, Known, freeze};
use super::store::{self, NewItem};
use super::{Decision, KEYS_MAX, Review, Reviews};
use crate::audit::{Actor, Attribution, Change, TenantRef, newest_done};
use crate::db::{self, Conn};
use crate::error::{Error, Result};
use crate::id::{ConsumerId, ReviewId, ServiceId};
use crate::idempotency::{self, Claim, Idempotent};
use crate::keys;
use crate::keys::key::Key;
use crate::keys::store::KeyFilter;
use crate::scope::{Catalogue, RequiredScope};
use crate::services;
use crate::time::{Span, Timestamp};

/// Keys that are held in memory, and written in one transaction, at a time.
const PAGE: i64 = 500;

/// What did not get its keys within this time does not get them any more.
const LEFT_BEHIND: Span = Span::hours(1);

/// What was read of all keys.
struct Taken {
    as_of: Timestamp,
    keys: i64,
    findings: BTreeMap<Finding, i64>,
    digest: String,
}

pub(super) fn too_many(keys: i64) -> Error {
    Error::invalid(
        "/filter",
        format!("{keys} keys match; narrow it to at most {KEYS_MAX}"),
    )
}

impl Reviews {
    /// Steps 2 and 3.
    pub(super) async fn freeze(
        self,
        at: Attribution,
        review: Review,
        filter: KeyFilter,
        claim: Option<Claim>,
    ) -> Result<Idempotent<Review, String>> {
        let id = review.id.clone();
        let done = match self.take(&at.tenant, &review, filter).await {
            Ok(taken) => self.begin(at, review, taken, claim).await,
            Err(error) => Err(error),
        };
        if !matches!(done, Ok(Idempotent::Fresh(_))) {
            // What cannot be removed now is swept later.
            let _later = self.discard(&id).await;
        }
        done
    }

    /// Step 2.
    async fn take(&self, tenant: &TenantRef, review: &Review, filter: KeyFilter) -> Result<Taken> {
        let whose = tenant.id.as_str();
        let (this, tenant, review) = (self.clone(), tenant.clone(), review.clone());
        self.db
            .long_snapshot(whose, async move |conn: &mut Conn| {
                let as_of = this.clock.now();
                let mut taken = Taken {
                    as_of,
                    keys: 0,
                    findings: BTreeMap::new(),
                    digest: String::new(),
                };
                let mut digest = Sha256::new();
                let mut catalogues = HashMap::new();
                let mut after = None;
                loop {
                    let page = keys::store::matching_after(
                        conn,
                        &tenant.id,
                        &filter,
                        after.as_ref(),
                        PAGE,
                        as_of,
                    )
                    .await?;
                    let Some(last) = page.last() else { break };
                    after = Some(last.id.clone());
                    taken.keys = taken
                        .keys
                        .saturating_add(i64::try_from(page.len()).unwrap_or(i64::MAX));
                    if taken.keys > KEYS_MAX {
                        return Err(too_many(taken.keys));
                    }
                    let frozen = this
                        .look(conn, &tenant, &review, page, as_of, &mut catalogues)
                        .await?;
                    let mut items = Vec::with_capacity(frozen.len());
                    for one in frozen {
                        for finding in &one.findings {
                            *taken.findings.entry(*finding).or_default() += 1;
                        }
                        let item = item(&review.id, &one)?;
                        digest.update(item.record.as_bytes());
                        digest.update(b"\n");
                        items.push(item);
                    }
                    this.db
                        .write_to_end(async move |conn: &mut Conn| {
                            store::insert_items(conn, &items).await
                        })
                        .await?;
                }
                taken.digest = hex::encode(digest.finalize());
                Ok(taken)
            })
            .await
    }

    async fn look(
        &self,
        conn: &mut Conn,
        tenant: &TenantRef,
        review: &Review,
        page: Vec<Key>,
        as_of: Timestamp,
        catalogues: &mut HashMap<ServiceId, Catalogue>,
    ) -> Result<Vec<Frozen>> {
        let ids: Vec<String> = page.iter().map(|key| key.id.to_string()).collect();
        let names: Vec<&str> = ids.iter().map(String::as_str).collect();
        let consumers: Vec<&ConsumerId> = page.iter().map(|key| &key.consumer.id).collect();
        let disabled: HashSet<ConsumerId> = store::disabled(conn, &consumers)
            .await?
            .into_iter()
            .collect();
        let mut made = newest_done(conn, &tenant.id, "key.create", &names).await?;
        let mut rotated = newest_done(conn, &tenant.id, "key.rotate", &names).await?;
        for grant in page.iter().flat_map(|key| &key.grants) {
            if catalogues.contains_key(&grant.service_id) {
                continue;
            }
            let service = services::store::load_by_id(conn, &grant.service_id).await?;
            let catalogue = service.and_then(|service| {
                // What is stored was checked when it was given.
                Catalogue::new(&service.settings.scopes, "").ok()
            });
            catalogues.insert(grant.service_id.clone(), catalogue.unwrap_or_default());
        }
        let since = as_of.minus(review.thresholds.scopes_unused_for);
        let tenant_id = tenant.id.to_string();
        let met = self.usage.scopes_met(tenant_id, ids.clone(), since).await?;
        let mut required: HashMap<(String, String), Vec<RequiredScope>> = HashMap::new();
        for (key, service, scope) in met {
            if let Ok(scope) = RequiredScope::parse(&scope) {
                required.entry((key, service)).or_default().push(scope);
            }
        }
        let frozen = page.into_iter().zip(ids).map(|(key, id)| {
            let uses = key.grants.iter().map(|grant| {
                let required = required.remove(&(id.clone(), grant.service.to_string()));
                let catalogue = catalogues.get(&grant.service_id);
                (catalogue, required.unwrap_or_default())
            });
            let known = Known {
                consumer_disabled: disabled.contains(&key.consumer.id),
                uses: uses.collect(),
                reason: made.remove(&id).and_then(|line| line.reason),
                rotated_by: rotated.remove(&id).map(|line| line.actor),
            };
            freeze(&key, known, &review.thresholds, as_of)
        });
        Ok(frozen.collect())
    }

    /// Step 3. Answers the id of another review if that was made for the same request.
    async fn begin(
        &self,
        at: Attribution,
        review: Review,
        taken: Taken,
        claim: Option<Claim>,
    ) -> Result<Idempotent<Review, String>> {
        self.audit
            .to_end()
            .change(at, async move |change: &mut Change| {
                if let Some(id) = idempotency::replayed_id(change, claim.as_ref()).await? {
                    return Ok(Idempotent::Replayed(id));
                }
                let mut decisions: BTreeMap<Decision, i64> =
                    Decision::ALL.map(|decision| (decision, 0)).into();
                decisions.insert(Decision::Undecided, taken.keys);
                let review = Review {
                    as_of: Some(taken.as_of),
                    keys: taken.keys,
                    findings: taken.findings,
                    digest: Some(taken.digest),
                    decisions,
                    ..review
                };
                if !store::open(change.conn(), &review).await? {
                    // It took so long that a node held it for left behind.
                    return Err(Error::Busy);
                }
                change.record(
                    "access_review.create",
                    ("access_review", review.id.as_str()),
                    None,
                    Some(json!({
                        "name": review.name,
                        "filter": review.filter,
                        "thresholds": review.thresholds,
                        "as_of": review.as_of,
                        "keys": review.keys,
                        "findings": review.findings,
                        "digest": review.digest,
                    })),
                );
                let services = review.filter.services.iter().flatten();
                change.concerns(services.map(ToString::to_string));
                idempotency::remember_id(change, claim.as_ref(), review.id.as_str()).await?;
                Ok::<_, Error>(Idempotent::Fresh(review))
            })
            .await
    }

    /// Removes a review, unless it has its instant.
    async fn discard(&self, id: &ReviewId) -> db::Result<()> {
        loop {
            let id = id.clone();
            let more = self
                .db
                .write_to_end(async move |conn: &mut Conn| {
                    store::remove_some(conn, &id, PAGE).await
                })
                .await?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Removes what nodes left behind that ended while they put keys into reviews.
    ///
    /// # Errors
    /// The database's; what is left is removed the next time.
    pub async fn sweep(&self) -> db::Result<()> {
        let before = self.clock.now().minus(LEFT_BEHIND);
        let left: Vec<ReviewId> = self
            .db
            .read(async move |conn: &mut Conn| store::left_behind(conn, before).await)
            .await?;
        for id in left {
            self.discard(&id).await?;
        }
        Ok(())
    }
}

fn item(review: &ReviewId, frozen: &Frozen) -> db::Result<NewItem> {
    let record = serde_json_canonicalizer::to_string(frozen)
        .map_err(|error| db::Error::Corrupt(format!("a reviewed key: {error}")))?;
    let findings = frozen
        .findings
        .iter()
        .map(|one| format!("{},", one.as_str()));
    Ok(NewItem {
        review_id: review.clone(),
        key_id: frozen.key.id.clone(),
        record,
        findings: std::iter::once(",".to_owned()).chain(findings).collect(),
        decision: Decision::Undecided.as_str(),
        own: 0,
        carried_out: 0,
    })
}

/// Whether one of these made the key or put its last secret in place.
pub(super) fn is_own(
    reviewers: [Option<&Actor>; 2],
    created_by: Option<&Actor>,
    rotated_by: Option<&Actor>,
) -> bool {
    reviewers
        .into_iter()
        .flatten()
        .any(|reviewer| created_by == Some(reviewer) || rotated_by == Some(reviewer))
}
