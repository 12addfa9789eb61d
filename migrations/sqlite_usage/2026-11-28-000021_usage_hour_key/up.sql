-- The counts of one key, and the last hour in which it was used: without a walk through those of all.
CREATE INDEX usage_hour_key ON usage_hour (key_id, start);
