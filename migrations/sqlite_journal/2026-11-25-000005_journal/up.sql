-- What this node has recorded and the ledger does not have yet. A number is never given twice.
CREATE TABLE usage_journal (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    node TEXT NOT NULL,
    kind TEXT NOT NULL,
    form INTEGER NOT NULL,
    block BLOB NOT NULL
);
