-- Counts of hours that begin before this are sealed: what comes later for them stands in usage_late
-- too, until a further seal takes it in. Held by every batch, moved by whoever seals.
CREATE TABLE usage_seal (
    id INTEGER NOT NULL,
    sealed_to BIGINT NOT NULL,
    PRIMARY KEY (id)
);

INSERT INTO usage_seal (id, sealed_to) VALUES (1, 0);

-- What the batch with this number added to hours that were sealed.
CREATE TABLE usage_late (
    seq BIGINT NOT NULL,
    tenant_id TEXT NOT NULL,
    start BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    caller TEXT NOT NULL,
    consumer_id TEXT NOT NULL,
    uses BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, start, seq, key_id, secret_id, superseded, service, outcome, operation, caller)
);

-- Which scopes a key used, for reviews of access.
CREATE INDEX usage_scope_key ON usage_scope (key_id, day);
