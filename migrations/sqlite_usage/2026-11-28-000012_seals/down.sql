DROP INDEX usage_scope_key;
DROP TABLE usage_late;
DROP TABLE usage_seal;
