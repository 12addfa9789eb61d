-- The public halves of the keys that checkpoints are signed with, kept for ever, each with the time
-- in which it signed. The MAC is made under the master key: a row that somebody else wrote is no key.
CREATE TABLE audit_key (
    kid TEXT NOT NULL,
    public_key BLOB NOT NULL,
    "from" BIGINT NOT NULL,
    until BIGINT,
    mac BLOB NOT NULL,
    PRIMARY KEY (kid)
);

-- What was signed about a chain: that it had reached a number and hash, or was cut up to there.
CREATE TABLE audit_checkpoint (
    tenant_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    at BIGINT NOT NULL,
    statement TEXT NOT NULL,
    PRIMARY KEY (tenant_id, seq, kind)
);

-- The services that a line concerns, as ",billing,invoicing,"; a copy of what its record says.
ALTER TABLE audit_event ADD COLUMN services TEXT;

CREATE INDEX audit_event_services ON audit_event (tenant_id, seq, services) WHERE services IS NOT NULL;
