-- Stepped last in the transaction of a batch: the row lock makes number order the commit order.
CREATE TABLE usage_head (
    id INTEGER NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (id)
);

INSERT INTO usage_head (id, seq) VALUES (1, 0);

-- A batch that stands here was stored, and is not stored again.
CREATE TABLE usage_batch (
    node TEXT NOT NULL,
    number BIGINT NOT NULL,
    seq BIGINT,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    events BIGINT NOT NULL,
    shed BIGINT NOT NULL,
    stored_at BIGINT NOT NULL,
    PRIMARY KEY (node, number),
    UNIQUE (seq)
);

CREATE TABLE usage_event (
    tenant_id TEXT NOT NULL,
    at BIGINT NOT NULL,
    id TEXT NOT NULL,
    node TEXT NOT NULL,
    batch BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    consumer_id TEXT NOT NULL,
    service TEXT NOT NULL,
    environment TEXT NOT NULL,
    operation TEXT NOT NULL,
    outcome TEXT NOT NULL,
    ip TEXT,
    caller TEXT NOT NULL,
    request_id TEXT NOT NULL,
    token_id TEXT,
    subject TEXT,
    actor TEXT,
    detail TEXT NOT NULL,
    PRIMARY KEY (tenant_id, at, id)
) PARTITION BY RANGE (at);

CREATE INDEX usage_event_key ON usage_event (key_id, at, id);
CREATE INDEX usage_event_request ON usage_event (request_id);

-- A partition an hour, named after its hour since 1970. Each is made empty beside the table and then
-- attached, because that is the way that neither readers nor writers wait for. With the rights of
-- who migrates, for those who may write events and no more.
CREATE FUNCTION usage_event_hour(hour BIGINT) RETURNS BOOLEAN
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
DECLARE
    part TEXT := 'usage_event_h' || hour;
BEGIN
    IF NOT has_table_privilege(session_user, 'public.usage_event', 'INSERT') THEN
        RAISE EXCEPTION 'permission denied for table usage_event';
    END IF;
    IF to_regclass('public.' || part) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('keystead usage_event'));
    -- Asked of the table itself: what to_regclass has not found it remembers.
    IF EXISTS (SELECT FROM pg_class
               WHERE relname = part AND relnamespace = 'public'::regnamespace) THEN
        RETURN FALSE;
    END IF;
    EXECUTE format('CREATE TABLE public.%I (LIKE public.usage_event INCLUDING ALL)', part);
    EXECUTE format('ALTER TABLE public.usage_event ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
                   part, hour * 3600000, (hour + 1) * 3600000);
    RETURN TRUE;
END $$;

CREATE FUNCTION usage_event_drop_hour(hour BIGINT) RETURNS BOOLEAN
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public AS $$
DECLARE
    part TEXT := 'usage_event_h' || hour;
BEGIN
    IF NOT has_table_privilege(session_user, 'public.usage_event', 'DELETE') THEN
        RAISE EXCEPTION 'permission denied for table usage_event';
    END IF;
    IF to_regclass('public.' || part) IS NULL THEN
        RETURN FALSE;
    END IF;
    EXECUTE format('DROP TABLE public.%I', part);
    RETURN TRUE;
END $$;

-- What stands in them is exact, never sampled. `key_id` is '' where no key was identified.
CREATE TABLE usage_minute (
    tenant_id TEXT NOT NULL,
    start BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    caller TEXT NOT NULL,
    consumer_id TEXT NOT NULL,
    uses BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller)
);

CREATE TABLE usage_hour (
    tenant_id TEXT NOT NULL,
    start BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    secret_id TEXT NOT NULL,
    superseded INTEGER NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    caller TEXT NOT NULL,
    consumer_id TEXT NOT NULL,
    uses BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, start, key_id, secret_id, superseded, service, outcome, operation, caller)
);

-- By day, without keys: what a summary over a year is made from.
CREATE TABLE usage_day (
    tenant_id TEXT NOT NULL,
    start BIGINT NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    uses BIGINT NOT NULL,
    cost BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, start, service, outcome, operation)
);

CREATE TABLE usage_ip (
    tenant_id TEXT NOT NULL,
    day BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    ip TEXT NOT NULL,
    uses BIGINT NOT NULL,
    first_at BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, key_id, ip)
);

CREATE TABLE usage_scope (
    tenant_id TEXT NOT NULL,
    day BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    service TEXT NOT NULL,
    scope TEXT NOT NULL,
    uses BIGINT NOT NULL,
    last_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, key_id, service, scope)
);

-- What no key was found for. Bounded in rows: beyond that `ip` is ''.
CREATE TABLE usage_stranger (
    tenant_id TEXT NOT NULL,
    hour BIGINT NOT NULL,
    caller TEXT NOT NULL,
    service TEXT NOT NULL,
    outcome TEXT NOT NULL,
    operation TEXT NOT NULL,
    ip TEXT NOT NULL,
    uses BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, hour, caller, service, outcome, operation, ip)
);
