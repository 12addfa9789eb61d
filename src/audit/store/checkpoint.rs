//! The table of signed statements.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;
use serde::Deserialize;
use utoipa::IntoParams;

use crate::audit::signing::{Statement, StatementKind};
use crate::db::schema::audit_checkpoint;
use crate::db::{self, Conn};
use crate::each;
use crate::id::TenantId;
use crate::page::{Page, PageRequest, Position};
use crate::time::Timestamp;

/// Statements that [`beyond`] answers.
const BEYOND_MAX: i64 = 200;

/// Which statements: those that meet all of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatementFilter {
    pub kind: Option<StatementKind>,
    /// Inclusive.
    pub from: Option<Timestamp>,
    /// Exclusive.
    pub to: Option<Timestamp>,
}

/// Stores a statement; `false` if there is one of this kind for this number already.
pub(in crate::audit) async fn insert(
    conn: &mut Conn,
    tenant: &TenantId,
    statement: &Statement,
) -> db::Result<bool> {
    let text = statement.canonical()?;
    let inserted = each!(conn, c => diesel::insert_into(audit_checkpoint::table)
        .values((
            audit_checkpoint::tenant_id.eq(tenant),
            audit_checkpoint::seq.eq(statement.seq),
            audit_checkpoint::kind.eq(statement.kind.as_str()),
            audit_checkpoint::at.eq(statement.at),
            audit_checkpoint::statement.eq(&text),
        ))
        .on_conflict_do_nothing()
        .execute(c)
        .await)?;
    Ok(inserted > 0)
}

/// The texts of all statements about a chain, as they are stored, whoever wrote them.
pub(in crate::audit) async fn texts(
    conn: &mut Conn,
    tenant: &TenantId,
) -> db::Result<Vec<(i64, String)>> {
    Ok(each!(conn, c => audit_checkpoint::table
        .filter(audit_checkpoint::tenant_id.eq(tenant))
        .order((audit_checkpoint::seq, audit_checkpoint::kind))
        .select((audit_checkpoint::seq, audit_checkpoint::statement))
        .load(c)
        .await)?)
}

/// Removes what says that a chain had got beyond `seq`.
pub(in crate::audit) async fn remove_beyond(
    conn: &mut Conn,
    tenant: &TenantId,
    seq: i64,
) -> db::Result<usize> {
    Ok(each!(conn, c => diesel::delete(
        audit_checkpoint::table
            .filter(audit_checkpoint::tenant_id.eq(tenant))
            .filter(audit_checkpoint::seq.gt(seq)),
    )
    .execute(c)
    .await)?)
}

/// The statement of this kind that reaches furthest.
///
/// # Errors
/// [`db::Error::Corrupt`] if it cannot be read.
pub(in crate::audit) async fn last(
    conn: &mut Conn,
    tenant: &TenantId,
    kind: StatementKind,
) -> db::Result<Option<Statement>> {
    let text: Option<String> = each!(conn, c => audit_checkpoint::table
        .filter(audit_checkpoint::tenant_id.eq(tenant))
        .filter(audit_checkpoint::kind.eq(kind.as_str()))
        .order(audit_checkpoint::seq.desc())
        .select(audit_checkpoint::statement)
        .first(c)
        .await
        .optional())?;
    text.as_deref().map(parse).transpose()
}

/// Those that say that they were signed with the key `kid` before `at`, or after it, the furthest from it
/// first: at most some hundred of them.
pub(in crate::audit) async fn beyond(
    conn: &mut Conn,
    kid: &str,
    at: Timestamp,
    is_before: bool,
) -> db::Result<Vec<Statement>> {
    // A `_` in it stands for any character: the caller looks closer.
    let named = format!("%\"kid\":\"{kid}\"%");
    let texts: Vec<String> = each!(conn, c => {
        let query = audit_checkpoint::table
            .filter(audit_checkpoint::statement.like(&named))
            .select(audit_checkpoint::statement)
            .limit(BEYOND_MAX)
            .into_boxed();
        let query = if is_before {
            let before = query.filter(audit_checkpoint::at.lt(at));
            before.order(audit_checkpoint::at)
        } else {
            let after = query.filter(audit_checkpoint::at.gt(at));
            after.order(audit_checkpoint::at.desc())
        };
        query.load(c).await
    })?;
    Ok(texts.iter().filter_map(|text| parse(text).ok()).collect())
}

/// Newest first.
pub(in crate::audit) async fn list(
    conn: &mut Conn,
    tenant: &TenantId,
    filter: StatementFilter,
    page: &PageRequest,
) -> db::Result<Page<Statement>> {
    let after = match &page.after {
        None => None,
        Some(position) => Some(
            position
                .id
                .split_once(' ')
                .and_then(|(seq, kind)| Some((seq.parse::<i64>().ok()?, kind.to_owned())))
                .ok_or_else(|| {
                    db::Error::Corrupt("a cursor of checkpoints without a number".to_owned())
                })?,
        ),
    };
    let texts: Vec<String> = each!(conn, c => {
        let mut query = audit_checkpoint::table
            .filter(audit_checkpoint::tenant_id.eq(tenant))
            .into_boxed();
        if let Some((seq, kind)) = &after {
            query = query.filter(
                audit_checkpoint::seq.lt(seq).or(audit_checkpoint::seq
                    .eq(seq)
                    .and(audit_checkpoint::kind.lt(kind))),
            );
        }
        if let Some(kind) = filter.kind {
            query = query.filter(audit_checkpoint::kind.eq(kind.as_str()));
        }
        if let Some(from) = filter.from {
            query = query.filter(audit_checkpoint::at.ge(from));
        }
        if let Some(to) = filter.to {
            query = query.filter(audit_checkpoint::at.lt(to));
        }
        query
            .order((audit_checkpoint::seq.desc(), audit_checkpoint::kind.desc()))
            .limit(page.fetch())
            .select(audit_checkpoint::statement)
            .load(c)
            .await
    })?;
    let statements = texts.iter().map(|text| parse(text));
    let statements = statements.collect::<db::Result<Vec<Statement>>>()?;
    Ok(page.page(statements, |statement| Position {
        at: statement.at,
        id: format!("{} {}", statement.seq, statement.kind.as_str()),
    }))
}

fn parse(text: &str) -> db::Result<Statement> {
    serde_json::from_str(text)
        .map_err(|error| db::Error::Corrupt(format!("a checkpoint of the audit trail: {error}")))
}
