-- Instead of 0001: the outbox partitioned by day. Old events go by DROP TABLE, which costs no vacuum.
--
-- The publication needs publish_via_partition_root = true, so that rows arrive under the name of this table;
-- `walrelay setup` makes it so. A partitioned table's primary key contains its partition key.
CREATE TABLE IF NOT EXISTS public.outbox_events (
    id            uuid        NOT NULL,
    aggregate_id  uuid        NOT NULL,
    event_type    text        NOT NULL,
    event_version smallint    NOT NULL DEFAULT 1,
    occurred_at   timestamptz NOT NULL DEFAULT now(),
    payload_json  jsonb       NOT NULL,
    PRIMARY KEY (id, occurred_at)
) PARTITION BY RANGE (occurred_at);

-- Catches events whose day has no partition yet: without it their INSERT, and the application's transaction, fails.
CREATE TABLE IF NOT EXISTS public.outbox_events_default PARTITION OF public.outbox_events DEFAULT;

-- The partitions of the next seven days, by UTC. Run it daily (cron, pg_cron); it makes only what is missing.
DO $$
DECLARE
    day date;
BEGIN
    FOR day IN SELECT (now() AT TIME ZONE 'UTC')::date + n FROM generate_series(0, 6) AS n LOOP
        EXECUTE format(
            'CREATE TABLE IF NOT EXISTS public.%I PARTITION OF public.outbox_events FOR VALUES FROM (%L) TO (%L)',
            'outbox_events_' || to_char(day, 'YYYYMMDD'),
            day::text || ' 00:00:00+00',
            (day + 1)::text || ' 00:00:00+00');
    END LOOP;
END
$$;

-- Retention: `walrelay prune --older-than 7d`, once a day, drops the days that the relay has confirmed and makes the coming
-- ones.
