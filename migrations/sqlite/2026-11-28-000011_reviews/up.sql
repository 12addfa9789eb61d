-- A review of who has access: the keys as they stood when it began, and what was decided of each.
CREATE TABLE review (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    filter TEXT NOT NULL,
    thresholds TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    created_by TEXT NOT NULL,
    reason TEXT,
    as_of BIGINT,
    keys BIGINT NOT NULL,
    findings TEXT NOT NULL,
    digest TEXT,
    closed_at BIGINT,
    closed_by TEXT,
    close_reason TEXT,
    PRIMARY KEY (id),
    FOREIGN KEY (tenant_id) REFERENCES tenant (id)
);

CREATE INDEX review_page ON review (tenant_id, created_at, id);

-- The services that it is limited to; without any it is about all.
CREATE TABLE review_service (
    review_id TEXT NOT NULL,
    service TEXT NOT NULL,
    PRIMARY KEY (review_id, service),
    FOREIGN KEY (review_id) REFERENCES review (id)
);

CREATE TABLE review_item (
    review_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    record TEXT NOT NULL,
    findings TEXT NOT NULL,
    decision TEXT NOT NULL,
    note TEXT,
    own INTEGER NOT NULL,
    carried_out INTEGER NOT NULL,
    decided_at BIGINT,
    decided_by TEXT,
    decided_by_name TEXT,
    PRIMARY KEY (review_id, key_id),
    FOREIGN KEY (review_id) REFERENCES review (id)
);

CREATE INDEX review_item_decision ON review_item (review_id, decision, key_id);
