-- The keys that tokens are signed with. The private half is sealed under a key that is derived from the
-- master key of this id, so that the database alone signs nothing; the public half is worked out from
-- it, so that whoever can write here can publish none of his own. Which state a key is in follows from
-- the clock: it signs from active_from until that of the next one.
CREATE TABLE signing_key (
    generation BIGINT NOT NULL,
    kid TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    master_id TEXT NOT NULL,
    private_key BLOB NOT NULL,
    active_from BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (generation)
);
