DROP INDEX audit_event_services;
ALTER TABLE audit_event DROP COLUMN services;
DROP TABLE audit_checkpoint;
DROP TABLE audit_key;
