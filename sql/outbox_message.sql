-- An event without a row: into the WAL alone, for a relay with [source] messages = 'outbox'. Published if and only if the
-- transaction commits, in its order among the transaction's rows. Returns the event's id.
--
-- Nothing is kept: walrelay verify and backfill do not see it, and once the slot has passed it, no one can publish it again.
CREATE OR REPLACE FUNCTION outbox_message(
    aggregate_id uuid,
    event_type text,
    payload_json jsonb,
    event_version smallint DEFAULT 1,
    id uuid DEFAULT gen_random_uuid(),
    occurred_at timestamptz DEFAULT now(),
    prefix text DEFAULT 'outbox'
) RETURNS uuid
LANGUAGE sql AS $$
    -- Transactional: true. What is not is sent at once, whether its transaction commits or not, and walrelay refuses it.
    SELECT pg_logical_emit_message(true, prefix, json_build_object(
        'id', id,
        'aggregate_id', aggregate_id,
        'event_type', event_type,
        'event_version', event_version,
        'occurred_at', occurred_at,
        'payload_json', payload_json
    )::text);
    SELECT id;
$$;
