//! Reviews in SQL.

use std::collections::{BTreeMap, HashMap};

use diesel::dsl::{exists, not};
use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::finding::Finding;
use super::{Decision, Item, ItemFilter, ListFilter, Review, ReviewStatus, Verdict};
use crate::db::schema::{consumer, review, review_item, review_service};
use crate::db::{self, Conn};
use crate::each;
use crate::id::{ConsumerId, KeyId, ReviewId, TenantId};
use crate::insert_all;
use crate::page::{Page, PageRequest, Position};
use crate::rights::Reach;
use crate::text::Name;
use crate::time::Timestamp;

#[derive(Queryable, Selectable, Insertable)]
#[diesel(table_name = review)]
struct Row {
    id: ReviewId,
    tenant_id: TenantId,
    name: Name,
    filter: String,
    thresholds: String,
    created_at: Timestamp,
    created_by: String,
    reason: Option<String>,
    as_of: Option<Timestamp>,
    keys: i64,
    findings: String,
    digest: Option<String>,
    closed_at: Option<Timestamp>,
    closed_by: Option<String>,
    close_reason: Option<String>,
}

/// A key to put into a review.
#[derive(Insertable)]
#[diesel(table_name = review_item)]
pub(super) struct NewItem {
    pub(super) review_id: ReviewId,
    pub(super) key_id: KeyId,
    pub(super) record: String,
    pub(super) findings: String,
    pub(super) decision: &'static str,
    pub(super) own: i32,
    pub(super) carried_out: i32,
}

#[derive(Queryable, Selectable)]
#[diesel(table_name = review_item)]
struct ItemRow {
    key_id: KeyId,
    record: String,
    findings: String,
    decision: String,
    note: Option<String>,
    own: i32,
    carried_out: i32,
    decided_at: Option<Timestamp>,
    decided_by: Option<String>,
}

fn to_json<T: Serialize>(value: &T) -> db::Result<String> {
    serde_json::to_string(value).map_err(|error| db::Error::Corrupt(format!("a review: {error}")))
}

fn from_json<T: DeserializeOwned>(text: &str) -> db::Result<T> {
    serde_json::from_str(text).map_err(|error| db::Error::Corrupt(format!("a review: {error}")))
}

impl Row {
    fn of(review: &Review, tenant: &TenantId) -> db::Result<Self> {
        Ok(Self {
            id: review.id.clone(),
            tenant_id: tenant.clone(),
            name: review.name.clone(),
            filter: to_json(&review.filter)?,
            thresholds: to_json(&review.thresholds)?,
            created_at: review.created_at,
            created_by: to_json(&review.created_by)?,
            reason: review.reason.clone(),
            as_of: review.as_of,
            keys: review.keys,
            findings: to_json(&review.findings)?,
            digest: review.digest.clone(),
            closed_at: review.closed_at,
            closed_by: review.closed_by.as_ref().map(to_json).transpose()?,
            close_reason: review.close_reason.clone(),
        })
    }

    fn into_review(self, decisions: BTreeMap<Decision, i64>) -> db::Result<Review> {
        Ok(Review {
            filter: from_json(&self.filter)?,
            thresholds: from_json(&self.thresholds)?,
            created_by: from_json(&self.created_by)?,
            findings: from_json(&self.findings)?,
            closed_by: self.closed_by.as_deref().map(from_json).transpose()?,
            id: self.id,
            name: self.name,
            created_at: self.created_at,
            reason: self.reason,
            as_of: self.as_of,
            keys: self.keys,
            digest: self.digest,
            closed_at: self.closed_at,
            close_reason: self.close_reason,
            decisions,
        })
    }
}

impl ItemRow {
    fn into_item(self) -> db::Result<Item> {
        let unknown = |what: &str| db::Error::Corrupt(format!("a reviewed key has the {what}"));
        let findings = self.findings.split(',').filter(|name| !name.is_empty());
        let findings = findings
            .map(|name| Finding::parse(name).ok_or_else(|| unknown(&format!("finding {name}"))));
        Ok(Item {
            findings: findings.collect::<db::Result<_>>()?,
            verdict: Verdict {
                decision: Decision::parse(&self.decision)
                    .ok_or_else(|| unknown(&format!("decision {}", self.decision)))?,
                note: self.note,
                own: self.own != 0,
                carried_out: self.carried_out != 0,
                decided_at: self.decided_at,
                decided_by: self.decided_by.as_deref().map(from_json).transpose()?,
            },
            key_id: self.key_id,
            record: self.record,
        })
    }
}

/// A review that has no keys yet.
pub(super) async fn insert(conn: &mut Conn, new: &Review, tenant: &TenantId) -> db::Result<()> {
    let row = Row::of(new, tenant)?;
    each!(&mut *conn, c => diesel::insert_into(review::table).values(&row).execute(c).await)?;
    for service in new.filter.services.iter().flatten() {
        each!(&mut *conn, c => diesel::insert_into(review_service::table)
            .values((
                review_service::review_id.eq(&new.id),
                review_service::service.eq(service),
            ))
            .execute(c)
            .await)?;
    }
    Ok(())
}

pub(super) async fn insert_items(conn: &mut Conn, items: &[NewItem]) -> db::Result<()> {
    insert_all!(conn, review_item::table, items);
    Ok(())
}

/// What a review that is being removed has for the reason of its end.
const GIVEN_UP: &str = "it did not come to have its keys";

/// All keys are in it; answers whether they are, for somebody may have begun to remove it.
pub(super) async fn open(conn: &mut Conn, frozen: &Review) -> db::Result<bool> {
    let findings = to_json(&frozen.findings)?;
    let kept = review::table
        .filter(review::id.eq(&frozen.id))
        .filter(review::as_of.is_null())
        .filter(review::close_reason.is_null());
    let opened = each!(conn, c => diesel::update(kept)
        .set((
            review::as_of.eq(frozen.as_of),
            review::keys.eq(frozen.keys),
            review::findings.eq(&findings),
            review::digest.eq(frozen.digest.as_deref()),
        ))
        .execute(c)
        .await)?;
    Ok(opened == 1)
}

pub(super) async fn close(conn: &mut Conn, closed: &Review) -> db::Result<()> {
    let by = closed.closed_by.as_ref().map(to_json).transpose()?;
    each!(conn, c => diesel::update(review::table.find(&closed.id))
        .set((
            review::closed_at.eq(closed.closed_at),
            review::closed_by.eq(by.as_deref()),
            review::close_reason.eq(closed.close_reason.as_deref()),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

/// Removes a review that did not come to have its keys, at most `limit` items at a time; answers
/// whether there is more to remove. What somebody else removes just now is left to that, and one that is
/// open stays as it is.
pub(super) async fn remove_some(conn: &mut Conn, id: &ReviewId, limit: i64) -> db::Result<bool> {
    if !db::alone(conn, &format!("remove {id}")).await? {
        return Ok(false);
    }
    // Who opens it meanwhile comes before this, or finds it given up: nobody opens what some are gone from.
    let unopened = review::table
        .filter(review::id.eq(id))
        .filter(review::as_of.is_null());
    let given_up = each!(&mut *conn, c => diesel::update(unopened)
        .set(review::close_reason.eq(GIVEN_UP))
        .execute(c)
        .await)?;
    if given_up == 0 {
        return Ok(false);
    }
    let keys: Vec<KeyId> = each!(&mut *conn, c => review_item::table
        .filter(review_item::review_id.eq(id))
        .select(review_item::key_id)
        .limit(limit)
        .load(c)
        .await)?;
    if !keys.is_empty() {
        each!(conn, c => diesel::delete(
            review_item::table
                .filter(review_item::review_id.eq(id))
                .filter(review_item::key_id.eq_any(&keys)),
        )
        .execute(c)
        .await)?;
        return Ok(true);
    }
    each!(&mut *conn, c => diesel::delete(
        review_service::table.filter(review_service::review_id.eq(id))
    )
    .execute(c)
    .await)?;
    each!(conn, c => diesel::delete(review::table.find(id)).execute(c).await)?;
    Ok(false)
}

/// Reviews that were begun before `before` and still have not all their keys.
pub(super) async fn left_behind(conn: &mut Conn, before: Timestamp) -> db::Result<Vec<ReviewId>> {
    Ok(each!(conn, c => review::table
        .filter(review::as_of.is_null())
        .filter(review::created_at.lt(before))
        .select(review::id)
        .limit(100)
        .load(c)
        .await)?)
}

pub(super) async fn find(
    conn: &mut Conn,
    tenant: &TenantId,
    id: &ReviewId,
) -> db::Result<Option<Review>> {
    let row: Option<Row> = each!(&mut *conn, c => review::table
        .filter(review::tenant_id.eq(tenant))
        .filter(review::id.eq(id))
        .select(Row::as_select())
        .first(c)
        .await
        .optional())?;
    Ok(with_decisions(conn, row.into_iter().collect()).await?.pop())
}

async fn with_decisions(conn: &mut Conn, rows: Vec<Row>) -> db::Result<Vec<Review>> {
    let ids: Vec<&ReviewId> = rows.iter().map(|row| &row.id).collect();
    let counted: Vec<(ReviewId, String, i64)> = each!(conn, c => review_item::table
        .filter(review_item::review_id.eq_any(ids))
        .group_by((review_item::review_id, review_item::decision))
        .select((
            review_item::review_id,
            review_item::decision,
            diesel::dsl::count_star(),
        ))
        .load(c)
        .await)?;
    let mut decisions: HashMap<ReviewId, BTreeMap<Decision, i64>> = HashMap::new();
    for (id, decision, count) in counted {
        if let Some(decision) = Decision::parse(&decision) {
            decisions.entry(id).or_default().insert(decision, count);
        }
    }
    rows.into_iter()
        .map(|row| {
            let mut counted: BTreeMap<Decision, i64> =
                Decision::ALL.map(|decision| (decision, 0)).into();
            // What is still being put into it is not counted yet.
            if row.as_of.is_some() {
                counted.extend(decisions.remove(&row.id).unwrap_or_default());
            }
            row.into_review(counted)
        })
        .collect()
}

/// Newest first; with less than all in reach, those that are about services within it alone.
pub(super) async fn list(
    conn: &mut Conn,
    tenant: &TenantId,
    reach: &Reach,
    filter: &ListFilter,
    page: &PageRequest,
) -> db::Result<Page<Review>> {
    let rows: Vec<Row> = each!(&mut *conn, c => {
        let mut query = review::table
            .filter(review::tenant_id.eq(tenant))
            .select(Row::as_select())
            .order((review::created_at.desc(), review::id.desc()))
            .limit(page.fetch())
            .into_boxed();
        if let Reach::Only(slugs) = reach {
            let its = review_service::table.filter(review_service::review_id.eq(review::id));
            let beyond = its.filter(review_service::service.ne_all(slugs));
            query = query.filter(exists(its)).filter(not(exists(beyond)));
        }
        match filter.status {
            None => {}
            Some(ReviewStatus::Freezing) => query = query.filter(review::as_of.is_null()),
            Some(ReviewStatus::Open) => {
                query = query
                    .filter(review::as_of.is_not_null())
                    .filter(review::closed_at.is_null());
            }
            Some(ReviewStatus::Closed) => query = query.filter(review::closed_at.is_not_null()),
        }
        if let Some(after) = &page.after {
            query = query.filter(
                review::created_at
                    .lt(after.at)
                    .or(review::created_at.eq(after.at).and(review::id.lt(&after.id))),
            );
        }
        query.load(c).await
    })?;
    let page = page.page(rows, |row| Position {
        at: row.created_at,
        id: row.id.to_string(),
    });
    Ok(Page {
        items: with_decisions(conn, page.items).await?,
        next: page.next,
    })
}

pub(super) async fn item(
    conn: &mut Conn,
    review: &ReviewId,
    key: &KeyId,
) -> db::Result<Option<Item>> {
    let row: Option<ItemRow> = each!(conn, c => review_item::table
        .find((review, key))
        .select(ItemRow::as_select())
        .first(c)
        .await
        .optional())?;
    row.map(ItemRow::into_item).transpose()
}

/// Those of the newest keys first.
pub(super) async fn items(
    conn: &mut Conn,
    review: &Review,
    filter: &ItemFilter,
    page: &PageRequest,
) -> db::Result<Page<Item>> {
    let rows: Vec<ItemRow> = each!(conn, c => {
        let mut query = review_item::table
            .filter(review_item::review_id.eq(&review.id))
            .select(ItemRow::as_select())
            .order(review_item::key_id.desc())
            .limit(page.fetch())
            .into_boxed();
        if let Some(decision) = filter.decision {
            query = query.filter(review_item::decision.eq(decision.as_str()));
        }
        if let Some(finding) = filter.finding {
            query = query.filter(review_item::findings.like(format!("%,{},%", finding.as_str())));
        }
        if let Some(reviewer) = &filter.reviewer {
            query = query.filter(review_item::decided_by_name.eq(reviewer));
        }
        if let Some(own) = filter.own {
            query = query.filter(review_item::own.eq(i32::from(own)));
        }
        if let Some(after) = &page.after {
            query = query.filter(review_item::key_id.lt(&after.id));
        }
        query.load(c).await
    })?;
    let page = page.page(rows, |row| Position {
        at: review.created_at,
        id: row.key_id.to_string(),
    });
    let items = page.items.into_iter().map(ItemRow::into_item);
    Ok(Page {
        items: items.collect::<db::Result<_>>()?,
        next: page.next,
    })
}

/// At most `limit` items behind the key `after`, in the order of their keys.
pub(super) async fn some_items(
    conn: &mut Conn,
    review: &ReviewId,
    after: Option<&KeyId>,
    limit: i64,
) -> db::Result<Vec<Item>> {
    let rows: Vec<ItemRow> = each!(conn, c => {
        let mut query = review_item::table
            .filter(review_item::review_id.eq(review))
            .select(ItemRow::as_select())
            .order(review_item::key_id.asc())
            .limit(limit)
            .into_boxed();
        if let Some(after) = after {
            query = query.filter(review_item::key_id.gt(after));
        }
        query.load(c).await
    })?;
    rows.into_iter().map(ItemRow::into_item).collect()
}

pub(super) async fn decide(
    conn: &mut Conn,
    review: &ReviewId,
    key: &KeyId,
    verdict: &Verdict,
) -> db::Result<()> {
    let by = verdict.decided_by.as_ref().map(to_json).transpose()?;
    let name = verdict.decided_by.as_ref().map(crate::audit::Actor::name);
    each!(conn, c => diesel::update(review_item::table.find((review, key)))
        .set((
            review_item::decision.eq(verdict.decision.as_str()),
            review_item::note.eq(verdict.note.as_deref()),
            review_item::own.eq(i32::from(verdict.own)),
            review_item::carried_out.eq(i32::from(verdict.carried_out)),
            review_item::decided_at.eq(verdict.decided_at),
            review_item::decided_by.eq(by.as_deref()),
            review_item::decided_by_name.eq(name.as_deref()),
        ))
        .execute(c)
        .await)?;
    Ok(())
}

/// Which of these consumers are disabled.
pub(super) async fn disabled(
    conn: &mut Conn,
    consumers: &[&ConsumerId],
) -> db::Result<Vec<ConsumerId>> {
    Ok(each!(conn, c => consumer::table
        .filter(consumer::id.eq_any(consumers.iter().copied()))
        .filter(consumer::disabled_at.is_not_null())
        .select(consumer::id)
        .load(c)
        .await)?)
}
