DROP INDEX usage_hour_key;
