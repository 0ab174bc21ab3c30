-- Optional: four relays, each with a slot and a publication of its own, share the rows by aggregate (Postgres 15+).
--
-- Order holds within an aggregate, no longer between aggregates. Every slot still decodes the whole log: this helps
-- when publishing is the limit, not when decoding is. To change the number of shares, ALTER all publications in ONE
-- transaction, so that every slot switches at the same position. Rows from before it stay in the stream of their former
-- share: give `walrelay verify` and `walrelay backfill`, which know a share by the filter of today, --since from then on.
--
-- `&` and not mod(): a hash may be negative, and so may its remainder; such rows would belong to no share. A key of
-- type text takes hashtext(column). Should aggregate_id allow nulls, one share needs OR aggregate_id IS NULL.
BEGIN;

CREATE PUBLICATION walrelay_0 FOR TABLE public.outbox_events
    WHERE ((uuid_hash(aggregate_id) & 3) = 0)
    WITH (publish = 'insert', publish_via_partition_root = true);
CREATE PUBLICATION walrelay_1 FOR TABLE public.outbox_events
    WHERE ((uuid_hash(aggregate_id) & 3) = 1)
    WITH (publish = 'insert', publish_via_partition_root = true);
CREATE PUBLICATION walrelay_2 FOR TABLE public.outbox_events
    WHERE ((uuid_hash(aggregate_id) & 3) = 2)
    WITH (publish = 'insert', publish_via_partition_root = true);
CREATE PUBLICATION walrelay_3 FOR TABLE public.outbox_events
    WHERE ((uuid_hash(aggregate_id) & 3) = 3)
    WITH (publish = 'insert', publish_via_partition_root = true);

COMMIT;

-- Then one relay each, and `walrelay setup` of each for its slot and stream. No two share a name, a stream or a subject:
--   name = "walrelay_0", nats.stream = "OUTBOX_0", nats.subject = "outbox_0.{event_type}" … "walrelay_3", "OUTBOX_3",
--   "outbox_3.{event_type}"; a consumer of all shares reads four streams, or one that sources them.
