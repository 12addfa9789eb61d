//! What can be done with reviews.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::freeze::{is_own, too_many};
use super::{
    AskedFilter, Decision, Item, ItemFilter, KEYS_MAX, ListFilter, NAMES_MAX, NewReview, Review,
    ReviewFilter, ReviewStatus, Verdict, store,
};
use crate::audit::{Actor, Attribution, Audit, Change, TenantRef, newest_done};
use crate::clock::Clock;
use crate::consumers;
use crate::db::{self, Conn, Db};
use crate::entropy::Entropy;
use crate::error::{Conflict, Error, Result, Violation};
use crate::id::{KeyId, ReviewId, TenantId};
use crate::idempotency::{self, Claim, Idempotent};
use crate::keys;
use crate::keys::service::{By, revoke_within};
use crate::keys::store::KeyFilter;
use crate::page::{Page, PageRequest};
use crate::rights::{Permission, Rights};
use crate::services;
use crate::usage::Usage;

/// The longest that who begins a review waits for it to have all its keys.
const FREEZE_WAIT: Duration = Duration::from_secs(8);

/// Items that an export holds in memory at a time.
const EXPORT_PAGE: i64 = 500;

/// Makes reviews and what is decided in them, cheap to clone.
#[derive(Clone)]
pub struct Reviews {
    pub(super) db: Db,
    pub(super) audit: Audit,
    pub(super) usage: Usage,
    pub(super) clock: Clock,
    entropy: Entropy,
    /// A node puts keys into one review at a time.
    freezing: Arc<Semaphore>,
}

/// What a reviewer says about a key.
#[derive(Clone, Debug)]
pub struct Decide {
    pub decision: Decision,
    pub note: Option<String>,
    /// Revokes the key at once.
    pub revoke_now: bool,
}

/// An export under way.
pub struct Export {
    reviews: Reviews,
    tenant: TenantId,
    review: ReviewId,
    after: Option<KeyId>,
    is_over: bool,
}

impl Reviews {
    pub fn new(db: Db, audit: Audit, usage: Usage, clock: Clock, entropy: Entropy) -> Self {
        Self {
            db,
            audit,
            usage,
            clock,
            entropy,
            freezing: Arc::new(Semaphore::new(1)),
        }
    }

    /// Begins a review with the keys as they stand now. If that takes long, the answer is a review that
    /// is still freezing, and goes on.
    ///
    /// # Errors
    /// [`Error::Busy`] while this node puts keys into another one.
    pub async fn create(
        &self,
        by: By,
        new: NewReview,
        claim: Option<Claim>,
    ) -> Result<Idempotent<Review, Review>> {
        let thresholds = new.thresholds.unwrap_or_default();
        let mut wrong = thresholds.check("/thresholds");
        let asked = new.filter.unwrap_or_default();
        wrong.extend(asked.check());
        if !wrong.is_empty() {
            return Err(Error::Invalid(wrong));
        }
        let tenant = by.at.tenant.clone();
        let (filter, keys) = self.resolve(&tenant, asked).await?;
        require(&by.rights, Permission::KeysWrite, &filter)?;
        if let Some(id) = self.earlier(&by.at, claim.clone()).await? {
            return Ok(Idempotent::Replayed(self.load(&by, id).await?));
        }
        let Ok(turn) = Arc::clone(&self.freezing).try_acquire_owned() else {
            return Err(Error::Busy);
        };
        let now = self.clock.now();
        let review = Review {
            id: ReviewId::new(&self.clock, &self.entropy),
            name: new.name,
            filter,
            thresholds,
            created_at: now,
            created_by: by.at.actor.clone(),
            reason: by.at.reason.clone(),
            as_of: None,
            keys: 0,
            findings: BTreeMap::new(),
            digest: None,
            closed_at: None,
            closed_by: None,
            close_reason: None,
            decisions: BTreeMap::new(),
        };
        let (row, counted, tenant_id) = (review.clone(), keys.clone(), tenant.id.clone());
        self.db
            .write(async move |conn: &mut Conn| {
                let count = keys::store::count(conn, &tenant_id, &counted, now).await?;
                if count > KEYS_MAX {
                    return Err(too_many(count));
                }
                Ok(store::insert(conn, &row, &tenant_id).await?)
            })
            .await?;
        let (this, at, id) = (self.clone(), by.at.clone(), review.id.clone());
        let freezing = self.db.runtime().spawn(async move {
            // On the heap: it is a large future.
            let frozen = Box::pin(this.freeze(at, review, keys, claim)).await;
            drop(turn);
            frozen
        });
        match tokio::time::timeout(FREEZE_WAIT, freezing).await {
            Ok(Ok(Ok(Idempotent::Fresh(review)))) => Ok(Idempotent::Fresh(review)),
            Ok(Ok(Ok(Idempotent::Replayed(id)))) => {
                Ok(Idempotent::Replayed(self.load(&by, id).await?))
            }
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_ended_early)) => Err(Error::Busy),
            Err(_goes_on) => Ok(Idempotent::Fresh(self.load(&by, id.to_string()).await?)),
        }
    }

    /// The review that the same request made before.
    async fn earlier(&self, at: &Attribution, claim: Option<Claim>) -> Result<Option<String>> {
        if claim.is_none() {
            return Ok(None);
        }
        self.audit
            .change(at.clone(), async move |change: &mut Change| {
                idempotency::replayed_id(change, claim.as_ref()).await
            })
            .await
    }

    /// Whom and what the names of a filter stand for.
    async fn resolve(
        &self,
        tenant: &TenantRef,
        asked: AskedFilter,
    ) -> Result<(ReviewFilter, KeyFilter)> {
        let tenant = tenant.id.clone();
        self.db
            .read(async move |conn: &mut Conn| {
                let mut filter = ReviewFilter {
                    environments: asked.environments.clone(),
                    tags: asked.tags.clone(),
                    created_by: asked.created_by.clone(),
                    ..ReviewFilter::default()
                };
                let mut keys = KeyFilter {
                    is_live: true,
                    environments: asked.environments,
                    tags: asked.tags.unwrap_or_default(),
                    created_by: asked.created_by,
                    ..KeyFilter::default()
                };
                if let Some(names) = asked.services {
                    let (mut slugs, mut ids) = (Vec::new(), Vec::new());
                    for name in names {
                        let found = services::store::find(conn, &tenant, &name).await?;
                        let found = found.ok_or(Error::NotFound("service"))?;
                        slugs.push(found.slug);
                        ids.push(found.id);
                    }
                    slugs.sort_unstable();
                    slugs.dedup();
                    (filter.services, keys.services) = (Some(slugs), Some(ids));
                }
                if let Some(names) = asked.consumers {
                    let (mut slugs, mut ids) = (Vec::new(), Vec::new());
                    for name in names {
                        let found = consumers::store::find(conn, &tenant, &name).await?;
                        let found = found.ok_or(Error::NotFound("consumer"))?;
                        slugs.push(found.slug);
                        ids.push(found.id);
                    }
                    (filter.consumers, keys.consumers) = (Some(slugs), Some(ids));
                }
                Ok((filter, keys))
            })
            .await
    }

    /// The reviews that the caller may see.
    pub async fn list(
        &self,
        by: &By,
        filter: ListFilter,
        page: PageRequest,
    ) -> Result<Page<Review>> {
        let tenant = by.at.tenant.id.clone();
        let reach = by.rights.services_for(Permission::KeysRead);
        Ok(self
            .db
            .read(async move |conn: &mut Conn| {
                store::list(conn, &tenant, &reach, &filter, &page).await
            })
            .await?)
    }

    /// Shows a review, if the caller may see it.
    pub async fn load(&self, by: &By, id: String) -> Result<Review> {
        let (tenant, rights) = (by.at.tenant.id.clone(), by.rights.clone());
        self.db
            .read(async move |conn: &mut Conn| there(conn, &tenant, &rights, &id).await)
            .await
    }

    /// The keys of a review.
    pub async fn items(
        &self,
        by: &By,
        id: String,
        filter: ItemFilter,
        page: PageRequest,
    ) -> Result<Page<Item>> {
        let (tenant, rights) = (by.at.tenant.id.clone(), by.rights.clone());
        self.db
            .read(async move |conn: &mut Conn| {
                let review = there(conn, &tenant, &rights, &id).await?;
                if review.status() == ReviewStatus::Freezing {
                    return Err(freezing());
                }
                Ok(store::items(conn, &review, &filter, &page).await?)
            })
            .await
    }

    /// Decides about a key. What was decided before is replaced until the review is closed.
    ///
    /// # Errors
    /// `review_closed`; `key_revoked` if another decision was carried out; with `revoke_now` those of revoking
    /// the key.
    pub async fn decide(&self, by: By, id: String, key: String, asked: Decide) -> Result<Item> {
        if asked.revoke_now && asked.decision != Decision::Revoke {
            return Err(Error::invalid(
                "/revoke_now",
                "goes with the decision revoke alone",
            ));
        }
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let review = in_change(change, &by.rights, &id).await?;
                let key_id = KeyId::parse(&key).ok_or(Error::NotFound("key in the review"))?;
                let item = store::item(change.conn(), &review.id, &key_id).await?;
                let item = item.ok_or(Error::NotFound("key in the review"))?;
                require(&by.rights, Permission::KeysWrite, &review.filter)?;
                require_open(&review)?;
                let before = item.verdict.clone();
                if before.carried_out && asked.decision != Decision::Revoke {
                    return Err(Error::conflict(
                        Conflict::KeyRevoked,
                        "the key was revoked by this review, so that decision stands; its note may be \
                         changed",
                    ));
                }
                let mut verdict = Verdict {
                    decision: asked.decision,
                    note: asked.note,
                    own: own(change, &item).await?,
                    carried_out: before.carried_out,
                    decided_at: before.decided_at,
                    decided_by: Some(change.attribution().actor.clone()),
                };
                if asked.revoke_now {
                    revoke_within(change, &by.rights, key_id.as_str()).await?;
                    verdict.carried_out = true;
                }
                if verdict == before {
                    return Ok(item);
                }
                verdict.decided_at = Some(change.now());
                store::decide(change.conn(), &review.id, &key_id, &verdict).await?;
                let shown = |verdict: &Verdict, decided_by: Option<&Actor>| {
                    json!({
                        "review": review.id,
                        "decision": verdict.decision,
                        "note": verdict.note,
                        "own": verdict.own,
                        "carried_out": verdict.carried_out,
                        "decided_by": decided_by,
                    })
                };
                let was_decided = before.decided_at.is_some();
                let old = was_decided.then(|| shown(&before, before.decided_by.as_ref()));
                let new = Some(shown(&verdict, verdict.decided_by.as_ref()));
                change.record("access_review.decide", ("key", key_id.as_str()), old, new);
                change.concerns(services_of(&item));
                Ok(Item { verdict, ..item })
            })
            .await
    }

    /// Ends a review. A closed one is answered as it is.
    ///
    /// # Errors
    /// `review_undecided` with their count while there are keys that nothing was decided about, unless
    /// they are left so on purpose.
    pub async fn close(&self, by: By, id: String, leave_undecided: bool) -> Result<Review> {
        self.audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let review = in_change(change, &by.rights, &id).await?;
                require(&by.rights, Permission::KeysWrite, &review.filter)?;
                match review.status() {
                    ReviewStatus::Freezing => return Err(freezing()),
                    ReviewStatus::Closed => return Ok(review),
                    ReviewStatus::Open => {}
                }
                let undecided = review.undecided();
                if undecided > 0 && !leave_undecided {
                    return Err(Error::Conflict {
                        conflict: Conflict::ReviewUndecided,
                        detail: format!(
                            "{undecided} keys are undecided; decide about them, or close with \
                             leave_undecided"
                        ),
                        existing_id: None,
                        count: Some(undecided.unsigned_abs()),
                        errors: Vec::new(),
                    });
                }
                let at = change.attribution();
                let closed = Review {
                    closed_by: Some(at.actor.clone()),
                    close_reason: at.reason.clone(),
                    closed_at: Some(change.now()),
                    ..review
                };
                store::close(change.conn(), &closed).await?;
                change.record(
                    "access_review.close",
                    ("access_review", closed.id.as_str()),
                    None,
                    Some(json!({"decisions": closed.decisions, "digest": closed.digest})),
                );
                let services = closed.filter.services.iter().flatten();
                change.concerns(services.map(ToString::to_string));
                Ok(closed)
            })
            .await
    }

    /// Records that somebody exports the keys of a review, and begins.
    pub async fn export(&self, by: By, id: String, format: Value) -> Result<Export> {
        let tenant = by.at.tenant.id.clone();
        let review = self
            .audit
            .change(by.at.clone(), async move |change: &mut Change| {
                let review = in_change(change, &by.rights, &id).await?;
                if review.status() == ReviewStatus::Freezing {
                    return Err(freezing());
                }
                change.record(
                    "access_review.export",
                    ("access_review", review.id.as_str()),
                    None,
                    Some(json!({"format": format})),
                );
                let services = review.filter.services.iter().flatten();
                change.concerns(services.map(ToString::to_string));
                Ok(review.id)
            })
            .await?;
        Ok(Export {
            reviews: self.clone(),
            tenant,
            review,
            after: None,
            is_over: false,
        })
    }
}

impl Export {
    /// The items that come next, in the order of their keys; `None` at the end.
    pub async fn next(&mut self) -> db::Result<Option<Vec<Item>>> {
        if self.is_over {
            return Ok(None);
        }
        let (review, after) = (self.review.clone(), self.after.take());
        let items: Vec<Item> = self
            .reviews
            .db
            .long(
                self.tenant.as_str(),
                db::DOWNLOAD_WAIT_MAX,
                async move |conn: &mut Conn| {
                    store::some_items(conn, &review, after.as_ref(), EXPORT_PAGE).await
                },
            )
            .await?;
        self.after = items.last().map(|item| item.key_id.clone());
        self.is_over = i64::try_from(items.len()).is_ok_and(|count| count < EXPORT_PAGE);
        Ok(Some(items))
    }
}

impl AskedFilter {
    fn check(&self) -> Vec<Violation> {
        let parts = [
            ("services", self.services.as_ref().map(Vec::len)),
            ("consumers", self.consumers.as_ref().map(Vec::len)),
            ("environments", self.environments.as_ref().map(Vec::len)),
            ("tags", self.tags.as_ref().map(Vec::len)),
        ];
        let mut wrong: Vec<Violation> = parts
            .into_iter()
            .filter(|(_, count)| count.is_some_and(|count| count == 0 || count > NAMES_MAX))
            .map(|(name, _)| {
                Violation::new(
                    format!("/filter/{name}"),
                    format!("must have 1 to {NAMES_MAX} items"),
                )
            })
            .collect();
        let creator = self.created_by.as_deref();
        if creator.is_some_and(|name| name.is_empty() || crate::text::has_control(name)) {
            wrong.push(Violation::new(
                "/filter/created_by",
                "must be issuer#subject, or a key id",
            ));
        }
        wrong
    }
}

/// Holds a caller to a permission for each service that a review is about, or for all.
fn require(rights: &Rights, permission: Permission, filter: &ReviewFilter) -> Result<()> {
    match &filter.services {
        None => rights.require(permission, None),
        Some(services) => services
            .iter()
            .try_for_each(|service| rights.require(permission, Some(service))),
    }
}

/// A review is there for who may read it; for others not.
async fn there(conn: &mut Conn, tenant: &TenantId, rights: &Rights, id: &str) -> Result<Review> {
    let review = match ReviewId::parse(id) {
        Some(id) => store::find(conn, tenant, &id).await?,
        None => None,
    };
    review
        .filter(|review| require(rights, Permission::KeysRead, &review.filter).is_ok())
        .ok_or(Error::NotFound("review"))
}

async fn in_change(change: &mut Change, rights: &Rights, id: &str) -> Result<Review> {
    let tenant = change.attribution().tenant.id.clone();
    there(change.conn(), &tenant, rights, id).await
}

fn freezing() -> Error {
    Error::conflict(
        Conflict::InProgress,
        "the keys are still being put into the review, try again",
    )
}

fn require_open(review: &Review) -> Result<()> {
    match review.status() {
        ReviewStatus::Open => Ok(()),
        ReviewStatus::Freezing => Err(freezing()),
        ReviewStatus::Closed => Err(Error::conflict(
            Conflict::ReviewClosed,
            "the review is closed, and nothing in it changes any more; begin another",
        )),
    }
}

/// Whether who decides made the key, or put its last secret in place.
async fn own(change: &mut Change, item: &Item) -> Result<bool> {
    let frozen = frozen(item);
    let said = |member: &str| -> Option<Actor> {
        serde_json::from_value(frozen.pointer(&format!("/key/{member}"))?.clone()).ok()
    };
    let at = change.attribution().clone();
    let id = item.key_id.as_str();
    let rotated = newest_done(change.conn(), &at.tenant.id, "key.rotate", &[id]).await?;
    let rotated = rotated.into_values().next().map(|line| line.actor);
    let rotated = rotated.or_else(|| said("rotated_by"));
    let reviewers = [Some(&at.actor), at.via.as_ref()];
    Ok(is_own(
        reviewers,
        said("created_by").as_ref(),
        rotated.as_ref(),
    ))
}

fn frozen(item: &Item) -> Value {
    serde_json::from_str(&item.record).unwrap_or_default()
}

fn services_of(item: &Item) -> Vec<String> {
    let frozen = frozen(item);
    let grants = frozen.pointer("/key/grants").and_then(Value::as_array);
    let slugs = grants.into_iter().flatten();
    slugs
        .filter_map(|grant| Some(grant.get("service")?.as_str()?.to_owned()))
        .collect()
}
