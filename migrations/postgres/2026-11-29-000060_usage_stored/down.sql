DROP TABLE usage_stored;
