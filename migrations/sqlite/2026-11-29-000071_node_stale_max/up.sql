-- How long a node may go on deciding that Redis alone reaches, in milliseconds: its `cache.stale_max`, nothing
-- where it has no Redis. A row that is written by who does not know it stands for the longest that there may be.
ALTER TABLE node ADD COLUMN stale_max_ms BIGINT NOT NULL DEFAULT 3600000;
