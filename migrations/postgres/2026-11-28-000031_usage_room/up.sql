-- Each batch adds to the same rows again. With room on its page a row is replaced there, and none of the
-- wide keys is entered into the index once more.
ALTER TABLE usage_minute SET (fillfactor = 50);
ALTER TABLE usage_hour SET (fillfactor = 50);
ALTER TABLE usage_day SET (fillfactor = 50);
ALTER TABLE usage_ip SET (fillfactor = 50);
ALTER TABLE usage_scope SET (fillfactor = 50);
ALTER TABLE usage_stranger SET (fillfactor = 50);
