CREATE TABLE tenant (
    id TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    metadata TEXT NOT NULL,
    disabled_at BIGINT,
    deleted_at BIGINT,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (slug)
);

CREATE TABLE service (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    settings TEXT NOT NULL,
    metadata TEXT NOT NULL,
    disabled_at BIGINT,
    deleted_at BIGINT,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (tenant_id, slug),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id)
);

CREATE TABLE consumer (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    slug TEXT NOT NULL,
    external_id TEXT,
    name TEXT NOT NULL,
    rate_limits TEXT NOT NULL,
    quota TEXT,
    metadata TEXT NOT NULL,
    disabled_at BIGINT,
    deleted_at BIGINT,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (tenant_id, slug),
    UNIQUE (tenant_id, external_id),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id)
);

CREATE TABLE api_key (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    consumer_id TEXT NOT NULL,
    lookup_id TEXT NOT NULL,
    prefix TEXT NOT NULL,
    environment TEXT NOT NULL,
    name TEXT NOT NULL,
    external_id TEXT,
    not_before BIGINT,
    expires_at BIGINT,
    rate_limits TEXT NOT NULL,
    quota TEXT,
    allowed_ips TEXT,
    metadata TEXT NOT NULL,
    tags TEXT NOT NULL,
    disabled_at BIGINT,
    revoked_at BIGINT,
    revoked_by TEXT,
    reason TEXT,
    rotated_at BIGINT,
    last_used_at BIGINT,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    created_by_name TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (id),
    UNIQUE (lookup_id),
    UNIQUE (tenant_id, external_id),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id),
    FOREIGN KEY (consumer_id) REFERENCES consumer (id)
);

CREATE TABLE key_grant (
    key_id TEXT NOT NULL,
    service_id TEXT NOT NULL,
    position INTEGER NOT NULL,
    scopes TEXT NOT NULL,
    rate_limits TEXT,
    PRIMARY KEY (key_id, service_id),
    FOREIGN KEY (key_id) REFERENCES api_key (id),
    FOREIGN KEY (service_id) REFERENCES service (id)
);

CREATE TABLE key_tag (
    key_id TEXT NOT NULL,
    tag TEXT NOT NULL,
    PRIMARY KEY (key_id, tag),
    FOREIGN KEY (key_id) REFERENCES api_key (id)
);

CREATE TABLE secret (
    id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    fingerprint BYTEA,
    pepper_version INTEGER,
    verifier TEXT,
    created_at BIGINT NOT NULL,
    valid_until BIGINT,
    superseded_at BIGINT,
    revoked_at BIGINT,
    last_used_at BIGINT,
    PRIMARY KEY (id),
    UNIQUE (fingerprint),
    FOREIGN KEY (key_id) REFERENCES api_key (id)
);

CREATE TABLE pepper (
    version INTEGER NOT NULL,
    master_id TEXT NOT NULL,
    check_value BYTEA NOT NULL,
    state TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    current_from BIGINT NOT NULL,
    PRIMARY KEY (version)
);

CREATE TABLE idempotency (
    scope TEXT NOT NULL,
    body_hash BYTEA NOT NULL,
    status INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (scope)
);

CREATE TABLE quota_count (
    counter BYTEA NOT NULL,
    period_start BIGINT NOT NULL,
    used BIGINT NOT NULL,
    PRIMARY KEY (counter, period_start)
);

CREATE TABLE change_head (
    id INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (id),
    CHECK (id = 1)
);

CREATE TABLE change (
    seq BIGINT NOT NULL,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (seq, kind, id)
);

CREATE TABLE audit_head (
    tenant_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    mac BYTEA NOT NULL,
    PRIMARY KEY (tenant_id)
);

CREATE TABLE audit_event (
    tenant_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    id TEXT NOT NULL,
    at BIGINT NOT NULL,
    actor TEXT NOT NULL,
    via TEXT,
    action TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    request_id TEXT,
    ip TEXT,
    record TEXT NOT NULL,
    prev_hash BYTEA NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (tenant_id, seq),
    UNIQUE (id)
);

CREATE INDEX service_page ON service (tenant_id, created_at, id);
CREATE INDEX consumer_page ON consumer (tenant_id, created_at, id);
CREATE INDEX api_key_page ON api_key (tenant_id, created_at, id);
CREATE INDEX api_key_consumer ON api_key (consumer_id, created_at, id);
CREATE INDEX api_key_expiring ON api_key (tenant_id, expires_at);
CREATE INDEX key_grant_service ON key_grant (service_id, key_id);
CREATE INDEX key_tag_tag ON key_tag (tag, key_id);
CREATE INDEX secret_key ON secret (key_id);
CREATE INDEX secret_pepper ON secret (pepper_version);
CREATE INDEX idempotency_age ON idempotency (created_at);
CREATE INDEX quota_count_age ON quota_count (period_start);
CREATE INDEX change_entity ON change (kind, id);
CREATE INDEX audit_event_time ON audit_event (tenant_id, seq, at);
CREATE INDEX audit_event_actor ON audit_event (tenant_id, actor, seq);
CREATE INDEX audit_event_via ON audit_event (tenant_id, via, seq) WHERE via IS NOT NULL;
CREATE INDEX audit_event_action ON audit_event (tenant_id, action, seq);
CREATE INDEX audit_event_target ON audit_event (tenant_id, target_id, seq);
CREATE INDEX audit_event_kind ON audit_event (tenant_id, target_kind, seq);
CREATE INDEX audit_event_outcome ON audit_event (tenant_id, outcome, seq);
CREATE INDEX audit_event_request ON audit_event (tenant_id, request_id, seq) WHERE request_id IS NOT NULL;
CREATE INDEX audit_event_ip ON audit_event (tenant_id, ip, seq) WHERE ip IS NOT NULL;

INSERT INTO change_head (id, seq) VALUES (1, 0);
