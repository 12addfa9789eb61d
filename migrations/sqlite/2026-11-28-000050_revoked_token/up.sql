-- Tokens that were revoked by themselves, each for as long as one of its id may still live. A token that ended with
-- its key or secret is not here.
CREATE TABLE revoked_token (
    id TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (id)
);
CREATE INDEX revoked_token_expires_at ON revoked_token (expires_at);
