-- Which batches were stored of whose rows in usage_batch are gone: of each node the runs of their numbers, for
-- ever, so that a journal that comes back after years counts once.
CREATE TABLE usage_stored (
    node TEXT NOT NULL,
    from_number BIGINT NOT NULL,
    to_number BIGINT NOT NULL,
    PRIMARY KEY (node, from_number)
);
