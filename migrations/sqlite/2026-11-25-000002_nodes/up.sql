-- The nodes that may be validating: who waits until a change is known everywhere waits for these.
CREATE TABLE node (
    id TEXT NOT NULL,
    position BIGINT NOT NULL,
    seen_at BIGINT NOT NULL,
    PRIMARY KEY (id)
);
