-- Stepped last in the transaction of a batch: the row lock makes number order the commit order.
CREATE TABLE usage_head (
    id INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (id)
);

INSERT INTO usage_head (id, seq) VALUES (1, 0);

-- A batch that stands here was stored, and is not stored again.
CREATE TABLE usage_batch (
    node TEXT NOT NULL,
    number BIGINT NOT NULL,
    seq BIGINT,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    events BIGINT NOT NULL,
    shed BIGINT NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (node, number),
    UNIQUE (seq)
);

CREATE TABLE usage_event (
    tenant_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    id TEXT NOT NULL,
    node TEXT NOT NULL,
    batch BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    consumer_id TEXT NOT NULL,
    service TEXT NOT NULL,
    environment TEXT NOT NULL,
    operation TEXT NOT NULL,
    outcome TEXT NOT NULL,
    ip TEXT,
    caller TEXT NOT NULL,
    request_id TEXT NOT NULL,
    token_id TEXT,
    subject TEXT,
    actor TEXT,
    detail TEXT NOT NULL,
    PRIMARY KEY (tenant_id, at, id)
);

CREATE INDEX usage_event_key ON usage_event (key_id, at, id);
CREATE INDEX usage_event_request ON usage_event (request_id);

-- What stands in them is exact, never sampled. `key_id` is '' where no key was identified.
CREATE TABLE usage_minute (
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
    PRIMARY KEY (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller)
) WITHOUT ROWID;

CREATE TABLE usage_hour (
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
    PRIMARY KEY (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller)
) WITHOUT ROWID;

-- By day, without keys: what a summary over a year is made from.
CREATE TABLE usage_day (
    tenant_id TEXT NOT NULL,
    start BIGINT NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    uses BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, start, service, outcome, operation)
) WITHOUT ROWID;

CREATE TABLE usage_ip (
    tenant_id TEXT NOT NULL,
    day BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    ip TEXT NOT NULL,
    uses BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, key_id, ip)
) WITHOUT ROWID;

CREATE TABLE usage_scope (
    tenant_id TEXT NOT NULL,
    day BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    service TEXT NOT NULL,
    scope TEXT NOT NULL,
    uses BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, key_id, service, scope)
) WITHOUT ROWID;

-- What no key was found for. Bounded in rows: beyond that `ip` is ''.
CREATE TABLE usage_stranger (
    tenant_id TEXT NOT NULL,
    hour BIGINT NOT NULL,
    caller TEXT NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    ip TEXT NOT NULL,
    uses BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, hour, caller, service, outcome, operation, ip)
) WITHOUT ROWID;
