-- The inbox of a consumer: which events it has taken, in the transaction that has their effects. Run it in the consumer's own
-- database, in any schema that is on its search_path; running it again does no harm.
--
--   BEGIN;
--   SELECT inbox_take('billing', event_id => '0199fd3c-…', place => 'walrelay 16/B374D848:3');  -- true: the first time
--   …the effects, where it was true…
--   COMMIT;                                                                                      -- then acknowledge
--
-- inbox: a name for one consumer of one stream. event_id and place: as the message tells them; place is the value of
-- Walrelay-Position, NULL where the message has none.

CREATE TABLE IF NOT EXISTS inbox_events (
    inbox text NOT NULL,
    event_id text NOT NULL,
    slot text,
    commit_lsn pg_lsn,
    ordinal bigint,
    taken_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (inbox, event_id)
);

CREATE INDEX IF NOT EXISTS inbox_events_taken_at ON inbox_events (inbox, taken_at);

-- What stands for the ids that were forgotten: everything of the lane from `first` up to `last` was taken.
CREATE TABLE IF NOT EXISTS inbox_lanes (
    inbox text NOT NULL,
    slot text NOT NULL,
    first_lsn pg_lsn NOT NULL,
    first_ordinal bigint NOT NULL,
    last_lsn pg_lsn NOT NULL,
    last_ordinal bigint NOT NULL,
    PRIMARY KEY (inbox, slot)
);

-- Whether this is the first time. Another transaction that takes the same event waits here for the end of the first one.
CREATE OR REPLACE FUNCTION inbox_take(inbox text, event_id text, place text DEFAULT NULL) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    its_slot text := substring(place FROM '^(.*) [^ ]*$');
    its_lsn pg_lsn := substring(place FROM ' ([^ ]*):[0-9]+$')::pg_lsn;
    its_ordinal bigint := substring(place FROM ':([0-9]+)$')::bigint;
BEGIN
    IF inbox IS NULL OR event_id IS NULL THEN
        RAISE EXCEPTION 'inbox_take needs the name of an inbox and the id of an event: % is NULL',
            CASE WHEN inbox IS NULL THEN 'inbox' ELSE 'event_id' END
            USING ERRCODE = 'null_value_not_allowed',
                HINT = 'An event without an id cannot be told from another one: publish it with one.';
    END IF;
    IF place IS NOT NULL AND (its_slot IS NULL OR its_lsn IS NULL OR its_ordinal IS NULL) THEN
        RAISE EXCEPTION '% is not a place such as: walrelay 16/B374D848:3', quote_literal(place)
            USING HINT = 'Give the value of the header Walrelay-Position, or NULL where the message has none.';
    END IF;
    IF current_setting('transaction_isolation') = 'repeatable read' THEN
        RAISE EXCEPTION 'inbox_take would not see what inbox_forget commits meanwhile'
            USING ERRCODE = 'feature_not_supported',
                HINT = 'Begin the transaction with ISOLATION LEVEL READ COMMITTED or SERIALIZABLE.';
    END IF;
    INSERT INTO inbox_events AS e (inbox, event_id, slot, commit_lsn, ordinal)
        VALUES (inbox_take.inbox, inbox_take.event_id, its_slot, its_lsn, its_ordinal)
        ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    -- Behind the insert, so that what inbox_forget commits meanwhile is seen.
    IF EXISTS (
        SELECT FROM inbox_lanes AS l
        WHERE l.inbox = inbox_take.inbox AND l.slot = its_slot
            AND (its_lsn, its_ordinal) >= (l.first_lsn, l.first_ordinal)
            AND (its_lsn, its_ordinal) <= (l.last_lsn, l.last_ordinal)
    ) THEN
        DELETE FROM inbox_events AS e WHERE e.inbox = inbox_take.inbox AND e.event_id = inbox_take.event_id;
        RETURN false;
    END IF;
    RETURN true;
END
$$;

-- Forgets the ids of events that were taken longer ago than `older_than`, and notes for each lane from where up to where that is;
-- what was taken later from in front of that keeps its ids. Choose it longer
-- than any message may be delivered again, and than events may be out of order. Returns how many ids were forgotten.
CREATE OR REPLACE FUNCTION inbox_forget(inbox text, older_than interval) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    forgotten bigint;
BEGIN
    WITH gone AS (
        DELETE FROM inbox_events AS e
        WHERE e.inbox = inbox_forget.inbox AND e.taken_at < now() - older_than AND e.slot IS NOT NULL
            -- In front of what is noted, such as history that was replayed later, others may not have been taken.
            AND NOT EXISTS (
                SELECT FROM inbox_lanes AS l
                WHERE l.inbox = e.inbox AND l.slot = e.slot
                    AND (e.commit_lsn, e.ordinal) < (l.first_lsn, l.first_ordinal))
        RETURNING e.slot, e.commit_lsn, e.ordinal
    ), lanes AS (
        SELECT DISTINCT ON (gone.slot) gone.slot,
            first_value(commit_lsn) OVER up AS first_lsn, first_value(ordinal) OVER up AS first_ordinal,
            last_value(commit_lsn) OVER up AS last_lsn, last_value(ordinal) OVER up AS last_ordinal
        FROM gone
        WINDOW up AS (
            PARTITION BY gone.slot ORDER BY commit_lsn, ordinal
            ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
    ), noted AS (
        INSERT INTO inbox_lanes AS l (inbox, slot, first_lsn, first_ordinal, last_lsn, last_ordinal)
        SELECT inbox_forget.inbox, lanes.* FROM lanes
        ON CONFLICT ON CONSTRAINT inbox_lanes_pkey DO UPDATE SET
            last_lsn = CASE WHEN (excluded.last_lsn, excluded.last_ordinal) > (l.last_lsn, l.last_ordinal)
                THEN excluded.last_lsn ELSE l.last_lsn END,
            last_ordinal = CASE WHEN (excluded.last_lsn, excluded.last_ordinal) > (l.last_lsn, l.last_ordinal)
                THEN excluded.last_ordinal ELSE l.last_ordinal END
    )
    SELECT count(*) INTO forgotten FROM gone;
    RETURN forgotten;
END
$$;
