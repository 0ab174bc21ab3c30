-- Optional: for those who mark published rows instead of deleting them.
--
-- Each mark is an UPDATE and leaves a dead tuple; a table partitioned by time (outbox_events_partitioned.sql) whose
-- old partitions are dropped is cheaper to keep. The partial index stays as small as the backlog.
ALTER TABLE public.outbox_events ADD COLUMN IF NOT EXISTS dispatched_at timestamptz;

CREATE INDEX IF NOT EXISTS outbox_events_pending_idx
    ON public.outbox_events (occurred_at)
    WHERE dispatched_at IS NULL;
