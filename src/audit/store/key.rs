//! The table of audit keys.

use diesel::prelude::*;
use diesel_async::RunQueryDsl;

use crate::audit::signing::key::{KeySpan, PublicKey};
use crate::db::schema::audit_key;
use crate::db::{self, Conn};
use crate::each;
use crate::time::Timestamp;

/// A row as it is stored, whoever wrote it.
#[derive(Clone, Debug, Queryable, Selectable, Insertable)]
#[diesel(table_name = audit_key)]
pub(in crate::audit) struct KeyRow {
    pub(in crate::audit) kid: String,
    pub(in crate::audit) public_key: Vec<u8>,
    pub(in crate::audit) from: Timestamp,
    pub(in crate::audit) until: Option<Timestamp>,
    pub(in crate::audit) mac: Vec<u8>,
}

impl KeyRow {
    pub(in crate::audit) fn span(&self) -> Option<KeySpan> {
        Some(KeySpan {
            public: PublicKey::parse(&self.public_key)?,
            from: self.from,
            until: self.until,
        })
    }
}

/// All, oldest first.
pub(in crate::audit) async fn all(conn: &mut Conn) -> db::Result<Vec<KeyRow>> {
    Ok(each!(conn, c => audit_key::table
        .order((audit_key::from, audit_key::kid))
        .select(KeyRow::as_select())
        .load(c)
        .await)?)
}

/// Writes a row in place of the one with its `kid`.
pub(in crate::audit) async fn put(conn: &mut Conn, row: &KeyRow) -> db::Result<()> {
    each!(conn, c => diesel::delete(audit_key::table.find(&row.kid)).execute(c).await)?;
    each!(conn, c => diesel::insert_into(audit_key::table).values(row).execute(c).await)?;
    Ok(())
}
