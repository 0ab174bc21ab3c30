-- The outbox: one row per domain event, inserted in the transaction that changes the aggregate.
--
-- walrelay reads it from the write-ahead log, so no index serves the relay, and rows may be deleted in the very
-- transaction that inserts them. More columns, another order of columns and further indexes are fine.
CREATE TABLE IF NOT EXISTS public.outbox_events (
    id            uuid        PRIMARY KEY,
    aggregate_id  uuid        NOT NULL,
    event_type    text        NOT NULL,
    event_version smallint    NOT NULL DEFAULT 1,
    occurred_at   timestamptz NOT NULL DEFAULT now(),
    payload_json  jsonb       NOT NULL
);
