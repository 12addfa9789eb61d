ALTER TABLE usage_stranger RESET (fillfactor);
ALTER TABLE usage_scope RESET (fillfactor);
ALTER TABLE usage_ip RESET (fillfactor);
ALTER TABLE usage_day RESET (fillfactor);
ALTER TABLE usage_hour RESET (fillfactor);
ALTER TABLE usage_minute RESET (fillfactor);
