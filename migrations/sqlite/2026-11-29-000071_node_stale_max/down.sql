ALTER TABLE node DROP COLUMN stale_max_ms;
