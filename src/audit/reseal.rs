//! Takes a chain that does not verify back into use, after an operator has looked.
//!
//! A head that does not verify stops every change of its tenant: after the loss of the master key,
//! or because somebody wrote to the database. A reseal says in the chain itself what was found, who
//! accepted it and why, and seals a new head. What was found then stays named in reports as
//! accepted, as long as nothing before the reseal is changed any further: its line holds a digest
//! of all that was there.

use serde_json::{Value, json};

use super::chain::{Event, Head};
use super::change::Left;
use super::fault::BadRecord;
use super::outside::Found;
use super::store::{self, checkpoint};
use super::verify::{Chains, PAGE, Report, checks, covered, end, tenants};
use super::walk::Walk;
use super::{Attribution, Audit, TenantRef};
use crate::db::{self, Conn};
use crate::id::TenantId;
use crate::text::Slug;

/// The action of a reseal's line.
pub(super) const ACTION: &str = "audit.reseal";

/// Whether this reseal accepts what was found before it: what is there now is what was there then.
pub(super) fn accepts(record: &str, state: &str) -> bool {
    serde_json::from_str::<Event>(record)
        .ok()
        .and_then(|event| event.after)
        .is_some_and(|after| after.get("state").and_then(Value::as_str) == Some(state))
}

/// The checkpoints that this reseal says are of a chain that is no more.
pub(super) fn given_up(record: &str) -> Vec<(i64, String)> {
    let after = serde_json::from_str::<Event>(record)
        .ok()
        .and_then(|event| event.after);
    after
        .as_ref()
        .and_then(|after| after.get("given_up")?.as_array())
        .into_iter()
        .flatten()
        .filter_map(|lost| {
            let (seq, hash) = (lost.get("seq")?.as_i64()?, lost.get("hash")?.as_str()?);
            Some((seq, hash.to_owned()))
        })
        .collect()
}

impl Audit {
    /// Seals new heads where chains do not verify, and records what was found. A chain that
    /// verifies is left alone. `by` says who accepts it and why; its tenant does not matter.
    ///
    /// Changes of a tenant wait while its chain is walked.
    pub async fn reseal(&self, chains: &Chains, by: &Attribution) -> db::Result<Vec<Report>> {
        self.reseal_against(chains, by, &[]).await
    }

    /// The same, also where a chain does not fit what was found outside of the database.
    pub async fn reseal_against(
        &self,
        chains: &Chains,
        by: &Attribution,
        found: &[Found],
    ) -> db::Result<Vec<Report>> {
        let mut reports = Vec::new();
        for (id, slug) in tenants(&self.db, chains).await? {
            let Some(Ok(slug)) = slug.as_deref().map(Slug::parse) else {
                return Err(db::Error::Corrupt(format!(
                    "{id} has an audit chain but is no tenant"
                )));
            };
            let at = Attribution {
                tenant: TenantRef { id, slug },
                ..by.clone()
            };
            let (this, found) = (self.clone(), found.to_vec());
            let report = self
                .db
                .spawn(None, async move { this.reseal_one(at, &found).await })
                .await?;
            reports.push(report);
        }
        Ok(reports)
    }

    async fn reseal_one(&self, at: Attribution, outside: &[Found]) -> db::Result<Report> {
        let tenant = at.tenant.clone();
        let mut change = self.begin(self.db.begin().await?, at);
        let done = async {
            let found = look(self, change.conn(), &tenant, outside).await?;
            let sealed = match found.base {
                None => Left::default(),
                Some(base) => {
                    checkpoint::remove_beyond(change.conn(), &tenant.id, base.seq).await?;
                    change.record(
                        ACTION,
                        ("tenant", tenant.id.as_str()),
                        None,
                        Some(json!({
                            "state": found.state,
                            "checked": found.report.checked,
                            "bad": found.report.bad,
                            "named": found.named,
                            "head": found.report.head,
                            "given_up": found.lost.iter().map(|(seq, hash)| {
                                json!({"seq": seq, "hash": hash})
                            }).collect::<Vec<Value>>(),
                        })),
                    );
                    self.seal(&mut change, base).await?
                }
            };
            db::Result::Ok((found.report, sealed))
        }
        .await;
        let (report, sealed) = change.end(done).await?;
        if !sealed.lines.is_empty() {
            tracing::warn!(
                target: "security",
                tenant = %tenant.slug,
                found = %report,
                "resealed an audit chain that did not verify"
            );
        }
        self.committed(sealed);
        Ok(report)
    }
}

impl Audit {
    /// Puts the heads that another listed master key sealed under the first one, so that the other
    /// can be taken out of the list also where nothing changes. Answers how many there were.
    ///
    /// # Errors
    /// Only the database's: a head that no listed key opens is left as it is.
    pub async fn renew_heads(&self) -> db::Result<usize> {
        let mut renewed = 0;
        for (tenant, _) in tenants(&self.db, &Chains::All).await? {
            let keys = self.keys.clone();
            let moved = self
                .db
                .write(async move |conn: &mut Conn| {
                    let Some((head, mac)) = store::lock_head(conn, &tenant).await? else {
                        return Ok(false);
                    };
                    let first = keys.seal(&tenant, &head);
                    if first[..] == mac[..] || !keys.opens(&tenant, &head, &mac) {
                        return Ok(false);
                    }
                    store::move_head(conn, &tenant, &head, &first).await?;
                    db::Result::Ok(true)
                })
                .await?;
            renewed += usize::from(moved);
        }
        Ok(renewed)
    }
}

struct Looked {
    report: Report,
    named: Vec<BadRecord>,
    state: String,
    /// Numbers and hashes of the checkpoints that it cannot fit any more.
    lost: Vec<(i64, String)>,
    /// What the reseal's line follows; `None` if the chain holds.
    base: Option<Head>,
}

/// Walks the whole chain with its head locked.
async fn look(
    audit: &Audit,
    conn: &mut Conn,
    tenant: &TenantRef,
    outside: &[Found],
) -> db::Result<Looked> {
    let slug = tenant.slug.as_str();
    let (checks, _strange) = checks(conn, &tenant.id, Some(slug), &audit.signing, outside).await?;
    let head = store::lock_head(conn, &tenant.id).await?;
    if head.is_none() {
        // Without a head there is nothing to lock: its place is.
        audit.create_head(conn, &tenant.id).await?;
    }
    let mut walk = Walk::from(tenant.id.clone(), Some(slug.to_owned()), None, checks);
    let to = head.as_ref().map_or(i64::MAX, |(head, _)| head.seq);
    walk_to(conn, &tenant.id, &mut walk, None, to).await?;
    let sealed_head = head
        .as_ref()
        .filter(|(head, mac)| audit.keys.opens(&tenant.id, head, mac))
        .map(|(head, _)| head.clone());
    let head = end(&mut walk, &audit.keys, &tenant.id, head);
    if let Some(line) = store::beyond(conn, &tenant.id, to).await? {
        walk.note_beyond_head(&line);
        walk_to(conn, &tenant.id, &mut walk, Some(to), i64::MAX).await?;
    }
    let ends = walk.last().max(head.as_ref().map_or(0, |head| head.seq));
    if let Some(bad) = walk.checks.beyond(ends) {
        walk.note(bad);
    }
    let lost = walk.checks.lost(walk.last());
    let base = (walk.bad > 0).then(|| match sealed_head {
        // What was cut off keeps its numbers.
        Some(head) if head.seq > walk.last() => head,
        Some(_) | None => Head {
            seq: walk.last(),
            hash: walk.prev_hash.clone(),
        },
    });
    let state = walk.state();
    let named = walk.named.clone();
    Ok(Looked {
        report: Report::of(
            &tenant.id,
            Some(tenant.slug.to_string()),
            covered(outside, true),
            walk,
            head,
        ),
        named,
        state,
        lost,
        base,
    })
}

async fn walk_to(
    conn: &mut Conn,
    tenant: &TenantId,
    walk: &mut Walk,
    mut after: Option<i64>,
    to: i64,
) -> db::Result<()> {
    loop {
        let lines = store::stretch(conn, tenant, after, to, PAGE).await?;
        walk.over(conn, &lines).await?;
        match lines.last() {
            Some(line) if line.seq < to => after = Some(store::behind(after, line.seq)),
            Some(_) | None => return Ok(()),
        }
    }
}
