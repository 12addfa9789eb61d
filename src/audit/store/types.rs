//! The types of what is stored. `SQLite` keeps a value of any type in any column, and to it bytes are no text:
//! a line with bytes for its action is found by no action, but read like any other.

use crate::db::Conn;

/// The columns of a line, and what `SQLite` calls the types of what we write there.
const LINE: [(&str, &str); 15] = [
    ("seq", "'integer'"),
    ("id", "'text'"),
    ("at", "'integer'"),
    ("actor", "'text'"),
    ("via", "'text', 'null'"),
    ("action", "'text'"),
    ("target_kind", "'text'"),
    ("target_id", "'text'"),
    ("outcome", "'text'"),
    ("request_id", "'text', 'null'"),
    ("ip", "'text', 'null'"),
    ("services", "'text', 'null'"),
    ("record", "'text'"),
    ("prev_hash", "'blob'"),
    ("hash", "'blob'"),
];

/// SQL for the columns of a line whose values are of other types than ours, each with a space behind.
/// `PostgreSQL` has none.
pub(super) fn mistyped(conn: &Conn) -> String {
    if matches!(conn, Conn::Postgres(_)) {
        return "''".to_owned();
    }
    let each = |text: fn(&str, &str) -> String, between: &str| {
        let texts = LINE.map(|(column, types)| text(column, types));
        texts.join(between)
    };
    let is_ours = |column: &str, types: &str| format!("typeof(audit_event.{column}) IN ({types})");
    format!(
        "CASE WHEN {} THEN '' ELSE {} END",
        each(is_ours, " AND "),
        each(
            |column, types| {
                format!(
                    "CASE WHEN typeof(audit_event.{column}) IN ({types}) THEN '' ELSE '{column} ' END"
                )
            },
            " || "
        )
    )
}

/// SQL for the MAC of a head; of one with a value of another type than ours an empty one, which opens nothing.
pub(super) fn mac(conn: &Conn) -> &'static str {
    match conn {
        Conn::Sqlite(_) => {
            "CASE WHEN typeof(seq) = 'integer' AND typeof(hash) = 'blob' AND typeof(mac) = 'blob' \
             THEN mac ELSE x'' END"
        }
        Conn::Postgres(_) => "mac",
    }
}
